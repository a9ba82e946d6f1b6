//! A gateway between two hosts with sockets: what real programs see of it.

use std::net::Ipv4Addr;

use anyhow::Result;

use super::{context::Context, kind::Kind, natgw::Natgw, subject::start_nft, topology::Topology};
use crate::interrupt;

/// Address of the host that is served.
pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

/// A gateway that runs, and hosts without any program of the bench.
pub(super) struct Endpoints {
    pub kind: Kind,
    // Declared, and so dropped, in this order.
    _natgw: Option<Natgw>,
    pub topology: Topology,
}

impl Endpoints {
    pub(super) fn start(kind: Kind, context: &Context) -> Result<Self> {
        interrupt::check()?;
        let topology = Topology::build(kind.tag(), 1)?;
        topology.client.output("ip", &["route", "add", "default", "via", "10.0.0.1"])?;
        let mut natgw = None;
        if let Some(mode) = kind.hook() {
            if kind == Kind::NatgwNative {
                for (host, interface) in [(&topology.client, "c0"), (&topology.server, "s0")] {
                    // What native XDP needs on veth: whole checksums, and a peer that takes
                    // redirected frames.
                    host.output("ethtool", &["-K", interface, "tx", "off", "gro", "on"])?;
                }
            }
            let binary = context.natgw.as_ref().map_err(|reason| anyhow::anyhow!("{reason}"))?;
            natgw = Some(Natgw::start(binary, &topology.gateway, mode, 1 << 16)?);
        } else {
            start_nft(&topology)?;
        }
        Ok(Self { kind, _natgw: natgw, topology })
    }
}
