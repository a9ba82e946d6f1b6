//! `natgw status`.

use std::io::{self, Write};

use crate::{
    api::model::{AddressStatus, Status},
    cli::{GatewayArgs, OutputArgs},
    output::{self, Format},
};

use super::{Failure, client, converse};

pub(super) fn execute(
    gateway: &GatewayArgs,
    args: OutputArgs,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let status: Status = converse(async { Ok(client(gateway).get("/v1/status").await?) })?;
    match args.output {
        Format::Json => output::json(out, &status)?,
        Format::Table => print(&status, out)?,
    }
    Ok(())
}

fn print(status: &Status, out: &mut impl Write) -> io::Result<()> {
    let Status { name, profile, state, uptime_s, sessions, sessions_max, .. } = status;
    let uptime = output::span(*uptime_s);
    writeln!(
        out,
        "gateway {name}: {state}, up {uptime}, profile {profile}, {sessions} of {sessions_max} sessions"
    )?;
    writeln!(out)?;
    let note = |note: &Option<String>| note.clone().unwrap_or_default();
    let interfaces = status.interfaces.iter().map(|interface| {
        vec![
            interface.name.clone(),
            interface.role.to_string(),
            interface.xdp_mode.to_string(),
            interface.state.to_string(),
            note(&interface.note),
        ]
    });
    output::table(out, &["interface", "role", "xdp mode", "state", "note"], interfaces)?;
    writeln!(out)?;
    addresses(&status.addresses, out)?;
    for notice in &status.notices {
        writeln!(out, "\nnote: {notice}")?;
    }
    Ok(())
}

pub(super) fn addresses(addresses: &[AddressStatus], out: &mut impl Write) -> io::Result<()> {
    let header =
        ["address", "pool", "state", "sessions", "tcp ports", "udp ports", "icmp ids", "note"];
    let rows = addresses.iter().map(|entry| {
        let ports = entry.ports_in_use;
        vec![
            entry.address.to_string(),
            entry.pool.clone(),
            entry.state.to_string(),
            entry.sessions.to_string(),
            ports.tcp.to_string(),
            ports.udp.to_string(),
            ports.icmp.to_string(),
            entry.note.clone().unwrap_or_default(),
        ]
    });
    output::table(out, &header, rows)
}
