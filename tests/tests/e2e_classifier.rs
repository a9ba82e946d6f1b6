//! What an independent program takes the gateway for: coturn's `turnutils_natdiscovery`, which asks
//! coturn's server at two addresses and two ports (RFC 5780). In every judgement the port that the
//! client binds is in use already on the public address, towards all four endpoints of the server:
//! a gateway that keeps source ports where it can would pass as endpoint-independent otherwise.

use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nat_tests::wiring::{QUIET, SOON, Wiring};
use xtask::lab::{Gateway, Lab, Process, SERVER, SERVER_2, client_address};

/// The ports of STUN, and the other one of a server that has two.
const STUN_PORTS: [u16; 2] = [3478, 3479];
/// What the client binds, and another host has on the public address before.
const PORT: u16 = 40000;
/// A STUN binding request without attributes (RFC 5389, sections 6 and 18.1).
const BINDING_REQUEST: [u8; 20] = *b"\x00\x01\x00\x00\x21\x12\xa4\x42natgw-lab...";

fn endpoints() -> impl Iterator<Item = SocketAddr> {
    [SERVER, SERVER_2]
        .into_iter()
        .flat_map(|address| STUN_PORTS.map(|port| SocketAddr::from((address, port))))
}

/// A socket of a client.
fn bound(lab: &Lab, client: u8, port: u16) -> Result<UdpSocket> {
    Ok(lab.client(client).enter(|| UdpSocket::bind((client_address(client), port)))?)
}

/// coturn's server, answering on all four endpoints.
fn stun_server(lab: &Lab) -> Result<Process> {
    let file = |name: &str| lab.dir().join(name).to_string_lossy().into_owned();
    let (database, pid) = (file("turn.db"), file("turn.pid"));
    let (first, second) = (SERVER.to_string(), SERVER_2.to_string());
    let mut argv = vec!["turnserver", "-n", "--stun-only", "--no-cli", "--no-tls", "--no-dtls"];
    argv.extend(["--no-tcp", "-L", &first, "-L", &second, "--log-file", "stdout"]);
    argv.extend(["--db", &database, "--pidfile", &pid]);
    let server = lab.server().spawn(argv)?;
    let asking = lab.server().enter(|| UdpSocket::bind((SERVER, 0)))?;
    asking.set_read_timeout(Some(QUIET))?;
    for endpoint in endpoints() {
        let start = Instant::now();
        loop {
            // A refusal of an earlier request is an error of the next call.
            let sent = asking.send_to(&BINDING_REQUEST, endpoint);
            if sent.is_ok() && asking.recv_from(&mut [0; 512]).is_ok_and(|(_, by)| by == endpoint) {
                break;
            }
            if start.elapsed() > SOON {
                bail!("turnserver does not answer at {endpoint}: {:?}", server.output()?);
            }
        }
    }
    Ok(server)
}

/// The same source port of another host is on the public address towards the whole server.
fn collide(lab: &Lab, gateway: &Gateway) -> Result<()> {
    let other = bound(lab, 2, PORT)?;
    for endpoint in endpoints() {
        other.send_to(b"first", endpoint)?;
    }
    let public = format!("{}:{PORT}", lab.eip());
    gateway
        .wait_for(&["flows", "count", "--public", &public], SOON, |flows| flows["count"] == 4)?;
    Ok(())
}

/// What the program says to one question, asked from [`PORT`]; the public endpoints that it was
/// seen as are not that of the other host.
fn judged(lab: &Lab, question: &str) -> Result<String> {
    let (local, port) = (client_address(1).to_string(), PORT.to_string());
    let server = SERVER.to_string();
    let argv = ["turnutils_natdiscovery", question, "-L", &local, "-l", &port, &server];
    let said = lab.client(1).check(argv)?;
    let seen: Vec<SocketAddrV4> = said
        .lines()
        .filter_map(|line| line.split_once("UDP reflexive addr: "))
        .map(|(_, address)| address.trim().parse().context("an address and a port"))
        .collect::<Result<_>>()?;
    assert!(!seen.is_empty(), "no answer of the server: {said}");
    assert!(!said.contains("ALG detected"), "no payload is changed: {said}");
    for endpoint in seen {
        assert!(*endpoint.ip() == lab.eip() && endpoint.port() != PORT, "{endpoint}: {said}");
    }
    Ok(said)
}

fn config(lab: &Lab, profile: &str, pool: &str) -> String {
    lab.config_with_pool(&format!("addresses = [\"{}\"]\n{pool}", lab.eip()))
        .replace("[gateway]\n", &format!("[gateway]\nprofile = \"{profile}\"\n"))
}

const HAIRPINNED: &str = "maybe a successful hairpinning";

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn profile_rfc_is_judged_endpoint_independent_with_address_dependent_filtering() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let _server = stun_server(&lab)?;
    let gateway = lab.start_natgw(&config(&lab, "rfc", ""))?;
    collide(&lab, &gateway)?;
    // Before the other question, which sends to the server's second address.
    let filtering = judged(&lab, "-f")?;
    assert!(filtering.contains("NAT with Address Dependent Filtering!"), "{filtering}");
    let mapping = judged(&lab, "-m")?;
    assert!(mapping.contains("NAT with Endpoint Independent Mapping!"), "{mapping}");

    // The program sends from a second socket to the public endpoint of its first one. Filtering by
    // address admits that once the first has sent to that address itself.
    let filtered = gateway.counter("drops.filtered")?;
    let first = bound(&lab, 1, PORT)?;
    first.send_to(b"to the other host", (lab.eip(), PORT))?;
    drop(first);
    gateway.wait_for(&["counters"], SOON, |counters| {
        counters["drops"]["filtered"].as_u64() > Some(filtered)
    })?;
    let hairpin = judged(&lab, "-H")?;
    assert!(hairpin.contains(HAIRPINNED), "{hairpin}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn endpoint_independent_filtering_is_judged_so_and_hairpins_unasked() -> Result<()> {
    let lab = Wiring::OneArmed.lab()?;
    let _server = stun_server(&lab)?;
    let pool = "filtering = \"endpoint-independent\"";
    let gateway = lab.start_natgw(&config(&lab, "rfc", pool))?;
    collide(&lab, &gateway)?;
    let hairpin = judged(&lab, "-H")?;
    assert!(hairpin.contains(HAIRPINNED), "{hairpin}");
    let filtering = judged(&lab, "-f")?;
    assert!(filtering.contains("NAT with Endpoint Independent Filtering!"), "{filtering}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn profile_aws_is_judged_address_and_port_dependent_without_hairpinning() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let _server = stun_server(&lab)?;
    let gateway = lab.start_natgw(&config(&lab, "aws", ""))?;
    collide(&lab, &gateway)?;
    let mapping = judged(&lab, "-m")?;
    assert!(mapping.contains("NAT with Address and Port Dependent Mapping!"), "{mapping}");
    let filtering = judged(&lab, "-f")?;
    assert!(filtering.contains("NAT with Address and Port Dependent Filtering!"), "{filtering}");
    let hairpin = judged(&lab, "-H")?;
    assert!(!hairpin.contains(HAIRPINNED), "{hairpin}");
    assert!(gateway.counter("drops.hairpin_off")? >= 1);
    Ok(())
}
