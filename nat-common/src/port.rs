//! Ports in use towards one busy destination, exact to the last one.

use core::cell::Cell;

use bytemuck::{Pod, Zeroable};

use crate::{
    env::Atomics,
    net::{Ip4, Port},
};

/// Key of the busy destinations. All of `remote` and `port` zero: every destination
/// (endpoint-independent mapping).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Pod, Zeroable)]
pub struct BusyKey {
    pub public: Ip4,
    pub remote: Ip4,
    pub port: Port,
    pub protocol: u8,
    pub zero: u8,
}

/// One bit a port: set means taken, or not to be given out. A summary bit is set when all 64 bits
/// of its word are, a bit of `top` when all of a summary are: a free port is found in three steps,
/// however few there are. Bits are learnt: a port found taken is marked, a port that ends is
/// cleared, so a fresh copy of the template converges while it is used. What is not learnt yet, or marked
/// though nobody has it any more, [`crate::stage::seek`] finds out.
///
/// The place of a port is its [`Port::raw`]: kernels before 6.10 lose the bounds of a number that
/// was swapped to host order, and would not have it as an index.
#[repr(C, align(8))]
#[derive(Debug)]
pub struct PortSet {
    /// When its marked ports were last looked at again (low half, ticks), and which is next.
    pub looked: Cell<u64>,
    pub top: Cell<u64>,
    pub summary: [Cell<u64>; Self::SUMMARY],
    pub words: [[Cell<u64>; 64]; Self::SUMMARY],
}

/// What a search came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Take {
    /// Marked for the caller.
    Port(Port),
    /// Another CPU was faster, or a summary lagged: try again.
    Again,
    /// Every port is marked.
    Full,
}

#[repr(C, align(8))]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct PortSetImage {
    pub looked: u64,
    pub top: u64,
    pub summary: [u64; PortSet::SUMMARY],
    pub words: [[u64; 64]; PortSet::SUMMARY],
}

impl PortSetImage {
    /// All ports taken except the given ranges, less the ports that `reserved` names.
    pub fn template(ranges: &[(u16, u16)], mut reserved: impl FnMut(u16) -> bool) -> Self {
        let mut set = Self {
            looked: 0,
            top: 0,
            summary: [0; PortSet::SUMMARY],
            words: [[u64::MAX; 64]; PortSet::SUMMARY],
        };
        for &(first, last) in ranges {
            for port in first..=last {
                if reserved(port) {
                    continue;
                }
                let (block, index, bit) = place(Port::new(port));
                if let Some(word) = set.words.get_mut(block).and_then(|b| b.get_mut(index)) {
                    *word &= !bit;
                }
            }
        }
        for (summary, block) in set.summary.iter_mut().zip(&set.words) {
            for (index, word) in block.iter().enumerate() {
                *summary |= u64::from(*word == u64::MAX) << index;
            }
        }
        for (index, summary) in set.summary.iter().enumerate() {
            if *summary == u64::MAX {
                set.top |= 1 << index;
            }
        }
        set
    }
}

impl PortSetImage {
    /// The ports that a template gives out, of the word that holds the port of this place.
    #[inline(always)]
    pub fn offered(&self, raw: u32) -> u64 {
        let block = self.words.get((raw >> 12) as usize & (PortSet::SUMMARY - 1));
        !block.and_then(|block| block.get((raw >> 6) as usize & 63)).copied().unwrap_or(u64::MAX)
    }
}

impl PortSet {
    pub const SUMMARY: usize = 16;
    const TOP: u64 = (1 << Self::SUMMARY) - 1;

    /// Finds a port that is not marked, and marks it. Chosen by `random` on all three levels.
    #[inline(always)]
    pub fn take<A: Atomics>(&self, random: u32) -> Take {
        let blocks = !self.top.get() & Self::TOP;
        if blocks == 0 {
            return Take::Full;
        }
        let block = choose(blocks | blocks << 16 | blocks << 32 | blocks << 48, random >> 12);
        let block = (block & (Self::SUMMARY as u32 - 1)) as usize;
        let Some(summary) = self.summary.get(block) else { return Take::Again };
        let open = !summary.get();
        if open == 0 {
            self.mark_block::<A>(block);
            return Take::Again;
        }
        let index = (choose(open, random >> 6) & 63) as usize;
        let Some(word) = self.word(block, index) else { return Take::Again };
        let free = !word.get();
        if free == 0 {
            self.mark_full::<A>(block, index);
            return Take::Again;
        }
        let bit = choose(free, random);
        let before = A::or(word, 1 << bit);
        if before | (1 << bit) == u64::MAX {
            self.mark_full::<A>(block, index);
        }
        if before & (1 << bit) != 0 {
            return Take::Again;
        }
        Take::Port(Port::from_raw(((block as u32) << 12 | (index as u32) << 6 | bit) as u16))
    }

    /// Marks a port. False: it was marked already.
    #[inline(always)]
    pub fn mark<A: Atomics>(&self, port: Port) -> bool {
        let (block, index, bit) = place(port);
        let Some(word) = self.word(block, index) else { return false };
        if word.get() & bit != 0 {
            return false;
        }
        let before = A::or(word, bit);
        if before | bit == u64::MAX {
            self.mark_full::<A>(block, index);
        }
        before & bit == 0
    }

    /// Two steps of indexing: an index put together from two loses its bounds before 6.10.
    #[inline(always)]
    fn word(&self, block: usize, index: usize) -> Option<&Cell<u64>> {
        self.words.get(block & (Self::SUMMARY - 1))?.get(index & 63)
    }

    /// All 64 ports of a word are marked. A port may be freed at the same moment: then the
    /// summaries must not hide it, so they are looked at again after they were set.
    #[inline(always)]
    fn mark_full<A: Atomics>(&self, block: usize, index: usize) {
        let bit = 1u64 << (index & 63);
        let Some(summary) = self.summary.get(block) else { return };
        let before = A::or(summary, bit);
        if self.word(block, index).is_some_and(|word| word.get() != u64::MAX) {
            A::and(summary, !bit);
        } else if before | bit == u64::MAX {
            self.mark_block::<A>(block);
        }
    }

    #[inline(always)]
    fn mark_block<A: Atomics>(&self, block: usize) {
        A::or(&self.top, 1 << (block & 63));
        if self.summary.get(block).is_some_and(|summary| summary.get() != u64::MAX) {
            A::and(&self.top, !(1 << (block & 63)));
        }
    }

    /// Frees a port: from the word upwards, so that a search never misses it for good.
    #[inline(always)]
    pub fn clear<A: Atomics>(&self, port: Port) {
        let (block, index, bit) = place(port);
        if let Some(word) = self.word(block, index) {
            A::and(word, !bit);
        }
        if let Some(summary) = self.summary.get(block) {
            A::and(summary, !(1 << index));
        }
        A::and(&self.top, !(1 << block));
    }
}

/// Block, word in the block, bit in the word.
#[inline(always)]
const fn place(port: Port) -> (usize, usize, u64) {
    let raw = port.raw() as usize;
    (raw >> 12 & (PortSet::SUMMARY - 1), raw >> 6 & 63, 1 << (raw & 63))
}

/// The place of a set bit, starting the search at a random one. `bits` is not 0.
#[inline(always)]
const fn choose(bits: u64, random: u32) -> u32 {
    let start = random & 63;
    (bits.rotate_right(start).trailing_zeros() + start) & 63
}

const _: () = assert!(size_of::<PortSet>() == 8336 && size_of::<PortSetImage>() == 8336);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::HostAtomics as A;

    fn set(ranges: &[(u16, u16)]) -> Box<PortSet> {
        let image = PortSetImage::template(ranges, |_| false);
        Box::new(PortSet {
            looked: Cell::new(0),
            top: Cell::new(image.top),
            summary: image.summary.map(Cell::new),
            words: image.words.map(|block| block.map(Cell::new)),
        })
    }

    #[test]
    fn hands_out_every_port_once_and_then_says_full() {
        let set = set(&[(1024, 32767), (61000, 65535)]);
        let mut seen = std::collections::BTreeSet::new();
        let mut random = 1u32;
        let mut again = 0;
        loop {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            match set.take::<A>(random >> 8) {
                Take::Port(port) => {
                    let port = port.get();
                    assert!((1024..=32767).contains(&port) || port >= 61000);
                    assert!(seen.insert(port), "{port} twice");
                }
                Take::Again => again += 1,
                Take::Full => break,
            }
        }
        assert_eq!(seen.len(), 32768 - 1024 + 4536);
        assert_eq!(again, 0);
    }

    #[test]
    fn a_freed_port_is_found_again_at_once() {
        let set = set(&[(1024, 65535)]);
        while set.take::<A>(7) != Take::Full {}
        set.clear::<A>(Port::new(40000));
        assert_eq!(set.take::<A>(99), Take::Port(Port::new(40000)));
        assert_eq!(set.take::<A>(3), Take::Full);
    }
}
