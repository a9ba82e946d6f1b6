//! What bounds every translator: one cache line of a table with a slot for each direction of each
//! flow, read and written. It waits for memory as soon as the table is larger than the caches.

use anyhow::Result;

use super::{
    context::Context,
    kind::Kind,
    load::{Blend, Load, Order, SHORT, Settings, Tables, Traffic},
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
    let lines = (2 * flows).next_power_of_two();
    let mut load = Load::new(&context.object, Tables { lines, entries: 0 })?;
    let blend = Blend::Half(Traffic::UdpIn);
    load.configure(Settings { lines, ..Settings::of(Traffic::UdpOut, blend, SHORT) })?;
    let subject = Subject::start(Kind::Floor, context, &[context.cpu], flows)?;
    let mut costs = Vec::new();
    for _ in 0..context.repetitions {
        interrupt::check()?;
        load.flows(&[context.cpu], 0, flows, Order::Uniform)?;
        let callee = load.own("touch")?;
        let mut caller = Caller::of(&mut load, &subject, "n0")?;
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
