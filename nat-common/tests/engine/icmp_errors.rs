//! ICMP errors about translated packets (RFC 5508 section 4).

use nat_common::{
    host::{
        Run,
        packet::{ETHERNET, Endpoint, Packet, mend_ip, seen},
    },
    net::Ip4,
    verdict::{DropReason, Verdict},
};

use crate::gateway::{GATEWAY, Gateway, HOST, OTHER_HOST, POOL, REMOTE, ROUTER, SYN, refused};

const KINDS: [(u8, u8); 6] = [(3, 0), (3, 1), (3, 3), (3, 4), (11, 0), (12, 0)];

/// Packets of each protocol as the host sends them.
fn requests() -> Vec<Packet> {
    let mut packets = vec![
        Packet::udp((HOST, 5000), (REMOTE, 53)),
        Packet::tcp((HOST, 5000), (REMOTE, 80), SYN),
        Packet::ping((HOST, 5000), REMOTE),
    ];
    for packet in packets.clone() {
        packets.push(Packet { options: vec![1; 40], ..packet });
    }
    packets
}

/// The same packet as it was on the public side.
fn outside_of(packet: &Packet, public: Endpoint) -> Packet {
    let mut outside = moved(packet, public, (packet.dst, 0));
    outside.ttl = packet.ttl - 1;
    outside
}

fn moved(packet: &Packet, src: Endpoint, dst: Endpoint) -> Packet {
    use nat_common::host::packet::Payload::{Icmp, Other, Tcp, Udp};
    let mut moved = packet.clone();
    (moved.src, moved.dst) = (src.0, dst.0);
    match &mut moved.payload {
        Tcp { sport, .. } | Udp { sport, .. } => *sport = src.1,
        Icmp { rest, .. } => rest[..2].copy_from_slice(&src.1.to_be_bytes()),
        Other(_) => {}
    }
    moved
}

#[test]
fn an_error_from_outside_reaches_the_host_with_its_own_packet_quoted() {
    for gateway in Gateway::both() {
        for request in requests() {
            let sent = gateway.sent_out(&request);
            let quoted = outside_of(&request, sent.source()).packet();
            let header = 20 + request.options.len();
            for (kind, code) in KINDS {
                for bytes in [header + 8, header + 18, quoted.len()] {
                    let error = Packet::error(ROUTER, POOL, kind, code, &quoted, bytes);
                    let here = gateway.sent_back(&error);
                    assert_eq!((here.src, here.dst), (ROUTER, HOST));
                    assert_eq!(here.icmp(), (kind, code));
                    assert_eq!(here.icmp_mtu(), 1400, "left as it was");
                    let quote = here.quote();
                    assert_eq!(quote.source(), (HOST, 5000));
                    assert_eq!(quote.destination().0, REMOTE);
                    // As it was sent, but for the TTL.
                    let original = Packet { ttl: request.ttl - 1, ..request.clone() }.packet();
                    assert_eq!(here.data, original[..bytes.min(original.len())], "{kind}/{code}");
                }
            }
        }
    }
}

#[test]
fn an_error_from_inside_leaves_with_the_public_addresses_in_and_outside_the_quote() {
    for gateway in Gateway::both() {
        for request in requests() {
            let public = gateway.sent_out(&request).source();
            let (reply, received) = match request.protocol() {
                17 => (Packet::udp((REMOTE, 53), public), Packet::udp((REMOTE, 53), (HOST, 5000))),
                6 => (
                    Packet::tcp((REMOTE, 80), public, SYN | 16),
                    Packet::tcp((REMOTE, 80), (HOST, 5000), SYN | 16),
                ),
                _ => (Packet::pong(REMOTE, public), Packet::pong(REMOTE, (HOST, 5000))),
            };
            let (reply, received) = (
                Packet { options: request.options.clone(), ..reply },
                Packet { options: request.options.clone(), ttl: 63, ..received },
            );
            gateway.sent_back(&reply);
            let header = 20 + request.options.len();
            for (kind, code) in KINDS {
                for bytes in [header + 8, header + 18, 500] {
                    let quoted = received.packet();
                    let error = Packet::error(HOST, REMOTE, kind, code, &quoted, bytes);
                    let there = gateway.sent_out(&error);
                    assert_eq!((there.src, there.dst), (POOL, REMOTE));
                    let original = Packet { ttl: 63, ..reply.clone() }.packet();
                    assert_eq!(there.data, original[..bytes.min(original.len())], "{kind}/{code}");
                }
            }
        }
    }
}

/// The quoted sender is who an error is for.
#[test]
fn an_error_that_quotes_a_packet_of_another_than_it_is_sent_to_is_forged() {
    for gateway in Gateway::both() {
        for request in requests() {
            let public = gateway.sent_out(&request).source();
            let (reply, elsewhere) = match request.protocol() {
                17 => (Packet::udp((REMOTE, 53), public), Packet::udp((REMOTE, 53), (HOST, 5000))),
                6 => (
                    Packet::tcp((REMOTE, 80), public, SYN | 16),
                    Packet::tcp((REMOTE, 80), (HOST, 5000), SYN | 16),
                ),
                _ => (Packet::pong(REMOTE, public), Packet::pong(REMOTE, (HOST, 5000))),
            };
            gateway.sent_back(&reply);
            let error = Packet::error(HOST, ROUTER, 3, 3, &elsewhere.packet(), 500);
            assert_eq!(gateway.refused_out(&error), DropReason::IcmpNoSession);
        }
    }
}

#[test]
fn an_error_from_a_router_inside_comes_from_the_public_address_outside() {
    let gateway = Gateway::two_armed();
    let public = gateway.sent_out(&Packet::udp((HOST, 5000), (REMOTE, 53))).source();
    gateway.sent_back(&Packet::udp((REMOTE, 53), public));
    let received = Packet::udp((REMOTE, 53), (HOST, 5000)).packet();
    let error = Packet::error(OTHER_HOST, REMOTE, 11, 0, &received, 28);
    let there = gateway.sent_out(&error);
    assert_eq!((there.src, there.dst), (POOL, REMOTE));
    assert_eq!(there.quote().destination(), public);
}

#[test]
fn an_error_neither_makes_nor_refreshes_nor_ends_a_session() {
    let mut gateway = Gateway::two_armed();
    let request = Packet::udp((HOST, 5000), (REMOTE, 53));
    let public = gateway.sent_out(&request).source();
    let quoted = outside_of(&request, public).packet();
    let error = Packet::error(ROUTER, POOL, 3, 3, &quoted, 28);
    for _ in 0..4 {
        gateway.pass(8000);
        gateway.sent_back(&error);
    }
    gateway.pass(8000);
    assert_eq!(gateway.refused_back(&error), DropReason::Unsolicited, "350 s are over");
    assert_eq!(gateway.entries(), 2);
}

#[test]
fn errors_about_strangers_are_dropped_on_both_sides() {
    for gateway in Gateway::both() {
        gateway.sent_out(&Packet::udp((HOST, 5000), (REMOTE, 53)));
        let strange = |src: Ip4, sport| Packet::udp((src, sport), (REMOTE, 53)).packet();
        // Another port, and a quote whose sender is not who the error is for.
        let error = Packet::error(ROUTER, POOL, 3, 3, &strange(POOL, 5001), 28);
        assert_eq!(gateway.refused_back(&error), DropReason::Unsolicited);
        let error = Packet::error(REMOTE, POOL, 3, 3, &strange(HOST, 5000), 28);
        assert_eq!(gateway.refused_back(&error), DropReason::Unsolicited);
        let error = Packet::error(HOST, REMOTE, 3, 3, &strange(REMOTE, 9), 28);
        assert_eq!(gateway.refused_out(&error), DropReason::IcmpNoSession);
        let error = Packet::error(HOST, ROUTER, 3, 3, &strange(HOST, 5000), 28);
        assert_eq!(gateway.refused_out(&error), DropReason::IcmpNoSession);
    }
}

#[test]
fn quotes_that_say_too_little_belong_to_nobody() {
    for gateway in Gateway::both() {
        let request = Packet::udp((HOST, 5000), (REMOTE, 53));
        let public = gateway.sent_out(&request).source();
        let quoted = outside_of(&request, public).packet();
        for bytes in [0, 1, 8, 19, 20, 24, 27] {
            let error = Packet::error(ROUTER, POOL, 3, 3, &quoted, bytes);
            assert_eq!(gateway.refused_back(&error), DropReason::Unsolicited, "{bytes}");
            let error = Packet::error(HOST, REMOTE, 3, 3, &quoted, bytes);
            assert_eq!(gateway.refused_out(&error), DropReason::IcmpNoSession, "{bytes}");
        }
    }
}

#[test]
fn an_error_about_a_hairpinned_packet_stays_inside_and_is_right() {
    let gateway = Gateway::rfc();
    let run = gateway.out(&Packet::udp((HOST, 5000), (POOL, 8000)));
    let there = seen(&run.frame);
    let quoted = Packet::udp(there.source(), (OTHER_HOST, 9000)).packet();
    let run = gateway.out(&Packet::error(OTHER_HOST, POOL, 3, 3, &quoted, 28));
    assert_eq!(run.verdict(), Verdict::ToSource, "by {:?}", run.stages);
    let here = seen(&run.frame);
    assert_eq!((here.src, here.dst), (POOL, HOST));
    let quote = here.quote();
    assert_eq!((quote.source(), quote.destination()), ((HOST, 5000), (POOL, 8000)));
}

/// The checksum of the message, of an error without options.
const CHECKSUM: usize = ETHERNET + 22;

#[test]
fn an_error_with_a_wrong_checksum_is_dropped_for_that_reason_whatever_its_length() {
    for gateway in Gateway::both() {
        let request = Packet { data: vec![7; 900], ..Packet::udp((HOST, 5000), (REMOTE, 53)) };
        let public = gateway.sent_out(&request).source();
        let quoted = outside_of(&request, public).packet();
        let reply = Packet { data: vec![7; 900], ..Packet::udp((REMOTE, 53), (HOST, 5000)) };
        for bytes in [28, 29, 31, 32, 56, 57, 100, 548, 549, 928] {
            let error = Packet::error(ROUTER, POOL, 3, 4, &quoted, bytes);
            let outward = Packet::error(HOST, REMOTE, 3, 3, &reply.packet(), bytes);
            gateway.sent_back(&error);
            gateway.sent_out(&outward);
            for at in [CHECKSUM, CHECKSUM + 5, ETHERNET + 20 + 8 + bytes - 1] {
                let mut frame = error.frame();
                frame[at] ^= 0x10;
                let run = gateway.world.receive(gateway.outside, &frame);
                assert_eq!(refused(&run), DropReason::IcmpChecksum, "{bytes}, byte {at}");
                let mut frame = outward.frame();
                frame[at] ^= 0x10;
                let run = gateway.world.receive(gateway.inside, &frame);
                assert_eq!(refused(&run), DropReason::IcmpChecksum, "{bytes}, byte {at}");
            }
        }
    }
}

#[test]
fn an_error_that_quotes_an_ip_header_with_a_wrong_checksum_is_dropped() {
    let gateway = Gateway::two_armed();
    for request in requests() {
        let public = gateway.sent_out(&request).source();
        let mut quoted = outside_of(&request, public).packet();
        let bytes = 28 + request.options.len();
        gateway.sent_back(&Packet::error(ROUTER, POOL, 11, 0, &quoted, bytes));
        quoted[10] ^= 1;
        let error = Packet::error(ROUTER, POOL, 11, 0, &quoted, bytes);
        assert_eq!(gateway.refused_back(&error), DropReason::IcmpChecksum, "{request:?}");
    }
}

#[test]
fn the_transport_checksum_that_an_error_quotes_is_not_judged() {
    let gateway = Gateway::two_armed();
    let request = Packet::udp((HOST, 5000), (REMOTE, 53));
    let public = gateway.sent_out(&request).source();
    let mut quoted = outside_of(&request, public).packet();
    quoted[27] ^= 1;
    let error = Packet::error(ROUTER, POOL, 3, 3, &quoted, 28);
    let run = gateway.back(&error);
    assert_eq!(run.verdict(), Verdict::ToSource, "RFC 5508 REQ-3c, by {:?}", run.stages);
}

#[test]
fn an_error_for_the_host_itself_is_the_hosts_to_judge() {
    let gateway = Gateway::two_armed();
    let sent = Packet::udp((GATEWAY, 5000), (REMOTE, 53)).packet();
    let mut frame = Packet::error(ROUTER, GATEWAY, 3, 3, &sent, 28).frame();
    frame[CHECKSUM] ^= 1;
    let run = gateway.world.receive(gateway.outside, &frame);
    assert_eq!(run.verdict(), Verdict::ToHost);
    assert_eq!(run.frame, frame);
}

#[test]
fn extensions_behind_the_quote_pass_untouched_with_the_checksum_right() {
    // RFC 4884: the quote is padded to 128 bytes, 32 words; an MPLS label stack (RFC 4950) follows.
    let extension = [0x20, 0, 0x9a, 0xd4, 0, 8, 1, 1, 0x12, 0x34, 0x51, 0xfe];
    for request in requests() {
        let gateway = Gateway::two_armed();
        let public = gateway.sent_out(&request).source();
        for (kind, code) in [(3, 0), (11, 0), (12, 0)] {
            let mut error = Packet::icmp(ROUTER, POOL, kind, code, [0, 32, 0, 0]);
            error.data = outside_of(&request, public).packet();
            error.data.resize(128, 0);
            error.data.extend(extension);
            let here = gateway.sent_back(&error);
            let mut original = Packet { ttl: request.ttl - 1, ..request.clone() }.packet();
            original.resize(128, 0);
            assert_eq!(here.data[..128], original, "quote and padding");
            assert_eq!(here.data[128..], extension);
            assert_eq!(here.body[4..8], [0, 32, 0, 0], "length of the quote");
        }
    }
}

#[test]
fn an_error_about_a_first_fragment_reaches_its_sender() {
    let gateway = Gateway::two_armed();
    let request = Packet { data: vec![7; 3000], ..Packet::udp((HOST, 5000), (REMOTE, 53)) };
    let run = gateway.world.receive(gateway.inside, &request.fragments(1480)[0]);
    assert_eq!(run.verdict(), Verdict::ToDestination);
    for (kind, code) in [(3, 4), (11, 0), (11, 1)] {
        let error = Packet::error(ROUTER, POOL, kind, code, &run.frame[ETHERNET..], 548);
        let here = gateway.sent_back(&error);
        assert_eq!(here.dst, HOST);
        let quote = here.quote();
        assert_eq!((quote.src, quote.dst), (HOST, REMOTE));
        assert_eq!(quote.body[..4], [0x13, 0x88, 0, 53], "ports");
    }
}

#[test]
fn an_error_about_an_error_is_dropped() {
    let gateway = Gateway::two_armed();
    let request = Packet::udp((HOST, 5000), (REMOTE, 53));
    let public = gateway.sent_out(&request).source();
    let about = outside_of(&request, public).packet();
    let inner = Packet::error(POOL, REMOTE, 3, 3, &about, 28).packet();
    let error = Packet::error(ROUTER, POOL, 11, 0, &inner, 56);
    assert_eq!(gateway.refused_back(&error), DropReason::Unsolicited);
    let inner = Packet::error(REMOTE, HOST, 3, 3, &request.packet(), 28).packet();
    let error = Packet::error(HOST, REMOTE, 11, 0, &inner, 56);
    assert_eq!(gateway.refused_out(&error), DropReason::IcmpNoSession);
}

/// RFC 5508 REQ-4a and 5a: the quote is reverted to what its sender has sent.
#[test]
fn an_error_about_a_fragment_quotes_it_by_the_identification_that_its_sender_gave_it() {
    for gateway in Gateway::both() {
        let mut request = Packet::udp((HOST, 5000), (REMOTE, 53));
        request.data = vec![7; 3000];
        let mut reply = Packet::udp((REMOTE, 53), (POOL, 5000));
        reply.data = vec![8; 3000];
        for (packet, arrives, leaves, router, to) in [
            (&request, gateway.inside, gateway.outside, ROUTER, POOL),
            (&reply, gateway.outside, gateway.inside, HOST, REMOTE),
        ] {
            for fragment in packet.fragments(1480) {
                let run = gateway.world.receive(arrives, &fragment);
                assert_eq!(refusal(&run), None, "by {:?}", run.stages);
                let there = &run.frame[ETHERNET..];
                assert_ne!(there[4..6], fragment[ETHERNET + 4..][..2], "it has another here");
                let error = Packet::error(router, to, 11, 1, there, 28);
                let run = gateway.world.receive(leaves, &error.frame());
                assert_eq!(refusal(&run), None, "by {:?}", run.stages);
                let here = seen(&run.frame);
                let mut original = fragment[ETHERNET..][..28].to_vec();
                original[8] -= 1;
                let mut frame = [&[0; ETHERNET], &original[..]].concat();
                mend_ip(&mut frame);
                assert_eq!(here.data, frame[ETHERNET..]);
            }
        }
    }
}

fn refusal(run: &Run) -> Option<DropReason> {
    match run.verdict() {
        Verdict::Drop(reason) => Some(reason),
        _ => None,
    }
}
