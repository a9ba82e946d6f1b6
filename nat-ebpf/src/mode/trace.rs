//! `natgw trace`: the same stages over the same maps, for one packet that is not sent.
//!
//! Nothing is changed. An entry that a stage would write to is copied into a draft first, by key,
//! and every later look at it finds the draft, so that what follows within the packet is as if it
//! had been written. Every question and its answer are noted.

#[path = "trace/network.rs"]
mod network;

use core::{cell::Cell, ffi::c_void};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::generated::bpf_loop,
    macros::map,
    maps::{Array, HashMap},
};
use nat_common::{
    cache::{self, Slot},
    counters::Counters,
    env::{Atomics, Clock, InsertError, Tables},
    flow::FlowKey,
    maps::INTERFACE_SLOTS,
    net::{Ip4, Port},
    next_hops::Row,
    pair::Pair,
    port::{BusyKey, PortSet, PortSetImage},
    refusal::{Refusal, RefusedPorts},
    rules::{
        Address, Control, Forward, ForwardKey, HostAddress, Interface, Link, OneToOne, OneToOneKey,
        Pool, PublicAddress, SnatRule,
    },
    session::{
        Binding, BindingImage, BindingKey, Host, HostImage, HostKey, PermitKey, Session,
        SessionImage, Word,
    },
    stage::{
        FragmentEntry, FragmentKey, Handoff, Outcome,
        seek::{self, Search},
    },
    trace::{Log, Note, inserted, kind},
    verdict::Verdict,
};

use crate::{
    frame::Frame,
    maps::{BINDINGS, BUSY_PORTS, HOSTS, PORT_TEMPLATES, SESSIONS},
    tables::{Kernel, shared},
};

/// More entries of a kind than one packet can touch.
const DRAFTS: u32 = 64;
/// A busy destination for each round of the search.
const BUSY_DRAFTS: u32 = 32;

#[map(name = "trace_log")]
static LOG: Array<Log> = Array::with_max_entries(1, 0);
#[map(name = "draft_sessions")]
static SESSION_DRAFTS: HashMap<FlowKey, SessionImage> = HashMap::with_max_entries(DRAFTS, 0);
#[map(name = "draft_bindings")]
static BINDING_DRAFTS: HashMap<BindingKey, BindingImage> = HashMap::with_max_entries(DRAFTS, 0);
#[map(name = "draft_hosts")]
static HOST_DRAFTS: HashMap<HostKey, HostImage> = HashMap::with_max_entries(DRAFTS, 0);
#[map(name = "draft_busy")]
static BUSY_PORTS_DRAFTS: HashMap<BusyKey, PortSetImage> =
    HashMap::with_max_entries(BUSY_DRAFTS, 0);
#[map(name = "draft_fragments")]
static FRAGMENT_DRAFTS: HashMap<FragmentKey, FragmentEntry> = HashMap::with_max_entries(DRAFTS, 0);

/// Whether packets count.
pub(crate) const COUNTS: bool = false;

/// A trace is of the general way, which comes to the same as the one of plain packets.
pub(crate) const PLAIN: bool = false;

#[inline(always)]
pub(crate) fn received(_frame: &Frame) {}

#[inline(always)]
pub(crate) fn goes_on(stage: u32) {
    if let Some(note) = note(kind::STAGE) {
        note.number = stage;
    }
}

#[inline(always)]
pub(crate) fn ended(frame: &Frame, outcome: &Outcome, verdict: Verdict) {
    if let Some(log) = LOG.get_ptr_mut(0) {
        // SAFETY: the daemon runs one packet at a time.
        unsafe { (*log).finish(outcome, verdict, frame.ingress & (INTERFACE_SLOTS - 1)) };
    }
}

/// The end of the program; what it returns.
#[inline(always)]
pub(crate) fn leave(_frame: &Frame, action: u32) -> u32 {
    action
}

/// A new note, all zero but its kind, to be filled in place: what is known of the packet is read
/// only then, for the stages leave no room on the stack.
#[inline(always)]
fn note(kind: u32) -> Option<&'static mut Note> {
    let log = LOG.get_ptr_mut(0)?;
    // SAFETY: the daemon runs one packet at a time, and no two references to a note are held.
    let log = unsafe { &mut *log };
    let at = log.count;
    let note = log.notes.get_mut(at as usize)?;
    log.count = at + 1;
    note.kind = kind;
    Some(note)
}

/// The draft of an entry, made from the real one if there is none yet.
macro_rules! drafted {
    ($real:ident / $drafts:ident [$key:expr] as $image:ty => $type:ty) => {{
        if let Some(real) = $real.get_ptr($key) {
            // SAFETY: a live element, copied by the kernel; fields that are torn are those of a
            // packet that is on its way at this moment.
            let _there = $drafts.insert($key, unsafe { &*real }, NOEXIST);
        }
        shared!($drafts[$key] as $image => $type)
    }};
}

/// Gives a draft the time of the flow cache. On its own, for its caller has no register to spare
/// (Linux 6.1 loses the bounds of what is kept on the stack).
#[inline(never)]
fn date(key: &FlowKey, draft: &Session) {
    if let Some(control) = Kernel::OUTSIDE.control() {
        cache::date(&Kernel::OUTSIDE, control, key, draft);
    }
}

const NOEXIST: u64 = BPF_NOEXIST as u64;
const ANY: u64 = BPF_ANY as u64;

/// The surroundings of the engine without the right to change anything.
pub(crate) struct Env(Kernel);

impl Env {
    #[inline(always)]
    pub(crate) const fn new(ctx: *mut core::ffi::c_void) -> Self {
        Self(Kernel::new(ctx))
    }
}

/// The cells that these are given belong to drafts.
impl Atomics for Env {
    #[inline(always)]
    fn compare_exchange(cell: &Cell<u64>, old: u64, new: u64) -> bool {
        Kernel::compare_exchange(cell, old, new)
    }

    #[inline(always)]
    fn or(cell: &Cell<u64>, bits: u64) -> u64 {
        Kernel::or(cell, bits)
    }

    #[inline(always)]
    fn and(cell: &Cell<u64>, bits: u64) -> u64 {
        Kernel::and(cell, bits)
    }

    #[inline(always)]
    fn add(cell: &Cell<u64>, value: u64) {
        Kernel::add(cell, value);
    }

    #[inline(always)]
    fn fetch_add(cell: &Cell<u64>, value: u64) -> u64 {
        Kernel::fetch_add(cell, value)
    }
}

impl Clock for Env {
    #[inline(always)]
    fn now(&self) -> u32 {
        self.0.now()
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        self.0.random()
    }
}

impl Tables for Env {
    #[inline(always)]
    fn control(&self) -> Option<&Control> {
        self.0.control()
    }

    #[inline(always)]
    fn handoff<R>(&self, with: impl FnOnce(&mut Handoff) -> R) -> Option<R> {
        self.0.handoff(with)
    }

    #[inline(always)]
    fn counters(&self, _with: impl FnOnce(&mut Counters)) {}

    #[inline(always)]
    fn interface(&self, ifindex: u32) -> Option<&Interface> {
        self.0.interface(ifindex)
    }

    #[inline(always)]
    fn interface_in(&self, slot: u16) -> Option<&Interface> {
        self.0.interface_in(slot)
    }

    /// No packet has a first look here.
    #[inline(always)]
    fn link(&self, _ifindex: u32) -> Option<Link> {
        None
    }

    #[inline(always)]
    fn other_link(&self, ifindex: u32) -> bool {
        self.0.other_link(ifindex)
    }

    #[inline(always)]
    fn host_address(&self, address: Ip4) -> Option<HostAddress> {
        let found = self.0.host_address(address);
        if let Some(note) = note(kind::HOST_ADDRESS) {
            note.asked.dst = address;
            if let Some(HostAddress { flags, .. }) = found {
                note.answer = flags;
            }
        }
        found
    }

    #[inline(always)]
    fn public_address(&self, address: Ip4) -> Option<PublicAddress> {
        let found = self.0.public_address(address);
        if let Some(note) = note(kind::PUBLIC) {
            note.answer = u32::from(found.is_some());
            note.asked.dst = address;
        }
        found
    }

    #[inline(always)]
    fn address(&self, slot: u32) -> Option<&Address> {
        self.0.address(slot)
    }

    #[inline(always)]
    fn pool(&self, pool: u32) -> Option<&Pool> {
        self.0.pool(pool)
    }

    #[inline(always)]
    fn pool_member(&self, index: u32) -> Option<u32> {
        self.0.pool_member(index)
    }

    #[inline(always)]
    fn snat_rule(&self, address: Ip4) -> Option<SnatRule> {
        let found = self.0.snat_rule(address);
        if let Some(note) = note(kind::RULE) {
            note.asked.src = address;
            if let Some(SnatRule { rule, pool }) = found {
                note.answer = 1;
                note.number = rule;
                note.more = pool;
            }
        }
        found
    }

    #[inline(always)]
    fn is_exempt(&self, rule: u32, address: Ip4) -> bool {
        let exempt = self.0.is_exempt(rule, address);
        if let Some(note) = note(kind::EXEMPT) {
            note.answer = u32::from(exempt);
            note.asked.dst = address;
            note.number = rule;
        }
        exempt
    }

    #[inline(always)]
    fn forward(&self, key: &ForwardKey) -> Option<Forward> {
        let found = self.0.forward(key);
        if let Some(note) = note(kind::FORWARD) {
            note.asked.dst = key.address;
            note.asked.dport = key.port;
            if let Some(Forward { address, port, .. }) = found {
                note.answer = 1;
                note.found.dst = address;
                note.found.dport = port;
            }
        }
        found
    }

    #[inline(always)]
    fn one_to_one(&self, key: &OneToOneKey) -> Option<OneToOne> {
        let found = self.0.one_to_one(key);
        if let Some(note) = note(kind::ONE_TO_ONE) {
            note.asked.src = key.address;
            note.number = key.inbound;
            if let Some(OneToOne { address, .. }) = found {
                note.answer = 1;
                note.found.src = address;
            }
        }
        found
    }

    #[inline(always)]
    fn draft<R>(&self, with: impl FnOnce(&mut SessionImage) -> R) -> Option<R> {
        self.0.draft(with)
    }

    #[inline(always)]
    fn session(&self, key: &FlowKey) -> Option<&Session> {
        let fresh = match SESSIONS.get_ptr(key) {
            // SAFETY: as `drafted`.
            Some(real) => SESSION_DRAFTS.insert(key, unsafe { &*real }, NOEXIST).is_ok(),
            None => false,
        };
        let found = shared!(SESSION_DRAFTS[key] as SessionImage => Session);
        // What the cache has not told its session yet, the draft has to know from the beginning.
        if fresh && let Some(draft) = found {
            date(key, draft);
        }
        // Removed within this packet: a word of 0 is never stored.
        let found = found.filter(|session| session.word.get() != 0);
        if let Some(note) = note(kind::SESSION) {
            note.asked = key.tuple;
            if let Some(session) = found {
                note.answer = 1;
                note.found = session.tuple;
                note.number = u32::from(session.word().state_bits());
                note.more = u32::from(session.flags);
            }
        }
        found
    }

    #[inline(always)]
    fn session_insert(&self, key: &FlowKey, value: &SessionImage) -> Result<(), InsertError> {
        let there = match shared!(SESSION_DRAFTS[key] as SessionImage => Session) {
            Some(draft) => draft.word.get() != 0,
            None => SESSIONS.get_ptr(key).is_some(),
        };
        let (answer, result) = if there {
            (inserted::EXISTS, Err(InsertError::Exists))
        } else if LOG.get(0).is_none_or(|log| log.full != 0)
            || SESSION_DRAFTS.insert(key, value, ANY).is_err()
        {
            (inserted::FULL, Err(InsertError::Full))
        } else {
            (inserted::DONE, Ok(()))
        };
        if let Some(note) = note(kind::SESSION_NEW) {
            note.answer = answer;
            note.asked = key.tuple;
            note.found = value.tuple;
            note.more = u32::from(value.flags);
        }
        result
    }

    #[inline(always)]
    fn session_remove(&self, key: &FlowKey) -> bool {
        // Whoever removes an entry has looked at it before.
        if let Some(draft) = shared!(SESSION_DRAFTS[key] as SessionImage => Session) {
            draft.word.set(0);
            if let Some(note) = note(kind::SESSION_END) {
                note.asked = key.tuple;
                note.found = draft.tuple;
                note.more = u32::from(draft.flags);
            }
        }
        true
    }

    /// A trace looks at the session itself, whose draft has what the cache knows of it.
    #[inline(always)]
    fn slot(&self, _index: u32) -> Option<&Slot> {
        None
    }

    /// So no next hop of it is asked for.
    #[inline(always)]
    fn next_hop(&self, _number: u16) -> Option<&Row> {
        None
    }

    /// Nor does it count.
    #[inline(always)]
    fn sieve(&self, _word: u32) -> Option<&Cell<u64>> {
        None
    }

    #[inline(always)]
    fn binding(&self, key: &BindingKey) -> Option<&Binding> {
        let found = drafted!(BINDINGS / BINDING_DRAFTS[key] as BindingImage => Binding);
        // Removed within this packet: an id is never 0.
        let found = found.filter(|binding| binding.id != 0);
        if let Some(note) = note(kind::BINDING) {
            note.asked.src = key.address;
            note.asked.sport = key.port;
            note.number = u32::from(key.inbound);
            if let Some(binding) = found {
                note.answer = 1;
                note.found.src = binding.address;
                note.found.sport = binding.port;
            }
        }
        found
    }

    #[inline(always)]
    fn binding_insert(&self, key: &BindingKey, value: &BindingImage) -> Result<(), InsertError> {
        let there = match shared!(BINDING_DRAFTS[key] as BindingImage => Binding) {
            Some(draft) => draft.id != 0,
            None => BINDINGS.get_ptr(key).is_some(),
        };
        let (answer, result) = if there {
            (inserted::EXISTS, Err(InsertError::Exists))
        } else if BINDING_DRAFTS.insert(key, value, ANY).is_err() {
            (inserted::FULL, Err(InsertError::Full))
        } else {
            (inserted::DONE, Ok(()))
        };
        if let Some(note) = note(kind::BINDING_NEW) {
            note.answer = answer;
            note.asked.src = key.address;
            note.asked.sport = key.port;
            note.found.src = value.address;
            note.found.sport = value.port;
            note.number = u32::from(key.inbound);
        }
        result
    }

    #[inline(always)]
    fn binding_remove(&self, key: &BindingKey) {
        if let Some(draft) = BINDING_DRAFTS.get_ptr_mut(key) {
            // SAFETY: a live element that nobody else has.
            unsafe { (*draft).id = 0 };
        }
    }

    #[inline(always)]
    fn permit(&self, key: &PermitKey) -> Option<u32> {
        let found = self.0.permit(key);
        if let Some(note) = note(kind::PERMIT) {
            note.answer = u32::from(found.is_some());
            note.asked.src = key.remote;
            note.asked.dst = key.public;
            note.asked.dport = key.port;
        }
        found
    }

    /// No stage asks for a permit after one was given for the same packet.
    #[inline(always)]
    fn permit_insert(&self, _key: &PermitKey, _binding: u32) {}

    #[inline(always)]
    fn host_or_new(&self, key: &HostKey) -> Option<&Host> {
        if let Some(host) = self.host(key) {
            return Some(host);
        }
        let fresh = HostImage { sessions: [0; 3], opened: 0, window: 0, address: 0 };
        let _full = HOST_DRAFTS.insert(key, fresh, NOEXIST);
        self.host(key)
    }

    #[inline(always)]
    fn host(&self, key: &HostKey) -> Option<&Host> {
        drafted!(HOSTS / HOST_DRAFTS[key] as HostImage => Host)
    }

    #[inline(always)]
    fn busy(&self, key: &BusyKey) -> Option<&PortSet> {
        let found = drafted!(BUSY_PORTS / BUSY_PORTS_DRAFTS[key] as PortSetImage => PortSet);
        if let Some(note) = note(kind::BUSY) {
            note.answer = u32::from(found.is_some());
            note.asked.src = key.public;
            note.asked.dst = key.remote;
            note.asked.dport = key.port;
        }
        found
    }

    #[inline(always)]
    fn busy_insert(&self, key: &BusyKey, template: u32) {
        if let Some(row) = PORT_TEMPLATES.get(template) {
            let _full = BUSY_PORTS_DRAFTS.insert(key, row, NOEXIST);
        }
    }

    #[inline(always)]
    fn port_template(&self, row: u32) -> Option<&PortSetImage> {
        self.0.port_template(row)
    }

    #[inline(always)]
    fn seek(&self, search: &mut Search<'_>) {
        // SAFETY: as in the dataplane.
        unsafe {
            bpf_loop(seek::ROUNDS, seek_round as *mut c_void, (&raw mut *search).cast(), 0);
        }
    }

    /// Without a draft or a note: there may be thousands.
    #[inline(always)]
    fn session_word(&self, key: &FlowKey) -> Option<Word> {
        self.0.session_word(key)
    }

    #[inline(always)]
    fn is_idle(&self, key: &BindingKey, hold: u32, now: u32) -> bool {
        self.0.is_idle(key, hold, now)
    }

    #[inline(always)]
    fn bound(&self, key: &BindingKey) -> Option<(Ip4, Port)> {
        self.0.bound(key)
    }

    /// A trace asks anew.
    #[inline(always)]
    fn pair(&self, _place: u32) -> Option<&Pair> {
        None
    }

    /// The same.
    #[inline(always)]
    fn refusal(&self, _place: u32) -> Option<&Refusal> {
        None
    }

    #[inline(always)]
    fn refused_ports(&self, _slot: u32) -> Option<&RefusedPorts> {
        None
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentEntry> {
        // SAFETY: nobody else has the drafts.
        let found = match unsafe { FRAGMENT_DRAFTS.get(key) } {
            Some(draft) => Some(*draft),
            None => self.0.fragment(key),
        };
        if let Some(note) = note(kind::FRAGMENT) {
            note.answer = u32::from(found.is_some());
            note.asked.src = key.src;
            note.asked.dst = key.dst;
        }
        found
    }

    #[inline(always)]
    fn fragment_insert(&self, key: &FragmentKey, value: &FragmentEntry) {
        let _full = FRAGMENT_DRAFTS.insert(key, value, ANY);
    }
}

/// A round of [`Tables::seek`]. 1 ends the loop.
extern "C" fn seek_round(_index: u64, search: *mut Search<'_>) -> u64 {
    // SAFETY: the helper passes on the address of the search.
    let search = unsafe { &mut *search };
    u64::from(search.round(&Env::new(core::ptr::null_mut())))
}
