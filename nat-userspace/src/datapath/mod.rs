//! The dataplane as the daemon holds it: everything that touches aya.
//!
//! What a [`Datapath`] makes is pinned and outlives it: maps, programs, links. Dropping it, or
//! killing its process, changes nothing on the wire; [`detach_all`] is the way to take it off.

mod agenda;
mod attach;
mod backstop;
mod batch;
mod bpffs;
mod btf;
mod cache;
mod capacity;
mod capture;
mod error;
mod fit;
mod forget;
mod grace;
mod guards;
mod host;
mod in_place;
mod load;
mod mapped;
mod outgrown;
mod pin;
mod pinned;
mod refused;
mod run;
mod slow;
mod sweep;
mod syscall;
pub(crate) mod tables;
mod tc;
mod trace;

use std::{
    collections::{self, BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError, RingBuf},
};
use nat_common::{
    counters::Counters,
    flow::FlowKey,
    maps,
    rules::{Control, routing},
    session::SessionImage,
};

pub use agenda::{Agenda, Taken};
pub use attach::AttachMode;
pub use batch::{BATCH, Batches, BindingBatches, SessionBatches};
pub use bpffs::{home as bpf_home, is_there as in_bpffs};
pub use capture::{Capturer, CapturerSource, Packets};
pub use error::DatapathError;
pub(crate) use error::missing_capabilities;
pub use fit::Fit;
pub use forget::Forgetter;
pub use grace::wait_for_programs;
pub use pin::{detach_all, has_link, layouts};
pub use pinned::Pinned;
pub use run::RunResult;
pub use slow::{SlowPathView, Waiting};
pub use trace::{Traced, Tracer, TracerSource};

use cache::CacheReader;
use capacity::Capacities;
use pin::{Guard, PinDirectory};
use tables::{Kern, Tables};
use tc::Place;

type Result<T, E = DatapathError> = std::result::Result<T, E>;

#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Usually `/sys/fs/bpf/natgw`.
    pub bpf_dir: PathBuf,
    /// Name of the gateway.
    pub name: String,
    /// Capacity in sessions; must be the pinned one where sessions are adopted.
    pub sessions: u32,
    /// Some pool keeps endpoints: each session may have a binding.
    pub bindings: bool,
    /// Sessions are logged, and in bursts.
    pub records: bool,
    /// Gets the verifier's log if the kernel refuses a program.
    pub verifier_log: Option<PathBuf>,
}

/// What was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    Fresh,
    /// Maps of an earlier process, with this many sessions in them, live or resting.
    Adopted {
        sessions: u64,
    },
}

pub struct Datapath {
    bpf: Ebpf,
    /// Whether those that translate on XDP are loaded; they take as long as those for tc.
    xdp: bool,
    /// The programs for tc, from the moment on in which they are wanted.
    tc: Option<Ebpf>,
    verifier_log: Option<PathBuf>,
    pins: PinDirectory,
    name: String,
    generation: u32,
    tables: Tables,
    attached: BTreeMap<String, AttachMode>,
    guarded: BTreeSet<(Guard, String)>,
    slow_path: Option<slow::SlowPathDevice>,
    /// There from the moment on in which `control` says so.
    cache: Option<CacheReader>,
    bindings: u32,
}

impl Datapath {
    /// Loads the programs and makes the maps, or takes over those of an earlier process. Attaches
    /// nothing; links that are there keep their programs until [`Self::attach_xdp`] and
    /// [`Self::attach_guard`] update them and [`Self::retire_previous`] ends the rest.
    ///
    /// # Errors
    /// Each with its remedy: see [`DatapathError`]. What was pinned before stays as it was.
    pub fn open(options: &OpenOptions) -> Result<(Self, Opened)> {
        Self::open_for(options, AttachMode::Native)
    }

    /// [`Self::open`], with the programs for this mode only; others follow when they are wanted.
    ///
    /// # Errors
    /// As above.
    pub fn open_for(options: &OpenOptions, mode: AttachMode) -> Result<(Self, Opened)> {
        let xdp = mode.flags().is_some();
        let OpenOptions { bpf_dir, name, sessions, bindings, records, verifier_log } = options;
        let pins = PinDirectory::create(bpf_dir, name)?;
        let capacities = Capacities::new(*sessions, *bindings, *records);
        let load::Loaded { mut bpf, generation, adopted, bindings } =
            load::load(&pins, name, capacities, xdp, verifier_log.as_deref())?;
        let tables = Tables::take(&mut bpf)?;
        let mut datapath = Self {
            bpf,
            xdp,
            tc: None,
            verifier_log: verifier_log.clone(),
            pins,
            name: name.clone(),
            generation,
            tables,
            attached: BTreeMap::new(),
            guarded: BTreeSet::new(),
            slow_path: None,
            cache: None,
            bindings,
        };
        let mut control = datapath.control()?;
        let cache = CacheReader::open(&datapath.pins.path, &mut control)?;
        // Of an earlier process; the host's rules may have changed since.
        control.routing = 0;
        datapath.set_control(&control)?;
        datapath.cache = Some(cache);
        // An earlier process's device is gone, and its slot may be given to another interface.
        datapath.avoid_slow_path()?;
        let opened = if adopted {
            let counters = datapath.counters()?;
            let sessions = counters.sessions_created.saturating_sub(counters.sessions_ended);
            Opened::Adopted { sessions }
        } else {
            Opened::Fresh
        };
        Ok((datapath, opened))
    }

    /// [`Self::open`] without what an earlier process has left, of whatever layout and size. That
    /// stays attached until [`Self::retire_aside`].
    ///
    /// # Errors
    /// As above; then everything is as it was.
    pub fn open_cold(options: &OpenOptions, mode: AttachMode) -> Result<(Self, Opened)> {
        let OpenOptions { bpf_dir, name, .. } = options;
        PinDirectory::put_aside(bpf_dir, name)?;
        Self::open_for(options, mode).inspect_err(|_| {
            if let Err(error) = PinDirectory::put_back(bpf_dir, name) {
                log::warn!("{error}; run natgw detach --name {name}");
            }
        })
    }

    /// Takes off what [`Self::open_cold`] has left attached. The guard has to be on by then, and
    /// the entry program comes after it: an interface has room for one.
    ///
    /// # Errors
    /// As the kernel gives them.
    pub fn retire_aside(&self) -> Result<()> {
        self.pins.remove_aside(&self.name)
    }

    /// Puts the entry program on an interface, or updates the link that is there without a gap.
    ///
    /// # Errors
    /// [`DatapathError::Attach`] tells what is in the way and how to remove it.
    pub fn attach_xdp(&mut self, ifindex: u32, interface: &str, mode: AttachMode) -> Result<()> {
        match mode.flags() {
            Some(flags) => {
                self.load_xdp()?;
                attach::attach_xdp(&mut self.bpf, &self.pins, ifindex, interface, mode, flags)?;
                tc::detach(Place::Entry, &self.pins, &self.name, interface)?;
            }
            None => {
                self.load_tc()?;
                let (bpf, pins) = (tc_mut(&mut self.tc)?, &self.pins);
                let entry = load::classifier_mut(bpf, maps::ENTRY_PROGRAM)?;
                tc::attach(entry, Place::Entry, pins, &self.name, ifindex, interface)?;
                pin::remove_link(&self.pins.xdp_link(interface))?;
            }
        }
        self.attached.insert(interface.to_owned(), mode);
        Ok(())
    }

    fn load_xdp(&mut self) -> Result<()> {
        if !self.xdp {
            load::load_xdp(&mut self.bpf, self.verifier_log.as_deref())?;
            self.xdp = true;
        }
        Ok(())
    }

    /// Loads the programs for tc, once.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn load_tc(&mut self) -> Result<()> {
        if self.tc.is_none() {
            let log = self.verifier_log.as_deref();
            self.tc = Some(load::load_tc(&self.pins, self.generation, log)?);
        }
        Ok(())
    }

    /// Takes the entry program off an interface; sessions stay.
    ///
    /// # Errors
    /// As the kernel gives them. That the interface is gone is none.
    pub fn detach_xdp(&mut self, interface: &str) -> Result<()> {
        self.attached.remove(interface);
        tc::detach(Place::Entry, &self.pins, &self.name, interface)?;
        pin::remove_link(&self.pins.xdp_link(interface))
    }

    /// Interfaces that this process has attached, with their modes.
    #[must_use]
    pub fn attached(&self) -> Vec<(String, AttachMode)> {
        self.attached.iter().map(|(interface, mode)| (interface.clone(), *mode)).collect()
    }

    /// To be called once everything is attached: takes off what an earlier process left on other
    /// interfaces, pins the programs of this one, and lets go of the earlier ones.
    ///
    /// # Errors
    /// Where a pin cannot be removed or made.
    pub fn retire_previous(&mut self) -> Result<()> {
        for interface in self.pins.entry_interfaces()? {
            if !self.attached.contains_key(&interface) {
                self.detach_xdp(&interface)?;
            }
        }
        for guard in Guard::BOTH {
            for interface in self.pins.guard_interfaces(guard)? {
                if !self.guarded.contains(&(guard, interface.clone())) {
                    self.unguard(guard, &interface)?;
                }
            }
        }
        for generation in self.pins.stage_generations()? {
            if generation != self.generation {
                pin::remove(&self.pins.stages(generation))?;
                pin::remove(&self.pins.tc_stages(generation))?;
            }
        }
        let path = self.pins.program(maps::REAPER_PROGRAM);
        pin::remove(&path)?;
        pinned(load::xdp_mut(&mut self.bpf, maps::REAPER_PROGRAM)?.pin(&path), &path)?;
        let path = self.pins.program(maps::ENTRY_PROGRAM);
        pin::remove(&path)?;
        if self.xdp {
            pinned(load::xdp_mut(&mut self.bpf, maps::ENTRY_PROGRAM)?.pin(&path), &path)?;
        }
        for name in [maps::GUARD_PROGRAM, maps::INNER_GUARD_PROGRAM, maps::EMIT_PROGRAM] {
            let path = self.pins.program(name);
            pin::remove(&path)?;
            pinned(load::classifier_mut(&mut self.bpf, name)?.pin(&path), &path)?;
        }
        Ok(())
    }

    /// # Errors
    /// None is expected.
    pub fn control(&self) -> Result<Control> {
        let control = self.tables.control.get(&0, 0);
        control.map(|Kern(control)| control).map_err(map_error("read the control map"))
    }

    /// # Errors
    /// None is expected.
    pub fn set_control(&mut self, control: &Control) -> Result<()> {
        self.tables.control.set(0, Kern(*control), 0).map_err(map_error("write the control map"))
    }

    /// Makes the dataplane resolve its next hops anew: after a change of routes, neighbours or
    /// interfaces.
    ///
    /// # Errors
    /// None is expected.
    pub fn bump_epoch(&mut self) -> Result<()> {
        let mut control = self.control()?;
        control.epoch = next_epoch(control.epoch);
        self.set_control(&control)
    }

    /// Tells the dataplane whether the host's routing looks at addresses, interface and type of service alone.
    ///
    /// # Errors
    /// None is expected.
    pub fn set_routing(&mut self, by_addresses: bool) -> Result<()> {
        let mut control = self.control()?;
        control.routing = if by_addresses { routing::BY_ADDRESSES } else { 0 };
        self.set_control(&control)
    }

    /// Tells the dataplane that its daemon lives; at least every two seconds.
    ///
    /// # Errors
    /// None is expected.
    pub fn heartbeat(&mut self) -> Result<()> {
        let mut control = self.control()?;
        control.heartbeat = self.now()?;
        self.set_control(&control)
    }

    /// Totals over all CPUs since the maps were made.
    ///
    /// # Errors
    /// None is expected.
    pub fn counters(&self) -> Result<Counters> {
        let values = self.tables.counters.get(&0, 0).map_err(map_error("read the counters"))?;
        let mut sum: Counters = bytemuck::Zeroable::zeroed();
        for Kern(counters) in values.iter() {
            sum.merge(counters);
        }
        sum.settle();
        Ok(sum)
    }

    /// How often there was no port left, by public address: tcp, udp, icmp.
    ///
    /// # Errors
    /// None is expected.
    pub fn refused_ports(&self) -> Result<collections::HashMap<Ipv4Addr, [u64; 3]>> {
        let mut found = collections::HashMap::new();
        let addresses =
            tables::read_array(&self.tables.addresses, |it| !it.address.is_unspecified());
        for (slot, address) in addresses.map_err(map_error("read the addresses"))? {
            let Kern([tcp, udp, icmp, _]) = self
                .tables
                .refused_ports
                .get(&slot, 0)
                .map_err(map_error("read the refused ports"))?;
            found.insert(address.address.into(), [tcp, udp, icmp]);
        }
        Ok(found)
    }

    /// How long the counters have counted: the age of their pin, which outlives processes.
    ///
    /// # Errors
    /// None is expected.
    pub fn counted(&self) -> Result<Duration> {
        let pin = self.pins.map(maps::COUNTERS);
        let made = std::fs::metadata(&pin).and_then(|meta| meta.modified());
        let made =
            made.map_err(|error| DatapathError::call(format!("look at {}", pin.display()), error))?;
        Ok(made.elapsed().unwrap_or_default())
    }

    /// Current ticks, the unit of every time in the maps; wraps.
    ///
    /// # Errors
    /// None is expected.
    pub fn now(&self) -> Result<u32> {
        run::now(&self.bpf)
    }

    /// Sends a frame out of an interface of the gateway.
    ///
    /// # Errors
    /// Where the frame is longer than a page has room for (about 3,500 bytes) or shorter than its
    /// Ethernet header, or the interface is gone.
    pub fn emit_frame(&self, ifindex: u32, frame: &[u8]) -> Result<()> {
        run::emit(&self.bpf, ifindex, frame)
    }

    /// Runs the entry program on a frame; nothing is sent.
    ///
    /// # Errors
    /// Where the frame is shorter than its Ethernet header, or the interface does not exist.
    pub fn run_entry(&self, ifindex: u32, frame: &[u8]) -> Result<RunResult> {
        run::entry(&self.bpf, ifindex, frame)
    }

    /// The same by the programs for tc, once they are loaded. The action is one of tc's.
    ///
    /// # Errors
    /// As above.
    pub fn run_tc_entry(&self, ifindex: u32, frame: &[u8]) -> Result<RunResult> {
        run::tc_entry(self.tc.as_ref().ok_or_else(no_tc)?, ifindex, frame)
    }

    /// Endpoint-independent mappings that there is room for.
    #[must_use]
    pub const fn room_for_bindings(&self) -> u32 {
        self.bindings
    }

    /// From which the programs are loaded that tell what would become of a packet.
    #[must_use]
    pub fn tracer(&self) -> TracerSource {
        TracerSource::new(&self.pins)
    }

    /// What cleans the tables of hosts and permits.
    #[must_use]
    pub fn forgetter(&self) -> Forgetter {
        Forgetter::new(&self.pins.path)
    }

    /// Single entries of the session table, for another thread.
    ///
    /// # Errors
    /// None is expected.
    pub fn session_lookup(&self) -> Result<SessionLookup> {
        let path = self.pins.map(maps::SESSIONS);
        let map = MapData::from_pin(&path)
            .map_err(|error| DatapathError::bpf(format!("open {}", path.display()), error))?;
        let map = Map::from_map_data(map).map_err(map_error("use the session table"))?;
        let sessions = map.try_into().map_err(map_error("use the session table"))?;
        Ok(SessionLookup { sessions, cache: self.cache.clone() })
    }

    /// One entry of the session table.
    ///
    /// # Errors
    /// None is expected.
    pub fn session(&self, key: &FlowKey) -> Result<Option<SessionImage>> {
        look_up(&self.tables.sessions, self.cache.as_ref(), key)
    }

    /// The ring buffer of [`nat_common::event::Event`]s; the first caller gets it.
    pub fn events(&mut self) -> Option<RingBuf<MapData>> {
        self.tables.events.take()
    }

    /// The ring buffer of [`nat_common::record::FlowRecord`]s; the first caller gets it.
    pub fn records(&mut self) -> Option<RingBuf<MapData>> {
        self.tables.records.take()
    }

    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    pub(crate) fn tables_mut(&mut self) -> &mut Tables {
        &mut self.tables
    }
}

/// A reference of its own to the session table.
pub struct SessionLookup {
    sessions: HashMap<MapData, Kern<FlowKey>, Kern<SessionImage>>,
    cache: Option<CacheReader>,
}

impl SessionLookup {
    /// # Errors
    /// None is expected.
    pub fn get(&self, key: &FlowKey) -> Result<Option<SessionImage>> {
        look_up(&self.sessions, self.cache.as_ref(), key)
    }
}

fn look_up(
    sessions: &HashMap<MapData, Kern<FlowKey>, Kern<SessionImage>>,
    cache: Option<&CacheReader>,
    key: &FlowKey,
) -> Result<Option<SessionImage>> {
    match sessions.get(&Kern(*key), 0) {
        Ok(Kern(mut session)) => {
            if let Some(cache) = cache {
                cache.bring_up_to_date(key, &mut session);
            }
            Ok(Some(session))
        }
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(map_error("read a session")(error)),
    }
}

/// Never 0, below [`EPOCH_ALONE`](nat_common::rules::control::EPOCH_ALONE).
#[must_use]
pub(crate) fn next_epoch(epoch: u32) -> u32 {
    use nat_common::rules::control::EPOCH_ALONE;
    match (epoch & (EPOCH_ALONE - 1)) + 1 {
        EPOCH_ALONE => 1,
        next => next,
    }
}

/// 16 bits, never 0.
#[must_use]
pub(crate) fn next_generation(generation: u32) -> u32 {
    match (generation + 1) & 0xffff {
        0 => 1,
        next => next,
    }
}

/// Ticks per second: the kernel's jiffies, whose length the coarse clock's resolution is.
///
/// # Errors
/// Where the clock cannot be asked; none is expected.
pub fn ticks_per_second() -> std::io::Result<u32> {
    let mut resolution = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec.
    let result = unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut resolution) };
    if result != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let nanoseconds = resolution.tv_sec * 1_000_000_000 + resolution.tv_nsec;
    Ok(u32::try_from(1_000_000_000 / nanoseconds.max(1)).unwrap_or(1000).max(1))
}

fn tc_mut(tc: &mut Option<Ebpf>) -> Result<&mut Ebpf> {
    tc.as_mut().ok_or_else(no_tc)
}

fn no_tc() -> DatapathError {
    DatapathError::Missing { what: "loaded tc program", name: maps::ENTRY_PROGRAM.to_owned() }
}

pub(crate) fn map_error(what: &'static str) -> impl FnOnce(MapError) -> DatapathError {
    move |error| DatapathError::bpf(what, error)
}

fn pinned<E>(result: Result<(), E>, path: &Path) -> Result<()>
where
    E: std::error::Error + Send + Sync + 'static,
{
    result.map_err(|error| DatapathError::bpf(format!("pin {}", path.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_and_generations_advance_and_never_become_zero() {
        assert_eq!(next_epoch(0), 1);
        assert_eq!(next_epoch(7), 8);
        assert_eq!(next_epoch(0x07ff_ffff), 1);
        assert_eq!(next_epoch(0x0800_0007), 8, "an epoch of the dataplane's own is taken back");
        assert_eq!(next_generation(0), 1);
        assert_eq!(next_generation(0xffff), 1);
    }

    #[test]
    fn the_tick_is_one_of_the_lengths_that_linux_is_built_with() {
        let ticks = ticks_per_second().expect("the coarse clock");
        assert!([100, 250, 300, 1000].contains(&ticks), "{ticks} ticks per second");
    }
}
