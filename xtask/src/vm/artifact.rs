//! The executables that the guest runs: cargo builds them and says where they are.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// An executable that cargo has built.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Artifact {
    /// Name of the target: of the binary, or of the test file.
    pub(crate) name: String,
    pub(crate) executable: PathBuf,
}

/// A line of cargo's `--message-format=json`, as far as it matters here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Builds with `cargo ARGUMENTS --message-format=json` and returns what came out.
///
/// # Errors
/// The build fails; cargo has printed why.
pub(crate) fn build(workspace: &Path, arguments: &[&str]) -> Result<Vec<Artifact>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .current_dir(workspace)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo {} failed; its messages are above", arguments.join(" "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(artifact).collect())
}

fn artifact(line: &str) -> Option<Artifact> {
    let message: Message = serde_json::from_str(line).ok()?;
    if message.reason != "compiler-artifact" {
        return None;
    }
    Some(Artifact { name: message.target?.name, executable: message.executable? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_about_executables_count() {
        let line = |executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"name":"prog_udp"}},"executable":{executable}}}"#
            )
        };
        let expected = Artifact { name: "prog_udp".to_owned(), executable: "/t/prog_udp-1".into() };
        assert_eq!(artifact(&line("\"/t/prog_udp-1\"")), Some(expected));
        assert_eq!(artifact(&line("null")), None);
        assert_eq!(artifact(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(artifact("running 3 tests"), None);
    }
}
