//! The datapath in the kernel: loading, pinning, adopting, attaching, swapping, taking off.
//!
//! Every test has a network namespace of its own, which is its thread's and ends with it, and a
//! directory of its own in the BPF file system.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, bail};
use aya::maps::{Array, HashMap, Map, MapData};
use nat_common::{
    agenda,
    flow::{FlowKey, Tuple},
    maps,
    net::{Ip4, Port, proto},
    rules::{Control, Interface},
    session::{
        self, BindingImage, BindingKey, HostImage, HostKey, PermitKey, SessionImage, State, Word,
    },
};
use nat_tests::{
    attached::{guards_on, index, link_id, run, xdp_on},
    packet_socket::PacketSocket,
    stage::{NAME, SESSIONS, Stage},
};
use nat_userspace::{
    config::{self, HostView, Overrides},
    controller::{Facts, compile, plan},
    datapath::{
        AttachMode, BATCH, Datapath, DatapathError, OpenOptions, Opened, Taken, detach_all,
        ticks_per_second,
    },
    expire::Sweeper,
    flows::{self, View},
};

fn refusal<T>(result: Result<T, DatapathError>) -> String {
    match result {
        Ok(_) => panic!("it was accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_a_first_start_made_is_adopted_by_the_second_one() -> Result<()> {
    let stage = Stage::new()?;
    let (first, opened) = stage.open()?;
    assert_eq!(opened, Opened::Fresh);
    drop(first);
    assert!(stage.entries()?.contains(maps::SESSIONS), "the session table outlives its process");
    let (_second, opened) = stage.open()?;
    assert_eq!(opened, Opened::Adopted { sessions: 0 });
    Ok(())
}

#[test]
fn another_capacity_is_refused_and_the_message_names_the_pinned_one() -> Result<()> {
    let stage = Stage::new()?;
    drop(stage.open()?);
    let before = stage.entries()?;
    let larger = OpenOptions { sessions: 2 * SESSIONS, ..stage.options() };
    let message = refusal(Datapath::open(&larger));
    assert!(message.contains(&format!("gateway.sessions = {SESSIONS}")), "{message}");
    assert!(message.contains("natgw detach --name test"), "{message}");
    assert_eq!(stage.entries()?, before, "what was pinned stays as it was");
    Ok(())
}

#[test]
fn a_pinned_map_of_another_shape_is_refused_before_it_is_used() -> Result<()> {
    let stage = Stage::new()?;
    drop(stage.open()?);
    let control = stage.pins().join(maps::pin(maps::CONTROL));
    std::fs::remove_file(&control)?;
    let path = control.display();
    run("bpftool", &format!("map create {path} type array key 4 value 8 entries 1 name other"))?;
    let message = refusal(Datapath::open(&stage.options()));
    assert!(message.contains("value size 8 instead of 128"), "{message}");
    Ok(())
}

#[test]
fn state_of_another_layout_is_refused_with_the_way_out() -> Result<()> {
    let stage = Stage::new()?;
    std::fs::create_dir_all(stage.bpf_dir.join(NAME).join("v9999"))?;
    let message = refusal(Datapath::open(&stage.options()));
    assert!(message.contains("v9999") && message.contains("natgw detach"), "{message}");
    Ok(())
}

#[test]
fn a_restart_swaps_the_program_on_the_same_link() -> Result<()> {
    let stage = Stage::new()?;
    let inside = index("inside")?;
    let (mut first, _) = stage.open()?;
    first.attach_xdp(inside, "inside", AttachMode::Native)?;
    first.attach_guard(inside, "inside")?;
    first.retire_previous()?;
    let xdp = stage.pins().join("link-xdp-inside");
    let guard = stage.pins().join("link-guard-inside");
    let link = link_id(&xdp)?;
    // Before Linux 6.6 the guard is a filter and has no link.
    let guard_link = guard.exists().then(|| link_id(&guard)).transpose()?;
    let guards = guards_on("inside")?;
    assert_eq!(guards.len(), 1);
    let (mode, program) = xdp_on("inside")?.context("a program")?;
    assert_eq!(mode, 1, "native");
    drop(first);
    assert_eq!(xdp_on("inside")?, Some((mode, program)), "it runs on without its process");
    assert_eq!(guards_on("inside")?, guards, "and so does the guard");

    let (mut second, _) = stage.open()?;
    assert_eq!(xdp_on("inside")?, Some((mode, program)), "opening alone changes nothing");
    second.attach_xdp(inside, "inside", AttachMode::Native)?;
    second.attach_guard(inside, "inside")?;
    second.retire_previous()?;
    let (_, swapped) = xdp_on("inside")?.context("a program")?;
    assert_ne!(swapped, program);
    assert_eq!(link_id(&xdp)?, link, "the link is the same");
    assert_eq!(guard.exists().then(|| link_id(&guard)).transpose()?, guard_link);
    let swapped_guards = guards_on("inside")?;
    assert!(swapped_guards.len() == 1 && swapped_guards != guards, "{swapped_guards:?}");
    let tables: Vec<_> =
        stage.entries()?.into_iter().filter(|entry| entry.starts_with("stages-")).collect();
    assert_eq!(tables, ["stages-2"], "the first program's stages are gone");
    Ok(())
}

/// As VLAN interfaces have it. The BPF file system takes no names with dots.
#[test]
fn an_interface_with_a_dot_in_its_name_is_pinned_adopted_and_let_go_like_others() -> Result<()> {
    let stage = Stage::new()?;
    run("ip", "link add in.100 type veth peer name other.100")?;
    let dotted = index("in.100")?;
    let attach = |datapath: &mut Datapath| -> Result<()> {
        datapath.attach_xdp(dotted, "in.100", AttachMode::Native)?;
        datapath.attach_guard(dotted, "in.100")?;
        datapath.attach_inner_guard(dotted, "in.100")?;
        Ok(datapath.retire_previous()?)
    };
    let (mut first, _) = stage.open()?;
    attach(&mut first)?;
    let before = xdp_on("in.100")?.context("a program")?;
    drop(first);
    let (mut second, _) = stage.open()?;
    attach(&mut second)?;
    assert_ne!(xdp_on("in.100")?.context("a program")?, before, "the link has the new program");
    // Before Linux 6.6 they are filters, and the inner one is among them.
    assert!(!guards_on("in.100")?.is_empty());
    drop(second);
    // Another run that does not want the interface takes off what is there.
    let (mut third, _) = stage.open()?;
    third.retire_previous()?;
    assert_eq!(xdp_on("in.100")?, None);
    assert!(guards_on("in.100")?.is_empty());
    Ok(())
}

#[test]
fn another_mode_replaces_the_link() -> Result<()> {
    let stage = Stage::new()?;
    let inside = index("inside")?;
    let (mut datapath, _) = stage.open()?;
    datapath.attach_xdp(inside, "inside", AttachMode::Native)?;
    datapath.attach_xdp(inside, "inside", AttachMode::Generic)?;
    let (mode, _) = xdp_on("inside")?.context("a program")?;
    assert_eq!(mode, 2, "generic");
    assert_eq!(datapath.attached(), [("inside".to_owned(), AttachMode::Generic)]);
    Ok(())
}

#[test]
fn interfaces_that_are_no_longer_attached_are_taken_off_by_the_next_start() -> Result<()> {
    let stage = Stage::new()?;
    let (mut first, _) = stage.open()?;
    first.attach_xdp(index("inside")?, "inside", AttachMode::Native)?;
    first.attach_xdp(index("outside")?, "outside", AttachMode::Native)?;
    drop(first);
    let (mut second, _) = stage.open()?;
    second.attach_xdp(index("inside")?, "inside", AttachMode::Native)?;
    second.retire_previous()?;
    assert!(xdp_on("inside")?.is_some());
    assert_eq!(xdp_on("outside")?, None);
    Ok(())
}

#[test]
fn an_interface_made_anew_is_attached_again() -> Result<()> {
    let stage = Stage::new()?;
    let (mut datapath, _) = stage.open()?;
    datapath.attach_xdp(index("inside")?, "inside", AttachMode::Native)?;
    run("ip", "link del inside")?;
    run("ip", "link add inside type veth peer name outside")?;
    datapath.attach_xdp(index("inside")?, "inside", AttachMode::Native)?;
    assert!(xdp_on("inside")?.is_some());
    Ok(())
}

#[test]
fn an_interface_with_a_foreign_program_is_refused_by_id_and_with_the_remedy() -> Result<()> {
    let stage = Stage::new()?;
    let inside = index("inside")?;
    let (mut other, _) =
        Datapath::open(&OpenOptions { name: "other".to_owned(), ..stage.options() })?;
    other.attach_xdp(inside, "inside", AttachMode::Native)?;
    let (_, program) = xdp_on("inside")?.context("a program")?;
    let (mut datapath, _) = stage.open()?;
    let message = refusal(datapath.attach_xdp(inside, "inside", AttachMode::Native));
    assert!(message.contains(&format!("id {program}, name natgw")), "{message}");
    assert!(message.contains("ip link set dev inside xdp off"), "{message}");
    Ok(())
}

#[test]
fn an_interface_without_native_xdp_is_refused_and_taken_in_generic_mode() -> Result<()> {
    let stage = Stage::new()?;
    run("ip", "link add dull type bridge")?;
    let dull = index("dull")?;
    let (mut datapath, _) = stage.open()?;
    let message = refusal(datapath.attach_xdp(dull, "dull", AttachMode::Native));
    assert!(message.contains("no native XDP"), "{message}");
    datapath.attach_xdp(dull, "dull", AttachMode::Generic)?;
    Ok(())
}

#[test]
fn detaching_removes_everything_although_the_process_lives() -> Result<()> {
    let stage = Stage::new()?;
    let inside = index("inside")?;
    let (mut datapath, _) = stage.open()?;
    datapath.attach_guard(inside, "inside")?;
    datapath.attach_xdp(inside, "inside", AttachMode::Native)?;
    datapath.retire_previous()?;
    assert!(detach_all(&stage.bpf_dir, NAME)?, "there was something");
    assert_eq!(xdp_on("inside")?, None);
    assert!(guards_on("inside")?.is_empty(), "the guard is gone");
    assert!(!stage.bpf_dir.join(NAME).exists());
    assert!(!detach_all(&stage.bpf_dir, NAME)?, "there is nothing any more");
    Ok(())
}

#[test]
fn a_walk_in_batches_meets_every_entry_once() -> Result<()> {
    const ENTRIES: u32 = 3 * BATCH as u32 + 17;
    let stage = Stage::new()?;
    let (datapath, _) = stage.open()?;
    let pinned = MapData::from_pin(stage.pins().join(maps::SESSIONS))?;
    let mut sessions: HashMap<_, [u8; 16], [u8; 64]> = Map::HashMap(pinned).try_into()?;
    let mut wanted = BTreeSet::new();
    for number in 0..ENTRIES {
        let src = Ip4::from_u32(number);
        let tuple = Tuple { src, dst: src, sport: Port::new(1), dport: Port::new(2) };
        let key = FlowKey::new(tuple, proto::UDP, 0);
        let bytes: [u8; 16] = bytemuck::cast(key);
        sessions.insert(bytes, [0; 64], 0)?;
        wanted.insert(key);
    }
    for _walk in 0..2 {
        let mut met = Vec::new();
        let mut batches = datapath.sessions()?;
        while let Some(batch) = batches.next_batch()? {
            assert!(batch.len() <= BATCH);
            met.extend(batch.map(|(key, _)| key));
        }
        assert_eq!(met.len(), wanted.len());
        assert_eq!(met.into_iter().collect::<BTreeSet<_>>(), wanted);
    }
    Ok(())
}

#[test]
fn a_configuration_written_to_the_maps_is_read_back_as_it_was_planned() -> Result<()> {
    const FIRST: &str = "[gateway]\npublic = [\"outside\"]\nprivate = [\"inside\"]\n\
        [[pool]]\nname = \"a\"\naddresses = [\"198.51.100.0/28\"]\n\
        [[snat]]\nsource = [\"10.0.0.0/16\", \"0.0.0.0/0\"]\npool = \"a\"\n\
        exempt = [\"10.0.0.0/8\"]\n\
        [[forward]]\nprotocol = \"tcp\"\npublic = \"198.51.100.1:1-1000\"\n\
        private = \"10.0.0.5:1-1000\"\n\
        [[one_to_one]]\npublic = \"198.51.100.99\"\nprivate = \"10.0.0.9\"\n";
    let second = FIRST.replace("198.51.100.0/28", "198.51.100.0/29").replace("1-1000", "1-10");
    let stage = Stage::new()?;
    let (mut datapath, _) = stage.open()?;
    let facts = Facts { hz: ticks_per_second()?, ..Facts::default() };
    let host = HostView::read()?;
    for (text, generation) in [(FIRST, 1), (&second, 2), (FIRST, 3)] {
        let config = config::parse_text(text, "test", &Overrides::default(), &host)?;
        let current = datapath.contents()?;
        let wanted = compile(&config, &facts, &current)?;
        datapath.apply(&plan(&wanted, &current))?;
        let written = datapath.contents()?;
        assert_eq!(plan(&wanted, &written), [], "nothing is left to be done");
        assert_eq!((written.forwards, written.snat), (wanted.forwards, wanted.snat));
        let control = datapath.control()?;
        assert_eq!((control.generation, control.epoch), (generation, generation));
    }
    Ok(())
}

#[test]
fn ticks_of_the_programs_go_by_at_the_rate_that_the_clock_says() -> Result<()> {
    let stage = Stage::new()?;
    let (datapath, _) = stage.open()?;
    let hz = ticks_per_second()?;
    let (start, before) = (std::time::Instant::now(), datapath.now()?);
    // The subject is the passing of time itself.
    std::thread::sleep(Duration::from_millis(500));
    let ticks = f64::from(datapath.now()?.wrapping_sub(before));
    let expected = start.elapsed().as_secs_f64() * f64::from(hz);
    assert!((ticks - expected).abs() < f64::from(hz) / 10.0, "{ticks} instead of {expected}");
    Ok(())
}

#[test]
fn an_emitted_frame_leaves_by_its_interface() -> Result<()> {
    let stage = Stage::new()?;
    run("ethtool", "-K outside gro on")?;
    let inside = index("inside")?;
    let (mut datapath, _) = stage.open()?;
    datapath.attach_xdp(inside, "inside", AttachMode::Native)?;
    let interface = Interface { ifindex: inside, mtu: 1500, ..bytemuck::Zeroable::zeroed() };
    datapath.set_interface(&interface)?;
    let socket = PacketSocket::on("outside")?;
    let mut frame = [0x5a; 60];
    frame[12..14].copy_from_slice(&EXPERIMENTAL.to_be_bytes());
    datapath.emit_frame(inside, &frame)?;
    // The hosts at both ends have things to say of their own.
    let is_it = |received: &Vec<u8>| received[12..14] == EXPERIMENTAL.to_be_bytes();
    let received = std::iter::repeat_with(|| socket.receive())
        .find(|received| received.as_ref().map_or(true, is_it));
    assert_eq!(received.context("it never ends")??, frame);
    Ok(())
}

#[test]
fn the_sweep_ends_what_is_over_and_leaves_what_either_direction_keeps() -> Result<()> {
    let stage = Stage::new()?;
    let (mut datapath, _) = stage.open()?;
    let hz = ticks_per_second()?;
    let mut control = Control { hz, refresh: hz / 4, ..datapath.control()? };
    control.timeouts[State::Udp as usize] = 60 * hz;
    datapath.set_control(&control)?;
    let now = datapath.now()?;
    let pinned = MapData::from_pin(stage.pins().join(maps::SESSIONS))?;
    let mut sessions: HashMap<_, [u8; 16], [u8; 64]> = Map::HashMap(pinned).try_into()?;
    // A session of port `port`, whose halves saw their last packets so many seconds ago.
    let mut open = |port: u16, out_idle: u32, in_idle: u32| -> Result<FlowKey> {
        let inside = Tuple {
            src: Ip4::new([10, 0, 0, 5]),
            dst: Ip4::new([203, 0, 113, 1]),
            sport: Port::new(port),
            dport: Port::new(53),
        };
        let outside = Tuple { src: Ip4::new([198, 51, 100, 1]), ..inside };
        let key = FlowKey::new(inside, proto::UDP, 0);
        let half = |idle: u32, tuple, flags| SessionImage {
            word: Word::new(State::Udp, 1, now.wrapping_sub(idle * hz)).0,
            created: now.wrapping_sub(100 * hz),
            packets: 1,
            bytes: if flags == 0 { 1000 } else { 100 },
            tuple,
            flags,
            ..bytemuck::Zeroable::zeroed()
        };
        let outbound = half(out_idle, outside, session::flags::OUTBOUND);
        let inbound = half(in_idle, inside.reversed(), 0);
        let inbound_key = key.with(outside.reversed());
        sessions.insert(
            bytemuck::cast::<_, [u8; 16]>(key),
            bytemuck::cast::<_, [u8; 64]>(outbound),
            0,
        )?;
        sessions.insert(
            bytemuck::cast::<_, [u8; 16]>(inbound_key),
            bytemuck::cast::<_, [u8; 64]>(inbound),
            0,
        )?;
        Ok(key)
    };
    let over = open(1, 62, 62)?;
    let download = open(2, 90, 1)?;
    let upload = open(3, 1, 90)?;
    let mut view = View::open(&datapath)?;
    assert_eq!(flows::usage(&mut view)?.sessions, 2, "one that is over counts no more");
    let (usage, talkers) = flows::usage_and_talkers(&mut view)?;
    assert_eq!(usage, flows::usage(&mut view)?);
    for talkers in talkers.top(None, 10) {
        let [it] = talkers.as_slice() else { bail!("one address: {talkers:?}") };
        assert_eq!((it.sessions, it.bytes_out, it.bytes_in), (2, 200, 2000), "{it:?}");
    }
    assert_eq!(flows::busiest(&mut view, 10)?, [([10, 0, 0, 5].into(), 2)]);

    let mut sweeper = Sweeper::default();
    while sweeper.step(&datapath)? {}
    assert_eq!(sweeper.ended, 1);
    let inbound = |key: &FlowKey| {
        let tuple = Tuple { src: Ip4::new([198, 51, 100, 1]), ..key.tuple };
        key.with(tuple.reversed())
    };
    for (key, lives) in [(over, false), (download, true), (upload, true)] {
        assert_eq!(datapath.session(&key)?.is_some(), lives, "{key:?}");
        assert_eq!(datapath.session(&inbound(&key))?.is_some(), lives, "{key:?}");
    }
    assert_eq!(datapath.counters()?.sessions_ended, 1);
    Ok(())
}

#[test]
fn what_the_dataplane_notes_is_taken_once_it_is_written_and_what_was_overwritten_is_missed()
-> Result<()> {
    let stage = Stage::new()?;
    let (datapath, _) = stage.open()?;
    let mut agenda = datapath.agenda()?;
    let pinned = MapData::from_pin(stage.pins().join(maps::AGENDA))?;
    let places = u64::from(pinned.info()?.max_entries()) - 1;
    let mut ring: Array<_, [u64; 2]> = Map::Array(pinned).try_into()?;
    assert_eq!(ring.get(&0, 0)?, [0, places - 1], "it is written to from now on");
    let mut notes = Vec::new();
    for number in 0..10 {
        ring.set(agenda::place(number, places - 1), [number, 0], 0)?;
    }
    ring.set(0, [10, places - 1], 0)?;
    agenda.look();
    assert_eq!(agenda.take(100, &mut notes), Taken::All);
    assert!(notes.is_empty(), "they may not be written yet");
    agenda.look();
    assert_eq!(agenda.take(7, &mut notes), Taken::More);
    assert_eq!(agenda.take(7, &mut notes), Taken::All);
    let numbers: Vec<u64> =
        notes.iter().map(|note| bytemuck::cast::<_, [u64; 2]>(*note)[0]).collect();
    assert_eq!(numbers, (0..10).collect::<Vec<_>>());
    notes.clear();
    ring.set(0, [11 + places, places - 1], 0)?;
    agenda.look();
    agenda.look();
    assert_eq!(agenda.take(100, &mut notes), Taken::Lost);
    assert!(notes.is_empty());
    ring.set(0, [12 + places, places - 1], 0)?;
    agenda.look();
    agenda.look();
    assert_eq!(agenda.take(100, &mut notes), Taken::All);
    assert_eq!(notes.len(), 1, "and it goes on from there");
    Ok(())
}

#[test]
fn hosts_without_sessions_and_permits_without_binding_are_forgotten_and_others_are_not()
-> Result<()> {
    let stage = Stage::new()?;
    let (datapath, _) = stage.open()?;
    let host = |last: u8| HostKey { address: Ip4::new([10, 0, 0, last]), ..HostKey::default() };
    let busy = HostImage { sessions: [0, 1, 0], ..bytemuck::Zeroable::zeroed() };
    let idle = HostImage { address: 7, ..bytemuck::Zeroable::zeroed() };
    let hosts = [(host(1), busy), (host(2), idle)];
    stage.fill(
        maps::HOSTS,
        &hosts.map(|(k, v)| (bytemuck::cast::<_, [u8; 8]>(k), bytes::<_, 40>(v))),
    )?;

    let public = Ip4::new([198, 51, 100, 1]);
    let binding = |port: u16| BindingKey {
        address: public,
        port: Port::new(port),
        protocol: proto::UDP,
        inbound: 1,
    };
    let image = BindingImage { id: 5, ..bytemuck::Zeroable::zeroed() };
    stage.fill(
        maps::BINDINGS,
        &[(bytemuck::cast::<_, [u8; 8]>(binding(1)), bytes::<_, 32>(image))],
    )?;
    let permit = |port: u16| PermitKey {
        public,
        remote: Ip4::new([203, 0, 113, 9]),
        port: Port::new(port),
        protocol: proto::UDP,
        zero: 0,
    };
    let permits = [(permit(1), 5_u32), (permit(2), 5)];
    let permits = permits.map(|(k, id)| (bytemuck::cast::<_, [u8; 12]>(k), id.to_ne_bytes()));
    stage.fill(maps::PERMITS, &permits)?;

    assert_eq!(datapath.forgetter().run()?, 2);
    assert_eq!(stage.keys::<8, 40>(maps::HOSTS)?, [bytemuck::cast::<_, [u8; 8]>(host(1))]);
    assert_eq!(stage.keys::<12, 4>(maps::PERMITS)?, [permits[0].0]);
    Ok(())
}

fn bytes<T: bytemuck::Pod, const N: usize>(value: T) -> [u8; N] {
    bytemuck::bytes_of(&value).try_into().expect("the size of the map's value")
}

/// IEEE 802 local experimental EtherType.
const EXPERIMENTAL: u16 = 0x88b5;
