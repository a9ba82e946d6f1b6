//! What must hold on the oldest supported kernel as well: these tests run in the old-kernel tier
//! (`cargo xtask test kernel-6.1`, in qemu) and, like the others, on the machine's own kernel.

use std::io::{Read as _, Write as _};

use anyhow::{Context as _, Result};
use nat_tests::links::put_on_vlans;
use nat_tests::stream;
use nat_tests::wiring::{QUIET, SOON, Wiring, at_server};
use rstest::rstest;
use xtask::lab::{LabOptions, SERVER, Sniffer, client_address, dns, http};

/// Under emulation a transfer of some megabytes takes as long as hundreds on iron.
const BYTES: u64 = 3_000_000;

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn tcp_udp_and_icmp_pass_and_come_back(
    #[values(Wiring::TwoArmed, Wiring::OneArmed, Wiring::TwoArmedTc, Wiring::OneArmedTc)]
    wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let _web = http::HttpServer::start(lab.server(), 80)?;
    let names = dns::DnsServer::start(lab.server(), 53)?;
    let gateway = lab.start_natgw(&lab.config())?;

    let file = lab.dir().join("download");
    let path = file.display().to_string();
    let url = format!("http://{SERVER}/bytes/{BYTES}");
    lab.client(1).check(["curl", "-sS", "--fail", "-o", &path, &url])?;
    assert_eq!(http::file_digest(&file)?, http::content_digest(BYTES));

    let exchanges = dns::exchange(lab.client(1), at_server(names.port()), 200, SOON)?;
    assert_eq!((exchanges.sent, exchanges.lost()), (200, 0));
    assert_eq!(exchanges.seen_as, Some(lab.eip()));

    let said = lab.client(2).check(["ping", "-n", "-c", "3", "-i", "0.2", &SERVER.to_string()])?;
    assert!(said.contains(" 0% packet loss"), "{said}");
    for protocol in ["tcp", "udp", "icmp"] {
        let flows = gateway.json(&["flows", "--protocol", protocol])?;
        assert!(!flows.as_array().context("an array")?.is_empty(), "no {protocol} session");
    }
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn icmp_errors_of_the_gateway_and_of_routers_behind_it_reach_the_client(
    #[values(Wiring::TwoArmed, Wiring::OneArmed, Wiring::TwoArmedTc, Wiring::OneArmedTc)]
    wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab_with(LabOptions { path_mtu: Some(1400), ..LabOptions::default() })?;
    let gateway = lab.start_natgw(&lab.config())?;
    let server = SERVER.to_string();
    let ping = |arguments: &[&str]| {
        lab.client(1).run(["ping", "-n", "-c", "2", "-i", "0.3", "-W", "3"].iter().chain(arguments))
    };
    // One hop: the gateway. Two: the router, whose error quotes the translated packet.
    for (ttl, from) in [("1", xtask::lab::GATEWAY_PRIVATE), ("2", wiring.next_hop())] {
        let said = ping(&["-t", ttl, &server])?.stdout;
        assert!(said.contains(&format!("From {from}")), "ttl {ttl}: {said}");
    }
    // The link behind the router takes 1400 bytes.
    let said = ping(&["-M", "do", "-s", "1472", &server])?;
    let said = format!("{}{}", said.stdout, said.stderr);
    assert!(said.contains("mtu = 1400") || said.contains("mtu=1400"), "{said}");
    assert_eq!(gateway.counter("drops.icmp_no_session")?, 0);
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_stopped_or_killed_gateway_lets_no_private_source_out(
    #[values(Wiring::TwoArmed, Wiring::OneArmed, Wiring::TwoArmedTc, Wiring::OneArmedTc)]
    wiring: Wiring,
    #[values(false, true)] killed: bool,
) -> Result<()> {
    let lab = wiring.lab_with(LabOptions { ip_forward: true, ..LabOptions::default() })?;
    let mut gateway = lab.start_natgw(&lab.config())?;
    let (router, interface) = lab.outside();
    let outside = Sniffer::start(router, interface)?;
    let server = SERVER.to_string();
    let ping = ["ping", "-n", "-c", "3", "-i", "0.2", "-W", "1", &server];
    lab.client(1).check(ping)?;
    if killed {
        // The dataplane goes on alone, and so does the translation.
        gateway.sigkill()?;
        lab.client(1).check(ping)?;
    } else {
        assert!(gateway.sigterm()?.success());
        assert_ne!(lab.client(1).run(ping)?.code(), Some(0), "who translates now?");
    }
    outside.settle(QUIET)?;
    for frame in outside.stop()? {
        let leaked = !frame.outgoing && frame.source() == Some(client_address(1));
        // One-armed, the router hears what clients say to the gateway only if it is sent on.
        assert!(!(leaked && frame.destination() == Some(SERVER)), "{frame:02x?}");
    }
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_connection_lives_through_a_killed_daemon_and_its_successor(
    #[values(Wiring::TwoArmed, Wiring::TwoArmedTc)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let echo = stream::echo_server(lab.server(), 7)?;
    let config = lab.config();
    let mut first = lab.start_natgw(&config)?;
    let mut connection = stream::connect(lab.client(1), at_server(echo.port()), SOON)?;
    stream::echo(&mut connection, b"before")?;
    let before = first.json(&["flows", "--protocol", "tcp"])?;
    first.sigkill()?;
    stream::echo(&mut connection, b"alone")?;
    let second = lab.start_natgw(&config)?;
    stream::echo(&mut connection, b"after")?;
    let after = second.json(&["flows", "--protocol", "tcp"])?;
    assert_eq!(after[0]["public"], before[0]["public"], "{after}");
    assert_eq!(after.as_array().map(Vec::len), Some(1));
    connection.flush()?;
    connection.shutdown(std::net::Shutdown::Write)?;
    assert_eq!(connection.read(&mut [0; 1])?, 0, "the server closes, too");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn vlan_interfaces_are_interfaces_like_others() -> Result<()> {
    let lab =
        Wiring::TwoArmed.lab_with(LabOptions { ip_forward: true, ..LabOptions::default() })?;
    if !put_on_vlans(&lab)? {
        println!("not run: this kernel has no VLAN (8021q)");
        return Ok(());
    }
    let _web = http::HttpServer::start(lab.server(), 80)?;
    let names = dns::DnsServer::start(lab.server(), 53)?;
    let config = lab
        .config()
        .replace("\"lan0\"", "\"lan0.100\"")
        .replace("\"wan0\"", "\"wan0.200\"")
        .replace("\"native\"", "\"generic\"");
    let mut gateway = lab.start_natgw(&config)?;
    let file = lab.dir().join("download");
    let url = format!("http://{SERVER}/bytes/{BYTES}");
    lab.client(1).check(["curl", "-sS", "--fail", "-o", &file.display().to_string(), &url])?;
    assert_eq!(http::file_digest(&file)?, http::content_digest(BYTES));
    let exchanges = dns::exchange(lab.client(2), at_server(names.port()), 200, SOON)?;
    assert_eq!((exchanges.lost(), exchanges.seen_as), (0, Some(lab.eip())));
    let server = SERVER.to_string();
    let ping = ["ping", "-n", "-c", "3", "-i", "0.2", "-W", "1", &server];
    lab.client(1).check(ping)?;

    // The guard is on the VLAN interface as well.
    let outside = Sniffer::start(lab.router(), "pub0.200")?;
    assert!(gateway.sigterm()?.success());
    assert_ne!(lab.client(1).run(ping)?.code(), Some(0), "who translates now?");
    outside.settle(QUIET)?;
    let leaked = |frame: &xtask::lab::Frame| frame.source() == Some(client_address(1));
    assert_eq!(outside.stop()?.into_iter().filter(leaked).count(), 0);
    gateway.detach()?;
    assert!(!lab.pins_dir().exists());
    Ok(())
}
