//! Which hook the entry program hangs on.
//!
//! It is one for all interfaces of a gateway: what XDP redirects to a veth is lost where the other
//! end takes no XDP frames, and nothing tells before.

use crate::{
    config::{Config, XdpMode},
    datapath::{self, AttachMode},
    netdev::{Link, Snapshot},
    preflight::{self, KernelVersion},
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hook {
    pub(crate) mode: AttachMode,
    /// Why, where it was left to the gateway.
    pub(super) why: Option<String>,
}

impl Hook {
    pub(crate) fn choose(config: &Config, snapshot: &Snapshot) -> Self {
        let gateway = &config.gateway;
        let asked = |mode| Self { mode, why: None };
        match gateway.xdp_mode {
            XdpMode::Native => return asked(AttachMode::Native),
            XdpMode::Generic => return asked(AttachMode::Generic),
            XdpMode::Tc => return asked(AttachMode::Tc),
            XdpMode::Auto => {}
        }
        // Where it cannot be asked, it is the newest.
        let kernel =
            KernelVersion::running().unwrap_or(KernelVersion { major: u32::MAX, minor: 0 });
        let names = config.interfaces().into_iter();
        let against = names.filter_map(|(name, _)| snapshot.link(name)).find_map(|link| {
            let ours = datapath::has_link(&gateway.bpf_dir, &gateway.name, &link.name);
            against_native(link, kernel, ours)
        });
        match against {
            Some(why) => Self::tc(why),
            None => Self {
                mode: AttachMode::Native,
                why: Some("no interface is a virtual one, and the drivers have native XDP".into()),
            },
        }
    }

    pub(super) const fn tc(why: String) -> Self {
        Self { mode: AttachMode::Tc, why: Some(why) }
    }

    /// Whether the gateway may choose anew.
    pub(super) fn may_fall_back(&self) -> bool {
        self.why.is_some() && self.mode == AttachMode::Native
    }
}

/// Why native XDP is not the hook for this interface, as far as that shows before it is tried.
fn against_native(link: &Link, kernel: KernelVersion, ours: bool) -> Option<String> {
    let name = &link.name;
    match link.kind.as_deref() {
        Some(kind @ ("veth" | "tun" | "netkit")) => {
            return Some(format!(
                "{name} is a {kind}: its frames are many packets in one and without checksums, \
                 which native XDP cannot translate"
            ));
        }
        // A bond has native XDP where its members do.
        Some("bond") | None => {}
        Some(kind) => return Some(format!("{name} is a {kind}, which has no native XDP")),
    }
    // For the reason alone: what refuses native says it.
    let refusal = preflight::interface(link, XdpMode::Native, kernel, ours).err()?;
    let text = format!("{refusal:#}");
    Some(text.split(';').next().unwrap_or(&text).to_owned())
}

#[cfg(test)]
mod tests {
    use nat_common::net::Mac;

    use super::*;

    const OLD: KernelVersion = KernelVersion { major: 6, minor: 1 };
    const NEW: KernelVersion = KernelVersion { major: 6, minor: 6 };

    fn link(kind: Option<&str>, mtu: u32, xdp_program: Option<u32>) -> Link {
        Link {
            ifindex: 2,
            name: "eth0".to_owned(),
            ethernet: true,
            mac: Mac([2; 6]),
            mtu,
            up: true,
            kind: kind.map(str::to_owned),
            xdp_program,
        }
    }

    #[test]
    fn native_is_for_drivers_of_hardware_and_for_bonds_of_them() {
        assert_eq!(against_native(&link(None, 1500, None), NEW, false), None);
        assert_eq!(against_native(&link(Some("bond"), 1500, None), NEW, false), None);
        for kind in ["veth", "tun", "bridge", "macvlan", "vlan"] {
            let why = against_native(&link(Some(kind), 1500, None), NEW, false);
            assert!(why.is_some_and(|why| why.contains(kind) && why.contains("eth0")), "{kind}");
        }
    }

    #[test]
    fn what_native_would_refuse_is_the_reason_for_tc() {
        let why = against_native(&link(None, 9000, None), OLD, false).expect("a reason");
        assert!(why.contains("9000") && why.contains("6.3"), "{why}");
        assert_eq!(against_native(&link(None, 9000, None), NEW, false), None);
        let why = against_native(&link(None, 1500, Some(7)), NEW, false).expect("a reason");
        assert!(why.contains("another XDP program"), "{why}");
        assert_eq!(against_native(&link(None, 1500, Some(7)), NEW, true), None);
    }
}
