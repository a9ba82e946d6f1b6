//! `natgw capture`: from what the dataplane shows of packets to a pcapng file.

mod headers;
mod pcapng;
mod words;

pub use headers::{Headers, headers};
pub(crate) use pcapng::INBOUND;
pub use pcapng::{Action, Interface, Pcapng, Shown};
pub use words::{Roles, is_meant, join, verdict};

use bytemuck::Zeroable as _;
use nat_common::capture::{Head, SNAP};

/// A packet as the dataplane has shown it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured<'a> {
    pub head: Head,
    /// Beginning of the frame as it came.
    pub came: &'a [u8],
    /// Beginning of the frame as it left; empty where it did not.
    pub left: &'a [u8],
}

impl<'a> Captured<'a> {
    /// Nothing where the bytes are none of the dataplane's.
    #[must_use]
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let (head_bytes, frames) = bytes.split_at_checked(size_of::<Head>())?;
        let mut head = Head::zeroed();
        bytemuck::bytes_of_mut(&mut head).copy_from_slice(head_bytes);
        let (came, left) = (head.came_kept as usize, head.left_kept as usize);
        if came > SNAP || left > SNAP {
            return None;
        }
        Some(Self { head, came: frames.get(..came)?, left: frames.get(came..came + left)? })
    }
}
