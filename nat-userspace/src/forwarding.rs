//! IPv4 forwarding of the gateway's interfaces, and the state file that remembers what it was.
//!
//! `bpf_fib_lookup` refuses where the ingress interface's `forwarding` is off, so the gateway turns
//! it on for its own interfaces once the guard is in place. `detach` puts back what was.

use std::{
    collections::BTreeMap,
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// `STATE_DIR/NAME.state`: what `detach` has to know when neither daemon nor file is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateFile {
    /// The system start that the rest belongs to: interfaces of an earlier one are gone.
    pub boot_id: String,
    pub bpf_dir: PathBuf,
    /// By name: `net.ipv4.conf.NAME.forwarding` before the gateway touched it.
    pub interfaces: BTreeMap<String, bool>,
    /// Addresses added by command that the file does not have, each with its pool: the next start
    /// drains them.
    #[serde(default)]
    pub added: BTreeMap<Ipv4Addr, String>,
}

impl StateFile {
    #[must_use]
    pub fn path(state_dir: &Path, name: &str) -> PathBuf {
        state_dir.join(format!("{name}.state"))
    }

    /// Nothing where there is no file, or one of an earlier system start.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let state: Self = match serde_json::from_str(&text) {
            Ok(state) => state,
            Err(error) => {
                log::warn!("{} is not a state file of natgw: {error}; ignored", path.display());
                return Ok(None);
            }
        };
        Ok((state.boot_id == boot_id()).then_some(state))
    }

    /// The file of an earlier run, or a new one.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn adopt(path: &Path, bpf_dir: &Path) -> Result<Self> {
        let (interfaces, added) =
            Self::load(path)?.map(|state| (state.interfaces, state.added)).unwrap_or_default();
        Ok(Self { boot_id: boot_id(), bpf_dir: bpf_dir.to_owned(), interfaces, added })
    }

    /// Written beside and renamed, so that it is never half there.
    ///
    /// # Errors
    /// Where the directory cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("cannot write down the state")?;
        let beside = path.with_extension("state.new");
        fs::write(&beside, text)
            .and_then(|()| fs::rename(&beside, path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// A start that has changed nothing leaves no file.
    pub fn forget_if_unused(&self, path: &Path) {
        if self.interfaces.is_empty()
            && let Err(error) = fs::remove_file(path)
        {
            log::debug!("cannot remove {}: {error}", path.display());
        }
    }

    /// Turns forwarding on for `interface`; what was is in the file before it changes.
    ///
    /// # Errors
    /// Where the setting or the file cannot be written.
    pub fn turn_on(&mut self, path: &Path, interface: &str) -> Result<()> {
        let was = is_on(interface)?;
        let first_time = !self.interfaces.contains_key(interface);
        if first_time {
            self.interfaces.insert(interface.to_owned(), was);
            self.save(path)?;
        }
        if !was {
            set(interface, true)?;
            log::info!("turned net.ipv4.conf.{interface}.forwarding on (natgw detach restores it)");
        }
        Ok(())
    }

    /// Puts back what was, for every interface that still exists.
    ///
    /// # Errors
    /// Where a setting cannot be written.
    pub fn restore(&self) -> Result<()> {
        for (interface, was) in &self.interfaces {
            if !was && Path::new(&setting(interface)).exists() {
                set(interface, false)?;
            }
        }
        Ok(())
    }
}

/// Of the network namespace of the calling thread.
fn setting(interface: &str) -> String {
    format!("/proc/sys/net/ipv4/conf/{interface}/forwarding")
}

fn is_on(interface: &str) -> Result<bool> {
    let path = setting(interface);
    let text = fs::read_to_string(&path)
        .with_context(|| format!("cannot read {path}; check that /proc is mounted"))?;
    Ok(text.trim() != "0")
}

fn set(interface: &str, on: bool) -> Result<()> {
    let path = setting(interface);
    fs::write(&path, if on { "1" } else { "0" }).with_context(|| {
        format!(
            "cannot write {path}; make /proc/sys writable for natgw, or run: sysctl -w \
             net.ipv4.conf.{interface}.forwarding={}",
            u8::from(on)
        )
    })
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_file_is_read_back_and_one_of_another_boot_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = StateFile::path(directory.path(), "gw");
        assert_eq!(StateFile::load(&path).expect("no file"), None);

        let mut state = StateFile::adopt(&path, Path::new("/sys/fs/bpf/x")).expect("a new one");
        state.interfaces.insert("eth0".to_owned(), false);
        state.save(&path).expect("written");
        assert_eq!(StateFile::load(&path).expect("readable"), Some(state.clone()));
        let adopted = StateFile::adopt(&path, Path::new("/sys/fs/bpf/x")).expect("adopted");
        assert_eq!(adopted, state);

        state.boot_id = "another".to_owned();
        state.save(&path).expect("written");
        assert_eq!(StateFile::load(&path).expect("readable"), None);
    }

    #[test]
    fn a_damaged_state_file_stops_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = StateFile::path(directory.path(), "gw");
        fs::write(&path, "{").expect("written");
        assert_eq!(StateFile::load(&path).expect("ignored"), None);
    }
}
