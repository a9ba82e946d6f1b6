//! Debian's kernel 6.1, downloaded once and unpacked below the target directory. Nothing is
//! installed: `apt-get download` needs no root and leaves the system as it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail};

use super::image::find_program;

/// Depends on the newest cloud kernel of the release; Debian 12's is 6.1.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
const SERIES: &str = "6.1.";

/// Modules that tests may ask for by a device kind, a qdisc or an nftables expression. Whole
/// directories where nearly everything in them can be asked for, below `kernel/`.
const MODULES: &[&str] = &[
    "drivers/net/bonding/",
    "drivers/net/dummy.ko",
    "drivers/net/geneve.ko",
    "drivers/net/ifb.ko",
    "drivers/net/ipvlan/",
    "drivers/net/macvlan.ko",
    "drivers/net/macvtap.ko",
    "drivers/net/nlmon.ko",
    "drivers/net/tap.ko",
    "drivers/net/tun.ko",
    "drivers/net/veth.ko",
    "drivers/net/virtio_net.ko",
    "drivers/net/vrf.ko",
    "drivers/net/vxlan/",
    "drivers/virtio/",
    "net/8021q/",
    "net/bridge/",
    "net/core/",
    "net/ipv4/",
    "net/ipv6/",
    "net/netfilter/",
    "net/packet/",
    "net/sched/",
];

/// A kernel unpacked from its package.
pub(crate) struct Kernel {
    /// `uname -r` of it.
    pub(crate) release: String,
    root: PathBuf,
}

impl Kernel {
    /// The kernel in the cache, or else a freshly downloaded one.
    ///
    /// # Errors
    /// What is missing on this machine (package sources, network, dpkg, depmod), as one line.
    pub(crate) fn obtain(cache: &Path) -> Result<Self> {
        if let Some(kernel) = Self::cached(cache) {
            return Ok(kernel);
        }
        let package = package()?;
        // Unpacked beside its place and renamed: an interrupted run leaves nothing half done there.
        let staging = cache.join(format!("unpacking-{}", std::process::id()));
        fs::create_dir_all(&staging)
            .with_context(|| format!("cannot create {}", staging.display()))?;
        let unpacked = Self::unpack(&package, &staging, cache);
        let _ = fs::remove_dir_all(&staging);
        unpacked
    }

    fn cached(cache: &Path) -> Option<Self> {
        let entries = fs::read_dir(cache).ok()?.flatten();
        let mut releases: Vec<_> = entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                Some(name.strip_prefix("kernel-")?.to_owned())
            })
            .collect();
        releases.sort();
        let release = releases.pop()?;
        let root = cache.join(format!("kernel-{release}"));
        Some(Self { release, root })
    }

    fn unpack(package: &str, staging: &Path, cache: &Path) -> Result<Self> {
        eprintln!("vm: downloading {package}");
        // The sandbox user of apt could not write here, and apt would warn about it.
        let apt = ["-o", "APT::Sandbox::User=root", "download", package];
        run(tool("apt-get").args(apt).current_dir(staging))?;
        let archive = fs::read_dir(staging)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .ok_or_else(|| anyhow!("apt-get download {package} left no .deb"))?;
        let root = staging.join("root");
        run(tool("dpkg-deb").arg("-x").arg(&archive).arg(&root))?;
        let release = package.trim_start_matches("linux-image-").to_owned();
        run(tool("depmod").arg("-b").arg(&root).arg(&release))?;
        let place = cache.join(format!("kernel-{release}"));
        if let Err(error) = fs::rename(&root, &place)
            && !place.exists()
        {
            return Err(error).with_context(|| format!("cannot create {}", place.display()));
        }
        Ok(Self { release, root: place })
    }

    /// The bootable image.
    pub(crate) fn image(&self) -> PathBuf {
        self.root.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// What the guest needs of the package, as (host path, guest path): the selected modules, what
    /// they depend on, the indexes by which the kernel finds a module for a device kind, and the
    /// kernel's configuration, which tools that probe for features read.
    ///
    /// # Errors
    /// The package does not hold what its `modules.dep` names.
    pub(crate) fn guest_files(&self) -> Result<Vec<(PathBuf, String)>> {
        let directory = self.root.join("lib/modules").join(&self.release);
        let index = directory.join("modules.dep");
        let text = fs::read_to_string(&index)
            .with_context(|| format!("cannot read {}", index.display()))?;
        let mut files: Vec<String> = closure(&text, MODULES).into_iter().collect();
        for entry in fs::read_dir(&directory)?.flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            if entry.file_type()?.is_file() && !name.starts_with("modules.symbols") {
                files.push(name);
            }
        }
        let guest = format!("/usr/lib/modules/{}", self.release);
        let config = format!("boot/config-{}", self.release);
        let mut pairs = vec![(self.root.join(&config), format!("/{config}"))];
        pairs.extend(files.iter().map(|file| (directory.join(file), format!("{guest}/{file}"))));
        Ok(pairs)
    }
}

/// Every module below one of `wanted`, with all that it needs, from `modules.dep` ("module: needed
/// needed", which lists indirect needs too).
fn closure(modules_dep: &str, wanted: &[&str]) -> BTreeSet<String> {
    let needs: BTreeMap<&str, &str> =
        modules_dep.lines().filter_map(|line| line.split_once(':')).collect();
    let mut files = BTreeSet::new();
    for (module, needed) in needs {
        let name = module.strip_prefix("kernel/").unwrap_or(module);
        if wanted.iter().any(|prefix| name.starts_with(prefix)) {
            files.insert(module.to_owned());
            files.extend(needed.split_whitespace().map(str::to_owned));
        }
    }
    files
}

/// The name of the package with the kernel, which changes with every security update.
fn package() -> Result<String> {
    let text = run(tool("apt-cache").args(["depends", META_PACKAGE]))
        .with_context(|| format!("apt knows no {META_PACKAGE}; run apt-get update"))?;
    let package = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .ok_or_else(|| anyhow!("apt knows no {META_PACKAGE}; run apt-get update"))?;
    if !package.starts_with(&format!("linux-image-{SERIES}")) {
        bail!(
            "apt offers {package}, not a {SERIES}x kernel; add Debian 12 (bookworm) to its sources"
        );
    }
    Ok(package.to_owned())
}

/// A user's PATH may lack the administrator's directories, where depmod is.
fn tool(name: &str) -> Command {
    Command::new(find_program(name).unwrap_or_else(|| name.into()))
}

fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{program} failed: {}", error.lines().last().unwrap_or("it says nothing"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::closure;

    #[test]
    fn a_wanted_module_brings_what_it_depends_on_and_nothing_else() {
        let modules_dep = "kernel/net/bridge/bridge.ko: kernel/net/802/stp.ko kernel/net/llc/llc.ko\n\
                           kernel/net/802/stp.ko: kernel/net/llc/llc.ko\n\
                           kernel/net/llc/llc.ko:\n\
                           kernel/net/sctp/sctp.ko: kernel/lib/libcrc32c.ko\n";
        let files = closure(modules_dep, &["net/bridge/"]);
        let expected =
            ["kernel/net/802/stp.ko", "kernel/net/bridge/bridge.ko", "kernel/net/llc/llc.ko"];
        assert!(files.iter().eq(expected), "{files:?}");
    }
}
