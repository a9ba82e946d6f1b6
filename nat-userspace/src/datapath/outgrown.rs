//! Tables that were made with little room and are wanted with room for all: a start makes them anew, with what
//! is in them, unless programs of an earlier process are at work, which would go on with the earlier ones.
//!
//! The earlier ones keep a pin of another name until everything is in the new ones, so that a start that
//! fails, or dies, leaves everything as it was. A binding that was lost would be missed by the sessions that count
//! in it.

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use bytemuck::Pod;
use nat_common::{
    maps,
    rules::{Control, control},
    session::{BindingImage, BindingKey, PermitKey},
};

use super::{
    batch::Batches,
    error::DatapathError,
    map_error,
    pin::{self, PinDirectory},
    tables::Kern,
};

const OUTGROWN: &str = "outgrown-";
const MAPS: [&str; 3] = [maps::BINDINGS, maps::PERMITS, maps::RECORDS];

/// The earlier tables. Dropping this brings them back.
pub(super) struct Outgrown {
    pins: PinDirectory,
    maps: Vec<&'static str>,
}

impl Outgrown {
    /// Of these maps with little room those that can be made anew, out of the way of new ones.
    pub(super) fn put_aside(
        pins: &PinDirectory,
        small: &[&'static str],
    ) -> Result<Self, DatapathError> {
        let mut outgrown = Self { pins: pins.clone(), maps: Vec::new() };
        if small.is_empty() || !pins.entry_interfaces()?.is_empty() {
            return Ok(outgrown);
        }
        // A ring cannot be copied, and one that was logged to may have records that nobody has read yet.
        let is_logged = is_logged(pins)?;
        outgrown.maps.extend(small.iter().filter(|map| **map != maps::RECORDS || !is_logged));
        for map in &outgrown.maps {
            pin::rename(&pins.map(map), &pins.map(&aside(map)))?;
        }
        Ok(outgrown)
    }

    pub(super) fn maps(&self) -> &[&'static str] {
        &self.maps
    }

    /// Copies what is in the earlier tables, and lets go of them.
    pub(super) fn hand_over(&mut self) -> Result<(), DatapathError> {
        for &map in &self.maps {
            match map {
                maps::BINDINGS => self.copy::<BindingKey, BindingImage>(map)?,
                maps::PERMITS => self.copy::<PermitKey, u32>(map)?,
                _ => {}
            }
        }
        while let Some(map) = self.maps.last() {
            pin::remove(&self.pins.map(&aside(map)))?;
            self.maps.pop();
        }
        Ok(())
    }

    fn copy<K: Pod, V: Pod>(&self, map: &str) -> Result<(), DatapathError> {
        let mut from = Batches::<K, V>::open(&self.pins.path, &aside(map))?;
        let path = self.pins.map(map);
        let open = || Map::from_map_data(MapData::from_pin(&path)?)?.try_into();
        let mut to: HashMap<MapData, Kern<K>, Kern<V>> = open().map_err(|error: MapError| {
            DatapathError::bpf(format!("open {}", path.display()), error)
        })?;
        while let Some(batch) = from.next_batch()? {
            for (key, value) in batch {
                to.insert(Kern(key), Kern(value), 0).map_err(map_error("copy a binding"))?;
            }
        }
        Ok(())
    }
}

impl Drop for Outgrown {
    fn drop(&mut self) {
        if !self.maps.is_empty()
            && let Err(error) = restore(&self.pins)
        {
            log::warn!("{error}");
        }
    }
}

/// Brings back what a start put aside that did not come to its end.
pub(super) fn restore(pins: &PinDirectory) -> Result<(), DatapathError> {
    for map in MAPS {
        let aside = pins.map(&aside(map));
        if aside.exists() {
            pin::rename(&aside, &pins.map(map))?;
        }
    }
    Ok(())
}

fn aside(map: &str) -> String {
    format!("{OUTGROWN}{map}")
}

/// Whether the dataplane has been told to report.
fn is_logged(pins: &PinDirectory) -> Result<bool, DatapathError> {
    let path = pins.map(maps::CONTROL);
    if !path.exists() {
        return Ok(false);
    }
    let open = || Map::from_map_data(MapData::from_pin(&path)?)?.try_into();
    let read = || open().and_then(|map: Array<MapData, Kern<Control>>| map.get(&0, 0));
    let Kern(found) =
        read().map_err(|error| DatapathError::bpf(format!("read {}", path.display()), error))?;
    Ok(found.flags & (control::LOG_OPENED | control::LOG_ENDED) != 0)
}
