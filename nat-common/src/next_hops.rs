//! The next hops of the flows in the cache: what their frames begin with, and where they leave.
//!
//! Thousands of flows share a next hop, so a slot of the cache names it by its number here. Like a
//! slot, a next hop is good for an epoch: it is entered with the first flow that goes that way, and
//! gives way when two epochs have passed in which no flow did.

use core::{cell::Cell, hint::black_box};

use bytemuck::{Pod, Zeroable};

use crate::{
    env::Env,
    net::Mac,
    session::{NextHop, Path},
    wire::Macs,
};

/// Bits of a number, which has to fit into a slot.
pub const BITS: u32 = 14;
/// Places: more next hops than this at a time leave some flows out of the cache.
pub const PLACES: u32 = 1 << BITS;
/// Places that are tried.
const TRIES: u16 = 4;

/// In the use of a place: it has been used; somebody is writing.
const USED: u64 = 1 << 33;
const WRITING: u64 = 1 << 32;

/// A place. Its words change only while nobody can know its number any more.
#[repr(C, align(8))]
#[derive(Debug, Default)]
pub struct Row {
    /// The frame's addresses, as they are written: twelve bytes, then the slot of the egress interface and
    /// the MTU of the way (bytes of IP packet).
    macs: Cell<u64>,
    rest: Cell<u64>,
    /// [`USED`], and the last epoch in which a flow was entered with it; 0: never.
    used: Cell<u64>,
    zero: Cell<u64>,
}

/// The plain image of a place.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct RowImage(pub [u64; 4]);

const _: () = assert!(size_of::<Row>() == 32 && size_of::<RowImage>() == 32);

impl Row {
    #[inline(always)]
    pub fn macs(&self) -> Macs {
        Macs::from_parts(self.macs.get(), self.rest.get() as u32)
    }

    /// Of the egress interface.
    #[inline(always)]
    pub fn slot(&self) -> u16 {
        (self.rest.get() >> 32) as u16
    }

    #[inline(always)]
    pub fn mtu(&self) -> u16 {
        (self.rest.get() >> 48) as u16
    }

    /// As sessions have it.
    #[inline(always)]
    pub fn next_hop(&self) -> NextHop {
        self.macs().next_hop(self.slot())
    }
}

/// Whether a place that was `used` last so is free: never used, or by nothing that is entered in this epoch or
/// the one before. Says nothing of one that is being written.
#[inline(always)]
const fn is_over(used: u64, mine: u64) -> bool {
    mine.wrapping_sub(used) >= 2
}

/// The number of a way out, which is entered if it is not there. `None`: there is no place, or another
/// CPU is just about it.
#[inline(always)]
pub fn number<E: Env>(env: &E, next: NextHop, path: Path, source: Mac, epoch: u32) -> Option<u16> {
    let (macs, low) = Macs::towards(next, source).into_parts();
    let rest = u64::from(low) | u64::from(next.slot()) << 32 | u64::from(path.mtu()) << 48;
    let mixed = (macs ^ rest.rotate_left(23)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let first = (mixed >> 48) as u16;
    let mine = USED | u64::from(epoch);
    let mut free = None;
    for step in 0..TRIES {
        let number = (first ^ step) & (PLACES - 1) as u16;
        let row = env.next_hop(number)?;
        let used = row.used.get();
        // One comparison: the verifier walks every way from here.
        if (row.macs.get() ^ macs) | (row.rest.get() ^ rest) | (used & WRITING) == 0 {
            // Whoever takes the place for another way changes `used` first.
            let good = used == mine || E::compare_exchange(&row.used, used, mine);
            return good.then_some(number);
        }
        if is_over(used, mine) {
            free = Some(number);
        }
    }
    let number = black_box(free?);
    let row = env.next_hop(number)?;
    let used = row.used.get();
    if used & WRITING != 0
        || !is_over(used, mine)
        || !E::compare_exchange(&row.used, used, mine | WRITING)
    {
        return None;
    }
    row.macs.set(macs);
    row.rest.set(rest);
    // A full barrier on every machine: the number is told only after what it stands for.
    E::compare_exchange(&row.used, mine | WRITING, mine).then_some(number)
}
