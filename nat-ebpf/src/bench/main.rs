//! Programs of `cargo xtask bench`: generator, sink, the wrapper that measures a translator alone, and the
//! least that a translator can do ([`floors`]). None of them is part of the product.
//!
//! Structures and numbers are shared with `xtask/src/bench/load.rs`, which cannot import this
//! crate; where the sizes differ, its access to the map fails.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![expect(clippy::needless_pass_by_value, reason = "the signature that aya's macros call")]

mod floors;
mod frame;
#[cfg(target_arch = "bpf")]
#[path = "../runtime.rs"]
mod runtime;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, xdp_action},
    macros::{classifier, map, xdp},
    maps::{Array, DevMap, PerCpuArray, ProgramArray},
    programs::{TcContext, XdpContext},
};

/// What all programs of one measurement share. Addresses in host byte order.
#[repr(C)]
#[derive(Clone, Copy)]
struct Settings {
    /// Destination and source MAC of a generated frame, from a private host and from a remote one.
    ethernet: [[u32; 3]; 2],
    /// Destination and source MAC that bare redirection writes.
    floor_ethernet: [u32; 3],
    /// One of [`frame::kind`].
    kind: u32,
    /// The kind of the frames in between.
    second_kind: u32,
    /// 0: all frames are of `kind`; 1: a random half of them is of `second_kind`, of the same
    /// flows; else of so many frames one is of `kind`, the others are of `second_kind`, each of
    /// a flow of its own.
    blend: u32,
    /// Bytes of a frame.
    length: u32,
    /// Where frames of the inbound kinds go to.
    public: u32,
    /// The destination of [`frame::kind::UDP_TO_ONE`].
    round: u32,
    /// Not 0: the generator drops its frames, so that it is measured alone.
    generator_only: u32,
    /// Source address that the sink expects; 0 accepts any.
    expected_source: u32,
    /// Not 0: the sink counts only UDP with the service's port, to or from.
    service_only: u32,
    /// Not 0: the sink recomputes the checksums of every frame.
    verify: u32,
    /// Lines of memory that [`floors`] look at, a power of two.
    lines: u32,
}

/// The flows of one CPU, and where it is in them.
#[repr(C)]
#[derive(Clone, Copy)]
struct Lane {
    random: u64,
    first: u32,
    flows: u32,
    next: u32,
    /// One of [`order`].
    order: u32,
    /// Frames so far of the current turn of a blend.
    turn: u32,
    /// The flow of the next frame of the second kind.
    second_next: u32,
}

/// In which order flows are taken; every other number: uniformly random.
mod order {
    /// One after the other, from the first again after the last.
    pub(crate) const SEQUENTIAL: u32 = 1;
    /// The n-th with a probability of about 1/n (Zipf's law with exponent 1).
    pub(crate) const ZIPF: u32 = 2;
}

/// What the sink saw on one CPU.
#[repr(C)]
#[derive(Clone, Copy)]
struct Arrivals {
    /// IPv4 frames of the load, all or those of the service.
    packets: u64,
    /// Of these, frames with a source other than the expected.
    wrong_source: u64,
    /// Of these, frames with a wrong checksum (only where `verify` is set).
    wrong_checksum: u64,
}

#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
static LANE: PerCpuArray<Lane> = PerCpuArray::with_max_entries(1, 0);
#[map]
static ARRIVALS: PerCpuArray<Arrivals> = PerCpuArray::with_max_entries(1, 0);
/// Where generated frames enter the network: the private endpoint's interface, the remote one's.
#[map]
static GENERATOR_PORT: DevMap = DevMap::with_max_entries(2, 0);
/// The translator that `rebuild` calls.
#[map]
static CALLEE: ProgramArray = ProgramArray::with_max_entries(1, 0);

impl Lane {
    #[inline(always)]
    fn random(&mut self) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.random
    }

    /// The number of the next flow, less than `flows`.
    #[inline(always)]
    fn flow(&mut self) -> u32 {
        if self.order == order::SEQUENTIAL {
            let number = self.next;
            self.next = if number + 1 >= self.flows { 0 } else { number + 1 };
            return number;
        }
        let random = self.random();
        if self.order != order::ZIPF {
            return (((random >> 32) * u64::from(self.flows)) >> 32) as u32;
        }
        // Each power of two of ranks is as likely as any other, and so are the ranks within.
        let powers = u64::from(32 - self.flows.leading_zeros());
        let power = (((random >> 32) * powers) >> 32) as u32 & 31;
        let within = (self.random() >> 32) as u32 & ((1 << power) - 1);
        let rank = (1 << power) + within - 1;
        if rank < self.flows { rank } else { rank >> 1 }
    }

    /// Kind and number of the next frame.
    #[inline(always)]
    fn frame(&mut self, settings: &Settings) -> (u32, u32) {
        if settings.blend > 1 {
            self.turn += 1;
            if self.turn < settings.blend {
                let number = self.second_next;
                self.second_next = number.wrapping_add(1);
                return (settings.second_kind, number & 0x3ff_ffff);
            }
            self.turn = 0;
        }
        let number = self.first + self.flow();
        let second = settings.blend == 1 && self.random & 1 << 20 != 0;
        (if second { settings.second_kind } else { settings.kind }, number)
    }
}

/// Writes the next flow's frame. None when a map or the buffer is missing.
#[inline(always)]
fn next_frame(ctx: &XdpContext) -> Option<(&'static Settings, u32)> {
    let settings = SETTINGS.get(0)?;
    let lane = LANE.get_ptr_mut(0)?;
    // SAFETY: the entry belongs to this CPU, and XDP programs of one CPU do not interrupt each
    // other.
    let (kind, number) = unsafe { &mut *lane }.frame(settings);
    let side = u32::from(frame::kind::is_inbound(kind));
    let ethernet = if side == 0 { &settings.ethernet[0] } else { &settings.ethernet[1] };
    let ends = frame::Endpoints::of_flow(kind, number, settings.public, settings.round);
    frame::write(ctx.data(), ctx.data_end(), ethernet, kind, settings.length, ends)
        .then_some((settings, side))
}

/// Generator: run by `BPF_PROG_TEST_RUN` with live frames.
#[xdp]
fn generate(ctx: XdpContext) -> u32 {
    match next_frame(&ctx) {
        Some((settings, side)) if settings.generator_only == 0 => {
            GENERATOR_PORT.redirect(side, 0).unwrap_or(xdp_action::XDP_ABORTED)
        }
        Some(_) => xdp_action::XDP_DROP,
        None => xdp_action::XDP_ABORTED,
    }
}

#[inline(always)]
fn arrive(data: usize, data_end: usize) {
    let (Some(settings), Some(arrivals)) = (SETTINGS.get(0), ARRIVALS.get_ptr_mut(0)) else {
        return;
    };
    if data + frame::HEADERS_LENGTH > data_end {
        return;
    }
    // SAFETY: inside the headers, checked above; the map entry belongs to this CPU.
    let (ethertype, source, arrivals) =
        unsafe { (*((data + 12) as *const u16), *((data + 26) as *const u32), &mut *arrivals) };
    if ethertype != 0x0800u16.to_be() {
        return;
    }
    // SAFETY: as above.
    let (source_port, port) =
        unsafe { (*((data + 34) as *const u16), *((data + 36) as *const u16)) };
    let service = frame::UDP_SERVICE.to_be();
    if settings.service_only != 0 && source_port != service && port != service {
        return;
    }
    arrivals.packets += 1;
    if settings.expected_source != 0 && source != settings.expected_source.to_be() {
        arrivals.wrong_source += 1;
    }
    if settings.verify != 0 && !frame::checksums_right(data, data_end) {
        arrivals.wrong_checksum += 1;
    }
}

/// Sink on the receiving endpoint, native XDP.
#[xdp]
fn sink(ctx: XdpContext) -> u32 {
    arrive(ctx.data(), ctx.data_end());
    xdp_action::XDP_DROP
}

/// Sink for paths that end in an skb, so that they pay for no conversion back to an XDP frame.
#[classifier]
fn sink_tc(ctx: TcContext) -> i32 {
    arrive(ctx.data(), ctx.data_end());
    TC_ACT_SHOT
}

/// Writes the next flow's frame and calls the translator: repeat mode does not reset the packet.
#[xdp(frags)]
fn rebuild(ctx: XdpContext) -> u32 {
    if next_frame(&ctx).is_none() {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: nothing on the stack needs dropping.
    unsafe { CALLEE.tail_call(&ctx, 0) };
    xdp_action::XDP_ABORTED
}

/// So that the host's lints read this file; there is nothing to run.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
