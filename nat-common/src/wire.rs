//! Header layouts (RFC 826, 791, 792, 793, 768, IEEE 802.1Q), alignment 1, any bit pattern valid.
//!
//! `bytemuck::Pod` is the proof of both, which is what lets the engine read packets without
//! `unsafe`. Field sizes and constants come from `network-types` where it has them.

use bytemuck::{Pod, Zeroable};
use network_types::ip::Ipv4Hdr;

use crate::{
    net::{Ip4, Mac, Port},
    session::NextHop,
};

pub const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
pub const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
pub const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];

#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Ethernet {
    pub dst: Mac,
    pub src: Mac,
    pub ethertype: [u8; 2],
}

/// Both MAC addresses as words, which is how they are written: the destination and two bytes of the
/// source, then the rest of it.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Macs {
    first: u64,
    rest: u32,
}

impl Macs {
    /// From `src` to the next hop.
    #[inline(always)]
    #[must_use]
    pub const fn towards(hop: NextHop, src: Mac) -> Self {
        let [a, b, c, d, e, f] = src.0;
        let first = (hop.0 & 0xffff_ffff_ffff) | ((u16::from_le_bytes([a, b]) as u64) << 48);
        Self { first: first.to_le(), rest: u32::from_ne_bytes([c, d, e, f]) }
    }

    /// What is written: eight bytes, then four.
    #[inline(always)]
    #[must_use]
    pub const fn into_parts(self) -> (u64, u32) {
        (self.first, self.rest)
    }

    #[inline(always)]
    #[must_use]
    pub const fn from_parts(first: u64, rest: u32) -> Self {
        Self { first, rest }
    }

    /// The next hop that they lead to, by the interface in `slot`.
    #[inline(always)]
    #[must_use]
    pub const fn next_hop(self, slot: u16) -> NextHop {
        NextHop((u64::from_le(self.first) & 0xffff_ffff_ffff) | ((slot as u64) << 48))
    }
}

/// The headers of most packets, in the pieces that the first look reads and writes: Ethernet,
/// IPv4 without options, and eight bytes of transport header. Numbers as loaded from the wire.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Plain {
    pub macs: Macs,
    /// Ethertype, version and header length, and type of service: see [`Plain::is_bare`].
    start: u32,
    pub total_length: u16,
    pub id: u16,
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: u16,
    pub addresses: [u32; 2],
    pub ports: [u16; 2],
    /// Length and checksum of UDP.
    pub udp_length: u16,
    pub udp_checksum: u16,
}

impl Plain {
    /// Whether this is IPv4 without options. One comparison for three fields.
    #[inline(always)]
    #[must_use]
    pub const fn is_bare(&self) -> bool {
        const VERSION_IHL: u8 = 0x45;
        let [high, low] = ETHERTYPE_IPV4;
        let read = u32::from_ne_bytes([0xff, 0xff, 0xff, 0]);
        self.start & read == u32::from_ne_bytes([high, low, VERSION_IHL, 0])
    }
}

/// The same with all of a TCP header.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct PlainTcp {
    pub plain: Plain,
    pub ack: [u8; 4],
    pub offset: u8,
    pub flags: u8,
    pub window: [u8; 2],
    pub checksum: u16,
    pub urgent: [u8; 2],
}

/// 802.1Q: tag control information, then the type of what follows.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Vlan {
    pub tci: [u8; 2],
    pub ethertype: [u8; 2],
}

#[repr(C, packed)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Ipv4 {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_length: [u8; 2],
    pub id: [u8; 2],
    pub fragment: [u8; 2],
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: [u8; 2],
    pub src: Ip4,
    pub dst: Ip4,
}

impl Ipv4 {
    pub const MIN_LEN: usize = Ipv4Hdr::LEN;
    pub const DONT_FRAGMENT: u16 = 0x4000;
    pub const MORE_FRAGMENTS: u16 = 0x2000;
    pub const OFFSET_MASK: u16 = 0x1fff;

    /// Header length in bytes, as the header claims (0–60).
    #[inline(always)]
    pub const fn header_len(&self) -> usize {
        ((self.version_ihl & 0x0f) as usize) << 2
    }

    #[inline(always)]
    pub const fn total_len(&self) -> u16 {
        u16::from_be_bytes(self.total_length)
    }

    #[inline(always)]
    pub const fn fragment_bits(&self) -> u16 {
        u16::from_be_bytes(self.fragment)
    }
}

#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Tcp {
    pub src: Port,
    pub dst: Port,
    pub seq: [u8; 4],
    pub ack: [u8; 4],
    pub offset: u8,
    pub flags: u8,
    pub window: [u8; 2],
    pub checksum: [u8; 2],
    pub urgent: [u8; 2],
}

#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Udp {
    pub src: Port,
    pub dst: Port,
    pub length: [u8; 2],
    pub checksum: [u8; 2],
}

impl Tcp {
    /// Where its checksum is, from its start.
    pub const CHECKSUM: usize = core::mem::offset_of!(Self, checksum);
}

impl Udp {
    /// Where its checksum is, from its start; that of UDP-Lite and DCCP, too.
    pub const CHECKSUM: usize = core::mem::offset_of!(Self, checksum);
}

/// The first eight bytes of every ICMP message. `word` is identifier and sequence number in a
/// query, unused and next-hop MTU in an error (RFC 1191).
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    pub checksum: [u8; 2],
    pub id: Port,
    pub low: [u8; 2],
}

impl Icmp {
    pub const ECHO_REPLY: u8 = 0;
    pub const UNREACHABLE: u8 = 3;
    /// Deprecated (RFC 6633); quotes a packet like the errors.
    pub const SOURCE_QUENCH: u8 = 4;
    pub const REDIRECT: u8 = 5;
    pub const ECHO: u8 = 8;
    pub const TIME_EXCEEDED: u8 = 11;
    pub const PARAMETER_PROBLEM: u8 = 12;
    pub const TIMESTAMP: u8 = 13;
    pub const TIMESTAMP_REPLY: u8 = 14;
    pub const ADDRESS_MASK: u8 = 17;
    pub const ADDRESS_MASK_REPLY: u8 = 18;

    /// Unreachable codes (RFC 792, RFC 1812 section 5.2.7.1).
    pub const CODE_PORT: u8 = 3;
    pub const CODE_FRAGMENTATION_NEEDED: u8 = 4;
    pub const CODE_ADMIN_PROHIBITED: u8 = 13;
}

/// The first eight bytes of a transport header: all that an ICMP error is sure to quote.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Ports {
    pub src: Port,
    pub dst: Port,
}

/// ARP for IPv4 over Ethernet (RFC 826).
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Arp {
    pub hardware: [u8; 2],
    pub protocol: [u8; 2],
    pub hardware_len: u8,
    pub protocol_len: u8,
    pub operation: [u8; 2],
    pub sender_mac: Mac,
    pub sender_ip: Ip4,
    pub target_mac: Mac,
    pub target_ip: Ip4,
}

const _: () = {
    assert!(size_of::<Ethernet>() == 14 && align_of::<Ethernet>() == 1);
    assert!(size_of::<Vlan>() == 4);
    assert!(size_of::<Macs>() == 12);
    assert!(size_of::<Plain>() == 42 && align_of::<Plain>() == 1);
    assert!(size_of::<PlainTcp>() == 54 && align_of::<PlainTcp>() == 1);
    assert!(size_of::<Ipv4>() == 20 && align_of::<Ipv4>() == 1);
    assert!(size_of::<Tcp>() == 20 && align_of::<Tcp>() == 1);
    assert!(size_of::<Udp>() == 8);
    assert!(size_of::<Icmp>() == 8 && align_of::<Icmp>() == 1);
    assert!(size_of::<Arp>() == 28);
};
