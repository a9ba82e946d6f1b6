//! `cargo xtask`: which command, and nothing else.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::setup::{self, Purpose};
use xtask::{bench, dist, run, serve, test, workspace};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Work on natgw")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Options),
    Run(run::Options),
    Test(test::Options),
    Bench(bench::Options),
    Dist(dist::Options),
    #[command(hide = true)]
    Serve(serve::Options),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Setup(options) => setup::main(&options),
        Command::Run(options) => run::main(&options),
        Command::Test(options) => test::main(&options),
        Command::Bench(options) => ready_for_bench().and_then(|()| bench::run(&options)),
        Command::Dist(options) => dist::main(&options),
        Command::Serve(options) => serve::main(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn ready_for_bench() -> anyhow::Result<()> {
    setup::ensure(&[Purpose::Build, Purpose::Lab, Purpose::Tests])?;
    if bench::names_binary() {
        return Ok(());
    }
    workspace::build_natgw(true).map(drop)
}
