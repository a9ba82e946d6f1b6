//! The configuration on its way into the dataplane: facts, compile, plan, apply.

use std::{collections::BTreeMap, net::Ipv4Addr};

use anyhow::{Context as _, Result};

use super::{gateway::Gateway, interfaces::Port};
use crate::{
    config::Config,
    controller::{AddressFact, Facts, Step, compile, plan},
    datapath::ticks_per_second,
};

impl Gateway {
    /// Brings the maps to what configuration and host say now.
    pub(super) fn apply_rules(&mut self) -> Result<()> {
        let steps = self.plan(&self.config)?;
        self.datapath.apply(&steps)?;
        Ok(())
    }

    /// What it would take to run `config` instead.
    pub(super) fn plan(&self, config: &Config) -> Result<Vec<Step>> {
        let current = self.datapath.contents()?;
        let wanted = compile(config, &self.facts(config)?, &current)?;
        Ok(plan(&wanted, &current))
    }

    fn facts(&self, config: &Config) -> Result<Facts> {
        let hz = ticks_per_second().context("cannot ask for the length of a tick")?;
        let interfaces = config
            .interfaces()
            .into_iter()
            .filter_map(|(name, _)| Some((name.to_owned(), self.snapshot.link(name)?.ifindex)))
            .collect();
        let addresses = public_addresses(config)
            .into_iter()
            .map(|(address, owned_at_start)| {
                let state = self.address_state(address, owned_at_start);
                (address, AddressFact { state, host_owned: self.snapshot.owns(address) })
            })
            .collect();
        Ok(Facts { hz, slow_path: self.datapath.has_slow_path(), interfaces, addresses })
    }

    /// What a gateway has no room for that was started without a pool that keeps endpoints.
    pub(super) fn shortage(&self, config: &Config) -> Option<String> {
        let (room, sessions) = (self.datapath.room_for_bindings(), config.gateway.sessions);
        (config.keeps_endpoints() && room < sessions).then(|| {
            format!(
                "there is room for {room} endpoint-independent mappings instead of {sessions}, \
                 because the gateway was started without such a pool; for all, start it again after a \
                 stop with --on-exit stop: sessions stay"
            )
        })
    }

    /// Runs `config` from now on: what is new is made before what is old is broken.
    ///
    /// # Errors
    /// What could not be done. The maps may be between the two; doing it again is the way on.
    pub(super) fn take_into_use(&mut self, config: Config) -> Result<()> {
        let earlier: Vec<String> = self.ports.keys().cloned().collect();
        let announced = self.public_addresses();
        let mut added = Vec::new();
        for (name, role) in config.interfaces() {
            let port = self.ports.entry(name.to_owned()).or_insert_with(|| Port::new(role));
            if port.role != role || !port.attached {
                port.role = role;
                added.push(name.to_owned());
            }
        }
        let gone: Vec<String> =
            earlier.into_iter().filter(|name| !names(&config).any(|it| it == *name)).collect();
        self.config = config;
        self.forget_vanished_addresses();
        for name in &added {
            self.prepare(name)?;
        }
        self.apply_rules()?;
        for name in &added {
            self.attach(name)?;
        }
        for name in &gone {
            self.release_interface(name)?;
        }
        self.write_other_links();
        // A public interface that is only private now needs no guard, nor the other way round.
        for (name, port) in &self.ports {
            if !port.is_public() {
                self.datapath.detach_guard(name)?;
            }
            if !port.is_private() {
                self.datapath.detach_inner_guard(name)?;
            }
        }
        if !added.is_empty() || !gone.is_empty() {
            self.datapath.bump_epoch()?;
        }
        if self.public_addresses() != announced {
            self.announce_all();
            self.to_probe = self.answered_addresses();
        }
        Ok(())
    }

    /// An interface that is the gateway's no longer. Its forwarding is restored by `detach`.
    fn release_interface(&mut self, name: &str) -> Result<()> {
        self.datapath.detach_xdp(name)?;
        if let Some(known) = self.ports.remove(name).and_then(|port| port.known) {
            self.datapath.clear_interface(known.ifindex)?;
        }
        self.datapath.detach_guard(name)?;
        self.datapath.detach_inner_guard(name)?;
        Ok(())
    }

    fn forget_vanished_addresses(&mut self) {
        let ours = self.public_addresses();
        self.draining.retain(|address, _| ours.contains_key(address));
        self.failed.retain(|address| ours.contains_key(address));
    }
}

fn names(config: &Config) -> impl Iterator<Item = &str> {
    config.interfaces().into_iter().map(|(name, _)| name)
}

/// Pool and one-to-one addresses, each with whether the host owned it at start.
pub(super) fn public_addresses(config: &Config) -> BTreeMap<Ipv4Addr, bool> {
    let pools = config.pools.iter().flat_map(|pool| &pool.addresses);
    let one_to_one = config.one_to_one.iter().map(|it| (it.public, it.host_owned));
    pools.map(|entry| (entry.address, entry.host_owned)).chain(one_to_one).collect()
}
