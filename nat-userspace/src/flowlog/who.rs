//! Who had a public endpoint at a time: answered from log files and from living sessions.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader, Read as _},
    net::SocketAddrV4,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use flate2::read::MultiGzDecoder;
use jiff::{SignedDuration, Timestamp, Zoned, civil, tz::TimeZone};
use serde::{Deserialize, Serialize};

use super::{Bulk, Event, Record};
use crate::{
    api::model::Flow,
    config::{Protocol, words},
};

/// Records of one session differ in its beginning by a tick or a step of the clock, and a living
/// one's is known to a second.
const SAME: SignedDuration = SignedDuration::from_secs(1);
/// How exact the times of records are: ticks of 1 to 10 ms, told by a clock that is read once a second.
const EXACT: SignedDuration = SignedDuration::from_millis(100);

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    pub public: SocketAddrV4,
    /// Any, if not given.
    pub protocol: Option<Protocol>,
    /// The same: with whom.
    pub remote: Option<SocketAddrV4>,
    /// The period asked for, both ends included: a second, unless fractions were given.
    pub from: Timestamp,
    pub to: Timestamp,
}

words!(
    /// How it is known.
    Evidence {
        /// The log has the session's beginning and end.
        Log = "log",
        /// The log has a beginning without an end, and the session is not known to live.
        LogOpen = "log-open",
        /// The session lives.
        Live = "live",
        /// A bulk record has the port among those of a private host, without the remote endpoint.
        Bulk = "bulk",
    }
);

/// One that had it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub protocol: Protocol,
    pub public: SocketAddrV4,
    /// With port 0 where only the address is known.
    pub private: SocketAddrV4,
    /// With whom; not known from bulk records.
    pub remote: Option<SocketAddrV4>,
    pub opened: Timestamp,
    /// Nothing: it has not ended yet, or the log does not say.
    pub ended: Option<Timestamp>,
    pub evidence: Evidence,
}

/// `2026-11-21T14:05:09Z`, `2026-11-21 14:05:09` or `14:05:09`, with fractions or without. Without
/// a zone it is local time; without a date, the latest such time that is past.
///
/// # Errors
/// What would be right, as one line.
pub fn period(text: &str, now: &Zoned) -> Result<(Timestamp, Timestamp), String> {
    let begin = moment(text, now).ok_or_else(|| {
        format!(
            "\"{text}\" is no time; write 14:05:09 or \"2026-11-21 14:05:09\" for local time, or \
             2026-11-21T14:05:09Z"
        )
    })?;
    let whole = if text.contains('.') { 0 } else { 999 };
    Ok((begin, begin + SignedDuration::from_millis(whole)))
}

fn moment(text: &str, now: &Zoned) -> Option<Timestamp> {
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Some(moment);
    }
    let (local, zone) = match text.strip_suffix(['Z', 'z']) {
        Some(utc) => (utc, TimeZone::UTC),
        None => (text, now.time_zone().clone()),
    };
    let in_zone = |civil: civil::DateTime| Some(civil.to_zoned(zone.clone()).ok()?.timestamp());
    if let Ok(time) = local.parse::<civil::Time>()
        && !local.contains('-')
    {
        let today = now.timestamp().to_zoned(zone.clone()).date();
        let moment = in_zone(today.to_datetime(time))?;
        return if moment > now.timestamp() {
            in_zone(today.yesterday().ok()?.to_datetime(time))
        } else {
            Some(moment)
        };
    }
    in_zone(local.parse().ok()?)
}

/// One line of a list of questions: `ADDR:PORT [PROTOCOL] [REMOTE:PORT] TIME`.
///
/// # Errors
/// What is wrong and what would be right, as one line.
pub fn question(line: &str, now: &Zoned) -> Result<Question, String> {
    let wrong = || format!("\"{line}\" is no question; write 198.51.100.10:31337 udp 14:05:09");
    let mut words = line.split_whitespace().peekable();
    let public = words.next().and_then(|word| word.parse().ok()).ok_or_else(wrong)?;
    let protocol = words.peek().and_then(|word| Protocol::from_word(word));
    if protocol.is_some() {
        words.next();
    }
    let remote = words.peek().and_then(|word| word.parse::<SocketAddrV4>().ok());
    if remote.is_some() {
        words.next();
    }
    let (from, to) = period(&words.collect::<Vec<_>>().join(" "), now)?;
    Ok(Question { public, protocol, remote, from, to })
}

/// What files and living sessions say of the endpoints that are asked for.
#[derive(Debug, Default)]
pub struct Known {
    asked: HashMap<SocketAddrV4, Vec<Holder>>,
    bulk: Vec<Bulk>,
    /// Records read, of whatever endpoint.
    pub records: u64,
}

impl Known {
    #[must_use]
    pub fn about(questions: &[Question]) -> Self {
        let asked = questions.iter().map(|question| (question.public, Vec::new())).collect();
        Self { asked, bulk: Vec::new(), records: 0 }
    }

    /// Reads a file of JSON lines, compressed by gzip or not.
    ///
    /// # Errors
    /// It cannot be read, or holds something else.
    pub fn read(&mut self, path: &Path) -> Result<()> {
        let what = || format!("cannot read {}", path.display());
        let file = File::open(path).with_context(what)?;
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let packed = reader.fill_buf().with_context(what)?.starts_with(&[0x1f, 0x8b]);
        if packed {
            self.lines(BufReader::with_capacity(1 << 20, MultiGzDecoder::new(reader)), path)
        } else {
            self.lines(reader, path)
        }
    }

    fn lines(&mut self, mut reader: impl BufRead, path: &Path) -> Result<()> {
        let (mut line, mut understood, mut strange) = (Vec::new(), 0_u64, 0_u64);
        loop {
            line.clear();
            let read = (&mut reader).take(1 << 20).read_until(b'\n', &mut line);
            if read.with_context(|| format!("cannot read {}", path.display()))? == 0 {
                break;
            }
            if let Ok(record) = serde_json::from_slice::<Record>(&line) {
                self.add(&record);
                understood += 1;
            } else if let Ok(bulk) = serde_json::from_slice::<Bulk>(&line) {
                self.bulk.push(bulk);
                understood += 1;
            } else if !line.trim_ascii().is_empty() {
                strange += 1;
            }
        }
        self.records += understood;
        if understood == 0 && strange > 0 {
            bail!(
                "{} has no records in JSON lines; natgw log who needs a log of format \"json\"",
                path.display()
            );
        }
        Ok(())
    }

    fn add(&mut self, record: &Record) {
        let Some(holders) = self.asked.get_mut(&record.public) else { return };
        let known = holders.iter_mut().rev().find(|holder| {
            holder.evidence != Evidence::Bulk
                && (holder.protocol, holder.private) == (record.protocol, record.private)
                && holder.remote == Some(record.remote)
                && holder.opened.duration_since(record.opened).abs() <= SAME
                && !(holder.ended.is_some() && record.event == Event::Close)
        });
        let ended = (record.event == Event::Close).then_some(record.to);
        let evidence = if ended.is_some() { Evidence::Log } else { Evidence::LogOpen };
        match known {
            Some(holder) if ended.is_some() => {
                holder.ended = ended;
                holder.evidence = evidence;
            }
            Some(_) => {}
            None => holders.push(Holder {
                protocol: record.protocol,
                public: record.public,
                private: record.private,
                remote: Some(record.remote),
                opened: record.opened,
                ended,
                evidence,
            }),
        }
    }

    /// Adds a living session, as seen at `now`.
    pub fn add_living(&mut self, flow: &Flow, now: Timestamp) {
        let Some(holders) = self.asked.get_mut(&flow.public) else { return };
        let age = SignedDuration::from_secs(i64::try_from(flow.age_s).unwrap_or(i64::MAX));
        let opened = now.checked_sub(age).unwrap_or(Timestamp::MIN);
        let known = holders.iter_mut().find(|holder| {
            holder.evidence == Evidence::LogOpen
                && (holder.protocol, holder.private) == (flow.protocol, flow.private)
                && holder.remote == Some(flow.remote)
                && holder.opened.duration_since(opened).abs() <= SAME + SAME
        });
        match known {
            Some(holder) => holder.evidence = Evidence::Live,
            None => holders.push(Holder {
                protocol: flow.protocol,
                public: flow.public,
                private: flow.private,
                remote: Some(flow.remote),
                opened,
                ended: None,
                evidence: Evidence::Live,
            }),
        }
    }

    /// Everybody who had it, the first that opened first.
    #[must_use]
    pub fn answer(&self, question: &Question) -> Vec<Holder> {
        let Question { public, protocol, remote, from, to } = *question;
        let asked = |other: Protocol| protocol.is_none_or(|protocol| protocol == other);
        let sessions = self.asked.get(&public).into_iter().flatten().filter(|holder| {
            // The age of a living session is told in whole seconds.
            let slack = if holder.evidence == Evidence::Live { SAME } else { EXACT };
            asked(holder.protocol)
                && (remote.is_none() || remote == holder.remote)
                && holder.opened.checked_sub(slack).unwrap_or(holder.opened) <= to
                && holder
                    .ended
                    .is_none_or(|ended| ended.checked_add(EXACT).unwrap_or(ended) >= from)
        });
        let bulk = self.bulk.iter().filter(|bulk| {
            asked(bulk.protocol)
                && bulk.public == *public.ip()
                && bulk.opened.min(bulk.from) <= to
                && bulk.to >= from
                && bulk.has_port(public.port())
        });
        let bulk = bulk.map(|bulk| Holder {
            protocol: bulk.protocol,
            public,
            private: SocketAddrV4::new(bulk.private, 0),
            remote: None,
            opened: bulk.opened,
            ended: Some(bulk.to),
            evidence: Evidence::Bulk,
        });
        let mut holders: Vec<Holder> = sessions.cloned().chain(bulk).collect();
        holders.sort_by_key(|holder| (holder.opened, holder.private));
        holders
    }
}

/// The given files and what was rotated away from them.
///
/// # Errors
/// There is none, or a directory cannot be read.
pub fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in paths {
        let family = super::family(path)
            .with_context(|| format!("cannot look for the log {}", path.display()))?;
        if family.is_empty() {
            let missing = io::Error::from(io::ErrorKind::NotFound);
            return Err(missing).with_context(|| {
                format!("there is no log {}; name it with --file", path.display())
            });
        }
        all.extend(family);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::{super::record::tests::sample, *};

    fn now() -> Zoned {
        "2026-11-21T15:00:00+01:00[Europe/Berlin]".parse().expect("a time")
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn asked(time: &str) -> Question {
        question(&format!("198.51.100.10:31337 udp {time}"), &now()).expect("a question")
    }

    #[test]
    fn a_time_without_zone_is_local_and_without_date_the_last_one_that_is_past() {
        let begin = |text: &str| period(text, &now()).expect("a time").0;
        assert_eq!(begin("14:05:09"), at("2026-11-21T13:05:09Z"));
        assert_eq!(begin("14:05:09Z"), at("2026-11-20T14:05:09Z"), "15:00 +01:00 is 14:00 UTC");
        assert_eq!(begin("16:00"), at("2026-11-20T15:00:00Z"), "yesterday");
        assert_eq!(begin("2026-07-01 12:00:00"), at("2026-07-01T10:00:00Z"), "summer time");
        assert_eq!(begin("2026-11-21T14:05:09Z"), at("2026-11-21T14:05:09Z"));
        assert_eq!(begin("2026-11-21T14:05:09-05:00"), at("2026-11-21T19:05:09Z"));
        let (from, to) = period("14:05:09", &now()).expect("a time");
        assert_eq!(to.duration_since(from), SignedDuration::from_millis(999), "the whole second");
        let (from, to) = period("14:05:09.5", &now()).expect("a time");
        assert_eq!(from, to);
        for wrong in ["", "yesterday", "25:00", "2026-13-01 00:00:00"] {
            assert!(period(wrong, &now()).expect_err(wrong).contains("14:05:09"), "{wrong}");
        }
    }

    #[test]
    fn a_session_had_its_endpoint_from_its_opening_to_its_end_and_not_beyond() {
        let question = asked("2026-11-21T14:08:00Z");
        let mut known = Known::about(&[question]);
        known.add(&Record { event: Event::Open, reason: None, ..sample() });
        known.add(&sample());
        let [holder] = &known.answer(&question)[..] else { panic!("one") };
        assert_eq!(holder.private, sample().private);
        assert_eq!((holder.ended, holder.evidence), (Some(sample().to), Evidence::Log));
        for (time, had) in [
            ("2026-11-21T14:04:58Z", 0),
            ("2026-11-21T14:05:00Z", 1),
            ("2026-11-21T14:11:00Z", 1),
            ("2026-11-21T14:11:01Z", 0),
        ] {
            assert_eq!(known.answer(&asked(time)).len(), had, "{time}");
        }
        let other = Question { protocol: Some(Protocol::Tcp), ..question };
        assert_eq!(known.answer(&other), []);
        let with = |remote: &str| {
            let line = format!("198.51.100.10:31337 udp {remote} 2026-11-21 14:08:00Z");
            super::question(&line, &now()).expect("a question")
        };
        assert_eq!(known.answer(&with("203.0.113.9:53")).len(), 1);
        assert_eq!(known.answer(&with("203.0.113.9:54")), []);
    }

    #[test]
    fn a_session_without_an_end_in_the_log_is_confirmed_by_the_living_ones() {
        let question = asked("2026-11-21T14:08:00Z");
        let mut known = Known::about(&[question]);
        known.add(&Record { event: Event::Open, reason: None, ..sample() });
        assert_eq!(known.answer(&question)[0].evidence, Evidence::LogOpen);
        let flow = Flow {
            protocol: Protocol::Udp,
            private: sample().private,
            public: sample().public,
            remote: sample().remote,
            state: crate::api::model::SessionState::Active,
            age_s: 600,
            idle_s: 0,
            packets_out: 1,
            packets_in: 1,
            bytes_out: 1,
            bytes_in: 1,
        };
        known.add_living(&flow, at("2026-11-21T14:15:00.9Z"));
        let [holder] = &known.answer(&question)[..] else { panic!("the same session") };
        assert_eq!((holder.evidence, holder.ended), (Evidence::Live, None));
    }

    #[test]
    fn compressed_files_are_read_and_other_formats_are_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let question = asked("2026-11-21T14:08:00Z");
        let line = serde_json::to_string(&sample()).expect("JSON") + "\n";
        let path = directory.path().join("flows.jsonl.1.gz");
        let mut packed = flate2::write::GzEncoder::new(
            File::create(&path).expect("created"),
            flate2::Compression::fast(),
        );
        packed.write_all(line.as_bytes()).expect("written");
        packed.finish().expect("written");
        let mut known = Known::about(&[question]);
        let found = files(&[directory.path().join("flows.jsonl")]).expect("files");
        assert_eq!(found, std::slice::from_ref(&path));
        known.read(&path).expect("read");
        assert_eq!((known.records, known.answer(&question).len()), (1, 1));

        let vpc = directory.path().join("vpc.log");
        std::fs::write(&vpc, "version srcaddr\n2 10.0.0.1\n").expect("written");
        let error = known.read(&vpc).expect_err("no JSON");
        assert!(error.to_string().contains("\"json\""), "{error}");
    }
}
