//! Elastic IPs added, drained and removed while traffic runs, and rules changed under it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use anyhow::{Context, Result};
use nat_tests::stream::{Stream, connect, echo, echo_server};
use nat_tests::wiring::{QUIET, SOON, Wiring, at_server};
use rstest::rstest;
use serde_json::{Value, json};
use xtask::lab::{Lab, Namespace, client_address};

const SECOND: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);

/// A closed connection is forgotten at once, so that an address is soon without sessions.
fn config(lab: &Lab) -> String {
    format!("{}\n[timeouts]\ntcp_transitory = \"1s\"\n", lab.config())
}

/// The state of an address, as `status` tells it; `None` if it is not there.
fn state(status: &Value, address: Ipv4Addr) -> Option<&str> {
    let wanted = address.to_string();
    let mut addresses = status["addresses"].as_array()?.iter();
    addresses.find(|it| it["address"] == wanted)?["state"].as_str()
}

/// The public address that a new connection of this host has.
fn seen_as(lab: &Lab, host: u8) -> Result<Ipv4Addr> {
    let listener = lab.server().enter(|| TcpListener::bind("0.0.0.0:0"))?;
    let port = listener.local_addr()?.port();
    let _stream = connect(lab.client(host), at_server(port), SOON)?;
    match listener.accept()?.1 {
        SocketAddr::V4(peer) => Ok(*peer.ip()),
        SocketAddr::V6(peer) => anyhow::bail!("a caller {peer}"),
    }
}

/// Whether anybody answers ARP for the address on the outside.
fn answers_arp(router: &Namespace, interface: &str, address: Ipv4Addr) -> Result<bool> {
    let address = address.to_string();
    Ok(router.run(["arping", "-c", "1", "-w", "1", "-I", interface, &address])?.success().is_ok())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_draining_address_keeps_its_sessions_gets_no_new_ones_and_goes_with_the_last(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let first = lab.eip();
    echo_server(lab.server(), 7)?;
    let gateway = lab.start_natgw(&config(&lab))?;
    let stream = Stream::start(lab.client(1), at_server(7))?;

    gateway.natgw(&["eip", "add", &SECOND.to_string()])?.success()?;
    let (router, interface) = lab.outside();
    assert!(answers_arp(router, interface, SECOND)?, "a new address is answered for at once");
    gateway.natgw(&["eip", "drain", &first.to_string()])?.success()?;
    assert_eq!(state(&gateway.json(&["status"])?, first), Some("draining"));
    // Even of the host that was paired with it.
    assert_eq!((seen_as(&lab, 1)?, seen_as(&lab, 2)?), (SECOND, SECOND));
    stream.wait_for_more(100)?;

    stream.finish()?;
    gateway.wait_for(&["status"], SOON, |status| state(status, first).is_none())?;
    assert_eq!(state(&gateway.json(&["status"])?, SECOND), Some("active"));
    assert!(!answers_arp(router, interface, first)?, "a released address is silent");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn draining_ends_at_its_time_bound_whatever_lives() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let first = lab.eip().to_string();
    echo_server(lab.server(), 7)?;
    let gateway = lab.start_natgw(&config(&lab))?;
    let mut stream = connect(lab.client(1), at_server(7), SOON)?;
    echo(&mut stream, b"before")?;
    for wrong in ["500ms", "0s", "4001s"] {
        let output = gateway.natgw(&["eip", "drain", &first, "--max-wait", wrong])?;
        assert_eq!(output.status.code(), Some(2), "{wrong}");
    }
    gateway.natgw(&["eip", "add", &SECOND.to_string()])?.success()?;
    gateway.natgw(&["eip", "drain", &first, "--max-wait", "1s"])?.success()?;
    echo(&mut stream, b"while it drains")?;
    gateway.wait_for(&["status"], SOON, |status| state(status, lab.eip()).is_none())?;
    gateway.wait_for(&["flows", "count", "--public", &first], SOON, |it| it["count"] == 0)?;
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn the_last_address_may_be_removed_and_nothing_leaves_without_one() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let eip = lab.eip().to_string();
    echo_server(lab.server(), 7)?;
    let gateway = lab.start_natgw(&config(&lab))?;
    let mut stream = connect(lab.client(1), at_server(7), SOON)?;
    echo(&mut stream, b"before")?;
    assert_eq!(gateway.json(&["eip", "remove", &eip])?, json!([]));
    assert_eq!(gateway.json(&["flows", "count"])?, json!({"count": 0}));
    let (router, interface) = lab.outside();
    assert!(!answers_arp(router, interface, lab.eip())?, "a released address is silent at once");
    assert!(connect(lab.client(1), at_server(7), QUIET).is_err());
    assert!(gateway.counter("drops.no_address")? > 0);

    gateway.natgw(&["eip", "add", &eip])?.success()?;
    assert_eq!(seen_as(&lab, 1)?, lab.eip());
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_saved_change_is_in_the_file_beside_its_comments_and_an_unsaved_one_ends_with_a_reload()
-> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let text = format!("# Who may ask: the network team.\n{}", config(&lab));
    let gateway = lab.start_natgw(&text)?;
    let saved = Ipv4Addr::new(198, 51, 100, 78);
    gateway.natgw(&["eip", "add", &SECOND.to_string()])?.success()?;
    gateway.natgw(&["eip", "add", &saved.to_string(), "--save"])?.success()?;
    let public = format!("{saved}:443");
    let forward = ["--protocol", "tcp", "--public", &public];
    gateway
        .natgw(
            &[&["forward", "add"], &forward[..], &["--private", "10.0.1.5:8443", "--save"]]
                .concat(),
        )?
        .success()?;
    let file = fs::read_to_string(lab.dir().join("natgw.toml"))?;
    assert!(file.starts_with("# Who may ask: the network team.\n"), "{file}");
    assert!(file.contains(&saved.to_string()) && !file.contains(&SECOND.to_string()), "{file}");

    gateway.natgw(&["reload"])?.success()?;
    let status = gateway.json(&["status"])?;
    assert_eq!((state(&status, saved), state(&status, SECOND)), (Some("active"), None));
    assert_eq!(
        gateway.json(&["forward", "list"])?,
        json!([{ "protocol": "tcp", "public": public, "private": "10.0.1.5:8443" }])
    );
    // Its public side says which one.
    gateway.natgw(&[&["forward", "remove"], &forward[..], &["--save"]].concat())?.success()?;
    assert_eq!(gateway.json(&["forward", "list"])?, json!([]));
    assert!(!fs::read_to_string(lab.dir().join("natgw.toml"))?.contains("[[forward]]"));
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn forwards_and_one_to_one_mappings_change_under_traffic() -> Result<()> {
    const OWN: [Ipv4Addr; 2] = [SECOND, Ipv4Addr::new(198, 51, 100, 78)];
    let lab = Wiring::TwoArmed.lab()?;
    echo_server(lab.server(), 7)?;
    let gateway = lab.start_natgw(&config(&lab))?;
    let stream = Stream::start(lab.client(2), at_server(7))?;
    let listen = |host| -> Result<UdpSocket> {
        let socket = lab.client(host).enter(|| UdpSocket::bind("0.0.0.0:5000"))?;
        socket.set_read_timeout(Some(SOON))?;
        Ok(socket)
    };
    let inside = [listen(1)?, listen(2)?];
    let outside = lab.server().enter(|| UdpSocket::bind("0.0.0.0:0"))?;
    let mut buffer = [0; 16];
    for ((own, forwarded), host) in OWN.into_iter().zip(&inside).zip([1, 2]) {
        lab.write_config(&format!(
            "{}\n[[one_to_one]]\npublic = \"{own}\"\nprivate = \"{}\"\n\
             [[forward]]\nprotocol = \"udp\"\npublic = \"{}:6000\"\nprivate = \"{}:5000\"\n",
            config(&lab),
            client_address(1),
            lab.eip(),
            client_address(host)
        ))?;
        gateway.natgw(&["reload"])?.success()?;
        outside.send_to(b"one to one", (own, 5000))?;
        let (length, _) = inside[0].recv_from(&mut buffer).context("by its own address")?;
        assert_eq!(&buffer[..length], b"one to one");
        outside.send_to(b"forward", (lab.eip(), 6000))?;
        let (length, _) = forwarded.recv_from(&mut buffer).context("by the forward")?;
        assert_eq!(&buffer[..length], b"forward");
    }
    lab.write_config(&config(&lab))?;
    gateway.natgw(&["reload"])?.success()?;
    let drops = gateway.counter("packets_drop_count")?;
    outside.send_to(b"too late", (lab.eip(), 6000))?;
    gateway.wait_for(&["counters"], SOON, |counters| {
        counters["packets_drop_count"].as_u64() > Some(drops)
    })?;
    stream.wait_for_more(50)?;
    stream.finish()?;
    Ok(())
}
