//! The peak gauges: the highest 10-second average within the last minute.

use std::collections::VecDeque;

/// Seconds over which is averaged.
const WINDOW: usize = 10;
/// Windows that ended within the last minute, and the start of the oldest of them.
const SAMPLES: usize = 60 + WINDOW;

/// Totals at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) bytes: u64,
    pub(super) packets: u64,
}

/// One sample a second.
#[derive(Debug, Default)]
pub(super) struct Peaks {
    samples: VecDeque<Totals>,
}

impl Peaks {
    pub(super) fn sample(&mut self, totals: Totals) {
        if self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(totals);
    }

    /// Per second. Before the first ten seconds are over, the time before the first sample counts
    /// as silent.
    pub(super) fn highest(&self) -> Totals {
        let mut highest = Totals::default();
        for (end, last) in self.samples.iter().enumerate() {
            let begin = end.saturating_sub(WINDOW);
            // The oldest windows of a full buffer are cut off at its start: not whole, not counted.
            if end < WINDOW && self.samples.len() > SAMPLES {
                continue;
            }
            let first = self.samples[begin];
            let average = |last: u64, first: u64| last.saturating_sub(first) / WINDOW as u64;
            highest.bytes = highest.bytes.max(average(last.bytes, first.bytes));
            highest.packets = highest.packets.max(average(last.packets, first.packets));
        }
        highest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: impl IntoIterator<Item = u64>) -> Totals {
        let mut peaks = Peaks::default();
        let mut packets = 0;
        peaks.sample(Totals::default());
        for in_this_second in seconds {
            packets += in_this_second;
            peaks.sample(Totals { bytes: 100 * packets, packets });
        }
        peaks.highest()
    }

    #[test]
    fn a_steady_rate_is_its_own_peak() {
        assert_eq!(after([50; 90]), Totals { bytes: 5000, packets: 50 });
    }

    #[test]
    fn a_burst_counts_by_its_ten_second_average_for_a_minute_and_not_longer() {
        let burst = |quiet_after| [vec![0; 20], vec![1000], vec![0; quiet_after]].concat();
        assert_eq!(after(burst(0)).packets, 100);
        assert_eq!(after(burst(59)).packets, 100);
        assert_eq!(after(burst(75)).packets, 0);
    }

    #[test]
    fn the_first_seconds_are_averaged_over_ten_as_well() {
        assert_eq!(after([100, 100]).packets, 20);
    }
}
