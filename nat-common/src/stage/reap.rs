//! The reaper: ends what the daemon found to be over. The daemon proposes, this decides.

use crate::{
    agenda::Note,
    cache,
    env::Env,
    flow::FlowKey,
    net::Port,
    session::{BINDING_DEAD, BindingKey, State},
    sieve,
    stage::{end, request},
};

/// Handles one key of a request. True if something ended or was removed.
#[inline(always)]
pub fn one<E: Env>(env: &E, op: u32, key: &FlowKey) -> bool {
    let now = env.now();
    match op {
        request::EXPIRE | request::END => session(env, key, now, op == request::EXPIRE),
        request::UNBIND => unbind(env, key, now),
        request::SETTLE | request::VACATE => {
            leave(env, key, op == request::VACATE);
            false
        }
        _ => false,
    }
}

/// Settles a slot of the flow cache that has another place now, or will have, and frees it.
#[inline(always)]
fn leave<E: Env>(env: &E, key: &FlowKey, vacate: bool) {
    let Some(slot) = env.slot(key.tuple.src.raw()) else { return };
    slot.settle_whose(env);
    if vacate {
        slot.free::<E>();
    }
}

/// What is to be done about a note.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// Nothing more: the entry is gone, or another one has its key, which has a note of its own.
    Gone,
    /// To be looked at again after so many ticks.
    Later(u32),
    /// Its time is up: [`one`] is to end it. A port that rests after that has a note of its own.
    Over,
}

/// Looks at the entry that is meant by a note.
#[inline(always)]
pub fn look<E: Env>(env: &E, note: &Note) -> Look {
    let (now, key) = (env.now(), note.key());
    let Some(control) = env.control() else { return Look::Gone };
    let Some(entry) = env.session(&key) else { return Look::Gone };
    let word = entry.word();
    if !note.means(word) {
        return Look::Gone;
    }
    if word.state() == State::Dead {
        let age = now.wrapping_sub(word.seen());
        return match control.port_hold.checked_sub(age) {
            None | Some(0) => Look::Over,
            Some(left) => Look::Later(left),
        };
    }
    // Mostly that is enough, and what is in no cache line of the processor's is dear.
    let own = end::left(control, word, now);
    if own > control.hz {
        return Look::Later(own);
    }
    cache::settle(env, control, &key, entry);
    let mut left = end::left(control, entry.word(), now);
    let partner_key = key.with(entry.tuple.reversed());
    if let Some(partner) = env.session(&partner_key) {
        cache::settle(env, control, &partner_key, partner);
        left = left.max(end::left(control, partner.word(), now));
    }
    if left == 0 { Look::Over } else { Look::Later(left) }
}

#[inline(always)]
fn session<E: Env>(env: &E, key: &FlowKey, now: u32, only_expired: bool) -> bool {
    let Some(entry) = env.session(key) else { return false };
    let word = entry.word();
    if entry.is_outbound() {
        return end::end(env, key, now, only_expired);
    }
    // An inbound entry alone: rests its port, or lost its other half to a crash.
    let Some(control) = env.control() else { return false };
    let age = now.wrapping_sub(word.seen());
    let over = if word.state() == State::Dead {
        age >= control.port_hold && age < u32::MAX / 2
    } else {
        cache::settle(env, control, key, entry);
        !end::in_time(control, entry.word(), now)
            && env.session(&key.with(entry.tuple.reversed())).is_none()
    };
    if only_expired && !over {
        return false;
    }
    if !entry.swap_word::<E>(word, word.with_state(State::Dead)) {
        return false;
    }
    cache::forget(env, control, key, entry);
    sieve::remove(env, key);
    end::free_port(env, key);
    true
}

/// Removes a binding without sessions. `key`: private address and port as source, public ones as
/// destination.
#[inline(always)]
fn unbind<E: Env>(env: &E, key: &FlowKey, now: u32) -> bool {
    let Some(control) = env.control() else { return false };
    let hold = control.port_hold;
    let tuple = key.tuple;
    let protocol = key.protocol;
    let out = BindingKey { address: tuple.src, port: tuple.sport, protocol, inbound: 0 };
    let back = BindingKey { address: tuple.dst, port: tuple.dport, protocol, inbound: 1 };
    let Some(binding) = env.binding(&out) else { return false };
    if binding.address != back.address || binding.port != back.port {
        return false;
    }
    if now.wrapping_sub(binding.released.get()) < hold {
        return false;
    }
    if !E::compare_exchange(&binding.refs, 0, BINDING_DEAD) {
        return false;
    }
    env.binding_remove(&out);
    env.binding_remove(&back);
    let taken = FlowKey::new(
        crate::flow::Tuple {
            src: crate::net::Ip4::UNSPECIFIED,
            dst: back.address,
            sport: Port::ZERO,
            dport: back.port,
        },
        protocol,
        0,
    );
    end::free_port(env, &taken);
    true
}
