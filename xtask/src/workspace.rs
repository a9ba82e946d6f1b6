//! The checkout, its target directory, and cargo as the commands run it.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Names the toolchain that compiles the BPF programs, where it is not the one that compiles
/// everything else. The build script of nat-userspace reads it.
pub const BPF_TOOLCHAIN: &str = "NATGW_BPF_TOOLCHAIN";

/// The root of the checkout that this program was built from.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a directory of the workspace")
}

/// Where cargo builds. One directory for all commands: what `test` built, `run` does not build
/// again.
pub fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// `cargo ARGUMENTS` in the checkout, with the toolchain for BPF that `setup` chose.
pub fn cargo<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    if let Some(toolchain) = bpf_toolchain() {
        command.env(BPF_TOOLCHAIN, toolchain);
    }
    command
}

/// The toolchain for the BPF programs: from the environment, else what `setup` remembered;
/// `None` for the usual one.
pub fn bpf_toolchain() -> Option<String> {
    let remembered = || Some(fs::read_to_string(choice_file()).ok()?.trim().to_owned());
    env::var(BPF_TOOLCHAIN).ok().or_else(remembered).filter(|name| !name.is_empty())
}

/// Remembers the toolchain for the BPF programs for all later builds.
pub(crate) fn remember_bpf_toolchain(name: &str) -> Result<()> {
    let file = choice_file();
    fs::create_dir_all(target_dir())?;
    fs::write(&file, name).with_context(|| format!("cannot write {}", file.display()))
}

fn choice_file() -> PathBuf {
    target_dir().join("natgw-bpf-toolchain")
}

/// Builds natgw and returns where it is.
pub fn build_natgw(release: bool) -> Result<PathBuf> {
    let profile = if release { "release" } else { "dev" };
    let arguments = ["build", "--package", "nat-userspace", "--bin", "natgw", "--profile", profile];
    run(&mut cargo(arguments))?;
    let binary = target_dir().join(if release { "release" } else { "debug" }).join("natgw");
    if !binary.is_file() {
        bail!("cargo built no {}; is CARGO_BUILD_TARGET or build.target set?", binary.display());
    }
    Ok(binary)
}

/// Runs a command with its output on the terminal; anything but success is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{} failed ({status}); its messages are above", display(command));
    }
    Ok(())
}

/// The command line as one would type it.
pub fn display(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = [program].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// The program of this name in `PATH` or where Debian keeps those of root.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| {
            fs::metadata(file).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
        })
}
