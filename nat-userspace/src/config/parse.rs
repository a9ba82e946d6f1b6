//! Values that are written as strings: addresses, prefixes, port ranges, endpoints, durations.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use ipnet::Ipv4Net;

use super::{
    fault::{Complaint, nearest},
    model::{Endpoints, PortRange},
};

type Parsed<T> = Result<T, Complaint>;

/// An address that a host can have.
pub(super) fn address(text: &str) -> Parsed<Ipv4Addr> {
    let remedy = "write an IPv4 address such as \"198.51.100.10\"";
    let Ok(address) = text.parse::<Ipv4Addr>() else {
        return Err(if text.parse::<Ipv6Addr>().is_ok() {
            Complaint::new(
                format!("\"{text}\" is an IPv6 address; natgw translates IPv4 only"),
                remedy,
            )
        } else {
            Complaint::new(format!("\"{text}\" is not an IPv4 address"), remedy)
        });
    };
    if !is_host_address(address) {
        return Err(Complaint::new(format!("{address} cannot be the address of a host"), remedy));
    }
    Ok(address)
}

/// Neither "this network", loopback, multicast, reserved nor broadcast.
fn is_host_address(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first != 0 && first != 127 && first < 224
}

/// "10.0.0.0/16", or a single address for a prefix of 32 bits.
pub(super) fn prefix(text: &str) -> Parsed<Ipv4Net> {
    let remedy = "write an IPv4 prefix such as \"10.0.0.0/16\"";
    if text.parse::<ipnet::Ipv6Net>().is_ok() || text.parse::<Ipv6Addr>().is_ok() {
        let what = format!("\"{text}\" is an IPv6 prefix; natgw translates IPv4 only");
        return Err(Complaint::new(what, remedy));
    }
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Ok(Ipv4Net::from(address));
    }
    let Ok(net) = text.parse::<Ipv4Net>() else {
        return Err(Complaint::new(format!("\"{text}\" is not an IPv4 prefix"), remedy));
    };
    if net.trunc() != net {
        return Err(Complaint::new(
            format!("\"{text}\" has host bits set"),
            format!("write \"{}\", or \"{}/32\" for that one address", net.trunc(), net.addr()),
        ));
    }
    Ok(net)
}

/// "1024-65535" or "443".
pub(super) fn ports(text: &str) -> Parsed<PortRange> {
    let remedy = "write a range such as \"1024-65535\", lower port first, from 1 to 65535";
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (Some(first), Some(last)) = (port_number(first), port_number(last)) else {
        return Err(Complaint::new(format!("\"{text}\" is not a range of ports"), remedy));
    };
    if first == 0 {
        return Err(Complaint::new(format!("\"{text}\" contains port 0, which is none"), remedy));
    }
    if first > last {
        return Err(Complaint::new(
            format!("the range \"{text}\" ends before it starts"),
            format!("write \"{last}-{first}\""),
        ));
    }
    Ok(PortRange { first, last })
}

/// Digits only: a sign or a blank is a slip that must not pass.
fn port_number(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// "198.51.100.10:443" or "198.51.100.10:8000-8010".
pub(super) fn endpoints(text: &str) -> Parsed<Endpoints> {
    let remedy = "write \"198.51.100.10:443\" or \"198.51.100.10:8000-8010\"";
    if text.parse::<std::net::SocketAddrV6>().is_ok() || text.parse::<Ipv6Addr>().is_ok() {
        let what = format!("\"{text}\" is an IPv6 address; natgw translates IPv4 only");
        return Err(Complaint::new(what, remedy));
    }
    let Some((host, range)) = text.rsplit_once(':') else {
        return Err(Complaint::new(format!("\"{text}\" has no port"), remedy));
    };
    Ok(Endpoints { address: address(host)?, ports: ports(range)? })
}

impl FromStr for Endpoints {
    /// What is wrong and what would be right, as one line.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        endpoints(text).map_err(|complaint| complaint.to_string())
    }
}

impl TryFrom<String> for Endpoints {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Where to serve metrics.
pub(super) fn listen(text: &str) -> Parsed<SocketAddr> {
    let remedy = "write an address with a port such as \"127.0.0.1:9464\"";
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => {
            Err(Complaint::new(format!("\"{text}\" has port 0, which is none"), remedy))
        }
        Ok(address) => Ok(address),
        Err(_) => Err(Complaint::new(format!("\"{text}\" is not an address with a port"), remedy)),
    }
}

const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// "350s", "2h4m", "1d": whole numbers with d, h, m or s, larger units first, no blanks.
///
/// # Errors
/// What is wrong and what would be right, as one line.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!(
            "\"{text}\" is not a duration; write whole numbers with d, h, m or s, such as \"350s\" or \"2h4m\""
        )
    };
    let mut rest = text;
    let mut total = 0_u64;
    let mut previous_unit = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit = match rest[digits..].chars().next() {
            Some('d') => 86_400,
            Some('h') => 3_600,
            Some('m') => 60,
            Some('s') => 1,
            _ => return Err(wrong()),
        };
        if unit >= previous_unit {
            return Err(wrong());
        }
        previous_unit = unit;
        total = number.checked_mul(unit).and_then(|n| n.checked_add(total)).ok_or_else(wrong)?;
        rest = &rest[digits + 1..];
    }
    if text.is_empty() {
        return Err(wrong());
    }
    let duration = Duration::from_secs(total);
    if duration > LONGEST {
        return Err(format!("\"{text}\" is longer than a year; write at most \"365d\""));
    }
    Ok(duration)
}

pub(super) fn duration_value(text: &str) -> Parsed<Duration> {
    duration(text).map_err(|line| match line.split_once("; ") {
        Some((what, remedy)) => Complaint::new(what, remedy),
        None => Complaint::new(line, "write \"350s\""),
    })
}

/// A gateway's or pool's name: it becomes a file name, a label, an argument.
///
/// # Errors
/// What is wrong and what would be right, as one line.
pub fn name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 64 || text.starts_with('.') || !text.chars().all(allowed) {
        return Err(format!(
            "\"{text}\" is not a usable name; write 1 to 64 letters, digits, '-', '_' or '.', the first no '.'"
        ));
    }
    Ok(text.to_owned())
}

pub(super) fn name_value(text: &str) -> Parsed<String> {
    name(text).map_err(|line| match line.split_once("; ") {
        Some((what, remedy)) => Complaint::new(what, remedy),
        None => Complaint::new(line, "write \"default\""),
    })
}

/// One of a few words.
pub(super) fn word<T: Copy>(key: &str, text: &str, words: &[(&'static str, T)]) -> Parsed<T> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let all = words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
    let remedy = match nearest(text, words.iter().map(|(word, _)| *word)) {
        Some(near) => format!("did you mean \"{near}\"? It may be {all}"),
        None => format!("it may be {all}"),
    };
    Err(Complaint::new(format!("{key} cannot be \"{text}\""), remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_the_contract_are_understood() {
        assert_eq!(duration("350s"), Ok(Duration::from_secs(350)));
        assert_eq!(duration("2h4m"), Ok(Duration::from_secs(7440)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(duration("1d1s"), Ok(Duration::from_secs(86_401)));
    }

    #[test]
    fn durations_without_unit_order_or_sense_are_refused_with_an_example() {
        for text in ["", "350", "s", "4m2h", "5m5m", "-1s", "1.5s", "1 s", "99999999999999999999s"]
        {
            let error = duration(text).expect_err(text);
            assert!(error.contains("\"350s\""), "{text}: {error}");
        }
        assert!(duration("366d").expect_err("too long").contains("365d"));
    }

    #[test]
    fn port_ranges_are_inclusive_and_never_contain_zero() {
        assert_eq!(ports("443"), Ok(PortRange::single(443)));
        assert_eq!(ports("1-65535"), Ok(PortRange { first: 1, last: 65535 }));
        for text in ["0", "0-10", "10-5", "1-65536", "+1", "", "-", "a-b", "1-2-3", "1, 2"] {
            assert!(ports(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_that_could_leave_the_directory_is_refused() {
        assert!(name("edge-1.a_b").is_ok());
        for text in ["", "..", ".hidden", "a/b", "a b", &"x".repeat(65)] {
            assert!(name(text).is_err(), "{text}");
        }
    }
}
