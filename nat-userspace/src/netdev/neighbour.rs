//! Neighbours: who is asked for, and which change makes cached next hops wrong.

use std::{collections::HashMap, net::Ipv4Addr};

use futures::StreamExt as _;
use nat_common::net::Mac;
use rtnetlink::{
    Error, Handle,
    packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags,
            NeighbourMessage, NeighbourState,
        },
    },
};

/// Entries remembered after the kernel has forgotten them; beyond, all are forgotten.
const REMEMBERED: usize = 65_536;

/// An entry of the kernel's table, or a change of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    pub ifindex: u32,
    pub address: Ipv4Addr,
    /// Where the kernel would send to now; none while it is unresolved or has failed.
    pub mac: Option<Mac>,
    /// Written by the administrator; not to be touched.
    pub permanent: bool,
    /// Not confirmed for a while: the kernel would check it at its next own use, but traffic that
    /// XDP forwards is no use.
    pub stale: bool,
    /// The kernel gave up.
    pub failed: bool,
}

pub(super) fn parse(message: &NeighbourMessage) -> Option<Neighbour> {
    if message.header.family != AddressFamily::Inet {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(it)) => address = Some(*it),
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac);
            }
            _ => {}
        }
    }
    let state = message.header.state;
    let valid = matches!(
        state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
            | NeighbourState::Noarp
    );
    Some(Neighbour {
        ifindex: message.header.ifindex,
        address: address?,
        mac: mac.filter(|_| valid),
        permanent: matches!(state, NeighbourState::Permanent | NeighbourState::Noarp),
        stale: state == NeighbourState::Stale,
        failed: state == NeighbourState::Failed,
    })
}

pub(super) async fn resolve(
    handle: &Handle,
    ifindex: u32,
    address: Ipv4Addr,
    keep: bool,
) -> Result<(), Error> {
    let mut message = message(ifindex, address);
    message.header.flags = NeighbourFlags::Use;
    if keep {
        message.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
    }
    // Neither EXCL nor REPLACE, which is all that rtnetlink's own request offers: the entry may
    // exist, and what is in it must stay.
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
    let mut answers = handle.clone().request(request)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(Error::NetlinkError(error));
        }
    }
    Ok(())
}

/// One entry (Linux 5.0; older kernels only list all).
pub(super) async fn look_up(
    handle: &Handle,
    ifindex: u32,
    address: Ipv4Addr,
) -> Result<Option<Neighbour>, Error> {
    let wanted = RouteNetlinkMessage::GetNeighbour(message(ifindex, address));
    let mut request = NetlinkMessage::from(wanted);
    request.header.flags = NLM_F_REQUEST;
    let mut answers = handle.clone().request(request)?;
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message)) => {
                return Ok(parse(&message));
            }
            NetlinkPayload::Error(error) if error.raw_code() == -libc::ENOENT => return Ok(None),
            NetlinkPayload::Error(error) if error.code.is_some() => {
                return Err(Error::NetlinkError(error));
            }
            _ => {}
        }
    }
    Ok(None)
}

pub(super) async fn forget(handle: &Handle, ifindex: u32, address: Ipv4Addr) -> Result<(), Error> {
    handle.neighbours().del(message(ifindex, address)).execute().await
}

fn message(ifindex: u32, address: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = ifindex;
    message.header.state = NeighbourState::None;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
    message
}

/// The Ethernet addresses last known, to tell a change from a confirmation.
#[derive(Debug, Default)]
pub struct NeighbourTable {
    known: HashMap<(u32, Ipv4Addr), Mac>,
}

impl NeighbourTable {
    /// Takes a change in; true where next hops cached before it may now be wrong: another Ethernet
    /// address, or none any more. An entry that the kernel only forgot is still right.
    pub fn update(&mut self, neighbour: &Neighbour) -> bool {
        let key = (neighbour.ifindex, neighbour.address);
        match neighbour.mac {
            Some(mac) => {
                if self.known.len() >= REMEMBERED && !self.known.contains_key(&key) {
                    self.known.clear();
                }
                self.known.insert(key, mac).is_some_and(|old| old != mac)
            }
            None => neighbour.failed && self.known.remove(&key).is_some(),
        }
    }

    /// True where any entry of `neighbours` differs from what was known.
    pub fn resync(&mut self, neighbours: &[Neighbour]) -> bool {
        // Every entry is to be taken in, also after the first difference.
        neighbours.iter().fold(false, |changed, neighbour| self.update(neighbour) | changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neighbour(mac: Option<u8>, failed: bool) -> Neighbour {
        Neighbour {
            ifindex: 3,
            address: Ipv4Addr::new(10, 0, 0, 1),
            mac: mac.map(|last| Mac([2, 0, 0, 0, 0, last])),
            permanent: false,
            stale: false,
            failed,
        }
    }

    #[test]
    fn only_another_address_or_a_failure_of_a_known_neighbour_counts_as_change() {
        let mut table = NeighbourTable::default();
        assert!(!table.update(&neighbour(None, true)), "never known");
        assert!(!table.update(&neighbour(Some(1), false)), "resolved for the first time");
        assert!(!table.update(&neighbour(Some(1), false)), "confirmed");
        assert!(!table.update(&neighbour(None, false)), "being resolved again");
        assert!(table.update(&neighbour(Some(2), false)), "another address");
        assert!(table.update(&neighbour(None, true)), "failed");
        assert!(!table.update(&neighbour(Some(2), false)), "back");
    }

    #[test]
    fn a_resync_takes_in_what_follows_the_first_change() {
        let mut table = NeighbourTable::default();
        table.update(&neighbour(Some(1), false));
        let other = Neighbour { address: Ipv4Addr::new(10, 0, 0, 2), ..neighbour(Some(7), false) };
        assert!(table.resync(&[neighbour(Some(2), false), other]));
        assert!(!table.resync(&[neighbour(Some(2), false), other]));
        assert!(table.update(&Neighbour { mac: Some(Mac([2, 0, 0, 0, 0, 8])), ..other }));
    }
}
