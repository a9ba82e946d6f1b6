//! The guarantee: no packet with a protected source leaves a public interface, whatever it is,
//! whether the gateway runs, was stopped or was killed, until it is detached.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use nat_tests::alone::age_heartbeat;
use nat_tests::frames::{Path, flag, mutated, untranslatable, with_hops};
use nat_tests::links::{remake_private_interface, remake_public_interface};
use nat_tests::stream::{Stream, echo_server};
use nat_tests::wiring::{QUIET, SOON, Wiring, at_server};
use nix::sys::signal::Signal;
use rstest::rstest;
use xtask::lab::{
    Frame, GATEWAY_PRIVATE, Gateway, Lab, LabOptions, SERVER, Sniffer, client_address, dns,
    send_frames,
};

/// What the daemon is doing when the frames come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Daemon {
    Running,
    /// By SIGSTOP: alive, and deaf.
    Halted,
    Stopped,
    Killed,
}

impl Daemon {
    fn come_to_this(self, gateway: &mut Gateway) -> Result<()> {
        match self {
            Self::Running => {}
            Self::Halted => gateway.signal(Signal::SIGSTOP)?,
            Self::Stopped => assert!(gateway.sigterm()?.success()),
            Self::Killed => assert!(!gateway.sigkill()?.success()),
        }
        Ok(())
    }
}

/// A lab whose host forwards by itself: what the gateway lets through, leaves.
fn lab(wiring: Wiring) -> Result<Lab> {
    wiring.lab_with(LabOptions { ip_forward: true, gro: false, ..LabOptions::default() })
}

/// The frames of a recording outside that must not be there.
fn leaks(lab: &Lab, frames: Vec<Frame>) -> Result<Vec<Frame>> {
    let gateway = lab.gateway().interface(lab.public_interface())?.mac;
    let eip = lab.eip();
    let protected = |address: Ipv4Addr| {
        address.octets()[..3] == [10, 0, 1] && address != GATEWAY_PRIVATE && address != eip
    };
    let is_leak = |frame: &Frame| {
        let from_gateway = !frame.outgoing && frame.bytes.get(6..12) == Some(&gateway);
        // Of an ICMP error: source and destination of what it quotes.
        let quotes = frame.protocol() == Some(1)
            && frame.ipv4().is_some_and(|packet| {
                let error = packet.get(20).is_some_and(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12));
                let address = |at: usize| {
                    let four: Option<[u8; 4]> = packet.get(at..at + 4)?.try_into().ok();
                    four.map(Ipv4Addr::from)
                };
                let quoted = [address(28 + 12), address(28 + 16)];
                error && quoted.into_iter().flatten().any(protected)
            });
        from_gateway && (frame.source().is_some_and(protected) || quotes)
    };
    Ok(frames.into_iter().filter(is_leak).collect())
}

/// Sends frames from client 1 while client 2 goes on with its work, if it can.
fn send_beside(lab: &Lab, frames: &[Vec<u8>], names: Option<u16>) -> Result<()> {
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| send_frames(lab.client(1), "eth0", frames));
        if let Some(port) = names {
            let mut rounds = 0;
            while rounds == 0 || !sending.is_finished() {
                let exchanges = dns::exchange(lab.client(2), at_server(port), 1000, SOON)?;
                assert_eq!((exchanges.sent, exchanges.lost()), (1000, 0), "round {rounds}");
                rounds += 1;
            }
        }
        sending.join().expect("the sender does not panic")
    })
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn twenty_thousand_broken_frames_leave_no_protected_source_outside(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
    #[values(Daemon::Running, Daemon::Stopped, Daemon::Killed)] daemon: Daemon,
) -> Result<()> {
    let lab = lab(wiring)?;
    echo_server(lab.server(), 7)?;
    let names = dns::DnsServer::start(lab.server(), 53)?;
    let path = Path::outward(&lab)?;
    let (router, interface) = lab.outside();
    let outside = Sniffer::start(router, interface)?;
    let mut gateway = lab.start_natgw(&lab.config())?;
    let stream = Stream::start(lab.client(2), at_server(7))?;
    daemon.come_to_this(&mut gateway)?;
    let frames = mutated(&path, 20_000, 0x6e61_7467_7721);
    let translating = daemon != Daemon::Stopped;
    send_beside(&lab, &frames, translating.then_some(names.port()))?;
    if translating {
        stream.finish()?;
    }
    outside.settle(QUIET)?;
    let leaks = leaks(&lab, outside.stop()?)?;
    assert!(leaks.is_empty(), "{} leaks, first {:02x?}", leaks.len(), leaks[0]);
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn no_kind_of_stateless_or_malformed_packet_leaves_untranslated(
    #[values(Wiring::TwoArmed, Wiring::OneArmed, Wiring::TwoArmedTc, Wiring::OneArmedTc)]
    wiring: Wiring,
    #[values(Daemon::Running, Daemon::Stopped, Daemon::Killed)] daemon: Daemon,
) -> Result<()> {
    let lab = lab(wiring)?;
    let path = Path::outward(&lab)?;
    let mut gateway = lab.start_natgw(&lab.config())?;
    daemon.come_to_this(&mut gateway)?;
    let (router, interface) = lab.outside();
    for (kind, frame) in untranslatable(&path) {
        let outside = Sniffer::start(router, interface)?;
        send_frames(lab.client(1), "eth0", &[frame])?;
        // Once this is answered, the gateway and its host have dealt with the frame before it.
        lab.client(1).check(["ping", "-n", "-c", "1", "-W", "5", "10.0.1.1"])?;
        outside.settle(std::time::Duration::from_millis(20))?;
        let leaks = leaks(&lab, outside.stop()?)?;
        assert!(leaks.is_empty(), "{kind}: {:02x?}", leaks[0]);
    }
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn the_guard_counts_what_it_stops_while_the_gateway_is_stopped(
    #[values(Wiring::TwoArmed, Wiring::OneArmed, Wiring::TwoArmedTc, Wiring::OneArmedTc)]
    wiring: Wiring,
) -> Result<()> {
    const FRAMES: usize = 100;
    let lab = lab(wiring)?;
    let path = Path::outward(&lab)?;
    let mut gateway = lab.start_natgw(&lab.config())?;
    let before = gateway.counter("packets_guarded")?;
    assert!(gateway.sigterm()?.success());
    let host = Sniffer::start(lab.gateway(), lab.private_interface())?;
    let (router, interface) = lab.outside();
    let outside = Sniffer::start(router, interface)?;
    let frames: Vec<_> = (0..FRAMES).map(|n| path.udp(5000 + n as u16, 9, b"private")).collect();
    send_frames(lab.client(1), "eth0", &frames)?;
    host.wait_for_count(SOON, FRAMES, |frame| {
        !frame.outgoing && frame.destination() == Some(SERVER)
    })
    .context("the host gets them: nothing translates any more")?;
    outside.settle(QUIET)?;
    assert_eq!(leaks(&lab, outside.stop()?)?.len(), 0);

    let gateway = lab.start_natgw(&lab.config())?;
    assert_eq!(gateway.counter("packets_guarded")? - before, FRAMES as u64);
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn detach_takes_everything_off_and_gives_the_host_back_its_settings(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
    #[values(Daemon::Stopped, Daemon::Killed)] daemon: Daemon,
) -> Result<()> {
    let lab = wiring.lab_with(LabOptions { gro: false, ..LabOptions::default() })?;
    let path = Path::outward(&lab)?;
    let interfaces = [lab.private_interface(), lab.public_interface()];
    let settings = || -> Result<Vec<String>> {
        let each = interfaces.map(|name| format!("net.ipv4.conf.{name}.forwarding"));
        let keys = each.iter().map(String::as_str).chain(["net.ipv4.ip_forward"]);
        keys.map(|key| lab.gateway().read_sysctl(key)).collect()
    };
    let before = settings()?;
    let mut gateway = lab.start_natgw(&lab.config())?;
    assert_ne!(settings()?, before, "the gateway turns forwarding on");
    assert!(lab.pins_dir().exists());
    match daemon {
        Daemon::Killed => drop(gateway.sigkill()?),
        _ => drop(gateway.sigterm()?),
    }
    gateway.detach()?;
    assert_eq!(settings()?, before);
    assert!(!lab.pins_dir().exists(), "{} is left", lab.pins_dir().display());
    for interface in interfaces {
        let shown = lab.gateway().check(["ip", "-d", "link", "show", "dev", interface])?;
        assert!(!shown.contains("xdp"), "{shown}");
    }
    let left: Vec<_> = std::fs::read_dir(lab.state_dir())?.flatten().collect();
    assert!(
        left.iter().all(|entry| entry.path().extension().is_none_or(|e| e != "sock")),
        "{left:?}"
    );

    // The guard is gone as well: the host forwards what it is told to.
    lab.gateway().sysctl("net.ipv4.ip_forward", "1")?;
    let (router, interface) = lab.outside();
    let outside = Sniffer::start(router, interface)?;
    send_frames(lab.client(1), "eth0", &[path.udp(5000, 9, b"in the open")])?;
    outside.wait_for(SOON, |frame| {
        frame.source() == Some(client_address(1)) && frame.destination() == Some(SERVER)
    })?;
    Ok(())
}

/// In no rule: what the host forwards of it shows that the way is open.
const STRANGER: Ipv4Addr = Ipv4Addr::new(172, 20, 0, 9);

/// Deletes the public interface and makes it anew. What is recorded outside begins while it is gone.
fn remake(lab: &Lab, wiring: Wiring) -> Result<Sniffer> {
    let (router, interface) = lab.outside();
    if !wiring.is_one_armed() {
        return remake_public_interface(lab, || Sniffer::start(router, interface));
    }
    let mut outside = None;
    remake_private_interface(lab, wiring.next_hop(), || {
        outside = Some(Sniffer::start(router, interface)?);
        Ok(())
    })?;
    outside.context("it was not gone")
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_public_interface_made_anew_lets_no_protected_source_out(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
    #[values(Daemon::Running, Daemon::Halted, Daemon::Stopped, Daemon::Killed)] daemon: Daemon,
) -> Result<()> {
    const ROUNDS: usize = 5;
    const STRANGERS: usize = 300;
    let lab = lab(wiring)?;
    let names = dns::DnsServer::start(lab.server(), 53)?;
    let path = Path::outward(&lab)?;
    let stranger = Path { source: STRANGER, ..path };
    let frames: Vec<_> = (5000..5010)
        .flat_map(|port| {
            [
                stranger.udp(port, 9, b"in the open"),
                path.udp(port, 9, b"private"),
                path.tcp(port, 9, flag::SYN, &[]),
                path.tcp(port, 9, flag::ACK, b"private"),
                path.echo_request(port, 1),
                path.raw(47, b"private"),
            ]
        })
        .collect();
    let mut gateway = lab.start_natgw(&lab.config())?;
    daemon.come_to_this(&mut gateway)?;
    let over = AtomicBool::new(false);
    let leaks = std::thread::scope(|scope| -> Result<Vec<Frame>> {
        let sending = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                send_frames(lab.client(1), "eth0", &frames)?;
            }
            anyhow::Ok(())
        });
        let round = |number| {
            let outside = remake(&lab, wiring)?;
            outside
                .wait_for_count(SOON, STRANGERS, |frame| frame.source() == Some(STRANGER))
                .with_context(|| format!("the way is open, round {number}"))?;
            leaks(&lab, outside.stop()?)
        };
        let rounds: Result<Vec<_>> = (0..ROUNDS).map(round).collect();
        over.store(true, Ordering::Relaxed);
        sending.join().expect("the sender does not panic")?;
        Ok(rounds?.concat())
    })?;
    let first = leaks.first().map(|frame| &frame.bytes);
    assert!(leaks.is_empty(), "{} leaks, first {first:02x?}", leaks.len());
    match daemon {
        Daemon::Running => {}
        Daemon::Halted => gateway.signal(Signal::SIGCONT)?,
        Daemon::Stopped | Daemon::Killed => gateway = lab.start_natgw(&lab.config())?,
    }
    gateway.wait_for(&["status"], SOON, |status| status["state"] == "ready")?;
    let exchanges = dns::exchange(lab.client(1), at_server(names.port()), 20, SOON)?;
    assert_eq!((exchanges.lost(), exchanges.seen_as), (0, Some(lab.eip())), "it translates again");
    if daemon != Daemon::Running {
        assert!(gateway.counter("packets_guarded")? + gateway.counter("drops.egress_unknown")? > 0);
    }
    Ok(())
}

/// The host's own errors are no forwarding: they tell of whom they quote.
#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn on_a_public_interface_made_anew_no_error_of_the_host_tells_of_a_protected_host(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
    #[values(Daemon::Halted, Daemon::Stopped, Daemon::Killed)] daemon: Daemon,
) -> Result<()> {
    let lab = lab(wiring)?;
    lab.gateway().sysctl("net.ipv4.icmp_ratelimit", "0")?;
    let mut gateway = lab.start_natgw(&lab.config())?;
    daemon.come_to_this(&mut gateway)?;
    let outside = remake(&lab, wiring)?;
    let to = |destination| -> Result<Path> { Ok(Path { destination, ..Path::inward(&lab)? }) };
    let (protected, stranger) = (to(client_address(1))?, to(STRANGER)?);
    let frames: Vec<_> = (7000..7010)
        .map(|port| protected.udp(9, port, b"to nobody"))
        .chain([stranger.udp(9, 7010, b"to nobody")])
        .map(|frame| with_hops(frame, 1))
        .collect();
    let (router, interface) = lab.outside();
    send_frames(router, interface, &frames)?;
    let expired = |frame: &Frame| {
        !frame.outgoing
            && frame.protocol() == Some(1)
            && frame.ipv4().is_some_and(|packet| {
                packet.get(20) == Some(&11) && packet.get(44..48) == Some(&STRANGER.octets())
            })
    };
    outside.wait_for(SOON, expired).context("errors about strangers leave, after all others")?;
    let leaks = leaks(&lab, outside.stop()?)?;
    assert!(leaks.is_empty(), "{} leaks, first {:02x?}", leaks.len(), leaks[0].bytes);
    Ok(())
}

/// What breaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    /// The translating programs are detached by hand.
    ProgramsDetached,
    /// The pool's only address is lost to the host.
    NoAddress,
    NoRoute,
    /// It answers no ARP; the frames are more than may wait for it.
    DeadNextHop,
    /// The same, and the dataplane believes that its daemon is long dead.
    DeadNextHopAlone,
}

impl Fault {
    fn inflict(self, lab: &Lab, gateway: &mut Gateway) -> Result<()> {
        let (router, outside) = lab.outside();
        let public = lab.public_interface();
        match self {
            Self::ProgramsDetached => {
                let layout = std::fs::read_dir(lab.pins_dir())?.next().context("no layout")??;
                for interface in BTreeSet::from([lab.private_interface(), public]) {
                    let pin = layout.path().join(format!("link-xdp-{interface}"));
                    let pin = pin.display().to_string();
                    lab.gateway().check(["bpftool", "link", "detach", "pinned", &pin])?;
                    let shown = lab.gateway().check(["ip", "link", "show", "dev", interface])?;
                    assert!(!shown.contains("xdp"), "{shown}");
                }
            }
            Self::NoAddress => {
                lab.gateway().ip_batch(&format!("addr del {}/24 dev {public}\n", lab.eip()))?;
                gateway.wait_for(&["eip", "list"], SOON, |list| list[0]["state"] == "lost")?;
            }
            Self::NoRoute => lab.gateway().ip_batch("route del default\n")?,
            Self::DeadNextHop | Self::DeadNextHopAlone => {
                router.ip_batch(&format!("link set {outside} arp off\n"))?;
                if self == Self::DeadNextHopAlone {
                    gateway.sigkill()?;
                    age_heartbeat(lab)?;
                }
                lab.gateway().ip_batch(&format!("neigh flush dev {public}\n"))?;
            }
        }
        Ok(())
    }
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn no_fault_of_the_host_or_the_network_lets_a_protected_source_out(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
    #[values(
        Fault::ProgramsDetached,
        Fault::NoAddress,
        Fault::NoRoute,
        Fault::DeadNextHop,
        Fault::DeadNextHopAlone
    )]
    fault: Fault,
) -> Result<()> {
    let lab = lab(wiring)?;
    // The host's own, so that it can be lost.
    lab.gateway().ip_batch(&format!(
        "addr add {}/24 dev {}\n",
        lab.eip(),
        lab.public_interface()
    ))?;
    let path = Path::outward(&lab)?;
    let mut gateway = lab.start_natgw(&lab.config())?;
    fault.inflict(&lab, &mut gateway)?;
    let (router, interface) = lab.outside();
    let outside = Sniffer::start(router, interface)?;
    let mut frames: Vec<_> = untranslatable(&path).into_iter().map(|(_, frame)| frame).collect();
    frames.extend((0..3000).map(|n| path.udp(5000 + n, 9, b"private")));
    frames.extend(mutated(&path, 2000, 0x6e61_7467_7733));
    send_frames(lab.client(1), "eth0", &frames)?;
    // Once this is answered, the gateway and its host have dealt with the frames before it.
    lab.client(1).check(["ping", "-n", "-c", "1", "-W", "5", "10.0.1.1"])?;
    outside.settle(QUIET)?;
    let leaks = leaks(&lab, outside.stop()?)?;
    assert!(leaks.is_empty(), "{} leaks, first {:02x?}", leaks.len(), leaks[0]);
    match fault {
        Fault::ProgramsDetached => assert!(gateway.counter("packets_guarded")? > 3000),
        Fault::NoAddress => assert!(gateway.counter("drops.no_address")? >= 3000),
        Fault::DeadNextHop => {
            let lost = |reason: &str| gateway.counter(&format!("drops.{reason}"));
            assert!(lost("slow_path_unavailable")? > 0, "more than may wait");
        }
        Fault::NoRoute | Fault::DeadNextHopAlone => {}
    }
    Ok(())
}
