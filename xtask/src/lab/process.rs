//! A program running in a lab: output in files, waiting by event, killed by its process id.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often a growing output file is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// What a program did.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Stdout if the program exited with 0, else an error that shows everything.
    pub fn success(self) -> Result<String> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        bail!("`{}`: {}\n{}{}", self.command, self.status, self.stdout, self.stderr)
    }

    /// The exit status, `None` when a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

/// A program in the background; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    command: String,
    stdout: PathBuf,
    stderr: PathBuf,
    left_alone: bool,
}

impl Process {
    /// Starts `command` with its output in `STEM.out` and `STEM.err`.
    pub(crate) fn start(mut command: Command, stem: &Path) -> Result<Self> {
        let stdout = stem.with_added_extension("out");
        let stderr = stem.with_added_extension("err");
        let create = |path: &Path| {
            File::create(path).with_context(|| format!("cannot create {}", path.display()))
        };
        let line = command_line(&command);
        let child = command
            .stdin(Stdio::null())
            .stdout(create(&stdout)?)
            .stderr(create(&stderr)?)
            .process_group(0)
            .spawn()
            .with_context(|| {
                format!("cannot start `{line}`; `cargo xtask setup` installs tools")
            })?;
        Ok(Self { child, command: line, stdout, stderr, left_alone: false })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal; an error if the program has ended already.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("cannot send {signal} to `{}`, which ended before: {status}", self.command);
        }
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("Linux process ids fit in i32"));
        kill(pid, signal).with_context(|| format!("cannot send {signal} to `{}`", self.command))
    }

    /// Ends the program with SIGKILL if it still runs, and waits for it.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill().with_context(|| format!("cannot kill `{}`", self.command))?;
        Ok(self.child.wait()?)
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for the end; past `limit` kills the program and is an error.
    pub fn wait(mut self, limit: Duration) -> Result<Output> {
        let status = self.wait_exit(limit)?;
        let (stdout, stderr) = self.output()?;
        fs::remove_file(&self.stdout)?;
        fs::remove_file(&self.stderr)?;
        Ok(Output { command: self.command.clone(), status, stdout, stderr })
    }

    /// [`wait`](Self::wait), the output staying in its files.
    pub fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        if !ends_within(self.pid(), limit)? {
            self.kill()?;
            let (stdout, stderr) = self.output()?;
            bail!("`{}` was killed after {limit:?}\n{stdout}{stderr}", self.command);
        }
        Ok(self.child.wait()?)
    }

    /// What it wrote so far: stdout, stderr.
    pub fn output(&self) -> Result<(String, String)> {
        let read = |path: &Path| {
            let bytes =
                fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            anyhow::Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok((read(&self.stdout)?, read(&self.stderr)?))
    }

    /// Waits for a whole line (of stdout or stderr) that contains `pattern`, and returns it.
    /// An error, with all output, when the program ends or `limit` passes before.
    pub fn wait_for_line(&mut self, pattern: &str, limit: Duration) -> Result<String> {
        self.wait_for_line_where(pattern, limit, |line| line.contains(pattern))
    }

    /// [`wait_for_line`](Self::wait_for_line) for any condition; `what` names it in errors.
    pub fn wait_for_line_where(
        &mut self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let start = Instant::now();
        loop {
            // Asked before reading, so that the last words of an ending program are seen.
            let ended = self.child.try_wait()?;
            let (stdout, stderr) = self.output()?;
            let complete = |text: &str| text.rfind('\n').map_or(0, |end| end + 1);
            for text in [&stdout[..complete(&stdout)], &stderr[..complete(&stderr)]] {
                if let Some(line) = text.lines().find(|line| wanted(line)) {
                    return Ok(line.to_owned());
                }
            }
            if let Some(status) = ended {
                bail!(
                    "`{}` ended ({status}) without a line with {what:?}\n{stdout}{stderr}",
                    self.command
                );
            }
            if start.elapsed() > limit {
                bail!(
                    "`{}` wrote no line with {what:?} in {limit:?}\n{stdout}{stderr}",
                    self.command
                );
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Lets the program live on when this handle goes.
    pub fn leave_running(mut self) {
        self.left_alone = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.left_alone {
            // It may have ended by itself; there is nobody to tell of anything else.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn command_line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// Waits on a pidfd (Linux 5.3), which becomes readable when the process ends.
fn ends_within(pid: u32, limit: Duration) -> Result<bool> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error()).context("pidfd_open");
    }
    let fd = i32::try_from(fd).context("pidfd_open returned no descriptor")?;
    // SAFETY: the descriptor was just made for us and nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis();
        let left = i32::try_from(left).unwrap_or(i32::MAX);
        // SAFETY: one initialised pollfd, and its count.
        match unsafe { libc::poll(&raw mut poll, 1, left) } {
            0 => return Ok(false),
            1.. => return Ok(true),
            _ => {
                let error = std::io::Error::last_os_error();
                if error.kind() != std::io::ErrorKind::Interrupted {
                    return Err(error).context("poll on a pidfd");
                }
            }
        }
    }
}
