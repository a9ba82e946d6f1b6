//! What `cargo xtask dist` takes: the target of static binaries, and cargo-deb.

use std::process::Command;

use anyhow::Result;

use super::{Kind, Step, toolchain::rustc};
use crate::dist::STATIC;
use crate::workspace::find_program;

const CARGO_DEB: &str = "install cargo-deb --version 3.8.0 --locked";

/// The steps that bring what is missing.
pub(super) fn missing() -> Result<Vec<Step>> {
    let step = |what: String, program, arguments: &str| Step {
        what,
        kind: Kind::Command {
            program,
            arguments: arguments.split_whitespace().map(str::to_owned).collect(),
            environment: Vec::new(),
        },
    };
    let mut steps = Vec::new();
    let sysroot = rustc(&["--print", "sysroot"])?;
    let library = std::path::Path::new(sysroot.trim()).join("lib/rustlib").join(STATIC);
    if !library.exists() {
        let arguments = format!("target add {STATIC}");
        steps.push(step(format!("missing target {STATIC}"), "rustup", &arguments));
    }
    // Installed by cargo, it may be beside cargo and not in PATH.
    let by_cargo = Command::new("cargo").args(["deb", "--version"]).output();
    if find_program("cargo-deb").is_none() && !by_cargo.is_ok_and(|it| it.status.success()) {
        steps.push(step("missing cargo-deb".to_owned(), "cargo", CARGO_DEB));
    }
    Ok(steps)
}
