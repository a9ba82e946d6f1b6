//! What `natgw trace` would say and what the dataplane then does, packet by packet; and that saying
//! it changes nothing.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};
use nat_common::{
    counters::Counters,
    host::packet::Packet,
    maps,
    session::SessionImage,
    trace::{inserted, kind},
    verdict::{DropReason, Verdict},
};
use nat_tests::{
    generator::{Generator, OTHER_REMOTE, POOL, REMOTE, rules},
    kernel::{Arms, HOST, Kernel, OTHER_HOST, action},
};
use nat_userspace::datapath::{Traced, Tracer, ticks_per_second};
use rstest::rstest;

const SESSIONS: u32 = 16384;
/// For each of the four gateways.
const FRAMES: usize = 2_500;
const RFC: &str = "profile = \"rfc\"";

/// The one verdict by which the counters differ.
fn counted(before: &Counters, after: &Counters) -> Result<Verdict> {
    let reason = DropReason::ALL.iter().map(|reason| {
        let of = |counters: &Counters| counters.drops[*reason as usize];
        (Verdict::Drop(*reason), of(before), of(after))
    });
    let mut found = [
        (
            Verdict::ToDestination,
            before.packets_out_to_destination,
            after.packets_out_to_destination,
        ),
        (Verdict::ToSource, before.packets_out_to_source, after.packets_out_to_source),
        (Verdict::ToHost, before.packets_to_host, after.packets_to_host),
        (Verdict::Answered, before.packets_answered, after.packets_answered),
        (Verdict::Held, before.packets_held, after.packets_held),
    ]
    .into_iter()
    .chain(reason)
    .filter(|(_, before, after)| before != after);
    let (verdict, before, after) = found.next().context("a packet has a verdict")?;
    assert_eq!((after - before, found.next()), (1, None), "and has one only");
    Ok(verdict)
}

fn bytes_of(counters: &Counters) -> &[u8] {
    bytemuck::bytes_of(counters)
}

fn table<K: Pod + Ord, V: Pod>(directory: &Path, name: &str) -> Result<BTreeMap<K, V>> {
    let map = Map::from_map_data(MapData::from_pin(directory.join(name))?)?;
    let map: HashMap<_, K, V> = map.try_into()?;
    Ok(map.iter().collect::<Result<_, _>>()?)
}

/// Every table that packets write to.
#[derive(PartialEq)]
struct State {
    sessions: BTreeMap<[u8; 16], [u8; 64]>,
    bindings: BTreeMap<[u8; 8], [u8; 32]>,
    permits: BTreeMap<[u8; 12], [u8; 4]>,
    hosts: BTreeMap<[u8; 8], [u8; 40]>,
    busy: BTreeMap<[u8; 12], [u8; 16 + 16 * 8 + 16 * 64 * 8]>,
    fragments: BTreeMap<[u8; 12], [u8; 20]>,
    counters: Vec<u8>,
}

impl State {
    fn of(kernel: &Kernel) -> Result<Self> {
        let directory = &kernel.directory();
        Ok(Self {
            sessions: table(directory, maps::SESSIONS)?,
            bindings: table(directory, maps::BINDINGS)?,
            permits: table(directory, maps::PERMITS)?,
            hosts: table(directory, maps::HOSTS)?,
            busy: table(directory, maps::BUSY_PORTS)?,
            fragments: table(directory, maps::FRAGMENTS)?,
            counters: bytes_of(&kernel.counters()?).to_vec(),
        })
    }
}

/// Traces a frame and then sends it; both have to come to the same.
fn agree(kernel: &Kernel, tracer: &mut Tracer, ingress: u32, frame: &[u8]) -> Result<Traced> {
    let before = kernel.counters()?;
    let traced = tracer.trace(ingress, frame)?;
    assert_eq!(bytes_of(&kernel.counters()?), bytes_of(&before), "a trace counts nothing");
    let done = kernel.receive(ingress, frame)?;
    let verdict = counted(&before, &kernel.counters()?)?;
    assert_eq!(traced.log.verdict(), Some(verdict), "{frame:02x?}");
    assert_eq!(traced.run.action, done.action, "{verdict:?} of {frame:02x?}");
    if !matches!(verdict, Verdict::Drop(_)) {
        assert_eq!(traced.run.frame, done.frame, "{verdict:?} of {frame:02x?}");
    }
    Ok(traced)
}

#[rstest]
#[case::two_armed(Arms::Two, "", "", 0x7ace_0001)]
#[case::one_armed(Arms::One, "", "", 0x7ace_0002)]
#[case::two_armed_rfc(Arms::Two, RFC, "", 0x7ace_0003)]
#[case::one_armed_rfc(Arms::One, RFC, "filtering = \"endpoint-independent\"", 0x7ace_0004)]
#[ignore = "needs root: cargo xtask test prog"]
fn trace_and_dataplane_agree_on_every_frame_and_trace_changes_nothing(
    #[case] arms: Arms,
    #[case] gateway: &str,
    #[case] pool: &str,
    #[case] seed: u64,
) -> Result<()> {
    let mut kernel = Kernel::start(arms, gateway, &rules(pool), SESSIONS)?;
    let mut tracer = kernel.datapath.tracer().load()?;
    let mut generator = Generator::new(seed);
    let mut frames = Vec::new();
    let mut verdicts = BTreeMap::new();
    for number in 0..FRAMES {
        if number % 100 == 0 {
            kernel.datapath.heartbeat()?;
        }
        let (frame, inside) = generator.frame();
        let ingress = if inside { kernel.inside } else { kernel.outside };
        let traced = agree(&kernel, &mut tracer, ingress, &frame)?;
        let verdict = traced.log.verdict().context("a verdict")?;
        *verdicts.entry(format!("{verdict:?}")).or_insert(0) += 1;
        if matches!(verdict, Verdict::ToDestination | Verdict::ToSource) {
            generator.remember(&traced.run.frame);
        }
        frames.push((ingress, frame));
    }
    assert!(verdicts.len() > 12, "the frames are of many kinds: {verdicts:?}");

    // The first datagram's fragments have passed, the second's are only asked about.
    for id in [1, 2] {
        let data = vec![0; 3000];
        let datagram = Packet { data, id, ..Packet::udp((HOST, 5000), (REMOTE, 53)) };
        for fragment in datagram.fragments(1480) {
            if id == 1 {
                kernel.receive(kernel.inside, &fragment)?;
            }
            frames.extend(vec![(kernel.inside, fragment); 5]);
        }
    }

    let before = State::of(&kernel)?;
    assert!(before.sessions.len() > 100, "{} entries", before.sessions.len());
    assert!(!before.fragments.is_empty(), "a first fragment has left a note");
    for (ingress, frame) in frames.iter().step_by(5) {
        tracer.trace(*ingress, frame)?;
    }
    assert!(State::of(&kernel)? == before, "traces have changed a table");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn a_session_that_only_the_flow_cache_has_seen_lately_is_told_to_live() -> Result<()> {
    let kernel = Kernel::start(Arms::Two, "", &rules(""), SESSIONS)?;
    let mut tracer = kernel.datapath.tracer().load()?;
    let out = Packet::udp((HOST, 5000), (REMOTE, 53)).frame();
    let back = Packet::udp((REMOTE, 53), (POOL, 5000)).frame();
    // Made, entered into the cache, and found there.
    for _ in 0..3 {
        kernel.receive(kernel.inside, &out)?;
        kernel.receive(kernel.outside, &back)?;
    }
    let ages = |seconds| age_by(&kernel, seconds * ticks_per_second()?);
    ages(400)?;
    for (ingress, frame) in [(kernel.outside, &back), (kernel.inside, &out)] {
        let before = State::of(&kernel)?;
        let told = tracer.trace(ingress, frame)?;
        assert!(State::of(&kernel)? == before, "a trace has changed a table");
        let session = told.log.notes.iter().find(|note| note.kind == kind::SESSION);
        assert_eq!(session.map(|note| note.answer), Some(1), "the session is told");
        assert!(told.log.notes.iter().all(|note| note.kind != kind::SESSION_END));
        agree(&kernel, &mut tracer, ingress, frame)?;
    }
    // Without a slot the table's word holds.
    let tcp = Packet::tcp((HOST, 5001), (REMOTE, 80), 2).frame();
    kernel.receive(kernel.inside, &tcp)?;
    ages(400)?;
    let answer = Packet::tcp((REMOTE, 80), (POOL, 5001), 18).frame();
    let told = agree(&kernel, &mut tracer, kernel.outside, &answer)?;
    assert_eq!(told.log.verdict(), Some(Verdict::Drop(DropReason::Unsolicited)));
    Ok(())
}

/// Has every entry of the session table be so many ticks older. The cache is left as it is.
fn age_by(kernel: &Kernel, ticks: u32) -> Result<()> {
    let path = kernel.directory().join(maps::SESSIONS);
    let map = Map::from_map_data(MapData::from_pin(path)?)?;
    let mut map: HashMap<_, [u8; 16], [u8; 64]> = map.try_into()?;
    for (key, mut value) in map.iter().collect::<Result<Vec<_>, _>>()? {
        let session: &mut SessionImage = bytemuck::from_bytes_mut(&mut value);
        let word = session.word();
        session.word = word.with_seen(word.seen().wrapping_sub(ticks)).0;
        map.insert(key, value, 0)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn the_last_free_port_is_found_and_its_absence_is_told() -> Result<()> {
    let pool = "ports = \"2000-2003\"";
    let kernel = Kernel::start(Arms::Two, "", &rules(pool), SESSIONS)?;
    let mut tracer = kernel.datapath.tracer().load()?;
    let to = |port, remote| Packet::udp((HOST, port), (remote, 53)).frame();
    for port in 5000..5004 {
        let traced = agree_but_for_the_port(&kernel, &mut tracer, &to(port, REMOTE))?;
        assert_eq!(traced, Verdict::ToDestination);
    }
    let full = tracer.trace(kernel.inside, &to(5004, REMOTE))?;
    let reason = Verdict::Drop(DropReason::ErrorPortAllocation);
    assert_eq!(full.log.verdict(), Some(reason));
    assert_eq!(counted_of(&kernel, &to(5004, REMOTE))?, reason);
    let elsewhere = tracer.trace(kernel.inside, &to(5004, OTHER_REMOTE))?;
    assert_eq!(elsewhere.log.verdict(), Some(Verdict::ToDestination));
    let taken: Vec<_> = elsewhere
        .log
        .notes
        .iter()
        .filter(|note| note.kind == kind::SESSION_NEW && note.answer == inserted::DONE)
        .collect();
    assert_eq!(taken.len(), 2, "both halves");
    assert_eq!((taken[0].asked.src, taken[0].asked.dst), (OTHER_REMOTE, POOL));
    assert!((2000..=2003).contains(&taken[0].asked.dport.get()));
    Ok(())
}

fn counted_of(kernel: &Kernel, frame: &[u8]) -> Result<Verdict> {
    let before = kernel.counters()?;
    kernel.receive(kernel.inside, frame)?;
    counted(&before, &kernel.counters()?)
}

/// Ports by chance differ, verdicts do not.
fn agree_but_for_the_port(kernel: &Kernel, tracer: &mut Tracer, frame: &[u8]) -> Result<Verdict> {
    let traced = tracer.trace(kernel.inside, frame)?;
    let verdict = counted_of(kernel, frame)?;
    assert_eq!(traced.log.verdict(), Some(verdict));
    Ok(verdict)
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn a_full_session_table_is_told() -> Result<()> {
    const ROOM: u32 = 64;
    let kernel = Kernel::start(Arms::Two, "", &rules(""), ROOM)?;
    let mut tracer = kernel.datapath.tracer().load()?;
    let packet = |port| Packet::udp((OTHER_HOST, port), (REMOTE, 53)).frame();
    for port in 5000..5000 + ROOM as u16 {
        assert_eq!(kernel.receive(kernel.inside, &packet(port))?.action, action::REDIRECT);
    }
    let frame = packet(6000);
    let reason = Verdict::Drop(DropReason::SessionTableFull);
    assert_eq!(tracer.trace(kernel.inside, &frame)?.log.verdict(), Some(reason));
    assert_eq!(counted_of(&kernel, &frame)?, reason);
    Ok(())
}
