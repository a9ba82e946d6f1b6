//! Load that means harm: unsolicited packets a second, all of them dropped; and what floods and a
//! full table do to the packets of established sessions.

use anyhow::Result;

use super::{
    comparison::{Comparison, available, calibrate},
    context::Context,
    kind::Kind,
    load::{Blend, Order, Traffic},
    report::{Report, Row},
    spread::Spread,
    subject::Subject,
};
use crate::interrupt;

const KINDS: [Kind; 3] = [Kind::DropFloor, Kind::NatgwNative, Kind::NftXdpSink];
const FLOWS: u32 = 1 << 20;
const PROBE: u32 = 200_000;

pub(super) fn measure(context: &Context, report: &mut Report) -> Result<()> {
    flood(context, report)?;
    if context.natgw.is_ok() {
        beside_floods(context, report)?;
    }
    Ok(())
}

/// nftables with the rule that every gateway has, which keeps connection tracking from
/// remembering what it drops.
fn flood(context: &Context, report: &mut Report) -> Result<()> {
    let mut subjects = Vec::new();
    let mut packets = Vec::new();
    for kind in available(context, &KINDS) {
        let mut subject = Subject::start(kind, context, &[context.cpu], FLOWS)?;
        subject.drop_unsolicited()?;
        subject.prepare(Traffic::Unsolicited, 0, FLOWS, Order::Uniform)?;
        packets.push((kind, calibrate(context, subject.measure_dropped(PROBE)?)));
        subjects.push(subject);
    }
    let title = "unsolicited inbound packets dropped, one core";
    let comparison = Comparison::interleaved(title, context, &mut subjects, |subject, _| {
        let count = packets.iter().find(|(kind, _)| *kind == subject.kind);
        subject.measure_dropped(count.map_or(PROBE, |(_, count)| *count))
    })?;
    comparison.report(report, false);
    report.figure("flood_vs_nft", comparison.ratio_to_nft(Kind::NatgwNative));
    Ok(())
}

/// Established sessions.
const ESTABLISHED: u32 = 1_000;
/// Of so many packets one belongs to them.
const ONE_OF: u32 = 4;
/// A table that the floods fill.
const CAPACITY: u32 = 65_536;

/// What else arrives; the SYNs fill the table, so it is full in the end.
const FLOODS: [(&str, Traffic); 3] = [
    ("unsolicited packets", Traffic::Unsolicited),
    ("SYNs that fill the table", Traffic::SynOut),
    ("new sessions that find it full", Traffic::UdpElsewhere),
];

fn beside_floods(context: &Context, report: &mut Report) -> Result<()> {
    let packets: u32 = if context.quick { 200_000 } else { 1_000_000 };
    let mut subject = Subject::start_with(Kind::NatgwNative, context, &[context.cpu], CAPACITY)?;
    let (mut sent, mut lost) = (0, 0);
    let mut rows: Vec<Vec<f64>> = vec![Vec::new(); FLOODS.len() * 2];
    let mut next = 0;
    for _ in 0..context.repetitions {
        subject.forget_sessions()?;
        subject.establish(Traffic::UdpOut, 0, ESTABLISHED)?;
        subject.establish(Traffic::UdpIn, 0, ESTABLISHED)?;
        let directions = FLOODS.iter().flat_map(|(_, flood)| {
            [Traffic::UdpOut, Traffic::UdpIn].map(|traffic| (traffic, *flood))
        });
        for ((traffic, flood), row) in directions.zip(&mut rows) {
            interrupt::check()?;
            subject.load_mut().second_flows_from(next);
            next += packets;
            let blend = Blend::Flood(flood, ONE_OF);
            subject.prepare_blend(traffic, blend, 0, ESTABLISHED, Order::Uniform)?;
            let missing = subject.count_missing(packets, packets / ONE_OF)?;
            sent += u64::from(packets / ONE_OF);
            lost += missing;
            row.push(missing as f64 / f64::from(packets / ONE_OF) * 100.0);
        }
    }
    for (index, shares) in rows.into_iter().enumerate() {
        let direction = if index % 2 == 0 { "outwards" } else { "inwards" };
        let Some(value) = Spread::of(shares) else { continue };
        report.rows.push(Row {
            bench: "established packets lost, three hostile ones for each".to_owned(),
            subject: format!("natgw, {direction}, beside {}", FLOODS[index / 2].0),
            unit: "%".to_owned(),
            value,
            vs_nft: None,
            lost: None,
        });
    }
    report.figure("flood_established_loss", Spread::of([lost as f64 / sent as f64]));
    Ok(())
}
