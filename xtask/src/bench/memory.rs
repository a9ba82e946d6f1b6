//! Kernel memory of a gateway with as many sessions as it has room for.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
};

use anyhow::{Context as _, Result};
use aya::{maps::MapInfo, programs::loaded_programs};

use super::{
    conntrack::Room,
    context::Context,
    kind::Kind,
    load::Traffic,
    report::{Report, Row},
    spread::Spread,
    subject::Subject,
};

const CAPACITY: u32 = 1 << 20;
/// Maps with less a session are summed up.
const SMALL: f64 = 1.0;

pub(super) fn measure(context: &Context, report: &mut Report) -> Result<()> {
    if !context.quick {
        push(
            report,
            "nft masquerade: growth of the kernel's slabs, and buckets",
            netfilter(context)?,
        );
    }
    if context.natgw.is_err() {
        return Ok(());
    }
    let mut subject = Subject::start(Kind::NatgwNative, context, &[context.cpu], CAPACITY)?;
    // Tables that are not made in advance grow with their sessions.
    subject.establish(Traffic::UdpOut, 0, CAPACITY)?;
    let daemon = subject.natgw().context("natgw does not run")?;
    let maps = maps(daemon.process())?;
    let per_session = |bytes: u64| bytes as f64 / f64::from(CAPACITY);
    let mut rest = 0;
    for (name, bytes) in &maps {
        if per_session(*bytes) < SMALL {
            rest += bytes;
        } else {
            push(report, &format!("natgw: map {name}"), per_session(*bytes));
        }
    }
    push(report, "natgw: all other maps", per_session(rest));
    let all = per_session(maps.values().sum());
    push(report, "natgw: all maps", all);
    report.figure("bytes_per_session", Spread::of([all]));
    Ok(())
}

fn push(report: &mut Report, subject: &str, bytes: f64) {
    let Some(value) = Spread::of([bytes]) else { return };
    report.rows.push(Row {
        bench: format!("kernel memory a session, {CAPACITY} sessions"),
        subject: subject.to_owned(),
        unit: "B".to_owned(),
        value,
        vs_nft: None,
        lost: None,
    });
}

/// What connection tracking takes for each of as many sessions.
fn netfilter(context: &Context) -> Result<f64> {
    let _room = Room::make(CAPACITY + 100_000)?;
    let mut subject = Subject::start(Kind::NftXdpSink, context, &[context.cpu], CAPACITY)?;
    let before = slabs()?;
    subject.establish(Traffic::UdpOut, 0, CAPACITY)?;
    let grown = slabs()?.saturating_sub(before);
    subject.forget_sessions()?;
    let buckets = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_buckets")?;
    let buckets: f64 = buckets.trim().parse()?;
    Ok((grown as f64 + 8.0 * buckets) / f64::from(CAPACITY))
}

/// Bytes in the kernel's slabs.
fn slabs() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Slab:")).context("no slabs")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}

/// Bytes of every map that process `pid`, or a program that it holds, refers to, by name.
fn maps(pid: u32) -> Result<BTreeMap<String, u64>> {
    let (mut ids, mut programs) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        ids.extend(field(&text, "map_id:"));
        programs.extend(field(&text, "prog_id:"));
    }
    for program in loaded_programs().flatten() {
        if programs.contains(&u64::from(program.id())) {
            ids.extend(program.map_ids()?.into_iter().flatten().map(u64::from));
        }
    }
    ids.sort_unstable();
    ids.dedup();
    let mut maps = BTreeMap::new();
    for id in ids {
        let info = MapInfo::from_id(u32::try_from(id)?)?;
        let name = info.name_as_str().unwrap_or("?").to_owned();
        let descriptor = info.fd()?;
        let number = descriptor.as_fd().as_raw_fd();
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
        *maps.entry(name).or_default() += field(&text, "memlock:").unwrap_or_default();
    }
    Ok(maps)
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}
