//! `natgw cost`: the traffic so far at the managed gateway's prices.

use std::io::Write;

use serde::Serialize;

use crate::{
    api::{Counters, model::Counted},
    cli::{CostArgs, GatewayArgs},
    output::{self, Format},
};

use super::{Failure, client, converse};

/// Of a gigabyte.
const BYTES: f64 = 1e9;

/// Prices are of whatever currency they were given in.
#[derive(Debug, Serialize, PartialEq)]
struct Cost {
    /// How long the counters have counted.
    hours: f64,
    /// An hour that has begun is a whole one there.
    billed_hours: u64,
    /// Sent on by the gateway, in either direction.
    gigabytes: f64,
    hour_price: f64,
    gb_price: f64,
    managed_hours: f64,
    managed_data: f64,
    managed: f64,
    instance_price: Option<f64>,
    /// Nothing: its price was not given.
    instance: Option<f64>,
    saved: Option<f64>,
    assumptions: &'static [&'static str],
}

const ASSUMPTIONS: &[&str] = &[
    "one managed gateway, for as long as the counters have counted; an hour that has begun is a whole one",
    "it processes what this gateway has sent on, in both directions: bytes of IP packets, 1 GB = 1,000,000,000",
    "data transfer, public addresses and traffic between zones cost the same either way and are left out",
    "the instance is paid by the second and by nothing but its time",
];

pub(super) fn execute(
    gateway: &GatewayArgs,
    args: &CostArgs,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let client = client(gateway);
    let (counters, counted) = converse(async {
        let counters: Counters = client.get("/v1/counters").await?;
        let counted: Counted = client.get("/v1/counted").await?;
        Ok((counters, counted))
    })?;
    let cost = cost(&counters, counted, args);
    match args.output.output {
        Format::Json => output::json(out, &cost)?,
        Format::Table => print(&cost, out)?,
    }
    Ok(())
}

fn cost(counters: &Counters, counted: Counted, args: &CostArgs) -> Cost {
    let bytes = counters.bytes_out_to_destination + counters.bytes_out_to_source;
    let hours = counted.seconds as f64 / 3600.0;
    // Begun with its first packet, long before a whole second is counted.
    let billed_hours = counted.seconds.div_ceil(3600).max(1);
    let gigabytes = bytes as f64 / BYTES;
    let managed_hours = billed_hours as f64 * args.hour_price;
    let managed_data = gigabytes * args.gb_price;
    let managed = managed_hours + managed_data;
    let instance = args.instance_price.map(|price| hours * price);
    Cost {
        hours,
        billed_hours,
        gigabytes,
        hour_price: args.hour_price,
        gb_price: args.gb_price,
        managed_hours,
        managed_data,
        managed,
        instance_price: args.instance_price,
        instance,
        saved: instance.map(|instance| managed - instance),
        assumptions: ASSUMPTIONS,
    }
}

fn print(cost: &Cost, out: &mut impl Write) -> std::io::Result<()> {
    let money = |amount: f64| format!("{amount:.4}");
    let row = |what: String, amount: String| vec![what, amount];
    let mut rows = vec![
        row(
            format!("managed gateway, {} hours at {}", cost.billed_hours, cost.hour_price),
            money(cost.managed_hours),
        ),
        row(
            format!("managed gateway, {:.3} GB at {}", cost.gigabytes, cost.gb_price),
            money(cost.managed_data),
        ),
        row("managed gateway in all".to_owned(), money(cost.managed)),
    ];
    match (cost.instance_price, cost.instance, cost.saved) {
        (Some(price), Some(instance), Some(saved)) => {
            let what = format!("this instance, {:.2} hours at {price}", cost.hours);
            rows.push(row(what, money(instance)));
            rows.push(row("saved".to_owned(), money(saved)));
        }
        _ => rows.push(row("this instance".to_owned(), "unknown: --instance-price".to_owned())),
    }
    output::table(out, &["cost", "amount"], rows)?;
    writeln!(out)?;
    cost.assumptions.iter().try_for_each(|it| writeln!(out, "assumed: {it}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::OutputArgs;

    #[test]
    fn begun_hours_are_whole_ones_and_both_directions_are_paid_for() {
        let args = CostArgs {
            hour_price: 0.045,
            gb_price: 0.05,
            instance_price: Some(0.01),
            output: OutputArgs { output: Format::Table },
        };
        let counters = Counters {
            bytes_out_to_destination: 1_500_000_000,
            bytes_out_to_source: 8_500_000_000,
            bytes_in_from_source: 77,
            ..Counters::default()
        };
        assert_eq!(cost(&counters, Counted { seconds: 0 }, &args).billed_hours, 1);
        let cost = cost(&counters, Counted { seconds: 5400 }, &args);
        let near = |is: f64, wanted: f64| assert!((is - wanted).abs() < 1e-9, "{is} {wanted}");
        near(cost.managed_hours, 0.09);
        near(cost.managed_data, 0.5);
        near(cost.managed, 0.59);
        near(cost.instance.expect("a price"), 0.015);
        near(cost.saved.expect("a price"), 0.575);
        let mut text = Vec::new();
        print(&cost, &mut text).expect("written");
        let text = String::from_utf8(text).expect("text");
        assert!(text.contains("2 hours at 0.045") && text.contains("10.000 GB at 0.05"), "{text}");
    }
}
