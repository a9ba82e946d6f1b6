//! The way from what the maps hold to what they should hold: make before break.
//!
//! What is referred to is written before what refers to it, and goes after it. No packet in
//! between meets a rule without its pool, or a pool without its addresses.

use std::collections::BTreeMap;

use nat_common::{maps::ADDRESS_SLOTS, rules::Pool};

use super::{
    contents::{Contents, PoolContents},
    step::Step,
};

/// Empty where nothing is to be done.
#[must_use]
pub fn plan(wanted: &Contents, current: &Contents) -> Vec<Step> {
    let mut steps = Vec::new();
    for (&row, ports) in changed(&wanted.templates, &current.templates) {
        steps.push(Step::Template { row, ports: ports.clone() });
    }
    for (&slot, address) in changed(&wanted.addresses, &current.addresses) {
        steps.push(Step::Address { slot, address: *address });
    }
    pools(&mut steps, &wanted.pools, &current.pools);
    for (&address, value) in changed(&wanted.public, &current.public) {
        steps.push(Step::Public { address, value: *value });
    }
    for (&public, value) in changed(&wanted.forwards, &current.forwards) {
        steps.push(Step::Forward { public, value: *value });
    }
    for (&key, value) in changed(&wanted.one_to_one, &current.one_to_one) {
        steps.push(Step::OneToOne { key, value: *value });
    }
    for (&rule, prefixes) in changed(&wanted.exempt, &current.exempt) {
        let present = current.exempt.get(&rule).map_or(&[][..], Vec::as_slice);
        let new = prefixes.iter().filter(|prefix| !present.contains(prefix));
        steps.extend(new.map(|&prefix| Step::Exempt { rule, prefix }));
    }
    for (&source, &rule) in changed(&wanted.snat, &current.snat) {
        steps.push(Step::Snat { source, rule });
    }

    for &source in gone(&wanted.snat, &current.snat) {
        steps.push(Step::RemoveSnat { source });
    }
    for (&rule, present) in &current.exempt {
        let kept = wanted.exempt.get(&rule).map_or(&[][..], Vec::as_slice);
        let old = present.iter().filter(|prefix| !kept.contains(prefix));
        steps.extend(old.map(|&prefix| Step::RemoveExempt { rule, prefix }));
    }
    for &key in gone(&wanted.one_to_one, &current.one_to_one) {
        steps.push(Step::RemoveOneToOne { key });
    }
    for &public in gone(&wanted.forwards, &current.forwards) {
        steps.push(Step::RemoveForward { public });
    }
    for &address in gone(&wanted.public, &current.public) {
        steps.push(Step::RemovePublic { address });
    }
    for &index in gone(&wanted.pools, &current.pools) {
        steps.push(Step::FreePool { index });
    }
    for &slot in gone(&wanted.addresses, &current.addresses) {
        steps.push(Step::FreeAddress { slot, address: current.addresses[&slot].address });
    }
    for (slot, before) in &current.addresses {
        let differs = |after| (0..3).any(|p| wanted.ports(after, p) != current.ports(before, p));
        let same = wanted.addresses.get(slot).filter(|after| after.address == before.address);
        if before.ports > 0 && same.is_none_or(differs) {
            steps.push(Step::ForgetPorts { address: before.address });
        }
    }
    if !steps.is_empty() || wanted.policy != current.policy {
        steps.push(Step::Policy(Box::new(wanted.policy)));
    }
    steps
}

/// All member lists move to the other half of the table when one of them changes, so that no list
/// in use is ever written to; a pool's one word then takes the new one into use.
fn pools(
    steps: &mut Vec<Step>,
    wanted: &BTreeMap<u32, PoolContents>,
    current: &BTreeMap<u32, PoolContents>,
) {
    let moved = wanted.iter().any(|(index, after)| {
        let before = current.get(index).map_or(&[][..], |before| &before.members);
        before != after.members
    });
    let upper_now = current.values().any(|pool| pool.upper_half && !pool.members.is_empty());
    let upper = upper_now != moved;
    let mut next = if upper { ADDRESS_SLOTS } else { 0 };
    let mut words = BTreeMap::new();
    // The order of the lists in a half is that of the pools, so places follow from the lengths.
    for (&index, pool) in if moved { wanted } else { current } {
        let first = next;
        next += pool.members.len() as u32;
        words.insert(index, member_word(first, pool.members.len()));
        if moved && !pool.members.is_empty() {
            steps.push(Step::Members { first, slots: pool.members.clone() });
        }
    }
    for (&index, after) in wanted {
        let same = current.get(&index).is_some_and(|before| before.pool == after.pool);
        if moved || !same {
            let members = words.get(&index).copied().unwrap_or(0);
            steps.push(Step::Pool { index, pool: Pool { members, ..after.pool } });
        }
    }
}

/// First entry in the high half, number of entries in the low one; 0 for none.
fn member_word(first: u32, count: usize) -> u32 {
    if count == 0 { 0 } else { (first << 16) | count as u32 }
}

fn changed<'a, K: Ord, V: PartialEq>(
    wanted: &'a BTreeMap<K, V>,
    current: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    wanted.iter().filter(|(key, value)| current.get(key) != Some(value))
}

fn gone<'a, K: Ord, V>(
    wanted: &'a BTreeMap<K, V>,
    current: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    current.keys().filter(|key| !wanted.contains_key(key))
}
