//! One network namespace of a lab, and how to get into it.
//!
//! Everything enters with `setns(CLONE_NEWNET)` alone, never with `ip netns exec`: that makes a
//! new mount namespace with a fresh `/sys`, in which bpffs is missing and pins are lost.
//! The price: `/sys/class/net` keeps showing the devices of the namespace that mounted `/sys`.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use super::process::{Output, Process};

/// Where iproute2 keeps its named namespaces.
pub(crate) const NETNS_DIR: &str = "/run/netns";
/// How long [`Namespace::run`] lets a command take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// A handle to a namespace; clones are the same namespace. The [`Lab`](super::Lab) removes it.
#[derive(Clone, Debug)]
pub struct Namespace {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    role: String,
    name: String,
    handle: File,
    dir: PathBuf,
    serial: AtomicU32,
}

/// What the kernel says of an interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Interface {
    pub index: u32,
    pub mac: [u8; 6],
    pub mtu: u32,
}

impl Namespace {
    /// Creates `NAME` with IPv6 off (its neighbour discovery would disturb exact counts) and
    /// loopback up. Output of its processes goes to files in `dir`.
    pub(crate) fn create(role: &str, name: String, dir: &Path) -> Result<Self> {
        let out = Command::new("ip")
            .args(["netns", "add", &name])
            .output()
            .context("cannot run `ip`; install iproute2 (`cargo xtask setup`)")?;
        if !out.status.success() {
            bail!(
                "cannot create network namespace {name}: {}; labs need root",
                String::from_utf8_lossy(&out.stderr).trim()
            );
        }
        let path = Path::new(NETNS_DIR).join(&name);
        let handle =
            File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let namespace = Self {
            inner: Arc::new(Inner {
                role: role.to_owned(),
                name,
                handle,
                dir: dir.to_owned(),
                serial: AtomicU32::new(0),
            }),
        };
        for conf in ["all", "default"] {
            namespace.sysctl(&format!("net.ipv6.conf.{conf}.disable_ipv6"), "1")?;
        }
        namespace.check(["ip", "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// The part it plays: `client1`, `gateway`, `router`, `server`, `lan`.
    pub fn role(&self) -> &str {
        &self.inner.role
    }

    /// The name for `ip -n NAME`, unique on the machine.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The lab's directory for files.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Runs `f` inside, on a thread of its own; a panic of `f` goes on in the caller.
    /// Sockets and threads made by `f` belong to the namespace, also after it returned.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.inner.handle.as_fd(), CloneFlags::CLONE_NEWNET)
                    .unwrap_or_else(|error| panic!("cannot enter {}: {error}", self.name()));
                f()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that will run inside; for what [`run`](Self::run) and [`spawn`](Self::spawn)
    /// do not offer.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let handle = self.inner.handle.as_raw_fd();
        // SAFETY: between fork and exec only setns(2), a plain system call, is made; the
        // descriptor stays open in the parent for as long as `self.inner` lives, and the child
        // has its own copy of the table.
        unsafe {
            command.pre_exec(move || {
                if libc::setns(handle, libc::CLONE_NEWNET) == 0 {
                    Ok(())
                } else {
                    Err(std::io::Error::last_os_error())
                }
            });
        }
        command
    }

    /// Runs `argv` to its end, whatever its exit status; an error if it takes longer than 60 s.
    pub fn run<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Output> {
        self.run_within(COMMAND_LIMIT, argv)
    }

    /// [`run`](Self::run) with another time limit; past it the command is killed.
    pub fn run_within<S: AsRef<OsStr>>(
        &self,
        limit: Duration,
        argv: impl IntoIterator<Item = S>,
    ) -> Result<Output> {
        self.spawn(argv)?.wait(limit)
    }

    /// Runs `argv`, which has to exit with 0, and returns what it wrote to stdout.
    pub fn check<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Result<String> {
        self.run(argv)?.success()
    }

    /// Starts `argv` in the background, in a process group of its own (Ctrl-C does not reach it);
    /// it is killed when the [`Process`] is dropped.
    pub fn spawn<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Process> {
        let mut argv = argv.into_iter();
        let program = argv.next().context("an empty command")?;
        let mut command = self.command(&program);
        command.args(argv);
        self.spawn_command(command)
    }

    /// [`spawn`](Self::spawn) for a command made by [`command`](Self::command).
    pub fn spawn_command(&self, command: Command) -> Result<Process> {
        let serial = self.inner.serial.fetch_add(1, Ordering::Relaxed);
        let program = Path::new(command.get_program()).file_name().unwrap_or_default();
        let stem = format!("{}-{serial}-{}", self.role(), program.to_string_lossy());
        Process::start(command, &self.inner.dir.join(stem))
            .with_context(|| format!("in namespace {} ({})", self.name(), self.role()))
    }

    /// Several `ip` commands in one go, one on each line, without the leading `ip`.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        let serial = self.inner.serial.fetch_add(1, Ordering::Relaxed);
        let file = self.inner.dir.join(format!("{}-{serial}.batch", self.role()));
        fs::write(&file, lines).with_context(|| format!("cannot write {}", file.display()))?;
        self.check([OsStr::new("ip"), OsStr::new("-batch"), file.as_os_str()])
            .with_context(|| format!("of the batch\n{lines}"))?;
        fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))
    }

    /// Sets a setting below `net.`, such as `net.ipv4.ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.enter(|| fs::write(&path, value))
            .with_context(|| format!("cannot set {key}={value} in {}", self.name()))
    }

    /// Reads a setting below `net.`.
    pub fn read_sysctl(&self, key: &str) -> Result<String> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        let value = self
            .enter(|| fs::read_to_string(&path))
            .with_context(|| format!("cannot read {key} in {}", self.name()))?;
        Ok(value.trim().to_owned())
    }

    /// Index, MAC address and MTU of an interface.
    pub fn interface(&self, name: &str) -> Result<Interface> {
        let text = self.check(["ip", "-j", "link", "show", "dev", name])?;
        let links: serde_json::Value =
            serde_json::from_str(&text).with_context(|| format!("`ip -j` printed {text}"))?;
        let link = &links[0];
        let number = |key: &str| {
            link[key]
                .as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .with_context(|| format!("no {key} in {text}"))
        };
        let address = link["address"].as_str().with_context(|| format!("no address in {text}"))?;
        Ok(Interface { index: number("ifindex")?, mac: parse_mac(address)?, mtu: number("mtu")? })
    }

    /// Waits until `argv` exits with 0, trying again as fast as it ends; for states of the kernel
    /// that send no event which a test could wait for.
    pub fn retry<const N: usize>(&self, limit: Duration, argv: [&str; N]) -> Result<String> {
        let start = std::time::Instant::now();
        loop {
            let output = self.run(argv)?;
            if output.status.success() || start.elapsed() > limit {
                return output.success();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part =
            parts.next().with_context(|| format!("{text} is too short for a MAC address"))?;
        *byte = u8::from_str_radix(part, 16)
            .with_context(|| format!("{part} in MAC address {text} is not hexadecimal"))?;
    }
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::parse_mac;

    #[test]
    fn a_mac_address_is_read_byte_by_byte() {
        assert_eq!(parse_mac("02:4e:00:ff:10:05").unwrap(), [2, 0x4e, 0, 0xff, 0x10, 5]);
        assert!(parse_mac("02:4e:00").is_err());
        assert!(parse_mac("02:4e:00:xx:10:05").is_err());
    }
}
