//! The last ports of one public address towards one remote endpoint: who gets one, and what an
//! attempt costs, from an empty address to one without a free port.

use anyhow::Result;

use super::{
    comparison::{Comparison, available},
    context::Context,
    kind::Kind,
    load::{Order, Traffic},
    paths::{Caller, XDP_DROP, XDP_REDIRECT, attached},
    report::{Report, Row},
    spread::Spread,
    subject::Subject,
};
use crate::interrupt;

const KINDS: [Kind; 3] = [Kind::EntriesFloor, Kind::NatgwNative, Kind::NftXdpSink];
/// 1024 to 65535: what both give out.
const PORTS: u32 = 64_512;

/// A number of ports in use, and how many attempts are made from there.
struct Level {
    title: &'static str,
    in_use: u32,
    attempts: u32,
    success: Option<&'static str>,
    cost: Option<&'static str>,
}

const LEVELS: [Level; 7] = [
    Level { title: "no port in use", in_use: 0, attempts: 2000, success: None, cost: None },
    Level {
        title: "50 % of the ports in use",
        in_use: PORTS / 2,
        attempts: 2000,
        success: None,
        cost: None,
    },
    Level {
        title: "90 % of the ports in use",
        in_use: PORTS / 10 * 9,
        attempts: 2000,
        success: None,
        cost: None,
    },
    Level {
        title: "99 % of the ports in use",
        in_use: PORTS / 100 * 99,
        attempts: 580,
        success: Some("exhaustion_success_99"),
        cost: Some("exhaustion_ns_99"),
    },
    Level {
        title: "99.9 % of the ports in use",
        in_use: PORTS - 64,
        attempts: 63,
        success: Some("exhaustion_success_999"),
        cost: None,
    },
    Level {
        title: "one port free",
        in_use: PORTS - 1,
        attempts: 1,
        success: Some("exhaustion_success_last_port"),
        cost: None,
    },
    Level {
        title: "no port free",
        in_use: PORTS,
        attempts: 5000,
        success: None,
        cost: Some("exhaustion_ns_full"),
    },
];

pub(super) fn measure(context: &Context, report: &mut Report) -> Result<()> {
    let mut subjects = Vec::new();
    for kind in available(context, &KINDS) {
        let mut subject = Subject::start(kind, context, &[context.cpu], PORTS)?;
        // Once through all of it, so that no repetition is the first to touch the memory.
        fill(&mut subject, 0, PORTS)?;
        subjects.push(subject);
    }
    // The levels are passed one after the other, to a remote endpoint of its own in each turn.
    let mut series: Vec<Vec<_>> = LEVELS.iter().map(|_| Vec::new()).collect();
    // Netfilter takes seconds for one.
    let turns = if context.quick { context.repetitions.min(2) } else { context.repetitions };
    for turn in 0..turns {
        for subject in &mut subjects {
            interrupt::check()?;
            subject.forget_sessions()?;
            subject.use_round(1 + u32::try_from(turn)?);
            let mut sent = 0;
            for (level, series) in LEVELS.iter().zip(&mut series) {
                if level.in_use == PORTS && subject.kind == Kind::EntriesFloor {
                    // It has no ports that could be used up.
                    continue;
                }
                fill(subject, sent, level.in_use)?;
                sent = sent.max(level.in_use);
                subject.prepare(Traffic::UdpToOne, sent, level.attempts, Order::Sequential)?;
                series.push((subject.kind, subject.measure(level.attempts)?));
                sent += level.attempts;
            }
            // Netfilter's table is one for all namespaces: leave it empty for the next.
            subject.forget_sessions()?;
        }
    }
    for (level, samples) in LEVELS.iter().zip(series) {
        conclude(report, level, &Comparison::of(level_title(level), samples));
    }
    for subject in &mut subjects {
        if subject.kind == Kind::NatgwNative {
            alone(context, report, subject)?;
        }
    }
    Ok(())
}

fn level_title(level: &Level) -> String {
    format!("new UDP session to one remote endpoint, {}", level.title)
}

/// Opens sessions until `in_use` were asked for, of which `sent` were before.
fn fill(subject: &mut Subject, sent: u32, in_use: u32) -> Result<()> {
    if in_use > sent {
        let missing = in_use - sent;
        subject.prepare(Traffic::UdpToOne, sent, missing, Order::Sequential)?;
        subject.measure(missing)?;
    }
    Ok(())
}

fn conclude(report: &mut Report, level: &Level, comparison: &Comparison) {
    comparison.report_rows(report, level.in_use < PORTS);
    let natgw = Kind::NatgwNative;
    if let (Some(figure), Some(success)) = (level.success, comparison.arrived(natgw)) {
        report.figure(figure, Spread::of([success]));
    }
    if let Some(figure) = level.cost {
        report.figure(figure, comparison.nanoseconds(natgw));
        report.bound(figure, comparison.nanoseconds(Kind::EntriesFloor));
    }
}

/// The program alone at 99 % and beyond the last port.
fn alone(context: &Context, report: &mut Report, subject: &mut Subject) -> Result<()> {
    for level in LEVELS.iter().filter(|level| level.cost.is_some()) {
        let verdict = if level.in_use < PORTS { XDP_REDIRECT } else { XDP_DROP };
        let program = attached(&subject.topology().gateway, "n0")?;
        let mut costs = Vec::new();
        for turn in 0..context.repetitions {
            interrupt::check()?;
            subject.forget_sessions()?;
            subject.use_round(100 + u32::try_from(turn)?);
            fill(subject, 0, level.in_use)?;
            let mut run = |callee: Option<_>| -> Result<f64> {
                subject.prepare(
                    Traffic::UdpToOne,
                    level.in_use,
                    level.attempts,
                    Order::Sequential,
                )?;
                let mut caller = Caller::at(subject, "n0")?;
                match callee {
                    Some(callee) => caller.call(callee, level.attempts, verdict),
                    None => caller.empty(level.attempts),
                }
            };
            // So few runs are over in no time: what disturbed one of them would be all one sees.
            let mut empty = f64::INFINITY;
            for _ in 0..5 {
                empty = empty.min(run(None)?);
            }
            costs.push(run(Some(&program))? - empty);
        }
        let Some(value) = Spread::of(costs) else { continue };
        report.rows.push(Row {
            bench: "new UDP session to one remote endpoint, the program alone".to_owned(),
            subject: format!("natgw, {}", level.title),
            unit: "ns".to_owned(),
            value,
            vs_nft: None,
            lost: None,
        });
    }
    subject.forget_sessions()
}
