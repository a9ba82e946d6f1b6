//! The package on a Debian that has never seen natgw, in a directory and namespaces of its own.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::{self, run};

const SCRIPT: &str = include_str!("clean-debian.sh");
/// Beside what every Debian has.
const PACKAGES: &str = "--include=systemd,man-db,iproute2";
/// Names another archive than the usual one.
const MIRROR: &str = "NATGW_DEBIAN_MIRROR";

pub(super) fn on_a_clean_debian(package: &Path) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the check of the package needs root; without --check nothing does");
    }
    let root = workspace::target_dir().join("dist-check");
    remove(&root)?;
    let suite = suite().unwrap_or_else(|| "bookworm".to_owned());
    println!("dist: a clean Debian {suite} in {}", root.display());
    let mut debootstrap = Command::new("debootstrap");
    debootstrap.args(["--variant=minbase", PACKAGES, &suite]).arg(&root);
    debootstrap.args(std::env::var_os(MIRROR));
    run(debootstrap.stdout(std::process::Stdio::null()))
        .context("see debootstrap/debootstrap.log in that directory")?;
    fs::copy(package, root.join("tmp/natgw.deb"))?;
    fs::write(root.join("tmp/check.sh"), SCRIPT)?;
    let namespaces = ["--mount", "--propagation", "private", "--net", "--pid", "--fork", "--ipc"];
    let mut inside = Command::new("unshare");
    inside.args(namespaces).arg("--root").arg(&root);
    run(inside.args(["sh", "/tmp/check.sh"]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"))?;
    remove(&root)
}

/// The mounts in it were of a namespace that is gone.
fn remove(root: &Path) -> Result<()> {
    match fs::remove_dir_all(root) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", root.display()))
        }
        _ => Ok(()),
    }
}

/// This machine's release of Debian.
fn suite() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    release.contains("ID=debian\n").then_some(())?;
    let name = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(name.to_owned())
}
