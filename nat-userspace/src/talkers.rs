//! Who talks: live sessions summed by private host and by destination, bounded.

use std::{collections::HashMap, net::Ipv4Addr, time::Duration};

use nat_common::{flow::FlowKey, net::Ip4, session::SessionImage};

use crate::api::top::Talker;

/// Addresses of a kind that are told apart; sessions of further ones are left out.
const ADDRESSES: usize = 1 << 16;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    sessions: u64,
    packets: u64,
    bytes_out: u64,
    bytes_in: u64,
}

/// The sums of one walk over the sessions.
#[derive(Debug, Clone, Default)]
pub struct Talkers {
    hosts: HashMap<Ipv4Addr, Sum>,
    destinations: HashMap<Ipv4Addr, Sum>,
}

impl Talkers {
    /// A live session, and what its outbound half has counted.
    pub fn add_outbound(&mut self, key: &FlowKey, outbound: &SessionImage) {
        self.add(key.tuple.src, key.tuple.dst, |sum| {
            sum.sessions += 1;
            sum.packets += outbound.packets;
            sum.bytes_out += outbound.bytes;
        });
    }

    /// What the inbound half of a live session has counted; the walk may meet it first.
    pub fn add_inbound(&mut self, key: &FlowKey, inbound: &SessionImage) {
        self.add(inbound.tuple.dst, key.tuple.src, |sum| {
            sum.packets += inbound.packets;
            sum.bytes_in += inbound.bytes;
        });
    }

    fn add(&mut self, host: Ip4, destination: Ip4, add: impl Fn(&mut Sum)) {
        for (sums, address) in [(&mut self.hosts, host), (&mut self.destinations, destination)] {
            let address = address.into();
            if sums.len() < ADDRESSES || sums.contains_key(&address) {
                add(sums.entry(address).or_default());
            }
        }
    }

    /// Hosts and destinations with the most traffic since `before`, so long ago.
    #[must_use]
    pub fn top(&self, before: Option<(&Self, Duration)>, limit: usize) -> [Vec<Talker>; 2] {
        let earlier = |of: fn(&Self) -> &HashMap<Ipv4Addr, Sum>| {
            before.map(|(before, elapsed)| (of(before), elapsed))
        };
        [
            ranked(&self.hosts, earlier(|it| &it.hosts), limit),
            ranked(&self.destinations, earlier(|it| &it.destinations), limit),
        ]
    }
}

fn ranked(
    sums: &HashMap<Ipv4Addr, Sum>,
    before: Option<(&HashMap<Ipv4Addr, Sum>, Duration)>,
    limit: usize,
) -> Vec<Talker> {
    let talker = |(address, sum): (&Ipv4Addr, &Sum)| {
        // Sessions that have ended take their bytes with them: a rate is that of the living.
        let rate = |of: fn(&Sum) -> u64| {
            let (before, elapsed) = before?;
            let before = before.get(address).map_or(0, of);
            let milliseconds = elapsed.as_millis().max(1);
            let difference = u128::from(of(sum).saturating_sub(before));
            u64::try_from(difference * 1000 / milliseconds).ok()
        };
        Talker {
            address: *address,
            sessions: sum.sessions,
            bytes_out: sum.bytes_out,
            bytes_in: sum.bytes_in,
            bits_per_second_out: rate(|it| it.bytes_out).unwrap_or(0).saturating_mul(8),
            bits_per_second_in: rate(|it| it.bytes_in).unwrap_or(0).saturating_mul(8),
            packets_per_second: rate(|it| it.packets).unwrap_or(0),
        }
    };
    // The end of a session may come between the halves: an inbound one alone is nobody's.
    let mut talkers: Vec<Talker> =
        sums.iter().filter(|(_, sum)| sum.sessions > 0).map(talker).collect();
    talkers.sort_by_key(|it| {
        let rate = it.bits_per_second_out.saturating_add(it.bits_per_second_in);
        (std::cmp::Reverse((rate, it.bytes_out.saturating_add(it.bytes_in))), it.address)
    });
    talkers.truncate(limit);
    talkers
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use nat_common::{
        flow::Tuple,
        net::{Port, proto},
    };

    use super::*;

    /// Both halves of a session, with their keys; twice as many bytes come back.
    fn halves(host: u8, destination: Ip4, bytes: u64) -> [(FlowKey, SessionImage); 2] {
        let private = Ip4::new([10, 0, 0, host]);
        let public = Ip4::new([198, 51, 100, 1]);
        let port = Port::new(5);
        let inside = Tuple { src: private, dst: destination, sport: port, dport: port };
        let outside = Tuple { src: public, ..inside };
        let half = |tuple, packets, bytes| SessionImage {
            packets,
            bytes,
            tuple,
            ..SessionImage::zeroed()
        };
        let key = |tuple| FlowKey::new(tuple, proto::UDP, 0);
        [
            (key(inside), half(outside, bytes / 200, bytes)),
            (key(outside.reversed()), half(inside.reversed(), bytes / 200, 2 * bytes)),
        ]
    }

    fn talkers(sessions: &[(u8, u8, u64)]) -> Talkers {
        let mut talkers = Talkers::default();
        for &(host, destination, bytes) in sessions {
            let destination = Ip4::new([203, 0, 0, destination]);
            let [(key, outbound), (back, inbound)] = halves(host, destination, bytes);
            talkers.add_inbound(&back, &inbound);
            talkers.add_outbound(&key, &outbound);
        }
        talkers
    }

    #[test]
    fn sessions_are_summed_by_both_ends_and_ranked_by_what_moved_since_the_last_look() {
        let before = talkers(&[(1, 1, 900_000), (2, 1, 0)]);
        let now = talkers(&[(1, 1, 900_000), (2, 1, 1000), (2, 2, 1000)]);
        let [hosts, destinations] = now.top(Some((&before, Duration::from_secs(2))), 10);
        assert_eq!(hosts[0].address, Ipv4Addr::new(10, 0, 0, 2), "{hosts:?}");
        assert_eq!((hosts[0].sessions, hosts[0].bits_per_second_out), (2, 8000));
        assert_eq!((hosts[0].bits_per_second_in, hosts[0].packets_per_second), (16_000, 10));
        assert_eq!((hosts[1].bytes_out, hosts[1].bits_per_second_out), (900_000, 0));
        assert_eq!(destinations.len(), 2);
        assert_eq!(now.top(None, 1)[0][0].address, Ipv4Addr::new(10, 0, 0, 1), "by bytes at first");
    }

    #[test]
    fn a_host_whose_sessions_have_ended_has_no_negative_rate() {
        let (before, now) = (talkers(&[(1, 1, 5000)]), talkers(&[(1, 1, 10)]));
        let [hosts, _] = now.top(Some((&before, Duration::from_secs(1))), 10);
        assert_eq!(hosts[0].bits_per_second_out, 0);
    }

    #[test]
    fn an_inbound_half_without_its_session_is_nobody() {
        let mut talkers = Talkers::default();
        let [_, (back, inbound)] = halves(1, Ip4::new([203, 0, 0, 1]), 10);
        talkers.add_inbound(&back, &inbound);
        assert_eq!(talkers.top(None, 10), [vec![], vec![]]);
    }

    #[test]
    fn addresses_are_bounded() {
        let mut talkers = Talkers::default();
        for number in 0..=ADDRESSES as u32 {
            let [(key, outbound), _] = halves(1, Ip4::new(number.to_be_bytes()), 1);
            talkers.add_outbound(&key, &outbound);
        }
        assert_eq!(talkers.destinations.len(), ADDRESSES);
        assert_eq!(talkers.hosts.len(), 1);
    }
}
