//! What stays and what goes when the daemon dies, stops, starts again, or a host of one
//! interface sits inside its own rules.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::MapInfo;
use nat_common::maps;
use nat_tests::stream::{Stream, connect, echo, echo_server};
use nat_tests::wiring::{QUIET, SOON, Wiring, at_server};
use rstest::rstest;
use xtask::lab::{GATEWAY_PRIVATE, Gateway, Lab, Sniffer, dns, http};

/// What the lab's configuration says.
const SESSIONS: u32 = 131_072;

fn private_ends(flows: &serde_json::Value) -> Vec<&str> {
    flows.as_array().into_iter().flatten().filter_map(|flow| flow["private"].as_str()).collect()
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_connection_survives_the_daemons_death_and_is_adopted_by_the_next(
    #[values(Wiring::TwoArmed, Wiring::OneArmed, Wiring::TwoArmedTc)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    echo_server(lab.server(), 7)?;
    let mut gateway = lab.start_natgw(&lab.config())?;
    let stream = Stream::start(lab.client(1), at_server(7))?;
    let before = gateway.json(&["flows"])?;
    gateway.sigkill()?;
    stream.wait_for_more(200)?;
    let late = Stream::start(lab.client(2), at_server(7)).context("a new one, without a daemon")?;

    let gateway = lab.start_natgw(&lab.config())?;
    stream.wait_for_more(200)?;
    let flows = gateway.json(&["flows"])?;
    for stream in [&stream, &late] {
        let local = stream.local().to_string();
        assert!(private_ends(&flows).contains(&local.as_str()), "{local} in {flows:#}");
    }
    assert_eq!(
        before[0]["public"],
        *flows
            .as_array()
            .and_then(|rows| rows.iter().find(|row| row["private"] == before[0]["private"]))
            .map(|row| &row["public"])
            .context("the first session")?,
        "with the port that it had"
    );
    assert!(flows[0]["packets_out"].as_u64() > Some(200), "counts go on: {flows:#}");
    Stream::start(lab.client(1), at_server(7))?.finish()?;
    late.finish()?;
    stream.finish()?;
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_planned_stop_ends_translation_and_the_next_start_goes_on_where_it_stopped(
    #[values(Wiring::TwoArmed, Wiring::OneArmed, Wiring::TwoArmedTc)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    echo_server(lab.server(), 7)?;
    let mut gateway = lab.start_natgw(&lab.config())?;
    let mut stream = connect(lab.client(1), at_server(7), SOON)?;
    echo(&mut stream, b"before")?;
    let before = gateway.json(&["flows"])?;
    assert_eq!(gateway.sigterm()?.code(), Some(0));
    assert!(!gateway.control_socket().exists());
    assert!(connect(lab.client(1), at_server(7), QUIET).is_err(), "translation has ended");
    assert!(lab.pins_dir().exists(), "sessions stay");

    let gateway = lab.start_natgw(&lab.config())?;
    echo(&mut stream, b"after")?;
    let after = gateway.json(&["flows", "--private", &stream.local_addr()?.to_string()])?;
    assert_eq!(after[0]["public"], before[0]["public"]);
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_stop_that_keeps_leaves_the_dataplane_at_work(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    echo_server(lab.server(), 7)?;
    let mut gateway = lab.start_natgw_with(&lab.config(), &["--on-exit", "keep"])?;
    let stream = Stream::start(lab.client(1), at_server(7))?;
    assert_eq!(gateway.sigint()?.code(), Some(0));
    stream.wait_for_more(100)?;
    Stream::start(lab.client(2), at_server(7))?.finish()?;
    stream.finish()?;
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_second_run_of_the_same_name_exits_1_and_disturbs_nothing() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    echo_server(lab.server(), 7)?;
    let gateway = lab.start_natgw(&lab.config())?;
    let stream = Stream::start(lab.client(1), at_server(7))?;
    let file = lab.write_config(&lab.config())?;
    let second = lab.natgw(&["run", "-c", &file.display().to_string()])?;
    assert_eq!(second.code(), Some(1), "{second:?}");
    assert_eq!(second.stdout, "");
    assert!(second.stderr.contains(lab.name()), "says which: {}", second.stderr);
    stream.wait_for_more(50)?;
    assert_eq!(gateway.json(&["status"])?["state"], "ready");
    stream.finish()?;
    Ok(())
}

/// Broadcasts from `from` and waits until `to`'s stack has it.
fn broadcast(lab: &Lab, from: &str, to: &str, port: u16) -> Result<()> {
    let receiver = lab.ns(to).enter(|| UdpSocket::bind(("0.0.0.0", port)))?;
    receiver.set_read_timeout(Some(SOON))?;
    let sender = lab.ns(from).enter(|| UdpSocket::bind("0.0.0.0:68"))?;
    sender.set_broadcast(true)?;
    sender.send_to(b"DHCPDISCOVER", ("255.255.255.255", port))?;
    let mut buffer = [0; 64];
    let length = receiver.recv(&mut buffer).with_context(|| format!("{from} to {to}"))?;
    assert_eq!(&buffer[..length], b"DHCPDISCOVER");
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_one_armed_host_inside_its_own_rules_keeps_its_ssh_and_dhcp(
    #[values("10.0.1.100", "10.0.1.1")] pool: &str,
    #[values(false, true)] ip_forward: bool,
) -> Result<()> {
    let options = xtask::lab::LabOptions { ip_forward, ..Default::default() };
    let lab = Wiring::OneArmed.lab_with(options)?;
    echo_server(lab.gateway(), 22)?;
    echo_server(lab.server(), 7)?;
    lab.gateway().ip_batch("route add 255.255.255.255 dev eth0\n")?;
    lab.client(1).ip_batch("route add 255.255.255.255 dev eth0\n")?;
    let ssh = SocketAddr::from((GATEWAY_PRIVATE, 22));
    // Opened before the gateway starts: from inside, from outside, and by the host itself.
    let streams = [
        Stream::start(lab.client(1), ssh)?,
        Stream::start(lab.server(), ssh)?,
        Stream::start(lab.gateway(), at_server(7))?,
    ];
    let works = |when: &str| -> Result<()> {
        for (number, stream) in streams.iter().enumerate() {
            stream.wait_for_more(20).with_context(|| format!("stream {number}, {when}"))?;
        }
        for from in ["client1", "router", "server"] {
            let mut new = connect(lab.ns(from), ssh, SOON)
                .with_context(|| format!("a new one from {from}, {when}"))?;
            echo(&mut new, b"who am I")?;
        }
        let mut own = connect(lab.gateway(), at_server(7), SOON)
            .with_context(|| format!("a new one of the host's, {when}"))?;
        echo(&mut own, b"metadata")?;
        broadcast(&lab, "client1", "gateway", 67).with_context(|| when.to_owned())?;
        broadcast(&lab, "gateway", "client1", 67).with_context(|| when.to_owned())
    };
    works("before the start")?;
    let config = lab.config_with_pool(&format!("addresses = [\"{pool}\"]"));
    let mut gateway = lab.start_natgw(&config)?;
    works("after the start")?;
    Stream::start(lab.client(2), at_server(7)).context("and translates")?.finish()?;
    gateway.sigterm()?;
    works("after SIGTERM")?;
    let mut gateway = lab.start_natgw(&config)?;
    works("after another start")?;
    gateway.sigkill()?;
    works("after SIGKILL")?;
    gateway.detach()?;
    works("after detach")?;
    for stream in streams {
        stream.finish()?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn an_unconfirmed_start_is_undone() -> Result<()> {
    let lab = Wiring::OneArmed.lab()?;
    let mut gateway = lab.start_natgw_with(&lab.config(), &["--confirm", "2s"])?;
    assert!(lab.pins_dir().exists());
    gateway.wait(SOON)?;
    assert!(!lab.pins_dir().exists(), "everything is detached again");

    let mut gateway = lab.start_natgw_with(&lab.config(), &["--confirm", "2s"])?;
    gateway.natgw(&["confirm"])?.success()?;
    assert!(gateway.wait(Duration::from_secs(3)).is_err(), "confirmed, it goes on");
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn an_interface_that_comes_back_is_attached_again_and_its_sessions_go_on() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    echo_server(lab.server(), 7)?;
    let gateway = lab.start_natgw(&lab.config())?;
    let stream = Stream::start(lab.client(1), at_server(7))?;
    lab.gateway().ip_batch("link set wan0 down\n")?;
    lab.gateway().ip_batch("link set wan0 up\nroute replace default via 198.51.100.1\n")?;
    stream.wait_for_more(50)?;
    assert_eq!(gateway.json(&["status"])?["state"], "ready");
    stream.finish()?;
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn the_flags_alone_start_a_gateway() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let _web = http::HttpServer::start(lab.server(), 80)?;
    let names = dns::DnsServer::start(lab.server(), 53)?;
    let eip = lab.eip().to_string();
    let gateway = lab.run_natgw(&[
        "--public",
        "wan0",
        "--private",
        "lan0",
        "--eip",
        &eip,
        "--source",
        "10.0.1.0/24",
        "--xdp-mode",
        "native",
    ])?;
    let exchanges = dns::exchange(lab.client(1), at_server(names.port()), 100, SOON)?;
    assert_eq!((exchanges.lost(), exchanges.seen_as), (0, Some(lab.eip())));
    let status = gateway.json(&["status"])?;
    assert_eq!(status["interfaces"][0]["xdp_mode"], "native", "{status:#}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_stopped_gateway_answers_no_more_for_its_addresses() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let mut gateway = lab.start_natgw(&lab.config())?;
    gateway.sigterm()?;
    let (router, interface) = lab.outside();
    let seen = Sniffer::start(router, interface)?;
    let eip = lab.eip().to_string();
    let asked = router.run(["arping", "-c", "1", "-w", "1", "-I", interface, &eip])?;
    assert!(!asked.status.success(), "{}", asked.stdout);
    let replies = seen.stop()?.into_iter().filter(|frame| {
        !frame.outgoing && frame.bytes.get(12..14) == Some(&[8, 6]) && frame.bytes[21] == 2
    });
    assert_eq!(replies.count(), 0);
    Ok(())
}

fn bindings(lab: &Lab) -> PathBuf {
    lab.pins_dir().join(format!("v{}/{}", maps::LAYOUT, maps::BINDINGS))
}

/// Endpoint-independent mappings that there is room for: each has an entry both ways.
fn room_for_mappings(lab: &Lab) -> Result<u32> {
    Ok(MapInfo::from_pin(bindings(lab))?.max_entries() / 2)
}

/// The lab's configuration; the pool has mappings that everyone may answer to.
fn with_mappings(lab: &Lab) -> String {
    let pool = "mapping = \"endpoint-independent\"\nfiltering = \"endpoint-independent\"";
    lab.config_with_pool(&format!("addresses = [\"{}\"]\n{pool}", lab.eip()))
}

/// A private socket with a mapping, and its public endpoint.
struct Mapped {
    inside: UdpSocket,
    public: SocketAddr,
}

impl Mapped {
    fn new(lab: &Lab) -> Result<Self> {
        let (inside, known) = (udp(lab, "client2")?, udp(lab, "server")?);
        inside.send_to(b"hello", at_server(known.local_addr()?.port()))?;
        let (_, public) = known.recv_from(&mut [0; 16]).context("through the gateway")?;
        Ok(Self { inside, public })
    }

    /// An outsider is a new one each time: it has no session that would do without the mapping.
    fn is_reached_by_a_stranger(&self, lab: &Lab) -> Result<()> {
        let stranger = udp(lab, "router")?;
        stranger.send_to(b"unasked", self.public)?;
        self.inside.recv_from(&mut [0; 16]).context("from a stranger")?;
        Ok(())
    }
}

fn udp(lab: &Lab, role: &str) -> Result<UdpSocket> {
    let socket = lab.ns(role).enter(|| UdpSocket::bind("0.0.0.0:0"))?;
    socket.set_read_timeout(Some(SOON))?;
    Ok(socket)
}

/// A gateway that was started without mappings and has one, and room for a part of them.
fn reloaded_with_mappings(lab: &Lab, on_exit: &str) -> Result<(Gateway, Stream, Mapped)> {
    echo_server(lab.server(), 7)?;
    let gateway = lab.start_natgw_with(&lab.config(), &["--on-exit", on_exit])?;
    let stream = Stream::start(lab.client(1), at_server(7))?;
    let room = room_for_mappings(lab)?;
    assert!(room < SESSIONS, "{room}");

    lab.write_config(&with_mappings(lab))?;
    let said =
        format!("there is room for {room} endpoint-independent mappings instead of {SESSIONS}");
    let steps = gateway.natgw(&["reload", "--dry-run"])?.success()?;
    assert!(steps.contains(&said), "{steps}");
    let steps = gateway.natgw(&["reload"])?.success()?;
    assert!(steps.contains(&said), "{steps}");
    assert!(gateway.log()?.contains(&said));
    let mapped = Mapped::new(lab)?;
    mapped.is_reached_by_a_stranger(lab)?;
    stream.wait_for_more(50)?;
    Ok((gateway, stream, mapped))
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn mappings_work_at_once_after_a_reload_and_a_start_after_a_stop_has_room_for_all_and_keeps_them(
    #[values(Wiring::TwoArmed, Wiring::TwoArmedTc)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let (mut gateway, stream, mapped) = reloaded_with_mappings(&lab, "stop")?;
    gateway.sigterm()?;
    let gateway = lab.start_natgw(&with_mappings(&lab))?;
    assert_eq!(room_for_mappings(&lab)?, SESSIONS);
    assert!(!gateway.log()?.contains("there is room for"));
    mapped.is_reached_by_a_stranger(&lab)?;
    stream.wait_for_more(50)?;
    stream.finish()?;
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn while_the_dataplane_goes_on_mappings_stay_and_the_log_says_how_much_room_there_is(
    #[values(Wiring::TwoArmed, Wiring::TwoArmedTc)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let (mut gateway, stream, mapped) = reloaded_with_mappings(&lab, "keep")?;
    let little = room_for_mappings(&lab)?;
    gateway.sigterm()?;
    let gateway = lab.start_natgw_with(&with_mappings(&lab), &["--on-exit", "keep"])?;
    assert_eq!(room_for_mappings(&lab)?, little);
    assert!(gateway.log()?.contains("there is room for"));
    mapped.is_reached_by_a_stranger(&lab)?;
    stream.wait_for_more(50)?;
    stream.finish()?;
    Ok(())
}
