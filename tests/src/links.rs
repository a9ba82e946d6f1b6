//! Links of a gateway that go and come back under the same name, and more of them.

use std::net::Ipv4Addr;

use anyhow::Result;
use xtask::lab::{Lab, Namespace, ROUTER_PUBLIC};

/// Removes the public interface of a two-armed gateway with its peer and makes them anew, as the
/// lab had made them. `before_the_way_is_open` runs when everything is there but the gateway's
/// address and route.
pub fn remake_public_interface<T>(
    lab: &Lab,
    before_the_way_is_open: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let (gateway, router) = (lab.gateway(), lab.router());
    if gateway.interface("wan0").is_ok() {
        gateway.ip_batch("link del wan0\n")?;
    }
    gateway.ip_batch(&format!(
        "link add wan0 type veth peer name pub0 netns {}\nlink set wan0 up\n",
        router.name()
    ))?;
    router.ip_batch(&format!("addr add {ROUTER_PUBLIC}/24 dev pub0\nlink set pub0 up\n"))?;
    no_offloads(&[(gateway, "wan0"), (router, "pub0")])?;
    router.check(["ethtool", "-K", "pub0", "gro", "on"])?;
    let result = before_the_way_is_open()?;
    gateway
        .ip_batch("addr add 198.51.100.2/24 dev wan0\nroute replace default via 198.51.100.1\n")?;
    Ok(result)
}

/// Removes the private interface of a gateway and makes it anew with the Ethernet address that it
/// had. `while_it_is_gone` runs between.
pub fn remake_private_interface(
    lab: &Lab,
    next_hop: Ipv4Addr,
    while_it_is_gone: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let (gateway, lan, name) = (lab.gateway(), lab.ns("lan"), lab.private_interface());
    let [a, b, c, d, e, f] = gateway.interface(name)?.mac;
    gateway.ip_batch(&format!("link del {name}\n"))?;
    while_it_is_gone()?;
    gateway.ip_batch(&format!(
        "link add {name} address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} type veth \
         peer name gw netns {}\n",
        lan.name()
    ))?;
    lan.ip_batch("link set gw master br0 up\n")?;
    no_offloads(&[(gateway, name), (lan, "gw")])?;
    lan.check(["ethtool", "-K", "gw", "gro", "on"])?;
    gateway.ip_batch(&format!("addr add 10.0.1.1/24 dev {name}\nlink set {name} up\n"))?;
    gateway.ip_batch(&format!("route replace default via {next_hop}\n"))
}

/// A private interface more: `lan1`, 10.0.2.1, with this client, 10.0.2.5, for whom it is the way
/// to everyone.
pub fn second_private_link(lab: &Lab, client: u8) -> Result<()> {
    let (gateway, client) = (lab.gateway(), lab.client(client));
    gateway.ip_batch(&format!(
        "link add lan1 type veth peer name eth1 netns {}\nlink set lan1 up\n\
         addr add 10.0.2.1/24 dev lan1\n",
        client.name()
    ))?;
    client.ip_batch(
        "link set eth1 up\naddr add 10.0.2.5/24 dev eth1\nlink set eth0 down\n\
         route add default via 10.0.2.1\n",
    )?;
    no_offloads(&[(gateway, "lan1"), (client, "eth1")])?;
    client.check(["ethtool", "-K", "eth1", "gro", "on"]).map(drop)
}

/// A public interface more: `wan1`, 198.18.0.2, to the router's `pub1`, 198.18.0.1.
pub fn second_public_link(lab: &Lab) -> Result<()> {
    let (gateway, router) = (lab.gateway(), lab.router());
    gateway.ip_batch(&format!(
        "link add wan1 type veth peer name pub1 netns {}\nlink set wan1 up\n\
         addr add 198.18.0.2/24 dev wan1\n",
        router.name()
    ))?;
    router.ip_batch("link set pub1 up\naddr add 198.18.0.1/24 dev pub1\n")?;
    no_offloads(&[(gateway, "wan1"), (router, "pub1")])?;
    router.check(["ethtool", "-K", "pub1", "gro", "on"]).map(drop)
}

/// XDP sees frames as they are in memory: nothing is to be left to a device that is none.
fn no_offloads(ends: &[(&Namespace, &str)]) -> Result<()> {
    for &(namespace, interface) in ends {
        let off = ["tx", "off", "tso", "off", "gso", "off", "txvlan", "off"];
        namespace.check(["ethtool", "-K", interface].into_iter().chain(off))?;
    }
    Ok(())
}

/// Puts both sides of a two-armed gateway on VLANs: `lan0.100` and `wan0.200` have the addresses of
/// `lan0` and `wan0` from now on. False where the kernel has no VLAN.
pub fn put_on_vlans(lab: &Lab) -> Result<bool> {
    let (gateway, lan, router) = (lab.gateway(), lab.ns("lan"), lab.router());
    let tagged = |parent: &str, id: u32| {
        format!("link add link {parent} name {parent}.{id} type vlan id {id}")
    };
    let probe = gateway.run(format!("ip {}", tagged("lan0", 100)).split(' '))?;
    if probe.stderr.contains("Unknown device type") {
        return Ok(false);
    }
    probe.success()?;
    gateway.ip_batch(&format!(
        "{}\naddr del 10.0.1.1/24 dev lan0\naddr del 198.51.100.2/24 dev wan0\n\
         addr add 10.0.1.1/24 dev lan0.100\naddr add 198.51.100.2/24 dev wan0.200\n\
         link set lan0.100 up\nlink set wan0.200 up\nroute replace default via 198.51.100.1\n",
        tagged("wan0", 200)
    ))?;
    lan.ip_batch(&format!(
        "link set gw nomaster\n{}\nlink set gw.100 master br0 up\n",
        tagged("gw", 100)
    ))?;
    router.ip_batch(&format!(
        "addr del {ROUTER_PUBLIC}/24 dev pub0\n{}\naddr add {ROUTER_PUBLIC}/24 dev pub0.200\n\
         link set pub0.200 up\n",
        tagged("pub0", 200)
    ))?;
    Ok(true)
}
