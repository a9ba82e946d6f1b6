//! What is to be looked at, by the second: sixteen bytes an entry.

use std::{collections::VecDeque, mem};

use nat_common::agenda::Note;

/// What is further away is looked at then, and filed again.
const FURTHEST: u64 = 4096;
/// Notes that are kept together: a list that grows without end is copied now and then, all of it.
const TOGETHER: usize = 1024;
/// Empty lists that are kept.
const SPARE: usize = 64;

/// Notes by the second in which their entries are to be looked at.
#[derive(Debug, Default)]
pub(super) struct Wheel {
    /// Of the first of `seconds`.
    first: u64,
    seconds: VecDeque<Vec<Vec<Note>>>,
    filed: usize,
    spare: Vec<Vec<Note>>,
}

impl Wheel {
    /// Files a note; under the first second that has not been taken, if it is late.
    pub(super) fn file(&mut self, second: u64, note: Note) {
        let at = second.saturating_sub(self.first).min(FURTHEST) as usize;
        if self.seconds.len() <= at {
            self.seconds.resize_with(at + 1, Vec::new);
        }
        let Some(lists) = self.seconds.get_mut(at) else { return };
        self.filed += 1;
        match lists.last_mut() {
            Some(notes) if notes.len() < TOGETHER => notes.push(note),
            full => {
                // The first of a second has no more room than it needs.
                let spare = full.and_then(|_| self.spare.pop());
                let mut notes = spare.unwrap_or_default();
                notes.push(note);
                lists.push(notes);
            }
        }
    }

    /// Takes a list of notes of the seconds up to `now`, in place of one that is empty. False: there is none.
    pub(super) fn take(&mut self, now: u64, list: &mut Vec<Note>) -> bool {
        while self.first <= now {
            let Some(lists) = self.seconds.front_mut() else {
                self.first = now;
                return false;
            };
            if let Some(notes) = lists.pop() {
                self.filed -= notes.len();
                let empty = mem::replace(list, notes);
                if empty.capacity() >= TOGETHER && self.spare.len() < SPARE {
                    self.spare.push(empty);
                }
                return true;
            }
            if self.first == now {
                return false;
            }
            self.seconds.pop_front();
            self.first += 1;
        }
        false
    }

    /// How many notes there are.
    pub(super) const fn len(&self) -> usize {
        self.filed
    }

    pub(super) fn clear(&mut self) {
        self.seconds.clear();
        self.filed = 0;
    }
}

#[cfg(test)]
mod tests {
    use nat_common::{flow::FlowKey, net::Port};

    use super::*;

    fn note(port: u16) -> Note {
        let mut key = FlowKey::default();
        key.tuple.sport = Port::new(port);
        Note(key)
    }

    fn taken(wheel: &mut Wheel, now: u64) -> Vec<u16> {
        let (mut all, mut list) = (Vec::new(), Vec::new());
        while wheel.take(now, &mut list) {
            assert!((1..=TOGETHER).contains(&list.len()));
            all.extend(list.drain(..).map(|it| it.0.tuple.sport.get()));
        }
        all.sort_unstable();
        all
    }

    #[test]
    fn a_note_comes_in_its_second_and_not_before_however_late_that_is_asked_for() {
        let mut wheel = Wheel::default();
        for (second, port) in [(3, 1), (5, 2), (5, 3), (9, 4)] {
            wheel.file(second, note(port));
        }
        assert_eq!(taken(&mut wheel, 2), [0_u16; 0]);
        assert_eq!(taken(&mut wheel, 3), [1]);
        wheel.file(1, note(5));
        assert_eq!(taken(&mut wheel, 3), [5], "one that is late comes at once");
        assert_eq!(taken(&mut wheel, 8), [2, 3]);
        assert_eq!(wheel.len(), 1);
        assert_eq!(taken(&mut wheel, 100), [4]);
        wheel.file(101, note(6));
        assert_eq!(taken(&mut wheel, 100), [0_u16; 0]);
        assert_eq!(taken(&mut wheel, 101), [6]);
        assert_eq!(wheel.len(), 0);
    }

    #[test]
    fn of_many_notes_none_is_lost_and_none_comes_twice() {
        let mut wheel = Wheel::default();
        for _ in 0..2 {
            (0..9999).for_each(|port| wheel.file(u64::from(port % 3), note(port)));
            assert_eq!(wheel.len(), 9999);
            assert_eq!(taken(&mut wheel, 6), (0..9999).collect::<Vec<_>>());
            assert_eq!(wheel.len(), 0);
        }
    }

    #[test]
    fn what_is_further_away_than_the_wheel_is_long_comes_early_to_be_filed_again() {
        let mut wheel = Wheel::default();
        wheel.file(1_000_000, note(1));
        assert_eq!(taken(&mut wheel, FURTHEST - 1), [0_u16; 0]);
        assert_eq!(taken(&mut wheel, FURTHEST), [1]);
    }
}
