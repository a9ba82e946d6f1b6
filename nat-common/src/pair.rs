//! What was found out about packets from one private host to one remote address: that the gateway translates them, by
//! which pool, and which way they go.
//!
//! The rows that a first packet passes (`stage/classify.rs`) are six searches and a route, and most of
//! them come to what they came to for the last session of the same two hosts. So it is kept, for each CPU, as
//! long as the next hop of a session is: until the configuration or the network changes, and not while
//! the daemon is silent. It holds for both hosts, the interface and the type of service; where the
//! host's routing looks at more than these, at protocol or ports, nothing is kept
//! ([`routing::BY_ADDRESSES`]).

use core::cell::Cell;

use crate::{
    env::Env,
    flow::Tuple,
    parse::Parsed,
    rules::{Control, routing},
    session::NextHop,
    stage::Hop,
};

/// Pairs that are kept for each CPU; the last one has the place.
pub const PLACES: u32 = 2048;

#[derive(Debug, Default)]
#[repr(C, align(8))]
pub struct Pair {
    /// Source, destination.
    ends: Cell<u64>,
    /// Interface (low half), type of service, realm.
    terms: Cell<u64>,
    /// Epoch (low half), generation; never 0 of one that is valid.
    when: Cell<u64>,
    hop: Cell<u64>,
    /// MTU, pool (from bit 16), [`BUSY`].
    rest: Cell<u64>,
}

/// The plain image of a pair.
pub type PairImage = [u64; 5];

const _: () = assert!(size_of::<Pair>() == size_of::<PairImage>());

/// Some port of some public address is taken towards the remote host.
const BUSY: u64 = 1 << 63;

const fn ends(parsed: &Parsed) -> u64 {
    let Tuple { src, dst, .. } = parsed.key.tuple;
    src.raw() as u64 | (dst.raw() as u64) << 32
}

const fn terms(parsed: &Parsed, ingress: u32) -> u64 {
    ingress as u64 | (parsed.ip.tos as u64) << 32 | (parsed.key.realm as u64) << 40
}

/// `None`: nothing may be kept now.
#[inline(always)]
const fn when(control: &Control, now: u32) -> Option<u64> {
    if control.routing & routing::BY_ADDRESSES == 0 || control.is_alone(now) {
        return None;
    }
    Some(control.epoch as u64 | (control.generation as u64) << 32)
}

#[inline(always)]
fn at<E: Env>(env: &E, ends: u64) -> Option<&Pair> {
    let hash = ends.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    env.pair(hash as u32 & (PLACES - 1))
}

/// What is known of the two hosts of a packet.
#[inline(always)]
pub fn find<'a, E: Env>(
    env: &'a E,
    control: &Control,
    parsed: &Parsed,
    ingress: u32,
    now: u32,
) -> Option<&'a Pair> {
    let (ends, when) = (ends(parsed), when(control, now)?);
    let pair = at(env, ends)?;
    let same = pair.ends.get() == ends
        && pair.terms.get() == terms(parsed, ingress)
        && pair.when.get() == when;
    same.then_some(pair)
}

/// Keeps what was found out about them, and left in the handoff.
#[inline(always)]
pub fn remember<E: Env>(env: &E, parsed: &Parsed, ingress: u32) {
    let Some(control) = env.control() else { return };
    let Some(when) = when(control, env.now()) else { return };
    let ends = ends(parsed);
    let Some(pair) = at(env, ends) else { return };
    let Some((pool, hop, mtu)) = env.handoff(|handoff| (handoff.pool, handoff.hop, handoff.mtu))
    else {
        return;
    };
    pair.ends.set(ends);
    pair.terms.set(terms(parsed, ingress));
    pair.when.set(when);
    pair.hop.set(hop);
    pair.rest.set(u64::from(mtu & 0xffff) | u64::from(pool) << 16);
}

impl Pair {
    #[inline(always)]
    pub fn hop(&self) -> Hop {
        Hop { next: NextHop(self.hop.get()), mtu: self.rest.get() as u16 }
    }

    #[inline(always)]
    pub fn pool(&self) -> u32 {
        (self.rest.get() >> 16) as u32
    }

    /// Whether free ports towards the remote host may be tracked.
    #[inline(always)]
    pub fn is_busy(&self) -> bool {
        self.rest.get() & BUSY != 0
    }

    #[inline(always)]
    pub fn set_busy(&self) {
        self.rest.set(self.rest.get() | BUSY);
    }
}
