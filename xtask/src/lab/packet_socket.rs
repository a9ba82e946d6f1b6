//! Raw frames: an `AF_PACKET` socket on one interface, and sending through it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};

use super::namespace::Namespace;

/// How many frames go out before [`send_frames`] lets the receiver catch up: a veth ring holds
/// 256, and what does not fit is lost without a trace on the sender.
const BURST: usize = 64;
const PAUSE: Duration = Duration::from_micros(500);

/// An `AF_PACKET` socket bound to an interface; the descriptor belongs to the namespace.
#[derive(Debug)]
pub(super) struct PacketSocket {
    pub(super) fd: OwnedFd,
}

impl PacketSocket {
    /// `protocol` 0 receives nothing (for senders), `ETH_P_ALL` everything in both directions.
    pub(super) fn open(namespace: &Namespace, interface: &str, protocol: u16) -> Result<Self> {
        let index = namespace.interface(interface)?.index;
        namespace.enter(|| bound_socket(index, protocol)).with_context(|| {
            format!("cannot open a packet socket on {interface} in {}", namespace.name())
        })
    }

    /// Receives frames of this EtherType on this interface from now on.
    pub(super) fn bind(&self, index: u32, protocol: u16) -> io::Result<()> {
        // SAFETY: sockaddr_ll is plain integers, for which all zeroes is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = i32::try_from(index).expect("interface indexes are positive i32");
        // SAFETY: the pointer and size are those of `address`, which is only read.
        let bound = unsafe {
            libc::bind(
                self.fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if bound == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        loop {
            // SAFETY: the pointer and length are those of `frame`, which is only read.
            let sent =
                unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                // The device's queue is full; the frame was not taken.
                Some(libc::ENOBUFS) => std::thread::sleep(PAUSE),
                Some(libc::EINTR) => {}
                _ => return Err(error),
            }
        }
    }

    pub(super) fn set_option<T>(&self, level: i32, name: i32, value: &T) -> io::Result<()> {
        // SAFETY: the pointer and size are those of a live value; the kernel only reads it.
        let done = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                name,
                std::ptr::from_ref(value).cast(),
                libc::socklen_t::try_from(size_of::<T>()).expect("socket options are small"),
            )
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn bound_socket(index: u32, protocol: u16) -> io::Result<PacketSocket> {
    // Protocol 0 until the bind: otherwise frames of every interface would come in before it.
    // SAFETY: socket(2) takes integers and returns a new descriptor or -1.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made for us and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let socket = PacketSocket { fd };
    socket.bind(index, protocol)?;
    Ok(socket)
}

/// Sends Ethernet frames out of an interface exactly as given, at most about 100,000 a second so
/// that no veth ring overflows. A frame longer than the MTU is an error.
pub fn send_frames<F: AsRef<[u8]>>(
    namespace: &Namespace,
    interface: &str,
    frames: &[F],
) -> Result<()> {
    let socket = PacketSocket::open(namespace, interface, 0)?;
    for (number, frame) in frames.iter().enumerate() {
        let frame = frame.as_ref();
        socket.send(frame).with_context(|| {
            let name = namespace.name();
            format!("cannot send frame {number} ({} bytes) on {interface} in {name}", frame.len())
        })?;
        if number % BURST == BURST - 1 {
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}
