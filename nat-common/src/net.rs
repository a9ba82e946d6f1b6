//! Addresses and ports as they stand on the wire.
//!
//! In network order, so that they are copied between packet and map without a swap; integers inside,
//! so that the compiler moves them whole (a BPF stack takes no unaligned pieces of them). A bare `u16`
//! or `u32` in a signature of this crate is in host order, unless it is called raw.

use core::fmt;

use bytemuck::{Pod, Zeroable};

/// An IPv4 address, network order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Pod, Zeroable)]
pub struct Ip4(u32);

impl Ip4 {
    pub const UNSPECIFIED: Self = Self(0);

    #[inline(always)]
    pub const fn new(octets: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(octets))
    }

    #[inline(always)]
    pub const fn octets(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }

    #[inline(always)]
    pub const fn from_u32(value: u32) -> Self {
        Self(value.to_be())
    }

    #[inline(always)]
    pub const fn to_u32(self) -> u32 {
        u32::from_be(self.0)
    }

    /// The address as the machine loads it: for checksums and hashes, where order cancels out.
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        self.0
    }

    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        self.raw() == 0
    }

    /// Destinations that are never translated: broadcast, multicast and class E (224/3),
    /// link-local (169.254/16, RFC 3927), "this network" (0/8) and loopback (127/8).
    #[inline(always)]
    pub const fn is_never_translated(self) -> bool {
        let [a, b, _, _] = self.octets();
        a >= 224 || (a == 169 && b == 254) || a == 0 || a == 127
    }
}

impl PartialOrd for Ip4 {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ip4 {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.to_u32().cmp(&other.to_u32())
    }
}

impl fmt::Display for Ip4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.octets();
        write!(f, "{a}.{b}.{c}.{d}")
    }
}

impl fmt::Debug for Ip4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<core::net::Ipv4Addr> for Ip4 {
    fn from(address: core::net::Ipv4Addr) -> Self {
        Self::new(address.octets())
    }
}

impl From<Ip4> for core::net::Ipv4Addr {
    fn from(address: Ip4) -> Self {
        Self::from(address.octets())
    }
}

/// A TCP or UDP port, or an ICMP query identifier, network order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Pod, Zeroable)]
pub struct Port(u16);

impl Port {
    pub const ZERO: Self = Self(0);

    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self(port.to_be())
    }

    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    #[inline(always)]
    pub const fn raw(self) -> u16 {
        self.0
    }

    #[inline(always)]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.get(), f)
    }
}

/// An Ethernet address.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Pod, Zeroable)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// IANA protocol numbers that the engine knows by name.
pub mod proto {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const UDPLITE: u8 = 136;
    pub const DCCP: u8 = 33;
}
