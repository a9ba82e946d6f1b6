//! What goes out comes back: addresses, ports and checksums both ways.

use nat_common::{
    host::packet::{ETHERNET, Packet, Payload, ip, seen},
    net::Ip4,
    verdict::{DropReason, Verdict},
};
use proptest::prelude::*;

use crate::gateway::{
    ACK, Gateway, HOST, OTHER_HOST, OTHER_REMOTE, POOL, REMOTE, ROUTER_MAC, SERVER, SYN,
};

#[derive(Clone, Debug)]
struct Exchange {
    host: Ip4,
    remote: Ip4,
    protocol: u8,
    sport: u16,
    dport: u16,
    ttl: u8,
    options: Vec<u8>,
    data: Vec<u8>,
}

fn exchange() -> impl Strategy<Value = Exchange> {
    let hosts = (0u8..=255, 2u8..=254)
        .prop_map(|(c, d)| ip(10, 0, c, d))
        .prop_filter("has a public address of its own", |host| *host != SERVER);
    let remotes = (1u8..=9, any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| ip(a, b, c, d));
    let options = prop::collection::vec(Just(1u8), 0..=10).prop_map(|nops| nops.repeat(4));
    (
        (hosts, remotes, prop::sample::select(vec![1u8, 6, 17])),
        (1u16.., 1u16.., 2u8.., options, prop::collection::vec(any::<u8>(), 0..200)),
    )
        .prop_map(|((host, remote, protocol), (sport, dport, ttl, options, data))| Exchange {
            host,
            remote,
            protocol,
            sport,
            dport,
            ttl,
            options,
            data,
        })
}

impl Exchange {
    fn request(&self) -> Packet {
        let (from, to) = ((self.host, self.sport), (self.remote, self.dport));
        let packet = match self.protocol {
            1 => Packet::ping(from, self.remote),
            6 => Packet::tcp(from, to, SYN),
            _ => Packet::udp(from, to),
        };
        self.dress(packet)
    }

    /// From the remote to a public endpoint.
    fn reply(&self, to: (Ip4, u16)) -> Packet {
        let from = (self.remote, self.dport);
        let packet = match self.protocol {
            1 => Packet::pong(self.remote, to),
            6 => Packet::tcp(from, to, SYN | ACK),
            _ => Packet::udp(from, to),
        };
        self.dress(packet)
    }

    fn dress(&self, mut packet: Packet) -> Packet {
        packet.ttl = self.ttl;
        packet.options.clone_from(&self.options);
        packet.data.clone_from(&self.data);
        packet
    }
}

proptest! {
    #[test]
    fn a_reply_to_what_was_translated_comes_back_to_its_sender_unchanged(exchange in exchange()) {
        for mut gateway in Gateway::both() {
            gateway.world.ways[0].mtu = 1500;
            gateway.world.neighbours.insert(exchange.host, nat_common::net::Mac([2, 0xbb, 0, 0, 0, exchange.host.octets()[3]]));
            let request = exchange.request();
            let outside = gateway.sent_out(&request);
            prop_assert_eq!(outside.src, POOL);
            prop_assert_eq!(outside.dst, exchange.remote);
            prop_assert_eq!(outside.ttl, exchange.ttl - 1);
            prop_assert_eq!(&outside.options, &exchange.options);
            prop_assert_eq!(&outside.data, &exchange.data);
            if exchange.protocol != 1 {
                prop_assert_eq!(outside.dport, exchange.dport);
            }
            let reply = exchange.reply(outside.source());
            let inside = gateway.sent_back(&reply);
            let expected = seen(&exchange.reply((exchange.host, exchange.sport)).frame());
            prop_assert_eq!(inside.source(), expected.source());
            prop_assert_eq!(inside.destination(), (exchange.host, exchange.sport));
            prop_assert_eq!(inside.ttl, exchange.ttl - 1);
            prop_assert_eq!(inside.options, expected.options);
            prop_assert_eq!(inside.body, expected.body, "ports and checksums as if it were sent to the host");
        }
    }

    #[test]
    fn the_fast_path_does_what_the_first_packet_met(exchange in exchange()) {
        let gateway = Gateway::two_armed();
        let first = gateway.sent_out(&exchange.request());
        let again = gateway.out(&exchange.request());
        prop_assert_eq!(again.verdict(), Verdict::ToDestination);
        prop_assert_eq!(&seen(&again.frame), &first);
        if exchange.protocol != 6 {
            prop_assert_eq!(again.stages, Vec::<u32>::new(), "no stage after the first");
        }
    }
}

#[test]
fn a_udp_packet_without_a_checksum_stays_without() {
    let gateway = Gateway::two_armed();
    let mut packet = Packet::udp((HOST, 5000), (REMOTE, 53));
    packet.payload = Payload::Udp { sport: 5000, dport: 53, checksum: false };
    assert_eq!(gateway.sent_out(&packet).body[6..8], [0, 0]);
}

#[test]
fn a_udp_checksum_that_becomes_zero_is_sent_as_all_ones() {
    let gateway = Gateway::two_armed();
    // The last two bytes are chosen so that the sum after translation is all ones.
    let mut wanted = None;
    for word in 0..=u16::MAX {
        let mut outside = Packet::udp((POOL, 5000), (REMOTE, 53));
        outside.data = word.to_be_bytes().to_vec();
        if outside.frame()[ETHERNET + 26..ETHERNET + 28] == [0xff, 0xff] {
            wanted = Some(word);
        }
    }
    let mut packet = Packet::udp((HOST, 5000), (REMOTE, 53));
    packet.data = wanted.expect("one of them").to_be_bytes().to_vec();
    assert_eq!(gateway.sent_out(&packet).body[6..8], [0xff, 0xff]);
}

#[test]
fn padding_behind_a_short_packet_is_no_part_of_it() {
    let gateway = Gateway::two_armed();
    let mut packet = Packet::udp((HOST, 5000), (REMOTE, 53));
    packet.data = b"x".to_vec();
    let mut frame = packet.frame();
    frame.resize(60, 0xee);
    let run = gateway.world.receive(gateway.inside, &frame);
    assert_eq!(run.verdict(), Verdict::ToDestination);
    assert_eq!(seen(&run.frame).data, b"x");
    assert_eq!(run.outcome.bytes, 29, "bytes of the IP packet");
}

#[test]
fn a_tagged_frame_is_left_to_the_host_untouched() {
    for gateway in Gateway::both() {
        let mut frame = Packet::udp((HOST, 5000), (REMOTE, 53)).frame();
        frame.splice(12..12, [0x81, 0x00, 0x00, 0x64]);
        let run = gateway.world.receive(gateway.inside, &frame);
        assert_eq!(run.verdict(), Verdict::ToHost);
        assert_eq!(run.frame, frame);
        assert_eq!(gateway.entries(), 0);
    }
}

#[test]
fn the_segment_size_of_a_syn_is_lowered_to_what_fits_and_never_raised() {
    let mut gateway = Gateway::two_armed();
    gateway.world.ways[2].mtu = 1400;
    // Even and odd places of the option, larger and smaller than what fits.
    for (options, size) in [
        (vec![2, 4, 0x05, 0xb4], 1360),
        (vec![1, 2, 4, 0x05, 0xb4, 1, 1, 1], 1360),
        (vec![1, 1, 2, 4, 0x02, 0x00, 1, 1], 0x200),
        (vec![4, 2, 1, 2, 4, 0xff, 0xff, 1], 1360),
    ] {
        let at = options.windows(2).position(|w| w == [2, 4]).expect("the option") + 2;
        for (port, flags, out) in [(5000, SYN, true), (5001, SYN | ACK, false)] {
            let port = port + at as u16 * 10 + size % 7;
            let mut packet = Packet::tcp((HOST, port), (REMOTE, 80), SYN);
            let seen = if out {
                set_options(&mut packet, &options);
                gateway.sent_out(&packet)
            } else {
                gateway.world.ways[0].mtu = 1400;
                let public = gateway.sent_out(&packet).source();
                let mut reply = Packet::tcp((REMOTE, 80), public, flags);
                set_options(&mut reply, &options);
                gateway.sent_back(&reply)
            };
            let found = u16::from_be_bytes([seen.body[20 + at], seen.body[21 + at]]);
            assert_eq!(found, size, "{options:?}");
        }
    }
}

fn set_options(packet: &mut Packet, wanted: &[u8]) {
    if let Payload::Tcp { options, .. } = &mut packet.payload {
        *options = wanted.to_vec();
    }
}

#[test]
fn a_change_of_the_route_takes_effect_with_the_epoch() {
    let mut gateway = Gateway::two_armed();
    let packet = Packet::udp((HOST, 5000), (REMOTE, 53));
    gateway.sent_out(&packet);
    gateway.world.neighbours.insert(crate::gateway::ROUTER, nat_common::net::Mac([9; 6]));
    assert_eq!(seen(&gateway.out(&packet).frame).to, ROUTER_MAC, "the cached one");
    gateway.world.control.epoch += 1;
    assert_eq!(seen(&gateway.out(&packet).frame).to.0, [9; 6]);
    let asked = gateway.world.asked.get();
    gateway.out(&packet);
    assert_eq!(gateway.world.asked.get(), asked, "cached again");
}

#[test]
fn without_its_daemon_the_gateway_resolves_routes_by_itself() {
    let gateway = Gateway::two_armed();
    let packet = Packet::udp((HOST, 5000), (REMOTE, 53));
    gateway.sent_out(&packet);
    // Eleven seconds without a heartbeat.
    gateway.world.now.set(gateway.world.now.get() + 1100);
    let asked = gateway.world.asked.get();
    assert_eq!(gateway.out(&packet).verdict(), Verdict::ToDestination);
    assert_eq!(gateway.out(&packet).verdict(), Verdict::ToDestination);
    assert_eq!(gateway.world.asked.get(), asked + 1, "once in a while, not per packet");
}

#[test]
fn without_its_daemon_a_packet_for_an_unknown_neighbour_has_the_kernel_ask_for_it() {
    let mut gateway = Gateway::two_armed();
    let packet = Packet::udp((HOST, 5000), (REMOTE, 53));
    let public = gateway.sent_out(&packet).source();
    gateway.world.now.set(gateway.world.now.get() + 1100);
    gateway.world.neighbours.remove(&crate::gateway::ROUTER);
    let given = gateway.out(&packet);
    assert_eq!(given.verdict(), Verdict::ToHost);
    assert_eq!(given.frame, packet.frame(), "untranslated, for the guard to see");
    gateway.world.neighbours.insert(crate::gateway::ROUTER, nat_common::net::Mac([9; 6]));
    assert_eq!(seen(&gateway.out(&packet).frame).to.0, [9; 6]);

    gateway.world.neighbours.remove(&HOST);
    let reply = gateway.back(&Packet::udp((REMOTE, 53), public));
    assert_eq!(reply.verdict(), Verdict::Drop(DropReason::NoNeighbour), "{reply:?}");
}

#[test]
fn packets_and_bytes_are_counted_in_the_session_of_each_direction() {
    let gateway = Gateway::two_armed();
    for (host, remote) in [(HOST, REMOTE), (OTHER_HOST, OTHER_REMOTE)] {
        let packet = Packet::udp((host, 5000), (remote, 53));
        let public = gateway.sent_out(&packet).source();
        gateway.sent_out(&packet);
        let reply = Packet::udp((remote, 53), public);
        gateway.sent_back(&reply);
        let count = |packet: &Packet| {
            let sessions = gateway.world.sessions.borrow();
            let session = sessions[&crate::gateway::key(packet)];
            (session.packets.get(), session.bytes.get())
        };
        assert_eq!(count(&packet), (2, 80));
        assert_eq!(count(&reply), (1, 40));
    }
}
