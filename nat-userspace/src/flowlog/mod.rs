//! The flow log: what the dataplane tells of sessions, into files and to collectors.
//!
//! ```text
//! ring buffer --FlowRecord--> Record --> less what was reported --> JSON lines, VPC records, IPFIX, bulk
//!                               ^
//!            living sessions, each interval
//! ```
//!
//! A thread of its own takes the records out of the ring, which is the only queue there is: while it
//! waits for a disk, the ring fills, and then the dataplane counts records as lost.

mod bulk;
mod clock;
mod file;
mod ipfix;
mod json;
mod record;
mod reported;
mod vpc;
pub mod who;
mod writer;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, RingBuf};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    bulk::Bulk,
    clock::{Anchor, whole_milliseconds},
    file::family,
    record::{Event, Reason, Record},
};
use crate::{config::Config, flows::View};
use writer::{Command, Outputs, Writer};

/// What became of the records that came out of the ring.
#[derive(Debug, Default)]
pub struct Tally {
    written: AtomicU64,
    lost: AtomicU64,
    /// Records that the dataplane has lost, as it counts them.
    missed: AtomicU64,
    /// Living sessions are being reported.
    reporting: AtomicBool,
}

impl Tally {
    fn lost_in_all(&self) -> u64 {
        self.lost.load(Ordering::Relaxed) + self.missed.load(Ordering::Relaxed)
    }
}

/// `GET /v1/log`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogStatus {
    /// The file that is written now.
    pub file: Option<PathBuf>,
    /// "json" or "vpc".
    pub format: Option<String>,
    /// The IPFIX collector.
    pub ipfix: Option<String>,
    /// Records since the start of the daemon.
    pub written: u64,
    /// Records that found no room in the ring, or that a file or collector did not take.
    pub lost: u64,
}

/// The running log. Dropping it takes what is in the ring, and ends it.
pub struct FlowLog {
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    anchor: Arc<Mutex<Anchor>>,
    tally: Arc<Tally>,
    interval: Option<Duration>,
    reported: Instant,
}

impl FlowLog {
    /// Starts without outputs, see [`Self::configure`]. `reported`: where to keep what of living
    /// sessions has been reported.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(ring: RingBuf<MapData>, anchor: Anchor, reported: &Path) -> Result<Self> {
        let (commands, received) = channel();
        let anchor = Arc::new(Mutex::new(anchor));
        let tally = Arc::new(Tally::default());
        let writer = Writer::new(ring, Arc::clone(&anchor), Arc::clone(&tally), reported);
        let thread = thread::Builder::new()
            .name("natgw-log".to_owned())
            .spawn(move || writer.run(&received))
            .context("cannot start the thread of the flow log")?;
        Ok(Self {
            commands: Some(commands),
            thread: Some(thread),
            anchor,
            tally,
            interval: None,
            reported: Instant::now(),
        })
    }

    /// Opens what the configuration wants, and writes there from now on. Where that fails, nothing
    /// has changed.
    ///
    /// # Errors
    /// A file or socket cannot be opened.
    pub fn configure(&mut self, config: &Config) -> Result<()> {
        let outputs = config.log.as_ref().map(|log| Outputs::open(log, config)).transpose()?;
        self.send(Command::Configure(outputs.map(Box::new)));
        self.interval = config.log.as_ref().and_then(|log| log.interval);
        self.reported = Instant::now();
        Ok(())
    }

    /// To be called every second, with the time and the number of records that the dataplane has
    /// lost.
    pub fn follow(&self, anchor: Anchor, missed: u64) {
        *self.anchor.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = anchor;
        self.tally.missed.store(missed, Ordering::Relaxed);
    }

    /// Whether it is time to report the living sessions.
    #[must_use]
    pub fn is_report_due(&self) -> bool {
        self.interval.is_some_and(|interval| self.reported.elapsed() >= interval)
            && !self.tally.reporting.load(Ordering::Acquire)
    }

    pub fn report(&mut self, view: View) {
        self.reported = Instant::now();
        self.tally.reporting.store(true, Ordering::Release);
        self.send(Command::Report(Box::new(view)));
    }

    /// Closes the file and opens its name anew: somebody has renamed it.
    pub fn reopen(&self) {
        self.send(Command::Reopen);
    }

    /// Records written and lost since the start; those that the dataplane has lost not included.
    #[must_use]
    pub fn tally(&self) -> (u64, u64) {
        let Tally { written, lost, .. } = &*self.tally;
        (written.load(Ordering::Relaxed), lost.load(Ordering::Relaxed))
    }

    fn send(&self, command: Command) {
        // The thread ends with this sender, not before.
        let _ended = self.commands.as_ref().map(|commands| commands.send(command));
    }
}

impl Drop for FlowLog {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the flow log has failed; records are missing");
        }
    }
}

fn unopened(path: &Path, error: io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context(format!(
        "cannot open the flow log {}; make its directory, or set [log] file to another path",
        path.display()
    ))
}
