//! Frames that no socket would send: chosen to the byte, broken on purpose, or random.

use std::net::Ipv4Addr;

use anyhow::Result;
use etherparse::{IpHeaders, IpNumber, Ipv4Header, PacketBuilder, PacketBuilderStep};
use xtask::lab::{Lab, SERVER, client_address};

/// From whom to whom.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
}

/// TCP flags, RFC 9293 section 3.1.
pub mod flag {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
    pub const URG: u8 = 32;
}

/// Where the fields of a frame without tags and options are.
const IP: usize = 14;
const L4: usize = IP + 20;
const FIRST_PAYLOAD: &[u8] = b"payload of a test frame";

impl Path {
    /// From client 1 to the server, as the client's own stack would send it. The two hosts have
    /// met, so that answers need no neighbour resolution.
    pub fn outward(lab: &Lab) -> Result<Self> {
        lab.client(1).check(["ping", "-n", "-c", "1", "-W", "5", "10.0.1.1"])?;
        Ok(Self {
            source_mac: lab.client(1).interface("eth0")?.mac,
            destination_mac: lab.gateway().interface(lab.private_interface())?.mac,
            source: client_address(1),
            destination: SERVER,
        })
    }

    /// From the server to the pool address, as the router would send it to the gateway.
    pub fn inward(lab: &Lab) -> Result<Self> {
        let (router, interface) = lab.outside();
        Ok(Self {
            source_mac: router.interface(interface)?.mac,
            destination_mac: lab.gateway().interface(lab.public_interface())?.mac,
            source: SERVER,
            destination: lab.eip(),
        })
    }

    fn ip(&self) -> PacketBuilderStep<IpHeaders> {
        let header = Ipv4Header {
            source: self.source.octets(),
            destination: self.destination.octets(),
            time_to_live: 64,
            identification: 1,
            ..Ipv4Header::default()
        };
        PacketBuilder::ethernet2(self.source_mac, self.destination_mac)
            .ip(IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default()))
    }

    pub fn udp(&self, from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
        write(|out| self.ip().udp(from, to).write(out, payload))
    }

    /// A segment with these flags and sequence numbers out of the air.
    pub fn tcp(&self, from: u16, to: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut tcp = etherparse::TcpHeader::new(from, to, 0x1000_0000, 4096);
        tcp.acknowledgment_number = if flags & flag::ACK == 0 { 0 } else { 0x2000_0000 };
        tcp.fin = flags & flag::FIN != 0;
        tcp.syn = flags & flag::SYN != 0;
        tcp.rst = flags & flag::RST != 0;
        tcp.psh = flags & flag::PSH != 0;
        tcp.ack = flags & flag::ACK != 0;
        tcp.urg = flags & flag::URG != 0;
        write(|out| self.ip().tcp_header(tcp).write(out, payload))
    }

    pub fn echo_request(&self, id: u16, number: u16) -> Vec<u8> {
        write(|out| self.ip().icmpv4_echo_request(id, number).write(out, FIRST_PAYLOAD))
    }

    pub fn echo_reply(&self, id: u16, number: u16) -> Vec<u8> {
        write(|out| self.ip().icmpv4_echo_reply(id, number).write(out, FIRST_PAYLOAD))
    }

    /// An ICMP message of any type; `body` follows type, code and checksum.
    pub fn icmp(&self, kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
        let mut message = vec![kind, code, 0, 0];
        message.extend(body);
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum);
        self.raw(1, &message)
    }

    /// Any protocol with any content.
    pub fn raw(&self, protocol: u8, content: &[u8]) -> Vec<u8> {
        write(|out| self.ip().write(out, IpNumber(protocol), content))
    }
}

fn write<E: std::fmt::Debug>(build: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Vec<u8> {
    let mut out = Vec::new();
    build(&mut out).expect("a packet that fits");
    out
}

/// The Internet checksum (RFC 1071), in network order.
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    (!(folded as u16)).to_be_bytes()
}

/// The frame with a right IP header checksum again, after its header was changed.
fn sealed(mut frame: Vec<u8>) -> Vec<u8> {
    let header = usize::from(frame[IP] & 15) * 4;
    frame[IP + 10..IP + 12].fill(0);
    let sum = checksum(&frame[IP..(IP + header).min(frame.len())]);
    frame[IP + 10..IP + 12].copy_from_slice(&sum);
    frame
}

/// The frame with other bytes from `at` on, its IP checksum right.
fn with(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    sealed(frame)
}

/// The frame with so many hops to live.
pub fn with_hops(frame: Vec<u8>, hops: u8) -> Vec<u8> {
    with(frame, IP + 8, &[hops])
}

/// Each kind of packet that belongs to no session and may open none, or is broken, by name.
pub fn untranslatable(path: &Path) -> Vec<(&'static str, Vec<u8>)> {
    use flag::{ACK, FIN, PSH, RST, SYN, URG};
    let udp = path.udp(40_000, 53, FIRST_PAYLOAD);
    let syn = path.tcp(40_001, 80, SYN, &[]);
    let quoted = udp[IP..L4 + 8].to_vec();
    let about = |quote: &[u8]| [&[0; 4], quote].concat();
    let foreign = Path { destination: path.source, source: path.destination, ..*path };
    let answered = foreign.udp(53, 40_999, FIRST_PAYLOAD)[IP..L4 + 8].to_vec();
    let options = |option: &[u8]| {
        let mut frame = udp.clone();
        frame.splice(L4..L4, option.iter().copied());
        frame[IP] = 0x45 + (option.len() / 4) as u8;
        let length = (frame.len() - IP) as u16;
        frame[IP + 2..IP + 4].copy_from_slice(&length.to_be_bytes());
        sealed(frame)
    };
    let source = |address: [u8; 4]| with(udp.clone(), IP + 12, &address);
    let mut bad_sum = udp.clone();
    bad_sum[IP + 10] ^= 0x55;
    let router: [u8; 4] = path.destination.octets();
    let loose_route = [&[0x83, 7, 4][..], &router, &[0]].concat();
    let mut tagged = udp.clone();
    tagged.splice(12..12, [0x81, 0, 0, 7]);
    let mut twice = tagged.clone();
    twice.splice(12..12, [0x88, 0xa8, 0, 8]);
    vec![
        ("stray ACK", path.tcp(40_002, 80, ACK, &[])),
        ("stray data", path.tcp(40_003, 80, ACK | PSH, FIRST_PAYLOAD)),
        ("stray SYN-ACK", path.tcp(40_004, 80, SYN | ACK, &[])),
        ("stray FIN", path.tcp(40_005, 80, FIN | ACK, &[])),
        ("stray RST", path.tcp(40_006, 80, RST, &[])),
        ("no flags", path.tcp(40_007, 80, 0, &[])),
        ("SYN and FIN", path.tcp(40_008, 80, SYN | FIN, &[])),
        ("SYN and RST", path.tcp(40_009, 80, SYN | RST, &[])),
        ("FIN alone", path.tcp(40_010, 80, FIN, &[])),
        ("all flags", path.tcp(40_011, 80, FIN | SYN | RST | PSH | ACK | URG, &[])),
        ("data offset below the header", with(syn.clone(), L4 + 12, &[0x40])),
        ("data offset beyond the packet", with(syn.clone(), L4 + 12, &[0xf0])),
        ("TCP cut off", path.raw(6, &syn[L4..L4 + 12])),
        ("TCP source port 0", path.tcp(0, 80, SYN, &[])),
        ("TCP destination port 0", path.tcp(40_012, 0, SYN, &[])),
        ("UDP source port 0", path.udp(0, 53, FIRST_PAYLOAD)),
        ("UDP destination port 0", path.udp(40_013, 0, FIRST_PAYLOAD)),
        ("UDP cut off", path.raw(17, &udp[L4..L4 + 6])),
        ("UDP length below the header", with(udp.clone(), L4 + 4, &[0, 7])),
        ("UDP length beyond the packet", with(udp.clone(), L4 + 4, &[0xff, 0])),
        ("echo reply without a request", path.echo_reply(41_000, 1)),
        ("timestamp reply without a request", path.icmp(14, 0, &[0; 16])),
        ("unreachable without a session", path.icmp(3, 3, &about(&answered))),
        ("unreachable about itself", path.icmp(3, 3, &about(&quoted))),
        ("time exceeded without a session", path.icmp(11, 0, &about(&answered))),
        ("error with a short quote", path.icmp(3, 3, &about(&quoted[..20]))),
        ("error without a quote", path.icmp(3, 1, &[0; 4])),
        ("source quench", path.icmp(4, 0, &about(&quoted))),
        ("redirect", path.icmp(5, 1, &about(&quoted))),
        ("router solicitation", path.icmp(10, 0, &[0; 4])),
        ("unknown ICMP type", path.icmp(200, 0, &[0; 4])),
        ("ICMP cut off", path.raw(1, &[8, 0, 0xf7, 0xff])),
        ("GRE", path.raw(47, &[0; 32])),
        ("ESP", path.raw(50, &[0; 32])),
        ("SCTP", path.raw(132, &[0; 32])),
        ("IP in IP", path.raw(4, &udp[IP..])),
        ("no known protocol", path.raw(253, &[0; 32])),
        ("no content", path.raw(17, &[])),
        ("wrong IP checksum", bad_sum),
        ("version 5", with(udp.clone(), IP, &[0x55])),
        ("header of 16 bytes", with(udp.clone(), IP, &[0x44])),
        ("header beyond the packet", with(path.raw(17, &[0; 8]), IP, &[0x4f])),
        ("total length beyond the frame", with(udp.clone(), IP + 2, &[0x7f, 0])),
        ("total length below the header", with(udp.clone(), IP + 2, &[0, 19])),
        ("IP header cut off", udp[..IP + 12].to_vec()),
        ("loose source route", options(&loose_route)),
        ("broken option", options(&[0x83, 200, 0, 0])),
        ("TTL 0", with(udp.clone(), IP + 8, &[0])),
        ("TTL 1", with(udp.clone(), IP + 8, &[1])),
        ("first fragment too short", with(path.raw(6, &syn[L4..L4 + 8]), IP + 6, &[0x20, 0])),
        ("later fragment alone", with(udp.clone(), IP + 6, &[0, 185])),
        ("later fragment with more", with(udp.clone(), IP + 6, &[0x20, 64])),
        ("reserved bit", with(path.raw(253, &[0; 32]), IP + 6, &[0x80, 0])),
        ("source loopback", source([127, 0, 0, 1])),
        ("source multicast", source([224, 0, 0, 1])),
        ("source broadcast", source([255, 255, 255, 255])),
        ("source zero", source([0, 0, 0, 0])),
        ("VLAN tag", tagged),
        ("two VLAN tags", twice),
        ("Ethernet alone", udp[..IP].to_vec()),
    ]
}

/// splitmix64: the same frames in every run.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.word() % limit.max(1) as u64) as usize
    }
}

/// `count` frames: translatable and untranslatable ones with some bytes changed, most with the
/// IP checksum made right again, and some that are random behind their IP header. Ethernet
/// addresses and the source address stay: what would leave is a leak.
pub fn mutated(path: &Path, count: usize, seed: u64) -> Vec<Vec<u8>> {
    let mut random = Random(seed);
    let mut seeds: Vec<Vec<u8>> =
        untranslatable(path).into_iter().map(|(_, frame)| frame).collect();
    seeds.extend([
        path.udp(42_000, 53, FIRST_PAYLOAD),
        path.tcp(42_001, 80, flag::SYN, &[]),
        path.echo_request(42_002, 1),
    ]);
    (0..count)
        .map(|_| {
            let mut frame = seeds[random.below(seeds.len())].clone();
            if random.below(4) == 0 && frame.len() > L4 {
                for byte in &mut frame[L4..] {
                    *byte = random.word() as u8;
                }
            }
            for _ in 0..=random.below(4) {
                // From the EtherType on, without the source address.
                let at = 12 + random.below(frame.len() - 12);
                if !(IP + 12..IP + 16).contains(&at) {
                    frame[at] = random.word() as u8;
                }
            }
            if random.below(3) != 0 && frame.len() >= L4 { sealed(frame) } else { frame }
        })
        .collect()
}
