//! How much of the flow cache is used.
//!
//! The cache has room for a full session table. Where there are few sessions, their slots would lie far apart in
//! it, each in a page of its own, and the processor would look up more pages than it can keep in mind: with
//! 10,000 sessions in a table for a million a packet costs twice what it costs so. The dataplane uses a part of the slots, by the number of sessions, and with it their slots lie close together.
//!
//! Another number of slots gives nearly every flow another place, to which its next packet brings it by way of its
//! session. What a slot has taken must not be missed meanwhile, for a session is judged by when it was seen: all
//! slots are settled right before the change, and what they have taken until then is, right after it.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use nat_common::stage::request;

use super::{Datapath, Result, run};

/// The fewest slots that are used, if there are so many: 2 MiB of memory.
const FEWEST: u32 = 1 << 16;
/// Each number of slots is so many times the next smaller one.
const STEP: u32 = 8;
/// Slots of a session: of two flows, each with another slot beside it.
const ROOM: u32 = 4;
/// Fewer are used only when they have had room for four times the sessions for so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// The number of sessions is asked for so often.
const TICK: Duration = Duration::from_secs(1);
/// After so long a slice gives way.
const SLICE: Duration = Duration::from_micros(300);
/// Slots that are looked at between two looks at the clock.
const LOOKED: u32 = 1024;

/// Of `all` slots, those that suffice for so many sessions.
fn slots_for(sessions: u64, all: u32) -> u32 {
    let mut slots = FEWEST;
    while u64::from(slots / ROOM) < sessions && slots < all {
        slots = slots.saturating_mul(STEP);
    }
    // Nearly all of them is as good as all.
    if slots < all / 2 { slots } else { all }
}

/// Of `all` slots, those that a gateway without sessions uses.
pub(super) fn fewest(all: u32) -> u32 {
    slots_for(0, all)
}

#[derive(Debug)]
enum Work {
    None,
    /// Sessions are brought up to date, before `to` slots are used.
    Settle {
        left: Range<u32>,
        to: u32,
    },
    /// Slots whose flows have another place are freed.
    Vacate {
        left: Range<u32>,
    },
}

/// Where that stands. Call [`Fit::step`] every second, and again while it says so.
#[derive(Debug)]
pub struct Fit {
    work: Work,
    tick: Option<Instant>,
    /// Since when fewer would do.
    too_many: Option<Instant>,
    patience: Duration,
    told: u64,
}

impl Fit {
    /// What an earlier process may have left half done is finished first.
    #[must_use]
    pub fn new(datapath: &Datapath) -> Self {
        let (_, all) = datapath.cache_slots();
        let is_new = datapath.counters().is_ok_and(|counters| counters.sessions_created == 0);
        let work = if is_new { Work::None } else { Work::Vacate { left: 0..all } };
        Self { work, tick: None, too_many: None, patience: PATIENCE, told: 0 }
    }

    /// For so long fewer slots must do before they have to.
    #[must_use]
    pub const fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// One slice of less than a millisecond; but for the one with the change, which waits until no program runs
    /// that knows of none. True: more is to be done now, and nobody is to judge sessions until that is over.
    ///
    /// # Errors
    /// Where the maps cannot be read or written; none is expected.
    pub fn step(&mut self, datapath: &mut Datapath) -> Result<bool> {
        let began = Instant::now();
        match &mut self.work {
            Work::None => {
                if self.tick.is_some_and(|tick| tick.elapsed() < TICK) {
                    return Ok(false);
                }
                self.tick = Some(began);
                return self.judge(datapath);
            }
            Work::Settle { left, to } => {
                let to = *to;
                if work(datapath, request::SETTLE, left, to, began)? {
                    return Ok(true);
                }
                let (before, _) = datapath.cache_slots();
                datapath.use_cache_slots(to)?;
                self.work = Work::Vacate { left: 0..before };
            }
            Work::Vacate { left } => {
                let (now, _) = datapath.cache_slots();
                if !work(datapath, request::VACATE, left, now, began)? {
                    self.work = Work::None;
                }
            }
        }
        Ok(true)
    }

    /// Whether another number of slots is wanted.
    fn judge(&mut self, datapath: &Datapath) -> Result<bool> {
        let counters = datapath.counters()?;
        let sessions = counters.sessions_created.saturating_sub(counters.sessions_ended);
        let (now, all) = datapath.cache_slots();
        let (wanted, fewer) =
            (slots_for(sessions, all), slots_for(sessions.saturating_mul(4), all));
        if fewer >= now {
            self.too_many = None;
        }
        let to = if wanted > now {
            wanted
        } else if fewer < now
            && self.too_many.get_or_insert_with(Instant::now).elapsed() >= self.patience
        {
            fewer
        } else {
            if sessions != self.told {
                // `cargo xtask bench` waits for this line.
                log::debug!("flow cache: {now} of {all} slots for {sessions} sessions");
                self.told = sessions;
            }
            return Ok(false);
        };
        log::debug!("flow cache: {to} slots are going to be used, {now} were, of {all}");
        self.too_many = None;
        self.tick = None;
        self.work = Work::Settle { left: 0..now, to };
        Ok(true)
    }
}

/// Does `op` to the slots whose flows have no place there if `slots` are used, as far as time allows. False:
/// that was all.
fn work(
    datapath: &Datapath,
    op: u32,
    left: &mut Range<u32>,
    slots: u32,
    began: Instant,
) -> Result<bool> {
    let mut numbers = Vec::new();
    while began.elapsed() < SLICE && left.start < left.end {
        let end = left.end.min(left.start + LOOKED);
        numbers.extend(datapath.misplaced(left.start..end, slots).into_iter().map(request::slot));
        left.start = end;
        if numbers.len() >= request::BATCH {
            run::reap(&datapath.bpf, op, &numbers)?;
            numbers.clear();
        }
    }
    run::reap(&datapath.bpf, op, &numbers)?;
    Ok(left.start < left.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_slots_are_used_that_a_session_has_four_of_them_or_all_are() {
        let all = 3 << 20;
        let used = |sessions| slots_for(sessions, all);
        assert_eq!(used(0), 1 << 16);
        assert_eq!(used(16_384), 1 << 16);
        assert_eq!(used(16_385), 1 << 19);
        assert_eq!(used(131_072), 1 << 19);
        assert_eq!(used(131_073), all);
        assert_eq!(used(u64::MAX), all);
    }

    #[test]
    fn a_cache_that_is_hardly_larger_than_its_smallest_part_is_used_whole() {
        assert_eq!(slots_for(0, 128), 128);
        assert_eq!(slots_for(0, 1 << 17), 1 << 17);
        assert_eq!(slots_for(0, (1 << 17) + 128), 1 << 16);
    }

    #[test]
    fn the_largest_cache_is_used_whole_by_the_most_sessions() {
        assert_eq!(slots_for(u64::MAX, u32::MAX / 128 * 128), u32::MAX / 128 * 128);
    }
}
