//! Time: no session ends before its timeout, none lives long beyond it.

use nat_common::{
    agenda::Note,
    env::Tables as _,
    host::packet::{Endpoint, Packet, Payload},
    rules::pool,
    session::State,
    stage::{
        reap::{self, Look},
        request,
    },
    verdict::{DropReason, Verdict},
};

use crate::gateway::{
    ESTABLISHED, Gateway, HOST, HZ, OTHER_HOST, OTHER_REMOTE, POOL, REMOTE, SYN, key,
};

const FROM: Endpoint = (HOST, 5000);
const TO: Endpoint = (REMOTE, 53);
const REFRESH: u32 = HZ / 4;

fn request() -> Packet {
    Packet::udp(FROM, TO)
}

fn reply() -> Packet {
    Packet::udp(TO, (POOL, 5000))
}

#[test]
fn a_session_lives_through_its_timeout_and_is_absent_after_it() {
    let mut gateway = Gateway::two_armed();
    gateway.sent_out(&request());
    gateway.pass(ESTABLISHED * HZ);
    gateway.sent_back(&reply());
    gateway.pass(ESTABLISHED * HZ + REFRESH + 1);
    assert_eq!(gateway.refused_back(&reply()), DropReason::Unsolicited);
}

#[test]
fn traffic_in_either_direction_keeps_a_session_alive_for_both() {
    for from_inside in [true, false] {
        let mut gateway = Gateway::two_armed();
        gateway.sent_out(&request());
        for _ in 0..5 {
            gateway.pass((ESTABLISHED - 1) * HZ);
            if from_inside {
                gateway.sent_out(&request());
            } else {
                gateway.sent_back(&reply());
            }
        }
        gateway.pass((ESTABLISHED - 1) * HZ);
        assert_eq!(gateway.sweep(), 0);
        if from_inside {
            gateway.sent_back(&reply());
        } else {
            assert_eq!(gateway.sent_out(&request()).source(), (POOL, 5000));
        }
        assert_eq!(gateway.totals().sessions_created, 1);
    }
}

#[test]
fn last_seen_is_refreshed_once_an_interval_and_not_with_every_packet() {
    let mut gateway = Gateway::two_armed();
    gateway.world.cache.clear();
    gateway.sent_out(&request());
    let start = gateway.world.now.get();
    let seen = |gateway: &Gateway| gateway.world.session(&key(&request())).unwrap().word().seen();
    gateway.pass(REFRESH - 1);
    gateway.sent_out(&request());
    assert_eq!(seen(&gateway), start);
    gateway.pass(1);
    gateway.sent_out(&request());
    assert_eq!(seen(&gateway), start + REFRESH);
}

#[test]
fn the_sweep_ends_what_is_over_and_nothing_else() {
    let mut gateway = Gateway::two_armed();
    gateway.sent_out(&request());
    gateway.pass(100 * HZ);
    gateway.sent_out(&Packet::udp((OTHER_HOST, 5000), (OTHER_REMOTE, 53)));
    gateway.pass(260 * HZ);
    assert_eq!(gateway.sweep(), 1);
    assert_eq!(gateway.entries(), 2);
    let totals = gateway.totals();
    assert_eq!((totals.sessions_created, totals.sessions_ended), (2, 1));
    gateway.pass(100 * HZ);
    assert_eq!(gateway.sweep(), 1);
    assert_eq!(gateway.entries(), 0);
}

#[test]
fn an_expired_session_that_nobody_swept_gives_way_to_a_new_one() {
    let mut gateway = Gateway::two_armed();
    gateway.sent_out(&request());
    gateway.pass(400 * HZ);
    assert_eq!(gateway.sent_out(&request()).source(), (POOL, 5000));
    assert_eq!(gateway.entries(), 2);
    gateway.sent_back(&reply());
    let totals = gateway.totals();
    assert_eq!((totals.sessions_created, totals.sessions_ended), (2, 1));
}

#[test]
fn the_port_of_an_expired_session_is_free_for_others_once_it_was_swept() {
    let mut gateway = Gateway::two_armed();
    gateway.limit_ports(5000, 5000);
    gateway.sent_out(&request());
    let other = Packet::udp((OTHER_HOST, 5000), TO);
    assert_eq!(gateway.refused_out(&other), DropReason::ErrorPortAllocation);
    gateway.pass(400 * HZ);
    gateway.sweep();
    assert_eq!(gateway.sent_out(&other).source(), (POOL, 5000));
    assert_eq!(gateway.sent_back(&reply()).destination(), (OTHER_HOST, 5000));
}

#[test]
fn ticks_may_wrap_around() {
    let mut gateway = Gateway::two_armed();
    gateway.world.now.set(u32::MAX - 10);
    gateway.pass(0);
    gateway.sent_out(&request());
    gateway.pass(100 * HZ);
    gateway.sent_back(&reply());
    gateway.pass(400 * HZ);
    assert_eq!(gateway.refused_back(&reply()), DropReason::Unsolicited);
}

#[test]
fn a_port_rests_before_others_get_it() {
    let mut gateway = Gateway::two_armed();
    gateway.world.control.port_hold = 120 * HZ;
    gateway.limit_ports(5000, 5001);
    gateway.sent_out(&request());
    gateway.pass(360 * HZ);
    assert_eq!(gateway.sweep(), 1);
    assert_eq!(gateway.state(&reply()), Some(State::Dead), "it rests");
    assert_eq!(gateway.refused_back(&reply()), DropReason::Unsolicited, "and translates nothing");
    let other = Packet::udp((OTHER_HOST, 5000), TO);
    assert_eq!(gateway.sent_out(&other).source(), (POOL, 5001));
    gateway.pass(120 * HZ);
    gateway.sweep();
    assert_eq!(gateway.state(&reply()), None);
}

#[test]
fn a_host_that_goes_on_while_its_old_port_rests_gets_another() {
    let mut gateway = Gateway::two_armed();
    gateway.world.control.port_hold = 120 * HZ;
    gateway.sent_out(&request());
    gateway.pass(360 * HZ);
    gateway.sweep();
    let again = gateway.sent_out(&request());
    assert_eq!(again.src, POOL);
    assert_ne!(again.sport, 5000, "per remote endpoint");
    assert_eq!(gateway.sent_out(&Packet::udp(FROM, (OTHER_REMOTE, 53))).sport, 5000);
}

#[test]
fn a_forward_is_reached_again_by_the_same_client_whatever_rests() {
    let mut gateway = Gateway::two_armed();
    gateway.world.control.port_hold = 120 * HZ;
    let packet = Packet::udp((REMOTE, 1000), (POOL, 8000));
    gateway.sent_back(&packet);
    gateway.pass(360 * HZ);
    gateway.sweep();
    assert_eq!(gateway.sent_back(&packet).destination(), (OTHER_HOST, 9000));
}

#[test]
fn under_endpoint_independent_mapping_a_flow_goes_on_after_its_session_expired() {
    for swept in [true, false] {
        let mut gateway = Gateway::rfc();
        let public = gateway.sent_out(&request()).source();
        gateway.pass(360 * HZ);
        if swept {
            gateway.sweep();
        }
        assert_eq!(
            gateway.sent_out(&request()).source(),
            public,
            "the binding rests with its host"
        );
    }
}

/// What the sweep is told to look at, and what it finds of each.
fn looks(gateway: &Gateway) -> Vec<(Note, Look)> {
    let notes = gateway.world.agenda.take();
    notes.into_iter().map(|note| (note, reap::look(&gateway.world, &note))).collect()
}

#[test]
fn a_new_session_is_noted_once_and_looked_at_when_its_time_may_be_up() {
    let mut gateway = Gateway::two_armed();
    gateway.sent_out(&request());
    let [(note, found)] = looks(&gateway)[..] else { panic!("one note") };
    assert_eq!(note.key(), key(&request()));
    let whole = ESTABLISHED * HZ + REFRESH + 1;
    assert_eq!(found, Look::Later(whole));
    gateway.pass(100 * HZ);
    gateway.sent_back(&reply());
    gateway.pass(300 * HZ);
    let look = || reap::look(&gateway.world, &note);
    assert_eq!(look(), Look::Later(whole - 300 * HZ), "by the answer that came");
    gateway.pass(whole - 300 * HZ);
    let look = || reap::look(&gateway.world, &note);
    assert_eq!(look(), Look::Over);
    assert!(reap::one(&gateway.world, request::EXPIRE, &note.key()));
    assert_eq!(look(), Look::Gone);
    gateway.sent_out(&request());
    assert_eq!(look(), Look::Gone, "the next one of the same key has a note of its own");
    assert_eq!(looks(&gateway).len(), 1);
}

#[test]
fn by_whatever_way_a_session_is_opened_it_is_noted_once() {
    let mut gateway = Gateway::two_armed();
    // By the general way, and between hosts that are known; with a segment size to clamp; from outside.
    for port in 5000..5003 {
        gateway.sent_out(&Packet::udp((HOST, port), TO));
        gateway.sent_out(&Packet::tcp((HOST, port), (REMOTE, 80), SYN));
    }
    let (sport, dport, options) = (6000, 80, vec![2, 4, 5, 180]);
    let syn = Payload::Tcp { sport, dport, flags: SYN, seq: 1, ack: 0, options };
    gateway.sent_out(&Packet { data: Vec::new(), ..Packet::new(HOST, REMOTE, syn) });
    gateway.sent_out(&Packet::ping((HOST, 77), REMOTE));
    gateway.sent_back(&Packet::tcp((REMOTE, 4000), (POOL, 443), SYN));
    gateway.sent_back(&Packet::udp((REMOTE, 4000), (POOL, 8000)));
    // Where ports are tracked.
    gateway.limit_ports(2000, 2063);
    for port in 2000..2064 {
        gateway.sent_out(&Packet::udp((OTHER_HOST, 7000 + port), (OTHER_REMOTE, 9)));
    }
    noted_once(&gateway, 74);

    // With a binding, by one that is there, from outside to one, and from one host to another.
    let mut gateway = Gateway::rfc();
    gateway.pool().filtering = pool::ENDPOINT_INDEPENDENT;
    gateway.sent_out(&request());
    gateway.sent_out(&Packet::udp(FROM, (OTHER_REMOTE, 53)));
    gateway.sent_back(&Packet::udp((OTHER_REMOTE, 99), (POOL, 5000)));
    assert_eq!(
        gateway.out(&Packet::udp((OTHER_HOST, 9), (POOL, 5000))).verdict(),
        Verdict::ToSource
    );
    noted_once(&gateway, 4);
}

/// There are so many sessions, and a note of each.
fn noted_once(gateway: &Gateway, sessions: usize) {
    let world = &gateway.world;
    let entries = world.sessions.borrow();
    let outbound = entries.iter().filter(|(_, session)| session.is_outbound());
    let mut outbound: Vec<_> = outbound.map(|(key, it)| Note::of(key, it.word())).collect();
    let mut noted = world.agenda.borrow().clone();
    assert_eq!(outbound.len(), sessions);
    let order = |note: &Note| bytemuck::cast::<_, [u64; 2]>(*note);
    outbound.sort_unstable_by_key(order);
    noted.sort_unstable_by_key(order);
    assert_eq!(noted, outbound);
}

#[test]
fn a_port_that_is_left_to_rest_is_noted_and_looked_at_when_it_has_rested() {
    let mut gateway = Gateway::two_armed();
    gateway.world.control.port_hold = 120 * HZ;
    gateway.sent_out(&request());
    gateway.world.agenda.take();
    gateway.pass(360 * HZ);
    assert_eq!(gateway.sweep(), 1);
    let [(note, found)] = looks(&gateway)[..] else { panic!("one note") };
    assert_eq!((note.key(), found), (key(&reply()), Look::Later(120 * HZ)));
    assert!(note.rests(), "so it is filed under the end of its rest");
    gateway.pass(120 * HZ);
    assert_eq!(reap::look(&gateway.world, &note), Look::Over);
    assert!(reap::one(&gateway.world, request::EXPIRE, &note.key()));
    assert_eq!(gateway.entries(), 0);
}

#[test]
fn ending_by_command_asks_for_no_time() {
    let gateway = Gateway::two_armed();
    gateway.sent_out(&request());
    assert!(reap::one(&gateway.world, request::END, &key(&request())));
    assert_eq!(gateway.entries(), 0);
    assert!(!reap::one(&gateway.world, request::END, &key(&request())), "there is nothing more");
}

#[test]
fn ended_sessions_give_back_what_their_host_is_counted_for() {
    let mut gateway = Gateway::two_armed();
    gateway.pool().sessions_per_host = 2;
    for round in 0..3 {
        for port in [5000, 5001] {
            gateway.sent_out(&Packet::udp((HOST, port), TO));
        }
        let third = Packet::udp((HOST, 5002), TO);
        assert_eq!(gateway.refused_out(&third), DropReason::SessionLimit, "round {round}");
        gateway.sent_out(&Packet::udp((OTHER_HOST, 6000), TO));
        gateway.sent_out(&Packet::ping((HOST, 5002), REMOTE));
        gateway.pass(400 * HZ);
        assert_eq!(gateway.sweep(), 4);
    }
}

#[test]
fn new_sessions_are_limited_by_the_second() {
    let mut gateway = Gateway::two_armed();
    gateway.pool().new_sessions_per_second_per_host = 3;
    for second in 0..3 {
        for port in 0..3 {
            gateway.sent_out(&Packet::udp((HOST, 5000 + 10 * second + port), TO));
        }
        let more = Packet::udp((HOST, 6000), TO);
        assert_eq!(gateway.refused_out(&more), DropReason::SessionRate);
        gateway.pass(HZ);
    }
}

#[test]
fn a_session_that_the_new_configuration_forbids_ends_and_the_others_go_on() {
    let mut gateway = Gateway::two_armed();
    gateway.sent_out(&request());
    let peer = Packet::udp((OTHER_HOST, 5000), (OTHER_REMOTE, 53));
    gateway.sent_out(&peer);
    gateway.world.exempt.push((crate::gateway::EXEMPTIONS, REMOTE, 32));
    gateway.world.control.generation += 1;
    gateway.world.control.epoch += 1;
    assert_eq!(gateway.out(&request()).verdict(), Verdict::ToHost, "exempt now");
    assert_eq!(gateway.refused_back(&reply()), DropReason::Unsolicited);
    gateway.sent_out(&peer);
    assert_eq!(gateway.entries(), 2);
}
