//! All tables, as plain collections.
//!
//! Values that the engine changes in place live to the end of the process: as in the kernel, a
//! reference may outlive its entry.

use core::cell::{Cell, RefCell};
use std::{
    boxed::Box,
    collections::{BTreeMap, HashMap, HashSet},
    vec::Vec,
};

use bytemuck::Zeroable;

use crate::{
    agenda::Note,
    cache::Slot,
    counters::Counters,
    env::{Clock, InsertError, Tables},
    event::Event,
    flow::FlowKey,
    host::{Way, network::covers},
    maps::INTERFACE_SLOTS,
    net::{Ip4, Mac, Port},
    next_hops::Row,
    pair::{self, Pair},
    port::{BusyKey, PortSet, PortSetImage},
    record::FlowRecord,
    refusal::{self, Refusal, RefusedPorts},
    rules::{
        Address, Control, Forward, ForwardKey, HostAddress, Interface, Link, OneToOne, OneToOneKey,
        Pool, PublicAddress, SnatRule,
    },
    session::{
        Binding, BindingImage, BindingKey, Host, HostImage, HostKey, PermitKey, Session,
        SessionImage,
    },
    stage::{
        FragmentEntry, FragmentKey, Handoff,
        seek::{self, Search},
    },
};

type Shared<K, V> = RefCell<BTreeMap<K, &'static V>>;

/// A gateway's whole world. The configuration is plain fields; what the engine changes is behind
/// cells.
pub struct World {
    /// Ticks.
    pub now: Cell<u32>,
    /// State of the random numbers; equal seeds make equal runs.
    pub seed: Cell<u32>,
    pub control: Control,
    /// By slot.
    pub interfaces: BTreeMap<u32, Interface>,
    pub other_links: HashSet<u32>,
    pub host_addresses: HashMap<Ip4, HostAddress>,
    pub public_addresses: HashMap<Ip4, PublicAddress>,
    pub addresses: BTreeMap<u32, Address>,
    pub pools: BTreeMap<u32, Pool>,
    pub pool_members: BTreeMap<u32, u32>,
    /// Prefix, its length, rule.
    pub snat: Vec<(Ip4, u8, SnatRule)>,
    /// Rule, prefix, its length.
    pub exempt: Vec<(u32, Ip4, u8)>,
    pub forwards: HashMap<ForwardKey, Forward>,
    pub one_to_one: HashMap<OneToOneKey, OneToOne>,
    pub templates: BTreeMap<u32, PortSetImage>,
    pub ways: Vec<Way>,
    pub neighbours: HashMap<Ip4, Mac>,
    /// Address, port and protocol of sockets of the host.
    pub sockets: HashSet<(Ip4, Port, u8)>,
    /// Entries (not sessions) that the session table holds.
    pub session_capacity: usize,
    /// Destinations whose ports are tracked at a time.
    pub busy_capacity: usize,
    pub sessions: Shared<FlowKey, Session>,
    /// As long as `control` says.
    pub cache: Vec<Slot>,
    /// As many as there may be, or none: then nothing enters the cache.
    pub next_hops: Vec<Row>,
    /// As long as its mask says, or empty: then there is none.
    pub sieve: Vec<Cell<u64>>,
    /// What the sweep has to look at.
    pub agenda: RefCell<Vec<Note>>,
    pub bindings: Shared<BindingKey, Binding>,
    pub hosts: Shared<HostKey, Host>,
    pub busy: Shared<BusyKey, PortSet>,
    pub pairs: Vec<Pair>,
    pub refusals: Vec<Refusal>,
    pub refused_ports: Vec<RefusedPorts>,
    pub permits: RefCell<HashMap<PermitKey, u32>>,
    pub fragments: RefCell<HashMap<FragmentKey, FragmentEntry>>,
    pub events: RefCell<Vec<Event>>,
    /// Records that the flow log has room for.
    pub record_capacity: usize,
    pub records: RefCell<Vec<FlowRecord>>,
    pub totals: RefCell<Counters>,
    /// Number of route lookups.
    pub asked: Cell<u64>,
    pub(super) handoff: RefCell<Handoff>,
    draft: RefCell<SessionImage>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            now: Cell::new(1_000_000),
            seed: Cell::new(1),
            control: Control::zeroed(),
            interfaces: BTreeMap::new(),
            other_links: HashSet::new(),
            host_addresses: HashMap::new(),
            public_addresses: HashMap::new(),
            addresses: BTreeMap::new(),
            pools: BTreeMap::new(),
            pool_members: BTreeMap::new(),
            snat: Vec::new(),
            exempt: Vec::new(),
            forwards: HashMap::new(),
            one_to_one: HashMap::new(),
            templates: BTreeMap::new(),
            ways: Vec::new(),
            neighbours: HashMap::new(),
            sockets: HashSet::new(),
            session_capacity: 1 << 20,
            busy_capacity: 1024,
            sessions: RefCell::default(),
            cache: Vec::new(),
            next_hops: Vec::new(),
            sieve: Vec::new(),
            agenda: RefCell::default(),
            bindings: RefCell::default(),
            hosts: RefCell::default(),
            busy: RefCell::default(),
            pairs: (0..pair::PLACES).map(|_| Pair::default()).collect(),
            refusals: (0..refusal::PLACES).map(|_| Refusal::default()).collect(),
            refused_ports: (0..16).map(|_| RefusedPorts::default()).collect(),
            permits: RefCell::default(),
            fragments: RefCell::default(),
            events: RefCell::default(),
            record_capacity: usize::MAX,
            records: RefCell::default(),
            totals: RefCell::new(Counters::zeroed()),
            asked: Cell::new(0),
            handoff: RefCell::default(),
            draft: RefCell::new(SessionImage::zeroed()),
        }
    }
}

fn insert<K: Ord, V>(
    table: &Shared<K, V>,
    capacity: usize,
    key: K,
    value: V,
) -> Result<(), InsertError> {
    let mut table = table.borrow_mut();
    if table.contains_key(&key) {
        return Err(InsertError::Exists);
    }
    if table.len() >= capacity {
        return Err(InsertError::Full);
    }
    table.insert(key, Box::leak(Box::new(value)));
    Ok(())
}

fn find<K: Ord, V>(table: &Shared<K, V>, key: &K) -> Option<&'static V> {
    table.borrow().get(key).copied()
}

impl Tables for World {
    fn control(&self) -> Option<&Control> {
        Some(&self.control)
    }

    fn handoff<R>(&self, with: impl FnOnce(&mut Handoff) -> R) -> Option<R> {
        Some(with(&mut self.handoff.borrow_mut()))
    }

    fn counters(&self, with: impl FnOnce(&mut Counters)) {
        with(&mut self.totals.borrow_mut());
    }

    fn interface(&self, ifindex: u32) -> Option<&Interface> {
        self.interfaces
            .get(&(ifindex & (INTERFACE_SLOTS - 1)))
            .filter(|interface| interface.ifindex == ifindex)
    }

    fn interface_in(&self, slot: u16) -> Option<&Interface> {
        self.interfaces.get(&u32::from(slot))
    }

    fn link(&self, ifindex: u32) -> Option<Link> {
        self.interface(ifindex).map(Interface::link)
    }

    fn other_link(&self, ifindex: u32) -> bool {
        self.other_links.contains(&ifindex)
    }

    fn host_address(&self, address: Ip4) -> Option<HostAddress> {
        self.host_addresses.get(&address).copied()
    }

    fn public_address(&self, address: Ip4) -> Option<PublicAddress> {
        self.public_addresses.get(&address).copied()
    }

    fn address(&self, slot: u32) -> Option<&Address> {
        self.addresses.get(&slot)
    }

    fn pool(&self, pool: u32) -> Option<&Pool> {
        self.pools.get(&pool)
    }

    fn pool_member(&self, index: u32) -> Option<u32> {
        self.pool_members.get(&index).copied()
    }

    fn snat_rule(&self, source: Ip4) -> Option<SnatRule> {
        let rules = self.snat.iter().filter(|(net, prefix, _)| covers(*net, *prefix, source));
        rules.max_by_key(|(_, prefix, _)| *prefix).map(|(_, _, rule)| *rule)
    }

    fn is_exempt(&self, rule: u32, destination: Ip4) -> bool {
        self.exempt
            .iter()
            .any(|(of, net, prefix)| *of == rule && covers(*net, *prefix, destination))
    }

    fn forward(&self, key: &ForwardKey) -> Option<Forward> {
        self.forwards.get(key).copied()
    }

    fn one_to_one(&self, key: &OneToOneKey) -> Option<OneToOne> {
        self.one_to_one.get(key).copied()
    }

    fn draft<R>(&self, with: impl FnOnce(&mut SessionImage) -> R) -> Option<R> {
        Some(with(&mut self.draft.borrow_mut()))
    }

    fn session(&self, key: &FlowKey) -> Option<&Session> {
        find(&self.sessions, key)
    }

    fn session_insert(&self, key: &FlowKey, image: &SessionImage) -> Result<(), InsertError> {
        insert(&self.sessions, self.session_capacity, *key, session(image))
    }

    fn note(&self, note: Note) {
        self.agenda.borrow_mut().push(note);
    }

    fn session_remove(&self, key: &FlowKey) -> bool {
        self.sessions.borrow_mut().remove(key).is_some()
    }

    fn slot(&self, index: u32) -> Option<&Slot> {
        self.cache.get(index as usize)
    }

    fn next_hop(&self, number: u16) -> Option<&Row> {
        self.next_hops.get(usize::from(number))
    }

    fn sieve(&self, word: u32) -> Option<&Cell<u64>> {
        self.sieve.get(word as usize)
    }

    fn binding(&self, key: &BindingKey) -> Option<&Binding> {
        find(&self.bindings, key)
    }

    fn binding_insert(&self, key: &BindingKey, image: &BindingImage) -> Result<(), InsertError> {
        let binding = Binding {
            refs: Cell::new(image.refs),
            released: Cell::new(image.released),
            id: image.id,
            address: image.address,
            port: image.port,
            slot: image.slot,
            pool: image.pool,
            zero: image.zero,
        };
        insert(&self.bindings, self.session_capacity, *key, binding)
    }

    fn binding_remove(&self, key: &BindingKey) {
        self.bindings.borrow_mut().remove(key);
    }

    fn permit(&self, key: &PermitKey) -> Option<u32> {
        self.permits.borrow().get(key).copied()
    }

    fn permit_insert(&self, key: &PermitKey, binding: u32) {
        self.permits.borrow_mut().insert(*key, binding);
    }

    fn host_or_new(&self, key: &HostKey) -> Option<&Host> {
        let _there = insert(&self.hosts, usize::MAX, *key, host(&HostImage::zeroed()));
        self.host(key)
    }

    fn host(&self, key: &HostKey) -> Option<&Host> {
        find(&self.hosts, key)
    }

    fn busy(&self, key: &BusyKey) -> Option<&PortSet> {
        find(&self.busy, key)
    }

    fn busy_insert(&self, key: &BusyKey, template: u32) {
        if let Some(row) = self.templates.get(&template) {
            let _full = insert(&self.busy, self.busy_capacity, *key, port_set(row));
        }
    }

    fn port_template(&self, row: u32) -> Option<&PortSetImage> {
        self.templates.get(&row)
    }

    fn seek(&self, search: &mut Search<'_>) {
        for _ in 0..seek::ROUNDS {
            if search.round(self) {
                break;
            }
        }
    }

    fn pair(&self, place: u32) -> Option<&Pair> {
        self.pairs.get(place as usize)
    }

    fn refusal(&self, place: u32) -> Option<&Refusal> {
        self.refusals.get(place as usize)
    }

    fn refused_ports(&self, slot: u32) -> Option<&RefusedPorts> {
        self.refused_ports.get(slot as usize)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentEntry> {
        self.fragments.borrow().get(key).copied()
    }

    fn fragment_insert(&self, key: &FragmentKey, value: &FragmentEntry) {
        self.fragments.borrow_mut().insert(*key, *value);
    }
}

impl Clock for World {
    fn now(&self) -> u32 {
        self.now.get()
    }

    /// xorshift (Marsaglia 2003).
    fn random(&self) -> u32 {
        let mut x = self.seed.get() | 1;
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        self.seed.set(x);
        x
    }
}

fn session(image: &SessionImage) -> Session {
    Session {
        word: Cell::new(image.word),
        packets: Cell::new(image.packets),
        bytes: Cell::new(image.bytes),
        next_hop: Cell::new(image.next_hop),
        epoch: Cell::new(image.epoch),
        created: image.created,
        tuple: image.tuple,
        ip_delta: image.ip_delta,
        l4_delta: image.l4_delta,
        path: Cell::new(image.path),
        address: image.address,
        flags: image.flags,
        pool: image.pool,
    }
}

fn host(image: &HostImage) -> Host {
    Host {
        sessions: image.sessions.map(Cell::new),
        opened: Cell::new(image.opened),
        window: Cell::new(image.window),
        address: Cell::new(image.address),
    }
}

fn port_set(image: &PortSetImage) -> PortSet {
    PortSet {
        looked: Cell::new(image.looked),
        top: Cell::new(image.top),
        summary: image.summary.map(Cell::new),
        words: image.words.map(|block| block.map(Cell::new)),
    }
}
