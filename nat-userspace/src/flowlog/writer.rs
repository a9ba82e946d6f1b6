//! The thread that writes.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::maps::{MapData, RingBuf};
use jiff::Timestamp;
use nat_common::{record::FlowRecord, session::SessionImage};

use super::{
    Tally,
    bulk::Gathering,
    clock::{Anchor, whole_milliseconds},
    file::Rotating,
    ipfix::Exporter,
    json,
    record::{Event, Record},
    reported::Reported,
    unopened,
    vpc::{self, Interfaces},
};
use crate::{
    config::{Config, Log, LogFormat},
    flows::{self, Entry, View},
};

/// The ring is looked at this often, while records come and while none do.
const BUSY: Duration = Duration::from_millis(10);
const QUIET: Duration = Duration::from_millis(100);
/// Records taken before commands have their turn.
const ROUND: usize = 65_536;

pub(super) enum Command {
    Configure(Option<Box<Outputs>>),
    Reopen,
    /// Reports what living sessions have carried since the last time.
    Report(Box<View>),
}

pub(super) struct Writer {
    ring: RingBuf<MapData>,
    anchor: Arc<Mutex<Anchor>>,
    tally: Arc<Tally>,
    reported: Reported,
    outputs: Option<Box<Outputs>>,
}

impl Writer {
    pub(super) fn new(
        ring: RingBuf<MapData>,
        anchor: Arc<Mutex<Anchor>>,
        tally: Arc<Tally>,
        reported: &Path,
    ) -> Self {
        let reported = Reported::load(reported);
        Self { ring, anchor, tally, reported, outputs: None }
    }

    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        loop {
            let taken = self.drain();
            if let Some(outputs) = &mut self.outputs {
                outputs.flush(&self.tally);
            }
            let wait = match taken {
                ROUND.. => Duration::ZERO,
                0 => QUIET,
                _ => BUSY,
            };
            let command = if self.outputs.is_some() {
                commands.recv_timeout(wait)
            } else {
                commands.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            match command {
                Ok(Command::Configure(outputs)) => {
                    // What came before is the earlier configuration's.
                    while self.drain() > 0 {}
                    if let Some(earlier) = &mut self.outputs {
                        earlier.finish(&self.tally);
                    }
                    self.outputs = outputs;
                }
                Ok(Command::Reopen) => {
                    if let Some(outputs) = &mut self.outputs {
                        outputs.reopen(&self.tally);
                    }
                }
                Ok(Command::Report(mut view)) => {
                    self.report_living(&mut view);
                    self.tally.reporting.store(false, Ordering::Release);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        while self.drain() > 0 {}
        if let Some(outputs) = &mut self.outputs {
            outputs.finish(&self.tally);
        }
        self.keep_reported();
    }

    fn anchor(&self) -> Anchor {
        *self.anchor.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes what is in the ring. Returns how many records that were.
    fn drain(&mut self) -> usize {
        let anchor = self.anchor();
        let mut taken = 0;
        while taken < ROUND {
            let Some(item) = self.ring.next() else { break };
            taken += 1;
            let Ok(told) = bytemuck::try_pod_read_unaligned::<FlowRecord>(&item) else { continue };
            let Some(mut record) = Record::of(&told, &anchor) else { continue };
            if record.event == Event::Close {
                self.reported.close(told.key, told.created, &mut record);
            }
            if let Some(outputs) = &mut self.outputs {
                outputs.write(&record, &self.tally);
            }
        }
        taken
    }

    fn report_living(&mut self, view: &mut View) {
        let anchor = self.anchor();
        let Some(outputs) = &mut self.outputs else { return };
        let now = whole_milliseconds(Timestamp::now());
        self.reported.begin();
        let walk = flows::walk(view, |entry| {
            let mut record = living(entry, &anchor, now);
            let created = entry.outbound.created;
            if self.reported.report(entry.key, created, &mut record) {
                outputs.write(&record, &self.tally);
            }
            std::ops::ControlFlow::Continue(())
        });
        if let Err(error) = walk {
            log::warn!("cannot report the living sessions: {error}");
        }
        outputs.flush(&self.tally);
        self.keep_reported();
    }

    fn keep_reported(&mut self) {
        if self.outputs.as_ref().is_some_and(|outputs| outputs.reports)
            && let Err(error) = self.reported.finish()
        {
            log::warn!("a restart will report living sessions twice: {error}");
        }
    }
}

/// The sums of a living session's whole life until now.
fn living(entry: &Entry, anchor: &Anchor, now: Timestamp) -> Record {
    let Entry { outbound: SessionImage { created, .. }, flow, .. } = entry;
    let opened = anchor.time(*created).min(now);
    let idle = jiff::SignedDuration::from_secs(i64::try_from(flow.idle_s).unwrap_or(0));
    Record {
        event: Event::Interval,
        protocol: flow.protocol,
        private: flow.private,
        public: flow.public,
        remote: flow.remote,
        opened,
        from: opened,
        to: now,
        last_packet: now.checked_sub(idle).unwrap_or(now).max(opened),
        packets_out: flow.packets_out,
        packets_in: flow.packets_in,
        bytes_out: flow.bytes_out,
        bytes_in: flow.bytes_in,
        reason: None,
    }
}

/// Everything that records are written to.
pub(super) struct Outputs {
    file: Option<(Rotating, Format)>,
    ipfix: Option<Exporter>,
    bulk: Option<Gathering>,
    /// Living sessions are reported.
    reports: bool,
    /// When losses were last told, and how many records had been lost by then.
    sound: Option<(Timestamp, u64)>,
}

enum Format {
    Json,
    Vpc(vpc::Writer),
}

impl Outputs {
    pub(super) fn open(log: &Log, config: &Config) -> Result<Self> {
        let file = match &log.file {
            Some(settings) => {
                let (format, header) = match &settings.format {
                    LogFormat::Json => (Format::Json, String::new()),
                    LogFormat::Vpc(fields) => {
                        let writer = vpc::Writer::new(fields, interfaces(config));
                        let header = writer.header();
                        (Format::Vpc(writer), header)
                    }
                };
                let file = Rotating::open(settings, header)
                    .map_err(|error| unopened(&settings.path, error))?;
                Some((file, format))
            }
            None => None,
        };
        let ipfix = match &log.ipfix {
            Some(settings) => Some(Exporter::open(settings).with_context(|| {
                format!("cannot reach the IPFIX collector {}", settings.collector)
            })?),
            None => None,
        };
        let now = whole_milliseconds(Timestamp::now());
        let bulk = log.bulk.map(|period| Gathering::new(period, now));
        Ok(Self { file, ipfix, bulk, reports: log.interval.is_some(), sound: None })
    }

    fn write(&mut self, record: &Record, tally: &Tally) {
        tally.written.fetch_add(1, Ordering::Relaxed);
        let mut lost = 0;
        if let Some(bulk) = &mut self.bulk {
            bulk.add(record);
        } else if let Some((file, format)) = &mut self.file {
            lost += file.line(|buffer| match format {
                Format::Json => json::line(record, buffer),
                Format::Vpc(vpc) => vpc.lines(record, buffer),
            });
        }
        if let Some(ipfix) = &mut self.ipfix {
            lost += ipfix.add(record);
        }
        tally.lost.fetch_add(lost, Ordering::Relaxed);
    }

    fn flush(&mut self, tally: &Tally) {
        let now = whole_milliseconds(Timestamp::now());
        let bulk = self.bulk.as_mut().map(|bulk| bulk.due(now)).unwrap_or_default();
        self.write_bulk(&bulk, tally);
        self.tell_losses(now, tally);
        let mut lost = 0;
        if let Some((file, _)) = &mut self.file {
            lost += file.flush();
        }
        if let Some(ipfix) = &mut self.ipfix {
            lost += ipfix.flush();
        }
        tally.lost.fetch_add(lost, Ordering::Relaxed);
    }

    fn write_bulk(&mut self, bulk: &[super::Bulk], tally: &Tally) {
        let Some((file, _)) = &mut self.file else { return };
        for record in bulk {
            let lost = file.line(|buffer| json::line(record, buffer));
            tally.lost.fetch_add(lost, Ordering::Relaxed);
        }
    }

    /// In VPC records a gap is a record of its own.
    fn tell_losses(&mut self, now: Timestamp, tally: &Tally) {
        let lost = tally.lost_in_all();
        if let Some((since, before)) = self.sound
            && lost > before
            && let Some((file, Format::Vpc(vpc))) = &mut self.file
        {
            let more = file.line(|buffer| vpc.skipped(since, now, buffer));
            tally.lost.fetch_add(more, Ordering::Relaxed);
        }
        self.sound = Some((now, lost));
    }

    fn reopen(&mut self, tally: &Tally) {
        self.flush(tally);
        if let Some((file, _)) = &mut self.file {
            file.reopen();
        }
    }

    fn finish(&mut self, tally: &Tally) {
        let now = whole_milliseconds(Timestamp::now());
        let bulk = self.bulk.as_mut().map(|bulk| bulk.take(now)).unwrap_or_default();
        self.write_bulk(&bulk, tally);
        self.flush(tally);
    }
}

/// The names of the interfaces, where a side has only one.
fn interfaces(config: &Config) -> Interfaces {
    let only = |names: &[String]| match names {
        [name] => Some(name.clone()),
        _ => None,
    };
    Interfaces { private: only(&config.gateway.private), public: only(&config.gateway.public) }
}
