//! Where a key is in the cache.

use core::hint::black_box;

use crate::{
    flow::{FlowKey, Tuple},
    net::{Ip4, Port, proto},
    rules::{CacheShape, Control},
    session::State,
};

use super::slot::{Slot, SlotImage};

/// Odd, with bits evenly spread: the fractional parts of the golden ratio and of square roots.
pub(super) const MIX: [u64; 4] =
    [0x9e37_79b9_7f4a_7c15, 0xbb67_ae85_84ca_a73b, 0x3c6e_f372_fe94_f82b, 0xa54f_f53a_5f1d_36f1];

/// Where a key's slot is: in one of three lines of a page of memory, two slots each. The first is by far the
/// likeliest; and the others, if they are needed, are cheaper to reach than those of any other page.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The key. Addresses; then ports (low half), protocol and realm.
    pub(super) words: [u64; 2],
    /// What a slot of the key has of its ports (low half) and protocol. Of a realm other than 0 no flow has a
    /// slot, which has no room for it.
    rest: u64,
    hash: u64,
    index: u32,
}

/// Slots of a page of 4 KiB.
const PAGE: u32 = 128;

const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | ((high as u64) << 32)
}

#[inline(always)]
pub(super) const fn tuple_of(addresses: u64, ports: u32) -> Tuple {
    Tuple {
        src: Ip4::from_raw(addresses as u32),
        dst: Ip4::from_raw((addresses >> 32) as u32),
        sport: Port::from_raw(ports as u16),
        dport: Port::from_raw((ports >> 16) as u16),
    }
}

/// The protocols whose flows have slots, as a slot says them.
pub(super) mod code {
    /// Their bits.
    pub(in super::super) const PROTOCOL: u64 = 3;
    pub(in super::super) const UDP: u64 = 1;
    pub(in super::super) const TCP: u64 = 2;
    pub(in super::super) const ICMP: u64 = 3;
}

/// What stands in a place for a key that no slot can hold.
const OTHER: u64 = 4;

/// Without a branch, for the verifier walks every way from here: codes by protocol, two bits each.
#[inline(always)]
const fn code_of(protocol: u8, realm: u8) -> u64 {
    const CODES: u64 = code::UDP << (2 * proto::UDP)
        | code::TCP << (2 * proto::TCP)
        | code::ICMP << (2 * proto::ICMP);
    /// Beyond these there is none.
    const PROTOCOLS: u64 = 32;
    let protocol = protocol as u64;
    let within = (protocol | ((realm as u64) << 5)).wrapping_sub(PROTOCOLS) >> 63;
    let code = (CODES >> (2 * (protocol & (PROTOCOLS - 1)))) & (code::PROTOCOL * within);
    code | ((code.wrapping_sub(1) >> 61) & OTHER)
}

/// The protocol of a slot, and the state whose timeout is that of all sessions that have slots.
#[inline(always)]
pub(super) const fn protocol_of(code: u64) -> (u8, State) {
    match code {
        code::UDP => (proto::UDP, State::Udp),
        code::TCP => (proto::TCP, State::TcpEstablished),
        code::ICMP => (proto::ICMP, State::Icmp),
        _ => (0, State::None),
    }
}

impl Place {
    #[inline(always)]
    pub const fn of(key: &FlowKey, control: &Control) -> Self {
        Self::within(key, &control.cache)
    }

    #[inline(always)]
    pub const fn within(key: &FlowKey, shape: &CacheShape) -> Self {
        let Tuple { src, dst, sport, dport } = key.tuple;
        let (addresses, ports) = ([src.raw(), dst.raw()], [sport.raw(), dport.raw()]);
        // Opaque, or the compiler makes ways of their own for each protocol.
        Self::of_flow(addresses, ports, black_box(key.protocol), key.realm, shape)
    }

    /// The same of a key in parts; addresses and ports as loaded from the wire.
    #[inline(always)]
    pub const fn of_flow(
        [src, dst]: [u32; 2],
        [sport, dport]: [u16; 2],
        protocol: u8,
        realm: u8,
        shape: &CacheShape,
    ) -> Self {
        let ports = sport as u32 | ((dport as u32) << 16);
        let words = [pair(src, dst), pair(ports, protocol as u32 | ((realm as u32) << 8))];
        let rest = ports as u64 | code_of(protocol, realm) << 32;
        let [a, b, c, d] = shape.seed;
        let low = (words[0] ^ pair(a, b)).wrapping_mul(MIX[0]);
        let high = (pair(ports, protocol as u32) ^ pair(c, d)).wrapping_mul(MIX[1]);
        // The realm late: it is known of the interface, which is found while the packet's own words are mixed.
        let sum = (low ^ (low >> 32)).wrapping_add(high ^ (high >> 29));
        let mixed = sum.wrapping_add((realm as u64) << 40).wrapping_mul(MIX[2]);
        let hash = mixed ^ (mixed >> 32);
        // The upper half, as a fraction of all slots, whose number need not be a power of two.
        let index = ((mixed >> 32) * shape.slots as u64) >> 32;
        Self { words, rest, hash, index: index as u32 }
    }

    #[inline(always)]
    #[must_use]
    pub const fn key(&self) -> FlowKey {
        let [addresses, rest] = self.words;
        FlowKey::new(tuple_of(addresses, rest as u32), (rest >> 32) as u8, (rest >> 40) as u8)
    }

    #[inline(always)]
    pub(super) const fn tuple(&self) -> Tuple {
        tuple_of(self.words[0], self.ports())
    }

    #[inline(always)]
    pub(super) const fn ports(&self) -> u32 {
        self.words[1] as u32
    }

    #[inline(always)]
    pub(super) const fn rest(&self) -> u64 {
        self.rest
    }

    /// Of a key that has one.
    #[inline(always)]
    pub(super) const fn code(&self) -> u64 {
        (self.rest >> 32) & code::PROTOCOL
    }

    /// Whether flows of the key's protocol and realm have slots.
    #[inline(always)]
    pub(super) const fn has_code(&self) -> bool {
        self.rest >> 32 < OTHER
    }

    /// Of the key, all bits of it good.
    #[inline(always)]
    #[must_use]
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    #[inline(always)]
    pub(super) const fn first(&self) -> u32 {
        self.index
    }

    /// The slots that may hold the key.
    #[inline(always)]
    #[must_use]
    pub const fn ways(&self) -> [u32; 6] {
        let (first, second, third) = (self.index, self.second(), self.third());
        [first, first ^ 1, second, second ^ 1, third, third ^ 1]
    }

    /// A slot of the second line: by an odd number of lines from the first, and the third by an even one that is not
    /// zero, so they are never the same.
    #[inline(always)]
    pub(super) const fn second(&self) -> u32 {
        self.elsewhere((self.hash >> 24) as u32 | 1)
    }

    #[inline(always)]
    pub(super) const fn third(&self) -> u32 {
        self.elsewhere((self.hash >> 18) as u32 & !1 | 2)
    }

    /// A slot so many lines from the first, in the same page: which is whole, as the number of slots is a multiple
    /// of a page's.
    #[inline(always)]
    const fn elsewhere(&self, lines: u32) -> u32 {
        self.index ^ ((lines << 1) & (PAGE - 1))
    }

    /// What the slot with this image has of the key: when it was last seen, packets, bytes.
    #[must_use]
    pub const fn taken(&self, image: &SlotImage) -> Option<(u32, u64, u64)> {
        Slot::taken(image, self)
    }
}
