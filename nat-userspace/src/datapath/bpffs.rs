//! The BPF file system that pins outlive their process in.
//!
//! `ip netns exec` gives a process a mount namespace with a fresh `/sys`: a BPF file system that is
//! mounted there ends with the process, and sessions and guard with it. So where there is none in
//! the process's own namespace, the pins are those of the process that started it, or of the first
//! of the processes before that which it may look at.

use std::{
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use nix::{
    fcntl::{OFlag, open},
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::{
        stat::Mode,
        statfs::{BPF_FS_MAGIC, statfs},
    },
};

use super::error::DatapathError;

/// Where the kernel's own convention mounts the BPF file system.
const BPFFS: &str = "/sys/fs/bpf";

/// The BPF file system outside, once it was looked for. The open directory keeps it in reach,
/// whatever becomes of the process that led there.
static OUTSIDE: OnceLock<Option<OwnedFd>> = OnceLock::new();

/// The way to `bpf_dir` from here; mounts nothing.
#[must_use]
pub fn home(bpf_dir: &Path) -> PathBuf {
    let Ok(rest) = bpf_dir.strip_prefix(BPFFS) else { return bpf_dir.to_owned() };
    if is_bpffs(bpf_dir) {
        return bpf_dir.to_owned();
    }
    match OUTSIDE.get_or_init(open_outside) {
        Some(directory) => {
            Path::new(&format!("/proc/self/fd/{}", directory.as_raw_fd())).join(rest)
        }
        None => bpf_dir.to_owned(),
    }
}

/// Whether `bpf_dir` is, or would be made, in a BPF file system that is mounted already.
#[must_use]
pub fn is_there(bpf_dir: &Path) -> bool {
    is_bpffs(&home(bpf_dir))
}

/// The way to `bpf_dir`, in a BPF file system: where there is none, one is mounted at the usual
/// place, or at `bpf_dir` itself where that lies elsewhere.
pub(super) fn ensure(bpf_dir: &Path) -> Result<PathBuf, DatapathError> {
    if !is_bpffs(bpf_dir)
        && bpf_dir.starts_with(BPFFS)
        && let Some(process) = process_outside()
        && !is_bpffs(&process.join("root").join(&BPFFS[1..]))
        && let Err(error) = mount_outside(&process)
    {
        log::debug!("cannot mount a BPF file system outside: {error}");
    }
    let home = home(bpf_dir);
    if !is_bpffs(&home) {
        let usual = bpf_dir.starts_with(BPFFS);
        mount_here(if usual { Path::new(BPFFS) } else { bpf_dir })?;
    }
    Ok(home)
}

fn open_outside() -> Option<OwnedFd> {
    let directory = process_outside()?.join("root").join(&BPFFS[1..]);
    if !is_bpffs(&directory) {
        return None;
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(&directory, flags, Mode::empty()).ok()
}

/// Of the processes that led to this one, the earliest that may be looked at and has another
/// mount namespace: its directory in `/proc`.
fn process_outside() -> Option<PathBuf> {
    let own = fs::read_link("/proc/self/ns/mnt").ok()?;
    let mut found = None;
    let mut process = PathBuf::from("/proc/self");
    while let Some(parent) = parent_of(&process) {
        process = parent;
        if fs::read_link(process.join("ns/mnt")).is_ok_and(|namespace| namespace != own) {
            found = Some(process.clone());
        }
    }
    found
}

fn parent_of(process: &Path) -> Option<PathBuf> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim();
    (parent != "0").then(|| Path::new("/proc").join(parent))
}

fn mount_here(target: &Path) -> Result<(), DatapathError> {
    fs::create_dir_all(target).map_err(|source| DatapathError::File {
        what: "create",
        path: target.to_owned(),
        source,
        remedy: "name a directory of a BPF file system as gateway.bpf_dir",
    })?;
    let failed = |source| DatapathError::File {
        what: "mount a BPF file system at",
        path: target.to_owned(),
        source,
        remedy: "run `mount -t bpf bpf /sys/fs/bpf` as root, or name another gateway.bpf_dir",
    };
    if fs::read_dir(target).map_err(failed)?.next().is_some() {
        return Err(failed(io::Error::from(io::ErrorKind::DirectoryNotEmpty)));
    }
    mount_bpffs(target).map_err(failed)?;
    log::info!("mounted a BPF file system at {}", target.display());
    Ok(())
}

/// Mounts in the mount namespace of another process, from a thread that ends there.
fn mount_outside(process: &Path) -> io::Result<()> {
    let namespace = fs::File::open(process.join("ns/mnt"))?;
    std::thread::scope(|scope| {
        let mounted = scope.spawn(|| {
            // A thread that shares its root and directory with others may not move.
            unshare(CloneFlags::CLONE_FS)?;
            setns(namespace, CloneFlags::CLONE_NEWNS)?;
            mount_bpffs(Path::new(BPFFS))
        });
        mounted.join().unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
    })?;
    log::info!("mounted a BPF file system at {BPFFS}, outside of this mount namespace");
    Ok(())
}

fn mount_bpffs(target: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("bpf"), target, Some("bpf"), flags, Some("mode=0700"))?)
}

/// Whether the directory, or the nearest of its parents that exists, is in a BPF file system.
fn is_bpffs(directory: &Path) -> bool {
    directory
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .and_then(|ancestor| statfs(ancestor).ok())
        .is_some_and(|status| status.filesystem_type() == BPF_FS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_directory_is_no_bpf_file_system_and_its_own_home() {
        let ordinary = Path::new("/proc/self/no/such/directory");
        assert!(!is_bpffs(ordinary));
        assert_eq!(home(ordinary), ordinary);
    }

    #[test]
    fn the_processes_before_this_one_are_found_up_to_the_first() {
        let mut process = PathBuf::from("/proc/self");
        let mut steps = 0;
        while let Some(parent) = parent_of(&process) {
            process = parent;
            steps += 1;
        }
        assert!(steps > 0);
        assert!(process.is_dir(), "{}", process.display());
    }
}
