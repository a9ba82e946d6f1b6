//! When an entry of the session table is over, and when it is to be looked at.

use nat_common::{
    rules::Control,
    session::{SessionImage, State, protocol_index},
    stage::end,
};

/// What a walk makes of an entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// Its own time is up; the other half may still hold the session.
    Over,
    /// To be looked at after so many ticks.
    Left(u32),
    /// The other half stands for both.
    Other,
}

pub(super) fn judge(control: &Control, session: &SessionImage, now: u32) -> Judged {
    let word = session.word();
    if word.state() == State::Dead {
        if session.is_outbound() {
            return Judged::Other;
        }
        let age = now.wrapping_sub(word.seen());
        let age = if age > u32::MAX / 2 { 0 } else { age };
        return match control.port_hold.saturating_sub(age) {
            0 => Judged::Over,
            left => Judged::Left(left),
        };
    }
    match end::left(control, word, now) {
        0 => Judged::Over,
        _ if !session.is_outbound() => Judged::Other,
        left => Judged::Left(left),
    }
}

/// Whether one time is later than another; ticks wrap.
pub(super) const fn is_later(one: u32, other: u32) -> bool {
    let by = one.wrapping_sub(other);
    by != 0 && by < u32::MAX / 2
}

/// Seconds that are over after so many ticks.
pub(super) const fn seconds(control: &Control, ticks: u32) -> u64 {
    let hz = if control.hz == 0 { 1 } else { control.hz };
    ticks.div_ceil(hz) as u64
}

/// The shortest timeouts that sessions of a protocol can come to have, in ticks: tcp, udp, icmp.
pub(super) struct Shortest([u32; 3]);

impl Shortest {
    pub(super) fn new(control: &Control) -> Self {
        let of = |state: State| control.timeouts[state as usize];
        let tcp = &control.timeouts[State::TcpOpeningOut as usize..State::Dead as usize];
        let tcp = tcp.iter().copied().filter(|ticks| *ticks > 0).min().unwrap_or(0);
        let ticks = [tcp, of(State::Udp), of(State::Icmp)];
        Self(ticks.map(|ticks| ticks.saturating_add(control.refresh)))
    }

    pub(super) const fn of(&self, protocol: u8) -> u32 {
        self.0[protocol_index(protocol)]
    }

    /// What is left of it for a session that was seen then.
    pub(super) const fn left(&self, protocol: u8, seen: u32, now: u32) -> u32 {
        let age = now.wrapping_sub(seen);
        // A packet on another CPU a moment ago is seen in the future.
        self.of(protocol).saturating_sub(if age > u32::MAX / 2 { 0 } else { age })
    }
}

/// When a session that was noted a second or two ago is to be looked at first, in seconds from now.
/// Where the contract allows no more than two beyond the timeout, these two are taken off.
pub(super) fn first_look(control: &Control, shortest: u32) -> u64 {
    match seconds(control, shortest) {
        short @ 0..40 => short.saturating_sub(2),
        long => long,
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use nat_common::{
        net::proto,
        session::{Word, flags},
    };

    use super::*;
    use crate::expire::tests::{HZ, control};

    fn session(state: State, seen: u32, flags: u8) -> SessionImage {
        SessionImage { word: Word::new(state, 0, seen).0, flags, ..SessionImage::zeroed() }
    }

    #[test]
    fn a_session_is_over_after_its_timeout_and_not_before() {
        let control = control(60);
        let seen = u32::MAX - 100; // the ticks wrap in between
        let session = session(State::Udp, seen, flags::OUTBOUND);
        let last = seen.wrapping_add(60 * HZ + HZ / 4);
        let whole = 60 * HZ + HZ / 4 + 1;
        assert_eq!(judge(&control, &session, seen), Judged::Left(whole));
        assert_eq!(judge(&control, &session, last), Judged::Left(1));
        assert_eq!(judge(&control, &session, last.wrapping_add(1)), Judged::Over);
    }

    #[test]
    fn a_packet_seen_a_moment_ahead_of_this_clock_keeps_its_session() {
        let session = session(State::Udp, 1001, flags::OUTBOUND);
        assert_eq!(judge(&control(1), &session, 1000), Judged::Left(HZ + HZ / 4 + 1));
    }

    #[test]
    fn a_half_that_answers_come_by_is_judged_with_the_other_unless_its_time_is_up() {
        let control = control(60);
        let inbound = session(State::Udp, 1000, 0);
        assert_eq!(judge(&control, &inbound, 1000), Judged::Other);
        assert_eq!(judge(&control, &inbound, 1000 + 61 * HZ), Judged::Over);
    }

    #[test]
    fn a_port_at_rest_is_over_when_its_hold_is() {
        let control = Control { port_hold: 120 * HZ, ..control(60) };
        let inbound = session(State::Dead, 1000, 0);
        assert_eq!(judge(&control, &inbound, 1000 + 120 * HZ - 1), Judged::Left(1));
        assert_eq!(judge(&control, &inbound, 1000 + 120 * HZ), Judged::Over);
    }

    #[test]
    fn nothing_is_filed_further_away_than_the_shortest_timeout_that_it_may_come_to() {
        let mut control = control(350);
        let states = State::TcpOpeningOut as usize..State::Dead as usize;
        control.timeouts[states].fill(60 * HZ);
        control.timeouts[State::TcpEstablished as usize] = 7440 * HZ;
        let shortest = Shortest::new(&control);
        assert_eq!(shortest.of(proto::TCP), 60 * HZ + HZ / 4);
        assert_eq!(shortest.of(proto::UDP), 350 * HZ + HZ / 4);
    }

    #[test]
    fn the_first_look_comes_no_later_than_the_contract_allows() {
        let of = |timeout: u32| {
            let control = control(timeout);
            first_look(&control, Shortest::new(&control).of(proto::UDP))
        };
        for timeout in [1, 2, 5, 20, 38, 39, 60, 350] {
            // Noted up to two seconds ago, and looked at within the second.
            let latest = of(timeout) + 3;
            let allowed = u64::from(timeout + (timeout / 10).max(2)) + 1;
            assert!(latest <= allowed, "{timeout}: {latest}");
        }
    }
}
