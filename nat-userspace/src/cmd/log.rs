//! `natgw log`.

use std::{
    fs,
    io::{self, Read as _, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use jiff::{Timestamp, Zoned, tz::TimeZone};
use serde::Serialize;

use crate::{
    api::client::{Client, ClientError},
    cli::{GatewayArgs, LogCommand, OutputArgs, WhoArgs},
    flowlog::{
        LogStatus,
        who::{self, Holder, Known, Question},
    },
    output::{self, Format},
};

use super::{Failure, client, converse};

pub(super) fn execute(
    gateway: &GatewayArgs,
    command: LogCommand,
    out: &mut impl Write,
) -> Result<(), Failure> {
    match command {
        LogCommand::Status(args) => status(gateway, args, out),
        LogCommand::Who(args) => ask(gateway, &args, out),
    }
}

fn status(gateway: &GatewayArgs, args: OutputArgs, out: &mut impl Write) -> Result<(), Failure> {
    let client = client(gateway);
    let status: LogStatus = converse(async { Ok(client.get("/v1/log").await?) })?;
    match args.output {
        Format::Json => output::json(out, &status)?,
        Format::Table => {
            let file = status.file.as_deref().map(|file| file.display().to_string());
            let row = |key: &str, value: Option<String>| {
                vec![key.to_owned(), value.unwrap_or_else(|| "none".to_owned())]
            };
            let rows = [
                row("file", file),
                row("format", status.format),
                row("ipfix", status.ipfix),
                row("records written", Some(status.written.to_string())),
                row("records lost", Some(status.lost.to_string())),
            ];
            output::table(out, &["log", ""], rows)?;
        }
    }
    Ok(())
}

/// A question with its answer.
#[derive(Serialize)]
struct Answered {
    public: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'static str>,
    /// The period asked for.
    from: Timestamp,
    to: Timestamp,
    holders: Vec<Holder>,
}

fn ask(gateway: &GatewayArgs, args: &WhoArgs, out: &mut impl Write) -> Result<(), Failure> {
    let now = Zoned::now();
    let questions = questions(args, &now)?;
    let mut known = Known::about(&questions);
    let client = client(gateway);
    let paths = if args.file.is_empty() { vec![running_file(&client)?] } else { args.file.clone() };
    for file in who::files(&paths)? {
        known.read(&file)?;
    }
    add_living(&client, &questions, args.file.is_empty(), &mut known)?;

    let answered: Vec<Answered> = questions
        .iter()
        .map(|question| Answered {
            public: question.public.to_string(),
            protocol: question.protocol.map(crate::config::Protocol::word),
            from: question.from,
            to: question.to,
            holders: known.answer(question),
        })
        .collect();
    match (args.output.output, args.batch.is_some()) {
        (Format::Json, true) => output::json(out, &answered)?,
        (Format::Json, false) => {
            output::json(out, &answered.first().map_or(&[][..], |it| &it.holders))?;
        }
        (Format::Table, _) => print(&answered, now.time_zone(), out)?,
    }
    let nobody: Vec<&Answered> = answered.iter().filter(|it| it.holders.is_empty()).collect();
    let Some(first) = nobody.first() else { return Ok(()) };
    let others = match nobody.len() {
        1 => String::new(),
        more => format!(", nor {} others that were asked for", more - 1),
    };
    out.flush()?;
    Err(Failure::Failed(anyhow!(
        "nobody had {} at {}{others}, as far as {} records say; is the time right, its zone, and the \
         protocol?",
        first.public,
        first.from,
        known.records
    )))
}

fn questions(args: &WhoArgs, now: &Zoned) -> Result<Vec<Question>, Failure> {
    let wrong = Failure::Wrong;
    if let Some(batch) = &args.batch {
        let text = read(batch).with_context(|| format!("cannot read {}", batch.display()))?;
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        return lines.map(|line| who::question(line, now).map_err(wrong)).collect();
    }
    let (Some(public), Some(at)) = (args.public, &args.at) else {
        return Err(wrong("name ADDR:PORT and --at TIME, or --batch FILE".to_owned()));
    };
    let (from, to) = who::period(at, now).map_err(wrong)?;
    Ok(vec![Question { public, protocol: args.protocol, remote: args.remote, from, to }])
}

/// `-` is what comes in.
fn read(path: &Path) -> io::Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    fs::read_to_string(path)
}

/// The file that the running gateway writes.
fn running_file(client: &Client) -> Result<PathBuf, Failure> {
    let status = converse(async { Ok(client.get::<LogStatus>("/v1/log").await?) });
    let hint = "name the log with --file";
    match status.map_err(|failure| anyhow!("{failure}; or {hint}"))?.file {
        Some(file) => Ok(file),
        None => Err(Failure::Failed(anyhow!(
            "the gateway writes no log; set [log] file in its configuration, or {hint}"
        ))),
    }
}

/// Living sessions of the addresses that are asked for. With files named by the user there need
/// not be a gateway.
fn add_living(
    client: &Client,
    questions: &[Question],
    must: bool,
    known: &mut Known,
) -> Result<(), Failure> {
    let query = match questions {
        [question] => format!("public={}", question.public),
        _ => String::new(),
    };
    let living = converse(async {
        let mut flows = match client.flows(&query).await {
            Ok(flows) => flows,
            Err(ClientError::NotRunning { .. } | ClientError::Forbidden { .. }) if !must => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(error.into()),
        };
        let mut living = Vec::new();
        while let Some(some) = flows.flows().await? {
            living.extend(some.into_iter().map(|flow| (flow, Timestamp::now())));
        }
        Ok(living)
    })?;
    for (flow, now) in living {
        known.add_living(&flow, now);
    }
    Ok(())
}

fn print(answered: &[Answered], zone: &TimeZone, out: &mut impl Write) -> io::Result<()> {
    let local = |moment: Timestamp| {
        moment.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S%.3f %:z").to_string()
    };
    let rows = answered.iter().flat_map(|it| &it.holders).map(|holder| {
        let private = match holder.private.port() {
            0 => holder.private.ip().to_string(),
            _ => holder.private.to_string(),
        };
        vec![
            holder.public.to_string(),
            holder.protocol.to_string(),
            private,
            holder.remote.map_or("?".to_owned(), |remote| remote.to_string()),
            local(holder.opened),
            holder.ended.map_or("-".to_owned(), local),
            holder.evidence.to_string(),
        ]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    if rows.is_empty() {
        return Ok(());
    }
    let header = ["public", "proto", "private", "remote", "opened", "ended", "known from"];
    output::table(out, &header, rows)
}
