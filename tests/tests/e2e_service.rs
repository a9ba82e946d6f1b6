//! The gateway as its service runs it: an ordinary user with three capabilities.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use nat_tests::stream::{Stream, echo_server};
use nat_tests::wiring::{SOON, Wiring, at_server};
use nix::sys::signal::Signal;
use xtask::dist::unit;
use xtask::lab::{Gateway, User, dns, natgw_binary};

/// CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF (linux/capability.h).
const CAPABILITIES: u64 = 1 << 12 | 1 << 38 | 1 << 39;

/// A line of the process's status, as the kernel has it.
fn status(gateway: &Gateway, key: &str) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.pid()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"));
    Ok(line.with_context(|| format!("no {key} in {status}"))?.to_owned())
}

fn is_confined(gateway: &Gateway) -> Result<()> {
    for set in ["CapEff", "CapPrm", "CapBnd", "CapAmb"] {
        let value = u64::from_str_radix(&status(gateway, set)?, 16)?;
        assert_eq!(value, CAPABILITIES, "{set}");
    }
    assert_eq!(status(gateway, "Uid")?, "65534\t65534\t65534\t65534");
    assert_eq!(status(gateway, "NoNewPrivs")?, "1");
    Ok(())
}

/// Nothing that it wanted was refused to it.
fn has_no_complaint(gateway: &Gateway) -> Result<()> {
    let log = gateway.log()?;
    let complaint = log.lines().find(|line| line.contains("WARN") || line.contains("ERROR"));
    assert_eq!(complaint, None, "{log}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn an_ordinary_user_with_three_capabilities_runs_restarts_reloads_and_leaves_nothing() -> Result<()>
{
    let mut lab = Wiring::TwoArmed.lab()?;
    lab.run_as(User::NOBODY);
    echo_server(lab.server(), 7)?;
    let names = dns::DnsServer::start(lab.server(), 53)?;
    let asks = |client: u8| dns::exchange(lab.client(client), at_server(names.port()), 20, SOON);
    let mut gateway = lab.start_natgw(&lab.config())?;
    is_confined(&gateway)?;
    let stream = Stream::start(lab.client(1), at_server(7))?;
    assert_eq!((asks(1)?.lost(), asks(1)?.seen_as), (0, Some(lab.eip())));
    // The slow path's device: a fragmented datagram waits for its rest there.
    let server = xtask::lab::SERVER.to_string();
    lab.client(2).check(["ping", "-n", "-c", "2", "-i", "0.2", "-s", "4000", &server])?;

    gateway.sigkill()?;
    stream.wait_for_more(50)?;
    let mut gateway = lab.start_natgw_with(&lab.config(), &["--on-exit", "keep"])?;
    is_confined(&gateway)?;
    stream.wait_for_more(50)?;

    lab.write_config(&lab.config().replace("[[snat]]", "[timeouts]\nudp = \"77s\"\n\n[[snat]]"))?;
    gateway.signal(Signal::SIGHUP)?;
    gateway.wait_for_log("reloaded", SOON)?;
    stream.wait_for_more(50)?;
    has_no_complaint(&gateway)?;

    assert!(gateway.sigterm()?.success());
    stream.wait_for_more(50)?;
    let gateway = lab.start_natgw(&lab.config())?;
    assert_eq!(asks(2)?.lost(), 0);
    stream.finish()?;
    has_no_complaint(&gateway)?;
    gateway.detach()?;
    assert!(!lab.pins_dir().exists(), "pins are left");
    let forwarding = format!("net.ipv4.conf.{}.forwarding", lab.private_interface());
    assert_eq!(lab.gateway().read_sysctl(&forwarding)?, "0", "forwarding is as it was");
    Ok(())
}

/// What the service manager hears, until a message has `wanted` in it.
fn hear(socket: &UnixDatagram, wanted: &str) -> Result<Vec<String>> {
    let mut heard = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let length =
            socket.recv(&mut buffer).with_context(|| format!("{wanted} after {heard:?}"))?;
        heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        if heard.last().is_some_and(|message| message.contains(wanted)) {
            return Ok(heard);
        }
    }
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn the_service_manager_hears_of_readiness_life_reloads_and_of_what_a_stop_leaves() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let path = lab.dir().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(SOON))?;
    let config = lab.write_config(&lab.config())?.display().to_string();
    let state = lab.state_dir().display().to_string();
    let natgw = natgw_binary()?.display().to_string();
    let environment =
        [format!("NOTIFY_SOCKET={}", path.display()), "WATCHDOG_USEC=15000000".into()];
    let start = ["env", &environment[0], &environment[1], &natgw, "run", "-c", &config];
    let options = ["--name", lab.name(), "--state-dir", &state, "--on-exit", "keep"];
    let mut daemon = lab.gateway().spawn(start.into_iter().chain(options))?;

    let ready = hear(&socket, "READY=1")?;
    assert!(ready.last().is_some_and(|it| it.contains("STATUS=ready: gateway")), "{ready:?}");
    hear(&socket, "WATCHDOG=1")?;
    hear(&socket, "WATCHDOG=1")?;
    daemon.signal(Signal::SIGHUP)?;
    let reloading = hear(&socket, "RELOADING=1")?;
    assert!(reloading.last().is_some_and(|it| it.contains("MONOTONIC_USEC=")), "{reloading:?}");
    hear(&socket, "READY=1")?;
    daemon.signal(Signal::SIGTERM)?;
    let stopping = hear(&socket, "STOPPING=1")?;
    assert!(stopping.last().is_some_and(|it| it.contains("natgw detach")), "{stopping:?}");
    assert!(daemon.wait_exit(SOON)?.success());
    lab.natgw(&["detach"])?.success()?;
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn systemd_understands_the_units_and_rates_the_service_two_or_better() -> Result<()> {
    let packaging = xtask::workspace::root().join("packaging");
    let directory = tempfile::tempdir()?;
    let service = fs::read_to_string(packaging.join("natgw.service"))?;
    let natgw = natgw_binary()?.display().to_string();
    let service = unit::for_systemd(&service, unit::version()).replace("/usr/bin/natgw", &natgw);
    let mut files = vec![directory.path().join("natgw.service")];
    fs::write(&files[0], service)?;
    files.push(directory.path().join("sys-fs-bpf-natgw.mount"));
    fs::copy(packaging.join("sys-fs-bpf-natgw.mount"), &files[1])?;

    let analyze = |arguments: &[&str], files: &[PathBuf]| -> Result<(bool, String)> {
        let output = Command::new("systemd-analyze").args(arguments).args(files).output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    };
    assert_eq!(analyze(&["verify", "--man=no"], &files)?, (true, String::new()));
    let rate = ["security", "--offline=true", "--no-pager", "--threshold=20"];
    let (good, said) = analyze(&rate, &files[..1])?;
    assert!(good, "{said}");
    Ok(())
}
