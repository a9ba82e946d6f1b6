//! bpf-linker, which reads the compiler's bitcode and so has to have the compiler's LLVM: an older
//! one fails with `Invalid record`.

use std::process::Command;

use anyhow::{Context, Result, bail};

use super::toolchain::{llvm_major, rustc};
use super::{Kind, Step, packages};
use crate::workspace::find_program;

const VERSION: &str = "0.13.0";
/// The versions of LLVM that it can be built with.
const SUPPORTED: std::ops::RangeInclusive<u32> = 21..=23;

/// The steps that bring a linker with the LLVM of the compiler.
pub(super) fn missing() -> Result<Vec<Step>> {
    let version = rustc(&["-vV"])?;
    let wanted = llvm_major(&version)
        .with_context(|| format!("`rustc -vV` names no LLVM version:\n{version}"))?;
    let what = match find_program("bpf-linker") {
        None => "missing bpf-linker".to_owned(),
        Some(program) => {
            let output = Command::new("ldd").arg(&program).output().context("cannot run ldd")?;
            match linked_llvm(&String::from_utf8_lossy(&output.stdout)) {
                // Linked statically: a release of its makers, for the newest compilers.
                None => return Ok(Vec::new()),
                Some(found) if found == wanted => return Ok(Vec::new()),
                Some(found) => {
                    format!("bpf-linker has LLVM {found}, the compiler LLVM {wanted}")
                }
            }
        }
    };
    if !SUPPORTED.contains(&wanted) {
        bail!(
            "the compiler has LLVM {wanted}, for which bpf-linker {VERSION} cannot be built; \
             install another toolchain (`rustup toolchain install 1.95.0 -c rust-src`) and name \
             it in NATGW_BPF_TOOLCHAIN"
        );
    }
    let mut steps = Vec::new();
    let prefix = format!("/usr/lib/llvm-{wanted}");
    let mut needed = Vec::new();
    if !std::path::Path::new(&prefix).join("bin/llvm-config").exists() {
        needed.push(format!("llvm-{wanted}-dev"));
    }
    if find_program("g++").is_none() {
        // For libstdc++, which LLVM needs.
        needed.push("g++".to_owned());
    }
    if !needed.is_empty() {
        if !packages::available(&needed) {
            println!(
                "setup: if this Debian has no llvm-{wanted}-dev after an update, add the archive \
                 of LLVM (https://apt.llvm.org), or name a toolchain with another LLVM in \
                 NATGW_BPF_TOOLCHAIN"
            );
        }
        let what = format!("missing LLVM {wanted}, to build bpf-linker");
        steps.push(Step { what, kind: Kind::Packages(needed) });
    }
    let arguments = format!(
        "install bpf-linker --version {VERSION} --locked --force --no-default-features \
         --features llvm-{wanted}"
    );
    steps.push(Step {
        what,
        kind: Kind::Command {
            program: "cargo",
            arguments: arguments.split_whitespace().map(str::to_owned).collect(),
            environment: vec![("LLVM_PREFIX".to_owned(), prefix)],
        },
    });
    Ok(steps)
}

/// The major version of the LLVM library in what `ldd` prints: `libLLVM.so.22.1` or
/// `libLLVM-17.so.1`.
fn linked_llvm(libraries: &str) -> Option<u32> {
    let library = libraries.split_whitespace().find(|word| word.starts_with("libLLVM"))?;
    let digits = library.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::linked_llvm;

    #[test]
    fn the_linkers_llvm_is_read_from_its_libraries() {
        let ldd =
            "\tlinux-vdso.so.1 (0x1)\n\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1";
        assert_eq!(linked_llvm(ldd), Some(22));
        assert_eq!(linked_llvm("\tlibLLVM-17.so.1 => /usr/lib/libLLVM-17.so.1"), Some(17));
        assert_eq!(linked_llvm("\tlibc.so.6 => /lib/libc.so.6"), None);
    }
}
