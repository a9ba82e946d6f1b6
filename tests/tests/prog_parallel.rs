//! Two processors at once in a flow cache that has far fewer slots than there are flows, while a third hand takes
//! slots away, ends sessions, or changes how many slots there are.

use std::{
    collections::BTreeSet,
    sync::{
        Barrier, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    thread,
};

use anyhow::{Context as _, Error, Result, ensure};
use aya::maps::{Array, Map, MapData};
use nat_common::{
    cache::{Place, SlotImage},
    flow::{FlowKey, Tuple},
    host::packet::{Packet, Seen, try_seen},
    maps,
    net::{Ip4, Port, proto},
    rules::Control,
    stage::request,
};
use nat_tests::{
    frames::Random,
    generator::{POOL, REMOTE, one_pool},
    kernel::{Arms, HOST, Kernel, OTHER_HOST, ROUTER, action, mac_of, stay_on},
};
use nat_userspace::datapath::wait_for_programs;
use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::Pid,
};

/// The fewest that a cache may have, one page of them; and twice as many.
const SLOTS: [u32; 2] = [128, 256];
/// Each with two flows, one for each direction.
const SESSIONS: usize = 300;
/// Behind these: sessions that are ended again and again.
const SHORT: usize = 40;
/// Of the lasting ones, those that have half of all packets: both processors are in their slots all the time.
const HOT: usize = 2;
/// Bytes of a packet, and of what it carries.
const BYTES: u64 = 20 + 8 + DATA as u64;
const DATA: usize = 30;

fn kernel() -> Result<Kernel> {
    let mut kernel = Kernel::start(Arms::Two, "", &one_pool(""), 2_000)?;
    let mut control = kernel.datapath.control()?;
    control.cache.slots = SLOTS[0];
    kernel.datapath.set_control(&control)?;
    Ok(kernel)
}

/// The private endpoint of a session.
fn endpoint(number: usize) -> (Ip4, u16) {
    let host = if number.is_multiple_of(2) { HOST } else { OTHER_HOST };
    (host, 5000 + u16::try_from(number).expect("few"))
}

fn key(number: usize) -> FlowKey {
    let (src, port) = endpoint(number);
    let (sport, dport) = (Port::new(port), Port::new(53));
    FlowKey::new(Tuple { src, dst: REMOTE, sport, dport }, proto::UDP, 0)
}

/// Sends a packet of this session out, which must leave from the public address.
fn send(kernel: &Kernel, number: usize) -> Result<Seen> {
    let packet = Packet { data: vec![7; DATA], ..Packet::udp(endpoint(number), (REMOTE, 53)) };
    let run = kernel.receive(kernel.inside, &packet.frame())?;
    ensure!(run.action == action::REDIRECT, "session {number}: action {}", run.action);
    // Its checksums and lengths are looked at there.
    let seen = try_seen(&run.frame).map_err(Error::msg)?;
    ensure!((seen.src, seen.dst, seen.dport) == (POOL, REMOTE, 53), "session {number}: {seen:?}");
    ensure!(seen.ttl == packet.ttl - 1 && seen.to == mac_of(ROUTER), "session {number}: {seen:?}");
    Ok(seen)
}

/// Sends the answer to this port, which must reach the host of this session.
fn answer(kernel: &Kernel, number: usize, port: u16) -> Result<()> {
    let packet = Packet { data: vec![7; DATA], ..Packet::udp((REMOTE, 53), (POOL, port)) };
    let run = kernel.receive(kernel.outside, &packet.frame())?;
    ensure!(run.action == action::REDIRECT, "answer {number}: action {}", run.action);
    let seen = try_seen(&run.frame).map_err(Error::msg)?;
    let ends = ((seen.src, seen.sport), (seen.dst, seen.dport));
    ensure!(ends == ((REMOTE, 53), endpoint(number)), "answer {number}: {seen:?}");
    ensure!(seen.to == mac_of(seen.dst), "answer {number}: {seen:?}");
    Ok(())
}

/// All that one processor does, until it has sent so many packets and it is enough. Returns how many it has sent.
/// Whose port is not known has none for good.
fn traffic(
    kernel: &Kernel,
    ports: &[u16],
    packets: u64,
    enough: &AtomicBool,
    seed: u64,
) -> Result<u64> {
    let mut random = Random(seed);
    let mut sent = 0;
    while sent < packets || !enough.load(Relaxed) {
        sent += 1;
        let among = [HOT, SESSIONS + SHORT][random.below(2)];
        let number = random.below(among);
        let port = ports.get(number);
        if let (Some(port), 0) = (port, random.below(2)) {
            answer(kernel, number, *port)?;
            continue;
        }
        let seen = send(kernel, number)?;
        let same = port.is_none_or(|port| *port == seen.sport);
        ensure!(same, "session {number} had port {port:?}: {seen:?}");
    }
    Ok(sent)
}

/// Does this to each slot that there may be.
fn of_all_slots(kernel: &Kernel, op: u32) -> Result<()> {
    let slots: Vec<_> = (0..SLOTS[1]).map(request::slot).collect();
    slots
        .chunks(request::BATCH)
        .try_for_each(|batch| Ok(kernel.datapath.reap(op, batch).map(drop)?))
}

/// The control value, as all programs of the gateway see it.
struct Shared(Array<MapData, [u8; size_of::<Control>()]>);

impl Shared {
    fn of(kernel: &Kernel) -> Result<Self> {
        let map = MapData::from_pin(kernel.directory().join(maps::pin(maps::CONTROL)))?;
        Ok(Self(Map::from_map_data(map)?.try_into()?))
    }

    /// Has the cache have another size, in the steps of the daemon; returns which.
    fn resize(&mut self, kernel: &Kernel) -> Result<u32> {
        let mut control: Control = bytemuck::pod_read_unaligned(&self.0.get(&0, 0)?);
        let slots = SLOTS[usize::from(control.cache.slots == SLOTS[0])];
        control.cache.slots = slots;
        of_all_slots(kernel, request::SETTLE)?;
        self.0.set(0, bytemuck::cast::<_, [u8; _]>(control), 0)?;
        wait_for_programs();
        of_all_slots(kernel, request::VACATE)?;
        Ok(slots)
    }
}

/// Packets and bytes that sessions have counted, and slots have for whoever gets them next.
fn counted(kernel: &Kernel) -> Result<(u64, u64)> {
    of_all_slots(kernel, request::SETTLE)?;
    let map = MapData::from_pin(kernel.directory().join(maps::FLOW_CACHE))?;
    let cache: Array<_, SlotImage> = Map::from_map_data(map)?.try_into()?;
    let mut sums = (0, 0);
    for slot in 0..SLOTS[1] {
        let [.., tally] = cache.get(&slot, 0)?;
        let tally = tally & 0xffff_ffff;
        sums = (sums.0 + (tally >> 21), sums.1 + (tally & 0x1f_ffff));
    }
    for (_, session) in kernel.sessions()? {
        sums = (sums.0 + session.packets, sums.1 + session.bytes);
    }
    Ok(sums)
}

/// The processors of this process, or why there are not two.
fn processors() -> Result<[usize; 2]> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    let mut all = (0..CpuSet::count()).filter(|number| set.is_set(*number) == Ok(true));
    let two = all.next().zip(all.next());
    two.map(|(one, other)| [one, other]).context("this needs two processors")
}

/// So many packets or more on each of two processors, while `third` is done again and again, which says whether
/// that is enough. The gateway after it, and how many were sent.
fn race(
    packets: u64,
    third: impl Fn(&Kernel, &mut Random) -> Result<bool> + Sync,
) -> Result<(Kernel, u64)> {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // Before the gateway's thread stays on one of them.
    let processors = processors()?;
    let kernel = kernel()?;
    let open = |number| send(&kernel, number).map(|seen| seen.sport);
    let ports: Vec<u16> = (0..SESSIONS).map(open).collect::<Result<_>>()?;

    let start = Barrier::new(3);
    let (enough, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let sent = thread::scope(|scope| -> Result<u64> {
        let third = scope.spawn(|| {
            let mut random = Random(3);
            start.wait();
            while !over.load(Relaxed) {
                let done = third(&kernel, &mut random);
                // Nobody is to wait for what has failed.
                enough.store(!matches!(done, Ok(false)), Relaxed);
                done?;
                thread::yield_now();
            }
            Ok(0)
        });
        let threads = processors.map(|processor| {
            let (kernel, ports, start, enough) = (&kernel, &ports, &start, &enough);
            scope.spawn(move || {
                let stays = stay_on(processor);
                start.wait();
                stays?;
                traffic(kernel, ports, packets, enough, processor as u64)
            })
        });
        let results = threads.map(thread::ScopedJoinHandle::join);
        // Before anything is made of them: it would be done for ever.
        over.store(true, Relaxed);
        let results = results.into_iter().chain([third.join()]);
        results.map(|result| result.expect("no panic")).sum()
    })?;
    // And the first of each lasting session.
    Ok((kernel, sent + SESSIONS as u64))
}

/// Settles what a hot session may have slots in, or takes them away.
fn disturb(kernel: &Kernel, random: &mut Random) -> Result<()> {
    let place = Place::of(&key(random.below(HOT)), &kernel.datapath.control()?);
    let op = [request::SETTLE, request::VACATE][random.below(2)];
    kernel.datapath.reap(op, &place.ways().map(request::slot))?;
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn two_processors_in_one_cache_translate_every_packet_rightly_and_count_each_once() -> Result<()> {
    // What is not atomic is noticed by every other run of so many.
    let (kernel, sent) = race(150_000, |kernel, random| disturb(kernel, random).map(|()| true))?;
    assert_eq!(counted(&kernel)?, (sent, sent * BYTES));
    let counters = kernel.counters()?;
    let out = counters.packets_out_to_destination + counters.packets_out_to_source;
    assert_eq!(out, sent);
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn a_cache_that_gets_another_size_in_the_midst_of_it_loses_no_count_and_keeps_no_old_slot()
-> Result<()> {
    let changes = AtomicU32::new(0);
    let (kernel, sent) = race(40_000, |kernel, _| {
        Shared::of(kernel)?.resize(kernel)?;
        Ok(changes.fetch_add(1, Relaxed) > 50)
    })?;
    assert_eq!(counted(&kernel)?, (sent, sent * BYTES));

    // A slot that was left in its place of another size would be found again there, its session or not.
    let mut control = Shared::of(&kernel)?;
    let short = SESSIONS..SESSIONS + SHORT;
    let keys: Vec<_> = short.clone().map(key).collect();
    for _ in SLOTS {
        kernel.datapath.reap(request::END, &keys)?;
        let slots = control.resize(&kernel)?;
        short.clone().try_for_each(|number| send(&kernel, number).map(drop))?;
        let there: BTreeSet<_> = kernel.sessions()?.into_iter().map(|(key, _)| key).collect();
        for key in &keys {
            ensure!(there.contains(key), "{key:?} had a slot of {slots}, and no session");
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn sessions_that_end_in_the_midst_of_it_begin_anew_and_leave_the_others_alone() -> Result<()> {
    let (kernel, _) = race(40_000, |kernel, random| {
        let short = key(SESSIONS + random.below(SHORT));
        kernel.datapath.reap(request::END, &[short])?;
        disturb(kernel, random)?;
        Ok(kernel.counters()?.sessions_ended > 5 * SHORT as u64)
    })?;
    let keys: Vec<_> = kernel.sessions()?.into_iter().map(|(key, _)| key).collect();
    kernel.sieve_agrees(keys.iter())
}
