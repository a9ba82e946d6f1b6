//! Two cores against one: each CPU has its queue, its generator and its half of the sessions.

use anyhow::Result;

use super::{
    comparison::{Comparison, available},
    context::Context,
    kind::Kind,
    load::{Order, Traffic},
    report::{Report, Row},
    spread::Spread,
    subject::{Sample, Subject},
};

const KINDS: [Kind; 3] = [Kind::Floor, Kind::NatgwNative, Kind::NftXdpSink];
const FLOWS: u32 = 1_000;
const PROBE: u32 = 200_000;

pub(super) fn measure(context: &Context, report: &mut Report) -> Result<()> {
    if context.cpu == 0 {
        report.skip("pps_scaling_2_cores", "this machine has one CPU");
        return Ok(());
    }
    let cpus = [context.cpu, context.cpu - 1];
    let mut subjects = Vec::new();
    for kind in available(context, &KINDS) {
        let mut subject = Subject::start(kind, context, &cpus, FLOWS)?;
        subject.establish(Traffic::UdpOut, 0, FLOWS)?;
        subjects.push(subject);
    }
    let mut scaling: Vec<(Kind, f64)> = Vec::new();
    let title = "64-byte UDP, 1000 sessions, two cores (ns and rate of each core)";
    let comparison = Comparison::interleaved(title, context, &mut subjects, |subject, _| {
        let mut on = |cpus: &[usize], packets| -> Result<Sample> {
            subject.use_cpus(cpus);
            subject.prepare(Traffic::UdpOut, 0, FLOWS, Order::Uniform)?;
            subject.measure_all_cpus(packets)
        };
        let probe = on(&cpus[..1], PROBE)?;
        let packets = super::comparison::calibrate(context, probe);
        let one = on(&cpus[..1], packets)?;
        let two = on(&cpus, packets)?;
        scaling.push((subject.kind, 2.0 * one.nanoseconds / two.nanoseconds));
        Ok(two)
    })?;
    comparison.report(report, true);
    for kind in KINDS {
        let values = scaling.iter().filter(|(this, _)| *this == kind).map(|(_, value)| *value);
        let Some(value) = Spread::of(values) else { continue };
        report.rows.push(Row {
            bench: "packets/s of two cores to one".to_owned(),
            subject: kind.name().to_owned(),
            unit: "×".to_owned(),
            value,
            vs_nft: None,
            lost: None,
        });
        if kind == Kind::NatgwNative {
            report.figure("pps_scaling_2_cores", Some(value));
        }
    }
    Ok(())
}
