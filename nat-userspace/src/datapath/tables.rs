//! The maps by their types.

use std::{borrow::Borrow as _, collections::BTreeMap};

use aya::{
    Ebpf, Pod,
    maps::{
        Array, DevMap, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, RingBuf,
        lpm_trie::Key,
    },
};
use nat_common::{
    counters::Counters,
    flow::FlowKey,
    maps,
    net::Ip4,
    port::{BusyKey, PortSetImage},
    refusal::RefusedPortsImage,
    rules::{
        Address, Control, ExemptKey, Forward, ForwardKey, HostAddress, Interface, Link, OneToOne,
        OneToOneKey, Pool, PublicAddress, SnatRule,
    },
    session::SessionImage,
};

use super::{error::DatapathError, in_place::InPlace};

/// A type of the maps, for aya, which has a marker of its own.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Kern<T>(pub(crate) T);

// SAFETY: every bit pattern is a value and there is no padding; bytemuck has proven it.
unsafe impl<T: bytemuck::Pod> Pod for Kern<T> {}

const LINKS: usize = maps::INTERFACE_SLOTS as usize;

type ArrayOf<T> = Array<MapData, Kern<T>>;
type HashOf<K, V> = HashMap<MapData, Kern<K>, Kern<V>>;
type TrieOf<K, V> = LpmTrie<MapData, Kern<K>, Kern<V>>;

pub(crate) struct Tables {
    pub(crate) control: ArrayOf<Control>,
    pub(crate) counters: PerCpuArray<MapData, Kern<Counters>>,
    pub(crate) sessions: HashOf<FlowKey, SessionImage>,
    pub(crate) interfaces: ArrayOf<Interface>,
    pub(crate) links: InPlace<Link, LINKS>,
    pub(crate) egress: DevMap<MapData>,
    pub(crate) other_links: HashOf<u32, u32>,
    pub(crate) host_addresses: HashOf<Ip4, HostAddress>,
    pub(crate) public_addresses: HashOf<Ip4, PublicAddress>,
    pub(crate) addresses: ArrayOf<Address>,
    pub(crate) pools: ArrayOf<Pool>,
    pub(crate) pool_members: ArrayOf<u32>,
    pub(crate) snat: TrieOf<Ip4, SnatRule>,
    pub(crate) exempt: TrieOf<ExemptKey, u32>,
    pub(crate) forwards: HashOf<ForwardKey, Forward>,
    pub(crate) one_to_one: HashOf<OneToOneKey, OneToOne>,
    /// Only its keys matter here: the value belongs to the dataplane.
    pub(crate) busy_ports: HashOf<BusyKey, PortSetImage>,
    pub(crate) port_templates: ArrayOf<PortSetImage>,
    /// By slot of the address table: tcp, udp, icmp.
    pub(crate) refused_ports: ArrayOf<RefusedPortsImage>,
    /// Taken once, by whoever listens.
    pub(crate) events: Option<RingBuf<MapData>>,
    /// As above, for the flow log.
    pub(crate) records: Option<RingBuf<MapData>>,
}

impl Tables {
    pub(super) fn take(bpf: &mut Ebpf) -> Result<Self, DatapathError> {
        Ok(Self {
            control: take(bpf, maps::CONTROL)?,
            counters: take(bpf, maps::COUNTERS)?,
            sessions: take(bpf, maps::SESSIONS)?,
            interfaces: take(bpf, maps::INTERFACES)?,
            links: take(bpf, maps::LINKS)?,
            egress: take(bpf, maps::EGRESS)?,
            other_links: take(bpf, maps::OTHER_LINKS)?,
            host_addresses: take(bpf, maps::HOST_ADDRESSES)?,
            public_addresses: take(bpf, maps::PUBLIC_ADDRESSES)?,
            addresses: take(bpf, maps::ADDRESSES)?,
            pools: take(bpf, maps::POOLS)?,
            pool_members: take(bpf, maps::POOL_MEMBERS)?,
            snat: take(bpf, maps::SNAT)?,
            exempt: take(bpf, maps::EXEMPT)?,
            forwards: take(bpf, maps::FORWARDS)?,
            one_to_one: take(bpf, maps::ONE_TO_ONE)?,
            busy_ports: take(bpf, maps::BUSY_PORTS)?,
            port_templates: take(bpf, maps::PORT_TEMPLATES)?,
            refused_ports: take(bpf, maps::REFUSED_PORTS)?,
            events: Some(take(bpf, maps::EVENTS)?),
            records: Some(take(bpf, maps::RECORDS)?),
        })
    }
}

pub(super) fn take<M>(bpf: &mut Ebpf, name: &str) -> Result<M, DatapathError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = bpf
        .take_map(name)
        .ok_or_else(|| DatapathError::Missing { what: "map", name: name.to_owned() })?;
    M::try_from(map).map_err(|error| DatapathError::bpf(format!("use map {name}"), error))
}

/// Every entry of a hash map, by key.
pub(crate) fn read_hash<K, V>(map: &HashOf<K, V>) -> Result<BTreeMap<K, V>, MapError>
where
    K: bytemuck::Pod + Ord,
    V: bytemuck::Pod,
{
    map.iter().map(|entry| entry.map(|(key, value)| (key.0, value.0))).collect()
}

pub(crate) fn trie_key<K: bytemuck::Pod>(length: u32, data: K) -> Key<Kern<K>> {
    Key::new(length, Kern(data))
}

/// Every element of an array that `used` holds for, by index.
pub(crate) fn read_array<T: bytemuck::Pod>(
    map: &ArrayOf<T>,
    used: impl Fn(&T) -> bool,
) -> Result<BTreeMap<u32, T>, MapError> {
    let mut found = BTreeMap::new();
    for (index, element) in (0_u32..).zip(map.iter()) {
        let Kern(element) = *element?.borrow();
        if used(&element) {
            found.insert(index, element);
        }
    }
    Ok(found)
}
