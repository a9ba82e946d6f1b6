//! What the endpoint serves is what dashboard, alert rules and documentation speak of, and what
//! Prometheus's own tool finds nothing wrong with.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nat_tests::stream::{connect, echo, echo_server};
use nat_tests::wiring::{SOON, Wiring, at_server};
use xtask::lab::client_address;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// The names of metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("natgw_")).map(str::to_owned).collect()
}

/// The names that can be asked for, from the lines that declare them.
fn served(text: &str) -> BTreeSet<String> {
    let declared = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let name = |(name, kind): (&str, &str)| match kind {
        "counter" if !name.ends_with("_total") => format!("{name}_total"),
        _ => name.to_owned(),
    };
    declared.map(name).collect()
}

fn promtool(arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(file("alerts"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("promtool is missing: cargo xtask setup")?;
    child.stdin.take().context("its input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "promtool {arguments:?}: {output:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn dashboard_rules_and_documentation_name_what_the_endpoint_serves() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let log = lab.dir().join("flows.jsonl");
    let gateway = lab.start_natgw(&format!(
        "{}\n[metrics]\nlisten = \"127.0.0.1:9464\"\ntop_hosts = 1\n[log]\nfile = {log:?}\n",
        lab.config()
    ))?;
    echo_server(lab.server(), 7)?;
    let mut stream = connect(lab.client(1), at_server(7), SOON)?;
    echo(&mut stream, b"one session")?;
    let curl = ["curl", "-sS", "-m", "10", "--fail", "http://127.0.0.1:9464/metrics"];
    let text = lab.gateway().check(curl)?;
    for line in [
        "natgw_sessions 1".to_owned(),
        "natgw_sessions_max 131072.0".to_owned(),
        format!("natgw_host_sessions{{host=\"{}\"}} 1", client_address(1)),
        format!("natgw_address_sessions{{address=\"{}\",pool=\"default\"}} 1", lab.eip()),
        format!(
            "natgw_address_ports{{address=\"{}\",pool=\"default\",protocol=\"tcp\"}} 64512",
            lab.eip()
        ),
    ] {
        assert!(text.lines().any(|it| it == line), "no {line} in {text}");
    }

    let served = served(&text);
    assert!(served.len() > 25, "{served:?}");
    let dashboard = fs::read_to_string(file("dashboards/natgw.json"))?;
    let panels: serde_json::Value = serde_json::from_str(&dashboard)?;
    let panels = panels["panels"].as_array().context("panels")?;
    assert!(panels.iter().all(|panel| panel["targets"][0]["expr"].is_string()));
    let rules = fs::read_to_string(file("alerts/natgw.rules.yml"))?;
    let document = fs::read_to_string(file("docs/metrics.md"))?;
    for (what, text) in [("dashboard", &dashboard), ("rules", &rules), ("document", &document)] {
        let unknown: Vec<_> = names(text).difference(&served).cloned().collect();
        assert_eq!(unknown, Vec::<String>::new(), "the {what} names what is not served");
    }
    let untold: Vec<_> = served.difference(&names(&document)).cloned().collect();
    assert_eq!(untold, Vec::<String>::new(), "docs/metrics.md does not tell of it");

    promtool(&["check", "rules", "natgw.rules.yml"], "")?;
    promtool(&["test", "rules", "natgw.rules.test.yml"], "")?;
    let cost = gateway.json(&["cost", "--instance-price", "0.01"])?;
    assert_eq!(cost["billed_hours"], 1, "the first hour has begun: {cost:#}");
    assert!(cost["gigabytes"].as_f64().is_some_and(|it| it > 0.0), "{cost:#}");
    Ok(())
}
