//! `natgw reload`.

use std::io::Write;

use crate::{
    api::model::{ReloadRequest, Reloaded},
    cli::{GatewayArgs, ReloadArgs},
    output::{self, Format},
};

use super::{Failure, client, converse};

pub(super) fn execute(
    gateway: &GatewayArgs,
    args: &ReloadArgs,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let request = ReloadRequest { dry_run: args.dry_run };
    let reloaded: Reloaded =
        converse(async { Ok(client(gateway).post("/v1/reload", &request).await?) })?;
    match args.output.output {
        Format::Json => output::json(out, &reloaded)?,
        Format::Table if reloaded.steps.is_empty() => writeln!(out, "nothing changed")?,
        Format::Table => {
            for step in &reloaded.steps {
                writeln!(out, "{step}")?;
            }
            let will = if reloaded.dry_run { "would end" } else { "ended" };
            writeln!(out, "{} sessions {will}", reloaded.sessions_ended)?;
        }
    }
    Ok(())
}
