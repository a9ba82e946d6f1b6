//! The running gateway: configuration, dataplane and what is known of the host, under one lock.
//!
//! The daemon's loop and the threads that answer the control socket take turns. Nobody holds the
//! lock across a wait, and walks over the session table go without it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;
use nat_common::net::Mac;

use super::{
    RunOptions,
    hook::Hook,
    interfaces::Port,
    peaks::{Peaks, Totals},
    rules::public_addresses,
};
use crate::{
    announce,
    api::model::{AddressState, GatewayState},
    config::{AddressSource, Config},
    datapath::{Capturer, Datapath},
    flowlog::FlowLog,
    forwarding::StateFile,
    netdev::Snapshot,
    slowpath::SlowPath,
};

pub(super) struct Gateway {
    pub(super) config: Config,
    pub(super) options: RunOptions,
    pub(super) datapath: Datapath,
    pub(super) slow_path: Option<SlowPath>,
    pub(super) snapshot: Snapshot,
    pub(super) ports: BTreeMap<String, Port>,
    pub(super) hook: Hook,
    pub(super) state: StateFile,
    pub(super) state_path: PathBuf,
    pub(super) started: Instant,
    pub(super) phase: GatewayState,
    /// Addresses that take no new sessions, and when they are released at the latest.
    pub(super) draining: BTreeMap<Ipv4Addr, Instant>,
    /// Addresses that another machine has.
    pub(super) failed: BTreeSet<Ipv4Addr>,
    /// Addresses to be probed for conflicts at the next tick.
    pub(super) to_probe: Vec<Ipv4Addr>,
    /// Announcements still to be sent, the soonest first.
    announcements: Vec<(Instant, Ipv4Addr)>,
    peaks: Peaks,
    /// What the last walk over the session table took of a CPU.
    pub(super) sweep_time: Duration,
    /// Once a configuration has asked for it.
    pub(super) flow_log: Option<FlowLog>,
    /// The programs that have the place of the gateway's own while a capture runs.
    pub(super) capture: Option<Capturer>,
    /// When everything is detached, unless somebody confirms.
    pub(super) unconfirmed_until: Option<Instant>,
}

impl Gateway {
    pub(super) fn new(
        config: Config,
        hook: Hook,
        options: RunOptions,
        datapath: Datapath,
        snapshot: Snapshot,
        state: StateFile,
    ) -> Self {
        let ports = config
            .interfaces()
            .into_iter()
            .map(|(name, role)| (name.to_owned(), Port::new(role)))
            .collect();
        let state_path = StateFile::path(&config.gateway.state_dir, &config.gateway.name);
        Self {
            config,
            options,
            datapath,
            slow_path: None,
            snapshot,
            ports,
            hook,
            state,
            state_path,
            started: Instant::now(),
            phase: GatewayState::Starting,
            draining: BTreeMap::new(),
            failed: BTreeSet::new(),
            to_probe: Vec::new(),
            announcements: Vec::new(),
            peaks: Peaks::default(),
            sweep_time: Duration::ZERO,
            flow_log: None,
            capture: None,
            unconfirmed_until: None,
        }
    }

    /// Once a second: a sign of life, announcements that are due, interfaces that are not attached.
    pub(super) fn tick(&mut self) -> Result<()> {
        self.datapath.heartbeat()?;
        let counters = self.datapath.counters()?;
        self.peaks.sample(Totals {
            bytes: counters.bytes_in_from_source.wrapping_add(counters.bytes_in_from_destination),
            packets: counters
                .packets_in_from_source
                .wrapping_add(counters.packets_in_from_destination),
        });
        self.follow_log(counters.records_lost)?;
        self.send_announcements();
        if self.missing_interfaces() && self.follow_links() {
            self.datapath.bump_epoch()?;
        }
        Ok(())
    }

    /// Without it the gateway translates all the same, except what needs it.
    pub(super) fn start_slow_path(&mut self) {
        match SlowPath::start(&mut self.datapath, self.hook.mode) {
            Ok(slow_path) => self.slow_path = Some(slow_path),
            Err(error) => log::warn!(
                "packets that have to wait or to be fragmented are dropped: no slow path: {error:#}"
            ),
        }
    }

    /// Its packets are given up.
    pub(super) fn stop_slow_path(&mut self) {
        if let Some(slow_path) = self.slow_path.take()
            && let Err(error) = slow_path.stop(&mut self.datapath)
        {
            log::warn!("{error}");
        }
    }

    pub(super) fn peaks(&self) -> Totals {
        self.peaks.highest()
    }

    pub(super) fn gateway_state(&self) -> GatewayState {
        match self.phase {
            GatewayState::Ready if !self.serves_all() => GatewayState::Degraded,
            phase => phase,
        }
    }

    /// The links or addresses of the host have changed. True where a pool has another address now,
    /// so that sessions of the old one are to end.
    pub(super) fn follow_host(&mut self, snapshot: Snapshot) -> Result<bool> {
        if snapshot == self.snapshot {
            return Ok(false);
        }
        let addresses_changed = snapshot.addresses != self.snapshot.addresses;
        let updown_changed = snapshot
            .links
            .values()
            .any(|link| self.snapshot.links.get(&link.ifindex).is_some_and(|it| it.up != link.up));
        self.snapshot = snapshot;
        self.write_other_links();
        let links_changed = self.follow_links();
        if updown_changed {
            // Nobody heard what was announced on an interface that was down.
            self.announce_all();
        }
        let mut moved = false;
        if addresses_changed {
            self.write_host_addresses()?;
            moved = self.follow_interface_pools();
            // An address may have come or gone: what the dataplane may do with it is in the rules.
            self.apply_rules()?;
        }
        if links_changed || updown_changed || addresses_changed {
            self.datapath.bump_epoch()?;
        }
        Ok(moved)
    }

    /// Pool addresses that are "the primary address of an interface". True where one changed.
    fn follow_interface_pools(&mut self) -> bool {
        let mut moved = false;
        for pool in &mut self.config.pools {
            for entry in &mut pool.addresses {
                let AddressSource::Interface(name) = &entry.source else { continue };
                let ifindex = self.snapshot.link(name).map(|link| link.ifindex);
                let primary = ifindex.and_then(|it| self.snapshot.primary_address(it));
                // An interface without address: the old one stays, and is lost.
                if let Some(primary) = primary.filter(|primary| *primary != entry.address) {
                    log::info!(
                        "pool {}: {name} has {primary} now, not {}",
                        pool.name,
                        entry.address
                    );
                    entry.address = primary;
                    entry.host_owned = true;
                    moved = true;
                }
            }
        }
        moved
    }

    pub(super) fn public_addresses(&self) -> BTreeMap<Ipv4Addr, bool> {
        public_addresses(&self.config)
    }

    pub(super) fn address_state(&self, address: Ipv4Addr, owned_at_start: bool) -> AddressState {
        if self.failed.contains(&address) {
            AddressState::Failed
        } else if owned_at_start && !self.snapshot.owns(address) {
            AddressState::Lost
        } else if self.draining.contains_key(&address) {
            AddressState::Draining
        } else {
            AddressState::Active
        }
    }

    /// Why an address is not active, for the operator.
    pub(super) fn address_note(&self, address: Ipv4Addr, owned_at_start: bool) -> Option<String> {
        match self.address_state(address, owned_at_start) {
            AddressState::Active => None,
            AddressState::Draining => self.draining.get(&address).map(|until| {
                let left = until.saturating_duration_since(Instant::now());
                format!("released in {} s at the latest", left.as_secs())
            }),
            AddressState::Lost => Some("the host has lost it; give it back, or reload".to_owned()),
            AddressState::Failed => Some("another machine has it; find out which".to_owned()),
        }
    }

    /// Public addresses that the gateway answers for, because the host does not.
    pub(super) fn answered_addresses(&self) -> Vec<Ipv4Addr> {
        answered_addresses(&self.config, &self.snapshot)
    }

    /// Somebody else has these addresses: no new sessions, no answers.
    pub(super) fn mark_failed(&mut self, conflicts: &[(Ipv4Addr, Mac)]) -> Result<()> {
        let mut changed = false;
        for (address, mac) in conflicts {
            if self.failed.insert(*address) {
                changed = true;
                log::error!(
                    "{address} belongs to another machine ({mac}); it is not used until a reload \
                     or a new start finds it free"
                );
            }
        }
        if changed { self.apply_rules() } else { Ok(()) }
    }

    /// The Ethernet addresses of the host.
    pub(super) fn own_macs(&self) -> BTreeSet<[u8; 6]> {
        self.snapshot.links.values().map(|link| link.mac.0).collect()
    }

    /// Announces every public address that the host does not own, now and once more after.
    pub(super) fn announce_all(&mut self) {
        let mut addresses = self.answered_addresses();
        addresses.retain(|address| !self.failed.contains(address));
        self.announcements.retain(|(_, address)| !addresses.contains(address));
        let now = Instant::now();
        for repetition in 0..announce::ANNOUNCEMENTS {
            let due = now + announce::ANNOUNCE_INTERVAL * repetition;
            self.announcements.extend(addresses.iter().map(|&address| (due, address)));
        }
        self.send_announcements();
    }

    fn send_announcements(&mut self) {
        let now = Instant::now();
        let (due, later) = self.announcements.drain(..).partition(|(due, _)| *due <= now);
        self.announcements = later;
        let due: Vec<(Instant, Ipv4Addr)> = due;
        for (_, address) in due {
            for (name, port) in &self.ports {
                let Some(known) = port.known.filter(|_| port.is_public() && port.attached) else {
                    continue;
                };
                let frame = announce::announcement(known.mac, address);
                if let Err(error) = self.datapath.emit_frame(known.ifindex, &frame) {
                    log::warn!("cannot announce {address} on {name}: {error}");
                }
            }
        }
    }

    /// Time that is left to confirm; nothing where nobody has to.
    pub(super) fn confirm_left(&self) -> Option<Duration> {
        self.unconfirmed_until.map(|until| until.saturating_duration_since(Instant::now()))
    }
}

/// Pool and one-to-one addresses that are not the host's, now or at start.
pub(super) fn answered_addresses(config: &Config, snapshot: &Snapshot) -> Vec<Ipv4Addr> {
    public_addresses(config)
        .into_iter()
        .filter(|&(address, owned_at_start)| !owned_at_start && !snapshot.owns(address))
        .map(|(address, _)| address)
        .collect()
}
