//! IPFIX (RFC 7011) over UDP, with the NAT events of RFC 8158.
//!
//! Three templates: a session that was opened (natEvent 4), one that has ended (natEvent 5, with
//! the sums since the last report, both directions as RFC 5103 has them), and the report of one that
//! goes on (no natEvent). Numbers of information elements are IANA's.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{
    record::{Event, Reason, Record},
    vpc::number,
};
use crate::config::Ipfix;

const VERSION: u16 = 10;
const HEADER: usize = 16;
const SET_HEADER: usize = 4;
const TEMPLATE_SET: u16 = 2;
/// Of an IP packet that no way is too narrow for (RFC 7011 section 10.3.3: at most 1500 less
/// headers; tunnels need some).
const LARGEST: usize = 1400;
/// RFC 7011 section 8.1 and RFC 5153 section 6.2: a collector on UDP forgets templates.
const REFRESH: Duration = Duration::from_secs(60);
/// RFC 5103: the other direction of a biflow.
const REVERSE: u32 = 29305;

const NAT44_SESSION_CREATE: u8 = 4;
const NAT44_SESSION_DELETE: u8 = 5;

/// An element: number, length in bytes, enterprise.
type Element = (u16, u16, Option<u32>);

const ENDPOINTS: &[Element] = &[
    (4, 1, None),   // protocolIdentifier
    (8, 4, None),   // sourceIPv4Address
    (7, 2, None),   // sourceTransportPort
    (225, 4, None), // postNATSourceIPv4Address
    (227, 2, None), // postNAPTSourceTransportPort
    (12, 4, None),  // destinationIPv4Address
    (11, 2, None),  // destinationTransportPort
    (226, 4, None), // postNATDestinationIPv4Address
    (228, 2, None), // postNAPTDestinationTransportPort
];
const EVENT: &[Element] = &[
    (323, 8, None), // observationTimeMilliseconds
    (230, 1, None), // natEvent
];
const SUMS: &[Element] = &[
    (152, 8, None),        // flowStartMilliseconds
    (153, 8, None),        // flowEndMilliseconds
    (136, 1, None),        // flowEndReason
    (1, 8, None),          // octetDeltaCount
    (2, 8, None),          // packetDeltaCount
    (1, 8, Some(REVERSE)), // reverseOctetDeltaCount
    (2, 8, Some(REVERSE)), // reversePacketDeltaCount
];

struct Template {
    id: u16,
    parts: &'static [&'static [Element]],
}

const OPENED: Template = Template { id: 256, parts: &[EVENT, ENDPOINTS] };
const ENDED: Template = Template { id: 257, parts: &[EVENT, ENDPOINTS, SUMS] };
const GOES_ON: Template = Template { id: 258, parts: &[ENDPOINTS, SUMS] };
const TEMPLATES: [&Template; 3] = [&OPENED, &ENDED, &GOES_ON];

pub(super) struct Exporter {
    socket: UdpSocket,
    domain: u32,
    /// Data records sent before this message (RFC 7011 section 3.1), modulo 2^32.
    sequence: u32,
    message: Vec<u8>,
    /// Where the length of the set under way stands, and its template.
    set: Option<(usize, u16)>,
    /// Data records in the message.
    pending: u32,
    templates_sent: Option<Instant>,
    failing: bool,
}

impl Exporter {
    /// # Errors
    /// No socket to be had, or no way to the collector.
    pub(super) fn open(settings: &Ipfix) -> io::Result<Self> {
        let any: SocketAddr = match settings.collector {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(settings.collector)?;
        // The log never waits for a collector.
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            domain: settings.domain,
            sequence: 0,
            message: Vec::with_capacity(LARGEST),
            set: None,
            pending: 0,
            templates_sent: None,
            failing: false,
        })
    }

    /// Takes a record into the message. Returns how many were lost with one that could not be sent.
    pub(super) fn add(&mut self, record: &Record) -> u64 {
        let template = match record.event {
            Event::Open => &OPENED,
            Event::Interval => &GOES_ON,
            Event::Close => &ENDED,
        };
        let mut lost = 0;
        if self.message.len() + SET_HEADER + template.length() > LARGEST {
            lost += self.flush();
        }
        if self.message.is_empty() {
            self.begin();
        }
        if self.set.is_none_or(|(_, id)| id != template.id) {
            self.end_set();
            self.set = Some((self.message.len() + 2, template.id));
            self.put(&template.id.to_be_bytes());
            self.put(&[0, 0]);
        }
        self.data(record);
        self.pending += 1;
        lost
    }

    /// Sends what was gathered, and the templates when it is time. Returns the number of records lost.
    pub(super) fn flush(&mut self) -> u64 {
        if self.message.is_empty() {
            return 0;
        }
        self.end_set();
        let length = self.message.len() as u16;
        let seconds = Timestamp::now().as_second() as u32;
        let mut header = [0; HEADER];
        header[..2].copy_from_slice(&VERSION.to_be_bytes());
        header[2..4].copy_from_slice(&length.to_be_bytes());
        header[4..8].copy_from_slice(&seconds.to_be_bytes());
        header[8..12].copy_from_slice(&self.sequence.to_be_bytes());
        header[12..].copy_from_slice(&self.domain.to_be_bytes());
        self.message[..HEADER].copy_from_slice(&header);
        let result = self.socket.send(&self.message);
        self.message.clear();
        let records = std::mem::take(&mut self.pending);
        // A gap in the numbers tells the collector what it did not get.
        self.sequence = self.sequence.wrapping_add(records);
        match result {
            Ok(_) => {
                self.failing = false;
                0
            }
            Err(error) => {
                if !self.failing {
                    log::warn!("cannot send to the IPFIX collector: {error}; records are lost");
                }
                self.failing = true;
                // It may have come back without what it knew.
                self.templates_sent = None;
                u64::from(records)
            }
        }
    }

    /// A new message, with the templates where the collector needs them.
    fn begin(&mut self) {
        self.message.resize(HEADER, 0);
        if self.templates_sent.is_some_and(|sent| sent.elapsed() < REFRESH) {
            return;
        }
        self.templates_sent = Some(Instant::now());
        self.set = Some((self.message.len() + 2, TEMPLATE_SET));
        self.put(&TEMPLATE_SET.to_be_bytes());
        self.put(&[0, 0]);
        for template in TEMPLATES {
            self.put(&template.id.to_be_bytes());
            let count = template.elements().count() as u16;
            self.put(&count.to_be_bytes());
            for &(element, length, enterprise) in template.elements() {
                let own = if enterprise.is_some() { 0x8000 } else { 0 };
                self.put(&(element | own).to_be_bytes());
                self.put(&length.to_be_bytes());
                if let Some(enterprise) = enterprise {
                    self.put(&enterprise.to_be_bytes());
                }
            }
        }
    }

    fn end_set(&mut self) {
        if let Some((place, _)) = self.set.take() {
            let length = (self.message.len() - (place - 2)) as u16;
            self.message[place..place + 2].copy_from_slice(&length.to_be_bytes());
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.message.extend_from_slice(bytes);
    }

    fn data(&mut self, record: &Record) {
        let milliseconds = |time: Timestamp| (time.as_millisecond() as u64).to_be_bytes();
        let event = match record.event {
            Event::Open => Some((record.opened, NAT44_SESSION_CREATE)),
            Event::Close => Some((record.to, NAT44_SESSION_DELETE)),
            Event::Interval => None,
        };
        if let Some((time, event)) = event {
            self.put(&milliseconds(time));
            self.put(&[event]);
        }
        let Record { private, public, remote, .. } = record;
        self.put(&[number(record.protocol)]);
        for endpoint in [private, public, remote, remote] {
            self.put(&endpoint.ip().octets());
            self.put(&endpoint.port().to_be_bytes());
        }
        if record.event != Event::Open {
            self.put(&milliseconds(record.from));
            self.put(&milliseconds(record.last_packet.clamp(record.from, record.to)));
            self.put(&[end_reason(record.reason)]);
            for sum in [record.bytes_out, record.packets_out, record.bytes_in, record.packets_in] {
                self.put(&sum.to_be_bytes());
            }
        }
    }
}

impl Template {
    fn elements(&self) -> impl Iterator<Item = &Element> {
        self.parts.iter().flat_map(|part| part.iter())
    }

    /// Of a data record.
    fn length(&self) -> usize {
        self.elements().map(|(_, length, _)| usize::from(*length)).sum()
    }
}

/// flowEndReason: 1 idle timeout, 2 active timeout, 3 end of flow detected, 4 forced end.
const fn end_reason(reason: Option<Reason>) -> u8 {
    match reason {
        Some(Reason::Idle) => 1,
        None => 2,
        Some(Reason::Closed | Reason::Reset) => 3,
        Some(Reason::Ended) => 4,
    }
}
