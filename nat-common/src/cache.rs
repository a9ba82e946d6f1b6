//! The flow cache: one cache line a packet.
//!
//! The session table is a hash map, whose lookup walks a bucket, an element and a page table or two.
//! In front of it stands an array of slots, two to a cache line, found by a keyed hash of the packet's
//! key. A slot has all that an established packet needs, and takes what it would have changed in its
//! session: the time it was seen and how much it carried. The session stays the truth: what a slot has taken is
//! *settled* into its session before anyone judges it by its time, reports it or ends it, and the slot
//! is *distrusted* when the session changes its state, and *forgotten* when it ends.
//!
//! Any CPU may use any slot. A reader takes a copy and believes it only if its check, a hash over the
//! key and everything that is derived from it, is right; so it never acts on a slot that another CPU
//! is writing. What is added to a slot is added atomically; a packet that is counted in the very moment in
//! which another flow takes the slot counts for that one, nothing is lost (tests/tests/prog_parallel.rs).
//!
//! Flows that the slot has no words for go by their sessions: those between two private hosts (both ends are
//! replaced), and those of protocols other than UDP, TCP and ICMP.

use core::hint::black_box;

use crate::{
    env::Env,
    flow::FlowKey,
    next_hops,
    rules::Control,
    session::{NextHop, Path, Session, State, Word, flags},
};

mod place;
mod slot;

pub use place::Place;
pub use slot::{Entry, Slot, SlotImage};

/// One in so many packets may take a slot from a flow that uses it.
const TURN: u64 = 63;

/// The slot of the key.
#[inline(always)]
pub fn find<'a, E: Env>(env: &'a E, place: &Place) -> Option<&'a Slot> {
    search(env, place, Slot::difference)
}

/// The same for who will ask for the [entry](Slot::entry), which has the protocol in its check: it may be the
/// slot of another protocol's flow, and then there is no entry.
#[inline(always)]
pub fn find_near<'a, E: Env>(env: &'a E, place: &Place) -> Option<&'a Slot> {
    search(env, place, Slot::near_difference)
}

/// No slot has this number.
const NOWHERE: u32 = u32::MAX;

#[inline(always)]
fn search<'a, E: Env>(
    env: &'a E,
    place: &Place,
    difference: impl Fn(&Slot, &Place) -> u64,
) -> Option<&'a Slot> {
    let slot = env.slot(place.first())?;
    if difference(slot, place) == 0 {
        return Some(slot);
    }
    // Opaque, so that the verifier does not tell apart which way it is, and walks what follows once.
    let mut index = black_box(NOWHERE);
    let beside = place.first() ^ 1;
    if difference(env.slot(beside)?, place) == 0 {
        index = beside;
    } else if slot.has_spilled() {
        // Both lines are fetched at once.
        for line in [place.second(), place.third()] {
            if difference(env.slot(line)?, place) == 0 {
                index = line;
            }
            if difference(env.slot(line ^ 1)?, place) == 0 {
                index = line ^ 1;
            }
        }
    }
    if index == NOWHERE { None } else { env.slot(index) }
}

/// Brings the session up to date with what the cache has taken for it.
#[inline(always)]
pub fn settle<E: Env>(env: &E, control: &Control, key: &FlowKey, session: &Session) {
    if let Some(slot) = find(env, &Place::of(key, control)) {
        slot.settle::<E>(session);
    }
}

/// Gives the copy of a session the time that the cache knows, which stays as it is: for whoever may
/// look and change nothing.
#[inline(always)]
pub fn date<E: Env>(env: &E, control: &Control, key: &FlowKey, copy: &Session) {
    if let Some(slot) = find(env, &Place::of(key, control)) {
        let (seen, word) = (slot.seen(), copy.word());
        if word.state() != State::Dead && seen.wrapping_sub(word.seen()) < u32::MAX / 2 {
            copy.word.set(word.with_seen(seen).0);
        }
    }
}

/// Has the next packet of the key look at its session, whose state has just changed.
#[inline(always)]
pub fn distrust<E: Env>(env: &E, control: &Control, key: &FlowKey) {
    if let Some(slot) = find(env, &Place::of(key, control)) {
        slot.distrust::<E>();
    }
}

/// Takes the key out of the cache, and brings its session up to date.
#[inline(always)]
pub fn forget<E: Env>(env: &E, control: &Control, key: &FlowKey, session: &Session) {
    if let Some(slot) = find(env, &Place::of(key, control)) {
        // By an atomic operation, as everything that comes before or after a change of state.
        slot.distrust::<E>();
        slot.settle::<E>(session);
    }
}

/// The slot that the key has or may have, if there is one.
#[inline(always)]
fn way<E: Env>(
    env: &E,
    control: &Control,
    place: &Place,
    session: &Session,
    now: u32,
) -> Option<u32> {
    // The best so far, and how good it is: another's, idle, free. Without a branch, for the verifier would walk
    // each from here.
    let (mut best, mut merit) = (place.first(), 0_u64);
    for way in place.ways() {
        let slot = env.slot(way)?;
        if slot.holds(place) {
            return Some(way);
        }
        let its = black_box(slot.merit(control, now));
        let better = (merit.wrapping_sub(its).cast_signed() >> 63).cast_unsigned();
        best ^= (best ^ way) & better as u32;
        merit ^= (merit ^ its) & better;
    }
    if merit > 0 {
        if best | 1 != place.first() | 1 {
            env.slot(place.first())?.spill::<E>();
        }
        return Some(best);
    }
    // Whoever sends much gets a slot from someone who sends little, in the end.
    (session.packets.get() & TURN == 0).then_some(place.first())
}

/// Whether a slot can say what the session does to its packets: one end of them is replaced.
#[inline(always)]
fn fits(place: &Place, session: &Session) -> bool {
    let (old, new) = (place.tuple(), session.tuple);
    let source = (old.src.raw() ^ new.src.raw()) | u32::from(old.sport.raw() ^ new.sport.raw());
    let destination =
        (old.dst.raw() ^ new.dst.raw()) | u32::from(old.dport.raw() ^ new.dport.raw());
    let changed = if session.is_outbound() { destination } else { source };
    changed == 0 && session.flags & flags::HAIRPIN == 0 && place.has_code()
}

/// Enters a session that has just translated a packet, if there is a slot to be had for it.
#[inline(always)]
pub fn enter<E: Env>(env: &E, control: &Control, place: &Place, session: &Session, now: u32) {
    if !fits(place, session) {
        return;
    }
    let Some(way) = way(env, control, place, session, now) else { return };
    let epoch = session.epoch.get();
    let (next, path) = (NextHop(session.next_hop.get()), Path(session.path.get()));
    let Some(egress) = env.interface_in(next.slot()) else { return };
    let Some(hop) = next_hops::number(env, next, path, egress.mac, epoch) else { return };
    let Some(slot) = env.slot(black_box(way)) else { return };

    slot.vacate(env);
    // Not before: it may have been the session's own, and has brought it up to date.
    let word = session.word();
    let terms = slot.write::<E>(place, session, hop, epoch, now);
    if session.word() != word {
        return;
    }
    slot.trust::<E>(terms);
    // The session may have changed its state, ended, or become another one meanwhile. Who did that
    // looks for the slot after the change, and here the change is looked for after the slot.
    let after = Word(E::or(&session.word, 0));
    if after.with_seen(0) != word.with_seen(0) || session.epoch.get() != epoch {
        slot.distrust::<E>();
    }
    // Another CPU may have entered the same session in another slot at the same time: whoever looks for it
    // would find one of them only. Each takes back what the other did, or one does.
    for other in place.ways() {
        if other != way
            && let Some(slot) = env.slot(other)
            && slot.holds(place)
        {
            slot.distrust::<E>();
            slot.settle::<E>(session);
        }
    }
}
