//! The last port is given out, and what comes after it is refused and counted.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nat_tests::frames::Path;
use nat_tests::stream::{connect, echo, echo_server};
use nat_tests::wiring::{QUIET, SOON, Wiring, at_server};
use rstest::rstest;
use xtask::lab::{Lab, LabOptions, SERVER, Sniffer, send_frames};

/// A pool of 64 ports.
fn narrow(lab: &Lab) -> String {
    lab.config_with_pool(&format!("addresses = [\"{}\"]\nports = \"20000-20063\"", lab.eip()))
}

/// Echoes datagrams for as long as the test's process lives.
fn udp_echo(lab: &Lab, port: u16) -> Result<()> {
    let socket = lab.server().enter(|| UdpSocket::bind(("0.0.0.0", port)))?;
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if socket.send_to(&buffer[..length], from).is_err() {
                return;
            }
        }
    });
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn sixty_four_ports_carry_sixty_four_udp_sessions_and_no_more(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    udp_echo(&lab, 7)?;
    udp_echo(&lab, 8)?;
    let gateway = lab.start_natgw(&narrow(&lab))?;
    // Two hosts, so that the pool's limit is shared.
    let ask = |number: u8, limit: Duration| -> Result<Option<UdpSocket>> {
        let client = lab.client(1 + number % 2);
        let socket = client.enter(|| UdpSocket::bind("0.0.0.0:0"))?;
        socket.connect(at_server(7))?;
        socket.set_read_timeout(Some(limit))?;
        socket.send(&[number])?;
        let mut answer = [0; 8];
        Ok(socket.recv(&mut answer).is_ok().then_some(socket))
    };
    let mut open = Vec::new();
    for number in 0..64 {
        open.push(ask(number, SOON)?.with_context(|| format!("session {number}"))?);
    }
    assert!(ask(64, QUIET)?.is_none(), "the 65th finds no port");
    let counters = gateway.json(&["counters"])?;
    assert_eq!(counters["error_port_allocation"], 1, "{counters:#}");
    assert_eq!(counters["drops"]["error_port_allocation"], 1, "{counters:#}");
    assert_eq!(counters["packets_drop_count"], 1, "{counters:#}");
    assert_eq!(counters["sessions"], 64, "{counters:#}");
    let status = gateway.json(&["status"])?;
    assert_eq!(status["addresses"][0]["ports_in_use"]["udp"], 64, "{status:#}");

    // Those that are open go on, and another destination has ports of its own.
    for (number, socket) in open.iter().enumerate() {
        socket.send(&[1, 2, 3])?;
        assert_eq!(socket.recv(&mut [0; 8])?, 3, "session {number}");
    }
    let socket = lab.client(1).enter(|| UdpSocket::bind("0.0.0.0:0"))?;
    socket.set_read_timeout(Some(SOON))?;
    socket.connect(at_server(8))?;
    socket.send(&[9])?;
    socket.recv(&mut [0; 8]).context("another destination")?;

    // A port that is free again is found.
    let flushed =
        gateway.json(&["flows", "flush", "--private", &open[0].local_addr()?.to_string()])?;
    assert_eq!(flushed["flushed"], 1);
    ask(66, SOON)?.context("the freed port")?;
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn sixty_four_ports_carry_sixty_four_tcp_connections_and_no_more(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    echo_server(lab.server(), 7)?;
    let gateway = lab.start_natgw(&narrow(&lab))?;
    let mut open = Vec::new();
    for number in 0..64 {
        let client = lab.client(1 + number % 2);
        open.push(connect(client, at_server(7), SOON).with_context(|| format!("{number}"))?);
    }
    assert!(connect(lab.client(1), at_server(7), QUIET).is_err(), "the 65th finds no port");
    assert!(gateway.counter("error_port_allocation")? >= 1);
    assert_eq!(
        gateway.counter("error_port_allocation")?,
        gateway.counter("drops.error_port_allocation")?
    );
    for stream in &mut open {
        echo(stream, b"still here")?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn every_port_of_the_full_range_is_given_out_and_none_twice() -> Result<()> {
    const PORTS: usize = 64_512;
    let lab = Wiring::TwoArmed.lab_with(LabOptions { gro: false, ..LabOptions::default() })?;
    // The server is not to answer 64,512 times that nobody listens.
    lab.server().check(["ip", "link", "set", "eth0", "down"])?;
    lab.router().check([
        "ip",
        "neigh",
        "replace",
        "203.0.113.10",
        "lladdr",
        "02:00:00:00:00:01",
        "dev",
        "srv0",
        "nud",
        "permanent",
    ])?;
    let gateway = lab.start_natgw(&lab.config())?;
    let path = Path::outward(&lab)?;
    let (router, interface) = lab.outside();
    let outside = Sniffer::start(router, interface)?;
    // All from ports that the pool does not have, or has given to the other host.
    let second = Path { source: xtask::lab::client_address(2), ..path };
    let half = PORTS / 2;
    let frames: Vec<Vec<u8>> = (0..PORTS)
        .map(|number| {
            let path = if number < half { path } else { second };
            path.udp((1024 + number % half) as u16, 9, b"one of them")
        })
        .collect();
    send_frames(lab.client(1), "eth0", &frames)?;
    let limit = Duration::from_secs(60);
    outside.wait_for_count(limit, PORTS, |frame| frame.destination() == Some(SERVER))?;
    let one_more = Path { source: xtask::lab::client_address(3), ..path };
    send_frames(lab.client(1), "eth0", &[one_more.udp(5, 9, b"one too many")])?;
    let counters =
        gateway.wait_for(&["counters"], SOON, |counters| counters["error_port_allocation"] == 1)?;
    assert_eq!(counters["sessions"], PORTS, "{counters:#}");
    outside.settle(QUIET)?;
    let ports: BTreeSet<u16> = outside
        .stop()?
        .iter()
        .filter(|frame| frame.destination() == Some(SERVER))
        .filter_map(|frame| frame.ipv4()?.get(20..22)?.try_into().ok().map(u16::from_be_bytes))
        .collect();
    assert_eq!(ports.len(), PORTS);
    assert_eq!((ports.first(), ports.last()), (Some(&1024), Some(&65_535)));
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn when_the_daemon_is_dead_the_ports_of_expired_sessions_are_given_out_again() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    udp_echo(&lab, 7)?;
    let mut gateway = lab.start_natgw(&format!("{}\n[timeouts]\nudp = \"3s\"\n", narrow(&lab)))?;
    let ask = |limit: Duration| -> Result<bool> {
        let socket = lab.client(1).enter(|| UdpSocket::bind("0.0.0.0:0"))?;
        socket.connect(at_server(7))?;
        socket.set_read_timeout(Some(limit))?;
        socket.send(&[1])?;
        Ok(socket.recv(&mut [0; 8]).is_ok())
    };
    for number in 0..64 {
        assert!(ask(SOON)?, "session {number}");
    }
    gateway.sigkill()?;
    assert!(!ask(QUIET)?, "the 65th finds no port");
    // Nobody ends them now; their time is up all the same.
    let deadline = Instant::now() + 2 * SOON;
    for number in 0..64 {
        while !ask(QUIET)? {
            assert!(Instant::now() < deadline, "{number} ports became free");
        }
    }
    Ok(())
}
