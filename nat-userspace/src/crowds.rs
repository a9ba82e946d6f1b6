//! The remote endpoint towards which most ports of an address are in use: where the next one without a free
//! port will be.

use std::collections::HashMap;

use nat_common::{
    net::{Ip4, Port},
    session::{SessionImage, protocol_index},
};

/// A public address and a remote endpoint, of a protocol by its index.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Ends {
    public: Ip4,
    remote: Ip4,
    port: Port,
    protocol: u8,
}

/// Remote endpoints that are counted at a time.
const MOST: usize = 4096;

/// Counts sessions by remote endpoint, in bounded room: where there are more endpoints than that, those
/// with few sessions are let go of (Misra and Gries, "Finding repeated elements", 1982), and a
/// count is too low by one session in `MOST` at the most.
#[derive(Debug, Default)]
pub struct Crowds {
    counts: HashMap<Ends, u64>,
}

impl Crowds {
    pub fn add(&mut self, protocol: u8, outbound: &SessionImage) {
        let tuple = outbound.tuple;
        let protocol = protocol_index(protocol) as u8;
        let ends = Ends { public: tuple.src, remote: tuple.dst, port: tuple.dport, protocol };
        if let Some(count) = self.counts.get_mut(&ends) {
            *count += 1;
        } else if self.counts.len() < MOST {
            self.counts.insert(ends, 1);
        } else {
            self.counts.retain(|_, count| {
                *count -= 1;
                *count > 0
            });
        }
    }

    /// The largest counts by public address, of tcp, udp and icmp.
    #[must_use]
    pub fn largest(&self) -> HashMap<Ip4, [u64; 3]> {
        let mut largest: HashMap<Ip4, [u64; 3]> = HashMap::new();
        for (ends, count) in &self.counts {
            let counts = largest.entry(ends.public).or_default();
            let most = &mut counts[usize::from(ends.protocol)];
            *most = (*most).max(*count);
        }
        largest
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use nat_common::{flow::Tuple, net::proto};

    use super::*;

    const PUBLIC: Ip4 = Ip4::new([198, 51, 100, 1]);

    fn session(remote: u32, port: u16) -> SessionImage {
        let tuple = Tuple {
            src: PUBLIC,
            dst: Ip4::from_u32(remote),
            sport: Port::new(7),
            dport: Port::new(port),
        };
        SessionImage { tuple, ..SessionImage::zeroed() }
    }

    #[test]
    fn the_largest_crowd_is_counted_by_protocol() {
        let mut crowds = Crowds::default();
        for (port, sessions) in [(80, 3), (443, 5), (53, 1)] {
            for _ in 0..sessions {
                crowds.add(proto::TCP, &session(1, port));
            }
        }
        crowds.add(proto::UDP, &session(1, 443));
        assert_eq!(crowds.largest()[&PUBLIC], [5, 1, 0]);
    }

    #[test]
    fn a_crowd_is_found_among_more_endpoints_than_there_is_room_for() {
        let mut crowds = Crowds::default();
        for number in 0..100_000 {
            crowds.add(proto::TCP, &session(1000 + number, 80));
            if number % 2 == 0 {
                crowds.add(proto::TCP, &session(1, 443));
            }
        }
        let found = crowds.largest()[&PUBLIC][0];
        assert!((50_000 - 150_000 / 4096..=50_000).contains(&found), "{found} of 50000");
        assert!(crowds.counts.len() <= MOST);
    }
}
