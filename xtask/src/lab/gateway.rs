//! A `natgw` running in the gateway's namespace, and its command line.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::Lab;
use super::cleanup::PINS_DIR;
use super::namespace::Namespace;
use super::process::{Output, Process};

/// Loading and verifying the programs takes most of it: half a minute where the machine is emulated.
const READY_LIMIT: Duration = Duration::from_secs(120);
const END_LIMIT: Duration = Duration::from_secs(20);

/// A started gateway. Dropping it kills the daemon with SIGKILL: dataplane, sessions and guard
/// stay, as they do for users, until [`Gateway::detach`] or the end of the lab.
#[derive(Debug)]
pub struct Gateway {
    process: Option<Process>,
    namespace: Namespace,
    binary: PathBuf,
    name: String,
    state_dir: PathBuf,
}

impl Lab {
    /// Writes `config` to a file, runs `natgw run -c` on it in the gateway's namespace and waits
    /// until it is ready. A later start in the same lab adopts what the former left pinned.
    pub fn start_natgw(&self, config: &str) -> Result<Gateway> {
        self.start_natgw_with(config, &[])
    }

    /// [`Lab::start_natgw`] with more arguments for `run`.
    pub fn start_natgw_with(&self, config: &str, arguments: &[&str]) -> Result<Gateway> {
        let file = self.write_config(config)?;
        let mut all = vec![OsStr::new("-c"), file.as_os_str()];
        all.extend(arguments.iter().map(OsStr::new));
        self.run_natgw(&all)
    }

    /// Runs `natgw run ARGUMENTS` and waits until it is ready, for starts without a file.
    pub fn run_natgw<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Gateway> {
        let binary = self.binary()?;
        let state_dir = self.state_dir();
        let mut start = vec![binary.clone().into_os_string()];
        if let Some(user) = self.user {
            user.prepare(self.dir())?;
            start = user.command_line(&binary);
        }
        let mut command = self.gateway().command(&start[0]);
        command.args(&start[1..]).arg("run").args(arguments);
        command.args(["--name", self.name()]).arg("--state-dir").arg(&state_dir);
        let mut process = self.gateway().spawn_command(command)?;
        process.wait_for_line_where("ready", READY_LIMIT, says_ready)?;
        Ok(Gateway {
            process: Some(process),
            namespace: self.gateway().clone(),
            binary,
            name: self.name().to_owned(),
            state_dir,
        })
    }

    /// Runs one command of natgw in the gateway's namespace, whether or not a daemon runs:
    /// for `check`, for starts that have to fail, and for `detach` after the daemon's death.
    pub fn natgw(&self, arguments: &[&str]) -> Result<Output> {
        command_line(&self.binary()?, self.gateway(), self.name(), &self.state_dir(), arguments)
    }

    /// The file that [`Lab::start_natgw`] gives to natgw, overwritten; for `reload` and `check`.
    pub fn write_config(&self, config: &str) -> Result<PathBuf> {
        let file = self.dir().join("natgw.toml");
        fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    /// Where natgw pins the maps and links of this lab.
    pub fn pins_dir(&self) -> PathBuf {
        Path::new(PINS_DIR).join(self.name())
    }

    /// Where natgw has its control socket (`--state-dir`).
    pub fn state_dir(&self) -> PathBuf {
        self.dir().join("state")
    }

    /// Gateways started from now on are this build.
    pub fn set_natgw(&mut self, binary: PathBuf) {
        self.options.natgw = Some(binary);
    }

    fn binary(&self) -> Result<PathBuf> {
        self.options.natgw.clone().map_or_else(natgw_binary, Ok)
    }
}

impl Gateway {
    /// Runs a command of natgw; the result is an error only if it could not be run.
    pub fn natgw(&self, arguments: &[&str]) -> Result<Output> {
        command_line(&self.binary, &self.namespace, &self.name, &self.state_dir, arguments)
    }

    /// Runs a command with `-o json`, which has to succeed, and reads its answer:
    /// `gateway.json(&["flows", "--protocol", "tcp"])`.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let text = self.natgw(&[arguments, &["-o", "json"]].concat())?.success()?;
        serde_json::from_str(&text).with_context(|| format!("natgw {arguments:?} printed {text}"))
    }

    /// One counter of `natgw counters`; `drops.REASON` reaches into the drops by reason.
    pub fn counter(&self, key: &str) -> Result<u64> {
        let counters = self.json(&["counters"])?;
        let value = key.split('.').fold(&counters, |value, part| &value[part]);
        value.as_u64().with_context(|| format!("no counter {key} in {counters}"))
    }

    /// Asks (50 times a second) until `wanted` holds of the command's answer, and returns that.
    pub fn wait_for(
        &self,
        arguments: &[&str],
        limit: Duration,
        wanted: impl Fn(&serde_json::Value) -> bool,
    ) -> Result<serde_json::Value> {
        let start = std::time::Instant::now();
        loop {
            let answer = self.json(arguments)?;
            if wanted(&answer) {
                return Ok(answer);
            }
            if start.elapsed() > limit {
                bail!("natgw {arguments:?} did not come to it in {limit:?}; last:\n{answer:#}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the daemon logged so far, stdout and stderr.
    pub fn log(&self) -> Result<String> {
        let (stdout, stderr) = self.running()?.output()?;
        Ok(stdout + &stderr)
    }

    /// Waits for a line of the log that contains `pattern`.
    pub fn wait_for_log(&mut self, pattern: &str, limit: Duration) -> Result<String> {
        self.running_mut()?.wait_for_line(pattern, limit)
    }

    pub fn pid(&self) -> Result<u32> {
        Ok(self.running()?.pid())
    }

    /// Sends a signal: SIGHUP to reload, SIGSTOP, SIGCONT.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.running_mut()?.signal(signal)
    }

    /// Ends the daemon with SIGTERM and waits for its end.
    pub fn sigterm(&mut self) -> Result<ExitStatus> {
        self.end(Signal::SIGTERM)
    }

    /// Ends the daemon with SIGINT and waits for its end.
    pub fn sigint(&mut self) -> Result<ExitStatus> {
        self.end(Signal::SIGINT)
    }

    /// Ends the daemon with SIGKILL and waits for its end.
    pub fn sigkill(&mut self) -> Result<ExitStatus> {
        self.end(Signal::SIGKILL)
    }

    /// Waits for the daemon to end by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.running_mut()?.wait_exit(limit)
    }

    /// `natgw detach`, which has to succeed: nothing of this gateway is left in the system.
    pub fn detach(&self) -> Result<()> {
        self.natgw(&["detach"])?.success().map(drop)
    }

    /// The socket that the command line talks to.
    pub fn control_socket(&self) -> PathBuf {
        self.state_dir.join(format!("{}.sock", self.name))
    }

    /// Leaves the daemon running when this handle goes.
    pub fn leave_running(mut self) {
        if let Some(process) = self.process.take() {
            process.leave_running();
        }
    }

    fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        let process = self.running_mut()?;
        process.signal(signal)?;
        process.wait_exit(END_LIMIT)
    }

    fn running(&self) -> Result<&Process> {
        self.process.as_ref().context("the gateway was left alone")
    }

    fn running_mut(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the gateway was left alone")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(log) = self.log()
        {
            eprintln!("log of natgw {}:\n{log}", self.name);
        }
    }
}

fn command_line(
    binary: &Path,
    namespace: &Namespace,
    name: &str,
    state_dir: &Path,
    arguments: &[&str],
) -> Result<Output> {
    let fixed = [OsStr::new("--name"), OsStr::new(name), OsStr::new("--state-dir")];
    let argv = [binary.as_os_str()]
        .into_iter()
        .chain(arguments.iter().map(OsStr::new))
        .chain(fixed)
        .chain([state_dir.as_os_str()]);
    namespace.run(argv)
}

/// `ready` as a word: `already` is none.
fn says_ready(line: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric()).any(|word| word == "ready")
}

/// The program under test: `$NATGW_BIN`, else the debug or release build beside the running
/// executable.
pub fn natgw_binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("NATGW_BIN") {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("NATGW_BIN names {}, which is no file", path.display());
        }
        return Ok(path);
    }
    let own = env::current_exe().context("where is this executable?")?;
    own.ancestors()
        .flat_map(|dir| ["debug/natgw", "release/natgw"].map(|path| dir.join(path)))
        .find(|path| path.is_file())
        .context("no natgw was built; build it (`cargo build -p nat-userspace`) or set NATGW_BIN")
}

#[cfg(test)]
mod tests {
    use super::says_ready;

    #[test]
    fn a_gateway_is_ready_when_it_says_so_and_not_when_something_already_is() {
        assert!(says_ready("INFO natgw: ready: lan0 private native"));
        assert!(says_ready("state=ready"));
        assert!(!says_ready("lan0 has a program already"));
    }
}
