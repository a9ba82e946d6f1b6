//! The only place that rewrites packets.

use crate::{
    checksum::Delta,
    env::Packet,
    flow::Tuple,
    net::{Mac, proto},
    parse::{Fragment, Kind, Parsed},
    session::NextHop,
    wire::{Icmp, Ipv4, Macs, Ports, Tcp, Udp},
};

/// What a decrement of the TTL does to the header's sum.
pub const TTL: Delta = Delta::ZERO.bytes2([1, 0], [0, 0]);

/// What becomes of a packet's addresses and ports, and of the checksums by that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rewrite {
    pub tuple: Tuple,
    pub ip_delta: u16,
    pub l4_delta: u16,
}

impl Rewrite {
    #[inline(always)]
    pub const fn new(protocol: u8, old: Tuple, new: Tuple) -> Self {
        let addresses = Delta::ZERO.address(old.src, new.src).address(old.dst, new.dst);
        let ports = Delta::ZERO.port(old.sport, new.sport).port(old.dport, new.dport);
        let l4_delta = match protocol {
            // No pseudo-header in ICMP for IPv4.
            proto::ICMP => ports.to_raw(),
            _ => addresses.and(ports).to_raw(),
        };
        Self { tuple: new, ip_delta: addresses.and(TTL).to_raw(), l4_delta }
    }

    /// What the addresses alone change of a sum: the pseudo-header's part.
    #[inline(always)]
    pub const fn addresses(&self) -> Delta {
        Delta::from_raw(self.ip_delta).and(TTL.inverse())
    }
}

/// Rewrites the IP header (TTL decremented) and, where the packet has one, the transport header.
/// `None`: the frame changed under us; it must not be sent.
#[inline(always)]
pub fn apply<P: Packet>(packet: &mut P, parsed: &Parsed, rewrite: &Rewrite) -> Option<()> {
    let ip = packet.get::<Ipv4>(parsed.l3)?;
    ip.src = rewrite.tuple.src;
    ip.dst = rewrite.tuple.dst;
    ip.ttl = ip.ttl.wrapping_sub(1);
    ip.checksum = Delta::from_raw(rewrite.ip_delta).apply(ip.checksum);
    if matches!(parsed.fragment, Fragment::Later) {
        return Some(());
    }
    let delta = Delta::from_raw(rewrite.l4_delta);
    match parsed.kind {
        Kind::Tcp | Kind::Udp if P::NOTED => {
            let ports = packet.get::<Ports>(parsed.l4)?;
            ports.src = rewrite.tuple.sport;
            ports.dst = rewrite.tuple.dport;
            let udp = matches!(parsed.kind, Kind::Udp);
            let at = parsed.l4 + if udp { Udp::CHECKSUM } else { Tcp::CHECKSUM };
            packet.correct(at, delta, rewrite.addresses(), udp)?;
        }
        Kind::Tcp => {
            let tcp = packet.get::<Tcp>(parsed.l4)?;
            tcp.src = rewrite.tuple.sport;
            tcp.dst = rewrite.tuple.dport;
            tcp.checksum = delta.apply(tcp.checksum);
        }
        Kind::Udp => {
            let udp = packet.get::<Udp>(parsed.l4)?;
            udp.src = rewrite.tuple.sport;
            udp.dst = rewrite.tuple.dport;
            udp.checksum = delta.apply_udp(udp.checksum);
        }
        Kind::QueryRequest => {
            let icmp = packet.get::<Icmp>(parsed.l4)?;
            icmp.id = rewrite.tuple.sport;
            icmp.checksum = delta.apply(icmp.checksum);
        }
        Kind::QueryReply => {
            let icmp = packet.get::<Icmp>(parsed.l4)?;
            icmp.id = rewrite.tuple.dport;
            icmp.checksum = delta.apply(icmp.checksum);
        }
        Kind::Error | Kind::Other => {}
    }
    Some(())
}

/// Gives the packet another identification: after translation, fragments of two private hosts
/// could otherwise be taken for one datagram (RFC 6864 section 5.3.1).
#[inline(always)]
pub fn set_identification<P: Packet>(packet: &mut P, l3: usize, id: [u8; 2]) -> Option<()> {
    let ip = packet.get::<Ipv4>(l3)?;
    ip.checksum = Delta::ZERO.bytes2(ip.id, id).apply(ip.checksum);
    ip.id = id;
    Some(())
}

/// Addresses the frame to its next hop.
#[inline(always)]
pub fn set_macs<P: Packet>(packet: &mut P, src: Mac, hop: NextHop) -> Option<()> {
    *packet.get::<Macs>(0)? = Macs::towards(hop, src);
    Some(())
}

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;
/// Options that are looked through. Senders put the segment size first or nearly so.
const OPTIONS: usize = 10;

/// Lowers the maximum segment size of a SYN to `limit` bytes (never raises it).
#[inline(always)]
pub fn clamp_mss<P: Packet>(packet: &mut P, parsed: &Parsed, limit: u16) -> Option<()> {
    let header = packet.get::<Tcp>(parsed.l4)?.offset;
    let end = usize::from(header >> 4) << 2;
    let mut at = size_of::<Tcp>();
    for _ in 0..OPTIONS {
        if at + 4 > end {
            break;
        }
        let option = packet.get::<[u8; 4]>(parsed.l4 + at)?;
        let [kind, length, high, low] = *option;
        match kind {
            OPTION_END => break,
            OPTION_NOP => at += 1,
            OPTION_MSS if length == 4 => {
                let old = [high, low];
                if u16::from_be_bytes(old) > limit {
                    let new = limit.to_be_bytes();
                    *option = [kind, length, new[0], new[1]];
                    // A word that starts at an odd offset enters the sum with its bytes swapped.
                    let delta = if at & 1 == 0 {
                        Delta::ZERO.bytes2(old, new)
                    } else {
                        Delta::ZERO.bytes2([low, high], [new[1], new[0]])
                    };
                    packet.correct(parsed.l4 + Tcp::CHECKSUM, delta, Delta::ZERO, false)?;
                }
                break;
            }
            _ if length < 2 => break,
            _ => at += usize::from(length & 0x3f),
        }
    }
    Some(())
}
