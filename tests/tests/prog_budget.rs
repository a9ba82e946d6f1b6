//! What the programs cost the verifier, against the budget of this kernel.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::{Context as _, Result};
use aya::{maps::loaded_maps, programs::loaded_programs};
use nat_common::maps;
use nat_tests::{
    generator::rules,
    kernel::{Arms, Kernel},
};

/// Instructions that the verifier walked through, by kernel and program.
const BUDGET: &str = include_str!("../budget.toml");
/// The kernel refuses a program beyond it.
const LIMIT: u32 = 1_000_000;

/// Programs of this process's own gateway: those that use a map which it has made.
fn walked() -> Result<BTreeMap<String, u32>> {
    let known: Vec<u32> = loaded_maps().filter_map(|map| Some(map.ok()?.id())).collect();
    let _kernel = Kernel::start(Arms::Two, "", &rules(""), 1024)?;
    let mut walked = BTreeMap::new();
    for program in loaded_programs() {
        // One of another process may end while the list is read.
        let Ok(program) = program else { continue };
        let Some(uses) = program.map_ids()? else { continue };
        let Some(name) = program.name_as_str() else { continue };
        if uses.is_empty() || uses.iter().any(|id| known.contains(id)) || !name.starts_with("natgw")
        {
            continue;
        }
        let count = program.verified_instruction_count().context("Linux 5.16 tells the count")?;
        walked.insert(name.to_owned(), count);
    }
    Ok(walked)
}

#[test]
#[ignore = "needs root: cargo xtask test prog"]
fn no_program_costs_the_verifier_a_tenth_more_than_its_budget() -> Result<()> {
    let walked = walked()?;
    let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    let series: Vec<&str> = release.split('.').take(2).collect();
    let series = series.join(".");
    let mut table = format!("[\"{series}\"]\n");
    for (name, count) in &walked {
        writeln!(table, "{name} = {count}")?;
    }
    println!("instructions walked by the verifier of {release}:\n{table}");

    // The kernel cuts names at 15 bytes.
    let expected = maps::STAGE_PROGRAMS.iter().map(|(_, name)| *name);
    for name in expected.chain([maps::ENTRY_PROGRAM, maps::REAPER_PROGRAM, maps::GUARD_PROGRAM]) {
        let name = &name[..name.len().min(15)];
        assert!(walked.contains_key(name), "{name} is not loaded: {table}");
    }
    let budget: BTreeMap<String, BTreeMap<String, u32>> = toml::from_str(BUDGET)?;
    let mut over = String::new();
    for (name, count) in &walked {
        // A kernel without a table of its own has the verifier's limit only, with room to spare.
        let allowed = match budget.get(&series) {
            Some(budget) => {
                let budget = budget.get(name).copied().unwrap_or(0);
                budget + budget / 10
            }
            None => LIMIT / 10 * 9,
        };
        if *count > allowed {
            writeln!(over, "{name}: {count} instructions, {allowed} are allowed")?;
        }
    }
    assert!(over.is_empty(), "make them cheaper, or raise tests/budget.toml:\n{over}\n{table}");
    Ok(())
}
