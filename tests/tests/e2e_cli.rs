//! The command line against a running gateway: keys, filters, exit statuses.

use std::collections::BTreeSet;
use std::net::UdpSocket;

use anyhow::{Context, Result};
use nat_tests::stream::{connect, echo, echo_server};
use nat_tests::wiring::{SOON, Wiring, at_server};
use rstest::rstest;
use serde_json::{Value, json};
use xtask::lab::{Lab, SERVER, client_address, dns};

const COUNTERS: [&str; 22] = [
    "active_connection_count",
    "connection_attempt_count",
    "connection_established_count",
    "bytes_in_from_source",
    "bytes_out_to_destination",
    "bytes_in_from_destination",
    "bytes_out_to_source",
    "packets_in_from_source",
    "packets_out_to_destination",
    "packets_in_from_destination",
    "packets_out_to_source",
    "error_port_allocation",
    "idle_timeout_count",
    "peak_bytes_per_second",
    "peak_packets_per_second",
    "packets_drop_count",
    "drops",
    "packets_to_host",
    "packets_answered",
    "packets_held",
    "packets_guarded",
    "sessions",
];
const FLOW: [&str; 11] = [
    "protocol",
    "private",
    "public",
    "remote",
    "state",
    "age_s",
    "idle_s",
    "packets_out",
    "packets_in",
    "bytes_out",
    "bytes_in",
];
const STATUS: [&str; 8] =
    ["name", "profile", "state", "uptime_s", "sessions", "sessions_max", "interfaces", "addresses"];

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect()
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn counters_has_the_contracts_keys_and_counts_a_known_conversation(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let gateway = lab.start_natgw(&lab.config())?;
    let counters = gateway.json(&["counters"])?;
    assert_eq!(keys(&counters), BTreeSet::from(COUNTERS));
    let server = SERVER.to_string();
    lab.client(1).check(["ping", "-n", "-c", "4", "-i", "0.05", "-s", "72", "-W", "5", &server])?;
    let counters = gateway.json(&["counters"])?;
    // 4 requests and replies of 20 + 8 + 72 bytes; ARP has no IP bytes.
    for key in ["bytes_out_to_destination", "bytes_out_to_source"] {
        assert_eq!(counters[key], 400, "{key} in {counters:#}");
    }
    for key in ["packets_out_to_destination", "packets_out_to_source"] {
        assert_eq!(counters[key], 4, "{key} in {counters:#}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn every_drop_reason_is_explained() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let gateway = lab.start_natgw(&lab.config())?;
    let explained = gateway.natgw(&["counters", "--explain"])?.success()?;
    let counters = gateway.json(&["counters"])?;
    let reasons = keys(&counters["drops"]);
    assert!(!reasons.is_empty());
    for reason in reasons {
        let line = explained.lines().find(|line| line.split_whitespace().any(|w| w == reason));
        let line = line.with_context(|| format!("{reason} is not explained:\n{explained}"))?;
        assert!(line.split_whitespace().count() > 4, "a meaning, not a name: {line}");
    }
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn status_has_the_contracts_keys_and_tells_of_interfaces_and_addresses(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let gateway = lab.start_natgw(&lab.config())?;
    let server = SERVER.to_string();
    lab.client(1).check(["ping", "-n", "-c", "1", "-W", "5", &server])?;
    let status = gateway.json(&["status"])?;
    let missing: Vec<_> = STATUS.iter().filter(|key| status.get(*key).is_none()).collect();
    assert!(missing.is_empty(), "{missing:?} of {status:#}");
    assert_eq!(status["name"], lab.name());
    assert_eq!((&status["profile"], &status["state"]), (&json!("aws"), &json!("ready")));
    assert_eq!((&status["sessions"], &status["sessions_max"]), (&json!(1), &json!(131_072)));
    let interfaces: BTreeSet<_> = status["interfaces"]
        .as_array()
        .context("an array")?
        .iter()
        .map(|it| ["name", "role", "xdp_mode"].map(|key| it[key].as_str().unwrap_or_default()))
        .collect();
    let expected: &[[&str; 3]] = match wiring {
        Wiring::OneArmed => &[["eth0", "both", "native"]],
        _ => &[["lan0", "private", "native"], ["wan0", "public", "native"]],
    };
    assert_eq!(interfaces, expected.iter().copied().collect());
    let address = &status["addresses"][0];
    assert_eq!(address["address"], lab.eip().to_string());
    assert_eq!((&address["pool"], &address["state"]), (&json!("default"), &json!("active")));
    assert_eq!(address["sessions"], 1);
    assert_eq!(address["ports_in_use"], json!({ "tcp": 0, "udp": 0, "icmp": 1 }));
    assert_eq!(gateway.json(&["eip", "list"])?, status["addresses"]);
    Ok(())
}

/// One session of each protocol from client 1, and a UDP one from client 2.
fn four_sessions(lab: &Lab) -> Result<std::net::TcpStream> {
    echo_server(lab.server(), 7)?;
    let names = dns::DnsServer::start(lab.server(), 53)?;
    let mut stream = connect(lab.client(1), at_server(7), SOON)?;
    echo(&mut stream, b"hello")?;
    for client in [lab.client(1), lab.client(2)] {
        let exchanges = dns::exchange(client, at_server(names.port()), 1, SOON)?;
        assert_eq!(exchanges.lost(), 0);
    }
    lab.client(1).check(["ping", "-n", "-c", "1", "-W", "5", &SERVER.to_string()])?;
    Ok(stream)
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn flows_are_listed_counted_and_flushed_by_any_filter(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let gateway = lab.start_natgw(&lab.config())?;
    let stream = four_sessions(&lab)?;
    let local = stream.local_addr()?.to_string();
    let flows = gateway.json(&["flows"])?;
    for flow in flows.as_array().context("an array")? {
        assert_eq!(keys(flow), BTreeSet::from(FLOW));
    }
    let eip = lab.eip().to_string();
    let (one, two) = (client_address(1).to_string(), client_address(2).to_string());
    let web = format!("{SERVER}:7");
    let public = flows
        .as_array()
        .and_then(|rows| rows.iter().find(|row| row["protocol"] == "tcp"))
        .and_then(|row| row["public"].as_str())
        .context("the connection")?;
    let filters: [(&[&str], u64); 10] = [
        (&[], 4),
        (&["--protocol", "tcp"], 1),
        (&["--protocol", "udp"], 2),
        (&["--protocol", "icmp"], 1),
        (&["--private", &one], 3),
        (&["--private", &local], 1),
        (&["--private", &two, "--protocol", "tcp"], 0),
        (&["--remote", &web], 1),
        (&["--public", &eip], 4),
        (&["--public", public], 1),
    ];
    for (filter, expected) in filters {
        let rows = gateway.json(&[&["flows"], filter].concat())?;
        assert_eq!(rows.as_array().map(|rows| rows.len() as u64), Some(expected), "{filter:?}");
        let count = gateway.json(&[&["flows", "count"], filter].concat())?;
        assert_eq!(count, json!({ "count": expected }), "{filter:?}");
    }
    let limited = gateway.json(&["flows", "--limit", "2"])?;
    assert_eq!(limited.as_array().map(Vec::len), Some(2));

    let flushed = gateway.json(&["flows", "flush", "--private", &one, "--protocol", "udp"])?;
    assert_eq!(flushed, json!({ "flushed": 1 }));
    assert_eq!(gateway.json(&["flows", "count"])?, json!({ "count": 3 }));
    assert_eq!(gateway.json(&["flows", "flush"])?, json!({ "flushed": 3 }));
    assert_eq!(gateway.json(&["flows"])?, json!([]));
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_flow_tells_what_passed_and_how_long_ago() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    echo_server(lab.server(), 7)?;
    let gateway = lab.start_natgw(&lab.config())?;
    let server = SERVER.to_string();
    lab.client(1).check(["ping", "-n", "-c", "3", "-i", "0.05", "-s", "72", "-W", "5", &server])?;
    let flow = &gateway.json(&["flows"])?[0];
    assert_eq!(flow["protocol"], "icmp");
    assert_eq!(flow["state"], "active");
    assert_eq!((&flow["packets_out"], &flow["packets_in"]), (&json!(3), &json!(3)), "{flow}");
    assert_eq!((&flow["bytes_out"], &flow["bytes_in"]), (&json!(300), &json!(300)), "{flow}");
    assert!(flow["age_s"].as_u64() <= Some(10) && flow["idle_s"].as_u64() <= Some(10), "{flow}");
    let idle =
        gateway.wait_for(&["flows"], SOON, |flows| flows[0]["idle_s"].as_u64() >= Some(2))?;
    assert!(idle[0]["age_s"].as_u64() >= idle[0]["idle_s"].as_u64(), "{idle:#}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_connection_goes_from_opening_over_established_to_closing() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    echo_server(lab.server(), 7)?;
    // Nobody is there to answer.
    lab.router().check([
        "ip",
        "neigh",
        "replace",
        "203.0.113.77",
        "lladdr",
        "02:00:00:00:00:01",
        "dev",
        "srv0",
        "nud",
        "permanent",
    ])?;
    let gateway = lab.start_natgw(&lab.config())?;
    let silent = "203.0.113.77:7".parse()?;
    assert!(connect(lab.client(1), silent, std::time::Duration::from_millis(200)).is_err());
    assert_eq!(gateway.json(&["flows"])?[0]["state"], "opening");

    let stream = connect(lab.client(2), at_server(7), SOON)?;
    let local = stream.local_addr()?.to_string();
    let filter = ["flows", "--private", &local];
    gateway.wait_for(&filter, SOON, |flows| flows[0]["state"] == "established")?;
    drop(stream);
    gateway.wait_for(&filter, SOON, |flows| flows[0]["state"] == "closing")?;
    let counters = gateway.json(&["counters"])?;
    assert_eq!(counters["connection_attempt_count"], 2, "{counters:#}");
    assert_eq!(counters["connection_established_count"], 1, "{counters:#}");
    assert_eq!(counters["active_connection_count"], 0, "{counters:#}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn an_idle_session_ends_at_its_timeout_and_is_counted() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let names = dns::DnsServer::start(lab.server(), 53)?;
    let config = format!("{}\n[timeouts]\nudp = \"3s\"\n", lab.config());
    let gateway = lab.start_natgw(&config)?;
    assert_eq!(dns::exchange(lab.client(1), at_server(names.port()), 1, SOON)?.lost(), 0);
    let start = std::time::Instant::now();
    gateway.wait_for(&["flows"], SOON, |flows| flows.as_array().is_some_and(Vec::is_empty))?;
    let lasted = start.elapsed().as_secs_f64();
    assert!((2.9..5.5).contains(&lasted), "3 s and at most 2 s more, not {lasted} s");
    gateway.wait_for(&["counters"], SOON, |counters| counters["idle_timeout_count"] == 1)?;
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn forwards_are_listed_added_and_removed() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let gateway = lab.start_natgw(&lab.config())?;
    assert_eq!(gateway.json(&["forward", "list"])?, json!([]));
    let public = format!("{}:2222", lab.eip());
    let ends = ["--protocol", "udp", "--public", &public, "--private", "10.0.1.5:22"];
    gateway.natgw(&[&["forward", "add"], &ends[..]].concat())?.success()?;
    let expected = json!([{ "protocol": "udp", "public": public, "private": "10.0.1.5:22" }]);
    assert_eq!(gateway.json(&["forward", "list"])?, expected);

    let inside = lab.client(1).enter(|| UdpSocket::bind("0.0.0.0:22"))?;
    inside.set_read_timeout(Some(SOON))?;
    lab.client(1).check(["ping", "-n", "-c", "1", "-W", "5", "10.0.1.1"])?;
    let outside = lab.server().enter(|| UdpSocket::bind("0.0.0.0:0"))?;
    outside.send_to(b"through", &public)?;
    let mut buffer = [0; 16];
    assert_eq!(inside.recv(&mut buffer)?, 7);

    gateway.natgw(&[&["forward", "remove"], &ends[..]].concat())?.success()?;
    assert_eq!(gateway.json(&["forward", "list"])?, json!([]));
    let before = gateway.counter("packets_drop_count")?;
    outside.send_to(b"too late", &public)?;
    gateway.wait_for(&["counters"], SOON, |counters| {
        counters["packets_drop_count"].as_u64() > Some(before)
    })?;
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn exit_statuses_tell_failure_from_misuse_and_stdout_stays_empty() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let unreachable: [&[&str]; 5] =
        [&["status"], &["counters"], &["flows"], &["eip", "list"], &["forward", "list"]];
    for arguments in unreachable {
        let output = lab.natgw(arguments)?;
        assert_eq!(output.code(), Some(1), "no gateway runs: {output:?}");
        assert_eq!(output.stdout, "", "{output:?}");
        assert_eq!(output.stderr.lines().count(), 1, "one line says why: {output:?}");
    }
    let misused: [&[&str]; 6] = [
        &["nonsense"],
        &["flows", "--protocol", "gre"],
        &["flows", "--private", "10.0.1"],
        &["run", "--public", "wan0"],
        &["counters", "-o", "xml"],
        &["eip", "add"],
    ];
    for arguments in misused {
        let output = lab.natgw(arguments)?;
        assert_eq!((output.code(), output.stdout.as_str()), (Some(2), ""), "{output:?}");
    }
    let file = lab.write_config(&format!("{}nonsense = 1\n", lab.config()))?;
    for command in ["check", "run"] {
        let output = lab.natgw(&[command, "-c", &file.display().to_string()])?;
        assert_eq!((output.code(), output.stdout.as_str()), (Some(2), ""), "{output:?}");
        assert!(output.stderr.contains("natgw.toml:"), "{}", output.stderr);
    }
    let file = lab.write_config(&lab.config().replace("native", "hardware"))?;
    let output = lab.natgw(&["run", "-c", &file.display().to_string()])?;
    assert_eq!(output.code(), Some(2), "no such hook: {output:?}");

    let _gateway = lab.start_natgw(&lab.config())?;
    for refused in [
        &["eip", "remove", "192.0.2.99"][..],
        &["eip", "drain", "192.0.2.99"],
        &[
            "forward",
            "remove",
            "--protocol",
            "tcp",
            "--public",
            "192.0.2.99:1",
            "--private",
            "10.0.1.5:1",
        ],
    ] {
        let output = lab.natgw(refused)?;
        assert_eq!((output.code(), output.stdout.as_str()), (Some(1), ""), "{output:?}");
        assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    }
    Ok(())
}
