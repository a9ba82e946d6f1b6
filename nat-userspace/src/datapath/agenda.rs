//! The ring of what the sweep has to look at, as memory that the kernel shares, read only.

use std::{
    path::Path,
    sync::atomic::Ordering::{Acquire, Relaxed},
};

use aya::maps::{Array, Map};
use nat_common::{
    agenda::{self, Head, Note},
    maps,
};

use super::{error::DatapathError, map_error, mapped::Mapped, tables::Kern};

/// The notes that have not been taken yet. Those of one process only: who starts walks the table.
#[derive(Debug)]
pub struct Agenda {
    ring: Mapped<{ size_of::<Note>() / 8 }>,
    mask: u64,
    /// Number of the next note to take.
    next: u64,
    /// Those before this number are written: they had been counted when [`Self::look`] was called
    /// last but one.
    written: u64,
    counted: u64,
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
        let (data, ring) = Mapped::open(&directory.join(maps::AGENDA))?;
        let mask = ring.values().len() as u64 - 2;
        let mut agenda = Self { ring, mask, next: 0, written: 0, counted: 0 };
        let map = Map::from_map_data(data).map_err(map_error("use the agenda"))?;
        let mut map: Array<_, Kern<Head>> = map.try_into().map_err(map_error("use the agenda"))?;
        let Kern(head) = map.get(&0, 0).map_err(map_error("read the agenda"))?;
        // Once: what is counted meanwhile would be lost.
        if head.mask != mask {
            map.set(0, Kern(Head { mask, ..head }), 0).map_err(map_error("write the agenda"))?;
        }
        agenda.skip();
        Ok(agenda)
    }

    /// How many notes it has room for.
    #[must_use]
    pub const fn room(&self) -> usize {
        self.mask as usize + 1
    }

    /// How many notes there have been.
    fn count(&self) -> u64 {
        self.ring.values().first().map_or(0, |[count, _]| count.load(Acquire))
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
            let Some(words) = self.ring.values().get(place) else { continue };
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
