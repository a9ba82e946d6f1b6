//! Entry points on the ingress of tc: each runs one stage of the engine and acts on what comes of it.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::bpf_redirect,
    macros::classifier,
    programs::TcContext,
};
use nat_common::{
    env::Tables as _,
    maps::{INTERFACE_SLOTS, SENT_MARK},
    rules::role,
    stage::{Out, Outcome, Side, Step, fast, hold},
    verdict::{DropReason, Verdict},
};

use crate::{
    account::count,
    frame::Frame,
    maps::{COUNTERS, HANDOFF, INTERFACES, STAGES},
    mode::{self, Env},
    stages::{every_stage, give_up, take_back},
    tables::Kernel,
};

/// Goes on to the next stage, or finishes.
#[inline(always)]
fn conclude(frame: &mut Frame, step: Step, first: bool) -> i32 {
    let outcome = match step {
        Step::Done(outcome) => outcome,
        Step::Go(stage) => {
            if first && let Some(handoff) = HANDOFF.get_ptr_mut(0) {
                // SAFETY: the value is this CPU's own.
                frame.leave(unsafe { &mut *handoff });
            }
            // SAFETY: the stages are programs of the same type, loaded together.
            unsafe { STAGES.tail_call(&frame.ctx, stage) };
            // Still here: the stage is missing, or packets went round too often.
            let Step::Done(outcome) = Step::drop(DropReason::Internal, Side::Destination, 0) else {
                return TC_ACT_SHOT;
            };
            outcome
        }
    };
    finish(frame, outcome)
}

/// The interface in the slot, and what it is to the gateway.
#[inline(always)]
fn interface(slot: u32) -> (u32, u8) {
    INTERFACES
        .get(slot & (INTERFACE_SLOTS - 1))
        .map_or((0, 0), |interface| (interface.ifindex, interface.role))
}

/// Sends the frame and counts it.
#[inline(always)]
fn finish(frame: &mut Frame, outcome: Outcome) -> i32 {
    let Outcome { verdict, side, bytes, out } = outcome;
    let mut verdict = verdict;
    let action = match out {
        Out::Slot(_) | Out::Back => {
            let (ifindex, sides) = match out {
                Out::Slot(_) if verdict == Verdict::Held => {
                    (Kernel::OUTSIDE.control().map_or(0, |control| control.slow_path), 0)
                }
                Out::Slot(slot) => interface(u32::from(slot)),
                _ => interface(frame.ingress),
            };
            if ifindex == 0 {
                verdict = Verdict::Drop(match verdict {
                    Verdict::Held => DropReason::SlowPathUnavailable,
                    _ => DropReason::EgressMissing,
                });
                TC_ACT_SHOT
            } else {
                if sides & role::PUBLIC != 0 {
                    frame.ctx.set_mark(SENT_MARK);
                }
                // SAFETY: no pointers.
                unsafe { bpf_redirect(ifindex, 0) as i32 }
            }
        }
        Out::None => match verdict {
            Verdict::ToHost => {
                if frame.returned != 0 {
                    frame.address_to(hold::DEVICE_MAC);
                }
                TC_ACT_UNSPEC
            }
            _ => TC_ACT_SHOT,
        },
    };
    mode::ended(frame, &outcome, verdict);
    let Some(counters) = COUNTERS.get_ptr_mut(0) else { return TC_ACT_SHOT };
    // SAFETY: the value is this CPU's own, and programs of one CPU do not nest.
    let counters = unsafe { &mut *counters };
    let (packets, bytes) = frame.weight(bytes);
    count(counters, side, verdict, packets, bytes, frame.returned);
    mode::leave(frame, action as u32) as i32
}

macro_rules! stages {
    ($($(#[$doc:meta])* $name:ident = $run:path;)*) => {$(
        $(#[$doc])*
        #[classifier]
        pub(crate) fn $name(ctx: TcContext) -> i32 {
            let env = Env::new(ctx.skb.skb.cast());
            let mut frame = Frame::new(ctx);
            // Cannot fail; going on would double the verifier's work.
            let Some(handoff) = HANDOFF.get(0) else { return TC_ACT_SHOT };
            frame.resume(handoff);
            let step = $run(&mut frame, &env);
            conclude(&mut frame, step, false)
        }
    )*};
}

/// On every interface of the gateway.
#[classifier]
pub(crate) fn natgw(ctx: TcContext) -> i32 {
    let env = Env::new(ctx.skb.skb.cast());
    let mut frame = Frame::received(ctx);
    mode::received(&frame);
    let step = if frame.is_tagged() {
        let (_, role) = interface(frame.ingress);
        Step::host(Side::of(role), 0)
    } else {
        fast::run(&mut frame, &env)
    };
    conclude(&mut frame, step, true)
}

/// On the slow path's tap device: a packet that the daemon returns goes the way of a new one, or
/// is counted under the reason for which the daemon gave it up.
#[classifier]
pub(crate) fn natgw_return(ctx: TcContext) -> i32 {
    let env = Env::new(ctx.skb.skb.cast());
    let mut frame = Frame::received(ctx);
    match hold::unwrap(&mut frame) {
        Ok(returned) => {
            let step = take_back(&mut frame, &env, returned);
            conclude(&mut frame, step, true)
        }
        Err(given_up) => {
            give_up(&env, given_up);
            TC_ACT_SHOT
        }
    }
}

every_stage!(stages);
