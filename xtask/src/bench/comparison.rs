//! Subjects measured in turns, and what follows from their times.

use anyhow::Result;

use super::{
    context::Context,
    kind::Kind,
    report::{Report, Row},
    spread::Spread,
    subject::{Sample, Subject},
};
use crate::interrupt;

/// More loss than this makes a figure doubtful: what is lost costs the lossy one less.
const LOSS: f64 = 0.001;

/// Samples of several subjects; the n-th of each were taken right after each other.
#[derive(Debug)]
pub(super) struct Comparison {
    title: String,
    series: Vec<(Kind, Vec<Sample>)>,
}

impl Comparison {
    /// Measures all `subjects` once per repetition, one after the other.
    pub(super) fn interleaved(
        title: impl Into<String>,
        context: &Context,
        subjects: &mut [Subject],
        mut measure: impl FnMut(&mut Subject, usize) -> Result<Sample>,
    ) -> Result<Self> {
        let mut series: Vec<_> =
            subjects.iter().map(|subject| (subject.kind, Vec::new())).collect();
        for repetition in 0..context.repetitions {
            for (subject, (_, samples)) in subjects.iter_mut().zip(&mut series) {
                interrupt::check()?;
                samples.push(measure(subject, repetition)?);
            }
        }
        Ok(Self { title: title.into(), series })
    }

    /// Of samples that were taken otherwise; in each turn one of each subject.
    pub(super) fn of(title: impl Into<String>, samples: Vec<(Kind, Sample)>) -> Self {
        let mut series: Vec<(Kind, Vec<Sample>)> = Vec::new();
        for (kind, sample) in samples {
            match series.iter_mut().find(|(this, _)| *this == kind) {
                Some((_, samples)) => samples.push(sample),
                None => series.push((kind, vec![sample])),
            }
        }
        Self { title: title.into(), series }
    }

    /// Share of all packets of `kind` that arrived.
    pub(super) fn arrived(&self, kind: Kind) -> Option<f64> {
        let samples = self.samples(kind)?;
        let lost: f64 = samples.iter().map(|sample| sample.lost).sum();
        Some(1.0 - lost / samples.len() as f64)
    }

    fn samples(&self, kind: Kind) -> Option<&[Sample]> {
        let (_, samples) = self.series.iter().find(|(this, _)| *this == kind)?;
        Some(samples)
    }

    pub(super) fn nanoseconds(&self, kind: Kind) -> Option<Spread> {
        Spread::of(self.samples(kind)?.iter().map(|sample| sample.nanoseconds))
    }

    /// The nftables set-up with the shorter median.
    fn fastest_nft(&self) -> Option<Kind> {
        [Kind::NftXdpSink, Kind::NftSkbSink]
            .into_iter()
            .filter_map(|kind| Some((kind, self.nanoseconds(kind)?.median)))
            .min_by(|(_, left), (_, right)| left.total_cmp(right))
            .map(|(kind, _)| kind)
    }

    /// How many times as fast `kind` is as `base`, repetition by repetition.
    pub(super) fn ratio(&self, kind: Kind, base: Kind) -> Option<Spread> {
        let pairs = self.samples(kind)?.iter().zip(self.samples(base)?);
        Spread::of(pairs.map(|(this, base)| base.nanoseconds / this.nanoseconds))
    }

    /// The same against nftables masquerade in its faster set-up.
    pub(super) fn ratio_to_nft(&self, kind: Kind) -> Option<Spread> {
        self.ratio(kind, self.fastest_nft()?)
    }

    /// Adds a row for each subject, and what makes them doubtful. `arriving` says whether the
    /// packets are meant to reach the sink.
    pub(super) fn report(&self, report: &mut Report, arriving: bool) {
        for (kind, samples) in &self.series {
            let lost = samples.iter().map(|sample| sample.lost).fold(0.0, f64::max);
            if lost > LOSS {
                report.doubts.push(format!(
                    "{}: {} lost up to {:.2} % of its packets",
                    self.title,
                    kind.name(),
                    lost * 100.0
                ));
            }
        }
        self.report_rows(report, arriving);
    }

    /// The same where loss is a result and no doubt.
    pub(super) fn report_rows(&self, report: &mut Report, arriving: bool) {
        for (kind, samples) in &self.series {
            let Some(nanoseconds) = self.nanoseconds(*kind) else { continue };
            let lost = samples.iter().map(|sample| sample.lost).fold(0.0, f64::max);
            let wrong: u64 = samples.iter().map(|sample| sample.wrong).sum();
            if wrong > 0 {
                let name = kind.name();
                let title = &self.title;
                report.doubts.push(format!("{title}: {name} translated {wrong} packets wrongly"));
            }
            report.rows.push(Row {
                bench: self.title.clone(),
                subject: kind.name().to_owned(),
                unit: "ns".to_owned(),
                value: nanoseconds,
                vs_nft: self.ratio_to_nft(*kind),
                lost: arriving.then_some(lost),
            });
        }
    }
}

/// `kinds` without those that cannot run here.
pub(super) fn available(context: &Context, kinds: &[Kind]) -> Vec<Kind> {
    let natgw = context.natgw.is_ok();
    kinds.iter().copied().filter(|kind| natgw || kind.hook().is_none()).collect()
}

/// Packets that `subject` needs for the aimed time of a measurement, from a short run.
pub(super) fn calibrate(context: &Context, probe: Sample) -> u32 {
    (context.slice.as_nanos() as f64 / probe.nanoseconds) as u32
}
