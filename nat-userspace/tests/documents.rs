//! What is written for people agrees with the program: the sample configuration, the reference of
//! its keys, the table of drop reasons, the files and maps that the architecture names.

use std::{collections::BTreeSet, env, fs, path::PathBuf, process::Command};

use nat_common::{maps, verdict::DropReason};
use nat_userspace::api::{Counters, MetricKind};
use nat_userspace::config::{self, HostInterface, HostView, Overrides, PortRange, Role};
use serde_json::Value;

/// Set: a stale table is written anew instead of reported.
const UPDATE: &str = "NATGW_UPDATE_DOCS";
const BEGIN: &str = "<!-- generated: begin -->\n";
const END: &str = "<!-- generated: end -->\n";
const SECTIONS: [&str; 8] = [
    "[gateway]",
    "[[pool]]",
    "[[snat]]",
    "[[forward]]",
    "[[one_to_one]]",
    "[timeouts]",
    "[metrics]",
    "[log]",
];

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A host for which the sample is written: two interfaces, none of the sample's public addresses.
fn host() -> HostView {
    let interface = |name: &str, address: [u8; 4]| HostInterface {
        name: name.to_owned(),
        ethernet: true,
        addresses: vec![address.into()],
    };
    HostView {
        interfaces: vec![interface("eth0", [198, 51, 100, 2]), interface("eth1", [10, 0, 0, 1])],
        listeners: Vec::new(),
        local_ports: Some(PortRange { first: 32768, last: 60999 }),
    }
}

fn parse(text: &str) -> config::Config {
    match config::parse_text(text, "natgw.toml", &Overrides::default(), &host()) {
        Ok(config) => config,
        Err(faults) => panic!("{faults}"),
    }
}

/// The sample with every setting in use that it only shows.
fn uncommented(sample: &str) -> String {
    let shown = |line: &str| {
        line.strip_prefix('#')
            .filter(|rest| rest.starts_with(char::is_alphabetic))
            .map(str::to_owned)
    };
    sample.lines().map(|line| shown(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

/// The keys of a section, from the complaint about one that cannot be.
fn keys(section: &str) -> Vec<String> {
    let text = format!("{section}\nzzzzzzzzzzzzzzzz = 1\n");
    let faults = config::parse_text(&text, "t", &Overrides::default(), &host())
        .expect_err("a key of another world");
    let complaint = faults.lines().iter().find_map(|line| line.split_once("the keys here are "));
    let (_, list) = complaint.unwrap_or_else(|| panic!("no list of keys in {faults}"));
    list.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_sample_configuration_is_right_and_says_nothing_surprising() {
    let config = parse(&read("examples/natgw.toml"));
    assert_eq!(config::notices(&config, &host()), Vec::<String>::new());
    assert_eq!((config.forwards.len(), config.one_to_one.len()), (1, 1));
}

#[test]
fn the_configurations_of_the_readme_are_right() {
    let text = read("README.md");
    let blocks: Vec<&str> =
        text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(blocks.len(), 2);
    let roles = blocks.iter().map(|block| {
        parse(block).interfaces().into_iter().map(|(_, role)| role).collect::<Vec<_>>()
    });
    assert!(roles.eq([vec![Role::Public, Role::Private], vec![Role::Both]]));
}

#[test]
fn what_the_sample_only_shows_are_the_defaults() {
    let sample = read("examples/natgw.toml");
    let mut all = uncommented(&sample);
    // What is shown without being a default, or goes with another format of the log.
    for shown in ["interface = ", "fields = ", "constants = ", "ipfix = ", "ipfix_domain = "] {
        let (before, rest) = all.split_once(&format!("\n{shown}")).expect(shown);
        let (_, after) = rest.split_once('\n').expect("another line");
        all = format!("{before}\n{after}");
    }
    assert_eq!(parse(&all), parse(&sample));
}

#[test]
fn the_sample_shows_every_key_of_every_section() {
    let all = uncommented(&read("examples/natgw.toml"));
    for section in SECTIONS {
        let (_, rest) = all.split_once(&format!("\n{section}\n")).expect(section);
        let body = rest.split("\n[").next().unwrap_or_default();
        let settings = body.lines().filter(|line| !line.starts_with('#'));
        let shown: BTreeSet<&str> =
            settings.filter_map(|line| Some(line.split_once(" = ")?.0)).collect();
        let wanted = keys(section);
        assert_eq!(shown, wanted.iter().map(String::as_str).collect(), "{section}");
    }
}

#[test]
fn the_reference_explains_every_key_of_every_section() {
    let reference = read("docs/config.md");
    for section in SECTIONS {
        let (_, rest) = reference.split_once(&format!("\n## `{section}`\n")).expect(section);
        let body = rest.split("\n## ").next().unwrap_or_default();
        let explained: BTreeSet<&str> = body
            .lines()
            .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0))
            .collect();
        let wanted = keys(section);
        assert_eq!(explained, wanted.iter().map(String::as_str).collect(), "{section}");
    }
}

/// `natgw counters --explain` as a table of Markdown.
fn explained_reasons() -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_natgw"))
        .args(["counters", "--explain", "-o", "json"])
        .output()
        .expect("natgw runs");
    assert!(output.status.success(), "{output:?}");
    let reasons: Vec<Value> = serde_json::from_slice(&output.stdout).expect("a list");
    assert_eq!(reasons.len(), DropReason::ALL.len());
    let mut table = "| reason | meaning |\n| --- | --- |\n".to_owned();
    for entry in &reasons {
        let text = |key: &str| entry[key].as_str().expect(key).replace('|', "\\|");
        table += &format!("| `{}` | {} |\n", text("reason"), text("meaning"));
    }
    table
}

#[test]
fn the_documented_drop_reasons_are_those_of_the_program() {
    let document = read("docs/drop-reasons.md");
    let (head, rest) = document.split_once(BEGIN).expect("the mark where the table begins");
    let (table, tail) = rest.split_once(END).expect("the mark where the table ends");
    let wanted = explained_reasons();
    if table == wanted {
        return;
    }
    if env::var_os(UPDATE).is_some() {
        let anew = format!("{head}{BEGIN}{wanted}{END}{tail}");
        fs::write(path("docs/drop-reasons.md"), anew).expect("docs/drop-reasons.md is writable");
        return;
    }
    panic!(
        "docs/drop-reasons.md is stale; write it anew with: {UPDATE}=1 cargo test -p nat-userspace \
         --test documents\nwanted:\n{wanted}"
    );
}

/// The backticked words of a text that end with this.
fn named<'a>(text: &'a str, ending: &str) -> Vec<&'a str> {
    let words = text.split('`').skip(1).step_by(2);
    words.filter(|word| word.ends_with(ending) && !word.contains(['*', ' '])).collect()
}

#[test]
fn every_file_that_the_architecture_names_is_there() {
    let text = read("ARCHITECTURE.md");
    let files = named(&text, ".rs");
    assert!(files.len() > 50, "{files:?}");
    let roots =
        [".", "nat-common/src", "nat-common/src/stage", "nat-ebpf/src", "nat-userspace/src"];
    let deeper = ["nat-userspace/src/config", "nat-userspace/src/controller"];
    for file in files {
        let found = roots.iter().chain(&deeper).any(|root| path(root).join(file).is_file());
        assert!(found, "ARCHITECTURE.md names {file}");
    }
}

#[test]
fn every_link_between_the_documents_leads_somewhere() {
    for (document, directory) in [
        ("README.md", "."),
        ("ARCHITECTURE.md", "."),
        ("CONTRIBUTING.md", "."),
        ("docs/config.md", "docs"),
        ("docs/drop-reasons.md", "docs"),
        ("docs/rfc-compliance.md", "docs"),
        ("docs/known-faults.md", "docs"),
        ("docs/testing.md", "docs"),
        ("docs/metrics.md", "docs"),
        ("docs/records.md", "docs"),
    ] {
        let text = read(document);
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|it| !it.starts_with("http") && !it.starts_with('#')) {
            let target = target.split('#').next().unwrap_or_default();
            assert!(path(directory).join(target).exists(), "{document} links to {target}");
        }
    }
}

#[test]
fn the_architecture_tells_of_every_map() {
    let text = read("ARCHITECTURE.md");
    let (_, rest) = text.split_once("\n## The maps\n").expect("the table of maps");
    let table = rest.split("\n## ").next().unwrap_or_default();
    let source = read("nat-ebpf/src/maps.rs");
    let maps: Vec<&str> = source
        .lines()
        .filter_map(|line| line.strip_prefix("    ")?.split_once(", \""))
        .filter_map(|(_, rest)| rest.split_once("\": ").map(|(name, _)| maps::pin(name)))
        .collect();
    assert!(maps.len() > 20, "{maps:?}");
    for map in maps {
        assert!(table.contains(&format!("`{map}`")), "ARCHITECTURE.md does not tell of {map}");
    }
}

/// "PacketsDropCount" is "packets_drop_count".
fn snake(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake
}

#[test]
fn every_metric_of_the_managed_gateway_is_mapped_to_one_of_ours() {
    const CLOUD: [&str; 16] = [
        "ActiveConnectionCount",
        "BytesInFromDestination",
        "BytesInFromSource",
        "BytesOutToDestination",
        "BytesOutToSource",
        "ConnectionAttemptCount",
        "ConnectionEstablishedCount",
        "ErrorPortAllocation",
        "IdleTimeoutCount",
        "PacketsDropCount",
        "PacketsInFromDestination",
        "PacketsInFromSource",
        "PacketsOutToDestination",
        "PacketsOutToSource",
        "PeakBytesPerSecond",
        "PeakPacketsPerSecond",
    ];
    let document = read("docs/metrics.md");
    let metrics = Counters::default().metrics();
    for name in CLOUD {
        let metric = metrics.iter().find(|metric| metric.key == snake(name)).expect(name);
        let total = if metric.kind == MetricKind::Counter { "_total" } else { "" };
        let ours = format!("natgw_{}{total}", metric.key);
        let row =
            document.lines().find(|line| line.starts_with(&format!("| `{name}` | `{ours}` |")));
        let query = row.and_then(|row| row.split('`').nth(5)).expect(name);
        assert!(query.contains(&format!("{ours}[")), "{name}: {query}");
    }
}
