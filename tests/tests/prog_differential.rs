//! The same frames through the engine on the host and through the programs in the kernel: equal
//! verdicts, equal bytes, equal counters, and equal sessions at the end.

use anyhow::{Context as _, Result};
use nat_common::{
    agenda::Note,
    counters::Counters,
    env::Tables as _,
    flow::FlowKey,
    host::{
        HostFrame, Run, World,
        packet::{Packet, mend_ip, seen},
    },
    maps::INTERFACE_SLOTS,
    parse::{Parse, parse},
    rules::{control, role},
    stage::{Out, reap, request},
    verdict::{DropReason, Verdict},
};
use nat_tests::{
    generator::{Generator, OTHER_REMOTE, POOL, REMOTE, SERVER_PUBLIC, rules},
    kernel::{Arms, HOST, Kernel, OTHER_HOST, SERVER, action},
    mirror::{entries_of_host, entry_of_kernel, mirror},
};
use nat_userspace::datapath::{Agenda, RunResult, Taken};
use rstest::rstest;

const SESSIONS: u32 = 16384;
const FRAMES: usize = 5_000;
const RFC: &str = "profile = \"rfc\"";

/// By which programs the kernel does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Xdp,
    Tc,
}

/// One gateway twice.
struct Twins {
    hook: Hook,
    kernel: Kernel,
    host: World,
    counted: Counters,
    agenda: Agenda,
}

impl Twins {
    fn start(hook: Hook, arms: Arms, gateway: &str, pool: &str) -> Result<Self> {
        let mut kernel = Kernel::start(arms, gateway, &rules(pool), SESSIONS)?;
        if hook == Hook::Tc {
            kernel.datapath.load_tc()?;
        }
        kernel.datapath.set_routing(true)?;
        let host = mirror(&kernel)?;
        let counted = kernel.counters()?;
        let agenda = kernel.datapath.agenda()?;
        Ok(Self { hook, kernel, host, counted, agenda })
    }

    fn ingress(&self, inside: bool) -> u32 {
        if inside { self.kernel.inside } else { self.kernel.outside }
    }

    /// Gives both the frame, and compares all that comes of it.
    fn receive(&mut self, frame: &[u8], inside: bool) -> Result<Run> {
        let ingress = self.ingress(inside);
        self.host.now.set(self.kernel.datapath.now()?);
        let before = *self.host.totals.borrow();
        let here = self.host.receive(ingress, frame);
        let there = match self.hook {
            Hook::Xdp => self.kernel.receive(ingress, frame)?,
            Hook::Tc => self.kernel.receive_by_tc(ingress, frame)?,
        };
        self.compare(frame, ingress, &here, &there)?;

        let totals = self.kernel.counters()?;
        let counted = difference(&totals, &self.counted);
        let expected = difference(&self.host.totals.borrow(), &before);
        assert_eq!(counted, expected, "counters, {}", context(frame, &here, &there));
        let received = counted.0[0] + counted.0[2];
        assert_eq!(received, 1, "received once");
        let internal = Verdict::Drop(DropReason::Internal);
        assert_ne!(here.verdict(), internal, "{}", context(frame, &here, &there));
        self.counted = totals;
        Ok(here)
    }

    fn compare(&self, frame: &[u8], ingress: u32, here: &Run, there: &RunResult) -> Result<()> {
        let expected = match (here.outcome.out, here.verdict()) {
            (Out::Back, _) => self.way_to(ingress % INTERFACE_SLOTS, ingress),
            (Out::Slot(slot), Verdict::ToDestination | Verdict::ToSource) => {
                self.way_to(u32::from(slot), ingress)
            }
            (_, Verdict::ToHost) => action::PASS,
            _ => action::DROP,
        };
        assert_eq!(there.action, expected, "{}", context(frame, here, there));
        if expected == action::DROP {
            return Ok(());
        }
        if here.frame != there.frame {
            let (mut ours, mut theirs) = (here.frame.clone(), there.frame.clone());
            without_chance(&mut ours);
            without_chance(&mut theirs);
            assert!(
                ours == theirs || self.chose_a_port(frame, ingress)?,
                "{}",
                context(frame, here, there)
            );
        }
        Ok(())
    }

    /// An interface that is both sides bounces what goes back by it; everything else is redirected.
    fn way_to(&self, slot: u32, ingress: u32) -> u32 {
        let both = self.host.interfaces[&slot].role == role::PRIVATE | role::PUBLIC;
        if both && self.hook == Hook::Xdp && slot == ingress % INTERFACE_SLOTS {
            action::TX
        } else {
            action::REDIRECT
        }
    }

    /// A port by chance, which differs from kernel to host: that session is ended in both.
    fn chose_a_port(&self, frame: &[u8], ingress: u32) -> Result<bool> {
        let Parse::Ipv4(parsed) = parse(&mut HostFrame::new(ingress, frame), 0) else {
            return Ok(false);
        };
        let key: FlowKey = parsed.key;
        let Some(session) = self.host.session(&key) else { return Ok(false) };
        if session.tuple.sport == key.tuple.sport {
            return Ok(false);
        }
        assert!(reap::one(&self.host, request::END, &key));
        assert_eq!(self.kernel.datapath.reap(request::END, &[key])?, 1, "{key:?}");
        Ok(true)
    }

    fn sessions_agree(&self) -> Result<usize> {
        let there = self.kernel.sessions()?;
        self.kernel.sieve_agrees(there.iter().map(|(key, _)| key))?;
        let there: Vec<_> = there.iter().map(|(key, image)| entry_of_kernel(*key, image)).collect();
        let here = entries_of_host(&self.host);
        for (ours, theirs) in here.iter().zip(&there) {
            assert_eq!(ours, theirs);
        }
        assert_eq!(here.len(), there.len());
        Ok(here.len())
    }
}

/// What the sweep is to look at: sessions that were opened, and ports that rest. The rest of a note is chance.
fn noted(notes: &[Note]) -> Vec<(FlowKey, bool)> {
    notes.iter().map(|note| (note.key(), note.rests())).collect()
}

/// The identification that translated fragments get.
fn without_chance(frame: &mut [u8]) {
    let fragment = frame.len() > 34 && (frame[20] & 0x3f != 0 || frame[21] != 0);
    if fragment && frame[12..14] == [8, 0] {
        frame[18..20].fill(0);
        mend_ip(frame);
    }
}

/// What was counted between two readings.
#[derive(Debug, PartialEq, Eq)]
struct Counted(Vec<u64>);

fn difference(now: &Counters, before: &Counters) -> Counted {
    let words = |counters: &Counters| {
        bytemuck::cast_slice::<u8, u64>(bytemuck::bytes_of(counters)).to_vec()
    };
    Counted(words(now).iter().zip(words(before)).map(|(now, before)| now - before).collect())
}

fn context(frame: &[u8], here: &Run, there: &RunResult) -> String {
    format!(
        "received {frame:02x?}\nhost {:?} by {:?} {:02x?}\nkernel {} {:02x?}",
        here.outcome, here.stages, here.frame, there.action, there.frame
    )
}

fn everything_agrees(hook: Hook, arms: Arms, gateway: &str, pool: &str, seed: u64) -> Result<()> {
    let mut twins = Twins::start(hook, arms, gateway, pool)?;
    let mut generator = Generator::new(seed);
    for number in 0..FRAMES {
        if number % 500 == 0 {
            twins.kernel.datapath.heartbeat()?;
            twins.host.control = twins.kernel.datapath.control()?;
        }
        let (frame, inside) = generator.frame();
        // As a buffer the kernel runs no frame that has less than an IP header.
        if hook == Hook::Tc && frame.len() < 34 {
            continue;
        }
        let run = twins.receive(&frame, inside)?;
        let egress = match run.outcome.out {
            Out::Slot(slot) => u32::from(slot),
            Out::Back => twins.ingress(inside) % INTERFACE_SLOTS,
            Out::None => continue,
        };
        if twins.host.interfaces[&egress].role & role::PUBLIC != 0 {
            assert_eq!(twins.host.shown_by(&run.frame), None, "{:02x?}", run.frame);
        }
        if matches!(run.verdict(), Verdict::ToDestination | Verdict::ToSource) {
            generator.remember(&run.frame);
        }
    }
    assert!(twins.sessions_agree()? > 100, "the frames opened sessions");

    let outbound: Vec<FlowKey> = {
        let sessions = twins.host.sessions.borrow();
        sessions.iter().filter(|(_, s)| s.is_outbound()).map(|(key, _)| *key).collect()
    };
    let ended = outbound.iter().filter(|key| reap::one(&twins.host, request::END, key)).count();
    let there = twins.kernel.datapath.reap(request::END, &outbound)?;
    assert_eq!(ended, usize::try_from(there)?);
    twins.sessions_agree()?;
    let totals = twins.kernel.counters()?;
    assert_eq!(totals.sessions_created, totals.sessions_ended);

    let mut notes = Vec::new();
    // What had been counted by the call before is written by now.
    (0..2).for_each(|_| twins.agenda.look());
    assert_eq!(twins.agenda.take(usize::MAX, &mut notes), Taken::All);
    assert_eq!(noted(&notes), noted(&twins.host.agenda.borrow()));
    let opened = notes.iter().filter(|note| !note.rests()).count();
    assert_eq!(u64::try_from(opened)?, totals.sessions_created);
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test prog"]
fn two_armed_host_and_kernel_agree_on_every_frame(
    #[values(Hook::Xdp, Hook::Tc)] hook: Hook,
) -> Result<()> {
    everything_agrees(hook, Arms::Two, "", "", 0x5eed_0001)
}

#[rstest]
#[ignore = "needs root: cargo xtask test prog"]
fn one_armed_host_and_kernel_agree_on_every_frame(
    #[values(Hook::Xdp, Hook::Tc)] hook: Hook,
) -> Result<()> {
    everything_agrees(hook, Arms::One, "", "", 0x5eed_0002)
}

#[rstest]
#[ignore = "needs root: cargo xtask test prog"]
fn in_profile_rfc_host_and_kernel_agree_on_every_frame(
    #[values(Hook::Xdp, Hook::Tc)] hook: Hook,
) -> Result<()> {
    everything_agrees(hook, Arms::Two, RFC, "", 0x5eed_0003)
}

#[rstest]
#[ignore = "needs root: cargo xtask test prog"]
fn one_armed_in_profile_rfc_host_and_kernel_agree_on_every_frame(
    #[values(Hook::Xdp, Hook::Tc)] hook: Hook,
) -> Result<()> {
    everything_agrees(hook, Arms::One, RFC, "filtering = \"endpoint-independent\"", 0x5eed_0004)
}

#[rstest]
#[ignore = "needs root: cargo xtask test prog"]
fn fragments_are_translated_alike(#[values(Hook::Xdp, Hook::Tc)] hook: Hook) -> Result<()> {
    let mut twins = Twins::start(hook, Arms::Two, "", "")?;
    let mut datagrams = [
        (Packet::udp((HOST, 5000), (REMOTE, 53)), true),
        (Packet::udp((REMOTE, 53), (POOL, 5000)), false),
        (Packet::udp((SERVER, 7000), (REMOTE, 53)), true),
        (Packet::udp((REMOTE, 53), (SERVER_PUBLIC, 7000)), false),
        (Packet::udp((OTHER_REMOTE, 53), (POOL, 8001)), false),
        (Packet::ping((OTHER_HOST, 6000), REMOTE), true),
        (Packet::pong(REMOTE, (POOL, 6000)), false),
    ];
    for (number, (packet, inside)) in datagrams.iter_mut().enumerate() {
        packet.data = vec![number as u8; 3000];
        packet.id = 100 + number as u16;
        for size in [1480, 504] {
            packet.id += 50;
            for fragment in packet.fragments(size) {
                let run = twins.receive(&fragment, *inside)?;
                let verdict = if *inside { Verdict::ToDestination } else { Verdict::ToSource };
                assert_eq!(run.verdict(), verdict, "{packet:?} by {:?}", run.stages);
            }
        }
        packet.id += 50;
        let orphan = packet.fragments(1480).pop().context("a fragment")?;
        twins.receive(&orphan, *inside)?;
    }
    twins.sessions_agree()?;
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test prog"]
fn a_host_that_opens_too_many_sessions_in_a_second_is_refused_by_both(
    #[values(Hook::Xdp, Hook::Tc)] hook: Hook,
) -> Result<()> {
    let limit = "new_sessions_per_second_per_host = 3";
    let mut twins = Twins::start(hook, Arms::Two, "", limit)?;
    for port in 5000..5005 {
        twins.receive(&Packet::udp((HOST, port), (REMOTE, 53)).frame(), true)?;
    }
    let refused = twins.kernel.counters()?.drops[DropReason::SessionRate as usize];
    assert_eq!(refused, 2, "the limit is of those in one second");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn what_the_kernel_sends_is_right_by_a_full_recomputation() -> Result<()> {
    let kernel = Kernel::start(Arms::Two, "", &rules(""), SESSIONS)?;
    let out = kernel.receive(kernel.inside, &Packet::udp((HOST, 5000), (REMOTE, 53)).frame())?;
    let there = seen(&out.frame);
    assert_eq!((there.source(), there.destination()), ((POOL, 5000), (REMOTE, 53)));
    let back = kernel.receive(kernel.outside, &Packet::udp((REMOTE, 53), (POOL, 5000)).frame())?;
    assert_eq!(seen(&back.frame).destination(), (HOST, 5000));
    let quoted = &out.frame[14..];
    let error = Packet::error(OTHER_REMOTE, POOL, 11, 0, quoted, 28).frame();
    let here = seen(&kernel.receive(kernel.outside, &error)?.frame);
    assert_eq!((here.dst, here.quote().source()), (HOST, (HOST, 5000)));
    let late = Packet { ttl: 1, ..Packet::udp((HOST, 5000), (REMOTE, 53)) };
    let answer = seen(&kernel.receive(kernel.inside, &late.frame())?.frame);
    assert_eq!((answer.icmp(), answer.dst), ((11, 0), HOST));
    assert_eq!(answer.data, late.packet()[..28]);
    let stray = Packet::tcp((HOST, 5000), (REMOTE, 80), 16);
    let reset = seen(&kernel.receive(kernel.inside, &stray.frame())?.frame);
    assert_eq!((reset.tcp_flags(), reset.destination()), (4, (HOST, 5000)));
    assert_ne!(kernel.datapath.control()?.flags & control::IDLE_RESET, 0);
    Ok(())
}
