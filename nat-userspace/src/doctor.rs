//! `natgw doctor`: what on this host stands in the way of the gateway, each with the way to mend it.
//!
//! Every group of checks has a file with two halves: `Facts::gather` looks and changes nothing, and
//! `judge` is a pure function of the facts, so that each finding has a test without a broken host.

mod configuration;
mod ethtool;
mod firewall;
mod gateway;
mod interfaces;
mod kernel;
mod rights;
mod routing;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    config::{Config, HostView, Overrides, words},
    netdev::{DefaultGateway, Neighbour, Netdev, Snapshot},
    preflight::KernelVersion,
};

words!(
    Level {
        /// Good to know; nothing has to be done.
        Note = "note",
        /// It works, and not as well or not for everybody.
        Warning = "warning",
        /// The gateway does not start, or translates nothing.
        Error = "error",
    }
);

words!(
    /// What was looked at. `docs/troubleshooting.md` and `tests/messages.md` have a row for each.
    Check {
        KernelVersion = "kernel_version",
        KernelTypes = "kernel_types",
        Jit = "jit",
        Memory = "memory",
        Capabilities = "capabilities",
        Bpffs = "bpffs",
        Tun = "tun",
        ControlSocket = "control_socket",
        ConfigFile = "config_file",
        Config = "config",
        ConfigNotice = "config_notice",
        InterfaceMissing = "interface_missing",
        InterfaceType = "interface_type",
        InterfaceDown = "interface_down",
        OtherXdp = "other_xdp",
        NativeXdp = "native_xdp",
        Mtu = "mtu",
        Lro = "lro",
        Queues = "queues",
        VethOffload = "veth_offload",
        VethReceiver = "veth_receiver",
        Forwarding = "forwarding",
        ReversePath = "reverse_path",
        NoRoute = "no_route",
        AddressNotRouted = "address_not_routed",
        AddressConflict = "address_conflict",
        SourceCheck = "source_check",
        HostNat = "host_nat",
        ForwardPolicy = "forward_policy",
        FlowOffload = "flow_offload",
        GatewaySilent = "gateway_silent",
        GatewayState = "gateway_state",
        InterfaceState = "interface_state",
        AddressState = "address_state",
        Guard = "guard",
        Alone = "alone",
        OtherLayout = "other_layout",
        Leftover = "leftover",
    }
);

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub check: Check,
    pub level: Level,
    /// What is the matter, and what it does.
    pub finding: String,
    /// What to do about it; empty where nothing has to be done.
    pub fix: String,
}

impl Finding {
    fn new(check: Check, level: Level, finding: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, level, finding: finding.into(), fix: fix.into() }
    }

    fn error(check: Check, finding: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(check, Level::Error, finding, fix)
    }

    fn warning(check: Check, finding: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(check, Level::Warning, finding, fix)
    }

    fn note(check: Check, finding: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(check, Level::Note, finding, fix)
    }
}

/// Which gateway is meant.
#[derive(Debug, Clone)]
pub struct Subject {
    pub file: PathBuf,
    /// The file was named: it has to be there.
    pub named: bool,
    pub overrides: Overrides,
}

/// The network as every group sees it.
struct Net {
    snapshot: Snapshot,
    gateways: Vec<DefaultGateway>,
    neighbours: Vec<Neighbour>,
    /// Of each virtual pair in this namespace, by index.
    peers: BTreeMap<u32, u32>,
}

impl Net {
    async fn read() -> anyhow::Result<Self> {
        let netdev = Netdev::connect()?;
        Ok(Self {
            snapshot: netdev.snapshot().await?,
            gateways: netdev.default_gateways().await?,
            neighbours: netdev.neighbours().await?,
            peers: netdev.peers().await?,
        })
    }
}

/// Looks at everything; worst first, and otherwise in the order in which it has to be mended.
///
/// # Errors
/// Where not even the interfaces of this host can be listed.
pub async fn examine(subject: &Subject) -> anyhow::Result<Vec<Finding>> {
    let host = HostView::read()?;
    let net = Net::read().await?;
    let version = KernelVersion::running()?;
    let (config, mut findings) = configuration::judge(subject, &host);
    let named = gateway::Named::of(subject, config.as_ref());
    let gateway = gateway::Facts::gather(&named).await;
    let running = gateway.is_running();
    let sessions = config.as_ref().map(|config| config.gateway.sessions);
    findings.extend(kernel::judge(&kernel::Facts::gather(version, sessions, running)));
    findings.extend(rights::judge(&rights::Facts::gather(&named, running)));
    if let Some(config) = &config {
        let facts = interfaces::Facts::gather(config, &net, version, gateway.ours());
        findings.extend(interfaces::judge(&facts));
        findings.extend(routing::judge(&routing::Facts::gather(config, &net, running)));
        findings.extend(firewall::judge(&firewall::Facts::gather(config)));
    }
    findings.extend(gateway::judge(&gateway));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    Ok(findings)
}

/// Whether something keeps the gateway from working.
#[must_use]
pub fn is_broken(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.level == Level::Error)
}

/// A sysctl of this network namespace, or of the host.
fn sysctl(path: &str) -> Option<String> {
    std::fs::read_to_string(Path::new("/proc/sys").join(path)).ok().map(|it| it.trim().to_owned())
}

/// The interfaces of a configuration that face the internet.
fn public(config: &Config) -> impl Iterator<Item = &str> {
    let interfaces = config.interfaces().into_iter();
    interfaces.filter(|(_, role)| *role != crate::config::Role::Private).map(|(name, _)| name)
}

#[cfg(test)]
mod testing {
    //! What the groups' tests share.

    use super::*;
    use crate::config::HostInterface;

    pub(super) const RULES: &str = "[[pool]]\naddresses = [\"198.51.100.10\"]\n\
        [[snat]]\nsource = [\"10.0.0.0/16\"]\n";

    pub(super) fn host() -> HostView {
        let interface = |name: &str, address: [u8; 4]| HostInterface {
            name: name.to_owned(),
            ethernet: true,
            addresses: vec![address.into()],
        };
        let (eth0, eth1) = (interface("eth0", [203, 0, 113, 2]), interface("eth1", [10, 0, 0, 1]));
        HostView { interfaces: vec![eth0, eth1], listeners: Vec::new(), local_ports: None }
    }

    /// Check and level of each finding; none without words.
    pub(super) fn told(findings: &[Finding]) -> Vec<(Check, Level)> {
        for finding in findings {
            assert!(finding.finding.len() > 10, "{finding:?}");
            let fixed = finding.level == Level::Note || finding.fix.len() > 5;
            assert!(fixed, "{finding:?} names no fix");
        }
        findings.iter().map(|finding| (finding.check, finding.level)).collect()
    }
}
