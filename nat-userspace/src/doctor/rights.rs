//! What this user may do, and the devices and file systems that the gateway needs.

use std::{
    fs, io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use super::{Check, Finding, gateway::Named};
use crate::{
    api::instance::socket_path,
    datapath::{in_bpffs, missing_capabilities},
};

pub(super) struct Facts {
    /// "CAP_BPF is", or several.
    missing: Option<String>,
    root: bool,
    bpf_dir: PathBuf,
    bpffs: bool,
    tun: bool,
    socket: PathBuf,
    /// The socket is there and this user may not use it.
    closed: bool,
    running: bool,
}

impl Facts {
    pub(super) fn gather(named: &Named, running: bool) -> Self {
        let socket = socket_path(&named.state_dir, &named.name);
        let closed = UnixStream::connect(&socket)
            .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
        Self {
            missing: missing_capabilities(),
            root: nix::unistd::geteuid().is_root(),
            bpffs: in_bpffs(&named.bpf_dir),
            bpf_dir: named.bpf_dir.clone(),
            tun: fs::exists(Path::new("/dev/net/tun")).unwrap_or(true),
            socket,
            closed,
            running,
        }
    }
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(missing) = &facts.missing {
        let may_not = format!("{missing} missing");
        if facts.root {
            findings.push(Finding::error(
                Check::Capabilities,
                format!(
                    "{may_not}, although this is root: natgw run cannot load its programs here"
                ),
                "give the container or the service CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN",
            ));
        } else {
            findings.push(Finding::note(
                Check::Capabilities,
                format!("{may_not}: this user cannot start a gateway, and not everything was seen"),
                "sudo natgw doctor sees more; the service has these rights of its own",
            ));
        }
    }
    if !facts.bpffs {
        findings.push(Finding::warning(
            Check::Bpffs,
            format!(
                "{} is in no BPF file system: natgw run has to mount one, for which it needs \
                 CAP_SYS_ADMIN",
                facts.bpf_dir.display()
            ),
            "mount -t bpf bpf /sys/fs/bpf; with the package: systemctl start sys-fs-bpf-natgw.mount",
        ));
    }
    if !facts.tun {
        findings.push(Finding::warning(
            Check::Tun,
            "/dev/net/tun is missing: packets that have to wait for a neighbour or a first fragment, \
             or to be cut into fragments, are dropped",
            "modprobe tun; in a container pass the device on (--device /dev/net/tun)",
        ));
    }
    if facts.closed && !facts.running {
        findings.push(Finding::warning(
            Check::ControlSocket,
            format!(
                "{} is closed to this user: what the gateway says of itself is missing here",
                facts.socket.display()
            ),
            "use sudo, or become a member of the group natgw, or of natgw-view to look only",
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
            missing: None,
            root: true,
            bpf_dir: "/sys/fs/bpf/natgw".into(),
            bpffs: true,
            tun: true,
            socket: "/run/natgw/default.sock".into(),
            closed: false,
            running: false,
        }
    }

    #[test]
    fn rights_that_are_there_are_not_mentioned() {
        assert_eq!(told(&judge(&good())), []);
    }

    #[test]
    fn a_missing_capability_breaks_root_and_only_limits_what_others_see() {
        let missing = Some("CAP_BPF is".to_owned());
        let root = Facts { missing: missing.clone(), ..good() };
        assert_eq!(told(&judge(&root)), [(Check::Capabilities, Level::Error)]);
        let other = Facts { missing, root: false, ..good() };
        assert_eq!(told(&judge(&other)), [(Check::Capabilities, Level::Note)]);
    }

    #[test]
    fn a_missing_file_system_device_and_a_closed_socket_are_told() {
        let facts = Facts { bpffs: false, tun: false, closed: true, ..good() };
        assert_eq!(
            told(&judge(&facts)),
            [
                (Check::Bpffs, Level::Warning),
                (Check::Tun, Level::Warning),
                (Check::ControlSocket, Level::Warning),
            ]
        );
    }
}
