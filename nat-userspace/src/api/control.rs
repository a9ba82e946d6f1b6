//! What the control socket asks of the daemon.

use std::ops::ControlFlow;

use super::{
    capture::{CaptureRequest, Deliver},
    counters::Counters,
    details::Details,
    model::{AddressStatus, Counted, EipChange, Flow, FlowFilter, ForwardChange, Reloaded, Status},
    top::{Top, TopQuery},
    trace::{Trace, TraceQuery},
};
use crate::{config::Forward, flowlog::LogStatus};

/// The daemon, as seen from the socket. Every call runs on a thread that may block.
///
/// The text of an error reaches the user as the one line on stderr: say what failed, why, and what
/// to do about it.
pub trait Control: Send + Sync + 'static {
    /// # Errors
    /// The state cannot be read.
    fn status(&self) -> Result<Status, ControlError>;

    /// # Errors
    /// The counters cannot be read.
    fn counters(&self) -> Result<Counters, ControlError>;

    /// The counters, and how full things are, at one look.
    ///
    /// # Errors
    /// The state cannot be read.
    fn details(&self) -> Result<(Counters, Details), ControlError> {
        Ok((self.counters()?, Details::default()))
    }

    /// Since when the counters have counted.
    ///
    /// # Errors
    /// The state cannot be read.
    fn counted(&self) -> Result<Counted, ControlError> {
        Ok(Counted::default())
    }

    /// Totals of the moment, and who causes them. Also keeps what the next look is compared with.
    ///
    /// # Errors
    /// The state cannot be read.
    fn top(&self, _query: TopQuery) -> Result<Top, ControlError> {
        Ok(Top::default())
    }

    /// Shows `visit` every live session once, until it breaks. Filters are the caller's.
    ///
    /// # Errors
    /// The session table cannot be read.
    fn flows(&self, visit: &mut dyn FnMut(&Flow) -> ControlFlow<()>) -> Result<(), ControlError>;

    /// [`Self::flows`], those that match only; the limit is the caller's.
    ///
    /// # Errors
    /// The session table cannot be read.
    fn flows_of(
        &self,
        filter: &FlowFilter,
        visit: &mut dyn FnMut(&Flow) -> ControlFlow<()>,
    ) -> Result<(), ControlError> {
        self.flows(&mut |flow| {
            if filter.matches(flow) { visit(flow) } else { ControlFlow::Continue(()) }
        })
    }

    /// How many sessions match, up to the filter's limit.
    ///
    /// # Errors
    /// The session table cannot be read.
    fn count(&self, filter: &FlowFilter) -> Result<u64, ControlError> {
        let (mut count, limit) = (0, filter.limit.unwrap_or(u64::MAX));
        if limit == 0 {
            return Ok(0);
        }
        self.flows_of(filter, &mut |_| {
            count += 1;
            if count < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(count)
    }

    /// Ends the sessions that match, at most `filter.limit`, and says how many.
    ///
    /// # Errors
    /// Not all of them could be ended.
    fn flush(&self, filter: &FlowFilter) -> Result<u64, ControlError>;

    /// What would become of a packet. Changes nothing.
    ///
    /// # Errors
    /// There is no such packet or interface.
    fn trace(&self, query: &TraceQuery) -> Result<Trace, ControlError>;

    /// Brings packets as they come, as a pcapng file, until there is enough of them or nobody reads
    /// any more.
    ///
    /// # Errors
    /// Another capture runs, or the programs for it cannot be put in place.
    fn capture(
        &self,
        _request: &CaptureRequest,
        _deliver: &mut Deliver<'_>,
    ) -> Result<(), ControlError> {
        Err(ControlError::Refused("this gateway cannot capture".to_owned()))
    }

    /// # Errors
    /// The state cannot be read.
    fn eip_list(&self) -> Result<Vec<AddressStatus>, ControlError>;

    /// # Errors
    /// The address is in use already, or cannot be a pool's.
    fn eip_add(&self, change: &EipChange) -> Result<(), ControlError>;

    /// # Errors
    /// No pool has the address.
    fn eip_drain(&self, change: &EipChange) -> Result<(), ControlError>;

    /// # Errors
    /// No pool has the address.
    fn eip_remove(&self, change: &EipChange) -> Result<(), ControlError>;

    /// # Errors
    /// The state cannot be read.
    fn forward_list(&self) -> Result<Vec<Forward>, ControlError>;

    /// # Errors
    /// The forward conflicts with another, or its address is in no pool.
    fn forward_add(&self, change: &ForwardChange) -> Result<(), ControlError>;

    /// # Errors
    /// There is no such forward.
    fn forward_remove(&self, change: &ForwardChange) -> Result<(), ControlError>;

    /// Takes the changed file into use, or only says what that would do.
    ///
    /// # Errors
    /// The file has faults (all of them, in lines), or a step failed.
    fn reload(&self, dry_run: bool) -> Result<Reloaded, ControlError>;

    /// Where records of sessions go, and how many were lost.
    ///
    /// # Errors
    /// The counters cannot be read.
    fn log(&self) -> Result<LogStatus, ControlError> {
        Ok(LogStatus::default())
    }

    /// The operator is still there: `run --confirm` need not detach.
    ///
    /// # Errors
    /// Nothing waits for it.
    fn confirm(&self) -> Result<(), ControlError>;
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The request makes no sense now; HTTP 409.
    #[error("{0}")]
    Refused(String),
    /// There is no such thing; HTTP 404.
    #[error("{0}")]
    NotFound(String),
    /// The configuration is wrong, one fault a line; HTTP 422, exit status 2.
    #[error("{0}")]
    WrongConfig(String),
    /// The gateway could not; HTTP 500.
    #[error("{0}")]
    Failed(String),
}

impl From<anyhow::Error> for ControlError {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(format!("{error:#}"))
    }
}
