//! What Prometheus gets beside the contract's counters: how full things are.

use std::net::Ipv4Addr;

use super::model::PortsInUse;
use crate::flowlog::LogStatus;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Details {
    /// Capacity of the session table.
    pub sessions_max: u64,
    pub addresses: Vec<AddressDetail>,
    /// What looking for sessions whose time is up took of a CPU in the last second.
    pub sweep_seconds: f64,
    /// Private hosts with the most sessions, as many as the configuration asks for.
    pub top_hosts: Vec<(Ipv4Addr, u64)>,
    pub log: LogStatus,
}

/// How full a public address is.
#[derive(Debug, Clone, PartialEq)]
pub struct AddressDetail {
    pub address: Ipv4Addr,
    pub pool: String,
    pub sessions: u64,
    pub in_use: PortsInUse,
    /// Of those, the ones towards the remote endpoint that has the most.
    pub busiest: PortsInUse,
    /// Ports that sessions may get.
    pub capacity: PortsInUse,
    /// How often there was none.
    pub errors: PortsInUse,
}
