//! The sweep over a million sessions: what it costs the daemon, and what it costs the traffic.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{
    comparison::calibrate,
    context::Context,
    kind::Kind,
    load::{Order, Traffic},
    natgw::{Natgw, Sweep},
    report::{Report, Row},
    spread::Spread,
    subject::Subject,
};
use crate::interrupt;

const SESSIONS: u32 = 1_000_000;
const PROBE: u32 = 200_000;
/// Short, so that every session is looked at soon, and longer than the traffic leaves one out.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Until every session has been looked at.
const PATIENCE: Duration = Duration::from_secs(120);

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
    // Other timeouts: all of them are filed anew, by a walk over the table.
    let _before = natgw(&subject)?.sweeps();
    natgw(&subject)?.set_idle_timeout(TIMEOUT)?;
    let (_, walk) = work(&mut subject, true, |_, walk| walk.looks)?;

    // Without traffic beside it: the CPUs of a virtual machine are often threads of one core.
    let mut sweeps = Vec::new();
    for _ in 0..context.repetitions {
        sweeps.push(work(&mut subject, true, |sweep, _| sweep.looks)?.0);
    }
    let title = "one sweep: each of 1000000 sessions has been looked at";
    let cpu = Spread::of(sweeps.iter().map(|sweep| sweep.cpu_ms));
    push(report, title, "natgw, CPU, all in use", "ms", cpu);
    report.figure("expiry_1m_cpu_ms", cpu);

    subject.prepare(Traffic::UdpOut, 0, SESSIONS, Order::Uniform)?;
    let packets = calibrate(context, subject.measure(PROBE)?);
    let (mut beside, mut without) = (Vec::new(), Vec::new());
    for _ in 0..context.repetitions {
        interrupt::check()?;
        // The dataplane goes on without its daemon; only the sweep does not.
        natgw(&subject)?.pause()?;
        let sample = subject.measure(packets);
        natgw(&subject)?.resume()?;
        without.push(sample?.nanoseconds);
        beside.push(subject.measure(packets)?.nanoseconds);
    }
    let loss =
        Spread::of(without.iter().zip(&beside).map(|(without, beside)| 1.0 - without / beside));
    let beside_title = "64-byte UDP, 1000000 sessions, one core, beside the sweep";
    push(report, beside_title, "natgw, the daemon stopped", "ns", Spread::of(without));
    push(report, beside_title, "natgw, the daemon sweeping", "ns", Spread::of(beside));
    report.figure("expiry_pps_loss", loss);

    // What had no packet meanwhile is over already, and begins anew.
    subject.establish(Traffic::UdpOut, 0, SESSIONS)?;
    let _before = natgw(&subject)?.sweeps();
    let (over, _) = work(&mut subject, false, |sweep, _| sweep.ended)?;
    let longest = Spread::of(sweeps.iter().chain([&walk, &over]).map(|sweep| sweep.longest_ms));
    push(report, title, "natgw, CPU, all of them over and ended", "ms", Spread::of([over.cpu_ms]));
    push(report, title, "natgw, CPU of a walk, as at a start", "ms", Spread::of([walk.cpu_ms]));
    push(report, title, "natgw, longest slice", "ms", longest);
    report.figure("expiry_1m_worst_slice_ms", longest);
    Ok(())
}

fn natgw(subject: &Subject) -> Result<&Natgw> {
    subject.natgw().context("natgw does not run")
}

/// Sums up sweeps until as many sessions were looked at as there are, and gives the last walk beside. With `alive`, each
/// of them has a packet now and then.
fn work(
    subject: &mut Subject,
    alive: bool,
    looks: impl Fn(&Sweep, &Sweep) -> u64,
) -> Result<(Sweep, Sweep)> {
    let (mut sweep, mut walk) = (Sweep::default(), Sweep::default());
    let deadline = Instant::now() + PATIENCE;
    let mut next = Instant::now();
    while looks(&sweep, &walk) < u64::from(SESSIONS) {
        interrupt::check()?;
        ensure!(Instant::now() < deadline, "not all sessions were looked at: {sweep:?}, {walk:?}");
        if alive && Instant::now() >= next {
            subject.establish(Traffic::UdpOut, 0, SESSIONS)?;
            next = Instant::now() + TIMEOUT / 2;
        }
        std::thread::sleep(Duration::from_millis(200));
        let (more, last_walk) = natgw(subject)?.sweeps();
        sweep.add(more);
        // The first met what was there before.
        walk = if last_walk.looks > 0 { last_walk } else { walk };
    }
    Ok((sweep, walk))
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
