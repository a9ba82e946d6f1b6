//! What the gateway says itself.

use nat_common::{
    host::{
        Run,
        packet::{Packet, Payload, Seen, seen},
    },
    net::Mac,
    rules::address,
    stage::Out,
    verdict::{DropReason, Verdict},
};

use crate::gateway::{
    ACK, FIN, GATEWAY, Gateway, HOST, HZ, INSIDE_MAC, OTHER_HOST, OUTSIDE_MAC, OWNED, POOL, REMOTE,
    RST, SERVER_PUBLIC, SYN,
};

fn answered(run: &Run, packet: &Packet, mac: Mac) -> Seen {
    assert_eq!(run.verdict(), Verdict::Answered, "by {:?}", run.stages);
    assert_eq!(run.outcome.out, Out::Back);
    let answer = seen(&run.frame);
    assert_eq!((answer.from, answer.to), (mac, packet.from), "back to who sent it");
    answer
}

#[test]
fn a_ttl_that_runs_out_is_told_to_the_sender_with_its_packet_as_it_sent_it() {
    for gateway in Gateway::both() {
        let mac = if gateway.inside == 2 { INSIDE_MAC } else { OUTSIDE_MAC };
        for (live, options) in [(false, vec![]), (true, vec![]), (false, vec![1; 40])] {
            for mut packet in [
                Packet::udp((HOST, 5000), (REMOTE, 33434)),
                Packet::tcp((HOST, 5000), (REMOTE, 80), SYN),
                Packet::ping((HOST, 5000), REMOTE),
            ] {
                packet.options.clone_from(&options);
                if live {
                    gateway.sent_out(&packet);
                }
                for ttl in [0, 1] {
                    packet.ttl = ttl;
                    let answer = answered(&gateway.out(&packet), &packet, mac);
                    assert_eq!(answer.icmp(), (11, 0));
                    assert_eq!((answer.src, answer.dst), (GATEWAY, HOST));
                    let original = packet.packet();
                    assert_eq!(answer.data, original[..20 + options.len() + 8]);
                }
            }
        }
    }
}

#[test]
fn towards_the_outside_it_comes_from_the_public_address() {
    for gateway in Gateway::both() {
        let public = gateway.sent_out(&Packet::udp((HOST, 5000), (REMOTE, 53))).source();
        let packet = Packet { ttl: 1, ..Packet::udp((REMOTE, 53), public) };
        let answer = answered(&gateway.back(&packet), &packet, OUTSIDE_MAC);
        assert_eq!((answer.icmp(), answer.src, answer.dst), ((11, 0), POOL, REMOTE));
        assert_eq!(answer.quote().destination(), public);
        let packet = Packet { ttl: 1, ..Packet::udp((REMOTE, 53), (SERVER_PUBLIC, 7)) };
        let answer = answered(&gateway.back(&packet), &packet, OUTSIDE_MAC);
        assert_eq!((answer.src, answer.dst), (SERVER_PUBLIC, REMOTE));
    }
}

#[test]
fn a_packet_that_does_not_fit_is_answered_with_the_mtu_that_does() {
    for mut gateway in Gateway::both() {
        let mac = if gateway.inside == 2 { INSIDE_MAC } else { OUTSIDE_MAC };
        gateway.world.ways[2].mtu = 1400;
        let small = Packet::udp((HOST, 5000), (REMOTE, 53));
        let mut packet = small.clone();
        packet.data = vec![1; 1400];
        for live in [false, true] {
            if live {
                gateway.sent_out(&small);
            }
            let answer = answered(&gateway.out(&packet), &packet, mac);
            assert_eq!((answer.icmp(), answer.icmp_mtu()), ((3, 4), 1400));
            assert_eq!((answer.src, answer.dst), (GATEWAY, HOST));
            assert_eq!(answer.data, packet.packet()[..28]);
        }
        packet.dont_fragment = false;
        assert_eq!(gateway.refused_out(&packet), DropReason::FragmentationNeeded);
        packet.data.truncate(1372);
        gateway.sent_out(&packet);
    }
}

#[test]
fn inbound_packets_that_do_not_fit_are_answered_from_the_public_address() {
    for mut gateway in Gateway::both() {
        let public = gateway.sent_out(&Packet::udp((HOST, 5000), (REMOTE, 53))).source();
        gateway.world.ways[0].mtu = 1000;
        gateway.world.control.epoch += 1;
        let mut packet = Packet::udp((REMOTE, 53), public);
        packet.data = vec![1; 1200];
        let answer = answered(&gateway.back(&packet), &packet, OUTSIDE_MAC);
        assert_eq!((answer.icmp(), answer.icmp_mtu()), ((3, 4), 1000));
        assert_eq!((answer.src, answer.dst), (POOL, REMOTE));
    }
}

#[test]
fn a_stray_segment_from_inside_gets_a_reset_that_its_sender_believes() {
    for gateway in Gateway::both() {
        let mac = if gateway.inside == 2 { INSIDE_MAC } else { OUTSIDE_MAC };
        for (flags, data) in [(ACK, 0), (ACK, 100), (FIN | ACK, 5), (SYN | ACK, 0)] {
            let mut packet = Packet::tcp((HOST, 5000), (REMOTE, 80), flags);
            packet.data = vec![9; data];
            packet.options = vec![1; 8];
            let answer = answered(&gateway.out(&packet), &packet, mac);
            assert_eq!((answer.source(), answer.destination()), ((REMOTE, 80), (HOST, 5000)));
            assert_eq!(answer.tcp_flags(), RST);
            // The sequence number that the segment acknowledges.
            assert_eq!(answer.body[4..8], 2000_u32.to_be_bytes());
        }
        let stray = Packet::tcp((HOST, 5000), (REMOTE, 80), RST);
        assert_eq!(gateway.refused_out(&stray), DropReason::TcpNoSession, "a stray RST nothing");
        assert_eq!(gateway.entries(), 0);
    }
}

#[test]
fn where_resets_are_off_a_stray_segment_is_dropped() {
    for mut gateway in Gateway::both() {
        gateway.world.control.flags = 0;
        let packet = Packet::tcp((HOST, 5000), (REMOTE, 80), ACK);
        assert_eq!(gateway.refused_out(&packet), DropReason::TcpNoSession);
    }
}

#[test]
fn no_error_is_sent_about_an_error_or_a_later_fragment() {
    let gateway = Gateway::two_armed();
    let public = gateway.sent_out(&Packet::udp((HOST, 5000), (REMOTE, 53))).source();
    let quoted = Packet::udp(public, (REMOTE, 53)).packet();
    let error = Packet { ttl: 1, ..Packet::error(REMOTE, POOL, 3, 3, &quoted, 28) };
    assert_eq!(gateway.refused_back(&error), DropReason::TtlExceeded);
    let mut large = Packet { ttl: 1, ..Packet::udp((HOST, 5000), (REMOTE, 53)) };
    large.data = vec![1; 3000];
    let fragments = large.fragments(1480);
    assert_eq!(gateway.world.receive(gateway.inside, &fragments[0]).verdict(), Verdict::Answered);
    let run = gateway.world.receive(gateway.inside, &fragments[1]);
    assert_eq!(run.verdict(), Verdict::Drop(DropReason::TtlExceeded));
}

#[test]
fn answers_are_limited_by_the_second() {
    let mut gateway = Gateway::two_armed();
    let packet = Packet { ttl: 1, ..Packet::udp((HOST, 5000), (REMOTE, 53)) };
    for _ in 0..1000 {
        assert_eq!(gateway.out(&packet).verdict(), Verdict::Answered);
    }
    assert_eq!(gateway.refused_out(&packet), DropReason::RateLimited);
    gateway.pass(HZ);
    assert_eq!(gateway.out(&packet).verdict(), Verdict::Answered);
}

fn arp(target: nat_common::net::Ip4, operation: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0xaa, 0, 0, 0, 1, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend([2, 0xaa, 0, 0, 0, 1]);
    frame.extend(crate::gateway::ROUTER.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame.resize(60, 0);
    frame
}

#[test]
fn arp_for_a_public_address_that_the_host_does_not_own_is_answered() {
    for gateway in Gateway::both() {
        for target in [POOL, SERVER_PUBLIC] {
            let run = gateway.world.receive(gateway.outside, &arp(target, 1));
            assert_eq!((run.verdict(), run.outcome.out), (Verdict::Answered, Out::Back));
            assert_eq!(run.frame[..6], [2, 0xaa, 0, 0, 0, 1], "to the asker");
            assert_eq!(run.frame[6..12], OUTSIDE_MAC.0);
            let reply = etherparse::ArpPacketSlice::from_slice(&run.frame[14..]).unwrap();
            assert_eq!(reply.operation(), etherparse::ArpOperation::REPLY);
            assert_eq!(reply.sender_hw_addr(), OUTSIDE_MAC.0);
            assert_eq!(reply.sender_protocol_addr(), target.octets());
            assert_eq!(reply.target_hw_addr(), [2, 0xaa, 0, 0, 0, 1]);
            assert_eq!(reply.target_protocol_addr(), crate::gateway::ROUTER.octets());
        }
    }
}

#[test]
fn other_arp_is_the_hosts() {
    let mut gateway = Gateway::two_armed();
    let untouched = |gateway: &Gateway, ingress, frame: &[u8]| {
        let run = gateway.world.receive(ingress, frame);
        assert_eq!(run.verdict(), Verdict::ToHost);
        assert_eq!(run.frame, frame);
    };
    untouched(&gateway, 3, &arp(OWNED, 1));
    untouched(&gateway, 3, &arp(REMOTE, 1));
    untouched(&gateway, 3, &arp(POOL, 2));
    untouched(&gateway, 2, &arp(POOL, 1));
    gateway.world.public_addresses.get_mut(&POOL).unwrap().flags = address::ACTIVE;
    untouched(&gateway, 3, &arp(POOL, 1));
}

#[test]
fn an_offloaded_checksum_is_told_apart_from_a_right_one() {
    let gateway = Gateway::two_armed();
    for packet in [
        Packet::tcp((HOST, 5000), (REMOTE, 80), SYN),
        Packet::udp((OTHER_HOST, 5000), (REMOTE, 80)),
    ] {
        let mut frame = packet.frame();
        let at = if packet.protocol() == 6 { 50 } else { 40 };
        let length = frame.len() - 34;
        let mut sum = u32::from(packet.protocol()) + length as u32;
        for pair in frame[26..34].chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
        }
        let sum = (sum & 0xffff) + (sum >> 16);
        frame[at..at + 2].copy_from_slice(&(sum as u16).to_be_bytes());
        let run = gateway.world.receive(gateway.inside, &frame);
        assert_eq!(run.verdict(), Verdict::Drop(DropReason::PartialChecksum));
        assert_eq!(gateway.entries(), 0);
    }
    assert!(matches!(
        Packet::udp((HOST, 1), (REMOTE, 1)).payload,
        Payload::Udp { checksum: true, .. }
    ));
}
