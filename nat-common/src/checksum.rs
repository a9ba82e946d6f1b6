//! Internet checksums by difference (RFC 1624, equation 3).
//!
//! A checksum is the complement of a ones' complement sum of 16-bit words, and that sum does not
//! care about byte order as long as all words are read alike (RFC 1071 section 2B). So everything
//! here works on words as the machine loads them, and nothing is swapped. A [`Delta`] is what has
//! to be added to the *sum* (not to the checksum) when some words change; precomputed once for a
//! session, it costs one addition a packet.

use crate::net::{Ip4, Port};

/// A change of a ones' complement sum, folded to 16 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use]
pub struct Delta(u32);

#[inline(always)]
const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

impl Delta {
    pub const ZERO: Self = Self(0);

    #[inline(always)]
    pub const fn from_raw(folded: u16) -> Self {
        Self(folded as u32)
    }

    #[inline(always)]
    #[must_use]
    pub const fn to_raw(self) -> u16 {
        fold(self.0)
    }

    /// A 16-bit word changes; both as loaded by the machine.
    #[inline(always)]
    pub const fn word(self, old: u16, new: u16) -> Self {
        // Folded at once: the accumulator stays below 2^18, whatever is chained.
        Self(fold(self.0) as u32 + (!old) as u32 + new as u32)
    }

    #[inline(always)]
    pub const fn bytes2(self, old: [u8; 2], new: [u8; 2]) -> Self {
        self.word(u16::from_ne_bytes(old), u16::from_ne_bytes(new))
    }

    #[inline(always)]
    pub const fn port(self, old: Port, new: Port) -> Self {
        self.word(old.raw(), new.raw())
    }

    #[inline(always)]
    pub const fn address(self, old: Ip4, new: Ip4) -> Self {
        let (old, new) = (old.raw(), new.raw());
        self.word(old as u16, new as u16).word((old >> 16) as u16, (new >> 16) as u16)
    }

    /// An address changes; as loaded by the machine. Twice sixteen bits at once.
    #[inline(always)]
    pub const fn of_address(old: u32, new: u32) -> Self {
        let sum = (!old) as u64 + new as u64;
        Self((sum as u32 & 0xffff) + (sum >> 16) as u32)
    }

    /// One more word changes. For [`Delta::apply_once`]: not folded, so it may be done three times.
    #[inline(always)]
    pub const fn then_word(self, old: u16, new: u16) -> Self {
        Self(self.0 + (!old) as u32 + new as u32)
    }

    /// Both changes, as [`Delta::then_word`].
    #[inline(always)]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The change back.
    #[inline(always)]
    pub const fn inverse(self) -> Self {
        Self(!fold(self.0) as u32 & 0xffff)
    }

    /// Both changes.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(fold(self.0) as u32 + fold(other.0) as u32)
    }

    /// The checksum field after the change (RFC 1624: `~(~HC + ~m + m')`).
    #[inline(always)]
    #[must_use]
    pub const fn apply(self, field: [u8; 2]) -> [u8; 2] {
        let sum = (!u16::from_ne_bytes(field)) as u32 + fold(self.0) as u32;
        (!fold(sum)).to_ne_bytes()
    }

    /// [`Delta::apply`] for a field as loaded from the wire, and a delta that nothing was done to since
    /// [`Delta::of_address`] but [`Delta::then_word`]: all of it is folded only here.
    #[inline(always)]
    #[must_use]
    pub const fn apply_once(self, field: u16) -> u16 {
        !fold((!field) as u32 + self.0)
    }

    /// The same for UDP over IPv4, where 0 means "no checksum" and stays, and a computed 0 is
    /// sent as 0xFFFF (RFC 768).
    #[inline(always)]
    #[must_use]
    pub const fn apply_udp(self, field: [u8; 2]) -> [u8; 2] {
        if field[0] == 0 && field[1] == 0 {
            return field;
        }
        let new = self.apply(field);
        if new[0] == 0 && new[1] == 0 { [0xff, 0xff] } else { new }
    }
}

/// A plain sum over 16-bit words, for the few headers that the gateway makes itself.
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct Sum(u32);

impl Sum {
    pub const ZERO: Self = Self(0);

    #[inline(always)]
    pub const fn add(self, word: [u8; 2]) -> Self {
        // Callers add fewer than 2^15 words, so 32 bits cannot overflow.
        Self(self.0.wrapping_add(u16::from_ne_bytes(word) as u32))
    }

    #[inline(always)]
    pub const fn add4(self, bytes: [u8; 4]) -> Self {
        let [a, b, c, d] = bytes;
        self.add([a, b]).add([c, d])
    }

    #[inline(always)]
    #[must_use]
    pub const fn checksum(self) -> [u8; 2] {
        (!fold(self.0)).to_ne_bytes()
    }

    /// The folded sum itself, not complemented.
    #[inline(always)]
    #[must_use]
    pub const fn folded(self) -> [u8; 2] {
        fold(self.0).to_ne_bytes()
    }

    /// Whether a header summed with its checksum in place is intact.
    #[inline(always)]
    #[must_use]
    pub const fn is_valid(self) -> bool {
        fold(self.0) == 0xffff
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            let low = if pair.len() == 2 { pair[1] } else { 0 };
            sum += u32::from(u16::from_be_bytes([pair[0], low]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    proptest! {
        #[test]
        fn a_delta_equals_a_full_recomputation(
            mut bytes in proptest::collection::vec(any::<u8>(), 20..60),
            new in any::<[u8; 4]>(), port in any::<[u8; 2]>(),
        ) {
            // A sum of all zero words has two representations; real headers never sum to zero.
            bytes[0] |= 0x40;
            let before = full(&bytes);
            let old: [u8; 4] = bytes[8..12].try_into().unwrap();
            let old_port: [u8; 2] = bytes[14..16].try_into().unwrap();
            let of_port = |bytes| Port::from_raw(u16::from_ne_bytes(bytes));
            let delta = Delta::ZERO
                .address(Ip4::new(old), Ip4::new(new))
                .port(of_port(old_port), of_port(port));
            bytes[8..12].copy_from_slice(&new);
            bytes[14..16].copy_from_slice(&port);
            prop_assert_eq!(delta.apply(before), full(&bytes));
            let stored = Delta::from_raw(delta.to_raw());
            prop_assert_eq!(stored.apply(before), full(&bytes));
            let raw = |bytes| Ip4::new(bytes).raw();
            let unfolded = Delta::of_address(raw(old), raw(new))
                .then_word(of_port(old_port).raw(), of_port(port).raw())
                .apply_once(u16::from_ne_bytes(before));
            prop_assert_eq!(unfolded.to_ne_bytes(), full(&bytes));
        }
    }

    #[test]
    fn udp_without_checksum_stays_without() {
        let delta = Delta::ZERO.address(Ip4::new([10, 0, 0, 1]), Ip4::new([198, 51, 100, 1]));
        assert_eq!(delta.apply_udp([0, 0]), [0, 0]);
    }

    #[test]
    fn a_computed_udp_zero_is_sent_as_all_ones() {
        // A field of 0xfffe is a sum of 1; one more complement word brings the checksum to zero.
        let delta = Delta::ZERO.word(0x0000, 0xfffe);
        let field = (!0x0001u16).to_ne_bytes();
        assert_eq!(delta.apply(field), [0, 0]);
        assert_eq!(delta.apply_udp(field), [0xff, 0xff]);
    }
}
