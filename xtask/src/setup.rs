//! `cargo xtask setup`: installs what building, the lab and the tests need, and says what.
//!
//! Looks before it installs, so that with nothing missing it takes a fraction of a second; `run`
//! and `test` call it each time.

mod distribution;
mod linker;
mod packages;
mod toolchain;

use std::process::Command;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::workspace;

/// What the machine is to be able to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Purpose {
    /// Compile natgw, BPF programs included.
    Build,
    /// `cargo xtask run` without arguments.
    Lab,
    /// `cargo xtask test prog`.
    Programs,
    /// `cargo xtask test e2e`, and the benches.
    Tests,
    /// rustfmt and clippy, for the host tier.
    Checks,
    /// `cargo xtask test kernel-6.1`.
    OldKernel,
    /// `cargo xtask dist`.
    Dist,
}

/// Install what is missing on this machine.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only for these purposes; all without it.
    #[arg(long = "for", value_enum)]
    purposes: Vec<Purpose>,
}

/// `cargo xtask setup`.
pub fn main(options: &Options) -> Result<()> {
    let all = Purpose::value_variants();
    let purposes = if options.purposes.is_empty() { all } else { &options.purposes };
    if !ensure(purposes)? {
        println!("setup: nothing is missing");
    }
    Ok(())
}

/// Installs what these purposes lack. False if nothing was missing.
pub fn ensure(purposes: &[Purpose]) -> Result<bool> {
    let mut steps: Vec<Step> = packages::missing(purposes).into_iter().collect();
    if purposes.contains(&Purpose::Build) {
        steps.extend(toolchain::missing_source()?);
    }
    if purposes.contains(&Purpose::Checks) {
        steps.extend(toolchain::missing_components()?);
    }
    let mut changed = !steps.is_empty();
    apply(&steps)?;
    if purposes.contains(&Purpose::Build) {
        // After the toolchain: the linker has to fit the one that was chosen.
        let steps = linker::missing()?;
        changed |= !steps.is_empty();
        apply(&steps)?;
    }
    if purposes.contains(&Purpose::Dist) {
        let steps = distribution::missing()?;
        changed |= !steps.is_empty();
        apply(&steps)?;
    }
    Ok(changed)
}

/// One thing to install.
#[derive(Debug)]
struct Step {
    /// What and why, for the user.
    what: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Debian packages.
    Packages(Vec<String>),
    /// `core`'s source, by whichever way works.
    Source,
    /// A command that needs no root.
    Command { program: &'static str, arguments: Vec<String>, environment: Vec<(String, String)> },
}

impl Step {
    fn command_line(&self) -> String {
        match &self.kind {
            Kind::Packages(names) => {
                format!("apt-get install -y --no-install-recommends {}", names.join(" "))
            }
            Kind::Source => "rustup component add rust-src".to_owned(),
            Kind::Command { program, arguments, environment } => {
                let set: String =
                    environment.iter().map(|(name, value)| format!("{name}={value} ")).collect();
                format!("{set}{program} {}", arguments.join(" "))
            }
        }
    }
}

fn apply(steps: &[Step]) -> Result<()> {
    let packages: Vec<_> =
        steps.iter().filter(|step| matches!(step.kind, Kind::Packages(_))).collect();
    if !packages.is_empty() && !nix::unistd::geteuid().is_root() {
        let lines: Vec<_> = steps
            .iter()
            .map(|step| format!("  {}  # {}", step.command_line(), step.what))
            .collect();
        bail!(
            "something is missing and this is not root; run these (the packages as root), then \
             again:\n{}",
            lines.join("\n")
        );
    }
    for step in steps {
        println!("setup: {}: {}", step.what, step.command_line());
        match &step.kind {
            Kind::Packages(names) => packages::install(names)?,
            Kind::Source => toolchain::install_source()?,
            Kind::Command { program, arguments, environment } => {
                let mut command = Command::new(program);
                command.args(arguments).envs(environment.iter().map(|(name, value)| (name, value)));
                workspace::run(&mut command)?;
            }
        }
    }
    Ok(())
}
