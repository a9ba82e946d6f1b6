//! The key of a session: what one direction of it looks like on the wire.

use bytemuck::{Pod, Zeroable};

use crate::net::{Ip4, Port};

/// Addresses and ports of a packet. For an ICMP query the identifier stands in the place of the
/// side that asked: a request has it as source port, a reply as destination port; the other is 0.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Pod, Zeroable)]
pub struct Tuple {
    pub src: Ip4,
    pub dst: Ip4,
    pub sport: Port,
    pub dport: Port,
}

impl PartialOrd for Port {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Port {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.get().cmp(&other.get())
    }
}

impl Tuple {
    /// The same conversation seen from the other end.
    #[inline(always)]
    pub const fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport }
    }
}

/// Key of the session table: network order, every byte explicit.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Pod, Zeroable)]
pub struct FlowKey {
    pub tuple: Tuple,
    pub protocol: u8,
    /// Keeps networks with equal addresses apart; 0 until realms are configurable.
    pub realm: u8,
    pub zero: [u8; 2],
}

impl FlowKey {
    #[inline(always)]
    pub const fn new(tuple: Tuple, protocol: u8, realm: u8) -> Self {
        Self { tuple, protocol, realm, zero: [0; 2] }
    }

    #[inline(always)]
    pub const fn with(self, tuple: Tuple) -> Self {
        Self { tuple, ..self }
    }
}

const _: () = assert!(size_of::<FlowKey>() == 16 && align_of::<FlowKey>() == 8);
