//! The flow cache: it makes packets cheaper and changes nothing else.

use nat_common::{
    cache::{self, Place},
    env::Tables as _,
    host::{
        HostFrame,
        packet::{Endpoint, Packet},
    },
    rules::CacheShape,
    session::State,
    stage::{
        end,
        plain::{self, First},
        reap, request,
    },
    verdict::DropReason,
};

use crate::gateway::{
    ACK, ESTABLISHED, FIN, Gateway, HOST, HZ, OTHER_HOST, OTHER_REMOTE, POOL, REMOTE, RST,
    TRANSITORY, key,
};

const FROM: Endpoint = (HOST, 5000);
const TO: Endpoint = (REMOTE, 53);

fn there() -> Packet {
    Packet::udp(FROM, TO)
}

fn back() -> Packet {
    Packet::udp(TO, (POOL, 5000))
}

fn place(gateway: &Gateway, packet: &Packet) -> Place {
    Place::of(&key(packet), &gateway.world.control)
}

/// The three lines of the cache in which a flow may be.
fn lines(gateway: &Gateway, packet: &Packet) -> [u32; 3] {
    let [first, _, second, _, third, _] = place(gateway, packet).ways();
    [first | 1, second | 1, third | 1]
}

/// Flows with lines as wanted, from this port on.
fn flows_from(
    gateway: &Gateway,
    port: u16,
    wanted: impl Fn([u32; 3]) -> bool,
) -> impl Iterator<Item = Packet> {
    (port..65000)
        .map(|port| Packet::udp((HOST, port), (REMOTE, 53)))
        .filter(move |flow| wanted(lines(gateway, flow)))
}

/// Packets and bytes that the session table has of this direction.
fn stored(gateway: &Gateway, packet: &Packet) -> (u64, u64) {
    let session = gateway.world.session(&key(packet)).expect("the session");
    (session.packets.get(), session.bytes.get())
}

fn settled(gateway: &Gateway, packet: &Packet) -> (u64, u64) {
    let world = &gateway.world;
    let session = world.session(&key(packet)).expect("the session");
    cache::settle(world, &world.control, &key(packet), session);
    stored(gateway, packet)
}

#[test]
fn packets_of_a_cached_flow_leave_the_session_table_alone_and_are_counted_when_it_is_settled() {
    let gateway = Gateway::two_armed();
    let length = u64::from(gateway.out(&there()).outcome.bytes);
    gateway.sent_out(&there());
    let before = stored(&gateway, &there());
    for _ in 0..100 {
        gateway.sent_out(&there());
        gateway.sent_back(&back());
    }
    assert_eq!(stored(&gateway, &there()), before, "the cache took all of them");
    assert_eq!(settled(&gateway, &there()), (102, 102 * length));
    assert_eq!(settled(&gateway, &back()), (100, 100 * length));
    assert_eq!(settled(&gateway, &back()), (100, 100 * length), "what is settled counts once");
}

#[test]
fn a_flow_that_only_the_cache_sees_keeps_its_session_alive() {
    let mut gateway = Gateway::two_armed();
    gateway.sent_out(&there());
    gateway.sent_out(&there());
    for _ in 0..10 {
        gateway.pass((ESTABLISHED - 1) * HZ);
        gateway.sent_out(&there());
        assert_eq!(gateway.sweep(), 0);
    }
    assert_eq!(gateway.totals().sessions_created, 1);
    gateway.pass((ESTABLISHED + 1) * HZ);
    assert_eq!(gateway.sweep(), 1);
    assert_eq!(gateway.refused_back(&back()), DropReason::Unsolicited);
}

#[test]
fn a_cached_flow_is_absent_after_its_timeout_although_nobody_swept() {
    let mut gateway = Gateway::two_armed();
    gateway.sent_out(&there());
    gateway.sent_back(&back());
    gateway.sent_back(&back());
    gateway.pass(ESTABLISHED * HZ + HZ);
    assert_eq!(gateway.refused_back(&back()), DropReason::Unsolicited);
}

#[test]
fn a_session_that_was_ended_translates_no_more_and_its_last_packets_are_told() {
    let gateway = Gateway::two_armed();
    for _ in 0..5 {
        gateway.sent_out(&there());
    }
    gateway.sent_back(&back());
    gateway.sent_back(&back());
    assert!(reap::one(&gateway.world, request::END, &key(&there())));
    assert_eq!(gateway.refused_back(&back()), DropReason::Unsolicited);
    gateway.sent_out(&there());
    assert_eq!(settled(&gateway, &there()).0, 1, "the next session begins at nothing");
}

#[test]
fn a_session_that_leaves_the_established_state_leaves_the_cache() {
    for end in [FIN | ACK, RST] {
        let mut gateway = Gateway::two_armed();
        let to = (REMOTE, 443);
        let public = gateway.connect(FROM, to);
        let (out, back) = (Packet::tcp(FROM, to, ACK), Packet::tcp(to, public, ACK));
        for _ in 0..3 {
            gateway.sent_out(&out);
            gateway.sent_back(&back);
        }
        gateway.sent_out(&Packet::tcp(FROM, to, end));
        if end != RST {
            gateway.sent_back(&Packet::tcp(to, public, FIN | ACK));
        }
        assert!(
            matches!(gateway.state(&out), Some(State::TcpClosing | State::TcpReset)),
            "{:?}",
            gateway.state(&out)
        );
        gateway.pass((TRANSITORY + 2) * HZ);
        assert_eq!(gateway.sweep(), 1, "it lives no longer than a closing one");
    }
}

#[test]
fn flows_that_share_a_slot_are_each_translated_and_counted_right() {
    // A page of 128 slots for 100 flows, both ways.
    let gateway = Gateway::two_armed();
    let flows: Vec<(Packet, Packet)> = (0..100_u16)
        .map(|flow| {
            let (host, remote) =
                if flow % 2 == 0 { (HOST, REMOTE) } else { (OTHER_HOST, OTHER_REMOTE) };
            let out = Packet::udp((host, 5000 + flow), (remote, 53));
            let public = gateway.sent_out(&out).source();
            (out, Packet::udp((remote, 53), public))
        })
        .collect();
    for round in 0..100_usize {
        for (number, (out, back)) in flows.iter().enumerate() {
            for _ in 0..=(round + number) % 3 {
                assert_eq!(gateway.sent_out(out).source().1, 5000 + number as u16);
            }
            assert_eq!(gateway.sent_back(back).destination().1, 5000 + number as u16);
        }
    }
    for (number, (out, back)) in flows.iter().enumerate() {
        let sent: usize = (0..100).map(|round| (round + number) % 3 + 1).sum();
        assert_eq!(settled(&gateway, out).0, sent as u64 + 1, "flow {number}");
        assert_eq!(settled(&gateway, back).0, 100, "flow {number}");
    }
}

/// What the session table has of each, before and after one more packet of each.
fn before_and_after(gateway: &Gateway, flows: &[Packet]) -> [Vec<(u64, u64)>; 2] {
    let all = || flows.iter().map(|flow| stored(gateway, flow)).collect();
    let before = all();
    for flow in flows {
        gateway.sent_out(flow);
    }
    [before, all()]
}

#[test]
fn a_flow_whose_lines_are_taken_has_a_slot_in_the_next_and_leaves_it_when_it_ends() {
    let gateway = Gateway::two_armed();
    let last = there();
    let [first, second, _] = lines(&gateway, &last);
    let in_first = flows_from(&gateway, 6000, |[its, ..]| its == first).take(2);
    let in_second = flows_from(&gateway, 6000, |[its, ..]| its == second).take(2);
    let flows: Vec<Packet> = in_first.chain(in_second).chain([last]).collect();
    assert_eq!(flows.len(), 5);
    for flow in &flows {
        gateway.sent_out(flow);
        gateway.sent_out(flow);
    }
    let [before, after] = before_and_after(&gateway, &flows);
    assert_eq!(after, before, "the cache took one packet of each");
    for flow in &flows {
        assert_eq!(settled(&gateway, flow).0, 3);
        assert!(reap::one(&gateway.world, request::END, &key(flow)));
    }
    // What is left in the slots is nobody's: each begins anew.
    for flow in &flows {
        gateway.sent_out(flow);
        assert_eq!(settled(&gateway, flow).0, 1);
    }
}

#[test]
fn a_free_slot_is_preferred_to_one_whose_flow_is_idle() {
    let mut gateway = Gateway::two_armed();
    let [first, ..] = lines(&gateway, &there());
    let flows: Vec<_> = flows_from(&gateway, 6000, |[its, ..]| its == first).take(4).collect();
    for flow in &flows {
        gateway.sent_out(flow);
        gateway.sent_out(flow);
        gateway.pass(2 * HZ);
    }
    let [before, after] = before_and_after(&gateway, &flows);
    assert_eq!(after, before, "all four are still in the cache");
}

#[test]
fn a_change_of_configuration_is_obeyed_by_cached_flows_at_once() {
    let mut gateway = Gateway::two_armed();
    for _ in 0..3 {
        gateway.sent_out(&there());
        gateway.sent_back(&back());
    }
    gateway.world.snat.clear();
    gateway.world.control.generation += 1;
    gateway.world.control.epoch += 1;
    assert_eq!(gateway.refused_back(&back()), DropReason::Unsolicited);
}

#[test]
fn a_slot_whose_seal_is_wrong_is_not_believed() {
    let mut gateway = Gateway::two_armed();
    gateway.world.sieve.clear();
    for _ in 0..3 {
        gateway.sent_out(&there());
    }
    let slot = place(&gateway, &there()).ways()[0];
    // As if another CPU were in the midst of writing: with another key of the hash the seal is another, and the
    // flow's way the same.
    let seed = (9..).map(|seed| [seed; 4]).find(|seed| {
        let shape = CacheShape { slots: 128, seed: *seed };
        Place::within(&key(&there()), &shape).ways()[0] == slot
    });
    gateway.world.control.cache.seed = seed.expect("one in 128");
    let before = stored(&gateway, &there());
    assert_eq!(gateway.sent_out(&there()).source(), (POOL, 5000));
    assert_ne!(stored(&gateway, &there()), before, "the session took it");
}

#[test]
fn a_session_is_live_by_what_the_cache_has_seen() {
    let mut gateway = Gateway::two_armed();
    gateway.sent_out(&there());
    gateway.sent_out(&there());
    gateway.pass(ESTABLISHED * HZ);
    gateway.sent_out(&there());
    gateway.pass(ESTABLISHED * HZ);
    let world = &gateway.world;
    let inbound = world.session(&key(&back())).expect("the other half");
    assert!(end::is_live(world, &world.control, &key(&back()), inbound, world.now.get()));
}

#[test]
fn a_flow_that_fills_its_slot_stays_in_it_and_is_counted_right() {
    /// Twenty times what a slot takes before it is settled.
    const PACKETS: u32 = 20_000;
    let mut gateway = Gateway::two_armed();
    let mut by_session = 0;
    for number in 0..PACKETS {
        if number % 100 == 0 {
            gateway.pass(1);
        }
        let mut frame = HostFrame::new(gateway.inside, &there().frame());
        let first = plain::run(&mut frame, &gateway.world);
        by_session += u32::from(!matches!(first, First::Forwarded(_)));
        gateway.sent_out(&there());
    }
    assert!(by_session <= 2, "{by_session} packets");
    assert_eq!(settled(&gateway, &there()).0, u64::from(2 * PACKETS - by_session));
}
