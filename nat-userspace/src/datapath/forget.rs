//! What the dataplane remembers of hosts and remote addresses that nothing uses any more.
//!
//! Both tables only help to decide about new sessions, so an entry that goes a moment too early
//! costs a pairing or a permit, never a session.

use std::path::{Path, PathBuf};

use aya::maps::{HashMap, Map, MapData, MapError};
use nat_common::{
    maps,
    session::{BindingImage, BindingKey, HostImage, HostKey, PermitKey},
};

use super::{batch::Batches, error::DatapathError, tables::Kern};

/// The tables to clean, for a thread of its own.
#[derive(Debug)]
pub struct Forgetter {
    directory: PathBuf,
}

impl Forgetter {
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Removes hosts without sessions, and permits whose binding is gone. Returns how many.
    ///
    /// # Errors
    /// None is expected.
    pub fn run(&self) -> Result<usize, DatapathError> {
        Ok(self.hosts()? + self.permits()?)
    }

    fn hosts(&self) -> Result<usize, DatapathError> {
        let mut walk = Batches::<HostKey, HostImage>::open(&self.directory, maps::HOSTS)?;
        let mut idle = Vec::new();
        while let Some(batch) = walk.next_batch()? {
            idle.extend(batch.filter(|(_, host)| host.sessions == [0; 3]).map(|(key, _)| key));
        }
        self.remove::<HostKey, HostImage>(maps::HOSTS, &idle)
    }

    fn permits(&self) -> Result<usize, DatapathError> {
        let mut walk = Batches::<PermitKey, u32>::open(&self.directory, maps::PERMITS)?;
        let bindings: HashMap<MapData, Kern<BindingKey>, Kern<BindingImage>> =
            self.map(maps::BINDINGS)?;
        let mut stale = Vec::new();
        while let Some(batch) = walk.next_batch()? {
            for (key, binding) in batch {
                let endpoint = BindingKey {
                    address: key.public,
                    port: key.port,
                    protocol: key.protocol,
                    inbound: 1,
                };
                match bindings.get(&Kern(endpoint), 0) {
                    Ok(Kern(found)) if found.id == binding => {}
                    Ok(_) | Err(MapError::KeyNotFound) => stale.push(key),
                    Err(error) => return Err(DatapathError::bpf("look up a binding", error)),
                }
            }
        }
        self.remove::<PermitKey, u32>(maps::PERMITS, &stale)
    }

    fn remove<K: bytemuck::Pod, V: bytemuck::Pod>(
        &self,
        name: &str,
        keys: &[K],
    ) -> Result<usize, DatapathError> {
        let mut map: HashMap<MapData, Kern<K>, Kern<V>> = self.map(name)?;
        // One that is gone already is as good.
        Ok(keys.iter().filter(|key| map.remove(&Kern(**key)).is_ok()).count())
    }

    fn map<K: bytemuck::Pod, V: bytemuck::Pod>(
        &self,
        name: &str,
    ) -> Result<HashMap<MapData, Kern<K>, Kern<V>>, DatapathError> {
        let path = self.directory.join(name);
        let open = || Map::from_map_data(MapData::from_pin(&path)?)?.try_into();
        open().map_err(|error: MapError| {
            DatapathError::bpf(format!("open {}", path.display()), error)
        })
    }
}
