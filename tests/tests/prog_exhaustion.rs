//! Ports in the kernel: exact to the last one.

use std::collections::BTreeSet;

use anyhow::Result;
use nat_common::{
    host::packet::{Packet, seen},
    net::Ip4,
    session::State,
    stage::request,
    verdict::DropReason,
};
use nat_tests::{
    generator::{OTHER_REMOTE, POOL, REMOTE, one_pool},
    kernel::{Arms, HOST, Kernel, action},
};
use nat_userspace::controller::Step;

/// One pool; `more` are its further lines.
fn kernel(more: &str, gateway: &str, sessions: u32) -> Result<Kernel> {
    Kernel::start(Arms::Two, gateway, &one_pool(more), sessions)
}

/// A private host by its number.
fn host(number: u32) -> Ip4 {
    Ip4::from_u32(Ip4::new([10, 1, 0, 0]).to_u32() + number)
}

/// All from different hosts with the same port, towards one remote endpoint.
fn packet(number: u32) -> Packet {
    Packet { data: Vec::new(), ..Packet::udp((host(number), 5000), (REMOTE, 53)) }
}

/// Opens sessions of that many hosts and returns the ports that they got.
fn fill(kernel: &Kernel, count: u32, packet: impl Fn(u32) -> Packet) -> Result<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for number in 0..count {
        let run = kernel.receive(kernel.inside, &packet(number).frame())?;
        assert_eq!(run.action, action::REDIRECT, "session {number}");
        let port = seen(&run.frame).sport;
        assert!(ports.insert(port), "port {port} twice towards one endpoint");
    }
    Ok(ports)
}

fn errors(kernel: &Kernel) -> Result<(u64, u64)> {
    let counters = kernel.counters()?;
    let drops = counters.drops[DropReason::ErrorPortAllocation as usize];
    Ok((counters.port_allocation_errors, drops))
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn of_64_ports_64_sessions_succeed_and_the_65th_is_refused_and_counted() -> Result<()> {
    let kinds: [fn(u32) -> Packet; 3] = [
        packet,
        |number| Packet::tcp((host(number), 5000), (REMOTE, 53), 2),
        |number| Packet::ping((host(number), 5000), REMOTE),
    ];
    let kernel = kernel("ports = \"2000-2063\"", "", 16384)?;
    for (round, kind) in (1..).zip(kinds) {
        assert_eq!(fill(&kernel, 64, kind)?, (2000..=2063).collect());
        let run = kernel.receive(kernel.inside, &kind(64).frame())?;
        assert_eq!(run.action, action::DROP);
        assert_eq!(errors(&kernel)?, (round, round));
    }
    assert_eq!(kernel.sessions()?.len(), 2 * 3 * 64);
    let elsewhere = Packet { dst: OTHER_REMOTE, ..packet(64) };
    assert_eq!(kernel.receive(kernel.inside, &elsewhere.frame())?.action, action::REDIRECT);
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn a_session_that_ends_makes_room_for_exactly_one() -> Result<()> {
    let kernel = kernel("ports = \"2000-2063\"", "", 16384)?;
    fill(&kernel, 64, packet)?;
    let sessions = kernel.sessions()?;
    let (ended, image) = sessions.iter().find(|(_, image)| image.is_outbound()).expect("one");
    assert_eq!(kernel.datapath.reap(request::END, &[*ended])?, 1);
    let run = kernel.receive(kernel.inside, &packet(100).frame())?;
    assert_eq!(run.action, action::REDIRECT);
    assert_eq!(seen(&run.frame).sport, image.tuple.sport.get(), "the port that became free");
    assert_eq!(kernel.receive(kernel.inside, &packet(101).frame())?.action, action::DROP);
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn the_full_range_serves_64512_sessions_to_one_endpoint() -> Result<()> {
    let kernel = kernel("", "", 65536)?;
    let ports = fill(&kernel, 64_512, packet)?;
    assert_eq!(ports, (1024..=65535).collect());
    let run = kernel.receive(kernel.inside, &packet(64_512).frame())?;
    assert_eq!(run.action, action::DROP);
    assert_eq!(errors(&kernel)?, (1, 1));
    assert_eq!(kernel.sessions()?.len(), 2 * 64_512);
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn the_last_port_is_found_by_the_first_packet_that_ever_looks_for_one() -> Result<()> {
    let mut kernel = kernel("", "", 65536)?;
    // Each by a session of its own number: nothing is tracked.
    for port in 1024..65535 {
        let packet = Packet { data: Vec::new(), ..Packet::udp((HOST, port), (REMOTE, 53)) };
        let run = kernel.receive(kernel.inside, &packet.frame())?;
        assert_eq!((run.action, seen(&run.frame).sport), (action::REDIRECT, port));
    }
    let run = kernel.receive(kernel.inside, &packet(0).frame())?;
    assert_eq!((run.action, seen(&run.frame).sport), (action::REDIRECT, 65535));
    assert_eq!(kernel.receive(kernel.inside, &packet(1).frame())?.action, action::DROP);
    assert_eq!(errors(&kernel)?, (1, 1));
    // And again when what was learnt is lost.
    let last = kernel
        .sessions()?
        .into_iter()
        .find(|(_, image)| image.is_outbound() && image.tuple.sport.get() == 40_000);
    let (key, _) = last.expect("a session of that port");
    assert_eq!(kernel.datapath.reap(request::END, &[key])?, 1);
    kernel.datapath.apply(&[Step::ForgetPorts { address: POOL }])?;
    let run = kernel.receive(kernel.inside, &packet(2).frame())?;
    assert_eq!((run.action, seen(&run.frame).sport), (action::REDIRECT, 40_000));
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn without_a_daemon_expired_sessions_give_their_ports_to_new_ones() -> Result<()> {
    let mut kernel = kernel("ports = \"2000-2063\"", "", 16384)?;
    assert_eq!(fill(&kernel, 64, packet)?, (2000..=2063).collect());
    let mut control = kernel.datapath.control()?;
    control.heartbeat = kernel.datapath.now()?.wrapping_sub(60 * control.hz);
    control.timeouts[State::Udp as usize] = 1;
    control.refresh = 0;
    kernel.datapath.set_control(&control)?;
    let last = kernel.datapath.now()?;
    while kernel.datapath.now()?.wrapping_sub(last) <= 2 {}
    for number in 100..164 {
        let run = kernel.receive(kernel.inside, &packet(number).frame())?;
        assert_eq!(run.action, action::REDIRECT, "session {number}");
    }
    assert!(kernel.counters()?.sessions_ended >= 64);
    assert_eq!(errors(&kernel)?, (0, 0));
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn endpoint_independent_mappings_are_exact_too_and_the_last_refusal_is_answered() -> Result<()> {
    let pool = "ports = \"2000-2063\"\noverload = false";
    let kernel = kernel(pool, "profile = \"rfc\"", 16384)?;
    assert_eq!(fill(&kernel, 64, packet)?, (2000..=2063).collect());
    let run = kernel.receive(kernel.inside, &packet(64).frame())?;
    let answer = seen(&run.frame);
    assert_eq!((answer.icmp(), answer.dst), ((3, 13), host(64)));
    let counters = kernel.counters()?;
    assert_eq!((counters.port_allocation_errors, counters.packets_answered), (1, 1));
    // The same endpoints towards elsewhere need no more ports.
    let elsewhere = |number| Packet { dst: OTHER_REMOTE, ..packet(number) };
    assert_eq!(fill(&kernel, 64, elsewhere)?, (2000..=2063).collect());
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn a_full_table_refuses_and_keeps_the_living() -> Result<()> {
    const SESSIONS: u32 = 1024;
    let kernel = kernel("", "", SESSIONS)?;
    let mut opened = 0;
    for number in 0..2 * SESSIONS {
        let packet = Packet::udp((HOST, 5000), (host(number), 53));
        let packet = Packet {
            dst: Ip4::new([198, 18, packet.dst.octets()[2], packet.dst.octets()[3]]),
            ..packet
        };
        let run = kernel.receive(kernel.inside, &packet.frame())?;
        opened += u32::from(run.action == action::REDIRECT);
    }
    let counters = kernel.counters()?;
    let refused = counters.drops[DropReason::SessionTableFull as usize];
    assert_eq!(u64::from(opened) + refused, u64::from(2 * SESSIONS));
    assert_eq!(kernel.sessions()?.len(), 2 * usize::try_from(opened)?, "no half sessions");
    assert_eq!(opened, SESSIONS, "every place is used");
    let first = Packet::udp((HOST, 5000), (Ip4::new([198, 18, 0, 0]), 53));
    assert_eq!(kernel.receive(kernel.inside, &first.frame())?.action, action::REDIRECT);
    Ok(())
}
