//! The machine that the figures are from. Ratios travel between machines better than
//! nanoseconds, and even they depend on the CPU's mitigations: those tax every call.

use std::{collections::BTreeMap, fs, process::Command};

use serde::{Deserialize, Serialize};

/// What a reader needs to judge a figure.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Environment {
    pub kernel: String,
    pub cpu: String,
    pub cpus: usize,
    /// The CPU that the one-core benches ran on.
    pub pinned_to: usize,
    /// Vulnerability and mitigation, those that do not affect this CPU left out.
    pub mitigations: BTreeMap<String, String>,
    pub bpf_jit_enable: String,
    pub bpf_jit_harden: String,
    pub conntrack_buckets: String,
    pub loadavg_before: String,
    pub loadavg_after: String,
    pub nft: String,
    pub repetitions: usize,
}

impl Environment {
    pub(super) fn read(cpus: usize, pinned_to: usize, repetitions: usize) -> Self {
        Self {
            kernel: line("/proc/sys/kernel/osrelease"),
            cpu: cpu_model(),
            cpus,
            pinned_to,
            mitigations: mitigations(),
            bpf_jit_enable: line("/proc/sys/net/core/bpf_jit_enable"),
            bpf_jit_harden: line("/proc/sys/net/core/bpf_jit_harden"),
            conntrack_buckets: line("/proc/sys/net/netfilter/nf_conntrack_buckets"),
            loadavg_before: line("/proc/loadavg"),
            loadavg_after: String::new(),
            nft: version("nft"),
            repetitions,
        }
    }

    /// Notes the load that the run itself, and others meanwhile, have made.
    pub(super) fn finish(&mut self) {
        self.loadavg_after = line("/proc/loadavg");
    }

    pub(super) fn text(&self) -> String {
        let Self { kernel, cpu, cpus, pinned_to, repetitions, nft, .. } = self;
        let mut text = format!(
            "kernel {kernel}, {cpu}, {cpus} CPUs, pinned to CPU {pinned_to}, {nft}\n\
             bpf_jit_enable {}, bpf_jit_harden {}, conntrack buckets {}, load {} before, {} after\n\
             {repetitions} interleaved repetitions; mitigations:\n",
            self.bpf_jit_enable,
            self.bpf_jit_harden,
            self.conntrack_buckets,
            self.loadavg_before,
            self.loadavg_after
        );
        for (name, state) in &self.mitigations {
            text += &format!("  {name}: {state}\n");
        }
        text
    }
}

fn line(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

fn version(program: &str) -> String {
    let output = Command::new(program).arg("--version").output();
    output.map_or_else(
        |_| format!("{program} not installed"),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

fn cpu_model() -> String {
    let info = line("/proc/cpuinfo");
    let field = |name: &str| {
        info.lines().find(|line| line.starts_with(name)).and_then(|line| line.split(": ").nth(1))
    };
    format!(
        "{} (family {}, model {})",
        field("model name").unwrap_or("unknown CPU"),
        field("cpu family").unwrap_or("?"),
        field("model\t").unwrap_or("?")
    )
}

fn mitigations() -> BTreeMap<String, String> {
    let Ok(directory) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else {
        return BTreeMap::new();
    };
    directory
        .flatten()
        .filter_map(|entry| {
            let state = fs::read_to_string(entry.path()).ok()?.trim().to_owned();
            (state != "Not affected").then(|| (entry.file_name().to_string_lossy().into(), state))
        })
        .collect()
}
