//! What `natgw capture` brings of a packet: written by the dataplane's third binding, which is in
//! the place of the first while a capture runs, and read by the daemon.

use bytemuck::{Pod, Zeroable};

use crate::net::Ip4;

/// Bytes of a frame that can be kept: those of a jumbo frame.
pub const SNAP: usize = 9216;
/// Bytes of the ring buffer; what does not fit is lost and counted.
pub const RING_BYTES: u32 = 8 << 20;

/// Names of maps and of the program that ends a packet's way.
pub const WANTED: &str = "capture_wanted";
pub const LOST: &str = "capture_lost";
pub const RING: &str = "capture_ring";
pub const PROGRAM: &str = "natgw_captured";

/// What is known of a packet. Behind it in the ring buffer: `came_kept` bytes of the frame as it
/// came, then `left_kept` bytes of it as it left.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Head {
    /// Nanoseconds of `CLOCK_MONOTONIC` when it came, and when its way ended.
    pub came: u64,
    pub ended: u64,
    /// Index of the interface that it came from.
    pub ingress: u32,
    /// Slot of the interface that it leaves by, plus one; 0: it does not.
    pub out: u32,
    /// See [`Verdict::code`](crate::verdict::Verdict::code).
    pub verdict: u32,
    /// `XDP_PASS` and so on; on tc `TC_ACT_SHOT` and so on.
    pub action: u32,
    /// Not 0: from the private side.
    pub from_source: u32,
    /// Not 0: it comes back from the slow path. See `stage::hold::returned`.
    pub returned: u32,
    /// Bytes of the frame, and of it those that are kept.
    pub came_length: u32,
    pub came_kept: u32,
    pub left_length: u32,
    pub left_kept: u32,
    /// That the kernel will make of this one (GSO); 1: it is one.
    pub packets: u32,
    pub reserved: u32,
}

/// A packet while it is on its way, one for each CPU.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Packet {
    pub head: Head,
    pub frames: Frames,
}

/// Both frames, the second one behind what is kept of the first. More than they need: the whole is
/// as large as an element of a per-CPU map may be, so that a masked size is within it.
pub type Frames = [u8; 32 * 1024 - size_of::<Head>()];
/// More than [`SNAP`]; so many bytes and [`SNAP`] more have room.
pub const KEPT_MASK: usize = 0x3fff;

/// What is brought; the daemon looks more closely.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Wanted {
    /// Bytes of a frame to keep, up to [`SNAP`].
    pub snap: u32,
    /// Not 0: only what is dropped.
    pub drops: u32,
    /// IP protocol; 0: every one, and what is no IPv4.
    pub protocol: u32,
    /// Each of these that is not zero has to be sender or receiver, before or after translation.
    pub addresses: [Ip4; 3],
}

impl Wanted {
    /// Whether there is nothing to compare in a packet.
    #[inline(always)]
    pub fn is_everything(&self) -> bool {
        self.protocol == 0 && self.addresses == [Ip4::UNSPECIFIED; 3]
    }
}

const _: () = assert!(size_of::<Head>() == 64);
const _: () = assert!(size_of::<Packet>() == 32 * 1024);
const _: () = assert!(SNAP <= KEPT_MASK && KEPT_MASK + SNAP <= size_of::<Frames>());
