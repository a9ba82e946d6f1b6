//! Counters of the dataplane: one per-CPU value, summed by the controller.

use core::hint::black_box;

use bytemuck::{Pod, Zeroable};

use crate::{session::flags, verdict::DropReason};

/// As many as a reason's byte can say: kernels before 6.10 forget what else is known about it, and
/// want every byte to be a valid index.
const DROPS: usize = 256;

/// Per-CPU totals since the maps were created. Units: frames, and bytes of IP packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Counters {
    pub packets_in_from_source: u64,
    pub bytes_in_from_source: u64,
    pub packets_in_from_destination: u64,
    pub bytes_in_from_destination: u64,
    pub packets_out_to_destination: u64,
    pub bytes_out_to_destination: u64,
    pub packets_out_to_source: u64,
    pub bytes_out_to_source: u64,
    pub packets_to_host: u64,
    pub packets_answered: u64,
    /// Handed to the slow path.
    pub packets_held: u64,
    /// Came back from the slow path, or given up there; waiting now is the difference.
    pub packets_released: u64,
    /// Forwarded packets that the guard stopped.
    pub packets_guarded: u64,
    pub connection_attempts: u64,
    pub connections_established: u64,
    pub sessions_created: u64,
    pub sessions_ended: u64,
    pub idle_timeouts: u64,
    /// TCP sessions that reached and left the established state; the gauge is the difference.
    pub established_entered: u64,
    pub established_left: u64,
    /// New sessions that found no free port, whether dropped silently or answered.
    pub port_allocation_errors: u64,
    /// Records of the flow log that found no room in the ring.
    pub records_lost: u64,
    /// Of the inbound and the outbound direction: packets and bytes that the first look has translated. They
    /// were received and sent, and [`Counters::settle`] counts them so.
    pub translated: [[u64; 2]; 2],
    pub reserved: [u64; 6],
    pub drops: [u64; DROPS],
}

impl Counters {
    /// Room for reasons still to come.
    pub const DROPS: usize = DROPS;

    #[inline(always)]
    pub fn drop_one(&mut self, reason: DropReason) {
        self.drop_some(reason, 1);
    }

    #[inline(always)]
    pub fn drop_some(&mut self, reason: DropReason, packets: u64) {
        // Opaque, so that the mask stays: of a byte that was kept on the stack Linux 6.1 may know
        // less than that it is one.
        let index = black_box(usize::from(reason as u8)) & (DROPS - 1);
        if let Some(counter) = self.drops.get_mut(index) {
            *counter = counter.wrapping_add(packets);
        }
    }

    #[inline(always)]
    fn translated_by(&mut self, session_flags: u32) -> Option<&mut [u64; 2]> {
        self.translated.get_mut((session_flags & u32::from(flags::OUTBOUND)) as usize)
    }

    /// Counts a packet that the first look has translated by a session with these flags; without a branch,
    /// for which way the next packet goes is anyone's guess.
    #[inline(always)]
    pub fn translate(&mut self, session_flags: u32, bytes: u32) {
        if let Some([packets, total]) = self.translated_by(session_flags) {
            *packets = packets.wrapping_add(1);
            *total = total.wrapping_add(u64::from(bytes));
        }
    }

    /// The opposite, for a packet that could not be sent: it is counted again, as whatever became of it.
    #[inline(always)]
    pub fn take_back(&mut self, session_flags: u32, bytes: u32) {
        if let Some([packets, total]) = self.translated_by(session_flags) {
            *packets = packets.wrapping_sub(1);
            *total = total.wrapping_sub(u64::from(bytes));
        }
    }

    /// Counts what was translated as received and sent.
    pub fn settle(&mut self) {
        let [inbound, outbound] = core::mem::take(&mut self.translated);
        for (total, add) in [
            (&mut self.packets_in_from_destination, inbound[0]),
            (&mut self.bytes_in_from_destination, inbound[1]),
            (&mut self.packets_out_to_source, inbound[0]),
            (&mut self.bytes_out_to_source, inbound[1]),
            (&mut self.packets_in_from_source, outbound[0]),
            (&mut self.bytes_in_from_source, outbound[1]),
            (&mut self.packets_out_to_destination, outbound[0]),
            (&mut self.bytes_out_to_destination, outbound[1]),
        ] {
            *total = total.wrapping_add(add);
        }
    }

    /// Adds another CPU's values.
    pub fn merge(&mut self, other: &Self) {
        let sum: &mut [u64] = bytemuck::cast_slice_mut(bytemuck::bytes_of_mut(self));
        let other: &[u64] = bytemuck::cast_slice(bytemuck::bytes_of(other));
        for (sum, add) in sum.iter_mut().zip(other) {
            *sum = sum.wrapping_add(*add);
        }
    }
}
