//! `natgw top`: one walk over the sessions for all that it shows.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use super::control::{Controller, capacity, failed};
use crate::{
    api::{
        ControlError,
        top::{AddressUse, Top, TopQuery},
    },
    flows,
    talkers::Talkers,
};

/// The last look of anybody, from which rates are counted.
#[derive(Default)]
pub(super) struct LastLook(Mutex<Option<(Talkers, Instant)>>);

impl Controller {
    pub(super) fn look(&self, query: TopQuery) -> Result<Top, ControlError> {
        // One walk at a time, so that no look is compared with one that began after it.
        let mut last = self.last_look.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut view = self.view()?;
        let now = Instant::now();
        let (usage, talkers) = flows::usage_and_talkers(&mut view).map_err(failed)?;
        let before = last.as_ref().map(|(before, at)| (before, now.duration_since(*at)));
        let [hosts, destinations] = talkers.top(before, query.limit());
        *last = Some((talkers, now));
        drop(last);
        let statuses = self.address_statuses(&usage);
        let counters = self.counters_with(usage.sessions)?;
        let gateway = self.lock();
        let read = gateway.datapath.counters().map_err(failed)?;
        let addresses = statuses.into_iter().map(|status| AddressUse {
            capacity: capacity(&gateway, status.address),
            address: status.address,
            pool: status.pool,
            state: status.state,
            sessions: status.sessions,
            ports_in_use: status.ports_in_use,
        });
        Ok(Top {
            name: gateway.config.gateway.name.clone(),
            uptime_s: gateway.started.elapsed().as_secs(),
            sessions: usage.sessions,
            sessions_max: u64::from(gateway.config.gateway.sessions),
            sessions_created: read.sessions_created,
            addresses: addresses.collect(),
            counters,
            hosts,
            destinations,
        })
    }
}
