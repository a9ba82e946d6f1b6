//! The sweep: finds sessions whose time is up, ports that have rested, and bindings without sessions,
//! and has them ended.
//!
//! The daemon knows every session by name: from a walk over the table when it starts, and from then
//! on by what the dataplane notes ([`nat_common::agenda`]). Each is filed under the second in which
//! its time can be up at the earliest, and looked at then: in the flow cache, which costs little, and
//! by the reaper in the kernel where that does not say that it lives. A state may change meanwhile to
//! one with a shorter timeout, so nothing is filed further away than the shortest of its protocol.
//!
//! This side only proposes; the reaper decides. The contract allows a session a tenth of its timeout,
//! or 2 s, beyond it. A walk is spread over as much of that as is safe, a slice at a time.

mod cost;
mod judge;
mod walk;
mod wheel;

use std::{
    mem,
    time::{Duration, Instant},
};

use nat_common::{
    agenda::Note,
    flow::{FlowKey, Tuple},
    rules::Control,
    session::{BindingImage, BindingKey, State},
    stage::request,
};

use self::{
    cost::{Cost, thread_time},
    judge::{Judged, Shortest, first_look, is_later, judge, seconds},
    walk::Walk,
    wheel::Wheel,
};
use crate::datapath::{Agenda, BindingBatches, Datapath, DatapathError, Taken};

/// What may have gone astray is found by a walk, which begins no sooner after the last one.
const WALK_EVERY: Duration = Duration::from_secs(600);
/// Walks over the bindings begin no sooner after one another.
const BINDINGS_EVERY: Duration = Duration::from_secs(5);
/// `step` is called in a row at least this often.
const TICK: Duration = Duration::from_secs(1);
/// After so long a slice gives way; what it has begun takes some tens of microseconds more.
const SLICE: Duration = Duration::from_micros(400);
/// Notes that are taken in one slice.
const HEARD: usize = 8192;
/// Notes that are looked at between two looks at the clock.
const LOOKED: usize = request::BATCH;
/// Times the room of the agenda, which has some for a quarter of all sessions: more notes than these are mostly
/// of sessions that have ended early.
const CROWD: usize = 16;

/// Where the sweep stands. Call [`Sweeper::step`] every second, and again while it says so.
#[derive(Debug)]
pub struct Sweeper {
    began: Instant,
    agenda: Option<Agenda>,
    wheel: Wheel,
    walk: Option<Walk>,
    walked: Option<Instant>,
    /// Something was missed, or the timeouts are others.
    wants_walk: bool,
    bindings: Option<BindingBatches>,
    bindings_walked: Option<Instant>,
    /// Entries that the last whole walk met.
    last_size: usize,
    /// As of this second.
    control: Option<Control>,
    tick: Option<Instant>,
    /// Of this second's looks.
    cost: Cost,
    last_second: Duration,
    notes: Vec<Note>,
    /// Those that are being looked at.
    due: Vec<Note>,
    /// Those that the reaper is to be asked about.
    asked: Vec<Note>,
    /// Sessions and resting ports ended since the start.
    pub ended: u64,
}

impl Default for Sweeper {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            agenda: None,
            wheel: Wheel::default(),
            walk: None,
            walked: None,
            wants_walk: true,
            bindings: None,
            bindings_walked: None,
            last_size: 0,
            control: None,
            tick: None,
            cost: Cost::default(),
            last_second: Duration::ZERO,
            notes: Vec::new(),
            due: Vec::new(),
            asked: Vec::new(),
            ended: 0,
        }
    }
}

impl Sweeper {
    /// One slice of less than a millisecond. True: more is to be done in this second.
    ///
    /// # Errors
    /// Where the tables cannot be read; none is expected.
    pub fn step(&mut self, datapath: &Datapath) -> Result<bool, DatapathError> {
        if self.tick.is_none_or(|tick| tick.elapsed() >= TICK) {
            self.begin_second(datapath)?;
        }
        if self.bindings.is_some() {
            return self.binding_slice(datapath);
        }
        if self.bindings_walked.is_none_or(|walked| walked.elapsed() >= BINDINGS_EVERY) {
            self.bindings_walked = Some(Instant::now());
            self.bindings = Some(datapath.bindings()?);
            return Ok(true);
        }
        let Some(control) = self.control else { return Ok(false) };
        let (before, ended) = (thread_time(), self.ended);
        let walking = self.walk.as_ref().is_some_and(|walk| walk.has_time(&control));
        let more =
            if walking { self.walk_on(datapath, &control) } else { self.look(datapath, &control) };
        let cost = match &mut self.walk {
            Some(walk) if walking => &mut walk.cost,
            _ => &mut self.cost,
        };
        cost.add(thread_time().saturating_sub(before));
        cost.ended += self.ended - ended;
        self.end_walk();
        more
    }

    /// Processor time that looking at sessions took in the last second in which that was over.
    #[must_use]
    pub const fn last_second(&self) -> Duration {
        self.last_second
    }

    fn second(&self) -> u64 {
        self.began.elapsed().as_secs()
    }

    fn begin_second(&mut self, datapath: &Datapath) -> Result<(), DatapathError> {
        let cost = mem::take(&mut self.cost);
        self.last_second = cost.cpu;
        if cost.looks > 0 {
            cost.report("sweep", self.wheel.len());
        }
        self.tick = Some(Instant::now());
        let control = datapath.control()?;
        let before = self.control.replace(control);
        self.wants_walk |= before.is_some_and(|before| {
            (before.timeouts, before.port_hold) != (control.timeouts, control.port_hold)
        });
        match &mut self.agenda {
            Some(agenda) => {
                agenda.look();
                self.wants_walk |= self.wheel.len() > CROWD * agenda.room();
            }
            None => self.agenda = Some(datapath.agenda()?),
        }
        if let Some(walk) = &mut self.walk {
            walk.met_in_tick = 0;
        } else if self.wants_walk || self.walked.is_none_or(|it| it.elapsed() >= WALK_EVERY) {
            self.begin_walk(datapath)?;
        }
        Ok(())
    }

    /// From here on everything is filed anew: what is there by the walk, what comes by its note.
    fn begin_walk(&mut self, datapath: &Datapath) -> Result<(), DatapathError> {
        self.wants_walk = false;
        self.walked = Some(Instant::now());
        self.wheel.clear();
        self.due.clear();
        self.asked.clear();
        if let Some(agenda) = &mut self.agenda {
            agenda.skip();
        }
        let counters = datapath.counters()?;
        let there = counters.sessions_created.saturating_sub(counters.sessions_ended) as usize;
        self.walk = Some(Walk {
            batches: datapath.sessions()?,
            expected: self.last_size.max(there.saturating_mul(2)),
            met: 0,
            met_in_tick: 0,
            began: datapath.now()?,
            cost: Cost::default(),
        });
        Ok(())
    }

    fn walk_on(&mut self, datapath: &Datapath, control: &Control) -> Result<bool, DatapathError> {
        let (second, now, shortest) = (self.second(), datapath.now()?, Shortest::new(control));
        let Some(walk) = &mut self.walk else { return Ok(false) };
        let Some(batch) = walk.batches.next_batch()? else {
            walk.met_in_tick = usize::MAX;
            return Ok(true);
        };
        walk.met += batch.len();
        walk.met_in_tick += batch.len();
        walk.cost.looks += batch.len();
        let mut candidates = Vec::new();
        for (key, session) in batch {
            let (word, due) = match judge(control, &session, now) {
                // What the wheel does not know, or cannot: a half that has lost the other.
                Judged::Over if !session.is_outbound() => {
                    candidates.push(key);
                    continue;
                }
                Judged::Over => (session.word(), second),
                // It is noted.
                Judged::Left(_) if is_later(session.created, walk.began) => continue,
                Judged::Left(ticks) => {
                    let ticks = ticks.min(shortest.of(key.protocol));
                    (session.word(), second + seconds(control, ticks))
                }
                Judged::Other => continue,
            };
            let rests = word.state() == State::Dead;
            let note = if rests { Note::resting(&key, word) } else { Note::of(&key, word) };
            self.wheel.file(due, note);
        }
        self.ended += u64::from(datapath.reap(request::EXPIRE, &candidates)?);
        Ok(true)
    }

    fn end_walk(&mut self) {
        if let Some(walk) = self.walk.take_if(|walk| walk.met_in_tick == usize::MAX) {
            self.last_size = walk.met;
            walk.cost.report("walk", walk.met);
        }
    }

    /// Files what was noted, and looks at what is due.
    fn look(&mut self, datapath: &Datapath, control: &Control) -> Result<bool, DatapathError> {
        let (second, shortest) = (self.second(), Shortest::new(control));
        if self.hear(second, control, &shortest) {
            return Ok(true);
        }
        let began = Instant::now();
        let now = datapath.now()?;
        while began.elapsed() < SLICE {
            if self.due.is_empty() && !self.wheel.take(second, &mut self.due) {
                self.ask(datapath, second, control, &shortest)?;
                return Ok(!self.asked.is_empty());
            }
            let from = self.due.len().saturating_sub(LOOKED);
            self.cost.looks += self.due.len() - from;
            let seen = datapath.seen_by_cache(&self.due[from..]);
            for (note, seen) in self.due.drain(from..).zip(seen) {
                match seen.map(|seen| shortest.left(note.0.protocol, seen, now)) {
                    Some(left) if left >= control.hz => {
                        self.wheel.file(second + seconds(control, left), note);
                    }
                    _ => self.asked.push(note),
                }
            }
            if self.asked.len() >= request::BATCH {
                self.ask(datapath, second, control, &shortest)?;
            }
        }
        Ok(true)
    }

    /// Files what was noted. True: there is more of that.
    fn hear(&mut self, second: u64, control: &Control, shortest: &Shortest) -> bool {
        let Some(agenda) = &mut self.agenda else { return false };
        let taken = agenda.take(HEARD, &mut self.notes);
        if taken == Taken::Lost {
            log::debug!("more sessions came in a second than there is room to note");
            self.wants_walk = true;
        }
        for note in self.notes.drain(..) {
            let rests = if note.rests() { control.port_hold } else { u32::MAX };
            let due = first_look(control, shortest.of(note.0.protocol).min(rests));
            self.wheel.file(second + due, note);
        }
        taken == Taken::More
    }

    /// Has the reaper look at what the cache does not know, as much as goes into a request.
    fn ask(
        &mut self,
        datapath: &Datapath,
        second: u64,
        control: &Control,
        shortest: &Shortest,
    ) -> Result<(), DatapathError> {
        let from = self.asked.len().saturating_sub(request::BATCH);
        let notes = &self.asked[from..];
        if notes.is_empty() {
            return Ok(());
        }
        self.cost.asked += notes.len();
        let (ended, answers) = datapath.look(notes)?;
        self.ended += u64::from(ended);
        for (note, ticks) in self.asked.drain(from..).zip(answers) {
            if ticks != request::GONE {
                let ticks = ticks.min(shortest.of(note.0.protocol));
                self.wheel.file(second + seconds(control, ticks), note);
            }
        }
        Ok(())
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

/// As the reaper wants it: the private endpoint as source, the public one as destination.
fn idle_binding(key: &BindingKey, binding: &BindingImage) -> Option<FlowKey> {
    (key.inbound == 0 && binding.refs == 0).then(|| {
        let tuple =
            Tuple { src: key.address, dst: binding.address, sport: key.port, dport: binding.port };
        FlowKey::new(tuple, key.protocol, 0)
    })
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use nat_common::net::{Ip4, Port, proto};

    use super::*;

    pub(super) const HZ: u32 = 250;

    pub(super) fn control(timeout_s: u32) -> Control {
        let mut control = Control { hz: HZ, refresh: HZ / 4, ..Control::zeroed() };
        control.timeouts[State::Udp as usize] = timeout_s * HZ;
        control
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
}
