//! Every example in the documents works: configurations are valid, command lines are understood,
//! links lead somewhere.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Parser as _;
use nat_userspace::{
    cli::Cli,
    config::{self, HostInterface, HostView, Overrides, PortRange},
};

/// Documents of the project, with their text.
fn documents() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let docs = fs::read_dir(root.join("docs")).expect("the documents");
    let docs = docs.map(|entry| entry.expect("an entry").path());
    [root.join("README.md"), root.join("ARCHITECTURE.md")]
        .into_iter()
        .chain(docs.filter(|path| path.extension().is_some_and(|it| it == "md")))
        .map(|path| {
            let text = fs::read_to_string(&path).expect("a text");
            (path, text)
        })
        .collect()
}

/// The blocks of a language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let begin = format!("```{language}\n");
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once(&begin) {
        let (block, after) = after.split_once("```").expect("the end of a block");
        found.push(block.to_owned());
        rest = after;
    }
    found
}

#[test]
fn every_configuration_in_the_documents_is_valid() {
    let interface = |name: &str, address: [u8; 4]| HostInterface {
        name: name.to_owned(),
        ethernet: true,
        addresses: vec![address.into()],
    };
    let host = HostView {
        interfaces: vec![interface("eth0", [198, 51, 100, 2]), interface("eth1", [10, 0, 0, 1])],
        listeners: Vec::new(),
        local_ports: Some(PortRange { first: 32768, last: 60999 }),
    };
    let mut count = 0;
    for (path, text) in documents() {
        for block in blocks(&text, "toml") {
            count += 1;
            if let Err(faults) = config::parse_text(&block, "block", &Overrides::default(), &host) {
                panic!("{}: {faults}\n{block}", path.display());
            }
        }
    }
    assert!(count >= 5, "{count} configurations");
}

/// A line of an example as the arguments of natgw, if it runs that.
fn command_of(line: &str) -> Option<Vec<&str>> {
    let line = line.trim_start_matches(['#', '$']).trim();
    let line = line.strip_prefix("sudo ").unwrap_or(line);
    let line = line.split(" #").next().unwrap_or(line).trim().trim_end_matches('&').trim();
    let words: Vec<&str> = line.split_whitespace().collect();
    (words.first() == Some(&"natgw")).then_some(words)
}

#[test]
fn every_command_line_in_the_documents_is_understood() {
    let mut count = 0;
    for (path, text) in documents() {
        let of_users = blocks(&text, "console").into_iter().flat_map(|block| {
            let typed = |line: &&str| line.starts_with("# ") || line.starts_with("$ ");
            block.lines().filter(typed).map(str::to_owned).collect::<Vec<_>>()
        });
        let of_scripts = blocks(&text, "sh")
            .into_iter()
            .flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>());
        for line in of_users.chain(of_scripts) {
            let Some(words) = command_of(&line) else { continue };
            count += 1;
            if let Err(error) = Cli::try_parse_from(&words) {
                panic!("{}: {line}\n{error}", path.display());
            }
        }
    }
    assert!(count >= 30, "{count} command lines");
}

#[test]
fn every_link_between_the_documents_leads_to_a_file() {
    let mut count = 0;
    for (path, text) in documents() {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            count += 1;
            let file = path.parent().expect("a directory").join(file);
            assert!(file.exists(), "{}: {target}", path.display());
        }
    }
    assert!(count > 5, "{count} links");
}
