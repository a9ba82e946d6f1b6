//! `cargo xtask bench`: natgw beside nftables masquerade, bare redirection and the generator
//! alone; one run, one topology, one load, measurements interleaved.
//!
//! Frames are made in the kernel (`BPF_PROG_TEST_RUN`, live frames) on the CPU that also carries
//! them through the gateway to the sink, so a time per packet is the whole way of a packet on one
//! core, and what differs between two subjects is the gateway.

mod comparison;
mod competitors;
mod conntrack;
mod context;
mod curve;
mod document;
mod endpoints;
mod environment;
mod exhaustion;
mod expiry;
mod figures;
mod goodput;
mod hostile;
mod kind;
mod latency;
mod line;
mod load;
mod memory;
mod namespace;
mod natgw;
mod new_sessions;
mod object;
mod paths;
mod report;
mod scaling;
mod softirq;
mod spread;
mod subject;
mod throughput;
mod topology;

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use self::{context::Context, environment::Environment, report::Report};
use crate::interrupt;

/// Measure the gateway against nftables masquerade.
#[derive(Args, Debug)]
pub struct Options {
    /// Shorter measurements, none with a million sessions: under two minutes.
    #[arg(long)]
    quick: bool,
    /// Interleaved repetitions of each measurement.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    repetitions: u16,
    /// Only this bench; may repeat.
    #[arg(long)]
    only: Vec<Bench>,
    #[arg(short, long, default_value = "table")]
    output: Output,
    /// Write docs/performance.md, its pictures and the details of this run.
    #[arg(long)]
    write_docs: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// A group of figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// Nanoseconds of each path through the program alone, beside 1,000 to 4,000,000 sessions.
    Paths,
    /// Packets a second with 1,000 and 1,000,000 sessions, on one core and two.
    Throughput,
    /// New sessions a second.
    Sessions,
    /// Round trips between sockets.
    Latency,
    /// Bytes a session.
    Memory,
    /// The last ports of an address.
    Exhaustion,
    /// The sweep over a million sessions.
    Expiry,
    /// Floods, and what they do to established sessions.
    Hostile,
    /// Bulk TCP between sockets.
    Goodput,
}

impl Bench {
    fn measure(self, context: &Context, report: &mut Report) -> Result<()> {
        match self {
            Self::Paths => paths::measure(context, report),
            Self::Throughput => throughput::measure(context, report),
            Self::Sessions => new_sessions::measure(context, report),
            Self::Latency => latency::measure(context, report),
            Self::Memory => memory::measure(context, report),
            Self::Exhaustion => exhaustion::measure(context, report),
            Self::Expiry => expiry::measure(context, report),
            Self::Hostile => hostile::measure(context, report),
            Self::Goodput => goodput::measure(context, report),
        }
    }
}

/// Whether the environment names a binary to measure, so that none need be built.
pub fn names_binary() -> bool {
    natgw::named().is_some()
}

/// Runs the benches, prints their result to stdout and writes it, with all details, into the
/// target directory's `bench`. JSON on stdout is the figures alone; the table is then on stderr.
///
/// # Errors
/// Without root, without a BPF toolchain; and, after all other benches have run and their result is
/// written, where a subject did not start or did not translate rightly. A doubtful figure is no
/// error but is named in the result.
pub fn run(options: &Options) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "bench makes network namespaces and loads BPF programs; run it as root"
    );
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let context = Context {
        object: object::build()?,
        natgw: natgw::binary(),
        cpu: cpus - 1,
        repetitions: usize::from(options.repetitions),
        slice: Duration::from_millis(if options.quick { 250 } else { 1000 }),
        quick: options.quick,
    };
    let environment = Environment::read(cpus, context.cpu, context.repetitions);
    context::pin(context.cpu)?;
    interrupt::catch()?;
    let mut report = Report { environment, ..Report::default() };
    if let Err(reason) = &context.natgw {
        report.skip("natgw", reason);
    }
    competitors::list(&mut report);
    let mut failed = Vec::new();
    for bench in Bench::value_variants() {
        if !options.only.is_empty() && !options.only.contains(bench) {
            continue;
        }
        eprintln!("measuring {bench:?} …");
        let measured = bench.measure(&context, &mut report);
        // The other benches' figures are still worth their time.
        interrupt::check()?;
        if let Err(error) = measured {
            eprintln!("{bench:?} failed: {error:#}");
            report.skip(&format!("{bench:?}").to_lowercase(), format!("failed: {error:#}"));
            failed.push(*bench);
        }
    }
    report.growth();
    report.environment.finish();
    let [json, text] = report.save()?;
    match options.output {
        Output::Table => print!("{}", report.text()),
        Output::Json => {
            eprint!("{}", report.text());
            println!("{:#}", report.json());
        }
    }
    if options.write_docs {
        document::write(&report)?;
    }
    eprintln!("written: {} and {}", json.display(), text.display());
    ensure!(failed.is_empty(), "failed: {failed:?}; the reasons are listed as not measured");
    Ok(())
}
