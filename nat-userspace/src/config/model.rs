//! The configuration as the rest of the program sees it: complete, typed and proven.
//!
//! Only [`super::load`] and its siblings make a [`Config`]; whoever holds one need not check again.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::Ipv4Net;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::log::Log;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file it was read from; nothing where it was made of flags.
    pub file: Option<PathBuf>,
    pub gateway: Gateway,
    pub pools: Vec<Pool>,
    /// The first match in this order decides.
    pub snat: Vec<SnatRule>,
    pub forwards: Vec<Forward>,
    pub one_to_one: Vec<OneToOne>,
    pub timeouts: Timeouts,
    pub metrics: Metrics,
    /// Nothing: no records of sessions.
    pub log: Option<Log>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    pub name: String,
    pub profile: Profile,
    pub public: Vec<String>,
    pub private: Vec<String>,
    pub xdp_mode: XdpMode,
    /// Capacity of the session table, in sessions.
    pub sessions: u32,
    pub hairpin: bool,
    pub idle_reset: bool,
    pub mss_clamp: MssClamp,
    pub state_dir: PathBuf,
    pub bpf_dir: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    pub name: String,
    /// Prefixes expanded; in file order, each address once in the whole configuration.
    pub addresses: Vec<PoolAddress>,
    /// The pool serves only what is routed out of this public interface.
    pub interface: Option<String>,
    /// As written or by default; what an address may really give out is [`PoolAddress::ports`].
    pub ports: PortRange,
    /// `ports` stands in the file: host-owned addresses give the host nothing.
    pub ports_explicit: bool,
    pub mapping: Mapping,
    pub filtering: Filtering,
    pub overload: bool,
    /// Per private address and protocol; 0 is no limit.
    pub sessions_per_host: u32,
    /// Per private address; 0 is no limit.
    pub new_sessions_per_second_per_host: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolAddress {
    pub address: Ipv4Addr,
    pub source: AddressSource,
    /// An interface of the host had this address when the configuration was read.
    pub host_owned: bool,
    /// Ports and ICMP identifiers that sessions may get, ascending and disjoint, never empty;
    /// the ports of forwards are not yet taken out, see [`Config::session_ports`].
    pub ports: Vec<PortRange>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressSource {
    /// Written as an address or as part of a prefix.
    Literal,
    /// The primary address of this interface, to be followed when it changes.
    Interface(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnatRule {
    pub source: Vec<Ipv4Net>,
    /// Name of a pool that exists.
    pub pool: String,
    pub exempt: Vec<Ipv4Net>,
}

/// `public.ports` and `private.ports` have the same length and map port by port.
///
/// Its JSON is the contract's: `{"protocol": "tcp", "public": "ADDR:PORT", "private": "ADDR:PORT"}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Forward {
    pub protocol: Protocol,
    pub public: Endpoints,
    pub private: Endpoints,
}

/// Neighbouring ports of one address; as text "ADDR:PORT" or "ADDR:FIRST-LAST".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(into = "String", try_from = "String")]
pub struct Endpoints {
    pub address: Ipv4Addr,
    pub ports: PortRange,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OneToOne {
    pub public: Ipv4Addr,
    pub private: Ipv4Addr,
    /// An interface of the host had the public address when the configuration was read.
    pub host_owned: bool,
}

/// Whole seconds; only `port_hold` may be zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    pub tcp_established: Duration,
    pub tcp_transitory: Duration,
    pub udp: Duration,
    pub icmp: Duration,
    pub port_hold: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Metrics {
    pub listen: Option<SocketAddr>,
    /// Private hosts with the most sessions that are told one by one.
    pub top_hosts: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MssClamp {
    /// To the MTU of the interface a packet leaves by.
    Auto,
    Off,
    /// Bytes.
    To(u16),
}

/// An enum whose values are words of the contract.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
            schemars::JsonSchema,
        )]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant,)+ }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// As in the file, in JSON and in metrics.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }

            #[must_use]
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.word() == word)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.word())
            }
        }
    };
}
pub(crate) use words;

words!(Profile { Aws = "aws", Rfc = "rfc", });
words!(
    /// What the operator asked for; what an interface got is `api::model::AttachedMode`.
    XdpMode { Auto = "auto", Native = "native", Generic = "generic", Tc = "tc", }
);
words!(
    /// RFC 4787 section 4.1.
    Mapping {
        EndpointIndependent = "endpoint-independent",
        AddressAndPortDependent = "address-and-port-dependent",
    }
);
words!(
    /// RFC 4787 section 5.
    Filtering {
        EndpointIndependent = "endpoint-independent",
        AddressDependent = "address-dependent",
        AddressAndPortDependent = "address-and-port-dependent",
    }
);
words!(Protocol { Tcp = "tcp", Udp = "udp", Icmp = "icmp", });
words!(Role { Public = "public", Private = "private", Both = "both", });

/// Ports in host order, both ends included, `first <= last`, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    /// Every port that is no well-known one.
    pub const DEFAULT: Self = Self { first: 1024, last: 65535 };

    #[must_use]
    pub const fn single(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// 1 to 65,535.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.last as u32 - self.first as u32 + 1
    }

    #[must_use]
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// What is left of this range: none, one or two ranges, ascending.
    #[must_use]
    pub fn without(self, hole: Self) -> Vec<Self> {
        if !self.overlaps(hole) {
            return vec![self];
        }
        let mut left = Vec::new();
        if self.first < hole.first {
            left.push(Self { first: self.first, last: hole.first - 1 });
        }
        if hole.last < self.last {
            left.push(Self { first: hole.last + 1, last: self.last });
        }
        left
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.address, self.ports)
    }
}

impl From<Endpoints> for String {
    fn from(endpoints: Endpoints) -> Self {
        endpoints.to_string()
    }
}

impl Config {
    /// Whether some pool has endpoint-independent mapping.
    #[must_use]
    pub fn keeps_endpoints(&self) -> bool {
        self.pools.iter().any(|pool| pool.mapping == Mapping::EndpointIndependent)
    }

    /// Every interface of the gateway once, public ones first, in file order.
    #[must_use]
    pub fn interfaces(&self) -> Vec<(&str, Role)> {
        let Gateway { public, private, .. } = &self.gateway;
        let mut interfaces: Vec<_> = public
            .iter()
            .map(|name| {
                (name.as_str(), if private.contains(name) { Role::Both } else { Role::Public })
            })
            .collect();
        let only_private = private.iter().filter(|name| !public.contains(name));
        interfaces.extend(only_private.map(|name| (name.as_str(), Role::Private)));
        interfaces
    }

    #[must_use]
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.name == name)
    }

    /// The pool that has this address, and what it knows about it.
    #[must_use]
    pub fn pool_address(&self, address: Ipv4Addr) -> Option<(&Pool, &PoolAddress)> {
        self.pools.iter().find_map(|pool| {
            let found = pool.addresses.iter().find(|entry| entry.address == address)?;
            Some((pool, found))
        })
    }

    /// Ports (or ICMP identifiers) that sessions of `protocol` may get on `address`: those of the
    /// pool without those of forwards. Ascending, disjoint; empty where forwards took all, or where
    /// no pool has the address.
    #[must_use]
    pub fn session_ports(&self, address: Ipv4Addr, protocol: Protocol) -> Vec<PortRange> {
        let Some((_, entry)) = self.pool_address(address) else { return Vec::new() };
        self.forwards
            .iter()
            .filter(|forward| forward.protocol == protocol && forward.public.address == address)
            .fold(entry.ports.clone(), |ports, forward| {
                ports.into_iter().flat_map(|range| range.without(forward.public.ports)).collect()
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_splits_trims_or_empties_a_range_and_a_distant_one_leaves_it() {
        let range = |first, last| PortRange { first, last };
        assert_eq!(range(10, 20).without(range(12, 15)), [range(10, 11), range(16, 20)]);
        assert_eq!(range(10, 20).without(range(1, 10)), [range(11, 20)]);
        assert_eq!(range(10, 20).without(range(20, 65535)), [range(10, 19)]);
        assert_eq!(range(10, 20).without(range(10, 20)), []);
        assert_eq!(range(10, 20).without(range(30, 40)), [range(10, 20)]);
        assert_eq!(range(1, 65535).count(), 65535);
    }
}
