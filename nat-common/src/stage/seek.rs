//! A free port that a few tries have missed, if there is one: every port is looked at, if need be.
//!
//! The bitmap of a busy destination knows what was learnt since it is there. Sessions may be older than it, a
//! socket of the host may have gone, and without a daemon nobody ends what has expired. So this looks at the
//! sessions themselves: first for the ports that are not marked, each of which is marked when it is found
//! taken and so costs this once in the life of a bitmap; then, within a budget of time, for those that are.
//! It is one loop of the kernel's (`bpf_loop`, Linux 5.17), at the worst 130,000 short rounds.

use bytemuck::{Pod, Zeroable};

use crate::{
    env::Env,
    flow::{FlowKey, Tuple},
    maps::stage,
    net::Port,
    port::{BusyKey, PortSet, PortSetImage, Take},
    rules::Control,
    session::{BindingKey, State, Word},
    stage::{Side, Step, end, reap, request},
    verdict::DropReason,
};

/// Rounds of the loop: each port as one that is not marked, and as one that is.
pub const ROUNDS: u32 = 2 * PLACES;
const PLACES: u32 = 1 << 16;

/// Marked ports that are looked at again in each second in which none is free: what the daemon
/// does is seen at once, so these are few; without it, all of them four times.
const AGAIN: u32 = 1 << 14;
const AGAIN_ALONE: u32 = 1 << 18;
/// The most of them at a time while the daemon lives.
const MOST: u32 = 1 << 6;

/// What `OPEN_BUSY` and `BIND` want, and get. Aligned as the compiler copies it.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct Wanted {
    pub busy: BusyKey,
    /// Row of the free ports to begin with.
    pub template: u32,
    /// [`Wanted::THIS`] and a port (raw): that was found, or is to be reclaimed. 0: none.
    pub port: u32,
    /// Realm (low byte) and [`Wanted::BINDS`].
    pub terms: u32,
}

impl Wanted {
    pub const THIS: u32 = 1 << 16;
    /// The port has to be taken from a session or a binding that is over.
    pub const OVER: u32 = 1 << 17;
    /// For a binding, else for a session.
    pub const BINDS: u32 = 1 << 8;

    /// The port that was found.
    #[inline(always)]
    pub const fn found(&self) -> Option<Port> {
        if self.port & Self::THIS == 0 { None } else { Some(Port::from_raw(self.port as u16)) }
    }
}

/// How far the loop is. In a map and not on the stack: there the verifier would follow every number
/// through every round.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct Progress {
    random: u64,
    /// Place of the next marked port.
    hand: u32,
    /// Not 0 while unmarked ports are looked for.
    unmarked: u32,
    /// How many marked ones there are to go, and of them to look at.
    left: u32,
    budget: u32,
    /// As [`Wanted::port`].
    found: u32,
    zero: u32,
}

/// What the loop looks at.
pub struct Search<'a> {
    set: Option<&'a PortSet>,
    template: &'a PortSetImage,
}

/// Stage: any free port of one address.
#[inline(always)]
pub fn run<P, E: Env>(_packet: &mut P, env: &E) -> Step {
    let lost = Step::drop(DropReason::Internal, Side::Source, 0);
    let Some(wanted) = env.handoff(|handoff| {
        handoff.rounds = handoff.rounds.wrapping_add(1);
        handoff.wanted
    }) else {
        return lost;
    };
    let Some(control) = env.control() else { return lost };
    let Some(template) = env.port_template(wanted.template) else { return lost };
    let set = env.busy(&wanted.busy);
    let (now, random) = (env.now(), env.random());
    let (hand, unmarked, budget) = match set {
        Some(set) => ((set.looked.get() >> 32) as u32, 1, budget(set, control, now)),
        None => (random, 0, PLACES),
    };
    env.handoff(|handoff| {
        let progress = &mut handoff.progress;
        progress.random = u64::from(random);
        progress.hand = hand;
        progress.unmarked = unmarked;
        progress.left = PLACES;
        progress.budget = budget;
        progress.found = 0;
    });
    env.seek(&mut Search { set, template });
    let Some(Progress { hand, found, .. }) = env.handoff(|handoff| {
        let progress = handoff.progress;
        handoff.wanted.port = progress.found;
        if progress.found == 0 {
            // The next address of the pool.
            handoff.member = handoff.member.wrapping_add(1);
            handoff.tried = handoff.tried.wrapping_add(1);
        }
        progress
    }) else {
        return lost;
    };
    if let Some(set) = set {
        // What has led to a port costs nothing: there may be more.
        let when = if found == 0 { now } else { set.looked.get() as u32 };
        set.looked.set(u64::from(when) | (u64::from(hand) << 32));
    }
    if found & Wanted::OVER != 0 { Step::Go(stage::RECLAIM) } else { Step::Go(back_to(&wanted)) }
}

/// Stage: takes one port from whom it belongs to no longer, if that is so.
#[inline(always)]
pub fn reclaim<P, E: Env>(_packet: &mut P, env: &E) -> Step {
    let lost = Step::drop(DropReason::Internal, Side::Source, 0);
    let Some(wanted) = env.handoff(|handoff| {
        handoff.rounds = handoff.rounds.wrapping_add(1);
        handoff.wanted
    }) else {
        return lost;
    };
    let port = Port::from_raw(wanted.port as u16);
    let (inbound, back) = keys(&wanted, port);
    let binds = wanted.terms & Wanted::BINDS != 0;
    let (op, key) = if binds {
        let (address, private_port) = env.bound(&back).unwrap_or_default();
        let tuple = Tuple { src: address, dst: back.address, sport: private_port, dport: port };
        (request::UNBIND, FlowKey::new(tuple, back.protocol, 0))
    } else {
        match env.session(&inbound) {
            Some(entry) if entry.word().state() != State::Dead => {
                let outbound = inbound.with(entry.tuple.reversed());
                let alone = env.session_word(&outbound).is_none();
                (request::EXPIRE, if alone { inbound } else { outbound })
            }
            _ => (request::EXPIRE, inbound),
        }
    };
    reap::one(env, op, &key);
    let taken = if binds { env.binding(&back).is_some() } else { env.session(&inbound).is_some() };
    env.handoff(|handoff| {
        handoff.wanted.port = if taken { 0 } else { Wanted::THIS | u32::from(port.raw()) };
    });
    Step::Go(back_to(&wanted))
}

#[inline(always)]
const fn back_to(wanted: &Wanted) -> u32 {
    if wanted.terms & Wanted::BINDS != 0 { stage::BIND } else { stage::OPEN_BUSY }
}

/// How many marked ports may be looked at again now.
#[inline(always)]
pub fn budget(set: &PortSet, control: &Control, now: u32) -> u32 {
    let since = now.wrapping_sub(set.looked.get() as u32);
    let alone = control.is_alone(now);
    let (rate, most) = if alone { (AGAIN_ALONE, PLACES) } else { (AGAIN, MOST) };
    // Without a division: ticks are between 1 and 10 ms.
    let each = if control.hz > 500 { rate >> 10 } else { rate >> 8 };
    if since > PLACES { most } else { (since * each).min(most) }
}

impl Search<'_> {
    /// Looks at one port. True: done.
    #[inline(always)]
    pub fn round<E: Env>(&mut self, env: &E) -> bool {
        let Some((mut progress, wanted)) = env.handoff(|it| (it.progress, it.wanted)) else {
            return true;
        };
        let place = self.next::<E>(&mut progress);
        env.handoff(|handoff| handoff.progress = progress);
        let place = match place {
            Next::Port(place) => place,
            Next::Again => return false,
            Next::None => return true,
        };
        let found = match look(env, &wanted, Port::from_raw(place as u16)) {
            Look::Free => Wanted::THIS,
            Look::Over => Wanted::THIS | Wanted::OVER,
            Look::Taken => return false,
        };
        env.handoff(|handoff| handoff.progress.found = found | (place & (PLACES - 1)));
        true
    }

    /// The place of the next port to look at.
    #[inline(always)]
    fn next<E: Env>(&self, progress: &mut Progress) -> Next {
        if progress.unmarked != 0
            && let Some(set) = self.set
        {
            progress.random =
                progress.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            return match set.take::<E>((progress.random >> 32) as u32) {
                Take::Port(port) => Next::Port(u32::from(port.raw())),
                Take::Again => Next::Again,
                Take::Full => {
                    progress.unmarked = 0;
                    Next::Again
                }
            };
        }
        if progress.left == 0 || progress.budget == 0 {
            return Next::None;
        }
        let place = progress.hand & (PLACES - 1);
        let within = place & 63;
        let word = self.template.offered(place) & (u64::MAX << within);
        let step = if word == 0 { 64 - within } else { (word.trailing_zeros() & 63) + 1 - within };
        progress.hand = place + step;
        progress.left = progress.left.saturating_sub(step);
        if word == 0 {
            return Next::Again;
        }
        progress.budget -= 1;
        Next::Port(place + step - 1)
    }
}

enum Next {
    Port(u32),
    Again,
    None,
}

/// What is found out about a port.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Free,
    /// By right nobody's, but still to be taken from whom it was.
    Over,
    Taken,
}

#[inline(always)]
fn keys(wanted: &Wanted, port: Port) -> (FlowKey, BindingKey) {
    let BusyKey { public, remote, port: remote_port, protocol, .. } = wanted.busy;
    let tuple = Tuple { src: remote, dst: public, sport: remote_port, dport: port };
    let back = BindingKey { address: public, port, protocol, inbound: 1 };
    (FlowKey::new(tuple, protocol, wanted.terms as u8), back)
}

#[inline(always)]
fn look<E: Env>(env: &E, wanted: &Wanted, port: Port) -> Look {
    let (inbound, back) = keys(wanted, port);
    let Some(control) = env.control() else { return Look::Taken };
    let now = env.now();
    let over = if wanted.terms & Wanted::BINDS != 0 {
        let Some((address, private_port)) = env.bound(&back) else { return Look::Free };
        let out = BindingKey { address, port: private_port, protocol: back.protocol, inbound: 0 };
        env.is_idle(&out, control.port_hold, now)
    } else {
        let Some(word) = env.session_word(&inbound) else { return Look::Free };
        is_over(control, word, now)
            && (word.state() == State::Dead
                || env
                    .session(&inbound)
                    .is_none_or(|entry| !end::is_live(env, control, &inbound, entry, now)))
    };
    if over { Look::Over } else { Look::Taken }
}

/// Whether an inbound entry of this word keeps its port by right no longer, as far as it tells.
#[inline(always)]
pub fn is_over(control: &Control, word: Word, now: u32) -> bool {
    if word.state() == State::Dead {
        let age = now.wrapping_sub(word.seen());
        return age >= control.port_hold && age < u32::MAX / 2;
    }
    !end::in_time(control, word, now)
}

const _: () = assert!(size_of::<Wanted>() == 24);
