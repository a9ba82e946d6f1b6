//! What a gateway of this name says of itself, and what one has left behind.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use nat_common::maps::LAYOUT;

use super::{Check, Finding, Subject};
use crate::{
    api::{
        client::{Client, ClientError},
        model::{AddressState, GatewayState, InterfaceState, Status},
    },
    config::{self, Config, Role},
    datapath::Pinned,
};

/// A gateway that takes longer for its status has another trouble.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where things of this name are.
pub(super) struct Named {
    pub(super) name: String,
    pub(super) state_dir: PathBuf,
    pub(super) bpf_dir: PathBuf,
}

impl Named {
    pub(super) fn of(subject: &Subject, config: Option<&Config>) -> Self {
        if let Some(config) = config {
            let gateway = &config.gateway;
            return Self {
                name: gateway.name.clone(),
                state_dir: gateway.state_dir.clone(),
                bpf_dir: gateway.bpf_dir.clone(),
            };
        }
        let overrides = &subject.overrides;
        Self {
            name: overrides.name.clone().unwrap_or_else(|| config::NAME.to_owned()),
            state_dir: overrides.state_dir.clone().unwrap_or_else(|| config::STATE_DIR.into()),
            bpf_dir: config::BPF_DIR.into(),
        }
    }
}

pub(super) enum Answer {
    Running(Box<Status>),
    NotRunning,
    /// This user may not ask.
    Closed,
    /// It is there and says nothing sensible.
    Silent(String),
}

pub(super) struct Facts {
    name: String,
    answer: Answer,
    /// None where this user may not look.
    pinned: Option<Pinned>,
    /// Notes of what `detach` has to restore are there.
    state_file: bool,
}

impl Facts {
    pub(super) async fn gather(named: &Named) -> Self {
        let client = Client::new(&named.state_dir, &named.name);
        let answer = match tokio::time::timeout(PATIENCE, client.get::<Status>("/v1/status")).await
        {
            Ok(Ok(status)) => Answer::Running(Box::new(status)),
            Ok(Err(ClientError::NotRunning { .. })) => Answer::NotRunning,
            Ok(Err(ClientError::Forbidden { .. })) => Answer::Closed,
            Ok(Err(error)) => Answer::Silent(error.to_string()),
            Err(_) => Answer::Silent(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        Self {
            name: named.name.clone(),
            answer,
            pinned: Pinned::read(&named.bpf_dir, &named.name).ok(),
            state_file: state_file(&named.state_dir, &named.name).exists(),
        }
    }

    pub(super) const fn is_running(&self) -> bool {
        matches!(self.answer, Answer::Running(_) | Answer::Silent(_))
    }

    /// The interfaces that have the gateway's own program.
    pub(super) fn ours(&self) -> &BTreeSet<String> {
        const NONE: &BTreeSet<String> = &BTreeSet::new();
        self.pinned.as_ref().map_or(NONE, |pinned| &pinned.programs)
    }
}

fn state_file(state_dir: &Path, name: &str) -> PathBuf {
    state_dir.join(format!("{name}.state"))
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let Facts { name, .. } = facts;
    let mut findings = Vec::new();
    match &facts.answer {
        Answer::Running(status) => findings.extend(running(status, facts.pinned.as_ref())),
        Answer::NotRunning => findings.extend(left(facts)),
        // `rights` says so.
        Answer::Closed => {}
        Answer::Silent(why) => findings.push(Finding::error(
            Check::GatewaySilent,
            format!("gateway \"{name}\" is there and does not say how it is: {why}"),
            "see its log (journalctl -u natgw); ended by SIGKILL and started again it goes on where \
             it was",
        )),
    }
    findings
}

fn running(status: &Status, pinned: Option<&Pinned>) -> Vec<Finding> {
    let mut findings = Vec::new();
    if status.state == GatewayState::Degraded {
        findings.push(Finding::error(
            Check::GatewayState,
            format!("gateway \"{}\" is degraded", status.name),
            "see the other findings, and natgw status",
        ));
    }
    for notice in &status.notices {
        let (what, fix) = notice.split_once("; ").unwrap_or((notice, "natgw status says the same"));
        findings.push(Finding::warning(Check::GatewayState, what, fix));
    }
    for interface in &status.interfaces {
        if interface.state == InterfaceState::Missing {
            findings.push(Finding::error(
                Check::InterfaceState,
                format!("{} has gone: nothing is translated there", interface.name),
                "bring it back, and the gateway attaches to it again; or take it out of the file",
            ));
        }
        let guarded = pinned.is_none_or(|pinned| pinned.guards.contains(&interface.name));
        if interface.role != Role::Private && interface.state != InterfaceState::Missing && !guarded
        {
            findings.push(Finding::error(
                Check::Guard,
                format!(
                    "{} has no guard: packets of protected sources may leave untranslated there",
                    interface.name
                ),
                "start the gateway again (sessions are kept), and find out who has removed its pin",
            ));
        }
    }
    let one_armed = status.interfaces.iter().find(|interface| interface.role == Role::Both);
    if let Some(interface) = one_armed
        && pinned.is_some_and(|pinned| !pinned.backstop)
    {
        findings.push(Finding::note(
            Check::Guard,
            format!(
                "{0} is both sides, and nothing guards it between its deletion and the moment when \
                 the gateway follows it, should another {0} be made",
                interface.name
            ),
            "Linux 6.4 or later, with CONFIG_NETFILTER_BPF_LINK, closes the gap; so does a host that \
             does not forward by itself (net.ipv4.ip_forward = 0)",
        ));
    }
    for address in &status.addresses {
        let note = address.note.clone().unwrap_or_default();
        if matches!(address.state, AddressState::Lost | AddressState::Failed) {
            findings.push(Finding::error(
                Check::AddressState,
                format!("{} is {}: {note}", address.address, address.state),
                match address.state {
                    AddressState::Lost => {
                        "give the address back to its interface, or take it out \
                                           with natgw eip remove"
                    }
                    _ => "take it away from the other machine, or out with natgw eip remove",
                },
            ));
        }
    }
    findings
}

/// Nobody runs under this name.
fn left(facts: &Facts) -> Vec<Finding> {
    let Facts { name, .. } = facts;
    let mut findings = Vec::new();
    let pinned = facts.pinned.as_ref();
    for layout in pinned.iter().flat_map(|it| &it.layouts).filter(|it| **it != own_layout()) {
        findings.push(Finding::error(
            Check::OtherLayout,
            format!(
                "gateway \"{name}\" has left sessions of layout {layout}, and this version uses {}",
                own_layout()
            ),
            format!("natgw migrate --name {name} takes them over; natgw run --cold gives them up"),
        ));
    }
    if pinned.is_some_and(|pinned| !pinned.programs.is_empty()) {
        findings.push(Finding::warning(
            Check::Alone,
            format!(
                "gateway \"{name}\" translates without its daemon: nothing answers commands, and \
                 nothing waits for a neighbour"
            ),
            format!("natgw run takes it over without loss; natgw detach --name {name} ends it"),
        ));
    } else if pinned.is_some_and(|pinned| !pinned.layouts.is_empty()) {
        findings.push(Finding::note(
            Check::Leftover,
            format!("gateway \"{name}\" has stopped: its sessions and its guard are kept"),
            format!("natgw run goes on with them; natgw detach --name {name} removes them"),
        ));
    } else if pinned.is_some() && facts.state_file {
        findings.push(Finding::note(
            Check::Leftover,
            format!(
                "gateway \"{name}\" has ended and left notes of what it has changed of the host"
            ),
            format!("natgw detach --name {name} puts that back"),
        ));
    }
    findings
}

fn own_layout() -> String {
    format!("v{LAYOUT}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::model::{AddressStatus, AttachedMode, InterfaceStatus, PortsInUse},
        doctor::{Level, testing::told},
    };

    fn status() -> Status {
        let interface = |name: &str, role| InterfaceStatus {
            name: name.to_owned(),
            role,
            xdp_mode: AttachedMode::Native,
            state: InterfaceState::Attached,
            note: None,
        };
        Status {
            name: "default".to_owned(),
            profile: "aws".to_owned(),
            state: GatewayState::Ready,
            uptime_s: 5,
            sessions: 0,
            sessions_max: 10,
            interfaces: vec![interface("eth0", Role::Public), interface("eth1", Role::Private)],
            addresses: vec![AddressStatus {
                address: [198, 51, 100, 10].into(),
                pool: "default".to_owned(),
                state: AddressState::Active,
                sessions: 0,
                ports_in_use: PortsInUse::default(),
                note: None,
            }],
            notices: Vec::new(),
        }
    }

    fn pinned(programs: &[&str], guards: &[&str], layouts: &[&str]) -> Option<Pinned> {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let (layouts, programs, guards) = (set(layouts), set(programs), set(guards));
        Some(Pinned { layouts, programs, guards, backstop: true })
    }

    fn found(answer: Answer, pinned: Option<Pinned>, state_file: bool) -> Vec<(Check, Level)> {
        told(&judge(&Facts { name: "default".to_owned(), answer, pinned, state_file }))
    }

    #[test]
    fn a_gateway_that_is_well_and_one_that_never_was_are_not_mentioned() {
        let there = pinned(&["eth0", "eth1"], &["eth0"], &[&own_layout()]);
        assert_eq!(found(Answer::Running(Box::new(status())), there, true), []);
        assert_eq!(found(Answer::NotRunning, pinned(&[], &[], &[]), false), []);
        assert_eq!(found(Answer::Closed, None, true), []);
    }

    #[test]
    fn what_a_running_gateway_complains_of_is_told() {
        let mut sick = status();
        sick.state = GatewayState::Degraded;
        sick.notices = vec!["there is no slow path; start again".to_owned()];
        sick.interfaces[1].state = InterfaceState::Missing;
        sick.addresses[0].state = AddressState::Lost;
        let there = pinned(&["eth0"], &[], &[&own_layout()]);
        assert_eq!(
            found(Answer::Running(Box::new(sick)), there, true),
            [
                (Check::GatewayState, Level::Error),
                (Check::GatewayState, Level::Warning),
                (Check::Guard, Level::Error),
                (Check::InterfaceState, Level::Error),
                (Check::AddressState, Level::Error),
            ]
        );
    }

    #[test]
    fn one_interface_for_both_sides_without_a_backstop_is_told() {
        let mut there = pinned(&["eth0"], &["eth0"], &[&own_layout()]);
        let told = |role, pinned: &Option<Pinned>| {
            let mut status = status();
            status.interfaces.truncate(1);
            status.interfaces[0].role = role;
            found(Answer::Running(Box::new(status)), pinned.clone(), true)
        };
        assert_eq!(told(Role::Both, &there), []);
        if let Some(pinned) = &mut there {
            pinned.backstop = false;
        }
        assert_eq!(told(Role::Both, &there), [(Check::Guard, Level::Note)]);
        assert_eq!(told(Role::Public, &there), []);
    }

    #[test]
    fn a_gateway_that_hangs_is_an_error() {
        let silent = Answer::Silent("no answer within 3 s".to_owned());
        assert_eq!(found(silent, None, true), [(Check::GatewaySilent, Level::Error)]);
    }

    #[test]
    fn what_an_ended_gateway_has_left_is_told_by_what_it_means() {
        let own = own_layout();
        let left = |programs: &[&str], layouts: &[&str], state_file| {
            found(Answer::NotRunning, pinned(programs, &["eth0"], layouts), state_file)
        };
        assert_eq!(left(&["eth0"], &[&own], true), [(Check::Alone, Level::Warning)]);
        assert_eq!(left(&[], &[&own], true), [(Check::Leftover, Level::Note)]);
        assert_eq!(left(&[], &[], true), [(Check::Leftover, Level::Note)]);
        assert_eq!(
            left(&[], &["v9999"], true),
            [(Check::OtherLayout, Level::Error), (Check::Leftover, Level::Note)]
        );
    }
}
