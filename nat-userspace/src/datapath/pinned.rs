//! What a gateway of a name has pinned, for whoever only looks.

use std::{collections::BTreeSet, fs, io, path::Path};

use nat_common::maps::LAYOUT;

use super::bpffs;

/// Names of what is there; nothing of it is opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pinned {
    /// "v7": each has sessions of its own.
    pub layouts: BTreeSet<String>,
    /// Interfaces with a translating program of this version's layout.
    pub programs: BTreeSet<String>,
    /// Interfaces with a guard of this version's layout.
    pub guards: BTreeSet<String>,
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
        for prefix in ["link-guard-", "guard-filter-"] {
            if let Some(interface) = pin.strip_prefix(prefix) {
                self.guards.insert(interface.to_owned());
                return;
            }
        }
        if let Some(interface) = pin.strip_prefix("tc-filter-") {
            self.programs.insert(interface.to_owned());
        }
        // Whatever hook the link is of.
        if let Some((_, interface)) = pin.strip_prefix("link-").and_then(|it| it.split_once('-')) {
            self.programs.insert(interface.to_owned());
        }
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
        for pin in
            ["link-xdp-eth-1", "link-guard-eth0", "guard-filter-eth2", "sessions", "stages-1"]
        {
            pinned.note(pin);
        }
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(pinned.programs, set(&["eth-1"]));
        assert_eq!(pinned.guards, set(&["eth0", "eth2"]));
    }

    #[test]
    fn a_directory_that_is_not_there_has_no_pins() {
        let read = Pinned::read(Path::new("/proc/self/no/such"), "x").expect("nothing to refuse");
        assert_eq!(read, Pinned::default());
    }
}
