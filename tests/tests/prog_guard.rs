//! The guard against the kernel's own forwarding, with the translating programs taken off: what
//! comes in on the private side, and what of it reaches the wire on the public side.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::Result;
use nat_common::{
    host::packet::{Packet, Payload},
    net::Ip4,
};
use nat_tests::{
    generator::{OTHER_REMOTE, REMOTE, rules},
    kernel::{Arms, GATEWAY, HOST, Kernel, OTHER_HOST, OWNED, SERVER, own_mac},
    packet_socket::PacketSocket,
};

const SESSIONS: u32 = 1024;
/// In no rule: forwarded as ever, and the mark behind which nothing more comes.
const STRANGER: Ip4 = Ip4::new([172, 20, 0, 1]);

struct Guarded {
    kernel: Kernel,
    inside: PacketSocket,
    outside: PacketSocket,
    private: &'static str,
    public: &'static str,
}

impl Guarded {
    fn start(arms: Arms) -> Result<Self> {
        let mut kernel = Kernel::start(arms, "", &rules(""), SESSIONS)?;
        let (private, public) = match arms {
            Arms::Two => ("inside", "outside"),
            Arms::One => ("both", "both"),
        };
        kernel.datapath.attach_guard(kernel.outside, public)?;
        kernel.datapath.detach_xdp(private)?;
        kernel.datapath.detach_xdp(public)?;
        for scope in ["all", private, public] {
            // One wire for both sides is no reason to redirect or to refuse.
            for setting in ["rp_filter", "send_redirects"] {
                std::fs::write(format!("/proc/sys/net/ipv4/conf/{scope}/{setting}"), "0")?;
            }
        }
        let inside = PacketSocket::on(&format!("{private}-peer"))?;
        let outside = PacketSocket::on(&format!("{public}-peer"))?;
        Ok(Self { kernel, inside, outside, private, public })
    }

    fn send_inside(&self, packet: &Packet) -> Result<()> {
        self.inside.send(&Packet { to: own_mac(self.private), ..packet.clone() }.frame())
    }

    fn send_outside(&self, packet: &Packet) -> Result<()> {
        self.outside.send(&Packet { to: own_mac(self.public), ..packet.clone() }.frame())
    }

    /// Addresses of what has come out on the public side since.
    fn came_out(&self) -> Result<Vec<(Ip4, Ip4)>> {
        self.send_inside(&Packet::udp((STRANGER, 1), (OTHER_REMOTE, 1)))?;
        let mut all = Vec::new();
        loop {
            let frame = self.outside.receive()?;
            if frame[12..14] != [0x08, 0x00] {
                continue;
            }
            let address = |at: usize| Ip4::new([0, 1, 2, 3].map(|byte| frame[at + byte]));
            match (address(26), address(30)) {
                (STRANGER, OTHER_REMOTE) => return Ok(all),
                addresses => all.push(addresses),
            }
        }
    }

    fn guarded(&self) -> Result<u64> {
        Ok(self.kernel.counters()?.packets_guarded)
    }
}

/// All that only translation may let out.
fn protected() -> Vec<Packet> {
    vec![
        Packet::udp((HOST, 5000), (REMOTE, 53)),
        Packet::tcp((OTHER_HOST, 5000), (REMOTE, 80), 2),
        Packet::tcp((HOST, 5000), (REMOTE, 80), 0),
        Packet::ping((HOST, 5000), REMOTE),
        Packet::pong(HOST, (REMOTE, 5000)),
        Packet::new(HOST, REMOTE, Payload::Other(47)),
        Packet { options: vec![1; 40], ..Packet::udp((HOST, 5000), (REMOTE, 53)) },
        Packet::udp((SERVER, 5000), (REMOTE, 53)),
        Packet::error(HOST, REMOTE, 3, 3, &Packet::udp((REMOTE, 1), (HOST, 2)).packet(), 28),
    ]
}

fn no_protected_source_passes(arms: Arms) -> Result<()> {
    let gateway = Guarded::start(arms)?;
    let protected = protected();
    for packet in &protected {
        gateway.send_inside(packet)?;
    }
    let large = Packet { data: vec![1; 2000], ..Packet::udp((HOST, 1), (REMOTE, 2)) };
    for mut fragment in large.fragments(1000) {
        fragment[..6].copy_from_slice(&own_mac(gateway.private).0);
        gateway.inside.send(&fragment)?;
    }
    assert_eq!(gateway.came_out()?, []);
    assert_eq!(gateway.guarded()?, protected.len() as u64 + 3, "each is counted");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn two_armed_no_protected_source_leaves_by_the_kernels_own_forwarding() -> Result<()> {
    no_protected_source_passes(Arms::Two)
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn one_armed_no_protected_source_leaves_by_the_kernels_own_forwarding() -> Result<()> {
    no_protected_source_passes(Arms::One)
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn exempt_destinations_and_strangers_pass() -> Result<()> {
    let gateway = Guarded::start(Arms::Two)?;
    let exempt = Ip4::new([10, 99, 0, 1]);
    gateway.send_inside(&Packet::udp((HOST, 5000), (exempt, 53)))?;
    gateway.send_inside(&Packet::udp((STRANGER, 5000), (REMOTE, 53)))?;
    assert_eq!(gateway.came_out()?, [(HOST, exempt), (STRANGER, REMOTE)]);
    assert_eq!(gateway.guarded()?, 0);
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn what_the_host_itself_sends_is_not_the_guards_business() -> Result<()> {
    let gateway = Guarded::start(Arms::One)?;
    // Its own address is within the snat source.
    for address in [GATEWAY, OWNED] {
        let socket = UdpSocket::bind((Ipv4Addr::from(address), 0))?;
        socket.send_to(b"from the host", (Ipv4Addr::from(REMOTE), 53))?;
    }
    assert_eq!(gateway.came_out()?, [(GATEWAY, REMOTE), (OWNED, REMOTE)]);
    assert_eq!(gateway.guarded()?, 0);
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn no_icmp_error_of_the_host_quotes_a_protected_address_outside() -> Result<()> {
    let gateway = Guarded::start(Arms::Two)?;
    // The host's stack answers that it may not live longer, and quotes it.
    gateway.send_outside(&Packet { ttl: 1, ..Packet::udp((REMOTE, 53), (HOST, 5000)) })?;
    assert_eq!(gateway.came_out()?, []);
    assert_eq!(gateway.guarded()?, 1);
    gateway.send_outside(&Packet { ttl: 1, ..Packet::udp((REMOTE, 53), (STRANGER, 5000)) })?;
    let out = gateway.came_out()?;
    assert!(out.iter().all(|(_, to)| *to == REMOTE), "{out:?}");
    assert_eq!(gateway.guarded()?, 1, "a quote of strangers is let go");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn the_inner_guard_stops_what_would_leave_by_an_interface_that_is_not_known() -> Result<()> {
    let mut gateway = Guarded::start(Arms::Two)?;
    let (inside, outside) = (gateway.kernel.inside, gateway.kernel.outside);
    let datapath = &mut gateway.kernel.datapath;
    datapath.attach_inner_guard(inside, "inside")?;
    // As a public interface made anew is.
    datapath.detach_guard("outside")?;
    datapath.clear_interface(outside)?;
    let protected = protected();
    for packet in &protected {
        gateway.send_inside(packet)?;
    }
    let large = Packet { data: vec![1; 2000], ..Packet::udp((HOST, 1), (REMOTE, 2)) };
    for mut fragment in large.fragments(1000) {
        fragment[..6].copy_from_slice(&own_mac(gateway.private).0);
        gateway.inside.send(&fragment)?;
    }
    let exempt = Ip4::new([10, 99, 0, 1]);
    gateway.send_inside(&Packet::udp((HOST, 5000), (exempt, 53)))?;
    assert_eq!(gateway.came_out()?, [(HOST, exempt)], "and strangers pass, too");
    let stopped = protected.len() as u64 + 3;
    assert_eq!(gateway.guarded()?, stopped, "each is counted");

    // To the host, to another private network, and to nowhere: the stack knows what to do.
    gateway.send_inside(&Packet::udp((HOST, 5000), (GATEWAY, 53)))?;
    gateway.send_inside(&Packet::udp((HOST, 5000), (Ip4::new([172, 16, 0, 1]), 53)))?;
    gateway.send_inside(&Packet::udp((HOST, 5000), (Ip4::new([239, 1, 1, 1]), 53)))?;
    gateway.send_inside(&Packet::udp((HOST, 5000), (Ip4::new([255; 4]), 53)))?;
    assert_eq!(gateway.came_out()?, []);
    assert_eq!(gateway.guarded()?, stopped);

    gateway.kernel.datapath.set_other_links(&[outside].into())?;
    gateway.send_inside(&protected[0])?;
    assert_eq!(gateway.came_out()?, [(HOST, REMOTE)], "row 8: none of the gateway's interfaces");
    assert_eq!(gateway.guarded()?, stopped);
    Ok(())
}
