//! Two CPUs with the first packets of one session: who loses adopts the winner's, and no packet
//! is lost.

use nat_common::{
    env::Tables as _,
    host::{
        HostFrame,
        packet::{Packet, seen},
    },
    maps::stage,
    session::State,
    stage::{Step, accept, hit, open},
    verdict::Verdict,
};

use crate::gateway::{Gateway, HOST, OTHER_HOST, POOL, REMOTE, SYN, key};

/// Leads a packet up to the stage that would insert its session, as a CPU that is about to.
fn up_to(gateway: &Gateway, ingress: u32, packet: &Packet, last: u32) -> HostFrame {
    let mut frame = HostFrame::new(ingress, &packet.frame());
    let mut step = nat_common::stage::fast::run(&mut frame, &gateway.world);
    loop {
        step = match step {
            Step::Go(number) if number == last => return frame,
            Step::Go(stage::CLASSIFY) => {
                nat_common::stage::classify::run(&mut frame, &gateway.world)
            }
            Step::Go(stage::INBOUND) => nat_common::stage::inbound::run(&mut frame, &gateway.world),
            other => panic!("{other:?}"),
        };
    }
}

fn sent(step: Step) -> bool {
    matches!(
        step,
        Step::Done(outcome) if matches!(outcome.verdict, Verdict::ToDestination | Verdict::ToSource)
    )
}

#[test]
fn the_loser_of_a_first_packet_adopts_the_winners_mapping_and_frees_its_own_port() {
    let gateway = Gateway::two_armed();
    // The first port is taken by another host, so both would choose at random.
    gateway.sent_out(&Packet::udp((OTHER_HOST, 5000), (REMOTE, 53)));
    let packet = Packet::udp((HOST, 5000), (REMOTE, 53));
    let mut loser = up_to(&gateway, gateway.inside, &packet, stage::OPEN);
    let handoff = gateway.world.handoff(|handoff| *handoff).unwrap();
    let winner = gateway.sent_out(&packet);
    gateway.world.handoff(|slot| *slot = handoff);
    assert_eq!(open::run(&mut loser, &gateway.world), Step::Go(stage::HIT));
    assert!(sent(hit::run(&mut loser, &gateway.world)));
    assert_eq!(seen(&loser.bytes).source(), winner.source());
    assert_eq!(gateway.entries(), 4, "the loser left nothing");
    assert_eq!(gateway.totals().sessions_created, 2);
}

#[test]
fn two_first_packets_with_the_own_port_end_in_one_session() {
    let gateway = Gateway::two_armed();
    let packet = Packet::tcp((HOST, 5000), (REMOTE, 80), SYN);
    let mut loser = up_to(&gateway, gateway.inside, &packet, stage::OPEN);
    let handoff = gateway.world.handoff(|handoff| *handoff).unwrap();
    let winner = gateway.sent_out(&packet);
    gateway.world.handoff(|slot| *slot = handoff);
    // Its own port is taken by the winner; whatever it tries next ends with the winner's session.
    assert_eq!(open::run(&mut loser, &gateway.world), Step::Go(stage::HIT));
    assert!(sent(hit::run(&mut loser, &gateway.world)));
    assert_eq!(seen(&loser.bytes).source(), winner.source());
    assert_eq!(gateway.entries(), 2);
}

#[test]
fn two_first_packets_through_a_forward_end_in_one_session() {
    let gateway = Gateway::two_armed();
    let packet = Packet::tcp((REMOTE, 40000), (POOL, 443), SYN);
    let mut loser = up_to(&gateway, gateway.outside, &packet, stage::ACCEPT);
    let handoff = gateway.world.handoff(|handoff| *handoff).unwrap();
    gateway.sent_back(&packet);
    gateway.world.handoff(|slot| *slot = handoff);
    assert_eq!(accept::run(&mut loser, &gateway.world), Step::Go(stage::HIT));
    assert!(sent(hit::run(&mut loser, &gateway.world)));
    assert_eq!(gateway.entries(), 2);
    assert_eq!(gateway.totals().sessions_created, 1);
}

#[test]
fn a_refresh_never_brings_back_what_the_reaper_has_taken() {
    let gateway = Gateway::two_armed();
    let packet = Packet::udp((HOST, 5000), (REMOTE, 53));
    gateway.sent_out(&packet);
    let session = &gateway.world.sessions.borrow()[&key(&packet)];
    let before = session.word();
    assert!(
        session.swap_word::<nat_common::host::HostAtomics>(before, before.with_state(State::Dead))
    );
    assert!(!session.swap_word::<nat_common::host::HostAtomics>(before, before.with_seen(1)));
    assert_eq!(session.word().state(), State::Dead);
}
