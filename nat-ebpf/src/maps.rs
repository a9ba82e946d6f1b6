//! The maps, by the names of `nat_common::maps`. Sizes that follow the configuration are set by
//! the loader.

use core::cell::UnsafeCell;

use aya_ebpf::{
    macros::map,
    maps::{Array, DevMap, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
};
use nat_common::{
    agenda::{self, Note},
    cache::SlotImage,
    counters::Counters,
    flow::FlowKey,
    maps as size,
    net::Ip4,
    next_hops::{self, RowImage},
    pair::{self, PairImage},
    port::{BusyKey, PortSetImage},
    record::FlowRecord,
    refusal::{self, RefusalImage, RefusedPortsImage},
    rules::{
        Address, Control, ExemptKey, Forward, ForwardKey, HostAddress, Interface, Link, OneToOne,
        OneToOneKey, Pool, PublicAddress, SnatRule,
    },
    session::{BindingImage, BindingKey, HostImage, HostKey, PermitKey, SessionImage},
    stage::{FragmentEntry, FragmentKey, Handoff},
};

const BPF_F_NO_PREALLOC: u32 = 1;
/// Userspace reads it as memory (Linux 5.5); and its elements begin at a page, so that a slot is
/// one cache line.
const BPF_F_MMAPABLE: u32 = 1 << 10;

macro_rules! maps {
    ($($name:ident, $label:literal: $type:ty = $init:expr;)*) => {
        $(#[map(name = $label)] pub(crate) static $name: $type = $init;)*
    };
}

/// A map of one value, which is reached without a lookup: the kernel writes its address into the programs.
/// It has the name of its section.
#[repr(transparent)]
pub(crate) struct InPlace<T>(UnsafeCell<T>);

// SAFETY: as for every map, whoever uses the value makes it safe.
unsafe impl<T> Sync for InPlace<T> {}

impl<T: Copy> InPlace<T> {
    const fn new() -> Self {
        // SAFETY: all types here are plain, and take any bits.
        Self(UnsafeCell::new(unsafe { core::mem::zeroed() }))
    }

    #[inline(always)]
    pub(crate) const fn get(&self) -> *mut T {
        self.0.get()
    }
}

impl<T: Copy, const N: usize> InPlace<[T; N]> {
    /// An element; its number begins again after the last.
    #[inline(always)]
    pub(crate) const fn element(&self, number: u32) -> *mut T {
        const { assert!(N.is_power_of_two()) };
        self.get().cast::<T>().wrapping_add(number as usize & (N - 1))
    }
}

macro_rules! in_place {
    ($($name:ident, $section:literal: $type:ty;)*) => {
        // By a name that the linker keeps: else it might take the value for the zeros it begins with.
        $(#[unsafe(no_mangle)] #[unsafe(link_section = $section)]
        pub(crate) static $name: InPlace<$type> = InPlace::new();)*
    };
}

in_place! {
    CONTROL, ".bss.control": Control;
    LINKS, ".bss.links": [Link; size::INTERFACE_SLOTS as usize];
    NEXT_HOPS, ".bss.next_hops": [RowImage; next_hops::PLACES as usize];
    REFUSALS, ".bss.refusals": [RefusalImage; refusal::PLACES as usize];
}

maps! {
    COUNTERS, "counters": PerCpuArray<Counters> = PerCpuArray::with_max_entries(1, 0);
    SESSIONS, "sessions": HashMap<FlowKey, SessionImage> =
        HashMap::with_max_entries(2 * size::SESSIONS_DEFAULT, 0);
    FLOW_CACHE, "flow_cache": Array<SlotImage> =
        Array::with_max_entries(size::cache_slots(size::SESSIONS_DEFAULT), BPF_F_MMAPABLE);
    SIEVE, "sieve": Array<u64> =
        Array::with_max_entries(size::sieve_words(size::SESSIONS_DEFAULT), 0);
    AGENDA, "agenda": Array<Note> =
        Array::with_max_entries(agenda::places(size::SESSIONS_DEFAULT) + 1, BPF_F_MMAPABLE);
    BINDINGS, "bindings": HashMap<BindingKey, BindingImage> =
        HashMap::with_max_entries(2 * size::SESSIONS_DEFAULT, BPF_F_NO_PREALLOC);
    PERMITS, "permits": HashMap<PermitKey, u32> =
        HashMap::with_max_entries(size::SESSIONS_DEFAULT, BPF_F_NO_PREALLOC);
    HOSTS, "hosts": HashMap<HostKey, HostImage> =
        HashMap::with_max_entries(size::SESSIONS_DEFAULT, BPF_F_NO_PREALLOC);
    INTERFACES, "interfaces": Array<Interface> =
        Array::with_max_entries(size::INTERFACE_SLOTS, 0);
    EGRESS, "egress": DevMap = DevMap::with_max_entries(size::INTERFACE_SLOTS, 0);
    OTHER_LINKS, "other_links": HashMap<u32, u32> =
        HashMap::with_max_entries(size::OTHER_LINK_SLOTS, BPF_F_NO_PREALLOC);
    HOST_ADDRESSES, "host_addresses": HashMap<Ip4, HostAddress> =
        HashMap::with_max_entries(size::ADDRESS_SLOTS, 0);
    PUBLIC_ADDRESSES, "public_addrs": HashMap<Ip4, PublicAddress> =
        HashMap::with_max_entries(size::ADDRESS_SLOTS, 0);
    ADDRESSES, "addresses": Array<Address> = Array::with_max_entries(size::ADDRESS_SLOTS, 0);
    POOLS, "pools": Array<Pool> = Array::with_max_entries(size::POOL_SLOTS, 0);
    POOL_MEMBERS, "pool_members": Array<u32> = Array::with_max_entries(size::MEMBER_SLOTS, 0);
    SNAT, "snat": LpmTrie<Ip4, SnatRule> =
        LpmTrie::with_max_entries(size::RULE_PREFIXES, BPF_F_NO_PREALLOC);
    EXEMPT, "exempt": LpmTrie<ExemptKey, u32> =
        LpmTrie::with_max_entries(size::RULE_PREFIXES, BPF_F_NO_PREALLOC);
    FORWARDS, "forwards": HashMap<ForwardKey, Forward> =
        HashMap::with_max_entries(size::FORWARD_PORTS, BPF_F_NO_PREALLOC);
    ONE_TO_ONE, "one_to_one": HashMap<OneToOneKey, OneToOne> =
        HashMap::with_max_entries(2 * size::ADDRESS_SLOTS, 0);
    BUSY_PORTS, "busy_ports": LruHashMap<BusyKey, PortSetImage> =
        LruHashMap::with_max_entries(size::BUSY_DESTINATIONS, 0);
    PORT_TEMPLATES, "port_templates": Array<PortSetImage> =
        Array::with_max_entries(size::TEMPLATE_ROWS, 0);
    REFUSED_PORTS, "refused_ports": Array<RefusedPortsImage> =
        Array::with_max_entries(size::ADDRESS_SLOTS, 0);
    FRAGMENTS, "fragments": LruHashMap<FragmentKey, FragmentEntry> =
        LruHashMap::with_max_entries(size::FRAGMENT_FLOWS, 0);
    EVENTS, "events": RingBuf = RingBuf::with_byte_size(size::EVENT_BYTES, 0);
    RECORDS, "records": RingBuf = RingBuf::with_byte_size(size::RECORD_BYTES, 0);
    STAGES, "stages": ProgramArray = ProgramArray::with_max_entries(size::stage::COUNT, 0);
    DRAFT, "draft": PerCpuArray<SessionImage> = PerCpuArray::with_max_entries(1, 0);
    RECORD, "record": PerCpuArray<FlowRecord> = PerCpuArray::with_max_entries(1, 0);
    PAIRS, "pairs": PerCpuArray<PairImage> = PerCpuArray::with_max_entries(pair::PLACES, 0);
    HANDOFF, "handoff": PerCpuArray<Handoff> = PerCpuArray::with_max_entries(1, 0);
}
