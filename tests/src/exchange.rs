//! Sessions by the thousand, of which both ends count what they sent and received.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use xtask::lab::Namespace;

/// A datagram that has not arrived after this time never will.
const PATIENCE: Duration = Duration::from_secs(15);
/// Headers of IPv4 and UDP.
const HEADERS: u64 = 28;
/// Under way at most: every queue on the way holds as many.
const WINDOW: usize = 32;
/// First port of the client and of the server.
const CLIENT_PORT: u16 = 20_000;
const SERVER_PORT: u16 = 10_000;

/// Packets, and bytes of IP packets, as one end saw them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub packets_out: u64,
    pub bytes_out: u64,
    pub packets_in: u64,
    pub bytes_in: u64,
}

impl Counts {
    fn sent(&mut self, payload: usize) {
        self.packets_out += 1;
        self.bytes_out += payload as u64 + HEADERS;
    }

    fn received(&mut self, payload: usize) {
        self.packets_in += 1;
        self.bytes_in += payload as u64 + HEADERS;
    }
}

/// A session as its client saw it.
#[derive(Clone, Debug)]
pub struct Conversation {
    pub private: SocketAddrV4,
    pub remote: SocketAddrV4,
    pub counts: Counts,
    /// A moment at which it lived.
    pub at: SystemTime,
}

/// What the server counted, from its own point of view, by the caller that it saw and its own port.
pub type Served = BTreeMap<(SocketAddrV4, u16), Counts>;

/// Answers datagrams at as many ports as asked for.
pub struct Server {
    stop: Arc<AtomicBool>,
    served: Arc<Mutex<Served>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Server {
    pub fn start(namespace: &Namespace, ports: u16) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let served = Arc::new(Mutex::new(Served::new()));
        let mut threads = Vec::new();
        for port in SERVER_PORT..SERVER_PORT + ports {
            let socket = namespace.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            threads.push(std::thread::spawn(move || answer(&socket, port, &stop, &served)));
        }
        Ok(Self { stop, served, threads })
    }

    /// Ends it and says what it counted.
    pub fn finish(self) -> Result<Served> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("the server does not panic")?;
        }
        Ok(std::mem::take(&mut self.served.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn answer(socket: &UdpSocket, port: u16, stop: &AtomicBool, served: &Mutex<Served>) -> Result<()> {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        let SocketAddr::V4(peer) = peer else { continue };
        // Longer than the question, so that the directions cannot be mistaken for each other.
        let answer = length + 8;
        {
            let mut served = served.lock().unwrap_or_else(PoisonError::into_inner);
            let counts = served.entry((peer, port)).or_default();
            counts.received(length);
            counts.sent(answer);
        }
        socket.send_to(&buffer[..answer], peer)?;
    }
    Ok(())
}

/// Holds `count` conversations of one to three questions and answers, each of a session of its own:
/// every port of the client with every port of the server. No packet is lost.
pub fn converse(
    namespace: &Namespace,
    client: Ipv4Addr,
    server: Ipv4Addr,
    ports: u16,
    count: usize,
) -> Result<Vec<Conversation>> {
    let mut all = Vec::with_capacity(count);
    let mut from = CLIENT_PORT;
    while all.len() < count {
        let socket = namespace.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, from)))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let private = SocketAddrV4::new(client, from);
        let here = usize::from(ports).min(count - all.len());
        let remotes: Vec<SocketAddrV4> = (0..here as u16)
            .map(|offset| SocketAddrV4::new(server, SERVER_PORT + offset))
            .collect();
        for group in remotes.chunks(WINDOW) {
            all.extend(exchange(&socket, private, group)?);
        }
        from += 1;
    }
    Ok(all)
}

fn exchange(
    socket: &UdpSocket,
    private: SocketAddrV4,
    group: &[SocketAddrV4],
) -> Result<Vec<Conversation>> {
    let mut counts: BTreeMap<SocketAddrV4, Counts> = BTreeMap::new();
    let mut buffer = [0; 2048];
    for round in 0..3_u16 {
        let mut awaited = 0;
        for remote in group {
            // The first round has all of them, the third one of three.
            if round > 0 && remote.port() % 3 < round {
                continue;
            }
            let length = usize::from((private.port() ^ remote.port()) % 700 + round);
            socket.send_to(&buffer[..length], remote)?;
            counts.entry(*remote).or_default().sent(length);
            awaited += 1;
        }
        for _ in 0..awaited {
            let (length, peer) = socket.recv_from(&mut buffer).context("an answer is missing")?;
            let SocketAddr::V4(peer) = peer else { continue };
            ensure!(group.contains(&peer), "an answer from {peer}");
            counts.entry(peer).or_default().received(length);
        }
    }
    let at = SystemTime::now();
    let conversation = |(remote, counts)| Conversation { private, remote, counts, at };
    Ok(counts.into_iter().map(conversation).collect())
}
