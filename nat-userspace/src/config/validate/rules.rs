//! `[[snat]]`, `[[forward]]` and `[[one_to_one]]`: rules that refer to pools and to each other.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{
    super::{
        defaults::NAME,
        fault::{At, Faults, Located, nearest},
        host::HostView,
        model::{Endpoints, Forward, OneToOne, Protocol, SnatRule},
        parse,
        raw::{RawForward, RawOneToOne, RawSnat},
        reader::{Field, Strings},
    },
    overlap::{self, Claim},
    pools::Pools,
};

pub(super) fn snat(raw: &[RawSnat], pools: &Pools, faults: &mut Faults) -> Vec<SnatRule> {
    let mut seen: Vec<Ipv4Net> = Vec::new();
    let mut rules = Vec::new();
    for raw in raw {
        if let Some(list) = raw.source.given()
            && list.value.items.is_empty()
            && list.value.whole
        {
            let remedy = "write source = [\"10.0.0.0/16\"]";
            faults.add(list.at, "the list source is empty: the rule covers nobody", remedy);
        }
        let source = prefixes(&raw.source, faults);
        for Located { value: net, at } in &source {
            if seen.contains(net) {
                faults.add(
                    *at,
                    format!("source {net} is already covered by an earlier [[snat]] entry"),
                    "let each source stand once; the first match decides",
                );
            }
            seen.push(*net);
        }
        let exempt = prefixes(&raw.exempt, faults);
        let nets = |list: Vec<Located<Ipv4Net>>| list.into_iter().map(|net| net.value).collect();
        rules.push(SnatRule {
            source: nets(source),
            pool: pool_name(raw, pools, faults),
            exempt: nets(exempt),
        });
    }
    rules
}

fn prefixes(field: &Field<Strings>, faults: &mut Faults) -> Vec<Located<Ipv4Net>> {
    let Some(list) = field.given() else { return Vec::new() };
    let items = list.value.items.iter();
    items
        .filter_map(|item| {
            let value = faults.keep(item.at, parse::prefix(&item.value))?;
            Some(Located { value, at: item.at })
        })
        .collect()
}

fn pool_name(raw: &RawSnat, pools: &Pools, faults: &mut Faults) -> String {
    let (name, at) = match &raw.pool {
        Field::Absent => (NAME, raw.at.unwrap_or(At::Offset(0))),
        Field::Faulty => return String::new(),
        Field::Given(text) => (text.value.as_str(), text.at),
    };
    let names: Vec<&str> = pools.list.iter().map(|pool| pool.name.as_str()).collect();
    if !names.contains(&name) && pools.names_whole {
        let remedy = match (nearest(name, names.iter().copied()), names.as_slice()) {
            (Some(near), _) => format!("did you mean \"{near}\"?"),
            (None, []) => format!("add [[pool]] with name = \"{name}\""),
            (None, names) => format!("the pools are {}", names.join(", ")),
        };
        faults.add(at, format!("there is no pool named \"{name}\""), remedy);
    }
    name.to_owned()
}

pub(super) fn forwards(
    raw: &[RawForward],
    pools: &Pools,
    host: &HostView,
    faults: &mut Faults,
) -> Vec<Forward> {
    let mut forwards = Vec::new();
    let mut seen: Vec<Candidate> = Vec::new();
    for raw in raw {
        let words = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
        let protocol = raw
            .protocol
            .given()
            .and_then(|text| faults.keep(text.at, parse::word("protocol", &text.value, &words)));
        let public = raw.public.given().and_then(|text| {
            let value = faults.keep(text.at, parse::endpoints(&text.value))?;
            Some(Located { value, at: text.at })
        });
        let private = raw.private.given().and_then(|text| {
            let value = faults.keep(text.at, parse::endpoints(&text.value))?;
            Some(Located { value, at: text.at })
        });
        if let (Some(public), Some(private)) = (&public, &private) {
            let (outside, inside) = (public.value.ports, private.value.ports);
            if outside.count() != inside.count() {
                let last = u32::from(inside.first) + outside.count() - 1;
                let right = if outside.count() == 1 {
                    format!("\"{}:{}\"", private.value.address, inside.first)
                } else {
                    format!("\"{}:{}-{last}\"", private.value.address, inside.first)
                };
                let remedy = if last > u32::from(u16::MAX) {
                    "write ranges of the same length".to_owned()
                } else {
                    format!("write private = {right}")
                };
                faults.add(
                    private.at,
                    format!(
                        "{} public ports ({outside}) cannot map one by one to {} private ports ({inside})",
                        outside.count(),
                        inside.count()
                    ),
                    remedy,
                );
            }
        }
        let Some(public) = public else { continue };
        outside_every_pool(public.value.address, public.at, pools, faults);
        let Some(protocol) = protocol else { continue };
        let candidate = Candidate {
            protocol,
            public: public.value,
            private: private.map(|private| private.value),
        };
        if !conflict(&candidate, &seen, public.at, faults) {
            listener(&candidate, public.at, host, faults);
        }
        if let Candidate { protocol, public, private: Some(private) } = candidate {
            forwards.push(Forward { protocol, public, private });
        }
        seen.push(candidate);
    }
    forwards
}

/// A forward as far as it could be read.
struct Candidate {
    protocol: Protocol,
    public: Endpoints,
    private: Option<Endpoints>,
}

fn outside_every_pool(address: Ipv4Addr, at: At, pools: &Pools, faults: &mut Faults) {
    if pools.may_have(address) {
        return;
    }
    let some = pools.list.iter().flat_map(|pool| &pool.addresses).next();
    let remedy = match some {
        Some(entry) => format!(
            "forward from a pool's address such as {}, or add {address} to a pool",
            entry.address
        ),
        None => format!("add {address} to a pool"),
    };
    faults.add(at, format!("{address} is in no pool"), remedy);
}

fn conflict(forward: &Candidate, earlier: &[Candidate], at: At, faults: &mut Faults) -> bool {
    let Candidate { protocol, public, private } = forward;
    let found = earlier.iter().find(|other| {
        other.protocol == *protocol
            && other.public.address == public.address
            && other.public.ports.overlaps(public.ports)
    });
    let Some(other) = found else { return false };
    if let Some(private) = private
        && other.public == *public
        && other.private == Some(*private)
    {
        let what = format!("the forward of {protocol} {public} to {private} is there twice");
        faults.add(at, what, "remove one");
    } else {
        faults.add(
            at,
            format!("{protocol} {public} overlaps the forward of {protocol} {}", other.public),
            "let each public port lead to one place only",
        );
    }
    true
}

fn listener(forward: &Candidate, at: At, host: &HostView, faults: &mut Faults) {
    let Candidate { protocol, public, .. } = *forward;
    if let Some(socket) = host.listener(protocol, public.address, public.ports) {
        faults.add(
            at,
            format!(
                "a socket of this host listens on {protocol} {}:{}, which the forward would take from it",
                socket.address, socket.port
            ),
            format!(
                "stop it (ss -lnp 'sport = :{}' names it), or forward from another port",
                socket.port
            ),
        );
    }
}

pub(super) fn one_to_one(
    raw: &[RawOneToOne],
    pools: &Pools,
    host: &HostView,
    faults: &mut Faults,
) -> Vec<OneToOne> {
    let mut claims = pools.claims.clone();
    let mut mappings: Vec<OneToOne> = Vec::new();
    for raw in raw {
        let private = raw.private.given().and_then(|text| {
            let value = faults.keep(text.at, parse::address(&text.value))?;
            if mappings.iter().any(|mapping| mapping.private == value) {
                faults.add(
                    text.at,
                    format!("{value} already has a one-to-one address"),
                    "give each private host one public address",
                );
            }
            Some(value)
        });
        let public = raw.public.given().and_then(|text| {
            let value = faults.keep(text.at, parse::address(&text.value))?;
            claims.push(Claim {
                first: value.to_bits(),
                last: value.to_bits(),
                text: text.value.clone(),
                owner: "a one-to-one mapping".to_owned(),
                at: text.at,
            });
            only_address(value, text.at, host, faults);
            Some(value)
        });
        if let (Some(public), Some(private)) = (public, private) {
            mappings.push(OneToOne { public, private, host_owned: host.owner(public).is_some() });
        }
    }
    overlap::report(claims, faults);
    mappings
}

/// All ports and protocols of a one-to-one address are the private host's: the gateway would lock
/// itself out.
fn only_address(public: Ipv4Addr, at: At, host: &HostView, faults: &mut Faults) {
    let Some(interface) = host.owner(public) else { return };
    if interface.addresses == [public] {
        faults.add(
            at,
            format!(
                "{public} is the only address of interface \"{}\": mapping all of it away would cut the host off",
                interface.name
            ),
            format!(
                "give \"{}\" a second address, or use [[forward]] for the ports that are needed",
                interface.name
            ),
        );
    }
}
