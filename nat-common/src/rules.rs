//! What the controller writes into the maps: the configuration as the dataplane reads it.

use bytemuck::{Pod, Zeroable};

use crate::{
    net::{Ip4, Mac, Port},
    session::State,
};

/// The one value of the control map. Fields are aligned words that stand alone, so a reader never
/// sees half of one; `epoch` is advanced after everything else.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Control {
    /// Advanced whenever a cached next hop, or the right of a session to exist, may have changed:
    /// routes, neighbours, interfaces, configuration. Never 0, below [`control::EPOCH_ALONE`].
    pub epoch: u32,
    /// Ticks at the last sign of life of the daemon.
    pub heartbeat: u32,
    /// Ticks (jiffies) per second.
    pub hz: u32,
    /// Generation of the configuration, low 16 bits used.
    pub generation: u32,
    /// See [`control`].
    pub flags: u32,
    /// TCP maximum segment size to clamp to: 0 off, [`control::MSS_AUTO`] by the egress MTU.
    pub mss: u32,
    /// How long a port rests, ticks.
    pub port_hold: u32,
    /// Interval at which `last seen` is refreshed, ticks.
    pub refresh: u32,
    /// Idle timeouts by [`State`], ticks, `refresh` not yet added.
    pub timeouts: [u32; State::COUNT],
    /// Index of the slow path's tap device; it has its slot among the interfaces. 0: none.
    pub slow_path: u32,
    pub cache: CacheShape,
    /// Words of the sieve less one; it is searched by the same hash.
    pub sieve_mask: u32,
    /// See [`routing`].
    pub routing: u32,
}

/// Where the flow cache has what.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct CacheShape {
    /// Slots that are used, a multiple of 128; 0: none yet. Fewer than the map has where there are few
    /// sessions, which so lie closer together.
    pub slots: u32,
    /// Key of the hash by which it is searched, so that nobody can aim at a slot.
    pub seed: [u32; 4],
}

impl Control {
    /// The epoch that a cached next hop must have. While the daemon lives it follows the network; when
    /// its heartbeat stops, next hops are resolved anew every other second or so.
    #[inline(always)]
    pub const fn current_epoch(&self, now: u32) -> u32 {
        if self.is_alone(now) { control::EPOCH_ALONE | (now >> 9) } else { self.epoch }
    }

    /// The daemon's heartbeat has stopped.
    #[inline(always)]
    pub const fn is_alone(&self, now: u32) -> bool {
        let silence = now.wrapping_sub(self.heartbeat);
        // With its sign: it may have come after `now` was read.
        silence.cast_signed() > self.hz.wrapping_mul(control::HEARTBEAT_SECONDS).cast_signed()
    }
}

pub mod control {
    pub const HAIRPIN: u32 = 1 << 0;
    /// A TCP segment from inside without a session is answered with a RST.
    pub const IDLE_RESET: u32 = 1 << 1;
    /// Exhaustion is answered with ICMP 3/13.
    pub const EXHAUSTION_ERROR: u32 = 1 << 2;
    /// An unsolicited SYN is held for 6 s and then answered with ICMP 3/3.
    pub const HOLD_SYN: u32 = 1 << 3;
    /// The slow path is there.
    pub const SLOW_PATH: u32 = 1 << 4;
    /// The flow log wants to hear of sessions that are opened, and that end.
    pub const LOG_OPENED: u32 = 1 << 8;
    pub const LOG_ENDED: u32 = 1 << 9;
    pub const MSS_AUTO: u32 = 0xffff_ffff;
    /// Marks an epoch that the dataplane advances by itself, its daemon being silent. All others are below it,
    /// and all of them have room in the check of a slot of the flow cache.
    pub const EPOCH_ALONE: u32 = 1 << 27;
    /// Without a heartbeat for so many seconds the dataplane resolves next hops by itself.
    pub const HEARTBEAT_SECONDS: u32 = 10;
}

pub mod routing {
    /// The host's routing looks at a packet's addresses, interface and type of service, and at nothing else.
    pub const BY_ADDRESSES: u32 = 1;
}

/// An interface of the gateway, or one that its routes may use.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Interface {
    /// 0: free slot. The slot is `ifindex % INTERFACE_SLOTS`.
    pub ifindex: u32,
    /// See [`role`].
    pub role: u8,
    pub realm: u8,
    pub mac: Mac,
    /// Primary address: source of ICMP errors towards the inside.
    pub address: Ip4,
    /// Bytes of IP packet.
    pub mtu: u32,
    /// See [`interface`].
    pub flags: u32,
}

impl Interface {
    /// What the first look wants to know of it.
    #[must_use]
    pub const fn link(&self) -> Link {
        let flags = if self.bounces() { link::BOUNCES } else { 0 };
        Link { ifindex: self.ifindex, role: self.role, realm: self.realm, flags }
    }

    /// Whether what goes back where it came from takes `XDP_TX`. It does where one interface is both sides, which
    /// needs that for every packet, unless its driver leaves such frames lying (see [`interface::NO_BOUNCE`]).
    /// Elsewhere it is redirected like the rest.
    #[inline(always)]
    #[must_use]
    pub const fn bounces(&self) -> bool {
        self.role == role::PRIVATE | role::PUBLIC && self.flags & interface::NO_BOUNCE == 0
    }
}

/// What the first look wants to know of an [`Interface`], in a table that it reaches without a lookup. The whole
/// interface is looked up, or the verifier would walk through each stage as often as there are slots that it
/// can tell apart.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Pod, Zeroable)]
pub struct Link {
    /// 0: free slot.
    pub ifindex: u32,
    /// See [`role`].
    pub role: u8,
    pub realm: u8,
    /// See [`link`].
    pub flags: u16,
}

pub mod link {
    /// See [`Interface::bounces`](super::Interface::bounces).
    pub const BOUNCES: u16 = 1;
}

pub mod interface {
    /// Frames that go back where they came from are redirected, not bounced (`XDP_TX`): a veth
    /// whose peer has no XDP program leaves bounced ones lying until the next comes
    /// (`veth_xdp_flush` in drivers/net/veth.c).
    pub const NO_BOUNCE: u32 = 1;
}

pub mod role {
    pub const PRIVATE: u8 = 1;
    pub const PUBLIC: u8 = 2;
}

/// Value of the host address table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct HostAddress {
    pub ifindex: u32,
    /// See [`host_address`].
    pub flags: u32,
}

pub mod host_address {
    pub const OWNED: u32 = 1;
    /// A directed broadcast address of one of the host's subnets.
    pub const BROADCAST: u32 = 2;
}

/// Value of the public address table: pool and one-to-one addresses by address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct PublicAddress {
    /// Slot in the address table.
    pub slot: u32,
    /// See [`address`]; copy of `Address::flags`.
    pub flags: u32,
}

/// Value of the address table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Address {
    pub address: Ip4,
    /// See [`address`].
    pub flags: u32,
    pub pool: u32,
    /// Number of ports in `ranges`.
    pub ports: u32,
    /// Ranges of ports to give out, first and last, host order, ascending; unused ones are 0–0.
    pub ranges: [PortRange; Address::RANGES],
    /// Row of `PORT_TEMPLATES` for TCP, UDP, ICMP.
    pub templates: [u32; 3],
    pub reserved: u32,
}

impl Address {
    pub const RANGES: usize = 4;
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Pod, Zeroable)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

pub mod address {
    /// Takes new sessions.
    pub const ACTIVE: u32 = 1 << 0;
    /// The host owns it: ARP and unclaimed packets are the host's.
    pub const HOST_OWNED: u32 = 1 << 1;
    /// Some of its ports are forwarded: candidates are checked against the forwards.
    pub const FORWARDS: u32 = 1 << 2;
    /// Belongs to a one-to-one mapping.
    pub const ONE_TO_ONE: u32 = 1 << 3;
    /// ARP requests for it are answered.
    pub const ANSWER_ARP: u32 = 1 << 4;
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Pool {
    /// First entry in `POOL_MEMBERS` (high half) and number of entries (low half): one word, so
    /// that a new list is taken into use at once.
    pub members: u32,
    /// Only interface whose egress the pool serves; 0 is any.
    pub ifindex: u32,
    pub sessions_per_host: u32,
    pub new_sessions_per_second_per_host: u32,
    /// See [`pool`].
    pub mapping: u8,
    pub filtering: u8,
    pub overload: u8,
    /// A full address falls over to the next.
    pub fall_over: u8,
    pub reserved: u32,
}

pub mod pool {
    pub const ADDRESS_AND_PORT_DEPENDENT: u8 = 0;
    pub const ADDRESS_DEPENDENT: u8 = 1;
    pub const ENDPOINT_INDEPENDENT: u8 = 2;
}

/// Value of the snat table. Key: LPM prefix of the source address (32 bits of data).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SnatRule {
    /// Number of the rule; first word of the keys of its exemptions.
    pub rule: u32,
    pub pool: u32,
}

/// Data of a key in the exempt table (LPM): rule number in network order, then the destination.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct ExemptKey {
    pub rule: [u8; 4],
    pub destination: Ip4,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Pod, Zeroable)]
pub struct ForwardKey {
    pub address: Ip4,
    pub port: Port,
    pub protocol: u8,
    pub zero: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Forward {
    pub address: Ip4,
    pub port: Port,
    pub slot: u16,
}

/// Key of the one-to-one table; the value is the address on the other side.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Pod, Zeroable)]
pub struct OneToOneKey {
    pub address: Ip4,
    /// 0: private address to public; 1: public to private.
    pub inbound: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct OneToOne {
    pub address: Ip4,
    /// Slot of the public address.
    pub slot: u32,
}

const _: () = {
    assert!(size_of::<Control>() == 128);
    assert!(size_of::<Interface>() == 24);
    assert!(size_of::<Address>() == 48);
    assert!(size_of::<Pool>() == 24);
};
