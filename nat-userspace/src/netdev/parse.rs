//! Messages of the kernel, made into the gateway's own nouns.

use std::net::{IpAddr, Ipv4Addr};

use nat_common::net::Mac;
use rtnetlink::packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
    rule::{RuleAttribute, RuleMessage},
};

use super::{DefaultGateway, InterfaceAddress, Link};

pub(super) fn link(message: &LinkMessage) -> Option<Link> {
    let mut link = Link {
        ifindex: message.header.index,
        name: String::new(),
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        mac: Mac([0; 6]),
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        kind: None,
        xdp_program: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) => {
                if let Ok(mac) = <[u8; 6]>::try_from(bytes.as_slice()) {
                    link.mac = Mac(mac);
                }
            }
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            LinkAttribute::Xdp(entries) => {
                link.xdp_program = entries.iter().find_map(|entry| match entry {
                    LinkXdp::ProgId(number)
                    | LinkXdp::DrvProgId(number)
                    | LinkXdp::SkbProgId(number)
                    | LinkXdp::HwProgId(number) => Some(*number),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

/// An interface and the one that it is tied to, unless that is in another namespace.
pub(super) fn peer(message: &LinkMessage) -> Option<(u32, u32)> {
    let mut peer = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Link(index) => peer = Some(*index),
            LinkAttribute::LinkNetNsId(_) => return None,
            _ => {}
        }
    }
    Some((message.header.index, peer?))
}

pub(super) fn address(message: &AddressMessage) -> Option<InterfaceAddress> {
    if message.header.family != AddressFamily::Inet {
        return None;
    }
    let mut secondary = message.header.flags.contains(AddressHeaderFlags::Secondary);
    let (mut local, mut remote, mut broadcast) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => local = Some(*address),
            // The other end of a point-to-point link; else the same as `Local`.
            AddressAttribute::Address(IpAddr::V4(address)) => remote = Some(*address),
            AddressAttribute::Broadcast(address) => broadcast = Some(*address),
            AddressAttribute::Flags(flags) => secondary |= flags.contains(AddressFlags::Secondary),
            _ => {}
        }
    }
    Some(InterfaceAddress {
        ifindex: message.header.index,
        address: local.or(remote)?,
        prefix_len: message.header.prefix_len,
        secondary,
        broadcast,
    })
}

/// Adds the next hops of `message` where it is a default route of the main table.
pub(super) fn default_gateways(message: &RouteMessage, gateways: &mut Vec<DefaultGateway>) {
    let header = &message.header;
    if header.address_family != AddressFamily::Inet
        || header.destination_prefix_length != 0
        || header.kind != RouteType::Unicast
        || header.table != RouteHeader::RT_TABLE_MAIN
    {
        return;
    }
    gateways.extend(next_hop(&message.attributes, None));
    for attribute in &message.attributes {
        if let RouteAttribute::MultiPath(hops) = attribute {
            gateways.extend(
                hops.iter().filter_map(|hop| next_hop(&hop.attributes, Some(hop.interface_index))),
            );
        }
    }
}

/// Whether a routing rule looks at nothing of a packet but addresses, interface and type of service. What this does
/// not know may look at anything.
pub(super) fn is_by_addresses(rule: &RuleMessage) -> bool {
    rule.attributes.iter().all(|attribute| {
        matches!(
            attribute,
            RuleAttribute::Destination(_)
                | RuleAttribute::Source(_)
                | RuleAttribute::Iifname(_)
                | RuleAttribute::Oifname(_)
                | RuleAttribute::Goto(_)
                | RuleAttribute::Priority(_)
                | RuleAttribute::Table(_)
                | RuleAttribute::Protocol(_)
                | RuleAttribute::L3MDev(_)
                | RuleAttribute::SuppressIfGroup(_)
                | RuleAttribute::SuppressPrefixLen(_)
                // Marks are the host's own: a packet that is asked about here has none.
                | RuleAttribute::FwMark(_)
                | RuleAttribute::FwMask(_)
        )
    })
}

fn next_hop(attributes: &[RouteAttribute], ifindex: Option<u32>) -> Option<DefaultGateway> {
    let address = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })?;
    let ifindex = ifindex.or_else(|| {
        attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(ifindex) => Some(*ifindex),
            _ => None,
        })
    })?;
    (address != Ipv4Addr::UNSPECIFIED).then_some(DefaultGateway { ifindex, address })
}
