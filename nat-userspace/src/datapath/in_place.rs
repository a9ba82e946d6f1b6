//! Maps of one value, which programs reach without a lookup: see `nat_common::maps::is_in_place`. How they are
//! loaded, and tables that are such a value.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, Map, MapData, MapError},
};
use nat_common::maps;

use super::{
    error::DatapathError,
    pin::{PINNED, PinDirectory},
    tables::Kern,
};

/// Loads an object over the maps that outlive a process: those that are pinned, else new ones, which it pins.
/// `refused` says what could not be done.
pub(super) fn load(
    loader: &mut EbpfLoader<'_>,
    object: &[u8],
    pins: &PinDirectory,
    refused: impl FnOnce(EbpfError) -> DatapathError,
) -> Result<Ebpf, DatapathError> {
    for map in PINNED.iter().filter(|map| !maps::is_in_place(map)) {
        loader.map_pin_path(map, pins.map(map));
    }
    let bpf = loader.load(object).map_err(refused)?;
    adopt(&bpf, pins)?;
    Ok(bpf)
}

/// Pins the maps of one value, or puts those in their place that are pinned. Before any program is loaded, which
/// knows a map by its descriptor.
///
/// The loader would do it, and write zeros into them, which is what such a map begins with: under the feet of
/// the programs that run.
fn adopt(bpf: &Ebpf, pins: &PinDirectory) -> Result<(), DatapathError> {
    for map in PINNED.iter().filter(|map| maps::is_in_place(map)) {
        // An object has those that its programs use.
        let made = match bpf.map(map) {
            None => continue,
            Some(Map::Array(made)) => made,
            Some(_) => {
                return Err(DatapathError::Missing { what: "array", name: (*map).to_owned() });
            }
        };
        let path = pins.map(map);
        if !path.exists() {
            made.pin(&path)
                .map_err(|error| DatapathError::bpf(format!("pin {}", path.display()), error))?;
            continue;
        }
        let pinned = MapData::from_pin(&path)
            .map_err(|error| DatapathError::bpf(format!("open {}", path.display()), error))?;
        let (pinned, made) = (pinned.fd().as_fd().as_raw_fd(), made.fd().as_fd().as_raw_fd());
        // SAFETY: both are open and of a map; whoever owns the second finds the other map behind it.
        if unsafe { libc::dup3(pinned, made, libc::O_CLOEXEC) } < 0 {
            let source = io::Error::last_os_error();
            return Err(DatapathError::call(format!("take over {}", path.display()), source));
        }
    }
    Ok(())
}

/// Elements by number, all of them the one value of a map.
pub(crate) struct InPlace<T, const N: usize>
where
    [T; N]: bytemuck::Pod,
{
    map: Array<MapData, Kern<[T; N]>>,
}

impl<T, const N: usize> TryFrom<Map> for InPlace<T, N>
where
    [T; N]: bytemuck::Pod,
{
    type Error = MapError;

    fn try_from(map: Map) -> Result<Self, MapError> {
        Ok(Self { map: map.try_into()? })
    }
}

impl<T: Copy, const N: usize> InPlace<T, N>
where
    [T; N]: bytemuck::Pod,
{
    /// Writes all elements, the others as they are: only the daemon writes here, so whoever reads them meanwhile
    /// sees no change.
    ///
    /// # Errors
    /// Where there is no such element, or the map cannot be read or written.
    pub(crate) fn set(&mut self, number: u32, value: T) -> Result<(), MapError> {
        let Kern(mut all) = self.map.get(&0, 0)?;
        let missing = MapError::OutOfBounds { index: number, max_entries: N as u32 };
        *all.get_mut(number as usize).ok_or(missing)? = value;
        self.map.set(0, Kern(all), 0)
    }
}
