//! The guard: no packet with a protected source leaves a public interface, and no ICMP error about
//! one. It judges only what goes through the host's own stack: what XDP translates never meets it,
//! and what the tc programs translate has a mark. It stays when the daemon is gone, and fails closed.

use aya_ebpf::{bindings::TC_ACT_SHOT, programs::TcContext};
use nat_common::{
    env::{RouteQuery, Tables as _},
    maps::SENT_MARK,
    net::{Ip4, Port, proto},
    rules::{OneToOneKey, host_address},
    wire::{ETHERTYPE_IPV4, ETHERTYPE_VLAN, Icmp, Ipv4},
};

use crate::{maps::COUNTERS, network::Egress, tables::Kernel};

/// Lets the packet go on to the next program or the interface (TC_ACT_UNSPEC, TCX_NEXT).
const NEXT: i32 = -1;

/// On the egress of public interfaces.
#[inline(always)]
pub(crate) fn outer(ctx: &TcContext) -> i32 {
    // SAFETY: the context is the one the kernel gave.
    let skb = unsafe { &*ctx.skb.skb };
    let forwarded = skb.ingress_ifindex != 0;
    if !may_be_ipv4(ctx) {
        return NEXT;
    }
    if skb.mark == SENT_MARK {
        // Translated by the tc programs; like what XDP redirects, it is not the guard's business.
        ctx.set_mark(0);
        return NEXT;
    }
    let Ok(l3) = network_offset(ctx) else { return stop() };
    let Some(l3) = l3 else { return NEXT };
    let Ok(ip) = ctx.load::<Ipv4>(l3) else {
        // Not even a header: the host's own stack makes no such thing.
        return if forwarded { stop() } else { NEXT };
    };
    let kernel = Kernel { ctx: ctx.skb.skb.cast() };
    if forwarded && is_protected(&kernel, ip.src, ip.dst) {
        return stop();
    }
    if ip.protocol == proto::ICMP && quotes_protected(ctx, &kernel, l3, &ip) {
        return stop();
    }
    NEXT
}

/// On the ingress of private interfaces, behind whatever translates there: the outer guard hangs
/// on an interface, and is gone with it. What is protected goes on to the host's forwarding only
/// where the way out is known: a public interface with its guard, a private one, or one that is
/// none of the gateway's.
#[inline(always)]
pub(crate) fn inner(ctx: &TcContext) -> i32 {
    if !may_be_ipv4(ctx) {
        return NEXT;
    }
    let Ok(Some(l3)) = network_offset(ctx) else { return NEXT };
    // Without a whole header it is nothing that could be forwarded.
    let Ok(ip) = ctx.load::<Ipv4>(l3) else { return NEXT };
    let kernel = Kernel { ctx: ctx.skb.skb.cast() };
    if !is_protected(&kernel, ip.src, ip.dst) || is_for_many(ip.dst) {
        return NEXT;
    }
    let (sport, dport) = ports(ctx, l3, &ip);
    let query = RouteQuery {
        src: ip.src,
        dst: ip.dst,
        sport,
        dport,
        protocol: ip.protocol,
        tos: ip.tos,
        length: 0,
        // SAFETY: the context is the one the kernel gave.
        ingress: unsafe { &*ctx.skb.skb }.ifindex,
    };
    match kernel.egress(&query) {
        Egress::Interface(ifindex)
            if kernel.interface(ifindex).is_some() || kernel.other_link(ifindex) =>
        {
            NEXT
        }
        Egress::None => NEXT,
        Egress::Interface(_) | Egress::Unknown => stop(),
    }
}

#[inline(always)]
fn may_be_ipv4(ctx: &TcContext) -> bool {
    // SAFETY: the context is the one the kernel gave.
    let protocol = unsafe { &*ctx.skb.skb }.protocol as u16;
    protocol == u16::from_ne_bytes(ETHERTYPE_IPV4) || protocol == u16::from_ne_bytes(ETHERTYPE_VLAN)
}

/// Broadcast and multicast: the stack does not ask its routes about them.
#[inline(always)]
const fn is_for_many(destination: Ip4) -> bool {
    destination.octets()[0] & 0xf0 == 0xe0 || destination.raw() == u32::MAX
}

/// Of source and destination, for routing rules that look at ports; zero where there are none.
#[inline(always)]
fn ports(ctx: &TcContext, l3: usize, ip: &Ipv4) -> (Port, Port) {
    let has_ports = matches!(ip.protocol, proto::TCP | proto::UDP)
        && ip.fragment_bits() & Ipv4::OFFSET_MASK == 0;
    if !has_ports {
        return (Port::ZERO, Port::ZERO);
    }
    // Each by itself: the stack takes aligned ones only.
    let l4 = l3 + (ip.header_len() & 0x3c);
    let port = |at| ctx.load::<u16>(at).map_or(Port::ZERO, Port::from_raw);
    (port(l4), port(l4 + 2))
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
pub(crate) fn is_protected(kernel: &Kernel, source: Ip4, destination: Ip4) -> bool {
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
    if !is_error(icmp.kind) {
        return false;
    }
    let Ok(quoted) = ctx.load::<Ipv4>(l4 + size_of::<Icmp>()) else { return false };
    tells_of_protected(kernel, ip, &quoted)
}

#[inline(always)]
pub(crate) const fn is_error(kind: u8) -> bool {
    matches!(
        kind,
        Icmp::UNREACHABLE
            | Icmp::SOURCE_QUENCH
            | Icmp::REDIRECT
            | Icmp::TIME_EXCEEDED
            | Icmp::PARAMETER_PROBLEM
    )
}

/// Of an ICMP error and what it quotes.
#[inline(always)]
pub(crate) fn tells_of_protected(kernel: &Kernel, ip: &Ipv4, quoted: &Ipv4) -> bool {
    let inside = |address, peer| is_protected(kernel, address, peer);
    (inside(quoted.src, quoted.dst) || inside(quoted.dst, quoted.src))
        && !inside(ip.dst, Ip4::UNSPECIFIED)
}

#[inline(always)]
fn stop() -> i32 {
    count_stopped();
    TC_ACT_SHOT
}

#[inline(always)]
pub(crate) fn count_stopped() {
    if let Some(counters) = COUNTERS.get_ptr_mut(0) {
        // SAFETY: the value is this CPU's own.
        unsafe { (*counters).packets_guarded += 1 };
    }
}
