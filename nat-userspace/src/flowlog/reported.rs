//! What of living sessions has been reported already, so that each record has only what is new.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use bytemuck::{Pod, Zeroable};
use jiff::Timestamp;
use nat_common::flow::FlowKey;

use super::record::Record;

/// The sums of a session at its last report.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
struct Entry {
    key: FlowKey,
    created: u32,
    walk: u32,
    /// Milliseconds since 1970.
    until: i64,
    packets_out: u64,
    packets_in: u64,
    bytes_out: u64,
    bytes_in: u64,
}

/// Kept in a file from report to report: a restarted daemon goes on where the earlier one was.
#[derive(Debug)]
pub(super) struct Reported {
    path: PathBuf,
    entries: HashMap<(FlowKey, u32), Entry>,
    walk: u32,
}

impl Reported {
    /// What an earlier run has left, if that is readable.
    #[must_use]
    pub(super) fn load(path: &Path) -> Self {
        let mut entries = HashMap::new();
        if let Ok(bytes) = fs::read(path)
            && bytes.len() % size_of::<Entry>() == 0
        {
            for bytes in bytes.chunks_exact(size_of::<Entry>()) {
                let entry: Entry = bytemuck::pod_read_unaligned(bytes);
                entries.insert((entry.key, entry.created), entry);
            }
        }
        Self { path: path.to_owned(), entries, walk: 0 }
    }

    /// A walk over the living sessions begins.
    pub(super) fn begin(&mut self) {
        self.walk = self.walk.wrapping_add(1);
    }

    /// Takes off what was reported, and remembers the rest as reported. True if there is any rest.
    pub(super) fn report(&mut self, key: FlowKey, created: u32, record: &mut Record) -> bool {
        let walk = self.walk;
        let sums = Entry {
            key,
            created,
            walk,
            until: record.to.as_millisecond(),
            packets_out: record.packets_out,
            packets_in: record.packets_in,
            bytes_out: record.bytes_out,
            bytes_in: record.bytes_in,
        };
        let entry = self.entries.entry((key, created)).or_insert(Entry {
            until: record.from.as_millisecond(),
            packets_out: 0,
            packets_in: 0,
            bytes_out: 0,
            bytes_in: 0,
            ..sums
        });
        entry.walk = walk;
        subtract(record, entry);
        if record.packets_out == 0 && record.packets_in == 0 {
            return false;
        }
        // A half that was not found counts as nothing: never less than before.
        *entry = Entry {
            packets_out: sums.packets_out.max(entry.packets_out),
            packets_in: sums.packets_in.max(entry.packets_in),
            bytes_out: sums.bytes_out.max(entry.bytes_out),
            bytes_in: sums.bytes_in.max(entry.bytes_in),
            ..sums
        };
        true
    }

    /// A session has ended: takes off what was reported.
    pub(super) fn close(&mut self, key: FlowKey, created: u32, record: &mut Record) {
        if let Some(entry) = self.entries.remove(&(key, created)) {
            subtract(record, &entry);
        }
    }

    /// Forgets what the walk has not met and keeps the rest in the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        // The end of a session that the walk just missed may still lie in the ring.
        let walk = self.walk;
        self.entries.retain(|_, entry| walk.wrapping_sub(entry.walk) < 3);
        self.save()
    }

    fn save(&self) -> io::Result<()> {
        let draft = self.path.with_extension("reported.part");
        let entries: Vec<Entry> = self.entries.values().copied().collect();
        fs::write(&draft, bytemuck::cast_slice(&entries))?;
        fs::rename(&draft, &self.path)
    }
}

fn subtract(record: &mut Record, entry: &Entry) {
    record.packets_out = record.packets_out.saturating_sub(entry.packets_out);
    record.packets_in = record.packets_in.saturating_sub(entry.packets_in);
    record.bytes_out = record.bytes_out.saturating_sub(entry.bytes_out);
    record.bytes_in = record.bytes_in.saturating_sub(entry.bytes_in);
    if let Ok(until) = Timestamp::from_millisecond(entry.until) {
        record.from = until.clamp(record.opened.min(record.to), record.to);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::record::tests::sample, *};

    fn key() -> FlowKey {
        FlowKey::default()
    }

    #[test]
    fn the_sums_of_a_sessions_records_are_what_it_carried_over_a_restart_too() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a.reported");
        let mut reported = Reported::load(&path);
        let mut total = (0, 0);
        let mut until = sample().opened;
        for (packets, bytes) in [(5, 500), (5, 500), (9, 700)] {
            reported.begin();
            let mut record = Record { packets_out: packets, bytes_out: bytes, ..sample() };
            let news = reported.report(key(), 7, &mut record);
            assert_eq!(news, total.0 != packets);
            if news {
                assert_eq!(record.from, until);
                until = record.to;
                total = (total.0 + record.packets_out, total.1 + record.bytes_out);
            }
            reported.finish().expect("saved");
            reported = Reported::load(&path);
        }
        let mut last = Record { packets_out: 10, bytes_out: 770, ..sample() };
        reported.close(key(), 7, &mut last);
        assert_eq!((total.0 + last.packets_out, total.1 + last.bytes_out), (10, 770));
    }

    #[test]
    fn a_later_session_of_the_same_endpoints_begins_at_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut reported = Reported::load(&directory.path().join("a.reported"));
        reported.begin();
        assert!(reported.report(key(), 7, &mut sample()));
        let mut next = sample();
        reported.close(key(), 8, &mut next);
        assert_eq!(next, sample());
    }
}
