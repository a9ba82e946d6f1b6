//! Whether packets find their way to the gateway, through the host, and out again.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{Check, Finding, Net, public, sysctl};
use crate::{config::Config, netdev::Snapshot};

pub(super) struct Facts {
    interfaces: Vec<Interface>,
    public: Vec<String>,
    default_route: bool,
    addresses: Vec<Address>,
    exempt: bool,
    running: bool,
    /// Who made this machine.
    vendor: String,
}

struct Interface {
    name: String,
    forwarding: Option<bool>,
    /// `rp_filter`: the larger of the interface's and of that for all.
    reverse_path: u32,
}

/// A public address that the host does not own.
struct Address {
    address: Ipv4Addr,
    /// It lies in the subnet of a public interface.
    on_link: bool,
    /// The Ethernet address that answered for it.
    neighbour: Option<String>,
}

impl Facts {
    pub(super) fn gather(config: &Config, net: &Net, running: bool) -> Self {
        let number = |path: &str| sysctl(path).and_then(|it| it.parse::<u32>().ok());
        let all = number("net/ipv4/conf/all/rp_filter").unwrap_or(0);
        let interface = |(name, _): (&str, _)| {
            let conf = |key: &str| number(&format!("net/ipv4/conf/{name}/{key}"));
            Interface {
                name: name.to_owned(),
                forwarding: conf("forwarding").map(|it| it != 0),
                reverse_path: conf("rp_filter").unwrap_or(0).max(all),
            }
        };
        let outside: Vec<u32> = public(config)
            .filter_map(|name| net.snapshot.link(name).map(|link| link.ifindex))
            .collect();
        let pools = config.pools.iter().flat_map(|pool| &pool.addresses).map(|it| it.address);
        let mapped = config.one_to_one.iter().map(|mapping| mapping.public);
        let address = |address: Ipv4Addr| Address {
            address,
            on_link: is_on_link(&net.snapshot, &outside, address),
            neighbour: net
                .neighbours
                .iter()
                .find(|it| it.address == address && outside.contains(&it.ifindex))
                .and_then(|it| it.mac.map(|mac| mac.to_string())),
        };
        let vendor = std::fs::read_to_string("/sys/class/dmi/id/sys_vendor").unwrap_or_default();
        Self {
            interfaces: config.interfaces().into_iter().map(interface).collect(),
            public: public(config).map(str::to_owned).collect(),
            default_route: net.gateways.iter().any(|it| outside.contains(&it.ifindex)),
            addresses: pools
                .chain(mapped)
                .filter(|it| !net.snapshot.owns(*it))
                .map(address)
                .collect(),
            exempt: config.snat.iter().any(|rule| !rule.exempt.is_empty()),
            running,
            vendor: vendor.trim().to_owned(),
        }
    }
}

fn is_on_link(snapshot: &Snapshot, interfaces: &[u32], address: Ipv4Addr) -> bool {
    snapshot.addresses.iter().any(|it| {
        interfaces.contains(&it.ifindex)
            && Ipv4Net::new(it.address, it.prefix_len).is_ok_and(|net| net.contains(&address))
    })
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for Interface { name, forwarding, reverse_path } in &facts.interfaces {
        if facts.running && *forwarding == Some(false) {
            findings.push(Finding::error(
                Check::Forwarding,
                format!(
                    "net.ipv4.conf.{name}.forwarding was turned off under the running gateway: the \
                     kernel finds no way for packets that come by {name}"
                ),
                format!(
                    "sysctl -w net.ipv4.conf.{name}.forwarding=1, and find out who turns it off"
                ),
            ));
        }
        if *reverse_path == 1 && facts.exempt {
            findings.push(Finding::warning(
                Check::ReversePath,
                format!(
                    "rp_filter is strict on {name}: exempt packets, which the kernel forwards, are \
                     dropped where their answers would take another way"
                ),
                format!(
                    "sysctl -w net.ipv4.conf.{name}.rp_filter=2 (net.ipv4.conf.all.rp_filter too)"
                ),
            ));
        }
    }
    let outside = facts.public.join(", ");
    if !facts.default_route {
        findings.push(Finding::warning(
            Check::NoRoute,
            format!("no default route leaves by a public interface ({outside})"),
            format!(
                "ip route add default via ROUTER dev {}, unless more special routes are meant",
                facts.public.first().map_or("IF", String::as_str)
            ),
        ));
    }
    for Address { address, on_link, neighbour } in &facts.addresses {
        if let Some(mac) = neighbour {
            findings.push(Finding::error(
                Check::AddressConflict,
                format!("{address} is in use: {mac} has answered for it"),
                "take the address away from the other machine, or out of the configuration",
            ));
        }
        if !on_link {
            findings.push(Finding::note(
                Check::AddressNotRouted,
                format!(
                    "{address} is in no subnet of {outside}: packets to it come only if the router \
                     sends them here"
                ),
                format!("on the router: ip route add {address} via this machine"),
            ));
        }
    }
    if let Some((name, fix)) = cloud(&facts.vendor) {
        findings.push(Finding::note(
            Check::SourceCheck,
            format!(
                "this is an instance of {name}: packets of other sources reach it, and leave it, \
                     only if the cloud does not check them"
            ),
            fix,
        ));
    }
    findings
}

/// By the vendor that the firmware names.
fn cloud(vendor: &str) -> Option<(&'static str, &'static str)> {
    Some(match vendor {
        "Amazon EC2" => (
            "Amazon EC2",
            "aws ec2 modify-instance-attribute --instance-id ID --no-source-dest-check, once",
        ),
        "Google" => (
            "Google Compute Engine",
            "create the instance with --can-ip-forward; it cannot be changed later",
        ),
        "Microsoft Corporation" => (
            "Microsoft (Azure or Hyper-V)",
            "on Azure: az network nic update --ip-forwarding true for each interface",
        ),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Level, testing::told};

    fn good() -> Facts {
        Facts {
            interfaces: vec![Interface {
                name: "eth1".to_owned(),
                forwarding: Some(true),
                reverse_path: 0,
            }],
            public: vec!["eth0".to_owned()],
            default_route: true,
            addresses: vec![Address {
                address: Ipv4Addr::new(198, 51, 100, 10),
                on_link: true,
                neighbour: None,
            }],
            exempt: true,
            running: true,
            vendor: "QEMU".to_owned(),
        }
    }

    #[test]
    fn ways_that_are_open_are_not_mentioned() {
        assert_eq!(told(&judge(&good())), []);
    }

    #[test]
    fn forwarding_is_missed_only_by_a_gateway_that_runs() {
        let off =
            || Interface { name: "eth1".to_owned(), forwarding: Some(false), reverse_path: 1 };
        let facts = Facts { interfaces: vec![off()], ..good() };
        let strict = (Check::ReversePath, Level::Warning);
        assert_eq!(told(&judge(&facts)), [(Check::Forwarding, Level::Error), strict]);
        let facts = Facts { running: false, ..facts };
        assert_eq!(told(&judge(&facts)), [strict]);
        assert_eq!(told(&judge(&Facts { exempt: false, ..facts })), []);
    }

    #[test]
    fn a_missing_default_route_and_addresses_elsewhere_are_told() {
        let address = Ipv4Addr::new(192, 0, 2, 1);
        let taken = Some("02:00:00:00:00:07".to_owned());
        let addresses = vec![Address { address, on_link: false, neighbour: taken }];
        let facts = Facts { default_route: false, addresses, ..good() };
        assert_eq!(
            told(&judge(&facts)),
            [
                (Check::NoRoute, Level::Warning),
                (Check::AddressConflict, Level::Error),
                (Check::AddressNotRouted, Level::Note),
            ]
        );
    }

    #[test]
    fn a_cloud_is_known_by_its_firmware_and_its_check_is_named() {
        for vendor in ["Amazon EC2", "Google", "Microsoft Corporation"] {
            let facts = Facts { vendor: vendor.to_owned(), ..good() };
            assert_eq!(told(&judge(&facts)), [(Check::SourceCheck, Level::Note)]);
        }
    }

    #[test]
    fn an_address_is_on_link_by_the_subnet_of_a_public_interface_only() {
        let own = crate::netdev::InterfaceAddress {
            ifindex: 2,
            address: Ipv4Addr::new(198, 51, 100, 2),
            prefix_len: 24,
            secondary: false,
            broadcast: None,
        };
        let snapshot = Snapshot { addresses: vec![own], ..Snapshot::default() };
        let address = Ipv4Addr::new(198, 51, 100, 10);
        assert!(is_on_link(&snapshot, &[2], address));
        assert!(!is_on_link(&snapshot, &[3], address));
    }
}
