//! Next hops: asked for when the dataplane misses one, and looked after while XDP uses them.
//!
//! By the same way the gateway finds out whether another machine has one of its public addresses
//! (RFC 5227 section 2.1): it has the kernel ask for the address, and who answers has it.

use std::{
    collections::{BTreeSet, HashMap},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::Result;
use nat_common::net::Mac;

use crate::netdev::{Changes, DefaultGateway, Neighbour, NeighbourTable, Netdev, Watch};

/// The kernel is asked for the same next hop no more often than this.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// Addresses that are probed; each takes an entry of the kernel's neighbour table for a while.
const PROBED: usize = 256;
/// Next hops whose asking is remembered; beyond, the memory is cleared.
const REMEMBERED: usize = 16_384;

#[derive(Default)]
pub(super) struct Neighbours {
    table: NeighbourTable,
    asked: HashMap<(u32, Ipv4Addr), Instant>,
}

impl Neighbours {
    /// True where next hops cached before these changes may be wrong.
    pub(super) fn resync(&mut self, neighbours: &[Neighbour]) -> bool {
        self.table.resync(neighbours)
    }

    /// Entries that the kernel will not check by itself, because XDP's use of them is none to it.
    pub(super) fn stale<'a>(
        neighbours: &'a [Neighbour],
        ours: &'a [u32],
    ) -> impl Iterator<Item = (u32, Ipv4Addr)> + 'a {
        neighbours
            .iter()
            .filter(|it| it.stale && ours.contains(&it.ifindex))
            .map(|it| (it.ifindex, it.address))
    }

    /// Has the kernel resolve a next hop, unless it was asked just now.
    pub(super) async fn ask(&mut self, netdev: &Netdev, ifindex: u32, address: Ipv4Addr) {
        if !self.is_due((ifindex, address), Instant::now()) {
            return;
        }
        if let Err(error) = netdev.resolve(ifindex, address, false).await {
            log::debug!("next hop {address} on interface {ifindex}: {error}");
        }
    }

    fn is_due(&mut self, key: (u32, Ipv4Addr), now: Instant) -> bool {
        if self.asked.get(&key).is_some_and(|&asked| now.duration_since(asked) < ASK_AGAIN) {
            return false;
        }
        if self.asked.len() >= REMEMBERED {
            self.asked.clear();
        }
        self.asked.insert(key, now);
        true
    }

    /// Has the kernel keep the default gateways of `public` resolved, and returns those that are
    /// not yet.
    pub(super) async fn keep_gateways(
        &mut self,
        netdev: &Netdev,
        public: &[u32],
    ) -> Result<Vec<DefaultGateway>> {
        let neighbours = netdev.neighbours().await?;
        self.resync(&neighbours);
        let mut unresolved = Vec::new();
        for gateway in netdev.default_gateways().await? {
            if !public.contains(&gateway.ifindex) {
                continue;
            }
            let known = neighbours
                .iter()
                .find(|it| it.ifindex == gateway.ifindex && it.address == gateway.address);
            if known.is_some_and(|known| known.permanent) {
                continue;
            }
            if let Err(error) = netdev.resolve(gateway.ifindex, gateway.address, true).await {
                // An interface that is down at start is accepted.
                log::info!("default gateway {}: {error}", gateway.address);
                continue;
            }
            if known.is_none_or(|known| known.mac.is_none()) {
                unresolved.push(gateway);
            }
        }
        Ok(unresolved)
    }

    /// Has the kernel ask on the interfaces `public` who has `addresses`. The answers come as
    /// changes, see [`conflicts`].
    pub(super) async fn probe(
        &mut self,
        netdev: &Netdev,
        public: &[u32],
        addresses: &[Ipv4Addr],
    ) -> Result<()> {
        if addresses.is_empty() {
            return Ok(());
        }
        if addresses.len() > PROBED {
            log::warn!("only {PROBED} of {} public addresses are probed", addresses.len());
        }
        let known = netdev.neighbours().await?;
        for &address in addresses.iter().take(PROBED) {
            for &ifindex in public {
                let entry = known.iter().find(|it| (it.ifindex, it.address) == (ifindex, address));
                if entry.is_some_and(|entry| entry.permanent) {
                    continue;
                }
                if entry.is_some()
                    && let Err(error) = netdev.forget(ifindex, address).await
                {
                    log::debug!("{address} on interface {ifindex}: {error}");
                }
                if let Err(error) = netdev.resolve(ifindex, address, false).await {
                    log::debug!("{address} on interface {ifindex}: {error}");
                }
            }
        }
        Ok(())
    }

    /// Waits until every one of `gateways` has an Ethernet address or is known to have none, but
    /// no longer than `patience`, and in any case `at_least`. What else happens meanwhile is noted
    /// in `changes`.
    pub(super) async fn wait_for(
        mut gateways: Vec<DefaultGateway>,
        watch: &mut Watch,
        changes: &mut Changes,
        at_least: Duration,
        patience: Duration,
    ) -> Result<()> {
        let begin = tokio::time::Instant::now();
        let mut seen = 0;
        loop {
            for it in changes.neighbours.iter().skip(seen) {
                if it.mac.is_some() || it.failed {
                    gateways.retain(|gateway| {
                        (gateway.ifindex, gateway.address) != (it.ifindex, it.address)
                    });
                }
            }
            seen = changes.neighbours.len();
            let until = begin + if gateways.is_empty() { at_least } else { patience };
            let Ok(event) = tokio::time::timeout_at(until, watch.changes(changes)).await else {
                break;
            };
            event?;
        }
        for gateway in &gateways {
            log::warn!(
                "the default gateway {} does not answer ARP yet; the kernel goes on asking",
                gateway.address
            );
        }
        Ok(())
    }
}

/// Public addresses that somebody else has answered for. `own`: the host's Ethernet addresses,
/// which answer where two of its interfaces are on one network.
pub(super) fn conflicts(
    neighbours: &[Neighbour],
    public: &[u32],
    addresses: &[Ipv4Addr],
    own: &BTreeSet<[u8; 6]>,
) -> Vec<(Ipv4Addr, Mac)> {
    neighbours
        .iter()
        .filter(|it| public.contains(&it.ifindex) && addresses.contains(&it.address))
        .filter_map(|it| Some((it.address, it.mac?)))
        .filter(|(_, mac)| !own.contains(&mac.0))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_next_hop_is_asked_for_once_in_a_while_and_another_at_once() {
        let mut neighbours = Neighbours::default();
        let start = Instant::now();
        let (first, second) = ((1, Ipv4Addr::new(10, 0, 0, 1)), (1, Ipv4Addr::new(10, 0, 0, 2)));
        assert!(neighbours.is_due(first, start));
        assert!(!neighbours.is_due(first, start + ASK_AGAIN / 2));
        assert!(neighbours.is_due(second, start));
        assert!(neighbours.is_due(first, start + ASK_AGAIN));
    }

    #[test]
    fn only_a_stranger_on_a_public_interface_makes_a_conflict() {
        let address = Ipv4Addr::new(198, 51, 100, 10);
        let answer = |ifindex, last: Option<u8>| Neighbour {
            ifindex,
            address,
            mac: last.map(|last| Mac([2, 0, 0, 0, 0, last])),
            permanent: false,
            stale: false,
            failed: false,
        };
        let own = BTreeSet::from([[2, 0, 0, 0, 0, 1]]);
        let found = |answer: Neighbour, ours: Ipv4Addr| conflicts(&[answer], &[7], &[ours], &own);
        assert_eq!(found(answer(7, Some(9)), address), [(address, Mac([2, 0, 0, 0, 0, 9]))]);
        assert_eq!(found(answer(7, Some(1)), address), [], "the host itself");
        assert_eq!(found(answer(7, None), address), [], "nobody");
        assert_eq!(found(answer(8, Some(9)), address), [], "on the private side");
        assert_eq!(found(answer(7, Some(9)), Ipv4Addr::LOCALHOST), [], "not a public address");
    }
}
