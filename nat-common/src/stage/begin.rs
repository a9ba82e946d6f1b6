//! The first packet of a session from inside, where nothing about it is new: its two hosts are known to be translated
//! ([`crate::pair`]), by a pool without limits whose ports are free or tracked. It opens the session and
//! sends the packet, in one stage. Whatever else there may be to a packet is left to `classify` and
//! the stages behind it, which come to the same.
//!
//! Only whole packets come here, UDP or a SYN, that the first look (`stage/plain.rs`) knows to have no session.

use crate::{
    agenda::Note,
    answer,
    checksum::Sum,
    env::{Env, Packet},
    maps::stage,
    net::Port,
    pair::{self, Pair},
    parse::{Fragment, Kind, Parse, Parsed, parse, tcp_flags},
    port::Take,
    refusal,
    rules::{Control, Pool, pool},
    session::{State, Word, flags},
    stage::{
        Hop, Side, Step, deliver, direction,
        open::{self, Attempt, Endpoint, Plan},
    },
    wire::{Ipv4, Tcp},
};

/// Where the general way for such a packet begins.
const GENERAL: Step = Step::Go(stage::CLASSIFY);

#[inline(always)]
pub fn run<P: Packet, E: Env>(packet: &mut P, env: &E) -> Step {
    let ingress = packet.ingress();
    let Some(interface) = env.interface(ingress) else {
        return Step::host(Side::Destination, 0);
    };
    let Parse::Ipv4(parsed) = parse(packet, interface.realm) else { return GENERAL };
    if parsed.ip.dst.is_never_translated() {
        return Step::host(Side::of(interface.role), parsed.length);
    }
    let Some(state) = opens(&parsed) else { return GENERAL };
    let Some(control) = env.control() else { return GENERAL };
    // Refused in this very moment, for want of a port: the first look has asked where nobody is told.
    if refusal::is_answered(env)
        && let Some(slot) = refusal::recall(env, &parsed.key)
    {
        return open::out_of_ports(env, parsed.ip.protocol, parsed.length, slot);
    }
    let now = env.now();
    let Some(pair) = pair::find(env, control, &parsed, ingress, now) else { return GENERAL };
    let Some(rules) = env.pool(pair.pool()) else { return GENERAL };
    if !is_simple(rules) || !is_sound(packet, &parsed, pair.hop()) {
        return GENERAL;
    }
    begin(packet, env, &parsed, control, pair, rules, state, now)
}

/// The state of the session that this packet opens, as far as the packet alone tells.
#[inline(always)]
fn opens(parsed: &Parsed) -> Option<State> {
    if parsed.fault.is_some() || parsed.fragment != Fragment::Whole || parsed.ip.ttl <= 1 {
        return None;
    }
    match parsed.kind {
        Kind::Udp => Some(State::Udp),
        Kind::Tcp if tcp_flags::open(parsed.tcp_flags) => Some(State::TcpOpeningOut),
        _ => None,
    }
}

/// Whether the pool has nothing to be asked before a port is.
#[inline(always)]
const fn is_simple(rules: &Pool) -> bool {
    rules.mapping != pool::ENDPOINT_INDEPENDENT
        && rules.sessions_per_host == 0
        && rules.new_sessions_per_second_per_host == 0
        && rules.ifindex == 0
}

/// As [`classify::may_open`](super::classify::may_open), which says what is wrong.
#[inline(always)]
fn is_sound<P: Packet>(packet: &mut P, parsed: &Parsed, hop: Hop) -> bool {
    parsed.key.tuple.sport != Port::ZERO
        && parsed.key.tuple.dport != Port::ZERO
        && parsed.largest(packet) <= hop.mtu
        && header_is_valid(packet, parsed)
        && answer::looks_partial(packet, parsed).is_none()
}

/// Whether the header has no options and a right checksum: without a loop, which would multiply what the
/// verifier walks through.
#[inline(always)]
fn header_is_valid<P: Packet>(packet: &mut P, parsed: &Parsed) -> bool {
    if parsed.l4 != parsed.l3 + Ipv4::MIN_LEN {
        return false;
    }
    let Some([a, b, c, d, e]) = packet.get::<[[u8; 4]; 5]>(parsed.l3).copied() else {
        return false;
    };
    Sum::ZERO.add4(a).add4(b).add4(c).add4(d).add4(e).is_valid()
}

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined; each was at hand already")]
fn begin<P: Packet, E: Env>(
    packet: &mut P,
    env: &E,
    parsed: &Parsed,
    control: &Control,
    pair: &Pair,
    rules: &Pool,
    state: State,
    now: u32,
) -> Step {
    let (packets, bytes) = parsed.weight(packet);
    let hop = pair.hop();
    let mut plan = Plan {
        key: parsed.key,
        target: parsed.ip.dst,
        target_port: parsed.key.tuple.dport,
        flags: flags::OUTBOUND,
        pool_id: pair.pool(),
        mapping: rules.mapping,
        pool: rules,
        host: None,
        state,
        now,
        epoch: control.epoch,
        generation: control.generation as u16,
        random: 0,
        packets,
        bytes,
    };
    let members = rules.members & 0xffff;
    if members == 0 {
        return GENERAL;
    }
    plan.host = env.host_or_new(&open::host_key(&plan));
    let (member, choice, slot) = open::paired(env, &plan, members);
    let Some(candidate) = env.address(slot) else { return GENERAL };
    // What the stages behind this want to know, should it come to nothing here.
    let Some(turn) = env.handoff(|handoff| {
        handoff.pool = plan.pool_id;
        handoff.hop = hop.next.0;
        handoff.mtu = u32::from(hop.mtu);
        handoff.target = plan.target;
        handoff.target_port = plan.target_port;
        handoff.flags = u16::from(plan.flags);
        handoff.tried = 0;
        handoff.turn = handoff.turn.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        handoff.turn
    }) else {
        return GENERAL;
    };
    // Tells an entry from an earlier one in its place; ports are chosen by better chance.
    plan.random = turn ^ now;

    let own = parsed.key.tuple.sport;
    let key = open::busy_key(&plan, candidate.address);
    let mut port = own;
    let mut tracked = None;
    if pair.is_busy()
        && let Some(set) = env.busy(&key)
    {
        tracked = Some(set);
        env.handoff(|handoff| {
            handoff.slot = slot;
            let unlisted = u32::from(slot != choice);
            handoff.unlisted = unlisted;
            handoff.member = if unlisted == 0 { member } else { member.wrapping_add(members - 1) };
            handoff.rounds = 0;
            handoff.wanted.port = 0;
        });
        if !set.mark::<E>(own) {
            port = match set.take::<E>(env.random() >> 8) {
                Take::Port(port) => port,
                Take::Again | Take::Full => return Step::Go(stage::OPEN_BUSY),
            };
        }
    }
    let end = Endpoint { address: candidate.address, port, slot };
    if !open::offers(candidate, port.get()) || open::is_claimed(env, &plan, candidate, port) {
        // A port that is not given out is marked in every template.
        return Step::Go(stage::OPEN);
    }
    match open::insert(env, &plan, end, 0) {
        Attempt::Opened(rewrite) => {
            if parsed.kind == Kind::Tcp && has_options(packet, parsed) {
                // Of which one may be a segment size to clamp.
                return Step::Go(stage::SEND);
            }
            env.note(Note::of(&parsed.key, Word::new(plan.state, plan.random, plan.now)));
            let (verdict, side) = direction(plan.flags);
            match deliver::send::<P, E, false, false>(
                packet, env, parsed, &rewrite, hop, side, verdict,
            ) {
                Ok(step) | Err(step) => step,
            }
        }
        Attempt::Raced => Step::Go(stage::HIT),
        Attempt::Taken if tracked.is_some() => Step::Go(stage::OPEN_BUSY),
        Attempt::Taken => Step::Go(stage::OPEN),
        _ => {
            if let Some(set) = tracked {
                set.clear::<E>(port);
            }
            Step::Go(stage::OPEN)
        }
    }
}

#[inline(always)]
fn has_options<P: Packet>(packet: &mut P, parsed: &Parsed) -> bool {
    packet.get::<Tcp>(parsed.l4).is_none_or(|tcp| tcp.offset >> 4 != 5)
}
