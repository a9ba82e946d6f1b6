//! The commands, one file each: from arguments to output.

mod capture;
mod check;
mod confirm;
mod cost;
mod counters;
mod describe;
mod detach;
mod doctor;
mod eip;
mod flows;
mod forward;
mod log;
mod migrate;
mod reload;
mod run;
mod status;
mod top;
mod trace;

use std::{
    future::Future,
    io::{self, Write},
};

use crate::{
    api::client::{Client, ClientError},
    cli::{Cli, Command, GatewayArgs},
    config,
};

/// Why a command did not do what it was asked; decides the exit status.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Wrong usage or a wrong configuration, a line each: exit status 2.
    #[error("{0}")]
    Wrong(String),
    /// The request failed: exit status 1.
    #[error("{0:#}")]
    Failed(anyhow::Error),
    /// Who read the output has read enough: no failure.
    #[error("the output is closed")]
    OutputClosed,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::OutputClosed
        } else {
            Self::Failed(anyhow::Error::new(error).context("cannot write the result"))
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::WrongConfig(lines) => Self::Wrong(lines),
            other => Self::Failed(other.into()),
        }
    }
}

/// Does what the command line says; results go to `out`.
///
/// # Errors
/// See [`Failure`].
pub fn execute(cli: Cli, out: &mut impl Write) -> Result<(), Failure> {
    let Cli { gateway, command } = cli;
    match command {
        Command::Run(args) => run::execute(gateway, args),
        Command::Check(args) => check::execute(gateway, &args, out),
        Command::Doctor(args) => doctor::execute(gateway, args, out),
        Command::Status(args) => status::execute(&gateway, args, out),
        Command::Counters(args) => counters::execute(&gateway, &args, out),
        Command::Flows(args) => flows::execute(&gateway, &args, out),
        Command::Top(args) => top::execute(&gateway, &args, out),
        Command::Trace(args) => trace::execute(&gateway, &args, out),
        Command::Capture(args) => capture::execute(&gateway, &args, out),
        Command::Eip(command) => eip::execute(&gateway, command, out),
        Command::Forward(command) => forward::execute(&gateway, command, out),
        Command::Cost(args) => cost::execute(&gateway, &args, out),
        Command::Log(command) => log::execute(&gateway, command, out),
        Command::Reload(args) => reload::execute(&gateway, &args, out),
        Command::Describe(what) => describe::execute(what, out),
        Command::Migrate(args) => migrate::execute(gateway, args),
        Command::Detach(args) => detach::execute(gateway, args),
        Command::Confirm => confirm::execute(&gateway),
    }
}

fn client(gateway: &GatewayArgs) -> Client {
    let state_dir = gateway.state_dir.as_deref();
    Client::new(
        state_dir.unwrap_or_else(|| config::STATE_DIR.as_ref()),
        gateway.name.as_deref().unwrap_or(config::NAME),
    )
}

/// Runs a conversation with the gateway to its end.
fn converse<T>(conversation: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| anyhow::anyhow!("cannot start: {error}"))?;
    runtime.block_on(conversation)
}
