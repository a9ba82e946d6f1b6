//! One record for all sessions that a private host had on a public address in a period, where one
//! for each would be too many.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::Ipv4Addr,
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::record::{Event, Record};
use crate::config::Protocol;

/// What sessions that were opened, went on or ended in the period say of it together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bulk {
    /// Always "bulk".
    pub event: String,
    pub protocol: Protocol,
    pub private: Ipv4Addr,
    pub public: Ipv4Addr,
    pub from: Timestamp,
    pub to: Timestamp,
    /// When the oldest of the sessions was opened.
    pub opened: Timestamp,
    pub sessions_opened: u64,
    pub sessions_closed: u64,
    /// Public ports, or ICMP identifiers: "1024,5000-5007".
    pub ports: String,
    pub packets_out: u64,
    pub packets_in: u64,
    pub bytes_out: u64,
    pub bytes_in: u64,
}

impl Bulk {
    #[must_use]
    pub fn has_port(&self, port: u16) -> bool {
        self.ports.split(',').any(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            matches!((first.parse::<u16>(), last.parse::<u16>()), (Ok(first), Ok(last)) if (first..=last).contains(&port))
        })
    }
}

#[derive(Debug, Default)]
struct Sum {
    opened: Option<Timestamp>,
    sessions_opened: u64,
    sessions_closed: u64,
    ports: BTreeSet<u16>,
    packets_out: u64,
    packets_in: u64,
    bytes_out: u64,
    bytes_in: u64,
}

type Key = (Ipv4Addr, Ipv4Addr, Protocol);

/// Gathers the records of a period.
#[derive(Debug)]
pub(super) struct Gathering {
    period: Duration,
    from: Timestamp,
    sums: BTreeMap<Key, Sum>,
}

impl Gathering {
    #[must_use]
    pub(super) fn new(period: Duration, now: Timestamp) -> Self {
        Self { period, from: now, sums: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, record: &Record) {
        let key = (*record.private.ip(), *record.public.ip(), record.protocol);
        let sum = self.sums.entry(key).or_default();
        sum.opened = Some(sum.opened.map_or(record.opened, |opened| opened.min(record.opened)));
        sum.sessions_opened += u64::from(record.event == Event::Open);
        sum.sessions_closed += u64::from(record.event == Event::Close);
        sum.ports.insert(record.public.port());
        sum.packets_out += record.packets_out;
        sum.packets_in += record.packets_in;
        sum.bytes_out += record.bytes_out;
        sum.bytes_in += record.bytes_in;
    }

    /// The records of the period, if it is over.
    pub(super) fn due(&mut self, now: Timestamp) -> Vec<Bulk> {
        let age = now.duration_since(self.from).as_secs();
        if age < self.period.as_secs() as i64 { Vec::new() } else { self.take(now) }
    }

    /// What there is until now; the next period begins.
    pub(super) fn take(&mut self, now: Timestamp) -> Vec<Bulk> {
        let from = std::mem::replace(&mut self.from, now);
        let sums = std::mem::take(&mut self.sums);
        let bulk = |((private, public, protocol), sum): (Key, Sum)| Bulk {
            event: "bulk".to_owned(),
            protocol,
            private,
            public,
            from,
            to: now,
            opened: sum.opened.unwrap_or(from),
            sessions_opened: sum.sessions_opened,
            sessions_closed: sum.sessions_closed,
            ports: ranges(&sum.ports),
            packets_out: sum.packets_out,
            packets_in: sum.packets_in,
            bytes_out: sum.bytes_out,
            bytes_in: sum.bytes_in,
        };
        sums.into_iter().map(bulk).collect()
    }
}

/// "1024,5000-5007"
fn ranges(ports: &BTreeSet<u16>) -> String {
    let mut text = String::new();
    let mut ports = ports.iter().copied().peekable();
    while let Some(first) = ports.next() {
        let mut last = first;
        while let Some(next) = ports.next_if(|next| last.checked_add(1) == Some(*next)) {
            last = next;
        }
        let comma = if text.is_empty() { "" } else { "," };
        // A string takes everything.
        let _ = if first == last {
            write!(text, "{comma}{first}")
        } else {
            write!(text, "{comma}{first}-{last}")
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{super::record::tests::sample, *};

    #[test]
    fn sessions_of_one_host_and_address_are_one_record_with_the_ports_they_had() {
        let start = sample().opened;
        let mut gathering = Gathering::new(Duration::from_secs(60), start);
        for port in [5002, 5000, 5001, 6000] {
            let mut record = sample();
            record.public.set_port(port);
            gathering.add(&record);
        }
        let later = start + jiff::SignedDuration::from_secs(60);
        assert_eq!(gathering.due(start + jiff::SignedDuration::from_secs(59)), []);
        let [bulk] = &gathering.due(later)[..] else { panic!("one record") };
        assert_eq!((bulk.ports.as_str(), bulk.sessions_closed), ("5000-5002,6000", 4));
        assert_eq!((bulk.packets_out, bulk.bytes_in), (12, 3200));
        assert_eq!((bulk.from, bulk.to), (start, later));
        assert!([5000, 5001, 5002, 6000].iter().all(|port| bulk.has_port(*port)));
        assert!(![4999, 5003, 0].iter().any(|port| bulk.has_port(*port)));
        assert_eq!(gathering.take(later), []);
    }

    #[test]
    fn the_last_port_of_all_ends_a_range() {
        assert_eq!(ranges(&[65534, 65535].into()), "65534-65535");
    }
}
