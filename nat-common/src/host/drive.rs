//! Drives a frame through the stages as the BPF programs do, and counts it as they do.

use std::vec::Vec;

use crate::{
    answer,
    env::Tables as _,
    host::{HostFrame, World},
    maps::{INTERFACE_SLOTS, stage},
    stage::{
        Out, Outcome, Side, Step, accept, begin, bind, classify, error, fast, fragment, hit,
        hold::{self, GivenUp, Returned, returned},
        inbound, open, open_busy, plain, seek, send, stateless, verify,
    },
    verdict::{DropReason, Verdict},
};

/// Tail calls that the kernel allows one frame (MAX_TAIL_CALL_CNT).
pub const TAIL_CALLS: usize = 33;

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub outcome: Outcome,
    /// The frame as it is after the last stage; the original one where it is the host's.
    pub frame: Vec<u8>,
    /// Numbers of the stages after the first one.
    pub stages: Vec<u32>,
}

impl Run {
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        self.outcome.verdict
    }
}

impl World {
    /// A frame that an interface received.
    pub fn receive(&self, ingress: u32, bytes: &[u8]) -> Run {
        self.drive(HostFrame::new(ingress, bytes), 0, true)
    }

    /// The same without the first look, which has to come to the same.
    pub fn receive_the_general_way(&self, ingress: u32, bytes: &[u8]) -> Run {
        self.drive(HostFrame::new(ingress, bytes), 0, false)
    }

    /// A frame that the daemon returns by the slow path's device; `None`: it was given up.
    pub fn take_back(&self, labelled: &[u8]) -> Option<Run> {
        let mut frame = HostFrame::new(0, labelled);
        match hold::unwrap(&mut frame) {
            Ok(Returned { ingress, bits }) => {
                frame.ingress = ingress;
                Some(self.drive(frame, bits, false))
            }
            Err(GivenUp { reason, count }) => {
                self.counters(|counters| {
                    counters.packets_released += u64::from(count);
                    counters.drop_some(reason, u64::from(count));
                });
                None
            }
        }
    }

    fn drive(&self, mut frame: HostFrame, returned: u32, looks: bool) -> Run {
        let ingress = frame.ingress;
        self.handoff(|handoff| {
            handoff.ingress = ingress;
            handoff.returned = returned;
        });
        let mut stages = Vec::new();
        let first = if looks { plain::run(&mut frame, self).step() } else { None };
        let mut step = first.unwrap_or_else(|| hold::resume(&mut frame, self, returned));
        let outcome = loop {
            let next = match step {
                Step::Done(outcome) => break self.sendable(outcome, ingress),
                Step::Go(next) => next,
            };
            if stages.len() == TAIL_CALLS {
                break lost();
            }
            stages.push(next);
            step = match self.stage(next, &mut frame) {
                Some(step) => step,
                None => break lost(),
            };
        };
        self.count(&outcome, returned);
        Run { outcome, frame: frame.bytes, stages }
    }

    fn stage(&self, number: u32, frame: &mut HostFrame) -> Option<Step> {
        Some(match number {
            stage::HIT => hit::run(frame, self),
            stage::CLASSIFY => classify::run(frame, self),
            stage::OPEN => open::run(frame, self),
            stage::OPEN_BUSY => open_busy::run(frame, self),
            stage::INBOUND => inbound::run(frame, self),
            stage::ERROR => error::run(frame, self),
            stage::FRAGMENT => fragment::run(frame, self),
            stage::ANSWER => answer::run(frame, self),
            stage::STATELESS => stateless::run(frame, self),
            stage::BIND => bind::run(frame, self),
            stage::JOIN => bind::join(frame, self),
            stage::ACCEPT => accept::run(frame, self),
            stage::HOLD => hold::run(frame, self),
            stage::VERIFY => verify::run(frame, self),
            stage::SEEK => seek::run(frame, self),
            stage::SEND => send::run(frame, self),
            stage::RECLAIM => seek::reclaim(frame, self),
            stage::FAST => fast::run(frame, self),
            stage::BEGIN => begin::run(frame, self),
            _ => return None,
        })
    }

    /// What could not be sent is a drop.
    fn sendable(&self, mut outcome: Outcome, ingress: u32) -> Outcome {
        if let Out::Slot(slot) = outcome.out
            && u32::from(slot) != ingress & (INTERFACE_SLOTS - 1)
            && self.interface_in(slot).is_none_or(|egress| egress.ifindex == 0)
        {
            outcome.verdict = Verdict::Drop(match outcome.verdict {
                Verdict::Held => DropReason::SlowPathUnavailable,
                _ => DropReason::EgressMissing,
            });
        }
        outcome
    }

    /// Counts what became of a frame; `back`: whether it came back from the slow path.
    pub fn count(&self, outcome: &Outcome, back: u32) {
        let bytes = u64::from(outcome.bytes);
        let packets = u64::from(back & returned::EXTRA == 0);
        self.counters(|counters| {
            match outcome.side {
                _ if back != 0 => counters.packets_released += packets,
                Side::Source => {
                    counters.packets_in_from_source += 1;
                    counters.bytes_in_from_source += bytes;
                }
                Side::Destination => {
                    counters.packets_in_from_destination += 1;
                    counters.bytes_in_from_destination += bytes;
                }
            }
            match outcome.verdict {
                Verdict::ToDestination => {
                    counters.packets_out_to_destination += packets;
                    counters.bytes_out_to_destination += bytes;
                }
                Verdict::ToSource => {
                    counters.packets_out_to_source += packets;
                    counters.bytes_out_to_source += bytes;
                }
                Verdict::ToHost => counters.packets_to_host += packets,
                Verdict::Answered => counters.packets_answered += packets,
                Verdict::Held => counters.packets_held += packets,
                Verdict::Drop(reason) => counters.drop_some(reason, packets),
            }
        });
    }
}

fn lost() -> Outcome {
    Outcome {
        verdict: Verdict::Drop(DropReason::Internal),
        side: Side::Destination,
        bytes: 0,
        out: Out::None,
    }
}
