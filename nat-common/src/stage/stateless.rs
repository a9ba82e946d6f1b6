//! One-to-one mappings: addresses change, nothing is remembered, every protocol passes.

use crate::{
    env::{Env, Packet},
    flow::Tuple,
    net::proto,
    parse::{Fragment, Kind, Parse, Parsed, parse},
    rules::{OneToOneKey, role},
    stage::{Side, Step, deliver},
    translate::Rewrite,
    verdict::{DropReason, Verdict},
    wire::Udp,
};

/// The addresses after translation by one-to-one mappings, and whether any applied.
#[inline(always)]
pub fn mapped<E: Env>(env: &E, parsed: &Parsed, from_inside: bool) -> Option<Tuple> {
    let mut tuple = parsed.key.tuple;
    let mut any = false;
    if from_inside
        && let Some(mapping) = env.one_to_one(&OneToOneKey { address: tuple.src, inbound: 0 })
    {
        tuple.src = mapping.address;
        any = true;
    }
    if let Some(mapping) = env.one_to_one(&OneToOneKey { address: tuple.dst, inbound: 1 }) {
        tuple.dst = mapping.address;
        any = true;
    }
    any.then_some(tuple)
}

#[inline(always)]
pub fn run<P: Packet, E: Env>(packet: &mut P, env: &E) -> Step {
    let Some(interface) = env.interface(packet.ingress()).copied() else {
        return Step::host(Side::Destination, 0);
    };
    let parsed = match parse(packet, interface.realm) {
        Parse::Ipv4(parsed) => parsed,
        Parse::Broken(reason) => return Step::drop(reason, Side::of(interface.role), 0),
        _ => return Step::host(Side::of(interface.role), 0),
    };
    let inside = interface.role & role::PRIVATE != 0
        && (env.snat_rule(parsed.ip.src).is_some()
            || env.one_to_one(&OneToOneKey { address: parsed.ip.src, inbound: 0 }).is_some());
    let side = if inside { Side::Source } else { Side::Destination };
    if parsed.ip.src.is_never_translated() {
        return Step::drop(DropReason::Martian, side, parsed.length);
    }
    match parsed.fault {
        None | Some(DropReason::ProtocolUnsupported | DropReason::IcmpUnsupported) => {}
        Some(reason) => return Step::drop(reason, side, parsed.length),
    }
    if parsed.kind == Kind::Error {
        // The stage of errors found no way to translate what it quotes, so the quote could show
        // the private address.
        return Step::drop(DropReason::IcmpNoSession, side, parsed.length);
    }
    let Some(tuple) = mapped(env, &parsed, inside) else {
        return Step::drop(DropReason::Unsolicited, side, parsed.length);
    };
    if inside && tuple.src == parsed.ip.src {
        // A host without a mapping of its own towards another's: its address must not show.
        return Step::drop(DropReason::HairpinOff, side, parsed.length);
    }
    let query = deliver::query(packet, &parsed, &tuple);
    let route = env.route(&query);
    let hop = match deliver::hop_of(env, &parsed, route, side) {
        Ok(hop) => hop,
        Err(step) => return step,
    };
    let verdict = match env.interface_in(hop.next.slot()) {
        Some(egress) if !inside || egress.role == role::PRIVATE => Verdict::ToSource,
        _ => Verdict::ToDestination,
    };
    let mut rewrite = Rewrite::new(parsed.ip.protocol, parsed.key.tuple, tuple);
    let whole = parsed.fragment != Fragment::Later;
    if whole && parsed.kind == Kind::Other && has_pseudo_header(parsed.ip.protocol) {
        // UDP-Lite and DCCP keep their checksum where UDP does.
        let change = rewrite.addresses();
        if packet.correct(parsed.l4 + Udp::CHECKSUM, change, change, false).is_none() {
            return Step::drop(DropReason::MalformedIp, side, parsed.length);
        }
        rewrite.l4_delta = 0;
    }
    // Nobody else has the public address, so identifications stay, and with them the order in
    // which fragments come does not matter.
    match deliver::send::<P, E, true, false>(packet, env, &parsed, &rewrite, hop, side, verdict) {
        Ok(step) | Err(step) => step,
    }
}

#[inline(always)]
const fn has_pseudo_header(protocol: u8) -> bool {
    matches!(protocol, proto::UDPLITE | proto::DCCP)
}
