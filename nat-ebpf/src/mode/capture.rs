//! `natgw capture`: the dataplane itself, over the same maps, in its place while a capture runs.
//! Beside what it always does it shows every packet as it came and as it left, and why. For both
//! hooks: what they do each in its way is in `hook`.
//!
//! A packet is gathered in a map of this CPU's while it is on its way, and a program of its own at
//! the end of that way sends it on, so that the stages stay as large as they are.

use aya_ebpf::{
    helpers::{bpf_ktime_get_ns, generated::bpf_ringbuf_output},
    macros::map,
    maps::{Array, PerCpuArray, RingBuf},
};
use nat_common::{
    capture::{Frames, Head, KEPT_MASK, Packet, RING_BYTES, SNAP, Wanted},
    env::Packet as _,
    maps::{INTERFACE_SLOTS, stage},
    stage::{Out, Outcome, Side},
    verdict::Verdict,
};

pub(crate) use crate::tables::Kernel as Env;
use crate::{
    frame::Frame,
    hook::{length, load},
    maps::STAGES,
};

#[map(name = "capture_packet")]
static PACKET: PerCpuArray<Packet> = PerCpuArray::with_max_entries(1, 0);
#[map(name = "capture_wanted")]
static WANTED: Array<Wanted> = Array::with_max_entries(1, 0);
#[map(name = "capture_lost")]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
#[map(name = "capture_ring")]
static RING: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// Whether packets count.
pub(crate) const COUNTS: bool = true;

/// Packets are shown at the end of the general way, which comes to the same as the one of plain packets.
pub(crate) const PLAIN: bool = false;

#[inline(always)]
pub(crate) fn received(frame: &Frame) {
    let (Some(packet), Some(wanted)) = (PACKET.get_ptr_mut(0), WANTED.get(0)) else { return };
    // SAFETY: the value is this CPU's own, and programs of one CPU do not nest.
    let Packet { head, frames } = unsafe { &mut *packet };
    // Here and not at the end: the stages have little room on their stacks.
    head.ingress = frame.ingress;
    head.returned = frame.returned;
    head.packets = frame.segments().map_or(1, |segments| segments.packets);
    // SAFETY: no arguments.
    head.came = unsafe { bpf_ktime_get_ns() };
    (head.came_length, head.came_kept) = keep(frame, frames, 0, wanted);
}

/// Copies the beginning of the frame to `at`; returns its length, and how much was kept.
#[inline(always)]
fn keep(frame: &Frame, frames: &mut Frames, at: usize, wanted: &Wanted) -> (u32, u32) {
    let length = length(frame);
    // By what comes before it: kernels before 6.10 do not see that a number has bounds from a check
    // of its predecessor, to which the compiler would fold the two checks that it takes else.
    let before = core::hint::black_box(u64::from(length.min(wanted.snap)).wrapping_sub(1));
    if before >= SNAP as u64 {
        return (length, 0);
    }
    let kept = before as u32 + 1;
    // SAFETY: `at` is masked, and there is room for `SNAP` bytes behind it.
    let loaded = unsafe { load(frame, frames.as_mut_ptr().add(at), kept) };
    (length, if loaded { kept } else { 0 })
}

#[inline(always)]
pub(crate) fn goes_on(_stage: u32) {}

#[inline(always)]
pub(crate) fn ended(frame: &Frame, outcome: &Outcome, verdict: Verdict) {
    let Some(packet) = PACKET.get_ptr_mut(0) else { return };
    // SAFETY: as above.
    let head = unsafe { &mut (*packet).head };
    head.verdict = verdict.code();
    head.from_source = (outcome.side == Side::Source) as u32;
    head.out = match outcome.out {
        // Not as it leaves: as it waits.
        _ if verdict == Verdict::Held => 0,
        Out::None => 0,
        Out::Slot(slot) => u32::from(slot) + 1,
        Out::Back => (frame.ingress & (INTERFACE_SLOTS - 1)) + 1,
    };
}

/// The end of the stage: the packet is shown, and then what `action` says becomes of it.
#[inline(always)]
pub(crate) fn leave(frame: &Frame, action: u32) -> u32 {
    if let Some(packet) = PACKET.get_ptr_mut(0) {
        // SAFETY: as above.
        unsafe { (*packet).head.action = action };
        // SAFETY: a program of the same type, loaded together with this one.
        unsafe { STAGES.tail_call(&frame.ctx, stage::CAPTURED) };
    }
    // Packets went round too often: this one is not shown.
    action
}

/// Shows the packet, and returns what becomes of it.
#[inline(always)]
pub(crate) fn show(frame: &Frame) -> Option<u32> {
    let (packet, wanted) = (PACKET.get_ptr_mut(0)?, WANTED.get(0)?);
    // SAFETY: as above.
    let Packet { head, frames } = unsafe { &mut *packet };
    let action = head.action;
    // SAFETY: no arguments.
    head.ended = unsafe { bpf_ktime_get_ns() };
    (head.left_length, head.left_kept) = (0, 0);
    if head.out != 0 && !Verdict::is_drop(head.verdict) {
        let at = kept(&head.came_kept);
        (head.left_length, head.left_kept) = keep(frame, frames, at, wanted);
    }
    if is_wanted(head, frames, wanted) {
        let size = size_of::<Head>() + kept(&head.came_kept) + kept(&head.left_kept);
        let size = (size & (size_of::<Packet>() - 1)) as u64;
        // SAFETY: so many bytes of the value are there.
        let full = unsafe {
            bpf_ringbuf_output((&raw const RING).cast_mut().cast(), packet.cast(), size, 0) != 0
        };
        if full && let Some(lost) = LOST.get_ptr_mut(0) {
            // SAFETY: as above.
            unsafe { *lost += 1 };
        }
    }
    Some(action)
}

/// A number of bytes, read and masked wherever it is used: kernels before 6.10 lose the bounds that
/// a check gave to a number as soon as the compiler takes another copy of it.
#[inline(always)]
fn kept(number: &u32) -> usize {
    // SAFETY: a reference is valid to read.
    (unsafe { core::ptr::read_volatile(number) }) as usize & KEPT_MASK
}

#[inline(always)]
fn is_wanted(head: &Head, frames: &Frames, wanted: &Wanted) -> bool {
    const IPV4: [u8; 2] = [8, 0];
    if wanted.drops != 0 && !Verdict::is_drop(head.verdict) {
        return false;
    }
    if wanted.is_everything() {
        return true;
    }
    if head.came_kept < 34
        || read::<2>(frames, 12) != IPV4
        || wanted.protocol != 0 && u32::from(read::<1>(frames, 23)[0]) != wanted.protocol
    {
        return false;
    }
    let before = [read::<4>(frames, 26), read::<4>(frames, 30)];
    let after = match head.left_kept {
        0..34 => before,
        _ => {
            let left = kept(&head.came_kept);
            [read::<4>(frames, left + 26), read::<4>(frames, left + 30)]
        }
    };
    wanted.addresses.iter().all(|address| {
        let address = address.octets();
        address == [0; 4] || before.contains(&address) || after.contains(&address)
    })
}

/// `at` is a place of [`kept`], or little beyond it.
#[inline(always)]
fn read<const N: usize>(frames: &Frames, at: usize) -> [u8; N] {
    // SAFETY: there is room for another frame behind that.
    unsafe { frames.as_ptr().add(at).cast::<[u8; N]>().read() }
}
