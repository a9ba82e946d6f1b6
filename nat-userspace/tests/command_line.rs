//! What may be written on the command line, and what the binary makes of it: streams and exit
//! status.

use std::{
    fs,
    process::{Command, Output, Stdio},
    time::Duration,
};

use clap::Parser as _;
use nat_userspace::{
    api::model::FlowFilter,
    cli::{Cli, Command as Parsed, EipCommand, FlowsCommand, ForwardCommand, OnExit},
    config::{Protocol, XdpMode},
    output::Format,
};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[track_caller]
fn command(line: &str) -> Parsed {
    match parse(line) {
        Ok(cli) => cli.command,
        Err(error) => panic!("{line}: {error}"),
    }
}

fn natgw(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_natgw"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("natgw runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn every_command_of_the_contract_is_understood() {
    for line in [
        "natgw run",
        "natgw run -c /etc/natgw/natgw.toml --xdp-mode generic --on-exit keep --confirm 60s",
        "natgw run --public eth0 --public eth2 --private eth1 --eip 198.51.100.10 --eip eth0 --source 10.0.0.0/16 --source 10.1.0.0/16",
        "natgw run --xdp-mode native --public eth0 --private eth0 --eip eth0 --source 10.0.0.0/8 --name a --state-dir /tmp/a",
        "natgw detach --name a --state-dir /tmp/a",
        "natgw check -c natgw.toml -o json",
        "natgw status --name a -o table",
        "natgw --name a --state-dir /tmp/a status -o json",
        "natgw counters --watch 5 -o json",
        "natgw counters --explain",
        "natgw flows --private 10.0.0.5 --remote 203.0.113.1:443 --public 198.51.100.10 --protocol tcp --limit 10 -o json",
        "natgw flows count --protocol icmp -o json",
        "natgw flows --protocol udp flush --limit 5",
        "natgw trace --from 10.0.0.5:4000 --to 192.0.2.80:443 --protocol tcp --in lan0 -o json",
        "natgw trace --from 10.0.0.5:7 --to 192.0.2.80 --protocol icmp --length 1500 --dont-fragment",
        "natgw capture -w file.pcapng",
        "natgw capture --private 10.0.0.5 --remote 203.0.113.1:443 --public 198.51.100.10 --protocol tcp --drops --count 10 --duration 30s -s 128 -w - -o json",
        "natgw eip list -o json",
        "natgw eip list --pool main",
        "natgw eip add 198.51.100.11 --pool main --save",
        "natgw eip drain 198.51.100.11 --max-wait 4000s",
        "natgw eip remove 198.51.100.11 -o json",
        "natgw forward list -o json",
        "natgw forward add --protocol tcp --public 198.51.100.10:443 --private 10.0.1.5:8443 --save",
        "natgw forward remove --protocol udp --public 198.51.100.10:53 --private 10.0.1.5:53",
        "natgw reload",
        "natgw reload --dry-run -o json",
        "natgw confirm --name a",
        "natgw run --cold",
        "natgw migrate --name a --state-dir /tmp/a --bpf-dir /sys/fs/bpf/b",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn wrong_usage_is_refused() {
    for line in [
        "natgw",
        "natgw fly",
        "natgw run --public eth0",
        "natgw run --public eth0 --private eth1 --eip eth0",
        "natgw run -c f.toml --public eth0 --private eth1 --eip eth0 --source 10.0.0.0/8",
        "natgw run --xdp-mode fast",
        "natgw run --on-exit explode",
        "natgw run --confirm 60",
        "natgw run --confirm 0s",
        "natgw status --name a/b",
        "natgw status -o xml",
        "natgw counters --watch 0",
        "natgw counters --watch 1 --explain",
        "natgw flows --private nowhere",
        "natgw flows --protocol sctp",
        "natgw trace --from 10.0.0.5:4000 --to 192.0.2.80:443",
        "natgw capture",
        "natgw capture -w file.pcapng --count 0",
        "natgw capture -w file.pcapng -s 13",
        "natgw eip add",
        "natgw eip add 2001:db8::1",
        "natgw eip drain 198.51.100.11 --max-wait 0s",
        "natgw eip drain 198.51.100.11 --max-wait 4001s",
        "natgw forward add --protocol icmp --public 198.51.100.10:1 --private 10.0.0.5:1",
        "natgw forward add --protocol tcp --public 198.51.100.10 --private 10.0.0.5:1",
        "natgw forward add --protocol tcp --public 198.51.100.10:1",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}

#[test]
fn arguments_arrive_as_what_they_mean() {
    let Parsed::Run(run) = command("natgw run --xdp-mode generic --confirm 2m") else {
        panic!("run")
    };
    assert_eq!(run.xdp_mode, Some(XdpMode::Generic));
    assert_eq!(run.on_exit, OnExit::Stop);
    assert_eq!(run.confirm, Some(Duration::from_secs(120)));

    let Parsed::Flows(flows) =
        command("natgw flows --private 10.0.0.5 count --protocol udp --limit 3 -o json")
    else {
        panic!("flows")
    };
    assert_eq!(flows.command, Some(FlowsCommand::Count));
    assert_eq!(flows.output.output, Format::Json);
    let filter = FlowFilter {
        private: Some("10.0.0.5".parse().expect("a filter")),
        protocol: Some(Protocol::Udp),
        limit: Some(3),
        ..FlowFilter::default()
    };
    assert_eq!(FlowFilter::from(flows.filter), filter);

    let Parsed::Eip(EipCommand::Drain { eip, max_wait }) =
        command("natgw eip drain 198.51.100.11 --pool main")
    else {
        panic!("drain")
    };
    assert_eq!((eip.pool.as_deref(), max_wait), (Some("main"), Duration::from_secs(350)));

    let Parsed::Forward(ForwardCommand::Add(forward)) = command(
        "natgw forward add --protocol udp --public 198.51.100.10:80-90 --private 10.0.0.5:180-190",
    ) else {
        panic!("forward")
    };
    assert_eq!(forward.forward().private.to_string(), "10.0.0.5:180-190");
}

#[test]
fn a_wrong_configuration_exits_2_with_its_faults_on_stderr_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("natgw.toml");
    fs::write(&file, "[gateway]\npublic = [\"nosuchif0\"]\nprivate = [\"lo\"]\ncolour = 1\n")
        .expect("written");
    let path = file.to_str().expect("a path");
    for arguments in [["check", "-c", path], ["run", "-c", path]] {
        let output = natgw(&arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert_eq!(text(&output.stdout), "");
        let places: Vec<&str> =
            stderr.lines().map(|line| line.split(": ").next().unwrap_or_default()).collect();
        let place = |position: &str| format!("{path}:{position}");
        assert_eq!(places, [place("1:1"), place("2:11"), place("3:12"), place("4:1")]);
    }
}

#[test]
fn wrong_flags_exit_2_and_name_the_flag() {
    let output = natgw(&[
        "run",
        "--public",
        "nosuchif0",
        "--private",
        "lo",
        "--eip",
        "198.51.100.10",
        "--source",
        "10.0.0.1/8",
    ]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let starts: Vec<&str> =
        stderr.lines().map(|line| line.split(": ").next().unwrap_or_default()).collect();
    assert_eq!(starts, ["--public", "--private", "--source"]);
}

#[test]
fn a_file_that_is_not_there_exits_2_and_usage_errors_too() {
    let missing = natgw(&["check", "-c", "/nonexistent/natgw.toml"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("/nonexistent/natgw.toml"));
    assert_eq!(natgw(&["fly"]).status.code(), Some(2));
    assert_eq!(natgw(&[]).status.code(), Some(2));
    assert_eq!(natgw(&["--help"]).status.code(), Some(0));
}

#[test]
fn asking_a_gateway_that_does_not_run_exits_1_with_one_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let state_dir = directory.path().to_str().expect("a path");
    for arguments in [
        &["status"][..],
        &["counters", "-o", "json"],
        &["flows", "count"],
        &["flows", "flush"],
        &["eip", "list"],
        &["eip", "add", "198.51.100.11"],
        &["forward", "list"],
        &["reload"],
        &["confirm"],
    ] {
        let output = natgw(&[arguments, &["--name", "edge", "--state-dir", state_dir]].concat());
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert_eq!(text(&output.stdout), "");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains("no gateway named \"edge\" is running"), "{stderr}");
    }
}

#[test]
fn explain_lists_every_drop_reason_and_needs_no_gateway() {
    let output = natgw(&["counters", "--explain", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0));
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let list = list.as_array().expect("an array");
    assert_eq!(list.len(), nat_common::verdict::DropReason::ALL.len());
    assert!(list.iter().all(|entry| {
        let filled = |key: &str| entry[key].as_str().is_some_and(|text| !text.is_empty());
        filled("reason") && filled("meaning")
    }));
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_natgw"))
        .args(["counters", "--explain"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("natgw runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("natgw ends");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn every_command_has_a_man_page_and_every_shell_its_completions() {
    let directory = tempfile::tempdir().expect("a directory");
    let pages = directory.path().join("man");
    let written = natgw(&["man", &pages.display().to_string()]);
    assert!(written.status.success(), "{written:?}");
    let help = text(&natgw(&["--help"]).stdout);
    let (_, commands) = help.split_once("Commands:\n").expect("a list");
    let names = commands.lines().take_while(|line| !line.is_empty());
    let names = names.filter_map(|line| line.split_whitespace().next());
    let mut count = 0;
    for name in names.filter(|name| *name != "help") {
        count += 1;
        let page = pages.join(format!("natgw-{name}.1"));
        let page = fs::read_to_string(&page).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(page.contains(".SH NAME"), "{page}");
    }
    assert!(count >= 10, "{help}");
    for shell in ["bash", "zsh", "fish"] {
        let completions = natgw(&["completions", shell]);
        assert!(completions.status.success(), "{completions:?}");
        assert!(text(&completions.stdout).contains("drain"), "{shell}");
    }
}
