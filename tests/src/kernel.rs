//! The programs in this machine's kernel, without a daemon: a network namespace with a gateway's
//! interfaces, its configuration in the maps, and frames run through by `BPF_PROG_TEST_RUN`.

use std::{
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, Map, MapData};
use nat_common::{
    counters::Counters,
    flow::FlowKey,
    maps,
    net::{Ip4, Mac},
    rules::{HostAddress, Interface, host_address, role},
    session::SessionImage,
    sieve,
};
use nat_userspace::{
    config::{self, HostView, Overrides},
    controller::{Facts, compile, plan},
    datapath::{
        AttachMode, Datapath, DatapathError, OpenOptions, RunResult, detach_all, ticks_per_second,
    },
};
use nix::{
    sched::{CloneFlags, CpuSet, sched_getcpu, sched_setaffinity, unshare},
    unistd::Pid,
};

const NAME: &str = "test";

/// `XDP_PASS` and so on.
pub mod action {
    pub const DROP: u32 = 1;
    pub const PASS: u32 = 2;
    pub const TX: u32 = 3;
    pub const REDIRECT: u32 = 4;
}

/// How the gateway is wired. All its neighbours are known for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arms {
    /// `inside` has 10.0.0.1/16, `outside` 203.0.113.2/24; the router is 203.0.113.1.
    Two,
    /// `both` has all of it.
    One,
}

/// A gateway in the kernel. The namespace is its thread's and ends with it.
pub struct Kernel {
    pub datapath: Datapath,
    pub inside: u32,
    pub outside: u32,
    /// Last, so that nothing is in use any more when it is removed.
    pins: Pins,
}

/// A directory of its own in the BPF file system.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        detach_all(&self.0, NAME).expect("everything is removed");
        if self.0.exists() {
            std::fs::remove_dir(&self.0).expect("nothing is left");
        }
    }
}

pub const HOST: Ip4 = Ip4::new([10, 0, 0, 5]);
pub const OTHER_HOST: Ip4 = Ip4::new([10, 0, 0, 6]);
pub const SERVER: Ip4 = Ip4::new([10, 0, 0, 9]);
pub const ROUTER: Ip4 = Ip4::new([203, 0, 113, 1]);
pub const GATEWAY: Ip4 = Ip4::new([10, 0, 0, 1]);
pub const OWNED: Ip4 = Ip4::new([203, 0, 113, 2]);

/// MAC address of a neighbour.
#[must_use]
pub const fn mac_of(neighbour: Ip4) -> Mac {
    let [a, b, c, d] = neighbour.octets();
    Mac([2, 0xee, a, b, c, d])
}

impl Kernel {
    /// `rules`: the configuration from its first `[[pool]]` on; `gateway`: more lines of
    /// `[gateway]`.
    ///
    /// # Errors
    /// Where this is not root, or the kernel refuses something.
    pub fn start(arms: Arms, gateway: &str, rules: &str, sessions: u32) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        unshare(CloneFlags::CLONE_NEWNET).context("a network namespace; run as root")?;
        // Some limits are counted by each CPU for itself.
        stay_on(sched_getcpu()?)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let bpf_dir = format!("/sys/fs/bpf/natgw-kernel-{}-{number}", std::process::id());
        let pins = Pins(PathBuf::from(bpf_dir));
        let (inside, outside) = wire(arms)?;
        let (private, public) = match arms {
            Arms::Two => ("inside", "outside"),
            Arms::One => ("both", "both"),
        };
        let text = format!(
            "[gateway]\npublic = [\"{public}\"]\nprivate = [\"{private}\"]\n{gateway}\n{rules}"
        );

        let options = OpenOptions {
            bindings: true,
            records: true,
            bpf_dir: pins.0.clone(),
            name: NAME.to_owned(),
            sessions,
            verifier_log: Some(
                std::env::temp_dir()
                    .join(format!("natgw-kernel-{}-{number}.log", std::process::id())),
            ),
        };
        let (datapath, _) = Datapath::open(&options).map_err(|error| with_log(error, &options))?;
        let mut kernel = Self { datapath, inside, outside, pins };
        kernel.set_up(arms, &text)?;
        Ok(kernel)
    }

    fn set_up(&mut self, arms: Arms, text: &str) -> Result<()> {
        let both = role::PRIVATE | role::PUBLIC;
        let interfaces: &[_] = match arms {
            Arms::Two => &[("inside", role::PRIVATE, GATEWAY), ("outside", role::PUBLIC, OWNED)],
            Arms::One => &[("both", both, GATEWAY)],
        };
        let mut owned = std::collections::BTreeMap::new();
        for &(name, role, address) in interfaces {
            let ifindex = nix::net::if_::if_nametoindex(name)?;
            // A test run takes its receive queue from an interface that has one for XDP.
            self.datapath.attach_xdp(ifindex, name, AttachMode::Native)?;
            self.datapath.set_interface(&Interface {
                ifindex,
                role,
                mac: own_mac(name),
                address,
                mtu: 1500,
                ..bytemuck::Zeroable::zeroed()
            })?;
            for address in [GATEWAY, OWNED] {
                owned.insert(address, HostAddress { ifindex, flags: host_address::OWNED });
            }
        }
        self.datapath.set_host_addresses(&owned)?;
        let facts = Facts { hz: ticks_per_second()?, ..Facts::default() };
        let host = HostView::read()?;
        let config = config::parse_text(text, "test", &Overrides::default(), &host)?;
        let current = self.datapath.contents()?;
        let wanted = compile(&config, &facts, &current)?;
        self.datapath.apply(&plan(&wanted, &current))?;
        Ok(self.datapath.heartbeat()?)
    }

    /// Runs a frame through the entry program and all that follows.
    ///
    /// # Errors
    /// As the kernel gives them; none is expected.
    pub fn receive(&self, ingress: u32, frame: &[u8]) -> Result<RunResult> {
        Ok(self.datapath.run_entry(ingress, frame)?)
    }

    /// The same by the programs for tc; the action is told in XDP's words.
    ///
    /// # Errors
    /// As the kernel gives them; none is expected.
    pub fn receive_by_tc(&self, ingress: u32, frame: &[u8]) -> Result<RunResult> {
        let result = self.datapath.run_tc_entry(ingress, frame)?;
        let action = match result.action {
            u32::MAX => action::PASS,
            2 => action::DROP,
            7 => action::REDIRECT,
            other => bail!("action {other} of tc"),
        };
        Ok(RunResult { action, ..result })
    }

    /// # Errors
    /// None is expected.
    pub fn counters(&self) -> Result<Counters> {
        Ok(self.datapath.counters()?)
    }

    /// Where its maps are pinned.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.pins.0.join(NAME).join(format!("v{}", maps::LAYOUT))
    }

    /// The whole session table, both halves of each session.
    ///
    /// # Errors
    /// None is expected.
    pub fn sessions(&self) -> Result<Vec<(FlowKey, SessionImage)>> {
        let mut all = Vec::new();
        let mut batches = self.datapath.sessions()?;
        while let Some(batch) = batches.next_batch()? {
            all.extend(batch);
        }
        all.sort_by_key(|(key, _)| *key);
        Ok(all)
    }

    /// Fails unless the sieve has counted these entries and nothing else.
    ///
    /// # Errors
    /// As above.
    pub fn sieve_agrees<'a>(&self, keys: impl Iterator<Item = &'a FlowKey>) -> Result<()> {
        let control = self.datapath.control()?;
        let mut counted = vec![0_u64; control.sieve_mask as usize + 1];
        for key in keys {
            let (word, one) = sieve::share(key, &control);
            counted[word as usize] += one;
        }
        let map = MapData::from_pin(self.directory().join(maps::SIEVE))?;
        let words: Array<_, u64> = Map::from_map_data(map)?.try_into()?;
        let words = words.iter().collect::<Result<Vec<_>, _>>()?;
        ensure!(words == counted, "the sieve has counted something else than the session table");
        Ok(())
    }
}

/// What the verifier says of a program that it refuses, the end of it.
fn with_log(error: DatapathError, options: &OpenOptions) -> anyhow::Error {
    const LINES: usize = 40;
    let error = anyhow::Error::new(error);
    let Some(path) = &options.verifier_log else { return error };
    let Ok(log) = std::fs::read_to_string(path) else { return error };
    let lines: Vec<&str> = log.lines().collect();
    let end = lines[lines.len().saturating_sub(LINES)..].join("\n");
    error.context(format!("the verifier's log ends with\n{end}"))
}

/// MAC address of an interface of the gateway.
#[must_use]
pub const fn own_mac(interface: &str) -> Mac {
    Mac([2, 0xcc, 0, 0, 0, interface.len() as u8])
}

/// Interfaces, addresses, routes and neighbours; their indices.
fn wire(arms: Arms) -> Result<(u32, u32)> {
    let addresses: &[_] = match arms {
        Arms::Two => &[("inside", "10.0.0.1/16"), ("outside", "203.0.113.2/24")],
        Arms::One => &[("both", "10.0.0.1/16"), ("both", "203.0.113.2/24")],
    };
    // Its neighbour discovery would be counted, too.
    for scope in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
        match std::fs::write(&path, "1") {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| path);
            }
            _ => {}
        }
    }
    for (interface, address) in addresses {
        if nix::net::if_::if_nametoindex(*interface).is_err() {
            let mac = own_mac(interface);
            ip(&format!(
                "link add {interface} address {mac} type veth peer name {interface}-peer"
            ))?;
            ip(&format!("link set {interface} up"))?;
            ip(&format!("link set {interface}-peer up"))?;
        }
        ip(&format!("address add {address} dev {interface}"))?;
    }
    let (inside, outside) = (addresses[0].0, addresses[1].0);
    ip(&format!("route add default via {ROUTER} dev {outside}"))?;
    for host in [HOST, OTHER_HOST, SERVER] {
        let mac = mac_of(host);
        ip(&format!("neighbour add {host} lladdr {mac} dev {inside} nud permanent"))?;
    }
    let mac = mac_of(ROUTER);
    ip(&format!("neighbour add {ROUTER} lladdr {mac} dev {outside} nud permanent"))?;
    ip(&format!("route add 172.16.0.0/16 via {HOST} dev {inside}"))?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("turn on forwarding")?;
    let index = |name: &str| nix::net::if_::if_nametoindex(name);
    Ok((index(inside)?, index(outside)?))
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments}: {error}");
    Ok(())
}

/// Keeps this thread on a processor.
///
/// # Errors
/// Where there is none with this number.
pub fn stay_on(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("stay on CPU {processor}"))
}
