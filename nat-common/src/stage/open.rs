//! A new session from inside: an address, a port, and the two entries.

use core::hint::black_box;

use crate::{
    env::{Env, InsertError, Packet},
    event::{Event, kind},
    flow::{FlowKey, Tuple},
    maps::stage,
    net::{Ip4, Port, proto},
    parse::{Kind, Parse, Parsed, parse},
    port::BusyKey,
    refusal,
    rules::{Address, ForwardKey, Pool, address, pool},
    session::{Host, HostKey, Path, SessionImage, State, Word, flags, protocol_index},
    sieve,
    stage::{
        Answer, Handoff, Side, Step, deliver, end, open_busy, report,
        seek::{self, Wanted},
    },
    translate::Rewrite,
    verdict::DropReason,
};

/// Random ports that are tried before the destination's free ports are tracked one by one.
const PROBES: u64 = 1;

/// What came of an attempt to take one port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attempt {
    /// Opened; what becomes of its packets.
    Opened(Rewrite),
    /// The port is taken towards this destination.
    Taken,
    /// Another CPU opened the session of this packet first: use that one.
    Raced,
    /// What would be the answers' entry is there, but it belongs to another session.
    Conflict,
    TableFull,
}

/// A session about to be made.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    pub key: FlowKey,
    pub target: Ip4,
    pub target_port: Port,
    pub flags: u8,
    pub pool_id: u32,
    pub pool: &'a Pool,
    /// The private host, where it was at hand already.
    pub host: Option<&'a Host>,
    /// The pool's; address and port dependent where ports are shared.
    pub mapping: u8,
    pub state: State,
    pub now: u32,
    pub epoch: u32,
    pub generation: u16,
    pub random: u32,
    /// What the first packet counts for.
    pub packets: u32,
    pub bytes: u32,
}

#[inline(always)]
pub fn run<P: Packet, E: Env>(packet: &mut P, env: &E) -> Step {
    let Some((parsed, mut plan)) = plan(packet, env) else { return LOST };
    plan.host = env.host_or_new(&host_key(&plan));
    if let Err(reason) = within_limits(env, &plan) {
        return Step::drop(reason, Side::Source, parsed.length);
    }
    let members = plan.pool.members & 0xffff;
    if members == 0 {
        return Step::drop(DropReason::NoAddress, Side::Source, parsed.length);
    }
    let (member, choice, slot) = paired(env, &plan, members);
    let Some(candidate) = env.address(slot) else {
        return Step::drop(DropReason::NoAddress, Side::Source, parsed.length);
    };
    let mut port = plan.key.tuple.sport.get();
    let mut random = plan.random;
    // Opaque to the compiler, which would unroll the loop beyond the stack, or count it in a way
    // in which kernels before 6.10 see no end; a whole word, whose value they follow.
    let independent = plan.mapping == pool::ENDPOINT_INDEPENDENT;
    let mut probe = black_box(if independent { PROBES + 1 } else { 0 });
    while probe <= PROBES {
        let end = Endpoint { address: candidate.address, port: Port::new(port), slot };
        if offers(candidate, port) && !is_claimed(env, &plan, candidate, end.port) {
            let attempt = insert(env, &plan, end, 0);
            if attempt != Attempt::Taken {
                return finish(env, &parsed, &plan, attempt);
            }
            // Its own port, of a session that has expired: ended there, and the port is free.
            if probe == 0 && has_expired(env, &plan, end) {
                break;
            }
        }
        probe = black_box(probe + 1);
        if probe == 1 && env.busy(&busy_key(&plan, candidate.address)).is_some() {
            break;
        }
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        match nth_port(candidate, random) {
            Some(next) => port = next,
            None => break,
        }
    }
    let unlisted = u32::from(slot != choice);
    let own = probe == 0 && !independent;
    env.handoff(|handoff| {
        handoff.slot = slot;
        handoff.unlisted = unlisted;
        // One before its own where that is still to come.
        handoff.member = if unlisted == 0 { member } else { member.wrapping_add(members - 1) };
        handoff.tried = 0;
        handoff.rounds = 0;
        handoff.wanted.port = 0;
        if own {
            handoff.wanted =
                wanted(&plan, candidate, Wanted::THIS | u32::from(plan.key.tuple.sport.raw()), 0);
        }
    });
    Step::Go(if independent {
        stage::JOIN
    } else if own {
        stage::RECLAIM
    } else {
        stage::OPEN_BUSY
    })
}

/// Whether the port is kept by a session only that is over already.
#[inline(always)]
fn has_expired<E: Env>(env: &E, plan: &Plan<'_>, end: Endpoint) -> bool {
    let tuple =
        Tuple { src: plan.target, dst: end.address, sport: plan.target_port, dport: end.port };
    let Some(control) = env.control() else { return false };
    env.session_word(&plan.key.with(tuple))
        .is_some_and(|word| seek::is_over(control, word, plan.now))
}

/// What `SEEK` is asked: `port` is one with [`Wanted::THIS`], or 0 for any.
#[inline(always)]
pub fn wanted(plan: &Plan<'_>, candidate: &Address, port: u32, binds: u32) -> Wanted {
    Wanted {
        busy: busy_key(plan, candidate.address),
        template: *candidate.templates.get(protocol_index(plan.key.protocol)).unwrap_or(&u32::MAX),
        port,
        terms: u32::from(plan.key.realm) | binds,
    }
}

/// The packet again, and what `classify` left for it. `None`: what was there a stage ago is gone, and
/// the packet is [`LOST`].
#[inline(always)]
pub fn plan<'a, P: Packet, E: Env>(packet: &mut P, env: &'a E) -> Option<(Parsed, Plan<'a>)> {
    let realm = env.interface(packet.ingress())?.realm;
    let Parse::Ipv4(parsed) = parse(packet, realm) else { return None };
    let Handoff { pool, target, target_port, flags, .. } = env.handoff(|handoff| *handoff)?;
    let control = env.control()?;
    let now = env.now();
    let (epoch, generation) = (control.current_epoch(now), control.generation as u16);
    let rules = env.pool(pool)?;
    let state = match parsed.kind {
        Kind::Tcp => State::TcpOpeningOut,
        Kind::Udp => State::Udp,
        _ => State::Icmp,
    };
    let (packets, bytes) = parsed.weight(packet);
    let plan = Plan {
        key: parsed.key,
        target,
        target_port,
        flags: flags as u8,
        pool_id: pool,
        mapping: if flags & open_busy::SHARED != 0 {
            pool::ADDRESS_AND_PORT_DEPENDENT
        } else {
            rules.mapping
        },
        pool: rules,
        host: None,
        state,
        now,
        epoch,
        generation,
        random: env.random(),
        packets,
        bytes,
    };
    Some((parsed, plan))
}

pub const LOST: Step = Step::drop(DropReason::Internal, Side::Source, 0);

/// The limits of the private host, counted when a session is opened.
#[inline(always)]
fn within_limits<E: Env>(env: &E, plan: &Plan<'_>) -> Result<(), DropReason> {
    let limit = plan.pool.sessions_per_host;
    let rate = plan.pool.new_sessions_per_second_per_host;
    if limit == 0 && rate == 0 {
        return Ok(());
    }
    let second = env.control().map_or(1, |control| control.hz);
    let Some(host) = plan.host else { return Ok(()) };
    if limit != 0
        && let Some(count) = host.sessions.get(protocol_index(plan.key.protocol))
        && count.get() >= u64::from(limit)
    {
        return Err(DropReason::SessionLimit);
    }
    if rate != 0 {
        if plan.now.wrapping_sub(host.window.get()) >= second {
            host.window.set(plan.now);
            host.opened.set(0);
        }
        if E::fetch_add(&host.opened, 1) >= u64::from(rate) {
            return Err(DropReason::SessionRate);
        }
    }
    Ok(())
}

#[inline(always)]
pub const fn host_key(plan: &Plan<'_>) -> HostKey {
    HostKey {
        address: plan.key.tuple.src,
        realm: plan.key.realm,
        pool: plan.pool_id as u8,
        zero: [0; 2],
    }
}

/// The public address that the host is paired with (RFC 4787 REQ-2): the one it has, while that
/// takes new sessions; else one chosen by its own address, so that a restart chooses alike.
/// Returns the choice's place in the pool's list, its slot, and the slot to be used.
#[inline(always)]
pub fn paired<E: Env>(env: &E, plan: &Plan<'_>, members: u32) -> (u32, u32, u32) {
    let first = plan.pool.members >> 16;
    // Fibonacci hashing: neighbours in a subnet spread over the list.
    let hash = plan.key.tuple.src.to_u32().wrapping_mul(0x9e37_79b9) >> 16;
    let member = hash % members;
    let choice = env.pool_member(first + member).unwrap_or(0);
    let Some(host) = plan.host else { return (member, choice, choice) };
    let paired = host.address.get();
    if paired == choice.wrapping_add(1) {
        return (member, choice, choice);
    }
    if paired != 0
        && let Some(address) = env.address(paired - 1)
        && address.flags & address::ACTIVE != 0
        && address.pool == plan.pool_id
    {
        return (member, choice, paired - 1);
    }
    host.address.set(choice.wrapping_add(1));
    (member, choice, choice)
}

/// Whether the address gives out this port at all.
#[inline(always)]
pub fn offers(candidate: &Address, port: u16) -> bool {
    candidate.ranges.iter().any(|r| port != 0 && port >= r.first && port <= r.last)
}

/// A port of the address's ranges, uniformly by a random number.
#[inline(always)]
pub fn nth_port(candidate: &Address, random: u32) -> Option<u16> {
    let mut nth = ((u64::from(random) * u64::from(candidate.ports)) >> 32) as u32;
    for range in &candidate.ranges {
        if range.last == 0 {
            break;
        }
        let size = u32::from(range.last) - u32::from(range.first) + 1;
        if nth < size {
            return Some(range.first.wrapping_add(nth as u16));
        }
        nth -= size;
    }
    None
}

/// Where the free ports for this session would be tracked.
#[inline(always)]
pub const fn busy_key(plan: &Plan<'_>, public: Ip4) -> BusyKey {
    if plan.mapping == pool::ENDPOINT_INDEPENDENT {
        return BusyKey {
            public,
            remote: Ip4::UNSPECIFIED,
            port: Port::ZERO,
            protocol: plan.key.protocol,
            zero: 0,
        };
    }
    let port = if plan.key.protocol == proto::ICMP { Port::ZERO } else { plan.target_port };
    BusyKey { public, remote: plan.target, port, protocol: plan.key.protocol, zero: 0 }
}

/// A public endpoint and the slot of its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Endpoint {
    pub address: Ip4,
    pub port: Port,
    pub slot: u32,
}

/// Whether the port belongs to a forward, or to a socket of the host.
#[inline(always)]
pub fn is_claimed<E: Env>(env: &E, plan: &Plan<'_>, candidate: &Address, port: Port) -> bool {
    let protocol = plan.key.protocol;
    if candidate.flags & address::FORWARDS != 0 {
        let key = ForwardKey { address: candidate.address, port, protocol, zero: 0 };
        if env.forward(&key).is_some() {
            return true;
        }
    }
    candidate.flags & address::HOST_OWNED != 0
        && env.socket(&plan.key.with(Tuple {
            src: plan.target,
            dst: candidate.address,
            sport: plan.target_port,
            dport: port,
        }))
}

/// The two entries: inbound first, for that is the reservation; then outbound, with the way out that the
/// handoff has.
#[inline(always)]
pub fn insert<E: Env>(env: &E, plan: &Plan<'_>, end: Endpoint, extra: u8) -> Attempt {
    let old = plan.key.tuple;
    // An ICMP query has its identifier on the asking side only.
    let new =
        Tuple { src: end.address, dst: plan.target, sport: end.port, dport: plan.target_port };
    let inbound_key = plan.key.with(new.reversed());
    let back = Rewrite::new(plan.key.protocol, new.reversed(), old.reversed());
    let inserted = env.draft(|draft| {
        *draft = SessionImage {
            word: Word::new(plan.state, plan.random, plan.now).0,
            packets: 0,
            bytes: 0,
            next_hop: 0,
            epoch: 0,
            created: plan.now,
            tuple: back.tuple,
            ip_delta: back.ip_delta,
            l4_delta: back.l4_delta,
            path: Path::new(0, plan.generation).0,
            address: end.slot as u16,
            flags: extra | (plan.flags & flags::HAIRPIN),
            pool: plan.pool_id as u8,
        };
        sieve::insert(env, &inbound_key, draft)
    });
    match inserted {
        Some(Ok(())) => {}
        Some(Err(InsertError::Exists)) => return Attempt::Taken,
        _ => return Attempt::TableFull,
    }
    // From the key again: the stack has no room to keep it meanwhile.
    let new = black_box(&inbound_key).tuple.reversed();
    let out = Rewrite::new(plan.key.protocol, old, new);
    let (hop, mtu) = env.handoff(|handoff| (handoff.hop, handoff.mtu)).unwrap_or_default();
    let inserted = env.draft(|draft| {
        draft.tuple = out.tuple;
        draft.ip_delta = out.ip_delta;
        draft.l4_delta = out.l4_delta;
        draft.flags = extra | plan.flags | flags::OUTBOUND;
        draft.next_hop = hop;
        draft.path = Path::new(mtu as u16, plan.generation).0;
        draft.epoch = plan.epoch;
        // The packet that goes out by this.
        draft.packets = u64::from(plan.packets);
        draft.bytes = u64::from(plan.bytes);
        sieve::insert(env, &plan.key, draft)
    });
    match inserted.unwrap_or(Err(InsertError::Full)) {
        Ok(()) => {
            opened(env, plan, out.tuple, extra);
            Attempt::Opened(out)
        }
        Err(error) => {
            sieve::remove(env, &inbound_key);
            end::free_port(env, &inbound_key);
            if error == InsertError::Exists { Attempt::Raced } else { Attempt::TableFull }
        }
    }
}

#[inline(always)]
fn opened<E: Env>(env: &E, plan: &Plan<'_>, tuple: Tuple, extra: u8) {
    if let Some(host) = plan.host.or_else(|| env.host(&host_key(plan)))
        && let Some(count) = host.sessions.get(protocol_index(plan.key.protocol))
    {
        E::add(count, 1);
    }
    let flags = extra | plan.flags;
    let lost = report::opened(env, &plan.key, tuple, flags, plan.state, plan.now);
    env.counters(|counters| {
        counters.records_lost = counters.records_lost.wrapping_add(lost);
        counters.sessions_created = counters.sessions_created.wrapping_add(1);
        if plan.state == State::TcpOpeningOut {
            counters.connection_attempts = counters.connection_attempts.wrapping_add(1);
        }
    });
}

/// What comes after an attempt: the packet is sent by a stage of its own, or the search that this
/// stands in would be walked with it by the verifier, which on Linux 6.1 gives up.
#[inline(always)]
pub fn finish<E: Env>(env: &E, parsed: &Parsed, plan: &Plan<'_>, attempt: Attempt) -> Step {
    match attempt {
        Attempt::Opened(_) => Step::Go(stage::SEND),
        Attempt::Raced => Step::Go(stage::HIT),
        _ => refused(env, plan, parsed, attempt),
    }
}

/// No session: the table is full, or every port is taken.
#[inline(always)]
pub fn refused<E: Env>(env: &E, plan: &Plan<'_>, parsed: &Parsed, attempt: Attempt) -> Step {
    match attempt {
        Attempt::TableFull => {
            tell(env, &plan.key, kind::TABLE_FULL, Ip4::UNSPECIFIED);
            Step::drop(DropReason::SessionTableFull, Side::Source, parsed.length)
        }
        Attempt::Conflict => Step::drop(DropReason::SessionConflict, Side::Source, parsed.length),
        _ => exhausted(env, plan, parsed),
    }
}

#[inline(always)]
fn tell<E: Env>(env: &E, key: &FlowKey, kind: u32, address: Ip4) {
    env.event(&Event {
        kind,
        ifindex: 0,
        address,
        port: Port::ZERO,
        protocol: key.protocol,
        reason: 0,
        key: *key,
    });
}

/// No port left on any address of the pool that this host may use.
#[inline(always)]
pub fn exhausted<E: Env>(env: &E, plan: &Plan<'_>, parsed: &Parsed) -> Step {
    // The plan's key and not the packet's, which is the same: kept twice they would be too much for the stack.
    tell(env, &plan.key, kind::EXHAUSTED, plan.key.tuple.dst);
    let slot = env.handoff(|handoff| handoff.slot).unwrap_or(0);
    // Another port of the host may have a binding.
    let any_port = plan.pool.mapping != pool::ENDPOINT_INDEPENDENT;
    refusal::remember(env, &plan.key, any_port, slot);
    out_of_ports(env, plan.key.protocol, parsed.length, slot)
}

/// Counts a packet for which `slot`'s address had no port, and says what becomes of it.
#[inline(always)]
pub fn out_of_ports<E: Env>(env: &E, protocol: u8, length: u16, slot: u32) -> Step {
    refusal::count(env, protocol, slot);
    if refusal::is_answered(env) {
        return deliver::ask(env, Answer::AdminProhibited, 0, Ip4::UNSPECIFIED);
    }
    Step::drop(DropReason::ErrorPortAllocation, Side::Source, length)
}
