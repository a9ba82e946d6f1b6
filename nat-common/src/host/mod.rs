//! The surroundings of the engine in host tests: plain collections, a settable clock, scripted
//! routes. The same engine that the BPF programs are made of runs over it, stage by stage.
//!
//! Compiled for tests only, and for the crate of privileged tests (feature `host`), which compares
//! what comes of it with what the kernel says.

mod drive;
mod frame;
mod guarantee;
mod network;
pub mod packet;
mod rules;
mod world;

use core::cell::Cell;

pub use drive::{Run, TAIL_CALLS};
pub use frame::HostFrame;
pub use network::Way;
pub use world::World;

use crate::env::Atomics;

/// One thread: nothing comes between a read and a write.
#[derive(Clone, Copy, Debug)]
pub struct HostAtomics;

impl Atomics for HostAtomics {
    fn compare_exchange(cell: &Cell<u64>, old: u64, new: u64) -> bool {
        let hit = cell.get() == old;
        if hit {
            cell.set(new);
        }
        hit
    }

    fn or(cell: &Cell<u64>, bits: u64) -> u64 {
        cell.replace(cell.get() | bits)
    }

    fn and(cell: &Cell<u64>, bits: u64) -> u64 {
        cell.replace(cell.get() & bits)
    }

    fn add(cell: &Cell<u64>, value: u64) {
        cell.set(cell.get().wrapping_add(value));
    }

    fn fetch_add(cell: &Cell<u64>, value: u64) -> u64 {
        cell.replace(cell.get().wrapping_add(value))
    }
}

impl Atomics for World {
    fn compare_exchange(cell: &Cell<u64>, old: u64, new: u64) -> bool {
        HostAtomics::compare_exchange(cell, old, new)
    }

    fn or(cell: &Cell<u64>, bits: u64) -> u64 {
        HostAtomics::or(cell, bits)
    }

    fn and(cell: &Cell<u64>, bits: u64) -> u64 {
        HostAtomics::and(cell, bits)
    }

    fn add(cell: &Cell<u64>, value: u64) {
        HostAtomics::add(cell, value);
    }

    fn fetch_add(cell: &Cell<u64>, value: u64) -> u64 {
        HostAtomics::fetch_add(cell, value)
    }
}
