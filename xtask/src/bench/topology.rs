//! The network of one measured gateway: client, gateway, server; static neighbours, fixed MACs.
//!
//! ```text
//! client c0 10.0.0.2 ── n0 10.0.0.1 gateway n1 198.51.100.1 ── s0 198.51.100.2 server
//! ```
//! 10.1.0.0/16 lies behind c0 and 198.18.0.0/15 behind s0, both by a route with a permanent
//! neighbour: many destinations on one link would measure ARP.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};

use super::namespace::Namespace;

/// Gateway's own address on the public side: what masquerade translates to.
pub(super) const GATEWAY_PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

type Mac = [u8; 6];
const C0: Mac = [2, 0, 0, 0, 0, 0xc0];
const N0: Mac = [2, 0, 0, 0, 1, 0xa0];
const N1: Mac = [2, 0, 0, 0, 1, 0xa1];
const S0: Mac = [2, 0, 0, 0, 0, 0xe0];

/// Three namespaces joined by two veth pairs.
#[derive(Debug)]
pub(super) struct Topology {
    pub client: Namespace,
    pub gateway: Namespace,
    pub server: Namespace,
}

impl Topology {
    /// Builds the network; `tag` keeps the names of several apart, `queues` is the number of
    /// receive and transmit queues of each interface.
    pub(super) fn build(tag: &str, queues: usize) -> Result<Self> {
        let prefix = format!("natbench-{}-{tag}", std::process::id());
        let topology = Self {
            client: Namespace::create(&format!("{prefix}-client"))?,
            gateway: Namespace::create(&format!("{prefix}-gateway"))?,
            server: Namespace::create(&format!("{prefix}-server"))?,
        };
        let Self { client, gateway, server } = &topology;
        for namespace in [client, gateway, server] {
            // Neighbour discovery would mix its frames into the load.
            namespace.set("ipv6/conf/default/disable_ipv6", "1")?;
        }
        gateway.set("ipv4/ip_forward", "1")?;
        let ends = format!("numrxqueues {queues} numtxqueues {queues}");
        let pair = |near: &str, near_mac: &Mac, far: &str, far_mac: &Mac, far_namespace: String| {
            format!(
                "link add {near} {ends} address {} type veth peer name {far} {ends} address {} netns {far_namespace}\n",
                text(near_mac),
                text(far_mac)
            )
        };
        let links = pair("n0", &N0, "c0", &C0, format!("{prefix}-client"))
            + &pair("n1", &N1, "s0", &S0, format!("{prefix}-server"));
        gateway.feed("ip", &["-batch", "-"], &links)?;
        client.feed("ip", &["-batch", "-"], "address add 10.0.0.2/30 dev c0\nlink set c0 up\n")?;
        server.feed(
            "ip",
            &["-batch", "-"],
            "address add 198.51.100.2/24 dev s0\nlink set s0 up\n",
        )?;
        let routes = format!(
            "address add 10.0.0.1/30 dev n0\naddress add {GATEWAY_PUBLIC}/24 dev n1\nlink set n0 up\nlink set n1 up\n\
             neighbour replace 10.0.0.2 lladdr {} nud permanent dev n0\n\
             neighbour replace 198.51.100.2 lladdr {} nud permanent dev n1\n\
             route add 10.1.0.0/16 via 10.0.0.2\nroute add 198.18.0.0/15 via 198.51.100.2\n",
            text(&C0),
            text(&S0)
        );
        gateway.feed("ip", &["-batch", "-"], &routes)?;
        Ok(topology)
    }

    /// First twelve bytes of a frame from the client to the gateway.
    pub(super) fn ethernet_out() -> [u32; 3] {
        ethernet(&N0, &C0)
    }

    /// The same from the server to the gateway.
    pub(super) fn ethernet_in() -> [u32; 3] {
        ethernet(&N1, &S0)
    }

    /// The same from the gateway to the server.
    pub(super) fn ethernet_forwarded() -> [u32; 3] {
        ethernet(&S0, &N1)
    }
}

/// Index of `interface` in `namespace`.
pub(super) fn interface_index(namespace: &Namespace, interface: &str) -> Result<u32> {
    let _inside = namespace.enter()?;
    nix::net::if_::if_nametoindex(interface).with_context(|| format!("index of {interface}"))
}

fn text(mac: &Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Destination and source as the three words that a little or big endian CPU stores unchanged.
fn ethernet(destination: &Mac, source: &Mac) -> [u32; 3] {
    let mut bytes = [0; 12];
    bytes[..6].copy_from_slice(destination);
    bytes[6..].copy_from_slice(source);
    let word =
        |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    [word(0), word(4), word(8)]
}
