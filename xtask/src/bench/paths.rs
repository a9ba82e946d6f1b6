//! Nanoseconds of natgw's program alone, path by path: `BPF_PROG_TEST_RUN` in repeat mode, with
//! a wrapper that writes the packet anew and calls the program; the wrapper with an empty program
//! behind it is subtracted.

use std::fs::File;

use anyhow::{Context as _, Result, bail};
use aya::programs::{ProgramFd, loaded_programs};

use super::{
    context::Context,
    kind::Kind,
    line,
    load::{Blend, Load, Order, Traffic},
    namespace::{self, Namespace},
    report::{Chart, Point, Report, Row},
    spread::Spread,
    subject::Subject,
    topology::interface_index,
};
use crate::interrupt;

const TITLE: &str = "the program alone (repeat mode, wrapper subtracted)";
pub(super) const XDP_DROP: u32 = 1;
pub(super) const XDP_REDIRECT: u32 = 4;

pub(super) const REPEAT: u32 = 1_000_000;
/// New sessions of one measurement.
const NEW: u32 = 150_000;
/// Sessions whose every line the nearest cache has room for.
const WARM: u32 = 10;
/// Sessions, and the figure that says what a packet costs among them.
const SIZES: [(u32, Option<&str>); 5] = [
    (1_000, Some("ns_established_1k")),
    (10_000, None),
    (100_000, None),
    (1_000_000, Some("ns_established_1m")),
    (4_000_000, Some("ns_established_4m")),
];

/// A path to measure.
#[derive(Clone, Copy)]
struct Path {
    name: &'static str,
    interface: &'static str,
    traffic: Traffic,
    blend: Blend,
    order: Order,
    verdict: u32,
}

const fn out(name: &'static str, traffic: Traffic) -> Path {
    let (blend, order) = (Blend::None, Order::Uniform);
    Path { name, interface: "n0", traffic, blend, order, verdict: XDP_REDIRECT }
}

/// Both directions of every session, uniformly random: the published path.
const BOTH: Path = Path {
    blend: Blend::Half(Traffic::UdpIn),
    ..out("established UDP, both directions, uniform", Traffic::UdpOut)
};
const ZIPF: Path =
    Path { name: "established UDP, both directions, Zipf", order: Order::Zipf, ..BOTH };

/// Those that only the smallest table has.
const ESTABLISHED: [Path; 6] = [
    out("established UDP, out", Traffic::UdpOut),
    Path { interface: "n1", ..out("established UDP, in", Traffic::UdpIn) },
    out("established TCP, out", Traffic::TcpOut),
    Path { interface: "n1", ..out("established TCP, in", Traffic::TcpIn) },
    out("ICMP echo, out", Traffic::EchoOut),
    Path {
        interface: "n1",
        verdict: XDP_DROP,
        ..out("unsolicited, dropped", Traffic::Unsolicited)
    },
];
const OPENING: [Path; 2] =
    [out("new UDP session", Traffic::UdpOut), out("new TCP session (SYN)", Traffic::SynOut)];

pub(super) fn measure(context: &Context, report: &mut Report) -> Result<()> {
    measure_floor(context, report)?;
    if context.natgw.is_err() {
        return Ok(());
    }
    for (flows, figure) in SIZES {
        if context.quick && flows > SIZES[0].0 {
            break;
        }
        measure_among(context, report, flows, figure)?;
    }
    Ok(())
}

/// Bare redirection in the same harness: the least that any path can cost.
fn measure_floor(context: &Context, report: &mut Report) -> Result<()> {
    let mut subject = Subject::start(Kind::Floor, context, &[context.cpu], 1_000)?;
    subject.prepare(Traffic::UdpOut, 0, 1_000, Order::Uniform)?;
    let mut caller = Caller::at(&mut subject, "n0")?;
    let floor = caller.load.own("floor")?;
    let (mut wrappers, mut costs) = (Vec::new(), Vec::new());
    for _ in 0..context.repetitions {
        let empty = caller.empty(REPEAT)?;
        costs.push(caller.call(&floor, REPEAT, XDP_REDIRECT)? - empty);
        wrappers.push(empty);
    }
    push(report, TITLE, "(wrapper, subtracted below)", wrappers);
    push(report, TITLE, Kind::Floor.name(), costs);
    Ok(())
}

/// The paths of natgw beside `flows` UDP sessions.
fn measure_among(
    context: &Context,
    report: &mut Report,
    flows: u32,
    figure: Option<&str>,
) -> Result<()> {
    let title = format!("{TITLE}, {flows} sessions");
    if let Some(bound) = line::measure(context, report, flows)? {
        push_value(report, &title, "floor: one line of memory a packet", bound);
        if let (Some(figure), true) = (figure, flows > SIZES[0].0) {
            report.bound(figure, Some(bound));
        }
    }
    let mut subject = Subject::start(Kind::NatgwNative, context, &[context.cpu], flows)?;
    // Two packets each way: established is what has had its first packets.
    for traffic in [Traffic::UdpOut, Traffic::UdpIn, Traffic::UdpOut, Traffic::UdpIn] {
        subject.establish(traffic, 0, flows)?;
    }
    for path in [BOTH, ZIPF] {
        let costs = established(context, &mut subject, &path, flows)?;
        if let Some(nanoseconds) = push(report, &title, path.name, costs) {
            let series = if path.order == Order::Zipf { "natgw, Zipf" } else { "natgw, uniform" };
            report.points.push(Point {
                chart: Chart::Translation,
                series: series.to_owned(),
                sessions: flows,
                nanoseconds,
            });
            if let (Order::Uniform, Some(figure)) = (path.order, figure) {
                report.figure(figure, Some(nanoseconds));
            }
        }
    }
    if flows > SIZES[0].0 {
        return Ok(());
    }
    let costs = established(context, &mut subject, &BOTH, WARM)?;
    let warm = push(report, &title, "established UDP, both directions, ten of them", costs);
    if let Some(figure) = figure {
        report.bound(figure, warm);
    }
    for traffic in [Traffic::SynOut, Traffic::SynAckIn, Traffic::TcpOut, Traffic::EchoOut] {
        subject.establish(traffic, 0, flows)?;
    }
    for path in &ESTABLISHED {
        let costs = established(context, &mut subject, path, flows)?;
        push(report, &title, path.name, costs);
    }
    for path in &OPENING {
        let costs = opening(context, &mut subject, path)?;
        push(report, &title, path.name, costs);
    }
    Ok(())
}

fn established(
    context: &Context,
    subject: &mut Subject,
    path: &Path,
    flows: u32,
) -> Result<Vec<f64>> {
    let program = attached(&subject.topology().gateway, path.interface)?;
    let mut costs = Vec::new();
    for _ in 0..context.repetitions {
        interrupt::check()?;
        subject.prepare_blend(path.traffic, path.blend, 0, flows, path.order)?;
        let mut caller = Caller::at(subject, path.interface)?;
        let empty = caller.empty(REPEAT)?;
        let whole = caller
            .call(&program, REPEAT, path.verdict)
            .with_context(|| format!("path \"{}\"", path.name))?;
        costs.push(whole - empty);
    }
    Ok(costs)
}

/// Every packet the first of a session, in a table that was emptied before.
fn opening(context: &Context, subject: &mut Subject, path: &Path) -> Result<Vec<f64>> {
    let program = attached(&subject.topology().gateway, path.interface)?;
    let mut costs = Vec::new();
    for repetition in 0..context.repetitions {
        interrupt::check()?;
        subject.forget_sessions()?;
        let first = NEW * u32::try_from(repetition)?;
        subject.prepare(path.traffic, first, NEW, Order::Sequential)?;
        let mut caller = Caller::at(subject, path.interface)?;
        let empty = caller.empty(NEW)?;
        // The wrapper counted on; begin with the same flow again.
        caller.load.flows(&[context.cpu], first, NEW, Order::Sequential)?;
        let whole = caller
            .call(&program, NEW, path.verdict)
            .with_context(|| format!("path \"{}\"", path.name))?;
        costs.push(whole - empty);
    }
    Ok(costs)
}

/// The wrapper, run as if its frames came in by one interface of a gateway.
pub(super) struct Caller<'a> {
    pub load: &'a mut Load,
    gateway: File,
    ingress: u32,
}

impl<'a> Caller<'a> {
    pub(super) fn at(subject: &'a mut Subject, interface: &str) -> Result<Self> {
        let ingress = interface_index(&subject.topology().gateway, interface)?;
        let gateway = subject.topology().gateway.file()?;
        Ok(Self { load: subject.load_mut(), gateway, ingress })
    }

    /// Nanoseconds of the wrapper with an empty program behind it.
    pub(super) fn empty(&mut self, repeat: u32) -> Result<f64> {
        let stub = self.load.own("stub")?;
        self.call(&stub, repeat, XDP_REDIRECT)
    }

    /// Nanoseconds of the wrapper with `callee` behind it; fails when the last verdict is not
    /// `verdict`.
    pub(super) fn call(&mut self, callee: &ProgramFd, repeat: u32, verdict: u32) -> Result<f64> {
        self.load.call(callee)?;
        let _inside = namespace::enter(&self.gateway)?;
        self.load.repeat(repeat, self.ingress, verdict)
    }
}

/// The XDP program that is attached to `interface`.
pub(super) fn attached(namespace: &Namespace, interface: &str) -> Result<ProgramFd> {
    let text = namespace.output("ip", &["-json", "link", "show", interface])?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    let id = links[0]["xdp"]["prog"]["id"]
        .as_u64()
        .with_context(|| format!("no XDP program on {interface}"))?;
    for program in loaded_programs() {
        let program = program?;
        if u64::from(program.id()) == id {
            return Ok(program.fd()?);
        }
    }
    bail!("program {id} of {interface} is gone")
}

fn push(report: &mut Report, title: &str, subject: &str, costs: Vec<f64>) -> Option<Spread> {
    let value = Spread::of(costs)?;
    push_value(report, title, subject, value);
    Some(value)
}

fn push_value(report: &mut Report, title: &str, subject: &str, value: Spread) {
    report.rows.push(Row {
        bench: title.to_owned(),
        subject: subject.to_owned(),
        unit: "ns".to_owned(),
        value,
        vs_nft: None,
        lost: None,
    });
}
