//! The engine on the host with the configuration that is in the kernel's maps, so that both can
//! be given the same frames.

use anyhow::Result;
use nat_common::{
    flow::{FlowKey, Tuple},
    host::{Way, World},
    maps::INTERFACE_SLOTS,
    net::Ip4,
    port::PortSetImage,
    rules::{ForwardKey, HostAddress, Pool, host_address},
    session::SessionImage,
};

use crate::kernel::{GATEWAY, HOST, Kernel, OTHER_HOST, OWNED, ROUTER, SERVER, mac_of};

/// # Errors
/// None is expected.
pub fn mirror(kernel: &Kernel) -> Result<World> {
    let contents = kernel.datapath.contents()?;
    let mut world = World::default();
    world.control = kernel.datapath.control()?;
    world.now.set(kernel.datapath.now()?);
    for interface in kernel.datapath.interfaces()? {
        world.interfaces.insert(interface.ifindex % INTERFACE_SLOTS, interface);
    }
    for (address, ifindex) in [(GATEWAY, kernel.inside), (OWNED, kernel.outside)] {
        let flags = host_address::OWNED;
        world.host_addresses.insert(address, HostAddress { ifindex, flags });
    }
    for (row, ports) in &contents.templates {
        let ranges: Vec<_> = ports.iter().map(|range| (range.first, range.last)).collect();
        world.templates.insert(*row, PortSetImage::template(&ranges, |_| false));
    }
    for (index, held) in &contents.pools {
        world.add_pool(*index, Pool { members: 0, ..held.pool }, &held.members);
    }
    world.snat.extend(
        contents.snat.iter().map(|(net, rule)| (net.network().into(), net.prefix_len(), *rule)),
    );
    for (rule, prefixes) in &contents.exempt {
        let prefixes = prefixes.iter();
        world.exempt.extend(prefixes.map(|net| (*rule, net.network().into(), net.prefix_len())));
    }
    let forwards = contents.forwards.into_iter();
    world.forwards.extend(forwards.map(|((address, protocol, port), forward)| {
        (ForwardKey { address, port, protocol, zero: 0 }, forward)
    }));
    world.addresses = contents.addresses;
    world.public_addresses.extend(contents.public);
    world.one_to_one.extend(contents.one_to_one);
    ways(&mut world, kernel);
    Ok(world)
}

/// As [`crate::kernel`] wires it.
fn ways(world: &mut World, kernel: &Kernel) {
    let direct = |destination, prefix, ifindex| Way {
        destination,
        prefix,
        ifindex,
        gateway: None,
        mtu: 1500,
    };
    world.ways = vec![
        direct(Ip4::new([10, 0, 0, 0]), 16, kernel.inside),
        direct(Ip4::new([203, 0, 113, 0]), 24, kernel.outside),
        Way { gateway: Some(HOST), ..direct(Ip4::new([172, 16, 0, 0]), 16, kernel.inside) },
        Way { gateway: Some(ROUTER), ..direct(Ip4::UNSPECIFIED, 0, kernel.outside) },
    ];
    for neighbour in [HOST, OTHER_HOST, SERVER, ROUTER] {
        world.neighbours.insert(neighbour, mac_of(neighbour));
    }
}

/// What of an entry of the session table does not depend on time and chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: FlowKey,
    pub tuple: Tuple,
    pub ip_delta: u16,
    pub l4_delta: u16,
    pub state: u8,
    pub flags: u8,
    pub address: u16,
    pub pool: u8,
    pub packets: u64,
    pub bytes: u64,
}

#[must_use]
pub fn entry_of_kernel(key: FlowKey, image: &SessionImage) -> Entry {
    Entry {
        key,
        tuple: image.tuple,
        ip_delta: image.ip_delta,
        l4_delta: image.l4_delta,
        state: image.word().state_bits(),
        flags: image.flags,
        address: image.address,
        pool: image.pool,
        packets: image.packets,
        bytes: image.bytes,
    }
}

#[must_use]
pub fn entries_of_host(world: &World) -> Vec<Entry> {
    let sessions = world.sessions.borrow();
    let entry = |(key, session): (&FlowKey, &&nat_common::session::Session)| Entry {
        key: *key,
        tuple: session.tuple,
        ip_delta: session.ip_delta,
        l4_delta: session.l4_delta,
        state: session.word().state_bits(),
        flags: session.flags,
        address: session.address,
        pool: session.pool,
        packets: session.packets.get(),
        bytes: session.bytes.get(),
    };
    sessions.iter().map(entry).collect()
}
