//! The Prometheus endpoint: the contract's counters, read when asked.

use std::{fmt, future::Future, net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use tokio::{net::TcpListener, task::spawn_blocking};

use crate::api::{AddressDetail, Control, Counters, Details, MetricKind, model::PortsInUse};

const PREFIX: &str = "natgw_";
/// Told by reason, so that its total is the sum over the label.
const BY_REASON: &str = "packets_drop_count";

/// Takes the address; a wrong or busy one is found out before anything is attached.
///
/// # Errors
/// The address is in use, or not the host's.
pub async fn bind(listen: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(listen).await.with_context(|| {
        format!("cannot listen for Prometheus on {listen}; set [metrics] listen to a free address")
    })
}

/// Answers until `stop` is ready.
///
/// # Errors
/// The socket fails.
pub async fn serve(
    listener: TcpListener,
    control: Arc<dyn Control>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new().route("/metrics", get(scrape)).with_state(control);
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

async fn scrape(State(control): State<Arc<dyn Control>>, headers: HeaderMap) -> Response {
    let counters = spawn_blocking(move || control.details()).await;
    let text = match counters {
        Ok(Ok((counters, details))) => render(counters, details),
        Ok(Err(error)) => {
            return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
        }
        Err(_) => return StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    };
    // What is written is valid in both formats; a reader that knows the newer one asks for it.
    let openmetrics = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("application/openmetrics-text"));
    let content_type = if openmetrics {
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    } else {
        "text/plain; version=0.0.4; charset=utf-8"
    };
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, content_type)], text).into_response(),
        Err(fmt::Error) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// # Errors
/// None is expected: a string takes everything.
fn render(counters: Counters, details: Details) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(counters, details)));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Scrape(Counters, Details);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Self(counters, details) = self;
        for metric in counters.metrics() {
            let name = format!("{PREFIX}{}", metric.key);
            let kind = match metric.kind {
                MetricKind::Counter => MetricType::Counter,
                MetricKind::Gauge => MetricType::Gauge,
            };
            let mut family = encoder.encode_descriptor(&name, metric.meaning, None, kind)?;
            match metric.kind {
                _ if metric.key == BY_REASON => {
                    for (reason, count) in &counters.drops {
                        let labels = [("reason", reason.as_str())];
                        ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
                    }
                }
                MetricKind::Counter => ConstCounter::new(metric.value).encode(family)?,
                MetricKind::Gauge => ConstGauge::new(metric.value).encode(family)?,
            }
        }
        self::details(&mut encoder, details)
    }
}

/// Ports of one kind, by protocol.
type Which = fn(&AddressDetail) -> PortsInUse;

fn details(encoder: &mut DescriptorEncoder<'_>, details: &Details) -> fmt::Result {
    let mut gauge = |key: &str, help: &str, value: f64| -> fmt::Result {
        let name = format!("{PREFIX}{key}");
        let family = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(family)
    };
    gauge("sessions_max", "capacity of the session table", details.sessions_max as f64)?;
    let help = "CPU time that looking for sessions whose time is up took in the last second";
    gauge("sweep_seconds", help, details.sweep_seconds)?;
    for (key, help, value) in [
        ("log_records", "records of sessions that were written", details.log.written),
        ("log_records_lost", "records of sessions that were lost", details.log.lost),
    ] {
        let name = format!("{PREFIX}{key}");
        let family = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(family)?;
    }
    let ports = |detail: &AddressDetail, which: Which| {
        let PortsInUse { tcp, udp, icmp } = which(detail);
        [("tcp", tcp), ("udp", udp), ("icmp", icmp)]
    };
    let families: [(&str, &str, MetricType, Which); 4] = [
        (
            "address_ports_in_use",
            "ports that sessions have, by public address",
            MetricType::Gauge,
            |it| it.in_use,
        ),
        (
            "address_busiest_destination_ports",
            "ports in use towards the remote endpoint that has the most, by public address",
            MetricType::Gauge,
            |it| it.busiest,
        ),
        (
            "address_ports",
            "ports that sessions may have, by public address",
            MetricType::Gauge,
            |it| it.capacity,
        ),
        (
            "address_port_allocation_errors",
            "packets refused for want of a port, by public address",
            MetricType::Counter,
            |it| it.errors,
        ),
    ];
    for (key, help, kind, which) in families {
        let name = format!("{PREFIX}{key}");
        let mut family = encoder.encode_descriptor(&name, help, None, kind)?;
        for detail in &details.addresses {
            let address = detail.address.to_string();
            for (protocol, number) in ports(detail, which) {
                let labels = [
                    ("address", address.as_str()),
                    ("pool", detail.pool.as_str()),
                    ("protocol", protocol),
                ];
                let metric = family.encode_family(&labels)?;
                match kind {
                    MetricType::Counter => ConstCounter::new(number).encode(metric)?,
                    _ => ConstGauge::new(number).encode(metric)?,
                }
            }
        }
    }
    let name = format!("{PREFIX}address_sessions");
    let help = "live sessions, by public address";
    let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
    for detail in &details.addresses {
        let address = detail.address.to_string();
        let labels = [("address", address.as_str()), ("pool", detail.pool.as_str())];
        ConstGauge::new(detail.sessions).encode(family.encode_family(&labels)?)?;
    }
    let name = format!("{PREFIX}host_sessions");
    let help = "live sessions of the private hosts that have the most ([metrics] top_hosts)";
    let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
    for (host, sessions) in &details.top_hosts {
        let host = host.to_string();
        let labels = [("host", host.as_str())];
        ConstGauge::new(*sessions).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_end_in_total_gauges_do_not_and_drops_carry_their_reason() {
        let mut counters = Counters {
            packets_to_host: 7,
            sessions: 3,
            packets_drop_count: 5,
            ..Counters::default()
        };
        counters.drops.insert("unsolicited".to_owned(), 5);
        let ports = |tcp| PortsInUse { tcp, udp: 0, icmp: 0 };
        let details = Details {
            addresses: vec![AddressDetail {
                address: [198, 51, 100, 10].into(),
                pool: "default".to_owned(),
                sessions: 3,
                in_use: ports(2),
                busiest: ports(1),
                capacity: ports(64512),
                errors: ports(9),
            }],
            top_hosts: vec![([10, 0, 1, 5].into(), 3)],
            ..Details::default()
        };
        let text = render(counters, details).expect("text");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.contains(&"natgw_packets_to_host_total 7"), "{text}");
        assert!(lines.contains(&"natgw_sessions 3"), "{text}");
        assert!(lines.contains(&"natgw_packets_drop_count_total{reason=\"unsolicited\"} 5"));
        assert!(!lines.contains(&"natgw_packets_drop_count_total 5"), "counted twice");
        let labels = "{address=\"198.51.100.10\",pool=\"default\",protocol=\"tcp\"}";
        assert!(
            lines.contains(&format!("natgw_address_ports_in_use{labels} 2").as_str()),
            "{text}"
        );
        assert!(lines.contains(&format!("natgw_address_ports{labels} 64512").as_str()), "{text}");
        let busiest = format!("natgw_address_busiest_destination_ports{labels} 1");
        assert!(lines.contains(&busiest.as_str()), "{text}");
        let errors = format!("natgw_address_port_allocation_errors_total{labels} 9");
        assert!(lines.contains(&errors.as_str()), "{text}");
        assert!(lines.contains(&"natgw_host_sessions{host=\"10.0.1.5\"} 3"), "{text}");
    }
}
