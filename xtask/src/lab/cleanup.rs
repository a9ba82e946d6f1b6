//! Removing a lab: its processes, namespaces, pins and files.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::{fs, process};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::Pid;

use super::LABS_DIR;
use super::namespace::NETNS_DIR;

pub(super) const BPFFS: &str = "/sys/fs/bpf";
/// The gateway's default `bpf_dir`, which holds one directory for each name.
pub(super) const PINS_DIR: &str = "/sys/fs/bpf/natgw";

/// Prefix of the labs of one process: `ng<pid>-<serial>`.
pub(super) fn test_prefix(pid: u32, serial: u32) -> String {
    format!("ng{pid}-{serial}")
}

/// The process that made a lab of this prefix, if it is of [`test_prefix`]'s kind.
fn maker(prefix: &str) -> Option<u32> {
    let (pid, serial) = prefix.strip_prefix("ng")?.split_once('-')?;
    serial.parse::<u32>().ok()?;
    pid.parse().ok()
}

/// Mounts bpffs on `/sys/fs/bpf` if it is not there; gateways pin their maps in it.
pub(super) fn mount_bpffs() -> Result<()> {
    let kind = statfs(BPFFS).with_context(|| format!("cannot look at {BPFFS}"))?;
    if kind.filesystem_type() != BPF_FS_MAGIC {
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount bpffs on {BPFFS}; labs need root"))?;
    }
    Ok(())
}

/// Removes the labs of processes that are gone (killed, or stopped with Ctrl-C).
pub(super) fn remove_orphans() {
    let prefixes: BTreeSet<String> = [LABS_DIR, NETNS_DIR]
        .iter()
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flat_map(Iterator::flatten)
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let mut parts = name.split('-');
            Some(format!("{}-{}", parts.next()?, parts.next()?))
        })
        .collect();
    for prefix in prefixes {
        if maker(&prefix).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove(&prefix);
        }
    }
}

/// Removes everything of a lab, going on past faults: it runs in `drop`, and what is left is
/// reported. False if there was nothing of this prefix.
pub(super) fn remove(prefix: &str) -> bool {
    let dir = Path::new(LABS_DIR).join(prefix);
    let namespaces = namespaces_of(prefix);
    if namespaces.is_empty() && !dir.exists() {
        return false;
    }
    for path in &namespaces {
        kill_all_in(path);
    }
    // Before the namespaces, so that links and programs go while their devices still exist.
    remove_tree(&Path::new(PINS_DIR).join(prefix));
    for path in &namespaces {
        // What `ip netns delete` does, without a process for each. Detached: handles of the
        // namespace may still be open, here or in a process that ends at this moment.
        if let Err(error) = umount2(path.as_path(), MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", path.display());
        }
        if let Err(error) = fs::remove_file(path) {
            eprintln!("cannot remove {}: {error}", path.display());
        }
    }
    remove_tree(&dir);
    true
}

fn namespaces_of(prefix: &str) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else { return Vec::new() };
    let start = format!("{prefix}-");
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&start))
        .map(|entry| entry.path())
        .collect()
}

/// Kills the processes that live in a namespace; only those of the lab do. This process, some
/// thread of which may be inside, is left out.
fn kill_all_in(namespace: &Path) {
    let Ok(wanted) = fs::metadata(namespace) else { return };
    let Ok(processes) = fs::read_dir("/proc") else { return };
    for entry in processes.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let lives_here = fs::metadata(entry.path().join("ns/net"))
            .is_ok_and(|its| (its.dev(), its.ino()) == (wanted.dev(), wanted.ino()));
        if lives_here && pid.unsigned_abs() != process::id() {
            // It may end by itself at this moment.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn remove_tree(path: &Path) {
    match fs::remove_dir_all(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => eprintln!("cannot remove {}: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_labs_of_a_process_name_their_maker() {
        assert_eq!(maker(&test_prefix(4711, 3)), Some(4711));
        assert_eq!(maker("natgw-lab"), None);
        assert_eq!(maker("ng-3"), None);
        assert_eq!(maker("ng12-client"), None);
    }
}
