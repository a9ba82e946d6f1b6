//! `natgw trace`: the question and the answer.

use std::net::{Ipv4Addr, SocketAddrV4};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::model::EndpointFilter;
use crate::config::{Protocol, Role, words};

/// Which packet: as a query string, whose values hold no character that would need escaping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TraceQuery {
    /// Sender; for ICMP the port is the identifier of a request.
    pub from: EndpointFilter,
    /// Receiver; for ICMP the port is the identifier of a reply.
    pub to: EndpointFilter,
    pub protocol: Protocol,
    /// The interface that it comes by; nothing: the one that leads to the sender.
    #[serde(default, rename = "in", skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Bytes of the IP packet; nothing: headers alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u16>,
    pub ttl: u8,
    /// May not be fragmented.
    #[serde(default)]
    pub dont_fragment: bool,
    /// TCP only: words of [`TcpFlag`], joined by `+`.
    pub tcp_flags: String,
}

words!(TcpFlag { Syn = "syn", Ack = "ack", Fin = "fin", Rst = "rst", Psh = "psh", });

impl TraceQuery {
    /// The flags, or the word that is none.
    ///
    /// # Errors
    /// The word.
    pub fn flags(&self) -> Result<Vec<TcpFlag>, String> {
        let words = self.tcp_flags.split('+').filter(|word| !word.is_empty());
        words.map(|word| TcpFlag::from_word(word).ok_or_else(|| word.to_owned())).collect()
    }

    /// For a URL.
    #[must_use]
    pub fn query(&self) -> String {
        let Self { from, to, protocol, interface, length, ttl, dont_fragment, tcp_flags } = self;
        let mut query = format!(
            "from={from}&to={to}&protocol={protocol}&ttl={ttl}&dont_fragment={dont_fragment}&tcp_flags={}",
            tcp_flags.replace('+', "%2B")
        );
        if let Some(interface) = interface {
            query.push_str("&in=");
            query.extend(interface.bytes().map(|byte| format!("%{byte:02X}")));
        }
        if let Some(length) = length {
            query.push_str(&format!("&length={length}"));
        }
        query
    }
}

/// What the gateway would do with the packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Trace {
    pub interface: String,
    pub role: Role,
    pub packet: PacketText,
    /// In the order in which the packet meets them.
    pub steps: Vec<TraceStep>,
    pub verdict: TraceVerdict,
    /// Of a drop: as in `natgw counters`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meaning: Option<String>,
    /// The frame as it leaves, translated or as an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaves: Option<Leaving>,
}

words!(TraceVerdict {
    ToDestination = "to_destination",
    ToSource = "to_source",
    ToHost = "to_host",
    Answered = "answered",
    Held = "held",
    Drop = "drop",
});

words!(
    /// What a step is about.
    StepKind {
        Parse = "parse",
        Session = "session",
        Address = "address",
        Forward = "forward",
        Rule = "rule",
        Filter = "filter",
        Binding = "binding",
        Port = "port",
        Fragment = "fragment",
        Route = "route",
        NextHop = "next_hop",
        Verdict = "verdict",
    }
);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TraceStep {
    pub step: StepKind,
    /// The stage of the dataplane that it happens in.
    pub stage: String,
    pub text: String,
}

/// A packet in words of its headers. For ICMP the ports are identifiers, as in `natgw flows`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PacketText {
    pub protocol: String,
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
    pub ttl: u8,
    /// Bytes of the IP packet.
    pub length: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Leaving {
    /// Name of the interface.
    pub interface: String,
    /// Ethernet address of the next hop.
    pub next_hop: String,
    pub packet: PacketText,
}

impl PacketText {
    #[must_use]
    pub fn new(protocol: &str, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Self {
        Self {
            protocol: protocol.to_owned(),
            from: SocketAddrV4::new(from.0, from.1),
            to: SocketAddrV4::new(to.0, to.1),
            ttl: 0,
            length: 0,
        }
    }
}
