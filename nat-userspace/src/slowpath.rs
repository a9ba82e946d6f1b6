//! The slow path: for packets that XDP cannot send on at once.
//!
//! XDP can neither keep a packet nor make two of one. What needs that comes here through a tap
//! device, behind a [label](nat_common::stage::hold::Label): packets whose next hop has no Ethernet
//! address yet, fragments before their first one, packets that have to be fragmented, SYNs that may
//! not be answered yet. Here they wait, within [limits](queue::Limits) of time, number and bytes, also for each source; then they
//! go back the way they came, and the dataplane goes on with them as if they had just arrived.
//!
//! It runs on a thread of its own, so that neither it nor the rest of the daemon keeps the other
//! waiting. When the daemon ends, however it ends, the device is gone and such packets are drops.
//!
//! Every packet received is in exactly one class of the counters, here too: held while it waits,
//! then what becomes of it. A packet that is split goes out once; of its further pieces only the
//! bytes are counted.

mod held;
mod losses;
mod queue;
mod room;
mod split;
mod tap;
mod worker;

use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, bail};
use tokio::{runtime, sync::oneshot};

pub use self::{
    held::Held,
    queue::{Limits, Queue, Wait},
    room::Room,
    split::split,
};
use self::{losses::Losses, tap::Tap, worker::run};
use crate::datapath::{AttachMode, Datapath, DatapathError};

/// Devices that are made to find one whose slot in the dataplane's table is free.
const ATTEMPTS: usize = 8;

/// The running slow path. Dropping it ends it; [`SlowPath::stop`] does so in order.
#[derive(Debug)]
pub struct SlowPath {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl SlowPath {
    /// Makes the device and has the dataplane use it.
    ///
    /// # Errors
    /// Where there are no tap devices here, or the dataplane cannot use it; nothing is left then,
    /// and the gateway does without.
    pub fn start(datapath: &mut Datapath, mode: AttachMode) -> Result<Self> {
        let view = datapath.slow_path_view()?;
        let losses = Losses::since(view.waiting()?);
        let (stop, stopped) = oneshot::channel();
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the slow path's event loop")?;
        // Kept until one fits, so that the next one gets another number.
        let mut taken = Vec::new();
        let tap = loop {
            let tap = Tap::create()?;
            // Before the first packet can come.
            match datapath.open_slow_path(tap.ifindex, mode) {
                Ok(()) => break tap,
                Err(DatapathError::Call { source, .. })
                    if source.kind() == std::io::ErrorKind::AlreadyExists
                        && taken.len() < ATTEMPTS =>
                {
                    taken.push(tap);
                }
                Err(error) => return Err(error.into()),
            }
        };
        log::debug!("the slow path's device is {}", tap.name);
        let ifindex = tap.ifindex;
        let thread = thread::Builder::new().name("slow path".to_owned()).spawn(move || {
            let result = runtime.block_on(async {
                let tap = tap.into_async().context("cannot wait for the slow path's device")?;
                run(view, losses, ifindex, tap, stopped).await
            });
            if let Err(error) = result {
                log::error!(
                    "the slow path has ended, packets that need it are dropped: {error:#}; restart \
                     the gateway"
                );
            }
        });
        match thread {
            Ok(thread) => Ok(Self { stop: Some(stop), thread: Some(thread) }),
            Err(error) => {
                datapath.close_slow_path()?;
                bail!("cannot start the slow path's thread: {error}");
            }
        }
    }

    /// Whether it has not broken down.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Has the dataplane do without, then gives up what still waits.
    ///
    /// # Errors
    /// None is expected.
    pub fn stop(self, datapath: &mut Datapath) -> Result<(), DatapathError> {
        // First, so that nothing more comes while the thread gives up what it has.
        datapath.avoid_slow_path()?;
        drop(self);
        datapath.close_slow_path()
    }
}

impl Drop for SlowPath {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the slow path has panicked");
        }
    }
}
