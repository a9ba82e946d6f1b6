//! The entry program on XDP, by pinned links. (On tc: `tc`.)

use std::{io, os::fd::AsFd as _, path::Path};

use aya::{
    Ebpf,
    programs::{
        ProgramError, XdpMode,
        links::{FdLink, PinnedLink},
        loaded_programs,
        tc::TcError,
        xdp::XdpLink,
    },
};
use nat_common::maps;
use rtnetlink::packet_route::link::{LinkAttribute, LinkXdp};

use super::{
    error::{DatapathError, errno},
    load::xdp_mut,
    pin::{self, PinDirectory},
    syscall,
};

/// Where in the kernel the entry program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttachMode {
    /// In the driver.
    Native,
    /// In the network stack: any interface, slower.
    Generic,
    /// On the ingress of tc: any interface, packets as the stack has them.
    Tc,
}

impl AttachMode {
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tc => "tc",
        }
    }

    /// How XDP is asked for; not at all for tc.
    pub(super) const fn flags(self) -> Option<XdpMode> {
        match self {
            Self::Native => Some(XdpMode::Driver),
            Self::Generic => Some(XdpMode::Skb),
            Self::Tc => None,
        }
    }
}

/// Puts the entry program on an interface. A link that an earlier process left there is given the
/// new program, without a gap; one in another mode, or of an interface that is gone, is replaced.
pub(super) fn attach_xdp(
    bpf: &mut Ebpf,
    pins: &PinDirectory,
    ifindex: u32,
    interface: &str,
    mode: AttachMode,
    flags: XdpMode,
) -> Result<(), DatapathError> {
    let path = pins.xdp_link(interface);
    if let Some(link) = living_link(&path, ifindex)? {
        let present = xdp_on(ifindex).map_or(None, |found| found.map(|(mode, _)| mode));
        if present.is_none_or(|present| present == mode) {
            return update_xdp(bpf, link, interface);
        }
        drop(link);
        pin::remove_link(&path)?;
    }
    let program = xdp_mut(bpf, maps::ENTRY_PROGRAM)?;
    let link = program
        .attach_to_if_index(ifindex, flags)
        .and_then(|id| program.take_link(id))
        .map_err(|error| explain(ifindex, interface, mode, &error))?;
    let link = FdLink::try_from(link).map_err(|error| {
        DatapathError::bpf(format!("get a link for {interface} that can be pinned"), error)
    })?;
    link.pin(&path)
        .map_err(|error| DatapathError::bpf(format!("pin {}", path.display()), error))?;
    Ok(())
}

/// Gives the link of an interface the entry program of another object. One whose interface is gone
/// is left alone.
pub(super) fn swap_xdp(
    bpf: &mut Ebpf,
    pins: &PinDirectory,
    interface: &str,
) -> Result<(), DatapathError> {
    match remaining_link(&pins.xdp_link(interface))? {
        Some(link) => update_xdp(bpf, link, interface),
        None => Ok(()),
    }
}

/// The pinned link, if its interface is not gone.
pub(super) fn remaining_link(path: &Path) -> Result<Option<FdLink>, DatapathError> {
    let failed = |error| DatapathError::call(format!("open {}", path.display()), error);
    let link = syscall::open_pin(path).map_err(failed)?;
    if syscall::link_target(link.as_fd()).map_err(failed)?.ifindex == 0 {
        return Ok(None);
    }
    let link = PinnedLink::from_pin(path)
        .map_err(|error| DatapathError::bpf(format!("open {}", path.display()), error))?;
    Ok(Some(link.into()))
}

fn update_xdp(bpf: &mut Ebpf, link: FdLink, interface: &str) -> Result<(), DatapathError> {
    let what = || format!("give {interface} the new program");
    let link = XdpLink::try_from(link).map_err(|error| DatapathError::bpf(what(), error))?;
    let program = xdp_mut(bpf, maps::ENTRY_PROGRAM)?;
    // The link belongs to its pin: this process keeps no reference that would outlive it.
    program
        .attach_to_link(link)
        .and_then(|id| program.take_link(id))
        .map(drop)
        .map_err(|error| DatapathError::bpf(what(), error))
}

/// The pinned link, if it is there and still tied to this interface.
pub(super) fn living_link(path: &Path, ifindex: u32) -> Result<Option<FdLink>, DatapathError> {
    if !path.exists() {
        return Ok(None);
    }
    let failed = |error| DatapathError::call(format!("open {}", path.display()), error);
    let link = syscall::open_pin(path).map_err(failed)?;
    let target = syscall::link_target(link.as_fd()).map_err(failed)?;
    if target.ifindex != ifindex {
        pin::remove_link(path)?;
        return Ok(None);
    }
    let link = PinnedLink::from_pin(path)
        .map_err(|error| DatapathError::bpf(format!("open {}", path.display()), error))?;
    Ok(Some(link.into()))
}

/// Why the kernel refused, and what the operator can do about it.
fn explain(ifindex: u32, interface: &str, mode: AttachMode, error: &ProgramError) -> DatapathError {
    let number = errno_of(error);
    if number == Some(libc::EPERM)
        && let Some(missing) = super::error::missing_capabilities()
    {
        let what = format!("attach to {interface}");
        return DatapathError::MissingCapability { what, missing };
    }
    let present = xdp_on(ifindex).unwrap_or(None);
    let text = kernel_text(error);
    let mtu = text.contains("MTU") || text.contains("mtu");
    let (reason, remedy) = match (number, present) {
        (Some(libc::EBUSY | libc::EEXIST), Some((_, id))) => (
            format!("another XDP program is attached there (id {id}{})", program_name(id)),
            format!(
                "take it off with `ip link set dev {interface} xdp off`, or with the tool that put it there"
            ),
        ),
        (Some(libc::EBUSY | libc::EEXIST), None) => (
            "another program holds its XDP hook".to_owned(),
            format!("see `bpftool net show dev {interface}`"),
        ),
        (Some(libc::ENODEV), _) => {
            ("there is no such interface any more".to_owned(), "check its name".to_owned())
        }
        (Some(libc::EOPNOTSUPP), _) if mode == AttachMode::Native && !mtu => (
            format!("its driver has no native XDP{text}"),
            "use xdp_mode = \"tc\" or \"generic\" (slower), or an interface whose driver has it"
                .to_owned(),
        ),
        (Some(libc::ERANGE | libc::EINVAL | libc::EOPNOTSUPP), _) if mtu => (
            format!("its MTU is too large for the driver's XDP{text}"),
            format!(
                "lower it (`ip link set dev {interface} mtu 1500`; AWS ENA: at most 3498), or use xdp_mode = \"tc\""
            ),
        ),
        (Some(libc::EINVAL | libc::ERANGE), _) if mode == AttachMode::Native => (
            format!("the driver refuses an XDP program as the interface is set up{text}"),
            format!(
                "lower its MTU, turn LRO off (`ethtool -K {interface} lro off`), halve its queues (`ethtool -L`), or use xdp_mode = \"tc\""
            ),
        ),
        (Some(libc::ENOMEM | libc::ENOSPC), _) => (
            format!("the driver lacks queues or memory for XDP{text}"),
            format!("use fewer queues (`ethtool -L {interface} combined N`), or xdp_mode = \"tc\""),
        ),
        _ => (format!("{}{text}", deepest(error)), "see the kernel's log (`dmesg`)".to_owned()),
    };
    DatapathError::Attach { interface: interface.to_owned(), mode: mode.word(), reason, remedy }
}

/// aya hides the number of a netlink error from the chain of sources.
fn errno_of(error: &ProgramError) -> Option<i32> {
    let netlink = match error {
        ProgramError::XdpError(aya::programs::xdp::XdpError::NetlinkError(error)) => error,
        ProgramError::TcError(TcError::NetlinkError(error)) => error,
        error => return errno(error),
    };
    netlink.raw_os_error()
}

/// What the driver says through netlink, as an appendix: `: veth: Peer MTU is too large …`.
fn kernel_text(error: &ProgramError) -> String {
    let text = format!("{error:?}");
    let Some((_, rest)) = text.split_once("messages: [\"") else { return String::new() };
    rest.split_once('"').map_or_else(String::new, |(message, _)| format!(": {message}"))
}

fn deepest(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn program_name(id: u32) -> String {
    let program = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id);
    let name = program.and_then(|program| Some(program.name_as_str()?.to_owned()));
    name.map_or_else(String::new, |name| format!(", name {name}"))
}

/// Mode and id of the XDP program on an interface of this thread's network namespace.
pub(super) fn xdp_on(ifindex: u32) -> io::Result<Option<(AttachMode, u32)>> {
    // A thread of its own, because the caller may be inside an asynchronous runtime.
    let query = std::thread::scope(|scope| {
        scope.spawn(|| query_xdp(ifindex)).join().unwrap_or_else(|_| Err(io::Error::other("panic")))
    });
    Ok(query?.iter().find_map(|attribute| match *attribute {
        LinkXdp::DrvProgId(id) | LinkXdp::HwProgId(id) => Some((AttachMode::Native, id)),
        LinkXdp::SkbProgId(id) => Some((AttachMode::Generic, id)),
        _ => None,
    }))
}

fn query_xdp(ifindex: u32) -> io::Result<Vec<LinkXdp>> {
    use futures::TryStreamExt as _;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let mut links = handle.link().get().match_index(ifindex).execute();
        let link = links.try_next().await.map_err(io::Error::other)?;
        connection.abort();
        let attributes = link.map_or_else(Vec::new, |link| link.attributes);
        Ok(attributes
            .into_iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::Xdp(xdp) => Some(xdp),
                _ => None,
            })
            .unwrap_or_default())
    })
}
