//! One-to-one mappings: every protocol, no sessions, nothing remembered.

use nat_common::{
    host::packet::{Packet, Payload, seen},
    rules::control,
    verdict::{DropReason, Verdict},
};

use crate::gateway::{ACK, Gateway, HOST, OTHER_HOST, REMOTE, SERVER, SERVER_PUBLIC, SYN};

#[test]
fn every_protocol_passes_both_ways_without_a_session() {
    for gateway in Gateway::both() {
        for out in [
            Packet::udp((SERVER, 5000), (REMOTE, 53)),
            Packet::tcp((SERVER, 5000), (REMOTE, 53), ACK),
            Packet::ping((SERVER, 5), REMOTE),
            Packet::pong(SERVER, (REMOTE, 5)),
            Packet::new(SERVER, REMOTE, Payload::Other(47)),
            Packet::new(SERVER, REMOTE, Payload::Other(50)),
            Packet::new(SERVER, REMOTE, Payload::Other(132)),
        ] {
            let there = gateway.sent_out(&out);
            assert_eq!((there.src, there.dst), (SERVER_PUBLIC, REMOTE));
            assert_eq!(there.data, out.data);
        }
        for back in [
            Packet::udp((REMOTE, 53), (SERVER_PUBLIC, 5000)),
            Packet::tcp((REMOTE, 53), (SERVER_PUBLIC, 22), SYN),
            Packet::ping((REMOTE, 5), SERVER_PUBLIC),
            Packet::new(REMOTE, SERVER_PUBLIC, Payload::Other(47)),
        ] {
            let here = gateway.sent_back(&back);
            assert_eq!((here.src, here.dst), (REMOTE, SERVER));
        }
        assert_eq!(gateway.entries(), 0);
    }
}

#[test]
fn checksums_of_udp_lite_and_dccp_follow_their_pseudo_header() {
    let gateway = Gateway::two_armed();
    for protocol in [136, 33] {
        // Both cover the pseudo-header like UDP, and have the field in the same place.
        let mut packet = Packet::new(SERVER, REMOTE, Payload::Other(protocol));
        packet.data = vec![0x13, 0x88, 0, 53, 0, 0, 0, 0, 1, 2, 3, 4];
        let sum = pseudo(&packet.data, SERVER.octets(), REMOTE.octets(), protocol);
        packet.data[6..8].copy_from_slice(&sum.to_be_bytes());
        let there = gateway.sent_out(&packet);
        assert_eq!(
            pseudo(&there.body, SERVER_PUBLIC.octets(), REMOTE.octets(), protocol),
            0,
            "{protocol}"
        );
    }
}

fn pseudo(body: &[u8], src: [u8; 4], dst: [u8; 4], protocol: u8) -> u16 {
    let length = u16::try_from(body.len()).unwrap();
    etherparse::checksum::Sum16BitWords::new()
        .add_4bytes(src)
        .add_4bytes(dst)
        .add_2bytes([0, protocol])
        .add_2bytes(length.to_be_bytes())
        .add_slice(body)
        .ones_complement()
        .to_be()
}

#[test]
fn fragments_pass_in_any_order() {
    for gateway in Gateway::both() {
        let mut packet = Packet::udp((SERVER, 5000), (REMOTE, 53));
        packet.data = (0..=255).cycle().take(3000).collect();
        let mut fragments = packet.fragments(1480);
        fragments.reverse();
        let mut ids = Vec::new();
        for fragment in &fragments {
            let run = gateway.world.receive(gateway.inside, fragment);
            assert_eq!(run.verdict(), Verdict::ToDestination, "by {:?}", run.stages);
            let there = seen(&run.frame);
            assert_eq!((there.src, there.dst), (SERVER_PUBLIC, REMOTE));
            ids.push(there.id);
        }
        assert!(ids.iter().all(|id| *id == ids[0]), "one datagram: {ids:?}");
        let mut packet = Packet::udp((REMOTE, 53), (SERVER_PUBLIC, 5000));
        packet.data = vec![7; 3000];
        for fragment in packet.fragments(1480).iter().rev() {
            let run = gateway.world.receive(gateway.outside, fragment);
            assert_eq!(run.verdict(), Verdict::ToSource, "by {:?}", run.stages);
            assert_eq!(seen(&run.frame).dst, SERVER);
        }
    }
}

#[test]
fn small_fragments_of_any_protocol_pass() {
    let gateway = Gateway::two_armed();
    let mut packet = Packet::new(SERVER, REMOTE, Payload::Other(47));
    packet.data = vec![1; 24];
    for fragment in packet.fragments(8) {
        let run = gateway.world.receive(gateway.inside, &fragment);
        assert_eq!(run.verdict(), Verdict::ToDestination, "by {:?}", run.stages);
    }
}

#[test]
fn an_icmp_error_never_shows_the_private_address() {
    for gateway in Gateway::both() {
        let received = Packet::udp((REMOTE, 53), (SERVER, 5000));
        let stray = Packet::udp((SERVER, 1), (HOST, 2)).packet();
        let unreadable = Packet::error(SERVER, REMOTE, 3, 3, &received.packet()[..27], 27);
        let mut about_error = Packet::error(REMOTE, SERVER, 3, 3, &received.packet(), 28);
        about_error.dont_fragment = true;
        for (packet, what) in [
            (Packet::error(SERVER, REMOTE, 3, 3, &stray, 28), "quotes what was never received"),
            (unreadable, "quotes less than it has to"),
            (Packet::error(SERVER, REMOTE, 3, 3, &about_error.packet(), 28), "about an error"),
            (Packet::icmp(SERVER, REMOTE, 5, 1, SERVER.octets()), "a redirect"),
            (
                Packet {
                    data: stray.clone(),
                    ..Packet::icmp(SERVER, REMOTE, 5, 1, SERVER.octets())
                },
                "a redirect with its quote",
            ),
            (
                Packet { data: stray.clone(), ..Packet::icmp(SERVER, REMOTE, 4, 0, [0; 4]) },
                "a source quench",
            ),
        ] {
            let run = gateway.out(&packet);
            assert!(matches!(run.verdict(), Verdict::Drop(_)), "{what}: {:?}", run.verdict());
        }
        let good = Packet::error(SERVER, REMOTE, 3, 3, &received.packet(), 28);
        let there = gateway.sent_out(&good);
        assert_eq!((there.src, there.dst), (SERVER_PUBLIC, REMOTE));
        assert_eq!(there.quote().destination(), (SERVER_PUBLIC, 5000));
    }
}

#[test]
fn an_error_about_what_the_server_sent_finds_the_server() {
    for gateway in Gateway::both() {
        let sent = gateway.sent_out(&Packet::udp((SERVER, 5000), (REMOTE, 53)));
        let quoted = Packet::udp(sent.source(), (REMOTE, 53)).packet();
        let error = Packet::error(crate::gateway::ROUTER, SERVER_PUBLIC, 11, 0, &quoted, 28);
        let here = gateway.sent_back(&error);
        assert_eq!(here.dst, SERVER);
        assert_eq!(here.quote().source(), (SERVER, 5000));
    }
}

#[test]
fn private_hosts_do_not_reach_it_by_its_public_address_where_hairpin_is_off() {
    for gateway in Gateway::both() {
        let packet = Packet::udp((HOST, 5000), (SERVER_PUBLIC, 53));
        assert_eq!(gateway.refused_out(&packet), DropReason::HairpinOff);
    }
}

#[test]
fn two_one_to_one_hosts_meet_by_their_public_addresses_where_hairpin_is_on() {
    let mut gateway = Gateway::two_armed();
    let public = nat_common::host::packet::ip(198, 51, 100, 21);
    gateway.world.add_one_to_one(8, public, OTHER_HOST);
    gateway.world.control.flags |= control::HAIRPIN;
    let run = gateway.out(&Packet::udp((SERVER, 1), (public, 2)));
    assert_eq!(run.verdict(), Verdict::ToSource);
    let there = seen(&run.frame);
    assert_eq!((there.src, there.dst), (SERVER_PUBLIC, OTHER_HOST));
}

#[test]
fn hosts_without_a_mapping_reach_it_through_a_session_where_hairpin_is_on() {
    let gateway = Gateway::rfc();
    for (there, back) in [
        (
            Packet::udp((HOST, 5000), (SERVER_PUBLIC, 53)),
            Packet::udp((SERVER, 53), (crate::gateway::POOL, 5000)),
        ),
        (
            Packet::tcp((HOST, 5000), (SERVER_PUBLIC, 80), SYN),
            Packet::tcp((SERVER, 80), (crate::gateway::POOL, 5000), SYN | ACK),
        ),
        (
            Packet::ping((HOST, 5000), SERVER_PUBLIC),
            Packet::pong(SERVER, (crate::gateway::POOL, 5000)),
        ),
    ] {
        let run = gateway.out(&there);
        assert_eq!(run.verdict(), Verdict::ToSource, "by {:?}", run.stages);
        let received = seen(&run.frame);
        assert_eq!(received.source(), (crate::gateway::POOL, 5000));
        assert_eq!(received.dst, SERVER);
        let run = gateway.out(&back);
        assert_eq!(run.verdict(), Verdict::ToSource, "by {:?}", run.stages);
        let answer = seen(&run.frame);
        assert_eq!((answer.src, answer.destination()), (SERVER_PUBLIC, (HOST, 5000)));
    }
}
