//! Addresses that a command added and the file does not have: what becomes of them at a start.
//!
//! The change lasts until then, but its sessions do not end with it: the address drains.

use std::{net::Ipv4Addr, time::Instant};

use super::gateway::Gateway;
use crate::{
    api::model::EipChange,
    config::{AddressSource, Config, Pool, PoolAddress},
    forwarding::StateFile,
    netdev::Snapshot,
};

/// Puts addresses that an earlier run was given by command back into their pools, and returns
/// them: they take no new sessions. One that the file uses now, or whose pool is gone, is left out.
pub(super) fn readmit(
    config: &mut Config,
    state: &StateFile,
    snapshot: &Snapshot,
) -> Vec<Ipv4Addr> {
    let mut readmitted = Vec::new();
    for (&address, pool) in &state.added {
        let in_file = config.pool_address(address).is_some()
            || config.one_to_one.iter().any(|it| it.public == address);
        let pool = config.pools.iter_mut().find(|it| it.name == *pool);
        let Some(pool) = pool.filter(|_| !in_file) else { continue };
        pool.addresses.push(pool_address(pool, address, snapshot.owns(address)));
        readmitted.push(address);
    }
    readmitted
}

/// No port of it is given out any more.
fn pool_address(pool: &Pool, address: Ipv4Addr, host_owned: bool) -> PoolAddress {
    PoolAddress { address, source: AddressSource::Literal, host_owned, ports: vec![pool.ports] }
}

impl Gateway {
    /// What [`readmit`] returned is released with its last session, or when its time is over.
    pub(super) fn drain_readmitted(&mut self, addresses: &[Ipv4Addr]) {
        let until = Instant::now() + EipChange::DEFAULT_MAX_WAIT;
        for &address in addresses {
            log::info!("{address} was added by command and is not in the file: it drains");
            self.draining.insert(address, until);
        }
        let config = &self.config;
        self.state.added.retain(|address, _| config.pool_address(*address).is_some());
    }

    /// Writes down what is to drain at the next start.
    pub(super) fn note_added(&mut self, change: impl FnOnce(&mut StateFile)) {
        change(&mut self.state);
        if let Err(error) = self.state.save(&self.state_path) {
            log::warn!("{error:#}; after the next start sessions of added addresses end at once");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path};

    use super::*;
    use crate::config::{Flags, HostInterface, HostView, Overrides, from_flags};

    const LISTED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
    const ADDED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 11);

    fn config() -> Config {
        let interface = |name: &str| HostInterface {
            name: name.to_owned(),
            ethernet: true,
            addresses: Vec::new(),
        };
        let host = HostView {
            interfaces: vec![interface("eth0"), interface("eth1")],
            ..HostView::default()
        };
        let flags = Flags {
            public: vec!["eth0".to_owned()],
            private: vec!["eth1".to_owned()],
            eip: vec![LISTED.to_string()],
            source: vec!["10.0.0.0/8".to_owned()],
        };
        from_flags(&flags, &Overrides::default(), &host).expect("a configuration")
    }

    #[test]
    fn an_added_address_comes_back_and_one_that_the_file_has_or_lost_the_pool_of_does_not() {
        let mut config = config();
        let pool = config.pools[0].name.clone();
        let added = BTreeMap::from([
            (LISTED, pool.clone()),
            (ADDED, pool),
            (Ipv4Addr::new(198, 51, 100, 12), "gone".to_owned()),
        ]);
        let path = Path::new("/nonexistent/gw.state");
        let mut state = StateFile::adopt(path, Path::new("/sys/fs/bpf/x")).expect("a new one");
        state.added = added;
        let snapshot = Snapshot { links: BTreeMap::new(), addresses: Vec::new() };
        assert_eq!(readmit(&mut config, &state, &snapshot), [ADDED]);
        let addresses: Vec<_> = config.pools[0].addresses.iter().map(|it| it.address).collect();
        assert_eq!(addresses, [LISTED, ADDED]);
    }
}
