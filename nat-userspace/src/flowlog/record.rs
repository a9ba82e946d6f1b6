//! A flow record as every format writes it.

use std::net::SocketAddrV4;

use jiff::Timestamp;
use nat_common::{
    net::{Ip4, Port, proto},
    record::{FlowRecord, kind},
    session::State,
};
use serde::{Deserialize, Serialize};

use super::clock::Anchor;
use crate::config::{Protocol, words};

words!(
    /// What a record tells of a session.
    Event { Open = "open", Interval = "interval", Close = "close", }
);
words!(
    /// Why a session has ended.
    Reason {
        /// No packet for as long as its state allows.
        Idle = "idle",
        /// Both sides had finished the connection.
        Closed = "closed",
        /// A side had reset the connection.
        Reset = "reset",
        /// By a command, or because the rules do not allow it any more.
        Ended = "ended",
    }
);

/// What happened to one session in one period. The periods of a session follow each other without
/// gap or overlap, so that the sums of its records are what it carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub event: Event,
    pub protocol: Protocol,
    pub private: SocketAddrV4,
    pub public: SocketAddrV4,
    /// For ICMP the ports of the others are the identifier, and this one is 0.
    pub remote: SocketAddrV4,
    /// When the session was opened; since then the public endpoint has been the private one's.
    pub opened: Timestamp,
    /// The period that the sums are of.
    pub from: Timestamp,
    pub to: Timestamp,
    /// Up to a quarter of a second before the last packet.
    pub last_packet: Timestamp,
    pub packets_out: u64,
    pub packets_in: u64,
    /// Of IP packets, headers included.
    pub bytes_out: u64,
    pub bytes_in: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

impl Record {
    /// With the sums of the session's whole life. Nothing for what is no record.
    #[must_use]
    pub fn of(record: &FlowRecord, anchor: &Anchor) -> Option<Self> {
        let (key, public) = (record.key.tuple, record.tuple);
        let event = match record.kind {
            kind::OPENED => Event::Open,
            kind::ENDED => Event::Close,
            _ => return None,
        };
        let opened = anchor.time(record.created);
        Some(Self {
            event,
            protocol: protocol(record.key.protocol)?,
            private: endpoint(key.src, key.sport),
            public: endpoint(public.src, public.sport),
            remote: endpoint(key.dst, key.dport),
            opened,
            from: opened,
            to: anchor.time(record.now).max(opened),
            last_packet: anchor.time(record.seen).max(opened),
            packets_out: record.packets_out,
            packets_in: record.packets_in,
            bytes_out: record.bytes_out,
            bytes_in: record.bytes_in,
            reason: (event == Event::Close).then(|| reason(record)),
        })
    }
}

fn reason(record: &FlowRecord) -> Reason {
    match State::from_u8(record.state) {
        State::TcpClosing => Reason::Closed,
        State::TcpReset => Reason::Reset,
        _ if record.idle != 0 => Reason::Idle,
        _ => Reason::Ended,
    }
}

const fn protocol(number: u8) -> Option<Protocol> {
    match number {
        proto::TCP => Some(Protocol::Tcp),
        proto::UDP => Some(Protocol::Udp),
        proto::ICMP => Some(Protocol::Icmp),
        _ => None,
    }
}

fn endpoint(address: Ip4, port: Port) -> SocketAddrV4 {
    SocketAddrV4::new(address.into(), port.get())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn sample() -> Record {
        let time = |text: &str| text.parse().expect("a time");
        let endpoint = |text: &str| text.parse().expect("an endpoint");
        Record {
            event: Event::Close,
            protocol: Protocol::Udp,
            private: endpoint("10.0.1.5:5000"),
            public: endpoint("198.51.100.10:31337"),
            remote: endpoint("203.0.113.9:53"),
            opened: time("2026-11-21T14:05:00Z"),
            from: time("2026-11-21T14:05:00Z"),
            to: time("2026-11-21T14:11:00.25Z"),
            last_packet: time("2026-11-21T14:05:10Z"),
            packets_out: 3,
            packets_in: 2,
            bytes_out: 300,
            bytes_in: 800,
            reason: Some(Reason::Idle),
        }
    }

    #[test]
    fn a_record_is_one_json_object_with_all_of_its_times_in_utc() {
        let expected = serde_json::json!({
            "event": "close", "protocol": "udp", "private": "10.0.1.5:5000",
            "public": "198.51.100.10:31337", "remote": "203.0.113.9:53",
            "opened": "2026-11-21T14:05:00Z", "from": "2026-11-21T14:05:00Z",
            "to": "2026-11-21T14:11:00.25Z", "last_packet": "2026-11-21T14:05:10Z",
            "packets_out": 3, "packets_in": 2, "bytes_out": 300, "bytes_in": 800, "reason": "idle",
        });
        assert_eq!(serde_json::to_value(sample()).expect("JSON"), expected);
    }

    #[test]
    fn the_state_before_the_end_tells_why_a_connection_has_ended() {
        use bytemuck::Zeroable as _;
        let ended = |state: State, idle| {
            reason(&FlowRecord { state: state as u8, idle, ..FlowRecord::zeroed() })
        };
        assert_eq!(ended(State::TcpClosing, 1), Reason::Closed);
        assert_eq!(ended(State::TcpReset, 1), Reason::Reset);
        assert_eq!(ended(State::TcpEstablished, 1), Reason::Idle);
        assert_eq!(ended(State::Udp, 0), Reason::Ended);
    }
}
