//! A network namespace of the bench: made, entered by this thread, and removed again.

use std::{
    ffi::OsStr,
    fs::File,
    io::Write as _,
    marker::PhantomData,
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sched::{CloneFlags, CpuSet, sched_setaffinity, setns},
    unistd::Pid,
};

/// A named namespace that exists as long as this value.
#[derive(Debug)]
pub(super) struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// Makes the namespace `name`. Fails when one of that name exists.
    pub(super) fn create(name: &str) -> Result<Self> {
        let status = Command::new("ip").args(["netns", "add", name]).status().context("run ip")?;
        ensure!(status.success(), "cannot make network namespace {name}; is this root?");
        let path = format!("/run/netns/{name}");
        let file = File::open(&path).with_context(|| format!("open {path}"))?;
        Ok(Self { name: name.to_owned(), file })
    }

    /// Takes this thread into the namespace until the guard is dropped. The mount namespace stays
    /// (unlike with `ip netns exec`), so that bpffs is the same one inside.
    pub(super) fn enter(&self) -> Result<Inside> {
        enter(&self.file).with_context(|| format!("enter namespace {}", self.name))
    }

    /// A command that will run inside.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        command_in(&self.file, program)
    }

    /// The namespace as a file, for [`command_in`] and [`enter`] from a place that must not hold
    /// `self`.
    pub(super) fn file(&self) -> Result<File> {
        Ok(self.file.try_clone()?)
    }

    /// Runs `program` inside and returns what it prints.
    pub(super) fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self
            .command(program)
            .args(arguments)
            .output()
            .with_context(|| format!("run {program}"))?;
        if !output.status.success() {
            let problem = String::from_utf8_lossy(&output.stderr);
            bail!("{program} {} in {}: {problem}", arguments.join(" "), self.name);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `program` inside with `input` on its standard input.
    pub(super) fn feed(&self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        let mut child = self
            .command(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .with_context(|| format!("run {program}"))?;
        child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
        ensure!(child.wait()?.success(), "{program} in {} refused:\n{input}", self.name);
        Ok(())
    }

    /// Writes a setting of this namespace below `/proc/sys/net`.
    pub(super) fn set(&self, key: &str, value: &str) -> Result<()> {
        let _inside = self.enter()?;
        let path = format!("/proc/sys/net/{key}");
        std::fs::write(&path, value).with_context(|| format!("write {value} to {path}"))
    }
}

/// Takes this thread into the network namespace that `file` is, until the guard is dropped.
pub(super) fn enter(file: &File) -> Result<Inside> {
    let outside = File::open("/proc/thread-self/ns/net").context("open own namespace")?;
    setns(file, CloneFlags::CLONE_NEWNET)?;
    Ok(Inside { outside, this_thread_only: PhantomData })
}

/// A command that will run in the network namespace that `file` is.
pub(super) fn command_in(file: &File, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    let descriptor = file.as_raw_fd();
    let mut everywhere = CpuSet::new();
    for cpu in 0..CpuSet::count() {
        everywhere.set(cpu).expect("the set has this CPU");
    }
    // SAFETY: both are one system call and allocate nothing; the child has the descriptor from
    // this process until exec.
    unsafe {
        command.pre_exec(move || {
            // The bench stays on one CPU; what it starts runs where it would without it.
            sched_setaffinity(Pid::from_raw(0), &everywhere)?;
            if libc::setns(descriptor, libc::CLONE_NEWNET) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
    command
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !Command::new("ip")
            .args(["netns", "del", &self.name])
            .status()
            .is_ok_and(|s| s.success())
        {
            eprintln!(
                "could not remove namespace {0}; remove it with: ip netns del {0}",
                self.name
            );
        }
    }
}

/// This thread is inside a namespace; dropping takes it back to where it was.
#[derive(Debug)]
pub(super) struct Inside {
    outside: File,
    this_thread_only: PhantomData<*const ()>,
}

impl Drop for Inside {
    fn drop(&mut self) {
        setns(&self.outside, CloneFlags::CLONE_NEWNET)
            .expect("return to the namespace we came from");
    }
}
