//! One change of a map, and what it means to the operator.

use std::fmt;

use ipnet::Ipv4Net;
use nat_common::{
    net::{Ip4, Port, proto},
    rules::{Address, Forward, OneToOne, OneToOneKey, Pool, PublicAddress, SnatRule, address},
};

use super::contents::Policy;
use crate::config::PortRange;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Template {
        row: u32,
        ports: Vec<PortRange>,
    },
    Address {
        slot: u32,
        address: Address,
    },
    Members {
        first: u32,
        slots: Vec<u32>,
    },
    Pool {
        index: u32,
        pool: Pool,
    },
    Public {
        address: Ip4,
        value: PublicAddress,
    },
    Forward {
        public: (Ip4, u8, Port),
        value: Forward,
    },
    OneToOne {
        key: OneToOneKey,
        value: OneToOne,
    },
    Exempt {
        rule: u32,
        prefix: Ipv4Net,
    },
    Snat {
        source: Ipv4Net,
        rule: SnatRule,
    },
    RemoveSnat {
        source: Ipv4Net,
    },
    RemoveExempt {
        rule: u32,
        prefix: Ipv4Net,
    },
    RemoveOneToOne {
        key: OneToOneKey,
    },
    RemoveForward {
        public: (Ip4, u8, Port),
    },
    RemovePublic {
        address: Ip4,
    },
    FreePool {
        index: u32,
    },
    FreeAddress {
        slot: u32,
        address: Ip4,
    },
    /// What is known of busy destinations of this address began with other free ports.
    ForgetPorts {
        address: Ip4,
    },
    /// Always last: takes everything before it into use.
    Policy(Box<Policy>),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Template { row, ports } => {
                write!(f, "port template {row}: ")?;
                list(f, ports)
            }
            Self::Address { slot, address } => {
                write!(f, "address {} (slot {slot}): {}", address.address, use_of(address))
            }
            Self::Members { first, slots } => {
                write!(f, "pool members from {first}: {} addresses", slots.len())
            }
            Self::Pool { index, pool } => {
                write!(f, "pool {index}: {} active addresses", pool.members & 0xffff)
            }
            Self::Public { address, .. } => write!(f, "public address {address} is ours"),
            Self::Forward { public, value } => {
                write!(f, "forward {} to {}:{}", Endpoint(public), value.address, value.port.get())
            }
            Self::OneToOne { key, value } => {
                let (from, to) = (key.address, value.address);
                let direction = if key.inbound == 0 { "outbound" } else { "inbound" };
                write!(f, "one-to-one {direction}: {from} becomes {to}")
            }
            Self::Exempt { prefix, .. } => write!(f, "do not translate to {prefix}"),
            Self::Snat { source, rule } => {
                write!(f, "translate from {source} by pool {}", rule.pool)
            }
            Self::RemoveSnat { source } => write!(f, "no longer translate from {source}"),
            Self::RemoveExempt { prefix, .. } => write!(f, "no exemption any more for {prefix}"),
            Self::RemoveOneToOne { key } => write!(f, "no one-to-one mapping for {}", key.address),
            Self::RemoveForward { public } => {
                write!(f, "no forward any more for {}", Endpoint(public))
            }
            Self::RemovePublic { address } => write!(f, "public address {address} is not ours"),
            Self::FreePool { index } => write!(f, "pool {index} is gone"),
            Self::FreeAddress { slot, address } => {
                write!(f, "address {address} (slot {slot}) is gone")
            }
            Self::ForgetPorts { address } => write!(f, "ports of {address} are counted anew"),
            Self::Policy(_) => f.write_str("take the configuration into use"),
        }
    }
}

struct Endpoint<'a>(&'a (Ip4, u8, Port));

impl fmt::Display for Endpoint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, protocol, port) = self.0;
        let protocol = if *protocol == proto::TCP { "tcp" } else { "udp" };
        write!(f, "{protocol} {address}:{}", port.get())
    }
}

fn use_of(address: &Address) -> String {
    let flag = |flag, yes, no| if address.flags & flag != 0 { yes } else { no };
    if address.flags & address::ONE_TO_ONE != 0 {
        return flag(address::ACTIVE, "one-to-one", "one-to-one, not in use").to_owned();
    }
    let sessions = flag(address::ACTIVE, "takes new sessions", "takes no new sessions");
    format!("{sessions}, pool {}, {} ports", address.pool, address.ports)
}

fn list(f: &mut fmt::Formatter<'_>, ports: &[PortRange]) -> fmt::Result {
    if ports.is_empty() {
        return f.write_str("none");
    }
    for (index, range) in ports.iter().enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        write!(f, "{separator}{range}")?;
    }
    Ok(())
}

/// The steps that an operator cares about, a line each; neighbouring forwards as one range.
#[must_use]
pub fn describe(steps: &[Step]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut steps = steps.iter().peekable();
    while let Some(step) = steps.next() {
        let mut end = step;
        while let Some(next) = steps.peek().filter(|next| continues(end, next)) {
            end = next;
            steps.next();
        }
        match (step, end) {
            (
                Step::Template { .. }
                | Step::Members { .. }
                | Step::Public { .. }
                | Step::RemovePublic { .. }
                | Step::ForgetPorts { .. },
                _,
            ) => {}
            (Step::Forward { value, .. }, Step::Forward { public, value: last }) if step != end => {
                let (to, last) = (value.port.get(), last.port.get());
                lines.push(format!(
                    "forward {}-{} to {}:{to}-{last}",
                    Endpoint(&first_of(step)),
                    public.2.get(),
                    value.address
                ));
            }
            (Step::RemoveForward { public }, Step::RemoveForward { public: last })
                if step != end =>
            {
                let (first, last) = (Endpoint(public), last.2.get());
                lines.push(format!("no forward any more for {first}-{last}"));
            }
            _ => lines.push(step.to_string()),
        }
    }
    lines
}

fn first_of(step: &Step) -> (Ip4, u8, Port) {
    match step {
        Step::Forward { public, .. } | Step::RemoveForward { public } => *public,
        _ => (Ip4::UNSPECIFIED, 0, Port::ZERO),
    }
}

/// Whether `next` is about the port after `step`'s, on both sides.
fn continues(step: &Step, next: &Step) -> bool {
    let after = |port: Port, next: Port| port.get().checked_add(1) == Some(next.get());
    let neighbours =
        |a: &(Ip4, u8, Port), b: &(Ip4, u8, Port)| a.0 == b.0 && a.1 == b.1 && after(a.2, b.2);
    match (step, next) {
        (Step::Forward { public, value }, Step::Forward { public: p, value: v }) => {
            neighbours(public, p) && value.address == v.address && after(value.port, v.port)
        }
        (Step::RemoveForward { public }, Step::RemoveForward { public: p }) => {
            neighbours(public, p)
        }
        _ => false,
    }
}
