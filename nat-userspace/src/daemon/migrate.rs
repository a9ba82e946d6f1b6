//! `natgw migrate`: sessions that another version has pinned, for this one to adopt.

use anyhow::{Result, bail};
use nat_common::maps::LAYOUT;

use super::{DetachOptions, detach::pinned_in};
use crate::{api::instance::Instance, datapath};

/// Layouts that this version knows how to convert. Each new `LAYOUT` adds its predecessor.
const CONVERTIBLE: &[u32] = &[];

/// Says what there is to do; a running daemon is in the way of it.
///
/// # Errors
/// What is pinned cannot be converted, or a daemon of the name runs.
pub fn migrate(options: &DetachOptions) -> Result<()> {
    let DetachOptions { name, state_dir, .. } = options;
    if !state_dir.exists() {
        log::info!("nothing of gateway \"{name}\" is here; there is nothing to migrate");
        return Ok(());
    }
    let _lock = Instance::claim(state_dir, name)?;
    let found = datapath::layouts(&pinned_in(options)?, name)?;
    let current = format!("v{LAYOUT}");
    let others: Vec<&String> = found.iter().filter(|layout| **layout != current).collect();
    match others.as_slice() {
        [] if found.is_empty() => log::info!("nothing is pinned; there is nothing to migrate"),
        [] => log::info!("what is pinned is of this version already; natgw run adopts it"),
        [other, ..] => bail!(
            "the sessions of gateway \"{name}\" are of layout {other}, and this version can \
             convert {}; go back to the version that made them, or end them with natgw run --cold \
             --name {name}",
            known()
        ),
    }
    Ok(())
}

fn known() -> String {
    match CONVERTIBLE {
        [] => "none".to_owned(),
        list => list.iter().map(|layout| format!("v{layout}")).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_sessions_are_refused_with_both_ways_on_and_own_ones_need_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let bpf_dir = directory.path().join("bpf");
        let options = DetachOptions {
            name: "gw".to_owned(),
            state_dir: directory.path().join("run"),
            bpf_dir: Some(bpf_dir.clone()),
        };
        migrate(&options).expect("nothing is there");
        std::fs::create_dir_all(&options.state_dir).expect("a directory");
        std::fs::create_dir_all(bpf_dir.join(format!("gw/v{LAYOUT}"))).expect("a directory");
        migrate(&options).expect("its own");
        std::fs::create_dir(bpf_dir.join("gw/v9999")).expect("a directory");
        let refusal = migrate(&options).expect_err("foreign").to_string();
        assert!(refusal.contains("layout v9999"), "{refusal}");
        assert!(refusal.contains("natgw run --cold --name gw"), "{refusal}");
        let _running = Instance::claim(&options.state_dir, "gw").expect("the lock");
        let refusal = migrate(&options).expect_err("a daemon").to_string();
        assert!(refusal.contains("already running"), "{refusal}");
    }
}
