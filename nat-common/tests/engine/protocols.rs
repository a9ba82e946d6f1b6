//! Protocols apart: what is mapped, admitted, counted or used up for one says nothing of another.

use std::collections::BTreeSet;

use nat_common::{
    flow::{FlowKey, Tuple},
    host::packet::{Endpoint, Packet, ip, seen},
    net::{Ip4, Port, proto},
    rules::{control, pool},
    stage::{reap, request},
    verdict::{DropReason, Verdict},
};

use crate::gateway::{
    Gateway, HOST, HZ, OTHER_HOST, OTHER_REMOTE, POOL, REMOTE, SERVER, SERVER_PUBLIC, SYN,
};

const FROM: Endpoint = (HOST, 5000);

fn reaches(gateway: &Gateway, packet: &Packet) -> bool {
    gateway.back(packet).verdict() == Verdict::ToSource
}

#[test]
fn the_mapping_of_one_protocol_neither_makes_nor_ends_that_of_another() {
    let mut gateway = Gateway::rfc();
    let udp = gateway.sent_out(&Packet::udp(FROM, (REMOTE, 53))).source();
    // The same public port, for another host.
    let tcp = gateway.sent_out(&Packet::tcp((OTHER_HOST, 5000), (REMOTE, 80), SYN)).source();
    let ping = gateway.sent_out(&Packet::ping((OTHER_HOST, 5000), REMOTE)).source();
    assert_eq!((udp, tcp, ping), ((POOL, 5000), (POOL, 5000), (POOL, 5000)));
    gateway.pass(100 * HZ);
    gateway.sweep();
    let unbind = |protocol| {
        let (sport, dport) = (Port::new(5000), Port::new(5000));
        let tuple = Tuple { src: OTHER_HOST, sport, dst: POOL, dport };
        reap::one(&gateway.world, request::UNBIND, &FlowKey::new(tuple, protocol, 0))
    };
    assert!(!unbind(proto::TCP), "it rests");
    assert_eq!(gateway.sent_out(&Packet::udp(FROM, (OTHER_REMOTE, 53))).source(), udp);
}

#[test]
fn who_was_sent_a_datagram_is_not_admitted_by_tcp_nor_the_other_way_round() {
    let gateway = Gateway::rfc();
    let udp = gateway.sent_out(&Packet::udp(FROM, (REMOTE, 53))).source();
    let tcp = gateway.connect(FROM, (OTHER_REMOTE, 80));
    assert_eq!(udp, tcp);
    assert!(!reaches(&gateway, &Packet::tcp((REMOTE, 53), tcp, SYN)));
    assert!(!reaches(&gateway, &Packet::udp((OTHER_REMOTE, 80), udp)));
    assert!(reaches(&gateway, &Packet::udp((REMOTE, 99), udp)));
    assert!(reaches(&gateway, &Packet::tcp((OTHER_REMOTE, 99), tcp, SYN)));
}

#[test]
fn tcp_connections_from_outside_are_filtered_by_address() {
    let mut gateway = Gateway::rfc();
    let public = gateway.connect(FROM, (REMOTE, 80));
    let called = gateway.sent_back(&Packet::tcp((REMOTE, 9999), public, SYN));
    assert_eq!((called.source(), called.destination()), ((REMOTE, 9999), FROM));
    let stranger = Packet::tcp((OTHER_REMOTE, 80), public, SYN);
    assert!(!reaches(&gateway, &stranger));
    gateway.pool().filtering = pool::ENDPOINT_INDEPENDENT;
    assert!(reaches(&gateway, &stranger));
}

#[test]
fn tcp_between_two_mappings_shows_each_side_the_others_public_endpoint() {
    let mut gateway = Gateway::rfc();
    gateway.pool().filtering = pool::ENDPOINT_INDEPENDENT;
    let (one, two) = (FROM, (OTHER_HOST, 6000));
    let public_one = gateway.connect(one, (REMOTE, 80));
    let public_two = gateway.connect(two, (REMOTE, 80));
    let hairpin = |packet: &Packet| {
        let run = gateway.out(packet);
        assert_eq!(run.verdict(), Verdict::ToSource, "by {:?}", run.stages);
        seen(&run.frame)
    };
    for flags in [SYN, 16, 17] {
        let there = hairpin(&Packet::tcp(one, public_two, flags));
        assert_eq!((there.source(), there.destination()), (public_one, two));
        let back = hairpin(&Packet::tcp(two, public_one, flags | 16));
        assert_eq!((back.source(), back.destination()), (public_two, one));
    }
}

#[test]
fn hosts_with_public_addresses_of_their_own_ping_each_other_by_them() {
    let mut gateway = Gateway::two_armed();
    let public = ip(198, 51, 100, 21);
    gateway.world.add_one_to_one(8, public, OTHER_HOST);
    gateway.world.control.flags |= control::HAIRPIN;
    let hairpin = |packet: &Packet| {
        let run = gateway.out(packet);
        assert_eq!(run.verdict(), Verdict::ToSource, "by {:?}", run.stages);
        seen(&run.frame)
    };
    let there = hairpin(&Packet::ping((SERVER, 7), public));
    assert_eq!((there.src, there.dst, there.sport), (SERVER_PUBLIC, OTHER_HOST, 7));
    let back = hairpin(&Packet::pong(OTHER_HOST, (SERVER_PUBLIC, 7)));
    assert_eq!((back.src, back.dst), (public, SERVER));
    let received = Packet::udp((SERVER_PUBLIC, 7), (OTHER_HOST, 8)).packet();
    let error = hairpin(&Packet::error(OTHER_HOST, SERVER_PUBLIC, 3, 3, &received, 28));
    assert_eq!((error.src, error.dst), (public, SERVER));
    let quote = error.quote();
    assert_eq!((quote.source(), quote.destination()), ((SERVER, 7), (public, 8)));
}

#[test]
fn every_kind_of_query_passes_and_its_answer_comes_back() {
    let gateway = Gateway::two_armed();
    for (number, (kind, answer)) in [(8, 0), (13, 14), (17, 18)].into_iter().enumerate() {
        let id = 700 + number as u16;
        let [high, low] = id.to_be_bytes();
        let there = gateway.sent_out(&Packet::icmp(HOST, REMOTE, kind, 0, [high, low, 0, 1]));
        assert_eq!((there.src, there.icmp()), (POOL, (kind, 0)));
        let [high, low] = there.sport.to_be_bytes();
        let back = gateway.sent_back(&Packet::icmp(REMOTE, POOL, answer, 0, [high, low, 0, 1]));
        assert_eq!((back.destination(), back.icmp()), ((HOST, id), (answer, 0)));
    }
}

#[test]
fn what_a_nat_should_not_forward_of_icmp_is_refused_with_its_reason() {
    for gateway in Gateway::both() {
        // Source quench, redirect, router advertisement and solicitation, information request
        // and reply, traceroute, and numbers without a meaning.
        for kind in [4, 5, 9, 10, 15, 16, 30, 40, 255] {
            let packet = Packet::icmp(HOST, REMOTE, kind, 0, [0; 4]);
            assert_eq!(gateway.refused_out(&packet), DropReason::IcmpUnsupported, "{kind}");
            let back = Packet::icmp(REMOTE, POOL, kind, 0, [0; 4]);
            assert!(matches!(gateway.back(&back).verdict(), Verdict::Drop(_)), "{kind}");
        }
        assert_eq!(gateway.entries(), 0);
    }
}

#[test]
fn two_hosts_with_one_identifier_hear_each_their_own_answers() {
    for gateway in [Gateway::two_armed(), Gateway::rfc()] {
        let mut ids = BTreeSet::new();
        for host in [HOST, OTHER_HOST] {
            let sent = gateway.sent_out(&Packet::ping((host, 77), REMOTE));
            assert!(ids.insert(sent.sport), "each flow has an identifier of its own");
            let back = gateway.sent_back(&Packet::pong(REMOTE, sent.source()));
            assert_eq!(back.destination(), (host, 77));
        }
    }
}

#[test]
fn each_protocol_has_every_port_of_the_range() {
    let kinds: [fn(Ip4) -> Packet; 3] = [
        |host| Packet::udp((host, 5000), (REMOTE, 53)),
        |host| Packet::tcp((host, 5000), (REMOTE, 53), SYN),
        |host| Packet::ping((host, 5000), REMOTE),
    ];
    let mut gateway = Gateway::two_armed();
    gateway.limit_ports(2000, 2003);
    for packet in kinds {
        let ports: BTreeSet<u16> =
            (1..=4).map(|n| gateway.sent_out(&packet(ip(10, 0, 1, n))).sport).collect();
        assert_eq!(ports, (2000..=2003).collect());
        let more = packet(ip(10, 0, 1, 5));
        assert_eq!(gateway.refused_out(&more), DropReason::ErrorPortAllocation);
    }
}

#[test]
fn a_port_that_is_not_the_hosts_own_is_hard_to_guess() {
    let gateway = Gateway::two_armed();
    let ports: Vec<u16> = (0..500_u32)
        .map(|number| {
            let host = Ip4::from_u32(ip(10, 0, 1, 0).to_u32() + number);
            // Its own number is below the range.
            gateway.sent_out(&Packet::udp((host, 7), (REMOTE, 53))).sport
        })
        .collect();
    // Neighbours in time are neither neighbours in number nor always on one side.
    let steps: Vec<i32> =
        ports.windows(2).map(|pair| i32::from(pair[1]) - i32::from(pair[0])).collect();
    assert!(steps.iter().filter(|step| step.abs() < 64).count() < 25, "{steps:?}");
    let up = steps.iter().filter(|step| **step > 0).count();
    assert!((150..350).contains(&up), "{up} of {} steps go up", steps.len());
    let blocks: BTreeSet<u16> = ports.iter().map(|port| port >> 11).collect();
    assert!(blocks.len() >= 30, "all over the range: {blocks:?}");
}
