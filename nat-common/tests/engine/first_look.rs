//! The first look: it takes packets on a shorter way, and to the same place.

use nat_common::{
    cache,
    counters::Counters,
    env::Tables as _,
    host::{
        HostFrame, World,
        packet::{Endpoint, Packet},
    },
    maps::stage,
    rules::{address, control, pool, routing},
    session::flags,
    stage::{
        Out, Outcome, direction,
        plain::{self, First},
        reap, request,
    },
};
use proptest::prelude::*;

use crate::gateway::{ACK, ESTABLISHED, Gateway, HOST, HZ, POOL, REMOTE, SYN, key};

const HOST_UDP: Endpoint = (HOST, 5000);
const HOST_TCP: Endpoint = (HOST, 6000);
const DNS: Endpoint = (REMOTE, 53);
const WEB: Endpoint = (REMOTE, 80);

/// Out and back, UDP and TCP.
fn packets() -> [Packet; 4] {
    [
        Packet::udp(HOST_UDP, DNS),
        Packet::udp(DNS, (POOL, 5000)),
        Packet::tcp(HOST_TCP, WEB, ACK),
        Packet::tcp(WEB, (POOL, 6000), ACK),
    ]
}

/// A gateway whose cache has these four flows.
fn warm(one_armed: bool) -> Gateway {
    let gateway = if one_armed { Gateway::one_armed() } else { Gateway::two_armed() };
    gateway.connect(HOST_TCP, WEB);
    for _ in 0..2 {
        for (index, packet) in packets().iter().enumerate() {
            if index % 2 == 0 {
                gateway.sent_out(packet);
            } else {
                gateway.sent_back(packet);
            }
        }
    }
    gateway
}

/// What all flows have carried so far, and when they were last seen; `None`: they have ended.
fn carried(gateway: &Gateway) -> Vec<Option<(u64, u64, u32)>> {
    let world = &gateway.world;
    let of = |packet: &Packet| {
        let session = world.session(&key(packet))?;
        cache::settle(world, &world.control, &key(packet), session);
        Some((session.packets.get(), session.bytes.get(), session.word().seen()))
    };
    packets().iter().map(of).collect()
}

/// Nobody has asked for these.
fn unsolicited() -> [Packet; 3] {
    [
        Packet::udp(DNS, (POOL, 5001)),
        Packet::tcp(WEB, (POOL, 6001), ACK),
        Packet::tcp(WEB, (POOL, 6001), SYN),
    ]
}

/// The first of their sessions, between hosts that are known.
fn opening() -> [Packet; 2] {
    [Packet::udp((HOST, 5100), DNS), Packet::tcp((HOST, 6100), WEB, SYN)]
}

/// Without forwards, an address admits nothing but answers.
fn close(gateway: &mut Gateway) {
    gateway.world.forwards.clear();
    for address in gateway.world.addresses.values_mut() {
        address.flags &= !address::FORWARDS;
    }
}

fn ingress(gateway: &Gateway, flow: usize) -> u32 {
    if flow.is_multiple_of(2) { gateway.inside } else { gateway.outside }
}

#[test]
fn an_established_packet_goes_by_the_first_look() {
    for one_armed in [false, true] {
        let gateway = warm(one_armed);
        for (flow, packet) in packets().iter().enumerate() {
            let mut frame = HostFrame::new(ingress(&gateway, flow), &packet.frame());
            let forwarded = plain::run(&mut frame, &gateway.world);
            assert!(matches!(forwarded, First::Forwarded(_)), "{packet:?}");
        }
    }
}

#[test]
fn a_frame_that_is_not_known_to_be_at_hand_goes_the_general_way() {
    let gateway = warm(false);
    let frame = Packet::udp(HOST_UDP, DNS).frame();
    let mut short = HostFrame::new(gateway.inside, &frame[..frame.len() - 1]);
    assert_eq!(plain::run(&mut short, &gateway.world), First::Undecided);
}

#[test]
fn only_where_nobody_can_want_it_is_an_unsolicited_packet_dropped_at_the_first_look() {
    let look = |gateway: &Gateway, packet: &Packet| {
        let mut frame = HostFrame::new(gateway.outside, &packet.frame());
        matches!(plain::run(&mut frame, &gateway.world), First::Unsolicited(_))
    };
    let mut gateway = warm(false);
    for packet in unsolicited() {
        assert!(!look(&gateway, &packet), "it might be forwarded");
    }
    close(&mut gateway);
    for packet in unsolicited() {
        assert!(look(&gateway, &packet), "{packet:?}");
    }
    gateway.world.control.flags |= control::HOLD_SYN;
    let held = unsolicited().map(|packet| !look(&gateway, &packet));
    assert_eq!(held, [false, false, true], "a SYN that is answered waits first");
    gateway.pool().filtering = pool::ADDRESS_DEPENDENT;
    assert!(!look(&gateway, &unsolicited()[0]), "the filtering has to be asked");
}

#[test]
fn what_the_sieve_has_not_counted_is_looked_for_nowhere_else() {
    let mut gateway = warm(false);
    close(&mut gateway);
    let look = |gateway: &Gateway| {
        let mut frame = HostFrame::new(gateway.outside, &packets()[1].frame());
        plain::run(&mut frame, &gateway.world)
    };
    assert!(matches!(look(&gateway), First::Forwarded(_)));
    // As it never is: the session is there, and was not counted.
    let counted = core::mem::take(&mut gateway.world.sieve);
    gateway.world.sieve.resize_with(counted.len(), Default::default);
    assert!(matches!(look(&gateway), First::Unsolicited(_)));
    gateway.world.sieve = counted;
}

#[test]
fn between_two_hosts_that_are_known_a_session_is_opened_by_one_stage_and_without_a_route() {
    let mut gateway = warm(false);
    gateway.world.control.heartbeat = gateway.world.now.get();
    let asked = gateway.world.asked.get();
    for packet in opening() {
        assert_eq!(gateway.out(&packet).stages, [stage::BEGIN], "{packet:?}");
    }
    assert_eq!(gateway.world.asked.get(), asked);
    // A change of the network, or of the configuration; or the host's routing looks at ports.
    gateway.world.control.epoch += 1;
    assert!(gateway.out(&Packet::udp((HOST, 5101), DNS)).stages.contains(&stage::CLASSIFY));
    assert_eq!(gateway.out(&Packet::udp((HOST, 5102), DNS)).stages, [stage::BEGIN]);
    gateway.world.control.generation += 1;
    assert!(gateway.out(&Packet::udp((HOST, 5103), DNS)).stages.contains(&stage::CLASSIFY));
    gateway.world.control.routing = 0;
    assert!(gateway.out(&Packet::udp((HOST, 5104), DNS)).stages.contains(&stage::CLASSIFY));
    assert_eq!(gateway.world.asked.get(), asked + 3);
    // Nor while the daemon is silent, and would not say that the network has changed.
    gateway.world.control.routing = routing::BY_ADDRESSES;
    for port in [5105, 5106] {
        gateway.out(&Packet::udp((HOST, port), DNS));
    }
    assert_eq!(gateway.out(&Packet::udp((HOST, 5107), DNS)).stages, [stage::BEGIN]);
    gateway.world.now.set(gateway.world.now.get() + HZ * control::HEARTBEAT_SECONDS + 1);
    assert!(gateway.out(&Packet::udp((HOST, 5108), DNS)).stages.contains(&stage::CLASSIFY));
}

#[test]
fn sessions_that_share_a_counter_of_the_sieve_do_not_hide_each_other() {
    let mut gateway = warm(false);
    close(&mut gateway);
    gateway.world.sieve.truncate(1);
    gateway.world.control.sieve_mask = 0;
    gateway.world.sessions.borrow_mut().clear();
    gateway.world.sieve[0].set(0);
    for port in 1..60 {
        gateway.sent_out(&Packet::udp((HOST, 5000 + port), DNS));
    }
    for port in (1..60).step_by(2) {
        let out = key(&Packet::udp((HOST, 5000 + port), DNS));
        assert!(reap::one(&gateway.world, request::END, &out));
    }
    for port in (2..60).step_by(2) {
        gateway.sent_back(&Packet::udp(DNS, (POOL, 5000 + port)));
    }
}

#[test]
fn a_session_that_the_cache_does_not_know_is_not_unsolicited() {
    let mut gateway = warm(false);
    close(&mut gateway);
    gateway.world.cache.clear();
    gateway.world.cache.resize_with(64, Default::default);
    gateway.sent_back(&packets()[1]);
}

/// A change of a frame: bytes replaced, and bytes cut off or added.
fn changes() -> impl Strategy<Value = (Vec<(usize, u8)>, i32)> {
    let bits = (0u8..8).prop_map(|bit| 1 << bit);
    let byte = prop_oneof![any::<u8>(), 0u8..9, bits];
    (prop::collection::vec((0usize..56, byte), 0..3), prop_oneof![Just(0), -8i32..8])
}

proptest! {
    #[test]
    fn what_the_first_look_takes_comes_to_the_same_by_the_general_way(
        flow in 0usize..9,
        one_armed in any::<bool>(),
        closed in any::<bool>(),
        (bytes, length) in changes(),
        replaces in any::<bool>(),
        ttl in prop_oneof![Just(64u8), 0u8..4],
        alone in any::<bool>(),
        later in prop_oneof![Just(0), 0..2 * ESTABLISHED * HZ],
    ) {
        let (mut here, mut there) = (warm(one_armed), warm(one_armed));
        for gateway in [&mut here, &mut there] {
            if closed {
                close(gateway);
            }
            gateway.pass(later);
            if !alone {
                gateway.world.control.heartbeat = gateway.world.now.get();
            }
        }
        let inside = flow >= 7 || (flow < 4 && flow.is_multiple_of(2));
        let from = if inside { here.inside } else { here.outside };
        let all = packets().into_iter().chain(unsolicited()).chain(opening());
        let mut packet = all.into_iter().nth(flow).expect("one of them");
        packet.ttl = ttl;
        let mut frame = packet.frame();
        for (place, value) in bytes {
            if let Some(byte) = frame.get_mut(place) {
                *byte = if replaces { value } else { *byte ^ value };
            }
        }
        frame.resize(frame.len().saturating_add_signed(length as isize), 0);
        let first = here.world.receive(from, &frame);
        let second = there.world.receive_the_general_way(from, &frame);
        prop_assert_eq!(first.outcome, second.outcome);
        prop_assert_eq!(first.frame, second.frame);
        prop_assert_eq!(carried(&here), carried(&there));
        let (first, second) = (here.totals(), there.totals());
        prop_assert_eq!(bytemuck::bytes_of(&first), bytemuck::bytes_of(&second));
    }

    #[test]
    fn a_translated_packet_is_counted_as_its_direction_has_it(
        session_flags in any::<u8>(), bytes in any::<u16>(),
    ) {
        // The first look sees no flow between two private hosts: a slot of the cache has no room for it.
        let session_flags = session_flags & !flags::HAIRPIN;
        let mut counters: Counters = bytemuck::Zeroable::zeroed();
        counters.translate(u32::from(session_flags), u32::from(bytes));
        counters.settle();
        let (verdict, side) = direction(session_flags);
        let world = World::default();
        world.count(&Outcome { verdict, side, bytes, out: Out::Slot(0) }, 0);
        let expected = *world.totals.borrow();
        prop_assert_eq!(bytemuck::bytes_of(&counters), bytemuck::bytes_of(&expected));
    }
}
