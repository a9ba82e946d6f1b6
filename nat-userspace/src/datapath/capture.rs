//! The dataplane once more, with programs that show every packet (`nat-ebpf/src/mode/capture.rs`).
//! They are given to the links for the time of a capture, as an upgrade would be, and cost nothing
//! at any other time.

use std::path::PathBuf;

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, MapData, PerCpuArray, RingBuf},
};
use nat_common::{
    capture::{self, Wanted},
    maps,
};

use super::{
    AttachMode, Datapath, Result, attach,
    error::DatapathError,
    in_place,
    load::{self, Hook},
    pin::{self, PinDirectory},
    tables::{Kern, take},
    tc::{self, Place},
    tc_mut,
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/natgw-capture"));
static TC_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/natgw-tc-capture"));

/// Where the maps are; loading takes its time (about a second), and goes without the dataplane.
#[derive(Debug, Clone)]
pub struct CapturerSource {
    pins: PinDirectory,
    hook: Hook,
}

/// The programs that show packets, loaded. They keep a pin while they live: without its stages a
/// program that is still attached, its process being dead, would drop what it gets.
pub struct Capturer {
    bpf: Ebpf,
    hook: Hook,
    wanted: Array<MapData, Kern<Wanted>>,
    lost: PerCpuArray<MapData, u64>,
    stages: PathBuf,
}

/// Packets as the programs show them: see [`capture::Head`].
pub type Packets = RingBuf<MapData>;

impl CapturerSource {
    /// # Errors
    /// Where the kernel refuses; none is expected where it took the dataplane's own programs.
    pub fn load(&self) -> Result<(Capturer, Packets)> {
        if OBJECT.is_empty() {
            return Err(DatapathError::NoPrograms);
        }
        let generation = self.pins.stage_generations()?.into_iter().max().unwrap_or(0);
        let generation = generation.wrapping_add(1);
        let stages = match self.hook {
            Hook::Xdp => self.pins.stages(generation),
            Hook::Tc => self.pins.tc_stages(generation),
        };
        let loaded = self.load_with(stages.clone());
        if loaded.is_err() {
            pin::remove(&stages)?;
        }
        loaded
    }

    fn load_with(&self, stages: PathBuf) -> Result<(Capturer, Packets)> {
        let mut loader = EbpfLoader::new();
        loader.map_pin_path(maps::STAGES, &stages);
        let object = match self.hook {
            Hook::Xdp => OBJECT,
            Hook::Tc => TC_OBJECT,
        };
        let mut bpf = in_place::load(&mut loader, object, &self.pins, |error| match error {
            EbpfError::MapError(error) => DatapathError::bpf("open the maps to capture in", error),
            error => DatapathError::bpf("load the programs that capture", error),
        })?;
        let others = [maps::ENTRY_PROGRAM, maps::RETURN_PROGRAM, capture::PROGRAM];
        let mut table = load::load_stages(&mut bpf, self.hook, &others, None)?;
        let last = (maps::stage::CAPTURED, capture::PROGRAM);
        load::link_stage(&bpf, self.hook, &mut table, last.0, last.1)?;
        let packets = take(&mut bpf, capture::RING)?;
        let wanted = take(&mut bpf, capture::WANTED)?;
        let lost = take(&mut bpf, capture::LOST)?;
        Ok((Capturer { bpf, hook: self.hook, wanted, lost, stages }, packets))
    }
}

impl Capturer {
    /// Whether they are those for tc.
    #[must_use]
    pub const fn is_tc(&self) -> bool {
        matches!(self.hook, Hook::Tc)
    }

    /// Which packets are shown, from now on.
    ///
    /// # Errors
    /// None is expected.
    pub fn want(&mut self, wanted: Wanted) -> Result<()> {
        let set = self.wanted.set(0, Kern(wanted), 0);
        set.map_err(|error| DatapathError::bpf("say what to capture", error))
    }

    /// Packets that were to be shown and found no room in the ring.
    ///
    /// # Errors
    /// None is expected.
    pub fn lost(&self) -> Result<u64> {
        let lost = self.lost.get(&0, 0);
        let lost = lost.map_err(|error| DatapathError::bpf("count what was lost", error))?;
        Ok(lost.iter().sum())
    }
}

impl Drop for Capturer {
    fn drop(&mut self) {
        if let Err(error) = pin::remove(&self.stages) {
            log::warn!("{error}");
        }
    }
}

impl Datapath {
    /// From which the programs are loaded that show packets: for the hook that translates.
    #[must_use]
    pub fn capturer(&self) -> CapturerSource {
        let tc = self.attached.values().any(|mode| *mode == AttachMode::Tc);
        CapturerSource { pins: self.pins.clone(), hook: if tc { Hook::Tc } else { Hook::Xdp } }
    }

    /// Gives every link the programs that show packets. What it gave them before an error stays
    /// until [`Self::end_capture`].
    ///
    /// # Errors
    /// As the kernel gives them.
    pub fn start_capture(&mut self, capturer: &mut Capturer) -> Result<()> {
        let Capturer { bpf, hook, .. } = capturer;
        for (interface, mode) in &self.attached {
            match mode {
                AttachMode::Tc if *hook == Hook::Tc => {
                    let program = load::classifier_mut(bpf, maps::ENTRY_PROGRAM)?;
                    tc::swap(program, Place::Entry, &self.pins, &self.name, interface)?;
                }
                AttachMode::Native | AttachMode::Generic if *hook == Hook::Xdp => {
                    attach::swap_xdp(bpf, &self.pins, interface)?;
                }
                // The gateway has taken the other hook since these were loaded.
                _ => return Err(DatapathError::OtherHook),
            }
        }
        self.swap_slow_path(Some(bpf))
    }

    /// Gives every link its own programs again.
    ///
    /// # Errors
    /// The first one; the other links have their programs all the same.
    pub fn end_capture(&mut self) -> Result<()> {
        let mut result = self.swap_slow_path(None);
        for (interface, mode) in &self.attached {
            let swapped = match mode {
                AttachMode::Tc => tc_mut(&mut self.tc)
                    .and_then(|bpf| load::classifier_mut(bpf, maps::ENTRY_PROGRAM))
                    .and_then(|it| tc::swap(it, Place::Entry, &self.pins, &self.name, interface)),
                _ => attach::swap_xdp(&mut self.bpf, &self.pins, interface),
            };
            result = result.and(swapped);
        }
        result
    }
}
