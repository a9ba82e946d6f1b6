//! Entry points: each runs one stage of the engine and acts on what comes of it.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        TC_ACT_SHOT,
        xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX},
        xdp_md,
    },
    helpers::generated::{bpf_loop, bpf_redirect_map},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use nat_common::{
    agenda::Note,
    env::{Clock as _, Packet, Tables as _},
    flow::FlowKey,
    maps::{INTERFACE_SLOTS, stage},
    stage::{
        Out, Outcome, ReapRequest, Side, Step, begin, fast, hold,
        plain::{self, First, Forwarded},
        reap::{self, Look},
        request,
    },
    verdict::{DropReason, Verdict},
};

use crate::{
    account::count,
    frame::Frame,
    guard,
    maps::{COUNTERS, EGRESS, HANDOFF, STAGES},
    mode::{self, Env},
    stages::{every_stage, give_up, take_back},
    tables::Kernel,
};

/// Goes on to the next stage, or finishes.
#[inline(always)]
fn conclude(frame: &Frame, step: Step, first: bool) -> u32 {
    let outcome = match step {
        Step::Done(outcome) => outcome,
        Step::Go(stage) => {
            if first {
                keep_origin(frame);
            }
            mode::goes_on(stage);
            // SAFETY: the stages are programs of the same type, loaded together.
            unsafe { STAGES.tail_call(&frame.ctx, stage) };
            // Still here: the stage is missing, or packets went round too often.
            let Step::Done(outcome) = Step::drop(DropReason::Internal, Side::Destination, 0) else {
                return XDP_ABORTED;
            };
            outcome
        }
    };
    finish(frame, outcome)
}

#[inline(always)]
fn ingress_slot(frame: &Frame) -> u32 {
    frame.ingress() & (INTERFACE_SLOTS - 1)
}

/// Whether what goes back where it came from takes `XDP_TX`; what the daemon has returned did not come by there.
#[inline(always)]
fn bounces(frame: &Frame) -> bool {
    frame.returned == 0
        && Kernel::OUTSIDE.interface_in(ingress_slot(frame) as u16).is_some_and(|it| it.bounces())
}

/// [`DevMap::redirect`](aya_ebpf::maps::DevMap::redirect) in fewer instructions.
#[inline(always)]
fn redirect(slot: u32) -> bool {
    let map = (&raw const EGRESS).cast_mut().cast();
    // SAFETY: a device map, which the kernel knows by the address of its definition.
    unsafe { bpf_redirect_map(map, u64::from(slot), 0) == i64::from(XDP_REDIRECT) }
}

/// Sends a frame that the first look has translated, and counts it. `None`: it could not be sent.
///
/// Counted first: what follows a call waits for its return, which the kernel lets no processor guess (its
/// mitigations of speculative execution), and what comes before it does not.
#[inline(always)]
fn forward(frame: &Frame, forwarded: Forwarded) -> Option<u32> {
    let Forwarded { bytes, slot, flags, .. } = forwarded;
    if let Some(counters) = COUNTERS.get_ptr_mut(0) {
        // SAFETY: the value is this CPU's own, and programs of one CPU do not nest.
        unsafe { &mut *counters }.translate(flags, bytes);
    }
    if forwarded.bounces(ingress_slot(frame)) {
        return Some(XDP_TX);
    }
    if redirect(slot) {
        return Some(XDP_REDIRECT);
    }
    if let Some(counters) = COUNTERS.get_ptr_mut(0) {
        // SAFETY: as above.
        unsafe { &mut *counters }.take_back(flags, bytes);
    }
    None
}

/// Counts a frame that the first look drops; floods are made of these. Called for each kind by itself, so that the
/// compiler knows what is counted.
#[inline(always)]
fn discard(first: First) -> u32 {
    if let Some(Step::Done(Outcome { verdict, side, bytes, .. })) = first.step()
        && let Some(counters) = COUNTERS.get_ptr_mut(0)
    {
        // SAFETY: the value is this CPU's own, and programs of one CPU do not nest.
        let counters = unsafe { &mut *counters };
        count(counters, side, verdict, 1, u64::from(bytes), 0);
    }
    XDP_DROP
}

/// Sends the frame and counts it, in that order: what could not be sent is a drop.
#[inline(always)]
fn finish(frame: &Frame, outcome: Outcome) -> u32 {
    let Outcome { verdict, side, bytes, out } = outcome;
    let mut verdict = verdict;
    let action = match out {
        Out::Slot(slot) if u32::from(slot) == ingress_slot(frame) && bounces(frame) => XDP_TX,
        Out::Back if bounces(frame) => XDP_TX,
        Out::Slot(_) | Out::Back => {
            let slot = match out {
                Out::Slot(slot) => u32::from(slot),
                _ => ingress_slot(frame),
            };
            if redirect(slot) {
                XDP_REDIRECT
            } else {
                verdict = Verdict::Drop(match verdict {
                    Verdict::Held => DropReason::SlowPathUnavailable,
                    _ => DropReason::EgressMissing,
                });
                XDP_DROP
            }
        }
        Out::None => match verdict {
            Verdict::ToHost => {
                if frame.returned != 0 {
                    frame.address_to(hold::DEVICE_MAC);
                }
                XDP_PASS
            }
            _ => XDP_DROP,
        },
    };
    mode::ended(frame, &outcome, verdict);
    if !mode::COUNTS {
        return action;
    }
    let Some(counters) = COUNTERS.get_ptr_mut(0) else { return XDP_ABORTED };
    // SAFETY: the value is this CPU's own, and programs of one CPU do not nest.
    let counters = unsafe { &mut *counters };
    count(counters, side, verdict, 1, u64::from(bytes), frame.returned);
    mode::leave(frame, action)
}

macro_rules! stages {
    ($($(#[$doc:meta])* $name:ident = $run:path;)*) => {$(
        $(#[$doc])*
        #[xdp(frags)]
        pub(crate) fn $name(ctx: XdpContext) -> u32 {
            let env = Env::new(ctx.ctx.cast());
            let mut frame = Frame::new(ctx);
            // Cannot fail; going on would double the verifier's work.
            let Some(handoff) = HANDOFF.get(0) else { return XDP_ABORTED };
            frame.ingress = handoff.ingress;
            frame.returned = handoff.returned;
            let step = $run(&mut frame, &env);
            conclude(&frame, step, false)
        }
    )*};
}

#[inline(always)]
fn keep_origin(frame: &Frame) {
    if let Some(handoff) = HANDOFF.get_ptr_mut(0) {
        // SAFETY: the value is this CPU's own.
        unsafe {
            (*handoff).ingress = frame.ingress;
            (*handoff).returned = frame.returned;
        }
    }
}

/// On every interface of the gateway.
#[xdp(frags)]
pub(crate) fn natgw(ctx: XdpContext) -> u32 {
    let env = Env::new(ctx.ctx.cast());
    let mut frame = Frame::new(ctx);
    mode::received(&frame);
    // Who notes packets does so on the general way, which comes to the same. Beside the first look
    // that has a program of its own, or Linux 6.1 meets what the first look left on the stack.
    if !mode::PLAIN {
        let step = fast::run(&mut frame, &env);
        return conclude(&frame, step, true);
    }
    let step = match plain::run(&mut frame, &env) {
        First::Forwarded(forwarded) => match forward(&frame, forwarded) {
            Some(action) => return action,
            None => forwarded.step(),
        },
        First::Unsolicited(bytes) => return discard(First::Unsolicited(bytes)),
        First::Refused(bytes) => return discard(First::Refused(bytes)),
        First::New => {
            keep_origin(&frame);
            mode::goes_on(stage::BEGIN);
            // A call of its own, of a number that the kernel knows when it compiles: it becomes a jump.
            // SAFETY: the stages are programs of the same type, loaded together.
            unsafe { STAGES.tail_call(&frame.ctx, stage::BEGIN) };
            // It has no program: then by the general way.
            Step::Go(stage::FAST)
        }
        First::Undecided => Step::Go(stage::FAST),
    };
    conclude(&frame, step, true)
}

/// On the slow path's tap device: a packet that the daemon returns goes the way of a new one, or
/// is counted under the reason for which the daemon gave it up.
#[xdp(frags)]
pub(crate) fn natgw_return(ctx: XdpContext) -> u32 {
    let env = Env::new(ctx.ctx.cast());
    let mut frame = Frame::new(ctx);
    match hold::unwrap(&mut frame) {
        Ok(returned) => {
            let step = take_back(&mut frame, &env, returned);
            conclude(&frame, step, true)
        }
        Err(given_up) => {
            give_up(&env, given_up);
            XDP_DROP
        }
    }
}

every_stage!(stages);

stages! {
    natgw_begin = begin::run;
}

/// Sends a frame that the daemon made out of the interface that its mark names: by the way of the
/// host's own frames, which every interface has.
#[classifier]
pub(crate) fn natgw_emit(ctx: TcContext) -> i32 {
    // SAFETY: the context is the one the kernel gave.
    let ifindex = unsafe { (*ctx.skb.skb).mark };
    ctx.set_mark(0);
    match ctx.clone_redirect(ifindex, 0) {
        Ok(()) => 0,
        Err(_) => TC_ACT_SHOT,
    }
}

/// Ends sessions; run by the daemon, never attached. Returns how many ended.
#[xdp(frags)]
pub(crate) fn natgw_reaper(ctx: XdpContext) -> u32 {
    let kernel = Kernel::new(ctx.ctx.cast());
    let mut frame = Frame::new(ctx);
    let Some([op, count]) = frame.get::<[[u8; 4]; 2]>(REQUEST_OP).copied() else { return 0 };
    let (op, count) = (u32::from_le_bytes(op), u32::from_le_bytes(count));
    if op == request::NOW {
        let now = kernel.now();
        if let Some(slot) = frame.get::<[u8; 4]>(REQUEST_OP + 4) {
            *slot = now.to_le_bytes();
        }
        return 0;
    }
    let mut round = Round { ctx: kernel.ctx.cast(), op, ended: 0 };
    // A loop of the kernel's: the verifier walks through its body once and not for every key.
    // SAFETY: the callback is of the helper's type, and the round outlives the call.
    unsafe {
        bpf_loop(
            count.min(request::BATCH as u32),
            reap_key as *mut c_void,
            (&raw mut round).cast(),
            0,
        );
    }
    round.ended
}

/// One request to the reaper, as its loop sees it.
struct Round {
    ctx: *mut xdp_md,
    op: u32,
    ended: u32,
}

/// Reaps the key of this number. 1 ends the loop.
extern "C" fn reap_key(index: u64, round: *mut Round) -> u64 {
    // SAFETY: the helper passes on the address of the round.
    let round = unsafe { &mut *round };
    let frame = Frame::new(XdpContext::new(round.ctx));
    let kernel = Kernel::new(round.ctx.cast());
    let Some(key) = frame.list_entry::<FlowKey>(size_of_head(), index as usize) else { return 1 };
    if round.op != request::LOOK {
        round.ended += u32::from(reap::one(&kernel, round.op, &key));
        return 0;
    }
    let note = Note(key);
    let ticks = match reap::look(&kernel, &note) {
        Look::Gone => request::GONE,
        Look::Later(ticks) => ticks,
        Look::Over => {
            let ended = reap::one(&kernel, request::EXPIRE, &note.key());
            round.ended += u32::from(ended);
            // A packet may have come in between.
            if ended { request::GONE } else { 1 }
        }
    };
    frame.set_list_entry(ANSWERS, index as usize, ticks);
    0
}

const ANSWERS: usize = core::mem::offset_of!(ReapRequest, answers);
const REQUEST_OP: usize = core::mem::offset_of!(ReapRequest, op);

const fn size_of_head() -> usize {
    core::mem::offset_of!(ReapRequest, keys)
}

/// On the egress of public interfaces: what the host's own forwarding must not let out.
#[classifier]
pub(crate) fn natgw_guard(ctx: TcContext) -> i32 {
    guard::outer(&ctx)
}

/// On the ingress of private interfaces: what the host's own forwarding might let out where there
/// is no guard yet.
#[classifier]
pub(crate) fn natgw_inside(ctx: TcContext) -> i32 {
    guard::inner(&ctx)
}
