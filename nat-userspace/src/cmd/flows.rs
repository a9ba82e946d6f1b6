//! `natgw flows`, `natgw flows count`, `natgw flows flush`.

use std::io::{self, Write};

use crate::{
    api::{
        client::Client,
        model::{Flow, FlowCount, FlowFilter, Flushed},
    },
    cli::{FlowsArgs, FlowsCommand, GatewayArgs},
    output::{self, Format},
};

use super::{Failure, client, converse};

pub(super) fn execute(
    gateway: &GatewayArgs,
    args: &FlowsArgs,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let query = FlowFilter::from(args.filter).query();
    let client = client(gateway);
    let format = args.output.output;
    converse(async {
        match args.command.unwrap_or(FlowsCommand::List) {
            FlowsCommand::List => list(&client, &query, format, out).await?,
            FlowsCommand::Count => {
                let answer: FlowCount = client.get(&format!("/v1/flows/count?{query}")).await?;
                match format {
                    Format::Json => output::json(out, &answer)?,
                    Format::Table => writeln!(out, "{}", answer.count)?,
                }
            }
            FlowsCommand::Flush => {
                let path = format!("/v1/flows/flush?{query}");
                let answer: Flushed = client.post(&path, &()).await?;
                match format {
                    Format::Json => output::json(out, &answer)?,
                    Format::Table => writeln!(out, "{} sessions ended", answer.flushed)?,
                }
            }
        }
        Ok(())
    })
}

/// Rows go out as they come in: a million sessions are never held here.
async fn list(
    client: &Client,
    query: &str,
    format: Format,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let mut answer = client.flows(query).await?;
    match format {
        Format::Json => {
            while let Some(bytes) = answer.bytes().await? {
                out.write_all(&bytes)?;
            }
        }
        Format::Table => {
            let [private, public, remote] = ["PRIVATE", "PUBLIC", "REMOTE"];
            writeln!(
                out,
                "PROTO  {private:<21}  {public:<21}  {remote:<21}  {:<11}  {:>7}  {:>7}  {:>12}  {:>12}  {:>14}  {:>14}",
                "STATE", "AGE", "IDLE", "PACKETS OUT", "PACKETS IN", "BYTES OUT", "BYTES IN"
            )?;
            while let Some(flows) = answer.flows().await? {
                for flow in &flows {
                    row(flow, out)?;
                }
            }
        }
    }
    Ok(())
}

/// Widths are fixed, since no row knows the later ones.
fn row(flow: &Flow, out: &mut impl Write) -> io::Result<()> {
    let Flow { protocol, private, public, remote, state, age_s, idle_s, .. } = flow;
    let Flow { packets_out, packets_in, bytes_out, bytes_in, .. } = flow;
    let (age, idle) = (output::span(*age_s), output::span(*idle_s));
    writeln!(
        out,
        "{protocol:<5}  {private:<21}  {public:<21}  {remote:<21}  {state:<11}  {age:>7}  {idle:>7}  {packets_out:>12}  {packets_in:>12}  {bytes_out:>14}  {bytes_in:>14}"
    )
}
