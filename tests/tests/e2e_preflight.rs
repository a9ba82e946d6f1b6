//! What stands in the way of a start is said in one line, with the remedy, and leaves nothing
//! behind.

use anyhow::Result;
use nat_tests::wiring::{QUIET, SOON, Wiring, at_server};
use xtask::lab::{Lab, Output, XdpAction, XdpProgram, dns};

/// Starts what has to fail.
fn refused(lab: &Lab, config: &str) -> Result<Output> {
    let file = lab.write_config(config)?;
    let output = lab.natgw(&["run", "-c", &file.display().to_string()])?;
    assert_eq!(output.stdout, "", "{output:?}");
    Ok(output)
}

/// Forwarding and pins are as if nobody had tried.
fn nothing_is_left(lab: &Lab) -> Result<()> {
    assert!(!lab.pins_dir().exists(), "pins are left");
    let forwarding = format!("net.ipv4.conf.{}.forwarding", lab.private_interface());
    assert_eq!(lab.gateway().read_sysctl(&forwarding)?, "0");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn an_interface_with_another_xdp_program_is_left_alone() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let other = XdpProgram::attach(lab.gateway(), "wan0", XdpAction::Pass)?;
    let output = refused(&lab, &lab.config())?;
    assert_eq!(output.code(), Some(1), "{output:?}");
    assert!(output.stderr.contains("wan0"), "names it: {}", output.stderr);
    nothing_is_left(&lab)?;
    drop(other);
    let names = dns::DnsServer::start(lab.server(), 53)?;
    let _gateway = lab.start_natgw(&lab.config())?;
    assert_eq!(dns::exchange(lab.client(1), at_server(names.port()), 5, SOON)?.lost(), 0);
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn an_interface_without_native_xdp_is_refused_by_native_and_taken_by_generic() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    // A bridge has no native XDP, and nothing comes in by this one.
    lab.gateway().ip_batch("link add other0 type bridge\nlink set other0 up\n")?;
    let config = lab.config().replace("\"lan0\"", "\"lan0\", \"other0\"");
    let output = refused(&lab, &config)?;
    assert_eq!(output.code(), Some(1), "{output:?}");
    assert!(output.stderr.contains("other0"), "{}", output.stderr);
    assert!(output.stderr.contains("generic"), "names a way: {}", output.stderr);
    nothing_is_left(&lab)?;

    let names = dns::DnsServer::start(lab.server(), 53)?;
    let gateway = lab.start_natgw(&config.replace("native", "generic"))?;
    let modes = gateway.json(&["status"])?["interfaces"].clone();
    for interface in modes.as_array().into_iter().flatten() {
        assert_eq!(interface["xdp_mode"], "generic", "{modes:#}");
    }
    assert_eq!(dns::exchange(lab.client(1), at_server(names.port()), 100, SOON)?.lost(), 0);
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn beside_another_xdp_program_the_gateway_works_on_tc() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let _other = XdpProgram::attach(lab.gateway(), "wan0", XdpAction::Pass)?;
    let names = dns::DnsServer::start(lab.server(), 53)?;
    let _gateway = lab.start_natgw(&lab.config().replace("native", "tc"))?;
    assert_eq!(dns::exchange(lab.client(1), at_server(names.port()), 5, SOON)?.lost(), 0);
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn without_rights_the_missing_one_is_named() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let file = lab.write_config(&lab.config())?;
    let binary = xtask::lab::natgw_binary()?;
    let output = lab.gateway().run([
        "setpriv".as_ref(),
        "--bounding-set=-all".as_ref(),
        "--inh-caps=-all".as_ref(),
        binary.as_os_str(),
        "run".as_ref(),
        "-c".as_ref(),
        file.as_os_str(),
        "--name".as_ref(),
        lab.name().as_ref(),
        "--state-dir".as_ref(),
        lab.state_dir().as_os_str(),
    ])?;
    assert_eq!(output.code(), Some(1), "{output:?}");
    assert!(output.stderr.contains("CAP_"), "{}", output.stderr);
    nothing_is_left(&lab)
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn an_interface_that_is_down_at_the_start_is_accepted() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let names = dns::DnsServer::start(lab.server(), 53)?;
    lab.gateway().ip_batch("link set wan0 down\n")?;
    let _gateway = lab.start_natgw(&lab.config())?;
    let ask = |limit| dns::exchange(lab.client(1), at_server(names.port()), 1, limit);
    assert_eq!(ask(QUIET)?.answered, 0);
    lab.gateway().ip_batch("link set wan0 up\nroute replace default via 198.51.100.1\n")?;
    let start = std::time::Instant::now();
    while ask(QUIET)?.answered == 0 {
        assert!(start.elapsed() < SOON, "it never came to work");
    }
    Ok(())
}
