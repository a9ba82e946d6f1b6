//! Socket buffers, to be shown: a GSO packet whole, as the stack has it.

use aya_ebpf::{
    bindings::TC_ACT_SHOT, helpers::bpf_skb_load_bytes, macros::classifier, programs::TcContext,
};

use crate::{frame::Frame, mode};

#[inline(always)]
pub(crate) fn length(frame: &Frame) -> u32 {
    frame.ctx.len()
}

/// Copies the first bytes of the frame, also from its pages. False: it has not so many.
///
/// # Safety
/// There is room for `len` bytes.
#[inline(always)]
pub(crate) unsafe fn load(frame: &Frame, to: *mut u8, len: u32) -> bool {
    // SAFETY: the caller's; the helper checks the frame's end.
    unsafe { bpf_skb_load_bytes(frame.ctx.skb.skb.cast(), 0, to.cast(), len) == 0 }
}

#[classifier]
pub(crate) fn natgw_captured(ctx: TcContext) -> i32 {
    mode::show(&Frame::new(ctx)).map_or(TC_ACT_SHOT, |action| action as i32)
}
