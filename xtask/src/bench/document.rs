//! `docs/performance.md`: what a run found, for readers; made of the run's details, which are
//! kept beside it.

use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context as _, Result};

use super::{
    curve,
    figures::{self, FIGURES},
    report::{Chart, Report, Row, Skipped, number},
    spread::Spread,
};
use crate::workspace;

const TEXT: &str = "performance.md";
const DETAILS: &str = "performance.json";

const METHOD: &str = "\
## Method

One command, one run, one machine: `cargo xtask bench`. Each subject is a gateway between two network
namespaces joined by veth, all of them alive at once; repetitions are interleaved, so what disturbs the
machine disturbs all of them. A ratio is the median of the ratios of each repetition, not a ratio of
medians. nftables masquerades and does nothing else; packets are counted behind it once by an XDP
program, once by a tc program, and ratios are to whichever is faster. All translators can keep the
source port in these loads, except where ports run out on purpose.

- **Packets a second.** Frames are made in the kernel (`BPF_PROG_TEST_RUN`, live frames) on the CPU that also
  carries them through the gateway to the sink: a time is a packet's whole way, generator included. The
  generator alone and bare XDP redirection show what of it is not the gateway. Before a measurement each
  session's first packet is checked at the sink: source address, and both checksums recomputed.
- **The program alone.** `BPF_PROG_TEST_RUN` in repeat mode runs a wrapper that writes a frame of a random
  session, in a random direction, and calls the program; the same wrapper with an empty program behind it is
  subtracted. \"Uniform\" takes each session alike, \"Zipf\" the n-th with a probability of about 1/n. Established
  sessions have carried two packets each way before, and natgw's flow cache has got its size for them.
  \"One line of memory\" is a program that finds one cache line by the packet's addresses and ports, in a table
  with one for each direction of each session, and adds to it: what this machine's memory
  alone costs a translator that remembers anything of a flow.
- **Floors.** Programs that translate nothing and do one thing that a translator cannot do without, in the
  same run: redirect the packet; find and change one line of memory as above; make two entries of a session's
  size in a BPF hash map of natgw's capacity, one for each direction. What they take is the least that it costs here.
- **New sessions.** Every packet is the first of a session; the tables were filled once before, and emptied.
- **The last ports.** Sessions to one remote endpoint, until none of 64,512 ports is free. Attempts at 99 % in
  use are all made while ports are free; a share of 1 is every attempt translated. The time of an attempt is
  that of its packet's whole way.
- **Memory.** What the kernel accounts to every map that the daemon or its programs refer to, at capacity
  1,048,576 and with as many sessions, divided by them; for netfilter the growth of all slabs.
- **The sweep.** As the daemon counts it: CPU time of its thread until each of 1,000,000 sessions, all in use,
  has been looked at once, which is once in its timeout. The throughput beside it is compared with that while the daemon is stopped.
- **Floods.** Of four frames three are hostile, one belongs to an established session and must arrive.
- **Round trips and TCP.** Real sockets. Native XDP gets what it needs on veth (`tx off`, `gro on` at both hosts),
  everything else keeps the offloads that veth has by default.

These are numbers of veth on a virtual machine, with the mitigations listed above; a network card adds its
own cost to both sides of every ratio. Trust ratios more than rates, and measure on your own hardware.
";

/// Writes the text, its pictures and the details of the run into `docs`.
pub(super) fn write(report: &Report) -> Result<()> {
    let mut files = pages(report);
    files.push((DETAILS, serde_json::to_string_pretty(report)? + "\n"));
    for (name, content) in files {
        let path = directory().join(name);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn directory() -> PathBuf {
    workspace::root().join("docs")
}

/// What readers see, by file name.
fn pages(report: &Report) -> Vec<(&'static str, String)> {
    let pictures = Chart::ALL.into_iter();
    let mut pages: Vec<_> = pictures
        .filter_map(|chart| Some((chart.file(), curve::draw(chart, &report.points)?)))
        .collect();
    pages.push((TEXT, markdown(report)));
    pages
}

fn markdown(report: &Report) -> String {
    let mut text = String::from(
        "# Performance\n\nWritten by `cargo xtask bench --write-docs`; the details are in \
         [performance.json](performance.json). \
         Every figure is a median with its minimum and maximum.\n\n```text\n",
    );
    text += report.environment.text().trim_end();
    text += "\n```\n\n## Figures\n\n| figure | measured | aim | | what |\n| --- | --- | --- | --- | --- |\n";
    for figure in &FIGURES {
        let measured = report.figures.get(figure.name);
        let met = match measured {
            None => "not measured",
            Some(spread) if figure.aim.is_met_by(spread.median) => "met",
            Some(_) => "**missed**",
        };
        let value = measured.map_or("–".to_owned(), |spread| spread_text(*spread));
        let (aim, what) = (figure.aim.text(), figure.what);
        _ = writeln!(text, "| `{}` | {value} | {aim} | {met} | {what} |", figure.name);
    }
    text += &losses(report);
    for chart in Chart::ALL {
        if report.points.iter().any(|point| point.chart == chart) {
            _ = write!(text, "\n![{}]({})\n", chart.title(), chart.file());
        }
    }
    text += "\n## All measurements\n";
    let mut bench = "";
    for row in &report.rows {
        if row.bench != bench {
            bench = &row.bench;
            _ = write!(
                text,
                "\n| {bench} | median (min–max) | million/s | × nftables | lost |\n\
                 | --- | --- | --- | --- | --- |\n"
            );
        }
        text += &row_text(row);
    }
    text += "\n## Not measured\n\n";
    for Skipped { name, reason } in &report.skipped {
        _ = writeln!(text, "- {name}: {}", reason.trim().replace('\n', " "));
    }
    if !report.doubts.is_empty() {
        text += "\n## Doubtful\n\n";
        for doubt in &report.doubts {
            _ = writeln!(text, "- {doubt}");
        }
    }
    text + "\n" + METHOD
}

/// Every row in which nftables is better, and every figure that misses its aim.
fn losses(report: &Report) -> String {
    let mut text = String::from("\n## Where natgw loses\n\n");
    let lost: Vec<&Row> = report.rows.iter().filter(|row| row.is_lost()).collect();
    for row in &lost {
        let ratio = row.vs_nft.map_or(1.0, |ratio| ratio.median);
        _ = writeln!(
            text,
            "- {}, {}: {} {}, {ratio:.2} times as good as nftables masquerade",
            row.bench,
            row.subject,
            spread_text(row.value),
            row.unit
        );
    }
    if lost.is_empty() {
        text += "- In no row that was measured is nftables masquerade better.\n";
    }
    for (name, spread) in &report.figures {
        let Some(figure) = figures::find(name) else { continue };
        if !figure.aim.is_met_by(spread.median) {
            _ = write!(
                text,
                "- `{name}` misses its aim: {} where {} was wanted",
                number(spread.median),
                figure.aim.text()
            );
            if let (Some(what), Some(bound)) = (figure.bound, report.bounds.get(name)) {
                _ = write!(text, "; bound by {what}: {}", spread_text(*bound));
            }
            text.push('\n');
        }
    }
    text
}

fn row_text(row: &Row) -> String {
    let name = if row.of_natgw() { format!("**{}**", row.subject) } else { row.subject.clone() };
    let rate = row.million_per_second().map_or(String::new(), |rate| format!("{rate:.3}"));
    let ratio = row.vs_nft.map_or(String::new(), |ratio| format!("{:.2}", ratio.median));
    let lost = row.lost.map_or(String::new(), |lost| format!("{:.3} %", lost * 100.0));
    format!("| {name} | {} {} | {rate} | {ratio} | {lost} |\n", spread_text(row.value), row.unit)
}

fn spread_text(Spread { min, median, max }: Spread) -> String {
    format!("{} ({}–{})", number(median), number(min), number(max))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Set to write the pages anew from the details.
    const UPDATE: &str = "NATGW_UPDATE_DOCS";

    fn published() -> Report {
        let text = fs::read_to_string(directory().join(DETAILS)).expect("the details are there");
        serde_json::from_str(&text).expect("they are a report")
    }

    #[test]
    fn the_published_pages_say_what_the_details_of_their_run_say() {
        for (name, content) in pages(&published()) {
            let path = directory().join(name);
            if std::env::var_os(UPDATE).is_some() {
                fs::write(&path, &content).expect("docs can be written");
            }
            let there = fs::read_to_string(&path).expect("the page is there");
            assert!(
                there == content,
                "docs/{name} is not what the bench made; {UPDATE}=1 mends it"
            );
        }
    }

    #[test]
    fn the_published_table_has_every_figure_with_its_value_from_the_json() {
        let report = published();
        let (json, text) = (report.json(), markdown(&report));
        for (name, value) in json.as_object().expect("an object") {
            let row = text.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
            let row = row.unwrap_or_else(|| panic!("no row for {name}"));
            let cell = row.split(" | ").nth(1).expect("a second cell");
            match value.as_f64() {
                Some(value) => assert!(cell.starts_with(&number(value)), "{row}: {value}"),
                None => assert_eq!(cell, "–", "{row}"),
            }
        }
    }

    #[test]
    fn a_row_that_nftables_wins_is_listed_as_lost() {
        let mut report = Report::default();
        report.rows.push(Row {
            bench: "TCP".to_owned(),
            subject: "natgw, native XDP".to_owned(),
            unit: "Gb/s".to_owned(),
            value: Spread { min: 5.0, median: 6.0, max: 7.0 },
            vs_nft: Some(Spread { min: 0.2, median: 0.3, max: 0.4 }),
            lost: None,
        });
        report.figure("tcp_goodput_vs_nft", Spread::of([0.3]));
        let listed = losses(&report);
        assert!(listed.contains("TCP, natgw, native XDP: 6.000 (5.000–7.000) Gb/s"), "{listed}");
        assert!(listed.contains("`tcp_goodput_vs_nft` misses its aim"), "{listed}");
    }

    #[test]
    fn a_figure_that_misses_its_aim_is_listed_with_what_bounds_it() {
        let mut report = Report::default();
        for (name, value, bound) in [("cps_vs_nft_udp", 3.0, 3.5), ("cps_vs_nft_tcp", 4.5, 5.0)] {
            report.figure(name, Spread::of([value]));
            report.bound(name, Spread::of([bound]));
        }
        let listed = losses(&report);
        let line = "`cps_vs_nft_udp` misses its aim: 3.000 where ≥ 4.4 was wanted; bound by bare redirection \
                    with two entries into a hash map a packet: 3.500 (3.500–3.500)\n";
        assert!(listed.contains(line), "{listed}");
        assert!(!listed.contains("cps_vs_nft_tcp"), "{listed}");
    }
}
