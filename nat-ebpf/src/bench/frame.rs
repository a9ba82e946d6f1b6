//! The frames that the generator makes: which flow has which addresses, and the bytes of a frame.
//!
//! A frame is written whole for every packet, because the kernel reuses the pages of live frames
//! and hands them back as the path under test left them (rewritten, TTL decremented).

/// What a frame is; every other number is UDP from a private host to a remote one. Shared with
/// `xtask/src/bench/load.rs`.
pub(crate) mod kind {
    /// TCP SYN from a private host to a remote one.
    pub(crate) const SYN_OUT: u32 = 1;
    /// The answer to a private host's UDP, addressed to the public address.
    pub(crate) const UDP_IN: u32 = 2;
    /// UDP from a remote host to a port of the public address that no session has.
    pub(crate) const UNSOLICITED: u32 = 3;
    /// The answer to `SYN_OUT`.
    pub(crate) const SYN_ACK_IN: u32 = 4;
    /// What follows in a connection, outwards and inwards: an ACK without data.
    pub(crate) const TCP_OUT: u32 = 5;
    pub(crate) const TCP_IN: u32 = 6;
    /// UDP from many private hosts to one remote endpoint.
    pub(crate) const UDP_TO_ONE: u32 = 7;
    /// UDP from a private host to another service than `UDP_OUT`.
    pub(crate) const UDP_ELSEWHERE: u32 = 8;
    /// ICMP echo request from a private host.
    pub(crate) const ECHO_OUT: u32 = 9;

    /// Whether frames of this kind come from the remote hosts.
    #[inline(always)]
    pub(crate) fn is_inbound(kind: u32) -> bool {
        matches!(kind, UDP_IN | UNSOLICITED | SYN_ACK_IN | TCP_IN)
    }
}

/// A 64-byte frame of the wire, less the frame check sequence that no program sees.
pub(crate) const FRAME_LENGTH: usize = 60;
/// Ethernet, IPv4 and TCP headers: the longest prefix that is ever written.
pub(crate) const HEADERS_LENGTH: usize = 54;

const PRIVATE_HOSTS: u32 = 0x0a01_0002; // 10.1.0.2 and the 63 addresses behind it
const REMOTE_HOSTS: u32 = 0xc612_0001; // 198.18.0.1 and up, the benchmark network of RFC 2544
const CROWDED_HOSTS: u32 = 0xc613_0001; // 198.19.0.1 and up: one for each round of `UDP_TO_ONE`
const FIRST_PORT: u32 = 20_000;
pub(crate) const UDP_SERVICE: u16 = 9;
const UDP_SERVICE_ELSEWHERE: u16 = 7;
const TCP_SERVICE: u16 = 80;
const TCP_LENGTH: u32 = 20;

const IP_PROTO_ICMP: u32 = 1;
const IP_PROTO_TCP: u32 = 6;
const IP_PROTO_UDP: u32 = 17;

/// Addresses and ports of one packet, host byte order.
#[derive(Clone, Copy)]
pub(crate) struct Endpoints {
    source: u32,
    destination: u32,
    source_port: u16,
    destination_port: u16,
}

impl Endpoints {
    /// The endpoints of flow `number`; `round` chooses the destination of `UDP_TO_ONE`.
    ///
    /// 16,384 flows share a destination, each with a source port of its own, so that every
    /// translator can keep the source port: the cheapest case for all of them.
    #[inline(always)]
    pub(crate) fn of_flow(kind: u32, number: u32, public: u32, round: u32) -> Self {
        let port = (FIRST_PORT + (number & 0x3fff)) as u16;
        let private = PRIVATE_HOSTS + (number & 63);
        let remote = REMOTE_HOSTS + (number >> 14);
        let out = |service: u16| Self {
            source: private,
            destination: remote,
            source_port: port,
            destination_port: service,
        };
        let back = |service: u16| Self {
            source: remote,
            destination: public,
            source_port: service,
            destination_port: port,
        };
        match kind {
            kind::UDP_IN => back(UDP_SERVICE),
            kind::UNSOLICITED => back(53),
            kind::SYN_ACK_IN | kind::TCP_IN => back(TCP_SERVICE),
            kind::SYN_OUT | kind::TCP_OUT => out(TCP_SERVICE),
            kind::UDP_TO_ONE => Self {
                source: PRIVATE_HOSTS + (number >> 14),
                destination: CROWDED_HOSTS + round,
                source_port: port,
                destination_port: UDP_SERVICE,
            },
            kind::UDP_ELSEWHERE => out(UDP_SERVICE_ELSEWHERE),
            _ => out(UDP_SERVICE),
        }
    }
}

/// One's complement sum folded to 16 bits; `sum` holds fewer than 2^16 addends.
#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum + (sum >> 16)) as u16
}

/// Stores `value` at address `at`, whole.
///
/// `write_unaligned` would be split into byte stores by the BPF backend; the kernel's verifier
/// accepts the whole store where the machine can do it.
///
/// # Safety
/// `at..at + size_of::<T>()` lies inside the packet, as checked against its end.
#[inline(always)]
unsafe fn put<T>(at: usize, value: T) {
    // SAFETY: the caller checked the bounds; packet memory is plain bytes.
    unsafe { *(at as *mut T) = value }
}

/// Writes the frame of `ends` at `data`. False when the buffer is shorter than a frame.
///
/// `length` is that of the whole frame; what lies behind the headers stays zero.
#[inline(always)]
pub(crate) fn write(
    data: usize,
    data_end: usize,
    ethernet: &[u32; 3],
    kind: u32,
    length: u32,
    ends: Endpoints,
) -> bool {
    if data + FRAME_LENGTH > data_end {
        return false;
    }
    let tcp_flags = match kind {
        kind::SYN_OUT => 0x02,
        kind::SYN_ACK_IN => 0x12,
        kind::TCP_OUT | kind::TCP_IN => 0x10,
        _ => 0,
    };
    let (protocol, length) = match kind {
        _ if tcp_flags != 0 => (IP_PROTO_TCP, TCP_LENGTH),
        kind::ECHO_OUT => (IP_PROTO_ICMP, length - 34),
        _ => (IP_PROTO_UDP, length - 34),
    };
    let total = 20 + length;
    let addresses = (ends.source >> 16)
        + (ends.source & 0xffff)
        + (ends.destination >> 16)
        + (ends.destination & 0xffff);
    let ports = u32::from(ends.source_port) + u32::from(ends.destination_port);
    let header = 0x4500 + total + 0x4000 + (64 << 8 | protocol) + addresses;
    let pseudo = addresses + protocol + length + ports;

    // SAFETY: every store ends within FRAME_LENGTH, checked above.
    unsafe {
        put(data, ethernet[0]);
        put(data + 4, ethernet[1]);
        put(data + 8, ethernet[2]);
        put(data + 12, 0x0800u16.to_be());
        put(data + 14, (0x4500_0000 | total).to_be());
        put(data + 18, 0x4000u32.to_be()); // identification 0, don't fragment
        put(data + 22, ((64 << 8 | protocol) as u16).to_be());
        put(data + 24, (!fold(header)).to_be());
        put(data + 26, ends.source.to_be());
        put(data + 30, ends.destination.to_be());
        if protocol == IP_PROTO_ICMP {
            let echo: u32 = 0x0800; // type and code
            put(data + 34, (echo as u16).to_be());
            put(data + 36, (!fold(echo + u32::from(ends.source_port))).to_be());
            put(data + 38, ends.source_port.to_be());
            put(data + 40, 0u16); // sequence number
            return true;
        }
        put(data + 34, ends.source_port.to_be());
        put(data + 36, ends.destination_port.to_be());
        if tcp_flags != 0 {
            let flags: u32 = 0x5000 | tcp_flags; // five words of header
            put(data + 38, 1u32.to_be()); // sequence number
            put(data + 42, 0u32); // acknowledgement
            put(data + 46, (flags << 16 | 0xffff).to_be());
            put(data + 50, u32::from(!fold(pseudo + 1 + flags + 0xffff)).to_be().rotate_right(16));
        } else {
            let checksum = !fold(pseudo + length);
            put(data + 38, (length as u16).to_be());
            put(data + 40, if checksum == 0 { 0xffff } else { checksum.to_be() });
        }
    }
    true
}

/// Sum of `words` 16-bit words at `data`, native order (the sum does not depend on it).
///
/// # Safety
/// The words lie inside the packet.
#[inline(always)]
unsafe fn sum_words(data: usize, words: usize) -> u32 {
    let mut sum = 0;
    let mut index = 0;
    while index < words {
        // SAFETY: the caller checked `words` words.
        sum += u32::from(unsafe { *((data + 2 * index) as *const u16) });
        index += 1;
    }
    sum
}

/// Whether the IPv4 header checksum and the UDP or TCP checksum of a frame as written by
/// [`write`] (and translated since) are right, by full recomputation; of ICMP, its own.
#[inline(always)]
pub(crate) fn checksums_right(data: usize, data_end: usize) -> bool {
    if data + HEADERS_LENGTH > data_end {
        return false;
    }
    // SAFETY: inside the headers, checked above.
    let (header, pseudo, protocol) = unsafe {
        let protocol = u32::from(*((data + 23) as *const u8));
        (sum_words(data + 14, 10), sum_words(data + 26, 4), protocol)
    };
    let segment = if protocol == IP_PROTO_ICMP {
        // SAFETY: the ten words from the ICMP header on end at HEADERS_LENGTH, checked above; all
        // behind the header is zero. The pseudo-header is no part of this checksum.
        return fold(header) == 0xffff && fold(unsafe { sum_words(data + 34, 10) }) == 0xffff;
    } else if protocol == IP_PROTO_TCP {
        // SAFETY: the 20 bytes of the TCP header end at HEADERS_LENGTH, checked above.
        unsafe { sum_words(data + 34, 10) + TCP_LENGTH.to_be().rotate_right(16) }
    } else {
        if data + FRAME_LENGTH > data_end {
            return false;
        }
        // SAFETY: these 26 bytes of the UDP datagram end at FRAME_LENGTH, checked above; all behind
        // its header is zero. The length counts twice: in the pseudo-header too.
        unsafe { sum_words(data + 34, 13) + u32::from(*((data + 38) as *const u16)) }
    };
    let protocol_word = u32::from((protocol as u16).to_be());
    fold(header) == 0xffff && fold(pseudo + protocol_word + segment) == 0xffff
}
