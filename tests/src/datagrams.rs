//! Numbered datagrams as fast as the machine carries them without losing any by itself: so many are
//! under way at most as every queue on the way holds. A number that does not arrive is a loss of
//! the gateway's.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use xtask::lab::Namespace;

/// Under way at most. The shortest queue on the way, of a veth device, holds 256.
const WINDOW: u64 = 64;
/// A datagram that has not arrived after this time never will.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
    /// Where they came from, as the receiver sees it.
    sources: Mutex<BTreeSet<SocketAddr>>,
}

/// A running stream of datagrams; dropping it ends it without looking at what became of it.
#[derive(Debug)]
pub struct Datagrams {
    shared: Arc<Shared>,
    receiver: Option<JoinHandle<Result<BTreeSet<u64>>>>,
    sender: Option<JoinHandle<Result<()>>>,
    started: Instant,
}

/// What arrived.
#[derive(Debug)]
pub struct Arrived {
    pub sent: u64,
    /// Numbers that did not.
    pub missing: BTreeSet<u64>,
    pub sources: BTreeSet<SocketAddr>,
    pub took: Duration,
}

impl Datagrams {
    /// From one socket inside `from` to one inside `to`, at the address `at`.
    pub fn start(from: &Namespace, to: &Namespace, at: SocketAddr) -> Result<Self> {
        let receiving = to.enter(|| UdpSocket::bind(("0.0.0.0", at.port())))?;
        receiving.set_read_timeout(Some(Duration::from_millis(50)))?;
        let sending = from.enter(|| UdpSocket::bind("0.0.0.0:0"))?;
        sending.connect(at)?;
        let shared = Arc::new(Shared::default());
        let state = Arc::clone(&shared);
        let receiver = std::thread::spawn(move || receive(&receiving, &state));
        let state = Arc::clone(&shared);
        let sender = std::thread::spawn(move || send(&sending, &state));
        let started = Instant::now();
        Ok(Self { shared, receiver: Some(receiver), sender: Some(sender), started })
    }

    /// Waits until `count` more have arrived: they go through now.
    pub fn wait_for_more(&self, count: u64) -> Result<()> {
        let goal = self.shared.received.load(Ordering::Relaxed) + count;
        let start = Instant::now();
        while self.shared.received.load(Ordering::Relaxed) < goal {
            ensure!(start.elapsed() < PATIENCE, "the datagrams do not arrive any more");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Ends it and says what became of every number.
    pub fn finish(mut self) -> Result<Arrived> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let sent = join(self.sender.take());
        let took = self.started.elapsed();
        let missing = join(self.receiver.take())?;
        sent?;
        let sources = self.shared.sources.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Arrived { sent: self.shared.sent.load(Ordering::Relaxed), missing, sources, took })
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn join<T>(thread: Option<JoinHandle<Result<T>>>) -> Result<T> {
    match thread.map(JoinHandle::join) {
        Some(Ok(result)) => result,
        Some(Err(panic)) => std::panic::resume_unwind(panic),
        None => bail!("ended before"),
    }
}

fn send(socket: &UdpSocket, shared: &Shared) -> Result<()> {
    let mut number = 0_u64;
    let mut moved = Instant::now();
    let mut received = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        let now = shared.received.load(Ordering::Relaxed);
        if now != received {
            (received, moved) = (now, Instant::now());
        }
        if number >= received + WINDOW {
            // A whole window lost: the receiver's numbers say which.
            if moved.elapsed() > PATIENCE {
                break;
            }
            std::thread::yield_now();
            continue;
        }
        socket.send(&number.to_be_bytes())?;
        number += 1;
        shared.sent.store(number, Ordering::Relaxed);
    }
    Ok(())
}

/// Returns the numbers that are missing.
fn receive(socket: &UdpSocket, shared: &Shared) -> Result<BTreeSet<u64>> {
    let mut missing = BTreeSet::new();
    let mut next = 0;
    let mut buffer = [0; 16];
    let mut last = Instant::now();
    loop {
        if let Ok((8, from)) = socket.recv_from(&mut buffer) {
            let number = u64::from_be_bytes(buffer[..8].try_into()?);
            missing.extend(next..number);
            missing.remove(&number);
            next = next.max(number + 1);
            shared.received.fetch_add(1, Ordering::Relaxed);
            shared.sources.lock().unwrap_or_else(PoisonError::into_inner).insert(from);
            last = Instant::now();
            continue;
        }
        let sent = shared.sent.load(Ordering::Relaxed);
        let done = shared.stop.load(Ordering::Relaxed);
        let all = next == sent && missing.is_empty();
        if done && (all || last.elapsed() > PATIENCE) {
            missing.extend(next..sent);
            return Ok(missing);
        }
    }
}
