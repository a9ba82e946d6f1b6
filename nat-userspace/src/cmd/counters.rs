//! `natgw counters`.

use std::{
    io::{self, Write},
    time::Duration,
};

use nat_common::verdict::DropReason;
use serde::Serialize;

use crate::{
    api::Counters,
    cli::{CountersArgs, GatewayArgs},
    output::{self, Format},
};

use super::{Failure, client, converse};

pub(super) fn execute(
    gateway: &GatewayArgs,
    args: &CountersArgs,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let format = args.output.output;
    if args.explain {
        return Ok(explain(format, out)?);
    }
    let client = client(gateway);
    converse(async {
        let counters: Counters = client.get("/v1/counters").await?;
        let Some(period) = args.watch else {
            match format {
                Format::Json => output::json(out, &counters)?,
                Format::Table => print(&counters, out)?,
            }
            return Ok(());
        };
        let mut ticks = tokio::time::interval(Duration::from_secs(period));
        ticks.tick().await;
        let mut counters = counters;
        loop {
            match format {
                Format::Json => output::json_line(out, &counters)?,
                Format::Table => {
                    print(&counters, out)?;
                    writeln!(out)?;
                    out.flush()?;
                }
            }
            ticks.tick().await;
            counters = client.get("/v1/counters").await?;
        }
    })
}

fn print(counters: &Counters, out: &mut impl Write) -> io::Result<()> {
    let metrics = counters.metrics();
    let rows = metrics.iter().map(|metric| {
        vec![metric.key.to_owned(), metric.value.to_string(), metric.meaning.to_owned()]
    });
    // Reasons that never occurred say nothing here; JSON and --explain have all of them.
    let drops = counters.drops.iter().filter(|(_, count)| **count > 0).map(|(reason, count)| {
        vec![format!("  dropped: {reason}"), count.to_string(), meaning(reason).to_owned()]
    });
    let mut all: Vec<Vec<String>> = Vec::new();
    for row in rows {
        let total = row[0] == "packets_drop_count";
        all.push(row);
        if total {
            all.extend(drops.clone());
        }
    }
    output::table(out, &["counter", "value", "meaning"], all)
}

/// Empty for a reason that a newer gateway has and this program does not know.
fn meaning(reason: &str) -> &'static str {
    let known = DropReason::ALL.iter().find(|known| known.name() == reason);
    known.map_or("", |known| known.meaning())
}

#[derive(Serialize)]
struct Explanation {
    reason: &'static str,
    meaning: &'static str,
}

fn explain(format: Format, out: &mut impl Write) -> io::Result<()> {
    let reasons: Vec<Explanation> = DropReason::ALL
        .iter()
        .map(|reason| Explanation { reason: reason.name(), meaning: reason.meaning() })
        .collect();
    match format {
        Format::Json => output::json(out, &reasons),
        Format::Table => {
            let row = |entry: &Explanation| vec![entry.reason.to_owned(), entry.meaning.to_owned()];
            output::table(out, &["reason", "meaning"], reasons.iter().map(row))
        }
    }
}
