//! Row 3: a packet to a public address, without a session. A forward, a one-to-one mapping, a
//! binding whose filtering admits it, hairpin; else the host's, or unsolicited.

use crate::{
    answer,
    env::{Env, Packet},
    flow::Tuple,
    maps::stage,
    net::{Ip4, Port},
    parse::{Fragment, Kind, Parse, Parsed, ip_checksum_is_valid, parse, tcp_flags},
    rules::{Address, ForwardKey, OneToOneKey, address, control, pool, role},
    session::{Binding, BindingKey, HostKey, PermitKey, flags},
    stage::{FragmentKey, Side, Step, deliver, fragment, hold, verify},
    verdict::DropReason,
};

/// Whom a packet from outside is for.
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
    let Some(interface) = env.interface(packet.ingress()).copied() else {
        return Step::host(Side::Destination, 0);
    };
    let parsed = match parse(packet, interface.realm) {
        Parse::Ipv4(parsed) => parsed,
        Parse::Broken(reason) => return Step::drop(reason, Side::of(interface.role), 0),
        _ => return Step::host(Side::of(interface.role), 0),
    };
    let inside = interface.role & role::PRIVATE != 0 && is_inside(env, &parsed);
    let side = if inside { Side::Source } else { Side::Destination };
    let Some(public) = env.public_address(parsed.ip.dst) else {
        return Step::Go(stage::CLASSIFY);
    };
    let hairpin = env.control().is_some_and(|c| c.flags & control::HAIRPIN != 0);
    let mapped = public.flags & address::ONE_TO_ONE != 0;
    if mapped && (!inside || (hairpin && has_mapping(env, parsed.ip.src))) {
        return Step::Go(stage::STATELESS);
    }
    if inside && !hairpin {
        return unclaimed(env, &parsed, public.slot, public.flags, side, DropReason::HairpinOff);
    }
    let sound = parsed.fault.is_none() && parsed.fragment != Fragment::Later;
    let receiver = match (sound, mapped) {
        (false, _) => Err(DropReason::Unsolicited),
        (true, true) => server(env, &parsed),
        (true, false) => receiver(env, &parsed, inside),
    };
    let receiver = match receiver {
        Ok(receiver) => receiver,
        Err(reason) => {
            if inside && reason == DropReason::FilteredEndpoint {
                note_sent(env, &parsed);
            }
            return unclaimed(env, &parsed, public.slot, public.flags, side, reason);
        }
    };
    if inside {
        return hairpinned(packet, env, &parsed, receiver);
    }
    if parsed.kind == Kind::Tcp && !is_opening(&parsed) {
        return Step::drop(DropReason::Unsolicited, side, parsed.length);
    }
    // Checked here and not where the session is made: each way through these loops would be
    // one more for the verifier there.
    if !ip_checksum_is_valid(packet, &parsed) {
        return Step::drop(DropReason::MalformedIp, side, parsed.length);
    }
    if answer::has_partial_checksum(packet, &parsed) {
        return Step::drop(DropReason::PartialChecksum, side, parsed.length);
    }
    env.handoff(|handoff| {
        handoff.target = receiver.address;
        handoff.target_port = receiver.port;
        handoff.flags = u16::from(receiver.flags);
        handoff.pool = u32::from(receiver.pool);
        handoff.member = receiver.slot;
    });
    Step::Go(stage::ACCEPT)
}

#[inline(always)]
const fn is_opening(parsed: &Parsed) -> bool {
    tcp_flags::open(parsed.tcp_flags)
}

/// On an interface that is both sides, the source tells from where a packet comes.
#[inline(always)]
fn is_inside<E: Env>(env: &E, parsed: &Parsed) -> bool {
    env.snat_rule(parsed.ip.src).is_some() && env.host_address(parsed.ip.src).is_none()
}

#[inline(always)]
fn has_mapping<E: Env>(env: &E, private: Ip4) -> bool {
    env.one_to_one(&OneToOneKey { address: private, inbound: 0 }).is_some()
}

/// The private host of a one-to-one mapping, for one inside that has none: that one needs a
/// session, because its own address has to be translated, too.
#[inline(always)]
fn server<E: Env>(env: &E, parsed: &Parsed) -> Result<Receiver, DropReason> {
    if !matches!(parsed.kind, Kind::Tcp | Kind::Udp | Kind::QueryRequest) {
        return Err(DropReason::Unsolicited);
    }
    let key = OneToOneKey { address: parsed.ip.dst, inbound: 1 };
    let Some(mapping) = env.one_to_one(&key) else { return Err(DropReason::Unsolicited) };
    Ok(Receiver {
        address: mapping.address,
        port: parsed.key.tuple.dport,
        slot: mapping.slot,
        flags: 0,
        pool: 0,
    })
}

/// The binding of a private endpoint.
#[inline(always)]
fn binding_of<'a, E: Env>(env: &'a E, parsed: &Parsed) -> Option<&'a Binding> {
    let tuple = parsed.key.tuple;
    env.binding(&BindingKey {
        address: tuple.src,
        port: tuple.sport,
        protocol: parsed.ip.protocol,
        inbound: 0,
    })
}

/// Whom the receiver of a hairpinned packet knows as its sender: the public address that the
/// sender has, or is paired with.
#[inline(always)]
fn public_of<E: Env>(env: &E, parsed: &Parsed) -> Option<Ip4> {
    if let Some(binding) = binding_of(env, parsed) {
        return Some(binding.address);
    }
    let pool = env.snat_rule(parsed.ip.src)?.pool as u8;
    let key = HostKey { address: parsed.ip.src, realm: parsed.key.realm, pool, zero: [0; 2] };
    let slot = env.host(&key)?.address.get().checked_sub(1)?;
    Some(env.address(slot)?.address)
}

/// A hairpinned packet that its receiver's filtering refuses has been sent all the same: its
/// receiver may answer, as when two hosts open a way to each other.
#[inline(always)]
fn note_sent<E: Env>(env: &E, parsed: &Parsed) {
    let Some(binding) = binding_of(env, parsed) else { return };
    let id = binding.id;
    let permit = PermitKey {
        public: binding.address,
        remote: parsed.ip.dst,
        port: binding.port,
        protocol: parsed.ip.protocol,
        zero: 0,
    };
    env.permit_insert(&permit, id);
}

#[inline(always)]
fn receiver<E: Env>(env: &E, parsed: &Parsed, inside: bool) -> Result<Receiver, DropReason> {
    let (key, protocol) = (parsed.key.tuple, parsed.ip.protocol);
    if matches!(parsed.kind, Kind::Tcp | Kind::Udp) {
        if key.sport == Port::ZERO || key.dport == Port::ZERO {
            return Err(DropReason::Unsolicited);
        }
        let forward = ForwardKey { address: key.dst, port: key.dport, protocol, zero: 0 };
        if let Some(forward) = env.forward(&forward) {
            return Ok(Receiver {
                address: forward.address,
                port: forward.port,
                slot: u32::from(forward.slot),
                flags: flags::FORWARD,
                pool: 0,
            });
        }
    } else if parsed.kind != Kind::QueryRequest {
        return Err(DropReason::Unsolicited);
    }
    // An ICMP request from outside carries an identifier of its own: no binding can want it.
    if parsed.kind == Kind::QueryRequest {
        return Err(DropReason::Unsolicited);
    }
    let binding = BindingKey { address: key.dst, port: key.dport, protocol, inbound: 1 };
    let Some(inbound) = env.binding(&binding) else { return Err(DropReason::Unsolicited) };
    let private = BindingKey { address: inbound.address, port: inbound.port, protocol, inbound: 0 };
    let Some(outbound) = env.binding(&private) else { return Err(DropReason::Unsolicited) };
    let filtering = env.pool(outbound.pool).map_or(0, |pool| pool.filtering);
    let remote = if inside { public_of(env, parsed).unwrap_or(key.src) } else { key.src };
    let permit = PermitKey { public: key.dst, remote, port: key.dport, protocol, zero: 0 };
    let admitted = match filtering {
        pool::ENDPOINT_INDEPENDENT => true,
        pool::ADDRESS_DEPENDENT => env.permit(&permit) == Some(outbound.id),
        _ => false,
    };
    if !admitted {
        return Err(DropReason::FilteredEndpoint);
    }
    Ok(Receiver {
        address: private.address,
        port: private.port,
        slot: u32::from(outbound.slot),
        flags: flags::BINDING,
        pool: outbound.pool as u8,
    })
}

/// Nobody inside wants it. Where the host owns the address, its own sockets and ICMP are served.
#[inline(always)]
fn unclaimed<E: Env>(
    env: &E,
    parsed: &Parsed,
    slot: u32,
    public_flags: u32,
    side: Side,
    reason: DropReason,
) -> Step {
    let later = parsed.fragment == Fragment::Later;
    if later && env.fragment(&FragmentKey::of(parsed)).is_none() {
        return fragment::orphan(env, parsed, side);
    }
    if public_flags & address::HOST_OWNED == 0 {
        return refuse(env, parsed, side, reason);
    }
    let ports = parsed.kind == Kind::Tcp || parsed.kind == Kind::Udp;
    if !ports || later {
        return Step::host(side, parsed.length);
    }
    let port = parsed.key.tuple.dport.get();
    let ours = env.address(slot).is_some_and(|address| in_ranges(address, port));
    if !ours || env.socket(&parsed.key) {
        return Step::host(side, parsed.length);
    }
    refuse(env, parsed, side, reason)
}

/// A SYN that would be answered waits first: a connection that both ends open at once may yet come
/// about from inside (RFC 5382 REQ-4).
#[inline(always)]
fn refuse<E: Env>(env: &E, parsed: &Parsed, side: Side, reason: DropReason) -> Step {
    let syn = parsed.kind == Kind::Tcp
        && parsed.fault.is_none()
        && parsed.fragment == Fragment::Whole
        && is_opening(parsed);
    if syn && reason != DropReason::HairpinOff {
        return hold::syn(env, parsed, side, reason);
    }
    Step::drop(reason, side, parsed.length)
}

#[inline(always)]
fn in_ranges(address: &Address, port: u16) -> bool {
    address.ranges.iter().any(|r| r.last != 0 && port >= r.first && port <= r.last)
}

/// From inside to a public endpoint of another inside host: destination and source are
/// translated in one pass (RFC 4787 REQ-9, "external source IP address and port").
#[inline(always)]
fn hairpinned<P: Packet, E: Env>(
    packet: &mut P,
    env: &E,
    parsed: &Parsed,
    receiver: Receiver,
) -> Step {
    if parsed.kind == Kind::Tcp && !is_opening(parsed) {
        return Step::drop(DropReason::TcpNoSession, Side::Source, parsed.length);
    }
    let Some(rule) = env.snat_rule(parsed.ip.src) else {
        return Step::drop(DropReason::HairpinOff, Side::Source, parsed.length);
    };
    let target = Tuple {
        src: parsed.ip.src,
        dst: receiver.address,
        sport: parsed.key.tuple.sport,
        dport: receiver.port,
    };
    let query = deliver::query(packet, parsed, &target);
    let route = env.route(&query);
    let hop = match deliver::hop_of(env, parsed, route, Side::Source) {
        Ok(hop) => hop,
        Err(step) => return step,
    };
    env.handoff(|handoff| {
        handoff.pool = rule.pool;
        handoff.hop = hop.next.0;
        handoff.mtu = u32::from(hop.mtu);
        handoff.target = receiver.address;
        handoff.target_port = receiver.port;
        handoff.flags = u16::from(flags::OUTBOUND | flags::HAIRPIN);
        handoff.tried = 0;
    });
    Step::Go(verify::opening(parsed))
}
