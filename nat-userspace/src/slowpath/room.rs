//! How much waits, and how much may.

use std::{collections::HashMap, hash::Hash};

use nat_common::net::Ip4;

use super::held::Held;

/// What may wait at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    pub packets: usize,
    pub bytes: usize,
    /// Packets with one source address.
    pub per_source: usize,
}

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Taken {
    packets: usize,
    bytes: usize,
    per_source: HashMap<Ip4, usize>,
}

impl Taken {
    pub(super) fn fits(&self, packet: &Held, room: Room) -> bool {
        let of_source = self.per_source.get(&packet.source()).copied().unwrap_or(0);
        self.packets < room.packets
            && self.bytes + packet.frame.len() <= room.bytes
            && of_source < room.per_source
    }

    pub(super) fn add(&mut self, packet: &Held) {
        self.packets += 1;
        self.bytes += packet.frame.len();
        *self.per_source.entry(packet.source()).or_default() += 1;
    }

    pub(super) fn remove(&mut self, packet: &Held) {
        self.packets -= 1;
        self.bytes -= packet.frame.len();
        take_one(&mut self.per_source, &packet.source());
    }
}

/// Counts one less; what is at zero is forgotten.
pub(super) fn take_one<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
