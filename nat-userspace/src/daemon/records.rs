//! The flow log of the running gateway.

use anyhow::{Context as _, Result};
use jiff::{SignedDuration, Timestamp};

use super::gateway::Gateway;
use crate::{
    api::ControlError,
    config::{Config, LogFormat},
    datapath::{Datapath, ticks_per_second},
    flowlog::{Anchor, FlowLog, LogStatus},
    flows::View,
};

impl Gateway {
    /// Opens what `config` wants written, and writes there from now on. Nothing has changed where
    /// that fails.
    pub(super) fn configure_log(&mut self, config: &Config) -> Result<()> {
        if config.log.is_none() && self.flow_log.is_none() {
            return Ok(());
        }
        let log = match &mut self.flow_log {
            Some(log) => log,
            None => {
                let ring = self.datapath.records();
                let ring = ring.context("the records of the dataplane are taken already")?;
                let hz = ticks_per_second().context("cannot ask for the length of a tick")?;
                let anchor = anchor(&self.datapath, hz)?;
                let gateway = &config.gateway;
                let reported = gateway.state_dir.join(format!("{}.reported", gateway.name));
                self.flow_log.insert(FlowLog::start(ring, anchor, &reported)?)
            }
        };
        log.configure(config)
    }

    /// Once a second: the time, the losses, and the living sessions when they are to be reported.
    pub(super) fn follow_log(&mut self, missed: u64) -> Result<()> {
        let Some(log) = &mut self.flow_log else { return Ok(()) };
        let hz = self.datapath.control()?.hz;
        log.follow(anchor(&self.datapath, hz)?, missed);
        if log.is_report_due() {
            log.report(View::open(&self.datapath)?);
        }
        Ok(())
    }

    pub(super) fn log_status(&self) -> Result<LogStatus, ControlError> {
        let log = self.config.log.as_ref();
        let file = log.and_then(|log| log.file.as_ref());
        let (written, lost) = self.flow_log.as_ref().map(FlowLog::tally).unwrap_or_default();
        let missed = self.datapath.counters().map_err(super::control::failed)?.records_lost;
        let word = |format: &LogFormat| match format {
            LogFormat::Json => "json".to_owned(),
            LogFormat::Vpc(_) => "vpc".to_owned(),
        };
        Ok(LogStatus {
            file: file.map(|file| file.path.clone()),
            format: file.map(|file| word(&file.format)),
            ipfix: log.and_then(|log| log.ipfix).map(|it| it.collector.to_string()),
            written,
            lost: lost + missed,
        })
    }
}

/// Both clocks at one moment, as far as this thread was let run between the two.
fn anchor(datapath: &Datapath, hz: u32) -> Result<Anchor> {
    const TRIES: u32 = 5;
    const EXACT: SignedDuration = SignedDuration::from_millis(2);
    let mut tries = 0;
    loop {
        let (before, ticks, wall) = (Timestamp::now(), datapath.now()?, Timestamp::now());
        tries += 1;
        if wall.duration_since(before) <= EXACT || tries == TRIES {
            return Ok(Anchor { ticks, wall, hz });
        }
    }
}
