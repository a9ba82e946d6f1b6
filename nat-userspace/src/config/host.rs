//! What validation needs to know of the host: one snapshot, so that tests can write their own.

use std::{
    fs, io,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::model::{PortRange, Protocol};

/// The host's side of a configuration, in the network namespace of the calling thread.
#[derive(Debug, Clone, Default)]
pub struct HostView {
    pub interfaces: Vec<HostInterface>,
    pub listeners: Vec<Listener>,
    /// `net.ipv4.ip_local_port_range`.
    pub local_ports: Option<PortRange>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInterface {
    pub name: String,
    /// Its hardware type is ARPHRD_ETHER.
    pub ethernet: bool,
    /// Primary address first.
    pub addresses: Vec<Ipv4Addr>,
}

/// A TCP socket that listens, or a UDP socket that is bound and not connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    pub protocol: Protocol,
    /// 0.0.0.0 for every address of the host.
    pub address: Ipv4Addr,
    pub port: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("cannot list the interfaces: {0}; check that netlink sockets are allowed here")]
    Interfaces(#[source] nix::Error),
    #[error("cannot read {path}: {source}; check that /proc is mounted")]
    Read { path: &'static str, source: io::Error },
}

impl HostView {
    /// # Errors
    /// Where the interfaces or the sockets of the host cannot be listed.
    pub fn read() -> Result<Self, HostError> {
        let mut listeners = Vec::new();
        // Not /proc/net: that is the namespace of the process's first thread.
        for (path, protocol) in [
            ("/proc/thread-self/net/tcp", Protocol::Tcp),
            ("/proc/thread-self/net/tcp6", Protocol::Tcp),
            ("/proc/thread-self/net/udp", Protocol::Udp),
            ("/proc/thread-self/net/udp6", Protocol::Udp),
        ] {
            match fs::read_to_string(path) {
                Ok(table) => listeners.extend(parse_listeners(&table, protocol)),
                // A kernel without IPv6 has no such file.
                Err(error) if error.kind() == io::ErrorKind::NotFound && path.ends_with('6') => {}
                Err(source) => return Err(HostError::Read { path, source }),
            }
        }
        let path = "/proc/sys/net/ipv4/ip_local_port_range";
        let range = fs::read_to_string(path).map_err(|source| HostError::Read { path, source })?;
        Ok(Self { interfaces: interfaces()?, listeners, local_ports: parse_port_range(&range) })
    }

    #[must_use]
    pub fn interface(&self, name: &str) -> Option<&HostInterface> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }

    /// The interface that has this address.
    #[must_use]
    pub fn owner(&self, address: Ipv4Addr) -> Option<&HostInterface> {
        self.interfaces.iter().find(|interface| interface.addresses.contains(&address))
    }

    /// The socket that gets what arrives at this endpoint, where the host owns the address.
    #[must_use]
    pub fn listener(
        &self,
        protocol: Protocol,
        address: Ipv4Addr,
        ports: PortRange,
    ) -> Option<Listener> {
        let owned = self.owner(address).is_some();
        self.listeners.iter().copied().find(|listener| {
            listener.protocol == protocol
                && ports.contains(listener.port)
                && (listener.address == address || (owned && listener.address.is_unspecified()))
        })
    }
}

/// Not from /sys/class/net: sysfs shows the namespace it was mounted in, netlink the current one.
fn interfaces() -> Result<Vec<HostInterface>, HostError> {
    let mut interfaces: Vec<HostInterface> = Vec::new();
    for entry in nix::ifaddrs::getifaddrs().map_err(HostError::Interfaces)? {
        // The name of an address may be a label such as "eth0:1".
        let name = entry.interface_name.split(':').next().unwrap_or_default().to_owned();
        let known = interfaces.iter().position(|interface| interface.name == name);
        let index = known.unwrap_or_else(|| {
            interfaces.push(HostInterface { name, ethernet: false, addresses: Vec::new() });
            interfaces.len() - 1
        });
        let Some(address) = entry.address else { continue };
        if let Some(link) = address.as_link_addr() {
            interfaces[index].ethernet = link.hatype() == libc::ARPHRD_ETHER;
        } else if let Some(address) = address.as_sockaddr_in() {
            // The kernel lists primary addresses before secondary ones.
            interfaces[index].addresses.push(address.ip());
        }
    }
    Ok(interfaces)
}

fn parse_port_range(text: &str) -> Option<PortRange> {
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) if first <= last => Some(PortRange { first, last }),
        _ => None,
    }
}

/// Lines of /proc/net/{tcp,udp}{,6}: number, local address, remote address, state, ...
fn parse_listeners(table: &str, protocol: Protocol) -> impl Iterator<Item = Listener> + '_ {
    const TCP_LISTEN: &str = "0A";
    const UDP_UNCONNECTED: &str = "07"; // TCP_CLOSE
    let wanted = if protocol == Protocol::Tcp { TCP_LISTEN } else { UDP_UNCONNECTED };
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_whitespace().skip(1);
        let (address, port) = fields.next()?.split_once(':')?;
        let state = fields.nth(1)?;
        if state != wanted {
            return None;
        }
        let address = parse_address(address)?;
        Some(Listener { protocol, address, port: u16::from_str_radix(port, 16).ok()? })
    })
}

/// The kernel prints each 32-bit word of an address, which is in network order, as a number of the
/// machine. An IPv6 socket counts where IPv4 traffic reaches it: bound to `::` or to a mapped
/// address; one that is IPV6_V6ONLY cannot be told from here, and errs on the side of the host.
fn parse_address(text: &str) -> Option<Ipv4Addr> {
    let mut bytes = Vec::with_capacity(16);
    for word in text.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    if let Ok(octets) = <[u8; 4]>::try_from(bytes.as_slice()) {
        return Some(Ipv4Addr::from(octets));
    }
    let address = Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?);
    if address.is_unspecified() {
        return Some(Ipv4Addr::UNSPECIFIED);
    }
    address.to_ipv4_mapped()
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n\
        0: 0A00000A:0016 00000000:0000 0A 00000000:00000000 00:00000000\n\
        1: 0A00000A:1F90 0B00000A:C350 01 00000000:00000000 00:00000000\n";
    const TCP6: &str = "  sl  local_address rem_address st\n\
        0: 00000000000000000000000000000000:01BB 00000000000000000000000000000000:0000 0A 0\n\
        1: 0000000000000000FFFF00000A00000A:0050 00000000000000000000000000000000:0000 0A 0\n\
        2: B80D0120000000000000000001000000:0051 00000000000000000000000000000000:0000 0A 0\n";

    #[test]
    fn listening_sockets_are_read_and_connected_ones_left_out() {
        let address = Ipv4Addr::new(10, 0, 0, 10);
        let found: Vec<_> = parse_listeners(TCP, Protocol::Tcp).collect();
        assert_eq!(found, [Listener { protocol: Protocol::Tcp, address, port: 22 }]);
    }

    #[test]
    fn ipv6_sockets_that_take_ipv4_traffic_count_and_others_do_not() {
        let found: Vec<_> = parse_listeners(TCP6, Protocol::Tcp)
            .map(|listener| (listener.address, listener.port))
            .collect();
        assert_eq!(found, [(Ipv4Addr::UNSPECIFIED, 443), (Ipv4Addr::new(10, 0, 0, 10), 80)]);
    }

    #[test]
    fn this_machine_has_a_loopback_that_is_not_ethernet() {
        let host = HostView::read().expect("a readable host");
        let loopback = host.interface("lo").expect("lo");
        assert!(!loopback.ethernet);
    }

    #[test]
    fn a_socket_of_this_process_is_seen_as_listener() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let port = socket.local_addr().expect("its address").port();
        let host = HostView::read().expect("a readable host");
        let range = PortRange::single(port);
        assert!(host.listener(Protocol::Tcp, Ipv4Addr::LOCALHOST, range).is_some());
        assert!(host.listener(Protocol::Udp, Ipv4Addr::LOCALHOST, range).is_none());
    }
}
