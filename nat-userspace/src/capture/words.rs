//! What is written beside a packet: which session it belongs to, and what became of it.

use std::{fmt, net::SocketAddrV4};

use nat_common::{net::proto, verdict::Verdict};

use super::{Captured, Headers, headers};
use crate::{api::capture::CaptureRequest, config::Protocol};

/// The parts that endpoints have in a session, as far as they are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// IP protocol number.
    pub protocol: u8,
    pub private: Option<SocketAddrV4>,
    pub public: Option<SocketAddrV4>,
    pub remote: Option<SocketAddrV4>,
}

/// The session that a packet belongs to, by its two forms; where it did not leave, `known` says
/// the private and the public side of its session, if it has one.
#[must_use]
pub fn join(
    captured: &Captured<'_>,
    known: impl FnOnce(&Headers) -> Option<(SocketAddrV4, SocketAddrV4)>,
) -> Option<Roles> {
    let came = headers(captured.came)?;
    let outbound = captured.head.from_source != 0;
    let (inside, outside) = if outbound { (came.from, came.to) } else { (came.to, came.from) };
    let pair = match (Verdict::from_code(captured.head.verdict), headers(captured.left)) {
        (Some(Verdict::ToDestination), Some(left)) => Some((came.from, left.from)),
        (Some(Verdict::ToSource), Some(left)) => Some((left.to, came.to)),
        _ => known(&came),
    };
    let protocol = came.protocol;
    Some(match pair {
        // Both directions of a packet between two private hosts are outbound and inbound at once.
        Some((private, public)) => {
            let remote = match Verdict::from_code(captured.head.verdict) {
                Some(Verdict::ToDestination) => came.to,
                Some(Verdict::ToSource) => came.from,
                _ => outside,
            };
            Roles { protocol, private: Some(private), public: Some(public), remote: Some(remote) }
        }
        None if outbound => {
            Roles { protocol, private: Some(inside), public: None, remote: Some(outside) }
        }
        None => Roles { protocol, private: None, public: Some(inside), remote: Some(outside) },
    })
}

/// Whether a packet is one of those that were asked for. `roles`: of an IPv4 packet.
#[must_use]
pub fn is_meant(request: &CaptureRequest, code: u32, roles: Option<&Roles>) -> bool {
    if request.drops && !Verdict::is_drop(code) {
        return false;
    }
    let CaptureRequest { private, public, remote, protocol, .. } = *request;
    let Some(roles) = roles else {
        return private.is_none() && public.is_none() && remote.is_none() && protocol.is_none();
    };
    let pairs = [(private, roles.private), (public, roles.public), (remote, roles.remote)];
    pairs.into_iter().all(|(wanted, is)| {
        wanted.is_none_or(|wanted| is.is_some_and(|endpoint| wanted.matches(endpoint)))
    }) && protocol.is_none_or(|protocol| number(protocol) == roles.protocol)
}

/// IP protocol number.
pub(crate) const fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => proto::TCP,
        Protocol::Udp => proto::UDP,
        Protocol::Icmp => proto::ICMP,
    }
}

/// What became of a packet; `leaves`: the interface that it leaves by.
#[must_use]
pub fn verdict(code: u32, leaves: Option<&str>) -> String {
    let by = leaves.map_or_else(String::new, |name| format!(" by {name}"));
    match Verdict::from_code(code) {
        Some(Verdict::ToDestination) => format!("sent to the destination{by}"),
        Some(Verdict::ToSource) => format!("sent to the source{by}"),
        Some(Verdict::ToHost) => "left to the host".to_owned(),
        Some(Verdict::Answered) => format!("answered{by}"),
        Some(Verdict::Held) => "held, and comes back from the slow path".to_owned(),
        Some(Verdict::Drop(reason)) => {
            format!("dropped: {}: {}", reason.name(), reason.meaning())
        }
        None => "what became of it is not known".to_owned(),
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            proto::TCP => "tcp".to_owned(),
            proto::UDP => "udp".to_owned(),
            proto::ICMP => "icmp".to_owned(),
            other => format!("protocol {other}"),
        };
        match (self.private, self.public, self.remote) {
            (Some(private), Some(public), Some(remote)) => {
                write!(f, "{protocol} session {private} -> {public} -> {remote}")
            }
            (Some(private), None, Some(remote)) => {
                write!(f, "{protocol}, no session: {private} -> {remote}")
            }
            (None, Some(public), Some(remote)) => {
                write!(f, "{protocol}, no session: {public} <- {remote}")
            }
            _ => write!(f, "{protocol}, no session"),
        }
    }
}
