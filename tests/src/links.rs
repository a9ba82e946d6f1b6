//! A public interface that goes and comes back under the same name.

use anyhow::Result;
use xtask::lab::{Lab, ROUTER_PUBLIC};

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
    for (namespace, interface) in [(gateway, "wan0"), (router, "pub0")] {
        let off = ["tx", "off", "tso", "off", "gso", "off", "txvlan", "off"];
        namespace.check(["ethtool", "-K", interface].into_iter().chain(off))?;
    }
    router.check(["ethtool", "-K", "pub0", "gro", "on"])?;
    let result = before_the_way_is_open()?;
    gateway
        .ip_batch("addr add 198.51.100.2/24 dev wan0\nroute replace default via 198.51.100.1\n")?;
    Ok(result)
}
