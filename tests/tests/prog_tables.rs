//! Tables that have little room because nothing was to be put into them, and maps of one value.

use anyhow::Result;
use aya::maps::{Array, Map, MapData, MapInfo};
use nat_common::{
    maps,
    rules::{Interface, role},
};
use nat_tests::{
    attached::index,
    stage::{SESSIONS, Stage},
};
use nat_userspace::datapath::{AttachMode, Datapath, OpenOptions};

const BINDING: ([u8; 8], [u8; 32]) = ([1; 8], [1; 32]);
const PERMIT: ([u8; 12], [u8; 4]) = ([1; 12], [1; 4]);

fn with_room(stage: &Stage) -> OpenOptions {
    OpenOptions { bindings: true, records: true, ..stage.options() }
}

/// A start that comes to its end, with the entry program on an interface.
fn translate(options: &OpenOptions) -> Result<Datapath> {
    let (mut datapath, _) = Datapath::open(options)?;
    datapath.attach_xdp(index("inside")?, "inside", AttachMode::Native)?;
    datapath.retire_previous()?;
    Ok(datapath)
}

fn pinned(stage: &Stage, map: &str) -> Result<MapInfo> {
    Ok(MapInfo::from_pin(stage.pins().join(map))?)
}

fn size(stage: &Stage, map: &str) -> Result<u32> {
    Ok(pinned(stage, map)?.max_entries())
}

#[test]
fn tables_with_little_room_are_made_anew_with_what_is_in_them_where_nothing_translates()
-> Result<()> {
    let stage = Stage::new()?;
    let mut first = translate(&stage.options())?;
    assert!(first.room_for_bindings() < SESSIONS);
    let ring = size(&stage, maps::RECORDS)?;
    first.detach_xdp("inside")?;
    drop(first);
    stage.fill(maps::BINDINGS, &[BINDING])?;
    stage.fill(maps::PERMITS, &[PERMIT])?;

    let second = translate(&with_room(&stage))?;
    assert_eq!(second.room_for_bindings(), SESSIONS);
    assert_eq!(size(&stage, maps::BINDINGS)?, 2 * SESSIONS);
    assert_eq!(size(&stage, maps::PERMITS)?, SESSIONS);
    assert!(size(&stage, maps::RECORDS)? > ring);
    assert_eq!(stage.keys::<8, 32>(maps::BINDINGS)?, [BINDING.0]);
    assert_eq!(stage.keys::<12, 4>(maps::PERMITS)?, [PERMIT.0]);
    let entries = stage.entries()?;
    assert!(!entries.iter().any(|entry| entry.starts_with("outgrown")), "{entries:?}");

    let third = translate(&stage.options())?;
    assert_eq!(third.room_for_bindings(), SESSIONS, "what has room for all keeps it");
    Ok(())
}

#[test]
fn while_programs_are_at_work_a_table_with_little_room_stays() -> Result<()> {
    let stage = Stage::new()?;
    let little = translate(&stage.options())?.room_for_bindings();
    stage.fill(maps::BINDINGS, &[BINDING])?;
    assert_eq!(translate(&with_room(&stage))?.room_for_bindings(), little);
    assert_eq!(stage.keys::<8, 32>(maps::BINDINGS)?, [BINDING.0]);
    Ok(())
}

#[test]
fn tables_that_a_start_that_died_was_making_anew_are_brought_back() -> Result<()> {
    let stage = Stage::new()?;
    let little = stage.open()?.0.room_for_bindings();
    stage.fill(maps::BINDINGS, &[BINDING])?;
    let pin = |name: &str| stage.pins().join(name);
    let earlier = pinned(&stage, maps::BINDINGS)?.id();
    // It is killed when the new table is there, and nothing is in it.
    std::fs::rename(pin(maps::BINDINGS), pin("outgrown-bindings"))?;
    MapData::from_pin(pin(maps::PERMITS))?.pin(pin(maps::BINDINGS))?;
    assert_eq!(stage.open()?.0.room_for_bindings(), little);
    assert_eq!(pinned(&stage, maps::BINDINGS)?.id(), earlier);
    assert!(!pin("outgrown-bindings").exists());
    assert_eq!(stage.keys::<8, 32>(maps::BINDINGS)?, [BINDING.0]);
    Ok(())
}

#[test]
fn a_ring_that_records_may_wait_in_is_not_made_anew() -> Result<()> {
    let stage = Stage::new()?;
    let (mut first, _) = stage.open()?;
    let mut control = first.control()?;
    control.flags |= nat_common::rules::control::LOG_ENDED;
    first.set_control(&control)?;
    drop(first);
    let ring = pinned(&stage, maps::RECORDS)?.id();
    let (second, _) = Datapath::open(&with_room(&stage))?;
    assert_eq!(second.room_for_bindings(), SESSIONS);
    assert_eq!(pinned(&stage, maps::RECORDS)?.id(), ring);
    Ok(())
}

/// What is in the one value of a map.
fn value<const BYTES: usize>(stage: &Stage, map: &str) -> Result<[u8; BYTES]> {
    let map = Map::from_map_data(MapData::from_pin(stage.pins().join(maps::pin(map)))?)?;
    Ok(Array::try_from(map)?.get(&0, 0)?)
}

#[test]
fn what_is_in_maps_of_one_value_stays_when_programs_are_loaded_over_them() -> Result<()> {
    let stage = Stage::new()?;
    let mut first = translate(&stage.options())?;
    let ifindex = index("inside")?;
    first.set_interface(&Interface {
        ifindex,
        role: role::PRIVATE,
        ..bytemuck::Zeroable::zeroed()
    })?;
    first.bump_epoch()?;
    let all = || -> Result<([u8; 128], [u8; 8192])> {
        Ok((value(&stage, maps::CONTROL)?, value(&stage, maps::LINKS)?))
    };
    let before = all()?;
    assert!(before.0 != [0; 128] && before.1 != [0; 8192], "something is in them");
    first.load_tc()?;
    assert!(all()? == before, "programs for tc");
    let tracer = first.tracer().load()?;
    assert!(all()? == before, "programs that trace");
    drop((first, tracer));
    let second = stage.open()?;
    assert!(all()? == before, "those of the next daemon");
    drop(second);
    Ok(())
}
