use nat_common::{
    net::Port,
    stage::hold::{Label, why},
    wire::Ipv4,
};

use super::*;

const SMALL: Limits = Limits {
    all: Room { packets: 8, bytes: 10_000, per_source: 4 },
    fragments: 6,
    syns: Room { packets: 5, bytes: 1_000, per_source: 3 },
};

fn packet(source: u8, id: u8, fragment: u16, length: usize) -> Held {
    let ip = Ipv4 {
        src: Ip4::new([10, 0, 1, source]),
        id: [0, id],
        fragment: fragment.to_be_bytes(),
        ..bytemuck::Zeroable::zeroed()
    };
    let label = Label { magic: Label::MAGIC, why: why::FRAGMENT, ..Label::default() };
    Held { label, frame: vec![0; length], ip }
}

fn fragment(source: u8, id: u8, offset: u16) -> (Wait, Held) {
    let packet = packet(source, id, offset, 100);
    (Wait::First(packet.fragment_key(0)), packet)
}

fn neighbour(last: u8) -> Wait {
    Wait::Neighbour { ifindex: 3, address: Ip4::new([10, 0, 1, last]) }
}

fn push_fragment(queue: &mut Queue, fragment: &(Wait, Held), now: Instant) {
    queue.push(fragment.0, fragment.1.clone(), now).expect("room");
}

#[test]
fn packets_for_a_neighbour_go_on_in_the_order_in_which_they_came_and_others_stay() {
    let mut queue = Queue::new(SMALL);
    let now = Instant::now();
    for (source, last) in [(5, 1), (6, 2), (7, 1), (5, 1)] {
        queue.push(neighbour(last), packet(source, source, 0, 10), now).expect("room");
    }
    let sources: Vec<u8> =
        queue.take(&neighbour(1)).iter().map(|it| { it.ip.src }.octets()[3]).collect();
    assert_eq!(sources, [5, 7, 5]);
    assert_eq!(queue.neighbours().collect::<Vec<_>>(), [(3, Ip4::new([10, 0, 1, 2]))]);
    assert!(queue.take(&neighbour(1)).is_empty(), "nothing twice");
}

#[test]
fn only_the_first_packet_of_a_kind_is_told_so() {
    let mut queue = Queue::new(SMALL);
    let now = Instant::now();
    assert_eq!(queue.push(neighbour(1), packet(5, 0, 0, 10), now), Ok(true));
    assert_eq!(queue.push(neighbour(1), packet(5, 0, 0, 10), now), Ok(false));
    assert_eq!(queue.push(neighbour(2), packet(5, 0, 0, 10), now), Ok(true));
}

#[test]
fn fragments_go_on_by_their_place_in_the_datagram_once_their_first_one_was_there_twice() {
    let mut queue = Queue::new(SMALL);
    let now = Instant::now();
    for offset in [30, 10, 20] {
        push_fragment(&mut queue, &fragment(5, 1, offset), now);
    }
    push_fragment(&mut queue, &fragment(5, 2, 10), now);
    let first = packet(5, 1, 0, 0).fragment_key(0);
    let mut look = |there: bool| {
        let ready = queue.look(100, |key| Ok::<_, ()>(there && *key == first)).expect("no error");
        ready.iter().map(Held::offset).collect::<Vec<_>>()
    };
    assert!(look(false).is_empty());
    assert!(look(true).is_empty(), "its session may not be there yet");
    assert_eq!(look(true), [10, 20, 30]);
    assert!(look(true).is_empty());
    assert!(queue.has_fragments(), "those of the other datagram");
}

#[test]
fn fragments_wait_as_long_as_their_first_one_waits_for_a_neighbour() {
    let mut queue = Queue::new(SMALL);
    let now = Instant::now();
    queue.push(neighbour(1), packet(5, 1, Ipv4::MORE_FRAGMENTS, 10), now).expect("room");
    push_fragment(&mut queue, &fragment(5, 1, 10), now);
    for _ in 0..3 {
        assert!(queue.look(10, |_| Ok::<_, ()>(true)).expect("no error").is_empty());
    }
    assert_eq!(queue.take(&neighbour(1)).len(), 1);
    assert!(queue.look(10, |_| Ok::<_, ()>(true)).expect("no error").is_empty());
    assert_eq!(queue.look(10, |_| Ok::<_, ()>(true)).expect("no error").len(), 1);
}

#[test]
fn every_datagram_has_its_turn_however_many_wait() {
    let mut queue = Queue::new(Limits::default());
    let now = Instant::now();
    for id in 0..100 {
        push_fragment(&mut queue, &fragment(5, id, 10), now);
    }
    let mut asked = Vec::new();
    for _ in 0..10 {
        queue
            .look(10, |key| {
                asked.push(key.id[1]);
                Ok::<_, ()>(false)
            })
            .expect("no error");
    }
    assert_eq!(asked, (0..100).collect::<Vec<u8>>());
}

#[test]
fn one_source_cannot_take_the_room_of_others() {
    let mut queue = Queue::new(SMALL);
    let now = Instant::now();
    for id in 0..4 {
        push_fragment(&mut queue, &fragment(5, id, 10), now);
    }
    let (wait, packet) = fragment(5, 9, 10);
    assert_eq!(queue.push(wait, packet.clone(), now), Err(DropReason::FragmentTableFull));
    assert_eq!(
        queue.push(neighbour(1), packet, now),
        Err(DropReason::SlowPathUnavailable),
        "whatever it waits for"
    );
    push_fragment(&mut queue, &fragment(6, 9, 10), now);
}

#[test]
fn fragments_cannot_take_the_room_of_packets_that_wait_for_a_neighbour() {
    let mut queue = Queue::new(SMALL);
    let now = Instant::now();
    for source in 0..6 {
        push_fragment(&mut queue, &fragment(source, 1, 10), now);
    }
    let (wait, packet) = fragment(7, 1, 10);
    assert_eq!(queue.push(wait, packet.clone(), now), Err(DropReason::FragmentTableFull));
    for _ in 0..2 {
        assert!(queue.push(neighbour(1), packet.clone(), now).is_ok());
    }
    let full = queue.push(neighbour(1), packet, now);
    assert_eq!(full, Err(DropReason::SlowPathUnavailable), "8 packets in all");
}

#[test]
fn memory_is_bounded_and_room_comes_back_with_what_leaves() {
    let mut queue = Queue::new(SMALL);
    let now = Instant::now();
    queue.push(neighbour(1), packet(5, 1, 0, 6_000), now).expect("room");
    let big = packet(6, 1, 0, 6_000);
    let full = queue.push(neighbour(2), big.clone(), now);
    assert_eq!(full, Err(DropReason::SlowPathUnavailable));
    assert_eq!(queue.take(&neighbour(1)).len(), 1);
    assert_eq!(queue.push(neighbour(2), big, now), Ok(true));
    assert_eq!(queue.drain().len(), 1);
    assert!(queue.is_empty() && queue.next_deadline().is_none());
    let nothing = format!("{:?}", Taken::default());
    assert_eq!(format!("{:?}", queue.all), nothing);
    assert!(queue.firsts.is_empty(), "nothing is remembered");
}

#[test]
fn what_waited_in_vain_is_given_up_at_its_time_counted_from_the_first_of_its_kind() {
    let mut queue = Queue::new(SMALL);
    let start = Instant::now();
    push_fragment(&mut queue, &fragment(5, 1, 10), start);
    queue.push(neighbour(1), packet(6, 1, 0, 10), start).expect("room");
    push_fragment(&mut queue, &fragment(5, 1, 20), start + Duration::from_secs(1));
    assert_eq!(queue.next_deadline(), Some(start + Duration::from_secs(2)));
    assert!(queue.expired(start + Duration::from_millis(1999)).is_empty());
    assert_eq!(queue.expired(start + Duration::from_secs(2)).len(), 2, "both fragments");
    assert_eq!(queue.expired(start + Duration::from_millis(3500)).len(), 1);
    assert!(queue.is_empty());
}

fn syn(source: u8, port: u8) -> (Wait, Held) {
    let packet = packet(source, port, 0, 60);
    let tuple = Tuple { sport: Port::new(u16::from(port)), ..packet.tuple() };
    (Wait::Answer(tuple), packet)
}

#[test]
fn a_syn_waits_six_seconds_and_the_same_one_sent_again_is_not_answered_twice() {
    let mut queue = Queue::new(SMALL);
    let start = Instant::now();
    let (wait, packet) = syn(5, 1);
    assert_eq!(queue.push(wait, packet.clone(), start), Ok(true));
    let again = queue.push(wait, packet.clone(), start + Duration::from_secs(3));
    assert_eq!(again, Err(DropReason::Unsolicited));
    assert!(queue.expired(start + Duration::from_millis(5_999)).is_empty());
    assert_eq!(queue.expired(start + Duration::from_secs(6)), std::slice::from_ref(&packet));
    assert_eq!(queue.push(wait, packet, start + Duration::from_secs(7)), Ok(true), "a later one");
}

#[test]
fn held_syns_are_bounded_for_each_source_and_take_no_room_of_others() {
    let mut queue = Queue::new(SMALL);
    let now = Instant::now();
    let mut taken = |source, port| {
        let (wait, packet) = syn(source, port);
        queue.push(wait, packet, now).is_ok()
    };
    assert_eq!([1, 2, 3, 4].map(|port| taken(5, port)), [true, true, true, false], "a source");
    assert_eq!([1, 2, 3].map(|port| taken(6, port)), [true, true, false], "all together");
    for id in 0..4 {
        push_fragment(&mut queue, &fragment(5, id, 10), now);
    }
    assert_eq!(queue.drain().len(), 9);
    assert!(queue.is_empty());
}
