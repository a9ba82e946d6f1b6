//! Walks over big tables in batches.

use std::{fmt, io, os::fd::AsFd as _, path::Path};

use aya::maps::MapData;
use bytemuck::Pod;
use nat_common::{
    flow::FlowKey,
    session::{BindingImage, BindingKey, SessionImage},
};

use super::{error::DatapathError, syscall};

/// Entries of one operation: about a third of a millisecond of kernel time.
pub const BATCH: usize = 1024;

const AT_A_TIME: usize = 128;

/// A place in a hash table, from which the walk goes on.
///
/// Whole hash buckets are read at a time, each under its lock: an entry that is there all the time
/// is met exactly once. Holds a reference of its own to the map, so it may move to another thread.
#[derive(Debug)]
pub struct Batches<K, V> {
    map: MapData,
    next: Option<u32>,
    finished: bool,
    keys: Vec<K>,
    values: Vec<V>,
    complete: Option<Complete<K, V>>,
}

/// Adds to values what is kept elsewhere.
struct Complete<K, V>(Completion<K, V>);

type Completion<K, V> = Box<dyn Fn(&[K], &mut [V]) + Send>;

impl<K, V> fmt::Debug for Complete<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Complete")
    }
}

pub type SessionBatches = Batches<FlowKey, SessionImage>;
pub type BindingBatches = Batches<BindingKey, BindingImage>;

impl<K: Pod, V: Pod> Batches<K, V> {
    pub(super) fn open(directory: &Path, map: &str) -> Result<Self, DatapathError> {
        let path = directory.join(map);
        let map = MapData::from_pin(&path)
            .map_err(|error| DatapathError::bpf(format!("open {}", path.display()), error))?;
        Ok(Self {
            map,
            next: None,
            finished: false,
            keys: vec![bytemuck::Zeroable::zeroed(); BATCH],
            values: vec![bytemuck::Zeroable::zeroed(); BATCH],
            complete: None,
        })
    }

    /// Has every entry completed by `complete` before it is given out. `fetch` is called before that,
    /// for all of a batch; what it returns means nothing.
    pub(super) fn complete_by(
        &mut self,
        fetch: impl Fn(&K) -> u64 + Send + 'static,
        complete: impl Fn(&K, &mut V) + Send + 'static,
    ) {
        self.complete = Some(Complete(Box::new(move |keys: &[K], values: &mut [V]| {
            std::hint::black_box(keys.iter().fold(0_u64, |sum, key| sum ^ fetch(key)));
            keys.iter().zip(values).for_each(|(key, value)| complete(key, value));
        })));
    }

    /// The next entries; `None` once at the table's end, after which the walk begins anew.
    ///
    /// # Errors
    /// As the kernel gives them; none is expected.
    pub fn next_batch(
        &mut self,
    ) -> Result<Option<impl ExactSizeIterator<Item = (K, V)> + '_>, DatapathError> {
        if self.finished {
            self.rewind();
            return Ok(None);
        }
        let count =
            self.fill().map_err(|error| DatapathError::call("read a table in batches", error))?;
        let keys = self.keys.iter().copied();
        Ok(Some(keys.zip(self.values.iter().copied()).take(count)))
    }

    /// How many entries the table has room for.
    pub(super) fn capacity(&self) -> Result<u32, DatapathError> {
        let info = self.map.info().map_err(|error| DatapathError::bpf("inspect a table", error))?;
        Ok(info.max_entries())
    }

    pub fn rewind(&mut self) {
        self.next = None;
        self.finished = false;
    }

    fn fill(&mut self) -> io::Result<usize> {
        let map = self.map.fd().as_fd();
        let (count, next) =
            syscall::lookup_batch(map, self.next, &mut self.keys, &mut self.values)?;
        self.next = next;
        self.finished = next.is_none();
        if let Some(Complete(complete)) = &self.complete {
            // A part at a time, which the nearest of the processor's caches has room for.
            let keys = self.keys.chunks(AT_A_TIME).zip(self.values.chunks_mut(AT_A_TIME));
            for (keys, values) in keys.take(count.div_ceil(AT_A_TIME)) {
                complete(keys, values);
            }
        }
        Ok(count)
    }
}
