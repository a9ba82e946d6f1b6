//! Frames that an interface refuses after the program let them go.

use std::time::Duration;

use xtask::lab::{Lab, LabOptions, SERVER};

const LIMIT: Duration = Duration::from_secs(20);

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn frames_that_the_egress_refuses_are_taken_from_out_and_counted_as_egress_failed() {
    let lab = Lab::two_armed(LabOptions { clients: 1, ..LabOptions::default() }).unwrap();
    let gateway = lab.start_natgw(&lab.config()).unwrap();
    lab.client(1).check(["ping", "-c", "2", "-i", "0.2", &SERVER.to_string()]).unwrap();
    let sent = gateway.counter("packets_out_to_destination").unwrap();
    assert_eq!(gateway.counter("drops.egress_failed").unwrap_or(0), 0);

    // Without NAPI the peer of a veth device takes no redirected frames.
    let (router, interface) = lab.outside();
    router.check(["ethtool", "-K", interface, "gro", "off"]).unwrap();
    let ping = lab
        .client(1)
        .run(["ping", "-c", "5", "-i", "0.2", "-W", "1", &SERVER.to_string()])
        .unwrap();
    assert_ne!(ping.code(), Some(0), "the router still takes frames: the test proves nothing");

    let counters = gateway
        .wait_for(&["counters"], LIMIT, |it| it["drops"]["egress_failed"].as_u64() == Some(5))
        .unwrap();
    assert_eq!(counters["packets_out_to_destination"].as_u64(), Some(sent), "{counters}");
}
