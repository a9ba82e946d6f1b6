//! Ticks of the dataplane as moments of the wall clock.

use jiff::{SignedDuration, Timestamp};

/// One moment on both clocks. Taken anew every second, so that a step of the wall clock is followed
/// and no drift adds up.
#[derive(Debug, Clone, Copy)]
pub struct Anchor {
    pub ticks: u32,
    pub wall: Timestamp,
    /// Ticks per second.
    pub hz: u32,
}

impl Anchor {
    /// When that was. Ticks wrap: what seems to be almost a whole round ago is a moment ahead.
    #[must_use]
    pub fn time(&self, ticks: u32) -> Timestamp {
        const AHEAD_SECONDS: u32 = 60;
        let hz = self.hz.max(1);
        let age = self.ticks.wrapping_sub(ticks);
        let age = if age > u32::MAX - hz * AHEAD_SECONDS {
            -i64::from(ticks.wrapping_sub(self.ticks))
        } else {
            i64::from(age)
        };
        let ago = SignedDuration::from_millis(age * 1000 / i64::from(hz));
        let moment = self.wall.checked_sub(ago).unwrap_or(self.wall);
        whole_milliseconds(moment)
    }
}

/// Ticks say no more than milliseconds.
#[must_use]
pub fn whole_milliseconds(moment: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(moment.as_millisecond()).unwrap_or(moment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn ticks_before_and_after_the_anchor_are_told_apart_across_the_wrap() {
        let anchor = Anchor { ticks: 100, wall: at("2026-01-01T00:00:10.0007Z"), hz: 250 };
        assert_eq!(anchor.time(100), at("2026-01-01T00:00:10Z"));
        assert_eq!(anchor.time(99), at("2026-01-01T00:00:09.996Z"));
        assert_eq!(anchor.time(100_u32.wrapping_sub(2500)), at("2026-01-01T00:00:00Z"));
        assert_eq!(anchor.time(350), at("2026-01-01T00:00:11Z"));
    }
}
