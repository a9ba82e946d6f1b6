//! The packet trait over an XDP frame. Together with the map lookups in `tables`, and with `reach`, this is
//! where the dataplane's `unsafe` lives.

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_md,
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use nat_common::{checksum::Sum, env::Packet, net::Mac, stage::request};

pub(crate) struct Frame {
    pub(crate) ctx: XdpContext,
    /// Interface that the frame came from, at first.
    pub(crate) ingress: u32,
    /// Not 0: it has been in the slow path since, and is now on a device that is not its own. See
    /// `hold::returned`.
    pub(crate) returned: u32,
}

impl Frame {
    #[inline(always)]
    pub(crate) fn new(ctx: XdpContext) -> Self {
        let ingress = ctx.ingress_ifindex() as u32;
        Self { ctx, ingress, returned: 0 }
    }

    /// An element of a list that starts at `base`; for lists that are longer than headers are.
    #[inline(always)]
    pub(crate) fn list_entry<T: bytemuck::Pod>(&self, base: usize, index: usize) -> Option<T> {
        let start = self.ctx.data() + base + (index & (request::BATCH - 1)) * size_of::<T>();
        if start + size_of::<T>() > self.ctx.data_end() {
            return None;
        }
        // SAFETY: checked against the end of the frame; `T` takes any bits.
        Some(unsafe { (start as *const T).read_unaligned() })
    }

    /// Writes such an element.
    #[inline(always)]
    pub(crate) fn set_list_entry(&self, base: usize, index: usize, value: u32) {
        let start = self.ctx.data() + base + (index & (request::BATCH - 1)) * size_of::<u32>();
        if start + size_of::<u32>() > self.ctx.data_end() {
            return;
        }
        // SAFETY: checked against the end of the frame.
        unsafe { (start as *mut u32).write_unaligned(value) };
    }

    /// Addresses the frame to the host itself. What is too short to have an address has none.
    #[inline(always)]
    pub(crate) fn address_to(&self, mac: Mac) {
        let start = self.ctx.data();
        if start + size_of::<Mac>() <= self.ctx.data_end() {
            // SAFETY: checked against the end of the frame; `Mac` has alignment 1.
            unsafe { *(start as *mut Mac) = mac };
        }
    }

    #[inline(always)]
    pub(crate) fn md(&self) -> *mut xdp_md {
        self.ctx.as_ptr().cast()
    }
}

impl Packet for Frame {
    #[inline(always)]
    fn get<T: bytemuck::Pod>(&mut self, offset: usize) -> Option<&mut T> {
        self.header(offset)
    }

    #[inline(always)]
    fn sum(&mut self, offset: usize, len: usize) -> Option<Sum> {
        self.sum_of(offset, len)
    }

    #[inline(always)]
    fn len(&mut self) -> u32 {
        // SAFETY: the context is the one the kernel gave.
        unsafe { bpf_xdp_get_buff_len(self.md()) as u32 }
    }

    #[inline(always)]
    fn holds(&mut self, len: usize) -> bool {
        // Only frames with more than one buffer (jumbo) pay for the helper.
        // By difference: before 6.10 the verifier loses the bounds of what was swapped to host
        // order, and lets no such number near a packet pointer.
        self.ctx.data_end() - self.ctx.data() >= len || self.len() as usize >= len
    }

    #[inline(always)]
    fn at_hand(&mut self) -> usize {
        self.ctx.data_end() - self.ctx.data()
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.ingress
    }

    #[inline(always)]
    fn extend(&mut self, front: usize) -> bool {
        // SAFETY: the helper checks its arguments; all packet pointers are refetched after.
        unsafe { bpf_xdp_adjust_head(self.md(), -(front as i32)) == 0 }
    }

    #[inline(always)]
    fn strip(&mut self, front: usize) -> bool {
        // SAFETY: the helper checks its arguments; all packet pointers are refetched after.
        unsafe { bpf_xdp_adjust_head(self.md(), front as i32) == 0 }
    }

    #[inline(always)]
    fn reshape(&mut self, front: usize, len: usize) -> bool {
        let have = self.len() as i32;
        // SAFETY: both helpers check their arguments; all packet pointers are refetched after.
        unsafe {
            bpf_xdp_adjust_tail(self.md(), len as i32 - have) == 0
                && (front == 0 || bpf_xdp_adjust_head(self.md(), -(front as i32)) == 0)
        }
    }
}
