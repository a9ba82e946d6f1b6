//! The unit file for the systemd at hand.

use std::process::Command;

/// The first that knows `Type=notify-reload`.
const NOTIFY_RELOAD: u32 = 253;

/// The version of this machine's systemd; where there is none, a new one is assumed.
#[must_use]
pub fn version() -> u32 {
    let output = Command::new("systemctl").arg("--version").output();
    output.ok().and_then(|it| parse(&String::from_utf8_lossy(&it.stdout))).unwrap_or(u32::MAX)
}

fn parse(text: &str) -> Option<u32> {
    text.strip_prefix("systemd ")?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// `service` as that version understands it: before 253 a reload is a command of the unit's.
#[must_use]
pub fn for_systemd(service: &str, version: u32) -> String {
    if version >= NOTIFY_RELOAD {
        return service.to_owned();
    }
    service.replace("Type=notify-reload\n", "Type=notify\nExecReload=/usr/bin/natgw reload\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_systemd_reloads_by_a_command_and_a_new_one_by_the_type() {
        let service = "[Service]\nType=notify-reload\nUser=natgw\n";
        assert_eq!(for_systemd(service, 257), service);
        let old = for_systemd(service, 252);
        assert!(old.contains("Type=notify\n") && old.contains("ExecReload="), "{old}");
        assert_eq!(parse("systemd 252 (252.38-1~deb12u1)\n+PAM"), Some(252));
        assert_eq!(parse("no"), None);
    }
}
