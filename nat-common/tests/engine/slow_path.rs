//! What XDP cannot do at once: to the daemon and back.

use nat_common::{
    host::{
        Run,
        packet::{Packet, seen},
    },
    rules::{Interface, control},
    stage::{
        Out,
        hold::{Label, why},
    },
    verdict::{DropReason, Verdict},
};

use crate::gateway::{
    ACK, Gateway, HOST, OTHER_REMOTE, POOL, REMOTE, ROUTER, ROUTER_MAC, RST, SERVER, SYN, refused,
};

const TAP: u32 = 9;

fn with_slow_path(mut gateway: Gateway) -> Gateway {
    gateway.world.control.flags |= control::SLOW_PATH;
    gateway.world.control.slow_path = TAP;
    let tap = Interface { ifindex: TAP, mtu: 65535, ..bytemuck::Zeroable::zeroed() };
    gateway.world.interfaces.insert(TAP, tap);
    gateway
}

/// The label of a frame that is held, and the frame behind it.
fn held(run: &Run) -> (Label, Vec<u8>) {
    assert_eq!(run.verdict(), Verdict::Held, "by stages {:?}", run.stages);
    assert_eq!(run.outcome.out, Out::Slot(TAP as u16));
    let (label, frame) = run.frame.split_at(Label::LEN);
    (bytemuck::pod_read_unaligned(label), frame.to_vec())
}

fn labelled(label: Label, frame: &[u8]) -> Vec<u8> {
    [bytemuck::bytes_of(&label), frame].concat()
}

/// Every packet received is in exactly one class.
fn accounted(gateway: &Gateway) {
    let totals = gateway.totals();
    let received = totals.packets_in_from_source + totals.packets_in_from_destination;
    let placed = totals.packets_out_to_destination
        + totals.packets_out_to_source
        + totals.packets_to_host
        + totals.packets_answered
        + totals.drops.iter().sum::<u64>();
    assert_eq!(received, placed + (totals.packets_held - totals.packets_released));
}

#[test]
fn a_packet_waits_for_its_next_hops_address_and_goes_on() {
    for gateway in Gateway::both() {
        let mut gateway = with_slow_path(gateway);
        gateway.world.neighbours.remove(&ROUTER);
        let packet = Packet::udp((HOST, 5000), (REMOTE, 53));
        let run = gateway.out(&packet);
        let (label, frame) = held(&run);
        assert_eq!(frame, packet.frame(), "as it was received");
        assert_eq!((label.why, label.gateway), (why::NEIGHBOUR, ROUTER));
        assert_eq!(u32::from_ne_bytes(label.argument), gateway.outside);
        assert_eq!(u32::from_ne_bytes(label.ingress), gateway.inside);
        accounted(&gateway);

        gateway.world.neighbours.insert(ROUTER, ROUTER_MAC);
        let back = gateway.world.take_back(&run.frame).expect("it goes on");
        assert_eq!(back.verdict(), Verdict::ToDestination);
        assert_eq!(seen(&back.frame).source(), (POOL, 5000));
        accounted(&gateway);
        assert_eq!(gateway.totals().packets_in_from_source, 1, "received once");
    }
}

#[test]
fn a_packet_that_is_given_up_has_its_reason() {
    let mut gateway = with_slow_path(Gateway::two_armed());
    gateway.world.neighbours.remove(&ROUTER);
    let (mut label, _) = held(&gateway.out(&Packet::udp((HOST, 5000), (REMOTE, 53))));
    label.reason = DropReason::NoNeighbour as u8 + 1;
    label.argument = 1_u32.to_ne_bytes();
    assert!(gateway.world.take_back(&labelled(label, &[])).is_none());
    assert_eq!(gateway.totals().drops[DropReason::NoNeighbour as usize], 1);
    accounted(&gateway);
}

#[test]
fn what_came_back_is_not_held_again_for_the_same_reason() {
    let mut gateway = with_slow_path(Gateway::two_armed());
    gateway.world.neighbours.remove(&ROUTER);
    let run = gateway.out(&Packet::udp((HOST, 5000), (REMOTE, 53)));
    held(&run);
    let back = gateway.world.take_back(&run.frame).expect("it goes on");
    assert_eq!(back.verdict(), Verdict::Drop(DropReason::NoNeighbour));
    accounted(&gateway);
}

#[test]
fn fragments_before_their_first_one_wait_for_it() {
    for gateway in Gateway::both() {
        let gateway = with_slow_path(gateway);
        let mut packet = Packet::udp((HOST, 5000), (REMOTE, 53));
        packet.data = (0..=255).cycle().take(4000).collect();
        let fragments = packet.fragments(1480);
        let early: Vec<Run> = fragments[1..]
            .iter()
            .map(|fragment| gateway.world.receive(gateway.inside, fragment))
            .collect();
        for run in &early {
            assert_eq!(held(run).0.why, why::FRAGMENT);
        }
        let first = gateway.world.receive(gateway.inside, &fragments[0]);
        assert_eq!(first.verdict(), Verdict::ToDestination);
        let mut body = seen(&first.frame).body;
        for run in &early {
            let back = gateway.world.take_back(&run.frame).expect("it goes on");
            assert_eq!(back.verdict(), Verdict::ToDestination, "by {:?}", back.stages);
            let there = seen(&back.frame);
            assert_eq!((there.src, there.id), (POOL, seen(&first.frame).id));
            body.extend(there.body);
        }
        packet.src = POOL;
        assert_eq!(body, &packet.packet()[20..]);
        accounted(&gateway);
    }
}

#[test]
fn what_is_too_big_and_may_be_fragmented_goes_out_in_pieces_and_counts_once() {
    for host in [HOST, SERVER] {
        let mut gateway = with_slow_path(Gateway::two_armed());
        gateway.world.ways[2].mtu = 1000;
        let mut packet = Packet::udp((host, 5000), (REMOTE, 53));
        packet.data = vec![5; 1400];
        packet.dont_fragment = false;
        let (label, _) = held(&gateway.out(&packet));
        assert_eq!((label.why, u32::from_ne_bytes(label.argument)), (why::TOO_BIG, 1000));
        let mut body = Vec::new();
        let mut bytes = 0;
        for (number, piece) in packet.fragments(976).iter().enumerate() {
            let label = Label { extra: u8::from(number > 0), ..label };
            let back = gateway.world.take_back(&labelled(label, piece)).expect("it goes on");
            assert_eq!(back.verdict(), Verdict::ToDestination, "by {:?}", back.stages);
            body.extend(seen(&back.frame).body);
            bytes += u64::from(back.outcome.bytes);
        }
        let there = seen(&gateway.out(&Packet::udp((host, 5000), (REMOTE, 53))).frame);
        packet.src = there.src;
        assert_eq!(body, &packet.packet()[20..]);
        accounted(&gateway);
        let totals = gateway.totals();
        assert_eq!(totals.packets_out_to_destination, 2);
        assert_eq!(totals.bytes_out_to_destination, bytes + 40);
    }
}

#[test]
fn with_the_daemon_gone_they_are_drops_with_reasons_of_their_own() {
    let mut gateway = Gateway::two_armed();
    gateway.world.ways[2].mtu = 1000;
    let mut packet = Packet::udp((HOST, 5000), (REMOTE, 53));
    packet.data = vec![5; 1400];
    packet.dont_fragment = false;
    assert_eq!(gateway.refused_out(&packet), DropReason::FragmentationNeeded);
    let mut gateway = with_slow_path(gateway);
    gateway.world.interfaces.get_mut(&TAP).expect("the device").ifindex = 0;
    let run = gateway.out(&packet);
    assert_eq!(run.verdict(), Verdict::Drop(DropReason::SlowPathUnavailable));
    accounted(&gateway);
}

#[test]
fn foreign_frames_on_the_device_are_no_packets_of_the_gateways() {
    let gateway = with_slow_path(Gateway::two_armed());
    let frame = Packet::udp((HOST, 5000), (REMOTE, 53)).frame();
    assert!(gateway.world.take_back(&frame).is_none());
    assert!(gateway.world.take_back(&[]).is_none());
    assert_eq!(gateway.totals().drops.iter().sum::<u64>(), 0);
}

#[test]
fn an_unsolicited_syn_waits_in_profile_rfc_and_is_then_told_that_nobody_is_there() {
    let gateway = with_slow_path(Gateway::rfc());
    let syn = Packet::tcp((REMOTE, 5000), (POOL, 40_000), SYN);
    let run = gateway.back(&syn);
    let (label, frame) = held(&run);
    assert_eq!((label.why, frame), (why::SYN, syn.frame()));
    accounted(&gateway);

    let back = gateway.world.take_back(&run.frame).expect("its time has come");
    assert_eq!(back.verdict(), Verdict::Answered);
    let answer = seen(&back.frame);
    assert_eq!((answer.src, answer.dst), (POOL, REMOTE), "from the address that it was sent to");
    assert_eq!(back.frame.get(34..36), Some(&[3, 3][..]), "ICMP 3/3 (RFC 5382 REQ-4)");
    assert_eq!(gateway.entries(), 0);
    accounted(&gateway);
}

#[test]
fn a_syn_that_the_filtering_refuses_waits_as_well() {
    let gateway = with_slow_path(Gateway::rfc());
    let public = gateway.connect((HOST, 40_000), (REMOTE, 443));
    let run = gateway.back(&Packet::tcp((OTHER_REMOTE, 5000), public, SYN));
    assert_eq!(held(&run).0.why, why::SYN);
    let back = gateway.world.take_back(&run.frame).expect("its time has come");
    assert_eq!(back.verdict(), Verdict::Answered);
}

#[test]
fn a_held_syn_whose_connection_was_opened_from_inside_meanwhile_is_dropped_silently() {
    let gateway = with_slow_path(Gateway::rfc());
    let (inside, remote) = ((HOST, 40_000), (REMOTE, 5000));
    let run = gateway.back(&Packet::tcp(remote, (POOL, 40_000), SYN));
    held(&run);
    let public = gateway.sent_out(&Packet::tcp(inside, remote, SYN)).source();
    assert_eq!(public, (POOL, 40_000), "both ends open the same connection");
    gateway.sent_back(&Packet::tcp(remote, public, SYN | ACK));
    let back = gateway.world.take_back(&run.frame).expect("its time has come");
    assert_eq!(refused(&back), DropReason::HeldTimeout);
    accounted(&gateway);
}

#[test]
fn nothing_but_a_syn_waits_for_an_answer_and_in_profile_aws_not_even_that() {
    let gateway = with_slow_path(Gateway::rfc());
    for flags in [ACK, SYN | ACK, RST] {
        let stray = Packet::tcp((REMOTE, 5000), (POOL, 40_000), flags);
        assert_eq!(gateway.refused_back(&stray), DropReason::Unsolicited, "{flags:#x}");
    }
    let datagram = Packet::udp((REMOTE, 5000), (POOL, 40_000));
    assert_eq!(gateway.refused_back(&datagram), DropReason::Unsolicited);
    let gateway = with_slow_path(Gateway::two_armed());
    let syn = Packet::tcp((REMOTE, 5000), (POOL, 40_000), SYN);
    assert_eq!(gateway.refused_back(&syn), DropReason::Unsolicited);
}

#[test]
fn no_more_syns_are_held_than_could_be_answered_and_none_without_the_daemon() {
    let mut gateway = with_slow_path(Gateway::rfc());
    let syn = |port| Packet::tcp((REMOTE, port), (POOL, 40_000), SYN);
    let held = (1..=1200).filter(|&port| gateway.back(&syn(port)).verdict() == Verdict::Held);
    assert_eq!(held.count(), 1000, "in one second");
    gateway.pass(crate::gateway::HZ);
    assert_eq!(gateway.back(&syn(1)).verdict(), Verdict::Held);
    gateway.world.control.flags &= !control::SLOW_PATH;
    assert_eq!(gateway.refused_back(&syn(1)), DropReason::Unsolicited);
}
