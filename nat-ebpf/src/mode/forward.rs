//! The dataplane itself: packets are forwarded and counted, and nothing is told of them.

use nat_common::{stage::Outcome, verdict::Verdict};

use crate::frame::Frame;
pub(crate) use crate::tables::Kernel as Env;

/// Whether packets count.
pub(crate) const COUNTS: bool = true;

/// Whether plain packets have a way of their own; the general one comes to the same.
pub(crate) const PLAIN: bool = true;

/// A packet has come.
#[inline(always)]
pub(crate) fn received(_frame: &Frame) {}

/// It goes on to another stage.
#[inline(always)]
pub(crate) fn goes_on(_stage: u32) {}

/// Its way has ended; `verdict` is what counts, for the outcome's may have failed at the last.
#[inline(always)]
pub(crate) fn ended(_frame: &Frame, _outcome: &Outcome, _verdict: Verdict) {}

/// The end of the program; what it returns.
#[inline(always)]
pub(crate) fn leave(_frame: &Frame, action: u32) -> u32 {
    action
}
