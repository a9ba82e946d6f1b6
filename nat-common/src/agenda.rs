//! What the sweep has to look at.
//!
//! A walk over the session table costs a hundred nanoseconds an entry and more. So the dataplane notes
//! each session that it opens, and each port that is left to rest, in a ring that the daemon reads;
//! from then on the daemon looks at each session when its time may be up, and at no other.
//!
//! A note says little and may be wrong: who looks decides by the entry itself. One that was
//! overwritten before it was read is noticed by its number, and the table is walked.

use bytemuck::{Pod, Zeroable};

use crate::{flow::FlowKey, session::Word};

/// An entry of the session table: its key, and in the place of the key's zeros the low bits of the
/// generation in its word, which tell it from an earlier or later one of the same key, and whether it
/// is a port that rests.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Note(pub FlowKey);

/// In the second byte.
const RESTS: u8 = 1 << 7;

impl Note {
    #[inline(always)]
    #[must_use]
    pub const fn of(key: &FlowKey, word: Word) -> Self {
        Self(FlowKey { zero: generation(word), ..*key })
    }

    /// Of the inbound entry of a session that has ended.
    #[inline(always)]
    #[must_use]
    pub const fn resting(key: &FlowKey, word: Word) -> Self {
        let [low, high] = generation(word);
        Self(FlowKey { zero: [low, high | RESTS], ..*key })
    }

    #[inline(always)]
    #[must_use]
    pub const fn rests(&self) -> bool {
        self.0.zero[1] & RESTS != 0
    }

    #[inline(always)]
    #[must_use]
    pub const fn key(&self) -> FlowKey {
        FlowKey { zero: [0; 2], ..self.0 }
    }

    /// Whether the entry of the key, which has this word, is the one that was meant.
    #[inline(always)]
    #[must_use]
    pub fn means(&self, word: Word) -> bool {
        let [low, high] = self.0.zero;
        let its = generation(word);
        low == its[0] && high & !RESTS == its[1]
    }
}

#[inline(always)]
const fn generation(word: Word) -> [u8; 2] {
    [(word.0 >> 8) as u8, (word.0 >> 16) as u8 & !RESTS]
}

/// Place 0 of the ring's array: how many notes there have been, and the number of places less one.
/// 0 of these: nobody reads, and nothing is noted.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct Head {
    pub count: u64,
    pub mask: u64,
}

const _: () = assert!(size_of::<Head>() == size_of::<Note>());

/// Where the note of this number is in the ring's array.
#[inline(always)]
#[must_use]
pub const fn place(number: u64, mask: u64) -> u32 {
    (number & mask) as u32 + 1
}

/// Notes that the ring of a gateway for so many sessions has room for, a power of two: what may come
/// in a second, four bytes a session.
#[must_use]
pub const fn places(sessions: u32) -> u32 {
    let places = sessions / 4;
    if places < 1024 {
        1024
    } else if places > 1 << 20 {
        1 << 20
    } else {
        places.next_power_of_two()
    }
}
