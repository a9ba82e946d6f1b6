//! `natgw doctor` on hosts that are broken in one way after the other, and on one that is not.

use anyhow::{Context as _, Result};
use nat_tests::wiring::Wiring;
use nix::sys::signal::Signal;
use serde_json::Value;
use xtask::lab::{Lab, Output, XdpAction, XdpProgram};

/// Check and level of everything that was found, with its text.
struct Found(Vec<(String, String, String)>, Option<i32>);

impl Found {
    fn read(output: &Output) -> Result<Self> {
        let findings: Vec<Value> = serde_json::from_str(&output.stdout)
            .with_context(|| format!("natgw doctor: {output:?}"))?;
        let text = |it: &Value, key: &str| it[key].as_str().unwrap_or_default().to_owned();
        let mut found = Vec::new();
        for finding in &findings {
            assert!(!text(finding, "finding").is_empty(), "{finding}");
            let (check, level) = (text(finding, "check"), text(finding, "level"));
            assert!(level == "note" || !text(finding, "fix").is_empty(), "{finding} has a fix");
            found.push((check, level, finding.to_string()));
        }
        Ok(Self(found, output.code()))
    }

    /// Each is there, in this level; the exit status says whether one is an error.
    fn has(&self, wanted: &[(&str, &str)]) {
        for (check, level) in wanted {
            let there = self.0.iter().any(|(c, l, _)| c == check && l == level);
            assert!(there, "{check} as {level} in {:#?}", self.0);
        }
        let broken = self.0.iter().any(|(_, level, _)| level == "error");
        assert_eq!(self.1, Some(i32::from(broken)), "{:#?}", self.0);
    }

    fn lacks(&self, check: &str) {
        assert!(self.0.iter().all(|(it, ..)| it != check), "no {check} in {:#?}", self.0);
    }
}

fn doctor(lab: &Lab, config: &str) -> Result<Found> {
    let file = lab.write_config(config)?.display().to_string();
    Found::read(&lab.natgw(&["doctor", "-c", &file, "-o", "json"])?)
}

/// By a shell in the gateway's namespace, with mounts of its own; `$NATGW` is the command.
fn within(lab: &Lab, config: &str, command: &str, script: &str) -> Result<Output> {
    let file = lab.write_config(config)?;
    let command = format!(
        "{} {command} -c {} --name {} --state-dir {}",
        xtask::lab::natgw_binary()?.display(),
        file.display(),
        lab.name(),
        lab.state_dir().display()
    );
    let script = script.replace("$NATGW", &command);
    lab.gateway().run(["unshare", "-m", "sh", "-ec", &script])
}

fn doctor_within(lab: &Lab, config: &str, script: &str) -> Result<Found> {
    Found::read(&within(lab, config, "doctor -o json", script)?)
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_gateway_that_is_well_is_told_to_be_and_what_it_leaves_is_told_for_what_it_is() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let config = lab.config();
    let before = doctor(&lab, &config)?;
    before.has(&[("veth_offload", "note")]);
    assert_eq!(before.1, Some(0), "{:#?}", before.0);
    let auto = config.replace("xdp_mode = \"native\"", "xdp_mode = \"auto\"");
    doctor(&lab, &auto)?.lacks("veth_offload");

    let mut gateway = lab.start_natgw(&config)?;
    let running = doctor(&lab, &config)?;
    assert_eq!(running.1, Some(0), "{:#?}", running.0);
    running.lacks("other_xdp");
    gateway.sigkill()?;
    doctor(&lab, &config)?.has(&[("alone", "warning")]);

    let mut gateway = lab.start_natgw(&config)?;
    gateway.sigterm()?;
    let stopped = doctor(&lab, &config)?;
    stopped.has(&[("leftover", "note")]);
    stopped.lacks("alone");

    std::fs::create_dir(lab.pins_dir().join("v9999"))?;
    doctor(&lab, &config)?.has(&[("other_layout", "error")]);
    std::fs::remove_dir(lab.pins_dir().join("v9999"))?;
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn what_stands_in_the_way_of_a_start_is_named() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let host = lab.gateway();
    let other = XdpProgram::attach(host, "wan0", XdpAction::Pass)?;
    host.ip_batch(
        "link set lan0 down\n\
         route del default\n\
         link add bridge0 type bridge\n\
         link add pair0 type veth peer name pair1\n\
         neighbour add 198.51.100.10 lladdr 02:00:00:00:00:77 dev wan0 nud reachable\n",
    )?;
    host.check(["ethtool", "-K", "pair1", "gro", "off"])?;
    host.sysctl("net.ipv4.conf.lan0.rp_filter", "1")?;
    let rules = "table ip t {\n\
                 chain p { type nat hook postrouting priority 100; oifname \"wan0\" masquerade; }\n\
                 chain f { type filter hook forward priority 0; policy drop; }\n}";
    host.check(["nft", rules])?;
    let config = lab
        .config()
        .replace("\"lan0\"", "\"lan0\", \"bridge0\", \"pair0\"")
        .replace("\"198.51.100.10\"", "\"198.51.100.10\", \"192.0.2.77\"")
        + "exempt = [\"10.9.0.0/16\"]\n";
    doctor(&lab, &config)?.has(&[
        ("other_xdp", "error"),
        ("native_xdp", "error"),
        ("address_conflict", "error"),
        ("interface_down", "warning"),
        ("no_route", "warning"),
        ("veth_offload", "warning"),
        ("veth_receiver", "warning"),
        ("reverse_path", "warning"),
        ("host_nat", "warning"),
        ("forward_policy", "warning"),
        ("address_not_routed", "note"),
    ]);
    drop(other);
    doctor(&lab, &config)?.lacks("other_xdp");
    doctor(&lab, &config.replace("bridge0", "eth99"))?.has(&[("config", "error")]);
    let idle = config.split("[[snat]]").next().context("a part")?;
    doctor(&lab, idle)?.has(&[("config_notice", "note")]);
    let missing = lab.natgw(&["doctor", "-c", "/no/such/file", "-o", "json"])?;
    Found::read(&missing)?.has(&[("config_file", "error")]);
    assert_eq!(missing.stderr.lines().count(), 1, "{missing:?}");

    let text = lab.natgw(&["doctor", "-c", "/no/such/file"])?;
    assert!(text.stdout.contains("error    config_file: "), "{text:?}");
    assert!(text.stdout.contains("\n         -> name the configuration"), "{text:?}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn what_has_gone_wrong_under_a_running_gateway_is_named() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    lab.gateway().ip_batch("address add 198.51.100.11/24 dev wan0\n")?;
    let config = lab.config_with_pool("addresses = [\"198.51.100.10\", \"198.51.100.11\"]");
    let mut gateway = lab.start_natgw(&config)?;
    lab.gateway().sysctl("net.ipv4.conf.lan0.forwarding", "0")?;
    doctor(&lab, &config)?.has(&[("forwarding", "error")]);
    lab.gateway().sysctl("net.ipv4.conf.lan0.forwarding", "1")?;

    lab.gateway().ip_batch("address del 198.51.100.11/24 dev wan0\n")?;
    gateway.wait_for(&["status"], nat_tests::wiring::SOON, |status| {
        status["addresses"][1]["state"] == "lost"
    })?;
    doctor(&lab, &config)?.has(&[("address_state", "error")]);

    for layout in std::fs::read_dir(lab.pins_dir())? {
        for pin in std::fs::read_dir(layout?.path())? {
            let pin = pin?;
            if pin.file_name().to_string_lossy().contains("guard-") {
                std::fs::remove_file(pin.path())?;
            }
        }
    }
    doctor(&lab, &config)?.has(&[("guard", "error")]);

    lab.gateway().ip_batch("link del lan0\n")?;
    gateway
        .wait_for(&["status"], nat_tests::wiring::SOON, |status| status["state"] == "degraded")?;
    // The file cannot be right any more; what the gateway says of itself is told all the same.
    doctor(&lab, &config)?.has(&[
        ("config", "error"),
        ("gateway_state", "error"),
        ("interface_state", "error"),
    ]);

    gateway.signal(Signal::SIGSTOP)?;
    let silent = doctor(&lab, &config);
    gateway.signal(Signal::SIGCONT)?;
    silent?.has(&[("gateway_silent", "error")]);
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn what_the_kernel_and_the_rights_lack_is_named() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let config = lab.config();
    let within_lab = |script: &str| doctor_within(&lab, &config, script);
    let over = |path: &str, content: &str| {
        let file = lab.dir().join("over").display().to_string();
        within_lab(&format!("echo '{content}' > {file}; mount --bind {file} {path}; $NATGW"))
    };
    // Only the first network namespace has it.
    let core = "/proc/sys/net/core";
    let jit = format!("mount -t tmpfs none {core}; echo 0 > {core}/bpf_jit_enable; $NATGW");
    within_lab(&jit)?.has(&[("jit", "warning")]);
    over("/proc/meminfo", "MemAvailable: 1000 kB")?.has(&[("memory", "error")]);
    let hidden = |path: &str| within_lab(&format!("mount -t tmpfs none {path}; $NATGW"));
    hidden("/dev/net")?.has(&[("tun", "warning")]);
    hidden("/sys/kernel/btf")?.has(&[("kernel_types", "warning")]);
    let ordinary = lab.dir().join("no-bpffs").display().to_string();
    let elsewhere =
        config.replace("[gateway]\n", &format!("[gateway]\nbpf_dir = \"{ordinary}\"\n"));
    doctor(&lab, &elsewhere)?.has(&[("bpffs", "warning")]);

    within_lab("setpriv --bounding-set=-all --inh-caps=-all $NATGW")?
        .has(&[("capabilities", "error")]);
    let _gateway = lab.start_natgw(&config)?;
    let file = lab.write_config(&config)?;
    for path in [lab.dir(), &file, &lab.state_dir()] {
        lab.gateway().check(["chmod", "a+rX", &path.display().to_string()])?;
    }
    // Not the user that gateways run as in a run with --as-user.
    within_lab("exec setpriv --reuid 65533 --regid 65533 --clear-groups $NATGW")?
        .has(&[("capabilities", "note"), ("control_socket", "warning")]);
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn what_a_start_has_no_place_for_is_said_in_one_line() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    let full = lab.dir().join("full");
    std::fs::create_dir(&full)?;
    std::fs::write(full.join("something"), "")?;
    let pins = format!("[gateway]\nbpf_dir = \"{}\"\n", full.display());
    let config = lab.config();
    let state = lab.state_dir().display().to_string();
    let read_only = format!("mkdir -p {state}; mount -t tmpfs -o ro none {state}; $NATGW");
    for (config, script, words) in [
        (&config.replace("[gateway]\n", &pins), "$NATGW", "cannot mount a BPF file system at"),
        (&config, &read_only, "cannot open"),
        (&config, "mount -t tmpfs none /proc; $NATGW", "check that /proc is mounted"),
    ] {
        let output = within(&lab, config, "run", script)?;
        assert_eq!(output.code(), Some(1), "{output:?}");
        let last = output.stderr.lines().last().unwrap_or_default();
        assert!(last.contains(words), "{words}: {output:?}");
    }
    assert!(!lab.pins_dir().exists(), "pins are left");
    Ok(())
}
