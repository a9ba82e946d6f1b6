//! Programs that this process runs itself, by `BPF_PROG_TEST_RUN`: the reaper and the emitter.

use aya::{
    Ebpf,
    programs::{TestRun as _, TestRunOptions},
};
use bytemuck::{Pod, Zeroable};
use nat_common::{
    agenda::Note,
    flow::FlowKey,
    maps,
    stage::{ReapRequest, request},
};

use super::{
    error::DatapathError,
    load::{classifier, xdp},
};

/// The kernel's `struct xdp_md`, by which a test run names the receiving interface.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct XdpContext {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// The beginning of the kernel's `struct __sk_buff`, as far as a test run takes it.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SkbContext {
    len: u32,
    pkt_type: u32,
    mark: u32,
    queue_mapping: u32,
    protocol: u32,
    vlan_present: u32,
    vlan_tci: u32,
    vlan_proto: u32,
    priority: u32,
    ingress_ifindex: u32,
    ifindex: u32,
}

impl XdpContext {
    fn new(length: usize, ifindex: u32) -> Result<Self, DatapathError> {
        let data_end = u32::try_from(length).map_err(|_| DatapathError::Call {
            what: "run a program on a frame".to_owned(),
            source: std::io::ErrorKind::FileTooLarge.into(),
        })?;
        let ingress_ifindex = ifindex;
        Ok(Self { data_end, ingress_ifindex, ..Self::zeroed() })
    }
}

/// Result of a program run on one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunResult {
    /// `XDP_PASS` and so on.
    pub action: u32,
    pub frame: Vec<u8>,
}

/// Current ticks as the programs count them: the low 32 bits of the kernel's jiffies.
pub(super) fn now(bpf: &Ebpf) -> Result<u32, DatapathError> {
    let (_, answer) = ask(bpf, request::NOW, &[])?;
    Ok(answer.count)
}

/// Asks the reaper to end sessions, in groups of its size. Returns how many ended.
pub(super) fn reap(bpf: &Ebpf, op: u32, keys: &[FlowKey]) -> Result<u32, DatapathError> {
    let mut ended = 0;
    for group in keys.chunks(request::BATCH) {
        ended += ask(bpf, op, group)?.0;
    }
    Ok(ended)
}

/// Has the reaper look at entries, no more than a request has room for, and end those whose time is up.
/// Returns how many ended, and what it says of each.
pub(super) fn look(
    bpf: &Ebpf,
    notes: &[Note],
) -> Result<(u32, [u32; request::BATCH]), DatapathError> {
    let (ended, answer) = ask(bpf, request::LOOK, bytemuck::cast_slice(notes))?;
    Ok((ended, answer.answers))
}

/// The program's result, and the request as it has changed it.
fn ask(bpf: &Ebpf, op: u32, keys: &[FlowKey]) -> Result<(u32, ReapRequest), DatapathError> {
    let mut request = ReapRequest { op, count: keys.len() as u32, ..ReapRequest::zeroed() };
    for (slot, key) in request.keys.iter_mut().zip(keys) {
        *slot = *key;
    }
    let mut answer = ReapRequest::zeroed();
    let result = xdp(bpf, maps::REAPER_PROGRAM)?
        .test_run(TestRunOptions {
            data_in: Some(bytemuck::bytes_of(&request)),
            data_out: Some(bytemuck::bytes_of_mut(&mut answer)),
            ..TestRunOptions::default()
        })
        .map_err(|error| DatapathError::bpf("run the reaper", error))?;
    Ok((result.return_value, answer))
}

/// Sends a frame out of an interface of the gateway, by the way of the host's own frames.
pub(super) fn emit(bpf: &Ebpf, ifindex: u32, frame: &[u8]) -> Result<(), DatapathError> {
    let what = || format!("send a frame out of interface {ifindex}");
    let context = SkbContext { mark: ifindex, ..SkbContext::zeroed() };
    let result = classifier(bpf, maps::EMIT_PROGRAM)?
        .test_run(TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(bytemuck::bytes_of(&context)),
            ..TestRunOptions::default()
        })
        .map_err(|error| DatapathError::bpf(what(), error))?;
    match result.return_value {
        0 => Ok(()),
        _ => Err(DatapathError::call(what(), std::io::ErrorKind::NotConnected.into())),
    }
}

/// Runs the entry program on a frame as if it had come from an interface; nothing is sent.
pub(super) fn entry(bpf: &Ebpf, ifindex: u32, frame: &[u8]) -> Result<RunResult, DatapathError> {
    const ROOM: usize = 16 * 1024;
    let context = XdpContext::new(frame.len(), ifindex)?;
    let mut out = vec![0; frame.len() + ROOM];
    let result = xdp(bpf, maps::ENTRY_PROGRAM)?
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(bytemuck::bytes_of(&context)),
            ..TestRunOptions::default()
        })
        .map_err(|error| DatapathError::bpf("run the entry program", error))?;
    out.truncate(result.data_size_out as usize);
    Ok(RunResult { action: result.return_value, frame: out })
}

/// The same by the programs for tc.
pub(super) fn tc_entry(bpf: &Ebpf, ifindex: u32, frame: &[u8]) -> Result<RunResult, DatapathError> {
    const ROOM: usize = 1024;
    let context = SkbContext { ifindex, ..SkbContext::zeroed() };
    let mut out = vec![0; frame.len() + ROOM];
    let result = classifier(bpf, maps::ENTRY_PROGRAM)?
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(bytemuck::bytes_of(&context)),
            ..TestRunOptions::default()
        })
        .map_err(|error| DatapathError::bpf("run the entry program of tc", error))?;
    out.truncate(result.data_size_out as usize);
    Ok(RunResult { action: result.return_value, frame: out })
}
