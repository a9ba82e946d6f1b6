//! `cargo xtask run`: natgw in a lab of its own, or, with arguments behind `--`, the real thing.

mod lab_run;
mod live;
mod traffic;

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::lab::Lab;
use crate::setup::{self, Purpose};
use crate::workspace;

/// Prefix of the lab's names, fixed so that a kept one is found again.
const PREFIX: &str = "natgw-lab";

/// Run the gateway in a lab with real traffic; or for real, with natgw's own arguments behind `--`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How long the lab's traffic goes on.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Leave the lab running at the end, and say what can be tried in it.
    #[arg(long)]
    keep: bool,
    /// Remove the lab that was kept.
    #[arg(long, conflicts_with = "keep")]
    remove: bool,
    /// Arguments of `natgw run`: `--public eth0 --private eth1 --eip A --source CIDR`, or `-c FILE`.
    #[arg(last = true)]
    natgw: Vec<String>,
}

/// `cargo xtask run`.
pub fn main(options: &Options) -> Result<()> {
    if options.remove {
        if !Lab::remove_kept(PREFIX) {
            println!("there is no kept lab");
        }
        return Ok(());
    }
    if !options.natgw.is_empty() {
        return the_real_thing(&options.natgw);
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("the lab makes network namespaces and loads BPF programs; run it as root");
    }
    setup::ensure(&[Purpose::Build, Purpose::Lab])?;
    let binary = workspace::build_natgw(true)?;
    lab_run::main(&binary, options.seconds, options.keep)
}

/// Builds natgw and becomes it.
fn the_real_thing(arguments: &[String]) -> Result<()> {
    setup::ensure(&[Purpose::Build])?;
    let binary = workspace::build_natgw(true)?;
    println!("{} run {}", binary.display(), arguments.join(" "));
    let error = Command::new(&binary).arg("run").args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", binary.display()))
}
