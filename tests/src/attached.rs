//! What is attached to the interfaces of this thread's network namespace, as the tools see it.

use std::{collections::BTreeSet, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType, links::PinnedLink};

/// What a program of the host's says.
///
/// # Errors
/// Where it fails, with what it said of that.
pub fn run(program: &str, arguments: &str) -> Result<String> {
    let output = Command::new(program).args(arguments.split_whitespace()).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments}: {error}");
    Ok(String::from_utf8(output.stdout)?)
}

/// # Errors
/// Where there is no such interface.
pub fn index(interface: &str) -> Result<u32> {
    Ok(nix::net::if_::if_nametoindex(interface)?)
}

/// Mode and id of the XDP program on an interface, as `ip` sees it.
///
/// # Errors
/// Where `ip` does not know it.
pub fn xdp_on(interface: &str) -> Result<Option<(u64, u64)>> {
    let links: serde_json::Value =
        serde_json::from_str(&run("ip", &format!("-j link show dev {interface}"))?)?;
    let Some(xdp) = links[0].get("xdp") else { return Ok(None) };
    Ok(xdp["mode"].as_u64().zip(xdp["prog"]["id"].as_u64()))
}

/// Ids of the programs on the egress of an interface, whether links (TCX) or filters.
///
/// # Errors
/// Where `bpftool` does not know it.
pub fn guards_on(interface: &str) -> Result<BTreeSet<u64>> {
    // Kernels without TCX refuse the question, and many a bpftool does not know of it.
    let links = SchedClassifier::query_tcx(interface, TcAttachType::Egress);
    let links = links.map_or_else(|_| Vec::new(), |(_, programs)| programs);
    let shown: serde_json::Value =
        serde_json::from_str(&run("bpftool", &format!("-j net show dev {interface}"))?)?;
    let filters = shown[0]["tc"].as_array().context("a list")?;
    let id = |program: &serde_json::Value| program["prog_id"].as_u64().or(program["id"].as_u64());
    let filters = filters.iter().filter_map(id);
    Ok(links.iter().map(|program| u64::from(program.id())).chain(filters).collect())
}

/// Id of the link that is pinned there.
///
/// # Errors
/// Where there is none.
pub fn link_id(path: &Path) -> Result<u32> {
    Ok(aya::programs::links::FdLink::from(PinnedLink::from_pin(path)?).info()?.id())
}
