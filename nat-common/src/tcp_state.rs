//! TCP session states (RFC 7857 section 2, after RFC 6146 section 3.5.2).
//!
//! The gateway does not check sequence numbers, so nothing that a third party could forge ends a
//! session: a RST or FIN from one side shortens or changes nothing until the other side agrees,
//! and data after a RST brings the session back.

use crate::{parse::tcp_flags, session::State};

/// The state after a segment. `outbound`: from the private side.
#[inline(always)]
pub const fn next(state: State, outbound: bool, flags: u8) -> State {
    use State::{
        TcpClosing, TcpEstablished, TcpFinIn, TcpFinOut, TcpOpeningIn, TcpOpeningOut, TcpReset,
    };
    if flags & tcp_flags::RST != 0 {
        return match state {
            // A refused connection: it is over for both sides, and stays transitory anyway.
            TcpEstablished | TcpFinOut | TcpFinIn => TcpReset,
            _ => state,
        };
    }
    if flags & tcp_flags::SYN != 0 {
        return match state {
            TcpOpeningOut if !outbound => TcpEstablished,
            TcpOpeningIn if outbound => TcpEstablished,
            _ => state,
        };
    }
    if flags & tcp_flags::FIN != 0 {
        return match (state, outbound) {
            (TcpEstablished | TcpReset, true) => TcpFinOut,
            (TcpEstablished | TcpReset, false) => TcpFinIn,
            (TcpFinIn, true) | (TcpFinOut, false) => TcpClosing,
            _ => state,
        };
    }
    match state {
        TcpReset => TcpEstablished,
        _ => state,
    }
}

/// Whether a pure SYN on a session in this state starts a new connection in its place. After a
/// reset only one from inside: reset and SYN from outside may both be forged. Such a SYN goes
/// through the session as it is, and what both sides make of it decides.
#[inline(always)]
pub const fn is_over(state: State, outbound: bool) -> bool {
    matches!(state, State::TcpClosing) || (outbound && matches!(state, State::TcpReset))
}

/// Whether the contract's gauge of active connections counts it.
#[inline(always)]
pub const fn is_established(state: State) -> bool {
    matches!(state, State::TcpEstablished | State::TcpFinOut | State::TcpFinIn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::tcp_flags::{ACK, FIN, RST, SYN};

    #[test]
    fn a_handshake_opens_from_either_side() {
        assert_eq!(next(State::TcpOpeningOut, false, SYN | ACK), State::TcpEstablished);
        assert_eq!(next(State::TcpOpeningIn, true, SYN | ACK), State::TcpEstablished);
    }

    #[test]
    fn a_simultaneous_open_is_an_open() {
        assert_eq!(next(State::TcpOpeningOut, false, SYN), State::TcpEstablished);
    }

    #[test]
    fn a_retransmitted_syn_changes_nothing() {
        assert_eq!(next(State::TcpOpeningOut, true, SYN), State::TcpOpeningOut);
        assert_eq!(next(State::TcpEstablished, true, SYN), State::TcpEstablished);
        assert_eq!(next(State::TcpEstablished, false, SYN), State::TcpEstablished);
    }

    #[test]
    fn a_fin_from_one_side_leaves_the_other_half_open() {
        let half = next(State::TcpEstablished, true, FIN | ACK);
        assert_eq!(half, State::TcpFinOut);
        assert!(is_established(half));
        assert_eq!(next(half, true, FIN | ACK), half);
        assert_eq!(next(half, false, FIN | ACK), State::TcpClosing);
    }

    #[test]
    fn data_after_a_reset_brings_the_session_back() {
        let reset = next(State::TcpEstablished, false, RST);
        assert_eq!(reset, State::TcpReset);
        assert_eq!(next(reset, true, ACK), State::TcpEstablished);
        assert_eq!(next(reset, false, RST), State::TcpReset);
    }
}
