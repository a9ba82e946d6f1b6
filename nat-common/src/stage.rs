//! The stages of a packet's way, and what they hand to each other.
//!
//! ```text
//! plain ─► begin ─► out, or classify
//! fast ── hit on a live session with a known next hop ──────────────────────────► out
//!  ├─► fragment ─┐
//!  ├─► error     ├─► (not theirs) ─┐
//!  ├─► hit ── state, expiry, route ┤
//!  └───────────────────────────────┴─► classify ─┬─► inbound ─┬─► accept ─► hit
//!                                                │            └─► open (hairpin)
//!                                                ├─► open ─┬─► out
//!                                                │         ├─► open_busy ◄─► seek, reclaim; open_busy ─► send
//!                                                │         └─► join ◄─► bind ◄─► seek, reclaim; join ─► send
//!                                                ├─► stateless ─► out
//!                                                └─► the host's stack, or a reason
//! any of them ─► answer (ICMP error, RST), hold (the slow path)
//! ```

use bytemuck::{Pod, Zeroable};

use crate::{
    flow::{FlowKey, Tuple},
    net::{Ip4, Port},
    parse::Parsed,
    rules::role,
    session::{NextHop, flags},
    verdict::{DropReason, Verdict},
};

pub mod accept;
pub mod begin;
pub mod bind;
pub mod classify;
pub mod deliver;
pub mod end;
pub mod error;
pub mod fast;
pub mod fragment;
pub mod hit;
pub mod hold;
pub mod inbound;
pub mod open;
pub mod open_busy;
pub mod plain;
pub mod reap;
pub mod report;
pub mod seek;
pub mod send;
pub mod stateless;
pub mod verify;

/// What a stage leaves for the next one, per CPU. Stages are separate BPF programs, so that each
/// has a stack and a verifier budget of its own; a tail call carries nothing but the packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Pod, Zeroable)]
pub struct Handoff {
    /// For `ANSWER`: see [`Answer`].
    pub answer: u32,
    /// For `ANSWER`: MTU of ICMP 3/4.
    pub mtu: u32,
    /// Source address of an answer; zero: the receiving interface's.
    pub source: Ip4,
    /// For `OPEN` and `ACCEPT`: the pool, the way out as `classify` found it, and where the packet goes.
    pub pool: u32,
    pub hop: u64,
    pub target: Ip4,
    pub target_port: Port,
    pub flags: u16,
    /// For `OPEN_BUSY`: slot of the address that the host is paired with; whether it has no place in the
    /// pool's list (0, 1). Then the place of the address that is searched, and how many were full.
    pub slot: u32,
    pub unlisted: u32,
    pub member: u32,
    pub tried: u32,
    /// For `OPEN_BUSY`: how often it and `SEEK` ran for this packet.
    pub rounds: u32,
    /// Interface that the packet came from, at first.
    pub ingress: u32,
    /// For `SEEK`: where a port is looked for, and what for; then what was found. See [`seek::Wanted`].
    pub wanted: seek::Wanted,
    pub progress: seek::Progress,
    /// Whether it has been in the slow path since: see [`hold::returned`].
    pub returned: u32,
    /// Where the kernel will cut the packet: how many there will be, IP bytes of all of them, and
    /// of the longest. Zeros: it is one already.
    pub packets: u32,
    pub bytes: u32,
    pub largest: u32,
    /// For `HOLD`.
    pub label: hold::Label,
    /// Window and count of the limit on answers, ticks.
    pub window: u32,
    pub answered: u32,
    /// The same of the limit on held SYNs.
    pub syn_window: u32,
    pub syns: u32,
    /// Slot of the public address that the last packet from outside was for: it is mostly that of
    /// the next one, too.
    pub public: u32,
    pub zero: u32,
    /// For `ERROR`: not 0 where a checksum of the message is wrong.
    pub wrong: u32,
    /// Of `BEGIN`: changes with each session.
    pub turn: u32,
    pub nought: u32,
}

/// Fragments of one datagram (RFC 791): equal addresses, protocol and identification.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Pod, Zeroable)]
pub struct FragmentKey {
    pub src: Ip4,
    pub dst: Ip4,
    pub id: [u8; 2],
    pub protocol: u8,
    pub realm: u8,
}

/// What the first fragment said: the key of its session.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct FragmentEntry {
    pub tuple: Tuple,
    /// Ticks when the first fragment passed.
    pub seen: u32,
    /// Identification that the translated fragments carry (RFC 6864).
    pub new_id: [u8; 2],
    /// Content of the first fragment, in units of eight bytes.
    pub units: u16,
}

/// Request to the reaper program, placed behind a 16-byte pseudo header in its input.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct ReapRequest {
    pub pad: [u8; 16],
    /// See [`request`].
    pub op: u32,
    pub count: u32,
    pub keys: [FlowKey; request::BATCH],
    /// For `LOOK`: ticks, or `GONE`.
    pub answers: [u32; request::BATCH],
}

pub mod request {
    use super::{FlowKey, Ip4, Port, Tuple};

    /// Sessions of one request.
    pub const BATCH: usize = 128;
    /// Writes the current ticks into `count`.
    pub const NOW: u32 = 0;
    /// Ends the sessions whose time is up; `keys` are their outbound keys, or the keys of inbound
    /// entries that only rest a port.
    pub const EXPIRE: u32 = 1;
    /// Ends the sessions whatever their state.
    pub const END: u32 = 2;
    /// Removes endpoint-independent bindings that have no session left and have rested: private
    /// endpoint as source, public endpoint as destination.
    pub const UNBIND: u32 = 3;
    /// As `EXPIRE`, of [notes](crate::agenda::Note); and says when each is to be looked at again.
    pub const LOOK: u32 = 4;
    /// Brings the sessions up to date that have [these](slot) slots of the flow cache.
    pub const SETTLE: u32 = 5;
    /// And leaves them to their sessions.
    pub const VACATE: u32 = 6;

    /// A slot of the flow cache, in the place of a key.
    #[must_use]
    pub const fn slot(number: u32) -> FlowKey {
        let (src, dst) = (Ip4::from_raw(number), Ip4::UNSPECIFIED);
        FlowKey::new(Tuple { src, dst, sport: Port::ZERO, dport: Port::ZERO }, 0, 0)
    }

    /// Never again.
    pub const GONE: u32 = 0;
}

const _: () = assert!(size_of::<ReapRequest>() == 24 + (16 + 4) * request::BATCH);

/// Which side a packet came from, for the counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Source,
    Destination,
}

/// What is to be done with the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Out {
    /// Nothing: the verdict says it all.
    None,
    /// Out of the interface in this slot.
    Slot(u16),
    /// Back where it came from.
    Back,
}

/// The end of a packet's way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub verdict: Verdict,
    pub side: Side,
    /// IP total length as received; 0 for other frames.
    pub bytes: u16,
    pub out: Out,
}

/// What follows a stage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Another stage, by its number in `maps::stage`.
    Go(u32),
    Done(Outcome),
}

impl Step {
    #[inline(always)]
    pub const fn host(side: Side, bytes: u16) -> Self {
        Self::Done(Outcome { verdict: Verdict::ToHost, side, bytes, out: Out::None })
    }

    #[inline(always)]
    pub const fn drop(reason: DropReason, side: Side, bytes: u16) -> Self {
        Self::Done(Outcome { verdict: Verdict::Drop(reason), side, bytes, out: Out::None })
    }

    #[inline(always)]
    pub const fn answered(side: Side, bytes: u16) -> Self {
        Self::Done(Outcome { verdict: Verdict::Answered, side, bytes, out: Out::Back })
    }

    #[inline(always)]
    pub const fn sent(verdict: Verdict, side: Side, bytes: u16, slot: u16) -> Self {
        Self::Done(Outcome { verdict, side, bytes, out: Out::Slot(slot) })
    }
}

/// A resolved way out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hop {
    pub next: NextHop,
    /// Bytes of IP packet.
    pub mtu: u16,
}

impl Side {
    /// The side of an interface, as far as the interface alone tells it.
    #[inline(always)]
    pub const fn of(role: u8) -> Self {
        if role == role::PRIVATE { Self::Source } else { Self::Destination }
    }
}

/// Verdict and side of a packet that a session translates.
#[inline(always)]
pub const fn direction(session_flags: u8) -> (Verdict, Side) {
    if session_flags & flags::HAIRPIN != 0 {
        (Verdict::ToSource, Side::Source)
    } else if session_flags & flags::OUTBOUND != 0 {
        (Verdict::ToDestination, Side::Source)
    } else {
        (Verdict::ToSource, Side::Destination)
    }
}

/// What the answer stage is to send.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    None = 0,
    /// ICMP 11/0.
    TtlExceeded = 1,
    /// ICMP 3/4, with the MTU of the handoff (RFC 1191).
    FragmentationNeeded = 2,
    /// ICMP 3/13 (RFC 5508 REQ-8).
    AdminProhibited = 3,
    /// TCP RST towards the sender (RFC 793 section 3.4).
    Reset = 4,
    /// ICMP 3/3 (RFC 5382 REQ-4).
    PortUnreachable = 5,
}

impl FragmentKey {
    /// The datagram that a packet is a fragment of.
    #[inline(always)]
    pub const fn of(parsed: &Parsed) -> Self {
        Self {
            src: parsed.ip.src,
            dst: parsed.ip.dst,
            id: parsed.ip.id,
            protocol: parsed.ip.protocol,
            realm: parsed.key.realm,
        }
    }

    /// The datagram as its fragments go out, for errors that quote one of them. The note under it
    /// leads back: `new_id` is the identification that its sender gave it, `tuple` is what it has
    /// become.
    #[inline(always)]
    pub const fn sent(src: Ip4, dst: Ip4, id: [u8; 2], protocol: u8) -> Self {
        /// No interface has it.
        const SENT: u8 = u8::MAX;
        Self { src, dst, id, protocol, realm: SENT }
    }
}
