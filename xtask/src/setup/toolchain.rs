//! The Rust toolchain for the BPF programs: one that has the source of `core`, because the BPF
//! target comes without a compiled one.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Kind, Step, packages};
use crate::workspace::{self, find_program};

/// How long rustup may take to download a component.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(180);
/// The name under which Debian's own Rust becomes a toolchain of rustup.
const DEBIAN_TOOLCHAIN: &str = "natgw-bpf";
/// Debian's current Rust (1.96, LLVM 22.1), and the source of its `core`.
const DEBIAN_PACKAGES: [&str; 3] = ["cargo-web", "rust-web-src", "rustc-web"];

/// `rustc ARGUMENTS` of the toolchain that compiles the BPF programs.
pub(super) fn rustc(arguments: &[&str]) -> Result<String> {
    let mut command = match workspace::bpf_toolchain() {
        Some(toolchain) if find_program("rustup").is_some() => {
            let mut command = Command::new("rustup");
            command.args(["run", &toolchain, "rustc"]);
            command
        }
        _ => Command::new("rustc"),
    };
    let output = command
        .args(arguments)
        .current_dir(workspace::root())
        .output()
        .context("cannot run rustc; install Rust 1.95 (https://rustup.rs)")?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed: {}", workspace::display(&command), message.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The step that brings the source of `core`, if it is not there.
pub(super) fn missing_source() -> Result<Option<Step>> {
    if source(&sysroot()?).exists() {
        return Ok(None);
    }
    let what = "missing the source of core, for the BPF programs".to_owned();
    Ok(Some(Step { what, kind: Kind::Source }))
}

fn sysroot() -> Result<PathBuf> {
    Ok(PathBuf::from(rustc(&["--print", "sysroot"])?.trim()))
}

fn source(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml")
}

/// By rustup; where its server cannot be reached, Debian's Rust for the BPF programs alone.
pub(super) fn install_source() -> Result<()> {
    let by_rustup = match find_program("rustup") {
        Some(_) => {
            let mut command = Command::new("rustup");
            command.args(["component", "add", "rust-src"]);
            if let Some(toolchain) = workspace::bpf_toolchain() {
                command.args(["--toolchain", &toolchain]);
            }
            run_within(DOWNLOAD_LIMIT, &mut command)
        }
        None => Err(anyhow::anyhow!("rustup is not installed")),
    };
    let Err(reason) = by_rustup else { return Ok(()) };
    println!("setup: {reason:#}; trying Debian's own Rust for the BPF programs");
    let names = DEBIAN_PACKAGES.map(str::to_owned);
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "not root; run as root `apt-get install {}`, then this again",
            DEBIAN_PACKAGES.join(" ")
        );
    }
    packages::install(&names).context(
        "neither rustup nor Debian has the source of core; give a toolchain that has it \
         (`rustup toolchain install 1.95.0 -c rust-src`) and name it in NATGW_BPF_TOOLCHAIN",
    )?;
    if find_program("rustup").is_some() {
        let arguments = ["toolchain", "link", DEBIAN_TOOLCHAIN, "/usr"];
        workspace::run(Command::new("rustup").args(arguments))?;
        workspace::remember_bpf_toolchain(DEBIAN_TOOLCHAIN)?;
    }
    let file = source(&sysroot()?);
    if !file.exists() {
        bail!("{} is still missing after installing {}", file.display(), names.join(", "));
    }
    Ok(())
}

/// rustfmt and clippy, where rustup can bring them.
pub(super) fn missing_components() -> Result<Option<Step>> {
    let mut lacking = Vec::new();
    for (program, component) in [("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")] {
        let beside = sysroot()?.join("bin").join(program);
        if !beside.exists() && (find_program("rustup").is_some() || find_program(program).is_none())
        {
            lacking.push(component.to_owned());
        }
    }
    if lacking.is_empty() {
        return Ok(None);
    }
    let what = format!("missing {}", lacking.join(" and "));
    let arguments = ["component".to_owned(), "add".to_owned()].into_iter().chain(lacking).collect();
    let kind = Kind::Command { program: "rustup", arguments, environment: Vec::new() };
    Ok(Some(Step { what, kind }))
}

fn run_within(limit: Duration, command: &mut Command) -> Result<()> {
    let line = workspace::display(command);
    let mut child =
        command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot start {line}"))?;
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            if !status.success() {
                bail!("{line} failed ({status})");
            }
            return Ok(());
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("{line} took longer than {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The major version of LLVM in what `rustc -vV` prints.
pub(super) fn llvm_major(version: &str) -> Option<u32> {
    let line = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn the_llvm_of_a_rustc_is_read_from_its_version() {
        let text = "rustc 1.95.0 (59807616e 2026-04-14)\nrelease: 1.95.0\nLLVM version: 22.1.2\n";
        assert_eq!(llvm_major(text), Some(22));
        assert_eq!(llvm_major("rustc 1.95.0"), None);
    }

    #[test]
    fn a_download_that_hangs_is_given_up() {
        let start = Instant::now();
        let error = run_within(Duration::from_millis(100), Command::new("sleep").arg("60"));
        assert!(error.unwrap_err().to_string().contains("longer than"));
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
