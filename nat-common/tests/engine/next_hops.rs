//! The next hops that the slots of the flow cache name by a number.

use nat_common::{
    env::Tables as _,
    host::{
        World,
        packet::{Packet, seen},
    },
    next_hops::{self, PLACES},
    session::{NextHop, Path},
};

use crate::gateway::{Gateway, HOST, INSIDE_MAC, OTHER_HOST, OTHER_REMOTE, POOL, REMOTE, key};

const EPOCH: u32 = 7;

fn world() -> World {
    let mut world = World::default();
    world.next_hops.resize_with(PLACES as usize, Default::default);
    world
}

fn hop(last: u8) -> NextHop {
    NextHop::new([2, 0, 0, 0, 0, last], 3)
}

fn number(world: &World, last: u8, mtu: u16, epoch: u32) -> Option<u16> {
    next_hops::number(world, hop(last), Path::new(mtu, 1), INSIDE_MAC, epoch)
}

#[test]
fn a_way_out_has_one_number_and_another_one_has_another() {
    let world = world();
    let first = number(&world, 1, 1500, EPOCH).expect("a number");
    assert_eq!(number(&world, 1, 1500, EPOCH), Some(first));
    let row = world.next_hop(first).expect("its row");
    assert_eq!((row.next_hop(), row.slot(), row.mtu()), (hop(1), 3, 1500));
    for other in [number(&world, 2, 1500, EPOCH), number(&world, 1, 1400, EPOCH)] {
        assert_ne!(other.expect("a number"), first);
    }
}

#[test]
fn a_full_table_keeps_what_its_numbers_mean_until_two_epochs_have_passed_without_them() {
    let world = world();
    let path = Path::new(1500, 1);
    let enter = |next, epoch| next_hops::number(&world, next, path, INSIDE_MAC, epoch);
    let meant = |number| world.next_hop(number).expect("its row").next_hop();
    let ways = (0..256).flat_map(|slot| (0..=255).map(move |last| (slot, last)));
    let (mut entered, mut refused) = (Vec::new(), Vec::new());
    for (slot, last) in ways {
        let next = NextHop::new([2, 0, 0, 0, 1, last], slot);
        match enter(next, EPOCH) {
            Some(number) => entered.push((number, next)),
            None => refused.push(next),
        }
    }
    assert_eq!(entered.len(), PLACES as usize, "every place is taken");
    for next in &refused {
        assert_eq!(enter(*next, EPOCH + 1), None, "slots of the last epoch may still be read");
    }
    for (number, next) in &entered {
        assert_eq!(meant(*number), *next);
    }
    let used_on = entered[0];
    assert_eq!(enter(used_on.1, EPOCH + 1), Some(used_on.0));
    let later = refused.iter().filter_map(|next| Some((enter(*next, EPOCH + 2)?, *next)));
    let later: Vec<_> = later.collect();
    assert!(!later.is_empty(), "places that nobody has used since are free");
    for (number, next) in later {
        assert_eq!(meant(number), next);
    }
    assert_eq!(meant(used_on.0), used_on.1);
}

/// What the session table has counted, the cache left out.
fn stored(gateway: &Gateway, packet: &Packet) -> u64 {
    gateway.world.session(&key(packet)).expect("the session").packets.get()
}

#[test]
fn cached_flows_go_each_to_its_own_next_hop_by_its_own_mtu() {
    let gateway = Gateway::two_armed();
    let flows = [(HOST, REMOTE), (OTHER_HOST, OTHER_REMOTE)]
        .map(|(host, remote)| Packet::udp((host, 5000), (remote, 53)));
    let to: Vec<_> = flows.iter().map(|flow| gateway.sent_out(flow).to).collect();
    for flow in &flows {
        gateway.sent_out(flow);
    }
    for (flow, to) in flows.iter().zip(to) {
        let before = stored(&gateway, flow);
        assert_eq!(gateway.sent_out(flow).to, to);
        assert_eq!(stored(&gateway, flow), before, "by the cache");
    }
    let back = Packet::udp((OTHER_REMOTE, 53), (POOL, 5000));
    for _ in 0..3 {
        assert_eq!(gateway.sent_back(&back).destination(), (OTHER_HOST, 5000));
    }
}

#[test]
fn flows_of_which_both_ends_are_replaced_go_by_their_sessions() {
    let gateway = Gateway::rfc();
    let packet = Packet::udp((HOST, 5000), (POOL, 8000));
    for sent in 1..5 {
        let inside = seen(&gateway.out(&packet).frame);
        assert_eq!((inside.source(), inside.destination()), ((POOL, 5000), (OTHER_HOST, 9000)));
        assert_eq!(stored(&gateway, &packet), sent);
    }
}
