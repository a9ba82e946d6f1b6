//! Faults that other gateways have had, where no other test would notice them here.

use std::collections::BTreeSet;

use nat_common::{
    host::{
        Way,
        packet::{ETHERNET, Packet, ip, mend_ip, seen},
    },
    stage::{reap, request},
    verdict::{DropReason, Verdict},
};
use proptest::prelude::*;

use crate::gateway::{
    ACK, GATEWAY, Gateway, HOST, HZ, INSIDE_MAC, OTHER_HOST, OTHER_REMOTE, OWNED, POOL, REMOTE,
    SYN, key,
};

#[derive(Clone, Debug)]
enum Event {
    Out(Packet),
    Back(Packet),
    Pass(u32),
    Sweep,
    End(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let host = prop::sample::select(vec![HOST, OTHER_HOST, ip(10, 0, 0, 7), ip(10, 0, 0, 8)]);
    let remote = prop::sample::select(vec![REMOTE, OTHER_REMOTE]);
    let flags = prop::sample::select(vec![SYN, SYN, ACK, SYN | ACK, 4, 17]);
    let packet = (host, remote, 5000u16..5003, 53u16..55, 0u8..3, flags).prop_map(
        |(host, remote, sport, dport, kind, flags)| match kind {
            0 => Packet::udp((host, sport), (remote, dport)),
            1 => Packet::tcp((host, sport), (remote, dport), flags),
            _ => Packet::ping((host, sport), remote),
        },
    );
    let back = (
        prop::sample::select(vec![REMOTE, OTHER_REMOTE]),
        2000u16..2008,
        53u16..55,
        0u8..3,
        prop::sample::select(vec![SYN | ACK, ACK, 4, 17, SYN]),
    )
        .prop_map(|(remote, public, port, kind, flags)| match kind {
            0 => Packet::udp((remote, port), (POOL, public)),
            1 => Packet::tcp((remote, port), (POOL, public), flags),
            _ => Packet::pong(remote, (POOL, public)),
        });
    prop_oneof![
        6 => packet.prop_map(Event::Out),
        3 => back.prop_map(Event::Back),
        1 => (1u32..200).prop_map(|seconds| Event::Pass(seconds * HZ)),
        1 => Just(Event::Sweep),
        1 => any::<usize>().prop_map(Event::End),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn at_no_time_do_two_sessions_share_one_public_tuple(
        events in prop::collection::vec(event(), 1..120),
        independent in any::<bool>(),
    ) {
        let mut gateway = if independent { Gateway::rfc() } else { Gateway::two_armed() };
        gateway.world.control.port_hold = 0;
        gateway.limit_ports(2000, 2007);
        for event in events {
            match event {
                Event::Out(packet) => { gateway.out(&packet); }
                Event::Back(packet) => { gateway.back(&packet); }
                Event::Pass(ticks) => gateway.pass(ticks),
                Event::Sweep => { gateway.sweep(); }
                Event::End(index) => {
                    let sessions = gateway.world.sessions.borrow();
                    let outbound = sessions.iter().filter(|(_, session)| session.is_outbound());
                    let keys: Vec<_> = outbound.map(|(key, _)| *key).collect();
                    drop(sessions);
                    if let Some(key) = keys.get(index % keys.len().max(1)) {
                        reap::one(&gateway.world, request::END, key);
                    }
                }
            }
            let sessions = gateway.world.sessions.borrow();
            let mut public = BTreeSet::new();
            let (mut out, mut back) = (0, 0);
            for (key, session) in sessions.iter() {
                if session.is_outbound() {
                    out += 1;
                    prop_assert!(public.insert((key.protocol, session.tuple)), "{:?}", session.tuple);
                    let partner = sessions.get(&key.with(session.tuple.reversed()));
                    let partner = partner.map(|partner| partner.tuple);
                    prop_assert_eq!(partner, Some(key.tuple.reversed()), "each other's partners");
                } else {
                    back += 1;
                }
            }
            prop_assert_eq!(out, back);
        }
    }
}

#[test]
fn what_a_later_fragment_carries_is_never_taken_for_ports() {
    for gateway in Gateway::both() {
        let public = gateway.sent_out(&Packet::udp((HOST, 5000), (REMOTE, 53))).source();
        for (from_inside, packet) in [
            (true, Packet::udp((HOST, 5000), (REMOTE, 53))),
            (false, Packet::udp((REMOTE, 53), public)),
        ] {
            // What would be the ports of the living session, at an offset.
            let mut frame = packet.frame();
            (frame[20], frame[21]) = (0, 100);
            mend_ip(&mut frame);
            let ingress = if from_inside { gateway.inside } else { gateway.outside };
            let run = gateway.world.receive(ingress, &frame);
            assert_eq!(run.verdict(), Verdict::Drop(DropReason::FragmentOrphan));
        }
    }
}

#[test]
fn a_later_fragment_is_carried_as_it_is() {
    let gateway = Gateway::two_armed();
    let mut packet = Packet::udp((HOST, 5000), (REMOTE, 53));
    packet.data = (0..=255).cycle().take(4000).collect();
    for (index, fragment) in packet.fragments(1480).iter().enumerate() {
        let run = gateway.world.receive(gateway.inside, fragment);
        assert_eq!(run.verdict(), Verdict::ToDestination, "by {:?}", run.stages);
        if index > 0 {
            assert_eq!(run.frame[ETHERNET + 20..], fragment[ETHERNET + 20..], "no checksum in it");
        }
    }
}

#[test]
fn an_error_about_a_first_fragment_is_whole_itself() {
    let gateway = Gateway::two_armed();
    let mut large = Packet { ttl: 1, tos: 0xb8, ..Packet::udp((HOST, 5000), (REMOTE, 53)) };
    large.data = vec![1; 3000];
    large.options = vec![1; 8];
    let run = gateway.world.receive(gateway.inside, &large.fragments(1400)[0]);
    assert_eq!(run.verdict(), Verdict::Answered);
    assert_eq!(run.frame[ETHERNET], 0x45, "no options");
    assert_eq!(run.frame[20..22], [0, 0], "no fragment");
    let answer = seen(&run.frame);
    assert_eq!((answer.src, answer.dst, answer.ttl), (GATEWAY, HOST, 64));
    assert_eq!(answer.from, INSIDE_MAC);
}

#[test]
fn probes_for_the_gateway_itself_are_the_hosts_whatever_their_ttl() {
    for gateway in Gateway::both() {
        for ttl in [1, 64] {
            for probe in [
                Packet::udp((HOST, 5000), (GATEWAY, 33434)),
                Packet::ping((HOST, 5000), GATEWAY),
                Packet::tcp((HOST, 5000), (OWNED, 22), SYN),
            ] {
                let run = gateway.out(&Packet { ttl, ..probe });
                assert_eq!(run.verdict(), Verdict::ToHost, "by {:?}", run.stages);
            }
            let unmapped = Packet { ttl, ..Packet::udp((HOST, 5000), (POOL, 999)) };
            assert_eq!(gateway.refused_out(&unmapped), DropReason::HairpinOff);
        }
    }
}

#[test]
fn an_outside_host_with_the_address_of_an_inside_one_is_another_host() {
    // The route says which of the two is meant: to one address of the inside it leads outside.
    let mut gateway = Gateway::two_armed();
    let router = Some(crate::gateway::ROUTER);
    let outside = gateway.outside;
    let way =
        Way { destination: OTHER_HOST, prefix: 32, ifindex: outside, gateway: router, mtu: 1500 };
    gateway.world.ways.push(way);
    let request = Packet::udp((HOST, 5000), (OTHER_HOST, 53));
    let there = gateway.sent_out(&request);
    assert_eq!((there.source(), there.destination()), ((POOL, 5000), (OTHER_HOST, 53)));
    let back = gateway.sent_back(&Packet::udp((OTHER_HOST, 53), there.source()));
    assert_eq!((back.source(), back.destination()), ((OTHER_HOST, 53), (HOST, 5000)));

    // The inside host of that address has sessions of its own, with the same remote, too.
    let own = gateway.sent_out(&Packet::udp((OTHER_HOST, 53), (REMOTE, 53)));
    assert_eq!(own.src, POOL);
    gateway.world.ways.pop();
    let answer = gateway.sent_back(&Packet::udp((REMOTE, 53), own.source()));
    assert_eq!(answer.destination(), (OTHER_HOST, 53));
    assert_eq!(gateway.entries(), 4);
}

#[test]
fn a_port_that_was_just_freed_is_not_the_next_to_be_given_out() {
    let mut gateway = Gateway::two_armed();
    gateway.limit_ports(2000, 2999);
    let packet = |number: u16| {
        let [high, low] = number.to_be_bytes();
        Packet::udp((ip(10, 0, 1 + high, low), 7), (REMOTE, 53))
    };
    for number in 0..500 {
        gateway.sent_out(&packet(number));
    }
    for number in 0..50 {
        let freed = gateway.sent_out(&packet(number)).sport;
        assert!(reap::one(&gateway.world, request::END, &key(&packet(number))));
        let given = gateway.sent_out(&packet(600 + number)).sport;
        assert_ne!(given, freed, "its last peer may still remember it");
    }
}
