//! The bench's BPF object: built by cargo for the BPF target, as the product's own object is.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::workspace;

#[path = "../../../nat-ebpf/object.rs"]
mod build;

/// Names a built object; the build is then left out.
const PREBUILT: &str = "NATGW_BENCH_OBJECT";

/// Builds the object and returns its bytes.
pub(super) fn build() -> Result<Vec<u8>> {
    let path = match std::env::var_os(PREBUILT) {
        Some(path) => PathBuf::from(path),
        None => compile()?,
    };
    std::fs::read(&path).with_context(|| format!("read {}", path.display()))
}

fn compile() -> Result<PathBuf> {
    // The outer `cargo xtask` may still hold the lock of the usual directory.
    let target_dir = workspace::target_dir().join("bpf");
    let mut cargo = match workspace::bpf_toolchain() {
        None => Command::new("cargo"),
        Some(toolchain) => {
            let mut rustup = Command::new("rustup");
            rustup.args(["run", &toolchain, "cargo"]);
            rustup
        }
    };
    let (big_endian, architecture) = (cfg!(target_endian = "big"), std::env::consts::ARCH);
    let built = build::compile(&mut cargo, "natgw-bench", big_endian, architecture, &target_dir);
    let status =
        cargo.current_dir(workspace::root()).env_remove("RUSTC").status().context("run cargo")?;
    ensure!(
        status.success(),
        "the bench's BPF programs do not build; `cargo xtask setup` installs what is missing"
    );
    Ok(built)
}
