//! What `natgw doctor`, `check` and `run` say of a broken environment is provoked in a test, all of
//! it: `tests/messages.md` has the list, and this file holds it to the sources.

use std::{collections::BTreeMap, fs, path::PathBuf};

use nat_userspace::{
    config::{self, HostInterface, HostView, Listener, Overrides, PortRange, Protocol},
    doctor::Check,
};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The rows of a section of the list: message, and the tests that provoke it or why none can.
fn listed(section: &str) -> BTreeMap<String, String> {
    let list = read("tests/messages.md");
    let (_, rest) = list.split_once(&format!("\n## {section}\n")).expect(section);
    let body = rest.split("\n## ").next().unwrap_or_default();
    let rows = body.lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"));
    rows.filter_map(|row| row.split_once("` | "))
        .map(|(message, proof)| (message.to_owned(), proof.to_owned()))
        .collect()
}

/// The text of the file that a test is in, if the test is there: `crate::file::test`.
fn file_with(test: &str) -> Option<String> {
    let [package, file, name] = test.split("::").collect::<Vec<_>>()[..] else { return None };
    let directory = root().join(if package == "nat-tests" { "tests/tests" } else { package });
    let mut files = vec![directory];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(path).ok()?.flatten().map(|entry| entry.path()));
        } else if path.ends_with(format!("{file}.rs"))
            && let Ok(text) = fs::read_to_string(path)
            && text.contains(&format!("fn {name}("))
        {
            return Some(text);
        }
    }
    None
}

/// Every test that a row names is there; a row without one has a reason.
fn assert_proven(message: &str, proof: &str, mentions: Option<&str>) {
    let tests: Vec<&str> =
        proof.split('`').skip(1).step_by(2).filter(|word| word.contains("::")).collect();
    assert!(!tests.is_empty() || proof.len() > 40, "{message}: neither test nor reason");
    for test in tests {
        let text = file_with(test).unwrap_or_else(|| panic!("{message}: there is no {test}"));
        if let Some(mentions) = mentions {
            assert!(text.contains(mentions), "{test} does not mention {mentions}");
        }
    }
}

#[test]
fn every_finding_of_doctor_was_provoked() {
    let listed = listed("natgw doctor");
    let wanted: Vec<&str> = Check::ALL.iter().map(|check| check.word()).collect();
    for check in Check::ALL {
        let proof = listed.get(check.word()).unwrap_or_else(|| panic!("{check} is not listed"));
        // By its word in an end-to-end test, by its name beside its judge.
        for test in proof.split('`').skip(1).step_by(2) {
            let end_to_end = test.starts_with("nat-tests");
            let name = if end_to_end { check.word().to_owned() } else { format!("{check:?}") };
            assert_proven(check.word(), &format!("`{test}`"), Some(&name));
        }
        assert_proven(check.word(), proof, None);
    }
    for check in listed.keys() {
        assert!(wanted.contains(&check.as_str()), "{check} is listed and is no check");
    }
    let guide = read("docs/troubleshooting.md");
    for check in wanted {
        assert!(guide.contains(&format!("`{check}`")), "docs/troubleshooting.md lacks {check}");
    }
}

/// The first words of each `#[error("…")]`, and of each refusal of the preflight, by file.
const REFUSALS: [&str; 5] = [
    "nat-userspace/src/datapath/error.rs",
    "nat-userspace/src/api/instance.rs",
    "nat-userspace/src/config/host.rs",
    "nat-userspace/src/preflight.rs",
    "nat-userspace/src/preflight/attach.rs",
];

#[test]
fn every_refusal_of_run_was_provoked() {
    let listed = listed("natgw run");
    let mut wanted = Vec::new();
    for file in REFUSALS {
        let text = read(file);
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        for begin in ["#[error(", "bail!("] {
            for (_, rest) in
                text.match_indices(begin).map(|(at, _)| text.split_at(at + begin.len()))
            {
                // Transparent ones have no words of their own.
                if let Some(message) = rest.trim_start().strip_prefix('"') {
                    wanted.push(beginning(&literal(message)));
                }
            }
        }
    }
    assert!(wanted.len() > 15, "{wanted:?}");
    for message in &wanted {
        let proof = listed.get(message);
        let proof = proof.unwrap_or_else(|| panic!("tests/messages.md lacks: {message}"));
        assert_proven(message, proof, None);
    }
    for message in listed.keys() {
        assert!(wanted.contains(message), "tests/messages.md has a message of nobody: {message}");
    }
}

/// A message up to its seventh word: enough to know it by.
fn beginning(message: &str) -> String {
    message.split_whitespace().take(7).collect::<Vec<_>>().join(" ")
}

/// A string's value, from behind its opening quote on.
fn literal(text: &str) -> String {
    let mut value = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => break,
            '\\' => match characters.next() {
                Some('\n') => {
                    let rest = characters.as_str().trim_start();
                    characters = rest.chars();
                }
                Some(escaped) => value.push(escaped),
                None => break,
            },
            other => value.push(other),
        }
    }
    value
}

const HEAD: &str = "[gateway]\npublic = [\"eth0\"]\nprivate = [\"eth1\"]\n";
const POOL: &str = "[[pool]]\naddresses = [\"198.51.100.10\"]\n";
const SNAT: &str = "[[snat]]\nsource = [\"10.0.0.0/16\"]\n";

/// Broken files, each behind the right ones of its kind: `HEAD`, then `HEAD` and `POOL`, and so on.
const WITHOUT_HEAD: [&str; 8] = [
    "",
    "gateway = 5\n",
    "[gateway]\nprivate = [\"eth1\"]\npublic = []\n",
    "[gateway]\npublic = [\"eth0\", \"eth0\", \"wg0\", \"eth99\", 5]\nprivate = \"eth1\"\n",
    "pool = 5\n[gateway]\npublic = 7\n",
    "pool = [5]\n[[gateway]]\n",
    "[gateway]\npublic = [\"eth0\"]\npublic = [\"eth0\"]\nprivate = [\"eth1\"]\n",
    "[gateway]\npublic = [eth0]\n",
];
const BEHIND_HEAD: [&str; 12] = [
    "xdp_mode = \"tc\"\nsessions = 0\nmss_clamp = 1\nxdp_mod = \"auto\"\nprofile = \"amazon\"\nhairpin = 1\n",
    "mss_clamp = \"big\"\nstate_dir = \"run\"\nname = \"a/b\"\n",
    "",
    "[[pool]]\naddresses = []\n",
    "[[pool]]\nname = \"a\"\naddresses = [\"198.51.100.1/30\", \"10.0.0.0/8\"]\n",
    "[[pool]]\naddresses = [\"192.0.2.10\"]\nports = \"40000-50000\"\ninterface = \"eth1\"\n\
     sessions_per_host = -1\n[[pool]]\naddresses = [\"192.0.2.10\", \"eth2\"]\n",
    "[[pool]]\nname = \"a\"\naddresses = [\"192.0.2.1\"]\n[[pool]]\nname = \"a\"\nports = \"0-5\"\n",
    "[[one_to_one]]\npublic = \"192.0.2.10\"\nprivate = \"10.0.1.9\"\n\
     [[one_to_one]]\npublic = \"198.51.100.9\"\nprivate = \"10.0.1.9\"\n",
    "[[one_to_one]]\npublic = \"eth0\"\n",
    "[[snat]]\nsource = [\"10.0.0.1/16\"]\npool = \"none\"\n",
    "[[pool]]\naddresses = [\"192.0.2.10\"]\n[[pool]]\nname = \"b\"\naddresses = [\"192.0.2.8/29\"]\n",
    "[[pool]]\naddresses = [\"eth2\", \"eth77\"]\n",
];
const BEHIND_SNAT: [&str; 19] = [
    "[[snat]]\nsource = [\"10.0.0.0/16\"]\n[[snat]]\nsource = []\n[[snat]]\npool = \"default\"\n",
    "[timeouts]\nudp = \"0s\"\nicmp = \"soon\"\ntcp_transitory = 5\n",
    "[metrics]\nlisten = \"here\"\ntop_hosts = -1\n",
    "[[forward]]\nprotocol = \"tcp\"\npublic = \"203.0.113.9:443\"\nprivate = \"10.0.1.5:443\"\n",
    "[[forward]]\nprotocol = \"tcp\"\npublic = \"198.51.100.10:1-3\"\nprivate = \"10.0.1.5:1-2\"\n",
    "[[forward]]\nprotocol = \"sctp\"\npublic = \"198.51.100.10\"\nprivate = \"10.0.1.5:0\"\n",
    "[[forward]]\nprotocol = \"tcp\"\npublic = \"198.51.100.10:443\"\nprivate = \"10.0.1.5:443\"\n\
     [[forward]]\nprotocol = \"tcp\"\npublic = \"198.51.100.10:443\"\nprivate = \"10.0.1.5:443\"\n\
     [[forward]]\nprotocol = \"tcp\"\npublic = \"198.51.100.10:443\"\nprivate = \"10.0.1.6:443\"\n",
    "[[pool]]\nname = \"own\"\naddresses = [\"192.0.2.10\"]\n\
     [[forward]]\nprotocol = \"tcp\"\npublic = \"192.0.2.10:22\"\nprivate = \"10.0.1.5:22\"\n",
    "[log]\n",
    "[log]\nipfix = \"192.0.2.5:4739\"\nbulk = \"5m\"\nrotate_mb = 5\n",
    "[log]\nfile = \"flows\"\nipfix_domain = 5\n",
    "[log]\nipfix = \"192.0.2.5:0\"\nipfix_domain = -1\n",
    "[log]\nipfix = \"collector\"\n",
    "[log]\nfile = \"/a/b\"\nfields = \"srcaddr\"\ninterval = \"8d\"\nkeep = -1\nrotate_mb = -1\n",
    "[log]\nfile = \"/a/b\"\nformat = \"vpc\"\nfields = \"\"\n",
    "[log]\nfile = \"/a/b\"\nformat = \"vpc\"\nfields = \"srcaddr srcaddr nonsense\"\n",
    "[log]\nfile = \"/a/b\"\nformat = \"vpc\"\n\
     constants = [\"x\", \"nonsense=1\", \"srcaddr=1\", \"vpc-id=a b\", \"vpc-id=a\", \"vpc-id=b\"]\n",
    "[log]\nfile = \"/a/b\"\nformat = \"xml\"\nopened = 1\n",
    "[logs]\n",
];

fn host() -> HostView {
    let interface = |name: &str, ethernet, addresses: &[[u8; 4]]| HostInterface {
        name: name.to_owned(),
        ethernet,
        addresses: addresses.iter().map(|it| (*it).into()).collect(),
    };
    HostView {
        interfaces: vec![
            interface("eth0", true, &[[192, 0, 2, 10]]),
            interface("eth1", true, &[[10, 0, 0, 1]]),
            interface("eth2", true, &[]),
            interface("wg0", false, &[[10, 9, 0, 1]]),
        ],
        listeners: vec![Listener {
            protocol: Protocol::Tcp,
            address: [0, 0, 0, 0].into(),
            port: 22,
        }],
        local_ports: Some(PortRange { first: 1024, last: 65535 }),
    }
}

/// What `natgw check` says to all of them.
fn provoked() -> Vec<String> {
    let texts = WITHOUT_HEAD
        .iter()
        .map(|text| (*text).to_owned())
        .chain(BEHIND_HEAD.iter().map(|text| format!("{HEAD}{text}")))
        .chain(BEHIND_SNAT.iter().map(|text| format!("{HEAD}{POOL}{SNAT}{text}")));
    texts
        .flat_map(|text| match config::parse_text(&text, "t", &Overrides::default(), &host()) {
            Ok(_) => panic!("nothing is wrong with:\n{text}"),
            Err(faults) => faults.lines().to_vec(),
        })
        .collect()
}

/// What is wrong, of every `faults.add(place, what, remedy)`, with its holes.
fn templates(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in source.match_indices("faults.add") {
        let call = &source[at..];
        let Some((name, arguments)) = call.split_once('(') else { continue };
        if !matches!(name, "faults.add" | "faults.add_last") {
            continue;
        }
        let Some((_, what)) = arguments.split_once(',') else { continue };
        let what = what.trim_start();
        let text = if what.starts_with("what,") {
            // The nearest one before.
            let before = source[..at].rsplit_once("let what =");
            before.and_then(|(_, it)| it.split_once('"')).map(|(_, rest)| literal(rest))
        } else {
            let what = what.strip_prefix("format!(").unwrap_or(what).trim_start();
            what.strip_prefix('"').map(literal)
        };
        found.extend(text);
    }
    found
}

/// Whether the constant parts of a template are in the line, in their order.
fn fits(template: &str, line: &str) -> bool {
    let mut rest = line;
    let mut parts = template.split('{').map(|part| part.split_once('}').map_or(part, |it| it.1));
    parts.all(|part| match rest.split_once(part) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}

#[test]
fn every_fault_that_check_can_find_was_provoked() {
    let lines = provoked();
    let mut files = vec![root().join("nat-userspace/src/config")];
    let mut count = 0;
    let mut missing = Vec::new();
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(path).expect("a directory").flatten().map(|it| it.path()));
            continue;
        }
        let text = fs::read_to_string(&path).expect("a source");
        for template in templates(text.split("#[cfg(test)]").next().unwrap_or_default()) {
            count += 1;
            if !lines.iter().any(|line| fits(&template, line)) {
                missing.push(template);
            }
        }
    }
    assert!(count > 50, "only {count} faults were found in the sources");
    assert!(missing.is_empty(), "nothing provokes:\n{}\nof\n{lines:#?}", missing.join("\n"));
}

#[test]
fn a_message_that_nobody_provokes_is_noticed() {
    let source = "faults.add(\n at,\n format!(\"the {moon} is \\\n   full\"),\n \"wait\",\n);\n\
                  let what = \"no tide\";\n faults.add(at, what, \"wait\");";
    assert_eq!(templates(source), ["the {moon} is full", "no tide"]);
    assert!(fits("the {moon} is full", "t:1:2: the moon is full; wait"));
    assert!(!fits("the {moon} is full", "t:1:2: the moon is new; wait"));
    assert!(
        file_with("nat-userspace::messages::a_message_that_nobody_provokes_is_noticed").is_some()
    );
    assert!(file_with("nat-userspace::messages::no_such_test").is_none());
}
