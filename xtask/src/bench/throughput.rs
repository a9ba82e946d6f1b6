//! Packets a second of established sessions, UDP, uniformly random.

use anyhow::Result;

use super::{
    comparison::{Comparison, available, calibrate},
    conntrack::Room,
    context::Context,
    kind::Kind,
    load::{FULL, Order, SHORT, Traffic},
    report::{Chart, Point, Report},
    scaling,
    subject::Subject,
};

const KINDS: [Kind; 6] = [
    Kind::GeneratorAlone,
    Kind::Floor,
    Kind::LineFloor,
    Kind::NatgwNative,
    Kind::NftXdpSink,
    Kind::NftSkbSink,
];
/// Enough to touch every page and fill the caches.
const PROBE: u32 = 200_000;

pub(super) fn measure(context: &Context, report: &mut Report) -> Result<()> {
    one_core(context, report, 1_000, SHORT)?;
    if !context.quick {
        one_core(context, report, 1_000, FULL)?;
        one_core(context, report, 10_000, SHORT)?;
        one_core(context, report, 100_000, SHORT)?;
        one_core(context, report, 1_000_000, SHORT)?;
    }
    scaling::measure(context, report)
}

/// Measures with `flows` sessions and frames of `length` bytes.
fn one_core(context: &Context, report: &mut Report, flows: u32, length: u32) -> Result<()> {
    let large = flows > 100_000;
    let _room = if large { Some(Room::make(flows + 100_000)?) } else { None };
    let mut subjects = Vec::new();
    let mut packets = Vec::new();
    for kind in available(context, &KINDS) {
        if large && kind == Kind::NftSkbSink {
            // All namespaces share one connection table, and the later of two large populations
            // stands in front of the earlier one in every bucket's chain.
            continue;
        }
        let mut subject = Subject::start(kind, context, &[context.cpu], flows)?;
        // Established is what has had its first packets.
        subject.establish(Traffic::UdpOut, 0, flows)?;
        subject.establish(Traffic::UdpOut, 0, flows)?;
        subject.use_length(length);
        subject.prepare(Traffic::UdpOut, 0, flows, Order::Uniform)?;
        packets.push((kind, calibrate(context, subject.measure(PROBE)?)));
        subjects.push(subject);
    }
    let wire = if length == SHORT { SHORT + 4 } else { length };
    let title = format!("{wire}-byte UDP, {flows} sessions, one core");
    let comparison = Comparison::interleaved(title, context, &mut subjects, |subject, _| {
        let count = packets.iter().find(|(kind, _)| *kind == subject.kind);
        subject.measure(count.map_or(PROBE, |(_, count)| *count))
    })?;
    comparison.report(report, true);
    if length != SHORT {
        return Ok(());
    }
    for (kind, series) in [
        (Kind::Floor, "bare XDP redirect"),
        (Kind::NatgwNative, "natgw"),
        (Kind::NftXdpSink, "nft masquerade"),
    ] {
        let Some(nanoseconds) = comparison.nanoseconds(kind) else { continue };
        let (chart, series) = (Chart::Packet, series.to_owned());
        report.points.push(Point { chart, series, sessions: flows, nanoseconds });
    }
    let natgw = Kind::NatgwNative;
    let vs_nft = comparison.ratio_to_nft(natgw);
    match flows {
        1_000 => {
            report.figure("pps_vs_nft_64b_1k", vs_nft);
            report.figure("pps_vs_floor_64b_1k", comparison.ratio(natgw, Kind::Floor));
        }
        1_000_000 => {
            report.figure("pps_vs_nft_64b_1m", vs_nft);
            report.bound("pps_vs_nft_64b_1m", comparison.ratio_to_nft(Kind::LineFloor));
        }
        _ => {}
    }
    Ok(())
}
