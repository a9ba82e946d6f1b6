//! How a BPF object of this crate is compiled: the product's by nat-userspace's build script, the
//! bench's by xtask. Both include this file, which is part of neither crate's modules here.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// What the stages note beside their work makes functions of theirs too large to be inlined
/// otherwise, and calls take the stack that they need.
const INLINED: [&str; 2] =
    ["-Cllvm-args=-inline-threshold=5000", "-Clink-arg=--llvm-args=-inline-threshold=5000"];
/// In `natgw trace` loops are compiled as written: the compiler's own way to count in them (LSR)
/// does arithmetic that the verifier does not follow.
const AS_WRITTEN: [&str; 1] = ["-Clink-arg=--llvm-args=-disable-lsr"];

/// Completes `cargo` to a command that builds `binary`, and returns where the object will be.
///
/// `target_dir` is one of its own, because the outer cargo holds the lock of the usual one.
/// `RUSTC_BOOTSTRAP` opens the one unstable option that the BPF target needs (`-Z
/// build-std=core`) on a stable compiler.
pub(crate) fn compile(
    cargo: &mut Command,
    binary: &str,
    big_endian: bool,
    architecture: &str,
    target_dir: &Path,
) -> PathBuf {
    let target = if big_endian { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };
    let flags: [String; 5] = [
        format!("--cfg=bpf_target_arch=\"{architecture}\""),
        "-Ctarget-cpu=v3".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // Packets and map values take unaligned loads; by bytes a header costs three times as much.
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".to_owned(),
    ];
    let inlined = matches!(binary, "natgw-trace" | "natgw-tc-capture");
    cargo
        .args(["rustc", "--quiet", "--package", "nat-ebpf", "--bin", binary, "--release"])
        .args(["--target", target, "-Z", "build-std=core", "--target-dir"])
        .arg(target_dir)
        .arg("--")
        .args(if inlined { &INLINED[..] } else { &[] })
        .args(if binary == "natgw-trace" { &AS_WRITTEN[..] } else { &[] })
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // Clippy comes in by these when it checks the rest.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER");
    target_dir.join(target).join("release").join(binary)
}
