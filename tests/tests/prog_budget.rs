//! What the programs cost the verifier, against the budget of this kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use anyhow::{Context as _, Result};
use aya::{maps::MapInfo, programs::loaded_programs};
use nat_common::maps;
use nat_tests::{
    generator::rules,
    kernel::{Arms, Kernel},
};

/// Instructions that the verifier walked through, by kernel and program.
const BUDGET: &str = include_str!("../budget.toml");
/// The kernel refuses a program beyond it.
const LIMIT: u32 = 1_000_000;

/// Tables of the budget: the dataplane, its programs for tc, and those of `natgw trace`, which have
/// the same names.
const PARTS: [&str; 3] = ["", " tc", " trace"];

/// The kernel cuts names at 15 bytes.
fn cut(name: &str) -> &str {
    &name[..name.len().min(15)]
}

/// Programs that use a pinned map of this gateway, but for `known` ones.
fn programs_of(kernel: &Kernel, known: &BTreeSet<u32>) -> Result<BTreeMap<u32, (String, u32)>> {
    let mut pinned = BTreeSet::new();
    for file in std::fs::read_dir(kernel.directory())? {
        // Programs and links are pinned there, too.
        pinned.extend(MapInfo::from_pin(file?.path()).map(|map| map.id()));
    }
    let mut walked = BTreeMap::new();
    for program in loaded_programs() {
        // One of another process may end while the list is read.
        let Ok(program) = program else { continue };
        let Some(uses) = program.map_ids()? else { continue };
        let Some(name) = program.name_as_str() else { continue };
        if known.contains(&program.id()) || !uses.iter().any(|id| pinned.contains(id)) {
            continue;
        }
        let count = program.verified_instruction_count().context("Linux 5.16 tells the count")?;
        walked.insert(program.id(), (name.to_owned(), count));
    }
    Ok(walked)
}

/// Programs of this process's own gateway, by part.
fn walked() -> Result<[BTreeMap<String, u32>; 3]> {
    let mut kernel = Kernel::start(Arms::Two, "", &rules(""), 1024)?;
    // Not on kernels before 6.4.
    let has_backstop = kernel.datapath.attach_backstop().is_ok();
    let dataplane = programs_of(&kernel, &BTreeSet::new())?;
    let mut known: BTreeSet<u32> = dataplane.keys().copied().collect();
    kernel.datapath.load_tc()?;
    let tc = programs_of(&kernel, &known)?;
    known.extend(tc.keys());
    let _tracer = kernel.datapath.tracer().load()?;
    let tracer = programs_of(&kernel, &known)?;
    let walked = [dataplane, tc, tracer].map(|programs| programs.into_values().collect());
    let [dataplane, ..]: &[BTreeMap<String, u32>; 3] = &walked;
    assert_eq!(has_backstop, dataplane.contains_key(cut(maps::BACKSTOP_PROGRAM)));
    Ok(walked)
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn no_program_costs_the_verifier_a_tenth_more_than_its_budget() -> Result<()> {
    let walked = walked()?;
    let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let series: Vec<&str> = release.split('.').take(2).collect();
    let series = series.join(".");
    let mut table = String::new();
    for (part, walked) in PARTS.iter().zip(&walked) {
        writeln!(table, "[\"{series}{part}\"]")?;
        for (name, count) in walked {
            writeln!(table, "{name} = {count}")?;
        }
    }
    println!("instructions walked by the verifier of {release}:\n{table}");

    let stages = maps::STAGE_PROGRAMS.iter().map(|(_, name)| *name);
    let stages: Vec<&str> = stages.chain([maps::ENTRY_PROGRAM]).collect();
    let alone = [maps::REAPER_PROGRAM, maps::GUARD_PROGRAM, maps::INNER_GUARD_PROGRAM];
    for (name, walked) in stages
        .iter()
        .chain(&alone)
        .chain(maps::PLAIN_STAGE_PROGRAMS.iter().map(|(_, name)| name))
        .map(|name| (name, &walked[0]))
        .chain(stages.iter().map(|name| (name, &walked[1])))
        .chain(stages.iter().map(|name| (name, &walked[2])))
    {
        assert!(walked.contains_key(cut(name)), "{name} is not loaded: {table}");
    }
    let budget: BTreeMap<String, BTreeMap<String, u32>> = toml::from_str(BUDGET)?;
    let mut over = String::new();
    for (part, walked) in PARTS.iter().zip(&walked) {
        let budget = budget.get(&format!("{series}{part}"));
        for (name, count) in walked {
            // A kernel without a table of its own has the verifier's limit only, with room to spare.
            let allowed = match budget {
                Some(budget) => {
                    let budget = budget.get(name).copied().unwrap_or(0);
                    budget + budget / 10
                }
                None => LIMIT / 10 * 9,
            };
            if *count > allowed {
                writeln!(over, "{name}{part}: {count} instructions, {allowed} are allowed")?;
            }
        }
    }
    assert!(over.is_empty(), "make them cheaper, or raise tests/budget.toml:\n{over}\n{table}");
    Ok(())
}
