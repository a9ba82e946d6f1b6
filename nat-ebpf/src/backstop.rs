//! The backstop: the guard of interfaces that nobody knows yet. The guards on tc hang on interfaces
//! and are gone with them; this netfilter program hangs on the host's IPv4 forwarding and output
//! (Linux 6.4). What would leave by an interface that is neither the gateway's nor one of
//! `other_links` is judged as the guard of a public interface would judge it. On all that are known
//! the guards on tc are in charge, so that nothing is judged twice.
//!
//! The kernel gives the program two of its own structures (`bpf_nf_ctx`); where their fields are,
//! the loader finds in the kernel's types. They are read by a helper that copes with any address,
//! because an offset that is known at the start only is none that the verifier would follow.

use aya_ebpf::{Global, helpers::bpf_probe_read_kernel};
use nat_common::{
    env::Tables as _,
    net::proto,
    wire::{Icmp, Ipv4},
};

use crate::{
    guard::{count_stopped, is_error, is_protected, tells_of_protected},
    tables::Kernel,
};

/// Offsets in bytes: `nf_hook_state.hook` and `out`, `net_device.ifindex`, `sk_buff.data`, `len`,
/// `data_len`.
#[unsafe(no_mangle)]
static HOOK_AT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OUT_AT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OUT_IFINDEX_AT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static DATA_AT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static LEN_AT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static DATA_LEN_AT: Global<u32> = Global::new(0);

const DROP: i32 = 0;
const ACCEPT: i32 = 1;
/// Number of the hook through which the kernel's own forwarding goes (NF_INET_FORWARD).
const FORWARD: u8 = 2;

/// `struct bpf_nf_ctx`: addresses of an `nf_hook_state` and an `sk_buff`.
#[repr(C)]
struct Context {
    state: u64,
    packet: u64,
}

/// aya knows no netfilter programs. The section is one that it can read; the loader says what the
/// program really is.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/natgw_backstop")]
extern "C" fn natgw_backstop(context: *const Context) -> i32 {
    // SAFETY: the context is the one the kernel gave; both fields are read whole.
    let (state, packet) = unsafe { ((*context).state, (*context).packet) };
    let kernel = Kernel::OUTSIDE;
    let out = read::<u64>(state, OUT_AT.load());
    let out = out.and_then(|device| read::<u32>(device, OUT_IFINDEX_AT.load()));
    if out.is_some_and(|it| kernel.interface(it).is_some() || kernel.other_link(it)) {
        return ACCEPT;
    }
    let forwarded = read::<u8>(state, HOOK_AT.load()) == Some(FORWARD);
    if is_to_be_stopped(&kernel, packet, forwarded) {
        count_stopped();
        return DROP;
    }
    ACCEPT
}

#[inline(always)]
fn is_to_be_stopped(kernel: &Kernel, packet: u64, forwarded: bool) -> bool {
    // At these hooks the data begins with the IP header.
    let data = read::<u64>(packet, DATA_AT.load());
    let Some((data, ip)) = data.and_then(|data| Some((data, read::<Ipv4>(data, 0)?))) else {
        return forwarded;
    };
    if forwarded && is_protected(kernel, ip.src, ip.dst) {
        return true;
    }
    if ip.protocol != proto::ICMP {
        return false;
    }
    let l4 = u32::from(ip.header_len() as u8 & 0x3c);
    let quote = l4 + size_of::<Icmp>() as u32;
    let end = quote + size_of::<Ipv4>() as u32;
    let (Some(len), Some(paged)) =
        (read::<u32>(packet, LEN_AT.load()), read::<u32>(packet, DATA_LEN_AT.load()))
    else {
        return true;
    };
    if len < end {
        return false;
    }
    if len.wrapping_sub(paged) < end {
        // Not in one piece, which no error of the host's own is: it cannot be looked at here.
        return true;
    }
    let (Some(icmp), Some(quoted)) = (read::<Icmp>(data, l4), read::<Ipv4>(data, quote)) else {
        return true;
    };
    is_error(icmp.kind) && tells_of_protected(kernel, &ip, &quoted)
}

#[inline(always)]
fn read<T>(base: u64, offset: u32) -> Option<T> {
    // SAFETY: the helper copes with any address, and any bytes are a value of the types read here.
    unsafe { bpf_probe_read_kernel((base + u64::from(offset)) as *const T) }.ok()
}
