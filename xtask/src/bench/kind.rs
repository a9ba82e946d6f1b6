//! What can be measured.

use std::net::Ipv4Addr;

use serde::Serialize;

use super::{load::Tables, natgw, topology::GATEWAY_PUBLIC};

/// A way through the gateway. The order is the order of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    /// The generator drops its own frames: nothing is measured but it.
    GeneratorAlone,
    /// Bare XDP redirection: MAC addresses and out.
    Floor,
    /// The same, and a line of memory of each flow.
    LineFloor,
    /// The same, and two entries into a hash map: the least that it takes to open a session there.
    EntriesFloor,
    /// The least that a gateway in XDP can do with what it does not let in: drop it.
    DropFloor,
    /// natgw, XDP in the driver.
    NatgwNative,
    /// natgw at the tc hook.
    NatgwTc,
    /// nftables masquerade, frames counted by an XDP program at the far end.
    NftXdpSink,
    /// nftables masquerade, frames counted by a tc program at the far end. Cheaper or dearer than
    /// the XDP one by a few percent; ratios use whichever is faster.
    NftSkbSink,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::GeneratorAlone => "generator alone",
            Self::Floor => "floor: bare XDP redirect",
            Self::LineFloor => "floor: XDP redirect and one line of memory",
            Self::EntriesFloor => "floor: XDP redirect and two entries into a hash map",
            Self::DropFloor => "floor: bare XDP drop",
            Self::NatgwNative => "natgw, native XDP",
            Self::NatgwTc => "natgw, tc",
            Self::NftXdpSink => "nft masquerade, XDP sink",
            Self::NftSkbSink => "nft masquerade, skb sink",
        }
    }

    pub(super) fn is_nft(self) -> bool {
        matches!(self, Self::NftXdpSink | Self::NftSkbSink)
    }

    /// Without the sink, which only the generator's frames need.
    pub(super) fn name_of_path(self) -> &'static str {
        if self.is_nft() { "nft masquerade" } else { self.name() }
    }

    /// The program that stands in for a gateway.
    pub(super) fn floor(self) -> Option<&'static str> {
        match self {
            Self::Floor => Some("floor"),
            Self::LineFloor => Some("recall"),
            Self::EntriesFloor => Some("enter"),
            _ => None,
        }
    }

    /// What that remembers flows in, of which there are so many; natgw with so many sessions has as many entries.
    pub(super) fn tables(self, flows: u32, sessions: u32) -> Tables {
        match self {
            // One for each direction.
            Self::LineFloor => Tables { lines: (2 * flows).next_power_of_two(), entries: 0 },
            Self::EntriesFloor => Tables { lines: 0, entries: 2 * sessions },
            _ => Tables::default(),
        }
    }

    /// natgw's `--xdp-mode`; none for the others.
    pub(super) fn hook(self) -> Option<&'static str> {
        match self {
            Self::NatgwNative => Some("native"),
            Self::NatgwTc => Some("tc"),
            _ => None,
        }
    }

    pub(super) fn tag(self) -> &'static str {
        match self {
            Self::GeneratorAlone => "gen",
            Self::Floor => "floor",
            Self::LineFloor => "line",
            Self::EntriesFloor => "entries",
            Self::DropFloor => "drop",
            Self::NatgwNative => "natgw",
            Self::NatgwTc => "natgwtc",
            Self::NftXdpSink => "nft",
            Self::NftSkbSink => "nftskb",
        }
    }

    /// Source address of translated packets; none where nothing is translated.
    pub(super) fn public(self) -> Option<Ipv4Addr> {
        match self {
            Self::GeneratorAlone
            | Self::Floor
            | Self::LineFloor
            | Self::EntriesFloor
            | Self::DropFloor => None,
            Self::NatgwNative | Self::NatgwTc => Some(natgw::POOL),
            Self::NftXdpSink | Self::NftSkbSink => Some(GATEWAY_PUBLIC),
        }
    }
}
