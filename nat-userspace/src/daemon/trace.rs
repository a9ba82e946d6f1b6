//! `natgw trace`: the question brought to the dataplane, and its answer back.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Mutex, PoisonError},
};

use ipnet::Ipv4Net;
use nat_common::maps::INTERFACE_SLOTS;

use super::{control::Controller, control::failed, gateway::Gateway};
use crate::{
    api::{
        ControlError,
        trace::{Leaving, Trace, TraceQuery},
    },
    config::{Config, Role},
    datapath::Tracer,
    trace::{self, Names},
};

/// The programs that tell, once somebody has asked.
#[derive(Default)]
pub(super) struct Telling(Mutex<Option<Tracer>>);

/// What numbers are called, as of the question.
struct Known {
    interfaces: BTreeMap<u32, String>,
    pools: BTreeMap<u32, String>,
    config: Config,
}

impl Names for Known {
    fn interface(&self, ifindex: u32) -> String {
        self.interfaces.get(&ifindex).cloned().unwrap_or_else(|| format!("interface {ifindex}"))
    }

    fn pool(&self, index: u32) -> String {
        self.pools.get(&index).cloned().unwrap_or_else(|| format!("number {index}"))
    }

    fn rule(&self, source: Ipv4Addr) -> String {
        let sources = self.config.snat.iter().flat_map(|rule| &rule.source);
        let covering = sources.into_iter().find(|net| net.contains(&source));
        covering.map_or_else(|| source.to_string(), ToString::to_string)
    }
}

impl Known {
    fn of(gateway: &Gateway) -> Result<Self, ControlError> {
        let contents = gateway.datapath.contents().map_err(failed)?;
        let pools = contents.addresses.values().filter_map(|entry| {
            let (pool, _) = gateway.config.pool_address(entry.address.into())?;
            Some((entry.pool, pool.name.clone()))
        });
        let links = gateway.snapshot.links.values();
        Ok(Self {
            interfaces: links.map(|link| (link.ifindex, link.name.clone())).collect(),
            pools: pools.collect(),
            config: gateway.config.clone(),
        })
    }
}

impl Controller {
    pub(super) fn trace_packet(&self, query: &TraceQuery) -> Result<Trace, ControlError> {
        let (interface, role, ifindex, mac, known, source) = {
            let gateway = self.lock();
            let name = match &query.interface {
                Some(name) => name.clone(),
                None => leading_to(&gateway, query.from.address)?,
            };
            let port = gateway.ports.get(&name).ok_or_else(|| {
                let names: Vec<&str> = gateway.ports.keys().map(String::as_str).collect();
                ControlError::NotFound(format!(
                    "{name} is no interface of this gateway; write --in with one of {}",
                    names.join(", ")
                ))
            })?;
            let known = port.known.ok_or_else(|| {
                ControlError::Refused(format!("{name} is missing; nothing can come by it now"))
            })?;
            let names = Known::of(&gateway)?;
            (name, port.role, known.ifindex, known.mac, names, gateway.datapath.tracer())
        };
        let frame = trace::frame(query, mac).map_err(ControlError::Refused)?;
        let (_, packet) = trace::describe(&frame)
            .ok_or_else(|| ControlError::Failed("the packet cannot be made".to_owned()))?;
        let mut telling = self.telling.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Loading takes about a second; the gateway goes on meanwhile.
        let tracer = match &mut *telling {
            Some(tracer) => tracer,
            empty => empty.insert(source.load().map_err(failed)?),
        };
        let traced = tracer.trace(ifindex, &frame).map_err(failed)?;
        drop(telling);
        let leaves = match traced.log.out {
            0 => None,
            slot => trace::describe(&traced.run.frame).map(|(next_hop, packet)| {
                let index = known
                    .interfaces
                    .keys()
                    .find(|index| **index % INTERFACE_SLOTS == slot - 1)
                    .copied();
                Leaving { interface: known.interface(index.unwrap_or(0)), next_hop, packet }
            }),
        };
        Ok(trace::explain((interface, role), packet, &traced.log, leaves, &known))
    }
}

/// The interface that packets of a source come by: the one whose subnet it is in, else a private
/// one for what is translated, else a public one.
fn leading_to(gateway: &Gateway, source: Ipv4Addr) -> Result<String, ControlError> {
    let subnet = gateway
        .snapshot
        .addresses
        .iter()
        .filter_map(|it| {
            let name = &gateway.snapshot.links.get(&it.ifindex)?.name;
            let net = Ipv4Net::new(it.address, it.prefix_len).ok()?;
            (gateway.ports.contains_key(name) && net.contains(&source)).then_some((net, name))
        })
        .max_by_key(|(net, _)| net.prefix_len());
    if let Some((_, name)) = subnet {
        return Ok(name.clone());
    }
    let config = &gateway.config;
    let inside = config.snat.iter().flat_map(|rule| &rule.source).any(|net| net.contains(&source))
        || config.one_to_one.iter().any(|mapping| mapping.private == source);
    let wanted = |role: Role| match role {
        Role::Both => true,
        Role::Private => inside,
        Role::Public => !inside,
    };
    let found = config.interfaces().into_iter().find(|(_, role)| wanted(*role));
    found.map(|(name, _)| name.to_owned()).ok_or_else(|| {
        ControlError::Refused("write --in with the interface that the packet comes by".to_owned())
    })
}
