//! Equal addresses inside and outside: the route says which host is meant.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{Context, Result};
use nat_tests::wiring::{SOON, Wiring};
use xtask::lab::{Namespace, SERVER, client_address};

fn udp(namespace: &Namespace, address: Ipv4Addr, port: u16) -> Result<UdpSocket> {
    let socket = namespace.enter(|| UdpSocket::bind((address, port)))?;
    socket.set_read_timeout(Some(SOON))?;
    Ok(socket)
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn an_outside_host_with_the_address_of_an_inside_one_is_reached_by_policy_routing() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    // The second client's address is also one of the server's.
    let twin = client_address(2);
    lab.server().ip_batch(&format!("addr add {twin}/32 dev eth0\n"))?;
    lab.router().ip_batch(&format!("route add {twin}/32 via 203.0.113.10\n"))?;
    lab.client(1).ip_batch(&format!("route add {twin}/32 via 10.0.1.1\n"))?;
    // From the private side the address means the one outside; towards it, the client.
    lab.gateway().ip_batch(
        "rule add iif lan0 lookup 100\nroute add default via 198.51.100.1 dev wan0 table 100\n",
    )?;
    let (outside, server) = (udp(lab.server(), twin, 7)?, udp(lab.server(), SERVER, 7)?);
    let _gateway = lab.start_natgw(&lab.config())?;

    let one = udp(lab.client(1), client_address(1), 5000)?;
    one.send_to(b"to the twin outside", (twin, 7))?;
    let mut buffer = [0; 64];
    let (_, seen) = outside.recv_from(&mut buffer).context("the twin outside")?;
    assert_eq!(seen.ip(), lab.eip());
    outside.send_to(b"from the twin outside", seen)?;
    let (length, from) = one.recv_from(&mut buffer).context("its answer")?;
    assert_eq!((&buffer[..length], from), (&b"from the twin outside"[..], (twin, 7).into()));

    // The one inside is a client like any other, of the same server.
    let two = udp(lab.client(2), twin, 7)?;
    two.send_to(b"from the twin inside", (SERVER, 7))?;
    let (_, seen) = server.recv_from(&mut buffer).context("the twin inside")?;
    server.send_to(b"answer", seen)?;
    let (length, _) = two.recv_from(&mut buffer).context("the answer to the twin inside")?;
    assert_eq!(&buffer[..length], b"answer");
    Ok(())
}
