//! Read-modify-write by compiler intrinsics: the BPF target of `core::sync::atomic` leaves them
//! out, although the instruction set has had them since v3 (kernel 5.12).

use core::{
    cell::Cell,
    intrinsics::{AtomicOrdering, atomic_and, atomic_cxchg, atomic_or, atomic_xadd},
};

use nat_common::env::Atomics;

use crate::tables::Kernel;

const RELAXED: AtomicOrdering = AtomicOrdering::Relaxed;

impl Atomics for Kernel {
    #[inline(always)]
    fn compare_exchange(cell: &Cell<u64>, old: u64, new: u64) -> bool {
        // SAFETY: `cell` is a live, aligned reference, and its type allows concurrent change.
        unsafe { atomic_cxchg::<u64, RELAXED, RELAXED>(cell.as_ptr(), old, new).1 }
    }

    #[inline(always)]
    fn or(cell: &Cell<u64>, bits: u64) -> u64 {
        // SAFETY: as above.
        unsafe { atomic_or::<u64, u64, RELAXED>(cell.as_ptr(), bits) }
    }

    #[inline(always)]
    fn and(cell: &Cell<u64>, bits: u64) -> u64 {
        // SAFETY: as above.
        unsafe { atomic_and::<u64, u64, RELAXED>(cell.as_ptr(), bits) }
    }

    #[inline(always)]
    fn add(cell: &Cell<u64>, value: u64) {
        // SAFETY: as above.
        let _before = unsafe { atomic_xadd::<u64, u64, RELAXED>(cell.as_ptr(), value) };
    }

    // For BPF, LLVM 22 makes of a relaxed addition one that does not fetch what was there before, and
    // takes the addend for it.
    #[inline(always)]
    fn fetch_add(cell: &Cell<u64>, value: u64) -> u64 {
        // SAFETY: as above.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(cell.as_ptr(), value) }
    }
}
