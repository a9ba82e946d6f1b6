//! The kernel: its version, what it was built with, and room for the tables.

use std::{fs, path::Path};

use super::{Check, Finding, sysctl};
use crate::{
    config,
    preflight::{KERNEL_NEEDED, KernelVersion},
};

/// What a session takes of the kernel's memory at most: as `cargo xtask bench` measures it, and 50 more where a pool
/// keeps endpoints and sessions are logged.
const SESSION_BYTES: u64 = 480;

pub(super) struct Facts {
    version: KernelVersion,
    /// The types of the running kernel can be read.
    types: bool,
    /// `net.core.bpf_jit_enable`; none where the kernel has no such switch.
    jit: Option<String>,
    /// Bytes that can still be had, of the host or of the control group.
    available: Option<u64>,
    sessions: u32,
    /// Its tables have their memory already.
    running: bool,
}

impl Facts {
    pub(super) fn gather(version: KernelVersion, sessions: Option<u32>, running: bool) -> Self {
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            version,
            types: Path::new("/sys/kernel/btf/vmlinux").exists(),
            jit: sysctl("net/core/bpf_jit_enable"),
            available: available(&memory),
            sessions: sessions.unwrap_or(config::SESSIONS),
            running,
        }
    }
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.version < KERNEL_NEEDED {
        findings.push(Finding::error(
            Check::KernelVersion,
            format!("this is Linux {}, and natgw needs {KERNEL_NEEDED} or later", facts.version),
            "boot a newer kernel",
        ));
    }
    if !facts.types {
        findings.push(Finding::warning(
            Check::KernelTypes,
            "the kernel does not tell its types (/sys/kernel/btf/vmlinux is missing): frames that an \
             interface refuses are counted as sent",
            "boot a kernel with CONFIG_DEBUG_INFO_BTF=y, as those of the distributions are",
        ));
    }
    if facts.jit.as_deref() == Some("0") {
        findings.push(Finding::warning(
            Check::Jit,
            "net.core.bpf_jit_enable is 0: the kernel interprets the programs, which takes several \
             times as long for each packet",
            "sysctl -w net.core.bpf_jit_enable=1, and write it into /etc/sysctl.d/",
        ));
    }
    let wanted = u64::from(facts.sessions) * SESSION_BYTES;
    if let Some(available) = facts.available
        && !facts.running
        && wanted > available
    {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        findings.push(Finding::error(
            Check::Memory,
            format!(
                "tables for {} sessions take about {} MiB, and {} MiB are available",
                facts.sessions,
                mib(wanted),
                mib(available)
            ),
            format!("set gateway.sessions to {} or less", available / 2 / SESSION_BYTES),
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Level, testing::told};

    fn good() -> Facts {
        Facts {
            version: KERNEL_NEEDED,
            types: true,
            jit: Some("1".to_owned()),
            available: available("MemTotal: 9 kB\nMemAvailable:  4000000 kB\n"),
            sessions: 1 << 20,
            running: false,
        }
    }

    #[test]
    fn a_kernel_that_will_do_is_not_mentioned() {
        assert_eq!(told(&judge(&good())), []);
    }

    #[test]
    fn an_old_kernel_without_types_and_jit_is_told() {
        let version = KernelVersion { major: 5, minor: 15 };
        let facts = Facts { version, types: false, jit: Some("0".to_owned()), ..good() };
        assert_eq!(
            told(&judge(&facts)),
            [
                (Check::KernelVersion, Level::Error),
                (Check::KernelTypes, Level::Warning),
                (Check::Jit, Level::Warning),
            ]
        );
    }

    #[test]
    fn tables_that_find_no_memory_are_told_unless_they_have_it_already() {
        let facts = Facts { sessions: 1 << 24, ..good() };
        let findings = judge(&facts);
        assert_eq!(told(&findings), [(Check::Memory, Level::Error)]);
        assert!(findings[0].finding.contains("7680 MiB"), "{findings:?}");
        assert_eq!(told(&judge(&Facts { running: true, ..facts })), []);
    }
}
