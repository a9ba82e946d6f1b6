//! Programs on interfaces: XDP by pinned links, the guard by TCX or, before Linux 6.6, by netlink.

use std::{io, os::fd::AsFd as _, path::Path};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, XdpMode,
        links::{FdLink, PinnedLink},
        loaded_programs,
        tc::{
            self, NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType, TcError, TcHandle,
        },
        xdp::XdpLink,
    },
};
use nat_common::maps;
use rtnetlink::packet_route::link::{LinkAttribute, LinkXdp};

use super::{
    error::{DatapathError, errno},
    load::{guard_mut, kernel_version, xdp_mut},
    pin::{self, Guard, PinDirectory},
    syscall,
};

/// Priority of the guard among the filters of an interface; one of natgw's own, so that it is
/// found again. Lower numbers run first.
const GUARD_PRIORITY: u16 = 7;
/// Behind everything that translates or redirects there.
const INNER_GUARD_PRIORITY: u16 = 0x7f07;
const TCX: (u32, u32) = (6, 6);

/// Where in the kernel the entry program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AttachMode {
    /// In the driver.
    Native,
    /// In the network stack: any interface, slower.
    Generic,
}

impl AttachMode {
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    pub(super) const fn flags(self) -> XdpMode {
        match self {
            Self::Native => XdpMode::Driver,
            Self::Generic => XdpMode::Skb,
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
        .attach_to_if_index(ifindex, mode.flags())
        .and_then(|id| program.take_link(id))
        .map_err(|error| explain(ifindex, interface, mode, &error))?;
    let link = FdLink::try_from(link).map_err(|error| {
        DatapathError::bpf(format!("get a link for {interface} that can be pinned"), error)
    })?;
    link.pin(&path)
        .map_err(|error| DatapathError::bpf(format!("pin {}", path.display()), error))?;
    Ok(())
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
fn living_link(path: &Path, ifindex: u32) -> Result<Option<FdLink>, DatapathError> {
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

/// Where a guard hangs, in words and in the kernel's terms.
const fn place(guard: Guard) -> (&'static str, TcAttachType) {
    match guard {
        Guard::Outer => ("the guard to the egress", TcAttachType::Egress),
        Guard::Inner => ("the inner guard to the ingress", TcAttachType::Ingress),
    }
}

fn not_attached(guard: Guard, interface: &str) -> impl Fn(ProgramError) -> DatapathError {
    move |error| DatapathError::bpf(format!("attach {} of {interface}", place(guard).0), error)
}

/// Puts a guard on an interface, or gives the one there the new program.
pub(super) fn attach_guard(
    bpf: &mut Ebpf,
    pins: &PinDirectory,
    name: &str,
    guard: Guard,
    ifindex: u32,
    interface: &str,
) -> Result<(), DatapathError> {
    if has_tcx() {
        attach_guard_link(bpf, pins, guard, ifindex, interface)
    } else {
        attach_guard_filter(bpf, pins, name, guard, interface)
    }
}

fn attach_guard_link(
    bpf: &mut Ebpf,
    pins: &PinDirectory,
    guard: Guard,
    ifindex: u32,
    interface: &str,
) -> Result<(), DatapathError> {
    let failed = not_attached(guard, interface);
    let path = pins.guard_link(guard, interface);
    if let Some(link) = living_link(&path, ifindex)? {
        let link = SchedClassifierLink::try_from(link).map_err(|error| {
            DatapathError::bpf(format!("use the link of the guard on {interface}"), error)
        })?;
        let program = guard_mut(bpf, guard)?;
        return program
            .attach_to_link(link)
            .and_then(|id| program.take_link(id))
            .map(drop)
            .map_err(failed);
    }
    let program = guard_mut(bpf, guard)?;
    let order = match guard {
        Guard::Outer => LinkOrder::first(),
        // Behind what translates there.
        Guard::Inner => LinkOrder::last(),
    };
    let link = program
        .attach_with_options(interface, place(guard).1, TcAttachOptions::TcxOrder(order))
        .and_then(|id| program.take_link(id))
        .map_err(failed)?;
    let link = FdLink::try_from(link).map_err(|error| {
        DatapathError::bpf(format!("get a link for the guard on {interface}"), error)
    })?;
    link.pin(&path)
        .map_err(|error| DatapathError::bpf(format!("pin {}", path.display()), error))?;
    Ok(())
}

/// A filter has no link to pin. It is found again by priority and handle; the pinned program next
/// to the maps is the note that it was made.
fn attach_guard_filter(
    bpf: &mut Ebpf,
    pins: &PinDirectory,
    name: &str,
    guard: Guard,
    interface: &str,
) -> Result<(), DatapathError> {
    let failed = not_attached(guard, interface);
    if let Err(error) = tc::qdisc_add_clsact(interface)
        && errno(&error) != Some(libc::EEXIST)
    {
        return Err(failed(error.into()));
    }
    let program = guard_mut(bpf, guard)?;
    let note = pins.guard_filter(guard, interface);
    pin::remove(&note)?;
    program
        .pin(&note)
        .map_err(|error| DatapathError::bpf(format!("pin {}", note.display()), error))?;
    let present = guard_filter(name, guard, interface)
        .map_err(|error| DatapathError::call(format!("find {interface}"), error))?;
    let replaced = program.attach_to_link(present);
    let id = match replaced {
        Ok(id) => id,
        Err(_none_yet) => {
            let options = NlOptions {
                priority: guard_priority(guard),
                handle: guard_handle(name),
                classid: None,
            };
            let options = TcAttachOptions::Netlink(options);
            program.attach_with_options(interface, place(guard).1, options).map_err(failed)?
        }
    };
    keep_filter(program, id).map_err(not_attached(guard, interface))
}

/// Dropping the handle would take the filter away, which has to outlive this process.
fn keep_filter(
    guard: &mut SchedClassifier,
    id: tc::SchedClassifierLinkId,
) -> Result<(), ProgramError> {
    std::mem::forget(guard.take_link(id)?);
    Ok(())
}

/// Takes a guard that is a filter off an interface; one that is gone is as good.
pub(super) fn remove_guard_filter(
    name: &str,
    guard: Guard,
    interface: &str,
) -> Result<(), DatapathError> {
    match guard_filter(name, guard, interface) {
        // Dropped without `detach`: the answer to a filter that is not there is an error.
        Ok(filter) => {
            drop(filter);
            Ok(())
        }
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        Err(error) => Err(DatapathError::call(format!("find {interface}"), error)),
    }
}

fn guard_filter(name: &str, guard: Guard, interface: &str) -> io::Result<SchedClassifierLink> {
    let (_, hook) = place(guard);
    let handle = guard_handle(name);
    SchedClassifierLink::attached(interface, hook, guard_priority(guard), handle, None)
}

const fn guard_priority(guard: Guard) -> u16 {
    match guard {
        Guard::Outer => GUARD_PRIORITY,
        Guard::Inner => INNER_GUARD_PRIORITY,
    }
}

/// Gateways of different names may share an interface: each has a handle of its own (FNV-1a).
fn guard_handle(name: &str) -> TcHandle {
    let hash = name
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    TcHandle::from(hash | 1)
}

fn has_tcx() -> bool {
    nix::sys::utsname::uname()
        .ok()
        .and_then(|name| kernel_version(&name.release().to_string_lossy()))
        .is_some_and(|version| version >= TCX)
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
            "use xdp_mode = \"generic\" (slower), or an interface whose driver has it".to_owned(),
        ),
        (Some(libc::ERANGE | libc::EINVAL | libc::EOPNOTSUPP), _) if mtu => (
            format!("its MTU is too large for the driver's XDP{text}"),
            format!(
                "lower it (`ip link set dev {interface} mtu 1500`; AWS ENA: at most 3498), or use xdp_mode = \"generic\""
            ),
        ),
        (Some(libc::EINVAL | libc::ERANGE), _) if mode == AttachMode::Native => (
            format!("the driver refuses an XDP program as the interface is set up{text}"),
            format!(
                "lower its MTU, turn LRO off (`ethtool -K {interface} lro off`), halve its queues (`ethtool -L`), or use xdp_mode = \"generic\""
            ),
        ),
        (Some(libc::ENOMEM | libc::ENOSPC), _) => (
            format!("the driver lacks queues or memory for XDP{text}"),
            format!(
                "use fewer queues (`ethtool -L {interface} combined N`), or xdp_mode = \"generic\""
            ),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_of_different_names_have_different_guard_handles() {
        let (first, second) = (u32::from(guard_handle("default")), u32::from(guard_handle("lab")));
        assert_ne!(first, second);
        assert!(first != 0 && second != 0);
    }
}
