//! What keeps a session, what does not, and what never ends one.

use nat_common::{
    host::packet::{Endpoint, Packet},
    session::State,
    verdict::{DropReason, Verdict},
};

use crate::gateway::{
    ACK, ESTABLISHED, FIN, Gateway, HOST, HZ, POOL, REMOTE, ROUTER, RST, SYN, TRANSITORY,
};

const FROM: Endpoint = (HOST, 5000);
const TO: Endpoint = (REMOTE, 80);
const PUBLIC: Endpoint = (POOL, 5000);

fn segment(flags: u8) -> Packet {
    Packet::tcp(FROM, TO, flags)
}

fn answer(flags: u8) -> Packet {
    Packet::tcp(TO, PUBLIC, flags)
}

/// What a host sends, its answer as it comes to the public side, and as the host gets it; with
/// the seconds that such a session lives.
fn exchanges() -> [(Packet, Packet, Packet, u32); 3] {
    [
        (Packet::udp(FROM, TO), Packet::udp(TO, PUBLIC), Packet::udp(TO, FROM), ESTABLISHED),
        (segment(ACK), answer(ACK), Packet::tcp(TO, FROM, ACK), ESTABLISHED),
        (
            Packet::ping(FROM, TO.0),
            Packet::pong(TO.0, PUBLIC),
            Packet::pong(TO.0, FROM),
            TRANSITORY,
        ),
    ]
}

/// The same packet, as it left by the public side.
fn outside_of(packet: &Packet) -> Packet {
    match packet.protocol() {
        17 => Packet::udp(PUBLIC, TO),
        6 => Packet::tcp(PUBLIC, TO, ACK),
        _ => Packet::ping(PUBLIC, TO.0),
    }
}

fn open(gateway: &Gateway, request: &Packet, reply: &Packet) {
    if request.protocol() == 6 {
        gateway.connect(FROM, TO);
    } else {
        gateway.sent_out(request);
    }
    gateway.sent_back(reply);
}

#[test]
fn errors_of_either_side_neither_refresh_nor_end_a_session_of_any_protocol() {
    for (request, reply, received, lives) in exchanges() {
        for from_outside in [true, false] {
            let mut gateway = Gateway::two_armed();
            open(&gateway, &request, &reply);
            for (kind, code) in [(3, 0), (3, 1), (3, 2), (3, 3), (3, 13), (11, 0), (12, 0)] {
                gateway.pass(lives * HZ / 8);
                if from_outside {
                    let quoted = outside_of(&request).packet();
                    gateway.sent_back(&Packet::error(ROUTER, POOL, kind, code, &quoted, 28));
                } else {
                    let quoted = received.packet();
                    gateway.sent_out(&Packet::error(HOST, REMOTE, kind, code, &quoted, 28));
                }
            }
            // Seven eighths of its time are over, and it is as alive as it would be without them.
            let state = gateway.state(&request).map(State::name);
            assert_eq!(state, gateway.state(&reply).map(State::name));
            gateway.pass(lives * HZ / 8 + HZ);
            let quoted = outside_of(&request).packet();
            let late = Packet::error(ROUTER, POOL, 3, 3, &quoted, 28);
            assert_eq!(gateway.refused_back(&late), DropReason::Unsolicited);
            assert_eq!(gateway.sweep(), 1, "and no later than without them");
        }
    }
}

#[test]
fn a_session_that_was_told_of_an_error_goes_on() {
    for (request, reply, _, _) in exchanges() {
        let gateway = Gateway::two_armed();
        open(&gateway, &request, &reply);
        let quoted = outside_of(&request).packet();
        for code in 0..=15 {
            gateway.sent_back(&Packet::error(ROUTER, POOL, 3, code, &quoted, 28));
        }
        gateway.sent_out(&request);
        gateway.sent_back(&reply);
        assert_eq!(gateway.totals().sessions_created, 1);
    }
}

#[test]
fn what_the_filtering_refuses_refreshes_nothing() {
    let mut gateway = Gateway::rfc();
    let request = Packet::udp(FROM, TO);
    let public = gateway.sent_out(&request).source();
    let stranger = Packet::udp((ROUTER, 80), public);
    for _ in 0..7 {
        gateway.pass(ESTABLISHED * HZ / 8);
        assert_eq!(gateway.refused_back(&stranger), DropReason::FilteredEndpoint);
    }
    gateway.pass(ESTABLISHED * HZ / 8 + HZ);
    assert_eq!(gateway.sweep(), 1);
}

#[test]
fn resets_refresh_nothing_whoever_repeats_them() {
    for from_outside in [true, false] {
        let mut gateway = Gateway::two_armed();
        gateway.connect(FROM, TO);
        let reset = |gateway: &Gateway| {
            if from_outside {
                gateway.sent_back(&answer(RST));
            } else {
                gateway.sent_out(&segment(RST));
            }
        };
        reset(&gateway);
        for _ in 0..5 {
            gateway.pass(TRANSITORY * HZ / 6);
            reset(&gateway);
        }
        gateway.pass(TRANSITORY * HZ / 6 + HZ);
        assert_eq!(gateway.sweep(), 1);
    }
}

#[test]
fn syns_that_are_sent_again_keep_no_dead_session_alive() {
    // Unanswered ones, and a peer that has forgotten the connection.
    for established in [false, true] {
        for from_outside in [false, true] {
            let mut gateway = Gateway::two_armed();
            gateway.sent_out(&segment(SYN));
            let lives = if established { ESTABLISHED } else { TRANSITORY };
            if established {
                gateway.sent_back(&answer(SYN | ACK));
                gateway.sent_out(&segment(ACK));
            } else if from_outside {
                continue;
            }
            for _ in 0..5 {
                gateway.pass(lives * HZ / 6);
                if from_outside {
                    gateway.sent_back(&answer(SYN));
                } else {
                    gateway.sent_out(&segment(SYN));
                }
            }
            gateway.pass(lives * HZ / 6 + HZ);
            assert_eq!(gateway.sweep(), 1, "established: {established}, {from_outside}");
        }
    }
}

#[test]
fn nothing_that_can_be_forged_from_outside_ends_a_connection() {
    for forged in [
        &[RST][..],
        &[RST, SYN],
        &[RST | ACK, SYN, RST, SYN],
        &[FIN | ACK],
        &[FIN | ACK, RST, SYN],
        &[FIN | ACK, FIN | ACK, RST, SYN, SYN],
        &[SYN, SYN | ACK, FIN | ACK, RST],
    ] {
        let gateway = Gateway::two_armed();
        gateway.connect(FROM, TO);
        for flags in forged {
            gateway.back(&answer(*flags));
        }
        let next = gateway.out(&segment(ACK));
        assert_eq!(next.verdict(), Verdict::ToDestination, "after {forged:?}: {:?}", next.stages);
        gateway.sent_back(&answer(ACK));
        assert_eq!(gateway.totals().sessions_created, 1, "after {forged:?}");
    }
}

#[test]
fn a_server_that_is_called_again_after_a_reset_is_reached() {
    let gateway = Gateway::two_armed();
    let (client, public) = ((REMOTE, 40000), (POOL, 443));
    let server = (crate::gateway::OTHER_HOST, 8443);
    for _ in 0..3 {
        gateway.sent_back(&Packet::tcp(client, public, SYN));
        gateway.sent_out(&Packet::tcp(server, client, SYN | ACK));
        gateway.sent_back(&Packet::tcp(client, public, ACK));
        assert_eq!(gateway.state(&Packet::tcp(client, public, ACK)), Some(State::TcpEstablished));
        gateway.sent_back(&Packet::tcp(client, public, RST));
    }
}

#[test]
fn a_reset_is_translated_in_every_state_of_a_connection() {
    let steps: [&[(bool, u8)]; 6] = [
        &[(true, SYN)],
        &[(true, SYN), (false, SYN | ACK)],
        &[(true, SYN), (false, SYN | ACK), (true, ACK)],
        &[(true, SYN), (false, SYN | ACK), (true, FIN | ACK)],
        &[(true, SYN), (false, SYN | ACK), (false, FIN | ACK)],
        &[(true, SYN), (false, SYN | ACK), (true, FIN | ACK), (false, FIN | ACK)],
    ];
    for walk in steps {
        for flags in [RST, RST | ACK] {
            let gateway = Gateway::two_armed();
            for (outbound, flags) in walk {
                if *outbound {
                    gateway.sent_out(&segment(*flags));
                } else {
                    gateway.sent_back(&answer(*flags));
                }
            }
            assert_eq!(gateway.sent_back(&answer(flags)).destination(), FROM, "{walk:?}");
            assert_eq!(gateway.sent_out(&segment(flags)).source(), PUBLIC, "{walk:?}");
        }
    }
}
