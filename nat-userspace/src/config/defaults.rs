//! What a file leaves out: the contract's defaults, those marked "(profile)" by profile.

use std::time::Duration;

use super::model::{Filtering, Mapping, Profile, Timeouts};

pub const NAME: &str = "default";
pub const CONFIG_FILE: &str = "/etc/natgw/natgw.toml";
pub const STATE_DIR: &str = "/run/natgw";
pub const BPF_DIR: &str = "/sys/fs/bpf/natgw";
pub const SESSIONS: u32 = 1_048_576;

pub struct ProfileDefaults {
    pub hairpin: bool,
    pub idle_reset: bool,
    pub mapping: Mapping,
    pub filtering: Filtering,
    pub timeouts: Timeouts,
}

impl Profile {
    #[must_use]
    pub const fn defaults(self) -> ProfileDefaults {
        match self {
            Self::Aws => ProfileDefaults {
                hairpin: false,
                idle_reset: true,
                mapping: Mapping::AddressAndPortDependent,
                filtering: Filtering::AddressAndPortDependent,
                timeouts: Timeouts {
                    tcp_established: Duration::from_secs(350),
                    tcp_transitory: Duration::from_secs(60),
                    udp: Duration::from_secs(350),
                    icmp: Duration::from_secs(60),
                    port_hold: Duration::ZERO,
                },
            },
            Self::Rfc => ProfileDefaults {
                hairpin: true,
                idle_reset: false,
                mapping: Mapping::EndpointIndependent,
                filtering: Filtering::AddressDependent,
                timeouts: Timeouts {
                    // RFC 5382 REQ-5: no less than 2 hours 4 minutes, and 4 minutes.
                    tcp_established: Duration::from_secs(2 * 3600 + 4 * 60),
                    tcp_transitory: Duration::from_secs(4 * 60),
                    // RFC 4787 REQ-5c.
                    udp: Duration::from_secs(5 * 60),
                    // RFC 5508 REQ-2.
                    icmp: Duration::from_secs(60),
                    // RFC 6888 REQ-8.
                    port_hold: Duration::from_secs(2 * 60),
                },
            },
        }
    }
}
