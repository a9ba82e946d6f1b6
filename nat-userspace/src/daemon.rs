//! The running gateway.
//!
//! One thread: a loop that follows the kernel's events, the clock and the signals. Requests of the
//! control socket run on threads of their own and take the gateway's lock ([`gateway`]).

mod added;
mod capture;
mod control;
mod detach;
mod edit;
mod gateway;
pub(crate) mod hook;
mod interfaces;
mod migrate;
mod neighbours;
mod peaks;
mod records;
mod reload;
mod rules;
mod run;
mod start;
mod top;
mod trace;

use std::{path::PathBuf, time::Duration};

pub use self::{detach::detach, migrate::migrate, run::run};
use crate::{cli::OnExit, config::Overrides};

/// What `natgw run` says beside the configuration.
#[derive(Debug, Clone)]
pub struct RunOptions {
    pub on_exit: OnExit,
    /// Detach everything unless `natgw confirm` comes in this time.
    pub confirm: Option<Duration>,
    /// Do not adopt what an earlier run has left.
    pub cold: bool,
    /// To read the file again with at a reload.
    pub overrides: Overrides,
}

#[derive(Debug, Clone)]
pub struct DetachOptions {
    pub name: String,
    pub state_dir: PathBuf,
    /// Nothing: what the last run of this name recorded, or the default.
    pub bpf_dir: Option<PathBuf>,
}
