//! The host's own packet filter, where it would do to packets what the gateway does, or undo it.

use std::process::Command;

use super::{Check, Finding};
use crate::config::Config;

pub(super) struct Facts {
    /// As `nft list ruleset` prints them; empty where it may not, or is not there.
    nftables: String,
    /// As `iptables-save` prints them.
    iptables: String,
    public: Vec<String>,
    /// Something is forwarded by the kernel.
    exempt: bool,
}

impl Facts {
    pub(super) fn gather(config: &Config) -> Self {
        let nftables = said("nft", &["list", "ruleset"]);
        // Newer ones keep their rules in nftables, which has told them then.
        let iptables = if nftables.is_empty() { said("iptables-save", &[]) } else { String::new() };
        Self {
            nftables,
            iptables,
            public: super::public(config).map(str::to_owned).collect(),
            exempt: config.snat.iter().any(|rule| !rule.exempt.is_empty()),
        }
    }
}

fn said(program: &str, arguments: &[&str]) -> String {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        _ => String::new(),
    }
}

/// A rule that translates what leaves by one of these interfaces, or by any.
fn translates<'a>(rules: &'a str, public: &[String]) -> Option<&'a str> {
    rules.lines().map(str::trim).find(|line| {
        let words: Vec<&str> = line.split([' ', ';']).collect();
        let translates = words.contains(&"masquerade")
            || words.contains(&"MASQUERADE")
            || words.windows(2).any(|two| matches!(two, ["snat", "to" | "ip"] | ["-j", "SNAT"]));
        let out = words.windows(2).find_map(|two| match two {
            ["oifname" | "oif" | "-o", name] => Some(name.trim_matches('"')),
            _ => None,
        });
        translates && out.is_none_or(|out| public.iter().any(|name| name == out))
    })
}

/// Forwarding is refused unless a rule allows it.
fn refuses(rules: &str) -> bool {
    rules.lines().map(str::trim).any(|line| {
        (line.contains("hook forward") && line.contains("policy drop"))
            || line.starts_with(":FORWARD DROP")
    })
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let all = [&facts.nftables, &facts.iptables];
    if let Some(rule) = all.iter().find_map(|rules| translates(rules, &facts.public)) {
        findings.push(Finding::warning(
            Check::HostNat,
            format!(
                "the host translates, too (\"{rule}\"): what the gateway leaves to the kernel, such \
                 as exempt destinations, leaves with another source than meant"
            ),
            "remove the rule, or keep it to what natgw does not serve; sessions of natgw never meet it",
        ));
    }
    if facts.exempt && all.iter().any(|rules| refuses(rules)) {
        findings.push(Finding::warning(
            Check::ForwardPolicy,
            "the host's filter drops what no rule of its forward chain accepts: exempt destinations, \
             which the kernel forwards, may be unreachable",
            "accept the private sources in the forward chain",
        ));
    }
    if facts.nftables.lines().any(|line| line.trim_start().starts_with("flowtable ")) {
        findings.push(Finding::warning(
            Check::FlowOffload,
            "the host's filter has a flowtable: connections that it has taken up go past the gateway",
            "keep the interfaces of the gateway out of the flowtable's devices",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Level, testing::told};

    fn found(nftables: &str, iptables: &str, exempt: bool) -> Vec<(Check, Level)> {
        told(&judge(&Facts {
            nftables: nftables.to_owned(),
            iptables: iptables.to_owned(),
            public: vec!["eth0".to_owned()],
            exempt,
        }))
    }

    #[test]
    fn translation_by_the_host_is_told_where_it_meets_a_public_interface() {
        let rule = "table ip nat {\n chain post {\n  oifname \"eth0\" masquerade\n }\n}\n";
        assert_eq!(found(rule, "", false), [(Check::HostNat, Level::Warning)]);
        assert_eq!(found(&rule.replace("eth0", "docker0"), "", false), []);
        let any = "  ip saddr 10.0.0.0/16 snat to 198.51.100.1";
        assert_eq!(found(any, "", false), [(Check::HostNat, Level::Warning)]);
        let old = "-A POSTROUTING -s 10.0.0.0/16 -o eth0 -j MASQUERADE";
        assert_eq!(found("", old, false), [(Check::HostNat, Level::Warning)]);
        assert_eq!(found("", &old.replace("eth0", "wg0"), false), []);
    }

    #[test]
    fn a_forward_chain_that_drops_matters_to_what_the_kernel_forwards() {
        let chain = "type filter hook forward priority filter; policy drop;";
        assert_eq!(found(chain, "", true), [(Check::ForwardPolicy, Level::Warning)]);
        assert_eq!(found(chain, "", false), []);
        assert_eq!(
            found("", ":FORWARD DROP [0:0]", true),
            [(Check::ForwardPolicy, Level::Warning)]
        );
    }

    #[test]
    fn a_flowtable_is_told() {
        let table = "table inet t {\n\tflowtable f {\n\t}\n}\n";
        assert_eq!(found(table, "", false), [(Check::FlowOffload, Level::Warning)]);
    }
}
