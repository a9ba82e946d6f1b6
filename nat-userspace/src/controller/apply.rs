//! Between plain contents and the maps themselves.

use std::collections::{BTreeMap, btree_map::Entry};

use ipnet::Ipv4Net;
use nat_common::{
    maps::ADDRESS_SLOTS,
    net::Ip4,
    rules::{Address, Control, ExemptKey, ForwardKey, Pool},
};

use super::{
    contents::{Contents, Policy, PoolContents, free_ports, template_of},
    step::Step,
};
use crate::datapath::{
    Datapath, DatapathError, map_error, next_epoch, next_generation,
    tables::{self, Kern, trie_key},
};

/// Length of the rule number in front of an exempt prefix, bits.
const RULE_BITS: u32 = 32;

impl Datapath {
    /// What the configuration maps hold now.
    ///
    /// # Errors
    /// None is expected.
    pub fn contents(&self) -> Result<Contents, DatapathError> {
        let control = self.control()?;
        let tables = self.tables();
        let failed = || map_error("read the configuration maps");
        let addresses: BTreeMap<u32, Address> =
            tables::read_array(&tables.addresses, |address| !address.address.is_unspecified())
                .map_err(failed())?;
        let mut contents = Contents {
            policy: Policy {
                hz: control.hz,
                flags: control.flags,
                mss: control.mss,
                port_hold: control.port_hold,
                refresh: control.refresh,
                timeouts: control.timeouts,
            },
            public: tables::read_hash(&tables.public_addresses).map_err(failed())?,
            one_to_one: tables::read_hash(&tables.one_to_one).map_err(failed())?,
            ..Contents::default()
        };
        for row in addresses.values().filter(|a| a.ports > 0).flat_map(|a| a.templates) {
            if let Entry::Vacant(unread) = contents.templates.entry(row) {
                let Kern(template) = tables.port_templates.get(&row, 0).map_err(failed())?;
                unread.insert(free_ports(&template));
            }
        }
        contents.addresses = addresses;
        let pools = tables::read_array(&tables.pools, |pool: &Pool| {
            bytemuck::bytes_of(pool).iter().any(|byte| *byte != 0)
        });
        for (index, pool) in pools.map_err(failed())? {
            let (first, count) = (pool.members >> 16, pool.members & 0xffff);
            let members = (first..first + count)
                .map(|place| tables.pool_members.get(&place, 0).map(|Kern(slot)| slot))
                .collect::<Result<_, _>>()
                .map_err(failed())?;
            let pool = Pool { members: 0, ..pool };
            let upper_half = first >= ADDRESS_SLOTS;
            contents.pools.insert(index, PoolContents { pool, members, upper_half });
        }
        for entry in tables.forwards.iter() {
            let (Kern(key), Kern(value)) = entry.map_err(failed())?;
            contents.forwards.insert((key.address, key.protocol, key.port), value);
        }
        for entry in tables.snat.iter() {
            let (key, Kern(rule)) = entry.map_err(failed())?;
            contents.snat.extend(prefix(key.data().0, key.prefix_len()).map(|p| (p, rule)));
        }
        for entry in tables.exempt.iter() {
            let (key, _) = entry.map_err(failed())?;
            let Kern(ExemptKey { rule, destination }) = key.data();
            let length = key.prefix_len().saturating_sub(RULE_BITS);
            let rule = u32::from_be_bytes(rule);
            contents.exempt.entry(rule).or_default().extend(prefix(destination, length));
        }
        for prefixes in contents.exempt.values_mut() {
            prefixes.sort();
        }
        Ok(contents)
    }

    /// Carries out a plan, in order. The last step takes it into use.
    ///
    /// # Errors
    /// Where a table is full. What was written by then stays; the plan from the new contents is
    /// the way on.
    pub fn apply(&mut self, steps: &[Step]) -> Result<(), DatapathError> {
        steps.iter().try_for_each(|step| self.apply_one(step))
    }

    fn apply_one(&mut self, step: &Step) -> Result<(), DatapathError> {
        let tables = self.tables_mut();
        let result = match *step {
            Step::Template { row, ref ports } => {
                tables.port_templates.set(row, Kern(template_of(ports)), 0)
            }
            Step::Address { slot, address } => tables.addresses.set(slot, Kern(address), 0),
            Step::Members { first, ref slots } => (first..)
                .zip(slots)
                .try_for_each(|(place, slot)| tables.pool_members.set(place, Kern(*slot), 0)),
            Step::Pool { index, pool } => tables.pools.set(index, Kern(pool), 0),
            Step::Public { address, value } => {
                tables.public_addresses.insert(Kern(address), Kern(value), 0)
            }
            Step::Forward { public, value } => {
                tables.forwards.insert(Kern(forward_key(public)), Kern(value), 0)
            }
            Step::OneToOne { key, value } => tables.one_to_one.insert(Kern(key), Kern(value), 0),
            Step::Exempt { rule, prefix } => {
                tables.exempt.insert(&exempt_key(rule, prefix), Kern(1), 0)
            }
            Step::Snat { source, rule } => tables.snat.insert(&snat_key(source), Kern(rule), 0),
            Step::RemoveSnat { source } => tables.snat.remove(&snat_key(source)),
            Step::RemoveExempt { rule, prefix } => tables.exempt.remove(&exempt_key(rule, prefix)),
            Step::RemoveOneToOne { key } => tables.one_to_one.remove(&Kern(key)),
            Step::RemoveForward { public } => tables.forwards.remove(&Kern(forward_key(public))),
            Step::RemovePublic { address } => tables.public_addresses.remove(&Kern(address)),
            Step::FreePool { index } => {
                tables.pools.set(index, Kern(bytemuck::Zeroable::zeroed()), 0)
            }
            Step::FreeAddress { slot, .. } => tables
                .addresses
                .set(slot, Kern(bytemuck::Zeroable::zeroed()), 0)
                // Whoever has the slot next counts from nothing.
                .and_then(|()| tables.refused_ports.set(slot, Kern([0; 4]), 0)),
            Step::ForgetPorts { address } => return self.forget_ports(address),
            Step::Policy(ref policy) => return self.take_into_use(policy),
        };
        result.map_err(|error| DatapathError::bpf(step.to_string(), error))
    }

    fn forget_ports(&mut self, address: Ip4) -> Result<(), DatapathError> {
        let busy = &mut self.tables_mut().busy_ports;
        let keys: Vec<_> = busy.keys().filter_map(Result::ok).collect();
        for key in keys.into_iter().filter(|Kern(key)| key.public == address) {
            match busy.remove(&key) {
                Ok(()) | Err(aya::maps::MapError::KeyNotFound) => {}
                Err(error) => return Err(map_error("forget busy ports")(error)),
            }
        }
        Ok(())
    }

    fn take_into_use(&mut self, policy: &Policy) -> Result<(), DatapathError> {
        let control = self.control()?;
        let Policy { hz, flags, mss, port_hold, refresh, timeouts } = *policy;
        self.set_control(&Control {
            epoch: next_epoch(control.epoch),
            generation: next_generation(control.generation),
            hz,
            flags,
            mss,
            port_hold,
            refresh,
            timeouts,
            ..control
        })
    }
}

fn forward_key((address, protocol, port): (Ip4, u8, nat_common::net::Port)) -> ForwardKey {
    ForwardKey { address, port, protocol, zero: 0 }
}

fn snat_key(source: Ipv4Net) -> aya::maps::lpm_trie::Key<Kern<Ip4>> {
    trie_key(u32::from(source.prefix_len()), source.network().into())
}

fn exempt_key(rule: u32, prefix: Ipv4Net) -> aya::maps::lpm_trie::Key<Kern<ExemptKey>> {
    let key = ExemptKey { rule: rule.to_be_bytes(), destination: prefix.network().into() };
    trie_key(RULE_BITS + u32::from(prefix.prefix_len()), key)
}

fn prefix(address: Ip4, length: u32) -> Option<Ipv4Net> {
    Ipv4Net::new(address.into(), u8::try_from(length).ok()?).ok()
}
