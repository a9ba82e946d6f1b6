//! Steps of a tier: cargo with its output passed on, and the tests in it counted.
//!
//! A gateway in namespaces meets a busy machine now and then: an end-to-end test that fails is tried
//! once more, alone. One that passes then is named at the end, so that nobody takes it for sound.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::workspace;

/// Tests counted over all tiers, and the steps that failed.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) faults: Vec<String>,
    /// Tests that passed at their second try only.
    pub(super) unsteady: Vec<String>,
}

/// Failed tests that are tried again; more of them are no accident.
const MOST_RETRIED: usize = 6;

impl Tally {
    /// Counts the tests of a line `test result: ok. 3 passed; 0 failed; …`; other lines have none.
    pub(super) fn note(&mut self, line: &str) {
        let Some((_, counts)) = line.split_once("test result: ") else { return };
        let counts = counts.split_once(". ").map_or("", |(_, counts)| counts);
        for part in counts.split(';') {
            let mut words = part.split_whitespace();
            let count = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
            match words.next() {
                Some("passed") => self.passed += count,
                Some("failed") => self.failed += count,
                _ => {}
            }
        }
    }
}

/// A cargo command without tests, such as clippy; it failing is noted and the tier goes on.
pub(super) fn cargo_step(arguments: &[&str], tally: &mut Tally) -> Result<()> {
    let mut command = workspace::cargo(arguments);
    println!("-- {}", workspace::display(&command));
    let status = command.status().context("cannot start cargo")?;
    if !status.success() {
        tally.faults.push(format!("{} ({status})", workspace::display(&command)));
    }
    Ok(())
}

/// `cargo test …` with arguments for the tests; passes its output on and counts.
pub(super) fn cargo_test(
    command: &mut Command,
    arguments: &[String],
    tally: &mut Tally,
) -> Result<()> {
    if !run(command, arguments, tally)?.succeeded {
        tally.faults.push(workspace::display(command));
    }
    Ok(())
}

/// The same, with a second try for tests that fail. `command` is made anew for each try.
pub(super) fn cargo_test_twice(
    command: impl Fn() -> Command,
    arguments: &[String],
    tally: &mut Tally,
) -> Result<()> {
    let mut first = command();
    let result = run(&mut first, arguments, tally)?;
    if result.succeeded {
        return Ok(());
    }
    let failed = result.failed;
    if failed.is_empty() || failed.len() > MOST_RETRIED {
        tally.faults.push(workspace::display(&first));
        return Ok(());
    }
    for name in failed {
        println!("-- once more, alone: {name}");
        let alone = [&[name.clone(), "--exact".to_owned()], arguments].concat();
        let mut second = Tally::default();
        let succeeded = run(&mut command(), &alone, &mut second)?.succeeded;
        if succeeded && second.passed > 0 {
            tally.failed = tally.failed.saturating_sub(1);
            tally.passed += 1;
            tally.unsteady.push(name);
        } else {
            tally.faults.push(format!("{name}, twice"));
        }
    }
    Ok(())
}

/// What came of one `cargo test`.
struct Run {
    succeeded: bool,
    /// Names of the tests that failed.
    failed: Vec<String>,
}

fn run(command: &mut Command, arguments: &[String], tally: &mut Tally) -> Result<Run> {
    if !arguments.is_empty() {
        command.arg("--").args(arguments);
    }
    println!("-- {}", workspace::display(command));
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let output = child.stdout.take().context("a piped stdout is missing")?;
    let mut failed = Vec::new();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read what cargo prints")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tally.note(&line);
        failed.extend(failed_test(&line));
    }
    let status = child.wait().context("cannot wait for cargo")?;
    Ok(Run { succeeded: status.success(), failed })
}

/// The name in a line `test NAME ... FAILED`.
fn failed_test(line: &str) -> Option<String> {
    let name = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Tally, failed_test};

    #[test]
    fn failed_tests_are_known_by_their_names() {
        let name = failed_test("test a_rule::wiring_2_Wiring__OneArmed ... FAILED");
        assert_eq!(name.as_deref(), Some("a_rule::wiring_2_Wiring__OneArmed"));
        assert_eq!(failed_test("test a_rule ... ok"), None);
        assert_eq!(failed_test("test result: FAILED. 3 passed; 1 failed"), None);
    }

    #[test]
    fn results_of_test_executables_add_up() {
        let mut tally = Tally::default();
        tally.note("test result: ok. 10 passed; 0 failed; 2 ignored; 0 measured; finished in 4s");
        tally.note("vm| test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured");
        tally.note("test a_result_that_passed ... ok");
        assert_eq!((tally.passed, tally.failed), (13, 1));
    }
}
