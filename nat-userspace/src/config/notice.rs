//! What is right but worth saying about a configuration.

use super::{
    host::HostView,
    model::{Config, Filtering, Mapping, Pool},
};

/// One sentence each, without a place: `natgw check` prints them, `natgw run` logs them.
#[must_use]
pub fn notices(config: &Config, host: &HostView) -> Vec<String> {
    let mut notices: Vec<String> =
        config.pools.iter().flat_map(|pool| pool_notices(pool, config, host)).collect();
    if config.snat.is_empty() && config.one_to_one.is_empty() {
        notices.push(
            "there is no [[snat]] rule: no private host is translated on its way out".to_owned(),
        );
    }
    for (index, rule) in config.snat.iter().enumerate() {
        for source in &rule.source {
            let earlier = config.snat[..index].iter().flat_map(|rule| &rule.source);
            for wider in earlier.filter(|wider| wider.contains(source)) {
                notices.push(format!(
                    "snat source {source} never matches: {wider} of an earlier rule covers it"
                ));
            }
        }
    }
    notices
}

fn pool_notices(pool: &Pool, config: &Config, host: &HostView) -> Vec<String> {
    let mut notices = Vec::new();
    let name = &pool.name;
    for entry in pool.addresses.iter().filter(|entry| entry.host_owned) {
        let Some(local) = host.local_ports.filter(|local| local.overlaps(pool.ports)) else {
            continue;
        };
        let address = entry.address;
        notices.push(if pool.ports_explicit {
            format!(
                "pool \"{name}\": {address} belongs to this host, and ports = \"{}\" shares ports \
                 {local} (net.ipv4.ip_local_port_range) with its own connections",
                pool.ports
            )
        } else {
            let ports: Vec<String> = entry.ports.iter().map(ToString::to_string).collect();
            format!(
                "pool \"{name}\": {address} belongs to this host, so ports {local} \
                 (net.ipv4.ip_local_port_range) are left to it and sessions get {}; write ports = \
                 \"{}\" to use all",
                ports.join(" and "),
                pool.ports
            )
        });
    }
    if pool.mapping == Mapping::AddressAndPortDependent
        && pool.filtering != Filtering::AddressAndPortDependent
    {
        notices.push(format!(
            "pool \"{name}\": filtering \"{}\" admits nobody new under mapping \"{}\", where each \
             remote endpoint has a mapping of its own",
            pool.filtering, pool.mapping
        ));
    }
    let used = config.snat.iter().any(|rule| rule.pool == *name)
        || config.forwards.iter().any(|forward| {
            pool.addresses.iter().any(|entry| entry.address == forward.public.address)
        });
    if !used {
        notices.push(format!("pool \"{name}\" is used by no [[snat]] and no [[forward]]"));
    }
    notices
}
