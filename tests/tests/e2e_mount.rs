//! A gateway started by `ip netns exec`, which gives it a mount namespace with a fresh `/sys`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use xtask::lab::{Lab, LabOptions, SERVER, natgw_binary};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn sessions_and_guard_outlive_a_gateway_that_ip_netns_exec_started() -> Result<()> {
    let lab = Lab::two_armed(LabOptions { ip_forward: true, ..LabOptions::default() })?;
    let config = lab.write_config(&lab.config())?;
    let natgw = natgw_binary()?.display().to_string();
    let namespace = lab.gateway().name().to_owned();
    let (config, state) = (config.display().to_string(), lab.state_dir().display().to_string());
    let name = lab.name().to_owned();
    let enter = ["ip", "netns", "exec", &namespace, &natgw];
    let options = ["--name", &name, "--state-dir", &state];
    let run = enter.into_iter().chain(["run", "-c", &config]).chain(options);
    let mut daemon = lab.gateway().spawn(run)?;
    daemon.wait_for_line("ready", LIMIT)?;
    let server = SERVER.to_string();
    let ping = ["ping", "-n", "-c", "2", "-i", "0.2", "-W", "2", &server];
    lab.client(1).check(ping)?;

    daemon.kill()?;
    lab.client(1).check(ping).context("the dataplane does not go on alone")?;

    for path in [lab.pins_dir(), lab.state_dir()] {
        lab.give_to_gateways(&path)?;
    }
    let gateway = lab.start_natgw(&lab.config())?;
    let log = gateway.log()?;
    assert!(log.contains("adopted the state of an earlier run"), "{log}");
    lab.client(1).check(ping)?;
    Ok(())
}
