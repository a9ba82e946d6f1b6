//! Packets that wait, and for what. No I/O and no clock: the worker brings both.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use nat_common::{flow::Tuple, net::Ip4, stage::FragmentKey, verdict::DropReason};

use super::{
    held::Held,
    room::{Room, Taken, take_one},
};

/// What a packet waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wait {
    /// The Ethernet address of a next hop.
    Neighbour { ifindex: u32, address: Ip4 },
    /// The first fragment of its datagram.
    First(FragmentKey),
    /// Nothing but the time, when a SYN of these addresses and ports is to be answered.
    Answer(Tuple),
}

impl Wait {
    /// How long, from the first packet on that waits for the same.
    const fn patience(&self) -> Duration {
        match self {
            // The kernel asks three times, a second apart.
            Self::Neighbour { .. } => Duration::from_millis(3500),
            Self::First(_) => Duration::from_secs(2),
            // RFC 5382 REQ-4.
            Self::Answer(_) => Duration::from_secs(6),
        }
    }
}

/// How much may wait at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub all: Room,
    /// Packets of them; what is left is for those that no stranger can make wait.
    pub fragments: usize,
    /// Beside the others: whoever sends SYNs takes no room of theirs.
    pub syns: Room,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            all: Room { packets: 4096, bytes: 16 << 20, per_source: 256 },
            fragments: 3072,
            syns: Room { packets: 16_384, bytes: 4 << 20, per_source: 64 },
        }
    }
}

#[derive(Debug)]
struct Group {
    packets: Vec<Held>,
    serial: u64,
    until: Instant,
    /// Its first fragment was there at an earlier look.
    seen: bool,
}

/// Every packet is in exactly one group.
#[derive(Debug, Default)]
pub struct Queue {
    limits: Limits,
    groups: HashMap<Wait, Group>,
    deadlines: BTreeMap<(Instant, u64), Wait>,
    /// Datagrams to look for, in turn.
    turns: VecDeque<(u64, FragmentKey)>,
    all: Taken,
    syns: Taken,
    /// First fragments that wait for a neighbour: the others of their datagrams come after them.
    firsts: HashMap<FragmentKey, usize>,
    fragments: usize,
    serial: u64,
}

impl Queue {
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    #[must_use]
    pub fn has_fragments(&self) -> bool {
        self.fragments > 0
    }

    /// True where it is the first packet that waits for this.
    ///
    /// # Errors
    /// The packet does not fit, and under which reason it is to be dropped.
    pub fn push(&mut self, wait: Wait, packet: Held, now: Instant) -> Result<bool, DropReason> {
        let limits = self.limits;
        let fragment = matches!(wait, Wait::First(_));
        let (fits, reason) = match wait {
            // Of a SYN that is sent again, one is answered.
            Wait::Answer(_) => (
                self.syns.fits(&packet, limits.syns) && !self.groups.contains_key(&wait),
                DropReason::Unsolicited,
            ),
            Wait::First(_) => (
                self.all.fits(&packet, limits.all) && self.fragments < limits.fragments,
                DropReason::FragmentTableFull,
            ),
            Wait::Neighbour { .. } => {
                (self.all.fits(&packet, limits.all), DropReason::SlowPathUnavailable)
            }
        };
        if !fits {
            return Err(reason);
        }
        self.fragments += usize::from(fragment);
        self.taken(&wait).add(&packet);
        if let Some(key) = first_that_waits(&wait, &packet) {
            *self.firsts.entry(key).or_default() += 1;
        }
        if let Some(group) = self.groups.get_mut(&wait) {
            group.packets.push(packet);
            return Ok(false);
        }
        self.serial += 1;
        let (serial, until) = (self.serial, now + wait.patience());
        self.deadlines.insert((until, serial), wait);
        if let Wait::First(key) = wait {
            self.turns.push_back((serial, key));
        }
        self.groups.insert(wait, Group { packets: vec![packet], serial, until, seen: false });
        Ok(true)
    }

    /// Everything that waits for this, in the order in which it is to go on: fragments by their
    /// place in the datagram, other packets as they came.
    pub fn take(&mut self, wait: &Wait) -> Vec<Held> {
        let Some(group) = self.groups.remove(wait) else { return Vec::new() };
        self.deadlines.remove(&(group.until, group.serial));
        let mut packets = group.packets;
        for packet in &packets {
            self.forget(wait, packet);
        }
        if matches!(wait, Wait::First(_)) {
            packets.sort_by_key(Held::offset);
        }
        packets
    }

    fn forget(&mut self, wait: &Wait, packet: &Held) {
        self.fragments -= usize::from(matches!(wait, Wait::First(_)));
        self.taken(wait).remove(packet);
        if let Some(key) = first_that_waits(wait, packet) {
            take_one(&mut self.firsts, &key);
        }
    }

    const fn taken(&mut self, wait: &Wait) -> &mut Taken {
        if matches!(wait, Wait::Answer(_)) { &mut self.syns } else { &mut self.all }
    }

    /// Everything whose time is up.
    pub fn expired(&mut self, now: Instant) -> Vec<Held> {
        let mut given_up = Vec::new();
        while let Some((&(until, _), &wait)) = self.deadlines.first_key_value()
            && until <= now
        {
            given_up.append(&mut self.take(&wait));
        }
        given_up
    }

    /// When the next packets' time is up.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first_key_value().map(|(&(until, _), _)| until)
    }

    /// Everything.
    pub fn drain(&mut self) -> Vec<Held> {
        let waits: Vec<Wait> = self.groups.keys().copied().collect();
        waits.iter().flat_map(|wait| self.take(wait)).collect()
    }

    #[must_use]
    pub fn waits(&self, wait: &Wait) -> bool {
        self.groups.contains_key(wait)
    }

    /// The next hops that are waited for.
    pub fn neighbours(&self) -> impl Iterator<Item = (u32, Ip4)> {
        self.groups.keys().filter_map(|wait| match *wait {
            Wait::Neighbour { ifindex, address } => Some((ifindex, address)),
            Wait::First(_) | Wait::Answer(_) => None,
        })
    }

    /// Looks for the first fragments of up to `count` datagrams, each in its turn, and takes what
    /// may go on. That is what was there at an earlier look too: the first fragment leaves its
    /// note before its session, and not at all while it waits for a neighbour itself.
    ///
    /// # Errors
    /// Those of `passed`.
    pub fn look<E>(
        &mut self,
        count: usize,
        mut passed: impl FnMut(&FragmentKey) -> Result<bool, E>,
    ) -> Result<Vec<Held>, E> {
        let mut ready = Vec::new();
        for _ in 0..count.min(self.turns.len()) {
            let Some((serial, key)) = self.turns.pop_front() else { break };
            let wait = Wait::First(key);
            let Some(group) = self.groups.get_mut(&wait).filter(|group| group.serial == serial)
            else {
                continue;
            };
            if !self.firsts.contains_key(&FragmentKey { realm: 0, ..key }) && passed(&key)? {
                if group.seen {
                    ready.append(&mut self.take(&wait));
                    continue;
                }
                group.seen = true;
            }
            self.turns.push_back((serial, key));
        }
        Ok(ready)
    }
}

fn first_that_waits(wait: &Wait, packet: &Held) -> Option<FragmentKey> {
    // Realms are not told apart here: at worst fragments wait a little longer.
    let first = matches!(wait, Wait::Neighbour { .. }) && packet.is_first_fragment();
    first.then(|| packet.fragment_key(0))
}

#[cfg(test)]
mod tests;
