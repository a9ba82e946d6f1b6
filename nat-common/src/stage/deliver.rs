//! The way out: route, TTL, MTU, rewrite.

use crate::{
    env::{Env, Packet, Route, RouteQuery},
    event::{Event, kind},
    flow::{FlowKey, Tuple},
    maps::{INTERFACE_SLOTS, stage},
    net::{Ip4, Port},
    parse::{Fragment, Kind, Parsed, tcp_flags},
    rules::control,
    session::{NextHop, Path, Session},
    stage::{
        Answer, FragmentEntry, FragmentKey, Hop, Side, Step, direction,
        hold::{self, Label, why},
    },
    translate::{self, Rewrite},
    verdict::{DropReason, Verdict},
    wire::Ipv4,
};

/// Header bytes of IPv4 and TCP without options: what an MTU leaves off a segment.
const TCP_IP_HEADERS: u16 = 40;

/// Asks for the way to `to`, for the packet as it will be.
#[inline(always)]
pub fn query<P: Packet>(packet: &P, parsed: &Parsed, to: &Tuple) -> RouteQuery {
    RouteQuery {
        src: parsed.ip.src,
        dst: to.dst,
        sport: parsed.key.tuple.sport,
        dport: to.dport,
        protocol: parsed.ip.protocol,
        tos: parsed.ip.tos,
        length: parsed.largest(packet),
        ingress: packet.ingress(),
    }
}

/// Tells the daemon which neighbour to resolve, and has it keep the packet meanwhile. With the
/// daemon gone, the kernel is made to look for the neighbour: its own forwarding of an untranslated
/// packet asks for the address before it meets the guard, where that packet ends.
#[inline(always)]
pub fn no_neighbour<E: Env>(
    env: &E,
    ifindex: u32,
    gateway: Ip4,
    key: FlowKey,
    side: Side,
    bytes: u16,
) -> Step {
    let now = env.now();
    if matches!(side, Side::Source) && env.control().is_some_and(|c| c.is_alone(now)) {
        return Step::host(side, bytes);
    }
    env.event(&Event {
        kind: kind::NEIGHBOUR,
        ifindex,
        address: gateway,
        port: Port::ZERO,
        protocol: 0,
        reason: 0,
        key,
    });
    let label =
        Label { why: why::NEIGHBOUR, gateway, argument: ifindex.to_ne_bytes(), ..Label::default() };
    hold::ask(env, label, side, bytes, DropReason::NoNeighbour)
}

/// The packet does not fit: its sender is told (RFC 1191), or the packet has to be fragmented.
#[inline(always)]
pub fn too_big<E: Env>(env: &E, parsed: &Parsed, mtu: u16, side: Side, source: Ip4) -> Step {
    if parsed.ip.fragment_bits() & Ipv4::DONT_FRAGMENT == 0 {
        let label =
            Label { why: why::TOO_BIG, argument: u32::from(mtu).to_ne_bytes(), ..Label::default() };
        return hold::ask(env, label, side, parsed.length, DropReason::FragmentationNeeded);
    }
    ask(env, Answer::FragmentationNeeded, u32::from(mtu), source)
}

#[inline(always)]
pub fn ttl_exceeded<E: Env>(env: &E, source: Ip4) -> Step {
    ask(env, Answer::TtlExceeded, 0, source)
}

/// Leaves the request for the answer stage.
#[inline(always)]
pub fn ask<E: Env>(env: &E, answer: Answer, mtu: u32, source: Ip4) -> Step {
    env.handoff(|handoff| {
        handoff.answer = answer as u32;
        handoff.mtu = mtu;
        handoff.source = source;
    });
    Step::Go(stage::ANSWER)
}

/// The source of an ICMP error that the gateway makes about this packet: towards the outside the
/// public address that it was sent to, towards the inside (zero) the receiving interface's.
#[inline(always)]
pub const fn answer_source(parsed: &Parsed, side: Side) -> Ip4 {
    match side {
        Side::Source => Ip4::UNSPECIFIED,
        Side::Destination => parsed.ip.dst,
    }
}

/// Route → hop; everything else is a step of its own.
#[inline(always)]
pub fn hop_of<E: Env>(env: &E, parsed: &Parsed, route: Route, side: Side) -> Result<Hop, Step> {
    match route {
        Route::Hop { ifindex, mac, mtu } => {
            let Some(interface) = env.interface(ifindex) else {
                return Err(Step::drop(DropReason::NoRoute, side, parsed.length));
            };
            let slot = (ifindex & (INTERFACE_SLOTS - 1)) as u16;
            let device = interface.mtu;
            let mtu = if mtu != 0 && u32::from(mtu) < device { u32::from(mtu) } else { device };
            Ok(Hop {
                next: NextHop::new(mac.0, slot),
                mtu: if mtu > 0xffff { 0xffff } else { mtu as u16 },
            })
        }
        Route::NoNeighbour { ifindex, gateway } => {
            Err(no_neighbour(env, ifindex, gateway, parsed.key, side, parsed.length))
        }
        Route::TooBig { mtu } => Err(too_big(env, parsed, mtu, side, answer_source(parsed, side))),
        Route::Local => Err(Step::drop(DropReason::NoRoute, side, parsed.length)),
    }
}

/// Sends a packet on its session's way; resolves the next hop if the cached one is out of date.
#[inline(always)]
pub fn session<P: Packet, E: Env>(packet: &mut P, env: &E, parsed: &Parsed, key: &FlowKey) -> Step {
    let now = env.now();
    let (generation, epoch) = match env.control() {
        Some(control) => (control.generation as u16, control.current_epoch(now)),
        None => return Step::drop(DropReason::Internal, Side::Source, parsed.length),
    };
    let Some(entry) = env.session(key) else {
        return Step::drop(DropReason::Internal, Side::Source, parsed.length);
    };
    let (verdict, side) = direction(entry.flags);
    let rewrite =
        Rewrite { tuple: entry.tuple, ip_delta: entry.ip_delta, l4_delta: entry.l4_delta };
    let path = Path(entry.path.get());
    let hop = if entry.epoch.get() == epoch && path.generation() == generation {
        Hop { next: NextHop(entry.next_hop.get()), mtu: path.mtu() }
    } else {
        let query = query(packet, parsed, &rewrite.tuple);
        let route = env.route(&query);
        match hop_of(env, parsed, route, side) {
            Ok(hop) => {
                if let Some(entry) = env.session(key) {
                    remember(entry, hop, epoch, generation);
                }
                hop
            }
            Err(step) => return step,
        }
    };
    match send::<P, E, true, true>(packet, env, parsed, &rewrite, hop, side, verdict) {
        Ok(step) => {
            if let Some(entry) = env.session(key) {
                let (packets, bytes) = parsed.weight(packet);
                entry.count::<E>(packets, bytes);
            }
            step
        }
        Err(step) => step,
    }
}

/// Caches a next hop in a session. The epoch is written last, and read first.
#[inline(always)]
pub fn remember(entry: &Session, hop: Hop, epoch: u32, generation: u16) {
    entry.next_hop.set(hop.next.0);
    entry.path.set(Path::new(hop.mtu, generation).0);
    entry.epoch.set(epoch);
}

/// TTL, MTU, MSS (if `CLAMPS`: it takes much of the verifier's time), identification of fragments
/// (if `RENUMBERS`), rewrite. `Err`: not sent.
#[inline(always)]
pub fn send<P: Packet, E: Env, const CLAMPS: bool, const RENUMBERS: bool>(
    packet: &mut P,
    env: &E,
    parsed: &Parsed,
    rewrite: &Rewrite,
    hop: Hop,
    side: Side,
    verdict: Verdict,
) -> Result<Step, Step> {
    let lost = Err(Step::drop(DropReason::Internal, side, parsed.length));
    if parsed.ip.ttl <= 1 {
        return Err(ttl_exceeded(env, answer_source(parsed, side)));
    }
    if parsed.largest(packet) > hop.mtu {
        return Err(too_big(env, parsed, hop.mtu, side, answer_source(parsed, side)));
    }
    let Some(egress) = env.interface_in(hop.next.slot()).copied() else { return lost };
    if CLAMPS
        && parsed.kind == Kind::Tcp
        && parsed.fragment == Fragment::Whole
        && parsed.tcp_flags & tcp_flags::SYN != 0
    {
        let mss = env.control().map_or(0, |control| control.mss);
        let limit = match mss {
            0 => u16::MAX,
            control::MSS_AUTO => hop.mtu.saturating_sub(TCP_IP_HEADERS),
            mss => mss as u16,
        };
        if limit != u16::MAX && translate::clamp_mss(packet, parsed, limit).is_none() {
            return lost;
        }
    }
    if RENUMBERS
        && parsed.fragment != Fragment::Whole
        && let Some(entry) = env.fragment(&FragmentKey::of(parsed))
    {
        if translate::set_identification(packet, parsed.l3, entry.new_id).is_none() {
            return lost;
        }
        if parsed.fragment == Fragment::First {
            let Tuple { src, dst, .. } = rewrite.tuple;
            let sent = FragmentKey::sent(src, dst, entry.new_id, parsed.ip.protocol);
            let back = FragmentEntry { tuple: rewrite.tuple, new_id: parsed.ip.id, ..entry };
            env.fragment_insert(&sent, &back);
        }
    }
    if translate::apply(packet, parsed, rewrite).is_none()
        || translate::set_macs(packet, egress.mac, hop.next).is_none()
    {
        return lost;
    }
    Ok(Step::sent(verdict, side, parsed.length, hop.next.slot()))
}
