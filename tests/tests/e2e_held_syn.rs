//! Unsolicited SYNs in profile `rfc`: held six seconds, then answered (RFC 5382 REQ-4).

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nat_tests::frames::{Path, flag};
use nat_tests::stream::connect_from;
use nat_tests::wiring::SOON;
use serde_json::Value;
use xtask::lab::{Gateway, Lab, LabOptions, SERVER, Sniffer, send_frames};

const HELD: Duration = Duration::from_secs(6);
/// The hold, and all that follows it.
const LATER: Duration = Duration::from_secs(26);
const ICMP: u8 = 1;

fn start(lab: &Lab) -> Result<Gateway> {
    lab.start_natgw(&lab.config().replace("[gateway]\n", "[gateway]\nprofile = \"rfc\"\n"))
}

fn drops(counters: &Value, reason: &str) -> u64 {
    counters["drops"][reason].as_u64().unwrap_or_default()
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn an_unsolicited_syn_is_held_for_six_seconds_and_then_refused() -> Result<()> {
    let lab = Lab::two_armed(LabOptions::default())?;
    let gateway = start(&lab)?;
    let (router, interface) = lab.outside();
    let outside = Sniffer::start(router, interface)?;
    let begin = Instant::now();
    let refused = connect_from(lab.server(), 5000, SocketAddrV4::new(lab.eip(), 40_000), LATER);
    let error = refused.err().context("a connection with nobody")?;
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    assert!(begin.elapsed() >= HELD, "answered after {:?}", begin.elapsed());

    let answer = outside.wait_for(SOON, |frame| frame.protocol() == Some(ICMP))?;
    assert_eq!((answer.source(), answer.destination()), (Some(lab.eip()), Some(SERVER)));
    assert_eq!(answer.bytes.get(34..36), Some(&[3, 3][..]), "ICMP 3/3");
    let counters = gateway.wait_for(&["counters"], SOON, |it| it["packets_held"] == 0)?;
    assert_eq!(counters["packets_drop_count"], drops(&counters, "unsolicited"), "{counters}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn two_hosts_that_open_at_once_are_connected_and_the_held_syn_is_forgotten() -> Result<()> {
    let lab = Lab::two_armed(LabOptions::default())?;
    let gateway = start(&lab)?;
    let (server, client) = (lab.server(), lab.client(1));
    let (router, interface) = lab.outside();
    let outside = Sniffer::start(router, interface)?;
    std::thread::scope(|scope| -> Result<()> {
        let public = SocketAddrV4::new(lab.eip(), 40_000);
        let caller = scope.spawn(move || connect_from(server, 5000, public, LATER));
        gateway.wait_for(&["counters"], SOON, |it| it["packets_held"] == 1)?;
        let mut inside = connect_from(client, 40_000, SocketAddrV4::new(SERVER, 5000), SOON)?;
        let caller = caller.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let mut caller = caller.context("the caller from outside")?;
        caller.write_all(b"from outside")?;
        let mut heard = [0; 12];
        inside.read_exact(&mut heard)?;
        assert_eq!(&heard, b"from outside");

        let counters =
            gateway.wait_for(&["counters"], LATER, |it| drops(it, "held_timeout") == 1)?;
        assert_eq!(counters["packets_held"], 0, "{counters}");
        inside.write_all(b"from inside!")?;
        caller.read_exact(&mut heard)?;
        assert_eq!(&heard, b"from inside!");
        Ok(())
    })?;
    let errors = outside.frames().iter().filter(|it| it.protocol() == Some(ICMP)).count();
    assert_eq!(errors, 0, "the held SYN is answered by nothing");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_flood_of_unsolicited_syns_harms_nobody_else_and_without_the_daemon_they_are_dropped()
-> Result<()> {
    const FLOOD: u16 = 20_000;
    let lab = Lab::two_armed(LabOptions::default())?;
    let mut gateway = start(&lab)?;
    let (router, interface) = lab.outside();
    let path = Path::inward(&lab)?;
    let syn = |number: u16| {
        let source = Ipv4Addr::from(0x0b00_0000 + u32::from(number) / 100);
        Path { source, ..path }.tcp(1024 + number, 40_000, flag::SYN, &[])
    };
    let flood: Vec<Vec<u8>> = (0..FLOOD).map(syn).collect();
    std::thread::scope(|scope| -> Result<()> {
        let sender = scope.spawn(|| send_frames(router, interface, &flood));
        let server = SERVER.to_string();
        // Fragments need the slow path, too.
        let ping = ["ping", "-c", "20", "-i", "0.05", "-W", "5", "-s", "4000", &server];
        let output = lab.client(2).check(ping)?;
        ensure!(output.contains(" 0% packet loss"), "{output}");
        sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let held = gateway.counter("packets_held")?;
    assert!(held <= 16_384, "{held} held");
    let answered = |counters: &Value| counters["packets_answered"].as_u64().unwrap_or_default();
    gateway.wait_for(&["counters"], LATER, |it| answered(it) > 0 && it["packets_held"] == 0)?;

    gateway.sigkill()?;
    lab.gateway().retry(SOON, ["sh", "-c", "! ip link show type tun | grep -q natgw"])?;
    let outside = Sniffer::start(router, interface)?;
    send_frames(router, interface, &flood[..1])?;
    let socket = lab.client(1).enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 41_000)))?;
    socket.send_to(b"others pass", (SERVER, 7000))?;
    outside.wait_for(SOON, |frame| frame.destination() == Some(SERVER))?;
    let gateway = start(&lab)?;
    let counters = gateway.wait_for(&["counters"], SOON, |it| it["packets_held"] == 0)?;
    assert_eq!(drops(&counters, "slow_path_unavailable"), 1, "{counters}");
    Ok(())
}
