//! What happens to the network under a running gateway: links that go, come back and change, more
//! than one of each side, and routes that look at more than the destination.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use nat_tests::links::{
    remake_private_interface, remake_public_interface, second_private_link, second_public_link,
};
use nat_tests::stream::{Stream, echo_server};
use nat_tests::wiring::{SOON, Wiring, at_server};
use nix::sys::signal::Signal;
use rstest::rstest;
use xtask::lab::{Frame, Lab, Namespace, SERVER, SERVER_2, Sniffer, client_address, dns};

/// One question, answered: the address that the server saw.
fn asked(from: &Namespace, server: Ipv4Addr, port: u16) -> Result<Option<Ipv4Addr>> {
    let exchange = dns::exchange(from, (server, port).into(), 5, SOON)?;
    anyhow::ensure!(exchange.lost() == 0, "{} of 5 lost towards {server}", exchange.lost());
    Ok(exchange.seen_as)
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_private_interface_that_goes_down_and_up_or_is_made_anew_keeps_its_sessions(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    echo_server(lab.server(), 7)?;
    let gateway = lab.start_natgw(&lab.config())?;
    let stream = Stream::start(lab.client(1), at_server(7))?;
    let before = gateway.json(&["flows"])?;
    let name = lab.private_interface();
    let route = format!("route replace default via {}\n", wiring.next_hop());
    lab.gateway().ip_batch(&format!("link set {name} down\n"))?;
    lab.gateway().ip_batch(&format!("link set {name} up\n{route}"))?;
    stream.wait_for_more(20).context("after down and up")?;

    remake_private_interface(&lab, wiring.next_hop(), || {
        gateway.wait_for(&["status"], SOON, |status| status["state"] == "degraded").map(drop)
    })?;
    gateway.wait_for(&["status"], SOON, |status| status["state"] == "ready")?;
    stream.wait_for_more(20).context("after it was made anew")?;
    assert_eq!(gateway.json(&["flows"])?[0]["public"], before[0]["public"]);
    stream.finish()?;
    Ok(())
}

/// Questions that came while the daemon was halted are answered before it hears of the links.
#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_gateway_is_ready_no_sooner_than_it_serves_the_interface_that_was_made_anew() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let names = dns::DnsServer::start(lab.server(), 53)?;
    let mut gateway = lab.start_natgw(&lab.config())?;
    for round in 0..5 {
        gateway.signal(Signal::SIGSTOP)?;
        remake_public_interface(&lab, || Ok(()))?;
        gateway.signal(Signal::SIGCONT)?;
        gateway.wait_for(&["status"], SOON, |status| status["state"] == "ready")?;
        let link = lab.gateway().check(["ip", "link", "show", "dev", "wan0"])?;
        assert!(link.contains("xdp"), "round {round}: ready, and not attached: {link}");
        let status = gateway.json(&["status"])?;
        assert_eq!(status["interfaces"][0]["state"], "attached", "{status:#}");
        assert_eq!(asked(lab.client(1), SERVER, names.port())?, Some(lab.eip()));
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_change_of_mtu_counts_while_traffic_runs() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    echo_server(lab.server(), 7)?;
    let _gateway = lab.start_natgw(&lab.config())?;
    let stream = Stream::start(lab.client(1), at_server(7))?;
    let server = SERVER.to_string();
    let full = ["ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", "1472", &server];
    lab.client(2).check(full)?;

    lab.gateway().ip_batch("link set wan0 mtu 1300\n")?;
    let start = std::time::Instant::now();
    loop {
        let said = lab.client(2).run(full)?;
        let said = format!("{}{}", said.stdout, said.stderr);
        if said.contains("mtu = 1300") || said.contains("mtu=1300") {
            break;
        }
        anyhow::ensure!(start.elapsed() < SOON, "nobody is told of the new MTU: {said}");
    }
    stream.wait_for_more(20).context("with the smaller MTU")?;

    lab.gateway().ip_batch("link set wan0 mtu 1500\n")?;
    lab.client(2).check(["ip", "route", "flush", "cache"])?;
    lab.client(2).retry(SOON, full).context("as large as before")?;
    stream.finish()?;
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_change_of_the_gateways_own_mac_addresses_is_announced() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    echo_server(lab.server(), 7)?;
    let _gateway = lab.start_natgw(&lab.config())?;
    let stream = Stream::start(lab.client(1), at_server(7))?;
    lab.gateway().ip_batch("link set wan0 address 02:4e:20:00:00:99\n")?;
    stream.wait_for_more(20).context("outside")?;
    lab.gateway().ip_batch("link set lan0 address 02:4e:20:00:00:98\n")?;
    // Of the host's own address, as network managers do.
    lab.gateway().check(["arping", "-U", "-c", "1", "-I", "lan0", "10.0.1.1"])?;
    stream.wait_for_more(20).context("inside")?;
    stream.finish()?;
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn hosts_of_several_private_interfaces_are_translated_and_reach_each_other() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let names = dns::DnsServer::start(lab.server(), 53)?;
    let neighbours = dns::DnsServer::start(lab.client(2), 53)?;
    second_private_link(&lab, 2)?;
    let config = lab
        .config()
        .replace("private = [\"lan0\"]", "private = [\"lan0\", \"lan1\"]")
        .replace("[\"10.0.1.0/24\"]", "[\"10.0.1.0/24\", \"10.0.2.0/24\"]");
    let gateway = lab.start_natgw(&config)?;
    for client in [1, 2] {
        assert_eq!(asked(lab.client(client), SERVER, names.port())?, Some(lab.eip()));
    }
    let flows = gateway.json(&["flows", "--private", "10.0.2.5"])?;
    assert!(flows.as_array().is_some_and(|rows| !rows.is_empty()), "{flows:#}");
    let inside = asked(lab.client(1), Ipv4Addr::new(10, 0, 2, 5), neighbours.port())?;
    assert_eq!(inside, Some(client_address(1)), "row 7: untranslated");
    Ok(())
}

/// Two pools, each for its public interface; the first client has the first one.
fn two_pools(lab: &Lab) -> String {
    format!(
        "[gateway]\npublic = [\"wan0\", \"wan1\"]\nprivate = [\"lan0\"]\nxdp_mode = \"native\"\n\
         sessions = 131072\n\
         [[pool]]\nname = \"first\"\naddresses = [\"{}\"]\ninterface = \"wan0\"\n\
         [[pool]]\nname = \"second\"\naddresses = [\"198.18.0.10\"]\ninterface = \"wan1\"\n\
         [[snat]]\nsource = [\"10.0.1.5/32\"]\npool = \"first\"\n\
         [[snat]]\nsource = [\"10.0.1.6/32\"]\npool = \"second\"\n",
        lab.eip()
    )
}

/// A datagram from the client to this address of the server, and its answer: whom the server saw.
fn met(lab: &Lab, client: u8, server: Ipv4Addr) -> Result<Option<Ipv4Addr>> {
    let at = |namespace: &Namespace, address| -> Result<UdpSocket> {
        let socket = namespace.enter(|| UdpSocket::bind((address, 7000)))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        Ok(socket)
    };
    let inside = at(lab.client(client), client_address(client))?;
    let outside = at(lab.server(), server)?;
    inside.send_to(b"hello", (server, 7000))?;
    let mut buffer = [0; 16];
    let Ok((_, seen)) = outside.recv_from(&mut buffer) else { return Ok(None) };
    outside.send_to(b"answer", seen)?;
    let (_, from) = inside.recv_from(&mut buffer).context("the answer")?;
    assert_eq!(from.ip(), server);
    Ok(Some(seen.ip()).map(|ip| match ip {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }))
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn of_several_public_interfaces_the_route_decides_and_a_pool_serves_its_own() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    second_public_link(&lab)?;
    lab.gateway().ip_batch(&format!("route add {SERVER_2} via 198.18.0.1\n"))?;
    let gateway = lab.start_natgw(&two_pools(&lab))?;
    assert_eq!(met(&lab, 1, SERVER)?, Some(lab.eip()));
    assert_eq!(met(&lab, 2, SERVER_2)?, Some(Ipv4Addr::new(198, 18, 0, 10)));
    // By the other interface neither pool serves, and nothing leaves.
    let outside = [Sniffer::start(lab.router(), "pub0")?, Sniffer::start(lab.router(), "pub1")?];
    assert_eq!(met(&lab, 1, SERVER_2)?, None);
    assert_eq!(met(&lab, 2, SERVER)?, None);
    assert_eq!(gateway.counter("drops.pool_interface")?, 2);
    for sniffer in outside {
        let left = |frame: &Frame| !frame.outgoing && frame.protocol() == Some(17);
        assert_eq!(sniffer.stop()?.into_iter().filter(left).count(), 0);
    }

    // The route moves while the gateway runs.
    lab.gateway().ip_batch(&format!("route replace {SERVER_2} via 198.51.100.1\n"))?;
    assert_eq!(met(&lab, 1, SERVER_2)?, Some(lab.eip()));
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn routing_rules_by_source_and_by_port_are_followed() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let _names = [53, 5353].map(|port| dns::DnsServer::start(lab.server(), port));
    second_public_link(&lab)?;
    lab.gateway().ip_batch(
        "route add default via 198.18.0.1 dev wan1 table 100\n\
         rule add from 10.0.1.6 lookup 100\n\
         rule add ipproto udp dport 5353 lookup 100\n",
    )?;
    let config = lab.config().replace("[\"wan0\"]", "[\"wan0\", \"wan1\"]");
    let _gateway = lab.start_natgw(&config)?;
    for (client, port, way, other) in
        [(1, 53, "pub0", "pub1"), (2, 53, "pub1", "pub0"), (1, 5353, "pub1", "pub0")]
    {
        let left = |frame: &Frame| {
            !frame.outgoing && frame.destination() == Some(SERVER) && frame.protocol() == Some(17)
        };
        let (by, not_by) =
            (Sniffer::start(lab.router(), way)?, Sniffer::start(lab.router(), other)?);
        assert_eq!(asked(lab.client(client), SERVER, port)?, Some(lab.eip()));
        by.wait_for_count(SOON, 5, left).with_context(|| format!("client {client} to {port}"))?;
        assert_eq!(not_by.stop()?.into_iter().filter(left).count(), 0, "client {client} to {port}");
    }
    Ok(())
}
