//! The least that a gateway can do, piece by piece: what a figure of the bench cannot go below on the machine
//! that it was measured on. They translate nothing.

use aya_ebpf::{
    bindings::{BPF_NOEXIST, xdp_action},
    macros::{map, xdp},
    maps::{Array, DevMap, HashMap},
    programs::XdpContext,
};

use crate::{SETTINGS, frame};

/// One cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u64; 8]);

/// Key and value of a session's entry, by their sizes.
type Key = [u32; 4];
type Value = [u64; 8];

/// Where bare redirection sends: the gateway's other interface.
#[map]
static FLOOR_PORT: DevMap = DevMap::with_max_entries(1, 0);
/// What `touch` and `recall` look at; as many as the bench asks for when it loads the object.
#[map]
static LINES: Array<Line> = Array::with_max_entries(1, 0);
/// What `enter` fills; as large as the bench asks for.
#[map]
static ENTRIES: HashMap<Key, Value> = HashMap::with_max_entries(1, 0);

/// New MAC addresses, and out of the other interface.
#[inline(always)]
fn redirect(ctx: &XdpContext) -> u32 {
    let (data, data_end) = (ctx.data(), ctx.data_end());
    let Some(settings) = SETTINGS.get(0) else { return xdp_action::XDP_ABORTED };
    if data + 14 > data_end {
        return xdp_action::XDP_PASS;
    }
    // SAFETY: the two addresses end at byte 12, inside the packet as checked above.
    unsafe {
        *(data as *mut u32) = settings.floor_ethernet[0];
        *((data + 4) as *mut u32) = settings.floor_ethernet[1];
        *((data + 8) as *mut u32) = settings.floor_ethernet[2];
    }
    FLOOR_PORT.redirect(0, 0).unwrap_or(xdp_action::XDP_ABORTED)
}

/// What every gateway in XDP does.
///
/// Declared `frags` like a gateway for jumbo frames, so that `rebuild` can call it too.
#[xdp(frags)]
fn floor(ctx: XdpContext) -> u32 {
    redirect(&ctx)
}

/// A translator that does nothing: what `rebuild` and the tail call cost by themselves.
#[xdp(frags)]
fn stub(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_REDIRECT
}

/// Source, destination, ports, each as it stands in the packet.
#[inline(always)]
fn ends(ctx: &XdpContext) -> Option<[u32; 3]> {
    let (data, data_end) = (ctx.data(), ctx.data_end());
    if data + frame::HEADERS_LENGTH > data_end {
        return None;
    }
    // SAFETY: inside the headers, checked above.
    unsafe {
        Some([
            *((data + 26) as *const u32),
            *((data + 30) as *const u32),
            *((data + 34) as *const u32),
        ])
    }
}

/// Adds to the line of a packet's flow, found by its addresses and ports. `None`: there is none.
#[inline(always)]
fn remember(ctx: &XdpContext) -> Option<()> {
    let [source, destination, ports] = ends(ctx)?.map(u64::from);
    let settings = SETTINGS.get(0)?;
    let low = (source | destination << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (low ^ low >> 32).wrapping_add(ports).wrapping_mul(0xbb67_ae85_84ca_a73b);
    let line = LINES.get_ptr_mut((mixed >> 32) as u32 & settings.lines.wrapping_sub(1))?;
    // SAFETY: one CPU runs this, and nothing else uses the map.
    let words = unsafe { &mut (*line).0 };
    words[7] = words[7].wrapping_add(words[0] + 1);
    Some(())
}

/// What a translator does that remembers something of each flow.
#[xdp(frags)]
fn touch(ctx: XdpContext) -> u32 {
    match remember(&ctx) {
        Some(()) => xdp_action::XDP_REDIRECT,
        None => xdp_action::XDP_ABORTED,
    }
}

/// The same, and sends the packet.
#[xdp(frags)]
fn recall(ctx: XdpContext) -> u32 {
    match remember(&ctx) {
        Some(()) => redirect(&ctx),
        None => xdp_action::XDP_ABORTED,
    }
}

/// What a translator does whose sessions are entries of a hash map, one for each direction: enters both, and
/// sends the packet. It chooses no port: that two hosts have different ones is said by the hosts themselves.
#[xdp(frags)]
fn enter(ctx: XdpContext) -> u32 {
    let (Some([source, destination, ports]), Some(settings)) = (ends(&ctx), SETTINGS.get(0)) else {
        return xdp_action::XDP_ABORTED;
    };
    let inbound: Key = [destination, settings.public, ports.rotate_left(16), source];
    let outbound: Key = [source, destination, ports, 0];
    let value: Value = [1, 0, 0, 0, 0, 0, 0, 0];
    for key in [inbound, outbound] {
        if ENTRIES.insert(key, value, u64::from(BPF_NOEXIST)).is_err() {
            return xdp_action::XDP_ABORTED;
        }
    }
    redirect(&ctx)
}
