//! `natgw top`: looks at a gateway, made into what is shown.

pub mod app;
pub mod view;

use std::time::Duration;

use serde::Serialize;

use crate::api::top::Top;

/// What moved between two looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Rates {
    /// Towards destinations.
    pub packets_per_second_out: u64,
    pub bits_per_second_out: u64,
    /// Towards private hosts.
    pub packets_per_second_in: u64,
    pub bits_per_second_in: u64,
    pub new_sessions_per_second: u64,
    pub drops_per_second: u64,
}

impl Rates {
    #[must_use]
    pub fn between(before: &Top, now: &Top, elapsed: Duration) -> Self {
        let rate = |of: fn(&Top) -> u64| per_second(of(before), of(now), elapsed);
        Self {
            packets_per_second_out: rate(|it| it.counters.packets_out_to_destination),
            bits_per_second_out: rate(|it| it.counters.bytes_out_to_destination) * 8,
            packets_per_second_in: rate(|it| it.counters.packets_out_to_source),
            bits_per_second_in: rate(|it| it.counters.bytes_out_to_source) * 8,
            new_sessions_per_second: rate(|it| it.sessions_created),
            drops_per_second: rate(|it| it.counters.packets_drop_count),
        }
    }
}

/// Counters that have begun anew moved by nothing.
fn per_second(before: u64, now: u64, elapsed: Duration) -> u64 {
    let difference = u128::from(now.saturating_sub(before));
    u64::try_from(difference * 1000 / elapsed.as_millis().max(1)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_what_moved_a_second_and_a_reset_counter_moves_nothing() {
        let mut before = Top { sessions_created: 10, ..Top::default() };
        let mut now = Top { sessions_created: 30, ..Top::default() };
        before.counters.bytes_out_to_destination = 1000;
        now.counters.bytes_out_to_destination = 2000;
        before.counters.packets_drop_count = 9;
        let rates = Rates::between(&before, &now, Duration::from_secs(2));
        assert_eq!((rates.new_sessions_per_second, rates.bits_per_second_out), (10, 4000));
        assert_eq!(rates.drops_per_second, 0);
    }
}
