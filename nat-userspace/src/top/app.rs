//! What is shown now, and what a key changes about it.

use std::time::{Duration, Instant};

use clap::ValueEnum;

use super::{Rates, per_second};
use crate::api::top::{Talker, Top};

/// How hosts and destinations are ordered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// By bits a second, both ways
    #[default]
    Traffic,
    /// By packets a second
    Packets,
    /// By sessions
    Sessions,
    /// By address
    Address,
}

impl Sort {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Traffic => "traffic",
            Self::Packets => "packets",
            Self::Sessions => "sessions",
            Self::Address => "address",
        }
    }

    const fn next(self) -> Self {
        match self {
            Self::Traffic => Self::Packets,
            Self::Packets => Self::Sessions,
            Self::Sessions => Self::Address,
            Self::Address => Self::Traffic,
        }
    }

    fn order(self, talkers: &[Talker]) -> Vec<&Talker> {
        let mut talkers: Vec<&Talker> = talkers.iter().collect();
        // The gateway has them by traffic.
        match self {
            Self::Traffic => {}
            Self::Packets => talkers.sort_by_key(|it| std::cmp::Reverse(it.packets_per_second)),
            Self::Sessions => talkers.sort_by_key(|it| std::cmp::Reverse(it.sessions)),
            Self::Address => talkers.sort_by_key(|it| it.address),
        }
        talkers
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Quit,
    Pause,
    Sort,
    Other,
}

#[derive(Debug)]
pub struct App {
    pub sort: Sort,
    pub paused: bool,
    pub now: Top,
    pub rates: Rates,
    /// Drops a second, by reason; only of reasons that ever occurred.
    pub drops: Vec<(String, u64, u64)>,
    /// Why the last look failed; what is shown is older.
    pub trouble: Option<String>,
    looked: Instant,
}

impl App {
    #[must_use]
    pub fn new(first: Top, looked: Instant, sort: Sort) -> Self {
        Self {
            sort,
            paused: false,
            drops: drops(&first, &first, Duration::from_secs(1)),
            now: first,
            rates: Rates::default(),
            trouble: None,
            looked,
        }
    }

    /// Takes another look in.
    pub fn look(&mut self, now: Top, looked: Instant) {
        let elapsed = looked.duration_since(self.looked);
        self.rates = Rates::between(&self.now, &now, elapsed);
        self.drops = drops(&self.now, &now, elapsed);
        self.trouble = None;
        self.now = now;
        self.looked = looked;
    }

    /// False: it is over.
    pub fn press(&mut self, key: Key) -> bool {
        match key {
            Key::Quit => return false,
            Key::Pause => self.paused = !self.paused,
            Key::Sort => self.sort = self.sort.next(),
            Key::Other => {}
        }
        true
    }

    pub(super) fn hosts(&self) -> Vec<&Talker> {
        self.sort.order(&self.now.hosts)
    }

    pub(super) fn destinations(&self) -> Vec<&Talker> {
        self.sort.order(&self.now.destinations)
    }
}

fn drops(before: &Top, now: &Top, elapsed: Duration) -> Vec<(String, u64, u64)> {
    let rate = |(reason, count): (&String, &u64)| {
        let earlier = before.counters.drops.get(reason).copied().unwrap_or(0);
        (reason.clone(), *count, per_second(earlier, *count, elapsed))
    };
    let mut drops: Vec<_> =
        now.counters.drops.iter().filter(|(_, count)| **count > 0).map(rate).collect();
    drops.sort_by_key(|(reason, count, rate)| (std::cmp::Reverse((*rate, *count)), reason.clone()));
    drops
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talker(host: u8, sessions: u64, packets: u64) -> Talker {
        Talker {
            address: [10, 0, 0, host].into(),
            sessions,
            bytes_out: 0,
            bytes_in: 0,
            bits_per_second_out: 0,
            bits_per_second_in: 0,
            packets_per_second: packets,
        }
    }

    #[test]
    fn keys_sort_pause_and_end() {
        let hosts = vec![talker(3, 1, 5), talker(2, 9, 1), talker(1, 4, 7)];
        let top = Top { hosts, ..Top::default() };
        let mut app = App::new(top, Instant::now(), Sort::Traffic);
        let order = |app: &App| -> Vec<u8> {
            app.hosts().iter().map(|it| it.address.octets()[3]).collect()
        };
        for expected in [[3, 2, 1], [1, 3, 2], [2, 1, 3], [1, 2, 3], [3, 2, 1]] {
            assert_eq!(order(&app), expected, "{}", app.sort.word());
            assert!(app.press(Key::Sort));
        }
        assert!(app.press(Key::Pause) && app.paused);
        assert!(app.press(Key::Pause) && !app.paused);
        assert!(app.press(Key::Other));
        assert!(!app.press(Key::Quit));
    }

    #[test]
    fn drops_are_ranked_by_what_happens_now_and_those_that_never_did_are_left_out() {
        let with = |counts: [(&str, u64); 3]| {
            let mut top = Top::default();
            top.counters.drops = counts.map(|(it, count)| (it.to_owned(), count)).into();
            top
        };
        let begin = Instant::now();
        let mut app = App::new(with([("a", 9), ("b", 1), ("c", 0)]), begin, Sort::Traffic);
        app.look(with([("a", 9), ("b", 5), ("c", 0)]), begin + Duration::from_secs(2));
        let expected = [("b".to_owned(), 5, 2), ("a".to_owned(), 9, 0)];
        assert_eq!(app.drops, expected);
    }
}
