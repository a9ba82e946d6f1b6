//! Steps of a tier: cargo with its output passed on, and the tests in it counted.

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
}

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
    if !arguments.is_empty() {
        command.arg("--").args(arguments);
    }
    println!("-- {}", workspace::display(command));
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let output = child.stdout.take().context("a piped stdout is missing")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read what cargo prints")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tally.note(&line);
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        tally.faults.push(format!("{} ({status})", workspace::display(command)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn results_of_test_executables_add_up() {
        let mut tally = Tally::default();
        tally.note("test result: ok. 10 passed; 0 failed; 2 ignored; 0 measured; finished in 4s");
        tally.note("vm| test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured");
        tally.note("test a_result_that_passed ... ok");
        assert_eq!((tally.passed, tally.failed), (13, 1));
    }
}
