//! What the control socket says, in the contract's JSON.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
    str::FromStr,
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{Protocol, Role, words};

/// `natgw status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    pub name: String,
    pub profile: String,
    pub state: GatewayState,
    pub uptime_s: u64,
    pub sessions: u64,
    pub sessions_max: u64,
    pub interfaces: Vec<InterfaceStatus>,
    pub addresses: Vec<AddressStatus>,
    /// What an operator should know or mend, a sentence each.
    #[serde(default)]
    pub notices: Vec<String>,
}

words!(GatewayState {
    Starting = "starting",
    Ready = "ready",
    Degraded = "degraded",
    Draining = "draining",
    Stopping = "stopping",
});
words!(
    /// How the translating program hangs on an interface.
    AttachedMode { Native = "native", Generic = "generic", Tc = "tc", }
);
words!(InterfaceState { Attached = "attached", Missing = "missing", });
words!(AddressState {
    Active = "active",
    Draining = "draining",
    Lost = "lost",
    Failed = "failed",
});
words!(SessionState {
    Opening = "opening",
    Established = "established",
    Closing = "closing",
    Active = "active",
});

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InterfaceStatus {
    pub name: String,
    pub role: Role,
    pub xdp_mode: AttachedMode,
    pub state: InterfaceState,
    /// Why this mode, or what is the matter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// `natgw eip list`, and part of `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AddressStatus {
    pub address: Ipv4Addr,
    pub pool: String,
    pub state: AddressState,
    pub sessions: u64,
    pub ports_in_use: PortsInUse,
    /// Why it is lost or failed, or when a draining one is released at the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// ICMP identifiers count as ports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortsInUse {
    pub tcp: u64,
    pub udp: u64,
    pub icmp: u64,
}

/// One live session. For ICMP the ports are the identifier, and the remote one is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Flow {
    pub protocol: Protocol,
    pub private: SocketAddrV4,
    pub public: SocketAddrV4,
    pub remote: SocketAddrV4,
    pub state: SessionState,
    pub age_s: u64,
    pub idle_s: u64,
    pub packets_out: u64,
    pub packets_in: u64,
    /// Of IP packets, headers included.
    pub bytes_out: u64,
    pub bytes_in: u64,
}

/// Which sessions; everything that is given must match.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowFilter {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private: Option<EndpointFilter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<EndpointFilter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<EndpointFilter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// At most so many, in no particular order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

impl FlowFilter {
    /// Whether this session is meant; `limit` is the caller's business.
    #[must_use]
    pub fn matches(&self, flow: &Flow) -> bool {
        let endpoint = |filter: Option<EndpointFilter>, endpoint: SocketAddrV4| {
            filter.is_none_or(|filter| filter.matches(endpoint))
        };
        endpoint(self.private, flow.private)
            && endpoint(self.remote, flow.remote)
            && endpoint(self.public, flow.public)
            && self.protocol.is_none_or(|protocol| protocol == flow.protocol)
    }

    /// For a URL; no value can hold a character that would need escaping.
    #[must_use]
    pub fn query(&self) -> String {
        let Self { private, remote, public, protocol, limit } = self;
        let pair = |key: &str, value: Option<String>| value.map(|value| format!("{key}={value}"));
        [
            pair("private", private.map(|filter| filter.to_string())),
            pair("remote", remote.map(|filter| filter.to_string())),
            pair("public", public.map(|filter| filter.to_string())),
            pair("protocol", protocol.map(|protocol| protocol.to_string())),
            pair("limit", limit.map(|limit| limit.to_string())),
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("&")
    }
}

/// "ADDR" or "ADDR:PORT".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(into = "String", try_from = "String")]
pub struct EndpointFilter {
    pub address: Ipv4Addr,
    pub port: Option<u16>,
}

impl EndpointFilter {
    #[must_use]
    pub fn matches(self, endpoint: SocketAddrV4) -> bool {
        self.address == *endpoint.ip() && self.port.is_none_or(|port| port == endpoint.port())
    }
}

impl FromStr for EndpointFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, Some(port.parse().map_err(|_| wrong_endpoint(text))?)),
            None => (text, None),
        };
        Ok(Self { address: host.parse().map_err(|_| wrong_endpoint(text))?, port })
    }
}

fn wrong_endpoint(text: &str) -> String {
    format!("\"{text}\" is not ADDR or ADDR:PORT; write 10.0.0.5 or 10.0.0.5:443")
}

impl TryFrom<String> for EndpointFilter {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<EndpointFilter> for String {
    fn from(filter: EndpointFilter) -> Self {
        filter.to_string()
    }
}

impl fmt::Display for EndpointFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// How long the counters have counted; they outlive the daemon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counted {
    pub seconds: u64,
}

/// `natgw flows count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowCount {
    pub count: u64,
}

/// `natgw flows flush`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Flushed {
    pub flushed: u64,
}

/// `natgw eip add|drain|remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EipChange {
    pub address: Ipv4Addr,
    /// Nothing: the pool that has the address, or for `add` the only one or "default".
    #[serde(default)]
    pub pool: Option<String>,
    /// `drain` only: released after this time at the latest, in seconds.
    #[serde(default)]
    pub max_wait_s: Option<u64>,
    /// Also write the change into the configuration file.
    #[serde(default)]
    pub save: bool,
}

impl EipChange {
    pub const DEFAULT_MAX_WAIT: Duration = Duration::from_secs(350);
    pub const LONGEST_MAX_WAIT: Duration = Duration::from_secs(4000);
}

/// `natgw forward add|remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForwardChange {
    #[serde(flatten)]
    pub forward: crate::config::Forward,
    #[serde(default)]
    pub save: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReloadRequest {
    /// Say what would be done and do nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// `natgw reload`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reloaded {
    pub dry_run: bool,
    /// What was (or would be) done, a line each, in order; empty when nothing changed.
    pub steps: Vec<String>,
    pub sessions_ended: u64,
}

/// The answer to a request that was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorReply {
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Flow {
        Flow {
            protocol: Protocol::Tcp,
            private: "10.0.0.5:40000".parse().expect("an endpoint"),
            public: "198.51.100.10:40000".parse().expect("an endpoint"),
            remote: "203.0.113.1:443".parse().expect("an endpoint"),
            state: SessionState::Established,
            age_s: 12,
            idle_s: 3,
            packets_out: 1,
            packets_in: 2,
            bytes_out: 60,
            bytes_in: 120,
        }
    }

    #[test]
    fn a_flow_is_written_as_the_contract_says() {
        let expected = serde_json::json!({
            "protocol": "tcp", "private": "10.0.0.5:40000", "public": "198.51.100.10:40000",
            "remote": "203.0.113.1:443", "state": "established", "age_s": 12, "idle_s": 3,
            "packets_out": 1, "packets_in": 2, "bytes_out": 60, "bytes_in": 120,
        });
        assert_eq!(serde_json::to_value(flow()).expect("JSON"), expected);
    }

    #[test]
    fn every_given_part_of_a_filter_must_match() {
        let filter = |private: &str, protocol| FlowFilter {
            private: Some(private.parse().expect("a filter")),
            protocol,
            ..FlowFilter::default()
        };
        assert!(FlowFilter::default().matches(&flow()));
        assert!(filter("10.0.0.5", Some(Protocol::Tcp)).matches(&flow()));
        assert!(filter("10.0.0.5:40000", None).matches(&flow()));
        assert!(!filter("10.0.0.5:40001", None).matches(&flow()));
        assert!(!filter("10.0.0.6", None).matches(&flow()));
        assert!(!filter("10.0.0.5", Some(Protocol::Udp)).matches(&flow()));
    }

    #[test]
    fn a_query_names_only_what_is_given() {
        let filter = FlowFilter {
            remote: Some("203.0.113.1:443".parse().expect("a filter")),
            limit: Some(5),
            ..FlowFilter::default()
        };
        assert_eq!(filter.query(), "remote=203.0.113.1:443&limit=5");
        assert_eq!(FlowFilter::default().query(), "");
    }
}
