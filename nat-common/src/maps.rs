//! The maps that kernel and userspace share: names, sizes, layout version.
//!
//! Pinned as `BPF_DIR/NAME/v{LAYOUT}/MAP`. A change of any type below is a new `LAYOUT`.

/// Version of everything that is stored in pinned maps.
pub const LAYOUT: u32 = 6;

pub const CONTROL: &str = ".bss.control";
pub const COUNTERS: &str = "counters";
pub const SESSIONS: &str = "sessions";
pub const FLOW_CACHE: &str = "flow_cache";
/// See [`crate::next_hops`].
pub const NEXT_HOPS: &str = ".bss.next_hops";
pub const SIEVE: &str = "sieve";
/// See [`crate::agenda`].
pub const AGENDA: &str = "agenda";
pub const BINDINGS: &str = "bindings";
pub const PERMITS: &str = "permits";
pub const HOSTS: &str = "hosts";
pub const INTERFACES: &str = "interfaces";
/// What the first look wants to know of an interface, by the same slots.
pub const LINKS: &str = ".bss.links";
pub const EGRESS: &str = "egress";
pub const OTHER_LINKS: &str = "other_links";
pub const HOST_ADDRESSES: &str = "host_addresses";
pub const PUBLIC_ADDRESSES: &str = "public_addrs";
pub const ADDRESSES: &str = "addresses";
pub const POOLS: &str = "pools";
pub const POOL_MEMBERS: &str = "pool_members";
pub const SNAT: &str = "snat";
pub const EXEMPT: &str = "exempt";
pub const FORWARDS: &str = "forwards";
pub const ONE_TO_ONE: &str = "one_to_one";
pub const BUSY_PORTS: &str = "busy_ports";
pub const PORT_TEMPLATES: &str = "port_templates";
pub const FRAGMENTS: &str = "fragments";
pub const EVENTS: &str = "events";
pub const RECORDS: &str = "records";
/// By slot of the address table; see [`crate::refusal::RefusedPorts`].
pub const REFUSED_PORTS: &str = "refused_ports";
/// Programs of the later stages; per generation of the programs, so it carries no fixed pin name.
pub const STAGES: &str = "stages";
pub const DRAFT: &str = "draft";
pub const HANDOFF: &str = "handoff";
pub const PAIRS: &str = "pairs";

/// What the name of a map begins with that has one value, which programs reach without a lookup: the kernel
/// writes its address into them (Linux 5.2). It is the name of its section in the object.
const IN_PLACE: &str = ".bss.";

/// Whether the map of this name has one value, which programs reach without a lookup.
#[must_use]
pub fn is_in_place(name: &str) -> bool {
    name.starts_with(IN_PLACE)
}

/// The file name of a map's pin. A dot is the kernel's own there (`bpf_lookup` in kernel/bpf/inode.c).
#[must_use]
pub fn pin(name: &str) -> &str {
    name.strip_prefix(IN_PLACE).unwrap_or(name)
}

/// Slots of the interface table, found by `ifindex % INTERFACE_SLOTS`.
pub const INTERFACE_SLOTS: u32 = 1024;
/// Interfaces of the host that are not the gateway's; one that finds no room is taken for unknown.
pub const OTHER_LINK_SLOTS: u32 = 16384;
/// Slots of the address table: every pool and one-to-one address has one.
pub const ADDRESS_SLOTS: u32 = 4096;
pub const POOL_SLOTS: u32 = 256;
/// Active addresses of all pools, and room to write a new list beside the current one.
pub const MEMBER_SLOTS: u32 = 2 * ADDRESS_SLOTS;
pub const RULE_PREFIXES: u32 = 16384;
/// Public ports that are forwarded, one entry each; the map is not preallocated.
pub const FORWARD_PORTS: u32 = 262_144;
/// Destinations whose free ports are tracked; when there are more, those asked for last.
pub const BUSY_DESTINATIONS: u32 = 1024;
/// Rows of port templates: addresses with the same ranges share one, by protocol.
pub const TEMPLATE_ROWS: u32 = 512;
pub const FRAGMENT_FLOWS: u32 = 16384;
pub const EVENT_BYTES: u32 = 256 * 1024;
/// Largest ring of flow records: 190,000 of them. A gateway for fewer sessions has a smaller one.
pub const RECORD_BYTES: u32 = 16 << 20;
/// Default capacity of the session table, in sessions (two entries each).
pub const SESSIONS_DEFAULT: u32 = 1_048_576;

/// Slots of the flow cache for a session table of this capacity: three for two directions, because a full
/// table of few ways turns flows away; and whole pages of memory.
pub const fn cache_slots(sessions: u32) -> u32 {
    const PAGE: u32 = 128;
    let slots = sessions.saturating_mul(3) / PAGE * PAGE;
    if slots < PAGE { PAGE } else { slots }
}

/// Words of the sieve (see [`crate::sieve`]): two bytes a session, and a power of two.
pub const fn sieve_words(sessions: u32) -> u32 {
    (if sessions < 64 { 16 } else { sessions >> 2 }).next_power_of_two()
}

/// Stage programs: index in `STAGES`, and name of the program in the object.
pub const STAGE_PROGRAMS: &[(u32, &str)] = &[
    (stage::HIT, "natgw_hit"),
    (stage::CLASSIFY, "natgw_classify"),
    (stage::OPEN, "natgw_open"),
    (stage::OPEN_BUSY, "natgw_open_busy"),
    (stage::INBOUND, "natgw_inbound"),
    (stage::ERROR, "natgw_error"),
    (stage::FRAGMENT, "natgw_fragment"),
    (stage::ANSWER, "natgw_answer"),
    (stage::STATELESS, "natgw_stateless"),
    (stage::BIND, "natgw_bind"),
    (stage::JOIN, "natgw_join"),
    (stage::ACCEPT, "natgw_accept"),
    (stage::HOLD, "natgw_hold"),
    (stage::VERIFY, "natgw_verify"),
    (stage::SEEK, "natgw_seek"),
    (stage::SEND, "natgw_send"),
    (stage::RECLAIM, "natgw_reclaim"),
    (stage::FAST, "natgw_fast"),
];

/// Stages that the first look goes on to, so that they are wanted only where there is one: in the dataplane on XDP.
pub const PLAIN_STAGE_PROGRAMS: &[(u32, &str)] = &[(stage::BEGIN, "natgw_begin")];

/// Entry program on every interface of the gateway: on XDP, or on the ingress of tc. The stages have
/// the same names on both, in an object of their own each.
pub const ENTRY_PROGRAM: &str = "natgw";
/// On the tap device of the slow path: takes up what the daemon returns.
pub const RETURN_PROGRAM: &str = "natgw_return";
/// On tracepoints of the kernel, optional: what an interface refused. Program, tracepoint.
pub const REFUSED_PROGRAMS: &[(&str, &str)] = &[
    ("natgw_xmit", "xdp_devmap_xmit"),
    ("natgw_tx", "xdp_bulk_tx"),
    ("natgw_redirect", "xdp_redirect_err"),
    // Before 6.16 redirection by map had its own.
    ("natgw_redirect", "xdp_redirect_map_err"),
];
/// Guard on the egress of public interfaces (tc).
pub const GUARD_PROGRAM: &str = "natgw_guard";
/// Guard on the ingress of private interfaces (tc).
pub const INNER_GUARD_PROGRAM: &str = "natgw_inside";
/// Behind the guards, on the host's forwarding and output (netfilter).
pub const BACKSTOP_PROGRAM: &str = "natgw_backstop";
/// The mark of a frame that the programs on tc send out of a public interface, by which the guard
/// knows it. A frame that enters or leaves a network namespace has none.
pub const SENT_MARK: u32 = 0x6e67_7731;

/// Ends sessions; run by the daemon with `BPF_PROG_TEST_RUN`.
pub const REAPER_PROGRAM: &str = "natgw_reaper";
/// Sends a frame that the daemon made out of the interface named as ingress.
pub const EMIT_PROGRAM: &str = "natgw_emit";

/// Order of the stages in `STAGES`.
pub mod stage {
    pub const HIT: u32 = 0;
    pub const CLASSIFY: u32 = 1;
    pub const OPEN: u32 = 2;
    pub const OPEN_BUSY: u32 = 3;
    pub const INBOUND: u32 = 4;
    pub const ERROR: u32 = 5;
    pub const FRAGMENT: u32 = 6;
    pub const ANSWER: u32 = 7;
    pub const STATELESS: u32 = 8;
    pub const BIND: u32 = 9;
    pub const JOIN: u32 = 10;
    pub const ACCEPT: u32 = 11;
    pub const HOLD: u32 = 12;
    pub const VERIFY: u32 = 13;
    pub const SEEK: u32 = 14;
    pub const SEND: u32 = 15;
    pub const RECLAIM: u32 = 16;
    pub const FAST: u32 = 17;
    pub const BEGIN: u32 = 18;
    /// Of `natgw capture` alone: the end of every packet's way.
    pub const CAPTURED: u32 = 31;
    pub const COUNT: u32 = 32;
}
