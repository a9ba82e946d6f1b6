//! Ports: the own one where it is free, exact to the last one where they run out.

use std::collections::BTreeSet;

use nat_common::host::packet::seen;
use nat_common::{
    env::Tables as _,
    host::packet::{Packet, ip},
    maps::stage,
    net::{Ip4, Port, proto},
    rules::{address, control},
    stage::{reap, request},
    verdict::{DropReason, Verdict},
};

use crate::gateway::{
    ACK, ESTABLISHED, Gateway, HOST, HZ, OTHER_HOST, OTHER_REMOTE, OWNED, POOL, POOL_SLOT, REMOTE,
    key,
};

/// A host by its number, and its MAC address known.
fn host(number: u32) -> Ip4 {
    Ip4::from_u32(ip(10, 0, 1, 0).to_u32() + number)
}

#[test]
fn the_hosts_own_port_is_kept_where_it_is_in_range_and_free() {
    let gateway = Gateway::two_armed();
    assert_eq!(gateway.sent_out(&Packet::udp((HOST, 5000), (REMOTE, 53))).sport, 5000);
    assert_eq!(gateway.sent_out(&Packet::udp((HOST, 65535), (REMOTE, 53))).sport, 65535);
    // Another remote endpoint is another space of ports.
    assert_eq!(gateway.sent_out(&Packet::udp((OTHER_HOST, 5000), (REMOTE, 54))).sport, 5000);
    assert_eq!(gateway.sent_out(&Packet::udp((OTHER_HOST, 5000), (OTHER_REMOTE, 53))).sport, 5000);
}

#[test]
fn a_taken_or_low_port_is_replaced_by_another_of_the_range() {
    let gateway = Gateway::two_armed();
    gateway.sent_out(&Packet::udp((HOST, 5000), (REMOTE, 53)));
    let taken = gateway.sent_out(&Packet::udp((OTHER_HOST, 5000), (REMOTE, 53)));
    assert!(taken.sport >= 1024 && taken.sport != 5000);
    let low = gateway.sent_out(&Packet::udp((HOST, 123), (REMOTE, 53)));
    assert!(low.sport >= 1024);
}

#[test]
fn the_ports_of_forwards_are_never_given_out() {
    let mut gateway = Gateway::two_armed();
    gateway.limit_ports(8000, 8011);
    gateway.world.templates.insert(
        POOL_SLOT,
        nat_common::port::PortSetImage::template(&[(8000, 8011)], |port| port < 8010),
    );
    let mut given = BTreeSet::new();
    for number in 0..2 {
        given.insert(gateway.sent_out(&Packet::udp((host(number), 8000), (REMOTE, 53))).sport);
    }
    assert_eq!(given, [8010, 8011].into());
    let third = Packet::udp((host(3), 8003), (REMOTE, 53));
    assert_eq!(gateway.refused_out(&third), DropReason::ErrorPortAllocation);
    // A forward of one protocol reserves nothing of the other.
    assert_eq!(gateway.sent_out(&Packet::ping((HOST, 8003), REMOTE)).sport, 8003);
}

#[test]
fn a_port_that_a_socket_of_the_host_uses_is_not_given_out() {
    let mut gateway = Gateway::two_armed();
    gateway.world.add_snat(OTHER_HOST, 32, 0, 1);
    gateway.world.sockets.insert((OWNED, Port::new(5000), proto::UDP));
    let seen = gateway.sent_out(&Packet::udp((OTHER_HOST, 5000), (REMOTE, 53)));
    assert_eq!(seen.src, OWNED);
    assert_ne!(seen.sport, 5000);
    assert_eq!(gateway.sent_out(&Packet::udp((OTHER_HOST, 5001), (REMOTE, 53))).sport, 5001);
}

/// Opens `count` sessions to one destination from as many endpoints, all with the same port, and
/// returns the ports that they got.
fn fill(gateway: &Gateway, count: u32, packet: impl Fn(Ip4) -> Packet) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    for number in 0..count {
        let run = gateway.out(&packet(host(number)));
        assert_eq!(run.verdict(), Verdict::ToDestination, "session {number} by {:?}", run.stages);
        assert!(ports.insert(seen(&run.frame).sport), "each port once");
    }
    ports
}

#[test]
fn of_64_ports_64_sessions_get_one_each_and_the_65th_is_refused_and_counted() {
    let kinds: [fn(Ip4) -> Packet; 3] = [
        |host| Packet::udp((host, 5000), (REMOTE, 53)),
        |host| Packet::tcp((host, 5000), (REMOTE, 53), 2),
        |host| Packet::ping((host, 5000), REMOTE),
    ];
    for packet in kinds {
        let mut gateway = Gateway::two_armed();
        gateway.limit_ports(2000, 2063);
        assert_eq!(fill(&gateway, 64, packet), (2000..=2063).collect());
        for number in 100..110 {
            let reason = gateway.refused_out(&packet(host(number)));
            assert_eq!(reason, DropReason::ErrorPortAllocation);
        }
        assert_eq!(gateway.totals().port_allocation_errors, 10);
        assert_eq!(gateway.entries(), 128);
        // To elsewhere there are as many again.
        let mut elsewhere = packet(host(100));
        elsewhere.dst = OTHER_REMOTE;
        gateway.sent_out(&elsewhere);
        // One that ends makes room for one.
        assert!(reap::one(&gateway.world, request::END, &key(&packet(host(7)))));
        gateway.pass(1);
        gateway.sent_out(&packet(host(100)));
        assert_eq!(gateway.refused_out(&packet(host(101))), DropReason::ErrorPortAllocation);
    }
}

#[test]
fn the_full_range_serves_64512_sessions_to_one_destination() {
    let gateway = Gateway::two_armed();
    let mut world = gateway;
    world.world.forwards.clear();
    let ports = fill(&world, 64_512, |host| Packet::udp((host, 5000), (REMOTE, 53)));
    assert_eq!(ports.len(), 64_512);
    let more = Packet::udp((HOST, 5000), (REMOTE, 53));
    assert_eq!(world.refused_out(&more), DropReason::ErrorPortAllocation);
}

#[test]
fn ports_taken_before_a_destination_is_tracked_are_found_out() {
    let mut gateway = Gateway::two_armed();
    gateway.limit_ports(2000, 2999);
    // Every port taken by its own number: nothing is tracked.
    for port in 2000..=2999 {
        gateway.sent_out(&Packet::udp((HOST, port), (REMOTE, 53)));
    }
    assert!(gateway.world.busy.borrow().is_empty());
    let other = Packet::udp((OTHER_HOST, 5), (REMOTE, 53));
    for _ in 0..10 {
        let reason = gateway.refused_out(&other);
        assert_eq!(reason, DropReason::ErrorPortAllocation, "never an internal error");
    }
    assert!(reap::one(
        &gateway.world,
        request::END,
        &key(&Packet::udp((HOST, 2500), (REMOTE, 53)))
    ));
    gateway.pass(1);
    assert_eq!(gateway.sent_out(&other).sport, 2500);
}

/// Takes `count` ports from `first` on, each by a session of its own number: nothing is tracked.
fn take(gateway: &Gateway, first: u16, count: u16) {
    for port in first..first + count {
        gateway.sent_out(&Packet::udp((HOST, port), (REMOTE, 53)));
    }
    assert!(gateway.world.busy.borrow().is_empty());
}

#[test]
fn the_last_free_ports_are_found_however_late_the_tracking_begins() {
    // 50, 90, 99 and 99.9 % of 64,512 ports, and all but one.
    for (taken, free) in [(32_256, 10), (58_061, 10), (63_867, 645), (64_448, 64), (64_511, 1)] {
        let mut gateway = Gateway::two_armed();
        gateway.world.forwards.clear();
        take(&gateway, 1024, taken);
        let mut given = BTreeSet::new();
        for number in 0..free {
            let packet = Packet::udp((host(number), 1024), (REMOTE, 53));
            given.insert(gateway.sent_out(&packet).sport);
        }
        assert_eq!(given.len(), free as usize, "{taken} taken before");
        assert!(given.iter().all(|port| *port >= 1024 + taken));
        if taken > 63_000 {
            let more = Packet::udp((host(free), 1024), (REMOTE, 53));
            assert_eq!(gateway.refused_out(&more), DropReason::ErrorPortAllocation);
        }
    }
}

#[test]
fn a_bitmap_that_was_lost_is_learnt_anew_within_one_packet() {
    let mut gateway = Gateway::two_armed();
    gateway.limit_ports(2000, 3999);
    fill(&gateway, 1999, |host| Packet::udp((host, 5000), (REMOTE, 53)));
    // As when others took its place, or the ranges were written anew.
    gateway.world.busy.borrow_mut().clear();
    gateway.sent_out(&Packet::udp((host(2000), 5000), (REMOTE, 53)));
    let more = Packet::udp((host(2001), 5000), (REMOTE, 53));
    assert_eq!(gateway.refused_out(&more), DropReason::ErrorPortAllocation);
}

#[test]
fn without_the_daemon_the_ports_of_expired_sessions_are_given_out_again() {
    let mut gateway = Gateway::two_armed();
    gateway.limit_ports(2000, 2063);
    fill(&gateway, 64, |host| Packet::udp((host, 5000), (REMOTE, 53)));
    let heartbeat = gateway.world.control.heartbeat;
    gateway.pass(ESTABLISHED * HZ / 2);
    // One that is used lives on.
    gateway.sent_out(&Packet::udp((host(7), 5000), (REMOTE, 53)));
    gateway.pass(ESTABLISHED * HZ / 2 + HZ);
    gateway.world.control.heartbeat = heartbeat;
    let mut given = BTreeSet::new();
    for number in 100..163 {
        given.insert(gateway.sent_out(&Packet::udp((host(number), 5000), (REMOTE, 53))).sport);
    }
    assert_eq!(given.len(), 63);
    let more = Packet::udp((host(200), 5000), (REMOTE, 53));
    assert_eq!(gateway.refused_out(&more), DropReason::ErrorPortAllocation);
    gateway.sent_out(&Packet::udp((host(7), 5000), (REMOTE, 53)));
    assert_eq!(gateway.entries(), 128, "nothing of the old ones is left");
    assert_eq!(gateway.totals().sessions_ended, 63);
}

#[test]
fn its_own_port_is_free_when_the_session_that_had_it_has_expired() {
    let mut gateway = Gateway::two_armed();
    gateway.sent_out(&Packet::udp((HOST, 5000), (REMOTE, 53)));
    gateway.pass(ESTABLISHED * HZ + HZ);
    assert_eq!(gateway.sent_out(&Packet::udp((OTHER_HOST, 5000), (REMOTE, 53))).sport, 5000);
    assert_eq!(gateway.entries(), 2);
}

#[test]
fn a_port_that_rests_is_given_out_without_the_daemon_when_it_has_rested() {
    let mut gateway = Gateway::two_armed();
    gateway.world.control.port_hold = 120 * HZ;
    gateway.limit_ports(2000, 2063);
    fill(&gateway, 64, |host| Packet::udp((host, 5000), (REMOTE, 53)));
    let first = Packet::udp((host(0), 5000), (REMOTE, 53));
    assert!(reap::one(&gateway.world, request::END, &key(&first)));
    let other = Packet::udp((host(100), 5000), (REMOTE, 53));
    for (wait, free) in [(1, false), (119 * HZ, false), (HZ, true)] {
        gateway.pass(wait);
        let verdict = gateway.out(&other).verdict();
        assert_eq!(verdict == Verdict::ToDestination, free, "{verdict:?}");
    }
}

#[test]
fn a_refusal_is_remembered_for_a_tick_and_counted_each_time() {
    let mut gateway = Gateway::two_armed();
    gateway.limit_ports(2000, 2063);
    fill(&gateway, 64, |host| Packet::udp((host, 5000), (REMOTE, 53)));
    let packet = |port| Packet::udp((host(100), port), (REMOTE, 53));
    let first = gateway.out(&packet(5000));
    let asked = gateway.world.asked.get();
    let events = gateway.world.events.borrow().len();
    for port in 5001..5010 {
        let run = gateway.out(&packet(port));
        assert_eq!(run.verdict(), first.verdict());
        assert!(run.stages.is_empty(), "by the first look alone");
    }
    gateway.world.control.flags |= control::EXHAUSTION_ERROR;
    let told = gateway.out(&packet(5010));
    assert_eq!((told.verdict(), told.stages[0]), (Verdict::Answered, stage::BEGIN));
    gateway.world.control.flags &= !control::EXHAUSTION_ERROR;
    assert_eq!(gateway.world.asked.get(), asked, "no route is looked up for it");
    assert_eq!(gateway.world.events.borrow().len(), events);
    assert_eq!(gateway.totals().port_allocation_errors, 11);
    let refused = &gateway.world.refused_ports[POOL_SLOT as usize].0;
    assert_eq!(refused.each_ref().map(std::cell::Cell::get), [0, 11, 0, 0], "by protocol");
    // Of other destinations, protocols and hosts nothing is said, and of other packets neither.
    gateway.sent_out(&Packet::udp((host(100), 5000), (REMOTE, 54)));
    gateway.sent_out(&Packet::ping((host(100), 5000), REMOTE));
    let ack = Packet::tcp((host(100), 5000), (REMOTE, 53), ACK);
    assert_eq!(gateway.out(&ack).verdict(), Verdict::Answered);
    // A port that becomes free is hidden for no longer than the tick, nor by another configuration.
    let ended = Packet::udp((host(7), 5000), (REMOTE, 53));
    assert!(reap::one(&gateway.world, request::END, &key(&ended)));
    gateway.refused_out(&packet(5000));
    gateway.pass(1);
    gateway.sent_out(&packet(5000));
    gateway.refused_out(&packet(5001));
    gateway.world.control.generation += 1;
    assert!(gateway.out(&packet(5001)).stages.len() > 1);
}

#[test]
fn when_one_address_is_full_the_next_one_serves() {
    let mut gateway = Gateway::two_armed();
    let second = ip(198, 51, 100, 11);
    let flags = address::ACTIVE | address::ANSWER_ARP;
    gateway.limit_ports(2000, 2007);
    gateway.world.add_address(9, second, 0, (2000, 2007), flags);
    let pool = *gateway.pool();
    gateway.world.add_pool(0, pool, &[POOL_SLOT, 9]);
    let mut addresses = [0; 2];
    for number in 0..16 {
        let seen = gateway.sent_out(&Packet::udp((host(number), 5000), (REMOTE, 53)));
        addresses[usize::from(seen.src == second)] += 1;
    }
    assert_eq!(addresses, [8, 8]);
    let more = Packet::udp((HOST, 5000), (REMOTE, 53));
    assert_eq!(gateway.refused_out(&more), DropReason::ErrorPortAllocation);
}

#[test]
fn a_host_keeps_one_address_for_all_its_sessions() {
    let mut gateway = Gateway::two_armed();
    let flags = address::ACTIVE | address::ANSWER_ARP;
    let slots: Vec<u32> = (10..18).collect();
    for slot in &slots {
        let public = ip(198, 51, 100, 30 + *slot as u8);
        gateway.world.add_address(*slot, public, 0, (1024, 65535), flags);
    }
    let pool = *gateway.pool();
    gateway.world.add_pool(0, pool, &slots);
    let mut used = BTreeSet::new();
    for number in 0..64 {
        let first = gateway.sent_out(&Packet::udp((host(number), 5000), (REMOTE, 53))).src;
        for port in 5001..5005 {
            let packet = Packet::tcp((host(number), port), (OTHER_REMOTE, 80), 2);
            assert_eq!(gateway.sent_out(&packet).src, first);
        }
        used.insert(first);
    }
    assert_eq!(used.len(), slots.len(), "the hosts spread over all addresses");
}

#[test]
fn a_host_moves_on_when_its_address_takes_no_new_sessions() {
    let mut gateway = Gateway::two_armed();
    let flags = address::ACTIVE | address::ANSWER_ARP;
    let second = ip(198, 51, 100, 11);
    gateway.world.add_address(9, second, 0, (1024, 65535), flags);
    gateway.sent_out(&Packet::udp((HOST, 5000), (REMOTE, 53)));
    gateway.world.addresses.get_mut(&POOL_SLOT).unwrap().flags = address::ANSWER_ARP;
    let pool = *gateway.pool();
    gateway.world.add_pool(0, pool, &[9]);
    assert_eq!(gateway.sent_out(&Packet::udp((HOST, 5001), (REMOTE, 53))).src, second);
    assert_eq!(gateway.sent_out(&Packet::udp((HOST, 5000), (REMOTE, 53))).src, POOL, "goes on");
}

#[test]
fn with_no_room_to_track_a_destination_every_port_is_still_given_out() {
    let mut gateway = Gateway::two_armed();
    gateway.limit_ports(2000, 2063);
    gateway.world.busy_capacity = 0;
    fill(&gateway, 64, |host| Packet::udp((host, 5000), (REMOTE, 53)));
    let more = Packet::udp((host(64), 5000), (REMOTE, 53));
    assert_eq!(gateway.refused_out(&more), DropReason::ErrorPortAllocation);
}

#[test]
fn a_host_whose_address_is_out_of_order_in_the_pool_gets_every_port_of_every_address() {
    let mut gateway = Gateway::two_armed();
    let flags = address::ACTIVE | address::ANSWER_ARP;
    gateway.limit_ports(2000, 2007);
    let pool = *gateway.pool();
    let first = gateway.sent_out(&Packet::udp((HOST, 5000), (REMOTE, 54))).src;
    for slot in [9, 10, 11] {
        let public = ip(198, 51, 100, 40 + slot as u8);
        gateway.world.add_address(slot, public, 0, (2000, 2007), flags);
    }
    // Wherever the host's own address stands in the list.
    for list in [[9, 10, 11, POOL_SLOT], [POOL_SLOT, 9, 10, 11], [10, POOL_SLOT, 11, 9]] {
        gateway.world.add_pool(0, pool, &list);
        let mut given = BTreeSet::new();
        for port in 5000..5032 {
            let seen = gateway.sent_out(&Packet::udp((HOST, port), (REMOTE, 53)));
            if given.len() < 8 {
                assert_eq!(seen.src, first, "the paired address comes first");
            }
            given.insert((seen.src, seen.sport));
        }
        assert_eq!(given.len(), 32);
        let more = Packet::udp((HOST, 5032), (REMOTE, 53));
        assert_eq!(gateway.refused_out(&more), DropReason::ErrorPortAllocation);
        for port in 5000..5032 {
            let packet = Packet::udp((HOST, port), (REMOTE, 53));
            assert!(reap::one(&gateway.world, request::END, &key(&packet)));
        }
        gateway.pass(1);
    }
}

#[test]
fn a_full_table_refuses_new_sessions_and_keeps_the_living() {
    let mut gateway = Gateway::two_armed();
    gateway.world.session_capacity = 5;
    for port in [5000, 5001] {
        gateway.sent_out(&Packet::udp((HOST, port), (REMOTE, 53)));
    }
    for _ in 0..3 {
        let third = Packet::udp((HOST, 5002), (REMOTE, 53));
        assert_eq!(gateway.refused_out(&third), DropReason::SessionTableFull);
        assert_eq!(gateway.entries(), 4, "no half of a session stays");
        let forward = Packet::udp((REMOTE, 5002), (POOL, 8000));
        assert_eq!(gateway.refused_back(&forward), DropReason::SessionTableFull);
        assert_eq!(gateway.entries(), 4);
    }
    gateway.sent_out(&Packet::udp((HOST, 5000), (REMOTE, 53)));
    gateway.pass(400 * HZ);
    gateway.sweep();
    gateway.sent_out(&Packet::udp((HOST, 5002), (REMOTE, 53)));
    assert!(
        gateway
            .world
            .host(&nat_common::session::HostKey { address: HOST, ..Default::default() })
            .is_some_and(|host| host.sessions[1].get() == 1)
    );
}
