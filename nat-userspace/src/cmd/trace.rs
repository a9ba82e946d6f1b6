//! `natgw trace`.

use std::io::{self, Write};

use crate::{
    api::trace::Trace,
    cli::{GatewayArgs, TraceArgs},
    output::{self, Format},
};

use super::{Failure, client, converse};

pub(super) fn execute(
    gateway: &GatewayArgs,
    args: &TraceArgs,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let format = args.output.output;
    let path = format!("/v1/trace?{}", args.query().query());
    let trace: Trace = converse(async { Ok(client(gateway).get(&path).await?) })?;
    match format {
        Format::Json => output::json(out, &trace)?,
        Format::Table => print(&trace, out)?,
    }
    Ok(())
}

fn print(trace: &Trace, out: &mut impl Write) -> io::Result<()> {
    for step in &trace.steps {
        // `fmt` pads words, so that the texts begin below each other.
        writeln!(out, "{:<10} {:<10} {}", step.stage, step.step, step.text)?;
    }
    Ok(())
}
