//! A port towards a busy destination: exact to the last one.

use crate::{
    env::{Env, Packet},
    maps::stage,
    net::Port,
    pair,
    parse::Parsed,
    port::Take,
    rules::{Address, address},
    session::protocol_index,
    stage::{
        Side, Step, bind,
        open::{self, Attempt, Endpoint, Plan},
        seek::{self, Wanted},
    },
    verdict::DropReason,
};

/// Mark in the handoff's flags: every port is taken, they are shared now. Above the session flags.
pub const SHARED: u16 = 1 << 15;

/// Ports tried before all are looked at. Those that are taken by sessions older than the tracking are
/// learnt on the way.
const TRIES: u32 = 4;
/// Rounds of one packet, those of `SEEK` included, each a tail call: the kernel allows 33 in all, and
/// where ports may be shared there are two searches.
const ROUNDS: u32 = 24;
const ROUNDS_OF_TWO: u32 = 12;

#[inline(always)]
pub fn run<P: Packet, E: Env>(packet: &mut P, env: &E) -> Step {
    let Some((parsed, plan)) = open::plan(packet, env) else { return open::LOST };
    search::<E, false>(env, &parsed, &plan, packet.ingress())
}

/// Searches the next address of the pool. `BINDS`: a binding is reserved, else a session.
#[inline(always)]
pub fn search<E: Env, const BINDS: bool>(
    env: &E,
    parsed: &Parsed,
    plan: &Plan<'_>,
    ingress: u32,
) -> Step {
    let again = if BINDS { stage::BIND } else { stage::OPEN_BUSY };
    let Some((paired, unlisted, member, tried, rounds, found)) = env.handoff(|handoff| {
        let places = (handoff.slot, handoff.unlisted, handoff.member);
        let before =
            (places.0, places.1, places.2, handoff.tried, handoff.rounds, handoff.wanted.port);
        handoff.wanted.port = 0;
        handoff.member = handoff.member.wrapping_add(1);
        handoff.tried = handoff.tried.wrapping_add(1);
        handoff.rounds = handoff.rounds.wrapping_add(1);
        before
    }) else {
        return Step::drop(DropReason::Internal, Side::Source, parsed.length);
    };
    let members = plan.pool.members & 0xffff;
    let limit = if plan.pool.fall_over == 0 { 1 } else { members + (unlisted & 1) };
    let most = if plan.pool.overload == 0 { ROUNDS } else { ROUNDS_OF_TWO };
    if members == 0 || tried >= limit || rounds >= most {
        if BINDS && plan.pool.overload != 0 && members != 0 {
            // Ports may be shared between flows to different remote endpoints (RFC 7857
            // section 3): these sessions have no binding.
            env.handoff(|handoff| {
                handoff.member = handoff.member.wrapping_sub(handoff.tried);
                handoff.tried = 0;
                handoff.rounds = 0;
                handoff.flags |= SHARED;
            });
            return Step::Go(stage::OPEN_BUSY);
        }
        return open::exhausted(env, plan, parsed);
    }
    let first = plan.pool.members >> 16;
    let slot =
        if tried == 0 { paired } else { env.pool_member(first + member % members).unwrap_or(0) };
    let Some(candidate) = env.address(slot) else { return Step::Go(again) };
    if candidate.flags & address::ACTIVE == 0 {
        return Step::Go(again);
    }
    // What was found for it, or its own.
    let first_port = match (Wanted { port: found, ..Wanted::default() }).found() {
        Some(port) => port,
        None if BINDS && tried == 0 => plan.key.tuple.sport,
        None => Port::ZERO,
    };
    if first_port != Port::ZERO
        && let Some(step) = attempt::<E, BINDS>(env, parsed, plan, candidate, slot, first_port)
    {
        return step;
    }

    let key = open::busy_key(plan, candidate.address);
    if env.busy(&key).is_none()
        && let Some(template) = candidate.templates.get(protocol_index(plan.key.protocol))
    {
        env.busy_insert(&key, *template);
    }
    if let Some(control) = env.control()
        && let Some(pair) = pair::find(env, control, parsed, ingress, plan.now)
    {
        pair.set_busy();
    }
    let mut random = plan.random;
    let mut full = false;
    for _ in 0..TRIES {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let Some(set) = env.busy(&key) else { break };
        let port = match set.take::<E>(random >> 8) {
            Take::Port(port) => port,
            Take::Again => continue,
            Take::Full => {
                full = true;
                break;
            }
        };
        // Not free after all: the bit stays set until that session ends.
        let Some(step) = attempt::<E, BINDS>(env, parsed, plan, candidate, slot, port) else {
            continue;
        };
        if !matches!(step, Step::Go(_))
            && let Some(set) = env.busy(&key)
        {
            set.clear::<E>(port);
        }
        return step;
    }
    // All that was tried is taken, or all are marked: there may be one all the same.
    let due = match (env.busy(&key), env.control()) {
        (Some(set), Some(control)) => !full || seek::budget(set, control, plan.now) != 0,
        _ => true,
    };
    if !due {
        return Step::Go(again);
    }
    let binds = if BINDS { Wanted::BINDS } else { 0 };
    env.handoff(|handoff| {
        handoff.member = member;
        handoff.tried = tried;
        handoff.wanted = open::wanted(plan, candidate, 0, binds);
    });
    Step::Go(stage::SEEK)
}

/// Tries one port. `None`: it is taken.
#[inline(always)]
fn attempt<E: Env, const BINDS: bool>(
    env: &E,
    parsed: &Parsed,
    plan: &Plan<'_>,
    candidate: &Address,
    slot: u32,
    port: Port,
) -> Option<Step> {
    let end = Endpoint { address: candidate.address, port, slot };
    if !open::offers(candidate, port.get()) || open::is_claimed(env, plan, candidate, end.port) {
        return None;
    }
    if BINDS {
        return match bind::reserve(env, plan, end) {
            Ok(()) | Err(Attempt::Raced) => Some(Step::Go(stage::JOIN)),
            Err(Attempt::TableFull) => Some(open::refused(env, plan, parsed, Attempt::TableFull)),
            Err(_) => None,
        };
    }
    match open::insert(env, plan, end, 0) {
        Attempt::Opened(_) => Some(Step::Go(stage::SEND)),
        Attempt::Raced => Some(Step::Go(stage::HIT)),
        Attempt::Taken => None,
        attempt => Some(open::refused(env, plan, parsed, attempt)),
    }
}
