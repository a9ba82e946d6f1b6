//! A session opened from outside, for the receiver that `inbound` found.

use crate::{
    agenda::Note,
    env::{Env, InsertError, Packet},
    flow::Tuple,
    maps::stage,
    net::{Ip4, Port},
    parse::{Kind, Parse, Parsed, parse},
    session::{BindingKey, HostKey, Path, SessionImage, State, Word, flags, protocol_index},
    sieve,
    stage::{Side, Step, bind, deliver, report},
    translate::Rewrite,
    verdict::DropReason,
};

/// Whom the packet is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Receiver {
    address: Ip4,
    port: Port,
    slot: u32,
    flags: u8,
    pool: u8,
}

#[inline(always)]
pub fn run<P: Packet, E: Env>(packet: &mut P, env: &E) -> Step {
    let realm = match env.interface(packet.ingress()) {
        Some(interface) => interface.realm,
        None => return Step::host(Side::Destination, 0),
    };
    let Parse::Ipv4(parsed) = parse(packet, realm) else {
        return Step::drop(DropReason::Internal, Side::Destination, 0);
    };
    let Some(receiver) = env.handoff(|handoff| Receiver {
        address: handoff.target,
        port: handoff.target_port,
        slot: handoff.member,
        flags: handoff.flags as u8,
        pool: handoff.pool as u8,
    }) else {
        return Step::drop(DropReason::Internal, Side::Destination, parsed.length);
    };
    accept(packet, env, &parsed, receiver)
}

/// Whether the entry that is in the way only rests the port of a session that was there before.
#[inline(always)]
fn rests<E: Env>(env: &E, parsed: &Parsed) -> bool {
    env.session(&parsed.key).is_some_and(|entry| entry.word().state() == State::Dead)
}

/// A session opened from outside. Its public endpoint is fixed, so nothing is chosen.
#[inline(always)]
fn accept<P: Packet, E: Env>(packet: &mut P, env: &E, parsed: &Parsed, receiver: Receiver) -> Step {
    let refuse = |reason| Step::drop(reason, Side::Destination, parsed.length);
    let old = parsed.key.tuple;
    let new = Tuple { src: old.src, dst: receiver.address, sport: old.sport, dport: receiver.port };
    let query = deliver::query(packet, parsed, &new);
    let route = env.route(&query);
    let hop = match deliver::hop_of(env, parsed, route, Side::Destination) {
        Ok(hop) => hop,
        Err(step) => return step,
    };
    let now = env.now();
    let random = env.random();
    let Some(control) = env.control() else { return refuse(DropReason::Internal) };
    let (epoch, generation) = (control.current_epoch(now), control.generation as u16);
    let state = if parsed.kind == Kind::Tcp { State::TcpOpeningIn } else { State::Udp };
    let binding = BindingKey {
        address: receiver.address,
        port: receiver.port,
        protocol: parsed.ip.protocol,
        inbound: 0,
    };
    if receiver.flags & flags::BINDING != 0 {
        match env.binding(&binding) {
            Some(held) if bind::hold::<E>(held) => {}
            _ => return refuse(DropReason::Unsolicited),
        }
    }

    let inward = Rewrite::new(parsed.ip.protocol, old, new);
    let outward = Rewrite::new(parsed.ip.protocol, new.reversed(), old.reversed());
    let outbound_key = parsed.key.with(new.reversed());
    let first = env.draft(|draft| {
        *draft = SessionImage {
            word: Word::new(state, random, now).0,
            packets: 0,
            bytes: 0,
            next_hop: hop.next.0,
            epoch,
            created: now,
            tuple: inward.tuple,
            ip_delta: inward.ip_delta,
            l4_delta: inward.l4_delta,
            path: Path::new(hop.mtu, generation).0,
            address: receiver.slot as u16,
            flags: receiver.flags,
            pool: receiver.pool,
        };
        sieve::insert(env, &parsed.key, draft)
    });
    let first = first.unwrap_or(Err(InsertError::Full));
    let insert_second = || {
        env.draft(|draft| {
            draft.tuple = outward.tuple;
            draft.ip_delta = outward.ip_delta;
            draft.l4_delta = outward.l4_delta;
            draft.flags = receiver.flags | flags::OUTBOUND;
            draft.epoch = 0;
            sieve::insert(env, &outbound_key, draft)
        })
        .unwrap_or(Err(InsertError::Full))
    };
    let second = match first {
        Ok(()) => insert_second(),
        Err(error) => Err(error),
    };
    if let Err(error) = second {
        if first.is_ok() {
            sieve::remove(env, &parsed.key);
        }
        if receiver.flags & flags::BINDING != 0
            && let Some(held) = env.binding(&binding)
        {
            E::add(&held.refs, u64::MAX);
        }
        return match error {
            InsertError::Full => refuse(DropReason::SessionTableFull),
            // The other CPU's session is as good.
            InsertError::Exists if first.is_err() && !rests(env, parsed) => Step::Go(stage::HIT),
            InsertError::Exists => refuse(DropReason::SessionConflict),
        };
    }
    if receiver.flags & flags::BINDING != 0 {
        let host = HostKey {
            address: receiver.address,
            realm: parsed.key.realm,
            pool: receiver.pool,
            zero: [0; 2],
        };
        if let Some(host) = env.host(&host)
            && let Some(count) = host.sessions.get(protocol_index(parsed.ip.protocol))
        {
            E::add(count, 1);
        }
    }
    if let Some(word) = env.draft(|draft| draft.word) {
        env.note(Note::of(&outbound_key, Word(word)));
    }
    let lost = report::opened(env, &outbound_key, outward.tuple, receiver.flags, state, now);
    env.counters(|counters| {
        counters.records_lost = counters.records_lost.wrapping_add(lost);
        counters.sessions_created = counters.sessions_created.wrapping_add(1);
        if state == State::TcpOpeningIn {
            counters.connection_attempts = counters.connection_attempts.wrapping_add(1);
        }
    });
    Step::Go(stage::HIT)
}
