//! `natgw run`: a valid configuration, then the daemon.

use std::path::Path;

use crate::{
    cli::{GatewayArgs, RunArgs},
    config::{self, Flags, HostView, Overrides},
    daemon::{self, RunOptions},
};

use super::Failure;

pub(super) fn execute(gateway: GatewayArgs, args: RunArgs) -> Result<(), Failure> {
    let RunArgs { config: file, xdp_mode, on_exit, confirm, cold, public, private, eip, source } =
        args;
    let overrides = Overrides { name: gateway.name, state_dir: gateway.state_dir, xdp_mode };
    let host = HostView::read().map_err(anyhow::Error::new)?;
    let config = if public.is_empty() {
        let file = file.as_deref().unwrap_or_else(|| Path::new(config::CONFIG_FILE));
        config::load(file, &overrides, &host).map_err(|error| Failure::Wrong(error.to_string()))?
    } else {
        let flags = Flags { public, private, eip, source };
        config::from_flags(&flags, &overrides, &host)
            .map_err(|faults| Failure::Wrong(faults.to_string()))?
    };
    for notice in config::notices(&config, &host) {
        log::info!("{notice}");
    }
    Ok(daemon::run(config, RunOptions { on_exit, confirm, cold, overrides })?)
}
