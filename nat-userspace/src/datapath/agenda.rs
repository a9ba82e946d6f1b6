//! The ring of what the sweep has to look at, as memory that the kernel shares, read only.

use std::{
    ffi::c_void,
    io,
    num::NonZeroUsize,
    path::Path,
    ptr::NonNull,
    slice,
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed},
    },
};

use aya::maps::{Array, Map, MapData};
use nat_common::{
    agenda::{self, Head, Note},
    maps,
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::{error::DatapathError, map_error, tables::Kern};

/// The notes that have not been taken yet. Those of one process only: who starts walks the table.
#[derive(Debug)]
pub struct Agenda {
    start: NonNull<c_void>,
    bytes: NonZeroUsize,
    mask: u64,
    /// Number of the next note to take.
    next: u64,
    /// Those before this number are written: they had been counted when [`Self::look`] was called
    /// last but one.
    written: u64,
    counted: u64,
}

// SAFETY: the memory is only read, and by atomic loads.
unsafe impl Send for Agenda {}

impl Drop for Agenda {
    fn drop(&mut self) {
        // SAFETY: mapped by `open`, and no reference outlives this.
        if let Err(error) = unsafe { munmap(self.start, self.bytes.get()) } {
            log::debug!("the agenda stays mapped: {error}");
        }
    }
}

/// What [`Agenda::take`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    All,
    /// There are more that can be taken now.
    More,
    /// Some were overwritten before they were read. What comes from now on can be taken again.
    Lost,
}

impl Agenda {
    /// Maps the pinned ring of the gateway in `directory`, and has it written to from now on.
    pub(super) fn open(directory: &Path) -> Result<Self, DatapathError> {
        let path = directory.join(maps::AGENDA);
        let failed = |error| DatapathError::bpf(format!("open {}", path.display()), error);
        let data = MapData::from_pin(&path).map_err(failed)?;
        let places = data.info().map_err(failed)?.max_entries() - 1;
        let bytes = NonZeroUsize::new((places as usize + 1) * size_of::<Note>());
        let bytes = bytes.ok_or_else(|| {
            DatapathError::call("map the agenda", io::ErrorKind::InvalidData.into())
        })?;
        // SAFETY: a new mapping, wherever the kernel likes.
        let start =
            unsafe { mmap(None, bytes, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, data.fd(), 0) };
        let start = start.map_err(|error| DatapathError::call("map the agenda", error.into()))?;
        let mask = u64::from(places) - 1;
        let mut ring = Self { start, bytes, mask, next: 0, written: 0, counted: 0 };
        let map = Map::from_map_data(data).map_err(map_error("use the agenda"))?;
        let mut map: Array<_, Kern<Head>> = map.try_into().map_err(map_error("use the agenda"))?;
        let Kern(head) = map.get(&0, 0).map_err(map_error("read the agenda"))?;
        // Once: what is counted meanwhile would be lost.
        if head.mask != mask {
            map.set(0, Kern(Head { mask, ..head }), 0).map_err(map_error("write the agenda"))?;
        }
        ring.skip();
        Ok(ring)
    }

    fn words(&self) -> &[[AtomicU64; 2]] {
        // SAFETY: a page-aligned mapping of this length; any bits are an integer, and what the
        // kernel changes meanwhile is read by atomic loads.
        unsafe {
            let count = self.bytes.get() / size_of::<Note>();
            slice::from_raw_parts(self.start.as_ptr().cast(), count)
        }
    }

    /// How many notes it has room for.
    #[must_use]
    pub const fn room(&self) -> usize {
        self.mask as usize + 1
    }

    /// How many notes there have been.
    fn count(&self) -> u64 {
        self.words().first().map_or(0, |[count, _]| count.load(Acquire))
    }

    /// Leaves out everything that was noted until now.
    pub fn skip(&mut self) {
        self.counted = self.count();
        (self.next, self.written) = (self.counted, self.counted);
    }

    /// Lets be taken what had been counted at the last call: a note is written after it was counted,
    /// and surely so by the next call, which should come a good while later.
    pub fn look(&mut self) {
        self.written = self.counted;
        self.counted = self.count();
    }

    /// Takes up to `most` notes.
    pub fn take(&mut self, most: usize, notes: &mut Vec<Note>) -> Taken {
        let end = self.written.min(self.next.saturating_add(most as u64));
        for number in self.next..end {
            let place = agenda::place(number, self.mask) as usize;
            let Some(words) = self.words().get(place) else { continue };
            let words = words.each_ref().map(|word| word.load(Relaxed));
            notes.push(bytemuck::cast(words));
        }
        if self.count().saturating_sub(self.next) > self.mask {
            notes.clear();
            self.skip();
            return Taken::Lost;
        }
        self.next = end;
        if end < self.written { Taken::More } else { Taken::All }
    }
}
