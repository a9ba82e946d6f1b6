//! The first look: a whole TCP or UDP packet without IP options whose flow is in the cache. One
//! check of the frame's end, one slot of the cache, a few words written; nearly every packet of a
//! busy gateway goes this way. Everything else is left to `fast`, which does the same to the packets
//! that could have gone this way: a first look that is left out changes nothing.
//!
//! What the key alone decides (destinations that are never translated, port 0) is not asked again
//! here: a flow enters the cache by a packet that `fast` has let through.

use core::hint::black_box;

use bytemuck::Pod;

use crate::{
    cache::{self, Place, key_words},
    checksum::Delta,
    env::{Env, Packet},
    net::proto,
    parse::tcp_flags,
    session::State,
    stage::{Step, direction},
    wire::{ETHERTYPE_IPV4, Ethernet, Ipv4, Macs, Plain, PlainTcp, Tcp, Udp},
};

/// A packet that was translated, to be sent out of the interface in this slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Forwarded {
    /// IP total length.
    pub bytes: u16,
    pub slot: u16,
    /// Of the session; they say which way it goes.
    pub flags: u8,
}

impl Forwarded {
    #[inline(always)]
    pub const fn step(self) -> Step {
        let (verdict, side) = direction(self.flags);
        Step::sent(verdict, side, self.bytes, self.slot)
    }
}

/// Version 4, header of five words.
const VERSION_IHL: u8 = 0x45;
/// Every bit that says fragment, as loaded from the wire.
const FRAGMENT: u16 = (Ipv4::MORE_FRAGMENTS | Ipv4::OFFSET_MASK).to_be();
/// Flags of which only ACK may be set where a segment changes nothing about its session.
const TCP_STEADY: u8 = tcp_flags::FIN | tcp_flags::SYN | tcp_flags::RST | tcp_flags::ACK;
/// States that such a packet does not change, a bit each.
const STEADY: u32 = 1 << State::Udp as u32
    | 1 << State::TcpEstablished as u32
    | 1 << State::TcpFinOut as u32
    | 1 << State::TcpFinIn as u32;

/// What differs between the protocols.
trait Headers: Pod {
    fn plain(&mut self) -> &mut Plain;

    /// Whether the transport header is sound, in `bytes` of IP payload, and that of a packet that
    /// changes nothing about its session.
    fn is_steady(&self, bytes: u32) -> bool;

    /// Adjusts the transport checksum.
    fn adjust(&mut self, delta: u16);
}

impl Headers for Plain {
    #[inline(always)]
    fn plain(&mut self) -> &mut Plain {
        self
    }

    #[inline(always)]
    fn is_steady(&self, bytes: u32) -> bool {
        let length = u32::from(u16::from_be(self.udp_length));
        length >= size_of::<Udp>() as u32 && length <= bytes
    }

    /// Zero is "no checksum", and stays; a computed zero is sent in its other form (RFC 768).
    #[inline(always)]
    fn adjust(&mut self, delta: u16) {
        if self.udp_checksum != 0 {
            let sum = Delta::apply_folded(delta, self.udp_checksum);
            self.udp_checksum = if sum == 0 { 0xffff } else { sum };
        }
    }
}

impl Headers for PlainTcp {
    #[inline(always)]
    fn plain(&mut self) -> &mut Plain {
        &mut self.plain
    }

    #[inline(always)]
    fn is_steady(&self, bytes: u32) -> bool {
        // The length is in words, in the upper half of its byte.
        let length = u32::from(self.offset >> 4) << 2;
        length >= size_of::<Tcp>() as u32
            && length <= bytes
            && self.flags & TCP_STEADY == tcp_flags::ACK
    }

    #[inline(always)]
    fn adjust(&mut self, delta: u16) {
        self.checksum = Delta::apply_folded(delta, self.checksum);
    }
}

/// `None`: nothing of the packet was changed, and it goes the general way.
#[inline(always)]
pub fn run<P: Packet, E: Env>(packet: &mut P, env: &E) -> Option<Forwarded> {
    match packet.get::<Plain>(0)?.protocol {
        proto::UDP => translate::<P, E, Plain>(packet, env),
        proto::TCP => translate::<P, E, PlainTcp>(packet, env),
        _ => None,
    }
}

#[inline(always)]
fn translate<P: Packet, E: Env, H: Headers>(packet: &mut P, env: &E) -> Option<Forwarded> {
    let realm = env.interface(packet.ingress())?.realm;
    let at_hand = packet.at_hand();
    let headers = packet.get::<H>(0)?;
    let plain = *headers.plain();
    let bytes = u16::from_be(plain.total_length);
    if plain.ethertype != ETHERTYPE_IPV4
        || plain.version_ihl != VERSION_IHL
        || plain.fragment & FRAGMENT != 0
        || plain.ttl <= 1
        || usize::from(bytes) < Ipv4::MIN_LEN
        // By difference, see `holds`: no number in host order may come near a packet pointer.
        || at_hand < size_of::<Ethernet>() + usize::from(bytes)
        || !headers.is_steady(u32::from(bytes) - Ipv4::MIN_LEN as u32)
    {
        return None;
    }

    let control = env.control()?;
    let words = key_words(plain.addresses, plain.ports, plain.protocol, realm);
    let place = Place::of_words(words, control)?;
    let slot = cache::find(env, &place)?;
    let entry = slot.entry(&place)?;
    let now = env.now();
    if STEADY >> (entry.state() & 31) & 1 == 0
        || entry.epoch() != control.current_epoch(now)
        || bytes > entry.mtu()
        || slot.is_full()
    {
        return None;
    }
    let age = now.wrapping_sub(slot.seen());
    if age != 0 {
        // Opaque and masked, for the verifier: what is steady is below anyway.
        let state = usize::from(black_box(entry.state())) & (State::COUNT - 1);
        if age > *control.timeouts.get(state)? {
            return None;
        }
        slot.see(now);
    }
    let hop = entry.next_hop;
    let egress = env.interface_in(hop.slot())?;

    headers.adjust(entry.l4_delta());
    let plain = headers.plain();
    plain.macs = Macs::towards(hop, egress.mac);
    plain.ttl = plain.ttl.wrapping_sub(1);
    plain.checksum = Delta::apply_folded(entry.ip_delta(), plain.checksum);
    plain.addresses = entry.addresses();
    plain.ports = entry.ports();
    slot.count::<E>(bytes);
    Some(Forwarded { bytes, slot: hop.slot(), flags: entry.flags() })
}
