//! New sessions a second, one core: every packet is the first of a session.

use anyhow::Result;

use super::{
    comparison::{Comparison, available},
    context::Context,
    kind::Kind,
    load::{Order, Traffic},
    report::Report,
    subject::Subject,
};

const KINDS: [Kind; 4] =
    [Kind::EntriesFloor, Kind::NatgwNative, Kind::NftXdpSink, Kind::NftSkbSink];
/// Sessions of one measurement: below netfilter's default limit of 262,144.
const SESSIONS: u32 = 150_000;

pub(super) fn measure(context: &Context, report: &mut Report) -> Result<()> {
    let mut subjects = available(context, &KINDS)
        .into_iter()
        .map(|kind| Subject::start(kind, context, &[context.cpu], SESSIONS))
        .collect::<Result<Vec<_>>>()?;
    for (traffic, title, figure) in [
        (Traffic::UdpOut, "new UDP sessions, one core", "cps_vs_nft_udp"),
        (Traffic::SynOut, "new TCP sessions (SYN), one core", "cps_vs_nft_tcp"),
    ] {
        for subject in &mut subjects {
            subject.forget_sessions()?;
            // Every first packet checked once, and the tables' memory touched.
            subject.establish(traffic, 0, SESSIONS)?;
            subject.forget_sessions()?;
        }
        let comparison =
            Comparison::interleaved(title, context, &mut subjects, |subject, repetition| {
                let first = SESSIONS * (1 + u32::try_from(repetition)?);
                subject.prepare(traffic, first, SESSIONS, Order::Sequential)?;
                let sample = subject.measure(SESSIONS)?;
                // Netfilter's table is one for all namespaces: leave it empty for the next.
                subject.forget_sessions()?;
                Ok(sample)
            })?;
        comparison.report(report, true);
        report.figure(figure, comparison.ratio_to_nft(Kind::NatgwNative));
        report.bound(figure, comparison.ratio_to_nft(Kind::EntriesFloor));
    }
    Ok(())
}
