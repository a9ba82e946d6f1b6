//! Debian packages, by the programs that they bring.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, anyhow, bail};

use super::{Kind, Purpose, Step};
use crate::workspace::{find_program, run};

/// Program, package.
const BUILD: &[(&str, &str)] = &[("cc", "gcc")];
const LAB: &[(&str, &str)] =
    &[("ip", "iproute2"), ("ethtool", "ethtool"), ("curl", "curl"), ("ping", "iputils-ping")];
const PROGRAMS: &[(&str, &str)] = &[("bpftool", "bpftool"), ("ip", "iproute2")];
const TESTS: &[(&str, &str)] = &[
    ("arping", "iputils-arping"),
    ("iperf3", "iperf3"),
    ("nft", "nftables"),
    ("systemd-analyze", "systemd"),
    ("promtool", "prometheus"),
    ("tcpdump", "tcpdump"),
    ("traceroute", "traceroute"),
    ("turnserver", "coturn"),
    ("turnutils_natdiscovery", "coturn"),
];
/// Package, unit: services that Debian starts with the package, and that nobody asked for.
const SERVICES: &[(&str, &str)] =
    &[("coturn", "coturn.service"), ("prometheus", "prometheus.service")];
// The kernel itself is downloaded and unpacked by the tier, not installed.
const OLD_KERNEL: &[(&str, &str)] = &[
    ("busybox", "busybox-static"),
    ("depmod", "kmod"),
    ("ip", "iproute2"),
    ("qemu-system-x86_64", "qemu-system-x86"),
];

const DIST: &[(&str, &str)] = &[("debootstrap", "debootstrap"), ("systemd-analyze", "systemd")];

/// The packages whose programs are not there, as at most one step.
pub(super) fn missing(purposes: &[Purpose]) -> Option<Step> {
    let lists = purposes.iter().map(|purpose| match purpose {
        Purpose::Build => BUILD,
        Purpose::Lab => LAB,
        Purpose::Programs => PROGRAMS,
        Purpose::Tests => TESTS,
        Purpose::Checks => &[],
        Purpose::OldKernel => OLD_KERNEL,
        Purpose::Dist => DIST,
    });
    let lacking: BTreeSet<_> =
        lists.flatten().filter(|(program, _)| find_program(program).is_none()).collect();
    if lacking.is_empty() {
        return None;
    }
    let programs: Vec<_> = lacking.iter().map(|(program, _)| *program).collect();
    let packages: BTreeSet<_> = lacking.iter().map(|(_, package)| (*package).to_owned()).collect();
    Some(Step {
        what: format!("missing {}", programs.join(", ")),
        kind: Kind::Packages(packages.into_iter().collect()),
    })
}

/// Installs packages; with stale or absent lists, after an update. What comes with a service of
/// [`SERVICES`] comes without it running, now or after a boot.
pub(super) fn install(names: &[String]) -> Result<()> {
    if find_program("apt-get").is_none() {
        bail!(
            "this is no Debian (no apt-get); install what these packages of Debian bring: {}",
            names.join(" ")
        );
    }
    let install = || {
        run(Command::new("apt-get")
            .args(["install", "-y", "--no-install-recommends"])
            .args(names)
            .env("DEBIAN_FRONTEND", "noninteractive"))
    };
    let units: Vec<&str> = SERVICES
        .iter()
        .filter(|(package, _)| names.iter().any(|name| name == package))
        .map(|(_, unit)| *unit)
        .collect();
    let manager = !units.is_empty() && Path::new("/run/systemd/system").is_dir();
    let systemctl = |verb: &[&str]| run(Command::new("systemctl").args(verb).args(&units));
    if manager {
        // Until the next boot, should this process not come to its end.
        systemctl(&["mask", "--runtime"])?;
    }
    let installed = if available(names) { install() } else { Err(anyhow!("unknown packages")) };
    let installed = installed.or_else(|_| {
        run(Command::new("apt-get").arg("update"))?;
        install()
    });
    if manager {
        systemctl(&["unmask", "--runtime"])?;
        if installed.is_ok() {
            systemctl(&["disable"])?;
        }
    }
    installed
}

/// Whether the package lists at hand know all of these.
pub(super) fn available(names: &[String]) -> bool {
    names.iter().all(|name| {
        Command::new("apt-cache")
            .args(["policy", name])
            .output()
            .is_ok_and(|output| has_candidate(&String::from_utf8_lossy(&output.stdout)))
    })
}

fn has_candidate(policy: &str) -> bool {
    policy
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate:"))
        .any(|version| version.trim() != "(none)")
}

#[cfg(test)]
mod tests {
    use super::has_candidate;

    #[test]
    fn a_package_is_available_when_apt_has_a_candidate() {
        assert!(has_candidate("curl:\n  Installed: (none)\n  Candidate: 7.88\n"));
        assert!(!has_candidate("x:\n  Installed: (none)\n  Candidate: (none)\n"));
        assert!(!has_candidate(""));
    }
}
