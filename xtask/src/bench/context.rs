//! What every bench of one run shares.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// Object, CPU and amount of work.
#[derive(Debug)]
pub(super) struct Context {
    pub object: Vec<u8>,
    /// The daemon, or why it cannot be measured.
    pub natgw: Result<PathBuf, String>,
    /// The CPU that everything runs on: the last one, as the first serves most interrupts.
    pub cpu: usize,
    pub repetitions: usize,
    /// Aim of one measurement.
    pub slice: Duration,
    pub quick: bool,
}

/// Keeps this thread on `cpu`.
pub(super) fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("stay on CPU {cpu}"))
}
