//! `natgw detach`: everything of one name off the system, whoever of it is still alive.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::DetachOptions;
use crate::{
    api::instance::{Instance, InstanceError, socket_path, view_socket_path},
    config, datapath,
    forwarding::StateFile,
};

/// How long a running daemon may take to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one that holds the lock and does not seem to may be about to end.
const ENDING: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A running daemon of the name is told to end (SIGTERM) first. Doing it twice is no error.
///
/// # Errors
/// What could not be removed, and why; the rest is removed all the same.
pub fn detach(options: &DetachOptions) -> Result<()> {
    let DetachOptions { name, state_dir, .. } = options;
    let state_path = StateFile::path(state_dir, name);
    let had_state_dir = state_dir.exists();
    let lock = claim(state_dir, name, || thread::sleep(LOOK_AGAIN))?;
    let state = StateFile::load(&state_path)?;
    let bpf_dir = pinned_in(options)?;
    let result = remove_everything(&bpf_dir, name, &state_path, state.as_ref());
    remove(&socket_path(state_dir, name))?;
    remove(&view_socket_path(state_dir, name))?;
    remove(&lock_path(state_dir, name))?;
    drop(lock);
    if !had_state_dir {
        // Made by this command for the lock; another gateway's by now, if it is not empty.
        fs::remove_dir(state_dir).unwrap_or_default();
    }
    result
}

/// The directory that was named, or that the last run recorded, or the default.
pub(super) fn pinned_in(options: &DetachOptions) -> Result<PathBuf> {
    if let Some(bpf_dir) = &options.bpf_dir {
        return Ok(bpf_dir.clone());
    }
    let state = StateFile::load(&StateFile::path(&options.state_dir, &options.name))?;
    Ok(state.map_or_else(|| PathBuf::from(config::BPF_DIR), |state| state.bpf_dir))
}

/// Programs, guard, sessions and settings; the daemon itself does this where nobody confirms.
///
/// # Errors
/// The first thing that could not be removed; the rest is tried all the same.
pub(super) fn remove_everything(
    bpf_dir: &Path,
    name: &str,
    state_path: &Path,
    state: Option<&StateFile>,
) -> Result<()> {
    // Forwarding before the guard, which covers the moment between.
    let restored = state.map_or(Ok(()), StateFile::restore);
    let detached = datapath::detach_all(bpf_dir, name);
    if detached.is_ok() && restored.is_ok() {
        remove(state_path)?;
    }
    detached?;
    restored
}

/// The name's lock, after the daemon that holds it has ended. `pause`: before it is looked at again.
fn claim(state_dir: &Path, name: &str, mut pause: impl FnMut()) -> Result<Instance> {
    let started = Instant::now();
    let mut told = None;
    loop {
        let pid = match Instance::claim(state_dir, name) {
            Ok(instance) => return Ok(instance),
            Err(InstanceError::Running { pid, .. }) => pid,
            Err(error) => return Err(error.into()),
        };
        match holder(&pid, &lock_path(state_dir, name)) {
            Ok(pid) if told == Some(pid) => {}
            Ok(pid) => {
                kill(pid, Signal::SIGTERM).with_context(|| {
                    format!("cannot stop the running gateway (process {pid}); run as root")
                })?;
                told = Some(pid);
            }
            // A process that ends shows no files any more, and a moment later it lets go of them.
            Err(_) if told.is_some() || started.elapsed() < ENDING => {}
            Err(error) => {
                return Err(error.context(format!(
                    "gateway \"{name}\" is running and cannot be told to end; stop it, then detach"
                )));
            }
        }
        if started.elapsed() >= PATIENCE {
            bail!("the running gateway (process {pid}) does not end; kill it, then detach again");
        }
        pause();
    }
}

/// The process that the lock file names, if it really has the file open: the number may be of
/// another PID namespace, or of a process long gone.
fn holder(pid: &str, lock: &Path) -> Result<Pid> {
    let number: i32 = pid.parse().context("its lock file names no process")?;
    let descriptors = fs::read_dir(format!("/proc/{number}/fd"))
        .with_context(|| format!("process {number} cannot be looked at"))?;
    let lock = lock.canonicalize()?;
    let holds = descriptors
        .filter_map(Result::ok)
        .any(|entry| fs::read_link(entry.path()).is_ok_and(|open| open == lock));
    if !holds {
        bail!("process {number} is not its holder");
    }
    Ok(Pid::from_raw(number))
}

fn lock_path(state_dir: &Path, name: &str) -> PathBuf {
    state_dir.join(format!("{name}.lock"))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detaching_what_was_never_there_is_no_error_and_leaves_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let options = DetachOptions {
            name: "nobody".to_owned(),
            state_dir: directory.path().join("run"),
            bpf_dir: Some(directory.path().join("bpf")),
        };
        detach(&options).expect("nothing to do");
        detach(&options).expect("nothing to do again");
        assert!(!options.state_dir.exists());
    }

    #[test]
    fn a_gateway_that_is_about_to_end_is_waited_for() {
        let directory = tempfile::tempdir().expect("a directory");
        let instance = Instance::claim(directory.path(), "gw").expect("the lock");
        // As of a process that ends: it has the lock, and nobody sees that it has it open.
        fs::write(lock_path(directory.path(), "gw"), "1").expect("another holder");
        let (mut instance, mut looks) = (Some(instance), 0);
        claim(directory.path(), "gw", || {
            looks += 1;
            if looks == 5 {
                instance = None;
            }
        })
        .expect("the lock, when it is free");
        assert_eq!(looks, 5);
    }

    #[test]
    fn only_a_process_that_has_the_lock_open_is_believed_to_hold_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let _instance = Instance::claim(directory.path(), "gw").expect("the lock");
        let lock = lock_path(directory.path(), "gw");
        let own = std::process::id().to_string();
        assert_eq!(holder(&own, &lock).expect("this process").as_raw().to_string(), own);
        assert!(holder("1", &lock).is_err());
        assert!(holder("", &lock).is_err());
    }
}
