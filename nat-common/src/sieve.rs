//! Whether a packet's key can be in the session table at all, told by a few bits.
//!
//! A first packet, and every packet of a flood, would look for what is not there: in a slot of the flow
//! cache and a bucket of the session table, each of which is cold memory. The sieve is an array of
//! small counters, found by the same keyed hash as the slots. Each entry of the session table is counted in
//! one of them, from before it is inserted until after it is removed, so a counter that is zero
//! says that there is no such entry; one that is not says nothing. It has two bytes a session: with every place
//! of the table taken it lets two in five through that have no entry, and fewer before. Twice as many would let half
//! of these through, and cost more: they would not stay in the second level cache.
//!
//! Sixteen counters share a word and are changed by adding to the word. One that overflowed would carry into its
//! neighbour and be right again when the entries are gone; with a key that nobody knows, sixteen
//! entries do not meet in one of them in the life of a gateway (a chance below 10⁻¹⁶ for each).

use core::hint::black_box;

use crate::{
    cache::Place,
    env::{Env, InsertError},
    flow::FlowKey,
    rules::Control,
    session::SessionImage,
};

/// Bits of a counter.
const BITS: u32 = 4;
const COUNTERS: u64 = (u64::BITS / BITS) as u64;
const ALL: u64 = (1 << BITS) - 1;

/// The counter of a key: its word, and one in its place.
#[derive(Clone, Copy)]
struct Spot {
    word: u32,
    one: u64,
}

impl Spot {
    /// By other bits of the hash than those that find the slot.
    #[inline(always)]
    const fn of(place: &Place, mask: u32) -> Self {
        let hash = place.hash();
        Self {
            word: (hash as u32 >> BITS) & mask,
            one: 1 << ((hash & (COUNTERS - 1)) << (BITS.trailing_zeros())),
        }
    }
}

/// Whether the session table may have the key. False is certain.
#[inline(always)]
pub fn may_have<E: Env>(env: &E, place: &Place, mask: u32) -> bool {
    let spot = Spot::of(place, mask);
    env.sieve(spot.word).is_none_or(|word| word.get() & (spot.one * ALL) != 0)
}

/// Number of a key's word, and what the key adds to it.
#[inline(always)]
pub const fn share(key: &FlowKey, control: &Control) -> (u32, u64) {
    let spot = Spot::of(&Place::of(key, control), control.sieve_mask);
    (spot.word, spot.one)
}

/// Counts a key, or one less. The key is opaque: what is known of it from the last time is not to be
/// kept, for those who insert have no room left on their stack.
#[inline(always)]
fn count<E: Env>(env: &E, key: &FlowKey, add: bool) {
    let Some(control) = env.control() else { return };
    let (word, one) = share(black_box(key), control);
    if let Some(word) = env.sieve(word) {
        E::add(word, if add { one } else { one.wrapping_neg() });
    }
}

/// Inserts an entry into the session table.
#[inline(always)]
pub fn insert<E: Env>(env: &E, key: &FlowKey, image: &SessionImage) -> Result<(), InsertError> {
    count(env, key, true);
    let inserted = env.session_insert(key, image);
    if inserted.is_err() {
        count(env, key, false);
    }
    inserted
}

/// Removes an entry from it; one that is gone already is as good.
#[inline(always)]
pub fn remove<E: Env>(env: &E, key: &FlowKey) {
    if env.session_remove(key) {
        count(env, key, false);
    }
}
