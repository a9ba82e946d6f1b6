//! The gateway's place in the BPF file system: where things are pinned, whether what is there
//! fits this version, and taking it away.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::maps::MapInfo;
use nat_common::maps::{self, LAYOUT};

use super::{
    bpffs,
    error::DatapathError,
    syscall,
    tc::{self, Place},
};

/// The kernel sets this flag on a device map by itself.
const BPF_F_RDONLY_PROG: u32 = 1 << 7;

/// The maps that outlive a process, and so have a pin.
pub(super) const PINNED: &[&str] = &[
    maps::CONTROL,
    maps::COUNTERS,
    maps::SESSIONS,
    maps::FLOW_CACHE,
    maps::NEXT_HOPS,
    maps::SIEVE,
    maps::AGENDA,
    maps::BINDINGS,
    maps::PERMITS,
    maps::HOSTS,
    maps::INTERFACES,
    maps::LINKS,
    maps::EGRESS,
    maps::OTHER_LINKS,
    maps::HOST_ADDRESSES,
    maps::PUBLIC_ADDRESSES,
    maps::ADDRESSES,
    maps::POOLS,
    maps::POOL_MEMBERS,
    maps::SNAT,
    maps::EXEMPT,
    maps::FORWARDS,
    maps::ONE_TO_ONE,
    maps::BUSY_PORTS,
    maps::PORT_TEMPLATES,
    maps::REFUSED_PORTS,
    maps::FRAGMENTS,
    maps::EVENTS,
    maps::RECORDS,
];

// No dots in any name: the kernel keeps them for itself (`bpf_lookup` in kernel/bpf/inode.c).
/// Stands for a dot in an interface's name, which cannot have it (`dev_valid_name`).
pub(super) const DOT: &str = ":";
/// What a cold start has put aside, until it has something in its place.
const ASIDE: &str = "aside-";
const STAGE_TABLE: &str = "stages-";
/// The same of the tc programs.
const TC_STAGE_TABLE: &str = "tc-stages-";
const PROGRAM: &str = "prog-";
pub(super) const TC_LINK: &str = "link-tc-";
/// An entry program attached by netlink, before TCX: its name carries the interface's.
pub(super) const TC_FILTER: &str = "tc-filter-";
pub(super) const XDP_LINK: &str = "link-xdp-";
/// The backstop's; one that is about to take its place has an ending.
pub(super) const BACKSTOP_LINK: &str = "link-backstop-";
const NEXT: &str = "-next";

/// The two guards of the guarantee, each a tc program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Guard {
    /// On the egress of a public interface.
    Outer,
    /// On the ingress of a private one.
    Inner,
}

impl Guard {
    pub(super) const BOTH: [Self; 2] = [Self::Outer, Self::Inner];

    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Outer => maps::GUARD_PROGRAM,
            Self::Inner => maps::INNER_GUARD_PROGRAM,
        }
    }

    pub(super) const fn link(self) -> &'static str {
        match self {
            Self::Outer => "link-guard-",
            Self::Inner => "link-inside-",
        }
    }

    /// One attached by netlink, before TCX: the pinned program's name carries the interface's.
    pub(super) const fn filter(self) -> &'static str {
        match self {
            Self::Outer => "guard-filter-",
            Self::Inner => "inside-filter-",
        }
    }
}

/// Where the backstop hangs: the hooks of netfilter for IPv4, by the kernel's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    /// What the host forwards.
    Forward,
    /// What the host sends.
    Output,
}

impl Hook {
    pub(super) const BOTH: [Self; 2] = [Self::Forward, Self::Output];

    pub(super) const fn number(self) -> u32 {
        match self {
            Self::Forward => 2,
            Self::Output => 3,
        }
    }

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Output => "output",
        }
    }
}

/// Everything of one gateway: `BPF_DIR/NAME/v{LAYOUT}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PinDirectory {
    pub(super) path: PathBuf,
}

fn pin_name(prefix: &str, interface: &str) -> String {
    format!("{prefix}{}", interface.replace('.', DOT))
}

impl PinDirectory {
    /// # Errors
    /// Where the file system cannot be mounted, the directory cannot be made, or the gateway has
    /// state of another layout.
    pub(super) fn create(bpf_dir: &Path, name: &str) -> Result<Self, DatapathError> {
        let parent = bpffs::ensure(bpf_dir)?.join(name);
        for found in entries(&parent)? {
            if found != format!("v{LAYOUT}") && !found.starts_with(ASIDE) {
                let path = parent.join(&found);
                let name = name.to_owned();
                return Err(DatapathError::OtherLayout { name, path, found, wanted: LAYOUT });
            }
        }
        let path = parent.join(format!("v{LAYOUT}"));
        fs::create_dir_all(&path).map_err(|source| DatapathError::File {
            what: "create",
            path: path.clone(),
            source,
            remedy: "start natgw as root, or name a writable gateway.bpf_dir",
        })?;
        Ok(Self { path })
    }

    /// Puts everything that a gateway of this name has pinned out of the way of a new start. It
    /// stays attached.
    pub(super) fn put_aside(bpf_dir: &Path, name: &str) -> Result<(), DatapathError> {
        let parent = bpffs::ensure(bpf_dir)?.join(name);
        for found in entries(&parent)? {
            if !found.starts_with(ASIDE) {
                rename(&parent.join(&found), &parent.join(format!("{ASIDE}{found}")))?;
            }
        }
        Ok(())
    }

    /// The opposite of [`Self::put_aside`], for a start that came to nothing.
    pub(super) fn put_back(bpf_dir: &Path, name: &str) -> Result<(), DatapathError> {
        let parent = bpffs::home(bpf_dir).join(name);
        for found in entries(&parent)? {
            if let Some(layout) = found.strip_prefix(ASIDE) {
                let path = parent.join(layout);
                if path.exists() {
                    remove_directory(&path)?;
                }
                rename(&parent.join(&found), &path)?;
            }
        }
        Ok(())
    }

    /// Takes off and removes what was put aside, this gateway's guard being in its place.
    pub(super) fn remove_aside(&self, name: &str) -> Result<(), DatapathError> {
        let Some(parent) = self.path.parent() else { return Ok(()) };
        for found in entries(parent)?.iter().filter(|found| found.starts_with(ASIDE)) {
            let old = Self { path: parent.join(found) };
            for guard in Guard::BOTH {
                for interface in old.interfaces(guard.filter())? {
                    // There is one filter of a gateway at most in each place, and it may be the new
                    // one.
                    if self.guard_filter(guard, &interface).exists() {
                        remove(&old.guard_filter(guard, &interface))?;
                    }
                }
            }
            for interface in old.interfaces(TC_FILTER)? {
                if self.tc_filter(&interface).exists() {
                    remove(&old.tc_filter(&interface))?;
                }
            }
            old.remove_all(name)?;
        }
        Ok(())
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.path.join(maps::pin(name))
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.path.join(format!("{PROGRAM}{name}"))
    }

    pub(super) fn xdp_link(&self, interface: &str) -> PathBuf {
        self.path.join(pin_name(XDP_LINK, interface))
    }

    pub(super) fn tc_link(&self, interface: &str) -> PathBuf {
        self.path.join(pin_name(TC_LINK, interface))
    }

    pub(super) fn tc_filter(&self, interface: &str) -> PathBuf {
        self.path.join(pin_name(TC_FILTER, interface))
    }

    pub(super) fn guard_link(&self, guard: Guard, interface: &str) -> PathBuf {
        self.path.join(pin_name(guard.link(), interface))
    }

    pub(super) fn guard_filter(&self, guard: Guard, interface: &str) -> PathBuf {
        self.path.join(pin_name(guard.filter(), interface))
    }

    pub(super) fn backstop_link(&self, hook: Hook) -> PathBuf {
        self.path.join(format!("{BACKSTOP_LINK}{}", hook.word()))
    }

    pub(super) fn next_backstop_link(&self, hook: Hook) -> PathBuf {
        self.path.join(format!("{BACKSTOP_LINK}{}{NEXT}", hook.word()))
    }

    pub(super) fn stages(&self, generation: u32) -> PathBuf {
        self.path.join(format!("{STAGE_TABLE}{generation}"))
    }

    pub(super) fn tc_stages(&self, generation: u32) -> PathBuf {
        self.path.join(format!("{TC_STAGE_TABLE}{generation}"))
    }

    /// Generations of the programs that have left a stage table here, of either kind.
    pub(super) fn stage_generations(&self) -> Result<Vec<u32>, DatapathError> {
        let of = |entry: &String| {
            let number =
                entry.strip_prefix(STAGE_TABLE).or_else(|| entry.strip_prefix(TC_STAGE_TABLE));
            number?.parse().ok()
        };
        Ok(entries(&self.path)?.iter().filter_map(of).collect())
    }

    /// Interfaces that have an entry program by a pin here, of any kind.
    pub(super) fn entry_interfaces(&self) -> Result<Vec<String>, DatapathError> {
        let mut interfaces = self.interfaces(XDP_LINK)?;
        interfaces.extend(self.interfaces(TC_LINK)?);
        interfaces.extend(self.interfaces(TC_FILTER)?);
        Ok(interfaces)
    }

    /// Interfaces that have this guard here, as a link or as a filter.
    pub(super) fn guard_interfaces(&self, guard: Guard) -> Result<Vec<String>, DatapathError> {
        let mut interfaces = self.interfaces(guard.link())?;
        interfaces.extend(self.interfaces(guard.filter())?);
        Ok(interfaces)
    }

    fn interfaces(&self, prefix: &str) -> Result<Vec<String>, DatapathError> {
        let entries = entries(&self.path)?;
        let pinned = entries.iter().filter_map(|e| e.strip_prefix(prefix));
        Ok(pinned.map(|name| name.replace(DOT, ".")).collect())
    }

    /// Compares what is pinned with what this version's programs want, by map name.
    pub(super) fn check(
        &self,
        name: &str,
        wanted: &BTreeMap<String, Definition>,
    ) -> Result<(), DatapathError> {
        for map in PINNED {
            let path = self.map(map);
            let Some(wanted) = wanted.get(*map) else { continue };
            if !path.exists() {
                continue;
            }
            let info = MapInfo::from_pin(&path)
                .map_err(|error| DatapathError::bpf(format!("open {}", path.display()), error))?;
            let pinned = Definition::pinned(&info, wanted.kind).map_err(|error| {
                DatapathError::bpf(format!("inspect {}", path.display()), error)
            })?;
            if *map == maps::SESSIONS
                && pinned == (Definition { capacity: pinned.capacity, ..*wanted })
                && pinned.capacity != wanted.capacity
            {
                return Err(DatapathError::OtherCapacity {
                    name: name.to_owned(),
                    pinned: pinned.capacity / 2,
                    wanted: wanted.capacity / 2,
                });
            }
            if let Some(difference) = pinned.difference(wanted) {
                let name = name.to_owned();
                return Err(DatapathError::OtherMap { name, path, difference });
            }
        }
        Ok(())
    }
}

/// What has to be equal for a pinned map to be taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Definition {
    /// `BPF_MAP_TYPE_*`.
    pub(super) kind: u32,
    pub(super) key: u32,
    pub(super) value: u32,
    pub(super) capacity: u32,
    pub(super) flags: u32,
}

impl Definition {
    fn pinned(info: &MapInfo, wanted_kind: u32) -> Result<Self, aya::maps::MapError> {
        let kind = info.map_type()? as u32;
        debug_assert!(wanted_kind != 0, "unspecified map type");
        Ok(Self {
            kind,
            key: info.key_size(),
            value: info.value_size(),
            capacity: info.max_entries(),
            flags: info.map_flags() & !BPF_F_RDONLY_PROG,
        })
    }

    /// "value of 64 bytes instead of 72", or nothing.
    fn difference(&self, wanted: &Self) -> Option<String> {
        let fields = [
            ("type", self.kind, wanted.kind),
            ("key size", self.key, wanted.key),
            ("value size", self.value, wanted.value),
            ("capacity", self.capacity, wanted.capacity),
            ("flags", self.flags, wanted.flags),
        ];
        let (field, pinned, wanted) =
            fields.into_iter().find(|(_, pinned, wanted)| pinned != wanted)?;
        Some(format!("{field} {pinned} instead of {wanted}"))
    }
}

/// Removes everything that a gateway of this name has pinned or attached, of any layout, whatever
/// died half-way. Returns whether there was anything.
///
/// # Errors
/// The first thing that could not be removed; the rest is tried all the same.
pub fn detach_all(bpf_dir: &Path, name: &str) -> Result<bool, DatapathError> {
    let parent = bpffs::home(bpf_dir).join(name);
    let layouts = entries(&parent)?;
    let mut first_error = None;
    let mut keep = |result: Result<(), DatapathError>| {
        if let Err(error) = result {
            first_error.get_or_insert(error);
        }
    };
    for layout in &layouts {
        keep(PinDirectory { path: parent.join(layout) }.remove_all(name));
    }
    if parent.exists() {
        keep(remove_directory(&parent));
    }
    first_error.map_or(Ok(!layouts.is_empty()), Err)
}

impl PinDirectory {
    fn remove_all(&self, name: &str) -> Result<(), DatapathError> {
        let mut first_error = None;
        let mut keep = |result: Result<(), DatapathError>| {
            if let Err(error) = result {
                first_error.get_or_insert(error);
            }
        };
        // Translation first and the guard after it: what is on its way then is stopped, not leaked.
        for interface in self.entry_interfaces()? {
            keep(remove_link(&self.xdp_link(&interface)));
            keep(tc::detach(Place::Entry, self, name, &interface));
        }
        for guard in Guard::BOTH {
            for interface in self.guard_interfaces(guard)? {
                keep(tc::detach(Place::Guard(guard), self, name, &interface));
            }
        }
        for hook in Hook::BOTH {
            keep(remove_link(&self.backstop_link(hook)));
            keep(remove_link(&self.next_backstop_link(hook)));
        }
        for entry in entries(&self.path)? {
            keep(remove(&self.path.join(entry)));
        }
        keep(remove_directory(&self.path));
        first_error.map_or(Ok(()), Err)
    }
}

/// The layouts in which a gateway of this name has something pinned: "v1".
///
/// # Errors
/// Where the directory cannot be read.
pub fn layouts(bpf_dir: &Path, name: &str) -> Result<Vec<String>, DatapathError> {
    entries(&bpffs::home(bpf_dir).join(name))
}

/// Whether a gateway of this name has left a link on this interface, of any layout.
#[must_use]
pub fn has_link(bpf_dir: &Path, name: &str, interface: &str) -> bool {
    let parent = bpffs::home(bpf_dir).join(name);
    let layouts = entries(&parent).unwrap_or_default();
    layouts.iter().any(|it| PinDirectory { path: parent.join(it) }.xdp_link(interface).exists())
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<(), DatapathError> {
    fs::rename(from, to).map_err(|source| DatapathError::File {
        what: "rename",
        path: from.to_owned(),
        source,
        remedy: "run as root",
    })
}

/// Takes a pinned link off its interface even where another process holds it open.
pub(super) fn remove_link(path: &Path) -> Result<(), DatapathError> {
    if let Ok(link) = syscall::open_pin(path)
        && let Err(error) = syscall::link_detach(link.as_fd())
        // The interface is gone, or the link was detached before.
        && !matches!(error.raw_os_error(), Some(libc::ENOLINK | libc::EOPNOTSUPP | libc::ENODEV))
    {
        return Err(DatapathError::call(format!("detach {}", path.display()), error));
    }
    remove(path)
}

/// Removes a pin; one that is not there is as good.
pub(super) fn remove(path: &Path) -> Result<(), DatapathError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(DatapathError::File {
            what: "remove",
            path: path.to_owned(),
            source,
            remedy: "run as root",
        }),
        _ => Ok(()),
    }
}

pub(super) fn remove_directory(path: &Path) -> Result<(), DatapathError> {
    fs::remove_dir(path).map_err(|source| DatapathError::File {
        what: "remove",
        path: path.to_owned(),
        source,
        remedy: "remove what is left in it",
    })
}

/// Names in a directory, sorted; none where it does not exist.
fn entries(path: &Path) -> Result<Vec<String>, DatapathError> {
    let failed = |source| DatapathError::File {
        what: "read",
        path: path.to_owned(),
        source,
        remedy: "run as root",
    };
    let directory = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(failed)?,
    };
    let mut names = directory
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(failed)?;
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSIONS: Definition =
        Definition { kind: 1, key: 16, value: 64, capacity: 2048, flags: 0 };

    #[test]
    fn the_first_difference_is_named_and_equal_maps_have_none() {
        assert_eq!(SESSIONS.difference(&SESSIONS), None);
        let wanted = Definition { value: 72, capacity: 1, ..SESSIONS };
        assert_eq!(SESSIONS.difference(&wanted).as_deref(), Some("value size 64 instead of 72"));
    }

    #[test]
    fn a_directory_that_does_not_exist_has_no_entries() {
        let entries = entries(Path::new("/proc/no-such-directory")).expect("no entries");
        assert_eq!(entries, Vec::<String>::new());
    }
}
