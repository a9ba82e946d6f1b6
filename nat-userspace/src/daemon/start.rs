//! From nothing, or from what an earlier run left, to translation.
//!
//! The order is the guarantee: the guard before forwarding, forwarding and rules before the
//! translating program.

use std::{collections::BTreeSet, net::Ipv4Addr};

use anyhow::{Context as _, Result, bail};

use super::{RunOptions, added, detach::remove_everything, gateway::Gateway, hook::Hook};
use crate::{
    config::Config,
    datapath::{self, Datapath, OpenOptions, Opened},
    forwarding::StateFile,
    netdev::Snapshot,
    preflight,
};

/// Everything up to the attached programs. `failed`: public addresses that another machine has.
///
/// # Errors
/// What is in the way and how to remove it. What a first start has made by then is gone again; of
/// an adopted gateway everything stays as it is.
pub(super) fn start(
    mut config: Config,
    options: RunOptions,
    snapshot: Snapshot,
    failed: BTreeSet<Ipv4Addr>,
) -> Result<Gateway> {
    let kernel = preflight::host()?;
    for (name, _) in config.interfaces() {
        let link = snapshot
            .link(name)
            .with_context(|| format!("there is no interface {name}; create it first"))?;
        let ours = datapath::has_link(&config.gateway.bpf_dir, &config.gateway.name, name);
        preflight::interface(link, config.gateway.xdp_mode, kernel, ours)?;
    }
    let state = adopt_state(&config)?;
    let hook = Hook::choose(&config, &snapshot);
    let open = if options.cold { Datapath::open_cold } else { Datapath::open_for };
    let open_options = OpenOptions {
        bpf_dir: config.gateway.bpf_dir.clone(),
        name: config.gateway.name.clone(),
        sessions: config.gateway.sessions,
        bindings: config.keeps_endpoints(),
        records: config.log.is_some(),
        verifier_log: Some(
            config.gateway.state_dir.join(format!("{}.verifier.log", config.gateway.name)),
        ),
    };
    let opened = open(&open_options, hook.mode);
    let (datapath, opened) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            state.forget_if_unused(&StateFile::path(
                &config.gateway.state_dir,
                &config.gateway.name,
            ));
            return Err(error.into());
        }
    };
    preflight::warn_of_private_bpffs(&config.gateway.bpf_dir);
    if let Opened::Adopted { sessions } = opened {
        log::info!("adopted the state of an earlier run: {sessions} sessions");
    }
    let readmitted = added::readmit(&mut config, &state, &snapshot);
    let mut gateway = Gateway::new(config, hook, options, datapath, snapshot, state);
    gateway.failed = failed;
    gateway.drain_readmitted(&readmitted);
    match gateway.bring_up() {
        Ok(()) => {
            if let Some(shortage) = gateway.shortage(&gateway.config) {
                log::warn!("{shortage}");
            }
            Ok(gateway)
        }
        Err(error) => {
            if opened == Opened::Fresh {
                gateway.take_down();
            }
            Err(error)
        }
    }
}

fn adopt_state(config: &Config) -> Result<StateFile> {
    let gateway = &config.gateway;
    let path = StateFile::path(&gateway.state_dir, &gateway.name);
    if let Some(earlier) = StateFile::load(&path)?
        && earlier.bpf_dir != gateway.bpf_dir
        && datapath::bpf_home(&earlier.bpf_dir).join(&gateway.name).exists()
    {
        bail!(
            "gateway \"{0}\" has its programs and sessions in {1}, and the file now says {2}; run \
             natgw detach --name {0}, which ends its sessions, then start again",
            gateway.name,
            earlier.bpf_dir.display(),
            gateway.bpf_dir.display()
        );
    }
    let state = StateFile::adopt(&path, &gateway.bpf_dir)?;
    state.save(&path)?;
    Ok(state)
}

impl Gateway {
    fn bring_up(&mut self) -> Result<()> {
        self.tell_hook();
        let names: Vec<String> =
            self.config.interfaces().into_iter().map(|(name, _)| name.to_owned()).collect();
        self.write_other_links();
        if let Err(error) = self.datapath.attach_backstop() {
            log::info!("no backstop behind the guards (it needs Linux 6.4 or later): {error}");
        }
        for name in &names {
            self.prepare(name)?;
        }
        self.forget_other_interfaces()?;
        self.write_host_addresses()?;
        // Before the dataplane is told to report.
        let config = self.config.clone();
        self.configure_log(&config)?;
        self.apply_rules()?;
        self.datapath.heartbeat()?;
        self.start_slow_path();
        self.datapath.retire_aside()?;
        for name in &names {
            self.attach(name)?;
        }
        // What is cached in adopted sessions may be of another time.
        self.datapath.bump_epoch()?;
        self.datapath.retire_previous()?;
        Ok(())
    }

    /// Interfaces that an earlier run knew and this one does not.
    pub(super) fn forget_other_interfaces(&mut self) -> Result<()> {
        for interface in self.datapath.interfaces()? {
            let ours = self
                .ports
                .values()
                .any(|port| port.known.is_some_and(|known| known.ifindex == interface.ifindex));
            if !ours {
                self.datapath.clear_interface(interface.ifindex)?;
            }
        }
        Ok(())
    }

    /// A start that failed, or that nobody confirmed: everything off again.
    pub(super) fn take_down(&self) {
        let gateway = &self.config.gateway;
        let state = Some(&self.state);
        if let Err(error) =
            remove_everything(&gateway.bpf_dir, &gateway.name, &self.state_path, state)
        {
            log::warn!("{error:#}; run natgw detach --name {}", gateway.name);
        }
    }

    /// Indices of the public interfaces that are there.
    pub(super) fn public_interfaces(&self) -> Vec<u32> {
        let public = self.ports.values().filter(|port| port.is_public());
        public.filter_map(|port| port.known.map(|known| known.ifindex)).collect()
    }

    /// Indices of all interfaces that are there.
    pub(super) fn all_interfaces(&self) -> Vec<u32> {
        self.ports.values().filter_map(|port| port.known.map(|known| known.ifindex)).collect()
    }

    /// For the line that says `ready`.
    pub(super) fn summary(&self) -> String {
        let interfaces: Vec<String> = self
            .interface_statuses()
            .iter()
            .map(|it| format!("{} ({}, {})", it.name, it.role, it.xdp_mode))
            .collect();
        let addresses: Vec<Ipv4Addr> = self.public_addresses().into_keys().collect();
        format!(
            "ready: gateway {}, interfaces {}, {} public addresses",
            self.config.gateway.name,
            interfaces.join(", "),
            addresses.len()
        )
    }
}
