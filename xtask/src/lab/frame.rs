//! A recorded frame, and as much of reading it as labs need; for more there are packet crates.

use std::net::Ipv4Addr;
use std::time::Instant;

/// A frame as it passed, Ethernet header first, VLAN tag in place.
#[derive(Clone, Debug)]
pub struct Frame {
    pub at: Instant,
    /// Sent by the interface's own namespace; else received from the wire.
    pub outgoing: bool,
    pub bytes: Vec<u8>,
}

impl Frame {
    /// The IPv4 packet in it, behind up to two VLAN tags.
    pub fn ipv4(&self) -> Option<&[u8]> {
        let mut at = 12;
        for _ in 0..3 {
            match self.bytes.get(at..at + 2)? {
                [0x08, 0x00] => return self.bytes.get(at + 2..),
                [0x81, 0x00] | [0x88, 0xa8] => at += 4,
                _ => return None,
            }
        }
        None
    }

    /// The source address of the IPv4 packet.
    pub fn source(&self) -> Option<Ipv4Addr> {
        self.address_at(12)
    }

    /// The destination address of the IPv4 packet.
    pub fn destination(&self) -> Option<Ipv4Addr> {
        self.address_at(16)
    }

    /// The protocol number of the IPv4 packet.
    pub fn protocol(&self) -> Option<u8> {
        self.ipv4()?.get(9).copied()
    }

    /// Whether the four bytes of an address occur anywhere from the IPv4 header on: as source,
    /// as destination or quoted in an ICMP error.
    pub fn mentions(&self, address: Ipv4Addr) -> bool {
        self.ipv4().is_some_and(|packet| packet.windows(4).any(|four| four == address.octets()))
    }

    fn address_at(&self, at: usize) -> Option<Ipv4Addr> {
        let four: [u8; 4] = self.ipv4()?.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(four))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: Vec<u8>) -> Frame {
        Frame { at: Instant::now(), outgoing: false, bytes }
    }

    #[test]
    fn addresses_are_found_behind_vlan_tags() {
        let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 1, 5];
        packet.extend([203, 0, 113, 10]);
        for tags in [&[][..], &[0x81, 0, 0, 7], &[0x88, 0xa8, 0, 1, 0x81, 0, 0, 7]] {
            let mut bytes = vec![0; 12];
            bytes.extend(tags);
            bytes.extend([0x08, 0x00]);
            bytes.extend(&packet);
            let frame = frame(bytes);
            assert_eq!(frame.source(), Some(Ipv4Addr::new(10, 0, 1, 5)));
            assert_eq!(frame.destination(), Some(Ipv4Addr::new(203, 0, 113, 10)));
            assert_eq!(frame.protocol(), Some(17));
            assert!(frame.mentions(Ipv4Addr::new(10, 0, 1, 5)));
            assert!(!frame.mentions(Ipv4Addr::new(10, 0, 1, 6)));
        }
    }

    #[test]
    fn a_frame_that_is_no_ipv4_has_no_addresses() {
        let mut arp = vec![0; 12];
        arp.extend([0x08, 0x06]);
        arp.extend([0; 28]);
        assert_eq!(frame(arp).source(), None);
        assert_eq!(frame(vec![0; 13]).source(), None);
    }
}
