//! From the raw file to a [`Config`]: pure, given a view of the host.
//!
//! Each section is read to its end whatever it holds; a value that is wrong leaves a fault and a
//! stand-in, so that what depends on it is neither reported twice nor skipped.

mod gateway;
mod log;
mod overlap;
mod pools;
mod rules;

use std::time::Duration;

use super::{
    Overrides,
    fault::{At, Faults},
    host::HostView,
    model::{Config, Metrics, Profile, Timeouts},
    parse,
    raw::{RawConfig, RawTimeouts},
    reader::Field,
};

/// A label for each host is a time series for each.
const TOP_HOSTS: u32 = 100;

/// The configuration, or nothing where a fault left a hole in it. Where faults are reported the
/// result is not to be used, even if there is one.
pub(super) fn config(
    raw: &RawConfig,
    overrides: &Overrides,
    host: &HostView,
    faults: &mut Faults,
) -> Option<Config> {
    let gateway = gateway::resolve(&raw.gateway, overrides, host, faults);
    let defaults = gateway.profile.defaults();
    let pools = pools::resolve(&raw.pools, &gateway, &defaults, host, faults);
    if raw.pools.is_empty() && raw.one_to_one.is_empty() && !raw.pools_faulty {
        faults.add(
            At::Offset(0),
            "there is no [[pool]] and no [[one_to_one]]: nothing to translate to",
            "add [[pool]] with addresses = [\"198.51.100.10\"]",
        );
    }
    let snat = rules::snat(&raw.snat, &pools, faults);
    let forwards = rules::forwards(&raw.forwards, &pools, host, faults);
    let one_to_one = rules::one_to_one(&raw.one_to_one, &pools, host, faults);
    let timeouts = timeouts(&raw.timeouts, gateway.profile, faults);
    let listen = match raw.metrics_listen.given() {
        Some(text) => faults.keep(text.at, parse::listen(&text.value)),
        None => None,
    };
    let top_hosts = match raw.metrics_top_hosts.given() {
        Some(number) => {
            u32::try_from(number.value).ok().filter(|it| *it <= TOP_HOSTS).unwrap_or_else(|| {
                let what = format!("top_hosts = {} is no number of hosts", number.value);
                faults.add(number.at, what, format!("write a number from 0 to {TOP_HOSTS}"));
                0
            })
        }
        None => 0,
    };
    let log = log::resolve(&raw.log, faults);
    faults.is_empty().then_some(Config {
        file: None,
        gateway,
        pools: pools.list,
        snat,
        forwards,
        one_to_one,
        timeouts,
        metrics: Metrics { listen, top_hosts },
        log,
    })
}

fn timeouts(raw: &RawTimeouts, profile: Profile, faults: &mut Faults) -> Timeouts {
    let default = profile.defaults().timeouts;
    let mut read = |key: &str, field: &Field<String>, default: Duration, zero_allowed: bool| {
        let Some(text) = field.given() else { return default };
        let Some(duration) = faults.keep(text.at, parse::duration_value(&text.value)) else {
            return default;
        };
        if duration.is_zero() && !zero_allowed {
            faults.add(
                text.at,
                format!("the timeout {key} is zero"),
                format!("write at least \"1s\"; the default is \"{}s\"", default.as_secs()),
            );
            return default;
        }
        duration
    };
    Timeouts {
        tcp_established: read(
            "tcp_established",
            &raw.tcp_established,
            default.tcp_established,
            false,
        ),
        tcp_transitory: read("tcp_transitory", &raw.tcp_transitory, default.tcp_transitory, false),
        udp: read("udp", &raw.udp, default.udp, false),
        icmp: read("icmp", &raw.icmp, default.icmp, false),
        port_hold: read("port_hold", &raw.port_hold, default.port_hold, true),
    }
}

/// The value of one key whose words are an enum of the model.
macro_rules! word_field {
    ($faults:expr, $key:literal, $field:expr, $type:ty, $default:expr) => {
        match $field.given() {
            Some(text) => {
                let words: Vec<_> = <$type>::ALL.iter().map(|v| (v.word(), *v)).collect();
                $faults.keep(text.at, parse::word($key, &text.value, &words)).unwrap_or($default)
            }
            None => $default,
        }
    };
}
use word_field;
