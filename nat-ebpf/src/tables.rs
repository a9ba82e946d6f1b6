//! The tables trait over the maps.

use core::{cell::Cell, ffi::c_void};

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated::bpf_loop, maps::lpm_trie::Key};
use nat_common::{
    agenda::{self, Head, Note},
    cache::{Slot, SlotImage},
    counters::Counters,
    env::{Atomics as _, InsertError, Tables},
    flow::FlowKey,
    maps::INTERFACE_SLOTS,
    net::Ip4,
    next_hops::{Row, RowImage},
    pair::{Pair, PairImage},
    port::{BusyKey, PortSet, PortSetImage},
    refusal::{Refusal, RefusalImage, RefusedPorts, RefusedPortsImage},
    rules::{
        Address, Control, ExemptKey, Forward, ForwardKey, HostAddress, Interface, Link, OneToOne,
        OneToOneKey, Pool, PublicAddress, SnatRule,
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

use crate::maps::{
    ADDRESSES, AGENDA, BINDINGS, BUSY_PORTS, CONTROL, COUNTERS, DRAFT, EXEMPT, FLOW_CACHE,
    FORWARDS, FRAGMENTS, HANDOFF, HOST_ADDRESSES, HOSTS, INTERFACES, LINKS, NEXT_HOPS, ONE_TO_ONE,
    OTHER_LINKS, PAIRS, PERMITS, POOL_MEMBERS, POOLS, PORT_TEMPLATES, PUBLIC_ADDRESSES, REFUSALS,
    REFUSED_PORTS, SESSIONS, SIEVE, SNAT,
};

/// The kernel as the engine's surroundings. Holds the context for the helpers that want it.
pub(crate) struct Kernel {
    pub(crate) ctx: *mut c_void,
}

impl Kernel {
    #[inline(always)]
    pub(crate) const fn new(ctx: *mut c_void) -> Self {
        Self { ctx }
    }

    /// For programs that see no packet, and call no helper that wants one.
    pub(crate) const OUTSIDE: Self = Self { ctx: core::ptr::null_mut() };
}

/// What has no alignment of its own, for the stack, which takes aligned stores only.
#[repr(align(8))]
struct Aligned<T>(T);

const NOEXIST: u64 = BPF_NOEXIST as u64;
const EEXIST: i32 = -17;

#[inline(always)]
fn inserted(result: Result<(), i32>) -> Result<(), InsertError> {
    match result {
        Ok(()) => Ok(()),
        Err(EEXIST) => Err(InsertError::Exists),
        Err(_) => Err(InsertError::Full),
    }
}

/// An element in place, as the engine's type with its atomic fields.
macro_rules! shared {
    ($map:ident[$key:expr] as $image:ty => $type:ty) => {{
        const { assert!(size_of::<$image>() == size_of::<$type>()) };
        // SAFETY: `$image` is the plain image of `$type`: same size, offsets and alignment, and
        // every field of it takes any bits. Elements live as long as the program runs (RCU).
        $map.get_ptr($key).map(|element: *const $image| unsafe { &*element.cast::<$type>() })
    }};
}
#[allow(unused_imports, reason = "only the mode that traces takes it from here")]
pub(crate) use shared;

// SAFETY of every `get` below: elements of a preallocated hash map may be recycled under a
// reader. Fields that change are atomics, the generation in a session's word makes a stale
// compare-and-swap fail, and everything else is only ever copied out.
impl Tables for Kernel {
    #[inline(always)]
    fn control(&self) -> Option<&Control> {
        // SAFETY: of aligned words that stand alone, each of them any bits.
        Some(unsafe { &*CONTROL.get() })
    }

    #[inline(always)]
    fn handoff<R>(&self, with: impl FnOnce(&mut Handoff) -> R) -> Option<R> {
        // SAFETY: the slot is this CPU's own, programs of one CPU do not nest, and the reference
        // ends with the closure.
        HANDOFF.get_ptr_mut(0).map(|slot| with(unsafe { &mut *slot }))
    }

    #[inline(always)]
    fn counters(&self, with: impl FnOnce(&mut Counters)) {
        if let Some(slot) = COUNTERS.get_ptr_mut(0) {
            // SAFETY: as above.
            with(unsafe { &mut *slot });
        }
    }

    #[inline(always)]
    fn interface(&self, ifindex: u32) -> Option<&Interface> {
        let interface = INTERFACES.get(ifindex & (INTERFACE_SLOTS - 1))?;
        (interface.ifindex == ifindex).then_some(interface)
    }

    #[inline(always)]
    fn interface_in(&self, slot: u16) -> Option<&Interface> {
        INTERFACES.get(u32::from(slot))
    }

    #[inline(always)]
    fn link(&self, ifindex: u32) -> Option<Link> {
        // SAFETY: as for the control value.
        let link = unsafe { &*LINKS.element(ifindex) };
        (link.ifindex == ifindex).then_some(*link)
    }

    #[inline(always)]
    fn other_link(&self, ifindex: u32) -> bool {
        // SAFETY: see above.
        unsafe { OTHER_LINKS.get(ifindex) }.is_some()
    }

    #[inline(always)]
    fn host_address(&self, address: Ip4) -> Option<HostAddress> {
        // SAFETY: see above.
        unsafe { HOST_ADDRESSES.get(address) }.copied()
    }

    #[inline(always)]
    fn public_address(&self, address: Ip4) -> Option<PublicAddress> {
        // SAFETY: see above.
        unsafe { PUBLIC_ADDRESSES.get(address) }.copied()
    }

    #[inline(always)]
    fn address(&self, slot: u32) -> Option<&Address> {
        ADDRESSES.get(slot)
    }

    #[inline(always)]
    fn pool(&self, pool: u32) -> Option<&Pool> {
        POOLS.get(pool)
    }

    #[inline(always)]
    fn pool_member(&self, index: u32) -> Option<u32> {
        POOL_MEMBERS.get(index).copied()
    }

    #[inline(always)]
    fn snat_rule(&self, source: Ip4) -> Option<SnatRule> {
        SNAT.get(&Aligned(Key::new(32, source)).0).copied()
    }

    #[inline(always)]
    fn is_exempt(&self, rule: u32, destination: Ip4) -> bool {
        // By words: passed by value the two halves of the key would become one unaligned store.
        let key = [64, rule.to_be(), destination.raw()];
        const { assert!(size_of::<Key<ExemptKey>>() == size_of::<[u32; 3]>()) };
        // SAFETY: same size, any bits, and the key has no alignment.
        let key = unsafe { &*(&raw const key).cast::<Key<ExemptKey>>() };
        EXEMPT.get(key).is_some()
    }

    #[inline(always)]
    fn forward(&self, key: &ForwardKey) -> Option<Forward> {
        // SAFETY: see above.
        unsafe { FORWARDS.get(key) }.copied()
    }

    #[inline(always)]
    fn one_to_one(&self, key: &OneToOneKey) -> Option<OneToOne> {
        // SAFETY: see above.
        unsafe { ONE_TO_ONE.get(key) }.copied()
    }

    #[inline(always)]
    fn draft<R>(&self, with: impl FnOnce(&mut SessionImage) -> R) -> Option<R> {
        // SAFETY: as for the handoff.
        DRAFT.get_ptr_mut(0).map(|slot| with(unsafe { &mut *slot }))
    }

    #[inline(always)]
    fn session(&self, key: &FlowKey) -> Option<&Session> {
        shared!(SESSIONS[key] as SessionImage => Session)
    }

    #[inline(always)]
    fn session_insert(&self, key: &FlowKey, value: &SessionImage) -> Result<(), InsertError> {
        inserted(SESSIONS.insert(key, value, NOEXIST))
    }

    #[inline(always)]
    fn note(&self, note: Note) {
        let Some(head) = AGENDA.get_ptr_mut(0) else { return };
        // SAFETY: the place is the head's; the count is changed atomically, the mask once, by the
        // daemon.
        let (count, mask) = unsafe {
            let head = head.cast::<Head>();
            (&*(&raw const (*head).count).cast::<Cell<u64>>(), (*head).mask)
        };
        if mask == 0 {
            return;
        }
        let number = Self::fetch_add(count, 1);
        if let Some(place) = AGENDA.get_ptr_mut(agenda::place(number, mask)) {
            // SAFETY: nobody else has this number; who comes a whole round later may write in between,
            // and then the daemon knows that this one is lost.
            unsafe { *place = note };
        }
    }

    #[inline(always)]
    fn session_remove(&self, key: &FlowKey) -> bool {
        SESSIONS.remove(key).is_ok()
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<&Slot> {
        const { assert!(size_of::<SlotImage>() == size_of::<Slot>()) };
        // SAFETY: as `shared`; the map is mappable, so its elements begin at a page.
        FLOW_CACHE.get_ptr(index).map(|slot| unsafe { &*slot.cast::<Slot>() })
    }

    #[inline(always)]
    fn next_hop(&self, number: u16) -> Option<&Row> {
        const { assert!(size_of::<RowImage>() == size_of::<Row>()) };
        // SAFETY: as `shared`.
        Some(unsafe { &*NEXT_HOPS.element(u32::from(number)).cast::<Row>() })
    }

    #[inline(always)]
    fn sieve(&self, word: u32) -> Option<&Cell<u64>> {
        // SAFETY: as `shared`.
        SIEVE.get_ptr(word).map(|word| unsafe { &*word.cast::<Cell<u64>>() })
    }

    #[inline(always)]
    fn binding(&self, key: &BindingKey) -> Option<&Binding> {
        shared!(BINDINGS[key] as BindingImage => Binding)
    }

    #[inline(always)]
    fn binding_insert(&self, key: &BindingKey, value: &BindingImage) -> Result<(), InsertError> {
        inserted(BINDINGS.insert(key, value, NOEXIST))
    }

    #[inline(always)]
    fn binding_remove(&self, key: &BindingKey) {
        let _gone = BINDINGS.remove(key);
    }

    #[inline(always)]
    fn permit(&self, key: &PermitKey) -> Option<u32> {
        // SAFETY: see above.
        unsafe { PERMITS.get(key) }.copied()
    }

    #[inline(always)]
    fn permit_insert(&self, key: &PermitKey, binding: u32) {
        // Without room the remote address is simply not admitted before it is sent to again.
        let _full = PERMITS.insert(key, binding, 0);
    }

    #[inline(always)]
    fn host_or_new(&self, key: &HostKey) -> Option<&Host> {
        if let Some(host) = self.host(key) {
            return Some(host);
        }
        let fresh = HostImage { sessions: [0; 3], opened: 0, window: 0, address: 0 };
        let _raced = HOSTS.insert(key, fresh, NOEXIST);
        self.host(key)
    }

    #[inline(always)]
    fn host(&self, key: &HostKey) -> Option<&Host> {
        shared!(HOSTS[key] as HostImage => Host)
    }

    #[inline(always)]
    fn busy(&self, key: &BusyKey) -> Option<&PortSet> {
        shared!(BUSY_PORTS[key] as PortSetImage => PortSet)
    }

    #[inline(always)]
    fn busy_insert(&self, key: &BusyKey, template: u32) {
        if let Some(row) = PORT_TEMPLATES.get(template) {
            // Without room, which is rare, all ports are looked at for each session.
            let _full = BUSY_PORTS.insert(key, row, NOEXIST);
        }
    }

    #[inline(always)]
    fn port_template(&self, row: u32) -> Option<&PortSetImage> {
        PORT_TEMPLATES.get(row)
    }

    #[inline(always)]
    fn seek(&self, search: &mut Search<'_>) {
        // SAFETY: the callback is of the helper's type, and the search outlives the call.
        unsafe {
            bpf_loop(seek::ROUNDS, seek_round as *mut c_void, (&raw mut *search).cast(), 0);
        }
    }

    #[inline(always)]
    fn pair(&self, place: u32) -> Option<&Pair> {
        const { assert!(size_of::<PairImage>() == size_of::<Pair>()) };
        // SAFETY: as `shared`.
        PAIRS.get_ptr(place).map(|pair| unsafe { &*pair.cast::<Pair>() })
    }

    #[inline(always)]
    fn refusal(&self, place: u32) -> Option<&Refusal> {
        const { assert!(size_of::<RefusalImage>() == size_of::<Refusal>()) };
        // SAFETY: as `shared`.
        Some(unsafe { &*REFUSALS.element(place).cast::<Refusal>() })
    }

    #[inline(always)]
    fn refused_ports(&self, slot: u32) -> Option<&RefusedPorts> {
        const { assert!(size_of::<RefusedPortsImage>() == size_of::<RefusedPorts>()) };
        // SAFETY: as `shared`.
        REFUSED_PORTS.get_ptr(slot).map(|entry| unsafe { &*entry.cast::<RefusedPorts>() })
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentEntry> {
        // SAFETY: see above.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn fragment_insert(&self, key: &FragmentKey, value: &FragmentEntry) {
        // Least recently used ones make room.
        let _full = FRAGMENTS.insert(key, value, 0);
    }
}

/// A round of [`Tables::seek`]. 1 ends the loop.
extern "C" fn seek_round(_index: u64, search: *mut Search<'_>) -> u64 {
    // SAFETY: the helper passes on the address of the search.
    let search = unsafe { &mut *search };
    u64::from(search.round(&Kernel::OUTSIDE))
}
