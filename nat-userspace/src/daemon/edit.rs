//! Addresses and forwards changed by command, until the next reload or start.
//!
//! Each takes the way of a reload: a changed configuration, compiled, planned, applied.

use std::{
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{
    control::{Controller, failed},
    reload::end_disallowed,
};
use crate::{
    api::{
        ControlError,
        model::{EipChange, ForwardChange},
    },
    config::{
        AddressSource, Config, Forward, HostView, Pool, PoolAddress,
        edit::{self, EditError},
    },
};

pub(super) fn eip_add(controller: &Controller, change: &EipChange) -> Result<(), ControlError> {
    let address = change.address;
    let mut gateway = controller.lock();
    if let Some((pool, _)) = gateway.config.pool_address(address) {
        // Coming back is the opposite of draining.
        if gateway.draining.contains_key(&address)
            && change.pool.as_ref().is_none_or(|wanted| *wanted == pool.name)
        {
            gateway.draining.remove(&address);
            return gateway.apply_rules().map_err(failed);
        }
        return Err(refused(format!("{address} is in pool \"{}\" already", pool.name)));
    }
    if gateway.config.one_to_one.iter().any(|it| it.public == address) {
        return Err(refused(format!(
            "{address} belongs to a one_to_one mapping; take another address, or remove the mapping"
        )));
    }
    let octets = address.octets();
    if octets[0] >= 224 || octets[0] == 0 || address.is_loopback() {
        return Err(refused(format!("{address} is no host's address; name a unicast address")));
    }
    let mut config = gateway.config.clone();
    let host_owned = gateway.snapshot.owns(address);
    let pool = pool_for(&mut config, change.pool.as_deref())?;
    let host = HostView::read().map_err(failed)?;
    let ports = match host.local_ports.filter(|_| host_owned && !pool.ports_explicit) {
        Some(local) => pool.ports.without(local),
        None => vec![pool.ports],
    };
    if ports.is_empty() {
        return Err(refused(format!(
            "the host owns {address} and net.ipv4.ip_local_port_range leaves no port of the pool; \
             write ports in the pool"
        )));
    }
    pool.addresses.push(PoolAddress { address, source: AddressSource::Literal, host_owned, ports });
    let name = pool.name.clone();
    let saved =
        Saving::prepare(change.save, &config, |text| edit::with_address(text, &name, address))?;
    gateway.take_into_use(config)?;
    if !change.save {
        gateway.note_added(|state| drop(state.added.insert(address, name.clone())));
    }
    saved.write()
}

pub(super) fn eip_drain(controller: &Controller, change: &EipChange) -> Result<(), ControlError> {
    let address = change.address;
    let wait = change.max_wait_s.map_or(EipChange::DEFAULT_MAX_WAIT, Duration::from_secs);
    if wait < Duration::from_secs(1) || wait > EipChange::LONGEST_MAX_WAIT {
        return Err(refused("--max-wait is from 1s to 4000s".to_owned()));
    }
    let mut gateway = controller.lock();
    let (config, pool) = without_address(&gateway.config, change)?;
    let saved =
        Saving::prepare(change.save, &config, |text| edit::without_address(text, &pool, address))?;
    gateway.draining.insert(address, Instant::now() + wait);
    gateway.apply_rules()?;
    saved.write()
}

pub(super) fn eip_remove(controller: &Controller, change: &EipChange) -> Result<(), ControlError> {
    let address = change.address;
    {
        let mut gateway = controller.lock();
        let (config, pool) = without_address(&gateway.config, change)?;
        let saved = Saving::prepare(change.save, &config, |text| {
            edit::without_address(text, &pool, address)
        })?;
        gateway.take_into_use(config)?;
        gateway.note_added(|state| drop(state.added.remove(&address)));
        saved.write()?;
    }
    end_disallowed(controller).map(drop)
}

/// Releases draining addresses whose last session or whose time is over.
pub(super) fn release_drained(controller: &Controller) -> Result<(), ControlError> {
    let usage = controller.usage()?;
    let released: Vec<Ipv4Addr> = {
        let gateway = controller.lock();
        let now = Instant::now();
        let over = |address: &Ipv4Addr, deadline: &Instant| {
            *deadline <= now || usage.addresses.get(address).is_none_or(|used| used.sessions == 0)
        };
        let draining = gateway.draining.iter();
        draining.filter(|(address, until)| over(address, until)).map(|(it, _)| *it).collect()
    };
    for address in released {
        let change = EipChange { address, pool: None, max_wait_s: None, save: false };
        eip_remove(controller, &change)?;
        log::info!("{address} is released");
    }
    Ok(())
}

pub(super) fn forward_add(
    controller: &Controller,
    change: &ForwardChange,
) -> Result<(), ControlError> {
    let forward = change.forward;
    let (public, private) = (forward.public, forward.private);
    if public.ports.count() != private.ports.count() {
        return Err(refused(format!(
            "{public} and {private} have different numbers of ports; write ranges of equal length"
        )));
    }
    let host = HostView::read().map_err(failed)?;
    let mut gateway = controller.lock();
    if gateway.config.pool_address(public.address).is_none() {
        return Err(refused(format!(
            "{} is in no pool; add it with: natgw eip add {}",
            public.address, public.address
        )));
    }
    if let Some(other) = gateway.config.forwards.iter().find(|it| overlaps(it, &forward)) {
        return Err(refused(format!(
            "{} {public} overlaps the forward {} to {}; remove that one first",
            forward.protocol, other.public, other.private
        )));
    }
    if let Some(listener) = host.listener(forward.protocol, public.address, public.ports) {
        return Err(refused(format!(
            "a socket of this host listens on {} port {}; stop it, or forward another port",
            forward.protocol, listener.port
        )));
    }
    let mut config = gateway.config.clone();
    config.forwards.push(forward);
    let saved = Saving::prepare(change.save, &config, |text| edit::with_forward(text, &forward))?;
    gateway.take_into_use(config)?;
    drop(gateway);
    // A session that had the port by chance.
    end_disallowed(controller)?;
    saved.write()
}

pub(super) fn forward_remove(
    controller: &Controller,
    change: &ForwardChange,
) -> Result<(), ControlError> {
    let forward = change.forward;
    let mut gateway = controller.lock();
    let mut config = gateway.config.clone();
    config.forwards.retain(|it| *it != forward);
    if config.forwards.len() == gateway.config.forwards.len() {
        return Err(ControlError::NotFound(format!(
            "there is no {} forward from {} to {}; natgw forward list shows them",
            forward.protocol, forward.public, forward.private
        )));
    }
    let saved =
        Saving::prepare(change.save, &config, |text| edit::without_forward(text, &forward))?;
    gateway.take_into_use(config)?;
    drop(gateway);
    end_disallowed(controller)?;
    saved.write()
}

/// The configuration without a pool address, where no forward needs it, and the pool's name.
fn without_address(config: &Config, change: &EipChange) -> Result<(Config, String), ControlError> {
    let address = change.address;
    let mut config = config.clone();
    let named = |pool: &Pool| change.pool.as_ref().is_none_or(|name| *name == pool.name);
    let pool = config
        .pools
        .iter_mut()
        .find(|pool| named(pool) && pool.addresses.iter().any(|it| it.address == address))
        .ok_or_else(|| {
            ControlError::NotFound(format!("no pool has {address}; natgw eip list shows them"))
        })?;
    // Its last one too: who takes an address away knows why. New sessions are drops with the
    // reason `no_address` then.
    pool.addresses.retain(|it| it.address != address);
    if pool.addresses.is_empty() {
        log::warn!("pool \"{}\" has no address left without {address}", pool.name);
    }
    let name = pool.name.clone();
    if let Some(forward) = config.forwards.iter().find(|it| it.public.address == address) {
        return Err(refused(format!(
            "the forward of {} needs {address}; remove it first",
            forward.public
        )));
    }
    Ok((config, name))
}

/// The pool that is named, the only one, or "default".
fn pool_for<'a>(config: &'a mut Config, name: Option<&str>) -> Result<&'a mut Pool, ControlError> {
    let only = config.pools.len() == 1;
    let wanted = name.unwrap_or("default");
    config.pools.iter_mut().find(|pool| pool.name == wanted || (only && name.is_none())).ok_or_else(
        || ControlError::NotFound(format!("there is no pool \"{wanted}\"; name one with --pool")),
    )
}

fn overlaps(a: &Forward, b: &Forward) -> bool {
    a.protocol == b.protocol
        && a.public.address == b.public.address
        && a.public.ports.overlaps(b.public.ports)
}

/// A change of the file, tried before anything else happens, so that what cannot be saved is not
/// done, and written when all else is.
struct Saving<F>(Option<(PathBuf, F)>);

impl<F: Fn(&str) -> Result<String, EditError>> Saving<F> {
    fn prepare(wanted: bool, config: &Config, edit: F) -> Result<Self, ControlError> {
        if !wanted {
            return Ok(Self(None));
        }
        let file = config.file.clone().ok_or_else(|| {
            refused("the gateway was started with flags: there is no file to save into".to_owned())
        })?;
        let text = fs::read_to_string(&file)
            .map_err(|error| refused(format!("cannot read {}: {error}", file.display())))?;
        edit(&text).map_err(|error| refused(error.to_string()))?;
        Ok(Self(Some((file, edit))))
    }

    fn write(self) -> Result<(), ControlError> {
        let Self(Some((file, edit))) = self else { return Ok(()) };
        edit::save(&file, edit).map_err(|error| {
            ControlError::Failed(format!("the change is in use, but not saved: {error}"))
        })
    }
}

fn refused(text: String) -> ControlError {
    ControlError::Refused(text)
}
