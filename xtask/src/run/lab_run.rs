//! The self-contained run: lab, gateway, traffic, live view, summary.

use std::env;
use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::PREFIX;
use super::live::{self, Live};
use super::traffic::{Count, Tally, Traffic};
use crate::interrupt;
use crate::lab::{Gateway, Lab, LabOptions, SERVER};

/// How long the lab's servers may take to open their ports.
const SERVERS_LIMIT: Duration = Duration::from_secs(10);
const SESSIONS_SHOWN: usize = 6;

pub(super) fn main(binary: &Path, seconds: u32, keep: bool) -> Result<()> {
    interrupt::catch()?;
    let lab = Lab::two_armed(LabOptions {
        prefix: Some(PREFIX.to_owned()),
        natgw: Some(binary.to_owned()),
        ..LabOptions::default()
    })?;
    let own = env::current_exe().context("where is this executable?")?;
    let mut servers = lab.server().spawn([own.as_os_str(), OsStr::new("serve")])?;
    servers.wait_for_line("serving", SERVERS_LIMIT)?;
    let mut gateway = lab.start_natgw_with(&lab.config(), &["--xdp-mode", "native"])?;
    println!(
        "client1, client2 (10.0.1.5, .6) -> gateway ({} as {}) -> router -> server ({SERVER})",
        lab.public_interface(),
        lab.eip()
    );

    let traffic = Traffic::start(&lab);
    let mut live = Live::start();
    let shown = watch(&gateway, &traffic, &mut live, seconds)?;
    let tally = traffic.finish();
    let interfaces = live::interfaces(&gateway)?;
    let right = summarize(&tally, &shown, &interfaces, &live, &lab);

    if keep {
        println!("{}", instructions(&lab, binary));
        servers.leave_running();
        gateway.leave_running();
        lab.keep();
    } else {
        let status = gateway.sigterm()?;
        if !status.success() {
            bail!("natgw ended with {status} on SIGTERM; its log:\n{}", gateway.log()?);
        }
        gateway.detach()?;
    }
    if !right {
        bail!("the lab found faults; they are above");
    }
    Ok(())
}

/// A line a second until the time is over, Ctrl-C, or all traffic has failed. Returns the sessions
/// of a moment in the middle.
fn watch(gateway: &Gateway, traffic: &Traffic, live: &mut Live, seconds: u32) -> Result<String> {
    let start = Instant::now();
    let mut shown = String::new();
    for second in 1..=seconds {
        let due = start + Duration::from_secs(second.into());
        while Instant::now() < due && !interrupt::asked() {
            std::thread::sleep(Duration::from_millis(20));
        }
        live.line(gateway)?;
        if second <= 2 || second == seconds / 2 {
            shown = live::sessions(gateway, SESSIONS_SHOWN)?;
        }
        if interrupt::asked() {
            break;
        }
    }
    for fault in &traffic.tally().faults {
        eprintln!("fault: {fault}");
    }
    Ok(shown)
}

/// Prints the summary; whether everything is as it should be.
fn summarize(tally: &Tally, sessions: &str, interfaces: &[String], live: &Live, lab: &Lab) -> bool {
    let megabytes = |count: Count| Tally::bytes(count) / 1_000_000;
    println!("\nsessions, {} at the most; some of them:", live.most_sessions);
    print!("{sessions}");
    println!("summary");
    let line = |name: &str, count: Count, what: &str, more: String| {
        let again = match count.again {
            0 => String::new(),
            again => format!(", {again} asked again"),
        };
        println!("  {name:<11} {} of {} {what}{more}{again}", count.right, count.tried);
    };
    let sized = |count| format!(", {} MB with equal SHA-256", megabytes(count));
    line("downloads", tally.downloads, "intact", sized(tally.downloads));
    line("uploads", tally.uploads, "intact", sized(tally.uploads));
    let seen = tally.seen_as.map_or_else(String::new, |as_| format!(", seen as {as_}"));
    line("dns", tally.queries, "answered", seen);
    line("ping", tally.pings, "answered", String::new());
    println!("  interfaces  {}", interfaces.join(", "));
    for fault in &tally.faults {
        println!("  fault       {fault}");
    }
    let native = !interfaces.is_empty() && interfaces.iter().all(|it| it.ends_with(" native"));
    let translated = tally.seen_as == Some(lab.eip());
    let right = tally.all_right() && native && translated && live.most_sessions > 0;
    println!("  result      {}", if right { "every transfer intact" } else { "FAULTY" });
    right
}

fn instructions(lab: &Lab, binary: &Path) -> String {
    let client = lab.client(1).name();
    let router = lab.router().name();
    let natgw = binary.display();
    let state_dir = lab.state_dir();
    let state = format!("--name {} --state-dir {}", lab.name(), state_dir.display());
    format!(
        "\nthe lab goes on. Try as root:\n  \
         ip netns exec {client} curl http://{SERVER}/\n  \
         ip netns exec {client} ping {SERVER}\n  \
         ip netns exec {router} tcpdump -ni pub0\n  \
         {natgw} status {state}\n  \
         {natgw} flows {state}\n  \
         {natgw} counters --watch 1 {state}\n\
         and to remove it:\n  \
         cargo xtask run --remove"
    )
}
