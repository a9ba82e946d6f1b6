//! Mapping and filtering of the two profiles, pairing of hosts with addresses, and what happens to
//! the network under a running gateway.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nat_tests::frames::{Path, flag};
use nat_tests::links::remake_public_interface;
use nat_tests::stream::{Stream, connect, echo, echo_server};
use nat_tests::wiring::{QUIET, SOON, Wiring, at_server};
use rstest::rstest;
use serde_json::Value;
use xtask::lab::{Frame, Lab, LabOptions, Namespace, Sniffer, client_address, dns, http};

fn rfc(lab: &Lab) -> String {
    lab.config().replace("[gateway]\n", "[gateway]\nprofile = \"rfc\"\n")
}

/// A socket of a host, with a limit on waiting.
fn udp(namespace: &Namespace, port: u16) -> Result<UdpSocket> {
    let socket = namespace.enter(|| UdpSocket::bind(("0.0.0.0", port)))?;
    socket.set_read_timeout(Some(SOON))?;
    Ok(socket)
}

/// Sends from one to the other; where it came from, as the receiver sees it.
fn pass(from: &UdpSocket, to: SocketAddr, receiver: &UdpSocket) -> Result<SocketAddr> {
    from.send_to(b"hello", to)?;
    let (_, seen) = receiver.recv_from(&mut [0; 16]).with_context(|| format!("towards {to}"))?;
    Ok(seen)
}

/// Whether nothing comes within [`QUIET`].
fn hears_nothing(socket: &UdpSocket) -> Result<bool> {
    socket.set_read_timeout(Some(QUIET))?;
    let nothing = socket.recv_from(&mut [0; 16]).is_err();
    socket.set_read_timeout(Some(SOON))?;
    Ok(nothing)
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn in_profile_rfc_a_private_endpoint_has_one_public_endpoint_for_all(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let (seven, eight) = (udp(lab.server(), 7)?, udp(lab.server(), 8)?);
    let _gateway = lab.start_natgw(&rfc(&lab))?;
    let inside = udp(lab.client(1), 0)?;
    let public = pass(&inside, at_server(7), &seven)?;
    assert_eq!(pass(&inside, at_server(8), &eight)?, public);

    // Address-dependent filtering: any port of an address that was spoken to, and no other.
    let other_port = udp(lab.server(), 9)?;
    assert_eq!(pass(&other_port, public, &inside)?, at_server(9));
    let stranger = udp(lab.router(), 7)?;
    stranger.send_to(b"unasked", public)?;
    assert!(hears_nothing(&inside)?, "the router was never spoken to");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn in_profile_aws_an_endpoint_hears_only_whom_it_speaks_to() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let seven = udp(lab.server(), 7)?;
    let gateway = lab.start_natgw(&lab.config())?;
    let inside = udp(lab.client(1), 0)?;
    let public = pass(&inside, at_server(7), &seven)?;
    assert_eq!(pass(&seven, public, &inside)?, at_server(7));
    udp(lab.server(), 8)?.send_to(b"unasked", public)?;
    assert!(hears_nothing(&inside)?);
    assert_eq!(gateway.counter("drops.unsolicited")?, 1);
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn in_profile_rfc_private_hosts_reach_each_other_by_their_public_endpoints(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let meeting = udp(lab.server(), 7)?;
    let eip = lab.eip();
    let _inside = http::HttpServer::start(lab.client(2), 8080)?;
    let _gateway = lab.start_natgw(&format!(
        "{}\n[[forward]]\nprotocol = \"tcp\"\npublic = \"{eip}:80\"\nprivate = \"10.0.1.6:8080\"\n",
        rfc(&lab)
    ))?;
    let (one, two) = (udp(lab.client(1), 0)?, udp(lab.client(2), 0)?);
    let (public_one, public_two) =
        (pass(&one, at_server(7), &meeting)?, pass(&two, at_server(7), &meeting)?);
    // Each has to have sent to the other's address before it hears anything from there.
    one.send_to(b"punch", public_two)?;
    two.send_to(b"punch", public_one)?;
    assert_eq!(one.recv_from(&mut [0; 16])?.1, public_two, "by its public endpoint");
    assert_eq!(pass(&one, public_two, &two)?, public_one);

    let said =
        lab.client(1).check(["curl", "-sS", "-m", "10", "--fail", &format!("http://{eip}/")])?;
    assert!(said.starts_with(&format!("{eip}:")), "a forward is reached by hairpin: {said}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn in_profile_aws_hairpinning_is_off() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let eip = lab.eip();
    let gateway = lab.start_natgw(&format!(
        "{}\n[[forward]]\nprotocol = \"tcp\"\npublic = \"{eip}:80\"\nprivate = \"10.0.1.6:8080\"\n",
        lab.config()
    ))?;
    assert!(connect(lab.client(1), SocketAddr::from((eip, 80)), QUIET).is_err());
    assert!(gateway.counter("drops.hairpin_off")? >= 1);
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn exhaustion_is_told_in_profile_rfc_and_silent_in_aws(
    #[values("rfc", "aws")] profile: &str,
) -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let pool = format!("addresses = [\"{}\"]\nports = \"20000-20001\"", lab.eip());
    let config = lab
        .config_with_pool(&format!("{pool}\noverload = false"))
        .replace("[gateway]\n", &format!("[gateway]\nprofile = \"{profile}\"\n"));
    let seven = udp(lab.server(), 7)?;
    let gateway = lab.start_natgw(&config)?;
    let open = [udp(lab.client(1), 0)?, udp(lab.client(1), 0)?];
    for socket in &open {
        pass(socket, at_server(7), &seven)?;
    }
    let inside = Sniffer::start(lab.client(1), "eth0")?;
    udp(lab.client(1), 0)?.send_to(b"one too many", at_server(7))?;
    gateway.wait_for(&["counters"], SOON, |counters| counters["error_port_allocation"] == 1)?;
    let is_refusal = |frame: &Frame| {
        frame.protocol() == Some(1) && frame.ipv4().is_some_and(|packet| packet[20..22] == [3, 13])
    };
    if profile == "rfc" {
        let told = inside.wait_for(SOON, is_refusal)?;
        assert_eq!(told.source(), Some(Ipv4Addr::new(10, 0, 1, 1)), "the receiving interface's");
    } else {
        inside.settle(QUIET)?;
        assert_eq!(inside.stop()?.iter().filter(|frame| is_refusal(frame)).count(), 0);
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_host_keeps_one_address_of_the_pool_for_all_its_sessions() -> Result<()> {
    let lab = Wiring::TwoArmed.lab_with(LabOptions { clients: 8, ..LabOptions::default() })?;
    let names = dns::DnsServer::start(lab.server(), 53)?;
    let first = lab.eip().to_bits();
    let addresses: Vec<Ipv4Addr> = (0..4).map(|n| Ipv4Addr::from(first + n)).collect();
    let quoted: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let gateway = lab.start_natgw(&lab.config_with_pool(&format!("addresses = {quoted:?}")))?;
    for number in 1..=8 {
        for _ in 0..5 {
            let exchanges = dns::exchange(lab.client(number), at_server(names.port()), 1, SOON)?;
            assert_eq!(exchanges.lost(), 0);
        }
    }
    let flows = gateway.json(&["flows"])?;
    let mut used = BTreeSet::new();
    for number in 1..=8 {
        let host = client_address(number);
        let public: BTreeSet<Ipv4Addr> = flows
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|flow| {
                let end = |key: &str| flow[key].as_str()?.parse::<SocketAddrV4>().ok();
                (*end("private")?.ip() == host).then_some(*end("public")?.ip())
            })
            .collect();
        assert_eq!(public.len(), 1, "{host} has {public:?}");
        used.extend(public);
    }
    assert!(used.len() > 1, "eight hosts share the pool: {used:?}");
    assert!(used.iter().all(|address| addresses.contains(address)), "{used:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_connection_whose_session_is_gone_is_reset_in_profile_aws() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    echo_server(lab.server(), 7)?;
    let gateway = lab.start_natgw(&lab.config())?;
    let mut stream = connect(lab.client(1), at_server(7), SOON)?;
    echo(&mut stream, b"before")?;
    assert_eq!(gateway.json(&["flows", "flush"])?["flushed"], 1);
    let error = echo(&mut stream, b"after").expect_err("the session is gone");
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
fn a_sender_with_checksum_offload_is_named_and_nothing_of_it_leaves() -> Result<()> {
    let lab = Wiring::TwoArmed.lab_with(LabOptions { offloads: true, ..LabOptions::default() })?;
    let seven = udp(lab.server(), 7)?;
    let gateway = lab.start_natgw(&lab.config())?;
    udp(lab.client(1), 0)?.send_to(b"hello", at_server(7))?;
    assert!(hears_nothing(&seven)?);
    gateway.wait_for(&["counters"], SOON, |counters| counters["drops"]["partial_checksum"] == 1)?;
    let status = gateway.json(&["status"])?.to_string();
    assert!(status.contains("ethtool -K"), "the line that mends it: {status}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn an_address_that_another_machine_has_is_failed_and_not_used() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let (first, second) = (lab.eip(), Ipv4Addr::from(lab.eip().to_bits() + 1));
    lab.router().ip_batch(&format!("addr add {first}/32 dev pub0\n"))?;
    let names = dns::DnsServer::start(lab.server(), 53)?;
    let config = lab.config_with_pool(&format!("addresses = [\"{first}\", \"{second}\"]"));
    let gateway = lab.start_natgw(&config)?;
    let states = gateway.wait_for(&["eip", "list"], SOON, |list| list[0]["state"] == "failed")?;
    assert_eq!(states[1]["state"], "active", "{states:#}");
    for number in [1, 2] {
        let exchanges = dns::exchange(lab.client(number), at_server(names.port()), 5, SOON)?;
        assert_eq!((exchanges.lost(), exchanges.seen_as), (0, Some(second)));
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn an_address_that_the_host_loses_is_lost() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let own = Ipv4Addr::new(198, 51, 100, 3);
    lab.gateway().ip_batch(&format!("addr add {own}/24 dev wan0\n"))?;
    let names = dns::DnsServer::start(lab.server(), 53)?;
    let config = lab.config_with_pool(&format!("addresses = [\"{own}\"]"));
    let gateway = lab.start_natgw(&config)?;
    let ask = || dns::exchange(lab.client(1), at_server(names.port()), 1, Duration::from_secs(1));
    assert_eq!(ask()?.seen_as, Some(own));
    lab.gateway().ip_batch(&format!("addr del {own}/24 dev wan0\n"))?;
    gateway.wait_for(&["eip", "list"], SOON, |list| list[0]["state"] == "lost")?;
    assert_eq!(ask()?.answered, 0, "no new sessions");
    assert!(gateway.counter("drops.no_address")? >= 1);
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn an_interface_that_is_made_anew_is_attached_again_with_its_sessions() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    echo_server(lab.server(), 7)?;
    let gateway = lab.start_natgw(&lab.config())?;
    let stream = Stream::start(lab.client(1), at_server(7))?;
    lab.gateway().ip_batch("link del wan0\n")?;
    gateway.wait_for(&["status"], SOON, |status| status["state"] == "degraded")?;
    let sessions = gateway.json(&["flows"])?;
    remake_public_interface(&lab, || Ok(()))?;
    gateway.wait_for(&["status"], SOON, |status| status["state"] == "ready")?;
    stream.wait_for_more(20)?;
    let after = gateway.json(&["flows"])?;
    assert_eq!(after[0]["public"], sessions[0]["public"]);
    stream.finish()?;
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn changes_of_route_neighbour_and_mac_address_count_within_a_second() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    echo_server(lab.server(), 7)?;
    let _gateway = lab.start_natgw(&lab.config())?;
    let stream = Stream::start(lab.client(1), at_server(7))?;
    let within_two_seconds = |what: &str| -> Result<()> {
        let start = std::time::Instant::now();
        stream.wait_for_more(20).with_context(|| what.to_owned())?;
        // TCP's own retransmission may come up to a second after the change was followed.
        if start.elapsed() > Duration::from_secs(4) {
            bail!("{what}: {:?}", start.elapsed());
        }
        Ok(())
    };
    lab.client(1).ip_batch("link set eth0 address 02:4e:50:00:00:99\n")?;
    lab.client(1).check(["arping", "-U", "-c", "1", "-I", "eth0", "10.0.1.5"])?;
    within_two_seconds("the client's MAC address")?;
    lab.router().ip_batch("link set pub0 address 02:4e:30:00:00:99\n")?;
    lab.router().check(["arping", "-U", "-c", "1", "-I", "pub0", "198.51.100.1"])?;
    within_two_seconds("the router's MAC address")?;
    lab.router().ip_batch("addr add 198.51.100.7/24 dev pub0\n")?;
    lab.gateway().ip_batch("route replace default via 198.51.100.7\n")?;
    within_two_seconds("the default route")?;
    stream.finish()?;
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_host_opens_no_more_sessions_than_its_limit() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let pool = format!("addresses = [\"{}\"]\nsessions_per_host = 3", lab.eip());
    let gateway = lab.start_natgw(&lab.config_with_pool(&pool))?;
    let path = Path::outward(&lab)?;
    let frames: Vec<_> = (0..5)
        .flat_map(|n| [path.udp(5000 + n, 9, b"x"), path.tcp(5000 + n, 9, flag::SYN, &[])])
        .collect();
    xtask::lab::send_frames(lab.client(1), "eth0", &frames)?;
    let counters = gateway
        .wait_for(&["counters"], SOON, |counters| counters["drops"]["session_limit"] == 4)?;
    assert_eq!(counters["sessions"], 6, "3 of each protocol: {counters:#}");
    let rows = |flows: &Value| flows.as_array().map(Vec::len);
    assert_eq!(rows(&gateway.json(&["flows", "--protocol", "udp"])?), Some(3));
    Ok(())
}
