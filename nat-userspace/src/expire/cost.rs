//! What the sweep takes of its thread's time.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// What work has taken of this thread so far.
#[derive(Debug, Default)]
pub(super) struct Cost {
    pub(super) looks: usize,
    /// Those of them that the flow cache did not answer.
    pub(super) asked: usize,
    slices: u32,
    pub(super) cpu: Duration,
    longest: Duration,
    pub(super) ended: u64,
}

impl Cost {
    pub(super) fn add(&mut self, slice: Duration) {
        self.slices += 1;
        self.cpu += slice;
        self.longest = self.longest.max(slice);
    }

    /// `cargo xtask bench` reads these lines.
    pub(super) fn report(&self, work: &str, of: usize) {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        log::debug!(
            "{work}: {} of {of} entries, {:.3} ms of CPU in {} slices, the longest {:.3} ms, {} ended, {} \
             asked for",
            self.looks,
            milliseconds(self.cpu),
            self.slices,
            milliseconds(self.longest),
            self.ended,
            self.asked
        );
    }
}

/// Processor time of this thread; without it in the log where the kernel does not tell.
pub(super) fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}
