//! The networks that a test is repeated over.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use xtask::lab::{Lab, LabOptions, SERVER};

/// Long enough for anything that happens at once, on a slow machine under load.
pub const SOON: Duration = Duration::from_secs(10);
/// After so long without a frame nothing more is on its way.
pub const QUIET: Duration = Duration::from_millis(300);

/// How the gateway is wired, and how large its frames are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wiring {
    TwoArmed,
    OneArmed,
    /// On tc, between interfaces with all that veth offloads by default.
    TwoArmedTc,
    OneArmedTc,
    /// Two-armed, MTU 9000.
    Jumbo,
    /// One-armed, MTU 9000.
    JumboOneArmed,
}

impl Wiring {
    /// A lab of this wiring.
    pub fn lab(self) -> Result<Lab> {
        self.lab_with(LabOptions::default())
    }

    /// [`Wiring::lab`] with options of the test's own; the MTU stays the wiring's.
    pub fn lab_with(self, options: LabOptions) -> Result<Lab> {
        let mtu =
            if matches!(self, Self::Jumbo | Self::JumboOneArmed) { 9000 } else { options.mtu };
        let tc = options.tc || matches!(self, Self::TwoArmedTc | Self::OneArmedTc);
        let offloads = options.offloads || (tc && !options.tc);
        let options = LabOptions { mtu, tc, offloads, ..options };
        if self.is_one_armed() { Lab::one_armed(options) } else { Lab::two_armed(options) }
    }

    pub fn is_one_armed(self) -> bool {
        matches!(self, Self::OneArmed | Self::OneArmedTc | Self::JumboOneArmed)
    }

    /// The router's address on the hop behind the gateway.
    pub fn next_hop(self) -> Ipv4Addr {
        if self.is_one_armed() { xtask::lab::ROUTER_ONE_ARMED } else { xtask::lab::ROUTER_PUBLIC }
    }

    /// The gateway's own address towards the router.
    pub fn gateway_outside(self) -> Ipv4Addr {
        if self.is_one_armed() { xtask::lab::GATEWAY_PRIVATE } else { xtask::lab::GATEWAY_PUBLIC }
    }
}

/// A port of the server.
pub fn at_server(port: u16) -> SocketAddr {
    SocketAddr::from((SERVER, port))
}
