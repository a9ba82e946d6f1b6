//! The connection for events.

use futures::StreamExt as _;
use futures::channel::mpsc::UnboundedReceiver;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::SocketAddr,
};

use super::{
    NetdevError,
    neighbour::{self, Neighbour},
};

/// What happened since the last look.
#[derive(Debug, Default)]
pub struct Changes {
    /// Links or addresses: read the snapshot anew.
    pub links: bool,
    /// Routes or rules: cached next hops may be wrong.
    pub routes: bool,
    /// A default route among them.
    pub default_routes: bool,
    /// In the order of the events.
    pub neighbours: Vec<Neighbour>,
    /// Events were lost: read everything anew.
    pub lost: bool,
}

pub struct Watch {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
}

impl Watch {
    /// In the network namespace of the calling thread; needs a Tokio runtime. Open it before the
    /// first snapshot, so that no change falls between the two.
    ///
    /// # Errors
    /// Where netlink sockets are not allowed.
    pub fn open() -> Result<Self, NetdevError> {
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Neigh,
        ])
        .map_err(NetdevError::Socket)?;
        tokio::spawn(connection);
        Ok(Self { messages })
    }

    /// Waits for an event, and takes with it all that have come. Cancel safe: an event is taken and
    /// noted without a pause between.
    ///
    /// # Errors
    /// Where the connection has closed.
    pub async fn changes(&mut self, changes: &mut Changes) -> Result<(), NetdevError> {
        let (message, _) = self.messages.next().await.ok_or(NetdevError::Closed)?;
        note(message, changes);
        while let Ok((message, _)) = self.messages.try_recv() {
            note(message, changes);
        }
        Ok(())
    }
}

fn note(message: NetlinkMessage<RouteNetlinkMessage>, changes: &mut Changes) {
    match message.payload {
        NetlinkPayload::InnerMessage(message) => match message {
            RouteNetlinkMessage::NewLink(_)
            | RouteNetlinkMessage::DelLink(_)
            | RouteNetlinkMessage::NewAddress(_)
            | RouteNetlinkMessage::DelAddress(_) => changes.links = true,
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                changes.routes = true;
                changes.default_routes |= route.header.destination_prefix_length == 0;
            }
            RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => {
                changes.routes = true;
            }
            RouteNetlinkMessage::NewNeighbour(message) => {
                changes.neighbours.extend(neighbour::parse(&message));
            }
            _ => {}
        },
        NetlinkPayload::Overrun(_) => changes.lost = true,
        _ => {}
    }
}
