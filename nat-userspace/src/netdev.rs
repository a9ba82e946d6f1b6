//! The network as the kernel tells it: links, addresses, routes, neighbours.
//!
//! The only place that knows rtnetlink, whose API changes often. Two connections: one for requests,
//! one for events, so that a flood of events can not delay an answer. An event says only *that*
//! something changed; what is true is then read anew, so a lost event costs nothing but a reading.

mod neighbour;
mod parse;
mod watch;

use std::{collections::BTreeMap, net::Ipv4Addr};

use futures::{StreamExt as _, TryStreamExt as _};
use nat_common::net::Mac;
use rtnetlink::{
    IpVersion, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressScope},
        neighbour::NeighbourMessage,
    },
};

pub use neighbour::{Neighbour, NeighbourTable};
pub use watch::{Changes, Watch};

#[derive(Debug, thiserror::Error)]
pub enum NetdevError {
    #[error("cannot open a netlink socket: {0}; check that AF_NETLINK sockets are allowed here")]
    Socket(#[source] std::io::Error),
    #[error("cannot {doing}: the kernel answered: {source}")]
    Request { doing: &'static str, source: rtnetlink::Error },
    #[error("the netlink connection has closed; restart the gateway")]
    Closed,
}

/// What an interface is, as far as a gateway cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub ifindex: u32,
    pub name: String,
    /// Hardware type ARPHRD_ETHER.
    pub ethernet: bool,
    pub mac: Mac,
    /// Bytes of IP packet.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// "veth", "vlan", ...; none for a hardware device.
    pub kind: Option<String>,
    /// Number of the XDP program that is attached.
    pub xdp_program: Option<u32>,
}

/// An IPv4 address of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterfaceAddress {
    pub ifindex: u32,
    pub address: Ipv4Addr,
    pub prefix_len: u8,
    /// Another address of the same subnet is the primary one.
    pub secondary: bool,
    pub broadcast: Option<Ipv4Addr>,
}

impl InterfaceAddress {
    /// Where the subnet's directed broadcasts go to: what is configured, and the last address of
    /// the subnet; a /31 or /32 has none (RFC 3021).
    pub fn broadcasts(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let host_bits = u32::MAX.checked_shr(u32::from(self.prefix_len)).unwrap_or(0);
        let last =
            (self.prefix_len < 31).then(|| Ipv4Addr::from(u32::from(self.address) | host_bits));
        let configured = self.broadcast.filter(|&it| Some(it) != last && !it.is_broadcast());
        last.into_iter().chain(configured)
    }
}

/// A next hop that a default route names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DefaultGateway {
    pub ifindex: u32,
    pub address: Ipv4Addr,
}

/// Links and addresses at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub links: BTreeMap<u32, Link>,
    /// In the kernel's order: primary addresses before secondary ones.
    pub addresses: Vec<InterfaceAddress>,
}

impl Snapshot {
    #[must_use]
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// First primary address of an interface.
    #[must_use]
    pub fn primary_address(&self, ifindex: u32) -> Option<Ipv4Addr> {
        self.addresses.iter().find(|it| it.ifindex == ifindex).map(|it| it.address)
    }

    /// The host owns this address.
    #[must_use]
    pub fn owns(&self, address: Ipv4Addr) -> bool {
        self.addresses.iter().any(|it| it.address == address)
    }
}

/// The connection for requests.
#[derive(Clone)]
pub struct Netdev {
    handle: rtnetlink::Handle,
}

impl Netdev {
    /// In the network namespace of the calling thread; needs a Tokio runtime.
    ///
    /// # Errors
    /// Where netlink sockets are not allowed.
    pub fn connect() -> Result<Self, NetdevError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetdevError::Socket)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// # Errors
    /// Where the kernel refuses a dump.
    pub async fn snapshot(&self) -> Result<Snapshot, NetdevError> {
        let links = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect::<Vec<_>>()
            .await
            .map_err(request("list the interfaces"))?;
        let addresses = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect::<Vec<_>>()
            .await
            .map_err(request("list the addresses"))?;
        Ok(Snapshot {
            links: links.iter().filter_map(parse::link).map(|link| (link.ifindex, link)).collect(),
            addresses: addresses.iter().filter_map(parse::address).collect(),
        })
    }

    /// Next hops of every IPv4 default route of the main table.
    ///
    /// # Errors
    /// Where the kernel refuses the dump.
    pub async fn default_gateways(&self) -> Result<Vec<DefaultGateway>, NetdevError> {
        let mut routes = Box::pin(
            self.handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute(),
        );
        let mut gateways = Vec::new();
        while let Some(route) = routes.next().await {
            parse::default_gateways(&route.map_err(request("list the routes"))?, &mut gateways);
        }
        gateways.sort_unstable();
        gateways.dedup();
        Ok(gateways)
    }

    /// Whether the host's routing looks at nothing of a packet but addresses, interface and type of
    /// service: no rule asks for a protocol or a port, nor does the choice between several next hops.
    ///
    /// # Errors
    /// Where the kernel refuses the dump.
    pub async fn routes_by_addresses(&self) -> Result<bool, NetdevError> {
        let mut rules = Box::pin(self.handle.rule().get(IpVersion::V4).execute());
        while let Some(rule) = rules.next().await {
            if !parse::is_by_addresses(&rule.map_err(request("list the routing rules"))?) {
                return Ok(false);
            }
        }
        // A kernel without several next hops has no such setting.
        let policy = std::fs::read_to_string("/proc/sys/net/ipv4/fib_multipath_hash_policy");
        Ok(policy.map_or(true, |policy| policy.trim() == "0"))
    }

    /// The other ends of the virtual pairs of this namespace, by index.
    ///
    /// # Errors
    /// Where the kernel refuses the dump.
    pub async fn peers(&self) -> Result<BTreeMap<u32, u32>, NetdevError> {
        let links: Vec<_> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(request("list the interfaces"))?;
        Ok(links.iter().filter_map(parse::peer).collect())
    }

    /// # Errors
    /// Where the kernel refuses the dump.
    pub async fn neighbours(&self) -> Result<Vec<Neighbour>, NetdevError> {
        let messages: Vec<NeighbourMessage> = self
            .handle
            .neighbours()
            .get()
            .set_address_family(AddressFamily::Inet)
            .execute()
            .try_collect()
            .await
            .map_err(request("list the neighbours"))?;
        Ok(messages.iter().filter_map(neighbour::parse).collect())
    }

    /// Gives an interface an address that no packet is sent to, and that the host sends from only
    /// within itself.
    ///
    /// # Errors
    /// Where the interface is gone.
    pub async fn number(&self, ifindex: u32, address: Ipv4Addr) -> Result<(), NetdevError> {
        let mut wanted = self.handle.address().add(ifindex, address.into(), 32);
        let message = wanted.message_mut();
        message.header.scope = AddressScope::Host;
        message.attributes.retain(|it| !matches!(it, AddressAttribute::Broadcast(_)));
        wanted.execute().await.map_err(request("give an interface an address"))
    }

    /// What the kernel knows of one neighbour.
    ///
    /// # Errors
    /// Where the interface is gone.
    pub async fn neighbour(
        &self,
        ifindex: u32,
        address: Ipv4Addr,
    ) -> Result<Option<Neighbour>, NetdevError> {
        neighbour::look_up(&self.handle, ifindex, address)
            .await
            .map_err(request("look a neighbour up"))
    }

    /// Has the kernel find the neighbour's Ethernet address, or find out whether the one it knows
    /// still holds. Never to be asked for a permanent entry: the kernel would make it a learnt one.
    ///
    /// `keep`: the kernel goes on looking after it (NTF_EXT_MANAGED, 5.16; older ones only resolve).
    ///
    /// # Errors
    /// Where the interface is down or gone, or the neighbour table is full.
    pub async fn resolve(
        &self,
        ifindex: u32,
        address: Ipv4Addr,
        keep: bool,
    ) -> Result<(), NetdevError> {
        neighbour::resolve(&self.handle, ifindex, address, keep)
            .await
            .map_err(request("ask for a neighbour"))
    }

    /// Has the kernel forget what it knows of a neighbour, so that the next answer is a new one.
    /// Not to be asked for a permanent entry.
    ///
    /// # Errors
    /// Where there is no such entry.
    pub async fn forget(&self, ifindex: u32, address: Ipv4Addr) -> Result<(), NetdevError> {
        neighbour::forget(&self.handle, ifindex, address)
            .await
            .map_err(request("remove a neighbour"))
    }
}

fn request(doing: &'static str) -> impl Fn(rtnetlink::Error) -> NetdevError {
    move |source| NetdevError::Request { doing, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(address: [u8; 4], prefix_len: u8, broadcast: Option<[u8; 4]>) -> InterfaceAddress {
        InterfaceAddress {
            ifindex: 1,
            address: address.into(),
            prefix_len,
            secondary: false,
            broadcast: broadcast.map(Into::into),
        }
    }

    #[test]
    fn a_subnet_is_broadcast_to_by_its_last_address_and_by_the_configured_one() {
        let all = |it: InterfaceAddress| it.broadcasts().collect::<Vec<_>>();
        let last = Ipv4Addr::new(10, 0, 0, 255);
        assert_eq!(all(address([10, 0, 0, 7], 24, None)), [last]);
        assert_eq!(all(address([10, 0, 0, 7], 24, Some([10, 0, 0, 255]))), [last]);
        assert_eq!(
            all(address([10, 0, 0, 7], 24, Some([10, 0, 0, 127]))),
            [last, Ipv4Addr::new(10, 0, 0, 127)]
        );
        assert_eq!(all(address([10, 0, 0, 7], 31, None)), [] as [Ipv4Addr; 0]);
        assert_eq!(all(address([10, 0, 0, 7], 32, None)), [] as [Ipv4Addr; 0]);
    }

    #[tokio::test]
    async fn the_loopback_interface_and_its_address_are_found() {
        let netdev = Netdev::connect().expect("a netlink socket");
        let snapshot = netdev.snapshot().await.expect("a snapshot");
        let loopback = snapshot.link("lo").expect("lo");
        assert!(!loopback.ethernet);
        if loopback.up {
            assert_eq!(snapshot.primary_address(loopback.ifindex), Some(Ipv4Addr::LOCALHOST));
        }
    }
}
