//! The flow cache as this side sees it: memory that the kernel shares, read only.
//!
//! What a slot has taken for its session is not in the session table yet, so whoever reads sessions
//! adds it here. A slot that changes under the reader gives, at worst, what it held a moment ago.

use std::{
    hint::black_box,
    io,
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use aya::maps::MapInfo;
use nat_common::{
    agenda::Note,
    cache::{Place, SlotImage},
    flow::FlowKey,
    maps,
    rules::Control,
    session::{SessionImage, State},
};

use super::{error::DatapathError, mapped::Mapped};

/// The mapped slots. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct CacheReader {
    memory: Arc<Mapped<{ size_of::<SlotImage>() / 8 }>>,
    /// Only the mask and the key of the hash are used.
    control: Control,
}

impl CacheReader {
    /// Maps the pinned cache of the gateway in `directory`, whose size it writes into `control`,
    /// with a new key for its hash if there is none.
    pub(super) fn open(directory: &Path, control: &mut Control) -> Result<Self, DatapathError> {
        let (_, memory) = Mapped::open(&directory.join(maps::FLOW_CACHE))?;
        let slots = memory.values().len() as u32;
        let words = sieve_words(directory)?;
        // Kept with the maps: what they hold was placed by it.
        if control.cache_mask != slots - 1 || control.sieve_mask != words - 1 {
            control.cache_mask = slots - 1;
            control.sieve_mask = words - 1;
            control.cache_seed = seed().map_err(|error| {
                DatapathError::call("get random numbers for the flow cache", error)
            })?;
        }
        Ok(Self { memory: Arc::new(memory), control: *control })
    }

    /// Reads the nearest places of a key and makes nothing of it: done for many keys in a row, the processor
    /// waits for many of them at a time, and finds them near when each is asked for.
    pub(super) fn fetch(&self, key: &FlowKey) -> u64 {
        Place::of(key, &self.control).map_or(0, |place| self.touch(&place))
    }

    fn touch(&self, place: &Place) -> u64 {
        let slots = self.memory.values();
        let first = |index: u32| slots.get(index as usize).map_or(0, |slot| slot[0].load(Relaxed));
        place.ways().into_iter().take(2).fold(0, |sum, way| sum ^ first(way))
    }

    /// When packets of each of these were seen last, as far as the cache knows.
    pub(super) fn seen(&self, notes: &[Note]) -> Vec<Option<u32>> {
        let places: Vec<_> =
            notes.iter().map(|note| Place::of(&note.key(), &self.control)).collect();
        black_box(places.iter().flatten().fold(0, |sum, place| sum ^ self.touch(place)));
        places.iter().map(|place| Some(self.taken(place.as_ref()?)?.0)).collect()
    }

    /// What the cache has of a key: when it was seen last, packets, bytes.
    fn taken(&self, place: &Place) -> Option<(u32, u64, u64)> {
        let ways = place.ways().into_iter();
        let mut images = ways.filter_map(|index| self.memory.values().get(index as usize));
        images.find_map(|slot| place.taken(&slot.each_ref().map(|word| word.load(Relaxed))))
    }

    /// Adds what the cache has taken for the session.
    pub(super) fn bring_up_to_date(&self, key: &FlowKey, session: &mut SessionImage) {
        let Some(place) = Place::of(key, &self.control) else { return };
        let Some((seen, packets, bytes)) = self.taken(&place) else { return };
        session.packets += packets;
        session.bytes += bytes;
        let word = session.word();
        if word.state() != State::Dead && seen.wrapping_sub(word.seen()) < u32::MAX / 2 {
            session.word = word.with_seen(seen).0;
        }
    }
}

/// How large the pinned sieve is.
fn sieve_words(directory: &Path) -> Result<u32, DatapathError> {
    let path = directory.join(maps::SIEVE);
    let info = MapInfo::from_pin(&path)
        .map_err(|error| DatapathError::bpf(format!("open {}", path.display()), error))?;
    Ok(info.max_entries())
}

fn seed() -> io::Result<[u32; 4]> {
    let mut seed = [0_u32; 4];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut seed);
    // SAFETY: pointer and length are those of a live slice. So few bytes come whole.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == bytes.len().cast_signed() { Ok(seed) } else { Err(io::Error::last_os_error()) }
}
