//! ICMP errors: matched by the packet they quote, and translated with it (RFC 5508 section 4).
//!
//! They neither make nor refresh nor end a session. Eight quoted bytes of transport header
//! suffice; a quoted checksum is kept right where it is quoted.

use crate::{
    checksum::Delta,
    env::{Env, Packet},
    flow::{FlowKey, Tuple},
    maps::stage,
    net::{Ip4, Port, proto},
    parse::{Parse, Parsed, parse},
    rules::{OneToOneKey, control, role},
    session::flags,
    stage::{FragmentKey, Side, Step, deliver, direction, end},
    translate,
    verdict::{DropReason, Verdict},
    wire::{Icmp, Ipv4, Ports},
};

/// The packet that the error is about.
#[derive(Clone, Copy, Debug)]
struct Quote {
    l3: usize,
    l4: usize,
    ip: Ipv4,
    tuple: Tuple,
    /// The identifier of a quoted query stands behind type, code and checksum.
    query: bool,
    /// Has ports: not a later fragment.
    ports: bool,
    /// Identification by which its sender knows it: fragments go out with another.
    id: [u8; 2],
}

/// What the quote and the outer addresses become.
#[derive(Clone, Copy, Debug)]
struct Change {
    quoted: Tuple,
    src: Ip4,
    dst: Ip4,
    verdict: Verdict,
    side: Side,
}

#[inline(always)]
pub fn run<P: Packet, E: Env>(packet: &mut P, env: &E) -> Step {
    let Some(interface) = env.interface(packet.ingress()).copied() else {
        return Step::host(Side::Destination, 0);
    };
    let side = Side::of(interface.role);
    let parsed = match parse(packet, interface.realm) {
        Parse::Ipv4(parsed) => parsed,
        Parse::Broken(reason) => return Step::drop(reason, side, 0),
        _ => return Step::host(side, 0),
    };
    let Some(mut quote) = quote(packet, &parsed) else {
        // A quote that cannot be read belongs to no session.
        return Step::Go(stage::CLASSIFY);
    };
    quote.find_fragment(env);
    let private = interface.role & role::PRIVATE != 0;
    let change = match by_session(env, &parsed, &quote, interface.realm) {
        Some(change) => change,
        None => match by_mapping(env, &parsed, &quote, private) {
            Some(change) => change,
            None => return Step::Go(stage::CLASSIFY),
        },
    };
    if env.handoff(|handoff| handoff.wrong != 0) == Some(true) {
        return Step::drop(DropReason::IcmpChecksum, change.side, parsed.length);
    }
    let to = Tuple { src: change.src, dst: change.dst, sport: Port::ZERO, dport: Port::ZERO };
    let query = deliver::query(packet, &parsed, &to);
    let route = env.route(&query);
    let hop = match deliver::hop_of(env, &parsed, route, change.side) {
        Ok(hop) => hop,
        // No error about an error (RFC 1122 section 3.2.2).
        Err(Step::Go(stage::ANSWER)) => {
            return Step::drop(DropReason::PacketTooBig, change.side, parsed.length);
        }
        Err(step) => return step,
    };
    if parsed.ip.ttl <= 1 {
        return Step::drop(DropReason::TtlExceeded, change.side, parsed.length);
    }
    let lost = Step::drop(DropReason::Internal, change.side, parsed.length);
    let Some(egress) = env.interface_in(hop.next.slot()).copied() else { return lost };
    if apply(packet, &parsed, &quote, &change).is_none()
        || translate::set_macs(packet, egress.mac, hop.next).is_none()
    {
        return lost;
    }
    Step::sent(change.verdict, change.side, parsed.length, hop.next.slot())
}

/// Reads the quoted packet with its own header length.
#[inline(always)]
fn quote<P: Packet>(packet: &mut P, parsed: &Parsed) -> Option<Quote> {
    let l3 = parsed.l4 + size_of::<Icmp>();
    let ip = *packet.get::<Ipv4>(l3)?;
    let header = ip.header_len();
    if ip.version_ihl >> 4 != 4 || header < Ipv4::MIN_LEN {
        return None;
    }
    let l4 = l3 + header;
    if usize::from(parsed.length) < l4 + 8 - parsed.l3 {
        return None;
    }
    let mut tuple = Tuple { src: ip.src, dst: ip.dst, sport: Port::ZERO, dport: Port::ZERO };
    let mut query = false;
    let ports = ip.fragment_bits() & Ipv4::OFFSET_MASK == 0;
    match ip.protocol {
        proto::TCP | proto::UDP if ports => {
            let ports = packet.get::<Ports>(l4)?;
            tuple.sport = ports.src;
            tuple.dport = ports.dst;
        }
        proto::ICMP if ports => {
            let icmp = packet.get::<Icmp>(l4)?;
            match icmp.kind {
                Icmp::ECHO | Icmp::TIMESTAMP | Icmp::ADDRESS_MASK => tuple.sport = icmp.id,
                Icmp::ECHO_REPLY | Icmp::TIMESTAMP_REPLY | Icmp::ADDRESS_MASK_REPLY => {
                    tuple.dport = icmp.id;
                }
                // An error about an error: dropped as having no session.
                _ => return None,
            }
            query = true;
        }
        _ => {}
    }
    Some(Quote { l3, l4, ip, tuple, query, ports, id: ip.id })
}

impl Quote {
    /// Of a fragment: what its sender called it, and where it belongs to if it has no ports.
    #[inline(always)]
    fn find_fragment<E: Env>(&mut self, env: &E) {
        let Ipv4 { src, dst, id, protocol, .. } = self.ip;
        if self.ip.fragment_bits() & (Ipv4::MORE_FRAGMENTS | Ipv4::OFFSET_MASK) == 0 {
            return;
        }
        let Some(note) = env.fragment(&FragmentKey::sent(src, dst, id, protocol)) else { return };
        self.id = note.new_id;
        if !self.ports {
            self.tuple = note.tuple;
        }
    }
}

/// The quoted packet was translated by a session: its other direction tells how.
#[inline(always)]
fn by_session<E: Env>(env: &E, parsed: &Parsed, quote: &Quote, realm: u8) -> Option<Change> {
    // The packet that made it travelled against this error, so the error has the key of a reply.
    let key = FlowKey::new(quote.tuple.reversed(), quote.ip.protocol, realm);
    let session = env.session(&key)?;
    let control = env.control()?;
    if !end::is_live(env, control, &key, session, env.now()) {
        return None;
    }
    // The quoted sender is who the error is for; anything else is forged.
    if parsed.ip.dst != { quote.ip.src } {
        return None;
    }
    let quoted = session.tuple.reversed();
    let (verdict, side) = direction(session.flags);
    let outbound = session.flags & (flags::OUTBOUND | flags::HAIRPIN) != 0;
    Some(Change {
        quoted,
        // Whoever inside sent it, outside it comes from the public address.
        src: if outbound { session.tuple.src } else { parsed.ip.src },
        dst: quoted.src,
        verdict,
        side,
    })
}

/// The quoted packet was translated by a one-to-one mapping.
#[inline(always)]
fn by_mapping<E: Env>(env: &E, parsed: &Parsed, quote: &Quote, private: bool) -> Option<Change> {
    if parsed.ip.dst != { quote.ip.src } {
        return None;
    }
    let mut quoted = quote.tuple;
    if private && let Some(out) = env.one_to_one(&OneToOneKey { address: quote.ip.dst, inbound: 0 })
    {
        quoted.dst = out.address;
        let hairpin = env.control().is_some_and(|c| c.flags & control::HAIRPIN != 0);
        let inward = env.one_to_one(&OneToOneKey { address: quote.ip.src, inbound: 1 });
        let verdict = match inward {
            Some(back) if hairpin => {
                quoted.src = back.address;
                Verdict::ToSource
            }
            _ => Verdict::ToDestination,
        };
        return Some(Change {
            quoted,
            src: out.address,
            dst: quoted.src,
            verdict,
            side: Side::Source,
        });
    }
    let back = env.one_to_one(&OneToOneKey { address: quote.ip.src, inbound: 1 })?;
    quoted.src = back.address;
    Some(Change {
        quoted,
        src: parsed.ip.src,
        dst: back.address,
        verdict: Verdict::ToSource,
        side: Side::Destination,
    })
}

/// Rewrites the quote, then the outer header. All changes enter the ICMP checksum, which covers
/// the quote; a change of a checksum field and of what it covers cancel out there.
#[inline(always)]
fn apply<P: Packet>(packet: &mut P, parsed: &Parsed, quote: &Quote, change: &Change) -> Option<()> {
    let (old, new) = (quote.tuple, change.quoted);
    let addresses = Delta::ZERO.address(old.src, new.src).address(old.dst, new.dst);
    let header = addresses.bytes2(quote.ip.id, quote.id);
    let mut icmp_delta = header;

    let ip = packet.get::<Ipv4>(quote.l3)?;
    ip.src = new.src;
    ip.dst = new.dst;
    ip.id = quote.id;
    let before = ip.checksum;
    ip.checksum = header.apply(before);
    icmp_delta = icmp_delta.bytes2(before, ip.checksum);

    if quote.ports {
        let ports = Delta::ZERO.port(old.sport, new.sport).port(old.dport, new.dport);
        if quote.query {
            let icmp = packet.get::<Icmp>(quote.l4)?;
            let before = icmp.checksum;
            icmp.id = if old.sport == Port::ZERO { new.dport } else { new.sport };
            icmp.checksum = ports.apply(before);
            icmp_delta = icmp_delta.and(ports).bytes2(before, icmp.checksum);
        } else if matches!(quote.ip.protocol, proto::TCP | proto::UDP) {
            let header = packet.get::<Ports>(quote.l4)?;
            header.src = new.sport;
            header.dst = new.dport;
            icmp_delta = icmp_delta.and(ports);
            let both = addresses.and(ports);
            // UDP's checksum is within the eight bytes; TCP's only in longer quotes.
            if quote.ip.protocol == proto::UDP {
                let field = packet.get::<[u8; 2]>(quote.l4 + 6)?;
                let before = *field;
                *field = both.apply_udp(before);
                icmp_delta = icmp_delta.bytes2(before, *field);
            } else if usize::from(parsed.length) >= quote.l4 + 18 - parsed.l3
                && let Some(field) = packet.get::<[u8; 2]>(quote.l4 + 16)
            {
                let before = *field;
                *field = both.apply(before);
                icmp_delta = icmp_delta.bytes2(before, *field);
            }
        }
    }
    let icmp = packet.get::<Icmp>(parsed.l4)?;
    icmp.checksum = icmp_delta.apply(icmp.checksum);

    let outer = Delta::ZERO
        .address(parsed.ip.src, change.src)
        .address(parsed.ip.dst, change.dst)
        .bytes2([parsed.ip.ttl, 0], [parsed.ip.ttl.wrapping_sub(1), 0]);
    let ip = packet.get::<Ipv4>(parsed.l3)?;
    ip.src = change.src;
    ip.dst = change.dst;
    ip.ttl = ip.ttl.wrapping_sub(1);
    ip.checksum = outer.apply(ip.checksum);
    Some(())
}
