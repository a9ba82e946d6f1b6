//! Pinned arrays as memory that the kernel shares, read only.

use std::{
    ffi::c_void, io, num::NonZeroUsize, path::Path, ptr::NonNull, slice, sync::atomic::AtomicU64,
};

use aya::maps::MapData;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::error::DatapathError;

/// The values of an array that was made for it (`BPF_F_MMAPABLE`, Linux 5.5), of so many words each.
#[derive(Debug)]
pub(super) struct Mapped<const WORDS: usize> {
    start: NonNull<c_void>,
    bytes: NonZeroUsize,
}

// SAFETY: the memory is only read, and by atomic loads.
unsafe impl<const WORDS: usize> Send for Mapped<WORDS> {}
// SAFETY: as above.
unsafe impl<const WORDS: usize> Sync for Mapped<WORDS> {}

impl<const WORDS: usize> Drop for Mapped<WORDS> {
    fn drop(&mut self) {
        // SAFETY: mapped by `open`, and no reference outlives this.
        if let Err(error) = unsafe { munmap(self.start, self.bytes.get()) } {
            log::debug!("an array stays mapped: {error}");
        }
    }
}

impl<const WORDS: usize> Mapped<WORDS> {
    /// Maps the array that is pinned as `path`, and gives it back beside its memory.
    pub(super) fn open(path: &Path) -> Result<(MapData, Self), DatapathError> {
        let failed = |error| DatapathError::bpf(format!("open {}", path.display()), error);
        let mapping = |error| DatapathError::call(format!("map {}", path.display()), error);
        let data = MapData::from_pin(path).map_err(failed)?;
        let values = data.info().map_err(failed)?.max_entries() as usize;
        let bytes = NonZeroUsize::new(values * size_of::<[u64; WORDS]>())
            .ok_or_else(|| mapping(io::ErrorKind::InvalidData.into()))?;
        // SAFETY: a new mapping, wherever the kernel likes.
        let start =
            unsafe { mmap(None, bytes, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, data.fd(), 0) };
        let start = start.map_err(|error| mapping(error.into()))?;
        Ok((data, Self { start, bytes }))
    }

    pub(super) fn values(&self) -> &[[AtomicU64; WORDS]] {
        // SAFETY: a page-aligned mapping of this length; any bits are an integer, and what the
        // kernel changes meanwhile is read by atomic loads.
        unsafe {
            let count = self.bytes.get() / size_of::<[u64; WORDS]>();
            slice::from_raw_parts(self.start.as_ptr().cast(), count)
        }
    }
}
