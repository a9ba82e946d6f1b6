//! The first look, at whole TCP and UDP packets without IP options: one whose flow is in the cache
//! takes one check of the frame's end, one slot of the cache, and a few words written; nearly every
//! packet of a busy gateway goes this way. And one from outside that nobody can have asked for, and
//! nobody can want, is dropped with two more lookups; nearly every packet of a flood goes this way.
//! Everything else is left to `fast` and the stages behind it, which do the same to the packets that
//! could have gone this way: a first look that is left out changes nothing.
//! The sieve is asked before the cache, or a flood would walk through all of that.
//!
//! What the key of a cached flow alone decides (destinations that are never translated, port 0) is
//! not asked again here: a flow enters the cache by a packet that `fast` has let through.

use bytemuck::Pod;

use crate::{
    cache::{self, Place, Slot},
    checksum::Delta,
    env::{Env, Packet},
    maps::stage,
    net::{Ip4, proto},
    parse::tcp_flags,
    refusal,
    rules::{Control, Link, address, control, link, pool, role},
    session::State,
    sieve,
    stage::{Side, Step, direction},
    translate::TTL,
    verdict::DropReason,
    wire::{Ethernet, Ipv4, Plain, PlainTcp, Tcp, Udp},
};

/// A packet that was translated, to be sent out of the interface in this slot. In whole words: the compiler packs
/// smaller ones into one, and takes them out again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Forwarded {
    /// IP total length.
    pub bytes: u32,
    pub slot: u32,
    /// Of the session; they say which way it goes.
    pub flags: u32,
    /// Of the link that it came by.
    pub link: u32,
}

impl Forwarded {
    #[inline(always)]
    pub const fn step(self) -> Step {
        let (verdict, side) = direction(self.flags as u8);
        Step::sent(verdict, side, self.bytes as u16, self.slot as u16)
    }

    /// Whether it goes back (`XDP_TX`) by the interface in this slot, by which it came.
    #[inline(always)]
    #[must_use]
    pub const fn bounces(self, ingress: u32) -> bool {
        // In this order: the first is the same for all packets of most gateways.
        self.link & link::BOUNCES as u32 != 0 && self.slot == ingress
    }
}

/// What came of the first look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum First {
    Forwarded(Forwarded),
    /// Dropped, of this IP total length.
    Unsolicited(u16),
    /// From inside, and of no session, which it may open.
    New,
    /// From inside, of this IP total length, and refused a moment ago for want of a port.
    Refused(u16),
    /// Nothing of the packet was changed, and it goes the general way.
    Undecided,
}

impl First {
    /// `None`: undecided.
    #[inline(always)]
    pub const fn step(self) -> Option<Step> {
        match self {
            Self::Forwarded(forwarded) => Some(forwarded.step()),
            Self::Unsolicited(bytes) => {
                Some(Step::drop(DropReason::Unsolicited, Side::Destination, bytes))
            }
            Self::New => Some(Step::Go(stage::BEGIN)),
            Self::Refused(bytes) => {
                Some(Step::drop(DropReason::ErrorPortAllocation, Side::Source, bytes))
            }
            Self::Undecided => None,
        }
    }
}

/// Every bit that says fragment, as loaded from the wire.
const FRAGMENT: u16 = (Ipv4::MORE_FRAGMENTS | Ipv4::OFFSET_MASK).to_be();
/// Flags of a segment that changes something about its session.
const TCP_RARE: u8 = tcp_flags::FIN | tcp_flags::SYN | tcp_flags::RST;

/// What differs between the protocols.
trait Headers: Pod {
    fn plain(&mut self) -> &mut Plain;

    /// Whether the transport header is sound, in an IP packet of `bytes`.
    fn is_sound(&self, bytes: u32) -> bool;

    /// Whether the packet changes nothing about its session.
    fn is_steady(&self) -> bool;

    /// Whether it could be the first of a connection.
    fn is_opening(&self) -> bool;

    /// Whether it opens a session, where it has none and may have one.
    fn is_first(&self) -> bool;

    /// Adjusts the transport checksum.
    fn adjust(&mut self, delta: Delta);

    const PROTOCOL: u8;
    /// The state whose timeout cached flows have.
    const STATE: State;
}

impl Headers for Plain {
    const PROTOCOL: u8 = proto::UDP;
    const STATE: State = State::Udp;

    #[inline(always)]
    fn plain(&mut self) -> &mut Plain {
        self
    }

    #[inline(always)]
    fn is_sound(&self, bytes: u32) -> bool {
        let length = u32::from(u16::from_be(self.udp_length));
        length >= size_of::<Udp>() as u32 && Ipv4::MIN_LEN as u32 + length <= bytes
    }

    #[inline(always)]
    fn is_steady(&self) -> bool {
        true
    }

    #[inline(always)]
    fn is_opening(&self) -> bool {
        false
    }

    #[inline(always)]
    fn is_first(&self) -> bool {
        true
    }

    /// Zero is "no checksum", and stays; a computed zero is sent in its other form (RFC 768).
    #[inline(always)]
    fn adjust(&mut self, delta: Delta) {
        if self.udp_checksum != 0 {
            let sum = delta.apply_once(self.udp_checksum);
            self.udp_checksum = if sum == 0 { 0xffff } else { sum };
        }
    }
}

impl Headers for PlainTcp {
    const PROTOCOL: u8 = proto::TCP;
    /// Half closed ones live as long.
    const STATE: State = State::TcpEstablished;

    #[inline(always)]
    fn plain(&mut self) -> &mut Plain {
        &mut self.plain
    }

    #[inline(always)]
    fn is_sound(&self, bytes: u32) -> bool {
        // The length is in words, in the upper half of its byte.
        let length = u32::from(self.offset >> 4) << 2;
        length >= size_of::<Tcp>() as u32
            && Ipv4::MIN_LEN as u32 + length <= bytes
            && tcp_flags::are_valid(self.flags)
    }

    #[inline(always)]
    fn is_steady(&self) -> bool {
        self.flags & TCP_RARE == 0
    }

    #[inline(always)]
    fn is_opening(&self) -> bool {
        self.flags & tcp_flags::SYN != 0
    }

    #[inline(always)]
    fn is_first(&self) -> bool {
        tcp_flags::open(self.flags)
    }

    #[inline(always)]
    fn adjust(&mut self, delta: Delta) {
        self.checksum = delta.apply_once(self.checksum);
    }
}

#[inline(always)]
pub fn run<P: Packet, E: Env>(packet: &mut P, env: &E) -> First {
    let (ingress, at_hand) = (packet.ingress(), packet.at_hand());
    let taken = match packet.get::<Plain>(0) {
        Some(headers) if headers.protocol == proto::UDP => look(headers, ingress, at_hand, env),
        Some(headers) if headers.protocol == proto::TCP => {
            packet.get::<PlainTcp>(0).and_then(|headers| look(headers, ingress, at_hand, env))
        }
        _ => None,
    };
    taken.unwrap_or(First::Undecided)
}

#[inline(always)]
fn look<E: Env, H: Headers>(
    headers: &mut H,
    ingress: u32,
    at_hand: usize,
    env: &E,
) -> Option<First> {
    let control = env.control()?;
    let link = env.link(ingress)?;
    let plain = *headers.plain();
    let bytes = u16::from_be(plain.total_length);
    if !plain.is_bare()
        || plain.fragment & FRAGMENT != 0
        || plain.ttl <= 1
        // By difference, see `holds`: no number in host order may come near a packet pointer.
        || at_hand < size_of::<Ethernet>() + usize::from(bytes)
        || !headers.is_sound(u32::from(bytes))
    {
        return None;
    }
    let place =
        Place::of_flow(plain.addresses, plain.ports, H::PROTOCOL, link.realm, &control.cache);
    // First, for it is small: what has no session would find neither slot nor bucket warm.
    let known = sieve::may_have(env, &place, control.sieve_mask);
    if known && let Some(slot) = cache::find_near(env, &place) {
        return translate(env, control, headers, &place, slot, bytes, link);
    }
    if link.role != role::PUBLIC {
        let new = headers.is_first() && (!known || env.session(&place.key()).is_none());
        if !new {
            return None;
        }
        // Where nobody is told: else `begin` asks, and answers.
        if !refusal::is_answered(env)
            && let Some(slot) = refusal::recall(env, &place.key())
        {
            refusal::count(env, H::PROTOCOL, slot);
            return Some(First::Refused(bytes));
        }
        return Some(First::New);
    }
    let held = headers.is_opening() && control.flags & control::HOLD_SYN != 0;
    let destination = Ip4::from_raw(plain.addresses[1]);
    let unwanted =
        !held && is_closed(env, destination) && (!known || env.session(&place.key()).is_none());
    unwanted.then_some(First::Unsolicited(bytes))
}

/// By the flow cache alone.
#[inline(always)]
fn translate<E: Env, H: Headers>(
    env: &E,
    control: &Control,
    headers: &mut H,
    place: &Place,
    slot: &Slot,
    bytes: u16,
    link: Link,
) -> Option<First> {
    let now = env.now();
    let entry = slot.entry(place, control.current_epoch(now))?;
    let hop = env.next_hop(entry.hop())?;
    if !headers.is_steady() || bytes > hop.mtu() {
        return None;
    }
    if entry.is_full() {
        // Here, or one packet in a thousand would go the general way for it.
        slot.settle_whose(env);
    }
    let limit = *control.timeouts.get(H::STATE as usize)?;
    if now != entry.seen() && now.wrapping_sub(entry.seen()) > limit {
        return None;
    }
    // What the checksums need of the ends is at hand when these have been written.
    let plain = headers.plain();
    plain.macs = hop.macs();
    plain.ttl = plain.ttl.wrapping_sub(1);
    plain.addresses = entry.addresses();
    plain.ports = entry.ports();
    plain.checksum = entry.address_delta().plus(TTL).apply_once(plain.checksum);
    headers.adjust(entry.delta());
    slot.take::<E>(&entry, now, 1, u32::from(bytes));
    Some(First::Forwarded(Forwarded {
        bytes: u32::from(bytes),
        slot: u32::from(hop.slot()),
        flags: u32::from(entry.flags()),
        link: u32::from(link.flags),
    }))
}

/// Whether a packet from outside to this address can be wanted by its session only: it has no forwards, is
/// nobody's own, and of a pool that admits answers only.
#[inline(always)]
fn is_closed<E: Env>(env: &E, destination: Ip4) -> bool {
    if destination.is_never_translated() {
        return false;
    }
    let Some(mut slot) = env.handoff(|handoff| handoff.public) else { return false };
    let mut address = env.address(slot);
    // Floods go to few addresses: mostly the one of the packet before.
    if address.is_none_or(|address| address.address != destination) {
        let Some(public) = env.public_address(destination) else { return false };
        slot = public.slot;
        env.handoff(|handoff| handoff.public = slot);
        address = env.address(slot);
    }
    let Some(address) = address else { return false };
    let used = address::FORWARDS | address::ONE_TO_ONE | address::HOST_OWNED;
    if address.address != destination || address.flags == 0 || address.flags & used != 0 {
        return false;
    }
    env.pool(address.pool).is_some_and(|pool| {
        pool.mapping != pool::ENDPOINT_INDEPENDENT
            && pool.filtering == pool::ADDRESS_AND_PORT_DEPENDENT
    })
}
