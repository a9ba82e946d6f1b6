//! What the configuration promises: forwards, one-to-one addresses, exempt destinations, and the
//! eight rows of "What happens to a packet", two-armed and one-armed, whatever the host's own
//! forwarding was set to.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Result};
use nat_tests::frames::{Path, flag};
use nat_tests::stream::{connect, echo, echo_server};
use nat_tests::wiring::{QUIET, SOON, Wiring, at_server};
use rstest::rstest;
use xtask::lab::{
    GATEWAY_PRIVATE, Lab, LabOptions, Namespace, SERVER, SERVER_2, Sniffer, client_address, dns,
    http, send_frames,
};

fn lab(wiring: Wiring, ip_forward: bool) -> Result<Lab> {
    wiring.lab_with(LabOptions { ip_forward, gro: false, ..LabOptions::default() })
}

/// The address, `offset` behind the pool's, that no rule uses.
fn spare(lab: &Lab, offset: u32) -> Ipv4Addr {
    Ipv4Addr::from(lab.eip().to_bits() + offset)
}

/// Who the web server at `url` believes to speak to.
fn seen_by(from: &Namespace, url: &str) -> Result<SocketAddr> {
    let said = from.check(["curl", "-sS", "-m", "10", "--fail", url])?;
    said.trim().parse().with_context(|| format!("{url} answered {said:?}"))
}

fn at(address: impl Into<std::net::IpAddr>, port: u16) -> String {
    format!("http://{}/", SocketAddr::new(address.into(), port))
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_forward_leads_callers_from_outside_to_the_private_port(
    #[values(Wiring::TwoArmed, Wiring::OneArmed, Wiring::Jumbo)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let eip = lab.eip();
    let _inside = http::HttpServer::start(lab.client(1), 8443)?;
    let gateway = lab.start_natgw(&format!(
        "{}\n[[forward]]\nprotocol = \"tcp\"\npublic = \"{eip}:443\"\nprivate = \"10.0.1.5:8443\"\n",
        lab.config()
    ))?;
    assert_eq!(seen_by(lab.server(), &at(eip, 443))?.ip(), SERVER, "the caller's own address");
    let flows = gateway.json(&["flows", "--public", &format!("{eip}:443")])?;
    assert_eq!(flows[0]["private"], "10.0.1.5:8443", "{flows}");

    // A transfer each way over it, and the private port itself stays unreachable.
    let url = format!("http://{eip}:443/bytes/1000000");
    let file = lab.dir().join("got");
    let path = file.display().to_string();
    lab.server().check(["curl", "-sS", "-m", "20", "--fail", "-o", &path, &url])?;
    assert_eq!(http::file_digest(&file)?, http::content_digest(1_000_000));
    let upload = ["curl", "-sS", "-m", "20", "--fail", "-T", &path, &at(eip, 443)];
    assert_eq!(lab.server().check(upload)?.trim(), http::content_digest(1_000_000));
    assert!(connect(lab.server(), SocketAddr::from((eip, 8443)), QUIET).is_err());
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_range_of_ports_is_forwarded_port_by_port(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
    #[values("tcp", "udp")] protocol: &str,
) -> Result<()> {
    let lab = wiring.lab()?;
    let eip = lab.eip();
    let _gateway = lab.start_natgw(&format!(
        "{}\n[[forward]]\nprotocol = \"{protocol}\"\npublic = \"{eip}:8000-8010\"\n\
         private = \"10.0.1.5:9000-9010\"\n",
        lab.config()
    ))?;
    for offset in [0, 3, 10] {
        let (public, private) = (8000 + offset, 9000 + offset);
        if protocol == "tcp" {
            let _inside = http::HttpServer::start(lab.client(1), private)?;
            assert_eq!(seen_by(lab.server(), &at(eip, public))?.ip(), SERVER);
        } else {
            let _inside = dns::DnsServer::start(lab.client(1), private)?;
            let exchanges = dns::exchange(lab.server(), SocketAddr::from((eip, public)), 20, SOON)?;
            assert_eq!((exchanges.lost(), exchanges.seen_as), (0, Some(SERVER)));
        }
    }
    let beyond = SocketAddr::from((eip, 8011));
    if protocol == "tcp" {
        let _inside = http::HttpServer::start(lab.client(1), 9011)?;
        assert!(connect(lab.server(), beyond, QUIET).is_err(), "8011 is not in the range");
    } else {
        let _inside = dns::DnsServer::start(lab.client(1), 9011)?;
        assert_eq!(dns::exchange(lab.server(), beyond, 1, QUIET)?.answered, 0);
    }
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_forwarded_port_is_never_given_to_an_outgoing_session(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let eip = lab.eip();
    let names = dns::DnsServer::start(lab.server(), 53)?;
    let gateway = lab.start_natgw(&format!(
        "{}\n[[forward]]\nprotocol = \"udp\"\npublic = \"{eip}:5353\"\nprivate = \"10.0.1.6:53\"\n",
        lab.config()
    ))?;
    let socket = lab.client(1).enter(|| UdpSocket::bind("0.0.0.0:5353"))?;
    socket.set_read_timeout(Some(SOON))?;
    socket.connect(at_server(names.port()))?;
    socket.send(&[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1])?;
    socket.recv(&mut [0; 512]).context("the answer")?;
    let flows = gateway.json(&["flows", "--private", "10.0.1.5:5353"])?;
    assert_eq!(flows.as_array().map(Vec::len), Some(1), "{flows}");
    assert_ne!(flows[0]["public"], format!("{eip}:5353"));
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_one_to_one_address_belongs_to_its_host_both_ways(
    #[values(Wiring::TwoArmed, Wiring::OneArmed, Wiring::Jumbo)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let own = spare(&lab, 5);
    let _outside = http::HttpServer::start(lab.server(), 80)?;
    let _inside = http::HttpServer::start(lab.client(2), 7777)?;
    let gateway = lab.start_natgw(&format!(
        "{}\n[[one_to_one]]\npublic = \"{own}\"\nprivate = \"10.0.1.6\"\n",
        lab.config()
    ))?;
    assert_eq!(seen_by(lab.client(2), &at(SERVER, 80))?.ip(), own);
    assert_eq!(seen_by(lab.client(1), &at(SERVER, 80))?.ip(), lab.eip());
    assert_eq!(seen_by(lab.server(), &at(own, 7777))?.ip(), SERVER);
    let (own, server) = (own.to_string(), SERVER.to_string());
    lab.server().check(["ping", "-n", "-c", "2", "-i", "0.05", "-W", "5", &own])?;
    lab.client(2).check(["ping", "-n", "-c", "2", "-i", "0.05", "-W", "5", &server])?;
    let flows = gateway.json(&["flows", "--private", "10.0.1.6"])?;
    assert_eq!(flows, serde_json::json!([]), "one-to-one mappings keep no sessions");
    Ok(())
}

/// Gives the router a way back to `prefix` that leads through the gateway.
fn way_back(lab: &Lab, wiring: Wiring, prefix: &str) -> Result<()> {
    if wiring.is_one_armed() && prefix == "10.0.1.0/24" {
        return Ok(());
    }
    lab.router().ip_batch(&format!("route add {prefix} via {}\n", wiring.gateway_outside()))
}

fn exempting(lab: &Lab) -> String {
    format!("{}exempt = [\"{SERVER_2}/32\"]\n", lab.config())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn an_exempt_destination_is_reached_untranslated_and_reaches_back(
    #[values(Wiring::TwoArmed, Wiring::OneArmed, Wiring::Jumbo)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    way_back(&lab, wiring, "10.0.1.0/24")?;
    let _outside = http::HttpServer::start(lab.server(), 80)?;
    let _inside = http::HttpServer::start(lab.client(1), 80)?;
    let _gateway = lab.start_natgw(&exempting(&lab))?;
    assert_eq!(seen_by(lab.client(1), &at(SERVER_2, 80))?.ip(), client_address(1));
    assert_eq!(seen_by(lab.client(1), &at(SERVER, 80))?.ip(), lab.eip(), "others are translated");
    let url = at(client_address(1), 80);
    let source = SERVER_2.to_string();
    let said =
        lab.server().check(["curl", "-sS", "-m", "10", "--fail", "--interface", &source, &url])?;
    assert!(said.starts_with(&source), "{said}");
    Ok(())
}

/// Row 1.
#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn other_protocols_broadcast_and_multicast_are_the_hosts(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
    #[values(false, true)] ip_forward: bool,
) -> Result<()> {
    let lab = lab(wiring, ip_forward)?;
    let _gateway = lab.start_natgw(&lab.config())?;
    // Sockets and packet sockets of the host see only what the program let through.
    let host = Sniffer::start(lab.gateway(), lab.private_interface())?;
    let path = Path::outward(&lab)?;
    let to = |address: [u8; 4], mac: [u8; 6]| {
        let to = Path { destination: Ipv4Addr::from(address), destination_mac: mac, ..path };
        to.udp(68, 67, b"as a host asks by DHCP")
    };
    let mut other = vec![0xff; 6];
    other.extend(path.source_mac);
    other.extend([0x88, 0xb5]);
    other.extend([7; 46]);
    let frames = [
        to([255; 4], [0xff; 6]),
        to([10, 0, 1, 255], [0xff; 6]),
        to([224, 0, 0, 251], [1, 0, 0x5e, 0, 0, 0xfb]),
        to([169, 254, 7, 7], path.destination_mac),
        other,
    ];
    send_frames(lab.client(1), "eth0", &frames)?;
    for frame in &frames {
        host.wait_for(SOON, |seen| !seen.outgoing && seen.bytes == *frame)
            .with_context(|| format!("the host did not get {frame:02x?}"))?;
    }

    lab.client(1).check(["arping", "-c", "1", "-w", "5", "-I", "eth0", "10.0.1.1"])?;
    Ok(())
}

/// Row 1, the pool address.
#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_pool_address_that_nobody_owns_answers_arp_on_the_outside(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
    #[values(false, true)] ip_forward: bool,
) -> Result<()> {
    let lab = lab(wiring, ip_forward)?;
    let (router, interface) = lab.outside();
    let announced = Sniffer::start(router, interface)?;
    let gateway = lab.start_natgw(&lab.config())?;
    let eip = lab.eip();
    announced
        .wait_for(SOON, |frame| {
            // An ARP packet whose sender and target address are the pool's.
            frame.bytes.get(12..14) == Some(&[8, 6])
                && frame.bytes.get(28..32) == Some(&eip.octets())
                && frame.bytes.get(38..42) == Some(&eip.octets())
        })
        .context("it is announced at the start")?;
    let said = router.check(["arping", "-c", "1", "-w", "5", "-I", interface, &eip.to_string()])?;
    let mac = lab.gateway().interface(lab.public_interface())?.mac;
    let mac: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(said.to_lowercase().contains(&mac.join(":")), "{said}");
    assert!(gateway.counter("packets_answered")? >= 1);
    Ok(())
}

/// Row 2.
#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_live_session_is_translated_both_ways(
    #[values(Wiring::TwoArmed, Wiring::OneArmed, Wiring::TwoArmedTc)] wiring: Wiring,
    #[values(false, true)] ip_forward: bool,
) -> Result<()> {
    let lab = lab(wiring, ip_forward)?;
    let to = echo_server(lab.server(), 7).map(|_| at_server(7))?;
    let gateway = lab.start_natgw(&lab.config())?;
    let mut stream = connect(lab.client(1), to, SOON)?;
    for round in 0..50 {
        echo(&mut stream, format!("round {round}").as_bytes())?;
    }
    let flows = gateway.json(&["flows"])?;
    let [flow] = flows.as_array().context("an array")?.as_slice() else {
        panic!("one session: {flows}");
    };
    assert_eq!(flow["private"], stream.local_addr()?.to_string());
    assert_eq!(flow["state"], "established");
    assert!(flow["packets_out"].as_u64() > Some(50) && flow["packets_in"].as_u64() > Some(50));
    Ok(())
}

/// Row 3, nobody inside.
#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn what_nobody_asked_for_ends_at_the_pool_address(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
    #[values(false, true)] ip_forward: bool,
) -> Result<()> {
    let lab = lab(wiring, ip_forward)?;
    let gateway = lab.start_natgw(&lab.config())?;
    let inside = Sniffer::start(lab.client(1), "eth0")?;
    let host = Sniffer::start(lab.gateway(), lab.public_interface())?;
    let path = Path::inward(&lab)?;
    let frames = [
        path.udp(53, 40_000, b"unasked"),
        path.tcp(80, 40_001, flag::SYN, &[]),
        path.tcp(80, 40_002, flag::ACK, b"unasked"),
        path.echo_request(7, 1),
        path.raw(47, &[0; 32]),
    ];
    let (router, interface) = lab.outside();
    send_frames(router, interface, &frames)?;
    gateway.wait_for(&["counters"], SOON, |counters| counters["packets_drop_count"] == 5)?;
    inside.settle(QUIET)?;
    let eip = lab.eip();
    for frame in inside.stop()?.iter().chain(&host.stop()?) {
        let arp = frame.bytes.get(12..14) == Some(&[8, 6]);
        assert!(arp || frame.source() != Some(SERVER), "{frame:02x?}");
        assert!(arp || frame.source() != Some(eip), "an answer: {frame:02x?}");
    }
    Ok(())
}

/// Row 3, an address of the host's own.
#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_pool_address_of_the_host_still_serves_the_hosts_own_ports(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
    #[values(false, true)] ip_forward: bool,
) -> Result<()> {
    let lab = lab(wiring, ip_forward)?;
    let own = wiring.gateway_outside();
    echo_server(lab.gateway(), 22)?;
    let _web = http::HttpServer::start(lab.server(), 80)?;
    let config = lab.config_with_pool(&format!("addresses = [\"{own}\"]"));
    let _gateway = lab.start_natgw(&config)?;
    let ssh = SocketAddr::from((own, 22));
    for from in [lab.server(), lab.client(1)] {
        echo(&mut connect(from, ssh, SOON)?, b"to the host itself")?;
    }
    assert_eq!(seen_by(lab.client(1), &at(SERVER, 80))?.ip(), own, "and translates");
    let own = own.to_string();
    lab.server().check(["ping", "-n", "-c", "1", "-W", "5", &own])?;
    // The host's own connections from that address.
    assert_eq!(seen_by(lab.gateway(), &at(SERVER, 80))?.ip().to_string(), own);
    let server = SERVER.to_string();
    lab.gateway().check(["ping", "-n", "-c", "1", "-W", "5", &server])?;
    Ok(())
}

/// Row 4.
#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn the_hosts_own_addresses_stay_the_hosts(
    #[values(Wiring::TwoArmed, Wiring::OneArmed, Wiring::TwoArmedTc)] wiring: Wiring,
    #[values(false, true)] ip_forward: bool,
) -> Result<()> {
    let lab = lab(wiring, ip_forward)?;
    echo_server(lab.gateway(), 22)?;
    let names = dns::DnsServer::start(lab.gateway(), 53)?;
    let gateway = lab.start_natgw(&lab.config())?;
    let inside = SocketAddr::from((GATEWAY_PRIVATE, 22));
    echo(&mut connect(lab.client(1), inside, SOON)?, b"ssh from inside")?;
    let resolver = SocketAddr::from((GATEWAY_PRIVATE, names.port()));
    let exchanges = dns::exchange(lab.client(1), resolver, 20, SOON)?;
    assert_eq!((exchanges.lost(), exchanges.seen_as), (0, Some(client_address(1))));
    let outside = SocketAddr::from((wiring.gateway_outside(), 22));
    echo(&mut connect(lab.router(), outside, SOON)?, b"ssh from outside")?;
    lab.client(1).check(["ping", "-n", "-c", "1", "-W", "5", "10.0.1.1"])?;
    assert_eq!(gateway.json(&["flows"])?, serde_json::json!([]));
    Ok(())
}

/// Row 5.
#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_one_to_one_source_is_translated_whatever_it_sends(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
    #[values(false, true)] ip_forward: bool,
) -> Result<()> {
    let lab = lab(wiring, ip_forward)?;
    let own = spare(&lab, 5);
    let gateway = lab.start_natgw(&format!(
        "{}\n[[one_to_one]]\npublic = \"{own}\"\nprivate = \"10.0.1.5\"\n",
        lab.config()
    ))?;
    let path = Path::outward(&lab)?;
    let (router, interface) = lab.outside();
    let outside = Sniffer::start(router, interface)?;
    let frames = [
        path.raw(47, &[0; 32]),
        path.raw(50, &[1; 32]),
        path.tcp(40_000, 80, flag::ACK, b"midstream"),
        path.udp(40_000, 9, b"a datagram"),
        path.echo_reply(9, 9),
    ];
    send_frames(lab.client(1), "eth0", &frames)?;
    for protocol in [47, 50, 6, 17, 1] {
        let seen = outside
            .wait_for(SOON, |frame| {
                frame.destination() == Some(SERVER) && frame.protocol() == Some(protocol)
            })
            .with_context(|| format!("protocol {protocol}"))?;
        assert_eq!(seen.source(), Some(own), "protocol {protocol}");
    }
    assert_eq!(gateway.counter("packets_drop_count")?, 0);
    Ok(())
}

/// Row 6.
#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn exempt_destinations_are_forwarded_by_the_host(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
    #[values(false, true)] ip_forward: bool,
) -> Result<()> {
    let lab = lab(wiring, ip_forward)?;
    way_back(&lab, wiring, "10.0.1.0/24")?;
    let _outside = http::HttpServer::start(lab.server(), 80)?;
    let gateway = lab.start_natgw(&exempting(&lab))?;
    assert_eq!(seen_by(lab.client(1), &at(SERVER_2, 80))?.ip(), client_address(1));
    let second = SERVER_2.to_string();
    lab.client(1).check(["ping", "-n", "-c", "1", "-W", "5", &second])?;
    assert_eq!(gateway.json(&["flows"])?, serde_json::json!([]));
    assert_eq!(gateway.counter("packets_guarded")?, 0);
    Ok(())
}

/// Row 7, out by a public interface.
#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_covered_source_gets_a_session_or_a_reason(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
    #[values(false, true)] ip_forward: bool,
) -> Result<()> {
    let lab = lab(wiring, ip_forward)?;
    let gateway = lab.start_natgw(&lab.config())?;
    let path = Path::outward(&lab)?;
    let inside = Sniffer::start(lab.client(1), "eth0")?;
    let frames = [
        path.udp(40_000, 9, b"opens"),
        path.tcp(40_001, 9, flag::SYN, &[]),
        path.echo_request(40_002, 1),
        path.tcp(40_003, 9, flag::RST, &[]),
        path.raw(47, &[0; 32]),
        path.tcp(40_004, 9, flag::ACK, b"stray"),
    ];
    send_frames(lab.client(1), "eth0", &frames)?;
    inside
        .wait_for(SOON, |frame| {
            // In profile aws a stray segment is answered by a reset.
            frame.source() == Some(SERVER)
                && frame.bytes.get(36..38) == Some(&40_004_u16.to_be_bytes())
                && frame.bytes.get(47).is_some_and(|flags| flags & flag::RST != 0)
        })
        .context("the stray segment is answered by a RST")?;
    let counters =
        gateway.wait_for(&["counters"], SOON, |counters| counters["packets_drop_count"] == 2)?;
    assert_eq!(counters["drops"]["tcp_no_session"], 1, "the RST: {counters:#}");
    assert_eq!(counters["drops"]["protocol_unsupported"], 1, "GRE: {counters:#}");
    assert_eq!(counters["packets_out_to_destination"], 3, "{counters:#}");
    assert_eq!(gateway.json(&["flows"])?.as_array().map(Vec::len), Some(3));
    Ok(())
}

/// Row 7, out by a private interface.
#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn traffic_between_private_networks_is_the_hosts_to_forward(
    #[values(false, true)] ip_forward: bool,
) -> Result<()> {
    let lab = lab(Wiring::TwoArmed, ip_forward)?;
    lab.client(2).ip_batch("addr add 192.0.2.1/32 dev lo\n")?;
    lab.gateway().ip_batch("route add 192.0.2.0/24 via 10.0.1.6\n")?;
    let _web = http::HttpServer::start(lab.client(2), 80)?;
    let gateway = lab.start_natgw(&lab.config())?;
    let seen = seen_by(lab.client(1), &at(Ipv4Addr::new(192, 0, 2, 1), 80))?;
    assert_eq!(seen.ip(), client_address(1), "untranslated");
    assert_eq!(gateway.json(&["flows"])?, serde_json::json!([]));
    assert_eq!(gateway.counter("packets_drop_count")?, 0);
    Ok(())
}

/// Row 8.
#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn what_no_rule_covers_is_the_hosts_to_forward(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
    #[values(false, true)] ip_forward: bool,
) -> Result<()> {
    let lab = lab(wiring, ip_forward)?;
    lab.client(2).ip_batch("addr add 172.16.0.6/24 dev eth0\n")?;
    let interface = lab.private_interface();
    lab.gateway().ip_batch(&format!("addr add 172.16.0.1/24 dev {interface}\n"))?;
    way_back(&lab, wiring, "172.16.0.0/24")?;
    let _outside = http::HttpServer::start(lab.server(), 80)?;
    let _inside = http::HttpServer::start(lab.client(2), 80)?;
    let gateway = lab.start_natgw(&lab.config())?;
    let url = at(SERVER, 80);
    let argv = ["curl", "-sS", "-m", "10", "--fail", "--interface", "172.16.0.6", &url];
    let said = lab.client(2).check(argv)?;
    assert!(said.starts_with("172.16.0.6:"), "{said}");
    let uncovered = Ipv4Addr::new(172, 16, 0, 6);
    assert_eq!(seen_by(lab.server(), &at(uncovered, 80))?.ip(), SERVER);
    assert_eq!(gateway.json(&["flows"])?, serde_json::json!([]));
    assert_eq!(gateway.counter("packets_guarded")?, 0);
    Ok(())
}
