//! What bounds every translator: one cache line of a table with a slot for each direction of each
//! flow, read and written. It waits for memory as soon as the table is larger than the caches.

use anyhow::Result;

use super::{
    context::Context,
    kind::Kind,
    load::{Blend, Order, Traffic},
    paths::{Caller, REPEAT, XDP_REDIRECT},
    report::{Chart, Point, Report},
    spread::Spread,
    subject::Subject,
};
use crate::interrupt;

/// Nanoseconds of a program that does no more, beside `flows` flows.
pub(super) fn measure(
    context: &Context,
    report: &mut Report,
    flows: u32,
) -> Result<Option<Spread>> {
    let mut subject = Subject::start(Kind::LineFloor, context, &[context.cpu], flows)?;
    let mut costs = Vec::new();
    for _ in 0..context.repetitions {
        interrupt::check()?;
        let blend = Blend::Half(Traffic::UdpIn);
        subject.prepare_blend(Traffic::UdpOut, blend, 0, flows, Order::Uniform)?;
        let mut caller = Caller::at(&mut subject, "n0")?;
        let callee = caller.load.own("touch")?;
        let empty = caller.empty(REPEAT)?;
        costs.push(caller.call(&callee, REPEAT, XDP_REDIRECT)? - empty);
    }
    let value = Spread::of(costs);
    if let Some(nanoseconds) = value {
        report.points.push(Point {
            chart: Chart::Translation,
            series: "one line of memory".to_owned(),
            sessions: flows,
            nanoseconds,
        });
    }
    Ok(value)
}
