//! The slow path's device: a tap interface that exists as long as this process has it open.

use std::{
    ffi::{CStr, CString},
    fs::{self, File, OpenOptions},
    io::{self, IoSlice, Read as _, Write as _},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    os::unix::fs::OpenOptionsExt as _,
};

use anyhow::{Context as _, Result};
use nat_common::stage::hold::DEVICE_MAC;
use nix::net::if_::if_nametoindex;
use tokio::io::{Interest, unix::AsyncFd};

/// linux/sockios.h.
const SIOCSIFHWADDR: libc::c_ulong = 0x8924;
const CLONE_DEVICE: &str = "/dev/net/tun";
/// The kernel puts a free number in.
const NAME: &CStr = c"natgw%d";
/// The largest that a tap takes: a frame of 65,535 bytes with its Ethernet header.
const MTU: libc::c_int = 65_535 - 14;
/// Frames that wait to be read; what does not fit is lost, and counted (`slow_path_unavailable`).
const QUEUE: libc::c_int = 4096;
/// Longest frame read, label included.
pub(super) const LONGEST: usize = 66_000;

#[derive(Debug)]
pub(super) struct Tap {
    file: File,
    pub(super) name: String,
    pub(super) ifindex: u32,
}

impl Tap {
    /// Makes the device in the network namespace of the calling thread, and takes it up.
    ///
    /// # Errors
    /// Without `/dev/net/tun` or CAP_NET_ADMIN.
    pub(super) fn create() -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(CLONE_DEVICE)
            .with_context(|| format!("cannot open {CLONE_DEVICE}; load the module tun"))?;
        let mut request = request_for(NAME);
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: the request is a live ifreq, which the kernel reads and writes.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        done(made).context("cannot make a tap device; give natgw CAP_NET_ADMIN")?;
        // SAFETY: the kernel has written the name, with a zero at its end.
        let name = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) }.to_owned();
        let ifindex = if_nametoindex(name.as_c_str()).context("cannot find the tap device")?;
        let shown = name.to_string_lossy().into_owned();
        // Nothing of the host's own is to go out there, and what comes from there for the host
        // (fragments that waited) is of sources that other interfaces lead to.
        for (setting, value) in [
            (format!("ipv6/conf/{shown}/disable_ipv6"), "1"),
            (format!("ipv4/conf/{shown}/rp_filter"), "2"),
        ] {
            let path = format!("/proc/sys/net/{setting}");
            if let Err(error) = fs::write(&path, value)
                && error.kind() != io::ErrorKind::NotFound
            {
                log::warn!("cannot set {path}: {error}");
            }
        }
        set_up(&name).with_context(|| format!("cannot set up the tap device {shown}"))?;
        Ok(Self { file, name: shown, ifindex })
    }

    /// For an event loop; needs a Tokio runtime.
    ///
    /// # Errors
    /// Where the loop takes no more descriptors.
    pub(super) fn into_async(self) -> io::Result<AsyncFd<File>> {
        // SAFETY: the file owns its one descriptor until it is dropped, and always names that one.
        unsafe { AsyncFd::register_with_interest(self.file, Interest::READABLE) }
            .map_err(io::Error::from)
    }
}

/// One frame, label first; `None` where none is waiting.
pub(super) fn receive(mut file: &File, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match file.read(buffer) {
        Ok(length) => Ok(Some(length)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Gives a frame to the program on the device, which has done with it on return.
pub(super) fn send(mut file: &File, label: &[u8], frame: &[u8]) -> io::Result<()> {
    file.write_vectored(&[IoSlice::new(label), IoSlice::new(frame)]).map(drop)
}

fn set_up(name: &CString) -> io::Result<()> {
    // SAFETY: integers in, a new descriptor or -1 out.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    done(fd)?;
    // SAFETY: the descriptor was just made for us and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let set = |what: libc::c_ulong, fill: &dyn Fn(&mut libc::ifreq)| {
        let mut request = request_for(name);
        fill(&mut request);
        // SAFETY: the request is a live ifreq, of which the kernel reads the field that is set.
        done(unsafe { libc::ioctl(socket.as_raw_fd(), what as libc::Ioctl, &raw mut request) })
    };
    set(SIOCSIFHWADDR, &|request| {
        // SAFETY: the field that this request has.
        let address = unsafe { &mut request.ifr_ifru.ifru_hwaddr };
        address.sa_family = libc::ARPHRD_ETHER;
        for (slot, byte) in address.sa_data.iter_mut().zip(DEVICE_MAC.0) {
            *slot = byte.cast_signed();
        }
    })?;
    set(libc::SIOCSIFMTU, &|request| request.ifr_ifru.ifru_mtu = MTU)?;
    // The queue's length stands where the interface's number does in other requests.
    set(libc::SIOCSIFTXQLEN, &|request| request.ifr_ifru.ifru_ifindex = QUEUE)?;
    let flags = (libc::IFF_UP | libc::IFF_NOARP) as libc::c_short;
    set(libc::SIOCSIFFLAGS, &|request| request.ifr_ifru.ifru_flags = flags)
}

fn request_for(name: &CStr) -> libc::ifreq {
    // SAFETY: an ifreq is plain bytes, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.to_bytes()) {
        *slot = byte.cast_signed();
    }
    request
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
