//! Who a frame is from and to, as far as its kept beginning tells.

use std::net::{Ipv4Addr, SocketAddrV4};

const ETHERTYPE_IPV4: [u8; 2] = [8, 0];
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Endpoints of an IPv4 packet. For ICMP queries the identifier stands on the side that asks, as in
/// `natgw flows`; what has no ports has 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// IP protocol number.
    pub protocol: u8,
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
    /// It is an ICMP error, and these are the endpoints of the packet that it is about, turned
    /// round: it goes the way of an answer to that.
    pub is_error: bool,
}

/// Nothing where it is no IPv4, or too little was kept.
#[must_use]
pub fn headers(frame: &[u8]) -> Option<Headers> {
    if *frame.get(12..14)? != ETHERTYPE_IPV4 {
        return None;
    }
    packet(frame.get(14..)?, true)
}

fn packet(ip: &[u8], outermost: bool) -> Option<Headers> {
    let header_length = usize::from(ip.first()? & 15) * 4;
    let protocol = *ip.get(9)?;
    let address = |at: usize| -> Option<Ipv4Addr> {
        Some(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?.into())
    };
    let (source, destination) = (address(12)?, address(16)?);
    let with = |sport, dport, is_error| Headers {
        protocol,
        from: SocketAddrV4::new(source, sport),
        to: SocketAddrV4::new(destination, dport),
        is_error,
    };
    // A later fragment has no transport header.
    let later = u16::from_be_bytes([*ip.get(6)?, *ip.get(7)?]) & 0x1fff != 0;
    let body = ip.get(header_length..).filter(|_| !later).unwrap_or_default();
    let number = |at: usize| Some(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?]));
    let found = match (protocol, body.first()) {
        (TCP | UDP, Some(_)) => with(number(0)?, number(2)?, false),
        // Requests, RFC 792 and RFC 950.
        (ICMP, Some(8 | 13 | 15 | 17)) => with(number(4)?, 0, false),
        (ICMP, Some(0 | 14 | 16 | 18)) => with(0, number(4)?, false),
        (ICMP, Some(3 | 4 | 5 | 11 | 12)) if outermost => {
            let about = packet(body.get(8..)?, false)?;
            Headers { from: about.to, to: about.from, is_error: true, ..about }
        }
        _ => with(0, 0, false),
    };
    Some(found)
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn endpoint(text: &str) -> SocketAddrV4 {
        text.parse().expect("an endpoint")
    }

    fn udp(payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 1, 5], [203, 0, 113, 10], 64)
            .udp(4000, 53)
            .write(&mut frame, payload)
            .expect("a frame");
        frame
    }

    #[test]
    fn endpoints_are_read_from_the_first_bytes_alone() {
        let frame = udp(&[0; 100]);
        let wanted = Headers {
            protocol: UDP,
            from: endpoint("10.0.1.5:4000"),
            to: endpoint("203.0.113.10:53"),
            is_error: false,
        };
        assert_eq!(headers(&frame), Some(wanted));
        assert_eq!(headers(&frame[..42]), Some(wanted));
        assert_eq!(headers(&frame[..30]), None);
        assert_eq!(headers(&[0; 60]), None, "no IPv4");
    }

    #[test]
    fn an_error_is_about_the_packet_that_it_quotes() {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([192, 0, 2, 1], [198, 51, 100, 10], 64)
            .icmpv4_raw(11, 0, [0; 4])
            .write(&mut frame, &udp(&[1; 8])[14..])
            .expect("a frame");
        let found = headers(&frame).expect("headers");
        assert!(found.is_error);
        assert_eq!(
            (found.from, found.to),
            (endpoint("203.0.113.10:53"), endpoint("10.0.1.5:4000"))
        );
    }

    #[test]
    fn an_identifier_stands_on_the_side_that_asks() {
        let echo = |request: bool| {
            let builder =
                PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 1, 5], [203, 0, 113, 10], 64);
            let builder = if request {
                builder.icmpv4_echo_request(7, 1)
            } else {
                builder.icmpv4_echo_reply(7, 1)
            };
            let mut frame = Vec::new();
            builder.write(&mut frame, &[]).expect("a frame");
            let found = headers(&frame).expect("headers");
            (found.from.port(), found.to.port())
        };
        assert_eq!((echo(true), echo(false)), ((7, 0), (0, 7)));
    }
}
