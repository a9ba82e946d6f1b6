//! What a trace asks of the network and the host, noted with the answers; it tells nobody anything.

use core::hint::black_box;

use nat_common::{
    env::{Network, Route, RouteQuery},
    event::Event,
    flow::FlowKey,
    net::{Ip4, Mac},
    record::FlowRecord,
    session::NextHop,
    trace::{kind, route},
};

use super::{Env, note};

impl Network for Env {
    #[inline(always)]
    fn route(&self, query: &RouteQuery) -> Route {
        // Taken apart and put together again: in an enum some parts have no value, and the
        // verifier lets none of these be kept while the note is written.
        let (what, ifindex, mtu, next) = match self.0.route(query) {
            Route::Hop { ifindex, mac, mtu } => {
                (route::HOP, ifindex, mtu, NextHop::new(mac.0, 0).0)
            }
            Route::NoNeighbour { ifindex, gateway } => {
                (route::NO_NEIGHBOUR, ifindex, 0, u64::from(gateway.to_u32()))
            }
            Route::TooBig { mtu } => (route::TOO_BIG, 0, mtu, 0),
            Route::Local => (route::LOCAL, 0, 0, 0),
        };
        let (what, ifindex) = (black_box(what), black_box(ifindex));
        let (mtu, next) = (black_box(mtu), black_box(next));
        if let Some(note) = note(kind::ROUTE) {
            note.answer = what;
            note.asked.dst = query.dst;
            note.number = ifindex;
            note.more = u32::from(mtu);
            note.next = next;
        }
        match what {
            route::HOP => Route::Hop { ifindex, mac: Mac(NextHop(next).mac()), mtu },
            route::NO_NEIGHBOUR => {
                Route::NoNeighbour { ifindex, gateway: Ip4::from_u32(next as u32) }
            }
            route::TOO_BIG => Route::TooBig { mtu },
            _ => Route::Local,
        }
    }

    #[inline(always)]
    fn socket(&self, key: &FlowKey) -> bool {
        let claims = self.0.socket(key);
        if let Some(note) = note(kind::SOCKET) {
            note.answer = u32::from(claims);
            note.asked = key.tuple;
        }
        claims
    }

    #[inline(always)]
    fn event(&self, _event: &Event) {}

    #[inline(always)]
    fn record(&self, _fill: impl FnOnce(&mut FlowRecord)) -> u64 {
        0
    }
}
