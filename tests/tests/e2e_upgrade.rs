//! Under running traffic the daemon dies, is replaced, stops, starts and reloads: no session ends,
//! and not one packet is missing.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::programs::ProgramInfo;
use nat_tests::alone::age_heartbeat;
use nat_tests::another_build;
use nat_tests::datagrams::Datagrams;
use nat_tests::stream::{Stream, connect, echo, echo_server};
use nat_tests::wiring::{QUIET, SOON, Wiring, at_server};
use rstest::rstest;
use xtask::lab::{Gateway, Lab, Sniffer, client_address, natgw_binary};

const SESSIONS: usize = 1000;
/// Datagrams that have to arrive while nothing happens, between one event and the next.
const PULSE: u64 = 2000;

/// Many idle sessions, each by a socket of its own.
struct Set {
    sockets: Vec<UdpSocket>,
    server: UdpSocket,
}

impl Set {
    fn open(lab: &Lab, count: usize) -> Result<Self> {
        let server = lab.server().enter(|| UdpSocket::bind("0.0.0.0:9"))?;
        server.set_read_timeout(Some(SOON))?;
        let sockets = lab.client(1).enter(|| -> Result<Vec<UdpSocket>> {
            (0..count)
                .map(|_| {
                    let socket = UdpSocket::bind("0.0.0.0:0")?;
                    socket.connect(at_server(9))?;
                    Ok(socket)
                })
                .collect()
        })?;
        Ok(Self { sockets, server })
    }

    /// As what the server sees each of them now.
    fn seen_as(&self) -> Result<BTreeMap<u32, SocketAddr>> {
        let mut seen = BTreeMap::new();
        for (number, socket) in (0_u32..).zip(&self.sockets) {
            socket.send(&number.to_be_bytes())?;
            let mut buffer = [0; 4];
            let (_, from) = self.server.recv_from(&mut buffer).context("a datagram of the set")?;
            seen.insert(u32::from_be_bytes(buffer), from);
        }
        ensure!(seen.len() == self.sockets.len(), "{} sessions answer", seen.len());
        Ok(seen)
    }
}

/// What the kernel calls the programs' instructions.
fn programs(lab: &Lab) -> Result<Vec<u64>> {
    let directory = std::fs::read_dir(lab.pins_dir())?.next().context("no layout")??.path();
    let mut tags = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("prog-") {
            tags.push(ProgramInfo::from_pin(entry.path())?.tag());
        }
    }
    ensure!(!tags.is_empty(), "no program is pinned");
    tags.sort_unstable();
    Ok(tags)
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn death_upgrade_stop_and_reloads_cost_no_session_and_no_packet(
    #[values(Wiring::TwoArmed, Wiring::OneArmed, Wiring::TwoArmedTc)] wiring: Wiring,
) -> Result<()> {
    let mut lab = wiring.lab()?;
    echo_server(lab.server(), 7)?;
    let mut gateway = lab.start_natgw(&lab.config())?;
    let set = Set::open(&lab, SESSIONS)?;
    let before = set.seen_as()?;
    let stream = Stream::start(lab.client(2), at_server(7))?;
    let datagrams = Datagrams::start(lab.client(2), lab.server(), at_server(10))?;
    let pulse = |what: &str| -> Result<()> {
        datagrams.wait_for_more(PULSE).with_context(|| format!("after {what}"))?;
        stream.wait_for_more(20).with_context(|| format!("after {what}"))
    };
    pulse("the start")?;
    gateway.sigkill()?;
    pulse("SIGKILL")?;
    let mut gateway = lab.start_natgw(&lab.config())?;
    pulse("the start after it")?;

    let old = programs(&lab)?;
    let other = lab.dir().join("natgw-other");
    another_build::write(&natgw_binary()?, &other)?;
    gateway.sigkill()?;
    lab.set_natgw(other);
    let mut gateway = lab.start_natgw_with(&lab.config(), &["--on-exit", "keep"])?;
    assert_ne!(programs(&lab)?, old, "other programs run");
    pulse("the upgrade")?;

    assert!(gateway.sigterm()?.success());
    pulse("a stop that keeps")?;
    let gateway = lab.start_natgw(&lab.config())?;
    pulse("the start after it")?;
    for reload in 0..10 {
        let second = Ipv4Addr::from(u32::from(lab.eip()) + 1 + reload % 2);
        let pool = format!("addresses = [\"{}\", \"{second}\"]", lab.eip());
        lab.write_config(&format!(
            "{}\n[timeouts]\nudp = \"{}s\"\n",
            lab.config_with_pool(&pool),
            300 + reload
        ))?;
        gateway.natgw(&["reload"])?.success()?;
        pulse("a reload")?;
    }

    let arrived = datagrams.finish()?;
    assert!(arrived.missing.is_empty(), "{} sent, missing {:?}", arrived.sent, arrived.missing);
    assert_eq!(arrived.sources.len(), 1, "one session: {:?}", arrived.sources);
    assert_eq!(set.seen_as()?, before, "every session of the set has the port that it had");
    stream.finish()?;
    println!("{} datagrams in {:?}", arrived.sent, arrived.took);
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_dataplane_left_alone_follows_routes_and_neighbours_by_itself() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    echo_server(lab.server(), 7)?;
    let mut gateway = lab.start_natgw(&lab.config())?;
    let stream = Stream::start(lab.client(1), at_server(7))?;
    gateway.sigkill()?;
    age_heartbeat(&lab)?;
    stream.wait_for_more(20).context("alone")?;

    // Another router, whose Ethernet address nobody has asked for yet.
    lab.router().ip_batch(
        "link add other0 link pub0 type macvlan mode bridge\n\
         addr add 198.51.100.77/24 dev other0\n\
         link set other0 up\n",
    )?;
    lab.gateway().ip_batch("route replace default via 198.51.100.77\n")?;
    let start = Instant::now();
    while !lab.gateway().check(["ip", "neigh", "show", "198.51.100.77"])?.contains("lladdr") {
        ensure!(start.elapsed() < SOON, "nobody has asked for the new router's Ethernet address");
        std::thread::sleep(Duration::from_millis(50));
    }
    stream.wait_for_more(20).context("after the route has changed")?;

    // Its Ethernet address changes, which it announces.
    lab.router().ip_batch("link set other0 address 02:00:00:00:77:77\n")?;
    lab.router().run(["arping", "-U", "-c", "1", "-w", "1", "-I", "other0", "198.51.100.77"])?;
    stream.wait_for_more(20).context("after the neighbour has changed")?;
    stream.finish()?;
    Ok(())
}

fn address_state(gateway: &Gateway, address: Ipv4Addr) -> Result<Option<String>> {
    let status = gateway.json(&["status"])?;
    let addresses = status["addresses"].as_array().context("no addresses")?.clone();
    let found = addresses.iter().find(|it| it["address"] == address.to_string());
    Ok(found.and_then(|it| it["state"].as_str()).map(str::to_owned))
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn an_address_that_was_added_by_command_drains_after_the_next_start() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    echo_server(lab.server(), 7)?;
    let mut gateway = lab.start_natgw(&lab.config())?;
    let added = Ipv4Addr::from(u32::from(lab.eip()) + 5);
    gateway.natgw(&["eip", "add", &added.to_string()])?.success()?;
    // New hosts are spread over the addresses: one of these gets the new one.
    let mut streams = Vec::new();
    for client in [1, 2] {
        streams.push(Stream::start(lab.client(client), at_server(7))?);
    }
    let of_added = ["flows", "count", "--public", &added.to_string()];
    if gateway.json(&of_added)?["count"] == 0 {
        // Both had the same; without that one they have no choice.
        drop(streams);
        gateway.natgw(&["flows", "flush"])?.success()?;
        gateway.natgw(&["eip", "drain", &lab.eip().to_string()])?.success()?;
        streams = vec![Stream::start(lab.client(1), at_server(7))?];
    }
    let count = gateway.json(&of_added)?["count"].clone();
    assert_ne!(count, 0);

    gateway.sigkill()?;
    let gateway = lab.start_natgw(&lab.config())?;
    assert_eq!(address_state(&gateway, added)?.as_deref(), Some("draining"));
    for stream in &streams {
        stream.wait_for_more(20).context("its sessions go on")?;
    }
    assert_eq!(gateway.json(&of_added)?["count"], count);
    let file = lab.write_config(&lab.config())?;
    assert!(!std::fs::read_to_string(file)?.contains(&added.to_string()), "it is not in the file");

    for stream in streams {
        stream.finish()?;
    }
    gateway.natgw(&["flows", "flush"])?.success()?;
    gateway
        .wait_for(&["eip", "list"], SOON, |list| !list.to_string().contains(&added.to_string()))?;
    Ok(())
}

/// What stands in the way of a start, as the daemon says it; then everything is as it was.
fn refusal(lab: &Lab, config: &str) -> Result<String> {
    let file = lab.write_config(config)?;
    let output = lab.natgw(&["run", "-c", &file.display().to_string()])?;
    assert_eq!(output.code(), Some(1), "{output:?}");
    Ok(output.stderr)
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn state_that_does_not_fit_is_refused_with_the_ways_on_and_a_cold_start_gives_it_up() -> Result<()>
{
    let lab = Wiring::TwoArmed.lab()?;
    echo_server(lab.server(), 7)?;
    let mut gateway = lab.start_natgw(&lab.config())?;
    let stream = Stream::start(lab.client(1), at_server(7))?;
    gateway.sigkill()?;

    // Another capacity.
    let larger = lab.config().replace("sessions = 131072", "sessions = 140000");
    let said = refusal(&lab, &larger)?;
    assert!(said.contains("sessions = 131072") && said.contains("run --cold"), "{said}");
    stream.wait_for_more(20).context("the refusal disturbs nothing")?;

    // Another layout.
    let own = std::fs::read_dir(lab.pins_dir())?.next().context("no layout")??.path();
    std::fs::rename(&own, own.with_file_name("v9999"))?;
    let said = refusal(&lab, &lab.config())?;
    assert!(said.contains("layout v9999") && said.contains("natgw migrate"), "{said}");
    let migrated = lab.natgw(&["migrate"])?;
    assert_eq!(migrated.code(), Some(1), "{migrated:?}");
    assert!(migrated.stderr.contains("run --cold"), "{}", migrated.stderr);
    stream.wait_for_more(20).context("the refusals disturb nothing")?;

    let (router, interface) = lab.outside();
    let outside = Sniffer::start(router, interface)?;
    let gateway = lab.start_natgw_with(&larger, &["--cold"])?;
    drop(stream);
    let mut new = connect(lab.client(1), at_server(7), SOON)?;
    echo(&mut new, b"anew")?;
    assert_eq!(gateway.json(&["status"])?["sessions_max"], 140_000);
    let left: Vec<_> = std::fs::read_dir(lab.pins_dir())?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<std::io::Result<_>>()?;
    assert_eq!(left, [own.file_name().context("a name")?], "what was there before is gone");
    outside.settle(QUIET)?;
    for frame in outside.stop()? {
        assert!(!frame.mentions(client_address(1)), "untranslated: {frame:02x?}");
    }
    gateway.detach()?;
    assert!(!lab.pins_dir().exists());
    Ok(())
}
