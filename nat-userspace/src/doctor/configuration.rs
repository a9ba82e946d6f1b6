//! The configuration file: what `natgw check` says, as findings.

use std::{io, path::Path};

use super::{Check, Finding, Subject};
use crate::config::{self, Config, ConfigError, HostView};

pub(super) fn judge(subject: &Subject, host: &HostView) -> (Option<Config>, Vec<Finding>) {
    match config::load(&subject.file, &subject.overrides, host) {
        Ok(config) => {
            let notices = config::notices(&config, host).into_iter();
            let findings = notices.map(|text| Finding::note(Check::ConfigNotice, text, ""));
            let findings = findings.collect();
            (Some(config), findings)
        }
        Err(error) => (None, refused(&subject.file, subject.named, error)),
    }
}

fn refused(file: &Path, named: bool, error: ConfigError) -> Vec<Finding> {
    match error {
        ConfigError::Unreadable { source, .. }
            if source.kind() == io::ErrorKind::NotFound && !named =>
        {
            vec![Finding::note(
                Check::ConfigFile,
                format!(
                    "there is no {}: interfaces, addresses and routes were not looked at",
                    file.display()
                ),
                "write the file, or name one with -c FILE",
            )]
        }
        ConfigError::Unreadable { path, source } => vec![Finding::error(
            Check::ConfigFile,
            format!("cannot read {}: {source}", path.display()),
            "name the configuration file with -c FILE, and give this user the right to read it",
        )],
        ConfigError::Faults(faults) => faults
            .lines()
            .iter()
            .map(|line| {
                // A fault is "where: what is wrong; what would be right".
                let (what, right) = line.split_once("; ").unwrap_or((line, "see docs/config.md"));
                Finding::error(Check::Config, what, right)
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{
        Level,
        testing::{RULES, host, told},
    };

    fn findings(text: Option<&str>, named: bool) -> Vec<Finding> {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("natgw.toml");
        if let Some(text) = text {
            std::fs::write(&file, text).expect("a file");
        }
        judge(&Subject { file, named, overrides: config::Overrides::default() }, &host()).1
    }

    #[test]
    fn a_file_that_is_missing_is_an_error_only_where_it_was_named() {
        assert_eq!(told(&findings(None, true)), [(Check::ConfigFile, Level::Error)]);
        assert_eq!(told(&findings(None, false)), [(Check::ConfigFile, Level::Note)]);
    }

    #[test]
    fn every_fault_of_the_file_is_a_finding_and_notices_are_notes() {
        let head = "[gateway]\npublic = [\"eth0\"]\nprivate = [\"eth1\"]\n";
        let wrong = format!("{head}nonsense = 1\nsessions = 0\n{RULES}");
        let found = findings(Some(&wrong), true);
        assert_eq!(told(&found), [(Check::Config, Level::Error); 2]);
        assert!(found.iter().all(|it| it.fix != "see docs/config.md"), "{found:?}");
        let idle = format!("{head}[[pool]]\naddresses = [\"198.51.100.10\"]\n");
        assert!(told(&findings(Some(&idle), true)).contains(&(Check::ConfigNotice, Level::Note)));
        assert_eq!(told(&findings(Some(&format!("{head}{RULES}")), true)), []);
    }
}
