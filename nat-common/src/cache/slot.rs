//! A slot of the cache: half a cache line, for one direction of a session.

use core::cell::Cell;

use crate::{
    checksum::Delta,
    env::Env,
    flow::{FlowKey, Tuple},
    rules::{Control, control},
    session::{Session, State, flags},
};

use super::place::{MIX, Place, protocol_of, tuple_of};

/// A slot. All cells, because every part changes under its readers.
///
/// It says only what an established packet needs and cannot know otherwise: of the packet's two ends one
/// is replaced, and what that does to the checksums is computed.
#[repr(C, align(32))]
#[derive(Debug, Default)]
pub struct Slot {
    /// Of the key.
    addresses: Cell<u64>,
    /// Ports of the key (low half), and the address that replaces one of its two.
    ends: Cell<u64>,
    /// See [`terms`].
    terms: Cell<u64>,
    /// When it was last seen, ticks (high half); and what it has carried since it was settled: packets
    /// (11 bits) and bytes of IP (21).
    tally: Cell<u64>,
}

/// The plain image of a slot, as userspace reads it.
pub type SlotImage = [u64; 4];

const _: () = assert!(size_of::<Slot>() == 32 && size_of::<SlotImage>() == 32);

/// What stands where in the terms of a slot.
pub(super) mod terms {
    /// One of [`code`](super::super::place::code); 0: no flow.
    pub(in super::super) use super::super::place::code::PROTOCOL;
    /// Some key whose first way this is may be in its other lines. Stays when the slot is taken by another.
    pub(in super::super) const SPILLED: u64 = 1 << 3;
    /// The slot may be believed; without it, the flow is looked at by its session.
    pub(in super::super) const TRUSTED: u64 = 1 << 4;
    /// The destination is what is replaced, and the session's entry is its inbound one; else the source and the
    /// outbound one. In this place it is by how many bits an address that is a destination is shifted.
    pub(in super::super) const INBOUND: u64 = 32;
    /// Number of the next hop, 14 bits.
    pub(in super::super) const HOP: u32 = 6;
    /// The port that replaces one, 16 bits.
    pub(in super::super) const PORT: u32 = 20;
    /// A hash over the key and all of the above, plus the epoch: so a slot of another epoch is never
    /// believed, nor one that another CPU is writing.
    pub(in super::super) const CHECK: u32 = 36;
    /// What the check covers.
    pub(in super::super) const SEALED: u64 = ((1 << CHECK) - 1) & !SPILLED;
}
const CHECKED: u64 = u64::MAX << terms::CHECK;
// No epoch loses a bit in it.
const _: () = assert!(2 * control::EPOCH_ALONE as u64 <= 1 << (u64::BITS - terms::CHECK));

const BYTES: u32 = 21;
const TAKEN: u64 = 0xffff_ffff;
/// A slot that has so many packets, or bytes, is settled before more is added.
const FULL: u64 = 1 << 31 | 1 << (BYTES - 1);
/// What may be added at once: a few CPUs that do so at the same moment run nothing over.
const MOST: [u32; 2] = [1 << 8, 1 << 17];

/// What a believed slot says, in the words in which it is kept.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    addresses: u64,
    ends: u64,
    terms: u64,
    tally: u64,
}

impl Entry {
    /// By how many bits what is replaced is shifted in the addresses; in the ports by half as many. So there is no
    /// branch here or below: which way the next packet goes is anyone's guess.
    #[inline(always)]
    const fn shift(&self) -> u32 {
        (self.terms & terms::INBOUND) as u32
    }

    /// What is replaced.
    #[inline(always)]
    const fn old_address(&self) -> u32 {
        (self.addresses >> self.shift()) as u32
    }

    #[inline(always)]
    const fn old_port(&self) -> u16 {
        (self.ends as u32 >> (self.shift() >> 1)) as u16
    }

    #[inline(always)]
    const fn address(&self) -> u32 {
        (self.ends >> 32) as u32
    }

    #[inline(always)]
    const fn port(&self) -> u16 {
        (self.terms >> terms::PORT) as u16
    }

    #[inline(always)]
    const fn address_pair(&self) -> u64 {
        let change = (self.old_address() ^ self.address()) as u64;
        self.addresses ^ (change << self.shift())
    }

    #[inline(always)]
    const fn port_pair(&self) -> u32 {
        let change = (self.old_port() ^ self.port()) as u32;
        self.ends as u32 ^ (change << (self.shift() >> 1))
    }

    /// What source and destination become, each as loaded from the wire.
    #[inline(always)]
    #[must_use]
    pub const fn addresses(&self) -> [u32; 2] {
        let both = self.address_pair();
        [both as u32, (both >> 32) as u32]
    }

    /// The same of the ports.
    #[inline(always)]
    #[must_use]
    pub const fn ports(&self) -> [u16; 2] {
        let both = self.port_pair();
        [both as u16, (both >> 16) as u16]
    }

    #[inline(always)]
    #[must_use]
    pub const fn tuple(&self) -> Tuple {
        tuple_of(self.address_pair(), self.port_pair())
    }

    /// What the addresses change of a sum.
    #[inline(always)]
    pub const fn address_delta(&self) -> Delta {
        Delta::of_address(self.old_address(), self.address())
    }

    /// What addresses and ports change of a sum.
    #[inline(always)]
    pub const fn delta(&self) -> Delta {
        self.address_delta().then_word(self.old_port(), self.port())
    }

    /// The one that stands for those of its protocol.
    #[inline(always)]
    #[must_use]
    pub const fn state(&self) -> State {
        protocol_of(self.terms & terms::PROTOCOL).1
    }

    /// Number of the next hop.
    #[inline(always)]
    #[must_use]
    pub const fn hop(&self) -> u16 {
        (self.terms >> terms::HOP) as u16 & ((1 << crate::next_hops::BITS) - 1)
    }

    /// Those of the session that say which way it goes.
    #[inline(always)]
    #[must_use]
    pub const fn flags(&self) -> u8 {
        const { assert!(flags::OUTBOUND == 1) };
        (self.shift() >> 5) as u8 ^ flags::OUTBOUND
    }

    /// Ticks.
    #[inline(always)]
    #[must_use]
    pub const fn seen(&self) -> u32 {
        (self.tally >> 32) as u32
    }

    /// True where the slot has to be settled before more is added.
    #[inline(always)]
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.tally & FULL != 0
    }

    /// Whether a slot takes so many packets and bytes at once.
    #[inline(always)]
    #[must_use]
    pub const fn takes(packets: u32, bytes: u32) -> bool {
        packets < MOST[0] && bytes < MOST[1]
    }
}

/// The check of a slot that holds the key of `place`, in its place in the terms.
#[inline(always)]
const fn seal(place: &Place, ends: u64, sealed: u64, epoch: u32) -> u64 {
    let mixed = place.hash() ^ (ends ^ sealed << (u64::BITS - terms::CHECK)).wrapping_mul(MIX[3]);
    // Its upper bits, which every bit of the ends and terms has a part in.
    mixed.wrapping_add((epoch as u64) << terms::CHECK) & CHECKED
}

/// What a slot has of a key beside its addresses.
#[inline(always)]
const fn rest(ends: u64, its: u64) -> u64 {
    ends & 0xffff_ffff | (its & terms::PROTOCOL) << 32
}

impl Slot {
    #[inline(always)]
    pub(super) fn holds(&self, place: &Place) -> bool {
        self.difference(place) == 0
    }

    /// 0 if it holds the key.
    #[inline(always)]
    pub(super) fn difference(&self, place: &Place) -> u64 {
        (self.addresses.get() ^ place.words[0])
            | (rest(self.ends.get(), self.terms.get()) ^ place.rest())
    }

    /// 0 if it holds the key, or one of another protocol.
    #[inline(always)]
    pub(super) fn near_difference(&self, place: &Place) -> u64 {
        (self.addresses.get() ^ place.words[0]) | u64::from(self.ends.get() as u32 ^ place.ports())
    }

    /// What the slot says of the key, if it [is near](Self::near_difference) and can be believed in this epoch.
    #[inline(always)]
    pub fn entry(&self, place: &Place, epoch: u32) -> Option<Entry> {
        let (ends, its) = (self.ends.get(), self.terms.get());
        let check = seal(place, ends, its & terms::SEALED, epoch);
        // One comparison: the check, and the trust.
        let compared = CHECKED | terms::TRUSTED;
        if (its ^ (check | terms::TRUSTED)) & compared != 0 {
            return None;
        }
        // The address from the key itself: it is the same, and cannot change under us.
        Some(Entry { addresses: place.words[0], ends, terms: its, tally: self.tally.get() })
    }

    /// Counts a packet that `entry` has translated.
    #[inline(always)]
    pub fn take<E: Env>(&self, entry: &Entry, now: u32, packets: u32, bytes: u32) {
        let more = u64::from(packets) << BYTES | u64::from(bytes);
        let old = entry.tally;
        if entry.seen() != now {
            let new = u64::from(now) << 32 | ((old & TAKEN) + more);
            if E::compare_exchange(&self.tally, old, new) {
                return;
            }
            // Another CPU has just seen it.
        }
        E::add(&self.tally, more);
    }

    /// How good the slot is for another flow. 2: it has none; 1: its flow has not been seen for a second.
    /// Without a branch, for the verifier walks every way from here.
    #[inline(always)]
    pub(super) fn merit(&self, control: &Control, now: u32) -> u64 {
        let idle =
            u64::from(control.hz).wrapping_sub(u64::from(now.wrapping_sub(self.seen()))) >> 63;
        let free = (!self.terms.get() & terms::TRUSTED) / (terms::TRUSTED / 2);
        // Free is as good whatever it was before: else a flow would leave what looks like its slot behind.
        free | idle >> (free / 2)
    }

    #[inline(always)]
    pub(super) fn seen(&self) -> u32 {
        (self.tally.get() >> 32) as u32
    }

    #[inline(always)]
    pub(super) fn has_spilled(&self) -> bool {
        self.terms.get() & terms::SPILLED != 0
    }

    #[inline(always)]
    pub(super) fn spill<E: Env>(&self) {
        E::or(&self.terms, terms::SPILLED);
    }

    /// Leaves the flow to its session; what was taken for it can still be settled.
    #[inline(always)]
    pub(super) fn distrust<E: Env>(&self) {
        E::and(&self.terms, !terms::TRUSTED);
    }

    /// Gives the session what the slot has taken for it.
    #[inline(always)]
    pub(super) fn settle<E: Env>(&self, session: &Session) {
        let mut tally = self.tally.get();
        if tally & TAKEN != 0 {
            tally = E::and(&self.tally, !TAKEN);
            E::add(&session.packets, (tally & TAKEN) >> BYTES);
            E::add(&session.bytes, tally & ((1 << BYTES) - 1));
        }
        let (seen, word) = ((tally >> 32) as u32, session.word());
        if seen.wrapping_sub(word.seen()) < u32::MAX / 2
            && seen != word.seen()
            && word.state() != State::Dead
        {
            let _raced = session.swap_word::<E>(word, word.with_seen(seen));
        }
    }

    /// Takes the slot from whoever has it: what it has taken goes to its session.
    #[inline(always)]
    pub(super) fn vacate<E: Env>(&self, env: &E) {
        self.settle_whose(env);
        self.free::<E>();
    }

    #[inline(always)]
    pub fn free<E: Env>(&self) {
        E::and(&self.terms, terms::SPILLED);
    }

    /// Gives what the slot has taken to the session of whoever has it.
    #[inline(always)]
    pub fn settle_whose<E: Env>(&self, env: &E) {
        if self.tally.get() & TAKEN == 0 {
            return;
        }
        let its = self.terms.get();
        let (protocol, _) = protocol_of(its & terms::PROTOCOL);
        let tuple = tuple_of(self.addresses.get(), self.ends.get() as u32);
        if let Some(session) = env.session(&FlowKey::new(tuple, protocol, 0)) {
            self.settle::<E>(session);
        } else if protocol != 0 && E::or(&self.terms, 0) == its {
            // Nobody's any more. Else it is being written, and what was read is part of one key and part of
            // another: then it counts for the flow that gets it.
            E::and(&self.tally, !TAKEN);
        }
    }

    /// Writes what the slot will say of the key, all but the terms that make it believed, which are returned.
    #[inline(always)]
    pub(super) fn write<E: Env>(
        &self,
        place: &Place,
        session: &Session,
        hop: u16,
        epoch: u32,
        now: u32,
    ) -> u64 {
        let Tuple { src, dst, sport, dport } = session.tuple;
        let (inbound, address, port) = if session.is_outbound() {
            (0, src.raw(), sport.raw())
        } else {
            (terms::INBOUND, dst.raw(), dport.raw())
        };
        let ends = u64::from(place.ports()) | u64::from(address) << 32;
        self.addresses.set(place.words[0]);
        self.ends.set(ends);
        // Where this fails somebody has just added to it, and the time is that of before: so the flow is
        // looked at by its session once more.
        let old = self.tally.get();
        let _raced = E::compare_exchange(&self.tally, old, old & TAKEN | u64::from(now) << 32);
        let sealed = place.code()
            | inbound
            | terms::TRUSTED
            | u64::from(hop) << terms::HOP
            | u64::from(port) << terms::PORT;
        sealed | seal(place, ends, sealed, epoch)
    }

    /// Makes the slot believed.
    #[inline(always)]
    pub(super) fn trust<E: Env>(&self, its: u64) {
        E::or(&self.terms, its);
    }

    /// Whose slot with this image is.
    #[must_use]
    pub const fn owner(image: &SlotImage) -> Option<FlowKey> {
        let [addresses, ends, its, _] = *image;
        match protocol_of(its & terms::PROTOCOL) {
            (0, _) => None,
            (protocol, _) => Some(FlowKey::new(tuple_of(addresses, ends as u32), protocol, 0)),
        }
    }

    pub(super) const fn taken(image: &SlotImage, place: &Place) -> Option<(u32, u64, u64)> {
        let [addresses, ends, its, tally] = *image;
        if addresses != place.words[0] || rest(ends, its) != place.rest() {
            return None;
        }
        Some(((tally >> 32) as u32, (tally & TAKEN) >> BYTES, tally & ((1 << BYTES) - 1)))
    }
}
