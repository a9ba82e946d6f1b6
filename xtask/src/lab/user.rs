//! The gateway as an ordinary user with the three capabilities that its service has.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use anyhow::{Context, Result};

use super::cleanup::{BPFFS, PINS_DIR};

const CAPABILITIES: &str = "+bpf,+net_admin,+perfmon";

/// Makes `/dev/net/tun` one that everybody may open, as udev does, whatever this machine's is
/// like, and goes on as the user. All in a mount namespace of the gateway's own, as a service has.
const SCRIPT: &str = "mount -t tmpfs -o mode=755 none /dev/net && mknod -m 666 /dev/net/tun c 10 200 \
                      && exec setpriv \"$@\"";

/// An ordinary user, by its number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct User(pub u32);

impl User {
    /// Names the user (its number) that every gateway of a lab runs as.
    pub const VARIABLE: &str = "NATGW_TEST_USER";
    /// A user that every machine has, and that owns nothing.
    pub const NOBODY: Self = Self(65534);

    /// The user that the environment asks for.
    pub(super) fn of_environment() -> Result<Option<Self>> {
        let Some(value) = std::env::var_os(Self::VARIABLE) else { return Ok(None) };
        let number = value.to_str().and_then(|text| text.parse().ok());
        let number = number.with_context(|| {
            format!("{} is {}, no user's number", Self::VARIABLE, value.display())
        })?;
        Ok(Some(Self(number)))
    }

    /// Gives the user what the package gives the service: its directories, and the right to pin.
    pub(super) fn prepare(self, directory: &Path) -> Result<()> {
        for shared in [BPFFS, PINS_DIR] {
            fs::create_dir_all(shared)
                .and_then(|()| fs::set_permissions(shared, fs::Permissions::from_mode(0o1777)))
                .with_context(|| format!("cannot open {shared} to user {}", self.0))?;
        }
        self.own(directory).with_context(|| format!("cannot give away {}", directory.display()))
    }

    pub(super) fn own(self, path: &Path) -> std::io::Result<()> {
        chown(path, Some(self.0), Some(self.0))?;
        if fs::symlink_metadata(path)?.is_dir() {
            for entry in fs::read_dir(path)? {
                self.own(&entry?.path())?;
            }
        }
        Ok(())
    }

    /// A command line that runs `program` as this user.
    pub(super) fn command_line(self, program: &Path) -> Vec<std::ffi::OsString> {
        let start = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", SCRIPT, "sh"];
        let rights = [
            format!("--reuid={}", self.0),
            format!("--regid={}", self.0),
            "--clear-groups".to_owned(),
            "--no-new-privs".to_owned(),
            format!("--bounding-set=-all,{CAPABILITIES}"),
            format!("--inh-caps=-all,{CAPABILITIES}"),
            format!("--ambient-caps=-all,{CAPABILITIES}"),
        ];
        let start = start.iter().map(OsStr::new).map(OsStr::to_owned);
        start.chain(rights.map(Into::into)).chain([program.as_os_str().to_owned()]).collect()
    }
}
