//! The old-kernel tier: privileged tests on Debian's Linux 6.1 in qemu.
//!
//! Software emulation (`-accel tcg`): it needs neither KVM nor root, and runs at a tenth to a
//! thirtieth of the machine's speed. The guest is an initramfs made of this machine's own tools
//! and the test executables; it runs its commands one after the other and powers off.

mod artifact;
mod console;
mod cpio;
mod image;
mod kernel;
mod lanes;
mod machine;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use self::{artifact::Artifact, kernel::Kernel};

/// Test executables of `nat-tests` that the guest runs when no filter says which: the whole program
/// tier, and the end-to-end tests made for it.
const TEST_PREFIXES: &[&str] = &["prog_", "e2e_vm_"];

/// Tests that need root are marked ignored; the guest is root. One at a time: emulation makes
/// parallel tests starve each other.
const TEST_ARGUMENTS: [&str; 3] = ["--include-ignored", "--test-threads=1", "--color=never"];

/// Seconds that test executables take in the guest, about: by these they are dealt out to guests. Most of it
/// is the verifier's, some twelve seconds for each gateway that is started.
const SECONDS: &[(&str, u32)] = &[
    ("e2e_vm_gateway", 260),
    ("prog_cache", 65),
    ("prog_datapath", 280),
    ("prog_differential", 180),
    ("prog_exhaustion", 90),
    ("prog_guard", 75),
    ("prog_parallel", 80),
    ("prog_tables", 100),
    ("prog_trace", 170),
];
const OTHER_SECONDS: u32 = 60;

/// Where the guest has the gateway's binary.
pub const GUEST_NATGW: &str = "/natgw";

/// What came of a run.
#[derive(Debug)]
pub enum Outcome {
    /// This machine lacks something, which the text names.
    NotRun(String),
    Ran(Report),
}

/// A run of the guest.
#[derive(Debug)]
pub struct Report {
    /// Release of the kernel that ran; `None` when the guest did not come up.
    pub release: Option<String>,
    /// From the start of qemu to the guest's first command.
    pub boot: Option<Duration>,
    /// One for each command, in their order.
    pub results: Vec<CommandResult>,
    /// Warnings and bugs that the guest's kernel reported of itself.
    pub complaints: Vec<String>,
    pub ended: Ended,
}

/// How the guest came to its end.
#[derive(Debug)]
pub enum Ended {
    /// All commands have run.
    PoweredOff,
    /// The time for the whole run, given here, was over.
    TimedOut(Duration),
    /// Without having run all commands: a kernel panic, or qemu failed.
    Died { kernel_log: String },
}

/// One command of the guest.
#[derive(Debug)]
pub struct CommandResult {
    pub command: String,
    /// Exit status; `None` for a command that did not end or was never started. 124 means that the
    /// command's own time was over.
    pub status: Option<i32>,
    /// Both of its output streams.
    pub output: String,
    pub duration: Duration,
}

impl Report {
    /// Whether every command has run and exited 0, and the kernel had nothing to complain of.
    pub fn succeeded(&self) -> bool {
        matches!(self.ended, Ended::PoweredOff)
            && self.complaints.is_empty()
            && self.results.iter().all(|result| result.status == Some(0))
    }

    /// What went wrong, a line for each command that failed; empty when nothing did.
    pub fn failures(&self) -> Vec<String> {
        let mut failures: Vec<_> = self
            .results
            .iter()
            .filter_map(|result| match result.status {
                Some(0) => None,
                Some(124) => Some(format!("{}: its time was over", result.command)),
                Some(status) => Some(format!("{}: exit status {status}", result.command)),
                None => Some(format!("{}: did not end", result.command)),
            })
            .collect();
        failures.extend(self.complaints.iter().map(|line| format!("the guest's kernel: {line}")));
        match &self.ended {
            Ended::PoweredOff => {}
            Ended::TimedOut(limit) => {
                failures.push(format!("the guest was stopped after {} s", limit.as_secs()));
            }
            Ended::Died { kernel_log } => {
                failures.push(format!("the guest died; its kernel's last messages:\n{kernel_log}"));
            }
        }
        failures
    }
}

/// What a guest is made of.
#[derive(Debug)]
pub struct Guest {
    /// Before each line of its output.
    pub name: String,
    /// Each a program and its arguments.
    pub commands: Vec<Vec<String>>,
    /// (path here, path in the guest). Executables bring their shared libraries.
    pub files: Vec<(PathBuf, PathBuf)>,
    pub environment: Vec<(String, String)>,
    /// For one command, in whole seconds.
    pub command_limit: Duration,
    /// For the whole run, boot included.
    pub limit: Duration,
}

impl Guest {
    /// A guest that runs `commands`, with the usual limits and `NATGW_VM=1` in the environment, by
    /// which a test knows that it runs slowly.
    pub fn new(commands: Vec<Vec<String>>) -> Self {
        let environment = [("NATGW_VM", "1"), ("RUST_BACKTRACE", "1")];
        Self {
            name: "vm".to_owned(),
            commands,
            files: Vec::new(),
            environment: environment
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
            command_limit: machine::DEFAULT_LIMIT,
            limit: machine::DEFAULT_LIMIT,
        }
    }

    /// Boots the guest, runs its commands and returns what came of them. Its output goes to stdout,
    /// each line behind its name.
    ///
    /// # Errors
    /// A file of the guest cannot be read, or the target directory cannot be written. What this
    /// machine lacks is no error but [`Outcome::NotRun`].
    pub fn run(&self) -> Result<Outcome> {
        if let Some(reason) = missing() {
            return Ok(Outcome::NotRun(reason));
        }
        let cache = target_directory().join("vm");
        let kernel = match Kernel::obtain(&cache) {
            Ok(kernel) => kernel,
            Err(error) => return Ok(Outcome::NotRun(format!("no kernel 6.1: {error:#}"))),
        };
        let work = tempfile::Builder::new()
            .prefix("run-")
            .tempdir_in(&cache)
            .with_context(|| format!("cannot write below {}", cache.display()))?;
        let initramfs = work.path().join("initramfs");
        let started = Instant::now();
        image::write(&initramfs, &kernel, self)?;
        let built = started.elapsed();
        let report =
            machine::run(&kernel.image(), &initramfs, &work.path().join("kernel.log"), self)?;
        if let Some(boot) = report.boot {
            let megabytes = fs::metadata(&initramfs)?.len() >> 20;
            println!(
                "{}: image of {megabytes} MiB in {:.1} s, boot in {:.1} s",
                self.name,
                built.as_secs_f32(),
                boot.as_secs_f32()
            );
        }
        Ok(Outcome::Ran(report))
    }
}

/// Runs commands in a guest that has `extra_files` (path here, path in the guest) as well.
///
/// # Errors
/// As [`Guest::run`].
pub fn run_command(
    commands: &[Vec<String>],
    extra_files: &[(PathBuf, PathBuf)],
) -> Result<Outcome> {
    let mut guest = Guest::new(commands.to_vec());
    guest.files = extra_files.to_vec();
    guest.run()
}

/// Builds the gateway and the privileged tests and runs the tests in the guest, one at a time.
///
/// A filter is the beginning of a test executable's name, and may name tests in it after a colon:
/// `prog_udp`, `e2e_forward:one_armed`. Without filters, the executables that begin with
/// `prog_` or `e2e_vm_`.
///
/// # Errors
/// As [`Guest::run`]; also when the build fails, or a filter fits no executable.
pub fn run_tests(filters: &[String]) -> Result<Outcome> {
    if let Some(reason) = missing() {
        return Ok(Outcome::NotRun(reason));
    }
    let workspace = workspace();
    let gateway = artifact::build(&workspace, &["build", "--package", "nat-userspace"])?;
    let gateway = gateway
        .into_iter()
        .find(|artifact| artifact.name == "natgw")
        .context("the build of nat-userspace made no natgw")?;
    let tests = artifact::build(&workspace, &["test", "--package", "nat-tests", "--no-run"])?;
    let commands = test_commands(&tests, filters)?;
    // Before there are two that would fetch it.
    if let Err(error) = Kernel::obtain(&target_directory().join("vm")) {
        return Ok(Outcome::NotRun(format!("no kernel 6.1: {error:#}")));
    }
    let weights: Vec<u32> = commands.iter().map(|(test, _)| seconds(&test.name)).collect();
    let guests: Vec<Guest> = lanes::deal(&weights, lanes::count(commands.len()))
        .into_iter()
        .enumerate()
        .map(|(lane, dealt)| {
            let commands = dealt.into_iter().map(|index| &commands[index]);
            let mut guest = Guest::new(commands.clone().map(|(_, it)| it.clone()).collect());
            guest.name = format!("vm {}", lane + 1);
            guest.files = commands
                .map(|(test, command)| (test.executable.clone(), PathBuf::from(&command[0])))
                .collect();
            guest.files.push((gateway.executable.clone(), GUEST_NATGW.into()));
            guest.environment.push(("NATGW_BIN".to_owned(), GUEST_NATGW.to_owned()));
            guest
        })
        .collect();
    let outcome = lanes::run(&guests)?;
    if let Outcome::Ran(report) = &outcome
        && let Some(empty) = report.results.iter().find(|result| ran_no_test(&result.output))
    {
        bail!("{}: no test in it ran; a filter that fits none is no pass", empty.command);
    }
    Ok(outcome)
}

fn seconds(executable: &str) -> u32 {
    let found = SECONDS.iter().find(|(name, _)| *name == executable);
    found.map_or(OTHER_SECONDS, |(_, seconds)| *seconds)
}

/// Name of the test executable that a command of [`run_tests`] starts: a filter for it.
pub fn executable(command: &str) -> Option<String> {
    let path = command.split_whitespace().next()?;
    Some(path.strip_prefix("/tests/")?.to_owned())
}

/// Whether a test executable says that it passed without having run a test.
fn ran_no_test(output: &str) -> bool {
    output.lines().any(|line| line.starts_with("test result: ok. 0 passed;"))
}

/// The executables that the filters choose, each with its command line in the guest.
fn test_commands<'a>(
    tests: &'a [Artifact],
    filters: &[String],
) -> Result<Vec<(&'a Artifact, Vec<String>)>> {
    let chosen: Vec<(&str, Option<&str>)> = if filters.is_empty() {
        TEST_PREFIXES.iter().map(|prefix| (*prefix, None)).collect()
    } else {
        let parts = |filter| match str::split_once(filter, ':') {
            Some((executable, test)) => (executable, Some(test)),
            None => (filter, None),
        };
        filters.iter().map(|filter| parts(filter)).collect()
    };
    let mut commands = Vec::new();
    for (prefix, test) in chosen {
        let fitting: Vec<_> = tests.iter().filter(|found| found.name.starts_with(prefix)).collect();
        // A default that nothing fits is a kind of test that does not exist yet.
        if fitting.is_empty() && !filters.is_empty() {
            bail!("no test executable of nat-tests begins with {prefix}");
        }
        for found in fitting {
            let mut command = vec![format!("/tests/{}", found.name)];
            command.extend(test.map(str::to_owned));
            command.extend(TEST_ARGUMENTS.map(str::to_owned));
            commands.push((found, command));
        }
    }
    if commands.is_empty() {
        bail!("nat-tests has no executable that begins with {}", TEST_PREFIXES.join(" or "));
    }
    Ok(commands)
}

/// What this machine lacks before anything is built or fetched.
fn missing() -> Option<String> {
    if !cfg!(target_arch = "x86_64") {
        return Some("the guest runs this machine's programs and emulates x86_64 only".to_owned());
    }
    let needed = [
        (machine::QEMU, "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("ip", "iproute2"),
        ("modprobe", "kmod"),
        ("depmod", "kmod"),
        ("dpkg-deb", "dpkg"),
        ("ldd", "libc-bin"),
    ];
    let lacking: Vec<_> = needed
        .iter()
        .filter(|(program, _)| image::find_program(program).is_none())
        .map(|(program, package)| format!("{program} (apt-get install {package})"))
        .collect();
    (!lacking.is_empty()).then(|| format!("not installed: {}", lacking.join(", ")))
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tests() -> Vec<Artifact> {
        ["prog_udp", "prog_tcp", "e2e_vm_guard", "e2e_forward", "nat_tests"]
            .map(|name| Artifact { name: name.to_owned(), executable: "/x".into() })
            .into()
    }

    fn lines(filters: &[&str]) -> Vec<String> {
        let filters: Vec<_> = filters.iter().map(|&filter| filter.to_owned()).collect();
        let tests = tests();
        let commands = test_commands(&tests, &filters).unwrap();
        commands
            .into_iter()
            .map(|(_, command)| command[..command.len() - TEST_ARGUMENTS.len()].join(" "))
            .collect()
    }

    #[test]
    fn without_filters_the_program_tier_and_the_tests_made_for_the_guest_run() {
        assert_eq!(lines(&[]), ["/tests/prog_udp", "/tests/prog_tcp", "/tests/e2e_vm_guard"]);
    }

    #[test]
    fn a_filter_chooses_executables_and_tests_in_them() {
        let chosen = lines(&["prog_tcp", "e2e_forward:one_armed"]);
        assert_eq!(chosen, ["/tests/prog_tcp", "/tests/e2e_forward one_armed"]);
    }

    #[test]
    fn the_executable_of_a_command_is_a_filter_that_chooses_it() {
        let name = executable("/tests/prog_tcp --include-ignored").unwrap();
        assert_eq!(lines(&[&name]), ["/tests/prog_tcp"]);
        assert_eq!(executable("/bin/true"), None);
    }

    #[test]
    fn an_executable_that_ran_no_test_is_told_from_one_that_did() {
        let rest = "0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.01s";
        assert!(ran_no_test(&format!("running 0 tests\n\ntest result: ok. 0 passed; {rest}\n")));
        assert!(!ran_no_test(&format!("test result: ok. 10 passed; {rest}\n")));
    }

    #[test]
    fn a_filter_that_fits_nothing_is_an_error_and_not_a_pass() {
        let error = test_commands(&tests(), &["prog_upd".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("prog_upd"), "{error}");
    }
}
