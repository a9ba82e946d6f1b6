//! The egress guard: no packet with a protected source leaves a public interface, and no ICMP
//! error about one. It sees only what the host's own stack sends; translated packets never meet
//! it. It stays when the daemon is gone, and fails closed.

use aya_ebpf::{bindings::TC_ACT_SHOT, programs::TcContext};
use nat_common::{
    env::Tables as _,
    net::{Ip4, proto},
    rules::{OneToOneKey, host_address},
    wire::{ETHERTYPE_IPV4, ETHERTYPE_VLAN, Icmp, Ipv4},
};

use crate::{maps::COUNTERS, tables::Kernel};

/// Lets the packet go on to the next program or the interface (TC_ACT_UNSPEC, TCX_NEXT).
const NEXT: i32 = -1;

#[inline(always)]
pub(crate) fn run(ctx: &TcContext) -> i32 {
    // SAFETY: the context is the one the kernel gave.
    let skb = unsafe { &*ctx.skb.skb };
    if skb.protocol as u16 != u16::from_ne_bytes(ETHERTYPE_IPV4)
        && skb.protocol as u16 != u16::from_ne_bytes(ETHERTYPE_VLAN)
    {
        return NEXT;
    }
    let Ok(l3) = network_offset(ctx) else { return stop() };
    let Some(l3) = l3 else { return NEXT };
    let Ok(ip) = ctx.load::<Ipv4>(l3) else {
        // Not even a header: the host's own stack makes no such thing.
        return if skb.ingress_ifindex != 0 { stop() } else { NEXT };
    };
    let kernel = Kernel { ctx: ctx.skb.skb.cast() };
    let forwarded = skb.ingress_ifindex != 0;
    if forwarded && is_protected(&kernel, ip.src, ip.dst) {
        return stop();
    }
    if ip.protocol == proto::ICMP && quotes_protected(ctx, &kernel, l3, &ip) {
        return stop();
    }
    NEXT
}

/// Offset of the IPv4 header; `None` if it is another protocol behind a tag.
#[inline(always)]
fn network_offset(ctx: &TcContext) -> Result<Option<usize>, i64> {
    const ETHERTYPE: usize = 12;
    let ethertype = ctx.load::<[u8; 2]>(ETHERTYPE)?;
    if ethertype == ETHERTYPE_IPV4 {
        return Ok(Some(ETHERTYPE + 2));
    }
    if ethertype == ETHERTYPE_VLAN && ctx.load::<[u8; 2]>(ETHERTYPE + 4)? == ETHERTYPE_IPV4 {
        return Ok(Some(ETHERTYPE + 6));
    }
    Ok(None)
}

/// A source that a rule covers, that is no address of the host, to a destination that is not
/// exempt.
#[inline(always)]
fn is_protected(kernel: &Kernel, source: Ip4, destination: Ip4) -> bool {
    if kernel.host_address(source).is_some_and(|a| a.flags & host_address::OWNED != 0) {
        return false;
    }
    if kernel.one_to_one(&OneToOneKey { address: source, inbound: 0 }).is_some() {
        return true;
    }
    kernel.snat_rule(source).is_some_and(|rule| !kernel.is_exempt(rule.rule, destination))
}

/// An ICMP error towards the outside that tells of a protected address. Errors to protected
/// hosts themselves (one interface for both sides) are theirs to have.
#[inline(always)]
fn quotes_protected(ctx: &TcContext, kernel: &Kernel, l3: usize, ip: &Ipv4) -> bool {
    let l4 = l3 + (ip.header_len() & 0x3c);
    let Ok(icmp) = ctx.load::<Icmp>(l4) else { return false };
    if !matches!(
        icmp.kind,
        Icmp::UNREACHABLE
            | Icmp::SOURCE_QUENCH
            | Icmp::REDIRECT
            | Icmp::TIME_EXCEEDED
            | Icmp::PARAMETER_PROBLEM
    ) {
        return false;
    }
    let Ok(quoted) = ctx.load::<Ipv4>(l4 + size_of::<Icmp>()) else { return false };
    let inside = |address, peer| is_protected(kernel, address, peer);
    (inside(quoted.src, quoted.dst) || inside(quoted.dst, quoted.src))
        && !inside(ip.dst, Ip4::UNSPECIFIED)
}

#[inline(always)]
fn stop() -> i32 {
    if let Some(counters) = COUNTERS.get_ptr_mut(0) {
        // SAFETY: the value is this CPU's own.
        unsafe { (*counters).packets_guarded += 1 };
    }
    TC_ACT_SHOT
}
