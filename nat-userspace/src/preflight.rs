//! What has to hold before the gateway touches anything, each with the way to mend it.
//!
//! What only trying can tell (a BPF file system, native XDP of a driver) the datapath explains.

mod attach;
mod kernel;

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::{Result, bail};

use crate::datapath::{bpf_home, missing_capabilities};

pub use attach::interface;
pub(crate) use attach::{MULTI_BUFFER_REDIRECT, SINGLE_BUFFER_MTU};
pub use kernel::KernelVersion;

/// Oldest kernel that natgw is tested on. What it needs came with 5.18 (multi-buffer XDP programs).
pub(crate) const KERNEL_NEEDED: KernelVersion = KernelVersion { major: 6, minor: 1 };

/// The host as a whole: kernel and capabilities. (The interfaces: [`interface`].)
///
/// # Errors
/// The first thing that is missing, and how to mend it.
pub fn host() -> Result<KernelVersion> {
    let running = KernelVersion::running()?;
    judge(running, missing_capabilities())?;
    Ok(running)
}

fn judge(running: KernelVersion, missing: Option<String>) -> Result<()> {
    if running < KERNEL_NEEDED {
        bail!(
            "the kernel is too old: this is {running}, natgw needs {KERNEL_NEEDED} or later; \
             boot a newer kernel"
        );
    }
    if let Some(missing) = missing {
        bail!(
            "{missing} missing: loading and attaching BPF programs needs it; run natgw as root, or \
             with AmbientCapabilities=CAP_BPF CAP_PERFMON CAP_NET_ADMIN in its systemd unit"
        );
    }
    Ok(())
}

/// Says so where the BPF file system is one of this process's mount namespace only.
pub fn warn_of_private_bpffs(bpf_dir: &Path) {
    let device = |path: &Path| fs::metadata(path).ok().map(|metadata| metadata.dev());
    let outside = Path::new("/proc/1/root").join(bpf_dir.strip_prefix("/").unwrap_or(bpf_dir));
    // Without the right to look there is nothing to say.
    if fs::metadata("/proc/1/root").is_ok() && device(&bpf_home(bpf_dir)) != device(&outside) {
        log::warn!(
            "{} is mounted in this process's mount namespace alone: sessions and guard end with it; \
             mount a BPF file system there for everybody before the start",
            bpf_dir.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_and_missing_rights_are_refused_with_the_remedy() {
        assert!(judge(KERNEL_NEEDED, None).is_ok());
        let old = judge(KernelVersion { major: 5, minor: 15 }, None).unwrap_err().to_string();
        assert!(old.contains("this is 5.15") && old.contains("boot a newer"), "{old}");
        let missing = judge(KERNEL_NEEDED, Some("CAP_BPF is".to_owned())).unwrap_err().to_string();
        assert!(missing.starts_with("CAP_BPF is missing: ") && missing.contains("as root"));
    }
}
