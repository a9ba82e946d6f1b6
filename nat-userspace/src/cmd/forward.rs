//! `natgw forward`.

use std::io::Write;

use crate::{
    api::model::ForwardChange,
    cli::{ForwardCommand, GatewayArgs},
    config::Forward,
    output::{self, Format},
};

use super::{Failure, client, converse};

pub(super) fn execute(
    gateway: &GatewayArgs,
    command: ForwardCommand,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let (path, args, done) = match command {
        ForwardCommand::List(output) => {
            let forwards: Vec<Forward> =
                converse(async { Ok(client(gateway).get("/v1/forward").await?) })?;
            match output.output {
                Format::Json => output::json(out, &forwards)?,
                Format::Table => {
                    let rows = forwards.iter().map(|Forward { protocol, public, private }| {
                        vec![protocol.to_string(), public.to_string(), private.to_string()]
                    });
                    output::table(out, &["protocol", "public", "private"], rows)?;
                }
            }
            return Ok(());
        }
        ForwardCommand::Add(args) => ("/v1/forward/add", args, "added"),
        ForwardCommand::Remove(args) => ("/v1/forward/remove", args, "removed"),
    };
    let forward = args.forward();
    if forward.public.ports.count() != forward.private.ports.count() {
        return Err(Failure::Wrong(format!(
            "--private: {} public ports cannot map one by one to {} private ones; write ranges of the same length",
            forward.public.ports.count(),
            forward.private.ports.count()
        )));
    }
    let change = ForwardChange { forward, save: args.save };
    let forwards: Vec<Forward> =
        converse(async { Ok(client(gateway).post(path, &change).await?) })?;
    let Forward { protocol, public, private } = forward;
    match args.output.output {
        Format::Json => output::json(out, &forwards)?,
        Format::Table => writeln!(out, "{protocol} {public} to {private} {done}")?,
    }
    Ok(())
}
