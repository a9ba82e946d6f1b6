//! The end of a session: only by time, by command, or when its own side starts anew.

use core::hint::black_box;

use crate::{
    agenda::Note,
    cache,
    env::Env,
    flow::FlowKey,
    net::{Port, proto},
    port::BusyKey,
    rules::Control,
    session::{BindingKey, HostKey, Session, State, Word, flags, protocol_index},
    sieve,
    stage::report,
    tcp_state,
};

/// Whether an entry of this word would still be in time.
#[inline(always)]
pub fn in_time(control: &Control, word: Word, now: u32) -> bool {
    let state = word.state();
    if matches!(state, State::None | State::Dead) {
        return false;
    }
    let Some(timeout) = control.timeouts.get(usize::from(word.state_bits())) else { return false };
    // `seen` may be one refresh interval older than the last packet, never younger; a value from
    // the future is a packet on another CPU a moment ago.
    let age = now.wrapping_sub(word.seen());
    age > u32::MAX / 2 || age <= timeout.saturating_add(control.refresh)
}

/// Ticks for which an entry of this word will still be in time; 0: it is not.
#[inline(always)]
pub fn left(control: &Control, word: Word, now: u32) -> u32 {
    if !in_time(control, word, now) {
        return 0;
    }
    let Some(timeout) = control.timeouts.get(usize::from(word.state_bits())) else { return 0 };
    let age = now.wrapping_sub(word.seen());
    let age = if age > u32::MAX / 2 { 0 } else { age };
    timeout.saturating_add(control.refresh).saturating_sub(age).saturating_add(1)
}

/// Whether the session lives: either direction keeps it.
#[inline(always)]
pub fn is_live<E: Env>(
    env: &E,
    control: &Control,
    key: &FlowKey,
    session: &Session,
    now: u32,
) -> bool {
    if in_time(control, session.word(), now) {
        return true;
    }
    if session.word().state() == State::Dead {
        return false;
    }
    cache::settle(env, control, key, session);
    if in_time(control, session.word(), now) {
        return true;
    }
    let partner_key = key.with(session.tuple.reversed());
    match env.session(&partner_key) {
        Some(partner) => {
            cache::settle(env, control, &partner_key, partner);
            in_time(control, partner.word(), now)
        }
        None => false,
    }
}

/// Ends the session of which `key` is the outbound entry. With `only_expired`, not if a packet
/// has refreshed either half meanwhile. True if this call ended it.
#[inline(always)]
pub fn end<E: Env>(env: &E, key: &FlowKey, now: u32, only_expired: bool) -> bool {
    let Some(control) = env.control() else { return false };
    let hold = control.port_hold;
    let Some(session) = env.session(key) else { return false };
    cache::settle(env, control, key, session);
    let before = session.word();
    if matches!(before.state(), State::Dead) {
        return false;
    }
    let partner_key = key.with(session.tuple.reversed());
    let (session_flags, pool) = (session.flags, session.pool);
    // One that has lost its other half stands for both: the verifier wants a session in each place.
    let (partner, is_there) = match env.session(&partner_key) {
        Some(partner) => (partner, true),
        None => (session, false),
    };
    if is_there {
        cache::settle(env, control, &partner_key, partner);
    }
    // Opaque: the compiler knows which states are left and drops the check of an index; kernels before 6.10 want it.
    let is_in_time = |word: Word| in_time(control, Word(black_box(word.0)), now);
    if only_expired && (is_in_time(before) || is_there && is_in_time(partner.word())) {
        return false;
    }
    // The inbound half first, so that a packet that comes now from outside revives nothing; if
    // the other half was refreshed meanwhile, it is given back.
    let word = partner.word();
    if is_there && !partner.swap_word::<E>(word, word.with_state(State::Dead).with_seen(now)) {
        return false;
    }
    if !session.swap_word::<E>(before, before.with_state(State::Dead)) {
        if is_there {
            let dead = word.with_state(State::Dead).with_seen(now);
            let _raced = partner.swap_word::<E>(dead, word);
        }
        return false;
    }

    // From here on nobody enters them again, and what was counted until now is told.
    cache::forget(env, control, key, session);
    if is_there {
        cache::forget(env, control, &partner_key, partner);
    }
    let revived = is_there.then_some((partner, word));
    let lost = report::ended(env, control, key, (session, before), revived, only_expired, now);
    sieve::remove(env, key);
    // The port of a forward is nobody else's, and that of a binding rests with the binding.
    if hold == 0 || session_flags & (flags::FORWARD | flags::BINDING) != 0 {
        sieve::remove(env, &partner_key);
        free_port(env, &partner_key);
    } else if is_there {
        env.note(Note::resting(&partner_key, word));
    }
    release(env, key, session_flags, pool, now);
    env.counters(|counters| {
        counters.records_lost = counters.records_lost.wrapping_add(lost);
        counters.sessions_ended = counters.sessions_ended.wrapping_add(1);
        let established = tcp_state::is_established(before.state());
        if established {
            counters.established_left = counters.established_left.wrapping_add(1);
        }
        // As the cloud counts: from active to idle, which a connection that was closed, or never
        // opened, does not go.
        if only_expired && (established || matches!(before.state(), State::Udp | State::Icmp)) {
            counters.idle_timeouts = counters.idle_timeouts.wrapping_add(1);
        }
    });
    true
}

/// Gives back what the session held of its host and its binding.
#[inline(always)]
fn release<E: Env>(env: &E, key: &FlowKey, session_flags: u8, pool: u8, now: u32) {
    let tuple = key.tuple;
    if session_flags & flags::FORWARD == 0 {
        let host = HostKey { address: tuple.src, realm: key.realm, pool, zero: [0; 2] };
        if let Some(host) = env.host(&host)
            && let Some(count) = host.sessions.get(protocol_index(key.protocol))
            // The entry may have been cleaned away and made anew meanwhile.
            && count.get() != 0
        {
            E::add(count, u64::MAX);
        }
    }
    if session_flags & flags::BINDING != 0 {
        let binding = BindingKey {
            address: tuple.src,
            port: tuple.sport,
            protocol: key.protocol,
            inbound: 0,
        };
        if let Some(binding) = env.binding(&binding) {
            binding.released.set(now);
            E::add(&binding.refs, u64::MAX);
        }
    }
}

/// The port of this inbound entry may be given out again.
#[inline(always)]
pub fn free_port<E: Env>(env: &E, inbound: &FlowKey) {
    let tuple = inbound.tuple;
    let busy = BusyKey {
        public: tuple.dst,
        remote: tuple.src,
        port: if inbound.protocol == proto::ICMP { Port::ZERO } else { tuple.sport },
        protocol: inbound.protocol,
        zero: 0,
    };
    if let Some(set) = env.busy(&busy) {
        set.clear::<E>(tuple.dport);
    }
}
