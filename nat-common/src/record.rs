//! What the dataplane tells the flow log, through a ring buffer of its own.

use bytemuck::{Pod, Zeroable};

use crate::flow::{FlowKey, Tuple};

/// One session that was opened or has ended. Fixed, so that the ring holds a known number of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowRecord {
    /// Sums of the session's whole life: packets, and bytes of IP packets as received.
    pub packets_out: u64,
    pub bytes_out: u64,
    pub packets_in: u64,
    pub bytes_in: u64,
    /// Of the outbound half: private endpoint as source, remote one as destination.
    pub key: FlowKey,
    /// What it becomes: public endpoint as source.
    pub tuple: Tuple,
    /// Ticks when the session was opened.
    pub created: u32,
    /// Ticks of its last packet, at most one refresh interval (`Control::refresh`) before that.
    pub seen: u32,
    /// Ticks of this record.
    pub now: u32,
    /// See [`kind`].
    pub kind: u8,
    /// The state (see `session::State`) that it has, or had before its end.
    pub state: u8,
    /// See `session::flags`.
    pub flags: u8,
    /// Its time was up; else it was ended by a command, a change of the rules, or a successor.
    pub idle: u8,
    pub zero: [u8; 4],
}

pub mod kind {
    pub const OPENED: u8 = 1;
    pub const ENDED: u8 = 2;
}

const _: () = assert!(size_of::<FlowRecord>() == 80);
