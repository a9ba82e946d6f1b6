//! The way to the slow path and back.
//!
//! XDP can neither keep a packet nor make two of one. What needs that is sent, unchanged behind a
//! [`Label`], to a tap device that the daemon serves; the daemon writes it back when its time has
//! come, and it goes on as if it had just arrived. With the daemon gone it is a drop.

use bytemuck::{Pod, Zeroable};

use crate::{
    answer,
    env::{Env, Packet},
    maps::{INTERFACE_SLOTS, stage},
    net::{Ip4, Mac},
    parse::{Parse, Parsed, parse},
    rules::control,
    stage::{Answer, Out, Outcome, Side, Step, deliver, fast},
    verdict::{DropReason, Verdict},
    wire::ETHERTYPE_IPV4,
};

/// Stands before a frame on the tap device. Written by the dataplane, returned by the daemon,
/// with `reason` set if it gives the packet up. Numbers in the machine's order.
#[repr(C, packed)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct Label {
    pub magic: [u8; 4],
    /// Interface that the frame came from.
    pub ingress: [u8; 4],
    /// See [`why`].
    pub why: u8,
    /// 0, or the drop reason plus one.
    pub reason: u8,
    /// Came from the private side.
    pub from_source: u8,
    /// Not 0: one more piece of a packet that was split. The first piece stands for the packet;
    /// of the others only the bytes are counted, so that every packet received is in one class.
    pub extra: u8,
    /// That of IPv4, at the place where the kernel looks for it in a frame that comes from the
    /// device: it strips the label of no other protocol's.
    pub ethertype: [u8; 2],
    pub zero: [u8; 2],
    /// Next hop to resolve.
    pub gateway: Ip4,
    /// Interface of the next hop; or the MTU to fragment to. With a reason: how many packets are
    /// given up, none of which follows.
    pub argument: [u8; 4],
    /// IP total length.
    pub length: [u8; 4],
}

/// Of the slow path's device, on which nothing but the gateway sends. A frame that came back and is
/// the host's is addressed to it, for the host takes no frame that is for another interface's.
pub const DEVICE_MAC: Mac = Mac([0x02, b'n', b'a', b't', b'g', b'w']);

impl Label {
    pub const MAGIC: [u8; 4] = *b"ngw1";
    pub const LEN: usize = size_of::<Self>();
}

/// Why a packet is held, in the order in which one packet can meet them all: a packet that came
/// back is held again only for a later reason, so that it cannot go round for ever.
pub mod why {
    /// A fragment before its first one.
    pub const FRAGMENT: u8 = 1;
    /// Larger than the MTU, and may be fragmented.
    pub const TOO_BIG: u8 = 2;
    /// Its next hop has no MAC address yet.
    pub const NEIGHBOUR: u8 = 3;
    /// An unsolicited SYN, whose answer has to wait (RFC 5382 REQ-4).
    pub const SYN: u8 = 4;
}

/// What is known of a packet that came back; 0 of one that was never there.
pub mod returned {
    /// The bits with [`why`](super::why) it was held.
    pub const WHY: u32 = 0xff;
    /// See [`Label::extra`](super::Label::extra).
    pub const EXTRA: u32 = 0x100;
    /// See [`Label::from_source`](super::Label::from_source).
    pub const FROM_SOURCE: u32 = 0x200;
}

/// A packet that came back to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Returned {
    /// Interface that it came from at first.
    pub ingress: u32,
    /// See [`returned`].
    pub bits: u32,
}

/// Packets that the daemon gave up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GivenUp {
    pub reason: DropReason,
    pub count: u32,
}

/// A packet that is worth waiting for; `refusal` if it cannot wait.
#[inline(always)]
pub fn ask<E: Env>(env: &E, label: Label, side: Side, bytes: u16, refusal: DropReason) -> Step {
    let served = env.control().is_some_and(|c| c.flags & control::SLOW_PATH != 0);
    let asked = env.handoff(|handoff| {
        if !served || u32::from(label.why) <= handoff.returned & returned::WHY {
            return false;
        }
        handoff.label = Label {
            magic: Label::MAGIC,
            ethertype: ETHERTYPE_IPV4,
            from_source: (side == Side::Source) as u8,
            length: u32::from(bytes).to_ne_bytes(),
            ..label
        };
        true
    });
    match asked {
        Some(true) => Step::Go(stage::HOLD),
        _ => Step::drop(refusal, side, bytes),
    }
}

/// An unsolicited SYN, which may be answered, but not yet. More than could be answered anyway are
/// not worth the daemon's time.
#[inline(always)]
pub fn syn<E: Env>(env: &E, parsed: &Parsed, side: Side, refusal: DropReason) -> Step {
    let Some(control) = env.control() else {
        return Step::drop(DropReason::Internal, side, parsed.length);
    };
    let (now, second) = (env.now(), control.hz);
    let worth = control.flags & control::HOLD_SYN != 0
        && env.handoff(|handoff| {
            if now.wrapping_sub(handoff.syn_window) >= second {
                handoff.syn_window = now;
                handoff.syns = 0;
            }
            handoff.syns = handoff.syns.wrapping_add(1);
            handoff.syns <= answer::PER_SECOND
        }) == Some(true);
    if !worth {
        return Step::drop(refusal, side, parsed.length);
    }
    let label = Label { why: why::SYN, ..Label::default() };
    ask(env, label, side, parsed.length, refusal)
}

/// First stage of a frame that came back: that of a new one, but for SYNs that have waited.
#[inline(always)]
pub fn resume<P: Packet, E: Env>(packet: &mut P, env: &E, bits: u32) -> Step {
    if bits & returned::WHY != u32::from(why::SYN) {
        return fast::run(packet, env);
    }
    let side = if bits & returned::FROM_SOURCE != 0 { Side::Source } else { Side::Destination };
    let realm = env.interface(packet.ingress()).map_or(0, |interface| interface.realm);
    let Parse::Ipv4(parsed) = parse(packet, realm) else {
        return Step::drop(DropReason::Internal, side, 0);
    };
    if env.session(&parsed.key).is_some() {
        return Step::drop(DropReason::HeldTimeout, side, parsed.length);
    }
    let source = deliver::answer_source(&parsed, side);
    deliver::ask(env, Answer::PortUnreachable, 0, source)
}

/// Stage: labels the frame and sends it to the daemon.
#[inline(always)]
pub fn run<P: Packet, E: Env>(packet: &mut P, env: &E) -> Step {
    let ingress = packet.ingress();
    let Some((mut label, back)) = env.handoff(|handoff| (handoff.label, handoff.returned)) else {
        return Step::drop(DropReason::Internal, Side::Destination, 0);
    };
    label.extra = (back & returned::EXTRA != 0) as u8;
    let side = if label.from_source != 0 { Side::Source } else { Side::Destination };
    let bytes = u32::from_ne_bytes(label.length) as u16;
    label.ingress = ingress.to_ne_bytes();
    let slow = env.control().map_or(0, |control| control.slow_path);
    if slow == 0 || !packet.extend(Label::LEN) {
        return Step::drop(DropReason::SlowPathUnavailable, side, bytes);
    }
    let Some(head) = packet.get::<Label>(0) else {
        return Step::drop(DropReason::Internal, side, bytes);
    };
    *head = label;
    Step::Done(Outcome {
        verdict: Verdict::Held,
        side,
        bytes,
        out: Out::Slot((slow & (INTERFACE_SLOTS - 1)) as u16),
    })
}

/// Takes the label off a frame that came back. `Err`: the daemon gave it up, or others like it.
#[inline(always)]
pub fn unwrap<P: Packet>(packet: &mut P) -> Result<Returned, GivenUp> {
    // Whatever else comes by that device was never received, and is no packet of the gateway's.
    let foreign = GivenUp { reason: DropReason::Internal, count: 0 };
    let Some(label) = packet.get::<Label>(0).copied() else { return Err(foreign) };
    if label.magic != Label::MAGIC {
        return Err(foreign);
    }
    if label.reason != 0 {
        let reason = DropReason::from_u8(label.reason.wrapping_sub(1));
        return Err(GivenUp {
            reason: reason.unwrap_or(DropReason::Internal),
            count: u32::from_ne_bytes(label.argument),
        });
    }
    if !packet.strip(Label::LEN) {
        return Err(GivenUp { reason: DropReason::Internal, count: 1 });
    }
    let extra = if label.extra != 0 { returned::EXTRA } else { 0 };
    let inside = if label.from_source != 0 { returned::FROM_SOURCE } else { 0 };
    let bits = u32::from(label.why) | extra | inside;
    Ok(Returned { ingress: u32::from_ne_bytes(label.ingress), bits })
}
