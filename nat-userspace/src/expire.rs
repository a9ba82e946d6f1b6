//! The sweep: finds sessions whose time is up, and bindings without sessions, and has them ended.
//!
//! This side only proposes, from copies that may be old; the reaper in the kernel looks again and
//! decides. The contract allows a session a tenth of its timeout, or 2 s, beyond it: the walk over
//! the table is spread over as much of that as is safe, a slice at a time.

use std::time::{Duration, Instant};

use nat_common::{
    flow::{FlowKey, Tuple},
    rules::Control,
    session::{BindingImage, BindingKey, SessionImage, State},
    stage::{end::in_time, request},
};
use nix::time::{ClockId, clock_gettime};

use crate::datapath::{BATCH, BindingBatches, Datapath, DatapathError, SessionBatches};

/// However long the timeouts, a walk takes no longer: resting ports and flushed tables wait for it.
const LONGEST_WALK: Duration = Duration::from_secs(10);
/// Walks over the bindings begin no sooner after one another.
const BINDINGS_EVERY: Duration = Duration::from_secs(5);
/// `step` is called in a row at least this often.
const TICK: Duration = Duration::from_secs(1);

/// Where the sweep stands. Call [`Sweeper::step`] every second, and again while it says so.
#[derive(Debug, Default)]
pub struct Sweeper {
    sessions: Option<Walk<SessionBatches>>,
    bindings: Option<BindingBatches>,
    bindings_walked: Option<Instant>,
    /// Entries that the last whole walk met.
    last_size: usize,
    /// Entries that this walk may meet: those, and what has come since.
    expected: usize,
    /// Sessions that had ever been made when the last walk that met none began: an empty table
    /// need not be walked again, which is not free, its buckets being many.
    empty_since: Option<u64>,
    created: u64,
    /// Entries of this walk, and of it in the current second.
    met: usize,
    met_in_tick: usize,
    tick: Option<Instant>,
    cost: Cost,
    /// Processor time of the last whole walk over the sessions.
    last_walk: Duration,
    /// Sessions and resting ports ended since the start.
    pub ended: u64,
}

/// What a walk over the sessions has taken of this thread so far.
#[derive(Debug, Default)]
struct Cost {
    slices: u32,
    cpu: Duration,
    longest: Duration,
    ended: u64,
}

impl Cost {
    fn add(&mut self, slice: Duration) {
        self.slices += 1;
        self.cpu += slice;
        self.longest = self.longest.max(slice);
    }

    /// `cargo xtask bench` reads this line.
    fn report(&self, entries: usize) {
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        log::debug!(
            "sweep: {entries} entries, {:.3} ms of CPU in {} slices, the longest {:.3} ms, {} ended",
            milliseconds(self.cpu),
            self.slices,
            milliseconds(self.longest),
            self.ended
        );
    }
}

/// Processor time of this thread; without it in the log where the kernel does not tell.
fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[derive(Debug)]
struct Walk<B> {
    batches: B,
    control: Control,
}

impl Sweeper {
    /// One slice of less than a millisecond. True: more is to be done in this second.
    ///
    /// # Errors
    /// Where the tables cannot be read; none is expected.
    pub fn step(&mut self, datapath: &Datapath) -> Result<bool, DatapathError> {
        if self.tick.is_none_or(|tick| tick.elapsed() >= TICK) {
            self.tick = Some(Instant::now());
            self.met_in_tick = 0;
        }
        if self.bindings.is_some() {
            return self.binding_slice(datapath);
        }
        if self.sessions.is_none() && self.bindings_are_due() {
            self.bindings_walked = Some(Instant::now());
            self.bindings = Some(datapath.bindings()?);
            return Ok(true);
        }
        let (before, ended) = (thread_time(), self.ended);
        let more = self.session_slice(datapath)?;
        if self.sessions.is_some() {
            self.cost.add(thread_time().saturating_sub(before));
            self.cost.ended += self.ended - ended;
        } else if self.cost.slices > 0 {
            self.cost.report(self.last_size);
            self.last_walk = self.cost.cpu;
            self.cost = Cost::default();
        }
        Ok(more)
    }

    /// Processor time that the last whole walk over the sessions took.
    #[must_use]
    pub const fn last_walk(&self) -> Duration {
        self.last_walk
    }

    fn session_slice(&mut self, datapath: &Datapath) -> Result<bool, DatapathError> {
        let walk = match &mut self.sessions {
            Some(walk) => walk,
            // A walk begins with a second, so that there is at most one in each.
            None if self.met_in_tick > 0 => return Ok(false),
            None => {
                let before = self.created;
                self.created = datapath.counters()?.sessions_created;
                let fresh = self.created.saturating_sub(before).saturating_mul(2);
                self.expected = self.last_size.saturating_add(fresh as usize);
                if self.empty_since == Some(self.created) {
                    return Ok(false);
                }
                self.met = 0;
                let (batches, control) = (datapath.sessions()?, datapath.control()?);
                self.sessions.insert(Walk { batches, control })
            }
        };
        let control = walk.control;
        let now = datapath.now()?;
        let Some(batch) = walk.batches.next_batch()? else {
            self.sessions = None;
            self.last_size = self.met;
            self.empty_since = (self.met == 0).then_some(self.created);
            self.met_in_tick += 1;
            return Ok(false);
        };
        self.met += batch.len();
        self.met_in_tick += batch.len();
        let candidates: Vec<FlowKey> = batch
            .filter(|(_, session)| is_candidate(&control, session, now))
            .map(|(key, _)| key)
            .collect();
        self.ended += u64::from(datapath.reap(request::EXPIRE, &candidates)?);
        Ok(self.met_in_tick < share(self.expected, walk_time(&control)))
    }

    fn bindings_are_due(&self) -> bool {
        self.bindings_walked.is_none_or(|walked| walked.elapsed() >= BINDINGS_EVERY)
    }

    fn binding_slice(&mut self, datapath: &Datapath) -> Result<bool, DatapathError> {
        let Some(bindings) = &mut self.bindings else { return Ok(false) };
        let Some(batch) = bindings.next_batch()? else {
            self.bindings = None;
            return Ok(true);
        };
        let idle: Vec<FlowKey> =
            batch.filter_map(|(key, binding)| idle_binding(&key, &binding)).collect();
        datapath.reap(request::UNBIND, &idle)?;
        Ok(true)
    }
}

/// Whether the reaper should look at this entry: its own time is up (the other half may still
/// hold the session), or it only rests a port and has rested long enough.
fn is_candidate(control: &Control, session: &SessionImage, now: u32) -> bool {
    let word = session.word();
    match word.state() {
        State::Dead if !session.is_outbound() => {
            let age = now.wrapping_sub(word.seen());
            age >= control.port_hold && age <= u32::MAX / 2
        }
        _ => !in_time(control, word, now),
    }
}

/// As the reaper wants it: the private endpoint as source, the public one as destination.
fn idle_binding(key: &BindingKey, binding: &BindingImage) -> Option<FlowKey> {
    (key.inbound == 0 && binding.refs == 0).then(|| {
        let tuple =
            Tuple { src: key.address, dst: binding.address, sport: key.port, dport: binding.port };
        FlowKey::new(tuple, key.protocol, 0)
    })
}

/// How long one walk over all sessions may take, so that none outlives its time by more than the
/// larger of a tenth of it and 2 s.
fn walk_time(control: &Control) -> Duration {
    let hz = control.hz.max(1);
    let timeouts = control.timeouts.iter().filter(|timeout| **timeout > 0);
    let shortest = timeouts.min().map_or(0, |timeout| timeout / hz);
    // Two seconds for the refresh interval, the call's own second, and the slices themselves.
    let slack = u64::from(shortest / 10).max(2);
    Duration::from_secs(slack.saturating_sub(2)).clamp(TICK, LONGEST_WALK)
}

/// Entries of one second, for a table of `size` to be walked in `time`: at least a few batches, so
/// that a small table is walked at once. A walk of one second has no limit.
fn share(size: usize, time: Duration) -> usize {
    if time <= TICK {
        return usize::MAX;
    }
    (size / time.as_secs().max(1) as usize).max(16 * BATCH)
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use nat_common::{
        net::{Ip4, Port, proto},
        session::{Word, flags},
    };

    use super::*;

    const HZ: u32 = 250;

    fn control(timeout_s: u32) -> Control {
        let mut control = Control { hz: HZ, refresh: HZ / 4, ..Control::zeroed() };
        control.timeouts[State::Udp as usize] = timeout_s * HZ;
        control
    }

    fn session(state: State, seen: u32, flags: u8) -> SessionImage {
        SessionImage { word: Word::new(state, 0, seen).0, flags, ..SessionImage::zeroed() }
    }

    #[test]
    fn a_session_is_proposed_after_its_timeout_and_not_before() {
        let control = control(60);
        let seen = u32::MAX - 100; // the ticks wrap in between
        let session = session(State::Udp, seen, flags::OUTBOUND);
        let last = seen.wrapping_add(60 * HZ + HZ / 4);
        assert!(!is_candidate(&control, &session, seen));
        assert!(!is_candidate(&control, &session, last));
        assert!(is_candidate(&control, &session, last.wrapping_add(1)));
    }

    #[test]
    fn a_packet_seen_a_moment_ahead_of_this_clock_keeps_its_session() {
        let session = session(State::Udp, 1001, flags::OUTBOUND);
        assert!(!is_candidate(&control(1), &session, 1000));
    }

    #[test]
    fn a_port_at_rest_is_proposed_when_its_hold_is_over() {
        let control = Control { port_hold: 120 * HZ, ..control(60) };
        let inbound = session(State::Dead, 1000, 0);
        assert!(!is_candidate(&control, &inbound, 1000 + 120 * HZ - 1));
        assert!(is_candidate(&control, &inbound, 1000 + 120 * HZ));
    }

    #[test]
    fn only_the_outbound_half_of_a_binding_without_sessions_is_proposed() {
        let key = BindingKey {
            address: Ip4::new([10, 0, 0, 1]),
            port: Port::new(5000),
            protocol: proto::UDP,
            inbound: 0,
        };
        let idle = BindingImage {
            address: Ip4::new([198, 51, 100, 1]),
            port: Port::new(6000),
            ..BindingImage::zeroed()
        };
        let proposed = idle_binding(&key, &idle).expect("it has no sessions");
        assert_eq!((proposed.tuple.src, proposed.tuple.dst), (key.address, idle.address));
        assert_eq!((proposed.tuple.sport, proposed.tuple.dport), (key.port, idle.port));
        assert_eq!(idle_binding(&BindingKey { inbound: 1, ..key }, &idle), None);
        assert_eq!(idle_binding(&key, &BindingImage { refs: 1, ..idle }), None);
    }

    #[test]
    fn a_walk_is_as_slow_as_the_shortest_timeout_allows() {
        assert_eq!(walk_time(&control(1)), Duration::from_secs(1));
        assert_eq!(walk_time(&control(60)), Duration::from_secs(4));
        assert_eq!(walk_time(&control(7440)), LONGEST_WALK);
    }

    #[test]
    fn a_second_does_its_share_of_a_large_table_and_all_of_a_small_one() {
        assert_eq!(share(4_000_000, Duration::from_secs(4)), 1_000_000);
        assert_eq!(share(100, Duration::from_secs(4)), 16 * BATCH);
        assert_eq!(share(4_000_000, Duration::from_secs(1)), usize::MAX);
    }
}
