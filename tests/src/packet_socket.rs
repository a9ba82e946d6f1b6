//! Raw frames on an interface of the calling thread's network namespace.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::{
    socket::{setsockopt, sockopt::ReceiveTimeout},
    time::TimeVal,
};

/// How long a frame may take, seconds.
const PATIENCE: i64 = 10;

/// An `AF_PACKET` socket that receives every frame which comes in on its interface.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// # Errors
    /// Where this is not root, or there is no such interface.
    pub fn on(interface: &str) -> Result<Self> {
        let ifindex = nix::net::if_::if_nametoindex(interface)
            .with_context(|| format!("no interface {interface}"))?;
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers. Protocol 0 receives nothing until the socket is bound.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        ensure!(fd >= 0, "a packet socket: {}", io::Error::last_os_error());
        // SAFETY: the descriptor is new and ours.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all fields are integers.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = ifindex.cast_signed();
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the address is live and as long as said.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
        ensure!(bound == 0, "bind to {interface}: {}", io::Error::last_os_error());
        setsockopt(&fd, ReceiveTimeout, &TimeVal::new(PATIENCE, 0))?;
        Ok(Self(fd))
    }

    /// # Errors
    /// As the kernel gives them.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: the buffer is live and as long as said.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        ensure!(sent >= 0, "send a frame: {}", io::Error::last_os_error());
        Ok(())
    }

    /// The next frame that came in; those that went out of the interface are passed over.
    ///
    /// # Errors
    /// Where none comes.
    pub fn receive(&self) -> Result<Vec<u8>> {
        loop {
            let mut frame = [0; 2048];
            // SAFETY: all fields are integers.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut length = size_of_val(&from) as libc::socklen_t;
            // SAFETY: both buffers are live and as long as said.
            let received = unsafe {
                libc::recvfrom(
                    self.0.as_raw_fd(),
                    frame.as_mut_ptr().cast(),
                    frame.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut length,
                )
            };
            ensure!(received >= 0, "no frame within {PATIENCE} s: {}", io::Error::last_os_error());
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                return Ok(frame[..received.unsigned_abs()].to_vec());
            }
        }
    }
}
