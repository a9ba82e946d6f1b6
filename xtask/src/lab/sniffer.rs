//! Records every frame that an interface sends and receives.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::frame::Frame;
use super::namespace::Namespace;
use super::packet_socket::PacketSocket;

/// The thread looks this often whether it is to stop.
const WAKE: libc::timeval = libc::timeval { tv_sec: 0, tv_usec: 20_000 };
/// Room for bursts, bytes; the kernel accounts about 800 for a small frame.
const RECEIVE_BUFFER: i32 = 256 << 20;
/// The longest super-packet (GSO) and its headers.
const LONGEST: usize = 1 << 18;

#[derive(Debug, Default)]
struct Shared {
    frames: Mutex<Vec<Frame>>,
    more: Condvar,
    stop: AtomicBool,
}

/// A running recording. Everything that passes after [`Sniffer::start`] returned is in it.
#[derive(Debug)]
pub struct Sniffer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
    place: String,
}

impl Sniffer {
    /// Starts recording on an interface.
    pub fn start(namespace: &Namespace, interface: &str) -> Result<Self> {
        let protocol = u16::try_from(libc::ETH_P_ALL).expect("EtherTypes have 16 bits");
        // Not yet receiving: the options come first.
        let socket = PacketSocket::open(namespace, interface, 0)?;
        let place = format!("{interface} in {}", namespace.name());
        socket
            .set_option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &RECEIVE_BUFFER)
            .and_then(|()| socket.set_option(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &WAKE))
            .and_then(|()| socket.set_option(libc::SOL_PACKET, libc::PACKET_AUXDATA, &1_i32))
            .with_context(|| format!("cannot set up the sniffer on {place}"))?;
        socket.receive_from(namespace, interface, protocol)?;
        let shared = Arc::new(Shared::default());
        let recorder = Arc::clone(&shared);
        let thread = std::thread::spawn(move || record(&socket, &recorder));
        Ok(Self { shared, thread: Some(thread), place })
    }

    /// The frames so far.
    pub fn frames(&self) -> Vec<Frame> {
        self.lock().clone()
    }

    /// Waits until a frame (one recorded before counts too) satisfies `wanted`.
    pub fn wait_for(&self, limit: Duration, wanted: impl Fn(&Frame) -> bool) -> Result<Frame> {
        let found = self.wait_for_count(limit, 1, wanted)?;
        found.into_iter().next().context("a sniffer found one frame and lost it")
    }

    /// Waits until `count` frames satisfy `wanted`, and returns them.
    pub fn wait_for_count(
        &self,
        limit: Duration,
        count: usize,
        wanted: impl Fn(&Frame) -> bool,
    ) -> Result<Vec<Frame>> {
        let deadline = Instant::now() + limit;
        let mut frames = self.lock();
        let mut looked = 0;
        let mut found = Vec::new();
        loop {
            found.extend(frames[looked..].iter().filter(|frame| wanted(frame)).cloned());
            looked = frames.len();
            if found.len() >= count {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!(
                    "{} of {count} wanted frames passed {} in {limit:?}, {looked} frames in all",
                    found.len(),
                    self.place
                );
            }
            let waited = self.shared.more.wait_timeout(frames, left);
            frames = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until nothing has passed for `quiet`, at most 30 times as long; to be sure that
    /// nothing more comes.
    pub fn settle(&self, quiet: Duration) -> Result<()> {
        let deadline = Instant::now() + 30 * quiet;
        let mut frames = self.lock();
        loop {
            let before = frames.len();
            let waited = self
                .shared
                .more
                .wait_timeout_while(frames, quiet, |now| now.len() == before)
                .unwrap_or_else(PoisonError::into_inner);
            if waited.1.timed_out() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{} has not been quiet for {quiet:?}", self.place);
            }
            frames = waited.0;
        }
    }

    /// Ends the recording and returns all of it; an error if the kernel dropped frames of it.
    pub fn stop(mut self) -> Result<Vec<Frame>> {
        self.finish()?;
        Ok(std::mem::take(&mut *self.lock()))
    }

    fn finish(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .with_context(|| format!("the sniffer on {}", self.place))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Frame>> {
        self.shared.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        // Nobody will look at this recording, so its faults do not matter.
        let _ = self.finish();
    }
}

/// Receives until told to stop and the socket is empty.
fn record(socket: &PacketSocket, shared: &Shared) -> io::Result<()> {
    let mut buffer = vec![0; LONGEST];
    loop {
        let stopping = shared.stop.load(Ordering::Relaxed);
        match socket.receive(&mut buffer, stopping) {
            Ok(frame) => {
                shared.frames.lock().unwrap_or_else(PoisonError::into_inner).push(frame);
                shared.more.notify_all();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if stopping {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    match socket.dropped()? {
        0 => Ok(()),
        count => Err(io::Error::other(format!("the kernel dropped {count} frames of it"))),
    }
}

impl PacketSocket {
    /// Begins to receive what a socket opened with protocol 0 was kept from.
    fn receive_from(&self, namespace: &Namespace, interface: &str, protocol: u16) -> Result<()> {
        let index = namespace.interface(interface)?.index;
        self.bind(index, protocol)
            .with_context(|| format!("cannot listen on {interface} in {}", namespace.name()))
    }

    fn receive(&self, buffer: &mut [u8], only_what_is_there: bool) -> io::Result<Frame> {
        // SAFETY: these structures are plain integers and pointers; all zeroes is a value.
        let (mut from, mut message): (libc::sockaddr_ll, libc::msghdr) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // u64 for the alignment that cmsghdr needs.
        let mut control = [0_u64; 16];
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of_val(&from) as libc::socklen_t;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        let flags = if only_what_is_there { libc::MSG_DONTWAIT } else { 0 };
        // SAFETY: `message` points to live buffers of the lengths it states.
        let length = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, flags) };
        let at = Instant::now();
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        let mut bytes = buffer[..length.min(buffer.len())].to_vec();
        // SAFETY: the kernel filled the control buffer that `message` describes.
        if let Some(tag) = unsafe { vlan_tag(&message) }
            && bytes.len() >= 12
        {
            bytes.splice(12..12, tag);
        }
        Ok(Frame { at, outgoing: from.sll_pkttype == libc::PACKET_OUTGOING, bytes })
    }

    /// Frames that did not fit into the socket's buffer.
    fn dropped(&self) -> io::Result<u32> {
        let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = size_of_val(&statistics) as libc::socklen_t;
        // SAFETY: the pointer and length are those of `statistics`, which the kernel fills.
        let done = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        };
        if done == 0 { Ok(statistics.tp_drops) } else { Err(io::Error::last_os_error()) }
    }
}

/// The tag that the kernel took out of the frame (packet(7), `PACKET_AUXDATA`).
///
/// # Safety
/// `message` was filled by recvmsg(2) and its control buffer is alive.
unsafe fn vlan_tag(message: &libc::msghdr) -> Option<[u8; 4]> {
    // SAFETY: promised by the caller.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: not null, so within the control buffer.
        let head = unsafe { header.read() };
        if head.cmsg_level == libc::SOL_PACKET && head.cmsg_type == libc::PACKET_AUXDATA {
            // SAFETY: a message of this type carries a tpacket_auxdata.
            let data =
                unsafe { libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned() };
            if data.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
                let tpid = if data.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0 {
                    data.tp_vlan_tpid
                } else {
                    0x8100
                };
                let ([a, b], [c, d]) = (tpid.to_be_bytes(), data.tp_vlan_tci.to_be_bytes());
                return Some([a, b, c, d]);
            }
        }
        // SAFETY: both pointers belong to the same control buffer.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}
