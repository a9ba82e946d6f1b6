//! A packet with a session that needs a look: its state, its time, its right to exist, its route.

use crate::{
    cache,
    env::{Env, Packet},
    flow::FlowKey,
    maps::stage,
    parse::{Kind, Parse, Parsed, parse, tcp_flags},
    rules::ForwardKey,
    session::{Path, Session, State, flags},
    stage::{Side, Step, deliver, end},
    tcp_state,
};

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
    let key = parsed.key;
    if !admit(env, &parsed, &key) {
        return Step::Go(stage::CLASSIFY);
    }
    deliver::session(packet, env, &parsed, &key)
}

/// Whether the session takes the packet. One that has ended, or may not go on, is removed, so
/// that the packet is judged as if it had never been.
#[inline(always)]
pub fn admit<E: Env>(env: &E, parsed: &Parsed, key: &FlowKey) -> bool {
    let now = env.now();
    let Some(control) = env.control() else { return false };
    let Some(session) = env.session(key) else { return false };
    let outbound = session.is_outbound();
    let live = end::is_live(env, control, key, session, now);
    let word = session.word();
    let state = word.state();
    let judged = Path(session.path.get()).generation() == control.generation as u16;
    let tcp = parsed.kind == Kind::Tcp && parsed.tcp_flags != 0;
    let pure_syn = parsed.tcp_flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN && tcp;
    let over = pure_syn && tcp_state::is_over(state, outbound);
    if !live || over || (!judged && !is_allowed(env, key, session)) {
        let outbound_key = if outbound { *key } else { key.with(session.tuple.reversed()) };
        end::end(env, &outbound_key, now, !over && !live);
        return false;
    }

    let next = if tcp { tcp_state::next(state, outbound, parsed.tcp_flags) } else { state };
    // Retransmitted SYNs and resets keep nothing alive (RFC 7857 section 7.1).
    let refreshes = next != state
        || !(matches!(state, State::TcpOpeningOut | State::TcpOpeningIn)
            || (tcp && parsed.tcp_flags & (tcp_flags::SYN | tcp_flags::RST) != 0));
    if refreshes {
        let _raced = session.swap_word::<E>(word, word.with_state(next).with_seen(now));
    }
    if next != state {
        let partner_key = key.with(session.tuple.reversed());
        if let Some(partner) = env.session(&partner_key) {
            let word = partner.word();
            if word.state() != State::Dead {
                let _raced = partner.swap_word::<E>(word, word.with_state(next));
            }
            cache::distrust(env, control, &partner_key);
        }
        cache::distrust(env, control, key);
        count_change(env, state, next);
    }
    true
}

#[inline(always)]
fn count_change<E: Env>(env: &E, before: State, after: State) {
    env.counters(|counters| {
        match (tcp_state::is_established(before), tcp_state::is_established(after)) {
            (false, true) => {
                counters.established_entered = counters.established_entered.wrapping_add(1);
                if matches!(before, State::TcpOpeningOut | State::TcpOpeningIn) {
                    counters.connections_established =
                        counters.connections_established.wrapping_add(1);
                }
            }
            (true, false) => {
                counters.established_left = counters.established_left.wrapping_add(1);
            }
            _ => {}
        }
    });
}

/// Whether the configuration in force still allows the session.
#[inline(always)]
fn is_allowed<E: Env>(env: &E, key: &FlowKey, session: &Session) -> bool {
    let (private, private_port, public, public_port) = if session.is_outbound() {
        let (old, new) = (key.tuple, session.tuple);
        (old.src, old.sport, new.src, new.sport)
    } else {
        let (old, new) = (key.tuple, session.tuple);
        (new.dst, new.dport, old.dst, old.dport)
    };
    match env.address(u32::from(session.address)) {
        Some(address) if address.address == public && address.flags != 0 => {}
        _ => return false,
    }
    if session.flags & flags::FORWARD != 0 {
        let key =
            ForwardKey { address: public, port: public_port, protocol: key.protocol, zero: 0 };
        return env
            .forward(&key)
            .is_some_and(|forward| forward.address == private && forward.port == private_port);
    }
    env.snat_rule(private).is_some_and(|rule| {
        // Not before: the stack has no room for it (512 bytes, in fragments on Linux 6.1).
        let remote = if session.is_outbound() { session.tuple.dst } else { key.tuple.src };
        rule.pool == u32::from(session.pool) && !env.is_exempt(rule.rule, remote)
    })
}
