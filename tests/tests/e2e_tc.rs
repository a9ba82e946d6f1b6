//! The hook on tc: packets as the host's own stack has them, many in one and without checksums.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use nat_tests::stream;
use nat_tests::wiring::{SOON, Wiring, at_server};
use rstest::rstest;
use xtask::lab::{Lab, LabOptions, SERVER, http};

const BYTES: u64 = 50_000_000;

fn upload(lab: &Lab) -> Result<()> {
    let file = lab.dir().join("content");
    let path = file.display().to_string();
    let url = format!("http://{SERVER}/bytes/{BYTES}");
    lab.client(1).check(["curl", "-sS", "--fail", "-m", "60", "-o", &path, &url])?;
    assert_eq!(http::file_digest(&file)?, http::content_digest(BYTES));
    let url = format!("http://{SERVER}/");
    let digest = lab.client(1).check(["curl", "-sS", "--fail", "-m", "60", "-T", &path, &url])?;
    assert_eq!(digest.trim(), http::content_digest(BYTES));
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn auto_is_tc_on_veth_says_why_and_needs_nothing_of_its_peers(
    #[values(Wiring::TwoArmedTc, Wiring::OneArmedTc)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let _web = http::HttpServer::start(lab.server(), 80)?;
    let gateway = lab.start_natgw(&lab.config().replace("\"tc\"", "\"auto\""))?;
    upload(&lab)?;
    let status = gateway.json(&["status"])?;
    for interface in status["interfaces"].as_array().context("interfaces")? {
        assert_eq!(interface["xdp_mode"], "tc", "{status:#}");
        let note = interface["note"].as_str().unwrap_or_default();
        assert!(note.contains("auto") && note.contains("veth"), "{status:#}");
    }
    assert_eq!(gateway.counter("packets_drop_count")?, 0);
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn packets_that_travel_as_one_are_counted_as_the_wire_will_see_them() -> Result<()> {
    // What comes of one write that is larger than any packet.
    const WRITE: usize = 60_000;
    const ROUNDS: u64 = 20;
    let lab = Wiring::TwoArmedTc.lab()?;
    let echo = stream::echo_server(lab.server(), 7)?;
    let gateway = lab.start_natgw(&lab.config())?;
    let mut connection = stream::connect(lab.client(1), at_server(echo.port()), SOON)?;
    for _ in 0..ROUNDS {
        stream::echo(&mut connection, &vec![7; WRITE])?;
    }
    connection.flush()?;
    let flows = gateway.json(&["flows", "--protocol", "tcp"])?;
    let number = |key: &str| flows[0][key].as_u64().with_context(|| flows.to_string());
    // With the timestamps that Linux sends, 52 of a packet's 1500 bytes are headers.
    let bytes = ROUNDS * WRITE as u64;
    for (packets, all) in [("packets_out", "bytes_out"), ("packets_in", "bytes_in")] {
        let (packets, all) = (number(packets)?, number(all)?);
        assert!(packets >= bytes.div_ceil(1448), "{packets} packets for {bytes} bytes");
        let headers = packets * 52;
        // SYN and SYN+ACK have 8 bytes of options more; and on a busy machine something is sent twice,
        // and acknowledged with options. Headers counted once for many packets would be far from it.
        let most = bytes + headers + headers / 5;
        assert!((bytes + headers..most).contains(&all), "{all}, {packets}");
    }
    let counters = gateway.json(&["counters"])?;
    for (total, of_flow) in [
        ("packets_in_from_source", "packets_out"),
        ("bytes_in_from_source", "bytes_out"),
        ("packets_in_from_destination", "packets_in"),
        ("bytes_in_from_destination", "bytes_in"),
    ] {
        assert!(counters[total].as_u64() >= Some(number(of_flow)?), "{total}: {counters:#}");
    }
    Ok(())
}

/// The answer to a packet that is many, and whose checksum nobody has computed yet, is one packet
/// with a right checksum: the sender believes it and sends smaller ones.
#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_sender_of_packets_too_large_for_the_way_is_told() -> Result<()> {
    let lab = Wiring::TwoArmedTc.lab()?;
    for (namespace, interface) in [(lab.gateway(), "wan0"), (lab.router(), "pub0")] {
        namespace.ip_batch(&format!("link set {interface} mtu 1300\n"))?;
    }
    let _web = http::HttpServer::start(lab.server(), 80)?;
    let config = lab.config().replace("sessions =", "mss_clamp = \"off\"\nsessions =");
    let gateway = lab.start_natgw(&config)?;
    upload(&lab)?;
    assert!(gateway.counter("packets_answered")? > 0, "somebody was told");
    Ok(())
}

/// Resets and ICMP errors are made of packets with the same notes.
#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_connection_without_its_session_is_reset() -> Result<()> {
    let lab = Wiring::TwoArmedTc.lab()?;
    let echo = stream::echo_server(lab.server(), 7)?;
    let gateway = lab.start_natgw(&lab.config())?;
    let mut connection = stream::connect(lab.client(1), at_server(echo.port()), SOON)?;
    stream::echo(&mut connection, b"before")?;
    let flushed = gateway.json(&["flows", "flush"])?;
    assert_eq!(flushed["flushed"], 1, "{flushed}");
    let error = stream::echo(&mut connection, b"after").expect_err("a reset");
    let reset = error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
    });
    assert!(reset, "{error:#}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_connection_lives_through_changes_of_the_hook() -> Result<()> {
    let lab =
        Wiring::TwoArmed.lab_with(LabOptions { ip_forward: true, ..LabOptions::default() })?;
    let echo = stream::echo_server(lab.server(), 7)?;
    let mut gateway = lab.start_natgw(&lab.config())?;
    let mut connection = stream::connect(lab.client(1), at_server(echo.port()), SOON)?;
    stream::echo(&mut connection, b"native")?;
    for (kills, mode) in [(true, "tc"), (false, "native"), (false, "tc"), (true, "native")] {
        if kills {
            gateway.sigkill()?;
        } else {
            assert!(gateway.sigterm()?.success());
        }
        gateway = lab.start_natgw_with(&lab.config(), &["--xdp-mode", mode])?;
        stream::echo(&mut connection, mode.as_bytes())?;
        let status = gateway.json(&["status"])?;
        assert_eq!(status["interfaces"][0]["xdp_mode"], mode, "{status:#}");
    }
    gateway.detach()?;
    assert!(!lab.pins_dir().exists(), "pins are left");
    Ok(())
}
