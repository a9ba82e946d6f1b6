//! The version of the running kernel.

use std::fmt;

use anyhow::{Context as _, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    pub major: u32,
    pub minor: u32,
}

impl KernelVersion {
    /// # Errors
    /// Where uname(2) says nothing that looks like a version.
    pub fn running() -> Result<Self> {
        let uname = nix::sys::utsname::uname().context("cannot ask the kernel for its version")?;
        let release = uname.release().to_string_lossy().into_owned();
        Self::parse(&release)
            .with_context(|| format!("cannot read the kernel version from \"{release}\""))
    }

    /// "6.1.0-18-amd64" is 6.1.
    fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next()?.parse().ok()?;
        Some(Self { major, minor })
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_read_up_to_its_minor_number_and_compared_by_number() {
        let version = |major, minor| Some(KernelVersion { major, minor });
        assert_eq!(KernelVersion::parse("6.1.0-18-amd64"), version(6, 1));
        assert_eq!(KernelVersion::parse("5.18-rc3"), version(5, 18));
        assert_eq!(KernelVersion::parse("6"), None);
        assert_eq!(KernelVersion::parse("linux"), None);
        assert!(version(5, 18) < version(6, 1) && version(6, 2) < version(6, 10));
    }
}
