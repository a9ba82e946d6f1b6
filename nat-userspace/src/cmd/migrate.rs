//! `natgw migrate`: works on the system itself, between two daemons.

use std::path::PathBuf;

use crate::{
    cli::{DetachArgs, GatewayArgs},
    config,
    daemon::{self, DetachOptions},
};

use super::Failure;

pub(super) fn execute(gateway: GatewayArgs, args: DetachArgs) -> Result<(), Failure> {
    let GatewayArgs { name, state_dir } = gateway;
    Ok(daemon::migrate(&DetachOptions {
        name: name.unwrap_or_else(|| config::NAME.to_owned()),
        state_dir: state_dir.unwrap_or_else(|| PathBuf::from(config::STATE_DIR)),
        bpf_dir: args.bpf_dir,
    })?)
}
