//! `natgw eip`.

use std::io::Write;

use crate::{
    api::model::{AddressStatus, EipChange},
    cli::{EipArgs, EipCommand, GatewayArgs},
    output::{self, Format},
};

use super::{Failure, client, converse, status};

pub(super) fn execute(
    gateway: &GatewayArgs,
    command: EipCommand,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let (path, args, max_wait_s, done) = match command {
        EipCommand::List { pool, output } => {
            let mut addresses: Vec<AddressStatus> =
                converse(async { Ok(client(gateway).get("/v1/eip").await?) })?;
            addresses.retain(|entry| pool.as_ref().is_none_or(|pool| entry.pool == *pool));
            match output.output {
                Format::Json => output::json(out, &addresses)?,
                Format::Table => status::addresses(&addresses, out)?,
            }
            return Ok(());
        }
        EipCommand::Add(args) => ("/v1/eip/add", args, None, "added"),
        EipCommand::Drain { eip, max_wait } => {
            ("/v1/eip/drain", eip, Some(max_wait.as_secs()), "draining")
        }
        EipCommand::Remove(args) => ("/v1/eip/remove", args, None, "removed"),
    };
    let EipArgs { address, pool, save, output } = args;
    let change = EipChange { address, pool, max_wait_s, save };
    let addresses: Vec<AddressStatus> =
        converse(async { Ok(client(gateway).post(path, &change).await?) })?;
    match output.output {
        Format::Json => output::json(out, &addresses)?,
        Format::Table => writeln!(out, "{address} {done}")?,
    }
    Ok(())
}
