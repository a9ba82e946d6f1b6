//! `cargo xtask dist`: what is installed on other machines, in `target/dist`: a static binary, its man
//! pages and completions, the systemd units, and a package for Debian.

mod check;
pub mod unit;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::setup::{self, Purpose};
use crate::workspace::{self, run};

/// Needs nothing of the machine that it runs on.
pub(crate) const STATIC: &str = "x86_64-unknown-linux-musl";
const SHELLS: [(&str, &str); 3] =
    [("bash", "natgw.bash"), ("zsh", "_natgw"), ("fish", "natgw.fish")];

/// Build what is installed on other machines, into target/dist.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Also install and remove the package on a clean Debian in a directory (root, debootstrap)
    #[arg(long)]
    check: bool,
}

/// `cargo xtask dist`.
pub fn main(options: &Options) -> Result<()> {
    setup::ensure(&[Purpose::Build, Purpose::Dist])?;
    let directory = workspace::root().join("target/dist");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let binary = build(&directory)?;
    describe(&binary, &directory)?;
    units(&directory)?;
    let package = package(&directory)?;
    for file in [&binary, &package] {
        println!("dist: {} ({} kB)", file.display(), fs::metadata(file)?.len() / 1024);
    }
    if options.check {
        check::on_a_clean_debian(&package)?;
    }
    Ok(())
}

fn build(directory: &Path) -> Result<PathBuf> {
    let mut cargo = workspace::cargo(["build", "--release", "--package", "nat-userspace"]);
    cargo.args(["--target", STATIC]);
    run(&mut cargo)?;
    let built = workspace::target_dir().join(STATIC).join("release/natgw");
    let binary = directory.join("natgw");
    fs::copy(&built, &binary).with_context(|| format!("cannot copy {}", built.display()))?;
    Ok(binary)
}

/// Man pages and completions, as the binary itself writes them.
fn describe(binary: &Path, directory: &Path) -> Result<()> {
    let pages = directory.join("man");
    // Pages of commands that are no more.
    match fs::remove_dir_all(&pages) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    fs::create_dir(&pages)?;
    run(Command::new(binary).arg("man").arg(&pages))?;
    for (shell, file) in SHELLS {
        let output = Command::new(binary).args(["completions", shell]).output()?;
        if !output.status.success() {
            bail!("natgw completions {shell}: {}", String::from_utf8_lossy(&output.stderr));
        }
        fs::write(directory.join(file), output.stdout)?;
    }
    Ok(())
}

fn units(directory: &Path) -> Result<()> {
    let packaging = workspace::root().join("packaging");
    let service = fs::read_to_string(packaging.join("natgw.service"))?;
    fs::write(directory.join("natgw.service"), unit::for_systemd(&service, unit::version()))?;
    Ok(())
}

fn package(directory: &Path) -> Result<PathBuf> {
    let mut cargo =
        workspace::cargo(["deb", "--quiet", "--no-build", "--package", "nat-userspace"]);
    cargo.args(["--target", STATIC, "--output"]).arg(directory);
    run(&mut cargo)?;
    let newest = fs::read_dir(directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|it| it == "deb"))
        .max_by_key(|path| fs::metadata(path).and_then(|it| it.modified()).ok());
    newest.context("cargo deb has left no package in target/dist")
}
