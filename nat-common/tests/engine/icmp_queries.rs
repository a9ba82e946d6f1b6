//! ICMP queries (RFC 5508 section 3).

use nat_common::{
    host::packet::{ETHERNET, Packet, try_seen},
    verdict::{DropReason, Verdict},
};

use crate::gateway::{Gateway, HOST, OTHER_HOST, POOL, REMOTE, refused};

/// Echo, timestamp, address mask: what a host asks, and what it is answered.
const KINDS: [(u8, u8); 3] = [(8, 0), (13, 14), (17, 18)];
const CHECKSUM: usize = ETHERNET + 22;

fn id(message: &[u8]) -> u16 {
    u16::from_be_bytes([message[4], message[5]])
}

#[test]
fn every_kind_of_query_is_translated_by_its_identifier_and_answered() {
    for (request, reply) in KINDS {
        for gateway in [Gateway::two_armed(), Gateway::one_armed(), Gateway::rfc()] {
            let ids = [HOST, OTHER_HOST].map(|host| {
                let query = Packet::icmp(host, REMOTE, request, 0, [0x13, 0x88, 0, 1]);
                let there = gateway.sent_out(&query);
                assert_eq!((there.src, there.dst, there.icmp()), (POOL, REMOTE, (request, 0)));
                let id = id(&there.body);
                let [high, low] = id.to_be_bytes();
                let answer = Packet::icmp(REMOTE, POOL, reply, 0, [high, low, 0, 1]);
                let here = gateway.sent_back(&answer);
                assert_eq!((here.src, here.dst, here.icmp()), (REMOTE, host, (reply, 0)));
                assert_eq!(here.body[4..8], [0x13, 0x88, 0, 1], "identifier and number");
                id
            });
            assert_ne!(ids[0], ids[1], "two hosts with one identifier");
        }
    }
}

#[test]
fn messages_that_are_neither_query_nor_error_open_nothing() {
    let gateway = Gateway::two_armed();
    // Information (RFC 5508 REQ-10c), router discovery, traceroute, and what was never assigned.
    for kind in [9, 10, 15, 16, 30, 37, 200] {
        let message = Packet::icmp(HOST, REMOTE, kind, 0, [0x13, 0x88, 0, 1]);
        assert_eq!(gateway.refused_out(&message), DropReason::IcmpUnsupported, "{kind}");
    }
    assert_eq!(gateway.entries(), 0);
}

#[test]
fn a_query_with_a_wrong_checksum_opens_no_session() {
    for gateway in [Gateway::two_armed(), Gateway::one_armed(), Gateway::rfc()] {
        for length in [0, 1, 2, 23, 24, 25, 56, 1471, 1472] {
            let ping = Packet { data: vec![0xa5; length], ..Packet::ping((HOST, 5000), REMOTE) };
            for at in [CHECKSUM, ETHERNET + 27, ETHERNET + 27 + length] {
                let mut frame = ping.frame();
                frame[at] ^= 4;
                let run = gateway.world.receive(gateway.inside, &frame);
                assert_eq!(refused(&run), DropReason::IcmpChecksum, "{length}, byte {at}");
            }
        }
        assert_eq!(gateway.entries(), 0);
        gateway.sent_out(&Packet { data: vec![1; 1472], ..Packet::ping((HOST, 5000), REMOTE) });
    }
}

#[test]
fn on_a_live_session_a_wrong_checksum_is_still_wrong_behind_the_gateway() {
    let gateway = Gateway::two_armed();
    let ping = Packet::ping((HOST, 5000), REMOTE);
    gateway.sent_out(&ping);
    let mut frame = ping.frame();
    frame[CHECKSUM] ^= 4;
    let run = gateway.world.receive(gateway.inside, &frame);
    assert_eq!(run.verdict(), Verdict::ToDestination);
    assert!(try_seen(&run.frame).is_err_and(|fault| fault.contains("ICMP checksum")));
}
