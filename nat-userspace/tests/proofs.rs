//! The documents that claim something name a test for it, and that test is there.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Every requirement, by RFC; of RFC 7857 the sections.
const REQUIREMENTS: [(&str, &str); 5] = [
    ("4787", "1 2 3 3a 4 5 5a 5b 5c 6 6a 7 8 8a 9 9a 10 10a 11 12 12a 12b 13 13a 14 14a"),
    ("5382", "1 2 2a 3 3a 3b 4 4a 5 5a 6 7 8 8a 9 10"),
    ("5508", "1 1a 2 2a 3 3a 3b 3c 3d 4 4a 4b 4c 5 5a 5b 5c 6 7 7a 8 9 10a 10b 10c 10d 10e 10f 11"),
    ("6888", "1 2 3 4 4a 4b 4c 5 5a 5b 6 7 8 8a 9 10 11a 11b 11c 11d 12 13 14 15"),
    ("7857", "2 2.1 2.2 3 4 5 6 7 7.1 8 9 10 11 12"),
];
const FAULTS: usize = 64;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The cells of a table's rows, without its head.
fn rows(text: &str) -> Vec<Vec<String>> {
    let lines = text.lines().filter(|line| line.starts_with('|'));
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let rows: Vec<_> = lines.map(cells).collect();
    let heads = rows.iter().position(|row| row.iter().all(|cell| cell == "---"));
    rows.into_iter().skip(heads.map_or(0, |at| at + 1)).collect()
}

/// The tests that a cell names: `crate::file::test`.
fn named(cell: &str) -> Vec<&str> {
    let words = cell.split('`').skip(1).step_by(2);
    words.filter(|word| word.contains("::") && !word.contains(' ')).collect()
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Whether the named test is a test of that file.
fn is_there(test: &str) -> bool {
    let mut parts = test.split("::");
    let (Some(package), Some(file), Some(name), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let directory = if package == "nat-tests" { "tests" } else { package };
    let mut files = Vec::new();
    sources(&root().join(directory), &mut files);
    let file = PathBuf::from(format!("{file}.rs"));
    files.iter().filter(|path| path.ends_with(&file)).any(|path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let mut lines: Vec<&str> = Vec::new();
        text.lines().any(|line| {
            let found = line.trim_start().starts_with(&format!("fn {name}("));
            // A function that the macro in front of it makes a test.
            let test = lines
                .iter()
                .rev()
                .take(6)
                .any(|line| ["#[test]", "#[rstest]", "proptest! {"].contains(&line.trim()));
            lines.push(line);
            found && test
        })
    })
}

fn assert_proven(what: &str, cell: &str) {
    let tests = named(cell);
    assert!(!tests.is_empty(), "{what} is claimed and names no test: {cell}");
    for test in tests {
        assert!(is_there(test), "{what}: there is no test {test}");
    }
}

#[test]
fn every_requirement_has_a_verdict_and_its_proof() {
    let document = read("docs/rfc-compliance.md");
    for (rfc, wanted) in REQUIREMENTS {
        let (_, rest) = document.split_once(&format!("\n## RFC {rfc}")).expect(rfc);
        let section = rest.split("\n## ").next().unwrap_or_default();
        let rows = rows(section);
        let there: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
        assert_eq!(there, wanted.split(' ').collect::<Vec<_>>(), "RFC {rfc}, one row for each");
        for row in &rows {
            let [number, level, text, verdict, proof] = &row[..] else {
                panic!("RFC {rfc}: five cells, not {row:?}");
            };
            let what = format!("RFC {rfc} requirement {number}");
            assert!(["MUST", "SHOULD", "MAY"].contains(&level.as_str()), "{what}: {level}");
            assert!(text.len() > 10, "{what}: {text}");
            match verdict.as_str() {
                "done" => assert_proven(&what, proof),
                "by choice not" => {
                    assert!(proof.len() > 15, "{what} has no reason");
                    let allowed = level != "MUST" || (rfc == "6888" && number == "9");
                    assert!(allowed, "{what} is a MUST");
                }
                "not" => {}
                other => panic!("{what}: {other} is no verdict"),
            }
        }
    }
}

#[test]
fn every_known_fault_has_a_test_or_a_reason() {
    let rows = rows(&read("docs/known-faults.md"));
    let numbers: Vec<usize> = rows.iter().filter_map(|row| row[0].parse().ok()).collect();
    assert_eq!(numbers, (1..=FAULTS).collect::<Vec<_>>());
    for row in &rows {
        let [number, fault, answer] = &row[..] else { panic!("three cells, not {row:?}") };
        assert!(fault.len() > 10, "{number}");
        match named(answer).is_empty() {
            true => assert!(answer.len() > 40, "fault {number} has neither test nor reason"),
            false => assert_proven(&format!("fault {number}"), answer),
        }
    }
}

#[test]
fn a_test_that_is_not_there_is_noticed() {
    let own = "nat-userspace::proofs::a_test_that_is_not_there_is_noticed";
    assert!(is_there(own));
    let wrong = [
        "nat-userspace::proofs::no_such_test",
        "nat-userspace::proofs::is_there",
        "nat-common::proofs::a_test_that_is_not_there_is_noticed",
        "nat-userspace::documents::a_test_that_is_not_there_is_noticed",
    ];
    let found: BTreeSet<_> = wrong.iter().filter(|test| is_there(test)).collect();
    assert!(found.is_empty(), "{found:?}");
}
