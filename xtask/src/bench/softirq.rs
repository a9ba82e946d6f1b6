//! The kernel thread that takes over where softirqs run long. `BPF_PROG_TEST_RUN` stops its clock
//! while it lets other threads run, so what this thread did is missing in the time that it returns.

use std::{fs, time::Duration};

/// Processor time so far of the softirq thread of the CPU that this thread runs on; zero where the
/// kernel does not tell.
pub(super) fn thread_time() -> Duration {
    read().unwrap_or_default()
}

fn read() -> Option<Duration> {
    let name = format!("ksoftirqd/{}", nix::sched::sched_getcpu().ok()?);
    // Kernel threads are made at boot, so theirs are among the lowest numbers.
    let mut threads: Vec<u32> = fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    threads.sort_unstable();
    let thread = threads.into_iter().find(|id| {
        fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|text| text.trim() == name)
    })?;
    // Nanoseconds on the CPU, nanoseconds waiting, time slices.
    let text = fs::read_to_string(format!("/proc/{thread}/schedstat")).ok()?;
    Some(Duration::from_nanos(text.split_whitespace().next()?.parse().ok()?))
}
