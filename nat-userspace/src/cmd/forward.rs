//! `natgw forward`.

use std::io::Write;

use crate::{
    api::model::ForwardChange,
    cli::{ForwardCommand, ForwardRemoveArgs, GatewayArgs, OutputArgs},
    config::Forward,
    output::{self, Format},
};

use super::{Failure, client, converse};

pub(super) fn execute(
    gateway: &GatewayArgs,
    command: ForwardCommand,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let (path, change, output, done) = match command {
        ForwardCommand::List(output) => return list(&present(gateway)?, &output, out),
        ForwardCommand::Add(args) => {
            let change = ForwardChange { forward: args.forward(), save: args.save };
            ("/v1/forward/add", change, args.output, "added")
        }
        ForwardCommand::Remove(args) => {
            let change = ForwardChange { forward: meant(gateway, &args)?, save: args.save };
            ("/v1/forward/remove", change, args.output, "removed")
        }
    };
    let Forward { protocol, public, private } = change.forward;
    if public.ports.count() != private.ports.count() {
        return Err(Failure::Wrong(format!(
            "--private: {} public ports cannot map one by one to {} private ones; write ranges of the same length",
            public.ports.count(),
            private.ports.count()
        )));
    }
    let forwards: Vec<Forward> =
        converse(async { Ok(client(gateway).post(path, &change).await?) })?;
    match output.output {
        Format::Json => output::json(out, &forwards)?,
        Format::Table => writeln!(out, "{protocol} {public} to {private} {done}")?,
    }
    Ok(())
}

fn present(gateway: &GatewayArgs) -> Result<Vec<Forward>, Failure> {
    converse(async { Ok(client(gateway).get("/v1/forward").await?) })
}

fn list(forwards: &[Forward], args: &OutputArgs, out: &mut impl Write) -> Result<(), Failure> {
    match args.output {
        Format::Json => output::json(out, &forwards)?,
        Format::Table => {
            let rows = forwards.iter().map(|Forward { protocol, public, private }| {
                vec![protocol.to_string(), public.to_string(), private.to_string()]
            });
            output::table(out, &["protocol", "public", "private"], rows)?;
        }
    }
    Ok(())
}

/// The forward to be removed: its public side says which.
fn meant(gateway: &GatewayArgs, args: &ForwardRemoveArgs) -> Result<Forward, Failure> {
    let ForwardRemoveArgs { protocol, public, private, save: _, output: _ } = *args;
    if let Some(private) = private {
        return Ok(Forward { protocol, public, private });
    }
    let forwards = present(gateway)?;
    let found = forwards.into_iter().find(|it| it.protocol == protocol && it.public == public);
    found.ok_or_else(|| {
        Failure::Failed(anyhow::anyhow!(
            "there is no {protocol} forward from {public}; natgw forward list shows them"
        ))
    })
}
