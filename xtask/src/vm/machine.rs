//! The emulated machine: starts qemu, follows its console, and ends it in time.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    Ended, Guest, Report,
    console::{Console, Event},
};

pub(crate) const QEMU: &str = "qemu-system-x86_64";

/// Megabytes; the root filesystem may take half of it.
const MEMORY: &str = "2048";
const CPUS: &str = "2";

/// `panic=-1` restarts at once and `-no-reboot` makes an end of that; an oops is a failure and not
/// a message to overlook. Mitigations only cost time in emulation: for a privileged loader the
/// verifier does not look at them.
const KERNEL_ARGUMENTS: &str =
    "console=ttyS0 panic=-1 oops=panic mitigations=off random.trust_cpu=on no_timer_check";

/// Runs the guest to its end, or to the end of its time, and prints what it says as it comes.
///
/// # Errors
/// qemu cannot be started.
pub(crate) fn run(
    kernel: &Path,
    initramfs: &Path,
    kernel_log: &Path,
    guest: &Guest,
) -> Result<Report> {
    let started = Instant::now();
    let mut qemu = Qemu(start(kernel, initramfs, kernel_log)?);
    let stdout = qemu.0.stdout.take().context("qemu was started without a pipe")?;
    let (sender, lines) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut console = BufReader::new(stdout);
        let mut bytes = Vec::new();
        while console.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
            bytes.clear();
            if sender.send(line).is_err() {
                break;
            }
        }
    });

    let mut console = Console::new(&guest.commands);
    let mut boot = None;
    let timed_out = loop {
        match lines.recv_timeout(guest.limit.saturating_sub(started.elapsed())) {
            Ok(line) => {
                for event in console.line(&line, Instant::now()) {
                    if let Event::Ready { .. } = event {
                        boot = Some(started.elapsed());
                    }
                    announce(&guest.name, &event, &console);
                }
            }
            Err(RecvTimeoutError::Disconnected) => break false,
            Err(RecvTimeoutError::Timeout) => break true,
        }
    };
    drop(qemu);
    let _ = reader.join();

    let messages = fs::read(kernel_log).unwrap_or_default();
    let messages = String::from_utf8_lossy(&messages);
    let ended = if timed_out {
        Ended::TimedOut(guest.limit)
    } else if console.complete() {
        Ended::PoweredOff
    } else {
        Ended::Died { kernel_log: last_lines(&messages, 80) }
    };
    let complaints = complaints(&messages);
    Ok(Report { release: console.release, boot, results: console.results, complaints, ended })
}

fn start(kernel: &Path, initramfs: &Path, kernel_log: &Path) -> Result<Child> {
    let mut command = Command::new(QEMU);
    command
        .args(["-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-m", MEMORY, "-smp", CPUS])
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .arg("-serial")
        .arg(format!("file:{}", kernel_log.display()))
        .args(["-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", KERNEL_ARGUMENTS])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    // SAFETY: prctl is async-signal-safe and takes no pointer.
    unsafe {
        // An xtask that is killed must not leave an emulator behind that burns two cores.
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    command.spawn().with_context(|| format!("cannot start {QEMU}"))
}

/// Ends the emulator on every way out.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // Fails only where the emulator has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn announce(guest: &str, event: &Event, console: &Console) {
    match event {
        Event::Ready { release } => println!("{guest}| Linux {release} is up"),
        Event::Began { index } => println!("{guest}| $ {}", console.results[*index].command),
        Event::Exited { index, status } => {
            let seconds = console.results[*index].duration.as_secs_f32();
            println!("{guest}| exit status {status} after {seconds:.1} s");
        }
        Event::Output(line) => println!("{guest}| {line}"),
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The kernel's messages that mean a fault in it, which a test that passes can leave behind. A soft
/// lockup is none: an emulator that gets no time from its host looks like that from inside.
fn complaints(messages: &str) -> Vec<String> {
    messages
        .lines()
        .filter(|line| line.contains("WARNING: CPU:") || line.contains("BUG: "))
        .filter(|line| !line.contains("soft lockup"))
        .map(str::to_owned)
        .collect()
}

/// Time for a whole run unless the caller says otherwise.
pub(crate) const DEFAULT_LIMIT: Duration = Duration::from_secs(30 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_warning_is_a_complaint_and_a_starved_emulator_is_none() {
        let warning =
            "[    9.1] WARNING: CPU: 0 PID: 5 at net/core/filter.c:1 xdp_do_redirect+0x1/0x2";
        let bug = "[    9.2] BUG: kernel NULL pointer dereference, address: 0000000000000000";
        let lockup = "[    9.3] watchdog: BUG: soft lockup - CPU#0 stuck for 22s!";
        let messages = ["[    0.0] Linux version 6.1.0", warning, bug, lockup].join("\n");
        assert_eq!(complaints(&messages), [warning, bug]);
    }

    #[test]
    fn the_last_lines_are_all_of_them_when_there_are_fewer() {
        assert_eq!(last_lines("a\nb\nc", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
    }
}
