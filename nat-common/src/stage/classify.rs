//! Rows 3 to 8 of "What happens to a packet": a packet without a session.

use crate::{
    answer,
    env::{Env, Packet, Route, RouteQuery},
    maps::stage,
    net::Port,
    pair,
    parse::{Fragment, Kind, Parse, Parsed, ip_checksum_is_valid, parse, tcp_flags},
    refusal,
    rules::{OneToOneKey, SnatRule, control, host_address, role},
    session::flags,
    stage::{Answer, Side, Step, deliver, fragment, open, verify},
    verdict::DropReason,
};

#[inline(always)]
pub fn run<P: Packet, E: Env>(packet: &mut P, env: &E) -> Step {
    let Some(interface) = env.interface(packet.ingress()).copied() else {
        return Step::host(Side::Destination, 0);
    };
    let side = Side::of(interface.role);
    let parsed = match parse(packet, interface.realm) {
        Parse::Ipv4(parsed) => parsed,
        Parse::Arp(offset) => return answer::arp(packet, env, offset, &interface),
        Parse::Other => return Step::host(side, 0),
        Parse::Broken(reason) => return Step::drop(reason, side, 0),
    };
    let (source, destination) = (parsed.ip.src, parsed.ip.dst);

    // Refused in this very moment, for want of a port.
    if may_ask(&parsed)
        && let Some(slot) = refusal::recall(env, &parsed.key)
    {
        return open::out_of_ports(env, parsed.ip.protocol, parsed.length, slot);
    }
    // Row 3.
    if env.public_address(destination).is_some() {
        return Step::Go(stage::INBOUND);
    }
    // Row 4, and directed broadcasts of row 1.
    if env.host_address(destination).is_some() {
        return Step::host(side, parsed.length);
    }
    if interface.role & role::PRIVATE == 0 {
        // Row 8. A protected source that arrives from outside is forged; the guard stops it.
        return Step::host(side, parsed.length);
    }
    // Row 5.
    if env.one_to_one(&OneToOneKey { address: source, inbound: 0 }).is_some() {
        return Step::Go(stage::STATELESS);
    }
    // Rows 6 to 8.
    let Some(rule) = env.snat_rule(source) else {
        return Step::host(side, parsed.length);
    };
    let owned = env.host_address(source).is_some_and(|a| a.flags & host_address::OWNED != 0);
    if owned || env.is_exempt(rule.rule, destination) {
        return Step::host(Side::Source, parsed.length);
    }
    outbound(packet, env, &parsed, rule)
}

/// Whether this would get as far as asking for a port.
#[inline(always)]
fn may_ask(parsed: &Parsed) -> bool {
    let opens = match parsed.kind {
        Kind::Udp | Kind::QueryRequest => true,
        Kind::Tcp => tcp_flags::open(parsed.tcp_flags),
        _ => false,
    };
    opens && parsed.fault.is_none() && parsed.fragment != Fragment::Later && parsed.ip.ttl > 1
}

/// Row 7: by a public interface a session, by a private one the host's stack; and so by one that is
/// known to be none of the gateway's (row 8).
#[inline(always)]
fn outbound<P: Packet, E: Env>(packet: &mut P, env: &E, parsed: &Parsed, rule: SnatRule) -> Step {
    let query = deliver::query(packet, parsed, &parsed.key.tuple);
    let route = env.route(&query);
    // What is too big says nothing of the interface: asked again for no size at all.
    let way = match route {
        Route::TooBig { .. } => env.route(&RouteQuery { length: 0, ..query }).ifindex(),
        route => route.ifindex(),
    };
    let Some(egress) = way else {
        return Step::host(Side::Source, parsed.length);
    };
    match env.interface(egress) {
        Some(interface) if interface.role & role::PUBLIC != 0 => {}
        // A public interface made anew has no guard until the daemon has seen it.
        None if !env.other_link(egress) => {
            return Step::drop(DropReason::EgressUnknown, Side::Source, parsed.length);
        }
        _ => return Step::host(Side::Source, parsed.length),
    }
    if let Err(step) = may_open(packet, env, parsed) {
        return step;
    }
    let hop = match deliver::hop_of(env, parsed, route, Side::Source) {
        Ok(hop) => hop,
        Err(step) => return step,
    };
    if parsed.ip.ttl <= 1 {
        return deliver::ttl_exceeded(env, deliver::answer_source(parsed, Side::Source));
    }
    match env.pool(rule.pool) {
        Some(pool) if pool.ifindex != 0 && pool.ifindex != egress => {
            return Step::drop(DropReason::PoolInterface, Side::Source, parsed.length);
        }
        Some(_) => {}
        None => return Step::drop(DropReason::NoAddress, Side::Source, parsed.length),
    }
    env.handoff(|handoff| {
        handoff.pool = rule.pool;
        handoff.hop = hop.next.0;
        handoff.mtu = u32::from(hop.mtu);
        handoff.target = parsed.ip.dst;
        handoff.target_port = parsed.key.tuple.dport;
        handoff.flags = u16::from(flags::OUTBOUND);
        handoff.tried = 0;
    });
    pair::remember(env, parsed, packet.ingress());
    Step::Go(verify::opening(parsed))
}

/// Whether this packet from inside may open a session; else what happens to it.
#[inline(always)]
pub fn may_open<P: Packet, E: Env>(packet: &mut P, env: &E, parsed: &Parsed) -> Result<(), Step> {
    let refuse = |reason| Err(Step::drop(reason, Side::Source, parsed.length));
    if parsed.fragment == Fragment::Later {
        return Err(fragment::orphan(env, parsed, Side::Source));
    }
    if let Some(reason) = parsed.fault {
        return refuse(reason);
    }
    match parsed.kind {
        Kind::Other => return refuse(DropReason::ProtocolUnsupported),
        Kind::Error | Kind::QueryReply => return refuse(DropReason::IcmpNoSession),
        Kind::QueryRequest => {}
        Kind::Tcp | Kind::Udp => {
            if parsed.key.tuple.sport == Port::ZERO || parsed.key.tuple.dport == Port::ZERO {
                return refuse(DropReason::PortZero);
            }
        }
    }
    if parsed.ip.src.is_never_translated() {
        return refuse(DropReason::Martian);
    }
    if !ip_checksum_is_valid(packet, parsed) {
        return refuse(DropReason::MalformedIp);
    }
    if parsed.kind == Kind::Tcp && !tcp_flags::open(parsed.tcp_flags) {
        let resets = env.control().is_some_and(|c| c.flags & control::IDLE_RESET != 0);
        if !resets || parsed.tcp_flags & tcp_flags::RST != 0 {
            return refuse(DropReason::TcpNoSession);
        }
        return Err(deliver::ask(env, Answer::Reset, 0, parsed.ip.dst));
    }
    if answer::has_partial_checksum(packet, parsed) {
        return refuse(DropReason::PartialChecksum);
    }
    Ok(())
}
