//! Packets that the dataplane sent to the slow path and that never came: the device's queue was
//! full, or a former daemon died with them. Found by counting at both ends, so that `packets_held`
//! comes back to what really waits.

use crate::datapath::Waiting;

#[derive(Debug)]
pub(super) struct Losses {
    /// Count of packets sent when this daemon began to count, and at the last reckoning.
    begin: u64,
    sent: u64,
    taken: u64,
    written_off: u64,
    /// What a former daemon left.
    left: u32,
}

impl Losses {
    /// To be called before the first packet can be sent here.
    pub(super) fn since(begin: Waiting) -> Self {
        let left = begin.held.saturating_sub(begin.released);
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        Self { begin: begin.held, sent: begin.held, taken: 0, written_off: 0, left }
    }

    /// Packets came.
    pub(super) fn taken(&mut self, packets: u64) {
        self.taken += packets;
    }

    /// How many more are known to be lost. What was sent before the last reckoning has come by
    /// now, or never will; what was sent since may be on its way.
    pub(super) fn reckon(&mut self, now: Waiting) -> u32 {
        let lost = (self.sent - self.begin).saturating_sub(self.taken);
        self.sent = now.held.max(self.sent);
        let new = lost.saturating_sub(self.written_off);
        self.written_off += new;
        u32::try_from(new).unwrap_or(u32::MAX).saturating_add(std::mem::take(&mut self.left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(held: u64) -> Waiting {
        Waiting { held, released: 0 }
    }

    #[test]
    fn what_a_former_daemon_left_is_lost_at_once_and_only_once() {
        let mut losses = Losses::since(Waiting { held: 10, released: 7 });
        assert_eq!(losses.reckon(sent(10)), 3);
        assert_eq!(losses.reckon(sent(10)), 0);
    }

    #[test]
    fn what_did_not_come_until_the_next_reckoning_is_lost() {
        let mut losses = Losses::since(sent(0));
        losses.taken(5);
        assert_eq!(losses.reckon(sent(8)), 0, "three may be on their way");
        losses.taken(1);
        assert_eq!(losses.reckon(sent(8)), 2);
        assert_eq!(losses.reckon(sent(8)), 0, "counted once");
    }

    #[test]
    fn packets_that_came_before_they_were_seen_to_be_counted_are_no_gain() {
        let mut losses = Losses::since(sent(0));
        losses.taken(4);
        assert_eq!(losses.reckon(sent(3)), 0);
        assert_eq!(losses.reckon(sent(6)), 0);
        assert_eq!(losses.reckon(sent(6)), 2);
    }
}
