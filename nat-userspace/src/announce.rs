//! Announcements of public addresses that the host does not own (RFC 5227 section 2.3).
//!
//! They tell the neighbours that the address lives here now, and leave through the emit program;
//! requests are answered by the dataplane itself.

use std::{net::Ipv4Addr, time::Duration};

use nat_common::net::Mac;

/// RFC 5227 section 1.1: ANNOUNCE_NUM and ANNOUNCE_INTERVAL.
pub const ANNOUNCEMENTS: u32 = 2;
pub const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(2);

/// Ethernet frames are at least this long; ARP needs 42 bytes, the rest is zero.
const FRAME_LEN: usize = 60;
/// Up to and with the operation: broadcast destination and source are filled in.
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
/// Hardware type Ethernet, protocol type IPv4, their address lengths, operation request.
const ARP_REQUEST: [u8; 8] = [0, 1, 0x08, 0, 6, 4, 0, 1];

/// An ARP request for `address` from `address` itself: neighbours correct what they know.
#[must_use]
pub fn announcement(mac: Mac, address: Ipv4Addr) -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    let parts: [&[u8]; 8] = [
        &[0xff; 6],
        &mac.0,
        &ETHERTYPE_ARP,
        &ARP_REQUEST,
        &mac.0,
        &address.octets(),
        &[0; 6],
        &address.octets(),
    ];
    let mut rest = frame.as_mut_slice();
    for part in parts {
        let (head, tail) = rest.split_at_mut(part.len());
        head.copy_from_slice(part);
        rest = tail;
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_asks_everybody_for_the_address_in_its_own_name() {
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let address = Ipv4Addr::new(198, 51, 100, 10);
        let frame = announcement(mac, address);
        assert_eq!(frame[..12], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1]);
        assert_eq!(frame[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(frame[22..28], mac.0);
        assert_eq!(frame[28..32], address.octets());
        assert_eq!(frame[38..42], address.octets());
    }
}
