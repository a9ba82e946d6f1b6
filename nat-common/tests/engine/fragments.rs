//! Fragments of sessions.

use nat_common::{
    host::packet::{Packet, seen},
    verdict::{DropReason, Verdict},
};

use crate::gateway::{Gateway, HOST, HZ, OTHER_HOST, POOL, REMOTE};

fn datagram() -> Packet {
    let mut packet = Packet::udp((HOST, 5000), (REMOTE, 53));
    packet.data = (0..=255).cycle().take(4000).collect();
    packet
}

#[test]
fn fragments_are_translated_and_reassemble_to_the_translated_datagram() {
    for gateway in Gateway::both() {
        let mut body = Vec::new();
        let mut ids = Vec::new();
        for fragment in datagram().fragments(1480) {
            let run = gateway.world.receive(gateway.inside, &fragment);
            assert_eq!(run.verdict(), Verdict::ToDestination, "by {:?}", run.stages);
            let there = seen(&run.frame);
            assert_eq!((there.src, there.dst), (POOL, REMOTE));
            body.extend(there.body);
            ids.push(there.id);
        }
        let mut whole = datagram();
        whole.src = POOL;
        assert_eq!(body, &whole.packet()[20..], "checksum included");
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }
}

#[test]
fn equal_identifications_of_two_hosts_do_not_become_one_datagram() {
    let gateway = Gateway::two_armed();
    let mut ids = Vec::new();
    for host in [HOST, OTHER_HOST] {
        let mut packet = datagram();
        packet.src = host;
        let run = gateway.world.receive(gateway.inside, &packet.fragments(1480)[0]);
        ids.push(seen(&run.frame).id);
    }
    assert_ne!(ids[0], ids[1]);
}

#[test]
fn answers_in_fragments_find_their_host() {
    for gateway in Gateway::both() {
        gateway.sent_out(&Packet::udp((HOST, 5000), (REMOTE, 53)));
        let mut reply = Packet::udp((REMOTE, 53), (POOL, 5000));
        reply.data = vec![3; 4000];
        let mut body = Vec::new();
        for fragment in reply.fragments(1480) {
            let run = gateway.world.receive(gateway.outside, &fragment);
            assert_eq!(run.verdict(), Verdict::ToSource, "by {:?}", run.stages);
            let here = seen(&run.frame);
            assert_eq!(here.dst, HOST);
            body.extend(here.body);
        }
        reply.dst = HOST;
        assert_eq!(body, &reply.packet()[20..]);
    }
}

#[test]
fn a_fragment_without_its_first_one_is_an_orphan_where_nothing_holds_it() {
    for gateway in Gateway::both() {
        let fragments = datagram().fragments(1480);
        let run = gateway.world.receive(gateway.inside, &fragments[1]);
        assert_eq!(run.verdict(), Verdict::Drop(DropReason::FragmentOrphan));
        assert_eq!(gateway.entries(), 0);
    }
}

#[test]
fn a_note_of_a_first_fragment_is_forgotten() {
    let mut gateway = Gateway::two_armed();
    let fragments = datagram().fragments(1480);
    gateway.world.receive(gateway.inside, &fragments[0]);
    gateway.pass(6 * HZ);
    let run = gateway.world.receive(gateway.inside, &fragments[1]);
    assert_eq!(run.verdict(), Verdict::Drop(DropReason::FragmentOrphan));
}

#[test]
fn a_second_first_fragment_that_differs_is_dropped() {
    let gateway = Gateway::two_armed();
    gateway.world.receive(gateway.inside, &datagram().fragments(1480)[0]);
    let mut forged = datagram();
    forged.payload =
        nat_common::host::packet::Payload::Udp { sport: 6000, dport: 53, checksum: true };
    let run = gateway.world.receive(gateway.inside, &forged.fragments(1480)[0]);
    assert_eq!(run.verdict(), Verdict::Drop(DropReason::FragmentOverlap));
}

#[test]
fn a_first_fragment_too_short_for_its_header_is_dropped() {
    let gateway = Gateway::two_armed();
    let mut packet = Packet::tcp((HOST, 5000), (REMOTE, 80), 2);
    packet.data = vec![1; 100];
    let run = gateway.world.receive(gateway.inside, &packet.fragments(8)[0]);
    assert_eq!(run.verdict(), Verdict::Drop(DropReason::FragmentTiny));
    assert_eq!(gateway.entries(), 0);
}

#[test]
fn a_later_fragment_that_overlaps_the_first_one_is_dropped() {
    let gateway = Gateway::two_armed();
    let fragments = datagram().fragments(1480);
    let forged = datagram().fragments(1472);
    gateway.world.receive(gateway.inside, &fragments[0]);
    for later in [&forged[1], &datagram().fragments(8)[1]] {
        let run = gateway.world.receive(gateway.inside, later);
        assert_eq!(run.verdict(), Verdict::Drop(DropReason::FragmentOverlap));
    }
    let run = gateway.world.receive(gateway.inside, &forged[0]);
    assert_eq!(run.verdict(), Verdict::Drop(DropReason::FragmentOverlap), "another first one");
    for again in &fragments {
        let run = gateway.world.receive(gateway.inside, again);
        assert_eq!(run.verdict(), Verdict::ToDestination, "the datagram's own, repeated, too");
    }
}
