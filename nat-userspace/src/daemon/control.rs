//! What the control socket asks, answered from the running gateway.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    ops::ControlFlow,
    sync::{Arc, Mutex, MutexGuard},
};

use nat_common::{flow::FlowKey, stage::request, verdict::DropReason};

use super::{edit, gateway::Gateway, reload, run::lock, top::LastLook, trace::Telling};
use crate::{
    api::{
        AddressDetail, Control, ControlError, Counters, Details,
        capture::{CaptureRequest, Deliver},
        model::{
            AddressStatus, Counted, EipChange, Flow, FlowFilter, ForwardChange, PortsInUse,
            Reloaded, Status,
        },
        top::{Top, TopQuery},
        trace::{Trace, TraceQuery},
    },
    config::{Forward, Protocol},
    flowlog::LogStatus,
    flows::{self, Usage, View},
    slowpath::SlowPath,
};

/// Sessions ended under one hold of the lock.
const ENDED_AT_ONCE: usize = 1024;

/// The daemon's side of the control socket. Cheap calls hold the lock; walks over the session table
/// take only what they need under it.
pub(super) struct Controller {
    gateway: Arc<Mutex<Gateway>>,
    pub(super) telling: Telling,
    /// Held while a capture runs.
    pub(super) capturing: Mutex<()>,
    pub(super) last_look: LastLook,
}

impl Controller {
    pub(super) fn new(gateway: Arc<Mutex<Gateway>>) -> Self {
        Self {
            gateway,
            telling: Telling::default(),
            capturing: Mutex::new(()),
            last_look: LastLook::default(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Gateway> {
        lock(&self.gateway)
    }

    /// What a walk over the sessions needs, so that it can go without the lock.
    pub(super) fn view(&self) -> Result<View, ControlError> {
        View::open(&self.lock().datapath).map_err(failed)
    }

    pub(super) fn usage(&self) -> Result<Usage, ControlError> {
        flows::usage(&mut self.view()?).map_err(failed)
    }

    /// Ends every session that `condemn` names, in pieces, so that the loop has its turns.
    pub(super) fn end_sessions(
        &self,
        mut condemn: impl FnMut(&flows::Entry) -> bool,
    ) -> Result<u64, ControlError> {
        let mut keys: Vec<FlowKey> = Vec::new();
        flows::walk(&mut self.view()?, |entry| {
            if condemn(entry) {
                keys.push(entry.key);
            }
            ControlFlow::Continue(())
        })
        .map_err(failed)?;
        let mut ended = 0;
        for piece in keys.chunks(ENDED_AT_ONCE) {
            ended += u64::from(self.lock().datapath.reap(request::END, piece).map_err(failed)?);
        }
        Ok(ended)
    }

    pub(super) fn address_statuses(&self, usage: &Usage) -> Vec<AddressStatus> {
        let gateway = self.lock();
        let pools: BTreeMap<Ipv4Addr, &str> = gateway
            .config
            .pools
            .iter()
            .flat_map(|pool| pool.addresses.iter().map(|it| (it.address, pool.name.as_str())))
            .collect();
        gateway
            .public_addresses()
            .into_iter()
            .map(|(address, owned_at_start)| {
                let used = usage.addresses.get(&address).copied().unwrap_or_default();
                AddressStatus {
                    address,
                    // A one-to-one address is in no pool.
                    pool: pools.get(&address).copied().unwrap_or_default().to_owned(),
                    state: gateway.address_state(address, owned_at_start),
                    sessions: used.sessions,
                    ports_in_use: PortsInUse { tcp: used.tcp, udp: used.udp, icmp: used.icmp },
                    note: gateway.address_note(address, owned_at_start),
                }
            })
            .collect()
    }
}

impl Controller {
    /// The counters, where the number of sessions is known.
    pub(super) fn counters_with(&self, sessions: u64) -> Result<Counters, ControlError> {
        let gateway = self.lock();
        let read = gateway.datapath.counters().map_err(failed)?;
        let drops: BTreeMap<String, u64> = DropReason::ALL
            .iter()
            .map(|&reason| {
                let count = read.drops.get(reason as usize).copied().unwrap_or_default();
                (reason.name().to_owned(), count)
            })
            .collect();
        let peaks = gateway.peaks();
        Ok(Counters {
            active_connection_count: read.established_entered.saturating_sub(read.established_left),
            connection_attempt_count: read.connection_attempts,
            connection_established_count: read.connections_established,
            bytes_in_from_source: read.bytes_in_from_source,
            bytes_out_to_destination: read.bytes_out_to_destination,
            bytes_in_from_destination: read.bytes_in_from_destination,
            bytes_out_to_source: read.bytes_out_to_source,
            packets_in_from_source: read.packets_in_from_source,
            packets_out_to_destination: read.packets_out_to_destination,
            packets_in_from_destination: read.packets_in_from_destination,
            packets_out_to_source: read.packets_out_to_source,
            // Refused in silence or with an ICMP error; only the former are drops.
            error_port_allocation: read.port_allocation_errors,
            idle_timeout_count: read.idle_timeouts,
            peak_bytes_per_second: peaks.bytes,
            peak_packets_per_second: peaks.packets,
            packets_drop_count: drops.values().sum(),
            packets_to_host: read.packets_to_host,
            packets_answered: read.packets_answered,
            packets_held: read.packets_held.saturating_sub(read.packets_released),
            packets_guarded: read.packets_guarded,
            sessions,
            drops,
        })
    }
}

impl Control for Controller {
    fn status(&self) -> Result<Status, ControlError> {
        let usage = self.usage()?;
        let addresses = self.address_statuses(&usage);
        let gateway = self.lock();
        let counters = gateway.datapath.counters().map_err(failed)?;
        Ok(Status {
            name: gateway.config.gateway.name.clone(),
            profile: gateway.config.gateway.profile.word().to_owned(),
            state: gateway.gateway_state(),
            uptime_s: gateway.started.elapsed().as_secs(),
            sessions: usage.sessions,
            sessions_max: u64::from(gateway.config.gateway.sessions),
            interfaces: gateway.interface_statuses(),
            addresses,
            notices: notices(&gateway, &counters),
        })
    }

    fn details(&self) -> Result<(Counters, Details), ControlError> {
        let usage = self.usage()?;
        let statuses = self.address_statuses(&usage);
        let top = self.lock().config.metrics.top_hosts as usize;
        let top_hosts = match top {
            0 => Vec::new(),
            top => flows::busiest(&mut self.view()?, top).map_err(failed)?,
        };
        let counters = self.counters_with(usage.sessions)?;
        let gateway = self.lock();
        let refused = gateway.datapath.refused_ports().map_err(failed)?;
        let by_protocol = |[tcp, udp, icmp]: [u64; 3]| PortsInUse { tcp, udp, icmp };
        let addresses = statuses.into_iter().map(|status| AddressDetail {
            address: status.address,
            pool: status.pool,
            sessions: status.sessions,
            in_use: status.ports_in_use,
            busiest: by_protocol(
                usage.addresses.get(&status.address).map(|used| used.crowds).unwrap_or_default(),
            ),
            errors: by_protocol(refused.get(&status.address).copied().unwrap_or_default()),
            capacity: capacity(&gateway, status.address),
        });
        let details = Details {
            sessions_max: u64::from(gateway.config.gateway.sessions),
            addresses: addresses.collect(),
            sweep_seconds: gateway.sweep_time.as_secs_f64(),
            top_hosts,
            log: gateway.log_status()?,
        };
        Ok((counters, details))
    }

    fn counted(&self) -> Result<Counted, ControlError> {
        self.lock()
            .datapath
            .counted()
            .map(|time| Counted { seconds: time.as_secs() })
            .map_err(failed)
    }

    fn counters(&self) -> Result<Counters, ControlError> {
        self.counters_with(self.usage()?.sessions)
    }

    fn flows(&self, visit: &mut dyn FnMut(&Flow) -> ControlFlow<()>) -> Result<(), ControlError> {
        flows::walk(&mut self.view()?, |entry| visit(&entry.flow)).map_err(failed)
    }

    fn flows_of(
        &self,
        filter: &FlowFilter,
        visit: &mut dyn FnMut(&Flow) -> ControlFlow<()>,
    ) -> Result<(), ControlError> {
        flows::walk_of(&mut self.view()?, filter, |entry| visit(&entry.flow)).map_err(failed)
    }

    fn count(&self, filter: &FlowFilter) -> Result<u64, ControlError> {
        flows::count(&mut self.view()?, filter).map_err(failed)
    }

    fn flush(&self, filter: &FlowFilter) -> Result<u64, ControlError> {
        let mut left = filter.limit.unwrap_or(u64::MAX);
        self.end_sessions(|entry| {
            let condemned = left > 0 && filter.matches(&entry.flow);
            left -= u64::from(condemned);
            condemned
        })
    }

    fn top(&self, query: TopQuery) -> Result<Top, ControlError> {
        self.look(query)
    }

    fn trace(&self, query: &TraceQuery) -> Result<Trace, ControlError> {
        self.trace_packet(query)
    }

    fn capture(
        &self,
        request: &CaptureRequest,
        deliver: &mut Deliver<'_>,
    ) -> Result<(), ControlError> {
        self.capture_packets(request, deliver)
    }

    fn eip_list(&self) -> Result<Vec<AddressStatus>, ControlError> {
        Ok(self.address_statuses(&self.usage()?))
    }

    fn eip_add(&self, change: &EipChange) -> Result<(), ControlError> {
        edit::eip_add(self, change)
    }

    fn eip_drain(&self, change: &EipChange) -> Result<(), ControlError> {
        edit::eip_drain(self, change)
    }

    fn eip_remove(&self, change: &EipChange) -> Result<(), ControlError> {
        edit::eip_remove(self, change)
    }

    fn forward_list(&self) -> Result<Vec<Forward>, ControlError> {
        Ok(self.lock().config.forwards.clone())
    }

    fn forward_add(&self, change: &ForwardChange) -> Result<(), ControlError> {
        edit::forward_add(self, change)
    }

    fn forward_remove(&self, change: &ForwardChange) -> Result<(), ControlError> {
        edit::forward_remove(self, change)
    }

    fn reload(&self, dry_run: bool) -> Result<Reloaded, ControlError> {
        reload::reload(self, dry_run)
    }

    fn log(&self) -> Result<LogStatus, ControlError> {
        self.lock().log_status()
    }

    fn confirm(&self) -> Result<(), ControlError> {
        match self.lock().unconfirmed_until.take() {
            Some(_) => {
                log::info!("confirmed: the gateway stays");
                Ok(())
            }
            None => Err(ControlError::Refused(
                "nothing waits for a confirmation; natgw run --confirm TIME asks for one"
                    .to_owned(),
            )),
        }
    }
}

/// Ports of an address that sessions may get.
pub(super) fn capacity(gateway: &Gateway, address: Ipv4Addr) -> PortsInUse {
    let of = |protocol: Protocol| {
        let ranges = gateway.config.session_ports(address, protocol);
        ranges.iter().map(|range| u64::from(range.count())).sum()
    };
    PortsInUse { tcp: of(Protocol::Tcp), udp: of(Protocol::Udp), icmp: of(Protocol::Icmp) }
}

/// What an operator should know of a running gateway.
fn notices(gateway: &Gateway, counters: &nat_common::counters::Counters) -> Vec<String> {
    let count = |reason: DropReason| counters.drops.get(reason as usize).copied().unwrap_or(0);
    let partial = count(DropReason::PartialChecksum);
    let mut notices = Vec::new();
    if partial > 0 {
        notices.push(format!(
            "{partial} packets came with a partial checksum from a virtual sender and were dropped; \
             on the sender run: ethtool -K IFACE tx off"
        ));
    }
    if !gateway.slow_path.as_ref().is_some_and(SlowPath::is_running) {
        notices.push(
            "there is no slow path: packets that have to wait or to be fragmented are dropped; \
             see the log for the reason, and restart the gateway"
                .to_owned(),
        );
    }
    if let Some(left) = gateway.confirm_left() {
        notices.push(format!(
            "everything is detached in {} s unless you run natgw confirm",
            left.as_secs()
        ));
    }
    notices
}

pub(super) fn failed(error: impl Into<anyhow::Error>) -> ControlError {
    ControlError::from(error.into())
}
