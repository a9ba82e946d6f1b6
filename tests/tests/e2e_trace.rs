//! `natgw trace` against a running gateway: it foretells what packets then meet, in words and in
//! JSON, and leaves no trace of its own.

use anyhow::{Context, Result};
use nat_tests::wiring::{SOON, Wiring, at_server};
use rstest::rstest;
use serde_json::{Value, json};
use xtask::lab::{Gateway, SERVER, client_address, dns};

fn trace(gateway: &Gateway, from: &str, to: &str, more: &[&str]) -> Result<Value> {
    let ask: &[&str] = &["trace", "--from", from, "--to", to];
    gateway.json(&[ask, more].concat())
}

fn texts<'a>(trace: &'a Value, step: &str) -> Vec<&'a str> {
    let steps = trace["steps"].as_array().into_iter().flatten();
    steps.filter(|it| it["step"] == step).filter_map(|it| it["text"].as_str()).collect()
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_new_session_is_foretold_and_not_made(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let gateway = lab.start_natgw(&lab.config())?;
    let names = dns::DnsServer::start(lab.server(), 53)?;
    assert_eq!(dns::exchange(lab.client(1), at_server(names.port()), 1, SOON)?.lost(), 0);

    let before = gateway.json(&["counters"])?;
    let from = format!("{}:4000", client_address(1));
    let to = format!("{SERVER}:443");
    let told = trace(&gateway, &from, &to, &["--protocol", "tcp"])?;
    let after = gateway.json(&["counters"])?;
    let of = |counters: &Value| counters["sessions"].clone();
    assert_eq!(of(&before), of(&after), "no session is made");

    assert_eq!(
        (&told["verdict"], &told["interface"]),
        (&json!("to_destination"), &json!(lab.private_interface()))
    );
    assert_eq!(told["leaves"]["interface"], lab.public_interface());
    assert_eq!(told["leaves"]["packet"]["from"], format!("{}:4000", lab.eip()), "{told:#}");
    assert_eq!(told["leaves"]["packet"]["to"], to);
    assert_eq!(told["leaves"]["packet"]["ttl"], 63);
    for step in ["parse", "session", "rule", "port", "route", "next_hop", "verdict"] {
        assert!(!texts(&told, step).is_empty(), "{step} is told: {told:#}");
    }
    assert!(texts(&told, "rule")[0].contains("pool default"), "{told:#}");

    let table = gateway.natgw(&["trace", "--from", &from, "--to", &to, "--protocol", "tcp"])?;
    let table = table.success()?;
    let last = table.lines().last().context("a verdict")?;
    assert!(last.contains("verdict") && last.contains("to the destination"), "{table}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn what_passes_what_is_dropped_and_what_is_answered_is_told_with_its_reason() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let gateway = lab.start_natgw(&lab.config())?;
    let names = dns::DnsServer::start(lab.server(), 53)?;
    assert_eq!(dns::exchange(lab.client(1), at_server(names.port()), 1, SOON)?.lost(), 0);
    let flow = gateway.json(&["flows", "--protocol", "udp"])?[0].clone();
    let end = |key: &str| flow[key].as_str().unwrap_or_default().to_owned();
    let (private, public, remote) = (end("private"), end("public"), end("remote"));
    let udp = ["--protocol", "udp"];

    let back = trace(&gateway, &remote, &public, &udp)?;
    assert_eq!((&back["verdict"], &back["interface"]), (&json!("to_source"), &json!("wan0")));
    assert_eq!(back["leaves"]["packet"]["to"], private);
    assert!(texts(&back, "session")[0].contains("active"), "{back:#}");

    let stranger = trace(&gateway, "192.0.2.99:53", &public, &udp)?;
    assert_eq!(
        (&stranger["verdict"], &stranger["reason"]),
        (&json!("drop"), &json!("unsolicited"))
    );
    assert!(stranger["meaning"].as_str().is_some_and(|meaning| meaning.len() > 20));

    let late = trace(&gateway, &private, &remote, &["--protocol", "udp", "--ttl", "1"])?;
    assert_eq!(late["verdict"], "answered");
    let answer = late["leaves"]["packet"]["protocol"].as_str().unwrap_or_default();
    assert!(answer.contains("time exceeded"), "{late:#}");

    let large = ["--protocol", "udp", "--length", "1501", "--dont-fragment"];
    let large = trace(&gateway, &private, &remote, &large)?;
    let answer = large["leaves"]["packet"]["protocol"].as_str().unwrap_or_default();
    assert!(answer.contains("fragmentation needed"), "{large:#}");

    let host = format!("{}:22", xtask::lab::GATEWAY_PRIVATE);
    let host = trace(&gateway, &private, &host, &["--protocol", "tcp"])?;
    assert_eq!(host["verdict"], "to_host");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_question_that_makes_no_sense_is_refused_in_one_line() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let gateway = lab.start_natgw(&lab.config())?;
    let ask = |more: &[&str]| {
        let ask: &[&str] = &["trace", "--from", "10.0.0.5", "--to", "192.0.2.1:443"];
        gateway.natgw(&[ask, more].concat())
    };
    for (more, words) in [
        (&["--protocol", "tcp"][..], "--from ADDR:PORT"),
        (&["--protocol", "icmp", "--in", "lan9"], "lan0"),
        (&["--protocol", "icmp", "--length", "20"], "--length 28"),
    ] {
        let output = ask(more)?;
        assert_eq!(output.code(), Some(1), "{output:?}");
        assert_eq!((output.stdout.as_str(), output.stderr.lines().count()), ("", 1));
        assert!(output.stderr.contains(words), "{}", output.stderr);
    }
    assert_eq!(ask(&["--protocol", "sctp"])?.code(), Some(2));
    Ok(())
}
