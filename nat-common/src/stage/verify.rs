//! The checksum of ICMP messages, where that decides something (RFC 5508 REQ-3): of an error, the
//! header that it quotes included, and of the query that opens a session.
//!
//! Later queries of a session are translated by difference, which keeps a wrong checksum wrong;
//! so are messages too long to be summed up here, and those in fragments.

use crate::{
    env::{Env, Packet},
    maps::stage,
    parse::{Fragment, Kind, Parse, Parsed, parse},
    stage::{Side, Step},
    verdict::DropReason,
    wire::{Icmp, Ipv4},
};

/// The stage that opens a session for this packet.
#[inline(always)]
pub const fn opening(parsed: &Parsed) -> u32 {
    match (parsed.kind, parsed.fragment) {
        (Kind::QueryRequest, Fragment::Whole) => stage::VERIFY,
        _ => stage::OPEN,
    }
}

#[inline(always)]
pub fn run<P: Packet, E: Env>(packet: &mut P, env: &E) -> Step {
    let (role, realm) = match env.interface(packet.ingress()) {
        Some(interface) => (interface.role, interface.realm),
        None => return Step::host(Side::Destination, 0),
    };
    let parsed = match parse(packet, realm) {
        Parse::Ipv4(parsed) => parsed,
        Parse::Broken(reason) => return Step::drop(reason, Side::of(role), 0),
        _ => return Step::host(Side::of(role), 0),
    };
    let error = parsed.kind == Kind::Error;
    let header = if error { quoted_header(packet, &parsed) } else { 0 };
    let quote = parsed.l4 + size_of::<Icmp>();
    let wrong = (header != 0 && is_wrong(packet, quote, header))
        || is_wrong(packet, parsed.l4, usize::from(parsed.length) - (parsed.l4 - parsed.l3));
    if error {
        // Whose it is shows in the next stage: a wrong one for the host is the host's to drop.
        env.handoff(|handoff| handoff.wrong = wrong as u32);
        return Step::Go(stage::ERROR);
    }
    if wrong {
        return Step::drop(DropReason::IcmpChecksum, Side::Source, parsed.length);
    }
    Step::Go(stage::OPEN)
}

/// Bytes of the quoted IP header; 0 where it is not all there.
#[inline(always)]
fn quoted_header<P: Packet>(packet: &mut P, parsed: &Parsed) -> usize {
    let quote = parsed.l4 + size_of::<Icmp>();
    let Some(ip) = packet.get::<Ipv4>(quote) else { return 0 };
    let header = ip.header_len();
    if usize::from(parsed.length) < quote + header - parsed.l3 { 0 } else { header }
}

#[inline(always)]
fn is_wrong<P: Packet>(packet: &mut P, offset: usize, len: usize) -> bool {
    packet.sum(offset, len).is_some_and(|sum| !sum.is_valid())
}
