//! The flow cache: one cache line a packet.
//!
//! The session table is a hash map, whose lookup walks a bucket, an element and a page table or two.
//! In front of it stands an array of slots, found by a keyed hash of the packet's key. A slot has all
//! that an established packet needs, and takes what it would have changed in its session: the time
//! it was seen and how much it carried. The session stays the truth: what a slot has taken is
//! *settled* into its session before anyone judges it by its time, reports it or ends it, and the slot
//! is *distrusted* when the session changes its state, and *forgotten* when it ends.
//!
//! Any CPU may use any slot. A reader takes a copy and believes it only if its seal, a hash over the
//! key and everything that is derived from it, is right; so it never acts on a slot that another CPU
//! is writing. What is added to a slot is added atomically; a packet that is counted in the very moment in
//! which another flow takes the slot counts for that one, nothing is lost.

use core::{cell::Cell, hint::black_box};

use crate::{
    env::Env,
    flow::{FlowKey, Tuple},
    net::{Ip4, Port},
    rules::Control,
    session::{NextHop, Session, State, Word},
};

/// A slot. All cells, because every part changes under its readers.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Slot {
    key: [Cell<u64>; 2],
    /// Addresses, then ports and checksum deltas.
    rewrite: [Cell<u64>; 2],
    next_hop: Cell<u64>,
    /// Epoch (low 32 bits), MTU (16), session flags (8), state (7), [`SPILLED`]. 0 without that: free.
    terms: Cell<u64>,
    seal: Cell<u32>,
    seen: Cell<u32>,
    /// Packets (high 24 bits) and bytes (low 40) since the slot was settled.
    tally: Cell<u64>,
}

/// The plain image of a slot, as userspace reads it.
pub type SlotImage = [u64; 8];

const _: () = assert!(size_of::<Slot>() == 64 && size_of::<SlotImage>() == 64);

const BYTES: u32 = 40;
/// Packets after which a slot is settled; far from where their count or that of the bytes ends.
const FULL: u64 = 1 << 22;
/// Odd, with bits evenly spread: the fractional parts of the golden ratio and of square roots.
const MIX: [u64; 6] = [
    0x9e37_79b9_7f4a_7c15,
    0xbb67_ae85_84ca_a73b,
    0x3c6e_f372_fe94_f82b,
    0xa54f_f53a_5f1d_36f1,
    0x510e_527f_ade6_82d1,
    0x9b05_688c_2b3e_6c1f,
];
/// In the terms of a slot: some key whose first way this is may be in its third or fourth. Stays when the
/// slot is taken by another.
const SPILLED: u64 = 1 << 63;
/// One in so many packets may take a slot from a flow that uses it.
const TURN: u64 = 63;

/// Where a key's slot is: its first way; the second is the other slot of the pair, the third and fourth
/// are a pair elsewhere in the same page of memory, which is cheaper to reach than any other.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    words: [u64; 2],
    hash: u64,
    index: u32,
    mask: u32,
}

/// What a believed slot says, in the words in which it is kept.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    rewrite: [u64; 2],
    pub next_hop: NextHop,
    terms: u64,
}

impl Entry {
    /// What source and destination become, each as loaded from the wire.
    #[inline(always)]
    #[must_use]
    pub const fn addresses(&self) -> [u32; 2] {
        [self.rewrite[0] as u32, (self.rewrite[0] >> 32) as u32]
    }

    /// The same of the ports.
    #[inline(always)]
    #[must_use]
    pub const fn ports(&self) -> [u16; 2] {
        [self.rewrite[1] as u16, (self.rewrite[1] >> 16) as u16]
    }

    #[inline(always)]
    #[must_use]
    pub const fn ip_delta(&self) -> u16 {
        (self.rewrite[1] >> 32) as u16
    }

    #[inline(always)]
    #[must_use]
    pub const fn l4_delta(&self) -> u16 {
        (self.rewrite[1] >> 48) as u16
    }

    #[inline(always)]
    #[must_use]
    pub const fn epoch(&self) -> u32 {
        self.terms as u32
    }

    #[inline(always)]
    #[must_use]
    pub const fn mtu(&self) -> u16 {
        (self.terms >> 32) as u16
    }

    /// Of the session.
    #[inline(always)]
    #[must_use]
    pub const fn flags(&self) -> u8 {
        (self.terms >> 48) as u8
    }

    /// A number of `State`.
    #[inline(always)]
    #[must_use]
    pub const fn state(&self) -> u8 {
        (self.terms >> 56) as u8
    }

    #[inline(always)]
    #[must_use]
    pub const fn tuple(&self) -> Tuple {
        let ([src, dst], [sport, dport]) = (self.addresses(), self.ports());
        Tuple {
            src: Ip4::from_raw(src),
            dst: Ip4::from_raw(dst),
            sport: Port::from_raw(sport),
            dport: Port::from_raw(dport),
        }
    }
}

const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | ((high as u64) << 32)
}

/// A key as two words; addresses and ports as loaded from the wire.
#[inline(always)]
pub const fn key_words(addresses: [u32; 2], ports: [u16; 2], protocol: u8, realm: u8) -> [u64; 2] {
    [
        pair(addresses[0], addresses[1]),
        pair(ports[0] as u32 | ((ports[1] as u32) << 16), protocol as u32 | ((realm as u32) << 8)),
    ]
}

#[inline(always)]
const fn key_of([addresses, rest]: [u64; 2]) -> FlowKey {
    let tuple = Tuple {
        src: Ip4::from_raw(addresses as u32),
        dst: Ip4::from_raw((addresses >> 32) as u32),
        sport: Port::from_raw(rest as u16),
        dport: Port::from_raw((rest >> 16) as u16),
    };
    FlowKey::new(tuple, (rest >> 32) as u8, (rest >> 40) as u8)
}

impl Place {
    /// `None`: there is no cache.
    #[inline(always)]
    pub const fn of(key: &FlowKey, control: &Control) -> Option<Self> {
        let Tuple { src, dst, sport, dport } = key.tuple;
        let (addresses, ports) = ([src.raw(), dst.raw()], [sport.raw(), dport.raw()]);
        Self::of_words(key_words(addresses, ports, key.protocol, key.realm), control)
    }

    /// The same of a key in [words](key_words).
    #[inline(always)]
    pub const fn of_words(words: [u64; 2], control: &Control) -> Option<Self> {
        if control.cache_mask == 0 {
            return None;
        }
        let [a, b, c, d] = control.cache_seed;
        let low = (words[0] ^ pair(a, b)).wrapping_mul(MIX[0]);
        let high = (words[1] ^ pair(c, d)).wrapping_mul(MIX[1]);
        let mixed = (low ^ (low >> 32)).wrapping_add(high ^ (high >> 29)).wrapping_mul(MIX[2]);
        let hash = mixed ^ (mixed >> 32);
        let mask = control.cache_mask;
        Some(Self { words, hash, index: hash as u32 & mask, mask })
    }

    #[inline(always)]
    #[must_use]
    pub const fn key(&self) -> FlowKey {
        key_of(self.words)
    }

    /// Of the key, all bits of it good.
    #[inline(always)]
    #[must_use]
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    /// The slots that may hold the key.
    #[inline(always)]
    #[must_use]
    pub const fn ways(&self) -> [u32; 4] {
        let third = self.third();
        [self.index, self.index ^ 1, third, third ^ 1]
    }

    #[inline(always)]
    const fn third(&self) -> u32 {
        // Odd, so never the pair itself.
        let pairs = (self.hash >> 59) as u32 | 1;
        self.index ^ ((pairs << 1) & self.mask)
    }

    #[inline(always)]
    const fn seal(&self, rewrite: [u64; 2], next_hop: u64, terms: u64) -> u32 {
        let sum = self.hash
            ^ rewrite[0].wrapping_mul(MIX[2])
            ^ rewrite[1].wrapping_mul(MIX[3])
            ^ next_hop.wrapping_mul(MIX[4])
            ^ terms.wrapping_mul(MIX[5]);
        (sum >> 32) as u32
    }

    /// What the slot with this image has of the key: when it was last seen, packets, bytes.
    #[must_use]
    pub const fn taken(&self, image: &SlotImage) -> Option<(u32, u64, u64)> {
        let [addresses, rest, _, _, _, _, times, tally] = *image;
        if addresses != self.words[0] || rest != self.words[1] {
            return None;
        }
        Some(((times >> 32) as u32, tally >> BYTES, tally & ((1 << BYTES) - 1)))
    }
}

impl Slot {
    #[inline(always)]
    fn holds(&self, place: &Place) -> bool {
        self.key[0].get() == place.words[0] && self.key[1].get() == place.words[1]
    }

    /// What the slot says of the key, if that can be believed.
    #[inline(always)]
    pub fn entry(&self, place: &Place) -> Option<Entry> {
        let (rewrite, next_hop) =
            ([self.rewrite[0].get(), self.rewrite[1].get()], self.next_hop.get());
        let terms = self.terms.get() & !SPILLED;
        if self.seal.get() != place.seal(rewrite, next_hop, terms) {
            return None;
        }
        Some(Entry { rewrite, next_hop: NextHop(next_hop), terms })
    }

    #[inline(always)]
    pub fn seen(&self) -> u32 {
        self.seen.get()
    }

    #[inline(always)]
    pub fn see(&self, now: u32) {
        self.seen.set(now);
    }

    /// True where the slot has to be settled before more is added.
    #[inline(always)]
    pub fn is_full(&self) -> bool {
        self.tally.get() >> BYTES >= FULL
    }

    #[inline(always)]
    pub fn count<E: Env>(&self, packets: u32, bytes: u32) {
        E::add(&self.tally, u64::from(packets) << BYTES | u64::from(bytes));
    }

    /// How good the slot is for another flow. 2: it has none; 1: its flow has not been seen for a second.
    #[inline(always)]
    fn merit(&self, control: &Control, epoch: u32, now: u32) -> u32 {
        let terms = self.terms.get() & !SPILLED;
        if terms == 0 || terms as u32 != epoch {
            2
        } else {
            u32::from(now.wrapping_sub(self.seen.get()) > control.hz)
        }
    }

    /// Gives the session what the slot has taken for it.
    #[inline(always)]
    fn settle<E: Env>(&self, session: &Session) {
        let seen = self.seen.get();
        let tally = E::and(&self.tally, 0);
        if tally != 0 {
            E::add(&session.packets, tally >> BYTES);
            E::add(&session.bytes, tally & ((1 << BYTES) - 1));
        }
        let word = session.word();
        if seen.wrapping_sub(word.seen()) < u32::MAX / 2
            && seen != word.seen()
            && word.state() != State::Dead
        {
            let _raced = session.swap_word::<E>(word, word.with_seen(seen));
        }
    }
}

/// The slot of the key.
#[inline(always)]
pub fn find<'a, E: Env>(env: &'a E, place: &Place) -> Option<&'a Slot> {
    let first = env.slot(place.index)?;
    if first.holds(place) {
        return Some(first);
    }
    let mut index = place.index ^ 1;
    if !env.slot(index)?.holds(place) {
        if first.terms.get() & SPILLED == 0 {
            return None;
        }
        index = place.third();
        if !env.slot(index)?.holds(place) {
            index ^= 1;
            if !env.slot(index)?.holds(place) {
                return None;
            }
        }
    }
    // Looked up again by a number that is opaque, so that the verifier walks what follows once.
    env.slot(black_box(index))
}

/// Brings the session up to date with what the cache has taken for it.
#[inline(always)]
pub fn settle<E: Env>(env: &E, control: &Control, key: &FlowKey, session: &Session) {
    if let Some(place) = Place::of(key, control)
        && let Some(slot) = find(env, &place)
    {
        slot.settle::<E>(session);
    }
}

/// Gives the copy of a session the time that the cache knows, which stays as it is: for whoever may
/// look and change nothing.
#[inline(always)]
pub fn date<E: Env>(env: &E, control: &Control, key: &FlowKey, copy: &Session) {
    if let Some(place) = Place::of(key, control)
        && let Some(slot) = find(env, &place)
    {
        let (seen, word) = (slot.seen.get(), copy.word());
        if word.state() != State::Dead && seen.wrapping_sub(word.seen()) < u32::MAX / 2 {
            copy.word.set(word.with_seen(seen).0);
        }
    }
}

/// Has the next packet of the key look at its session, whose state has just changed.
#[inline(always)]
pub fn distrust<E: Env>(env: &E, control: &Control, key: &FlowKey) {
    if let Some(place) = Place::of(key, control)
        && let Some(slot) = find(env, &place)
    {
        E::and(&slot.terms, SPILLED);
    }
}

/// Takes the key out of the cache, and brings its session up to date.
#[inline(always)]
pub fn forget<E: Env>(env: &E, control: &Control, key: &FlowKey, session: &Session) {
    if let Some(place) = Place::of(key, control)
        && let Some(slot) = find(env, &place)
    {
        // By an atomic operation, as everything that comes before or after a change of state.
        E::and(&slot.terms, SPILLED);
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
    epoch: u32,
    now: u32,
) -> Option<u32> {
    let [first, _, third, _] = place.ways();
    // The best so far, and how good it is: another's, idle, free.
    let (mut best, mut merit) = (first, 0);
    for way in place.ways() {
        let slot = env.slot(way)?;
        if slot.holds(place) {
            return Some(way);
        }
        let its = slot.merit(control, epoch, now);
        if its > merit {
            (best, merit) = (way, its);
        }
    }
    if merit > 0 {
        if best | 1 == third | 1 {
            E::or(&env.slot(first)?.terms, SPILLED);
        }
        return Some(best);
    }
    // Whoever sends much gets a slot from someone who sends little, in the end.
    (session.packets.get() & TURN == 0).then_some(first)
}

/// Enters a session that has just translated a packet, if there is a slot to be had for it.
#[inline(always)]
pub fn enter<E: Env>(env: &E, control: &Control, place: &Place, session: &Session, now: u32) {
    let epoch = session.epoch.get();
    let Some(way) = way(env, control, place, session, epoch, now) else { return };
    let Some(slot) = env.slot(black_box(way)) else { return };
    let word = session.word();
    let rewrite = [
        pair(session.tuple.src.raw(), session.tuple.dst.raw()),
        u64::from(session.tuple.sport.raw())
            | (u64::from(session.tuple.dport.raw()) << 16)
            | (u64::from(session.ip_delta) << 32)
            | (u64::from(session.l4_delta) << 48),
    ];
    let next_hop = session.next_hop.get();
    let terms = pair(epoch, session.path.get() & 0xffff)
        | (u64::from(session.flags) << 48)
        | (u64::from(word.state_bits()) << 56);

    if slot.tally.get() != 0 {
        let before = key_of([slot.key[0].get(), slot.key[1].get()]);
        if let Some(before) = env.session(&before) {
            slot.settle::<E>(before);
        }
    }
    E::and(&slot.terms, SPILLED);
    slot.key[0].set(place.words[0]);
    slot.key[1].set(place.words[1]);
    slot.rewrite[0].set(rewrite[0]);
    slot.rewrite[1].set(rewrite[1]);
    slot.next_hop.set(next_hop);
    slot.seal.set(place.seal(rewrite, next_hop, terms));
    slot.seen.set(now);
    if session.word() != word {
        return;
    }
    E::or(&slot.terms, terms);
    // The session may have changed its state, ended, or become another one meanwhile. Who did that
    // looks for the slot after the change, and here the change is looked for after the slot.
    let after = Word(E::or(&session.word, 0));
    if after.with_seen(0) != word.with_seen(0) || session.epoch.get() != epoch {
        E::and(&slot.terms, SPILLED);
    }
    // Another CPU may have entered the same session in another slot at the same time: whoever looks for it
    // would find one of them only. Each takes back what the other did, or one does.
    for other in place.ways() {
        if other != way
            && let Some(slot) = env.slot(other)
            && slot.holds(place)
        {
            E::and(&slot.terms, SPILLED);
            slot.settle::<E>(session);
        }
    }
}
