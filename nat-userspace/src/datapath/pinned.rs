//! What a gateway of a name has pinned, for whoever only looks.

use std::{collections::BTreeSet, fs, io, path::Path};

use nat_common::maps::LAYOUT;

use super::{
    bpffs,
    pin::{BACKSTOP_LINK, DOT, Guard, TC_FILTER, TC_LINK, XDP_LINK},
};

/// Names of what is there; nothing of it is opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pinned {
    /// "v7": each has sessions of its own.
    pub layouts: BTreeSet<String>,
    /// Interfaces with a translating program of this version's layout.
    pub programs: BTreeSet<String>,
    /// Interfaces with a guard of this version's layout.
    pub guards: BTreeSet<String>,
    /// Behind them, for interfaces that nobody knows yet.
    pub backstop: bool,
}

impl Pinned {
    /// # Errors
    /// Where this user may not look.
    pub fn read(bpf_dir: &Path, name: &str) -> io::Result<Self> {
        let directory = bpffs::home(bpf_dir).join(name);
        let mut pinned = Self { layouts: names(&directory)?, ..Self::default() };
        pinned.layouts.retain(|layout| layout.starts_with('v'));
        for pin in names(&directory.join(format!("v{LAYOUT}")))? {
            pinned.note(&pin);
        }
        Ok(pinned)
    }

    fn note(&mut self, pin: &str) {
        let on = |prefixes: &[&str]| {
            let interface = prefixes.iter().find_map(|prefix| pin.strip_prefix(prefix))?;
            Some(interface.replace(DOT, "."))
        };
        self.programs.extend(on(&[XDP_LINK, TC_LINK, TC_FILTER]));
        // The inner guard stands on interfaces of its own and is asked for nowhere.
        self.guards.extend(on(&[Guard::Outer.link(), Guard::Outer.filter()]));
        self.backstop |= pin.starts_with(BACKSTOP_LINK);
    }
}

fn names(directory: &Path) -> io::Result<BTreeSet<String>> {
    match fs::read_dir(directory) {
        Ok(entries) => {
            entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_told_apart_by_what_they_are_on() {
        let mut pinned = Pinned::default();
        for pin in [
            "link-xdp-eth-1",
            "link-tc-eth0:7",
            "tc-filter-eth3",
            "link-guard-eth0",
            "guard-filter-eth2",
            "link-inside-eth4",
            "inside-filter-eth5",
            "sessions",
            "stages-1",
        ] {
            pinned.note(pin);
        }
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(pinned.programs, set(&["eth-1", "eth0.7", "eth3"]));
        assert_eq!(pinned.guards, set(&["eth0", "eth2"]));
        assert!(!pinned.backstop);
        pinned.note("link-backstop-forward");
        assert!(pinned.backstop);
    }

    #[test]
    fn a_directory_that_is_not_there_has_no_pins() {
        let read = Pinned::read(Path::new("/proc/self/no/such"), "x").expect("nothing to refuse");
        assert_eq!(read, Pinned::default());
    }
}
