//! Endpoint-independent mapping, its filtering, and hairpin (RFC 4787).

use nat_common::{
    env::Tables as _,
    flow::{FlowKey, Tuple},
    host::packet::{Endpoint, Packet, seen},
    maps::stage,
    net::{Port, proto},
    rules::pool,
    session::{BindingKey, HostKey},
    stage::{reap, request},
    verdict::{DropReason, Verdict},
};

use crate::gateway::{ACK, Gateway, HOST, HZ, OTHER_HOST, OTHER_REMOTE, POOL, REMOTE, SYN, key};

const FROM: Endpoint = (HOST, 5000);

fn refs(gateway: &Gateway, private: Endpoint) -> Option<u64> {
    let key = BindingKey {
        address: private.0,
        port: Port::new(private.1),
        protocol: proto::UDP,
        inbound: 0,
    };
    gateway.world.binding(&key).map(|binding| binding.refs.get())
}

fn sessions_of_host(gateway: &Gateway) -> u64 {
    let key = HostKey { address: HOST, ..HostKey::default() };
    gateway.world.host(&key).map_or(0, |host| host.sessions[1].get())
}

#[test]
fn an_endpoint_keeps_one_public_endpoint_towards_everyone() {
    let gateway = Gateway::rfc();
    let first = gateway.sent_out(&Packet::udp(FROM, (REMOTE, 53))).source();
    assert_eq!(first, (POOL, 5000), "its own port");
    for remote in [(REMOTE, 54), (OTHER_REMOTE, 53), (OTHER_REMOTE, 99)] {
        assert_eq!(gateway.sent_out(&Packet::udp(FROM, remote)).source(), first);
    }
    assert_eq!(refs(&gateway, FROM), Some(4));
    assert_eq!(gateway.entries(), 8);
}

#[test]
fn another_endpoint_with_the_same_port_gets_another() {
    let gateway = Gateway::rfc();
    gateway.sent_out(&Packet::udp(FROM, (REMOTE, 53)));
    let other = gateway.sent_out(&Packet::udp((OTHER_HOST, 5000), (OTHER_REMOTE, 99)));
    assert_eq!(other.src, POOL);
    assert_ne!(other.sport, 5000, "even towards another remote endpoint");
}

#[test]
fn tcp_and_icmp_keep_their_endpoints_too() {
    let gateway = Gateway::rfc();
    let first = gateway.connect((HOST, 5000), (REMOTE, 80));
    assert_eq!(gateway.connect((HOST, 5000), (OTHER_REMOTE, 81)), first);
    let ping = gateway.sent_out(&Packet::ping((HOST, 77), REMOTE));
    assert_eq!(gateway.sent_out(&Packet::ping((HOST, 77), OTHER_REMOTE)).source(), ping.source());
    let back = gateway.sent_back(&Packet::pong(OTHER_REMOTE, ping.source()));
    assert_eq!(back.destination(), (HOST, 77));
}

#[test]
fn address_dependent_filtering_admits_whom_the_endpoint_has_sent_to() {
    let gateway = Gateway::rfc();
    let public = gateway.sent_out(&Packet::udp(FROM, (REMOTE, 53))).source();
    let seen = gateway.sent_back(&Packet::udp((REMOTE, 9999), public));
    assert_eq!((seen.source(), seen.destination()), ((REMOTE, 9999), FROM));
    let stranger = Packet::udp((OTHER_REMOTE, 53), public);
    assert_eq!(gateway.refused_back(&stranger), DropReason::FilteredEndpoint);
    // The answer to the one that was admitted goes by the same public endpoint.
    assert_eq!(gateway.sent_out(&Packet::udp(FROM, (REMOTE, 9999))).source(), public);
}

#[test]
fn endpoint_independent_filtering_admits_everyone() {
    let mut gateway = Gateway::rfc();
    gateway.pool().filtering = pool::ENDPOINT_INDEPENDENT;
    let public = gateway.sent_out(&Packet::udp(FROM, (REMOTE, 53))).source();
    assert_eq!(gateway.sent_back(&Packet::udp((OTHER_REMOTE, 1), public)).destination(), FROM);
    let syn = gateway.sent_out(&Packet::tcp(FROM, (REMOTE, 53), SYN)).source();
    assert_eq!(gateway.sent_back(&Packet::tcp((OTHER_REMOTE, 1), syn, SYN)).destination(), FROM);
    let stray = Packet::tcp((OTHER_REMOTE, 2), syn, ACK);
    assert_eq!(gateway.refused_back(&stray), DropReason::Unsolicited);
}

#[test]
fn address_and_port_dependent_filtering_admits_answers_only() {
    let mut gateway = Gateway::rfc();
    gateway.pool().filtering = pool::ADDRESS_AND_PORT_DEPENDENT;
    let public = gateway.sent_out(&Packet::udp(FROM, (REMOTE, 53))).source();
    gateway.sent_back(&Packet::udp((REMOTE, 53), public));
    let near = Packet::udp((REMOTE, 54), public);
    assert_eq!(gateway.refused_back(&near), DropReason::FilteredEndpoint);
}

#[test]
fn a_session_from_outside_counts_for_the_host_as_long_as_it_lives() {
    let mut gateway = Gateway::rfc();
    gateway.world.control.port_hold = 0;
    let public = gateway.sent_out(&Packet::udp(FROM, (REMOTE, 53))).source();
    gateway.sent_back(&Packet::udp((REMOTE, 9999), public));
    assert_eq!((refs(&gateway, FROM), sessions_of_host(&gateway)), (Some(2), 2));
    gateway.pass(400 * HZ);
    assert_eq!(gateway.sweep(), 2);
    assert_eq!((refs(&gateway, FROM), sessions_of_host(&gateway)), (Some(0), 0));
}

#[test]
fn a_binding_without_sessions_rests_and_is_then_given_to_others() {
    let mut gateway = Gateway::rfc();
    gateway.limit_ports(5000, 5000);
    let public = gateway.sent_out(&Packet::udp(FROM, (REMOTE, 53))).source();
    let other = Packet::udp((OTHER_HOST, 5000), (REMOTE, 53));
    let unbind = FlowKey::new(
        Tuple { src: HOST, sport: Port::new(5000), dst: public.0, dport: Port::new(public.1) },
        proto::UDP,
        0,
    );
    assert!(!reap::one(&gateway.world, request::UNBIND, &unbind), "it is in use");
    gateway.pass(400 * HZ);
    gateway.sweep();
    assert!(!reap::one(&gateway.world, request::UNBIND, &unbind), "it rests");
    assert_eq!(gateway.out(&other).verdict(), Verdict::Answered, "by ICMP 3/13");
    gateway.pass(121 * HZ);
    gateway.sweep();
    assert!(reap::one(&gateway.world, request::UNBIND, &unbind));
    assert!(gateway.world.bindings.borrow().is_empty());
    assert_eq!(gateway.sent_out(&other).source(), (POOL, 5000));
}

#[test]
fn of_64_ports_64_endpoints_get_one_each_and_the_65th_is_answered() {
    let mut gateway = Gateway::rfc();
    gateway.limit_ports(2000, 2063);
    let mut ports = std::collections::BTreeSet::new();
    for number in 0..64 {
        let run = gateway.out(&Packet::udp((HOST, 6000 + number), (REMOTE, 53)));
        assert_eq!(run.verdict(), Verdict::ToDestination, "{number} by {:?}", run.stages);
        assert!(ports.insert(seen(&run.frame).sport));
    }
    assert_eq!(ports, (2000..=2063).collect());
    let run = gateway.out(&Packet::udp((HOST, 7000), (REMOTE, 53)));
    assert_eq!(run.verdict(), Verdict::Answered, "by {:?}", run.stages);
    let answer = seen(&run.frame);
    assert_eq!((answer.icmp(), answer.dst), ((3, 13), HOST));
    assert_eq!(answer.quote().source(), (HOST, 7000));
    assert_eq!(gateway.totals().port_allocation_errors, 1);
}

#[test]
fn with_overload_ports_are_shared_between_flows_to_different_remotes() {
    let mut gateway = Gateway::rfc();
    gateway.limit_ports(2000, 2000);
    gateway.pool().overload = 1;
    assert_eq!(gateway.sent_out(&Packet::udp(FROM, (REMOTE, 53))).sport, 2000);
    let shared = gateway.sent_out(&Packet::udp((OTHER_HOST, 5000), (OTHER_REMOTE, 53)));
    assert_eq!(shared.source(), (POOL, 2000));
    let same = gateway.out(&Packet::udp((OTHER_HOST, 5000), (REMOTE, 53)));
    assert_eq!(same.verdict(), Verdict::Answered, "the very same remote endpoint cannot be shared");
    let back = gateway.sent_back(&Packet::udp((OTHER_REMOTE, 53), (POOL, 2000)));
    assert_eq!(back.destination(), (OTHER_HOST, 5000));
}

#[test]
fn hairpin_to_a_forward_shows_the_senders_public_endpoint() {
    let gateway = Gateway::rfc();
    let run = gateway.out(&Packet::udp((HOST, 5000), (POOL, 8000)));
    assert_eq!(run.verdict(), Verdict::ToSource, "by {:?}", run.stages);
    let seen_inside = seen(&run.frame);
    assert_eq!(seen_inside.destination(), (OTHER_HOST, 9000));
    assert_eq!(seen_inside.source(), (POOL, 5000), "external source address and port");
    let run = gateway.out(&Packet::udp((OTHER_HOST, 9000), (POOL, 5000)));
    assert_eq!(run.verdict(), Verdict::ToSource);
    let answer = seen(&run.frame);
    assert_eq!((answer.source(), answer.destination()), ((POOL, 8000), (HOST, 5000)));
}

#[test]
fn hairpin_between_two_mappings_follows_the_filtering() {
    let mut gateway = Gateway::rfc();
    gateway.pool().filtering = pool::ENDPOINT_INDEPENDENT;
    let a = gateway.sent_out(&Packet::udp((HOST, 5000), (REMOTE, 53))).source();
    let b = gateway.sent_out(&Packet::udp((OTHER_HOST, 6000), (REMOTE, 53))).source();
    let run = gateway.out(&Packet::udp((HOST, 5000), b));
    assert_eq!(run.verdict(), Verdict::ToSource, "by {:?}", run.stages);
    let there = seen(&run.frame);
    assert_eq!((there.source(), there.destination()), (a, (OTHER_HOST, 6000)));
    let run = gateway.out(&Packet::udp((OTHER_HOST, 6000), a));
    assert_eq!(run.verdict(), Verdict::ToSource, "by {:?}", run.stages);
    let back = seen(&run.frame);
    assert_eq!((back.source(), back.destination()), (b, (HOST, 5000)));
}

#[test]
fn two_hosts_open_a_way_to_each_other_by_their_public_addresses() {
    let gateway = Gateway::rfc();
    let a = gateway.sent_out(&Packet::udp((HOST, 5000), (REMOTE, 53))).source();
    let b = gateway.sent_out(&Packet::udp((OTHER_HOST, 6000), (REMOTE, 53))).source();
    let from_a = Packet::udp((HOST, 5000), b);
    assert_eq!(gateway.refused_out(&from_a), DropReason::FilteredEndpoint, "b has sent nothing");
    let run = gateway.out(&Packet::udp((OTHER_HOST, 6000), a));
    assert_eq!(run.verdict(), Verdict::ToSource, "a has sent to b's address");
    let there = seen(&run.frame);
    assert_eq!((there.source(), there.destination()), (b, (HOST, 5000)));
    let run = gateway.out(&from_a);
    assert_eq!(run.verdict(), Verdict::ToSource);
    let back = seen(&run.frame);
    assert_eq!((back.source(), back.destination()), (a, (OTHER_HOST, 6000)));
}

#[test]
fn an_endpoint_that_sends_to_itself_by_its_public_address_is_a_conflict() {
    let mut gateway = Gateway::rfc();
    gateway.pool().filtering = pool::ENDPOINT_INDEPENDENT;
    let public = gateway.sent_out(&Packet::udp(FROM, (REMOTE, 53))).source();
    for _ in 0..2 {
        let reason = gateway.refused_out(&Packet::udp(FROM, public));
        assert_eq!(reason, DropReason::SessionConflict);
    }
    assert_eq!((refs(&gateway, FROM), gateway.entries()), (Some(1), 2));
}

#[test]
fn two_ways_between_the_same_endpoints_are_a_conflict() {
    let mut gateway = Gateway::rfc();
    gateway.pool().filtering = pool::ENDPOINT_INDEPENDENT;
    let public = gateway.sent_out(&Packet::udp(FROM, (REMOTE, 53))).source();
    // By its own mapping, and then to its forward.
    let run = gateway.out(&Packet::udp((OTHER_HOST, 9000), public));
    assert_eq!(run.verdict(), Verdict::ToSource, "by {:?}", run.stages);
    let forward = Packet::udp(FROM, (POOL, 8000));
    assert_eq!(gateway.refused_out(&forward), DropReason::SessionConflict);
    assert_eq!(refs(&gateway, FROM), Some(1));
}

#[test]
fn a_binding_of_another_life_admits_nobody_by_old_permits() {
    let mut gateway = Gateway::rfc();
    gateway.world.control.port_hold = 0;
    let public = gateway.sent_out(&Packet::udp(FROM, (REMOTE, 53))).source();
    gateway.pass(400 * HZ);
    gateway.sweep();
    let unbind = FlowKey::new(
        Tuple { src: HOST, sport: Port::new(5000), dst: public.0, dport: Port::new(public.1) },
        proto::UDP,
        0,
    );
    assert!(reap::one(&gateway.world, request::UNBIND, &unbind));
    assert_eq!(gateway.sent_out(&Packet::udp(FROM, (OTHER_REMOTE, 53))).source(), public);
    let old = Packet::udp((REMOTE, 53), public);
    assert_eq!(gateway.refused_back(&old), DropReason::FilteredEndpoint);
    assert!(gateway.world.session(&key(&old)).is_none());
}

#[test]
fn the_last_public_port_is_found_for_an_endpoint_however_late_the_tracking_begins() {
    let mut gateway = Gateway::rfc();
    gateway.limit_ports(2000, 2999);
    // Each keeps its own: nothing is tracked.
    for port in (2000..=2999).filter(|port| *port != 2345) {
        assert_eq!(gateway.sent_out(&Packet::udp((HOST, port), (REMOTE, 53))).sport, port);
    }
    assert!(gateway.world.busy.borrow().is_empty());
    let other = Packet::udp((OTHER_HOST, 2000), (REMOTE, 53));
    assert_eq!(gateway.sent_out(&other).source(), (POOL, 2345));
    let more = Packet::udp((OTHER_HOST, 2001), (REMOTE, 53));
    assert_eq!(gateway.out(&more).verdict(), Verdict::Answered);
    assert_eq!(gateway.out(&more).stages, [stage::BEGIN, stage::ANSWER], "it is remembered");
    // Of this endpoint: another of the host may have a binding.
    let one_more = gateway.out(&Packet::udp((OTHER_HOST, 2002), (REMOTE, 53)));
    assert!(one_more.stages.contains(&stage::BIND));
    assert_eq!(gateway.sent_out(&Packet::udp((OTHER_HOST, 2000), (REMOTE, 54))).sport, 2345);
}

#[test]
fn a_binding_without_sessions_gives_its_port_up_without_the_daemon_when_it_has_rested() {
    let mut gateway = Gateway::rfc();
    gateway.limit_ports(2000, 2063);
    for port in 2000..=2063 {
        gateway.sent_out(&Packet::udp((HOST, port), (REMOTE, 53)));
    }
    let ended = Packet::udp((HOST, 2007), (REMOTE, 53));
    assert!(reap::one(&gateway.world, request::END, &key(&ended)));
    let other = Packet::udp((OTHER_HOST, 5000), (REMOTE, 53));
    for (wait, free) in [(0, false), (119 * HZ, false), (HZ, true)] {
        gateway.pass(wait);
        let run = gateway.out(&other);
        assert_eq!(run.verdict() == Verdict::ToDestination, free, "by {:?}", run.stages);
        if free {
            assert_eq!(seen(&run.frame).source(), (POOL, 2007));
        }
    }
    assert_eq!(refs(&gateway, (HOST, 2007)), None);
}
