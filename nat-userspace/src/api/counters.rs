//! The contract's metrics: one list for JSON, the table and Prometheus.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows; Prometheus adds `_total`.
    Counter,
    Gauge,
}

/// One metric of the contract; Prometheus prefixes `natgw_`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    pub key: &'static str,
    pub kind: MetricKind,
    pub meaning: &'static str,
    pub value: u64,
}

macro_rules! counters {
    ($($kind:ident $key:ident: $meaning:literal,)+) => {
        /// `natgw counters`: one object with the contract's keys, and `drops` by reason.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        pub struct Counters {
            $(#[doc = $meaning] pub $key: u64,)+
            /// The parts of `packets_drop_count`, every reason, also those that are 0.
            pub drops: BTreeMap<String, u64>,
        }

        impl Counters {
            /// Every metric but `drops`, in the contract's order.
            #[must_use]
            pub fn metrics(&self) -> Vec<Metric> {
                vec![$(Metric {
                    key: stringify!($key),
                    kind: MetricKind::$kind,
                    meaning: $meaning,
                    value: self.$key,
                },)+]
            }
        }
    };
}

counters! {
    Gauge active_connection_count: "TCP connections that are established now",
    Counter connection_attempt_count: "TCP connections that were tried",
    Counter connection_established_count: "TCP connections that came to be established",
    Counter bytes_in_from_source: "bytes received from private hosts",
    Counter bytes_out_to_destination: "bytes sent to destinations",
    Counter bytes_in_from_destination: "bytes received from destinations",
    Counter bytes_out_to_source: "bytes sent to private hosts",
    Counter packets_in_from_source: "packets received from private hosts",
    Counter packets_out_to_destination: "packets sent to destinations",
    Counter packets_in_from_destination: "packets received from destinations",
    Counter packets_out_to_source: "packets sent to private hosts",
    Counter error_port_allocation: "new sessions refused because no port was left",
    Counter idle_timeout_count: "sessions that ended because they were idle",
    Gauge peak_bytes_per_second: "the highest 10-second average of bytes in the last minute",
    Gauge peak_packets_per_second: "the highest 10-second average of packets in the last minute",
    Counter packets_drop_count: "packets dropped, for any reason",
    Counter packets_to_host: "packets given to this host's own stack",
    Counter packets_answered: "packets consumed and answered by the gateway: ARP, ICMP, RST",
    Gauge packets_held: "packets waiting now: fragments and SYNs",
    Counter packets_guarded: "packets stopped by the guard on the public interfaces",
    Gauge sessions: "live sessions of every protocol",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_contracts_keys_and_the_drops_beside_their_total() {
        let mut counters = Counters { packets_drop_count: 7, ..Counters::default() };
        counters.drops.insert("no_port".to_owned(), 7);
        let json = serde_json::to_value(&counters).expect("JSON");
        let object = json.as_object().expect("an object");
        assert_eq!(object.len(), counters.metrics().len() + 1);
        assert_eq!(object["packets_drop_count"], 7);
        assert_eq!(object["drops"]["no_port"], 7);
        assert_eq!(object["peak_bytes_per_second"], 0);
    }
}
