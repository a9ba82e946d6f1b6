//! Endpoint-independent mapping: a private endpoint keeps one public endpoint for all its sessions
//! (RFC 4787 REQ-1, RFC 5382 REQ-1). The binding is reserved like a session: the public side
//! first, and who loses a race takes the winner's.

use crate::{
    env::{Env, InsertError, Packet},
    maps::stage,
    session::{BINDING_DEAD, Binding, BindingImage, BindingKey, PermitKey, flags},
    stage::{
        Step,
        open::{self, Attempt, Endpoint, Plan},
        open_busy,
    },
};

/// Stage: a session through the binding of its private endpoint; without one, that comes first.
#[inline(always)]
pub fn join<P: Packet, E: Env>(packet: &mut P, env: &E) -> Step {
    let Some((parsed, plan)) = open::plan(packet, env) else { return open::LOST };
    let Some(end) = existing(env, &plan) else { return Step::Go(stage::BIND) };
    let attempt = open::insert(env, &plan, end, flags::BINDING);
    match settle(env, &plan, end, attempt) {
        Attempt::Opened(_) => Step::Go(stage::SEND),
        Attempt::Raced => Step::Go(stage::HIT),
        attempt => open::refused(env, &plan, &parsed, attempt),
    }
}

/// Stage: a new binding, on the next address of the pool.
#[inline(always)]
pub fn run<P: Packet, E: Env>(packet: &mut P, env: &E) -> Step {
    let Some((parsed, plan)) = open::plan(packet, env) else { return open::LOST };
    open_busy::search::<E, true>(env, &parsed, &plan, packet.ingress())
}

#[inline(always)]
const fn private_key(plan: &Plan<'_>) -> BindingKey {
    let tuple = plan.key.tuple;
    BindingKey { address: tuple.src, port: tuple.sport, protocol: plan.key.protocol, inbound: 0 }
}

/// The public endpoint that the private one is bound to already; holds the binding.
#[inline(always)]
fn existing<E: Env>(env: &E, plan: &Plan<'_>) -> Option<Endpoint> {
    let binding = env.binding(&private_key(plan))?;
    hold::<E>(binding).then(|| Endpoint {
        address: binding.address,
        port: binding.port,
        slot: u32::from(binding.slot),
    })
}

/// Takes a reference, unless the binding is already given up.
#[inline(always)]
pub fn hold<E: Env>(binding: &Binding) -> bool {
    if E::fetch_add(&binding.refs, 1) & BINDING_DEAD != 0 {
        E::add(&binding.refs, u64::MAX);
        return false;
    }
    true
}

/// Makes a binding: the public endpoint first, for that is the reservation. It has no session
/// yet; should the reaper take it before there is one, the search begins again.
#[inline(always)]
pub fn reserve<E: Env>(env: &E, plan: &Plan<'_>, end: Endpoint) -> Result<(), Attempt> {
    let out = private_key(plan);
    let back = BindingKey {
        address: end.address,
        port: end.port,
        protocol: plan.key.protocol,
        inbound: 1,
    };
    let mut image = BindingImage {
        refs: 0,
        released: plan.now,
        id: plan.random | 1,
        address: out.address,
        port: out.port,
        slot: end.slot as u16,
        pool: plan.pool_id,
        zero: 0,
    };
    match env.binding_insert(&back, &image) {
        Ok(()) => {}
        Err(InsertError::Exists) => return Err(Attempt::Taken),
        Err(InsertError::Full) => return Err(Attempt::TableFull),
    }
    image.address = end.address;
    image.port = end.port;
    match env.binding_insert(&out, &image) {
        Ok(()) => Ok(()),
        Err(error) => {
            env.binding_remove(&back);
            // Exists: another session of this endpoint was first, its binding is ours, too.
            Err(if error == InsertError::Full { Attempt::TableFull } else { Attempt::Raced })
        }
    }
}

/// Notes whom the binding has sent to, or lets go of it when no session came of it.
#[inline(always)]
fn settle<E: Env>(env: &E, plan: &Plan<'_>, end: Endpoint, attempt: Attempt) -> Attempt {
    let Some(binding) = env.binding(&private_key(plan)) else { return attempt };
    match attempt {
        Attempt::Opened(_) => {
            let id = binding.id;
            let permit = PermitKey {
                public: end.address,
                // Of a hairpinned packet the public address, which is all that the sender knows.
                remote: plan.key.tuple.dst,
                port: end.port,
                protocol: plan.key.protocol,
                zero: 0,
            };
            env.permit_insert(&permit, id);
            attempt
        }
        _ => {
            E::add(&binding.refs, u64::MAX);
            match attempt {
                Attempt::Taken | Attempt::Raced if env.session(&plan.key).is_some() => {
                    Attempt::Raced
                }
                // Hairpin: the receiver has reached this endpoint by another way already, or is
                // the sender itself.
                Attempt::Taken | Attempt::Raced => Attempt::Conflict,
                attempt => attempt,
            }
        }
    }
}
