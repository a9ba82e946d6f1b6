//! The gateway's interfaces: what hangs on each, and how it follows the link's fate.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use nat_common::{
    net::Ip4,
    rules::{HostAddress, Interface, host_address, interface, role},
};
use nix::net::if_::if_nametoindex;

use super::{gateway::Gateway, hook::Hook};
use crate::{
    api::model::{AttachedMode, InterfaceState, InterfaceStatus},
    config::Role,
    datapath::{AttachMode, DatapathError},
    netdev::{Link, Snapshot},
};

/// One interface of the configuration.
#[derive(Debug, Clone)]
pub(super) struct Port {
    pub(super) role: Role,
    /// As the dataplane knows it; nothing while the interface is missing.
    pub(super) known: Option<Interface>,
    pub(super) attached: bool,
    /// Why it is not attached; said once.
    pub(super) problem: Option<String>,
}

impl Port {
    pub(super) const fn new(role: Role) -> Self {
        Self { role, known: None, attached: false, problem: None }
    }

    pub(super) const fn is_public(&self) -> bool {
        matches!(self.role, Role::Public | Role::Both)
    }

    pub(super) const fn is_private(&self) -> bool {
        matches!(self.role, Role::Private | Role::Both)
    }

    /// Attached to what has this name now. The kernel is asked: what it tells of a link that was
    /// deleted and made anew may not have been heard yet.
    fn serves(&self, name: &str) -> bool {
        let serving = self.known.filter(|_| self.attached).map(|known| known.ifindex);
        serving.is_some_and(|ifindex| if_nametoindex(name).is_ok_and(|now| now == ifindex))
    }
}

impl Gateway {
    /// Everything that has to be there before translation: the guard first, then forwarding, then
    /// the dataplane's own tables.
    pub(super) fn prepare(&mut self, name: &str) -> Result<()> {
        let Some(link) = self.snapshot.link(name).cloned() else {
            anyhow::bail!("there is no interface {name} any more; create it, or change the file");
        };
        let Some(port) = self.ports.get(name) else {
            return Ok(());
        };
        let interface = interface_value(&link, port.role, &self.snapshot);
        if port.is_public() {
            self.datapath.attach_guard(link.ifindex, name)?;
        }
        if port.is_private() {
            self.datapath.attach_inner_guard(link.ifindex, name)?;
        }
        self.state.turn_on(&self.state_path, name)?;
        self.datapath.set_interface(&interface)?;
        if let Some(port) = self.ports.get_mut(name) {
            port.known = Some(interface);
        }
        Ok(())
    }

    /// Puts the translating program on, where [`Self::prepare`] has been.
    pub(super) fn attach(&mut self, name: &str) -> Result<()> {
        match self.attach_as(name, self.hook.mode) {
            Err(DatapathError::Attach { interface, reason, .. }) if self.hook.may_fall_back() => {
                self.fall_back(format!("{interface} takes no native XDP: {reason}"))?;
                Ok(self.attach_as(name, self.hook.mode)?)
            }
            result => Ok(result?),
        }
    }

    fn attach_as(&mut self, name: &str, mode: AttachMode) -> Result<(), DatapathError> {
        let Some(port) = self.ports.get_mut(name) else { return Ok(()) };
        let Some(known) = port.known else { return Ok(()) };
        self.datapath.attach_xdp(known.ifindex, name, mode)?;
        port.attached = true;
        port.problem = None;
        Ok(())
    }

    /// Native was tried and refused: everything that is attached moves to tc.
    fn fall_back(&mut self, why: String) -> Result<()> {
        self.hook = Hook::tc(why);
        self.tell_hook();
        if self.slow_path.is_some() {
            self.stop_slow_path();
            self.start_slow_path();
        }
        let attached = self.ports.iter().filter(|(_, port)| port.attached);
        for name in attached.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.attach_as(&name, self.hook.mode)?;
        }
        Ok(())
    }

    pub(super) fn tell_hook(&self) {
        if let Some(why) = &self.hook.why {
            log::info!("xdp_mode auto: {}, because {why}", self.hook.mode.word());
        }
    }

    /// Follows the links: gone, back, changed. True where cached next hops may be wrong.
    pub(super) fn follow_links(&mut self) -> bool {
        let names: Vec<String> = self.ports.keys().cloned().collect();
        // Not `any`: every interface is to be looked at.
        names.iter().fold(false, |changed, name| self.follow_link(name) | changed)
    }

    fn follow_link(&mut self, name: &str) -> bool {
        let link = self.snapshot.link(name).cloned();
        let Some(port) = self.ports.get_mut(name) else { return false };
        let known = port.known;
        if let Some(known) = known
            && link.as_ref().map(|link| link.ifindex) != Some(known.ifindex)
        {
            log::warn!(
                "interface {name} has disappeared; the gateway is degraded until it is back"
            );
            port.known = None;
            port.attached = false;
            port.problem = Some("it has disappeared".to_owned());
            if let Err(error) = self.datapath.clear_interface(known.ifindex) {
                log::warn!("{error}");
            }
        }
        let Some(link) = link else { return known.is_some() };
        let Some(port) = self.ports.get(name) else { return false };
        if !port.attached {
            return self.revive(name);
        }
        let now = interface_value(&link, port.role, &self.snapshot);
        if Some(now) == known {
            return false;
        }
        if let Err(error) = self.datapath.set_interface(&now) {
            log::warn!("interface {name}: {error}");
            return false;
        }
        log::info!("interface {name}: address {}, {}, MTU {}", now.address, now.mac, now.mtu);
        let moved = known.is_some_and(|known| known.mac != now.mac);
        if let Some(port) = self.ports.get_mut(name) {
            port.known = Some(now);
            if moved && port.is_public() {
                self.announce_all();
            }
        }
        true
    }

    /// Attaches to an interface that is back, or tries once more; its troubles are said once each.
    fn revive(&mut self, name: &str) -> bool {
        let result = self.prepare(name).and_then(|()| self.attach(name));
        let Some(port) = self.ports.get_mut(name) else { return false };
        match result {
            Ok(()) => {
                log::info!("interface {name} is attached");
                if port.is_public() {
                    self.announce_all();
                }
                true
            }
            Err(error) => {
                let problem = format!("{error:#}");
                if port.problem.as_ref() != Some(&problem) {
                    log::warn!("interface {name}: {problem}");
                    port.problem = Some(problem);
                }
                false
            }
        }
    }

    /// Writes which addresses are the host's own, and which are directed broadcasts.
    pub(super) fn write_host_addresses(&mut self) -> Result<()> {
        let wanted = host_addresses(&self.snapshot);
        self.datapath.set_host_addresses(&wanted).context("cannot tell the dataplane of the host")
    }

    /// Writes which interfaces are none of the gateway's. One that is down may yet be renamed, and
    /// no route leaves by it.
    pub(super) fn write_other_links(&mut self) {
        let links = self.snapshot.links.values();
        let others = links.filter(|link| link.up && !self.ports.contains_key(&link.name));
        let others = others.map(|link| link.ifindex).collect();
        if let Err(error) = self.datapath.set_other_links(&others) {
            log::warn!("{error}; what is protected leaves by none of those that are missing");
        }
    }

    pub(super) fn missing_interfaces(&self) -> bool {
        self.ports.values().any(|port| !port.attached)
    }

    /// Every interface is there, and is the one that the programs are attached to.
    pub(super) fn serves_all(&self) -> bool {
        self.ports.iter().all(|(name, port)| port.serves(name))
    }

    pub(super) fn interface_statuses(&self) -> Vec<InterfaceStatus> {
        let mode = match self.hook.mode {
            AttachMode::Native => AttachedMode::Native,
            AttachMode::Generic => AttachedMode::Generic,
            AttachMode::Tc => AttachedMode::Tc,
        };
        let why = self.hook.why.as_ref().map(|why| format!("auto: {why}"));
        // The configuration's order, not the map's.
        self.config
            .interfaces()
            .into_iter()
            .map(|(name, role)| {
                let port = self.ports.get(name);
                let attached = port.is_some_and(|port| port.serves(name));
                let unheard = port.is_some_and(|port| port.attached) && !attached;
                let problem = port.and_then(|port| port.problem.clone());
                InterfaceStatus {
                    name: name.to_owned(),
                    role,
                    xdp_mode: mode,
                    state: if attached {
                        InterfaceState::Attached
                    } else {
                        InterfaceState::Missing
                    },
                    note: problem
                        .or_else(|| unheard.then(|| "it is gone, or was made anew".to_owned()))
                        .or_else(|| why.clone()),
                }
            })
            .collect()
    }
}

fn interface_value(link: &Link, of: Role, snapshot: &Snapshot) -> Interface {
    let role = match of {
        Role::Public => role::PUBLIC,
        Role::Private => role::PRIVATE,
        Role::Both => role::PUBLIC | role::PRIVATE,
    };
    let address = snapshot.primary_address(link.ifindex).map_or(Ip4::UNSPECIFIED, Ip4::from);
    Interface {
        ifindex: link.ifindex,
        role,
        realm: 0,
        mac: link.mac,
        address,
        mtu: link.mtu,
        flags: if link.kind.as_deref() == Some("veth") { interface::NO_BOUNCE } else { 0 },
    }
}

fn host_addresses(snapshot: &Snapshot) -> BTreeMap<Ip4, HostAddress> {
    let mut addresses = BTreeMap::new();
    for it in &snapshot.addresses {
        for broadcast in it.broadcasts() {
            let value = HostAddress { ifindex: it.ifindex, flags: host_address::BROADCAST };
            addresses.insert(Ip4::from(broadcast), value);
        }
    }
    // After the broadcasts: an address that is both is the host's.
    for it in &snapshot.addresses {
        let value = HostAddress { ifindex: it.ifindex, flags: host_address::OWNED };
        addresses.insert(Ip4::from(it.address), value);
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netdev::InterfaceAddress;

    #[test]
    fn own_addresses_and_directed_broadcasts_are_told_apart() {
        let entry = |last: u8, prefix_len| InterfaceAddress {
            ifindex: 4,
            address: [10, 0, 0, last].into(),
            prefix_len,
            secondary: false,
            broadcast: None,
        };
        let snapshot =
            Snapshot { links: BTreeMap::new(), addresses: vec![entry(1, 24), entry(3, 30)] };
        let table = host_addresses(&snapshot);
        let flags = |last: u8| table.get(&Ip4::new([10, 0, 0, last])).map(|it| it.flags);
        assert_eq!(flags(1), Some(host_address::OWNED));
        assert_eq!(flags(255), Some(host_address::BROADCAST));
        assert_eq!(flags(3), Some(host_address::OWNED), "an own address that is also a broadcast");
        assert_eq!(flags(2), None);
    }
}
