//! Frames of XDP, to be shown.

use aya_ebpf::{
    bindings::xdp_action::XDP_ABORTED,
    helpers::generated::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    macros::xdp,
    programs::XdpContext,
};

use crate::{frame::Frame, mode};

#[inline(always)]
pub(crate) fn length(frame: &Frame) -> u32 {
    // SAFETY: the context is the one the kernel gave.
    (unsafe { bpf_xdp_get_buff_len(frame.md()) }) as u32
}

/// Copies the first bytes of the frame. False: it has not so many.
///
/// # Safety
/// There is room for `len` bytes.
#[inline(always)]
pub(crate) unsafe fn load(frame: &Frame, to: *mut u8, len: u32) -> bool {
    // SAFETY: the caller's; the helper checks the frame's end.
    unsafe { bpf_xdp_load_bytes(frame.md(), 0, to.cast(), len) == 0 }
}

#[xdp(frags)]
pub(crate) fn natgw_captured(ctx: XdpContext) -> u32 {
    mode::show(&Frame::new(ctx)).unwrap_or(XDP_ABORTED)
}
