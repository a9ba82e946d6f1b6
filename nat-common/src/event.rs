//! What the dataplane tells the daemon through the ring buffer.

use bytemuck::{Pod, Zeroable};

use crate::{
    flow::FlowKey,
    net::{Ip4, Port},
};

/// One fixed record, aligned for the stack that it is made on. Losing one is never an error: the daemon also finds out by itself.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Event {
    /// See [`kind`].
    pub kind: u32,
    pub ifindex: u32,
    /// Next hop for `NEIGHBOUR`, public address for `EXHAUSTED`.
    pub address: Ip4,
    pub port: Port,
    pub protocol: u8,
    pub reason: u8,
    pub key: FlowKey,
}

pub mod kind {
    /// `address` on `ifindex` has to be resolved.
    pub const NEIGHBOUR: u32 = 1;
    /// No port left towards `key`'s destination.
    pub const EXHAUSTED: u32 = 2;
    /// The session table is full.
    pub const TABLE_FULL: u32 = 3;
}

const _: () = assert!(size_of::<Event>() == 32);
