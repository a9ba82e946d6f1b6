//! `natgw check`: the file's faults, or what it means on this host.

use std::io::Write;

use serde::Serialize;

use crate::{
    cli::{CheckArgs, GatewayArgs},
    config::{self, HostView, Overrides},
    output::{self, Format},
};

use super::Failure;

#[derive(Serialize)]
struct Checked<'a> {
    file: &'a str,
    ok: bool,
    notices: &'a [String],
}

pub(super) fn execute(
    gateway: GatewayArgs,
    args: &CheckArgs,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let overrides = Overrides { name: gateway.name, state_dir: gateway.state_dir, xdp_mode: None };
    let host = HostView::read().map_err(anyhow::Error::new)?;
    let config = config::load(&args.config, &overrides, &host)
        .map_err(|error| Failure::Wrong(error.to_string()))?;
    let notices = config::notices(&config, &host);
    let file = args.config.display().to_string();
    match args.output.output {
        Format::Json => {
            output::json(out, &Checked { file: &file, ok: true, notices: &notices })?;
        }
        Format::Table => {
            for notice in notices {
                writeln!(out, "{file}: note: {notice}")?;
            }
            writeln!(out, "{file}: ok")?;
        }
    }
    Ok(())
}
