//! How large the tables are: by the number of sessions, and by what the configuration asks of them.
//!
//! A hash table has all of its buckets from the start, so one that nothing is put into costs as much as
//! one that is full. Where no pool keeps endpoints, or nothing is logged, these tables have room for a
//! part: enough for a reload that brings it to work at once. A later start has room for all
//! ([`super::outgrown`]).

use std::collections::BTreeMap;

use aya::maps::MapInfo;
use nat_common::{agenda, maps, record::FlowRecord};

use super::{error::DatapathError, pin::PinDirectory};

/// Entries, or bytes of a ring, by the name of the map.
#[derive(Debug, Clone)]
pub(super) struct Capacities {
    of: BTreeMap<&'static str, u32>,
    /// Those that may be pinned with another size: with little room, and with all.
    either: BTreeMap<&'static str, [u32; 2]>,
}

impl Capacities {
    /// For so many sessions; with room for their bindings, and for a burst of their records.
    pub(super) fn new(sessions: u32, bindings: bool, records: bool) -> Self {
        // A session has an entry for each direction; so has a binding.
        let pairs = sessions.saturating_mul(2);
        let some = part(sessions);
        let either = BTreeMap::from([
            (maps::BINDINGS, [some.saturating_mul(2), pairs]),
            (maps::PERMITS, [some, sessions]),
            (maps::RECORDS, [record_bytes(some), record_bytes(sessions)]),
        ]);
        let of = BTreeMap::from([
            (maps::SESSIONS, pairs),
            (maps::FLOW_CACHE, maps::cache_slots(sessions)),
            (maps::SIEVE, maps::sieve_words(sessions)),
            (maps::AGENDA, agenda::places(sessions) + 1),
            (maps::BINDINGS, either[maps::BINDINGS][usize::from(bindings)]),
            (maps::PERMITS, either[maps::PERMITS][usize::from(bindings)]),
            (maps::HOSTS, hosts(sessions)),
            (maps::RECORDS, either[maps::RECORDS][usize::from(records)]),
        ]);
        Self { of, either }
    }

    pub(super) fn of(&self, map: &str) -> Option<u32> {
        self.of.get(map).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static str, u32)> + '_ {
        self.of.iter().map(|(map, size)| (*map, *size))
    }

    /// Takes the sizes of what is pinned, where it has one of the two. Returns the maps that have little
    /// room now though all is wanted.
    pub(super) fn adopt(
        &mut self,
        pins: &PinDirectory,
    ) -> Result<Vec<&'static str>, DatapathError> {
        let mut small = Vec::new();
        for (&map, &[little, all]) in &self.either {
            let path = pins.map(map);
            if !path.exists() {
                continue;
            }
            let info = MapInfo::from_pin(&path)
                .map_err(|error| DatapathError::bpf(format!("open {}", path.display()), error))?;
            let size = info.max_entries();
            if size != little && size != all {
                continue;
            }
            let wanted = self.of.insert(map, size);
            if size < all && wanted == Some(all) {
                small.push(map);
            }
        }
        Ok(small)
    }

    /// Gives these maps room for all.
    pub(super) fn enlarge(&mut self, maps: &[&'static str]) {
        for &map in maps {
            let [_, all] = self.either[map];
            self.of.insert(map, all);
        }
    }
}

/// Of so many sessions, those that have room for a binding where no pool keeps endpoints.
fn part(sessions: u32) -> u32 {
    const ALL: u32 = 1 << 12;
    (sessions / 16).max(sessions.min(ALL))
}

/// Private hosts that have room: as many as there are sessions, but in a large table one for four of these.
/// Hosts beyond are translated all the same; their sessions are not counted for limits.
fn hosts(sessions: u32) -> u32 {
    const ALL: u32 = 1 << 16;
    (sessions / 4).max(sessions.min(ALL))
}

/// Room for a record of every session, as far as that is reasonable: a power of two of bytes, and
/// whole pages.
fn record_bytes(sessions: u32) -> u32 {
    const HEADER: usize = 8;
    const PAGES: u32 = 64 * 1024;
    let record = (size_of::<FlowRecord>() + HEADER) as u32;
    let most = maps::RECORD_BYTES;
    sessions.saturating_mul(record).clamp(PAGES, most).next_power_of_two().min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_session_has_room_for_both_of_its_directions() {
        let of = |sessions| Capacities::new(sessions, true, true).of(maps::SESSIONS);
        assert_eq!(of(1000), Some(2000));
        assert_eq!(of(u32::MAX), Some(u32::MAX));
    }

    #[test]
    fn every_session_may_have_a_binding_where_a_pool_keeps_endpoints_and_some_elsewhere() {
        let of = |sessions, bindings| {
            let sizes = Capacities::new(sessions, bindings, false);
            [sizes.of(maps::BINDINGS), sizes.of(maps::PERMITS)]
        };
        assert_eq!(of(1 << 20, true), [Some(2 << 20), Some(1 << 20)]);
        assert_eq!(of(1 << 20, false), [Some(2 << 16), Some(1 << 16)]);
        assert_eq!(of(4096, false), of(4096, true), "a small table is whole");
    }

    #[test]
    fn a_ring_without_a_log_is_smaller_but_takes_a_burst() {
        let of = |records| Capacities::new(1 << 20, true, records).of(maps::RECORDS);
        assert_eq!([of(true), of(false)], [Some(16 << 20), Some(8 << 20)]);
    }
}
