//! The figures that the bench is run for: their names in the JSON, what they are, and what the
//! project aims at.

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Aim {
    AtLeast(f64),
    AtMost(f64),
}

impl Aim {
    pub(super) fn is_met_by(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }

    pub(super) fn text(self) -> String {
        match self {
            Self::AtLeast(least) => format!("≥ {least}"),
            Self::AtMost(most) => format!("≤ {most}"),
        }
    }
}

/// One figure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figure {
    pub name: &'static str,
    pub what: &'static str,
    pub aim: Aim,
    /// What bounds it wherever it is measured, and is measured beside it: the one thing that no translator can
    /// do without, or what is left of natgw's own program when it waits for nothing.
    pub bound: Option<&'static str>,
}

impl Figure {
    const fn bounded_by(self, bound: &'static str) -> Self {
        Self { bound: Some(bound), ..self }
    }
}

/// Its instructions, and the one call.
const WARM: &str = "the same program with ten of the sessions, which wait for no memory";
/// A translator has to remember something of each flow.
const LINE: &str = "one line of memory a packet";
const REDIRECT_LINE: &str = "bare redirection with one line of memory a packet";
/// Where sessions are at home in a hash map, each has an entry for each direction.
const ENTRIES: &str = "bare redirection with two entries into a hash map a packet";

const fn least(name: &'static str, aim: f64, what: &'static str) -> Figure {
    Figure { name, what, aim: Aim::AtLeast(aim), bound: None }
}

const fn most(name: &'static str, aim: f64, what: &'static str) -> Figure {
    Figure { name, what, aim: Aim::AtMost(aim), bound: None }
}

/// All of them, in the order of the JSON and of the table.
pub(super) const FIGURES: [Figure; 23] = [
    least(
        "pps_vs_nft_64b_1k",
        5.3,
        "packets/s, 64-byte UDP, 1,000 sessions, one core, to nftables masquerade",
    ),
    least("pps_vs_floor_64b_1k", 0.88, "the same to bare XDP redirection"),
    least("pps_vs_nft_64b_1m", 6.0, "packets/s with 1,000,000 sessions, to nftables masquerade")
        .bounded_by(REDIRECT_LINE),
    least("pps_scaling_2_cores", 1.9, "packets/s of two cores to one"),
    most("ns_established_1k", 30.0, "translation alone, ns a packet, 1,000 sessions")
        .bounded_by(WARM),
    most("ns_established_1m", 120.0, "translation alone, ns a packet, 1,000,000 sessions")
        .bounded_by(LINE),
    most("ns_established_4m", 180.0, "translation alone, ns a packet, 4,000,000 sessions")
        .bounded_by(LINE),
    most("growth_4m_over_1k", 6.0, "the last of these to the first"),
    least("cps_vs_nft_udp", 4.4, "new UDP sessions/s, to nftables masquerade").bounded_by(ENTRIES),
    least("cps_vs_nft_tcp", 4.4, "new TCP sessions (SYNs)/s, to nftables masquerade")
        .bounded_by(ENTRIES),
    least(
        "exhaustion_success_99",
        1.0,
        "share of attempts that get a port, from 99 % of the ports in use to the last",
    ),
    least("exhaustion_success_999", 1.0, "the same from 99.9 % in use"),
    least("exhaustion_success_last_port", 1.0, "the same with one port free"),
    most("exhaustion_ns_99", 1000.0, "ns of an attempt with 99 % of the ports in use")
        .bounded_by(ENTRIES),
    most("exhaustion_ns_full", 300.0, "ns of an attempt when no port is free"),
    most("bytes_per_session", 430.0, "kernel memory of all maps at capacity 1,048,576"),
    most("expiry_1m_cpu_ms", 100.0, "CPU of one whole sweep over 1,000,000 sessions, ms"),
    most("expiry_1m_worst_slice_ms", 1.0, "its longest slice, ms"),
    most("expiry_pps_loss", 0.02, "share of throughput lost beside the sweep"),
    least(
        "flood_vs_nft",
        7.0,
        "unsolicited inbound packets/s, to nftables masquerade with a drop rule",
    ),
    most(
        "flood_established_loss",
        0.0,
        "share of established packets lost beside a flood, a SYN flood and a full table",
    ),
    least("tcp_goodput_vs_nft", 1.0, "iperf3 over veth, best hook, to nftables masquerade"),
    most("rtt_vs_nft_p50", 1.02, "median round trip over veth, best hook, to nftables masquerade"),
];

/// The figure of this name.
pub(super) fn find(name: &str) -> Option<&'static Figure> {
    FIGURES.iter().find(|figure| figure.name == name)
}
