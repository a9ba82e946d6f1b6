//! The system under test: the real daemon, in the gateway's namespace.

use std::{
    cell::RefCell,
    fs::File,
    io::{BufRead as _, BufReader},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::namespace::{Namespace, command_in};
use crate::workspace;

/// The one pool address.
pub(super) const POOL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);

/// Names the binary to measure.
const BINARY: &str = "NATGW_BIN";
/// Beside the usual: what each sweep has cost.
const LOG: &str = "info,nat_userspace::expire=debug,nat_userspace::datapath::fit=debug";
const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(15);
/// How long its cache may take to get another size.
const FIT: Duration = Duration::from_secs(15);

/// The binary that the environment names.
pub(super) fn named() -> Option<PathBuf> {
    std::env::var_os(BINARY).map(PathBuf::from)
}

/// The binary to measure, or why there is none.
pub(super) fn binary() -> Result<PathBuf, String> {
    let path = named().unwrap_or_else(|| workspace::target_dir().join("release/natgw"));
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!(
            "{} does not exist; `cargo xtask bench` builds it, or name another in {BINARY}",
            path.display()
        ))
    }
}

/// A running daemon.
#[derive(Debug)]
pub(super) struct Natgw {
    child: Child,
    binary: PathBuf,
    name: String,
    directory: PathBuf,
    /// Its network namespace.
    gateway: File,
    /// What it logs from now on.
    lines: Receiver<String>,
    /// What it has logged beside what was waited for.
    said: RefCell<Vec<String>>,
}

/// What a second's sweep has cost the daemon.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sweep {
    /// Sessions that were looked at.
    pub looks: u64,
    pub cpu_ms: f64,
    pub longest_ms: f64,
    pub ended: u64,
}

impl Natgw {
    /// Starts the daemon and waits until it says that it is ready.
    pub(super) fn start(
        binary: &Path,
        gateway: &Namespace,
        xdp_mode: &str,
        sessions: u32,
    ) -> Result<Self> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = format!("bench-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(format!("natgw-{name}"));
        std::fs::create_dir_all(&directory)?;
        let file = directory.join("natgw.toml");
        std::fs::write(&file, configuration(&name, &directory, sessions))?;
        let child = gateway
            .command(binary)
            .arg("run")
            .arg("-c")
            .arg(&file)
            .args(["--xdp-mode", xdp_mode])
            .env("RUST_LOG", LOG)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", binary.display()))?;
        let (binary, gateway) = (binary.to_owned(), gateway.file()?);
        let (sender, lines) = mpsc::channel();
        let said = RefCell::default();
        let mut natgw = Self { child, binary, name, directory, gateway, lines, said };
        natgw.wait_until_ready(sender)?;
        Ok(natgw)
    }

    fn wait_until_ready(&mut self, sender: Sender<String>) -> Result<()> {
        let log = self.child.stderr.take().context("no log")?;
        // Reads on to the daemon's end, so that it never blocks on a full pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                drop(sender.send(line));
            }
        });
        let deadline = Instant::now() + START;
        let mut said = String::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains("ready") => return Ok(()),
                Ok(line) => said = said + &line + "\n",
                Err(problem) => bail!("natgw did not become ready ({problem}); it said:\n{said}"),
            }
        }
    }

    /// Waits until its flow cache has the size for so many sessions, or more.
    pub(super) fn wait_for_cache(&self, sessions: u32) -> Result<()> {
        let deadline = Instant::now() + FIT;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if fitted(&line).is_some_and(|fitted| fitted >= sessions) => return Ok(()),
                Ok(line) => self.said.borrow_mut().push(line),
                Err(_) => bail!("natgw's flow cache did not get its size for {sessions} sessions"),
            }
        }
    }

    pub(super) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Stops the daemon where it stands; the dataplane goes on.
    pub(super) fn pause(&self) -> Result<()> {
        Ok(kill(self.pid(), Signal::SIGSTOP)?)
    }

    /// Lets it go on.
    pub(super) fn resume(&self) -> Result<()> {
        Ok(kill(self.pid(), Signal::SIGCONT)?)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// What it has reported since the last call: the sum of its sweeps, and the last walk over the
    /// whole session table.
    pub(super) fn sweeps(&self) -> (Sweep, Sweep) {
        let (mut sweeps, mut walk) = (Sweep::default(), Sweep::default());
        for line in self.said.take().into_iter().chain(self.lines.try_iter()) {
            Sweep::parse("sweep", &line).into_iter().for_each(|sweep| sweeps.add(sweep));
            walk = Sweep::parse("walk", &line).unwrap_or(walk);
        }
        (sweeps, walk)
    }

    /// Has sessions end sooner, or later.
    pub(super) fn set_idle_timeout(&self, timeout: Duration) -> Result<()> {
        let file = self.directory.join("natgw.toml");
        let text = std::fs::read_to_string(&file)?;
        let (before, _) = text.split_once("\n[timeouts]").unwrap_or((&text, ""));
        let text = format!("{before}\n[timeouts]\nudp = \"{}s\"\n", timeout.as_secs());
        std::fs::write(&file, text)?;
        self.ask(&["reload"])
    }

    /// Ends all sessions.
    pub(super) fn flush(&self) -> Result<()> {
        self.ask(&["flows", "flush"])
    }

    fn ask(&self, arguments: &[&str]) -> Result<()> {
        let output = command_in(&self.gateway, &self.binary)
            .args(arguments)
            .args(["--name", &self.name, "--state-dir"])
            .arg(&self.directory)
            .output()?;
        let problem = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "natgw {}: {problem}", arguments.join(" "));
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        kill(self.pid(), Signal::SIGTERM)?;
        let deadline = Instant::now() + STOP;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                self.child.kill()?;
                self.child.wait()?;
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.ask(&["detach"])
    }
}

/// The sessions in the daemon's line "flow cache: 65536 of 3145728 slots for 1000 sessions".
fn fitted(line: &str) -> Option<u32> {
    let (_, told) = line.split_once("flow cache: ")?;
    told.split_once(" slots for ")?.1.split_whitespace().next()?.parse().ok()
}

impl Sweep {
    pub(super) fn add(&mut self, other: Self) {
        self.looks += other.looks;
        self.cpu_ms += other.cpu_ms;
        self.ended += other.ended;
        self.longest_ms = self.longest_ms.max(other.longest_ms);
    }

    /// The daemon's line "sweep: 250000 of 1000000 entries, 15.125 ms of CPU in 39 slices, the longest
    /// 0.513 ms, …" about this `work`; nothing of any other.
    fn parse(work: &str, line: &str) -> Option<Self> {
        let (_, told) = line.split_once(&format!("{work}: "))?;
        let before = |unit: &str| told.split_once(unit)?.0.split_whitespace().last()?.parse().ok();
        let (_, longest) = told.split_once("the longest ")?;
        Some(Self {
            looks: before(" of ")? as u64,
            cpu_ms: before(" ms of CPU")?,
            longest_ms: longest.split_whitespace().next()?.parse().ok()?,
            ended: before(" ended")? as u64,
        })
    }
}

impl Drop for Natgw {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!(
                "could not clean up after natgw ({error:#}); try: natgw detach --name {} --state-dir {}",
                self.name,
                self.directory.display()
            );
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            eprintln!("could not remove {}: {error}", self.directory.display());
        }
    }
}

fn configuration(name: &str, directory: &Path, sessions: u32) -> String {
    let directory = directory.display();
    format!(
        r#"[gateway]
name      = "{name}"
public    = ["n1"]
private   = ["n0"]
sessions  = {sessions}
state_dir = "{directory}"

[[pool]]
name      = "default"
addresses = ["{POOL}"]

[[snat]]
source = ["10.0.0.0/8"]
pool   = "default"
"#
    )
}

#[cfg(test)]
mod tests {
    use super::{Sweep, fitted};

    #[test]
    fn the_daemons_line_about_its_flow_cache_is_understood() {
        let line = "[DEBUG] flow cache: 65536 of 3145728 slots for 1000 sessions";
        assert_eq!(fitted(line), Some(1000));
        assert_eq!(fitted("[INFO] ready: 1 public, 1 private"), None);
    }

    #[test]
    fn the_daemons_line_about_a_sweep_is_understood() {
        let line = "[DEBUG] sweep: 250000 of 1000000 entries, 15.125 ms of CPU in 39 slices, the \
                    longest 0.513 ms, 3 ended, 5 asked for";
        let sweep = Sweep::parse("sweep", line).expect("a sweep");
        assert_eq!((sweep.looks, sweep.cpu_ms, sweep.longest_ms), (250_000, 15.125, 0.513));
        assert_eq!(sweep.ended, 3);
        assert!(Sweep::parse("walk", line).is_none());
    }

    #[test]
    fn other_lines_are_no_sweeps() {
        assert!(Sweep::parse("sweep", "[INFO] ready: 1 public, 1 private").is_none());
    }
}
