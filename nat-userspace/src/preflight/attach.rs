//! Interfaces: what can be known before attaching. (What a refusal means: `datapath::attach`.)

use anyhow::{Result, bail};

use super::KernelVersion;
use crate::{config::XdpMode, netdev::Link};

/// Largest IP packet that fits an XDP frame of one page: 4096 bytes less headroom (256), shared
/// info (320) and Ethernet header; drivers differ by a few bytes.
pub(crate) const SINGLE_BUFFER_MTU: u32 = 3498;
/// Redirecting frames of several buffers between interfaces.
pub(crate) const MULTI_BUFFER_REDIRECT: KernelVersion = KernelVersion { major: 6, minor: 3 };

/// Checks an interface before anything is attached to it. `ours`: an earlier run of this gateway
/// has left a link there.
///
/// # Errors
/// What would make attaching fail, and how to mend it.
pub fn interface(link: &Link, mode: XdpMode, kernel: KernelVersion, ours: bool) -> Result<()> {
    let name = &link.name;
    // Any interface has tc, and `auto` takes it where native is not to be had.
    if matches!(mode, XdpMode::Tc | XdpMode::Auto) {
        return Ok(());
    }
    if let Some(program) = link.xdp_program
        && !ours
    {
        bail!(
            "another XDP program (id {program}) is attached to {name}, and an interface takes only \
             one; if nothing needs it, remove it with: ip link set dev {name} xdp off"
        );
    }
    if mode != XdpMode::Generic && link.mtu > SINGLE_BUFFER_MTU && kernel < MULTI_BUFFER_REDIRECT {
        bail!(
            "the MTU of {name} is {}: frames above {SINGLE_BUFFER_MTU} bytes need kernel \
             {MULTI_BUFFER_REDIRECT} for native redirection, and this is {kernel}; lower it with: \
             ip link set dev {name} mtu {SINGLE_BUFFER_MTU}, boot a newer kernel, or set xdp_mode \
             = \"tc\"",
            link.mtu
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use nat_common::net::Mac;

    use super::*;

    const OLD: KernelVersion = KernelVersion { major: 6, minor: 1 };
    const NEW: KernelVersion = KernelVersion { major: 6, minor: 3 };

    fn link(mtu: u32, xdp_program: Option<u32>) -> Link {
        Link {
            ifindex: 2,
            name: "eth0".to_owned(),
            ethernet: true,
            mac: Mac([2; 6]),
            mtu,
            up: true,
            kind: None,
            xdp_program,
        }
    }

    #[test]
    fn a_foreign_program_is_refused_and_the_own_one_is_not() {
        let refused = interface(&link(1500, Some(7)), XdpMode::Native, NEW, false);
        assert!(refused.unwrap_err().to_string().contains("xdp off"));
        assert!(interface(&link(1500, Some(7)), XdpMode::Native, NEW, true).is_ok());
    }

    #[test]
    fn a_jumbo_mtu_needs_a_kernel_with_multi_buffer_redirection_unless_generic() {
        let refused = interface(&link(9000, None), XdpMode::Native, OLD, false).unwrap_err();
        assert!(refused.to_string().contains("6.3"), "{refused}");
        assert!(interface(&link(9000, None), XdpMode::Tc, OLD, false).is_ok());
        assert!(interface(&link(9000, None), XdpMode::Native, NEW, false).is_ok());
        assert!(interface(&link(9000, None), XdpMode::Generic, OLD, false).is_ok());
        assert!(interface(&link(3498, None), XdpMode::Native, OLD, false).is_ok());
    }
}
