//! Frames that an interface refused after a program had let them go: queue full, link down, no
//! XDP transmit resources. The kernel tells of them by tracepoints only, and of all namespaces
//! alike; where the fields are that tell ours from others', the loader finds in the kernel's BTF.

use aya_ebpf::{
    Global, bindings::bpf_map_type::BPF_MAP_TYPE_DEVMAP, helpers::bpf_probe_read_kernel,
    macros::raw_tracepoint, programs::RawTracePointContext,
};
use nat_common::{
    env::Tables as _,
    rules::{Interface, role},
    verdict::DropReason,
};

use crate::tables::Kernel;

/// Offsets in bytes of `net_device.ifindex`, `net_device.nd_net`, `net.net_cookie`.
#[unsafe(no_mangle)]
static IFINDEX_AT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static NETNS_AT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static COOKIE_AT: Global<u32> = Global::new(0);
/// The network namespace that the gateway runs in.
#[unsafe(no_mangle)]
static NETNS_COOKIE: Global<u64> = Global::new(0);

/// `xdp:xdp_devmap_xmit(from, to, sent, drops, err)`: redirected frames, in bulks.
#[raw_tracepoint(tracepoint = "xdp_devmap_xmit")]
pub(crate) fn natgw_xmit(ctx: RawTracePointContext) -> i32 {
    let drops: i32 = ctx.arg(3);
    if drops > 0 {
        refused(ctx.arg(1), drops as u32);
    }
    0
}

/// `xdp:xdp_bulk_tx(dev, sent, drops, err)`: frames sent back where they came from.
#[raw_tracepoint(tracepoint = "xdp_bulk_tx")]
pub(crate) fn natgw_tx(ctx: RawTracePointContext) -> i32 {
    let drops: i32 = ctx.arg(2);
    if drops > 0 {
        refused(ctx.arg(0), drops as u32);
    }
    0
}

/// `xdp:xdp_redirect_err(from, program, target, error, map type, map, index)`: refused before they
/// were queued, because the interface takes no XDP frames or is down.
#[raw_tracepoint(tracepoint = "xdp_redirect_err")]
pub(crate) fn natgw_redirect(ctx: RawTracePointContext) -> i32 {
    let (map_type, slot): (u32, u32) = (ctx.arg(4), ctx.arg(6));
    // By interface index and not by map: what the daemon itself sends.
    if map_type == BPF_MAP_TYPE_DEVMAP
        && is_ours(ctx.arg(0))
        && let Some(&Interface { role, ifindex, .. }) = Kernel::OUTSIDE.interface_in(slot as u16)
        && ifindex != 0
    {
        count(role, 1);
    }
    0
}

#[inline(always)]
fn read<T>(base: u64, offset: u32) -> Option<T> {
    // SAFETY: the helper copes with any address.
    unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const T) }.ok()
}

#[inline(always)]
fn refused(device: u64, frames: u32) {
    if is_ours(device)
        && let Some(ifindex) = read::<u32>(device, IFINDEX_AT.load())
        && let Some(&Interface { role, .. }) = Kernel::OUTSIDE.interface(ifindex)
    {
        count(role, frames);
    }
}

/// Whether a device is in the gateway's namespace.
#[inline(always)]
fn is_ours(device: u64) -> bool {
    let netns = read::<u64>(device, NETNS_AT.load());
    netns.and_then(|netns| read::<u64>(netns, COOKIE_AT.load())) == Some(NETNS_COOKIE.load())
}

#[inline(always)]
fn count(role: u8, frames: u32) {
    let frames = u64::from(frames);
    Kernel::OUTSIDE.counters(|counters| {
        // On an interface that is both sides they are taken from the way out.
        if role & role::PUBLIC != 0 {
            counters.packets_out_to_destination =
                counters.packets_out_to_destination.wrapping_sub(frames);
        } else {
            counters.packets_out_to_source = counters.packets_out_to_source.wrapping_sub(frames);
        }
        if let Some(count) = counters.drops.get_mut(DropReason::EgressFailed as usize) {
            *count = count.wrapping_add(frames);
        }
    });
}
