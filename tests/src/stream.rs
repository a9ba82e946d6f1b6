//! A TCP connection that must live: it sends numbered blocks to an echo server and checks what
//! comes back, until it is told to stop.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::sockopt::{ReceiveTimeout, SendTimeout};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket};
use nix::sys::time::TimeVal;
use xtask::lab::Namespace;

/// An exchange that takes longer than this has failed; several retransmissions fit into it.
const PATIENCE: Duration = Duration::from_secs(15);
const BLOCK: usize = 1024;

/// Answers every connection with what it sent; lives as long as the test's process.
pub fn echo_server(namespace: &Namespace, port: u16) -> Result<SocketAddr> {
    let listener = namespace
        .enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        .with_context(|| format!("cannot listen on port {port} in {}", namespace.name()))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut buffer = [0; BLOCK];
                // Ends with the connection, however that ends.
                while let Ok(length) = stream.read(&mut buffer) {
                    if length == 0 || stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}

/// A connection from inside a namespace, by the namespace's own routes.
pub fn connect(namespace: &Namespace, to: SocketAddr, limit: Duration) -> Result<TcpStream> {
    let stream = namespace
        .enter(|| TcpStream::connect_timeout(&to, limit))
        .with_context(|| format!("no connection from {} to {to}", namespace.role()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// [`connect`] from a port of one's own choice.
///
/// # Errors
/// Those of the kernel, among them `ConnectionRefused`.
pub fn connect_from(
    namespace: &Namespace,
    port: u16,
    to: SocketAddrV4,
    limit: Duration,
) -> io::Result<TcpStream> {
    namespace.enter(|| {
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let limit = TimeVal::new(limit.as_secs() as i64, 0);
        setsockopt(&socket, SendTimeout, &limit)?;
        setsockopt(&socket, ReceiveTimeout, &limit)?;
        bind(
            socket.as_raw_fd(),
            &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)),
        )?;
        nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrIn::from(to))?;
        Ok(TcpStream::from(socket))
    })
}

/// Sends `text` to an echo server and waits for it.
pub fn echo(stream: &mut TcpStream, text: &[u8]) -> Result<()> {
    stream.write_all(text).context("sending to the echo server")?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).context("waiting for the echo")?;
    ensure!(back == text, "the echo is not what was sent");
    Ok(())
}

/// A running connection; dropping it ends it without looking at what became of it.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    blocks: Arc<AtomicU64>,
    local: SocketAddr,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Stream {
    /// Connects to an echo server and begins to exchange blocks, one at a time.
    pub fn start(namespace: &Namespace, to: SocketAddr) -> Result<Self> {
        let mut stream = connect(namespace, to, PATIENCE)?;
        let local = stream.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let blocks = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&blocks));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let number = counted.load(Ordering::Relaxed);
                let block: Vec<u8> =
                    number.to_be_bytes().iter().copied().cycle().take(BLOCK).collect();
                echo(&mut stream, &block).with_context(|| format!("block {number}"))?;
                counted.fetch_add(1, Ordering::Relaxed);
                // A pulse, not a load test: the frames under test need the processor too.
                std::thread::sleep(Duration::from_millis(1));
            }
            match stream.shutdown(std::net::Shutdown::Both) {
                Err(error) if error.kind() != ErrorKind::NotConnected => Err(error.into()),
                _ => Ok(()),
            }
        });
        let stream = Self { stop, blocks, local, thread: Some(thread) };
        stream.wait_for_more(1)?;
        Ok(stream)
    }

    /// The private end.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Waits until `count` more blocks have come back: the connection works now.
    pub fn wait_for_more(&self, count: u64) -> Result<()> {
        let goal = self.blocks.load(Ordering::Relaxed) + count;
        let start = Instant::now();
        while self.blocks.load(Ordering::Relaxed) < goal {
            if self.thread.as_ref().is_none_or(JoinHandle::is_finished)
                || start.elapsed() > PATIENCE
            {
                bail!("the connection from {} stands still", self.local);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Ends it; an error if anything was lost on the way.
    pub fn finish(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("ended before")?;
        match thread.join() {
            Ok(result) => result.context("the TCP connection beside the test broke")?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        Ok(self.blocks.load(Ordering::Relaxed))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
