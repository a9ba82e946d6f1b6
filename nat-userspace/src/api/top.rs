//! What `natgw top` shows: totals of the moment, and who causes them.

use std::net::Ipv4Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Counters,
    model::{AddressState, PortsInUse},
};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TopQuery {
    /// Hosts and destinations of each kind, 20 without it and 1000 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u16>,
}

impl TopQuery {
    const MOST: u16 = 1000;

    #[must_use]
    pub fn limit(self) -> usize {
        usize::from(self.limit.unwrap_or(20).min(Self::MOST))
    }
}

/// One look at the gateway. Rates of the whole are the differences of two looks' counters.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Top {
    pub name: String,
    pub uptime_s: u64,
    pub sessions: u64,
    pub sessions_max: u64,
    /// Sessions that were opened since the counters have counted.
    pub sessions_created: u64,
    pub counters: Counters,
    pub addresses: Vec<AddressUse>,
    /// Private hosts, most traffic first.
    pub hosts: Vec<Talker>,
    /// Remote addresses, most traffic first.
    pub destinations: Vec<Talker>,
}

/// How full a public address is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AddressUse {
    pub address: Ipv4Addr,
    pub pool: String,
    pub state: AddressState,
    pub sessions: u64,
    pub ports_in_use: PortsInUse,
    /// Ports that sessions may get.
    pub capacity: PortsInUse,
}

/// One end of sessions: of those that live now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Talker {
    pub address: Ipv4Addr,
    pub sessions: u64,
    /// Since each session was opened; out is towards the destination.
    pub bytes_out: u64,
    pub bytes_in: u64,
    /// Since the last look of anybody; 0 at the first.
    pub bits_per_second_out: u64,
    pub bits_per_second_in: u64,
    pub packets_per_second: u64,
}
