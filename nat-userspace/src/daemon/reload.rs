//! The changed file, taken into use while traffic flows.

use super::control::{Controller, failed};
use crate::{
    api::{ControlError, model::Reloaded},
    config::{self, Config, ConfigError, HostView},
    controller::{describe, is_allowed},
};

pub(super) fn reload(controller: &Controller, dry_run: bool) -> Result<Reloaded, ControlError> {
    let (file, overrides) = {
        let gateway = controller.lock();
        (gateway.config.file.clone(), gateway.options.overrides.clone())
    };
    let file = file.ok_or_else(|| {
        ControlError::Refused(
            "the gateway was started with flags and has no file to read again; restart it with \
             other flags, or with -c FILE"
                .to_owned(),
        )
    })?;
    // The whole file is right, or nothing of it is taken.
    let host = HostView::read().map_err(failed)?;
    let mut wanted = config::load(&file, &overrides, &host).map_err(|error| match error {
        ConfigError::Faults(faults) => ControlError::WrongConfig(faults.to_string()),
        error @ ConfigError::Unreadable { .. } => ControlError::Failed(error.to_string()),
    })?;
    let mut gateway = controller.lock();
    refuse_fixed(&gateway.config, &wanted)?;
    remember_ownership(&gateway.config, &mut wanted);
    if dry_run {
        let mut steps = describe(&gateway.plan(&wanted)?);
        steps.extend(gateway.shortage(&wanted));
        drop(gateway);
        return Ok(Reloaded { dry_run, steps, sessions_ended: 0 });
    }
    if gateway.config.log != wanted.log {
        gateway.configure_log(&wanted)?;
    }
    // What commands changed since the start lasts until here, and conflicts are looked for anew.
    gateway.draining.clear();
    gateway.failed.clear();
    let mut steps = describe(&gateway.plan(&wanted)?);
    gateway.take_into_use(wanted)?;
    if let Some(shortage) = gateway.shortage(&gateway.config) {
        log::warn!("{shortage}");
        steps.push(shortage);
    }
    gateway.note_added(|state| state.added.clear());
    gateway.to_probe = gateway.answered_addresses();
    drop(gateway);
    let sessions_ended = end_disallowed(controller)?;
    Ok(Reloaded { dry_run, steps, sessions_ended })
}

/// Ends the sessions that the rules in use would not make any more. The dataplane does the same
/// when a packet comes; this is for those that are idle.
pub(super) fn end_disallowed(controller: &Controller) -> Result<u64, ControlError> {
    let contents = controller.lock().datapath.contents().map_err(failed)?;
    controller.end_sessions(|entry| !is_allowed(&contents, &entry.key, &entry.outbound))
}

/// Settings that need a new start.
fn refuse_fixed(running: &Config, wanted: &Config) -> Result<(), ControlError> {
    let (is, to_be) = (&running.gateway, &wanted.gateway);
    let changed = [
        ("gateway.name", is.name != to_be.name),
        ("gateway.state_dir", is.state_dir != to_be.state_dir),
        ("gateway.bpf_dir", is.bpf_dir != to_be.bpf_dir),
        ("gateway.xdp_mode", is.xdp_mode != to_be.xdp_mode),
        ("metrics.listen", running.metrics.listen != wanted.metrics.listen),
    ];
    let changed: Vec<&str> =
        changed.into_iter().filter_map(|(key, changed)| changed.then_some(key)).collect();
    if changed.is_empty() {
        return refuse_capacity(is.sessions, to_be.sessions);
    }
    Err(ControlError::Refused(format!(
        "{} cannot change while the gateway runs; restart it, or put the old value back",
        changed.join(", ")
    )))
}

/// The session table has the size that it was made with, and a restart adopts it as it is.
fn refuse_capacity(is: u32, to_be: u32) -> Result<(), ControlError> {
    if is == to_be {
        return Ok(());
    }
    Err(ControlError::Refused(format!(
        "gateway.sessions cannot change from {is} to {to_be} while sessions are pinned; write \
         gateway.sessions = {is} again to keep them, or end them: stop the gateway and start it \
         with natgw run --cold"
    )))
}

/// An address that the host owned at start and has lost is lost still, though the file is new.
fn remember_ownership(running: &Config, wanted: &mut Config) {
    for entry in wanted.pools.iter_mut().flat_map(|pool| &mut pool.addresses) {
        if let Some((_, known)) = running.pool_address(entry.address) {
            entry.host_owned |= known.host_owned;
        }
    }
    for mapping in &mut wanted.one_to_one {
        let known = running.one_to_one.iter().find(|known| known.public == mapping.public);
        mapping.host_owned |= known.is_some_and(|known| known.host_owned);
    }
}
