//! Whether a session is one that a configuration would still make.

use nat_common::{
    flow::FlowKey,
    session::{SessionImage, flags, protocol_index},
};

use super::contents::Contents;

/// `key` and `session` are of an outbound entry. The dataplane judges the same when a packet
/// comes; this is for those that are idle.
#[must_use]
pub fn is_allowed(contents: &Contents, key: &FlowKey, session: &SessionImage) -> bool {
    let (inside, outside) = (key.tuple, session.tuple);
    let Some(address) = contents.addresses.get(&u32::from(session.address)) else { return false };
    if address.address != outside.src {
        return false;
    }
    if session.flags & flags::FORWARD != 0 {
        let forward = contents.forwards.get(&(outside.src, key.protocol, outside.sport));
        return forward.is_some_and(|to| to.address == inside.src && to.port == inside.sport);
    }
    let Some(rule) = contents.snat_rule(inside.src) else { return false };
    let ports = contents.ports(address, protocol_index(key.protocol));
    rule.pool == u32::from(session.pool)
        && address.pool == rule.pool
        && !contents.is_exempt(rule.rule, inside.dst)
        && ports.iter().any(|range| range.contains(outside.sport.get()))
}
