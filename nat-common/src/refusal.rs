//! What was refused a moment ago for want of a port.
//!
//! A host that gets no port asks again, and most others ask for the same destination: while the answer is
//! still warm, it costs one look at an array instead of the whole way to it. It is kept for the
//! tick in which it was given (1 to 10 ms), and hides a port that becomes free for no longer.

use core::cell::Cell;

use crate::{
    env::Env,
    flow::FlowKey,
    rules::{Control, control},
    session::protocol_index,
};

/// Places to remember something in; the last one has it.
pub const PLACES: u32 = 4096;

/// Two words of a flow's key, then when (low half, ticks) and under which configuration, then the slot of
/// the address that had no port.
#[derive(Debug, Default)]
#[repr(C, align(8))]
pub struct Refusal {
    key: [Cell<u64>; 2],
    when: Cell<u64>,
    slot: Cell<u64>,
}

/// The plain image of a refusal.
pub type RefusalImage = [u64; 4];

/// How often an address had no port left, by protocol: tcp, udp, icmp. By slot of the address table.
#[derive(Debug, Default)]
#[repr(C, align(8))]
pub struct RefusedPorts(pub [Cell<u64>; 4]);

pub type RefusedPortsImage = [u64; 4];

const _: () = assert!(size_of::<Refusal>() == size_of::<RefusalImage>());

/// Marks a refusal that holds for every port of the host.
const ANY_PORT: u64 = 1 << 48;

const fn words(key: &FlowKey) -> [u64; 2] {
    let tuple = key.tuple;
    [
        tuple.src.raw() as u64 | (tuple.dst.raw() as u64) << 32,
        (tuple.dport.raw() as u64) << 16 | (key.protocol as u64) << 32 | (key.realm as u64) << 40,
    ]
}

const fn place([ends, rest]: [u64; 2]) -> u32 {
    let sum = (ends ^ rest.rotate_left(20)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (sum >> 40) as u32 & (PLACES - 1)
}

const fn when(control: &Control, now: u32) -> u64 {
    now as u64 | (control.generation as u64) << 32
}

/// Remembers that a flow found no port; with `any_port`, that no other of this host to that remote endpoint
/// would have.
#[inline(always)]
pub fn remember<E: Env>(env: &E, key: &FlowKey, any_port: bool, slot: u32) {
    let Some(control) = env.control() else { return };
    let mut words = words(key);
    let Some(refusal) = env.refusal(place(words)) else { return };
    words[1] |= if any_port { ANY_PORT } else { key.tuple.sport.raw() as u64 };
    // Not believed while it is being written.
    refusal.when.set(0);
    refusal.key[0].set(words[0]);
    refusal.key[1].set(words[1]);
    refusal.slot.set(u64::from(slot));
    refusal.when.set(when(control, env.now()));
}

/// The slot of the address that had no port for this flow a moment ago.
#[inline(always)]
pub fn recall<E: Env>(env: &E, key: &FlowKey) -> Option<u32> {
    let words = words(key);
    let refusal = env.refusal(place(words))?;
    if refusal.key[0].get() != words[0] {
        return None;
    }
    let rest = refusal.key[1].get();
    if rest != words[1] | ANY_PORT && rest != words[1] | key.tuple.sport.raw() as u64 {
        return None;
    }
    let control = env.control()?;
    (refusal.when.get() == when(control, env.now())).then_some(refusal.slot.get() as u32)
}

/// Counts a packet for which the address in `slot` had no port.
#[inline(always)]
pub fn count<E: Env>(env: &E, protocol: u8, slot: u32) {
    env.counters(|counters| {
        counters.port_allocation_errors = counters.port_allocation_errors.wrapping_add(1);
    });
    if let Some(refused) = env.refused_ports(slot)
        && let Some(count) = refused.0.get(protocol_index(protocol))
    {
        E::add(count, 1);
    }
}

/// Whether the profile answers what it refuses.
#[inline(always)]
pub fn is_answered<E: Env>(env: &E) -> bool {
    env.control().is_some_and(|c| c.flags & control::EXHAUSTION_ERROR != 0)
}
