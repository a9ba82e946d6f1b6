//! The flow log hears of every session once when it opens and once when it ends, with its sums.

use nat_common::{
    flow::Tuple,
    host::packet::{Endpoint, Packet},
    net::Port,
    record::{FlowRecord, kind},
    rules::control,
    session::State,
    stage::{reap, request as op},
};

use crate::gateway::{ESTABLISHED, Gateway, HOST, HZ, POOL, REMOTE, key};

const FROM: Endpoint = (HOST, 5000);
const TO: Endpoint = (REMOTE, 53);

fn logging() -> Gateway {
    let mut gateway = Gateway::two_armed();
    gateway.world.control.flags |= control::LOG_OPENED | control::LOG_ENDED;
    gateway
}

fn taken(gateway: &Gateway) -> Vec<FlowRecord> {
    gateway.world.records.take()
}

#[test]
fn the_record_of_a_sessions_end_has_the_sums_of_both_directions() {
    let mut gateway = logging();
    let (request, reply) = (Packet::udp(FROM, TO), Packet::udp(TO, (POOL, 5000)));
    let opened_at = gateway.world.now.get();
    for _ in 0..3 {
        gateway.sent_out(&request);
    }
    let [opened]: [FlowRecord; 1] = taken(&gateway).try_into().expect("one record");
    assert_eq!((opened.kind, opened.state), (kind::OPENED, State::Udp as u8));
    assert_eq!((opened.key, opened.created), (key(&request), opened_at));
    let public = Tuple { src: POOL, dst: REMOTE, sport: Port::new(5000), dport: Port::new(53) };
    assert_eq!(opened.tuple, public);

    gateway.pass(10 * HZ);
    for _ in 0..2 {
        gateway.sent_back(&reply);
    }
    let last = gateway.world.now.get();
    gateway.pass((ESTABLISHED + 2) * HZ);
    assert_eq!(gateway.sweep(), 1);
    let [ended]: [FlowRecord; 1] = taken(&gateway).try_into().expect("one record");
    let length = request.packet().len() as u64;
    assert_eq!((ended.kind, ended.idle), (kind::ENDED, 1));
    assert_eq!((ended.packets_out, ended.packets_in), (3, 2));
    assert_eq!((ended.bytes_out, ended.bytes_in), (3 * length, 2 * length));
    assert_eq!((ended.created, ended.seen), (opened_at, last));
    assert_eq!(
        (ended.key, ended.tuple, ended.now),
        (key(&request), public, gateway.world.now.get())
    );
}

#[test]
fn a_session_that_a_command_ends_is_not_told_as_idle() {
    let gateway = logging();
    let request = Packet::udp(FROM, TO);
    gateway.sent_out(&request);
    taken(&gateway);
    assert!(reap::one(&gateway.world, op::END, &key(&request)));
    assert_eq!(
        taken(&gateway).iter().map(|it| (it.kind, it.idle)).collect::<Vec<_>>(),
        [(kind::ENDED, 0)]
    );
}

#[test]
fn without_a_log_nothing_is_told_and_nothing_is_lost() {
    let mut gateway = Gateway::two_armed();
    gateway.sent_out(&Packet::udp(FROM, TO));
    gateway.pass((ESTABLISHED + 2) * HZ);
    assert_eq!(gateway.sweep(), 1);
    assert_eq!(taken(&gateway), []);
    assert_eq!(gateway.totals().records_lost, 0);
}

#[test]
fn a_record_without_room_is_counted_and_the_packet_goes_its_way() {
    let mut gateway = logging();
    gateway.world.record_capacity = 1;
    gateway.sent_out(&Packet::udp(FROM, TO));
    gateway.sent_out(&Packet::udp((HOST, 5001), TO));
    assert_eq!(taken(&gateway).len(), 1);
    assert_eq!(gateway.totals().records_lost, 1);
}
