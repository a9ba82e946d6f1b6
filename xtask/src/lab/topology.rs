//! Namespaces, links, addresses and routes of both labs.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::namespace::Namespace;
use super::xdp_program::{XdpAction, XdpProgram};
use super::{Arms, Lab};

pub const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The server's second address.
pub const SERVER_2: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);
/// The gateway's own address towards the clients, and its only one in a one-armed lab.
pub const GATEWAY_PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
/// The gateway's own address towards the router, two-armed.
pub const GATEWAY_PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The router's address towards a two-armed gateway.
pub const ROUTER_PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The router's address on the shared LAN of a one-armed lab.
pub const ROUTER_ONE_ARMED: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 254);

/// Address of client `number`, counted from 1: 10.0.1.5, 10.0.1.6, …
pub fn client_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, 4 + number)
}

/// What can differ from lab to lab.
#[derive(Clone, Debug)]
pub struct LabOptions {
    /// Number of client namespaces, 1 to 90.
    pub clients: u8,
    /// MTU of every link, bytes.
    pub mtu: u32,
    /// MTU of the link between router and server, if it is another.
    pub path_mtu: Option<u32>,
    /// `net.ipv4.ip_forward` of the gateway's host before the gateway starts.
    pub ip_forward: bool,
    /// Generic receive offload on the links that face the gateway: faster TCP, but segments
    /// arrive merged. Off: every frame arrives as it was sent, for exact counts.
    pub gro: bool,
    /// Leaves the peer of a one-armed gateway without the XDP program that frames of `XDP_TX` need.
    pub bare_peer: bool,
    /// Leaves checksum and segmentation offload of veth on everywhere: frames reach the gateway
    /// as GSO super-packets with partial checksums. Native XDP cannot translate those.
    pub offloads: bool,
    /// The gateway translates on tc, and the peers of its interfaces are as veth comes: without
    /// XDP program and GRO.
    pub tc: bool,
    /// Prefix of all names instead of one made of the process id; such a lab survives its
    /// process, until [`Lab::remove_kept`].
    pub prefix: Option<String>,
    /// The natgw to run, instead of [`natgw_binary`](super::natgw_binary)'s.
    pub natgw: Option<PathBuf>,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            clients: 2,
            mtu: 1500,
            path_mtu: None,
            ip_forward: false,
            gro: true,
            bare_peer: false,
            offloads: false,
            tc: false,
            prefix: None,
            natgw: None,
        }
    }
}

impl Lab {
    /// The pool address of examples: 198.51.100.10 two-armed; 10.0.1.100 one-armed, where an
    /// Elastic IP appears as a private address of the instance. Nobody owns it, nor the nine
    /// addresses behind it.
    pub fn eip(&self) -> Ipv4Addr {
        match self.arms {
            Arms::Two => Ipv4Addr::new(198, 51, 100, 10),
            Arms::One => Ipv4Addr::new(10, 0, 1, 100),
        }
    }

    /// A configuration that translates 10.0.1.0/24 to [`Lab::eip`], in native XDP unless the
    /// options say otherwise. More keys of
    /// `[gateway]` can be put in front, whole tables behind.
    pub fn config(&self) -> String {
        self.config_with_pool(&format!("addresses = [\"{}\"]", self.eip()))
    }

    /// [`Lab::config`] with these lines in `[[pool]]`, after its name.
    pub fn config_with_pool(&self, pool: &str) -> String {
        format!(
            "[gateway]\n\
             public = [\"{}\"]\n\
             private = [\"{}\"]\n\
             xdp_mode = \"{}\"\n\
             sessions = 131072\n\
             \n\
             [[pool]]\n\
             name = \"default\"\n\
             {pool}\n\
             \n\
             [[snat]]\n\
             source = [\"10.0.1.0/24\"]\n\
             pool = \"default\"\n",
            self.public_interface(),
            self.private_interface(),
            if self.options.tc { "tc" } else { "native" },
        )
    }

    pub(super) fn wire_two_armed(&mut self) -> Result<()> {
        self.create_namespaces()?;
        self.wire_lan("lan0")?;
        self.link(("gateway", "wan0"), ("router", "pub0"), self.options.mtu)?;
        self.gateway().ip_batch(
            "addr add 10.0.1.1/24 dev lan0\n\
             addr add 198.51.100.2/24 dev wan0\n\
             route add default via 198.51.100.1\n",
        )?;
        self.router().ip_batch("addr add 198.51.100.1/24 dev pub0\n")?;
        self.wire_server()?;
        self.face_gateway("lan", "gw")?;
        self.face_gateway("router", "pub0")
    }

    pub(super) fn wire_one_armed(&mut self) -> Result<()> {
        self.create_namespaces()?;
        self.wire_lan("eth0")?;
        self.link(("router", "lan0"), ("lan", "rt"), self.options.mtu)?;
        self.lan().ip_batch("link set rt master br0\n")?;
        self.gateway().ip_batch(
            "addr add 10.0.1.1/24 dev eth0\n\
             route add default via 10.0.1.254\n",
        )?;
        // The public range is routed to the gateway too: either kind of pool address works.
        self.router().ip_batch(
            "addr add 10.0.1.254/24 dev lan0\n\
             route add 198.51.100.0/24 via 10.0.1.1\n",
        )?;
        self.wire_server()?;
        self.face_gateway("lan", "gw")
    }

    fn create_namespaces(&mut self) -> Result<()> {
        let clients = (1..=self.options.clients).map(|number| format!("client{number}"));
        let others = ["lan", "gateway", "router", "server"].map(str::to_owned);
        for role in clients.chain(others) {
            let name = format!("{}-{role}", self.prefix);
            let namespace = Namespace::create(&role, name, &self.dir)?;
            self.namespaces.push(namespace);
        }
        let forward = if self.options.ip_forward { "1" } else { "0" };
        self.gateway().sysctl("net.ipv4.ip_forward", forward)?;
        self.router().sysctl("net.ipv4.ip_forward", "1")?;
        for role in ["router", "server"] {
            // Traceroute and path-MTU tests must not depend on how many errors went before.
            self.ns(role).sysctl("net.ipv4.icmp_ratelimit", "0")?;
        }
        // One LAN with two routers: a redirect would take a client past the gateway.
        for number in 1..=self.options.clients {
            self.client(number).sysctl("net.ipv4.conf.all.accept_redirects", "0")?;
            self.client(number).sysctl("net.ipv4.conf.default.accept_redirects", "0")?;
        }
        Ok(())
    }

    /// Clients and the gateway's `gateway_interface` on one bridge, as on a cloud's subnet.
    fn wire_lan(&self, gateway_interface: &str) -> Result<()> {
        let mtu = self.options.mtu;
        self.lan().ip_batch(&format!(
            "link add br0 mtu {mtu} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
             link set br0 up\n"
        ))?;
        self.link(("gateway", gateway_interface), ("lan", "gw"), mtu)?;
        let mut ports = "link set gw master br0\n".to_owned();
        for number in 1..=self.options.clients {
            let role = format!("client{number}");
            let port = format!("c{number}");
            self.link((&role, "eth0"), ("lan", &port), mtu)?;
            ports.push_str(&format!("link set {port} master br0\n"));
            self.ns(&role).ip_batch(&format!(
                "addr add {}/24 dev eth0\n\
                 route add default via 10.0.1.1\n",
                client_address(number)
            ))?;
        }
        self.lan().ip_batch(&ports)
    }

    fn wire_server(&self) -> Result<()> {
        let mtu = self.options.path_mtu.unwrap_or(self.options.mtu);
        self.link(("router", "srv0"), ("server", "eth0"), mtu)?;
        self.router().ip_batch("addr add 203.0.113.1/24 dev srv0\n")?;
        self.server().ip_batch(&format!(
            "addr add {SERVER}/24 dev eth0\n\
             addr add {SERVER_2}/24 dev eth0\n\
             route add default via 203.0.113.1\n"
        ))
    }

    fn lan(&self) -> &Namespace {
        self.ns("lan")
    }

    /// A veth pair between two namespaces, both ends up, offloads as the options say.
    fn link(&self, a: (&str, &str), b: (&str, &str), mtu: u32) -> Result<()> {
        let ends = [a, b].map(|(role, interface)| (self.ns(role), interface));
        let [(ns_a, if_a), (ns_b, if_b)] = ends;
        ns_a.ip_batch(&format!(
            "link add {if_a} address {} mtu {mtu} type veth peer name {if_b} address {} mtu {mtu} \
             netns {}\n\
             link set {if_a} up\n",
            mac(ns_a.role(), if_a),
            mac(ns_b.role(), if_b),
            ns_b.name()
        ))?;
        ns_b.ip_batch(&format!("link set {if_b} up\n"))?;
        if self.options.offloads {
            return Ok(());
        }
        for (namespace, interface) in ends {
            // XDP sees frames as they are in memory. With `tx on` veth leaves checksums to a device
            // that never comes, with `txvlan on` the VLAN tag goes beside the frame and is lost.
            let off = ["tx", "off", "tso", "off", "gso", "off", "txvlan", "off"];
            namespace.check(["ethtool", "-K", interface].into_iter().chain(off))?;
        }
        Ok(())
    }

    /// Makes the peer of a gateway's interface take what XDP redirects to it.
    fn face_gateway(&mut self, role: &str, interface: &str) -> Result<()> {
        if self.options.tc {
            return Ok(());
        }
        let namespace = self.ns(role).clone();
        let bounced = self.arms == Arms::One && !self.options.bare_peer;
        if bounced || !self.options.gro {
            let program = XdpProgram::attach(&namespace, interface, XdpAction::Pass)?;
            self.peer_programs.push(program);
        }
        // After the program, whose arrival turns GRO on (veth_xdp_set).
        let gro = if self.options.gro { "on" } else { "off" };
        namespace
            .check(["ethtool", "-K", interface, "gro", gro])
            .with_context(|| format!("cannot turn GRO {gro} on {interface}"))?;
        Ok(())
    }
}

/// A locally administered MAC address that tells its place in a capture, the same in every lab.
fn mac(role: &str, interface: &str) -> String {
    let place = match role {
        "lan" => 0x10,
        "gateway" => 0x20,
        "router" => 0x30,
        "server" => 0x40,
        _ => 0x50,
    };
    // FNV-1a keeps the ports of the bridge apart.
    let hash = format!("{role}/{interface}")
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let [_, a, b, c] = hash.to_be_bytes();
    format!("02:4e:{place:02x}:{a:02x}:{b:02x}:{c:02x}")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::mac;

    #[test]
    fn no_two_ports_of_a_lab_share_a_mac_address() {
        let clients = (1..=90).flat_map(|number| {
            [mac(&format!("client{number}"), "eth0"), mac("lan", &format!("c{number}"))]
        });
        let others = [
            mac("lan", "gw"),
            mac("lan", "rt"),
            mac("gateway", "lan0"),
            mac("gateway", "wan0"),
            mac("gateway", "eth0"),
            mac("router", "pub0"),
            mac("router", "lan0"),
            mac("router", "srv0"),
            mac("server", "eth0"),
        ];
        let mut seen = HashSet::new();
        for address in clients.chain(others) {
            assert!(seen.insert(address.clone()), "{address} twice");
        }
    }
}
