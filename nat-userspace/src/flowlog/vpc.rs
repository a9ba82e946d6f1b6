//! The cloud's VPC flow log records, versions 2 to 5, for the fields that are asked for.
//!
//! A session that a NAT gateway carries is four flows there, as the gateway's network interfaces see
//! them: each direction once as it comes and once as it goes. `srcaddr` and `dstaddr` are those of the
//! interface where the flow ends or begins at the gateway, `pkt-srcaddr` and `pkt-dstaddr` those in
//! the packet.

use std::{collections::BTreeMap, fmt::Write as _, net::SocketAddrV4};

use jiff::Timestamp;

use super::record::{Event, Record};
use crate::config::{Protocol, VpcField, VpcFormat};

/// What stands where nothing is known.
const UNKNOWN: &str = "-";

/// The names of the gateway's interfaces, where there is only one of the side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Interfaces {
    pub(super) private: Option<String>,
    pub(super) public: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct Writer {
    fields: Vec<VpcField>,
    constants: BTreeMap<VpcField, String>,
    interfaces: Interfaces,
    version: String,
}

/// One direction at one interface.
struct Flow<'a> {
    interface: &'a Option<String>,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    packet_source: SocketAddrV4,
    packet_destination: SocketAddrV4,
    protocol: Protocol,
    packets: u64,
    bytes: u64,
    start: i64,
    end: i64,
    ingress: bool,
}

impl Writer {
    #[must_use]
    pub(super) fn new(format: &VpcFormat, interfaces: Interfaces) -> Self {
        let version = format.fields.iter().map(|field| field.version()).max().unwrap_or(2);
        Self {
            fields: format.fields.clone(),
            constants: format.constants.clone(),
            interfaces,
            version: version.to_string(),
        }
    }

    /// The names of the fields, as the first line of a file.
    #[must_use]
    pub(super) fn header(&self) -> String {
        self.fields.iter().map(|field| field.word()).collect::<Vec<_>>().join(" ")
    }

    /// Appends the flows of a record that carried anything; a session that only was opened has none
    /// yet.
    pub(super) fn lines(&self, record: &Record, buffer: &mut Vec<u8>) {
        if record.event == Event::Open {
            return;
        }
        for flow in flows(record, &self.interfaces) {
            if flow.packets > 0 {
                self.line(buffer, |field| value(field, &flow));
            }
        }
    }

    /// Appends a record that says that others are missing.
    pub(super) fn skipped(&self, from: Timestamp, to: Timestamp, buffer: &mut Vec<u8>) {
        self.line(buffer, |field| match field {
            VpcField::Start => Some(from.as_second().to_string()),
            VpcField::End => Some(to.as_second().to_string()),
            VpcField::LogStatus => Some("SKIPDATA".to_owned()),
            _ => None,
        });
    }

    fn line(&self, buffer: &mut Vec<u8>, value: impl Fn(VpcField) -> Option<String>) {
        let mut text = String::with_capacity(160);
        for &field in &self.fields {
            if !text.is_empty() {
                text.push(' ');
            }
            let constant = self.constants.get(&field).map(String::as_str);
            let known = match field {
                VpcField::Version => Some(self.version.clone()),
                _ => constant.map(str::to_owned).or_else(|| value(field)),
            };
            // A string takes everything.
            let _ = write!(text, "{}", known.as_deref().unwrap_or(UNKNOWN));
        }
        text.push('\n');
        buffer.extend_from_slice(text.as_bytes());
    }
}

fn flows<'a>(record: &Record, interfaces: &'a Interfaces) -> [Flow<'a>; 4] {
    let Record { private, public, remote, .. } = *record;
    // What the private host addresses is the gateway, as far as its interface knows; the port is
    // the remote one's.
    let gateway = SocketAddrV4::new(*public.ip(), remote.port());
    let out = (record.packets_out, record.bytes_out);
    let back = (record.packets_in, record.bytes_in);
    let flow =
        |interface, ends: (SocketAddrV4, SocketAddrV4), packet: (_, _), sums: (u64, u64)| Flow {
            interface,
            source: ends.0,
            destination: ends.1,
            packet_source: packet.0,
            packet_destination: packet.1,
            protocol: record.protocol,
            packets: sums.0,
            bytes: sums.1,
            start: record.from.as_second(),
            end: record.last_packet.clamp(record.from, record.to).as_second(),
            ingress: true,
        };
    let (inside, outside) = (&interfaces.private, &interfaces.public);
    [
        flow(inside, (private, gateway), (private, remote), out),
        Flow { ingress: false, ..flow(outside, (public, remote), (public, remote), out) },
        flow(outside, (remote, public), (remote, public), back),
        Flow { ingress: false, ..flow(inside, (gateway, private), (remote, private), back) },
    ]
}

fn value(field: VpcField, flow: &Flow<'_>) -> Option<String> {
    // As the cloud has it: ICMP has no ports.
    let port = |endpoint: SocketAddrV4| match flow.protocol {
        Protocol::Icmp => "0".to_owned(),
        _ => endpoint.port().to_string(),
    };
    Some(match field {
        VpcField::InterfaceId => flow.interface.clone()?,
        VpcField::Srcaddr => flow.source.ip().to_string(),
        VpcField::Dstaddr => flow.destination.ip().to_string(),
        VpcField::Srcport => port(flow.source),
        VpcField::Dstport => port(flow.destination),
        VpcField::Protocol => number(flow.protocol).to_string(),
        VpcField::Packets => flow.packets.to_string(),
        VpcField::Bytes => flow.bytes.to_string(),
        VpcField::Start => flow.start.to_string(),
        VpcField::End => flow.end.to_string(),
        VpcField::Action => "ACCEPT".to_owned(),
        VpcField::LogStatus => "OK".to_owned(),
        VpcField::Type => "IPv4".to_owned(),
        VpcField::PktSrcaddr => flow.packet_source.ip().to_string(),
        VpcField::PktDstaddr => flow.packet_destination.ip().to_string(),
        VpcField::FlowDirection => if flow.ingress { "ingress" } else { "egress" }.to_owned(),
        _ => return None,
    })
}

/// As IANA assigns it.
pub(super) const fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Icmp => 1,
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::record::tests::sample, *};

    fn writer(fields: &str, constants: &[(VpcField, &str)]) -> Writer {
        let fields = fields.split(' ').map(|it| VpcField::from_word(it).expect("a field"));
        let format = VpcFormat {
            fields: fields.collect(),
            constants: constants.iter().map(|(field, it)| (*field, (*it).to_owned())).collect(),
        };
        let interfaces = Interfaces { private: Some("eth1".to_owned()), public: None };
        Writer::new(&format, interfaces)
    }

    fn lines(writer: &Writer, record: &Record) -> Vec<String> {
        let mut buffer = Vec::new();
        writer.lines(record, &mut buffer);
        String::from_utf8(buffer).expect("text").lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_default_fields_are_a_version_2_record() {
        let writer = writer(VpcFormat::DEFAULT, &[(VpcField::AccountId, "123456789012")]);
        assert_eq!(
            lines(&writer, &sample()),
            [
                "2 123456789012 eth1 10.0.1.5 198.51.100.10 5000 53 17 3 300 1795269900 1795269910 ACCEPT OK",
                "2 123456789012 - 198.51.100.10 203.0.113.9 31337 53 17 3 300 1795269900 1795269910 ACCEPT OK",
                "2 123456789012 - 203.0.113.9 198.51.100.10 53 31337 17 2 800 1795269900 1795269910 ACCEPT OK",
                "2 123456789012 eth1 198.51.100.10 10.0.1.5 53 5000 17 2 800 1795269900 1795269910 ACCEPT OK",
            ]
        );
    }

    #[test]
    fn the_packets_own_addresses_and_the_version_follow_the_fields_that_are_asked_for() {
        let version_5 = writer(
            "version srcaddr dstaddr pkt-srcaddr pkt-dstaddr flow-direction type tcp-flags region traffic-path",
            &[],
        );
        let [first, .., last] = &lines(&version_5, &sample())[..] else { panic!("four lines") };
        assert_eq!(first, "5 10.0.1.5 198.51.100.10 10.0.1.5 203.0.113.9 ingress IPv4 - - -");
        assert_eq!(last, "5 198.51.100.10 10.0.1.5 203.0.113.9 10.0.1.5 egress IPv4 - - -");
        assert!(lines(&writer("version region", &[]), &sample())[0].starts_with("4 "));
        assert!(lines(&writer("version type", &[]), &sample())[0].starts_with("3 "));
    }

    #[test]
    fn a_direction_that_carried_nothing_has_no_record_and_icmp_has_no_ports() {
        let writer = writer("srcport dstport protocol packets", &[]);
        let record = Record { protocol: Protocol::Icmp, packets_in: 0, ..sample() };
        assert_eq!(lines(&writer, &record), ["0 0 1 3", "0 0 1 3"]);
        assert_eq!(lines(&writer, &Record { event: Event::Open, ..sample() }), [""; 0]);
    }

    #[test]
    fn what_was_lost_is_told_as_skipped_data() {
        let mut buffer = Vec::new();
        let (from, to) = (sample().from, sample().to);
        writer(VpcFormat::DEFAULT, &[]).skipped(from, to, &mut buffer);
        let text = String::from_utf8(buffer).expect("text");
        assert_eq!(text, "2 - - - - - - - - - 1795269900 1795270260 - SKIPDATA\n");
    }
}
