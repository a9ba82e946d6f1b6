//! A session, as each of its two directions holds it.
//!
//! Two entries in the session table make a session, one for each direction, each sufficient to
//! translate a packet alone. A direction writes only its own entry, except for changes of state,
//! which are rare and go to both. `word` changes only by compare-and-swap, so that a refresh can
//! never bring back an entry that the reaper has marked dead.

use core::cell::Cell;

use bytemuck::{Pod, Zeroable};

use crate::{
    env::Atomics,
    flow::Tuple,
    net::{Ip4, Port},
};

/// State of a session. The numbers index `Control::timeouts`; append only.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Never stored: the value of a zeroed entry.
    None = 0,
    Udp = 1,
    Icmp = 2,
    /// SYN seen from inside only.
    TcpOpeningOut = 3,
    /// SYN seen from outside only.
    TcpOpeningIn = 4,
    TcpEstablished = 5,
    /// FIN seen from inside only; lives as long as an established one.
    TcpFinOut = 6,
    /// FIN seen from outside only.
    TcpFinIn = 7,
    /// FIN seen from both sides.
    TcpClosing = 8,
    /// RST seen; data brings it back (RFC 7857 section 2.2).
    TcpReset = 9,
    /// Ended: counts as absent; the outbound entry waits for deletion, the inbound one rests its
    /// port.
    Dead = 10,
}

impl State {
    pub const COUNT: usize = 16;

    #[inline(always)]
    pub const fn from_u8(value: u8) -> Self {
        match value {
            1 => Self::Udp,
            2 => Self::Icmp,
            3 => Self::TcpOpeningOut,
            4 => Self::TcpOpeningIn,
            5 => Self::TcpEstablished,
            6 => Self::TcpFinOut,
            7 => Self::TcpFinIn,
            8 => Self::TcpClosing,
            9 => Self::TcpReset,
            10 => Self::Dead,
            _ => Self::None,
        }
    }

    /// The contract's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp | Self::Icmp => "active",
            Self::TcpOpeningOut | Self::TcpOpeningIn => "opening",
            Self::TcpEstablished | Self::TcpFinOut | Self::TcpFinIn => "established",
            Self::TcpClosing | Self::TcpReset => "closing",
            Self::None | Self::Dead => "dead",
        }
    }
}

/// The changing part of an entry: state (8 bits), a random generation (24 bits), time of the last
/// packet (32 bits). The generation makes a compare-and-swap through a stale reference fail after
/// the kernel has recycled the element for another session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Word(pub u64);

impl Word {
    #[inline(always)]
    pub const fn new(state: State, generation: u32, seen: u32) -> Self {
        Self(((seen as u64) << 32) | ((generation as u64 & 0xff_ffff) << 8) | state as u64)
    }

    #[inline(always)]
    pub const fn state_bits(self) -> u8 {
        self.0 as u8
    }

    #[inline(always)]
    pub const fn state(self) -> State {
        State::from_u8(self.0 as u8)
    }

    /// Ticks (see `Control::hz`) at the last packet that refreshed the entry.
    #[inline(always)]
    pub const fn seen(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline(always)]
    #[must_use]
    pub const fn with_seen(self, seen: u32) -> Self {
        Self((self.0 & 0xffff_ffff) | ((seen as u64) << 32))
    }

    #[inline(always)]
    #[must_use]
    pub const fn with_state(self, state: State) -> Self {
        Self((self.0 & !0xff) | state as u64)
    }
}

/// Who made the session, and how its packets are to be treated.
pub mod flags {
    /// This entry translates packets from the private side (else: from the public side).
    pub const OUTBOUND: u8 = 1 << 0;
    /// Opened from outside through a `forward`.
    pub const FORWARD: u8 = 1 << 1;
    /// Holds a reference to an endpoint-independent binding.
    pub const BINDING: u8 = 1 << 2;
    /// Both ends are inside.
    pub const HAIRPIN: u8 = 1 << 3;
}

/// Where a packet goes next: destination MAC address in the low 48 bits (as loaded from the
/// wire), slot of the egress interface above them. One word, so that it is never torn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHop(pub u64);

impl NextHop {
    #[inline(always)]
    pub const fn new(mac: [u8; 6], slot: u16) -> Self {
        let [a, b, c, d, e, f] = mac;
        Self(u64::from_le_bytes([a, b, c, d, e, f, 0, 0]) | ((slot as u64) << 48))
    }

    #[inline(always)]
    pub const fn mac(self) -> [u8; 6] {
        let [a, b, c, d, e, f, _, _] = self.0.to_le_bytes();
        [a, b, c, d, e, f]
    }

    #[inline(always)]
    pub const fn slot(self) -> u16 {
        (self.0 >> 48) as u16
    }
}

/// Value of the session table: one cache line.
///
/// Cells are plain loads and stores; they are here so that the engine changes an entry in place
/// without `unsafe`. What other CPUs may change between a read and a write goes through
/// [`Atomics`]. Userspace reads the same bytes as [`SessionImage`].
#[repr(C, align(8))]
#[derive(Debug, Default)]
pub struct Session {
    pub word: Cell<u64>,
    pub packets: Cell<u64>,
    /// Sum of the IP total lengths as received.
    pub bytes: Cell<u64>,
    pub next_hop: Cell<u64>,
    /// `Control::epoch` for which `next_hop` and `mtu` were resolved; 0 is never current.
    pub epoch: Cell<u32>,
    /// Ticks at creation.
    pub created: u32,
    /// What the packet's addresses and ports become.
    pub tuple: Tuple,
    /// Delta of the IP header checksum, one TTL decrement included.
    pub ip_delta: u16,
    /// Delta of the transport checksum.
    pub l4_delta: u16,
    /// Low half: MTU of the way out, bytes of IP packet. High half: generation of the
    /// configuration under which the session was last judged. See [`Path`].
    pub path: Cell<u32>,
    /// Slot in the address table of the public address.
    pub address: u16,
    pub flags: u8,
    pub pool: u8,
}

/// What [`Session::path`] holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path(pub u32);

impl Path {
    #[inline(always)]
    pub const fn new(mtu: u16, generation: u16) -> Self {
        Self(((generation as u32) << 16) | mtu as u32)
    }

    #[inline(always)]
    pub const fn mtu(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    pub const fn generation(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// The plain image of a [`Session`]: what userspace reads, and what a new entry is made of.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct SessionImage {
    pub word: u64,
    pub packets: u64,
    pub bytes: u64,
    pub next_hop: u64,
    pub epoch: u32,
    pub created: u32,
    pub tuple: Tuple,
    pub ip_delta: u16,
    pub l4_delta: u16,
    pub path: u32,
    pub address: u16,
    pub flags: u8,
    pub pool: u8,
}

const _: () = {
    assert!(size_of::<Session>() == 64 && size_of::<SessionImage>() == 64);
    assert!(core::mem::offset_of!(Session, tuple) == core::mem::offset_of!(SessionImage, tuple));
    assert!(core::mem::offset_of!(Session, pool) == core::mem::offset_of!(SessionImage, pool));
};

impl SessionImage {
    pub const fn word(&self) -> Word {
        Word(self.word)
    }

    pub const fn is_outbound(&self) -> bool {
        self.flags & flags::OUTBOUND != 0
    }
}

impl Session {
    #[inline(always)]
    pub fn word(&self) -> Word {
        Word(self.word.get())
    }

    /// Replaces `old` by `new`; false when another CPU was first.
    #[inline(always)]
    pub fn swap_word<A: Atomics>(&self, old: Word, new: Word) -> bool {
        A::compare_exchange(&self.word, old.0, new.0)
    }

    #[inline(always)]
    pub const fn is_outbound(&self) -> bool {
        self.flags & flags::OUTBOUND != 0
    }

    /// Counts what was sent. Atomically, although one direction of a flow is mostly steered to one CPU: the daemon
    /// may add what the flow cache has taken at the same moment.
    #[inline(always)]
    pub fn count<A: Atomics>(&self, packets: u32, bytes: u32) {
        A::add(&self.packets, packets.into());
        A::add(&self.bytes, bytes.into());
    }
}

/// Key of the bindings table (RFC 6146's BIB): a private endpoint, or the public one it maps to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Pod, Zeroable)]
pub struct BindingKey {
    pub address: Ip4,
    pub port: Port,
    pub protocol: u8,
    /// 0: private endpoint to public one; 1: public to private.
    pub inbound: u8,
}

/// Value of the bindings table. The outbound half counts the sessions in `refs`.
#[repr(C, align(8))]
#[derive(Debug, Default)]
pub struct Binding {
    /// Number of sessions; [`BINDING_DEAD`] once the reaper has taken it.
    pub refs: Cell<u64>,
    /// Ticks when the last session ended.
    pub released: Cell<u32>,
    /// Tells this binding from an earlier one of the same endpoint; `permits` refer to it.
    pub id: u32,
    pub address: Ip4,
    pub port: Port,
    pub slot: u16,
    pub pool: u32,
    pub zero: u32,
}

impl Binding {
    /// Without sessions, and its port has rested for `hold` ticks.
    #[inline(always)]
    pub fn is_idle(&self, hold: u32, now: u32) -> bool {
        self.refs.get() == 0 && now.wrapping_sub(self.released.get()) >= hold
    }
}

#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct BindingImage {
    pub refs: u64,
    pub released: u32,
    pub id: u32,
    pub address: Ip4,
    pub port: Port,
    pub slot: u16,
    pub pool: u32,
    pub zero: u32,
}

pub const BINDING_DEAD: u64 = 1 << 63;

const _: () = assert!(size_of::<Binding>() == 32 && size_of::<BindingImage>() == 32);

/// Key of the permits table: a remote address that a binding has sent to (address-dependent
/// filtering, RFC 4787 section 5).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Pod, Zeroable)]
pub struct PermitKey {
    pub public: Ip4,
    pub remote: Ip4,
    pub port: Port,
    pub protocol: u8,
    pub zero: u8,
}

/// Pairing and limits of a private host (RFC 4787 REQ-2, RFC 6888 REQ-4).
#[repr(C, align(8))]
#[derive(Debug, Default)]
pub struct Host {
    /// Live sessions by protocol: tcp, udp, icmp.
    pub sessions: [Cell<u64>; 3],
    /// Sessions opened in the current one-second window.
    pub opened: Cell<u64>,
    /// Tick at which the window began.
    pub window: Cell<u32>,
    /// Slot of the public address that the host is paired with, plus one; 0 is none.
    pub address: Cell<u32>,
}

#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct HostImage {
    pub sessions: [u64; 3],
    pub opened: u64,
    pub window: u32,
    pub address: u32,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Pod, Zeroable)]
pub struct HostKey {
    pub address: Ip4,
    pub realm: u8,
    pub pool: u8,
    pub zero: [u8; 2],
}

/// Index of a protocol in arrays by protocol.
#[inline(always)]
pub const fn protocol_index(protocol: u8) -> usize {
    match protocol {
        crate::net::proto::TCP => 0,
        crate::net::proto::UDP => 1,
        _ => 2,
    }
}
