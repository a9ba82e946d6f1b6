//! Builds the dataplane's BPF object, so that `cargo build` is all it takes.
//!
//! The object is compiled by the toolchain that compiles the rest, not through `aya-build`, which
//! cannot name the instruction set: the engine's compare-and-swap and fetch-and-add need v3.

#[path = "../nat-ebpf/object.rs"]
mod object;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// The programs, the same once more for tc, for `natgw trace` and for `natgw capture` on either hook.
const OBJECTS: [&str; 5] =
    ["natgw-dataplane", "natgw-tc", "natgw-trace", "natgw-capture", "natgw-tc-capture"];
const REMEDY: &str = "run `cargo xtask setup`, which installs what the BPF build needs";
/// Names of environment variables.
const SKIP: &str = "AYA_BUILD_SKIP";
const TOOLCHAIN: &str = "NATGW_BPF_TOOLCHAIN";

fn main() -> Result<()> {
    for path in [
        "../nat-ebpf/src",
        "../nat-ebpf/Cargo.toml",
        "../nat-ebpf/object.rs",
        "../nat-common/src",
        "build.rs",
    ] {
        println!("cargo:rerun-if-changed={path}");
    }
    for variable in [SKIP, TOOLCHAIN, "RUSTUP_TOOLCHAIN", "PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(variable("OUT_DIR")?);
    if env::var(SKIP).is_ok_and(|value| value == "1" || value == "true") {
        // A binary with an empty object says so when it is asked to load its programs.
        return OBJECTS
            .iter()
            .try_for_each(|object| fs::write(out.join(object), []))
            .context("cannot write the empty BPF objects");
    }
    let toolchain = env::var(TOOLCHAIN).ok().filter(|name| !name.is_empty());
    require_tools(toolchain.is_none())?;
    for name in OBJECTS {
        let built = compile(name, &out.join("bpf"), toolchain.as_deref())?;
        let object = out.join(name);
        fs::copy(&built, &object)
            .with_context(|| format!("cannot copy {} to {}", built.display(), object.display()))?;
    }
    Ok(())
}

fn compile(binary: &str, target_dir: &Path, toolchain: Option<&str>) -> Result<PathBuf> {
    let big_endian = variable("CARGO_CFG_TARGET_ENDIAN")? == "big";
    let architecture = variable("CARGO_CFG_TARGET_ARCH")?;
    let mut cargo = match toolchain {
        None => Command::new(variable("CARGO")?),
        Some(toolchain) => {
            let mut rustup = Command::new("rustup");
            rustup.args(["run", toolchain, "cargo"]).env_remove("RUSTC");
            rustup
        }
    };
    let built = object::compile(&mut cargo, binary, big_endian, &architecture, target_dir);
    let status = cargo
        // Output of this script is read by cargo.
        .stdout(Stdio::null())
        .status()
        .context("cannot start cargo for the BPF programs")?;
    if !status.success() {
        bail!("the BPF programs did not build ({SKIP}=1 builds the rest without them)");
    }
    Ok(built)
}

fn require_tools(this_toolchain: bool) -> Result<()> {
    if Command::new("bpf-linker").arg("--version").output().is_err() {
        bail!("bpf-linker is not in PATH; {REMEDY}");
    }
    if !this_toolchain {
        return Ok(());
    }
    let rustc = variable("RUSTC")?;
    let output = Command::new(&rustc)
        .args(["--print", "sysroot"])
        .output()
        .with_context(|| format!("cannot run {rustc}"))?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let core = sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml");
    if !core.exists() {
        bail!("the toolchain has no rust-src ({} is missing); {REMEDY}", core.display());
    }
    Ok(())
}

fn variable(name: &str) -> Result<String> {
    env::var(name).with_context(|| format!("cargo has not set {name}"))
}
