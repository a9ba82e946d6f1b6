//! The live view: a line a second of what the gateway says of itself.

use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::lab::Gateway;

const COLUMNS: &str =
    "  time  sessions  tcp open   Mbit/s out  Mbit/s in   packets/s    drops   to host";

/// Counters at one moment, of which lines show the difference.
pub(super) struct Live {
    start: Instant,
    last: Instant,
    bytes_out: u64,
    bytes_in: u64,
    packets: u64,
    /// The largest number of sessions seen.
    pub(super) most_sessions: u64,
}

impl Live {
    pub(super) fn start() -> Self {
        println!("{COLUMNS}");
        let now = Instant::now();
        Self { start: now, last: now, bytes_out: 0, bytes_in: 0, packets: 0, most_sessions: 0 }
    }

    /// Asks the gateway and prints the line.
    pub(super) fn line(&mut self, gateway: &Gateway) -> Result<()> {
        let counters = gateway.json(&["counters"])?;
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        let bytes_out = number(&counters, "bytes_out_to_destination")?;
        let bytes_in = number(&counters, "bytes_out_to_source")?;
        let packets = number(&counters, "packets_out_to_destination")?
            + number(&counters, "packets_out_to_source")?;
        let sessions = number(&counters, "sessions")?;
        self.most_sessions = self.most_sessions.max(sessions);
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        println!(
            "{:>4} s {:>9} {:>9} {:>12.0} {:>10.0} {:>11.0} {:>8} {:>9}",
            self.start.elapsed().as_secs_f64().round(),
            sessions,
            number(&counters, "active_connection_count")?,
            rate(bytes_out, self.bytes_out) * 8e-6,
            rate(bytes_in, self.bytes_in) * 8e-6,
            rate(packets, self.packets),
            number(&counters, "packets_drop_count")?,
            number(&counters, "packets_to_host")?,
        );
        (self.bytes_out, self.bytes_in, self.packets) = (bytes_out, bytes_in, packets);
        Ok(())
    }
}

fn number(counters: &Value, key: &str) -> Result<u64> {
    counters[key].as_u64().with_context(|| format!("`natgw counters` has no {key}: {counters}"))
}

/// Some sessions, one on a line.
pub(super) fn sessions(gateway: &Gateway, count: usize) -> Result<String> {
    let flows = gateway.json(&["flows", "--limit", &count.to_string()])?;
    let flows = flows.as_array().context("`natgw flows` printed no array")?;
    let text = |flow: &Value, key: &str| flow[key].as_str().unwrap_or("?").to_owned();
    Ok(flows
        .iter()
        .map(|flow| {
            format!(
                "  {:<4} {:>20} -> {:>20} -> {:<20} {:<11} {} bytes out, {} in\n",
                text(flow, "protocol"),
                text(flow, "private"),
                text(flow, "public"),
                text(flow, "remote"),
                text(flow, "state"),
                flow["bytes_out"],
                flow["bytes_in"],
            )
        })
        .collect())
}

/// `lan0 private native`, one for each interface.
pub(super) fn interfaces(gateway: &Gateway) -> Result<Vec<String>> {
    let status = gateway.json(&["status"])?;
    let interfaces = status["interfaces"].as_array().context("`natgw status` has no interfaces")?;
    let text = |interface: &Value, key: &str| interface[key].as_str().unwrap_or("?").to_owned();
    Ok(interfaces
        .iter()
        .map(|it| format!("{} {} {}", text(it, "name"), text(it, "role"), text(it, "xdp_mode")))
        .collect())
}
