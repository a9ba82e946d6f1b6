//! The backstop: the guard of interfaces that nobody knows yet, as a netfilter program on the host's
//! forwarding and output. aya has no such programs; its object reader finds ours, and the calls of
//! [`super::syscall`] load and attach it.
//!
//! Optional: kernels before 6.4 have none, and then the guards on tc are all there is.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use aya::maps::MapData;
use aya_obj::{Object, maps::Map};
use nat_common::maps;

use super::{
    btf::KernelTypes,
    error::DatapathError,
    pin::{self, Hook, PinDirectory},
    syscall,
};

/// Where the program stands among those of a hook: behind all others (NF_IP_PRI_LAST itself is the
/// kernel's), so that it judges what they have made of the packet. A place is taken by one program.
const BEHIND_ALL: i32 = i32::MAX - 1;
/// For as many gateways in one network namespace, or starts of one that died half-way.
const PLACES: i32 = 256;
const READ_ONLY_DATA: &str = ".rodata";

/// Attaches the program at both hooks, pins its links, and then lets go of an earlier process's.
pub(super) fn attach(object: &[u8], pins: &PinDirectory) -> Result<(), DatapathError> {
    let program = load(object, pins)?;
    for hook in Hook::BOTH {
        let failed = |what: &str, error| {
            DatapathError::call(format!("{what} the backstop of {}", hook.word()), error)
        };
        let link = attach_behind_all(&program, hook).map_err(|error| failed("attach", error))?;
        let (path, next) = (pins.backstop_link(hook), pins.next_backstop_link(hook));
        pin::remove_link(&next)?;
        syscall::pin(link.as_fd(), &next).map_err(|error| failed("pin", error))?;
        // The one that was there goes by being replaced, when the new one is in force.
        fs::rename(&next, &path).map_err(|error| failed("rename", error))?;
    }
    Ok(())
}

fn attach_behind_all(program: &OwnedFd, hook: Hook) -> std::io::Result<OwnedFd> {
    let mut places = (0..PLACES)
        .map(|place| syscall::link_netfilter(program.as_fd(), hook.number(), BEHIND_ALL - place));
    let is_taken = |link: &std::io::Result<OwnedFd>| matches!(link, Err(error) if error.raw_os_error() == Some(libc::EBUSY));
    places.find(|link| !is_taken(link)).unwrap_or_else(|| Err(libc_error(libc::EBUSY)))
}

fn libc_error(number: i32) -> std::io::Error {
    std::io::Error::from_raw_os_error(number)
}

/// The program over the pinned maps.
fn load(object: &[u8], pins: &PinDirectory) -> Result<OwnedFd, DatapathError> {
    let name = maps::BACKSTOP_PROGRAM;
    let unreadable = |error| DatapathError::bpf("read the BPF object", error);
    let mut object = Object::parse(object).map_err(unreadable)?;
    let offsets = offsets().ok_or_else(|| DatapathError::Missing {
        what: "description of the kernel's types for program",
        name: name.to_owned(),
    })?;
    let globals = offsets.iter().map(|(global, bytes)| (*global, (bytes.as_slice(), true)));
    object.patch_map_data(globals.collect()).map_err(unreadable)?;

    let missing = || DatapathError::Missing { what: "program", name: name.to_owned() };
    let entry = object.programs.get(name).ok_or_else(missing)?.function_key();
    // What others refer to is not there. This one calls no function that is not inlined.
    object.programs.retain(|program, _| program == name);
    object.functions.retain(|key, _| *key == entry);
    let text = HashSet::from([entry.0]);

    let definitions: HashMap<String, Map> = object.maps.drain().collect();
    let mut open = Vec::new();
    for (map, definition) in &definitions {
        let fd = if map == READ_ONLY_DATA {
            Some(read_only_data(definition)?)
        } else {
            let path = pins.map(map);
            let opened = path.exists().then(|| syscall::open_pin(&path)).transpose();
            opened
                .map_err(|error| DatapathError::call(format!("open {}", path.display()), error))?
        };
        open.extend(fd.map(|fd| (map.as_str(), fd, definition)));
    }
    let references = open.iter().map(|(map, fd, definition)| (*map, fd.as_raw_fd(), *definition));
    let broken = |error| DatapathError::bpf(format!("link program {name}"), error);
    object.relocate_maps(references, &text).map_err(broken)?;
    object.relocate_calls(&text).map_err(broken)?;
    let function = object.functions.get(&entry).ok_or_else(missing)?;
    syscall::load_netfilter(name, &function.instructions, &object.license)
        .map_err(|error| DatapathError::call(format!("load program {name}"), error))
}

/// The map behind the program's constants, filled.
fn read_only_data(definition: &Map) -> Result<OwnedFd, DatapathError> {
    let failed = |error| DatapathError::bpf("create the BPF maps", error);
    let map = MapData::create(definition.clone(), READ_ONLY_DATA, None).map_err(failed)?;
    let filled = syscall::fill(map.fd().as_fd(), definition.data());
    let fd = filled.and_then(|()| map.fd().as_fd().try_clone_to_owned());
    fd.map_err(|error| DatapathError::call("fill the constants of the backstop", error))
}

/// Where the running kernel has the fields that the program reads, by the names of its globals.
fn offsets() -> Option<Vec<(&'static str, [u8; 4])>> {
    let types = KernelTypes::read()?;
    let fields = [
        ("HOOK_AT", "nf_hook_state", "hook"),
        ("OUT_AT", "nf_hook_state", "out"),
        ("OUT_IFINDEX_AT", "net_device", "ifindex"),
        ("DATA_AT", "sk_buff", "data"),
        ("LEN_AT", "sk_buff", "len"),
        ("DATA_LEN_AT", "sk_buff", "data_len"),
    ];
    fields
        .into_iter()
        .map(|(global, of, member)| Some((global, types.offset(of, member)?.to_ne_bytes())))
        .collect()
}
