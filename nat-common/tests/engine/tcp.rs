//! The life of a TCP session (RFC 7857 section 2).

use nat_common::{
    host::packet::{Packet, ip, seen},
    session::State,
    verdict::{DropReason, Verdict},
};

use crate::gateway::{
    ACK, ESTABLISHED, FIN, Gateway, HOST, HZ, OTHER_HOST, POOL, REMOTE, RST, SYN, TRANSITORY,
};

const FROM: (nat_common::net::Ip4, u16) = (HOST, 5000);
const TO: (nat_common::net::Ip4, u16) = (REMOTE, 443);

fn segment(flags: u8) -> Packet {
    Packet::tcp(FROM, TO, flags)
}

fn answer(flags: u8) -> Packet {
    Packet::tcp(TO, (POOL, 5000), flags)
}

#[test]
fn both_directions_agree_on_the_state() {
    let gateway = Gateway::two_armed();
    let states = |gateway: &Gateway| (gateway.state(&segment(ACK)), gateway.state(&answer(ACK)));
    let both = |state| (Some(state), Some(state));
    gateway.sent_out(&segment(SYN));
    assert_eq!(states(&gateway), both(State::TcpOpeningOut));
    gateway.sent_back(&answer(SYN | ACK));
    assert_eq!(states(&gateway), both(State::TcpEstablished));
    gateway.sent_out(&segment(FIN | ACK));
    assert_eq!(states(&gateway), both(State::TcpFinOut));
    gateway.sent_back(&answer(ACK));
    assert_eq!(states(&gateway), both(State::TcpFinOut));
    gateway.sent_back(&answer(FIN | ACK));
    assert_eq!(states(&gateway), both(State::TcpClosing));
    gateway.sent_out(&segment(ACK));
    assert_eq!(states(&gateway), both(State::TcpClosing));
}

#[test]
fn attempts_establishments_and_the_gauge_are_counted() {
    let gateway = Gateway::two_armed();
    gateway.connect(FROM, TO);
    let totals = gateway.totals();
    assert_eq!((totals.connection_attempts, totals.connections_established), (1, 1));
    assert_eq!((totals.established_entered, totals.established_left), (1, 0));
    gateway.sent_out(&segment(FIN | ACK));
    assert_eq!(gateway.totals().established_left, 0, "half closed is still a connection");
    gateway.sent_back(&answer(FIN | ACK));
    let totals = gateway.totals();
    assert_eq!((totals.established_entered, totals.established_left), (1, 1));
}

#[test]
fn a_connection_that_is_only_opening_does_not_live_as_long_as_an_established_one() {
    let mut gateway = Gateway::two_armed();
    gateway.sent_out(&segment(SYN));
    gateway.pass((TRANSITORY + 1) * HZ);
    assert_eq!(gateway.refused_back(&answer(SYN | ACK)), DropReason::Unsolicited);
}

#[test]
fn a_fin_from_one_side_alone_changes_nothing_of_the_timeout() {
    let mut gateway = Gateway::two_armed();
    gateway.connect(FROM, TO);
    gateway.sent_out(&segment(FIN | ACK));
    gateway.pass((ESTABLISHED - 1) * HZ);
    gateway.sent_back(&answer(ACK));
}

#[test]
fn after_both_fins_the_session_is_transitory() {
    let mut gateway = Gateway::two_armed();
    gateway.connect(FROM, TO);
    gateway.sent_out(&segment(FIN | ACK));
    gateway.sent_back(&answer(FIN | ACK));
    gateway.pass((TRANSITORY + 1) * HZ);
    assert_eq!(gateway.refused_back(&answer(ACK)), DropReason::Unsolicited);
}

#[test]
fn a_reset_ends_a_connection_soon_and_data_brings_it_back() {
    let mut gateway = Gateway::two_armed();
    gateway.connect(FROM, TO);
    gateway.sent_back(&answer(RST));
    assert_eq!(gateway.state(&segment(ACK)), Some(State::TcpReset));
    gateway.sent_out(&segment(ACK));
    assert_eq!(gateway.state(&answer(ACK)), Some(State::TcpEstablished));
    gateway.sent_back(&answer(RST | ACK));
    gateway.pass((TRANSITORY + 1) * HZ);
    assert_eq!(gateway.refused_back(&answer(ACK)), DropReason::Unsolicited);
}

#[test]
fn a_new_connection_in_place_of_a_closed_one_keeps_its_port() {
    let gateway = Gateway::two_armed();
    gateway.connect(FROM, TO);
    gateway.sent_out(&segment(FIN | ACK));
    gateway.sent_back(&answer(FIN | ACK));
    assert_eq!(gateway.sent_out(&segment(SYN)).source(), (POOL, 5000));
    assert_eq!(gateway.state(&segment(ACK)), Some(State::TcpOpeningOut));
    assert_eq!(gateway.entries(), 2);
    let totals = gateway.totals();
    assert_eq!((totals.sessions_created, totals.sessions_ended), (2, 1));
}

#[test]
fn a_forged_syn_from_outside_ends_no_living_connection() {
    let gateway = Gateway::two_armed();
    gateway.connect(FROM, TO);
    gateway.sent_back(&answer(SYN));
    assert_eq!(gateway.state(&segment(ACK)), Some(State::TcpEstablished));
}

#[test]
fn a_simultaneous_open_is_a_connection() {
    let gateway = Gateway::two_armed();
    gateway.sent_out(&segment(SYN));
    gateway.sent_back(&answer(SYN));
    assert_eq!(gateway.state(&segment(ACK)), Some(State::TcpEstablished));
}

#[test]
fn a_forwarded_connection_lives_the_same_life() {
    let mut gateway = Gateway::two_armed();
    let (client, public, server) = ((REMOTE, 40000), (POOL, 443), (OTHER_HOST, 8443));
    gateway.sent_back(&Packet::tcp(client, public, SYN));
    assert_eq!(gateway.state(&Packet::tcp(server, client, ACK)), Some(State::TcpOpeningIn));
    gateway.sent_out(&Packet::tcp(server, client, SYN | ACK));
    assert_eq!(gateway.state(&Packet::tcp(client, public, ACK)), Some(State::TcpEstablished));
    assert_eq!(gateway.totals().connections_established, 1);
    gateway.sent_back(&Packet::tcp(client, public, FIN | ACK));
    gateway.sent_out(&Packet::tcp(server, client, FIN | ACK));
    gateway.pass((TRANSITORY + 1) * HZ);
    assert_eq!(gateway.refused_back(&Packet::tcp(client, public, ACK)), DropReason::Unsolicited);
    gateway.sent_back(&Packet::tcp(client, public, SYN));
    assert_eq!(gateway.entries(), 2);
}

#[test]
fn flag_combinations_that_no_sender_means_open_nothing_and_close_nothing() {
    let gateway = Gateway::two_armed();
    gateway.connect(FROM, TO);
    for flags in [0, FIN, SYN | FIN, SYN | RST, SYN | FIN | RST | ACK, RST | FIN, 8, 32] {
        assert_eq!(gateway.refused_out(&segment(flags)), DropReason::MalformedTcp, "{flags:#x}");
        let new = Packet::tcp((ip(10, 0, 0, 7), 1), TO, flags);
        assert_eq!(gateway.refused_out(&new), DropReason::MalformedTcp, "{flags:#x}");
        let run = gateway.back(&answer(flags));
        assert!(matches!(run.verdict(), Verdict::Drop(_)), "{flags:#x}");
    }
    assert_eq!(gateway.state(&segment(ACK)), Some(State::TcpEstablished));
    assert_eq!(gateway.entries(), 2);
}

#[test]
fn retransmitted_syns_keep_no_dead_session_alive() {
    let mut gateway = Gateway::two_armed();
    gateway.sent_out(&segment(SYN));
    for _ in 0..4 {
        gateway.pass(TRANSITORY / 4 * HZ);
        gateway.sent_out(&segment(SYN));
    }
    gateway.pass(HZ);
    assert_eq!(gateway.refused_back(&answer(SYN | ACK)), DropReason::Unsolicited);
}

#[test]
fn repeated_resets_keep_no_dead_session_alive() {
    let mut gateway = Gateway::two_armed();
    gateway.connect(FROM, TO);
    gateway.sent_out(&segment(RST));
    for _ in 0..4 {
        gateway.pass(TRANSITORY / 4 * HZ);
        gateway.sent_back(&answer(RST));
    }
    gateway.pass(HZ);
    assert_eq!(gateway.refused_back(&answer(ACK)), DropReason::Unsolicited);
}

#[test]
fn a_reset_or_a_fin_from_outside_alone_ends_nothing() {
    for flags in [RST, RST | ACK, FIN | ACK] {
        let mut gateway = Gateway::two_armed();
        gateway.connect(FROM, TO);
        gateway.sent_back(&answer(flags));
        gateway.sent_out(&segment(ACK));
        gateway.pass((ESTABLISHED - 1) * HZ);
        gateway.sent_back(&answer(ACK));
        assert_eq!(gateway.entries(), 2, "{flags:#x}");
    }
}

#[test]
fn a_half_closed_connection_goes_on_in_the_other_direction() {
    for outward in [true, false] {
        let mut gateway = Gateway::two_armed();
        gateway.connect(FROM, TO);
        if outward {
            gateway.sent_out(&segment(FIN | ACK));
        } else {
            gateway.sent_back(&answer(FIN | ACK));
        }
        for _ in 0..3 {
            gateway.pass((ESTABLISHED - 1) * HZ);
            if outward {
                gateway.sent_back(&answer(ACK));
                gateway.sent_out(&segment(ACK));
            } else {
                gateway.sent_out(&segment(ACK));
                gateway.sent_back(&answer(ACK));
            }
        }
    }
}

#[test]
fn a_syn_on_a_live_session_does_not_demote_it() {
    let mut gateway = Gateway::two_armed();
    gateway.connect(FROM, TO);
    assert_eq!(gateway.sent_out(&segment(SYN)).source(), (POOL, 5000));
    assert_eq!(gateway.state(&answer(ACK)), Some(State::TcpEstablished));
    gateway.pass((ESTABLISHED - 1) * HZ);
    gateway.sent_back(&answer(ACK));
}

#[test]
fn a_syn_after_a_reset_begins_a_new_connection_in_its_place() {
    let gateway = Gateway::two_armed();
    gateway.connect(FROM, TO);
    gateway.sent_back(&answer(RST));
    assert_eq!(gateway.sent_out(&segment(SYN)).source(), (POOL, 5000));
    assert_eq!(gateway.state(&answer(ACK)), Some(State::TcpOpeningOut));
    assert_eq!(gateway.totals().sessions_created, 2);
}

#[test]
fn a_connection_opened_by_both_ends_lives_as_long_as_any() {
    let mut gateway = Gateway::two_armed();
    gateway.sent_out(&segment(SYN));
    gateway.sent_back(&answer(SYN));
    gateway.sent_out(&segment(SYN | ACK));
    gateway.sent_back(&answer(SYN | ACK));
    gateway.pass((ESTABLISHED - 1) * HZ);
    gateway.sent_back(&answer(ACK));
    assert_eq!(gateway.totals().connections_established, 1);
}

#[test]
fn a_segment_from_the_middle_of_a_connection_opens_no_session() {
    for gateway in [Gateway::two_armed(), Gateway::one_armed(), Gateway::rfc()] {
        for flags in [ACK, SYN | ACK, FIN | ACK, RST, RST | ACK] {
            let run = gateway.out(&segment(flags));
            assert!(matches!(run.verdict(), Verdict::Answered | Verdict::Drop(_)), "{flags:#x}");
            // To a forward, too.
            let inward = Packet::tcp(TO, (POOL, 443), flags);
            assert_eq!(gateway.refused_back(&inward), DropReason::Unsolicited, "{flags:#x}");
        }
        assert_eq!(gateway.entries(), 0);
    }
}

#[test]
fn a_segment_for_an_expired_session_is_reset_in_profile_aws_and_dropped_in_rfc() {
    let mut gateway = Gateway::two_armed();
    gateway.connect(FROM, TO);
    gateway.pass((ESTABLISHED + 1) * HZ);
    let run = gateway.out(&segment(ACK));
    assert_eq!(run.verdict(), Verdict::Answered);
    let reset = seen(&run.frame);
    assert_eq!((reset.source(), reset.destination()), (TO, FROM));
    assert_eq!(reset.tcp_flags(), RST);
    assert_eq!(reset.body[4..8], 2000_u32.to_be_bytes(), "the number that the segment expects");
    let totals = gateway.totals();
    assert_eq!((totals.sessions_ended, gateway.entries()), (1, 0));

    let mut gateway = Gateway::rfc();
    gateway.connect(FROM, TO);
    gateway.pass((ESTABLISHED + 1) * HZ);
    assert_eq!(gateway.refused_out(&segment(ACK)), DropReason::TcpNoSession);
}
