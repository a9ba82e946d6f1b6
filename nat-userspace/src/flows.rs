//! Sessions as users see them: both halves as one row, live ones only; and what they use of each
//! public address.

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, SocketAddrV4},
    ops::ControlFlow,
    time::Instant,
};

use nat_common::{
    flow::FlowKey,
    net::{Ip4, Port, proto},
    rules::Control,
    session::{SessionImage, protocol_index},
    stage::end::in_time,
};

use crate::{
    api::model::{EndpointFilter, Flow, FlowFilter, SessionState},
    config::Protocol,
    crowds::Crowds,
    datapath::{Datapath, DatapathError, SessionBatches, SessionLookup},
    talkers::Talkers,
};

/// All that a walk needs; it may go on another thread than the datapath's.
pub struct View {
    batches: SessionBatches,
    lookup: SessionLookup,
    control: Control,
    now: u32,
    opened: Instant,
}

impl View {
    /// # Errors
    /// None is expected.
    pub fn open(datapath: &Datapath) -> Result<Self, DatapathError> {
        Ok(Self {
            batches: datapath.sessions()?,
            lookup: datapath.session_lookup()?,
            control: datapath.control()?,
            now: datapath.now()?,
            opened: Instant::now(),
        })
    }

    /// Current ticks, without asking the kernel again.
    fn now(&self) -> u32 {
        let ticks = self.opened.elapsed().as_millis() * u128::from(self.control.hz) / 1000;
        self.now.wrapping_add(ticks as u32)
    }
}

/// A live session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Of the outbound half.
    pub key: FlowKey,
    pub outbound: SessionImage,
    pub flow: Flow,
}

/// Shows every live session to `visit`, until it breaks off.
///
/// # Errors
/// Where the table cannot be read; none is expected.
pub fn walk(
    view: &mut View,
    visit: impl FnMut(&Entry) -> ControlFlow<()>,
) -> Result<(), DatapathError> {
    walk_of(view, &FlowFilter::default(), visit)
}

/// [`walk`] over the sessions that a filter means; its limit is the caller's business. The other half
/// of a session costs a call to the kernel, and is looked up for these only.
///
/// # Errors
/// Where the table cannot be read; none is expected.
pub fn walk_of(
    view: &mut View,
    filter: &FlowFilter,
    mut visit: impl FnMut(&Entry) -> ControlFlow<()>,
) -> Result<(), DatapathError> {
    view.batches.rewind();
    loop {
        let now = view.now();
        let Some(batch) = view.batches.next_batch()? else { break };
        for (key, outbound) in batch.filter(|(key, it)| it.is_outbound() && means(filter, key, it))
        {
            let inbound = view.lookup.get(&other_key(&key, &outbound))?;
            let Some(entry) = entry(&view.control, now, &key, &outbound, inbound.as_ref()) else {
                continue;
            };
            if visit(&entry).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// How many live sessions a filter means, up to its limit.
///
/// # Errors
/// Where the table cannot be read; none is expected.
pub fn count(view: &mut View, filter: &FlowFilter) -> Result<u64, DatapathError> {
    let limit = filter.limit.unwrap_or(u64::MAX);
    let mut count = 0;
    view.batches.rewind();
    loop {
        let now = view.now();
        let Some(batch) = view.batches.next_batch()? else { break };
        for (key, outbound) in batch.filter(|(key, it)| it.is_outbound() && means(filter, key, it))
        {
            if count >= limit {
                return Ok(count);
            }
            count += u64::from(lives(&view.control, &view.lookup, now, &key, &outbound)?);
        }
    }
    Ok(count)
}

/// Whether the session of this outbound half lives. The other half matters only where this one
/// alone would be over.
fn lives(
    control: &Control,
    lookup: &SessionLookup,
    now: u32,
    key: &FlowKey,
    outbound: &SessionImage,
) -> Result<bool, DatapathError> {
    if in_time(control, outbound.word(), now) {
        return Ok(true);
    }
    let inbound = lookup.get(&other_key(key, outbound))?;
    Ok(is_live(control, now, outbound, inbound.as_ref()))
}

/// What the outbound half alone says of the ends.
fn means(filter: &FlowFilter, key: &FlowKey, outbound: &SessionImage) -> bool {
    let is = |wanted: Option<EndpointFilter>, address, port| {
        wanted.is_none_or(|wanted| wanted.matches(endpoint(address, port)))
    };
    is(filter.private, key.tuple.src, key.tuple.sport)
        && is(filter.remote, key.tuple.dst, key.tuple.dport)
        && is(filter.public, outbound.tuple.src, outbound.tuple.sport)
        && filter.protocol.is_none_or(|wanted| protocol(key.protocol) == Some(wanted))
}

/// What live sessions use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    pub sessions: u64,
    pub addresses: BTreeMap<Ipv4Addr, AddressUsage>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AddressUsage {
    pub sessions: u64,
    /// Different ports that sessions of the protocol have.
    pub tcp: u64,
    pub udp: u64,
    /// Different identifiers.
    pub icmp: u64,
    /// Sessions towards the remote endpoint that has the most: tcp, udp, icmp.
    pub crowds: [u64; 3],
}

/// Counts sessions, and the ports they have, by public address.
///
/// # Errors
/// Where the table cannot be read; none is expected.
pub fn usage(view: &mut View) -> Result<Usage, DatapathError> {
    let mut tally = Tally::default();
    view.batches.rewind();
    loop {
        let now = view.now();
        let Some(batch) = view.batches.next_batch()? else { break };
        for (key, outbound) in batch.filter(|(_, session)| session.is_outbound()) {
            if lives(&view.control, &view.lookup, now, &key, &outbound)? {
                tally.add(key.protocol, &outbound);
            }
        }
    }
    Ok(tally.usage())
}

/// [`usage`], and who talks, in the same walk: the batches have both halves, and what each has counted
/// goes to the same two ends. So only a half that is over by itself costs a call to the kernel.
///
/// # Errors
/// Where the table cannot be read; none is expected.
pub fn usage_and_talkers(view: &mut View) -> Result<(Usage, Talkers), DatapathError> {
    let mut tally = Tally::default();
    let mut talkers = Talkers::default();
    view.batches.rewind();
    loop {
        let now = view.now();
        let Some(batch) = view.batches.next_batch()? else { break };
        for (key, half) in batch {
            if half.is_outbound() {
                if lives(&view.control, &view.lookup, now, &key, &half)? {
                    tally.add(key.protocol, &half);
                    talkers.add_outbound(&key, &half);
                }
            } else if half.packets > 0 && returns(&view.control, &view.lookup, now, &key, &half)? {
                talkers.add_inbound(&key, &half);
            }
        }
    }
    Ok((tally.usage(), talkers))
}

/// Whether the session of this inbound half lives. The outbound half is looked up only where this one
/// is over; that it may be dead a moment before this one is let pass.
fn returns(
    control: &Control,
    lookup: &SessionLookup,
    now: u32,
    key: &FlowKey,
    inbound: &SessionImage,
) -> Result<bool, DatapathError> {
    if in_time(control, inbound.word(), now) {
        return Ok(true);
    }
    let outbound = lookup.get(&other_key(key, inbound))?;
    Ok(outbound.is_some_and(|outbound| in_time(control, outbound.word(), now)))
}

/// The private hosts with the most sessions, `count` of them at most.
///
/// # Errors
/// Where the table cannot be read; none is expected.
pub fn busiest(view: &mut View, count: usize) -> Result<Vec<(Ipv4Addr, u64)>, DatapathError> {
    let mut hosts: HashMap<Ipv4Addr, u64> = HashMap::new();
    view.batches.rewind();
    loop {
        let now = view.now();
        let Some(batch) = view.batches.next_batch()? else { break };
        for (key, outbound) in batch.filter(|(_, session)| session.is_outbound()) {
            if lives(&view.control, &view.lookup, now, &key, &outbound)? {
                *hosts.entry(key.tuple.src.into()).or_default() += 1;
            }
        }
    }
    let mut hosts: Vec<_> = hosts.into_iter().collect();
    hosts.sort_by_key(|&(host, sessions)| (std::cmp::Reverse(sessions), host));
    hosts.truncate(count);
    Ok(hosts)
}

/// Of a half of a session, the key of the other one.
fn other_key(key: &FlowKey, half: &SessionImage) -> FlowKey {
    key.with(half.tuple.reversed())
}

/// As the dataplane says it: either half in time keeps a session that is not dead.
fn is_live(
    control: &Control,
    now: u32,
    outbound: &SessionImage,
    inbound: Option<&SessionImage>,
) -> bool {
    use nat_common::session::State;
    in_time(control, outbound.word(), now)
        || (!matches!(outbound.word().state(), State::Dead | State::None)
            && inbound.is_some_and(|inbound| in_time(control, inbound.word(), now)))
}

/// The row of a session, if it lives.
fn entry(
    control: &Control,
    now: u32,
    key: &FlowKey,
    outbound: &SessionImage,
    inbound: Option<&SessionImage>,
) -> Option<Entry> {
    if !is_live(control, now, outbound, inbound) {
        return None;
    }
    let seconds = |since: u32| {
        let ticks = now.wrapping_sub(since);
        // A packet of this very moment may be ahead of `now`.
        let ticks = if ticks > u32::MAX / 2 { 0 } else { ticks };
        u64::from(ticks / control.hz.max(1))
    };
    let idle = seconds(outbound.word().seen());
    let idle = inbound.map_or(idle, |inbound| idle.min(seconds(inbound.word().seen())));
    let flow = Flow {
        protocol: protocol(key.protocol)?,
        private: endpoint(key.tuple.src, key.tuple.sport),
        public: endpoint(outbound.tuple.src, outbound.tuple.sport),
        remote: endpoint(key.tuple.dst, key.tuple.dport),
        state: SessionState::from_word(outbound.word().state().name())?,
        age_s: seconds(outbound.created),
        idle_s: idle,
        packets_out: outbound.packets,
        packets_in: inbound.map_or(0, |inbound| inbound.packets),
        bytes_out: outbound.bytes,
        bytes_in: inbound.map_or(0, |inbound| inbound.bytes),
    };
    Some(Entry { key: *key, outbound: *outbound, flow })
}

const fn protocol(number: u8) -> Option<Protocol> {
    match number {
        proto::TCP => Some(Protocol::Tcp),
        proto::UDP => Some(Protocol::Udp),
        proto::ICMP => Some(Protocol::Icmp),
        _ => None,
    }
}

fn endpoint(address: Ip4, port: Port) -> SocketAddrV4 {
    SocketAddrV4::new(address.into(), port.get())
}

/// One bit a port.
type PortBits = Box<[u64; 1024]>;

#[derive(Default)]
struct Tally {
    sessions: u64,
    addresses: HashMap<Ip4, (u64, [Option<PortBits>; 3])>,
    crowds: Crowds,
}

impl Tally {
    fn add(&mut self, protocol: u8, outbound: &SessionImage) {
        let (address, port) = (outbound.tuple.src, outbound.tuple.sport.get());
        self.sessions += 1;
        self.crowds.add(protocol, outbound);
        let (sessions, ports) = self.addresses.entry(address).or_default();
        *sessions += 1;
        let bits = ports[protocol_index(protocol)].get_or_insert_with(|| Box::new([0; 1024]));
        bits[usize::from(port >> 6)] |= 1 << (port & 63);
    }

    fn usage(&self) -> Usage {
        let count = |bits: &Option<PortBits>| {
            bits.iter().flat_map(|bits| bits.iter()).map(|word| u64::from(word.count_ones())).sum()
        };
        let crowds = self.crowds.largest();
        let addresses = self.addresses.iter().map(|(address, (sessions, ports))| {
            let [tcp, udp, icmp] = ports.each_ref().map(count);
            let crowds = crowds.get(address).copied().unwrap_or_default();
            (Ipv4Addr::from(*address), AddressUsage { sessions: *sessions, tcp, udp, icmp, crowds })
        });
        Usage { sessions: self.sessions, addresses: addresses.collect() }
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use nat_common::{
        flow::Tuple,
        session::{State, Word, flags},
    };

    use super::*;

    const HZ: u32 = 100;
    const NOW: u32 = 50;

    fn control() -> Control {
        let mut control = Control { hz: HZ, refresh: HZ / 4, ..Control::zeroed() };
        control.timeouts = [60 * HZ; State::COUNT];
        control
    }

    fn ago(seconds: u32) -> u32 {
        NOW.wrapping_sub(seconds * HZ)
    }

    /// A query of 10.0.0.5, identifier 7, translated to identifier `public`.
    fn ping(state: State, seen: u32, public: u16) -> (FlowKey, SessionImage, SessionImage) {
        let private = Ip4::new([10, 0, 0, 5]);
        let remote = Ip4::new([203, 0, 113, 1]);
        let inside = Tuple { src: private, dst: remote, sport: Port::new(7), dport: Port::ZERO };
        let outside =
            Tuple { src: Ip4::new([198, 51, 100, 1]), sport: Port::new(public), ..inside };
        let half = |tuple, packets, flags| SessionImage {
            word: Word::new(state, 0, seen).0,
            created: ago(90),
            packets,
            bytes: packets * 84,
            tuple,
            flags,
            ..SessionImage::zeroed()
        };
        let key = FlowKey::new(inside, proto::ICMP, 0);
        (key, half(outside, 3, flags::OUTBOUND), half(inside.reversed(), 2, 0))
    }

    #[test]
    fn both_halves_make_one_row_with_the_identifier_as_port() {
        let (key, outbound, inbound) = ping(State::Icmp, ago(20), 9);
        let entry = entry(&control(), NOW, &key, &outbound, Some(&inbound)).expect("a live one");
        assert_eq!(
            serde_json::to_value(entry.flow).expect("JSON"),
            serde_json::json!({
                "protocol": "icmp", "private": "10.0.0.5:7", "public": "198.51.100.1:9",
                "remote": "203.0.113.1:0", "state": "active", "age_s": 90, "idle_s": 20,
                "packets_out": 3, "packets_in": 2, "bytes_out": 252, "bytes_in": 168,
            })
        );
    }

    #[test]
    fn a_half_in_time_keeps_the_whole_and_the_younger_one_tells_the_idle_time() {
        let (key, outbound, mut inbound) = ping(State::Icmp, ago(80), 9);
        assert_eq!(entry(&control(), NOW, &key, &outbound, Some(&inbound)), None, "both are over");
        inbound.word = Word::new(State::Icmp, 0, ago(1)).0;
        let entry = entry(&control(), NOW, &key, &outbound, Some(&inbound)).expect("a live one");
        assert_eq!(entry.flow.idle_s, 1);
    }

    #[test]
    fn a_dead_half_is_no_session_whatever_the_other_says() {
        let (key, outbound, _) = ping(State::Dead, ago(0), 9);
        let (_, _, inbound) = ping(State::Icmp, ago(0), 9);
        assert_eq!(entry(&control(), NOW, &key, &outbound, Some(&inbound)), None);
    }

    #[test]
    fn a_packet_of_this_very_moment_is_idle_for_no_time() {
        let (key, outbound, _) = ping(State::Icmp, NOW + 1, 9);
        let entry = entry(&control(), NOW, &key, &outbound, None).expect("a live one");
        assert_eq!((entry.flow.idle_s, entry.flow.packets_in), (0, 0));
    }

    #[test]
    fn the_outbound_half_alone_tells_what_a_filter_means_as_its_row_does() {
        let (key, outbound, inbound) = ping(State::Icmp, ago(1), 9);
        let row = entry(&control(), NOW, &key, &outbound, Some(&inbound)).expect("a live one").flow;
        let endpoint = |text: &str| Some(text.parse::<EndpointFilter>().expect("an endpoint"));
        for private in [None, endpoint("10.0.0.5"), endpoint("10.0.0.5:8"), endpoint("10.0.0.6")] {
            for public in [None, endpoint("198.51.100.1:9"), endpoint("198.51.100.2")] {
                for protocol in [None, Some(Protocol::Icmp), Some(Protocol::Udp)] {
                    let remote = endpoint("203.0.113.1");
                    let filter = FlowFilter { private, public, protocol, remote, limit: None };
                    assert_eq!(means(&filter, &key, &outbound), filter.matches(&row), "{filter:?}");
                }
            }
        }
    }

    #[test]
    fn sessions_that_share_a_port_are_counted_each_and_the_port_once() {
        let mut tally = Tally::default();
        for public in [9, 9, 65535, 0] {
            tally.add(proto::ICMP, &ping(State::Icmp, NOW, public).1);
        }
        tally.add(proto::TCP, &ping(State::TcpEstablished, NOW, 9).1);
        let usage = tally.usage();
        assert_eq!(usage.sessions, 5);
        let address = usage.addresses[&Ipv4Addr::new(198, 51, 100, 1)];
        assert_eq!(
            address,
            AddressUsage { sessions: 5, tcp: 1, udp: 0, icmp: 3, crowds: [1, 0, 4] }
        );
    }
}
