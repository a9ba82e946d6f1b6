//! `cargo xtask test`: the tiers, what each runs, and the count at the end.
//!
//! All of them build into the usual target directory in the dev profile, so a second run builds
//! nothing, and `cargo test` builds nothing that this built.

mod cargo_test;

use anyhow::{Result, bail};
use clap::ValueEnum;

use self::cargo_test::{Tally, cargo_step, cargo_test, cargo_test_twice};
use crate::lab::User;
use crate::setup::{self, Purpose};
use crate::vm;
use crate::workspace;

/// End-to-end tests at a time; more only fight for the processors that carry their traffic.
const MOST_LABS: usize = 4;

/// Tests that need root are marked as ignored, for the sake of a plain `cargo test`.
const INCLUDE_IGNORED: &str = "--include-ignored";

/// A tier of tests.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Tier {
    /// No root: unit and property tests, formatting, clippy.
    Host,
    /// Root: the programs in this machine's kernel, by BPF_PROG_TEST_RUN.
    Prog,
    /// Root: gateways in network namespaces.
    E2e,
    /// The programs and gateways on Debian's Linux 6.1, in qemu.
    #[value(name = "kernel-6.1")]
    Kernel61,
}

/// Run the tests of a tier, or all that this machine can run.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[arg(value_enum)]
    tiers: Vec<Tier>,
    /// The gateways of e2e run as an ordinary user with the three capabilities of the service
    #[arg(long)]
    as_user: bool,
    /// Filters for the tests: names of tests; of test executables for kernel-6.1.
    #[arg(last = true)]
    filters: Vec<String>,
}

/// What became of a tier.
enum Ran {
    Yes,
    /// Why it could not.
    No(String),
}

/// `cargo xtask test`. Its last line says what was not run, and why.
pub fn main(options: &Options) -> Result<()> {
    if options.as_user && options.tiers != [Tier::E2e] {
        bail!("--as-user is for gateways in namespaces; write cargo xtask test e2e --as-user");
    }
    let all = options.tiers.is_empty();
    let tiers = if all { Tier::value_variants() } else { &options.tiers };
    let mut tally = Tally::default();
    let mut not_run = Vec::new();
    for tier in tiers {
        println!("== {}", name(*tier));
        match run(*tier, options, &mut tally)? {
            Ran::Yes => {}
            Ran::No(reason) => not_run.push(format!("{} ({reason})", name(*tier))),
        }
    }
    for fault in &tally.faults {
        println!("failed: {fault}");
    }
    for name in &tally.unsteady {
        println!("unsteady, passed at the second try only: {name}");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    let list = if not_run.is_empty() { "nothing".to_owned() } else { not_run.join("; ") };
    println!("not run: {list}");
    if !tally.faults.is_empty() || tally.failed > 0 {
        bail!("tests failed; their messages are above");
    }
    if !all && !not_run.is_empty() {
        bail!("what was asked for could not be run");
    }
    Ok(())
}

fn name(tier: Tier) -> String {
    tier.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn run(tier: Tier, options: &Options, tally: &mut Tally) -> Result<Ran> {
    let Options { as_user, filters, .. } = options;
    let root = nix::unistd::geteuid().is_root();
    if matches!(tier, Tier::Prog | Tier::E2e) && !root {
        return Ok(Ran::No("needs root".to_owned()));
    }
    let purposes: &[Purpose] = match tier {
        Tier::Host => &[Purpose::Build, Purpose::Checks],
        Tier::Prog => &[Purpose::Build, Purpose::Programs],
        Tier::E2e => &[Purpose::Build, Purpose::Lab, Purpose::Tests],
        Tier::Kernel61 => &[Purpose::Build, Purpose::OldKernel],
    };
    match (setup::ensure(purposes), tier) {
        (Ok(_), _) => {}
        (Err(error), Tier::Kernel61) => return Ok(Ran::No(format!("{error:#}"))),
        (Err(error), _) => return Err(error),
    }
    match tier {
        Tier::Host => host(filters, tally)?,
        Tier::Prog => prog(filters, tally)?,
        Tier::E2e => e2e(*as_user, filters, tally)?,
        Tier::Kernel61 => return old_kernel(filters, tally),
    }
    Ok(Ran::Yes)
}

fn host(filters: &[String], tally: &mut Tally) -> Result<()> {
    cargo_step(&["fmt", "--all", "--check"], tally)?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    cargo_step(&clippy, tally)?;
    let packages = ["-p", "nat-common", "-p", "nat-userspace", "-p", "xtask"];
    cargo_test(workspace::cargo(["test", "--no-fail-fast"]).args(packages), filters, tally)
}

fn prog(filters: &[String], tally: &mut Tally) -> Result<()> {
    let arguments = ["test", "--no-fail-fast", "-p", "nat-tests", "--test", "prog_*"];
    let arguments_of_tests: Vec<_> =
        [INCLUDE_IGNORED.to_owned()].iter().chain(filters).cloned().collect();
    cargo_test(&mut workspace::cargo(arguments), &arguments_of_tests, tally)
}

fn e2e(as_user: bool, filters: &[String], tally: &mut Tally) -> Result<()> {
    let binary = workspace::build_natgw(false)?;
    let at_a_time = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_LABS);
    let threads = format!("--test-threads={at_a_time}");
    let arguments: Vec<_> =
        [INCLUDE_IGNORED.to_owned(), threads].iter().chain(filters).cloned().collect();
    let lab = || workspace::cargo(["test", "-p", "xtask", "--test", "lab"]);
    cargo_test_twice(lab, &arguments, tally)?;
    let gateways = || {
        let mut command =
            workspace::cargo(["test", "--no-fail-fast", "-p", "nat-tests", "--test", "e2e_*"]);
        command.env("NATGW_BIN", &binary);
        if as_user {
            command.env(User::VARIABLE, User::NOBODY.0.to_string());
        }
        command
    };
    cargo_test_twice(gateways, &arguments, tally)
}

fn old_kernel(filters: &[String], tally: &mut Tally) -> Result<Ran> {
    let report = match vm::run_tests(filters)? {
        vm::Outcome::NotRun(reason) => return Ok(Ran::No(reason)),
        vm::Outcome::Ran(report) => report,
    };
    let failed: Vec<_> = report.results.iter().filter(|it| it.status != Some(0)).collect();
    let passed = report.results.iter().filter(|it| it.status == Some(0));
    passed.flat_map(|it| it.output.lines()).for_each(|line| tally.note(line));
    if report.succeeded() {
        return Ok(Ran::Yes);
    }
    // Emulation is slow enough to break a time limit: what failed boots and runs once more.
    let names: Vec<_> = failed.iter().filter_map(|it| vm::executable(&it.command)).collect();
    if !report.complaints.is_empty() || names.is_empty() {
        failed.iter().flat_map(|it| it.output.lines()).for_each(|line| tally.note(line));
        tally.faults.extend(report.failures());
        return Ok(Ran::Yes);
    }
    println!("-- once more: {}", names.join(" "));
    let vm::Outcome::Ran(second) = vm::run_tests(&names)? else {
        tally.faults.extend(report.failures());
        return Ok(Ran::Yes);
    };
    second.results.iter().flat_map(|it| it.output.lines()).for_each(|line| tally.note(line));
    if second.succeeded() {
        tally.unsteady.extend(names);
    } else {
        tally.faults.extend(second.failures());
    }
    Ok(Ran::Yes)
}
