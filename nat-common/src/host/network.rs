//! Scripted routing, neighbours and sockets.

use bytemuck::Zeroable as _;

use crate::{
    env::{Network, Route, RouteQuery},
    event::Event,
    flow::FlowKey,
    host::World,
    net::Ip4,
    record::FlowRecord,
    rules::host_address,
};

/// A route: the longest prefix that covers the destination decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub destination: Ip4,
    /// Bits.
    pub prefix: u8,
    pub ifindex: u32,
    /// The destination itself where there is none.
    pub gateway: Option<Ip4>,
    /// Bytes of IP packet.
    pub mtu: u16,
}

impl Way {
    pub(super) fn covers(&self, address: Ip4) -> bool {
        covers(self.destination, self.prefix, address)
    }
}

pub(super) fn covers(network: Ip4, prefix: u8, address: Ip4) -> bool {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    (network.to_u32() ^ address.to_u32()) & mask == 0
}

impl Network for World {
    /// In the order of the kernel's `bpf_fib_lookup`: size before neighbour.
    fn route(&self, query: &RouteQuery) -> Route {
        self.asked.set(self.asked.get() + 1);
        if self
            .host_addresses
            .get(&query.dst)
            .is_some_and(|held| held.flags & (host_address::OWNED | host_address::BROADCAST) != 0)
        {
            return Route::Local;
        }
        let ways = self.ways.iter().filter(|way| way.covers(query.dst));
        let Some(way) = ways.max_by_key(|way| way.prefix) else { return Route::Local };
        if query.length > way.mtu {
            return Route::TooBig { mtu: way.mtu };
        }
        let gateway = way.gateway.unwrap_or(query.dst);
        match self.neighbours.get(&gateway) {
            Some(mac) => Route::Hop { ifindex: way.ifindex, mac: *mac, mtu: way.mtu },
            None => Route::NoNeighbour { ifindex: way.ifindex, gateway },
        }
    }

    fn socket(&self, key: &FlowKey) -> bool {
        self.sockets.contains(&(key.tuple.dst, key.tuple.dport, key.protocol))
    }

    fn event(&self, event: &Event) {
        self.events.borrow_mut().push(*event);
    }

    fn record(&self, fill: impl FnOnce(&mut FlowRecord)) -> u64 {
        let mut records = self.records.borrow_mut();
        if records.len() >= self.record_capacity {
            return 1;
        }
        let mut record = FlowRecord::zeroed();
        fill(&mut record);
        records.push(record);
        0
    }
}
