//! Programs on tc: the guards on egress and ingress, the entry program on the ingress. By TCX links that are
//! pinned or, before Linux 6.6, by netlink.

use std::{
    io,
    path::{Path, PathBuf},
};

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier,
    links::FdLink,
    tc::{
        self, NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcAttachType,
        TcHandle,
    },
};

use super::{
    attach::{living_link, remaining_link},
    error::{DatapathError, errno},
    load::kernel_version,
    pin::{self, Guard, PinDirectory},
};

/// Priority among the filters of an interface; one of natgw's own, so that a filter is found again.
/// Lower numbers run first.
const PRIORITY: u16 = 7;
/// Behind everything that translates or redirects there.
const INNER_GUARD_PRIORITY: u16 = 0x7f07;
const TCX: (u32, u32) = (6, 6);

/// What hangs on tc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Guard(Guard),
    Entry,
}

impl Place {
    const fn what(self) -> &'static str {
        match self {
            Self::Guard(Guard::Outer) => "the guard to the egress",
            Self::Guard(Guard::Inner) => "the inner guard to the ingress",
            Self::Entry => "the entry program to the tc ingress",
        }
    }

    const fn direction(self) -> TcAttachType {
        match self {
            Self::Guard(Guard::Outer) => TcAttachType::Egress,
            Self::Guard(Guard::Inner) | Self::Entry => TcAttachType::Ingress,
        }
    }

    fn link(self, pins: &PinDirectory, interface: &str) -> PathBuf {
        match self {
            Self::Guard(guard) => pins.guard_link(guard, interface),
            Self::Entry => pins.tc_link(interface),
        }
    }

    /// The note of a filter, which has no link to pin: the pinned program.
    fn filter(self, pins: &PinDirectory, interface: &str) -> PathBuf {
        match self {
            Self::Guard(guard) => pins.guard_filter(guard, interface),
            Self::Entry => pins.tc_filter(interface),
        }
    }

    fn order(self) -> LinkOrder {
        match self {
            // Behind what translates there.
            Self::Guard(Guard::Inner) => LinkOrder::last(),
            _ => LinkOrder::first(),
        }
    }

    const fn priority(self) -> u16 {
        match self {
            Self::Guard(Guard::Inner) => INNER_GUARD_PRIORITY,
            _ => PRIORITY,
        }
    }

    fn failed(self, interface: &str) -> impl Fn(ProgramError) -> DatapathError {
        let what = format!("attach {} of {interface}", self.what());
        move |error| DatapathError::bpf(what.clone(), error)
    }
}

/// Puts a program on an interface, or gives what hangs there the new program.
pub(super) fn attach(
    program: &mut SchedClassifier,
    place: Place,
    pins: &PinDirectory,
    name: &str,
    ifindex: u32,
    interface: &str,
) -> Result<(), DatapathError> {
    if has_tcx() {
        attach_link(program, place, pins, ifindex, interface)
    } else {
        attach_filter(program, place, pins, name, interface)
    }
}

fn attach_link(
    program: &mut SchedClassifier,
    place: Place,
    pins: &PinDirectory,
    ifindex: u32,
    interface: &str,
) -> Result<(), DatapathError> {
    let failed = place.failed(interface);
    let path = place.link(pins, interface);
    if let Some(link) = living_link(&path, ifindex)? {
        return give(program, link, &path, failed);
    }
    let options = TcAttachOptions::TcxOrder(place.order());
    let link = program
        .attach_with_options(interface, place.direction(), options)
        .and_then(|id| program.take_link(id))
        .map_err(failed)?;
    let link = FdLink::try_from(link).map_err(|error| {
        DatapathError::bpf(format!("get a link on {interface} that can be pinned"), error)
    })?;
    link.pin(&path)
        .map_err(|error| DatapathError::bpf(format!("pin {}", path.display()), error))?;
    Ok(())
}

/// A filter has no link to pin. It is found again by priority and handle; the pinned program next
/// to the maps is the note that it was made.
fn attach_filter(
    program: &mut SchedClassifier,
    place: Place,
    pins: &PinDirectory,
    name: &str,
    interface: &str,
) -> Result<(), DatapathError> {
    let failed = place.failed(interface);
    add_clsact(interface).map_err(&failed)?;
    let note = place.filter(pins, interface);
    pin::remove(&note)?;
    program
        .pin(&note)
        .map_err(|error| DatapathError::bpf(format!("pin {}", note.display()), error))?;
    let present = filter(place, name, interface)
        .map_err(|error| DatapathError::call(format!("find {interface}"), error))?;
    let replaced = program.attach_to_link(present);
    let id = match replaced {
        Ok(id) => id,
        Err(_none_yet) => {
            let options =
                NlOptions { priority: place.priority(), handle: handle(name), classid: None };
            let options = TcAttachOptions::Netlink(options);
            program.attach_with_options(interface, place.direction(), options).map_err(&failed)?
        }
    };
    leave(program, id).map_err(failed)
}

/// Gives the link that is pinned as `path` this program. The link belongs to its pin: this process keeps no
/// reference that would outlive it.
fn give(
    program: &mut SchedClassifier,
    link: FdLink,
    path: &Path,
    failed: impl Fn(ProgramError) -> DatapathError,
) -> Result<(), DatapathError> {
    let link = SchedClassifierLink::try_from(link)
        .map_err(|error| DatapathError::bpf(format!("use {}", path.display()), error))?;
    program.attach_to_link(link).and_then(|id| program.take_link(id)).map(drop).map_err(failed)
}

/// Leaves a filter where it is: dropping the handle would take it away, and it has to outlive this process.
fn leave(program: &mut SchedClassifier, id: SchedClassifierLinkId) -> Result<(), ProgramError> {
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// Gives what hangs on an interface another program. One whose interface is gone is left alone.
pub(super) fn swap(
    program: &mut SchedClassifier,
    place: Place,
    pins: &PinDirectory,
    name: &str,
    interface: &str,
) -> Result<(), DatapathError> {
    let failed = place.failed(interface);
    if has_tcx() {
        let path = place.link(pins, interface);
        let Some(link) = remaining_link(&path)? else { return Ok(()) };
        return give(program, link, &path, failed);
    }
    let present = match filter(place, name, interface) {
        Ok(present) => present,
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
        Err(error) => return Err(DatapathError::call(format!("find {interface}"), error)),
    };
    let id = program.attach_to_link(present).map_err(&failed)?;
    leave(program, id).map_err(failed)
}

/// Puts a program on the ingress of a device that ends with this process.
pub(super) fn attach_for_now(
    program: &mut SchedClassifier,
    interface: &str,
) -> Result<SchedClassifierLink, ProgramError> {
    let id = if has_tcx() {
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        program.attach_with_options(interface, TcAttachType::Ingress, options)?
    } else {
        add_clsact(interface)?;
        let options = TcAttachOptions::Netlink(NlOptions::default());
        program.attach_with_options(interface, TcAttachType::Ingress, options)?
    };
    program.take_link(id)
}

fn add_clsact(interface: &str) -> Result<(), ProgramError> {
    match tc::qdisc_add_clsact(interface) {
        Err(error) if errno(&error) != Some(libc::EEXIST) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Takes off what hangs on an interface, and removes its pins; what is gone is as good.
pub(super) fn detach(
    place: Place,
    pins: &PinDirectory,
    name: &str,
    interface: &str,
) -> Result<(), DatapathError> {
    let note = place.filter(pins, interface);
    if note.exists() {
        remove_filter(place, name, interface)?;
        pin::remove(&note)?;
    }
    pin::remove_link(&place.link(pins, interface))
}

/// Takes a filter off an interface; one that is gone is as good.
fn remove_filter(place: Place, name: &str, interface: &str) -> Result<(), DatapathError> {
    match filter(place, name, interface) {
        // Dropped without `detach`: the answer to a filter that is not there is an error.
        Ok(filter) => {
            drop(filter);
            Ok(())
        }
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        Err(error) => Err(DatapathError::call(format!("find {interface}"), error)),
    }
}

fn filter(place: Place, name: &str, interface: &str) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(
        interface,
        place.direction(),
        place.priority(),
        handle(name),
        None,
    )
}

/// Gateways of different names may share an interface: each has a handle of its own (FNV-1a).
fn handle(name: &str) -> TcHandle {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_of_different_names_have_different_handles() {
        let (first, second) = (u32::from(handle("default")), u32::from(handle("lab")));
        assert_ne!(first, second);
        assert!(first != 0 && second != 0);
    }
}
