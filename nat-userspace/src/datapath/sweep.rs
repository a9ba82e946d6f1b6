//! What the sweep wants of the tables.

use nat_common::{agenda::Note, flow::FlowKey, maps, stage::request};

use super::{
    Datapath, Result,
    agenda::Agenda,
    batch::{Batches, BindingBatches, SessionBatches},
    run,
};

impl Datapath {
    /// A walk over all entries of the session table, inbound and outbound.
    ///
    /// # Errors
    /// None is expected.
    pub fn sessions(&self) -> Result<SessionBatches> {
        let mut sessions: SessionBatches = Batches::open(&self.pins.path, maps::SESSIONS)?;
        if let Some(cache) = self.cache.clone() {
            let fetching = cache.clone();
            sessions.complete_by(
                move |key| fetching.fetch(key),
                move |key, session| cache.bring_up_to_date(key, session),
            );
        }
        Ok(sessions)
    }

    /// A walk over both halves of all endpoint-independent bindings.
    ///
    /// # Errors
    /// None is expected.
    pub fn bindings(&self) -> Result<BindingBatches> {
        Batches::open(&self.pins.path, maps::BINDINGS)
    }

    /// Ends sessions, given by their outbound keys; `op` is of [`nat_common::stage::request`].
    /// Returns how many ended.
    ///
    /// # Errors
    /// None is expected.
    pub fn reap(&self, op: u32, keys: &[FlowKey]) -> Result<u32> {
        run::reap(&self.bpf, op, keys)
    }

    /// Looks at sessions and at ports that rest, up to [`request::BATCH`], and ends those whose time is up.
    /// Returns how many ended, and for each the ticks until it is to be looked at again, or
    /// [`request::GONE`].
    ///
    /// # Errors
    /// None is expected.
    pub fn look(&self, notes: &[Note]) -> Result<(u32, [u32; request::BATCH])> {
        run::look(&self.bpf, notes)
    }

    /// When the flow cache saw packets of these last, as far as it knows them. Takes no system call.
    #[must_use]
    pub fn seen_by_cache(&self, notes: &[Note]) -> Vec<Option<u32>> {
        match &self.cache {
            Some(cache) => cache.seen(notes),
            None => vec![None; notes.len()],
        }
    }

    /// What the sweep has to look at from now on.
    ///
    /// # Errors
    /// None is expected.
    pub fn agenda(&self) -> Result<Agenda> {
        Agenda::open(&self.pins.path)
    }
}
