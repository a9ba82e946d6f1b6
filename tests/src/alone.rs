//! A dataplane that believes its daemon to be long dead.

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData};
use nat_common::rules::Control;
use xtask::lab::Lab;

/// Takes the gateway's heartbeat back by more than the dataplane waits for one.
pub fn age_heartbeat(lab: &Lab) -> Result<()> {
    const LENGTH: usize = size_of::<Control>();
    let directory = std::fs::read_dir(lab.pins_dir())?.next().context("no layout")??.path();
    let map = Map::from_map_data(MapData::from_pin(directory.join("control"))?)?;
    let mut map: Array<_, [u8; LENGTH]> = Array::try_from(map)?;
    let mut control: Control = bytemuck::pod_read_unaligned(&map.get(&0, 0)?);
    control.heartbeat = control.heartbeat.wrapping_sub(600 * control.hz);
    map.set(0, <[u8; LENGTH]>::try_from(bytemuck::bytes_of(&control))?, 0)?;
    Ok(())
}
