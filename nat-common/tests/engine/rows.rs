//! "What happens to a packet", row by row, with two interfaces and with one.

use nat_common::{
    host::{
        Run,
        packet::{Packet, Payload, ip, seen},
    },
    net::{Ip4, Port, proto},
    rules::{HostAddress, host_address},
    stage::Side,
    verdict::{DropReason, Verdict},
};

use crate::gateway::{
    ACK, BRANCH, GATEWAY, Gateway, HOST, OTHER_HOST, OWNED, PEERED, POOL, REMOTE, SERVER,
    SERVER_PUBLIC, SYN, refused,
};

fn untouched(run: &Run, packet: &Packet) {
    assert_eq!(run.verdict(), Verdict::ToHost, "by stages {:?}", run.stages);
    assert_eq!(run.frame, packet.frame());
}

#[test]
fn row_1_what_is_not_ipv4_is_the_hosts() {
    for gateway in Gateway::both() {
        for ethertype in [0x86dd_u16, 0x88cc, 0x0806, 0x9000] {
            let mut frame = vec![0x5a; 60];
            frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
            for ingress in [gateway.inside, gateway.outside] {
                let run = gateway.world.receive(ingress, &frame);
                assert_eq!(run.verdict(), Verdict::ToHost, "{ethertype:04x}");
                assert_eq!(run.frame, frame);
            }
        }
    }
}

#[test]
fn row_1_broadcast_multicast_and_link_local_destinations_are_the_hosts() {
    for gateway in Gateway::both() {
        for destination in
            [ip(255, 255, 255, 255), ip(224, 0, 0, 251), ip(239, 1, 2, 3), ip(169, 254, 169, 254)]
        {
            let packet = Packet::udp((HOST, 68), (destination, 67));
            untouched(&gateway.out(&packet), &packet);
            untouched(&gateway.back(&packet), &packet);
        }
        assert_eq!(gateway.entries(), 0);
    }
}

#[test]
fn row_1_a_directed_broadcast_of_the_hosts_subnets_is_the_hosts() {
    for mut gateway in Gateway::both() {
        let broadcast = ip(10, 0, 255, 255);
        let flags = host_address::BROADCAST;
        gateway.world.host_addresses.insert(broadcast, HostAddress { ifindex: 2, flags });
        let packet = Packet::udp((HOST, 68), (broadcast, 67));
        untouched(&gateway.out(&packet), &packet);
    }
}

#[test]
fn row_2_a_live_session_is_translated_both_ways() {
    for gateway in Gateway::both() {
        let public = gateway.connect((HOST, 5000), (REMOTE, 443));
        assert_eq!(public, (POOL, 5000));
        let out = gateway.sent_out(&Packet::tcp((HOST, 5000), (REMOTE, 443), ACK));
        assert_eq!(out.source(), public);
        let back = gateway.sent_back(&Packet::tcp((REMOTE, 443), public, ACK));
        assert_eq!(back.destination(), (HOST, 5000));
    }
}

#[test]
fn row_3_a_forward_reaches_its_host_and_the_answer_goes_back() {
    for gateway in Gateway::both() {
        let client = (REMOTE, 40000);
        let inside = gateway.sent_back(&Packet::tcp(client, (POOL, 443), SYN));
        assert_eq!((inside.source(), inside.destination()), (client, (OTHER_HOST, 8443)));
        let answer = Packet::tcp((OTHER_HOST, 8443), client, SYN | ACK);
        let outside = gateway.sent_out(&answer);
        assert_eq!((outside.source(), outside.destination()), ((POOL, 443), client));
        gateway.sent_back(&Packet::tcp(client, (POOL, 443), ACK));
    }
}

#[test]
fn row_3_a_range_is_forwarded_port_by_port() {
    for gateway in Gateway::both() {
        for port in 0..10 {
            let inside = gateway.sent_back(&Packet::udp((REMOTE, 1000), (POOL, 8000 + port)));
            assert_eq!(inside.destination(), (OTHER_HOST, 9000 + port));
        }
        let beyond = Packet::udp((REMOTE, 1000), (POOL, 8010));
        assert_eq!(gateway.refused_back(&beyond), DropReason::Unsolicited);
    }
}

#[test]
fn row_3_what_nobody_wants_is_unsolicited_and_opens_nothing() {
    for gateway in Gateway::both() {
        for packet in [
            Packet::udp((REMOTE, 53), (POOL, 5000)),
            Packet::tcp((REMOTE, 80), (POOL, 5000), SYN),
            Packet::tcp((REMOTE, 80), (POOL, 443), ACK),
            Packet::ping((REMOTE, 7), POOL),
            Packet::pong(REMOTE, (POOL, 7)),
            Packet::new(REMOTE, POOL, Payload::Other(47)),
            Packet::error(REMOTE, POOL, 3, 3, &Packet::udp((POOL, 5), (REMOTE, 5)).packet(), 28),
        ] {
            assert_eq!(gateway.refused_back(&packet), DropReason::Unsolicited, "{packet:?}");
        }
        assert_eq!(gateway.entries(), 0);
    }
}

#[test]
fn row_3_an_address_of_the_host_keeps_what_is_the_hosts() {
    for mut gateway in Gateway::both() {
        gateway.world.sockets.insert((OWNED, Port::new(2222), proto::TCP));
        for packet in [
            // Outside the pool's ports.
            Packet::tcp((REMOTE, 40000), (OWNED, 22), SYN),
            Packet::udp((REMOTE, 123), (OWNED, 40000)),
            // A socket of the host within them.
            Packet::tcp((REMOTE, 40000), (OWNED, 2222), SYN),
            // ICMP, and other protocols.
            Packet::ping((REMOTE, 7), OWNED),
            Packet::pong(REMOTE, (OWNED, 7)),
            Packet::new(REMOTE, OWNED, Payload::Other(50)),
            // Malformed, for a port of the host.
            Packet::tcp((REMOTE, 40000), (OWNED, 22), 0),
        ] {
            untouched(&gateway.back(&packet), &packet);
        }
        let free = Packet::tcp((REMOTE, 40000), (OWNED, 3333), SYN);
        assert_eq!(gateway.refused_back(&free), DropReason::Unsolicited);
        assert_eq!(gateway.entries(), 0);
    }
}

#[test]
fn row_3_from_inside_hairpin_is_off_by_default() {
    for gateway in Gateway::both() {
        for packet in [
            Packet::tcp((HOST, 5000), (POOL, 443), SYN),
            Packet::udp((HOST, 5000), (POOL, 8000)),
            Packet::ping((HOST, 5), POOL),
        ] {
            assert_eq!(gateway.refused_out(&packet), DropReason::HairpinOff);
        }
        assert_eq!(gateway.entries(), 0);
    }
}

#[test]
fn row_4_other_addresses_of_the_host_are_the_hosts_from_both_sides() {
    for mut gateway in Gateway::both() {
        let other = ip(203, 0, 113, 77);
        gateway.world.add_host_address(other, gateway.outside);
        for destination in [GATEWAY, other] {
            for packet in [
                Packet::tcp((HOST, 5000), (destination, 22), SYN),
                Packet::udp((HOST, 5000), (destination, 53)),
                Packet::ping((HOST, 5), destination),
                Packet::new(HOST, destination, Payload::Other(50)),
            ] {
                untouched(&gateway.out(&packet), &packet);
                untouched(
                    &gateway.back(&Packet { src: REMOTE, ..packet.clone() }),
                    &Packet { src: REMOTE, ..packet },
                );
            }
        }
        assert_eq!(gateway.entries(), 0);
    }
}

#[test]
fn row_5_a_one_to_one_source_gets_its_public_address() {
    for gateway in Gateway::both() {
        let outside = gateway.sent_out(&Packet::udp((SERVER, 53), (REMOTE, 5000)));
        assert_eq!(
            (outside.source(), outside.destination()),
            ((SERVER_PUBLIC, 53), (REMOTE, 5000))
        );
        let inside = gateway.sent_back(&Packet::udp((REMOTE, 5000), (SERVER_PUBLIC, 53)));
        assert_eq!((inside.source(), inside.destination()), ((REMOTE, 5000), (SERVER, 53)));
        assert_eq!(gateway.entries(), 0, "no sessions");
    }
}

#[test]
fn row_6_an_exempt_destination_is_left_to_the_hosts_stack() {
    for gateway in Gateway::both() {
        let packet = Packet::udp((HOST, 5000), (PEERED, 53));
        untouched(&gateway.out(&packet), &packet);
        let strange = Packet::new(HOST, PEERED, Payload::Other(47));
        untouched(&gateway.out(&strange), &strange);
        assert_eq!(gateway.entries(), 0);
    }
}

#[test]
fn row_7_a_covered_source_to_a_public_route_is_a_new_session() {
    for gateway in Gateway::both() {
        for (packet, dport) in [
            (Packet::udp((HOST, 5000), (REMOTE, 53)), 53),
            (Packet::tcp((HOST, 5000), (REMOTE, 80), SYN), 80),
            (Packet::ping((HOST, 5000), REMOTE), 5000),
        ] {
            let outside = gateway.sent_out(&packet);
            assert_eq!((outside.source(), outside.destination()), ((POOL, 5000), (REMOTE, dport)));
        }
        assert_eq!(gateway.entries(), 6);
    }
}

#[test]
fn row_7_or_a_drop_with_its_reason() {
    for mut gateway in Gateway::both() {
        gateway.world.control.flags = 0;
        for (packet, reason) in [
            (Packet::new(HOST, REMOTE, Payload::Other(47)), DropReason::ProtocolUnsupported),
            (Packet::tcp((HOST, 5000), (REMOTE, 80), ACK), DropReason::TcpNoSession),
            (Packet::pong(HOST, (REMOTE, 7)), DropReason::IcmpNoSession),
            (Packet::icmp(HOST, REMOTE, 5, 0, [0; 4]), DropReason::IcmpUnsupported),
            (Packet::udp((HOST, 0), (REMOTE, 80)), DropReason::PortZero),
            (Packet::udp((HOST, 80), (REMOTE, 0)), DropReason::PortZero),
        ] {
            assert_eq!(gateway.refused_out(&packet), reason, "{packet:?}");
        }
        gateway.world.neighbours.remove(&crate::gateway::ROUTER);
        let packet = Packet::udp((HOST, 5000), (REMOTE, 53));
        assert_eq!(gateway.refused_out(&packet), DropReason::NoNeighbour);
        assert_eq!(gateway.world.events.borrow().len(), 1, "the daemon is asked to resolve it");
        assert_eq!(gateway.entries(), 0);
    }
}

#[test]
fn row_7_a_route_by_a_private_interface_is_left_to_the_hosts_stack() {
    let gateway = Gateway::two_armed();
    for packet in
        [Packet::udp((HOST, 5000), (BRANCH, 53)), Packet::udp((HOST, 5000), (OTHER_HOST, 53))]
    {
        untouched(&gateway.out(&packet), &packet);
    }
    assert_eq!(gateway.entries(), 0);
}

#[test]
fn row_7_a_large_packet_to_a_private_route_is_left_to_the_hosts_stack() {
    let mut gateway = Gateway::two_armed();
    gateway.world.ways[1].mtu = 1000;
    let mut packet = Packet::udp((HOST, 5000), (BRANCH, 53));
    packet.data = vec![1; 1200];
    for dont_fragment in [false, true] {
        packet.dont_fragment = dont_fragment;
        untouched(&gateway.out(&packet), &packet);
    }
}

#[test]
fn row_8_a_route_by_an_interface_of_none_of_the_gateways_is_left_to_the_hosts_stack() {
    const TUNNEL: u32 = 9;
    let mut gateway = Gateway::two_armed();
    gateway.world.ways[2].ifindex = TUNNEL;
    gateway.world.other_links.insert(TUNNEL);
    let packet = Packet::udp((HOST, 5000), (REMOTE, 53));
    untouched(&gateway.out(&packet), &packet);
}

#[test]
fn a_route_by_an_interface_that_nobody_knows_yet_is_no_way_out_for_what_is_protected() {
    for mut gateway in Gateway::both() {
        gateway.world.ways[2].ifindex = 9;
        for known_neighbour in [true, false] {
            if !known_neighbour {
                gateway.world.neighbours.remove(&crate::gateway::ROUTER);
            }
            let packet = Packet::udp((HOST, 5000), (REMOTE, 53));
            assert_eq!(gateway.refused_out(&packet), DropReason::EgressUnknown);
            let stray = Packet::tcp((HOST, 5000), (REMOTE, 80), ACK);
            assert_eq!(gateway.refused_out(&stray), DropReason::EgressUnknown);
        }
        let stranger = Packet::udp((ip(172, 20, 0, 1), 5000), (REMOTE, 53));
        untouched(&gateway.out(&stranger), &stranger);
        let exempt = Packet::udp((HOST, 5000), (PEERED, 53));
        untouched(&gateway.out(&exempt), &exempt);
    }
}

#[test]
fn row_8_everything_else_is_left_to_the_hosts_stack() {
    for gateway in Gateway::both() {
        let uncovered = Packet::udp((ip(172, 20, 0, 1), 5000), (REMOTE, 53));
        untouched(&gateway.out(&uncovered), &uncovered);
        let passing = Packet::udp((REMOTE, 5000), (ip(192, 0, 2, 200), 53));
        untouched(&gateway.back(&passing), &passing);
    }
    let gateway = Gateway::two_armed();
    let forged = Packet::udp((HOST, 5000), (REMOTE, 53));
    untouched(&gateway.back(&forged), &forged);
    assert_eq!(gateway.entries(), 0);
}

#[test]
fn one_armed_with_the_hosts_own_address_in_the_snat_source_the_host_keeps_its_traffic() {
    let mut gateway = Gateway::one_armed();
    gateway.world.add_snat(Ip4::UNSPECIFIED, 0, 1, 0);
    // What comes to the host, and what would come from its address to elsewhere.
    let ssh = Packet::tcp((ip(198, 18, 0, 1), 50000), (GATEWAY, 22), SYN);
    untouched(&gateway.back(&ssh), &ssh);
    let reflected = Packet::tcp((GATEWAY, 22), (REMOTE, 50000), ACK);
    untouched(&gateway.out(&reflected), &reflected);
    let dhcp = Packet::udp((Ip4::UNSPECIFIED, 68), (ip(255, 255, 255, 255), 67));
    untouched(&gateway.out(&dhcp), &dhcp);
}

#[test]
fn one_armed_with_every_source_covered_a_remote_still_reaches_forwards() {
    let mut gateway = Gateway::one_armed();
    gateway.world.add_snat(ip(10, 0, 0, 0), 8, EXEMPT_NOTHING, 0);
    let inside = gateway.sent_back(&Packet::tcp((REMOTE, 40000), (POOL, 443), SYN));
    assert_eq!(inside.destination(), (OTHER_HOST, 8443));
}

const EXEMPT_NOTHING: u32 = 0;

#[test]
fn the_first_of_a_hosts_rules_with_the_longest_prefix_names_its_pool() {
    let mut gateway = Gateway::two_armed();
    gateway.world.add_snat(OTHER_HOST, 32, EXEMPT_NOTHING, 1);
    let seen = gateway.sent_out(&Packet::udp((OTHER_HOST, 5000), (REMOTE, 53)));
    assert_eq!(seen.src, OWNED);
    let seen = gateway.sent_out(&Packet::udp((HOST, 5000), (REMOTE, 53)));
    assert_eq!(seen.src, POOL);
}

#[test]
fn a_pool_bound_to_another_interface_serves_nothing_here() {
    let mut gateway = Gateway::two_armed();
    gateway.pool().ifindex = 9;
    let packet = Packet::udp((HOST, 5000), (REMOTE, 53));
    assert_eq!(gateway.refused_out(&packet), DropReason::PoolInterface);
    gateway.pool().ifindex = gateway.outside;
    gateway.sent_out(&packet);
}

#[test]
fn a_pool_without_active_addresses_is_named_as_the_reason() {
    let mut gateway = Gateway::two_armed();
    gateway.world.add_pool(0, *gateway.world.pools.get(&0).unwrap(), &[]);
    let packet = Packet::udp((HOST, 5000), (REMOTE, 53));
    assert_eq!(gateway.refused_out(&packet), DropReason::NoAddress);
}

#[test]
fn every_packet_is_counted_in_exactly_one_class() {
    for gateway in Gateway::both() {
        let packets = [
            (true, Packet::udp((HOST, 5000), (REMOTE, 53))),
            (true, Packet::udp((HOST, 5000), (PEERED, 53))),
            (true, Packet::tcp((HOST, 5000), (REMOTE, 80), ACK)),
            (true, Packet::tcp((HOST, 5000), (REMOTE, 80), 0)),
            (true, Packet::tcp((HOST, 5000), (POOL, 443), SYN)),
            (true, Packet::udp((HOST, 1), (GATEWAY, 53))),
            (false, Packet::udp((REMOTE, 53), (POOL, 5000))),
            (false, Packet::udp((REMOTE, 53), (POOL, 5001))),
            (false, Packet::tcp((REMOTE, 53), (POOL, 443), SYN)),
            (false, Packet::ping((REMOTE, 53), SERVER_PUBLIC)),
            (true, Packet::udp((SERVER, 53), (REMOTE, 5000))),
        ];
        for (inside, packet) in &packets {
            let run = if *inside { gateway.out(packet) } else { gateway.back(packet) };
            assert_ne!(run.verdict(), Verdict::Drop(DropReason::Internal), "{packet:?}");
        }
        let totals = gateway.totals();
        let received = totals.packets_in_from_source + totals.packets_in_from_destination;
        let placed = totals.packets_out_to_destination
            + totals.packets_out_to_source
            + totals.packets_to_host
            + totals.packets_answered
            + totals.packets_held
            + totals.drops.iter().sum::<u64>();
        assert_eq!((received, placed), (packets.len() as u64, packets.len() as u64));
    }
}

#[test]
fn bytes_out_count_what_came_in_by_the_side_it_came_from() {
    let gateway = Gateway::two_armed();
    let packet = Packet::udp((HOST, 5000), (REMOTE, 53));
    let run = gateway.out(&packet);
    assert_eq!((run.outcome.side, run.outcome.bytes), (Side::Source, 40));
    let public = seen(&run.frame).source();
    gateway.back(&Packet::udp((REMOTE, 53), public));
    let totals = gateway.totals();
    assert_eq!((totals.packets_in_from_source, totals.bytes_in_from_source), (1, 40));
    assert_eq!((totals.packets_out_to_destination, totals.bytes_out_to_destination), (1, 40));
    assert_eq!((totals.packets_in_from_destination, totals.bytes_in_from_destination), (1, 40));
    assert_eq!((totals.packets_out_to_source, totals.bytes_out_to_source), (1, 40));
}

#[test]
fn an_egress_that_has_just_disappeared_is_a_drop_with_its_own_reason() {
    let mut gateway = Gateway::two_armed();
    let packet = Packet::udp((HOST, 5000), (REMOTE, 53));
    gateway.sent_out(&packet);
    gateway.world.interfaces.get_mut(&3).unwrap().ifindex = 0;
    assert_eq!(
        refused(&Run {
            outcome: nat_common::stage::Outcome {
                out: nat_common::stage::Out::None,
                ..gateway.out(&packet).outcome
            },
            ..gateway.out(&packet)
        }),
        DropReason::EgressMissing
    );
}
