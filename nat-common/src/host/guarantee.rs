//! The contract's guarantee, judged by the frames alone.

use crate::{
    env::Tables as _,
    host::{World, packet::ETHERNET},
    net::{Ip4, proto},
    rules::{OneToOneKey, host_address},
    wire::Icmp,
};

impl World {
    /// A source that a rule covers, that is no address of the host, to a destination that is not
    /// exempt.
    #[must_use]
    pub fn is_protected(&self, source: Ip4, destination: Ip4) -> bool {
        if self.host_address(source).is_some_and(|held| held.flags & host_address::OWNED != 0) {
            return false;
        }
        self.one_to_one(&OneToOneKey { address: source, inbound: 0 }).is_some()
            || self.snat_rule(source).is_some_and(|rule| !self.is_exempt(rule.rule, destination))
    }

    /// What a frame that left by a public interface has shown of the inside; `None` is how it has
    /// to be. Frames to protected hosts themselves, on a wire that is both sides, are theirs.
    #[must_use]
    pub fn shown_by(&self, frame: &[u8]) -> Option<&'static str> {
        let address = |at: usize| Some(Ip4::new(frame.get(at..at + 4)?.try_into().ok()?));
        if frame.get(12..14) != Some(&[0x08, 0x00]) {
            return None;
        }
        let (source, destination) = (address(ETHERNET + 12)?, address(ETHERNET + 16)?);
        if self.is_protected(destination, Ip4::UNSPECIFIED) {
            return None;
        }
        if self.is_protected(source, destination) {
            return Some("a protected source");
        }
        let l4 = ETHERNET + usize::from(frame.get(ETHERNET)? & 15) * 4;
        let later = frame.get(20)? & 0x1f != 0 || *frame.get(21)? != 0;
        let quotes = matches!(
            *frame.get(l4)?,
            Icmp::UNREACHABLE
                | Icmp::SOURCE_QUENCH
                | Icmp::REDIRECT
                | Icmp::TIME_EXCEEDED
                | Icmp::PARAMETER_PROBLEM
        );
        if *frame.get(23)? != proto::ICMP || later || !quotes {
            return None;
        }
        let (from, to) = (address(l4 + 20)?, address(l4 + 24)?);
        (self.is_protected(from, to) || self.is_protected(to, from))
            .then_some("an ICMP error that quotes a protected address")
    }
}
