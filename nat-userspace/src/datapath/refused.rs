//! The tracepoints that tell which frames an interface refused. Optional: without them such frames
//! count as sent, which is said once.

use std::os::fd::AsFd as _;

use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, ProgramError},
};
use nat_common::maps;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::btf::KernelTypes;

/// What the programs need to know of the kernel, and of the namespace that the gateway is in.
pub(super) struct Layout {
    ifindex_at: u32,
    netns_at: u32,
    cookie_at: u32,
    cookie: u64,
}

impl Layout {
    pub(super) fn find() -> Option<Self> {
        let types = KernelTypes::read()?;
        Some(Self {
            ifindex_at: types.offset("net_device", "ifindex")?,
            netns_at: types.offset("net_device", "nd_net")?,
            cookie_at: types.offset("net", "net_cookie")?,
            cookie: netns_cookie()?,
        })
    }

    pub(super) fn set<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader
            .override_global("IFINDEX_AT", &self.ifindex_at, true)
            .override_global("NETNS_AT", &self.netns_at, true)
            .override_global("COOKIE_AT", &self.cookie_at, true)
            .override_global("NETNS_COOKIE", &self.cookie, true);
    }
}

/// The number of the network namespace (SO_NETNS_COOKIE, kernel 5.14).
fn netns_cookie() -> Option<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket =
        socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).ok()?;
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`, both of which outlive the call.
    let result = unsafe {
        libc::getsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&socket.as_fd()),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(cookie)
}

/// Loads and attaches the programs; they leave with the process.
pub(super) fn attach(bpf: &mut Ebpf) {
    for &(name, tracepoint) in maps::REFUSED_PROGRAMS {
        let attached = match bpf.program_mut(name) {
            Some(Program::RawTracePoint(program)) => match program.load() {
                Ok(()) | Err(ProgramError::AlreadyLoaded) => program.attach(tracepoint).map(drop),
                Err(error) => Err(error),
            },
            _ => Err(ProgramError::NotLoaded),
        };
        if let Err(error) = attached {
            log::debug!(
                "frames that an interface refuses are not told from sent ones: tracepoint \
                 {tracepoint}: {error}"
            );
        }
    }
}
