//! Configuration and facts of the host to map contents. Pure.
//!
//! Numbers that sessions refer to (slots of addresses, indices of pools) are kept from the current
//! contents, so that a reload, or a start over adopted sessions, leaves them valid.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use ipnet::Ipv4Net;
use nat_common::{
    maps::{ADDRESS_SLOTS, FORWARD_PORTS, POOL_SLOTS, RULE_PREFIXES, TEMPLATE_ROWS},
    net::{Ip4, Port, proto},
    rules::{
        Address, Forward, OneToOne, OneToOneKey, Pool, PortRange as MapRange, PublicAddress,
        SnatRule, address, control, pool,
    },
    session::State,
};
use thiserror::Error;

use super::contents::{Contents, Policy, PoolContents};
use crate::{
    api::model::AddressState,
    config::{self, Config, Filtering, Mapping, MssClamp, PortRange, Profile, Protocol},
};

/// The pool of an address that is in none.
pub(super) const NO_POOL: u32 = u32::MAX;
/// Index of no interface, for a pool whose interface is missing.
const NO_INTERFACE: u32 = u32::MAX;

/// What compiling needs to know beyond the configuration.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Ticks per second.
    pub hz: u32,
    /// The tap device of the slow path is there.
    pub slow_path: bool,
    /// Index by name of the interfaces that exist.
    pub interfaces: BTreeMap<String, u32>,
    /// What became of an address since; one that is not here is active.
    pub addresses: BTreeMap<Ipv4Addr, AddressFact>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressFact {
    pub state: AddressState,
    /// An interface of the host has it now.
    pub host_owned: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CompileError {
    #[error("the configuration has {wanted} {what}, the tables have room for {limit}; {remedy}")]
    TooMany { what: &'static str, wanted: usize, limit: u32, remedy: &'static str },
    #[error("address {address} has its ports in {ranges} ranges; at most 4 are possible")]
    TooManyRanges { address: Ipv4Addr, ranges: usize },
}

/// # Errors
/// Where the configuration needs more room than the tables have.
pub fn compile(
    config: &Config,
    facts: &Facts,
    current: &Contents,
) -> Result<Contents, CompileError> {
    let mut wanted = Contents { policy: policy(config, facts), ..Contents::default() };
    let slots = assign_slots(config, current)?;
    let pool_indices = assign_pools(config, current)?;

    for (pool, &index) in config.pools.iter().zip(&pool_indices) {
        let mut members = Vec::new();
        for entry in &pool.addresses {
            let slot = slots[&Ip4::from(entry.address)];
            let fact = fact(facts, entry.address, entry.host_owned);
            let address = pool_address(config, entry, index, fact, current, &mut wanted)?;
            if address.flags & address::ACTIVE != 0 {
                members.push(slot);
            }
            wanted.addresses.insert(slot, address);
        }
        let pool = pool_entry(pool, facts);
        wanted.pools.insert(index, PoolContents { pool, members, upper_half: false });
    }
    for mapping in &config.one_to_one {
        let slot = slots[&Ip4::from(mapping.public)];
        let fact = fact(facts, mapping.public, mapping.host_owned);
        let flags = flags(fact) | address::ONE_TO_ONE;
        let address = Address {
            address: mapping.public.into(),
            flags,
            pool: NO_POOL,
            ports: 0,
            ranges: [MapRange::default(); Address::RANGES],
            templates: [0; 3],
            reserved: 0,
        };
        wanted.addresses.insert(slot, address);
        one_to_one(mapping, slot, &mut wanted);
    }
    for (&slot, address) in &wanted.addresses {
        wanted.public.insert(address.address, PublicAddress { slot, flags: address.flags });
    }
    forwards(config, &slots, &mut wanted);
    rules(config, &pool_indices, current, &mut wanted);
    check_room(&wanted)?;
    Ok(wanted)
}

fn policy(config: &Config, facts: &Facts) -> Policy {
    let ticks = |time: Duration| {
        let ticks = time.as_secs().saturating_mul(u64::from(facts.hz));
        // Half of the counter's range, so that an age can be told from a time to come.
        u32::try_from(ticks).unwrap_or(u32::MAX).min(u32::MAX / 4)
    };
    let config::Timeouts { tcp_established, tcp_transitory, udp, icmp, port_hold } =
        config.timeouts;
    let mut timeouts = [0; State::COUNT];
    for (state, timeout) in [
        (State::Udp, udp),
        (State::Icmp, icmp),
        (State::TcpOpeningOut, tcp_transitory),
        (State::TcpOpeningIn, tcp_transitory),
        (State::TcpEstablished, tcp_established),
        (State::TcpFinOut, tcp_established),
        (State::TcpFinIn, tcp_established),
        (State::TcpClosing, tcp_transitory),
        (State::TcpReset, tcp_transitory),
    ] {
        timeouts[state as usize] = ticks(timeout);
    }
    let rfc = config.gateway.profile == Profile::Rfc;
    let flags = [
        (config.gateway.hairpin, control::HAIRPIN),
        (config.gateway.idle_reset, control::IDLE_RESET),
        (rfc, control::EXHAUSTION_ERROR),
        (rfc, control::HOLD_SYN),
        (facts.slow_path, control::SLOW_PATH),
        // Bulk records count the sessions that were opened.
        (
            config.log.as_ref().is_some_and(|log| log.opened || log.bulk.is_some()),
            control::LOG_OPENED,
        ),
        (config.log.is_some(), control::LOG_ENDED),
    ];
    let mss = match config.gateway.mss_clamp {
        MssClamp::Auto => control::MSS_AUTO,
        MssClamp::Off => 0,
        MssClamp::To(bytes) => u32::from(bytes),
    };
    Policy {
        hz: facts.hz,
        flags: flags.iter().filter(|(on, _)| *on).fold(0, |flags, (_, flag)| flags | flag),
        mss,
        port_hold: ticks(port_hold),
        refresh: (facts.hz / 4).max(1),
        timeouts,
    }
}

fn fact(facts: &Facts, address: Ipv4Addr, host_owned: bool) -> AddressFact {
    let active = AddressFact { state: AddressState::Active, host_owned };
    facts.addresses.get(&address).copied().unwrap_or(active)
}

fn flags(fact: AddressFact) -> u32 {
    let mut flags = 0;
    if fact.state == AddressState::Active {
        flags |= address::ACTIVE;
    }
    if fact.host_owned {
        flags |= address::HOST_OWNED;
    } else if matches!(fact.state, AddressState::Active | AddressState::Draining) {
        flags |= address::ANSWER_ARP;
    }
    flags
}

fn pool_address(
    config: &Config,
    entry: &config::PoolAddress,
    pool: u32,
    fact: AddressFact,
    current: &Contents,
    wanted: &mut Contents,
) -> Result<Address, CompileError> {
    let mut ranges = [MapRange::default(); Address::RANGES];
    if entry.ports.len() > ranges.len() {
        let (address, ranges) = (entry.address, entry.ports.len());
        return Err(CompileError::TooManyRanges { address, ranges });
    }
    for (slot, range) in ranges.iter_mut().zip(&entry.ports) {
        *slot = MapRange { first: range.first, last: range.last };
    }
    let mut flags = flags(fact);
    if config.forwards.iter().any(|forward| forward.public.address == entry.address) {
        flags |= address::FORWARDS;
    }
    let mut templates = [0; 3];
    for (row, protocol) in templates.iter_mut().zip([Protocol::Tcp, Protocol::Udp, Protocol::Icmp])
    {
        *row = template_row(config.session_ports(entry.address, protocol), current, wanted)?;
    }
    Ok(Address {
        address: entry.address.into(),
        flags,
        pool,
        ports: entry.ports.iter().map(|range| range.count()).sum(),
        ranges,
        templates,
        reserved: 0,
    })
}

/// The row that holds these ports; one in use with other contents is never overwritten.
fn template_row(
    ports: Vec<PortRange>,
    current: &Contents,
    wanted: &mut Contents,
) -> Result<u32, CompileError> {
    let same = |(row, present): (&u32, &Vec<PortRange>)| (*present == ports).then_some(*row);
    if let Some(row) = wanted.templates.iter().find_map(same) {
        return Ok(row);
    }
    let kept = current.templates.iter().find_map(same);
    let free = || {
        (0..TEMPLATE_ROWS)
            .find(|row| !current.templates.contains_key(row) && !wanted.templates.contains_key(row))
    };
    let row = kept.or_else(free).ok_or(CompileError::TooMany {
        what: "addresses with different forwarded ports",
        wanted: wanted.templates.len() + current.templates.len() + 1,
        limit: TEMPLATE_ROWS,
        remedy: "forward the same ports on more of them, or restart the gateway after `natgw detach`",
    })?;
    wanted.templates.insert(row, ports);
    Ok(row)
}

fn pool_entry(configured: &config::Pool, facts: &Facts) -> Pool {
    let ifindex = match &configured.interface {
        None => 0,
        Some(name) => facts.interfaces.get(name).copied().unwrap_or(NO_INTERFACE),
    };
    Pool {
        members: 0,
        ifindex,
        sessions_per_host: configured.sessions_per_host,
        new_sessions_per_second_per_host: configured.new_sessions_per_second_per_host,
        mapping: match configured.mapping {
            Mapping::EndpointIndependent => pool::ENDPOINT_INDEPENDENT,
            Mapping::AddressAndPortDependent => pool::ADDRESS_AND_PORT_DEPENDENT,
        },
        filtering: match configured.filtering {
            Filtering::EndpointIndependent => pool::ENDPOINT_INDEPENDENT,
            Filtering::AddressDependent => pool::ADDRESS_DEPENDENT,
            Filtering::AddressAndPortDependent => pool::ADDRESS_AND_PORT_DEPENDENT,
        },
        overload: u8::from(configured.overload),
        fall_over: 1,
        reserved: 0,
    }
}

fn assign_slots(config: &Config, current: &Contents) -> Result<BTreeMap<Ip4, u32>, CompileError> {
    let pools = config.pools.iter().flat_map(|pool| &pool.addresses).map(|entry| entry.address);
    let mappings = config.one_to_one.iter().map(|mapping| mapping.public);
    let wanted: Vec<Ip4> = pools.chain(mappings).map(Ip4::from).collect();
    let known: BTreeMap<Ip4, u32> =
        current.addresses.iter().map(|(slot, address)| (address.address, *slot)).collect();
    // A slot that goes out of use now still has sessions: it is not given out in the same breath.
    let mut free = (0..ADDRESS_SLOTS).filter(|slot| !current.addresses.contains_key(slot));
    let count = wanted.len();
    wanted
        .into_iter()
        .map(|address| Some((address, known.get(&address).copied().or_else(|| free.next())?)))
        .collect::<Option<_>>()
        .ok_or(CompileError::TooMany {
            what: "public addresses (those that are being replaced included)",
            wanted: count,
            limit: ADDRESS_SLOTS,
            remedy: "remove some, or replace them in two reloads",
        })
}

/// Index by pool, in file order: the one that most of its addresses have now, else a new one.
fn assign_pools(config: &Config, current: &Contents) -> Result<Vec<u32>, CompileError> {
    let known: BTreeMap<Ip4, u32> = current
        .addresses
        .values()
        .filter(|address| address.pool != NO_POOL)
        .map(|address| (address.address, address.pool))
        .collect();
    let mut taken = BTreeSet::new();
    let mut kept = Vec::new();
    for pool in &config.pools {
        let mut votes: BTreeMap<u32, usize> = BTreeMap::new();
        for entry in &pool.addresses {
            if let Some(&index) = known.get(&entry.address.into())
                && !taken.contains(&index)
            {
                *votes.entry(index).or_default() += 1;
            }
        }
        let index = votes.into_iter().max_by_key(|(_, votes)| *votes).map(|(index, _)| index);
        taken.extend(index);
        kept.push(index);
    }
    let mut free = (0..POOL_SLOTS).filter(|i| !taken.contains(i) && !current.pools.contains_key(i));
    kept.into_iter().map(|index| index.or_else(|| free.next())).collect::<Option<_>>().ok_or(
        CompileError::TooMany {
            what: "pools",
            wanted: config.pools.len(),
            limit: POOL_SLOTS,
            remedy: "put more addresses into fewer pools",
        },
    )
}

fn one_to_one(mapping: &config::OneToOne, slot: u32, wanted: &mut Contents) {
    let (public, private) = (Ip4::from(mapping.public), Ip4::from(mapping.private));
    let outbound = OneToOneKey { address: private, inbound: 0 };
    let inbound = OneToOneKey { address: public, inbound: 1 };
    wanted.one_to_one.insert(outbound, OneToOne { address: public, slot });
    wanted.one_to_one.insert(inbound, OneToOne { address: private, slot });
}

fn forwards(config: &Config, slots: &BTreeMap<Ip4, u32>, wanted: &mut Contents) {
    for forward in &config.forwards {
        let protocol = protocol_number(forward.protocol);
        let public = Ip4::from(forward.public.address);
        let Some(&slot) = slots.get(&public) else { continue };
        let ports = (forward.public.ports.first..=forward.public.ports.last)
            .zip(forward.private.ports.first..=forward.private.ports.last);
        for (port, private) in ports {
            let value = Forward {
                address: forward.private.address.into(),
                port: Port::new(private),
                slot: slot as u16,
            };
            wanted.forwards.insert((public, protocol, Port::new(port)), value);
        }
    }
}

pub(crate) const fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => proto::TCP,
        Protocol::Udp => proto::UDP,
        Protocol::Icmp => proto::ICMP,
    }
}

/// The table finds the longest prefix, the file means the first match: a prefix that an earlier
/// rule covers is never reached and left out.
fn rules(config: &Config, pool_indices: &[u32], current: &Contents, wanted: &mut Contents) {
    for rule in &config.snat {
        let position = config.pools.iter().position(|pool| pool.name == rule.pool);
        let Some(&pool) = position.and_then(|position| pool_indices.get(position)) else {
            continue;
        };
        let number = exempt_number(&rule.exempt, current, wanted);
        let earlier: BTreeSet<Ipv4Net> = wanted.snat.keys().copied().collect();
        for source in &rule.source {
            let covered = (0..=source.prefix_len()).any(|length| {
                Ipv4Net::new(source.addr(), length)
                    .is_ok_and(|prefix| earlier.contains(&prefix.trunc()))
            });
            if !covered {
                wanted.snat.insert(source.trunc(), SnatRule { rule: number, pool });
            }
        }
    }
}

/// Rules with equal exemptions share a number; a set in use is never changed under its number.
fn exempt_number(exempt: &[Ipv4Net], current: &Contents, wanted: &mut Contents) -> u32 {
    if exempt.is_empty() {
        return 0;
    }
    let set: BTreeSet<Ipv4Net> = exempt.iter().map(Ipv4Net::trunc).collect();
    let set: Vec<Ipv4Net> = set.into_iter().collect();
    let same = |(number, present): (&u32, &Vec<Ipv4Net>)| (*present == set).then_some(*number);
    let known =
        wanted.exempt.iter().find_map(same).or_else(|| current.exempt.iter().find_map(same));
    let number = known.unwrap_or_else(|| {
        let taken = |n: &u32| current.exempt.contains_key(n) || wanted.exempt.contains_key(n);
        (1..u32::MAX).find(|number| !taken(number)).unwrap_or(u32::MAX)
    });
    wanted.exempt.insert(number, set);
    number
}

fn check_room(wanted: &Contents) -> Result<(), CompileError> {
    let exempt = wanted.exempt.values().map(Vec::len).sum();
    let remedy = "write fewer, larger ranges";
    for (what, wanted, limit) in [
        ("snat source prefixes", wanted.snat.len(), RULE_PREFIXES),
        ("exempt prefixes", exempt, RULE_PREFIXES),
        ("forwarded ports", wanted.forwards.len(), FORWARD_PORTS),
    ] {
        if wanted > limit as usize {
            return Err(CompileError::TooMany { what, wanted, limit, remedy });
        }
    }
    Ok(())
}
