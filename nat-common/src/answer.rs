//! What the gateway says itself: ARP replies, ICMP errors, TCP resets.

use crate::{
    checksum::Sum,
    env::{Env, Packet},
    net::{Ip4, Mac, Port, proto},
    parse::{Fragment, Kind, Parse, Parsed, parse, tcp_flags},
    rules::{Interface, address, role},
    session::NextHop,
    stage::{Answer, Side, Step},
    translate,
    verdict::DropReason,
    wire::{Arp, Ethernet, Icmp, Ipv4, Tcp, Udp},
};

/// Answers a second and CPU; above it packets are dropped as `rate_limited`.
pub const PER_SECOND: u32 = 1000;
/// TTL of what the gateway makes.
const TTL: u8 = 64;
/// Words of a quoted header with all its options, and eight bytes of payload.
const QUOTE_WORDS: usize = 17;

/// Whether a fresh packet's checksum is nothing but the pseudo-header's sum: its sender has
/// offloaded the rest to hardware that does not exist. A right checksum looks like that once in
/// 65,536 packets, so small packets are summed up before they are accused.
#[inline(always)]
pub fn has_partial_checksum<P: Packet>(packet: &mut P, parsed: &Parsed) -> bool {
    let Some((at, pseudo)) = looks_partial(packet, parsed) else { return false };
    let payload = payload(parsed);
    if packet.is_pending(at) {
        return false;
    }
    // Sum of everything with the field in place: valid means it was a coincidence.
    const SUMMED: usize = 32;
    if payload > 2 * SUMMED {
        return parsed.kind == Kind::Tcp;
    }
    let mut sum = pseudo;
    for index in 0..SUMMED {
        let offset = 2 * index;
        if offset + 2 <= payload {
            let Some(word) = packet.get::<[u8; 2]>(parsed.l4 + offset) else { return false };
            sum = sum.add(*word);
        } else if offset < payload {
            // As the second of two: kernels before 6.2 conclude nothing from the check for one.
            let last = parsed.l4 + offset - 1;
            let Some([_, byte]) = packet.get::<[u8; 2]>(last) else { return false };
            sum = sum.add([*byte, 0]);
        }
    }
    !sum.is_valid()
}

/// Bytes behind the IP header.
#[inline(always)]
const fn payload(parsed: &Parsed) -> usize {
    (parsed.length as usize).saturating_sub(parsed.l4 - parsed.l3)
}

/// Where the checksum stands, and the pseudo-header's sum, if they are equal.
#[inline(always)]
pub fn looks_partial<P: Packet>(packet: &mut P, parsed: &Parsed) -> Option<(usize, Sum)> {
    let at = match parsed.kind {
        Kind::Tcp => parsed.l4 + Tcp::CHECKSUM,
        Kind::Udp => parsed.l4 + Udp::CHECKSUM,
        _ => return None,
    };
    if parsed.fragment != Fragment::Whole {
        return None;
    }
    let field = packet.get::<[u8; 2]>(at).copied()?;
    let pseudo = Sum::ZERO
        .add4(parsed.ip.src.octets())
        .add4(parsed.ip.dst.octets())
        .add([0, parsed.ip.protocol])
        .add((payload(parsed) as u16).to_be_bytes());
    (field == pseudo.folded() && field != [0, 0]).then_some((at, pseudo))
}

/// Answers ARP for the addresses that the gateway serves and the host does not own (RFC 826).
#[inline(always)]
pub fn arp<P: Packet, E: Env>(
    packet: &mut P,
    env: &E,
    offset: usize,
    interface: &Interface,
) -> Step {
    const REQUEST: [u8; 2] = [0, 1];
    const REPLY: [u8; 2] = [0, 2];
    let side = Side::of(interface.role);
    let host = Step::host(side, 0);
    if interface.role & role::PUBLIC == 0 {
        return host;
    }
    let Some(arp) = packet.get::<Arp>(offset) else { return host };
    if arp.hardware != [0, 1]
        || arp.protocol != [8, 0]
        || arp.hardware_len != 6
        || arp.protocol_len != 4
        || arp.operation != REQUEST
        || { arp.sender_ip } == { arp.target_ip }
    {
        return host;
    }
    let asked = arp.target_ip;
    match env.public_address(asked) {
        Some(public) if public.flags & address::ANSWER_ARP != 0 => {}
        _ => return host,
    }
    let Some(arp) = packet.get::<Arp>(offset) else { return host };
    arp.operation = REPLY;
    arp.target_mac = arp.sender_mac;
    arp.target_ip = arp.sender_ip;
    arp.sender_mac = interface.mac;
    arp.sender_ip = asked;
    let Some(ethernet) = packet.get::<Ethernet>(0) else { return host };
    let asker = ethernet.src;
    match translate::set_macs(packet, interface.mac, NextHop::new(asker.0, 0)) {
        Some(()) => Step::answered(side, 0),
        None => host,
    }
}

/// Stage: makes the answer of the handoff out of the packet that it is about.
#[inline(always)]
pub fn run<P: Packet, E: Env>(packet: &mut P, env: &E) -> Step {
    let Some(interface) = env.interface(packet.ingress()).copied() else {
        return Step::host(Side::Destination, 0);
    };
    let Parse::Ipv4(parsed) = parse(packet, interface.realm) else {
        return Step::drop(DropReason::Internal, Side::of(interface.role), 0);
    };
    let now = env.now();
    let second = env.control().map_or(1, |control| control.hz);
    let Some((limited, what, mtu, source)) = env.handoff(|handoff| {
        if now.wrapping_sub(handoff.window) >= second {
            handoff.window = now;
            handoff.answered = 0;
        }
        handoff.answered = handoff.answered.wrapping_add(1);
        (handoff.answered > PER_SECOND, handoff.answer, handoff.mtu, handoff.source)
    }) else {
        return Step::drop(DropReason::Internal, Side::of(interface.role), parsed.length);
    };
    let side = if source == parsed.ip.dst && what != Answer::Reset as u32 {
        Side::Destination
    } else {
        Side::Source
    };
    if limited {
        return Step::drop(DropReason::RateLimited, side, parsed.length);
    }
    let source = if source.is_unspecified() { interface.address } else { source };
    if what == Answer::Reset as u32 {
        return match reset(packet, &parsed, &interface) {
            Some(()) => Step::answered(side, parsed.length),
            None => Step::drop(DropReason::TcpNoSession, side, parsed.length),
        };
    }
    let (kind, code, refusal) = if what == Answer::TtlExceeded as u32 {
        (Icmp::TIME_EXCEEDED, 0, DropReason::TtlExceeded)
    } else if what == Answer::FragmentationNeeded as u32 {
        (Icmp::UNREACHABLE, Icmp::CODE_FRAGMENTATION_NEEDED, DropReason::PacketTooBig)
    } else if what == Answer::AdminProhibited as u32 {
        (Icmp::UNREACHABLE, Icmp::CODE_ADMIN_PROHIBITED, DropReason::ErrorPortAllocation)
    } else if what == Answer::PortUnreachable as u32 {
        (Icmp::UNREACHABLE, Icmp::CODE_PORT, DropReason::Unsolicited)
    } else {
        return Step::drop(DropReason::Internal, side, parsed.length);
    };
    // RFC 1122 section 3.2.2: never about an ICMP error or a later fragment.
    if parsed.kind == Kind::Error
        || parsed.fragment == Fragment::Later
        || source.is_unspecified()
        || parsed.ip.src.is_never_translated()
    {
        return Step::drop(refusal, side, parsed.length);
    }
    let mtu = if what == Answer::FragmentationNeeded as u32 { mtu as u16 } else { 0 };
    match error(packet, &parsed, &interface, source, kind, code, mtu) {
        Some(()) => Step::answered(side, parsed.length),
        None => Step::drop(refusal, side, parsed.length),
    }
}

/// The sender's MAC address, before the frame is reshaped.
#[inline(always)]
fn sender<P: Packet>(packet: &mut P) -> Option<Mac> {
    Some(packet.get::<Ethernet>(0)?.src)
}

#[inline(always)]
fn put_ethernet<P: Packet>(packet: &mut P, interface: &Interface, to: Mac) -> Option<()> {
    let ethernet = packet.get::<Ethernet>(0)?;
    ethernet.src = interface.mac;
    ethernet.dst = to;
    ethernet.ethertype = crate::wire::ETHERTYPE_IPV4;
    Some(())
}

#[inline(always)]
fn put_ipv4<P: Packet>(
    packet: &mut P,
    protocol: u8,
    src: Ip4,
    dst: Ip4,
    length: u16,
) -> Option<()> {
    let mut ip = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        total_length: length.to_be_bytes(),
        id: [0; 2],
        fragment: [0; 2],
        ttl: TTL,
        protocol,
        checksum: [0; 2],
        src,
        dst,
    };
    ip.checksum = Sum::ZERO
        .add([ip.version_ihl, 0])
        .add(ip.total_length)
        .add([TTL, protocol])
        .add4(src.octets())
        .add4(dst.octets())
        .checksum();
    *packet.get::<Ipv4>(size_of::<Ethernet>())? = ip;
    Some(())
}

/// An ICMP error about the packet, quoting its IP header and eight bytes.
#[inline(always)]
fn error<P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    interface: &Interface,
    source: Ip4,
    kind: u8,
    code: u8,
    mtu: u16,
) -> Option<()> {
    const ETHERNET: usize = size_of::<Ethernet>();
    const ADDED: usize = size_of::<Ipv4>() + size_of::<Icmp>();
    let to = sender(packet)?;
    let quoted = parsed.l4 - parsed.l3 + 8;
    if parsed.l3 != ETHERNET || usize::from(parsed.length) < quoted {
        return None;
    }
    if !packet.reshape(ADDED, ETHERNET + quoted) {
        return None;
    }
    put_ethernet(packet, interface, to)?;
    put_ipv4(packet, proto::ICMP, source, parsed.ip.src, (ADDED + quoted) as u16)?;
    let mut sum = Sum::ZERO.add([kind, code]).add(mtu.to_be_bytes());
    for index in 0..QUOTE_WORDS {
        let offset = 4 * index;
        if offset + 4 > quoted {
            break;
        }
        sum = sum.add4(*packet.get::<[u8; 4]>(ETHERNET + ADDED + offset)?);
    }
    *packet.get::<Icmp>(ETHERNET + size_of::<Ipv4>())? =
        Icmp { kind, code, checksum: sum.checksum(), id: Port::ZERO, low: mtu.to_be_bytes() };
    Some(())
}

/// A reset of the connection that the segment believes in.
#[inline(always)]
fn reset<P: Packet>(packet: &mut P, parsed: &Parsed, interface: &Interface) -> Option<()> {
    const ETHERNET: usize = size_of::<Ethernet>();
    const LENGTH: usize = size_of::<Ipv4>() + size_of::<Tcp>();
    let to = sender(packet)?;
    if parsed.l3 != ETHERNET {
        return None;
    }
    let segment = *packet.get::<Tcp>(parsed.l4)?;
    let header = usize::from(segment.offset >> 4) << 2;
    let data = usize::from(parsed.length).checked_sub(parsed.l4 - parsed.l3 + header)? as u32;
    // RFC 793: the sequence number that the peer acknowledges, if it does; else zero, and an
    // acknowledgement of all that it sent.
    let (seq, ack, flags) = if segment.flags & tcp_flags::ACK != 0 {
        (segment.ack, [0; 4], tcp_flags::RST)
    } else {
        let control = u32::from(segment.flags & tcp_flags::SYN != 0)
            + u32::from(segment.flags & tcp_flags::FIN != 0);
        let end = u32::from_be_bytes(segment.seq).wrapping_add(data).wrapping_add(control);
        ([0; 4], end.to_be_bytes(), tcp_flags::RST | tcp_flags::ACK)
    };
    if !packet.reshape(0, ETHERNET + LENGTH) {
        return None;
    }
    put_ethernet(packet, interface, to)?;
    let (src, dst) = (parsed.ip.dst, parsed.ip.src);
    put_ipv4(packet, proto::TCP, src, dst, LENGTH as u16)?;
    let mut tcp = Tcp {
        src: segment.dst,
        dst: segment.src,
        seq,
        ack,
        offset: 5 << 4,
        flags,
        window: [0; 2],
        checksum: [0; 2],
        urgent: [0; 2],
    };
    tcp.checksum = Sum::ZERO
        .add4(src.octets())
        .add4(dst.octets())
        .add([0, proto::TCP])
        .add((size_of::<Tcp>() as u16).to_be_bytes())
        .add(tcp.src.raw().to_ne_bytes())
        .add(tcp.dst.raw().to_ne_bytes())
        .add4(seq)
        .add4(ack)
        .add([tcp.offset, tcp.flags])
        .checksum();
    *packet.get::<Tcp>(ETHERNET + size_of::<Ipv4>())? = tcp;
    Some(())
}
