//! Loading the BPF object: maps adopted or made, programs verified, stages linked.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{MapData, ProgramArray},
    programs::{Program, ProgramError, SchedClassifier, Xdp},
};
use aya_obj::Object;
use nat_common::maps;

use super::{
    capacity::Capacities,
    error::DatapathError,
    in_place,
    outgrown::{self, Outgrown},
    pin::{self, Definition, PINNED, PinDirectory},
    refused,
};

const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// The object that the build script made; empty where it was told to skip.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/natgw-dataplane"));

/// The same programs for tc.
static TC_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/natgw-tc"));

pub(super) struct Loaded {
    pub(super) bpf: Ebpf,
    pub(super) generation: u32,
    pub(super) adopted: bool,
    /// Endpoint-independent mappings that there is room for.
    pub(super) bindings: u32,
}

/// Loads the programs over the maps that are pinned, or over new ones; those for XDP if they are
/// wanted.
///
/// The programs get a stage table of their own, so that those of an earlier process run on
/// untouched until the links are updated.
pub(super) fn load(
    pins: &PinDirectory,
    name: &str,
    mut capacities: Capacities,
    xdp: bool,
    verifier_log: Option<&Path>,
) -> Result<Loaded, DatapathError> {
    if OBJECT.is_empty() {
        return Err(DatapathError::NoPrograms);
    }
    check_kernel()?;
    outgrown::restore(pins)?;
    let small = capacities.adopt(pins)?;
    pins.check(name, &definitions(&capacities)?)?;
    let mut outgrown = Outgrown::put_aside(pins, &small)?;
    capacities.enlarge(outgrown.maps());
    let adopted = pins.map(maps::SESSIONS).exists();
    let before: Vec<PathBuf> = PINNED.iter().map(|m| pins.map(m)).filter(|p| p.exists()).collect();
    let generation = pins.stage_generations()?.into_iter().max().unwrap_or(0).wrapping_add(1);

    let result = load_object(pins, &capacities, generation).and_then(|mut bpf| {
        load_programs(&mut bpf, verifier_log)?;
        if xdp {
            load_xdp(&mut bpf, verifier_log)?;
        }
        Ok(bpf)
    });
    match result {
        Ok(bpf) => {
            outgrown.hand_over()?;
            let bindings = capacities.of(maps::BINDINGS).unwrap_or(0) / 2;
            Ok(Loaded { bpf, generation, adopted, bindings })
        }
        Err(error) => {
            // What was there stays; what this attempt made goes.
            let made = PINNED.iter().map(|map| pins.map(map)).filter(|path| !before.contains(path));
            for path in made.chain([pins.stages(generation), pins.tc_stages(generation)]) {
                if let Err(error) = pin::remove(&path) {
                    log::warn!("{error}");
                }
            }
            Err(error)
        }
    }
}

/// What the object says of its maps, as the kernel will report them.
fn definitions(capacities: &Capacities) -> Result<BTreeMap<String, Definition>, DatapathError> {
    let object =
        Object::parse(OBJECT).map_err(|error| DatapathError::bpf("read the BPF object", error))?;
    let definition = |name: &String, map: &aya_obj::Map| Definition {
        kind: map.map_type(),
        key: map.key_size(),
        // Since Linux 5.8 an entry of a device map has room for a program too.
        value: if name == maps::EGRESS { 8 } else { map.value_size() },
        capacity: capacities.of(name).unwrap_or_else(|| map.max_entries()),
        flags: map.map_flags(),
    };
    let maps = object.maps.iter();
    Ok(maps.map(|(name, map)| (name.clone(), definition(name, map))).collect())
}

fn load_object(
    pins: &PinDirectory,
    capacities: &Capacities,
    generation: u32,
) -> Result<Ebpf, DatapathError> {
    let layout = refused::Layout::find();
    let mut loader = EbpfLoader::new();
    if let Some(layout) = &layout {
        layout.set(&mut loader);
    }
    loader.map_pin_path(maps::STAGES, pins.stages(generation));
    for (map, capacity) in capacities.iter() {
        loader.map_max_entries(map, capacity);
    }
    let mut bpf = in_place::load(&mut loader, OBJECT, pins, |error| match error {
        EbpfError::MapError(error) => DatapathError::bpf("create the BPF maps", error),
        error => DatapathError::bpf("load the BPF object", error),
    })?;
    if layout.is_some() {
        refused::attach(&mut bpf);
    }
    Ok(bpf)
}

fn load_programs(bpf: &mut Ebpf, verifier_log: Option<&Path>) -> Result<(), DatapathError> {
    let name = maps::REAPER_PROGRAM;
    let reaper = xdp_mut(bpf, name)?;
    persist(|| reaper.load()).map_err(|error| rejected(name, error, verifier_log))?;
    for name in [maps::GUARD_PROGRAM, maps::INNER_GUARD_PROGRAM, maps::EMIT_PROGRAM] {
        let program = classifier_mut(bpf, name)?;
        persist(|| program.load()).map_err(|error| rejected(name, error, verifier_log))?;
    }
    Ok(())
}

/// The programs that translate on XDP.
pub(super) fn load_xdp(bpf: &mut Ebpf, verifier_log: Option<&Path>) -> Result<(), DatapathError> {
    let others = [maps::ENTRY_PROGRAM, maps::RETURN_PROGRAM];
    let plain = maps::PLAIN_STAGE_PROGRAMS;
    let others: Vec<&str> = others.into_iter().chain(plain.iter().map(|(_, name)| *name)).collect();
    // The table is pinned: it needs nobody to hold it.
    let mut stages = load_stages(bpf, Hook::Xdp, &others, verifier_log)?;
    for &(index, name) in plain {
        link_stage(bpf, Hook::Xdp, &mut stages, index, name)?;
    }
    Ok(())
}

/// The programs for tc, over the maps that [`load`] has pinned, with a stage table of their own.
pub(super) fn load_tc(
    pins: &PinDirectory,
    generation: u32,
    verifier_log: Option<&Path>,
) -> Result<Ebpf, DatapathError> {
    let mut loader = EbpfLoader::new();
    loader.map_pin_path(maps::STAGES, pins.tc_stages(generation));
    let mut bpf = in_place::load(&mut loader, TC_OBJECT, pins, |error| {
        DatapathError::bpf("load the BPF object for tc", error)
    })?;
    let others = [maps::ENTRY_PROGRAM, maps::RETURN_PROGRAM];
    load_stages(&mut bpf, Hook::Tc, &others, verifier_log)?;
    Ok(bpf)
}

/// What the programs that translate are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    Xdp,
    Tc,
}

impl Hook {
    fn load(
        self,
        bpf: &mut Ebpf,
        name: &str,
        verifier_log: Option<&Path>,
    ) -> Result<(), DatapathError> {
        let loaded = match self {
            Self::Xdp => {
                let program = xdp_mut(bpf, name)?;
                persist(|| program.load())
            }
            Self::Tc => {
                let program = classifier_mut(bpf, name)?;
                persist(|| program.load())
            }
        };
        loaded.map_err(|error| rejected(name, error, verifier_log))
    }
}

/// The stages, linked to each other, and other programs of the same object and hook. The kernel empties
/// a stage table that is not pinned as soon as nobody holds it.
pub(super) fn load_stages(
    bpf: &mut Ebpf,
    hook: Hook,
    others: &[&str],
    verifier_log: Option<&Path>,
) -> Result<ProgramArray<MapData>, DatapathError> {
    let names = maps::STAGE_PROGRAMS.iter().map(|(_, name)| *name);
    for name in names.chain(others.iter().copied()) {
        hook.load(bpf, name, verifier_log)?;
    }
    let mut stages = stage_table(bpf)?;
    for &(index, name) in maps::STAGE_PROGRAMS {
        link_stage(bpf, hook, &mut stages, index, name)?;
    }
    Ok(stages)
}

fn stage_table(bpf: &mut Ebpf) -> Result<ProgramArray<MapData>, DatapathError> {
    let missing = || DatapathError::Missing { what: "map", name: maps::STAGES.to_owned() };
    let stages = bpf.take_map(maps::STAGES).ok_or_else(missing)?;
    ProgramArray::try_from(stages).map_err(|error| DatapathError::bpf("use the stage table", error))
}

/// Puts a loaded program into the stage table.
pub(super) fn link_stage(
    bpf: &Ebpf,
    hook: Hook,
    stages: &mut ProgramArray<MapData>,
    index: u32,
    name: &str,
) -> Result<(), DatapathError> {
    let program = match hook {
        Hook::Xdp => xdp(bpf, name)?.fd(),
        Hook::Tc => classifier(bpf, name)?.fd(),
    };
    program.map_err(Box::from).and_then(|program| Ok(stages.set(index, program, 0)?)).map_err(
        |source: Box<dyn std::error::Error + Send + Sync>| DatapathError::Bpf {
            what: format!("link stage {name}"),
            source,
        },
    )
}

/// A signal interrupts the verifier, which then asks to be called again.
fn persist(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    const TRIES: u32 = 5;
    let interrupted = |result: &Result<(), ProgramError>| {
        matches!(result, Err(ProgramError::LoadError { io_error, .. })
            if io_error.raw_os_error() == Some(libc::EAGAIN))
    };
    let mut result = load();
    for _ in 1..TRIES {
        if !interrupted(&result) {
            break;
        }
        result = load();
    }
    result
}

pub(super) fn xdp_mut<'a>(bpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp, DatapathError> {
    match bpf.program_mut(name) {
        Some(Program::Xdp(program)) => Ok(program),
        _ => Err(DatapathError::Missing { what: "XDP program", name: name.to_owned() }),
    }
}

pub(super) fn xdp<'a>(bpf: &'a Ebpf, name: &str) -> Result<&'a Xdp, DatapathError> {
    match bpf.program(name) {
        Some(Program::Xdp(program)) => Ok(program),
        _ => Err(DatapathError::Missing { what: "XDP program", name: name.to_owned() }),
    }
}

pub(super) fn classifier_mut<'a>(
    bpf: &'a mut Ebpf,
    name: &str,
) -> Result<&'a mut SchedClassifier, DatapathError> {
    match bpf.program_mut(name) {
        Some(Program::SchedClassifier(program)) => Ok(program),
        _ => Err(DatapathError::Missing { what: "tc program", name: name.to_owned() }),
    }
}

pub(super) fn classifier<'a>(
    bpf: &'a Ebpf,
    name: &str,
) -> Result<&'a SchedClassifier, DatapathError> {
    match bpf.program(name) {
        Some(Program::SchedClassifier(program)) => Ok(program),
        _ => Err(DatapathError::Missing { what: "tc program", name: name.to_owned() }),
    }
}

/// One line for the user, the verifier's hundreds into a file.
fn rejected(program: &str, error: ProgramError, log_file: Option<&Path>) -> DatapathError {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return DatapathError::bpf(format!("load program {program}"), error);
    };
    if matches!(io_error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
        && let Some(missing) = super::error::missing_capabilities()
    {
        let what = format!("load program {program}");
        return DatapathError::MissingCapability { what, missing };
    }
    let text = verifier_log.to_string();
    log::debug!("verifier log of {program}:\n{text}");
    let log = log_file.filter(|path| match fs::write(path, &text) {
        Ok(()) => true,
        Err(error) => {
            log::warn!("cannot write the verifier's log to {}: {error}", path.display());
            false
        }
    });
    let reason = match verdict_line(&text) {
        Some(line) => format!("{line} ({io_error})"),
        None => io_error.to_string(),
    };
    DatapathError::Rejected { program: program.to_owned(), reason, log: log.map(Path::to_owned) }
}

/// The verifier says why in the last line that is not a statistic.
fn verdict_line(log: &str) -> Option<&str> {
    const STATISTICS: [&str; 4] = ["processed ", "verification time ", "stack depth ", "from "];
    log.lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty() && !STATISTICS.iter().any(|word| line.starts_with(word)))
}

fn check_kernel() -> Result<(), DatapathError> {
    let name = nix::sys::utsname::uname()
        .map_err(|error| DatapathError::call("ask for the kernel's version", error.into()))?;
    let release = name.release().to_string_lossy().into_owned();
    match kernel_version(&release) {
        Some(version) if version < OLDEST_KERNEL => Err(DatapathError::KernelTooOld { release }),
        _ => Ok(()),
    }
}

/// "6.1.0-28-cloud-amd64" is (6, 1).
pub(super) fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_understood_and_nonsense_is_not() {
        assert_eq!(kernel_version("6.1.0-28-cloud-amd64"), Some((6, 1)));
        assert_eq!(kernel_version("5.15.167.4-microsoft-standard"), Some((5, 15)));
        assert_eq!(kernel_version("6.18-rc1"), Some((6, 18)));
        assert_eq!(kernel_version("unknown"), None);
    }

    #[test]
    fn an_interrupted_load_is_tried_again_and_a_refused_one_is_not() {
        let failure = |code| {
            let io_error = std::io::Error::from_raw_os_error(code);
            let verifier_log = aya_obj::VerifierLog::new(String::new());
            ProgramError::LoadError { io_error, verifier_log }
        };
        let mut calls = 0;
        let result = persist(|| {
            calls += 1;
            if calls < 3 { Err(failure(libc::EAGAIN)) } else { Ok(()) }
        });
        assert!(result.is_ok());
        assert_eq!(calls, 3);

        calls = 0;
        let result = persist(|| {
            calls += 1;
            Err(failure(libc::EACCES))
        });
        assert!(result.is_err());
        assert_eq!(calls, 1);
    }

    #[test]
    fn the_verifiers_reason_is_found_above_its_statistics() {
        let log = "0: (79) r6 = *(u64 *)(r1 +0)\n\
                   R1 invalid mem access 'scalar'\n\
                   verification time 34 usec\n\
                   stack depth 0\n\
                   processed 1 insns (limit 1000000) max_states_per_insn 0\n";
        assert_eq!(verdict_line(log), Some("R1 invalid mem access 'scalar'"));
        assert_eq!(verdict_line(""), None);
    }
}
