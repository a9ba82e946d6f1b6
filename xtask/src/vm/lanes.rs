//! One run divided over guests side by side. A guest's tests use one processor at a time, and what
//! two of them would share in one guest (the list of loaded programs, the time) they share in none here.

use std::{panic, thread};

use anyhow::Result;

use super::{Ended, Guest, Outcome, Report};

/// Guests at a time. Each takes its memory of this machine's.
const MOST: usize = 2;

/// As many guests as have a processor each and something to do.
pub(super) fn count(commands: usize) -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    processors.min(MOST).min(commands).max(1)
}

/// Deals `weights` out to this many lanes, so that all end at about the same time: the heaviest
/// first, each to the lane that has least. Returns what each lane has, by index, in the given order.
pub(super) fn deal(weights: &[u32], lanes: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(weights[index]));
    let mut dealt = vec![(0_u32, Vec::new()); lanes];
    for index in order {
        if let Some((sum, lane)) = dealt.iter_mut().min_by_key(|(sum, _)| *sum) {
            *sum += weights[index];
            lane.push(index);
        }
    }
    for (_, lane) in &mut dealt {
        lane.sort_unstable();
    }
    dealt.into_iter().map(|(_, lane)| lane).collect()
}

/// Runs all guests at once. What they bring comes as one report, guest by guest.
///
/// # Errors
/// The first one that a guest has: see [`Guest::run`].
pub(super) fn run(guests: &[Guest]) -> Result<Outcome> {
    let outcomes: Vec<Result<Outcome>> = thread::scope(|scope| {
        let running: Vec<_> = guests.iter().map(|guest| scope.spawn(|| guest.run())).collect();
        let join = |it: thread::ScopedJoinHandle<'_, _>| {
            it.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
        };
        running.into_iter().map(join).collect()
    });
    let mut all: Option<Report> = None;
    for outcome in outcomes {
        match outcome? {
            Outcome::NotRun(reason) => return Ok(Outcome::NotRun(reason)),
            Outcome::Ran(report) => {
                all = Some(match all {
                    None => report,
                    Some(before) => before.and(report),
                });
            }
        }
    }
    Ok(all.map_or_else(|| Outcome::NotRun("there is nothing to run".to_owned()), Outcome::Ran))
}

impl Report {
    /// Both runs as one, which ended well if both did.
    fn and(mut self, other: Self) -> Self {
        self.release = self.release.or(other.release);
        self.boot = self.boot.max(other.boot);
        self.results.extend(other.results);
        self.complaints.extend(other.complaints);
        if matches!(self.ended, Ended::PoweredOff) {
            self.ended = other.ended;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::vm::CommandResult;

    #[test]
    fn lanes_end_at_about_the_same_time_and_keep_the_order() {
        assert_eq!(deal(&[10, 300, 20, 280, 5], 2), [vec![0, 1], vec![2, 3, 4]]);
        assert_eq!(deal(&[1, 1, 1], 1), [vec![0, 1, 2]]);
        assert_eq!(deal(&[], 2), [vec![], vec![]] as [Vec<usize>; 2]);
    }

    #[test]
    fn there_is_no_guest_without_a_command() {
        assert_eq!(count(1), 1);
        assert!(count(9) <= MOST);
    }

    #[test]
    fn two_reports_are_as_good_as_the_worse_of_them() {
        let report = |status, ended| Report {
            release: None,
            boot: None,
            results: vec![CommandResult {
                command: "test".to_owned(),
                status,
                output: String::new(),
                duration: Duration::ZERO,
            }],
            complaints: Vec::new(),
            ended,
        };
        let well = || report(Some(0), Ended::PoweredOff);
        assert!(well().and(well()).succeeded());
        assert!(!well().and(report(Some(1), Ended::PoweredOff)).succeeded());
        let late = || report(Some(0), Ended::TimedOut(Duration::ZERO));
        assert!(!late().and(well()).succeeded());
        assert!(!well().and(late()).succeeded());
    }
}
