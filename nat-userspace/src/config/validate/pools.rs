//! `[[pool]]`: addresses resolved and expanded, ports narrowed to what the host can spare.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{
    super::{
        defaults::{NAME, ProfileDefaults},
        fault::{At, Faults, Located},
        host::HostView,
        model::{AddressSource, Filtering, Gateway, Mapping, Pool, PoolAddress, PortRange},
        parse,
        raw::RawPool,
        reader::Field,
    },
    gateway::ethernet,
    overlap::Claim,
    word_field,
};

/// Of one gateway, all pools together: each address has its own state in the dataplane.
const MOST_ADDRESSES: usize = 4096;

#[derive(Debug)]
pub(super) struct Pools {
    pub(super) list: Vec<Pool>,
    pub(super) claims: Vec<Claim>,
    /// Every name was readable; if not, do not say that one is missing.
    pub(super) names_whole: bool,
    /// Elements of `addresses` that were refused, as written.
    refused: Vec<String>,
    /// A whole list of addresses was unreadable.
    list_refused: bool,
}

impl Pools {
    /// Whether the address is a pool's, or may well be meant to be: then what is wrong with the pool
    /// has been said already.
    pub(super) fn may_have(&self, address: Ipv4Addr) -> bool {
        let claimed = |claim: &Claim| (claim.first..=claim.last).contains(&address.to_bits());
        let written = address.to_string();
        let meant = |text: &String| {
            text.parse::<Ipv4Net>().is_ok_and(|net| net.contains(&address))
                || strsim::damerau_levenshtein(text, &written) <= 2
        };
        self.claims.iter().any(claimed) || self.refused.iter().any(meant) || self.list_refused
    }
}

pub(super) fn resolve(
    raw: &[RawPool],
    gateway: &Gateway,
    defaults: &ProfileDefaults,
    host: &HostView,
    faults: &mut Faults,
) -> Pools {
    let mut pools = Pools {
        list: Vec::new(),
        claims: Vec::new(),
        names_whole: true,
        refused: Vec::new(),
        list_refused: false,
    };
    for raw in raw {
        let at = raw.at.unwrap_or(At::Offset(0));
        let name = name(raw, at, &mut pools, faults);
        let (ports, ports_explicit) = ports(raw, faults);
        let mut pool = Pool {
            addresses: Vec::new(),
            interface: interface(&raw.interface, gateway, faults),
            ports,
            ports_explicit,
            mapping: word_field!(faults, "mapping", raw.mapping, Mapping, defaults.mapping),
            filtering: word_field!(
                faults,
                "filtering",
                raw.filtering,
                Filtering,
                defaults.filtering
            ),
            overload: raw.overload.given().is_none_or(|value| value.value),
            sessions_per_host: limit("sessions_per_host", &raw.sessions_per_host, faults),
            new_sessions_per_second_per_host: limit(
                "new_sessions_per_second_per_host",
                &raw.new_sessions_per_second_per_host,
                faults,
            ),
            name,
        };
        addresses(raw, &mut pool, &mut pools, host, faults);
        pools.list.push(pool);
    }
    pools
}

fn name(raw: &RawPool, at: At, pools: &mut Pools, faults: &mut Faults) -> String {
    let (name, at) = match &raw.name {
        Field::Absent => (Some(NAME.to_owned()), at),
        Field::Faulty => (None, at),
        Field::Given(text) => (faults.keep(text.at, parse::name_value(&text.value)), text.at),
    };
    let Some(name) = name else {
        pools.names_whole = false;
        // No name that a file can hold: nothing refers to this pool by accident.
        return String::new();
    };
    if pools.list.iter().any(|pool| pool.name == name) {
        let remedy = "give each [[pool]] a name of its own, name = \"...\"";
        faults.add(at, format!("there are two pools named \"{name}\""), remedy);
    }
    name
}

fn ports(raw: &RawPool, faults: &mut Faults) -> (PortRange, bool) {
    match &raw.ports {
        Field::Absent => (PortRange::DEFAULT, false),
        Field::Faulty => (PortRange::DEFAULT, true),
        Field::Given(text) => {
            let range = faults.keep(text.at, parse::ports(&text.value));
            (range.unwrap_or(PortRange::DEFAULT), true)
        }
    }
}

fn interface(field: &Field<String>, gateway: &Gateway, faults: &mut Faults) -> Option<String> {
    let Located { value, at } = field.given()?;
    if !gateway.public.contains(value) && !gateway.public.is_empty() {
        faults.add(
            *at,
            format!("interface \"{value}\" is no public interface of the gateway"),
            format!("write one of: {}", gateway.public.join(", ")),
        );
    }
    Some(value.clone())
}

fn limit(key: &str, field: &Field<i64>, faults: &mut Faults) -> u32 {
    let Some(number) = field.given() else { return 0 };
    u32::try_from(number.value).unwrap_or_else(|_| {
        faults.add(
            number.at,
            format!("{key} cannot be {}", number.value),
            format!("write a number from 0 (no limit) to {}", u32::MAX),
        );
        0
    })
}

fn addresses(
    raw: &RawPool,
    pool: &mut Pool,
    pools: &mut Pools,
    host: &HostView,
    faults: &mut Faults,
) {
    let Some(list) = raw.addresses.given() else {
        pools.list_refused = true;
        return;
    };
    if list.value.items.is_empty() && list.value.whole {
        faults.add(
            list.at,
            format!("pool \"{}\" is empty", pool.name),
            "write addresses = [\"198.51.100.10\"]",
        );
    }
    for item in &list.value.items {
        let Some((first, last, source)) = entry(item, host, faults) else {
            pools.refused.push(item.value.clone());
            continue;
        };
        let held: usize = pools.list.iter().map(|pool| pool.addresses.len()).sum();
        let wanted = (last - first) as usize + 1;
        if held + pool.addresses.len() + wanted > MOST_ADDRESSES {
            faults.add(
                item.at,
                format!("\"{}\" makes more than {MOST_ADDRESSES} pool addresses", item.value),
                "write a longer prefix or fewer of them",
            );
            pools.refused.push(item.value.clone());
            continue;
        }
        pools.claims.push(Claim {
            first,
            last,
            text: item.value.clone(),
            owner: format!("pool \"{}\"", pool.name),
            at: item.at,
        });
        for address in (first..=last).map(Ipv4Addr::from) {
            let host_owned = host.owner(address).is_some();
            let ports = spared_ports(pool, host_owned, host);
            if ports.is_empty() {
                faults.add(
                    item.at,
                    format!("no port of {address} is left: all are the host's ip_local_port_range"),
                    "write ports = \"1024-65535\" in the pool to share them",
                );
            }
            pool.addresses.push(PoolAddress { address, source: source.clone(), host_owned, ports });
        }
    }
}

/// An address that the host owns leaves it the ports its own connections come from, unless the
/// file says which ports are the gateway's.
fn spared_ports(pool: &Pool, host_owned: bool, host: &HostView) -> Vec<PortRange> {
    match host.local_ports {
        Some(local) if host_owned && !pool.ports_explicit => pool.ports.without(local),
        _ => vec![pool.ports],
    }
}

/// An element of `addresses`: first and last address, and what it was written as.
fn entry(
    item: &Located<String>,
    host: &HostView,
    faults: &mut Faults,
) -> Option<(u32, u32, AddressSource)> {
    let Located { value, at } = item;
    let numeric = value.starts_with(|c: char| c.is_ascii_digit()) && value.contains('.');
    if host.interface(value).is_none() && (numeric || value.contains([':', '/'])) {
        return literal(value, *at, faults)
            .map(|(first, last)| (first, last, AddressSource::Literal));
    }
    if !ethernet(value, *at, host, faults) {
        return None;
    }
    let primary = host.interface(value).and_then(|interface| interface.addresses.first());
    let Some(primary) = primary else {
        faults.add(
            *at,
            format!("interface \"{value}\" has no IPv4 address, so it gives the pool none"),
            format!("give it one (ip address add ADDR dev {value}), or write an address here"),
        );
        return None;
    };
    let number = primary.to_bits();
    Some((number, number, AddressSource::Interface(value.clone())))
}

fn literal(text: &str, at: At, faults: &mut Faults) -> Option<(u32, u32)> {
    if !text.contains('/') {
        let address = faults.keep(at, parse::address(text))?.to_bits();
        return Some((address, address));
    }
    let net = faults.keep(at, parse::prefix(text))?;
    let (first, last) = (net.network(), net.broadcast());
    // A prefix that starts and ends with host addresses has no others in it.
    faults.keep(at, parse::address(&first.to_string()))?;
    faults.keep(at, parse::address(&last.to_string()))?;
    Some((first.to_bits(), last.to_bits()))
}
