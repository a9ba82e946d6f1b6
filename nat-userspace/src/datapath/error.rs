//! What can go wrong between this program and the kernel, each with its remedy.

use std::{io, path::PathBuf};

use thiserror::Error;

#[derive(Debug, Error)]
pub enum DatapathError {
    #[error(
        "this binary was built without its BPF programs (AYA_BUILD_SKIP was set); build it again without"
    )]
    NoPrograms,
    #[error("the gateway has gone from XDP to tc or back in this moment; try again")]
    OtherHook,
    #[error("kernel {release} is too old; natgw needs Linux 6.1 or later")]
    KernelTooOld { release: String },
    #[error(
        "cannot {what}: {missing} missing; start natgw as root, or give it CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    )]
    MissingCapability { what: String, missing: String },
    #[error("cannot {what} {}: {source}; {remedy}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error, remedy: &'static str },
    #[error(
        "gateway \"{name}\" has state of layout {found} in {}, this version uses layout {wanted}; run `natgw migrate --name {name}` to take over its sessions; or give them up with `natgw run --cold`, or `natgw detach --name {name}` and another start",
        path.display()
    )]
    OtherLayout { name: String, path: PathBuf, found: String, wanted: u32 },
    #[error(
        "gateway \"{name}\" is pinned with room for {pinned} sessions, the configuration asks for {wanted}; set gateway.sessions = {pinned}; or give up its sessions with `natgw run --cold`, or `natgw detach --name {name}` and another start"
    )]
    OtherCapacity { name: String, pinned: u32, wanted: u32 },
    #[error(
        "the pinned map {} does not fit this version ({difference}); give up its sessions with `natgw run --cold`, or `natgw detach --name {name}` and another start",
        path.display()
    )]
    OtherMap { name: String, path: PathBuf, difference: String },
    #[error("the kernel refuses program {program}: {reason}; please report it{}", log_hint(.log.as_deref()))]
    Rejected { program: String, reason: String, log: Option<PathBuf> },
    #[error("the BPF object has no {what} \"{name}\"; this binary is inconsistent, build it again")]
    Missing { what: &'static str, name: String },
    #[error("cannot {what}: {source}")]
    Call { what: String, source: io::Error },
    #[error("{interface}: cannot attach in {mode} mode: {reason}; {remedy}")]
    Attach { interface: String, mode: &'static str, reason: String, remedy: String },
    #[error("cannot {what}: {source}")]
    Bpf { what: String, source: Box<dyn std::error::Error + Send + Sync> },
}

fn log_hint(log: Option<&std::path::Path>) -> String {
    log.map_or_else(String::new, |path| format!(" with the verifier's log in {}", path.display()))
}

impl DatapathError {
    /// A failed call into the kernel by way of aya; a missing capability is told as such.
    pub(crate) fn bpf(
        what: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        let what = what.into();
        match errno(&source) {
            Some(libc::EPERM | libc::EACCES) => match missing_capabilities() {
                Some(missing) => Self::MissingCapability { what, missing },
                None => Self::Bpf { what, source: Box::new(source) },
            },
            _ => Self::Bpf { what, source: Box::new(source) },
        }
    }

    pub(crate) fn call(what: impl Into<String>, source: io::Error) -> Self {
        let what = what.into();
        if source.raw_os_error() == Some(libc::EPERM)
            && let Some(missing) = missing_capabilities()
        {
            return Self::MissingCapability { what, missing };
        }
        Self::Call { what, source }
    }
}

/// The system's error number at the bottom of a chain of errors.
pub(crate) fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(number) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(number);
        }
        next = error.source();
    }
    None
}

/// The capabilities that natgw needs and this thread does not have; `None` if it has all.
pub(crate) fn missing_capabilities() -> Option<String> {
    const NEEDED: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];
    let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(_, bit)| effective & (1 << bit) == 0)
        .map(|(name, _)| *name)
        .collect();
    (!missing.is_empty()).then(|| format!("{} is", missing.join(", ")))
}
