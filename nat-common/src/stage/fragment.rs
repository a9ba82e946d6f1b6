//! Fragments: the first one leaves a note, the others follow it (RFC 4787 REQ-14).

use crate::{
    env::{Env, Packet},
    maps::stage,
    parse::{Fragment, Kind, Parse, Parsed, parse},
    stage::{
        FragmentEntry, FragmentKey, Side, Step, deliver, hit,
        hold::{self, Label, returned, why},
    },
    verdict::DropReason,
    wire::Ipv4,
};

/// A note counts for so many seconds (RFC 6146's FRAGMENT_MIN is 2).
const SECONDS: u32 = 5;

/// A fragment without a session: the slow path keeps it until its first one has come, or has gone
/// on from there, where it may be waiting for a neighbour or to be fragmented itself.
#[inline(always)]
pub fn orphan<E: Env>(env: &E, parsed: &Parsed, side: Side) -> Step {
    let label = Label { why: why::FRAGMENT, ..Label::default() };
    hold::ask(env, label, side, parsed.length, DropReason::FragmentOrphan)
}

#[inline(always)]
pub fn run<P: Packet, E: Env>(packet: &mut P, env: &E) -> Step {
    let (role, realm) = match env.interface(packet.ingress()) {
        Some(interface) => (interface.role, interface.realm),
        None => return Step::host(Side::Destination, 0),
    };
    let side = Side::of(role);
    let mut parsed = match parse(packet, realm) {
        Parse::Ipv4(parsed) => parsed,
        Parse::Broken(reason) => return Step::drop(reason, side, 0),
        _ => return Step::host(side, 0),
    };
    if parsed.fragment == Fragment::First && (parsed.fault.is_some() || parsed.kind == Kind::Error)
    {
        return Step::Go(stage::CLASSIFY);
    }
    let key = FragmentKey::of(&parsed);
    let now = env.now();
    let second = env.control().map_or(1, |control| control.hz);
    let noted = env
        .fragment(&key)
        .filter(|entry| now.wrapping_sub(entry.seen) <= second.wrapping_mul(SECONDS));
    // What comes back for a later reason was judged before, perhaps as one piece with its others.
    let judged = env
        .handoff(|handoff| handoff.returned & returned::WHY > u32::from(why::FRAGMENT))
        .unwrap_or_default();
    let overlap = Step::drop(DropReason::FragmentOverlap, side, parsed.length);
    if parsed.fragment == Fragment::First {
        let tuple = parsed.key.tuple;
        let units = (usize::from(parsed.length).saturating_sub(parsed.l4 - parsed.l3) / 8) as u16;
        match noted {
            Some(entry) if entry.tuple != tuple || (entry.units != units && !judged) => {
                return overlap;
            }
            Some(_) => {}
            None => {
                let new_id = (env.random() as u16).to_ne_bytes();
                env.fragment_insert(&key, &FragmentEntry { tuple, seen: now, new_id, units });
            }
        }
    } else {
        let Some(entry) = noted else { return Step::Go(stage::CLASSIFY) };
        // What the receiver would make of two claims to the same bytes, the headers among them,
        // nobody knows (RFC 1858, RFC 5722).
        if parsed.ip.fragment_bits() & Ipv4::OFFSET_MASK < entry.units && !judged {
            return overlap;
        }
        parsed.key.tuple = entry.tuple;
    }
    let key = parsed.key;
    if env.session(&key).is_none() || !hit::admit(env, &parsed, &key) {
        return Step::Go(stage::CLASSIFY);
    }
    deliver::session(packet, env, &parsed, &key)
}
