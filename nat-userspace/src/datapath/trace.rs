//! The dataplane once more, over the same maps, to be asked what it would do with a packet.
//!
//! Its programs are compiled from the same stages, with a binding to the maps that writes into
//! drafts of its own (`nat-ebpf/src/mode/trace.rs`). None of them is attached anywhere.

use std::path::Path;

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, HashMap, MapData, MapError, PerCpuArray, PerCpuValues, ProgramArray},
};
use bytemuck::Zeroable as _;
use nat_common::{
    counters::Counters,
    flow::FlowKey,
    maps,
    port::{BusyKey, PortSetImage},
    session::{BindingImage, BindingKey, HostImage, HostKey, SessionImage},
    stage::{FragmentEntry, FragmentKey, Handoff},
    trace::Log,
};

use super::{
    batch::{Batches, SessionBatches},
    error::DatapathError,
    in_place,
    load::{self, Hook},
    pin::PinDirectory,
    run::{self, RunResult},
    tables::{Kern, take},
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/natgw-trace"));

/// Where the maps are; loading takes its time (about a second), and goes without the dataplane.
#[derive(Debug, Clone)]
pub struct TracerSource {
    pins: PinDirectory,
}

/// The programs that only tell, loaded.
pub struct Tracer {
    bpf: Ebpf,
    _stages: ProgramArray<MapData>,
    log: Array<MapData, Kern<Log>>,
    handoff: PerCpuArray<MapData, Kern<Handoff>>,
    counters: PerCpuArray<MapData, Kern<Counters>>,
    sessions: SessionBatches,
    drafts: Drafts,
    cpus: usize,
}

struct Drafts {
    sessions: HashMap<MapData, Kern<FlowKey>, Kern<SessionImage>>,
    bindings: HashMap<MapData, Kern<BindingKey>, Kern<BindingImage>>,
    hosts: HashMap<MapData, Kern<HostKey>, Kern<HostImage>>,
    busy: HashMap<MapData, Kern<BusyKey>, Kern<PortSetImage>>,
    fragments: HashMap<MapData, Kern<FragmentKey>, Kern<FragmentEntry>>,
}

/// What would become of a packet.
pub struct Traced {
    /// The answers that decided, and the verdict.
    pub log: Box<Log>,
    /// What would be done with the frame, and the frame as it would leave.
    pub run: RunResult,
}

impl TracerSource {
    pub(super) fn new(pins: &PinDirectory) -> Self {
        Self { pins: pins.clone() }
    }

    /// # Errors
    /// Where the kernel refuses; none is expected where it took the dataplane's own programs.
    pub fn load(&self) -> Result<Tracer, DatapathError> {
        if OBJECT.is_empty() {
            return Err(DatapathError::NoPrograms);
        }
        let mut loader = EbpfLoader::new();
        let mut bpf = in_place::load(&mut loader, OBJECT, &self.pins, |error| match error {
            EbpfError::MapError(error) => DatapathError::bpf("open the maps to trace in", error),
            error => DatapathError::bpf("load the programs that trace", error),
        })?;
        let stages = load::load_stages(&mut bpf, Hook::Xdp, &[maps::ENTRY_PROGRAM], None)?;
        Tracer::new(bpf, stages, &self.pins.path)
    }
}

impl Tracer {
    fn new(
        mut bpf: Ebpf,
        stages: ProgramArray<MapData>,
        pins: &Path,
    ) -> Result<Self, DatapathError> {
        Ok(Self {
            log: take(&mut bpf, "trace_log")?,
            handoff: take(&mut bpf, maps::HANDOFF)?,
            counters: take(&mut bpf, maps::COUNTERS)?,
            sessions: Batches::open(pins, maps::SESSIONS)?,
            drafts: Drafts {
                sessions: take(&mut bpf, "draft_sessions")?,
                bindings: take(&mut bpf, "draft_bindings")?,
                hosts: take(&mut bpf, "draft_hosts")?,
                busy: take(&mut bpf, "draft_busy")?,
                fragments: take(&mut bpf, "draft_fragments")?,
            },
            cpus: aya::util::nr_cpus()
                .map_err(|(_, error)| DatapathError::call("count the CPUs", error))?,
            bpf,
            _stages: stages,
        })
    }

    /// What the dataplane would do now with a frame that came by an interface. Changes nothing.
    /// The limit on the gateway's own answers, which is each CPU's and moment's, counts as unused.
    ///
    /// # Errors
    /// Where the frame is shorter than its Ethernet header, or the interface does not exist.
    pub fn trace(&mut self, ifindex: u32, frame: &[u8]) -> Result<Traced, DatapathError> {
        let failed = |error| DatapathError::bpf("set the stage for a trace", error);
        self.drafts.clear().map_err(failed)?;
        let idle = vec![Kern(Handoff::default()); self.cpus];
        let idle = PerCpuValues::try_from(idle)
            .map_err(|error| DatapathError::call("set the stage for a trace", error))?;
        self.handoff.set(0, idle, 0).map_err(failed)?;
        let full = u32::from(self.is_full()?);
        self.log.set(0, Kern(Log { full, ..Log::zeroed() }), 0).map_err(failed)?;
        let run = run::entry(&self.bpf, ifindex, frame)?;
        let Kern(log) = self.log.get(&0, 0).map_err(failed)?;
        Ok(Traced { log: Box::new(log), run })
    }

    /// Whether the session table has no room. Ended sessions may rest a port in it, so that the
    /// counters alone tell only whether there is enough room for all that ever were.
    fn is_full(&mut self) -> Result<bool, DatapathError> {
        let counters = self.counters.get(&0, 0);
        let counters = counters.map_err(|error| DatapathError::bpf("read the counters", error))?;
        let sum = |of: fn(&Counters) -> u64| {
            counters.iter().fold(0_u64, |sum, Kern(it)| sum.wrapping_add(of(it)))
        };
        let (created, ended) = (sum(|it| it.sessions_created), sum(|it| it.sessions_ended));
        let capacity = u64::from(self.sessions.capacity()?);
        if created.saturating_mul(2).saturating_sub(ended) < capacity {
            return Ok(false);
        }
        let mut entries = 0;
        self.sessions.rewind();
        while let Some(batch) = self.sessions.next_batch()? {
            entries += batch.len() as u64;
        }
        Ok(entries >= capacity)
    }
}

impl Drafts {
    fn clear(&mut self) -> Result<(), MapError> {
        fn clear<K: aya::Pod, V: aya::Pod>(
            map: &mut HashMap<MapData, K, V>,
        ) -> Result<(), MapError> {
            let keys: Vec<K> = map.keys().collect::<Result<_, _>>()?;
            keys.iter().try_for_each(|key| map.remove(key))
        }
        clear(&mut self.sessions)?;
        clear(&mut self.bindings)?;
        clear(&mut self.hosts)?;
        clear(&mut self.busy)?;
        clear(&mut self.fragments)
    }
}
