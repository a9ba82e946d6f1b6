//! What became of a packet.
//!
//! One enum is counter index, metric label, command-line text and documentation at once. Append
//! only: the numbers are stored in pinned maps and shown to users.

/// The end of a packet's way. Every received packet has exactly one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Translated or routed towards the public side.
    ToDestination,
    /// Translated towards the private side.
    ToSource,
    /// Left to the host's own stack, unchanged.
    ToHost,
    /// Consumed and answered by the gateway (ARP, ICMP, RST).
    Answered,
    /// Handed to the slow path, which will bring it back or give it a reason.
    Held,
    Drop(DropReason),
}

impl Verdict {
    const DROPPED: u32 = 0x100;

    /// As a number, never 0: between one object and the daemon that carries it.
    #[inline(always)]
    pub fn code(self) -> u32 {
        match self {
            Self::ToDestination => 1,
            Self::ToSource => 2,
            Self::ToHost => 3,
            Self::Answered => 4,
            Self::Held => 5,
            // Opaque, so that the compiler keeps the byte a byte.
            Self::Drop(reason) => Self::DROPPED | u32::from(core::hint::black_box(reason as u8)),
        }
    }

    /// Whether the code is a drop's, of whatever reason.
    #[inline(always)]
    pub const fn is_drop(code: u32) -> bool {
        code & Self::DROPPED != 0
    }

    pub const fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::ToDestination),
            2 => Some(Self::ToSource),
            3 => Some(Self::ToHost),
            4 => Some(Self::Answered),
            5 => Some(Self::Held),
            code if Self::is_drop(code) => match DropReason::from_u8(code as u8) {
                Some(reason) => Some(Self::Drop(reason)),
                None => None,
            },
            _ => None,
        }
    }
}

macro_rules! drop_reasons {
    ($($(#[$attribute:meta])* $variant:ident = $number:literal, $name:literal, $meaning:literal;)*) => {
        /// Why a packet was dropped. The number is its place in `Counters::drops`.
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum DropReason {
            $($(#[$attribute])* #[doc = $meaning] $variant = $number,)*
        }

        impl DropReason {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The label of the metric and the key in JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// One sentence for the operator: what happened, and what to look at.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }

            #[inline(always)]
            pub const fn from_u8(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

drop_reasons! {
    MalformedEthernet = 0, "malformed_ethernet",
        "The frame is shorter than its Ethernet header says; look for a faulty sender or driver.";
    MalformedIp = 1, "malformed_ip",
        "The IPv4 header is wrong: version, header length, total length beyond the frame or not there (BIG TCP, on tc), or checksum.";
    MalformedTcp = 2, "malformed_tcp",
        "The TCP header is cut off, its data offset is wrong, or its flags are a combination that no sender means (such as SYN with FIN, or none).";
    MalformedUdp = 3, "malformed_udp",
        "The UDP header is cut off or its length disagrees with the IP length.";
    MalformedIcmp = 4, "malformed_icmp",
        "The ICMP message is cut off, or an error message quotes less than an IP header and 8 bytes.";
    PortZero = 5, "port_zero",
        "Source or destination port is 0, which is reserved and cannot be translated.";
    ProtocolUnsupported = 6, "protocol_unsupported",
        "Neither TCP, UDP nor ICMP; many-to-one translation needs ports. Give the host a one_to_one address for other protocols.";
    IcmpUnsupported = 7, "icmp_unsupported",
        "An ICMP type that is neither a query nor an error that translation allows.";
    Unsolicited = 8, "unsolicited",
        "From outside to a public address, and no session, forward or one-to-one mapping wants it.";
    TcpNoSession = 9, "tcp_no_session",
        "A TCP segment from inside that is not a SYN and belongs to no session: it expired, or the gateway was started after the connection.";
    IcmpNoSession = 10, "icmp_no_session",
        "An ICMP reply or error that belongs to no session.";
    ErrorPortAllocation = 11, "error_port_allocation",
        "No free port towards this destination on any address of the pool: add an Elastic IP, or shorten timeouts.";
    SessionTableFull = 12, "session_table_full",
        "The session table is full; live sessions are never evicted. Raise gateway.sessions.";
    SessionConflict = 13, "session_conflict",
        "A forwarded packet would need a session whose private side already belongs to another one.";
    SessionLimit = 14, "session_limit",
        "The private host has reached sessions_per_host.";
    SessionRate = 15, "session_rate",
        "The private host opens sessions faster than new_sessions_per_second_per_host.";
    NoAddress = 16, "no_address",
        "The pool of the matching snat rule has no active address.";
    PoolInterface = 17, "pool_interface",
        "The route leaves by another public interface than the one the pool is bound to.";
    NoRoute = 18, "no_route",
        "The host has no route for the translated packet, or the route leaves the gateway's interfaces.";
    NoNeighbour = 19, "no_neighbour",
        "The next hop's Ethernet address is unknown; it is being resolved.";
    TtlExceeded = 20, "ttl_exceeded",
        "The packet's TTL ran out here and no ICMP error may be sent about it.";
    PacketTooBig = 21, "packet_too_big",
        "Larger than the MTU of the way out, and no ICMP error may be sent about it.";
    FragmentationNeeded = 22, "fragmentation_needed",
        "Larger than the MTU of the way out, may be fragmented, and the slow path that fragments is not available.";
    FragmentOrphan = 23, "fragment_orphan",
        "A fragment whose first fragment did not come in time.";
    FragmentTiny = 24, "fragment_tiny",
        "A first fragment too short for its transport header (RFC 1858).";
    FragmentOverlap = 25, "fragment_overlap",
        "A fragment that overlaps one already seen (RFC 5722 reasoning), or a second first fragment that differs.";
    FragmentTableFull = 26, "fragment_table_full",
        "Too many fragmented packets at once.";
    HairpinOff = 27, "hairpin_off",
        "From inside to a public address of the gateway; hairpinning is off in this profile.";
    PartialChecksum = 28, "partial_checksum",
        "The checksum is only the pseudo-header's sum: the sender is a virtual interface with checksum offload. Run ethtool -K IFACE tx off on it.";
    RateLimited = 29, "rate_limited",
        "An ICMP error or RST was due, but the gateway's own limit for them was reached.";
    EgressFailed = 30, "egress_failed",
        "The interface refused the frame after the program had let it go (queue full, link down, or no XDP transmit resources).";
    EgressMissing = 31, "egress_missing",
        "The way out is an interface that has just disappeared.";
    SlowPathUnavailable = 32, "slow_path_unavailable",
        "The packet needs the daemon (fragments, neighbour resolution), and it is not running, its queue is full, or the packet is longer than can wait (16 KB, on tc).";
    Internal = 33, "internal",
        "A step of the dataplane was missing. Please report it.";
    Martian = 34, "martian",
        "A source address that no packet may have (loopback, multicast, broadcast, or a public address of the gateway itself).";
    IcmpChecksum = 35, "icmp_checksum",
        "The checksum of an ICMP message, or of the header it quotes, is wrong (RFC 5508 REQ-3).";
    FilteredEndpoint = 36, "filtered",
        "From a remote endpoint that the filtering of the mapping does not admit.";
    HeldTimeout = 37, "held_timeout",
        "An unsolicited SYN was held (profile rfc) and is not answered, because its connection was opened from inside meanwhile.";
    EgressUnknown = 38, "egress_unknown",
        "The route leaves by an interface that has appeared since the daemon last looked, so it may be a public one made anew; if this does not end by itself, the daemon is not running.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_dense_and_have_names_of_their_own() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert_eq!(DropReason::from_u8(index as u8), Some(*reason));
            assert!(DropReason::ALL[..index].iter().all(|r| r.name() != reason.name()));
        }
        assert!(DropReason::ALL.len() <= crate::counters::Counters::DROPS);
    }
}
