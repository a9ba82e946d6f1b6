//! First stage: a packet of a live session whose next hop is known, by the flow cache or by the
//! session. Everything else goes on.

use core::hint::black_box;

use crate::{
    cache::{self, Entry, Place, Slot},
    env::{Env, Packet},
    maps::stage,
    parse::{Fragment, Kind, Parse, Parsed, parse, tcp_flags},
    rules::Control,
    session::{NextHop, Path, Session, State},
    stage::{Side, Step, direction},
    translate::{self, Rewrite},
    verdict::DropReason,
};

#[inline(always)]
pub fn run<P: Packet, E: Env>(packet: &mut P, env: &E) -> Step {
    let (role, realm) = match env.interface(packet.ingress()) {
        Some(interface) => (interface.role, interface.realm),
        None => return Step::host(Side::Destination, 0),
    };
    let side = Side::of(role);
    let parsed = match parse(packet, realm) {
        Parse::Ipv4(parsed) => parsed,
        Parse::Arp(_) => return Step::Go(stage::CLASSIFY),
        Parse::Other => return Step::host(side, 0),
        Parse::Broken(reason) => return Step::drop(reason, side, 0),
    };
    if parsed.ip.dst.is_never_translated() {
        return Step::host(side, parsed.length);
    }
    if parsed.fragment != Fragment::Whole {
        return Step::Go(stage::FRAGMENT);
    }
    if parsed.fault.is_some() {
        return Step::Go(stage::CLASSIFY);
    }
    if parsed.kind == Kind::Error {
        return Step::Go(stage::VERIFY);
    }
    let Some(control) = env.control() else { return Step::Go(stage::CLASSIFY) };
    let now = env.now();
    let epoch = control.current_epoch(now);
    let place = Place::of(&parsed.key, control);
    if let Some(slot) = cache::find(env, &place)
        && let Some(entry) = slot.entry(&place, epoch)
        && let Some(step) = cached(packet, env, &parsed, control, slot, &entry, now)
    {
        return step;
    }
    let Some(session) = env.session(&parsed.key) else {
        return Step::Go(stage::CLASSIFY);
    };
    match established(packet, env, &parsed, control, session, epoch, now) {
        Some(step) => {
            cache::enter(env, control, &place, session, now);
            step
        }
        None => Step::Go(stage::HIT),
    }
}

const RARE: u8 = tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST;

/// Whether the packet changes nothing about a session in this state.
#[inline(always)]
const fn is_plain(state: State, flags: u8) -> bool {
    match state {
        State::Udp | State::Icmp => true,
        State::TcpEstablished | State::TcpFinIn | State::TcpFinOut => flags & RARE == 0,
        _ => false,
    }
}

/// By the flow cache alone. `None`: the session has to be looked at.
#[inline(always)]
fn cached<P: Packet, E: Env>(
    packet: &mut P,
    env: &E,
    parsed: &Parsed,
    control: &Control,
    slot: &Slot,
    entry: &Entry,
    now: u32,
) -> Option<Step> {
    let hop = env.next_hop(entry.hop())?;
    let (packets, bytes) = parsed.weight(packet);
    if !is_plain(entry.state(), parsed.tcp_flags)
        || parsed.ip.ttl <= 1
        || parsed.largest(packet) > hop.mtu()
        || entry.is_full()
        || !Entry::takes(packets, bytes)
    {
        return None;
    }
    if now != entry.seen() {
        // Opaque: the compiler knows which states are left and drops the check of the index; kernels
        // before 6.10 want it.
        let limit = control.timeouts.get(usize::from(black_box(entry.state() as u8)))?;
        if now.wrapping_sub(entry.seen()) > *limit {
            return None;
        }
    }
    let rewrite = Rewrite::new(parsed.key.protocol, parsed.key.tuple, entry.tuple());
    let step = translate_and_send(packet, env, parsed, &rewrite, hop.next_hop(), entry.flags())?;
    slot.take::<E>(entry, now, packets, bytes);
    Some(step)
}

/// By the session. `None`: something has to be looked at first.
#[inline(always)]
fn established<P: Packet, E: Env>(
    packet: &mut P,
    env: &E,
    parsed: &Parsed,
    control: &Control,
    session: &Session,
    epoch: u32,
    now: u32,
) -> Option<Step> {
    let word = session.word();
    if !is_plain(word.state(), parsed.tcp_flags) {
        return None;
    }
    let age = now.wrapping_sub(word.seen());
    if age >= control.refresh {
        if age > *control.timeouts.get(usize::from(word.state_bits()))? {
            return None;
        }
        // Lost races are fine: whoever won has refreshed it, or the reaper took it for good
        // reason and the next packet finds out.
        let _raced = session.swap_word::<E>(word, word.with_seen(now));
    }
    if session.epoch.get() != epoch {
        return None;
    }
    let path = Path(session.path.get());
    if parsed.ip.ttl <= 1 || parsed.largest(packet) > path.mtu() {
        return None;
    }
    let rewrite =
        Rewrite { tuple: session.tuple, ip_delta: session.ip_delta, l4_delta: session.l4_delta };
    let hop = NextHop(session.next_hop.get());
    let step = translate_and_send(packet, env, parsed, &rewrite, hop, session.flags)?;
    let (packets, bytes) = parsed.weight(packet);
    session.count::<E>(packets, bytes);
    Some(step)
}

/// `None`: nothing was changed.
#[inline(always)]
fn translate_and_send<P: Packet, E: Env>(
    packet: &mut P,
    env: &E,
    parsed: &Parsed,
    rewrite: &Rewrite,
    hop: NextHop,
    session_flags: u8,
) -> Option<Step> {
    let egress = env.interface_in(hop.slot())?;
    translate::apply(packet, parsed, rewrite)?;
    let Some(()) = translate::set_macs(packet, egress.mac, hop) else {
        return Some(Step::drop(DropReason::Internal, Side::Source, parsed.length));
    };
    let (verdict, side) = direction(session_flags);
    Some(Step::sent(verdict, side, parsed.length, hop.slot()))
}
