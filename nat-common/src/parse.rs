//! Bytes → what the engine needs to know of a packet. Headers are copied out once; everything
//! that could make a session of nonsense is found here, before anything is allocated.

use crate::{
    checksum::Sum,
    env::Packet,
    flow::{FlowKey, Tuple},
    net::{Ip4, Port, proto},
    verdict::DropReason,
    wire::{ETHERTYPE_ARP, ETHERTYPE_IPV4, Ethernet, Icmp, Ipv4, Tcp, Udp},
};

/// TCP flags (RFC 793 section 3.1).
pub mod tcp_flags {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;
    pub const URG: u8 = 32;
    /// Those that decide what a segment is.
    pub const KIND: u8 = FIN | SYN | RST | ACK | URG;

    /// Combinations of `KIND` that a sender may mean, one bit each: SYN, SYN+ACK, RST, RST+ACK,
    /// FIN+ACK, ACK, and with URG where that makes sense.
    const VALID: u64 = 1 << SYN
        | 1 << (SYN | URG)
        | 1 << (SYN | ACK)
        | 1 << RST
        | 1 << (RST | ACK)
        | 1 << (FIN | ACK)
        | 1 << (FIN | ACK | URG)
        | 1 << ACK
        | 1 << (ACK | URG);

    /// Whether the segment can be the first of a connection: a SYN alone, with URG or without.
    #[inline(always)]
    pub const fn open(flags: u8) -> bool {
        flags & KIND & !URG == SYN
    }

    #[inline(always)]
    pub const fn are_valid(flags: u8) -> bool {
        VALID & (1 << (flags & KIND)) != 0
    }
}

/// What the packet is, as far as translation cares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Tcp,
    Udp,
    /// An ICMP query, from the side that asks.
    QueryRequest,
    QueryReply,
    /// An ICMP error about another packet.
    Error,
    /// Anything else.
    Other,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fragment {
    Whole,
    /// Offset 0, more to come: has the transport header.
    First,
    /// No transport header.
    Later,
}

/// What is kept of the IP header, in an order that leaves no field at an odd place.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub src: Ip4,
    pub dst: Ip4,
    pub id: [u8; 2],
    /// Flags and offset, host order; see the masks of [`Ipv4`].
    fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub tos: u8,
}

impl Header {
    #[inline(always)]
    pub const fn fragment_bits(&self) -> u16 {
        self.fragment
    }
}

/// An IPv4 packet. Offsets are bytes from the start of the frame.
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    pub l3: usize,
    pub l4: usize,
    pub ip: Header,
    pub key: FlowKey,
    /// IP total length, bytes.
    pub length: u16,
    pub kind: Kind,
    pub fragment: Fragment,
    pub tcp_flags: u8,
    /// A fault of the transport header: to be dropped wherever it would be translated, but not
    /// where it is the host's business.
    pub fault: Option<DropReason>,
}

impl Parsed {
    /// IP total length of the longest packet that is sent of it.
    #[inline(always)]
    pub fn largest<P: Packet>(&self, packet: &P) -> u16 {
        packet.segments().map_or(self.length, |segments| segments.largest)
    }

    /// For how many packets and bytes it counts.
    #[inline(always)]
    pub fn weight<P: Packet>(&self, packet: &P) -> (u32, u32) {
        match packet.segments() {
            Some(segments) => (segments.packets, segments.bytes),
            None => (1, self.length as u32),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Parse {
    Ipv4(Parsed),
    /// ARP, its body at this offset.
    Arp(usize),
    /// Not the gateway's business: the host's.
    Other,
    Broken(DropReason),
}

#[inline(always)]
pub fn parse<P: Packet>(packet: &mut P, realm: u8) -> Parse {
    let Some(ethernet) = packet.get::<Ethernet>(0) else {
        return Parse::Broken(DropReason::MalformedEthernet);
    };
    match ethernet.ethertype {
        ETHERTYPE_IPV4 => parse_ipv4(packet, size_of::<Ethernet>(), realm),
        ETHERTYPE_ARP => Parse::Arp(size_of::<Ethernet>()),
        _ => Parse::Other,
    }
}

#[inline(always)]
pub fn parse_ipv4<P: Packet>(packet: &mut P, l3: usize, realm: u8) -> Parse {
    let Some(ip) = packet.get::<Ipv4>(l3).copied() else {
        return Parse::Broken(DropReason::MalformedIp);
    };
    let header = ip.header_len();
    let length = ip.total_len();
    if ip.version_ihl >> 4 != 4
        || header < Ipv4::MIN_LEN
        || usize::from(length) < header
        || !packet.holds(l3 + usize::from(length))
    {
        return Parse::Broken(DropReason::MalformedIp);
    }

    let bits = ip.fragment_bits();
    let fragment = if bits & Ipv4::OFFSET_MASK != 0 {
        Fragment::Later
    } else if bits & Ipv4::MORE_FRAGMENTS != 0 {
        Fragment::First
    } else {
        Fragment::Whole
    };

    let mut parsed = Parsed {
        l3,
        l4: l3 + header,
        ip: Header {
            src: ip.src,
            dst: ip.dst,
            id: ip.id,
            fragment: bits,
            ttl: ip.ttl,
            protocol: ip.protocol,
            tos: ip.tos,
        },
        key: FlowKey::new(
            Tuple { src: ip.src, dst: ip.dst, sport: Port::ZERO, dport: Port::ZERO },
            ip.protocol,
            realm,
        ),
        length,
        kind: Kind::Other,
        fragment,
        tcp_flags: 0,
        fault: None,
    };
    match ip.protocol {
        proto::TCP => parsed.kind = Kind::Tcp,
        proto::UDP => parsed.kind = Kind::Udp,
        _ => {}
    }
    if fragment != Fragment::Later {
        parsed.fault = match ip.protocol {
            proto::TCP => tcp(packet, &mut parsed),
            proto::UDP => udp(packet, &mut parsed),
            proto::ICMP => icmp(packet, &mut parsed),
            _ => Some(DropReason::ProtocolUnsupported),
        };
        // RFC 1858; of other protocols nothing is read, so nothing is missing.
        let cut = matches!(
            parsed.fault,
            Some(DropReason::MalformedTcp | DropReason::MalformedUdp | DropReason::MalformedIcmp)
        );
        if fragment == Fragment::First && cut && payload(&parsed) < size_of::<Tcp>() {
            parsed.fault = Some(DropReason::FragmentTiny);
        }
    }
    Parse::Ipv4(parsed)
}

/// Bytes behind the IP header.
#[inline(always)]
const fn payload(parsed: &Parsed) -> usize {
    (parsed.length as usize).saturating_sub(parsed.l4 - parsed.l3)
}

#[inline(always)]
fn tcp<P: Packet>(packet: &mut P, parsed: &mut Parsed) -> Option<DropReason> {
    if payload(parsed) < size_of::<Tcp>() {
        return Some(DropReason::MalformedTcp);
    }
    let Some(tcp) = packet.get::<Tcp>(parsed.l4) else {
        return Some(DropReason::MalformedTcp);
    };
    parsed.key.tuple.sport = tcp.src;
    parsed.key.tuple.dport = tcp.dst;
    parsed.tcp_flags = tcp.flags;
    let header = usize::from(tcp.offset >> 4) << 2;
    if header < size_of::<Tcp>()
        || header > payload(parsed)
        || !tcp_flags::are_valid(parsed.tcp_flags)
    {
        return Some(DropReason::MalformedTcp);
    }
    None
}

#[inline(always)]
fn udp<P: Packet>(packet: &mut P, parsed: &mut Parsed) -> Option<DropReason> {
    if payload(parsed) < size_of::<Udp>() {
        return Some(DropReason::MalformedUdp);
    }
    let Some(udp) = packet.get::<Udp>(parsed.l4) else {
        return Some(DropReason::MalformedUdp);
    };
    parsed.key.tuple.sport = udp.src;
    parsed.key.tuple.dport = udp.dst;
    let length = usize::from(u16::from_be_bytes(udp.length));
    if length < size_of::<Udp>() || (parsed.fragment == Fragment::Whole && length > payload(parsed))
    {
        return Some(DropReason::MalformedUdp);
    }
    None
}

#[inline(always)]
fn icmp<P: Packet>(packet: &mut P, parsed: &mut Parsed) -> Option<DropReason> {
    if payload(parsed) < size_of::<Icmp>() {
        return Some(DropReason::MalformedIcmp);
    }
    let Some(icmp) = packet.get::<Icmp>(parsed.l4) else {
        return Some(DropReason::MalformedIcmp);
    };
    match icmp.kind {
        Icmp::ECHO | Icmp::TIMESTAMP | Icmp::ADDRESS_MASK => {
            parsed.kind = Kind::QueryRequest;
            parsed.key.tuple.sport = icmp.id;
        }
        Icmp::ECHO_REPLY | Icmp::TIMESTAMP_REPLY | Icmp::ADDRESS_MASK_REPLY => {
            parsed.kind = Kind::QueryReply;
            parsed.key.tuple.dport = icmp.id;
        }
        Icmp::UNREACHABLE | Icmp::TIME_EXCEEDED | Icmp::PARAMETER_PROBLEM => {
            parsed.kind = Kind::Error;
        }
        Icmp::SOURCE_QUENCH | Icmp::REDIRECT => {
            parsed.kind = Kind::Error;
            return Some(DropReason::IcmpUnsupported);
        }
        _ => return Some(DropReason::IcmpUnsupported),
    }
    None
}

/// Whether the IP header's own checksum is right. Asked before a session is made, not per packet:
/// a wrong checksum stays wrong through translation, and the receiver drops it.
#[inline(always)]
pub fn ip_checksum_is_valid<P: Packet>(packet: &mut P, parsed: &Parsed) -> bool {
    let mut sum = Sum::ZERO;
    let mut offset = parsed.l3;
    for _ in 0..15 {
        if offset >= parsed.l4 {
            break;
        }
        let Some(word) = packet.get::<[u8; 4]>(offset) else { return false };
        sum = sum.add4(*word);
        offset += 4;
    }
    sum.is_valid()
}
