//! What the engine asks from its surroundings. The BPF programs implement it over maps and
//! helpers, host tests over plain collections.

use core::cell::Cell;

use bytemuck::Pod;

use crate::{
    agenda::Note,
    cache::Slot,
    checksum::{Delta, Sum},
    counters::Counters,
    event::Event,
    flow::FlowKey,
    net::{Ip4, Mac, Port},
    next_hops::Row,
    pair::Pair,
    port::{BusyKey, PortSet, PortSetImage},
    record::FlowRecord,
    refusal::{Refusal, RefusedPorts},
    rules::{
        Address, Control, Forward, ForwardKey, HostAddress, Interface, Link, OneToOne, OneToOneKey,
        Pool, PublicAddress, SnatRule,
    },
    session::{
        Binding, BindingImage, BindingKey, Host, HostKey, PermitKey, Session, SessionImage, Word,
    },
    stage::{FragmentEntry, FragmentKey, Handoff, seek::Search},
};

/// Bytes that are summed at most: the verifier walks through every length there may be.
pub const SUMMED: usize = 1536;

/// What the kernel makes of a packet that it carries as one and cuts before it is sent (GSO).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segments {
    pub packets: u32,
    /// Of all their IP packets.
    pub bytes: u32,
    /// IP total length of the longest.
    pub largest: u16,
}

/// A received frame.
#[expect(clippy::len_without_is_empty, reason = "a frame without bytes is never received")]
pub trait Packet {
    /// Whether the kernel notes which packets it has still to complete: to cut, to checksum.
    /// Where it does not, the following methods stay as they are.
    const NOTED: bool = false;

    /// `None`: it is one packet already.
    #[inline(always)]
    fn segments(&self) -> Option<Segments> {
        None
    }

    /// Whether the transport checksum at `offset` has only the pseudo-header's sum in it, by
    /// agreement: something behind this gateway completes it.
    #[inline(always)]
    fn is_pending(&mut self, _offset: usize) -> bool {
        false
    }

    /// Corrects the transport checksum at `offset` for the change `all`, of which `pseudo` is the
    /// pseudo-header's part. `zero_is_none`: a checksum of 0 stays (UDP).
    #[inline(always)]
    fn correct(
        &mut self,
        offset: usize,
        all: Delta,
        _pseudo: Delta,
        zero_is_none: bool,
    ) -> Option<()> {
        let field = self.get::<[u8; 2]>(offset)?;
        *field = if zero_is_none { all.apply_udp(*field) } else { all.apply(*field) };
        Some(())
    }

    /// The header at `offset`, if the frame holds all of it. Alignment of `T` must be 1.
    fn get<T: Pod>(&mut self, offset: usize) -> Option<&mut T>;

    /// The sum of `len` bytes from `offset` on; `None` where they are not at hand, or more than
    /// [`SUMMED`].
    fn sum(&mut self, offset: usize, len: usize) -> Option<Sum>;

    /// Bytes from the first to the last of the frame, padding included.
    fn len(&mut self) -> u32;

    /// Whether the frame has at least `len` bytes; cheaper than `len` where most of it is at hand.
    fn holds(&mut self, len: usize) -> bool;

    /// Bytes from the start of the frame that `get` reaches and whose checksums are whole, as far as
    /// that is known for nothing. 0, which is always right, keeps the frame from the first look
    /// (`stage/plain.rs`): a hook whose frames may have partial checksums says so for those.
    fn at_hand(&mut self) -> usize {
        0
    }

    /// Index of the interface that the frame came from.
    fn ingress(&self) -> u32;

    /// Makes room for `front` bytes before the frame and cuts it to `len` bytes.
    /// False: nothing was changed that matters, the frame must be dropped.
    fn reshape(&mut self, front: usize, len: usize) -> bool;

    /// Makes room for `front` bytes before the frame, and leaves the rest as it is.
    fn extend(&mut self, front: usize) -> bool;

    /// Takes `front` bytes off the start of the frame.
    fn strip(&mut self, front: usize) -> bool;
}

/// Read-modify-write operations, which the BPF target of the compiler offers only as intrinsics.
/// All of relaxed order.
pub trait Atomics {
    fn compare_exchange(cell: &Cell<u64>, old: u64, new: u64) -> bool;
    /// These two return the value before.
    fn or(cell: &Cell<u64>, bits: u64) -> u64;
    fn and(cell: &Cell<u64>, bits: u64) -> u64;
    /// Wraps: adding `u64::MAX` takes one away.
    fn add(cell: &Cell<u64>, value: u64);
    /// The same, and returns the value before.
    fn fetch_add(cell: &Cell<u64>, value: u64) -> u64;
}

/// Why an entry was not inserted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InsertError {
    /// The key is there already.
    Exists,
    /// The table is full, or there is no memory.
    Full,
}

/// The maps.
pub trait Tables {
    fn control(&self) -> Option<&Control>;
    /// Runs with this CPU's handoff; `None` if there is none.
    fn handoff<R>(&self, with: impl FnOnce(&mut Handoff) -> R) -> Option<R>;
    /// Runs with this CPU's counters.
    fn counters(&self, with: impl FnOnce(&mut Counters));
    fn interface(&self, ifindex: u32) -> Option<&Interface>;
    fn interface_in(&self, slot: u16) -> Option<&Interface>;
    /// What the first look wants to know of an interface.
    fn link(&self, ifindex: u32) -> Option<Link>;
    /// Whether this is an interface of the host that is up and none of the gateway's. One that has
    /// appeared since the daemon looked is not known to be that: it may be a public one made anew.
    fn other_link(&self, ifindex: u32) -> bool;
    fn host_address(&self, address: Ip4) -> Option<HostAddress>;
    fn public_address(&self, address: Ip4) -> Option<PublicAddress>;
    fn address(&self, slot: u32) -> Option<&Address>;
    fn pool(&self, pool: u32) -> Option<&Pool>;
    fn pool_member(&self, index: u32) -> Option<u32>;
    fn snat_rule(&self, source: Ip4) -> Option<SnatRule>;
    fn is_exempt(&self, rule: u32, destination: Ip4) -> bool;
    fn forward(&self, key: &ForwardKey) -> Option<Forward>;
    fn one_to_one(&self, key: &OneToOneKey) -> Option<OneToOne>;

    /// Runs with this CPU's room for a session about to be inserted: 64 bytes that the stack of a
    /// BPF program (512) can spare.
    fn draft<R>(&self, with: impl FnOnce(&mut SessionImage) -> R) -> Option<R>;
    fn session(&self, key: &FlowKey) -> Option<&Session>;
    /// Inserts if there is no entry of that key: this is the reservation.
    fn session_insert(&self, key: &FlowKey, value: &SessionImage) -> Result<(), InsertError>;
    /// True if this call removed it. Both are for [`crate::sieve`], which keeps count.
    fn session_remove(&self, key: &FlowKey) -> bool;

    /// Has the sweep look at an entry: the outbound one of a new session, or an inbound one that rests.
    #[inline(always)]
    fn note(&self, _note: Note) {}

    /// A slot of the flow cache.
    fn slot(&self, index: u32) -> Option<&Slot>;
    /// A place of the next hops that the slots name.
    fn next_hop(&self, number: u16) -> Option<&Row>;
    /// A word of the sieve; `None` where there is none.
    fn sieve(&self, word: u32) -> Option<&Cell<u64>>;

    fn binding(&self, key: &BindingKey) -> Option<&Binding>;
    fn binding_insert(&self, key: &BindingKey, value: &BindingImage) -> Result<(), InsertError>;
    fn binding_remove(&self, key: &BindingKey);
    fn permit(&self, key: &PermitKey) -> Option<u32>;
    fn permit_insert(&self, key: &PermitKey, binding: u32);

    /// The entry of a private host, made if there is none.
    fn host_or_new(&self, key: &HostKey) -> Option<&Host>;
    fn host(&self, key: &HostKey) -> Option<&Host>;

    /// Free ports of a busy destination.
    fn busy(&self, key: &BusyKey) -> Option<&PortSet>;
    /// Starts tracking a destination, from row `template`; one that nobody asks for any more gives way.
    fn busy_insert(&self, key: &BusyKey, template: u32);
    fn port_template(&self, row: u32) -> Option<&PortSetImage>;
    /// Goes on with `search`, round by round, until it is done.
    fn seek(&self, search: &mut Search<'_>);
    /// Word of a session entry, if that is all one wants to know.
    #[inline(always)]
    fn session_word(&self, key: &FlowKey) -> Option<Word> {
        Some(self.session(key)?.word())
    }
    /// The endpoint on the other side of a binding.
    #[inline(always)]
    fn bound(&self, key: &BindingKey) -> Option<(Ip4, Port)> {
        self.binding(key).map(|binding| (binding.address, binding.port))
    }

    /// Whether a binding has no session left and has rested.
    #[inline(always)]
    fn is_idle(&self, key: &BindingKey, hold: u32, now: u32) -> bool {
        self.binding(key).is_some_and(|binding| binding.is_idle(hold, now))
    }

    /// This CPU's place of what is known of a pair of hosts.
    fn pair(&self, place: u32) -> Option<&Pair>;
    /// A place of what was refused a moment ago.
    fn refusal(&self, place: u32) -> Option<&Refusal>;
    /// How often the address in this slot had no port left.
    fn refused_ports(&self, slot: u32) -> Option<&RefusedPorts>;

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentEntry>;
    /// Replaces an older entry of the same key.
    fn fragment_insert(&self, key: &FragmentKey, value: &FragmentEntry);
}

/// Time and chance.
pub trait Clock {
    /// Ticks, low 32 bits; wraps.
    fn now(&self) -> u32;
    fn random(&self) -> u32;
}

/// What is asked of the host's routing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RouteQuery {
    pub src: Ip4,
    pub dst: Ip4,
    pub sport: Port,
    pub dport: Port,
    pub protocol: u8,
    pub tos: u8,
    /// IP total length; answered by `TooBig` if it does not fit.
    pub length: u16,
    pub ingress: u32,
}

/// Its parts at even places, or the compiler copies them by pieces that a BPF stack does not take.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// Out of `ifindex` to `mac`; packets up to `mtu` bytes.
    Hop { ifindex: u32, mac: Mac, mtu: u16 },
    /// The way is known, the next hop's MAC address is not.
    NoNeighbour { ifindex: u32, gateway: Ip4 },
    /// Larger than the MTU of the way.
    TooBig { mtu: u16 },
    /// To the host itself, or no route at all: the host's stack knows what to do.
    Local,
}

impl Route {
    /// Of the interface that the packet would leave by.
    #[inline(always)]
    #[must_use]
    pub const fn ifindex(&self) -> Option<u32> {
        match *self {
            Self::Hop { ifindex, .. } | Self::NoNeighbour { ifindex, .. } => Some(ifindex),
            Self::TooBig { .. } | Self::Local => None,
        }
    }
}

/// The host's networking.
pub trait Network {
    fn route(&self, query: &RouteQuery) -> Route;
    /// Whether a socket of the host claims the packet, or would claim packets to `key`'s
    /// destination.
    fn socket(&self, key: &FlowKey) -> bool;
    /// Tells the daemon; may be lost.
    fn event(&self, event: &Event);
    /// Sends the flow log a record; `fill` writes every field of what an earlier one left. Returns
    /// how many were lost: 1 if there is no room.
    fn record(&self, fill: impl FnOnce(&mut FlowRecord)) -> u64;
}

/// All of it.
pub trait Env: Tables + Clock + Network + Atomics {}

impl<T: Tables + Clock + Network + Atomics> Env for T {}
