//! The interfaces of the configuration: whether programs can be attached, and packets go through.

use std::collections::BTreeSet;

use super::{Check, Finding, Net, ethtool, ethtool::Driver};
use crate::{
    config::{Config, XdpMode},
    daemon::hook::Hook,
    datapath::AttachMode,
    netdev::Link,
    preflight::{KernelVersion, MULTI_BUFFER_REDIRECT, SINGLE_BUFFER_MTU},
};

/// Kinds of interface that have no XDP of their own.
const WITHOUT_XDP: [&str; 9] =
    ["bridge", "dummy", "vlan", "macvlan", "ipvlan", "vxlan", "gretap", "ip6gretap", "team"];
/// An ENA has as many XDP queues as ordinary ones, from the same lot.
const ENA: &str = "ena";
const VIRTIO: &str = "virtio_net";

pub(super) struct Facts {
    mode: XdpMode,
    kernel: KernelVersion,
    interfaces: Vec<Interface>,
}

struct Interface {
    name: String,
    /// None: there is no such interface.
    link: Option<Link>,
    driver: Driver,
    /// The gateway's own program is on it.
    ours: bool,
    cpus: u32,
    /// The name of the other end, where that is in this namespace.
    peer: Option<(String, Driver)>,
}

impl Facts {
    pub(super) fn gather(
        config: &Config,
        net: &Net,
        kernel: KernelVersion,
        ours: &BTreeSet<String>,
    ) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |it| it.get() as u32);
        let interface = |(name, _): (&str, _)| {
            let link = net.snapshot.link(name).cloned();
            let peer = link.as_ref().and_then(|link| net.peers.get(&link.ifindex));
            let peer = peer.and_then(|index| net.snapshot.links.get(index));
            Interface {
                link,
                driver: ethtool::ask(name),
                ours: ours.contains(name),
                cpus,
                peer: peer.map(|it| (it.name.clone(), ethtool::ask(&it.name))),
                name: name.to_owned(),
            }
        };
        let interfaces = config.interfaces().into_iter().map(interface).collect();
        let mode = match config.gateway.xdp_mode {
            // Where `auto` comes to tc, what native XDP lacks is nothing to mend.
            XdpMode::Auto if Hook::choose(config, &net.snapshot).mode == AttachMode::Tc => {
                XdpMode::Tc
            }
            mode => mode,
        };
        Self { mode, kernel, interfaces }
    }
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let each = |interface| one(facts, interface);
    facts.interfaces.iter().flat_map(each).collect()
}

fn one(facts: &Facts, interface: &Interface) -> Vec<Finding> {
    let name = &interface.name;
    let Some(link) = &interface.link else {
        return vec![Finding::error(
            Check::InterfaceMissing,
            format!("there is no interface {name}"),
            "see `ip link`, and write the name as it is there into gateway.public or .private",
        )];
    };
    if !link.ethernet {
        return vec![Finding::error(
            Check::InterfaceType,
            format!("{name} is no Ethernet interface: a gateway has to write Ethernet addresses"),
            "use the interface below it, or one that is (tunnels of kind gretap are)",
        )];
    }
    let mut findings = Vec::new();
    if !link.up {
        findings.push(Finding::warning(
            Check::InterfaceDown,
            format!("{name} is down: nothing comes or goes by it"),
            format!("ip link set dev {name} up"),
        ));
    }
    if let Some(program) = link.xdp_program
        && !interface.ours
    {
        findings.push(Finding::error(
            Check::OtherXdp,
            format!("{name} has an XDP program of something else (id {program}), and takes only one"),
            format!("ip link set dev {name} xdp off, if nothing needs it; `bpftool prog show id {program}` tells what it is"),
        ));
    }
    findings.extend(native(facts, interface, link));
    if link.kind.as_deref() == Some("veth") {
        findings.extend(veth(facts, interface));
    }
    findings
}

/// What keeps a program out of the driver. Without it `auto` takes another hook, and `native` fails.
fn native(facts: &Facts, interface: &Interface, link: &Link) -> Vec<Finding> {
    let Interface { name, driver, .. } = interface;
    if interface.ours || !matches!(facts.mode, XdpMode::Auto | XdpMode::Native) {
        return Vec::new();
    }
    let finding = |check, text: String, fix: String| {
        if facts.mode == XdpMode::Native {
            Finding::error(check, text, fix)
        } else {
            Finding::warning(check, format!("{text}; a slower hook is used"), fix)
        }
    };
    let mut findings = Vec::new();
    if let Some(kind) = link.kind.as_deref().filter(|kind| WITHOUT_XDP.contains(kind)) {
        findings.push(finding(
            Check::NativeXdp,
            format!("{name} is a {kind}, which has no native XDP"),
            "use the hardware interface below it, or xdp_mode = \"generic\"".to_owned(),
        ));
    }
    let ena = driver.name.as_deref() == Some(ENA);
    if link.mtu > SINGLE_BUFFER_MTU && (ena || facts.kernel < MULTI_BUFFER_REDIRECT) {
        let why = if ena {
            "the ENA driver takes frames of one buffer only".to_owned()
        } else {
            format!("larger frames need Linux {MULTI_BUFFER_REDIRECT} for native redirection")
        };
        findings.push(finding(
            Check::Mtu,
            format!("the MTU of {name} is {}, and {why}", link.mtu),
            format!("ip link set dev {name} mtu {SINGLE_BUFFER_MTU}"),
        ));
    }
    if driver.lro {
        findings.push(finding(
            Check::Lro,
            format!("{name} merges received packets in hardware (LRO), which XDP does not go with"),
            format!("ethtool -K {name} lro off"),
        ));
    }
    if let Some((used, most)) = driver.queues {
        let free = most.saturating_sub(used);
        let lacks = match driver.name.as_deref() {
            Some(ENA) => used > free,
            Some(VIRTIO) => interface.cpus > free && most > 1,
            _ => false,
        };
        if lacks {
            findings.push(finding(
                Check::Queues,
                format!(
                    "{name} uses {used} of {most} queues, which leaves too few for XDP to send by"
                ),
                format!("ethtool -L {name} combined {}", (most / 2).max(1)),
            ));
        }
    }
    findings
}

/// Virtual pairs leave checksums and receiving to the other end.
fn veth(facts: &Facts, interface: &Interface) -> Vec<Finding> {
    let name = &interface.name;
    let mut findings = Vec::new();
    if facts.mode == XdpMode::Tc {
        return findings;
    }
    match &interface.peer {
        Some((peer, driver)) => {
            if driver.tx_checksum == Some(true) {
                findings.push(Finding::warning(
                    Check::VethOffload,
                    format!("{peer} leaves checksums to hardware that {name} has not: packets that come by it as XDP sees them are wrong"),
                    format!("ethtool -K {peer} tx off; or xdp_mode = \"tc\""),
                ));
            }
            if driver.gro == Some(false) {
                findings.push(Finding::warning(
                    Check::VethReceiver,
                    format!("{peer} takes no redirected frames: it has neither GRO nor an XDP program"),
                    format!("ethtool -K {peer} gro on"),
                ));
            }
        }
        None => findings.push(Finding::note(
            Check::VethOffload,
            format!("the other end of {name} is elsewhere: it has to make whole checksums, and to take redirected frames"),
            "there: ethtool -K IFACE tx off gro on",
        )),
    }
    findings
}

#[cfg(test)]
mod tests {
    use nat_common::net::Mac;

    use super::*;
    use crate::doctor::{Level, testing::told};

    fn link() -> Link {
        Link {
            ifindex: 2,
            name: "eth0".to_owned(),
            ethernet: true,
            mac: Mac([2; 6]),
            mtu: 1500,
            up: true,
            kind: None,
            xdp_program: None,
        }
    }

    fn interface(link: Link) -> Interface {
        Interface {
            name: "eth0".to_owned(),
            link: Some(link),
            driver: Driver::default(),
            ours: false,
            cpus: 2,
            peer: None,
        }
    }

    const NEW: KernelVersion = KernelVersion { major: 6, minor: 18 };

    fn found(mode: XdpMode, kernel: KernelVersion, it: Interface) -> Vec<(Check, Level)> {
        told(&judge(&Facts { mode, kernel, interfaces: vec![it] }))
    }

    #[test]
    fn an_interface_that_will_do_is_not_mentioned() {
        assert_eq!(found(XdpMode::Native, NEW, interface(link())), []);
    }

    #[test]
    fn a_missing_one_and_one_that_is_not_ethernet_are_errors() {
        let gone = Interface { link: None, ..interface(link()) };
        assert_eq!(found(XdpMode::Auto, NEW, gone), [(Check::InterfaceMissing, Level::Error)]);
        let tunnel = interface(Link { ethernet: false, ..link() });
        assert_eq!(found(XdpMode::Auto, NEW, tunnel), [(Check::InterfaceType, Level::Error)]);
    }

    #[test]
    fn one_that_is_down_and_a_foreign_program_are_told_and_our_own_is_not() {
        let wrong = || interface(Link { up: false, xdp_program: Some(7), ..link() });
        assert_eq!(
            found(XdpMode::Auto, NEW, wrong()),
            [(Check::InterfaceDown, Level::Warning), (Check::OtherXdp, Level::Error)]
        );
        let ours = Interface { ours: true, ..wrong() };
        assert_eq!(found(XdpMode::Auto, NEW, ours), [(Check::InterfaceDown, Level::Warning)]);
    }

    #[test]
    fn what_keeps_a_program_out_of_the_driver_is_an_error_for_native_and_a_warning_for_auto() {
        let driver = |name: &str, queues| Driver {
            name: Some(name.to_owned()),
            lro: true,
            queues,
            ..Driver::default()
        };
        let ena = || Interface {
            driver: driver(ENA, Some((4, 4))),
            ..interface(Link { mtu: 9001, ..link() })
        };
        for (mode, level) in [(XdpMode::Native, Level::Error), (XdpMode::Auto, Level::Warning)] {
            assert_eq!(
                found(mode, NEW, ena()),
                [(Check::Mtu, level), (Check::Lro, level), (Check::Queues, level)]
            );
            let bridge = interface(Link { kind: Some("bridge".to_owned()), ..link() });
            assert_eq!(found(mode, NEW, bridge), [(Check::NativeXdp, level)]);
        }
        assert_eq!(found(XdpMode::Generic, NEW, ena()), []);
        let virtio = Interface { driver: driver(VIRTIO, Some((2, 4))), ..interface(link()) };
        assert_eq!(found(XdpMode::Native, NEW, virtio), [(Check::Lro, Level::Error)]);
        let old = KernelVersion { major: 6, minor: 1 };
        let jumbo = interface(Link { mtu: 9000, ..link() });
        assert_eq!(found(XdpMode::Native, old, jumbo), [(Check::Mtu, Level::Error)]);
    }

    #[test]
    fn the_other_end_of_a_virtual_pair_is_looked_at_where_it_can_be() {
        let veth = |peer| Interface {
            peer,
            ..interface(Link { kind: Some("veth".to_owned()), ..link() })
        };
        assert_eq!(found(XdpMode::Native, NEW, veth(None)), [(Check::VethOffload, Level::Note)]);
        let driver = Driver { tx_checksum: Some(true), gro: Some(false), ..Driver::default() };
        let peer = Some(("veth1".to_owned(), driver));
        assert_eq!(
            found(XdpMode::Native, NEW, veth(peer)),
            [(Check::VethOffload, Level::Warning), (Check::VethReceiver, Level::Warning)]
        );
        assert_eq!(found(XdpMode::Tc, NEW, veth(None)), []);
    }
}
