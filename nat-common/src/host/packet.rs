//! Packets for tests: made and checked by `etherparse`, so that nothing of the engine judges
//! itself. Checksums are recomputed over the whole packet.
#![cfg_attr(
    not(test),
    expect(
        clippy::expect_used,
        clippy::panic,
        clippy::unwrap_used,
        clippy::indexing_slicing,
        reason = "a test that cannot build or read its packet has failed"
    )
)]

use std::{borrow::ToOwned as _, format, string::String, vec::Vec};

use etherparse::{
    Icmpv4Header, Icmpv4Type, IpFragOffset, IpNumber, Ipv4Header, Ipv4HeaderSlice, Ipv4Options,
    TcpHeader, TcpHeaderSlice, UdpHeader, UdpHeaderSlice, checksum::Sum16BitWords,
};

use crate::net::{Ip4, Mac};

/// Bytes of the Ethernet header.
pub const ETHERNET: usize = 14;

/// An address and a port, or an ICMP identifier.
pub type Endpoint = (Ip4, u16);

#[must_use]
pub const fn ip(a: u8, b: u8, c: u8, d: u8) -> Ip4 {
    Ip4::new([a, b, c, d])
}

/// What the IP packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    Tcp {
        sport: u16,
        dport: u16,
        flags: u8,
        seq: u32,
        ack: u32,
        options: Vec<u8>,
    },
    Udp {
        sport: u16,
        dport: u16,
        checksum: bool,
    },
    /// Type, code, bytes 4 to 7.
    Icmp {
        kind: u8,
        code: u8,
        rest: [u8; 4],
    },
    Other(u8),
}

/// A packet to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub from: Mac,
    pub to: Mac,
    pub src: Ip4,
    pub dst: Ip4,
    pub ttl: u8,
    pub id: u16,
    pub tos: u8,
    pub dont_fragment: bool,
    pub more_fragments: bool,
    /// In units of eight bytes.
    pub offset: u16,
    /// Multiple of four bytes.
    pub options: Vec<u8>,
    pub payload: Payload,
    pub data: Vec<u8>,
}

impl Packet {
    #[must_use]
    pub fn new(src: Ip4, dst: Ip4, payload: Payload) -> Self {
        Self {
            from: Mac([2, 0, 0, 0, 0, 1]),
            to: Mac([2, 0, 0, 0, 0, 2]),
            src,
            dst,
            ttl: 64,
            id: 0x1234,
            tos: 0,
            dont_fragment: true,
            more_fragments: false,
            offset: 0,
            options: Vec::new(),
            payload,
            data: b"twelve bytes".to_vec(),
        }
    }

    #[must_use]
    pub fn udp(src: Endpoint, dst: Endpoint) -> Self {
        let payload = Payload::Udp { sport: src.1, dport: dst.1, checksum: true };
        Self::new(src.0, dst.0, payload)
    }

    /// `flags` as in the TCP header (RFC 793).
    #[must_use]
    pub fn tcp(src: Endpoint, dst: Endpoint, flags: u8) -> Self {
        let (sport, dport) = (src.1, dst.1);
        let payload =
            Payload::Tcp { sport, dport, flags, seq: 1000, ack: 2000, options: Vec::new() };
        Self { data: Vec::new(), ..Self::new(src.0, dst.0, payload) }
    }

    #[must_use]
    pub fn icmp(src: Ip4, dst: Ip4, kind: u8, code: u8, rest: [u8; 4]) -> Self {
        Self::new(src, dst, Payload::Icmp { kind, code, rest })
    }

    /// An echo request.
    #[must_use]
    pub fn ping(src: Endpoint, dst: Ip4) -> Self {
        let [a, b] = src.1.to_be_bytes();
        Self::icmp(src.0, dst, 8, 0, [a, b, 0, 1])
    }

    /// An echo reply.
    #[must_use]
    pub fn pong(src: Ip4, dst: Endpoint) -> Self {
        let [a, b] = dst.1.to_be_bytes();
        Self::icmp(src, dst.0, 0, 0, [a, b, 0, 1])
    }

    /// An ICMP error that quotes the first `bytes` bytes of an IP packet.
    #[must_use]
    pub fn error(src: Ip4, dst: Ip4, kind: u8, code: u8, quoted: &[u8], bytes: usize) -> Self {
        let data = quoted[..bytes.min(quoted.len())].to_vec();
        Self { data, ..Self::icmp(src, dst, kind, code, [0, 0, 0x05, 0x78]) }
    }

    /// The IP packet alone.
    #[must_use]
    pub fn packet(&self) -> Vec<u8> {
        self.frame().split_off(ETHERNET)
    }

    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let body = self.body();
        let mut ip = Ipv4Header::new(
            u16::try_from(body.len()).expect("it fits into a packet"),
            self.ttl,
            IpNumber(self.protocol()),
            self.src.octets(),
            self.dst.octets(),
        )
        .expect("it fits into a packet");
        ip.dscp = (self.tos >> 2).try_into().expect("six bits");
        ip.identification = self.id;
        ip.dont_fragment = self.dont_fragment;
        ip.more_fragments = self.more_fragments;
        ip.fragment_offset = IpFragOffset::try_new(self.offset).expect("thirteen bits");
        ip.options = Ipv4Options::try_from(self.options.as_slice()).expect("whole words");
        ip.total_len = u16::try_from(ip.header_len() + body.len()).expect("it fits");
        ip.header_checksum = ip.calc_header_checksum();
        let mut frame = [self.to.0, self.from.0].concat();
        frame.extend([0x08, 0x00]);
        frame.extend(ip.to_bytes());
        frame.extend(body);
        frame
    }

    #[must_use]
    pub const fn protocol(&self) -> u8 {
        match self.payload {
            Payload::Tcp { .. } => 6,
            Payload::Udp { .. } => 17,
            Payload::Icmp { .. } => 1,
            Payload::Other(protocol) => protocol,
        }
    }

    fn body(&self) -> Vec<u8> {
        let (src, dst) = (self.src.octets(), self.dst.octets());
        let mut body = match &self.payload {
            _ if self.offset != 0 => Vec::new(),
            Payload::Tcp { sport, dport, flags, seq, ack, options } => {
                let mut tcp = TcpHeader::new(*sport, *dport, *seq, 0xfaf0);
                tcp.set_options_raw(options).expect("at most forty bytes");
                (tcp.fin, tcp.syn) = (flags & 1 != 0, flags & 2 != 0);
                (tcp.rst, tcp.psh) = (flags & 4 != 0, flags & 8 != 0);
                (tcp.ack, tcp.urg) = (flags & 16 != 0, flags & 32 != 0);
                tcp.acknowledgment_number = *ack;
                tcp.checksum = tcp.calc_checksum_ipv4_raw(src, dst, &self.data).expect("it fits");
                tcp.to_bytes().to_vec()
            }
            Payload::Udp { sport, dport, checksum } => {
                let length = u16::try_from(8 + self.data.len()).expect("it fits");
                let mut udp = UdpHeader {
                    source_port: *sport,
                    destination_port: *dport,
                    length,
                    checksum: 0,
                };
                if *checksum {
                    udp.checksum =
                        udp.calc_checksum_ipv4_raw(src, dst, &self.data).expect("it fits");
                }
                udp.to_bytes().to_vec()
            }
            Payload::Icmp { kind, code, rest } => {
                let icmp = Icmpv4Type::Unknown { type_u8: *kind, code_u8: *code, bytes5to8: *rest };
                Icmpv4Header::with_checksum(icmp, &self.data).to_bytes().to_vec()
            }
            Payload::Other(_) => Vec::new(),
        };
        body.extend(&self.data);
        body
    }

    /// The frames of this packet cut into fragments with `size` bytes of payload each.
    #[must_use]
    pub fn fragments(&self, size: usize) -> Vec<Vec<u8>> {
        assert_eq!(size % 8, 0, "fragments are cut at multiples of eight");
        let body = self.body();
        let count = body.len().div_ceil(size);
        let piece = |(index, bytes): (usize, &[u8])| {
            let mut frame = Self {
                payload: Payload::Other(self.protocol()),
                dont_fragment: false,
                more_fragments: index + 1 < count,
                offset: 0,
                data: bytes.to_vec(),
                ..self.clone()
            }
            .frame();
            let offset = u16::try_from(index * size / 8).expect("it fits into a packet");
            let [high, low] = (u16::from_be_bytes([frame[20], frame[21]]) | offset).to_be_bytes();
            (frame[20], frame[21]) = (high, low);
            mend_ip(&mut frame);
            frame
        };
        body.chunks(size).enumerate().map(piece).collect()
    }
}

/// Makes the checksum of the IP header right after it was changed.
pub fn mend_ip(frame: &mut [u8]) {
    let header = usize::from(frame[ETHERNET] & 15) * 4;
    frame[24..26].fill(0);
    let sum = Sum16BitWords::new().add_slice(&frame[ETHERNET..ETHERNET + header]);
    frame[24..26].copy_from_slice(&sum.ones_complement().to_ne_bytes());
}

/// What a frame says, every checksum in it found right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub from: Mac,
    pub to: Mac,
    pub src: Ip4,
    pub dst: Ip4,
    /// 0 for what has none; the identifier of ICMP queries stands for both.
    pub sport: u16,
    pub dport: u16,
    pub protocol: u8,
    pub ttl: u8,
    pub id: u16,
    pub options: Vec<u8>,
    /// What the IP packet carries, header included.
    pub body: Vec<u8>,
    /// What the transport carries; the quote of an ICMP error.
    pub data: Vec<u8>,
}

impl Seen {
    #[must_use]
    pub const fn source(&self) -> Endpoint {
        (self.src, self.sport)
    }

    #[must_use]
    pub const fn destination(&self) -> Endpoint {
        (self.dst, self.dport)
    }

    /// Flags of a TCP segment.
    #[must_use]
    pub fn tcp_flags(&self) -> u8 {
        self.body[13]
    }

    /// Type and code of an ICMP message.
    #[must_use]
    pub fn icmp(&self) -> (u8, u8) {
        (self.body[0], self.body[1])
    }

    /// Bytes 6 and 7 of an ICMP message: the MTU of 3/4.
    #[must_use]
    pub fn icmp_mtu(&self) -> u16 {
        u16::from_be_bytes([self.body[6], self.body[7]])
    }

    /// The packet that an ICMP error quotes, as far as it is quoted.
    ///
    /// # Panics
    /// Where its IP header is not sound.
    #[must_use]
    pub fn quote(&self) -> Self {
        match read(&self.data, true) {
            Ok(quote) => quote,
            Err(fault) => panic!("the quoted packet: {fault}: {:02x?}", self.data),
        }
    }
}

/// Reads a frame with an IPv4 packet.
///
/// # Panics
/// Where anything in it is wrong: a length, or a checksum.
#[must_use]
pub fn seen(frame: &[u8]) -> Seen {
    match try_seen(frame) {
        Ok(seen) => seen,
        Err(fault) => panic!("{fault}: {frame:02x?}"),
    }
}

/// As [`seen`].
///
/// # Errors
/// What is wrong.
pub fn try_seen(frame: &[u8]) -> Result<Seen, String> {
    if frame.get(12..14) != Some(&[0x08, 0x00]) {
        return Err("no IPv4".to_owned());
    }
    let mut seen = read(&frame[ETHERNET..], false)?;
    seen.to = Mac(frame[..6].try_into().unwrap());
    seen.from = Mac(frame[6..12].try_into().unwrap());
    Ok(seen)
}

fn read(packet: &[u8], quoted: bool) -> Result<Seen, String> {
    let slice = Ipv4HeaderSlice::from_slice(packet).map_err(|error| format!("{error}"))?;
    let header = slice.to_header();
    if header.calc_header_checksum() != header.header_checksum {
        return Err("the checksum of the IP header is wrong".to_owned());
    }
    let length = slice.slice().len();
    let end = usize::from(header.total_len);
    let whole = end <= packet.len();
    if !whole && !quoted {
        return Err(format!("{} bytes of {end}", packet.len()));
    }
    let body = &packet[length..end.min(packet.len())];
    let mut seen = Seen {
        from: Mac::default(),
        to: Mac::default(),
        src: Ip4::new(header.source),
        dst: Ip4::new(header.destination),
        sport: 0,
        dport: 0,
        protocol: header.protocol.0,
        ttl: header.time_to_live,
        id: header.identification,
        options: header.options.to_vec(),
        body: body.to_vec(),
        data: Vec::new(),
    };
    if header.is_fragmenting_payload() {
        return Ok(seen);
    }
    let ports = || (u16::from_be_bytes([body[0], body[1]]), u16::from_be_bytes([body[2], body[3]]));
    match seen.protocol {
        6 | 17 if !whole => (seen.sport, seen.dport) = ports(),
        6 => {
            let tcp = TcpHeaderSlice::from_slice(body).map_err(|error| format!("{error}"))?;
            (seen.sport, seen.dport) = ports();
            seen.data = body[tcp.slice().len()..].to_vec();
            let right = tcp
                .calc_checksum_ipv4_raw(header.source, header.destination, &seen.data)
                .map_err(|error| format!("{error}"))?;
            if right != tcp.checksum() {
                return Err(format!("TCP checksum {:04x} instead of {right:04x}", tcp.checksum()));
            }
        }
        17 => {
            let udp = UdpHeaderSlice::from_slice(body).map_err(|error| format!("{error}"))?;
            (seen.sport, seen.dport) = ports();
            seen.data = body[8..usize::from(udp.length()).max(8).min(body.len())].to_vec();
            let right = udp
                .to_header()
                .calc_checksum_ipv4_raw(header.source, header.destination, &seen.data)
                .map_err(|error| format!("{error}"))?;
            if udp.checksum() != 0 && right != udp.checksum() {
                return Err(format!("UDP checksum {:04x} instead of {right:04x}", udp.checksum()));
            }
        }
        1 => {
            if body.len() < 8 {
                return Err("a short ICMP message".to_owned());
            }
            if whole && Sum16BitWords::new().add_slice(body).ones_complement() != 0 {
                return Err("the ICMP checksum is wrong".to_owned());
            }
            seen.data = body[8..].to_vec();
            if !matches!(body[0], 3 | 4 | 5 | 11 | 12) {
                let id = u16::from_be_bytes([body[4], body[5]]);
                (seen.sport, seen.dport) = (id, id);
            }
        }
        _ => seen.data = body.to_vec(),
    }
    Ok(seen)
}
