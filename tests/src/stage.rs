//! A place to load the datapath in, without a daemon.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData};
use nat_common::maps;
use nat_userspace::datapath::{Datapath, OpenOptions, Opened, detach_all};

use crate::attached::run;

pub const NAME: &str = "test";
pub const SESSIONS: u32 = 16384;

/// A network namespace with a pair of interfaces, and a place for pins.
pub struct Stage {
    pub bpf_dir: PathBuf,
}

impl Stage {
    /// # Errors
    /// Where this is not root.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .context("a network namespace; run as root")?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = format!("/sys/fs/bpf/natgw-test-{}-{number}", std::process::id());
        let stage = Self { bpf_dir: PathBuf::from(directory) };
        run("ip", "link add inside type veth peer name outside")?;
        run("ip", "link set inside up")?;
        run("ip", "link set outside up")?;
        Ok(stage)
    }

    #[must_use]
    pub fn options(&self) -> OpenOptions {
        OpenOptions {
            bpf_dir: self.bpf_dir.clone(),
            name: NAME.to_owned(),
            sessions: SESSIONS,
            bindings: false,
            records: false,
            verifier_log: None,
        }
    }

    /// # Errors
    /// As [`Datapath::open`].
    pub fn open(&self) -> Result<(Datapath, Opened)> {
        Ok(Datapath::open(&self.options())?)
    }

    #[must_use]
    pub fn pins(&self) -> PathBuf {
        self.bpf_dir.join(NAME).join(format!("v{}", maps::LAYOUT))
    }

    /// A pinned map, by bytes.
    ///
    /// # Errors
    /// Where there is no such map, or its types are of another size.
    pub fn map<const K: usize, const V: usize>(
        &self,
        name: &str,
    ) -> Result<HashMap<MapData, [u8; K], [u8; V]>> {
        let pinned = MapData::from_pin(self.pins().join(name))?;
        Ok(Map::HashMap(pinned).try_into()?)
    }

    /// # Errors
    /// As [`Self::map`].
    pub fn fill<const K: usize, const V: usize>(
        &self,
        name: &str,
        entries: &[([u8; K], [u8; V])],
    ) -> Result<()> {
        let mut map = self.map(name)?;
        entries.iter().try_for_each(|(key, value)| Ok(map.insert(key, value, 0)?))
    }

    /// # Errors
    /// As [`Self::map`].
    pub fn keys<const K: usize, const V: usize>(&self, name: &str) -> Result<Vec<[u8; K]>> {
        self.map::<K, V>(name)?.keys().map(|key| Ok(key?)).collect()
    }

    /// What is pinned.
    ///
    /// # Errors
    /// Where nothing is.
    pub fn entries(&self) -> Result<BTreeSet<String>> {
        let entries = std::fs::read_dir(self.pins())?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        detach_all(&self.bpf_dir, NAME).expect("everything is removed");
        detach_all(&self.bpf_dir, "other").expect("everything is removed");
        if self.bpf_dir.exists() {
            std::fs::remove_dir(&self.bpf_dir).expect("nothing is left");
        }
    }
}
