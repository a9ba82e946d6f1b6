//! The sweep over a million sessions: what it costs the daemon, and what it costs the traffic.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{
    comparison::calibrate,
    context::Context,
    load::{Order, Traffic},
    report::{Report, Row},
    spread::Spread,
    subject::{Kind, Subject},
};
use crate::interrupt;

const SESSIONS: u32 = 1_000_000;
const PROBE: u32 = 200_000;
/// A sweep is spread over seconds, so it takes as long until the next is over.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn measure(context: &Context, report: &mut Report) -> Result<()> {
    if context.natgw.is_err() {
        return Ok(());
    }
    if context.quick {
        report.skip("expiry of a million sessions", "takes longer than --quick has");
        return Ok(());
    }
    let mut subject = Subject::start(Kind::NatgwNative, context, &[context.cpu], SESSIONS)?;
    subject.establish(Traffic::UdpOut, 0, SESSIONS)?;
    subject.establish(Traffic::UdpIn, 0, SESSIONS)?;
    subject.prepare(Traffic::UdpOut, 0, SESSIONS, Order::Uniform)?;
    let packets = calibrate(context, subject.measure(PROBE)?);

    let (mut beside, mut without) = (Vec::new(), Vec::new());
    for _ in 0..context.repetitions {
        interrupt::check()?;
        // The dataplane goes on without its daemon; only the sweep does not.
        let natgw = subject.natgw().context("natgw does not run")?;
        natgw.pause()?;
        let sample = subject.measure(packets);
        subject.natgw().context("natgw does not run")?.resume()?;
        without.push(sample?.nanoseconds);
        beside.push(subject.measure(packets)?.nanoseconds);
    }
    let loss =
        Spread::of(without.iter().zip(&beside).map(|(without, beside)| 1.0 - without / beside));
    let title = "64-byte UDP, 1000000 sessions, one core, beside the sweep";
    push(report, title, "natgw, the daemon stopped", "ns", Spread::of(without));
    push(report, title, "natgw, the daemon sweeping", "ns", Spread::of(beside));
    report.figure("expiry_pps_loss", loss);

    let natgw = subject.natgw().context("natgw does not run")?;
    let mut sweeps = Vec::new();
    while sweeps.len() < context.repetitions {
        let sweep = natgw.next_sweep(PATIENCE)?;
        // One that began before all were there has met fewer.
        if sweep.entries >= u64::from(SESSIONS) * 2 * 99 / 100 {
            sweeps.push(sweep);
        }
    }
    let title = "one sweep over 1000000 sessions, both directions";
    let cpu = Spread::of(sweeps.iter().map(|sweep| sweep.cpu_ms));
    let longest = Spread::of(sweeps.iter().map(|sweep| sweep.longest_ms));
    push(report, title, "natgw, CPU", "ms", cpu);
    push(report, title, "natgw, longest slice", "ms", longest);
    report.figure("expiry_1m_cpu_ms", cpu);
    report.figure("expiry_1m_worst_slice_ms", longest);
    Ok(())
}

fn push(report: &mut Report, bench: &str, subject: &str, unit: &str, value: Option<Spread>) {
    let Some(value) = value else { return };
    report.rows.push(Row {
        bench: bench.to_owned(),
        subject: subject.to_owned(),
        unit: unit.to_owned(),
        value,
        vs_nft: None,
        lost: None,
    });
}
