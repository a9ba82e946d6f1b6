//! A walk over the whole session table, as slow as is safe.

use std::time::Duration;

use nat_common::rules::Control;

use super::{TICK, cost::Cost};
use crate::datapath::{BATCH, SessionBatches};

/// However long the timeouts, a walk takes no longer: resting ports and flushed tables wait for it.
const LONGEST_WALK: Duration = Duration::from_secs(10);

/// A walk over the whole table.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) batches: SessionBatches,
    /// Entries that it may meet: those of the last one, and what has come since.
    pub(super) expected: usize,
    /// Entries so far, and of them in the current second.
    pub(super) met: usize,
    pub(super) met_in_tick: usize,
    /// Ticks when it began: who came later is noted.
    pub(super) began: u32,
    pub(super) cost: Cost,
}

impl Walk {
    /// Whether this second has time for more of it.
    pub(super) fn has_time(&self, control: &Control) -> bool {
        self.met_in_tick < share(self.expected, walk_time(control))
    }
}

/// How long one walk over all sessions may take, so that none outlives its time by more than the
/// larger of a tenth of it and 2 s.
fn walk_time(control: &Control) -> Duration {
    let hz = control.hz.max(1);
    let timeouts = control.timeouts.iter().filter(|timeout| **timeout > 0);
    let shortest = timeouts.min().map_or(0, |timeout| timeout / hz);
    // Two seconds for the refresh interval, the call's own second, and the slices themselves.
    let slack = u64::from(shortest / 10).max(2);
    Duration::from_secs(slack.saturating_sub(2)).clamp(TICK, LONGEST_WALK)
}

/// Entries of one second, for a table of `size` to be walked in `time`: at least a few batches, so
/// that a small table is walked at once. A walk of one second has no limit.
fn share(size: usize, time: Duration) -> usize {
    if time <= TICK {
        return usize::MAX;
    }
    (size / time.as_secs().max(1) as usize).max(16 * BATCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expire::tests::control;

    #[test]
    fn a_walk_is_as_slow_as_the_shortest_timeout_allows() {
        assert_eq!(walk_time(&control(1)), Duration::from_secs(1));
        assert_eq!(walk_time(&control(60)), Duration::from_secs(4));
        assert_eq!(walk_time(&control(7440)), LONGEST_WALK);
    }

    #[test]
    fn a_second_does_its_share_of_a_large_table_and_all_of_a_small_one() {
        assert_eq!(share(4_000_000, Duration::from_secs(4)), 1_000_000);
        assert_eq!(share(100, Duration::from_secs(4)), 16 * BATCH);
        assert_eq!(share(4_000_000, Duration::from_secs(1)), usize::MAX);
    }
}
