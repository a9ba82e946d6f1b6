//! The slow path's side of the dataplane: its device on and off, and what its worker reads.

use std::io;

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray},
    programs::{tc::SchedClassifierLink, xdp::XdpLink},
};
use nat_common::{
    counters::Counters,
    maps,
    rules::{Control, Interface, control},
    stage::{FragmentEntry, FragmentKey},
};

use super::{
    AttachMode, Datapath, Result,
    error::DatapathError,
    load::{classifier_mut, xdp_mut},
    map_error,
    pin::PinDirectory,
    tables::Kern,
    tc, tc_mut,
};

/// The device as the dataplane knows it. Not pinned: it ends with the process, as the device does.
pub(super) struct SlowPathDevice {
    pub(super) ifindex: u32,
    link: Link,
}

enum Link {
    Xdp(XdpLink),
    Tc(SchedClassifierLink),
}

impl Datapath {
    /// Has packets that cannot go on sent to this device, and takes up what is written to it.
    /// `mode` is that of the gateway's interfaces: what comes back goes out of them.
    ///
    /// # Errors
    /// `AlreadyExists` where the device's slot belongs to an interface of the gateway: make another
    /// device. Else as the kernel gives them.
    pub fn open_slow_path(&mut self, ifindex: u32, mode: AttachMode) -> Result<()> {
        self.close_slow_path()?;
        let slot = ifindex % maps::INTERFACE_SLOTS;
        if self.interface(slot)?.ifindex != 0 {
            return Err(DatapathError::Call {
                what: format!("give interface {ifindex} a slot, which another one has"),
                source: io::ErrorKind::AlreadyExists.into(),
            });
        }
        let link = self.attach_return(ifindex, mode)?;
        self.tables
            .egress
            .set(slot, ifindex, None, 0)
            .map_err(|error| DatapathError::bpf("redirect to the slow path", error))?;
        self.slow_path = Some(SlowPathDevice { ifindex, link });
        let control = self.control()?;
        self.set_control(&Control {
            slow_path: ifindex,
            flags: control.flags | control::SLOW_PATH,
            ..control
        })
    }

    fn attach_return(&mut self, ifindex: u32, mode: AttachMode) -> Result<Link> {
        let failed = |error| DatapathError::bpf("attach to the slow path's device", error);
        let Some(flags) = mode.flags() else {
            self.load_tc()?;
            let program = classifier_mut(tc_mut(&mut self.tc)?, maps::RETURN_PROGRAM)?;
            let name = nix::net::if_::if_indextoname(ifindex).map_err(|error| {
                DatapathError::call("find the slow path's device", error.into())
            })?;
            let link = tc::attach_for_now(program, &name.to_string_lossy()).map_err(failed)?;
            return Ok(Link::Tc(link));
        };
        self.load_xdp()?;
        let program = xdp_mut(&mut self.bpf, maps::RETURN_PROGRAM)?;
        let link = program
            .attach_to_if_index(ifindex, flags)
            .and_then(|id| program.take_link(id))
            .map_err(failed)?;
        Ok(Link::Xdp(link))
    }

    /// Nothing is sent to the slow path any more. Also after an earlier process, whose device may
    /// have gone and its slot to another interface.
    ///
    /// # Errors
    /// None is expected.
    pub fn avoid_slow_path(&mut self) -> Result<()> {
        let control = self.control()?;
        if control.slow_path == 0 && control.flags & control::SLOW_PATH == 0 {
            return Ok(());
        }
        let flags = control.flags & !control::SLOW_PATH;
        self.set_control(&Control { slow_path: 0, flags, ..control })
    }

    /// The end of [`Self::open_slow_path`]; what is written to the device after it is lost.
    ///
    /// # Errors
    /// None is expected.
    pub fn close_slow_path(&mut self) -> Result<()> {
        self.avoid_slow_path()?;
        let Some(device) = self.slow_path.take() else { return Ok(()) };
        // Index 0 empties a slot of a device map.
        self.tables
            .egress
            .set(device.ifindex % maps::INTERFACE_SLOTS, 0, None, 0)
            .map_err(|error| DatapathError::bpf("write the egress table", error))
    }

    /// Has what comes back taken up by the program of another object, or by this one's again.
    pub(super) fn swap_slow_path(&mut self, other: Option<&mut Ebpf>) -> Result<()> {
        let Some(SlowPathDevice { ifindex, link }) = self.slow_path.take() else { return Ok(()) };
        let failed = |error| DatapathError::bpf("swap the slow path's program", error);
        let link = match link {
            Link::Xdp(link) => {
                let program = xdp_mut(other.unwrap_or(&mut self.bpf), maps::RETURN_PROGRAM)?;
                let swapped = program.attach_to_link(link).and_then(|id| program.take_link(id));
                Link::Xdp(swapped.map_err(failed)?)
            }
            Link::Tc(link) => {
                let own = tc_mut(&mut self.tc);
                let program = classifier_mut(other.map_or(own, Ok)?, maps::RETURN_PROGRAM)?;
                let swapped = program.attach_to_link(link).and_then(|id| program.take_link(id));
                Link::Tc(swapped.map_err(failed)?)
            }
        };
        self.slow_path = Some(SlowPathDevice { ifindex, link });
        Ok(())
    }

    /// Whether this process serves the slow path.
    #[must_use]
    pub fn has_slow_path(&self) -> bool {
        self.slow_path.is_some()
    }

    /// What the slow path's worker reads, by handles of its own.
    ///
    /// # Errors
    /// None is expected.
    pub fn slow_path_view(&self) -> Result<SlowPathView> {
        Ok(SlowPathView {
            control: open(&self.pins, maps::CONTROL)?,
            counters: open(&self.pins, maps::COUNTERS)?,
            interfaces: open(&self.pins, maps::INTERFACES)?,
            fragments: open(&self.pins, maps::FRAGMENTS)?,
        })
    }
}

fn open<M>(pins: &PinDirectory, name: &str) -> Result<M>
where
    M: TryFrom<Map, Error = MapError>,
{
    let path = pins.map(name);
    let map = MapData::from_pin(&path)
        .map_err(|error| DatapathError::bpf(format!("open {}", path.display()), error))?;
    let map = Map::from_map_data(map).map_err(map_error("use a pinned map"))?;
    M::try_from(map).map_err(map_error("use a pinned map"))
}

/// Packets that went to the slow path, and that came back or were given up; since the maps exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Waiting {
    pub held: u64,
    pub released: u64,
}

/// Maps that the slow path reads beside everything else.
pub struct SlowPathView {
    control: Array<MapData, Kern<Control>>,
    counters: PerCpuArray<MapData, Kern<Counters>>,
    interfaces: Array<MapData, Kern<Interface>>,
    fragments: HashMap<MapData, Kern<FragmentKey>, Kern<FragmentEntry>>,
}

impl SlowPathView {
    /// # Errors
    /// None is expected.
    pub fn waiting(&self) -> Result<Waiting> {
        let mut waiting = Waiting::default();
        for Kern(cpu) in self.counters.get(&0, 0).map_err(map_error("read the counters"))?.iter() {
            waiting.held = waiting.held.wrapping_add(cpu.packets_held);
            waiting.released = waiting.released.wrapping_add(cpu.packets_released);
        }
        Ok(waiting)
    }

    /// The realm of an interface, which is part of a fragment's key.
    ///
    /// # Errors
    /// None is expected.
    pub fn realm(&self, ifindex: u32) -> Result<u8> {
        let slot = ifindex % maps::INTERFACE_SLOTS;
        let interface = self.interfaces.get(&slot, 0);
        let Kern(interface) = interface.map_err(map_error("read the interface table"))?;
        Ok(interface.realm)
    }

    /// Whether the first fragment of a datagram has passed. A note that is older than any
    /// fragment waits is of another datagram.
    ///
    /// # Errors
    /// None is expected.
    pub fn first_passed(&self, key: &FragmentKey) -> Result<bool> {
        let entry = match self.fragments.get(&Kern(*key), 0) {
            Ok(Kern(entry)) => entry,
            Err(MapError::KeyNotFound) => return Ok(false),
            Err(error) => return Err(map_error("read the table of fragments")(error)),
        };
        let Kern(control) = self.control.get(&0, 0).map_err(map_error("read the control map"))?;
        Ok(is_recent(entry.seen, &control))
    }
}

/// By the daemon's heartbeat, which is a second old at most: no program has to run for it.
fn is_recent(seen: u32, control: &Control) -> bool {
    const SECONDS: u32 = 4;
    let age = control.heartbeat.wrapping_sub(seen).cast_signed();
    age <= control.hz.saturating_mul(SECONDS).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_of_a_datagram_long_gone_is_told_from_a_fresh_one_across_the_wrap_of_the_clock() {
        let control =
            Control { heartbeat: 100, hz: 250, ..<Control as bytemuck::Zeroable>::zeroed() };
        assert!(is_recent(100, &control));
        assert!(is_recent(150, &control), "after the last heartbeat");
        assert!(is_recent(100_u32.wrapping_sub(1000), &control));
        assert!(!is_recent(100_u32.wrapping_sub(1001), &control));
    }
}
