//! Nonsense: it gets its reason, opens nothing, and nothing protected leaks.

use nat_common::{
    host::packet::{ETHERNET, Packet, Payload, ip, mend_ip},
    net::Ip4,
    rules::{control, role},
    stage::Out,
    verdict::{DropReason, Verdict},
};
use proptest::prelude::*;

use crate::gateway::{
    ACK, Gateway, HOST, OTHER_HOST, OWNED, PEERED, POOL, REMOTE, SERVER, SERVER_PUBLIC, SYN,
};

fn frame_with(packet: &Packet, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = packet.frame();
    change(&mut frame);
    mend_ip(&mut frame);
    frame
}

#[test]
fn each_kind_of_malformed_packet_gets_its_reason_and_opens_nothing() {
    use DropReason::{MalformedEthernet, MalformedIcmp, MalformedIp, MalformedTcp, MalformedUdp};
    let udp = Packet::udp((HOST, 5000), (REMOTE, 53));
    let tcp = Packet::tcp((HOST, 5000), (REMOTE, 80), SYN);
    let ping = Packet::ping((HOST, 5000), REMOTE);
    let cut = |packet: &Packet, length: u16| {
        frame_with(packet, |frame| {
            frame[16..18].copy_from_slice(&length.to_be_bytes());
        })
    };
    let cases = vec![
        ("shorter than Ethernet", vec![0; 13], MalformedEthernet),
        ("shorter than IP", udp.frame()[..ETHERNET + 19].to_vec(), MalformedIp),
        ("version 6", frame_with(&udp, |f| f[14] = 0x65), MalformedIp),
        (
            "header of 16 bytes",
            {
                let mut f = udp.frame();
                f[14] = 0x44;
                f
            },
            MalformedIp,
        ),
        ("total length below the header", cut(&udp, 19), MalformedIp),
        ("total length beyond the frame", cut(&udp, 500), MalformedIp),
        (
            "IP checksum",
            {
                let mut f = udp.frame();
                f[24] ^= 1;
                f
            },
            MalformedIp,
        ),
        ("UDP header cut off", cut(&udp, 27), MalformedUdp),
        ("UDP length below 8", frame_with(&udp, |f| f[39] = 7), MalformedUdp),
        ("UDP length beyond the packet", frame_with(&udp, |f| f[39] = 200), MalformedUdp),
        ("TCP header cut off", cut(&tcp, 39), MalformedTcp),
        ("TCP offset below 5", frame_with(&tcp, |f| f[46] = 0x40), MalformedTcp),
        ("TCP offset beyond the packet", frame_with(&tcp, |f| f[46] = 0x60), MalformedTcp),
        ("TCP without flags", frame_with(&tcp, |f| f[47] = 0), MalformedTcp),
        ("SYN and FIN", frame_with(&tcp, |f| f[47] = 3), MalformedTcp),
        ("ICMP header cut off", cut(&ping, 27), MalformedIcmp),
    ];
    for gateway in Gateway::both() {
        for (what, frame, reason) in &cases {
            let run = gateway.world.receive(gateway.inside, frame);
            assert_eq!(run.verdict(), Verdict::Drop(*reason), "{what} by {:?}", run.stages);
        }
        assert_eq!(gateway.entries(), 0);
        assert_eq!(gateway.totals().drops.iter().sum::<u64>(), cases.len() as u64);
    }
}

#[test]
fn sources_that_no_packet_may_have_open_nothing() {
    for mut gateway in Gateway::both() {
        gateway.world.add_snat(Ip4::UNSPECIFIED, 0, 1, 0);
        for source in [ip(127, 0, 0, 1), ip(224, 0, 0, 1), ip(255, 255, 255, 255), ip(0, 0, 0, 0)] {
            let packet = Packet::udp((source, 5000), (REMOTE, 53));
            assert_eq!(gateway.refused_out(&packet), DropReason::Martian, "{source}");
        }
    }
}

fn any_endpoint() -> impl Strategy<Value = Ip4> {
    prop::sample::select(vec![
        HOST,
        OTHER_HOST,
        SERVER,
        SERVER_PUBLIC,
        POOL,
        OWNED,
        REMOTE,
        PEERED,
        crate::gateway::GATEWAY,
        ip(172, 20, 0, 1),
        ip(224, 0, 0, 1),
    ])
}

fn any_packet() -> impl Strategy<Value = Packet> {
    let port = prop::sample::select(vec![0u16, 22, 53, 443, 5000, 8000, 8443, 9000, 65535]);
    let payload = prop_oneof![
        (port.clone(), port.clone(), any::<bool>())
            .prop_map(|(sport, dport, checksum)| Payload::Udp { sport, dport, checksum }),
        (port.clone(), port.clone(), prop::sample::select(vec![SYN, ACK, SYN | ACK, 4, 17]))
            .prop_map(|(sport, dport, flags)| Payload::Tcp {
                sport,
                dport,
                flags,
                seq: 1,
                ack: 1,
                options: vec![2, 4, 5, 0xb4]
            }),
        (0u8..20, 0u8..5, any::<[u8; 4]>()).prop_map(|(kind, code, rest)| Payload::Icmp {
            kind,
            code,
            rest
        }),
        any::<u8>().prop_map(Payload::Other),
    ];
    let quoted = (any_endpoint(), any_endpoint(), port.clone(), port)
        .prop_map(|(src, dst, a, b)| Packet::udp((src, a), (dst, b)).packet());
    let data = prop_oneof![prop::collection::vec(any::<u8>(), 0..64), quoted];
    (
        any_endpoint(),
        any_endpoint(),
        payload,
        data,
        0u8..4,
        prop::sample::select(vec![0usize, 4, 40]),
    )
        .prop_map(|(src, dst, payload, data, ttl, options)| Packet {
            ttl: if ttl < 2 { ttl } else { 64 },
            data,
            options: vec![1; options],
            ..Packet::new(src, dst, payload)
        })
}

/// A frame, whole or damaged.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let damage = prop::collection::vec((12usize..90, any::<u8>()), 0..4);
    let damaged = (any_packet(), damage, any::<bool>(), prop::option::of(10usize..100)).prop_map(
        |(packet, damage, mend, cut)| {
            let mut frame = packet.frame();
            for (at, value) in damage {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
            if mend && frame[14] & 15 >= 5 && frame.len() >= 14 + usize::from(frame[14] & 15) * 4 {
                mend_ip(&mut frame);
            }
            if let Some(cut) = cut {
                frame.truncate(cut);
            }
            frame
        },
    );
    prop_oneof![4 => damaged, 1 => prop::collection::vec(any::<u8>(), 0..200)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn no_frame_makes_it_panic_or_shows_a_protected_source_outside(
        frames in prop::collection::vec((any_frame(), any::<bool>()), 1..12),
        armed in 0u8..3,
    ) {
        let gateway = match armed {
            0 => Gateway::two_armed(),
            1 => Gateway::one_armed(),
            _ => Gateway::rfc(),
        };
        for (frame, inside) in frames {
            let ingress = if inside { gateway.inside } else { gateway.outside };
            let run = gateway.world.receive(ingress, &frame);
            let egress = match run.outcome.out {
                Out::None => None,
                Out::Back => Some(ingress & 1023),
                Out::Slot(slot) => Some(u32::from(slot)),
            };
            if let Some(slot) = egress
                && gateway.world.interfaces[&slot].role & role::PUBLIC != 0
            {
                let leak = gateway.world.shown_by(&run.frame);
                prop_assert_eq!(leak, None, "{:?} {:02x?} from {:02x?}", run.stages, run.frame, frame);
            }
            prop_assert_ne!(run.verdict(), Verdict::Drop(DropReason::Internal), "{:?} {:02x?}", run.stages, frame);
            if run.verdict() == Verdict::ToHost {
                prop_assert_eq!(run.frame, frame, "the host gets it untouched");
            }
        }
        let totals = gateway.totals();
        let received = totals.packets_in_from_source + totals.packets_in_from_destination;
        let placed = totals.packets_out_to_destination + totals.packets_out_to_source
            + totals.packets_to_host + totals.packets_answered + totals.packets_held
            + totals.drops.iter().sum::<u64>();
        prop_assert_eq!(received, placed);
        prop_assert_eq!(gateway.entries() % 2, 0, "no half of a session");
    }
}

#[test]
fn nonsense_beside_it_disturbs_no_session() {
    let mut gateway = Gateway::two_armed();
    gateway.world.control.flags |= control::IDLE_RESET;
    let public = gateway.connect((HOST, 5000), (REMOTE, 443));
    for flags in 0..64 {
        let back = Packet::tcp((REMOTE, 443), public, flags);
        let mut frame = back.frame();
        frame[46] = 0xf0;
        gateway.world.receive(gateway.outside, &frame);
        let mut short = back.frame();
        short.truncate(40);
        gateway.world.receive(gateway.outside, &short);
    }
    gateway.sent_out(&Packet::tcp((HOST, 5000), (REMOTE, 443), ACK));
    gateway.sent_back(&Packet::tcp((REMOTE, 443), public, ACK));
}
