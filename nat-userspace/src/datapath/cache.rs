//! The flow cache as this side sees it: memory that the kernel shares, read only.
//!
//! What a slot has taken for its session is not in the session table yet, so whoever reads sessions
//! adds it here. A slot that changes under the reader gives, at worst, what it held a moment ago.

use std::{
    hint::black_box,
    io,
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use aya::maps::MapInfo;
use nat_common::{
    agenda::Note,
    cache::{Place, Slot, SlotImage},
    flow::FlowKey,
    maps,
    rules::{CacheShape, Control},
    session::{SessionImage, State},
};

use super::{Datapath, Result, error::DatapathError, fit, grace, mapped::Mapped};

/// The mapped slots. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct CacheReader {
    memory: Arc<Mapped<{ size_of::<SlotImage>() / 8 }>>,
    seed: [u32; 4],
    /// Slots that are used, the same for all clones.
    slots: Arc<AtomicU32>,
}

impl CacheReader {
    /// Maps the pinned cache of the gateway in `directory`, whose shape it writes into `control` if there is
    /// none: of it, few slots are used at first.
    pub(super) fn open(directory: &Path, control: &mut Control) -> Result<Self, DatapathError> {
        let (_, memory) = Mapped::open(&directory.join(maps::FLOW_CACHE))?;
        let words = sieve_words(directory)?;
        // Kept with the maps: what they hold was placed by it.
        if control.cache.slots == 0 || control.sieve_mask != words - 1 {
            let seed = seed().map_err(|error| {
                DatapathError::call("get random numbers for the flow cache", error)
            })?;
            control.cache = CacheShape { slots: fit::fewest(memory.values().len() as u32), seed };
            control.sieve_mask = words - 1;
        }
        let CacheShape { slots, seed } = control.cache;
        Ok(Self { memory: Arc::new(memory), seed, slots: Arc::new(AtomicU32::new(slots)) })
    }

    /// Slots that are used, and slots that there are.
    pub(super) fn slots(&self) -> (u32, u32) {
        (self.slots.load(Relaxed), self.memory.values().len() as u32)
    }

    /// From now on so many are used.
    pub(super) fn use_slots(&self, slots: u32) {
        self.slots.store(slots, Relaxed);
    }

    fn place(&self, key: &FlowKey) -> Place {
        Place::within(key, &CacheShape { slots: self.slots.load(Relaxed), seed: self.seed })
    }

    /// Of these slots, those whose flow has no place there if so many are used.
    pub(super) fn misplaced(&self, numbers: Range<u32>, slots: u32) -> Vec<u32> {
        let shape = CacheShape { slots, seed: self.seed };
        let is_misplaced = |number: &u32| {
            let Some(slot) = self.memory.values().get(*number as usize) else { return false };
            let owner = Slot::owner(&slot.each_ref().map(|word| word.load(Relaxed)));
            owner.is_some_and(|key| !Place::within(&key, &shape).ways().contains(number))
        };
        numbers.filter(is_misplaced).collect()
    }

    /// Reads the nearest places of a key and makes nothing of it: done for many keys in a row, the processor
    /// waits for many of them at a time, and finds them near when each is asked for.
    pub(super) fn fetch(&self, key: &FlowKey) -> u64 {
        self.touch(&self.place(key))
    }

    fn touch(&self, place: &Place) -> u64 {
        let slots = self.memory.values();
        let first = |index: u32| slots.get(index as usize).map_or(0, |slot| slot[0].load(Relaxed));
        place.ways().into_iter().take(2).fold(0, |sum, way| sum ^ first(way))
    }

    /// When packets of each of these were seen last, as far as the cache knows.
    pub(super) fn seen(&self, notes: &[Note]) -> Vec<Option<u32>> {
        let places: Vec<_> = notes.iter().map(|note| self.place(&note.key())).collect();
        black_box(places.iter().fold(0, |sum, place| sum ^ self.touch(place)));
        places.iter().map(|place| Some(self.taken(place)?.0)).collect()
    }

    /// What the cache has of a key: when it was seen last, packets, bytes.
    fn taken(&self, place: &Place) -> Option<(u32, u64, u64)> {
        let ways = place.ways().into_iter();
        let mut images = ways.filter_map(|index| self.memory.values().get(index as usize));
        images.find_map(|slot| place.taken(&slot.each_ref().map(|word| word.load(Relaxed))))
    }

    /// Adds what the cache has taken for the session.
    pub(super) fn bring_up_to_date(&self, key: &FlowKey, session: &mut SessionImage) {
        let Some((seen, packets, bytes)) = self.taken(&self.place(key)) else { return };
        session.packets += packets;
        session.bytes += bytes;
        let word = session.word();
        if word.state() != State::Dead && seen.wrapping_sub(word.seen()) < u32::MAX / 2 {
            session.word = word.with_seen(seen).0;
        }
    }
}

impl Datapath {
    /// Slots of the flow cache that are used, and slots that there are.
    #[must_use]
    pub fn cache_slots(&self) -> (u32, u32) {
        self.cache.as_ref().map_or((0, 0), CacheReader::slots)
    }

    /// Has so many slots be used, and waits until no program runs that knows of none.
    pub(super) fn use_cache_slots(&mut self, slots: u32) -> Result<()> {
        let mut control = self.control()?;
        control.cache.slots = slots;
        self.set_control(&control)?;
        if let Some(cache) = &self.cache {
            cache.use_slots(slots);
        }
        grace::wait_for_programs();
        Ok(())
    }

    /// Of these slots, those whose flow has no place there if so many are used.
    pub(super) fn misplaced(&self, numbers: Range<u32>, slots: u32) -> Vec<u32> {
        self.cache.as_ref().map_or_else(Vec::new, |cache| cache.misplaced(numbers, slots))
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
