//! Every packet is counted here, once, when its way has ended.

use nat_common::{
    counters::Counters,
    stage::{Side, hold::returned},
    verdict::Verdict,
};

/// `packets` and `bytes`: of IP, as received. `back`: see `hold::returned`.
#[inline(always)]
pub(crate) fn count(
    counters: &mut Counters,
    side: Side,
    verdict: Verdict,
    received: u64,
    bytes: u64,
    back: u32,
) {
    // One more piece of a split packet goes out as bytes only: the packet is counted by its first.
    let packets = if back & returned::EXTRA == 0 { received } else { 0 };
    match side {
        // Counted when it came first.
        _ if back != 0 => counters.packets_released += packets,
        Side::Source => {
            counters.packets_in_from_source += received;
            counters.bytes_in_from_source += bytes;
        }
        Side::Destination => {
            counters.packets_in_from_destination += received;
            counters.bytes_in_from_destination += bytes;
        }
    }
    match verdict {
        Verdict::ToDestination => {
            counters.packets_out_to_destination += packets;
            counters.bytes_out_to_destination += bytes;
        }
        Verdict::ToSource => {
            counters.packets_out_to_source += packets;
            counters.bytes_out_to_source += bytes;
        }
        Verdict::ToHost => counters.packets_to_host += packets,
        Verdict::Answered => counters.packets_answered += packets,
        Verdict::Held => counters.packets_held += packets,
        Verdict::Drop(reason) => counters.drop_some(reason, packets),
    }
}
