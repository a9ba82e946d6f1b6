//! The frame of a question, and the words for a frame.

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use nat_common::net::Mac;

use crate::{
    api::trace::{PacketText, TcpFlag, TraceQuery},
    config::Protocol,
};

/// Whoever stands at the other end of the wire: no address that anybody has.
const SENDER: [u8; 6] = [0x02, 0, 0, 0, 0, 1];

/// The packet that is asked about, as it would come to an interface of this Ethernet address.
///
/// # Errors
/// What is wrong with the question, and what would be right.
pub fn frame(query: &TraceQuery, mac: Mac) -> Result<Vec<u8>, String> {
    let flags = query.flags().map_err(|word| {
        let known: Vec<&str> = TcpFlag::ALL.iter().map(|flag| flag.word()).collect();
        format!("\"{word}\" is no TCP flag; write some of {} with + between", known.join(", "))
    })?;
    let (from, to) = (query.from.address.octets(), query.to.address.octets());
    let mut ip = etherparse::Ipv4Header::new(0, query.ttl, protocol(query.protocol), from, to)
        .map_err(|error| error.to_string())?;
    ip.dont_fragment = query.dont_fragment;
    let ip = PacketBuilder::ethernet2(SENDER, mac.0)
        .ip(etherparse::IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default()));
    let ports = match (query.from.port, query.to.port) {
        (Some(from), Some(to)) => Ok((from, to)),
        _ => Err(format!(
            "a {} packet has ports: write --from ADDR:PORT and --to ADDR:PORT",
            query.protocol
        )),
    };
    let headers = match query.protocol {
        Protocol::Tcp => 40,
        Protocol::Udp | Protocol::Icmp => 28,
    };
    let length = query.length.unwrap_or(headers);
    let Some(payload) = length.checked_sub(headers) else {
        return Err(format!(
            "the headers of a {} packet have {headers} bytes; write --length {headers} or more",
            query.protocol
        ));
    };
    let payload = vec![0; usize::from(payload)];
    let mut frame = Vec::new();
    let written = match query.protocol {
        Protocol::Tcp => {
            let (from, to) = ports?;
            let mut tcp = ip.tcp(from, to, 1, 65535);
            for flag in flags {
                tcp = match flag {
                    TcpFlag::Syn => tcp.syn(),
                    TcpFlag::Ack => tcp.ack(1),
                    TcpFlag::Fin => tcp.fin(),
                    TcpFlag::Rst => tcp.rst(),
                    TcpFlag::Psh => tcp.psh(),
                };
            }
            tcp.write(&mut frame, &payload)
        }
        Protocol::Udp => {
            let (from, to) = ports?;
            ip.udp(from, to).write(&mut frame, &payload)
        }
        // The identifier stands on the side that asks.
        Protocol::Icmp => match (query.from.port, query.to.port) {
            (None | Some(0), Some(id)) if id != 0 => {
                ip.icmpv4_echo_reply(id, 1).write(&mut frame, &payload)
            }
            (id, _) => ip.icmpv4_echo_request(id.unwrap_or(1), 1).write(&mut frame, &payload),
        },
    };
    written.map_err(|error| error.to_string())?;
    Ok(frame)
}

const fn protocol(protocol: Protocol) -> etherparse::IpNumber {
    match protocol {
        Protocol::Tcp => etherparse::IpNumber::TCP,
        Protocol::Udp => etherparse::IpNumber::UDP,
        Protocol::Icmp => etherparse::IpNumber::ICMP,
    }
}

/// Destination Ethernet address and headers of a frame; nothing where it is no IPv4 packet.
#[must_use]
pub fn describe(frame: &[u8]) -> Option<(String, PacketText)> {
    let sliced = SlicedPacket::from_ethernet(frame).ok()?;
    let next_hop: [u8; 6] = frame.get(..6)?.try_into().ok()?;
    let Some(NetSlice::Ipv4(ip)) = &sliced.net else { return None };
    let header = ip.header();
    let (from, to) = (header.source_addr(), header.destination_addr());
    let (name, sport, dport) = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let set = [
                (tcp.syn(), "SYN"),
                (tcp.ack(), "ACK"),
                (tcp.fin(), "FIN"),
                (tcp.rst(), "RST"),
                (tcp.psh(), "PSH"),
            ];
            let flags: Vec<&str> =
                set.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect();
            (format!("tcp {}", flags.join(" ")), tcp.source_port(), tcp.destination_port())
        }
        Some(TransportSlice::Udp(udp)) => {
            ("udp".to_owned(), udp.source_port(), udp.destination_port())
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            let [a, b, ..] = icmp.bytes5to8();
            let id = u16::from_be_bytes([a, b]);
            match (icmp.type_u8(), icmp.code_u8()) {
                (8, _) => ("icmp echo request".to_owned(), id, 0),
                (0, _) => ("icmp echo reply".to_owned(), 0, id),
                (11, _) => ("icmp time exceeded (11/0)".to_owned(), 0, 0),
                (3, 4) => {
                    let [_, _, c, d] = icmp.bytes5to8();
                    let mtu = u16::from_be_bytes([c, d]);
                    (format!("icmp fragmentation needed (3/4), MTU {mtu}"), 0, 0)
                }
                (3, 13) => ("icmp administratively prohibited (3/13)".to_owned(), 0, 0),
                (kind, code) => (format!("icmp {kind}/{code}"), 0, 0),
            }
        }
        _ => (format!("protocol {}", header.protocol().0), 0, 0),
    };
    let mut packet = PacketText::new(name.trim_end(), (from, sport), (to, dport));
    packet.ttl = header.ttl();
    packet.length = header.total_len();
    Some((Mac(next_hop).to_string(), packet))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(from: &str, to: &str, protocol: Protocol) -> TraceQuery {
        TraceQuery {
            from: from.parse().expect("an endpoint"),
            to: to.parse().expect("an endpoint"),
            protocol,
            interface: None,
            length: None,
            ttl: 64,
            dont_fragment: false,
            tcp_flags: "syn".to_owned(),
        }
    }

    fn told(query: &TraceQuery) -> PacketText {
        let frame = frame(query, Mac([2; 6])).expect("a frame");
        let (mac, packet) = describe(&frame).expect("a packet");
        assert_eq!(mac, "02:02:02:02:02:02");
        packet
    }

    #[test]
    fn a_question_becomes_the_packet_that_it_is_about() {
        let mut tcp = query("10.0.0.5:4000", "192.0.2.1:443", Protocol::Tcp);
        tcp.tcp_flags = "fin+ack".to_owned();
        tcp.length = Some(1500);
        let packet = told(&tcp);
        assert_eq!(
            (packet.protocol.as_str(), packet.length, packet.ttl),
            ("tcp ACK FIN", 1500, 64)
        );
        assert_eq!(packet.from.to_string(), "10.0.0.5:4000");
        assert_eq!(packet.to.to_string(), "192.0.2.1:443");
        assert_eq!(told(&query("10.0.0.5:1", "192.0.2.1:53", Protocol::Udp)).protocol, "udp");
    }

    #[test]
    fn the_identifier_of_an_echo_stands_on_the_side_that_asks() {
        let request = told(&query("10.0.0.5:7", "192.0.2.1", Protocol::Icmp));
        assert_eq!((request.protocol.as_str(), request.from.port()), ("icmp echo request", 7));
        let reply = told(&query("192.0.2.1", "198.51.100.1:7", Protocol::Icmp));
        assert_eq!((reply.protocol.as_str(), reply.to.port()), ("icmp echo reply", 7));
    }

    #[test]
    fn a_question_without_a_packet_says_what_would_be_one() {
        let wrong = |query: &TraceQuery| frame(query, Mac([2; 6])).expect_err("no packet");
        let mut tcp = query("10.0.0.5", "192.0.2.1:443", Protocol::Tcp);
        assert!(wrong(&tcp).contains("--from ADDR:PORT"));
        tcp.from = "10.0.0.5:1".parse().expect("an endpoint");
        tcp.tcp_flags = "syn+fun".to_owned();
        assert!(wrong(&tcp).contains("\"fun\" is no TCP flag"));
        tcp.tcp_flags = "syn".to_owned();
        tcp.length = Some(20);
        assert!(wrong(&tcp).contains("--length 40"));
    }
}
