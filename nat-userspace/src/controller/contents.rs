//! What the configuration maps hold, as plain values.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;
use nat_common::{
    net::{Ip4, Port},
    port::PortSetImage,
    rules::{Address, Forward, OneToOne, OneToOneKey, Pool, PublicAddress, SnatRule},
    session::State,
};

use crate::config::PortRange;

/// The maps that follow the configuration, those of interfaces and host addresses excepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    pub policy: Policy,
    /// Free ports by row.
    pub templates: BTreeMap<u32, Vec<PortRange>>,
    /// By slot.
    pub addresses: BTreeMap<u32, Address>,
    /// By index.
    pub pools: BTreeMap<u32, PoolContents>,
    pub public: BTreeMap<Ip4, PublicAddress>,
    /// By public address, protocol number and public port.
    pub forwards: BTreeMap<(Ip4, u8, Port), Forward>,
    pub one_to_one: BTreeMap<OneToOneKey, OneToOne>,
    pub snat: BTreeMap<Ipv4Net, SnatRule>,
    /// Destinations that are not translated, by the number that snat rules refer to; rules
    /// without any have number 0.
    pub exempt: BTreeMap<u32, Vec<Ipv4Net>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolContents {
    /// `members` is 0 here: where the list lies is the plan's business.
    pub pool: Pool,
    /// Slots of the addresses that take new sessions, in file order.
    pub members: Vec<u32>,
    /// The list begins in the upper half of the member table.
    pub upper_half: bool,
}

/// The part of `Control` that the configuration decides. Times in ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    pub hz: u32,
    pub flags: u32,
    pub mss: u32,
    pub port_hold: u32,
    pub refresh: u32,
    pub timeouts: [u32; State::COUNT],
}

impl Contents {
    /// The slot of an address.
    #[must_use]
    pub fn slot_of(&self, address: Ip4) -> Option<u32> {
        self.public.get(&address).map(|public| public.slot)
    }

    /// The rule that the longest prefix over `source` names.
    #[must_use]
    pub fn snat_rule(&self, source: Ip4) -> Option<SnatRule> {
        let source = std::net::Ipv4Addr::from(source);
        (0..=32).rev().find_map(|length| {
            let prefix = Ipv4Net::new(source, length).ok()?.trunc();
            self.snat.get(&prefix).copied()
        })
    }

    #[must_use]
    pub fn is_exempt(&self, rule: u32, destination: Ip4) -> bool {
        let destination = std::net::Ipv4Addr::from(destination);
        self.exempt
            .get(&rule)
            .is_some_and(|prefixes| prefixes.iter().any(|prefix| prefix.contains(&destination)))
    }

    /// Ports that sessions may get at an address, by the index of the protocol.
    #[must_use]
    pub fn ports(&self, address: &Address, protocol: usize) -> &[PortRange] {
        let row = address.templates.get(protocol);
        row.and_then(|row| self.templates.get(row)).map_or(&[], Vec::as_slice)
    }
}

/// The ports that a template leaves free.
pub(super) fn free_ports(template: &PortSetImage) -> Vec<PortRange> {
    let mut ranges: Vec<PortRange> = Vec::new();
    for port in 0..=u16::MAX {
        // The place of a port is as the machine loads it from the wire.
        let place = Port::new(port).raw();
        let word = template.words.as_flattened()[usize::from(place >> 6)];
        if word & (1 << (place & 63)) != 0 {
            continue;
        }
        match ranges.last_mut() {
            Some(range) if u32::from(range.last) + 1 == u32::from(port) => range.last = port,
            _ => ranges.push(PortRange::single(port)),
        }
    }
    ranges
}

pub(super) fn template_of(ports: &[PortRange]) -> PortSetImage {
    let ranges: Vec<_> = ports.iter().map(|range| (range.first, range.last)).collect();
    PortSetImage::template(&ranges, |_| false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_read_back_gives_the_ranges_it_was_made_of() {
        let range = |first, last| PortRange { first, last };
        for ranges in [
            vec![range(1024, 65535)],
            vec![range(1, 1), range(63, 64), range(128, 191), range(65535, 65535)],
            vec![],
        ] {
            assert_eq!(free_ports(&template_of(&ranges)), ranges);
        }
    }
}
