//! Bulk TCP between real sockets: iperf3 over veth with its offloads as they are, both ways.

use std::{
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    context::Context,
    endpoints::{Endpoints, SERVER},
    kind::Kind,
    report::{Report, Row},
    spread::Spread,
};
use crate::interrupt;

const KINDS: [Kind; 3] = [Kind::NatgwTc, Kind::NatgwNative, Kind::NftXdpSink];
const START: Duration = Duration::from_secs(10);
const DIRECTIONS: [(&str, &[&str]); 2] = [("upload", &[]), ("download", &["--reverse"])];

pub(super) fn measure(context: &Context, report: &mut Report) -> Result<()> {
    let mut subjects = Vec::new();
    for kind in KINDS {
        match Endpoints::start(kind, context).and_then(Pair::start) {
            Ok(pair) => subjects.push(pair),
            Err(error) if kind.is_nft() => return Err(error),
            Err(error) => {
                report.skip(&format!("TCP, {}", kind.name()), format!("{error:#}"));
            }
        }
    }
    let seconds = if context.quick { "1" } else { "2" };
    // Gigabits a second of each repetition, up and down.
    let mut rates: Vec<Vec<[f64; 2]>> = vec![Vec::new(); subjects.len()];
    for _ in 0..context.repetitions {
        for (subject, rates) in subjects.iter().zip(&mut rates) {
            let mut both = [0.0; 2];
            for ((_, options), rate) in DIRECTIONS.iter().zip(&mut both) {
                interrupt::check()?;
                *rate = subject.run(&[&["--time", seconds], *options].concat())?;
            }
            rates.push(both);
        }
    }
    let nft = rates.last().context("no subject")?.clone();
    for (place, (direction, _)) in DIRECTIONS.iter().enumerate() {
        for (subject, rates) in subjects.iter().zip(&rates) {
            let Some(value) = Spread::of(rates.iter().map(|rate| rate[place])) else { continue };
            report.rows.push(Row {
                bench: format!("TCP {direction}, one iperf3 stream"),
                subject: subject.endpoints.kind.name_of_path().to_owned(),
                unit: "Gb/s".to_owned(),
                value,
                vs_nft: Spread::of(
                    rates.iter().zip(&nft).map(|(own, nft)| own[place] / nft[place]),
                ),
                lost: None,
            });
        }
    }
    // Of the better hook, and both directions together.
    let sum = |rate: &[f64; 2]| rate[0] + rate[1];
    let best = subjects
        .iter()
        .zip(&rates)
        .filter(|(subject, _)| !subject.endpoints.kind.is_nft())
        .filter_map(|(_, rates)| {
            Spread::of(rates.iter().zip(&nft).map(|(own, nft)| sum(own) / sum(nft)))
        })
        .max_by(|left, right| left.median.total_cmp(&right.median));
    report.figure("tcp_goodput_vs_nft", best);
    Ok(())
}

struct Pair {
    // Declared, and so dropped, in this order.
    server: Server,
    endpoints: Endpoints,
}

/// An iperf3 that serves until it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("could not end iperf3: {error}");
        }
    }
}

impl Pair {
    fn start(endpoints: Endpoints) -> Result<Self> {
        let child = endpoints
            .topology
            .server
            .command("iperf3")
            .arg("--server")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("start iperf3")?;
        let mut pair = Self { server: Server(child), endpoints };
        pair.wait()?;
        Ok(pair)
    }

    /// Until a short run succeeds.
    fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            match self.run(&["--bytes", "64K"]) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => {}
            }
            if let Some(status) = self.server.0.try_wait()? {
                bail!("iperf3 has ended ({status})");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Gigabits a second that arrived.
    fn run(&self, options: &[&str]) -> Result<f64> {
        let server = SERVER.to_string();
        let common = ["--json", "--connect-timeout", "2000", "--client", &server];
        let output =
            self.endpoints.topology.client.command("iperf3").args(common).args(options).output()?;
        let result: serde_json::Value =
            serde_json::from_slice(&output.stdout).context("iperf3 printed no JSON")?;
        let rate = result["end"]["sum_received"]["bits_per_second"].as_f64();
        rate.filter(|_| result["error"].is_null())
            .map(|rate| rate / 1e9)
            .with_context(|| format!("iperf3: {}", result["error"]))
    }
}
