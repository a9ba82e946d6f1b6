//! Faults of a configuration: collected, never thrown, so that one run names all of them.

use std::fmt;

/// Where a value was written: a byte offset of the file, or a flag of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    Offset(usize),
    Flag(&'static str),
}

/// A value with the place it was written at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) at: At,
}

/// What is wrong and what would be right, before a place is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Complaint {
    what: String,
    remedy: String,
}

impl Complaint {
    pub(super) fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    list: Vec<(At, Complaint)>,
    /// Places of which enough has been said.
    settled: Vec<At>,
}

impl Faults {
    pub(super) fn add(&mut self, at: At, what: impl Into<String>, remedy: impl Into<String>) {
        self.push(at, Complaint::new(what, remedy));
    }

    /// One more fault, and no other at this place after it.
    pub(super) fn add_last(&mut self, at: At, what: impl Into<String>, remedy: impl Into<String>) {
        self.add(at, what, remedy);
        self.settled.push(at);
    }

    fn push(&mut self, at: At, complaint: Complaint) {
        if !self.settled.contains(&at) {
            self.list.push((at, complaint));
        }
    }

    /// The value, or nothing and one more fault at `at`.
    pub(super) fn keep<T>(&mut self, at: At, result: Result<T, Complaint>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(complaint) => {
                self.push(at, complaint);
                None
            }
        }
    }

    pub(super) fn append(&mut self, mut other: Self) {
        self.list.append(&mut other.list);
    }

    /// Keeps the faults at those offsets of the file that `wanted` accepts.
    pub(super) fn retain(&mut self, wanted: impl Fn(usize) -> bool) {
        self.list.retain(|(at, _)| match at {
            At::Offset(offset) => wanted(*offset),
            At::Flag(_) => true,
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// One line a fault, in file order: `LABEL:LINE:COLUMN: what; remedy`, or `--flag: what; remedy`.
    pub(super) fn into_lines(mut self, label: &str, text: &str) -> ConfigFaults {
        self.list.sort_by_key(|(at, _)| match at {
            At::Offset(offset) => *offset,
            At::Flag(_) => 0,
        });
        let lines = self
            .list
            .into_iter()
            .map(|(at, complaint)| match at {
                At::Offset(offset) => {
                    let (line, column) = line_and_column(text, offset);
                    format!("{label}:{line}:{column}: {complaint}")
                }
                At::Flag(flag) => format!("{flag}: {complaint}"),
            })
            .collect();
        ConfigFaults { lines }
    }
}

/// Every fault of a configuration, one printable line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigFaults {
    lines: Vec<String>,
}

impl ConfigFaults {
    #[must_use]
    pub fn lines(&self) -> &[String] {
        &self.lines
    }
}

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}

/// Both from 1; a column counts characters, as editors do.
fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(offset.min(text.len()))];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// The candidate that was most likely meant, if any is near enough.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_and_lines_start_at_one() {
        assert_eq!(line_and_column("a\nü = x", 0), (1, 1));
        assert_eq!(line_and_column("a\nü = x", "a\nü = ".len()), (2, 5));
        assert_eq!(line_and_column("a\n", 99), (2, 1));
    }

    #[test]
    fn a_slip_of_the_pen_finds_its_word_and_nonsense_finds_none() {
        assert_eq!(nearest("adresses", ["addresses", "name"]), Some("addresses"));
        assert_eq!(nearest("Native", ["native", "generic"]), Some("native"));
        assert_eq!(nearest("colour", ["addresses", "name"]), None);
    }
}
