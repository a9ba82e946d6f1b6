//! What veth needs of the gateway, and what the gateway must not need of veth.

use anyhow::Result;
use nat_tests::stream;
use nat_tests::wiring::{SOON, Wiring, at_server};
use xtask::lab::{LabOptions, SERVER, dns};

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn one_armed_a_veth_peer_needs_nothing_but_gro() -> Result<()> {
    let lab = Wiring::OneArmed.lab_with(LabOptions { bare_peer: true, ..LabOptions::default() })?;
    let echo = stream::echo_server(lab.server(), 7)?;
    let names = dns::DnsServer::start(lab.server(), 53)?;
    let _gateway = lab.start_natgw(&lab.config())?;

    let said = lab.client(1).check(["ping", "-n", "-c", "3", "-i", "0.2", &SERVER.to_string()])?;
    assert!(said.contains(" 0% packet loss"), "{said}");
    let mut connection = stream::connect(lab.client(1), at_server(echo.port()), SOON)?;
    stream::echo(&mut connection, b"here and back")?;
    let exchanges = dns::exchange(lab.client(2), at_server(names.port()), 500, SOON)?;
    assert_eq!((exchanges.sent, exchanges.lost()), (500, 0));
    Ok(())
}
