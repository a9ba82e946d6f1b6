//! Rows, figures and doubts of one run; as a table and as JSON.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    environment::Environment,
    figures::{self, FIGURES},
    spread::Spread,
};
use crate::workspace;

/// One line of the table.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Row {
    pub bench: String,
    pub subject: String,
    /// Of `value`. Nanoseconds ("ns") are those of one operation.
    pub unit: String,
    pub value: Spread,
    /// How many times as good as nftables masquerade in the same repetition: above 1 is better.
    pub vs_nft: Option<Spread>,
    /// Largest share of packets that did not arrive; none where none should arrive.
    pub lost: Option<f64>,
}

impl Row {
    pub(super) fn of_natgw(&self) -> bool {
        self.subject.starts_with("natgw")
    }

    /// natgw's, and worse than nftables'.
    pub(super) fn is_lost(&self) -> bool {
        self.of_natgw() && self.vs_nft.is_some_and(|ratio| ratio.median < 1.0)
    }

    pub(super) fn million_per_second(&self) -> Option<f64> {
        (self.unit == "ns").then(|| 1e3 / self.value.median)
    }
}

/// A point of a curve of cost against number of sessions.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Point {
    pub chart: Chart,
    pub series: String,
    pub sessions: u32,
    pub nanoseconds: Spread,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Chart {
    /// The program alone.
    Translation,
    /// The whole way of a packet.
    Packet,
}

/// Something the bench would have measured.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Skipped {
    pub name: String,
    pub reason: String,
}

/// Everything one run found out.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Report {
    pub environment: Environment,
    /// Those of [`FIGURES`] that were measured.
    pub figures: BTreeMap<String, Spread>,
    /// The same of a program that does nothing but the one thing that no translator can do without.
    #[serde(default)]
    pub bounds: BTreeMap<String, Spread>,
    pub rows: Vec<Row>,
    pub points: Vec<Point>,
    pub skipped: Vec<Skipped>,
    /// Why a figure should not be believed.
    pub doubts: Vec<String>,
}

impl Report {
    /// Notes a figure; one of [`FIGURES`].
    pub(super) fn figure(&mut self, name: &str, value: Option<Spread>) {
        debug_assert!(figures::find(name).is_some(), "no figure is called {name}");
        if let Some(value) = value {
            self.figures.insert(name.to_owned(), value);
        }
    }

    /// Notes what bounds a figure on this machine; one of those that say by what.
    pub(super) fn bound(&mut self, name: &str, value: Option<Spread>) {
        if let Some(value) = value {
            debug_assert!(figures::find(name).is_some_and(|figure| figure.bound.is_some()));
            self.bounds.insert(name.to_owned(), value);
        }
    }

    /// How much dearer a session's packet is beside four million sessions than beside a thousand.
    pub(super) fn growth(&mut self) {
        let figure = |name: &str| self.figures.get(name).copied();
        if let (Some(small), Some(large)) =
            (figure("ns_established_1k"), figure("ns_established_4m"))
        {
            self.figure("growth_4m_over_1k", Spread::of([large.median / small.median]));
        }
    }

    pub(super) fn skip(&mut self, name: &str, reason: impl Into<String>) {
        self.skipped.push(Skipped { name: name.to_owned(), reason: reason.into() });
    }

    /// One object: the median of each of [`FIGURES`] under its name, null where it was not
    /// measured, and nothing else.
    pub(super) fn json(&self) -> Value {
        let median = |name| self.figures.get(name).map_or(Value::Null, |it| json!(it.median));
        let members = FIGURES.iter().map(|figure| (figure.name.to_owned(), median(figure.name)));
        Value::Object(members.collect::<Map<_, _>>())
    }

    pub(super) fn text(&self) -> String {
        let mut text = self.environment.text();
        let mut bench = "";
        let mut table = plain();
        for row in &self.rows {
            if row.bench != bench {
                if !bench.is_empty() {
                    text += &format!("\n{bench}\n{table}\n");
                }
                bench = &row.bench;
                table = plain();
                table.set_header(["", "min", "median", "max", "", "M/s", "× nft", "lost"]);
            }
            table.add_row([
                row.subject.clone(),
                number(row.value.min),
                number(row.value.median),
                number(row.value.max),
                row.unit.clone(),
                row.million_per_second().map_or(String::new(), |rate| format!("{rate:.3}")),
                row.vs_nft.map_or(String::new(), |ratio| {
                    format!("{:.2}{}", ratio.median, if row.is_lost() { " loses" } else { "" })
                }),
                row.lost.map_or(String::new(), |lost| format!("{:.3} %", lost * 100.0)),
            ]);
        }
        if !bench.is_empty() {
            text += &format!("\n{bench}\n{table}\n");
        }
        let mut table = plain();
        table.set_header(["figure", "min", "median", "max", "aim", "", "", ""]);
        for figure in &FIGURES {
            let Some(spread) = self.figures.get(figure.name) else { continue };
            let met = if figure.aim.is_met_by(spread.median) { "" } else { "missed" };
            table.add_row([
                figure.name.to_owned(),
                number(spread.min),
                number(spread.median),
                number(spread.max),
                figure.aim.text(),
                met.to_owned(),
                figure.what.to_owned(),
            ]);
        }
        text += &format!("\n{table}\n");
        for Skipped { name, reason } in &self.skipped {
            text += &format!("not measured: {name}: {reason}\n");
        }
        for doubt in &self.doubts {
            text += &format!("DOUBTFUL: {doubt}\n");
        }
        text
    }

    /// Writes the details as JSON and the table into `bench` of the target directory and returns
    /// the paths.
    pub(super) fn save(&self) -> Result<[PathBuf; 2]> {
        let directory = workspace::target_dir().join("bench");
        std::fs::create_dir_all(&directory)?;
        let paths = [directory.join("bench.json"), directory.join("bench.txt")];
        let json = serde_json::to_string_pretty(self)? + "\n";
        for (path, content) in paths.iter().zip([json, self.text()]) {
            std::fs::write(path, content).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(paths)
    }
}

/// With as many digits as a reader can use.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        ..10.0 => format!("{value:.3}"),
        ..1000.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([""; 8]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the project publishes and others read: no name may change or be lost.
    const MEMBERS: &str = "pps_vs_nft_64b_1k pps_vs_floor_64b_1k pps_vs_nft_64b_1m \
        pps_scaling_2_cores ns_established_1k ns_established_1m ns_established_4m \
        growth_4m_over_1k cps_vs_nft_udp cps_vs_nft_tcp exhaustion_success_99 \
        exhaustion_success_999 exhaustion_success_last_port exhaustion_ns_99 exhaustion_ns_full \
        bytes_per_session expiry_1m_cpu_ms expiry_1m_worst_slice_ms expiry_pps_loss flood_vs_nft \
        flood_established_loss tcp_goodput_vs_nft rtt_vs_nft_p50";

    #[test]
    fn the_json_has_exactly_the_published_members() {
        let mut expected: Vec<&str> = MEMBERS.split_whitespace().collect();
        expected.sort_unstable();
        let Value::Object(members) = Report::default().json() else { panic!("not an object") };
        let mut names: Vec<&str> = members.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, expected);
    }

    #[test]
    fn a_figure_is_its_median_and_null_without_a_measurement() {
        let mut report = Report::default();
        report.figure("cps_vs_nft_udp", Spread::of([3.0, 5.0, 4.0]));
        report.figure("cps_vs_nft_tcp", None);
        assert_eq!(report.json()["cps_vs_nft_udp"], json!(4.0));
        assert_eq!(report.json()["cps_vs_nft_tcp"], Value::Null);
    }

    #[test]
    fn growth_needs_both_of_its_figures() {
        let mut report = Report::default();
        report.figure("ns_established_4m", Spread::of([150.0]));
        report.growth();
        assert_eq!(report.json()["growth_4m_over_1k"], Value::Null);
        report.figure("ns_established_1k", Spread::of([30.0]));
        report.growth();
        assert_eq!(report.json()["growth_4m_over_1k"], json!(5.0));
    }
}
