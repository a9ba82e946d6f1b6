//! Frames of every kind, made by chance from a seed: whole ones, errors about earlier ones, and
//! damaged ones. Every private endpoint has ports of its own, so that each keeps its own through
//! translation and nothing depends on the gateway's random numbers.

use nat_common::{
    host::packet::{Packet, Payload, mend_ip},
    net::Ip4,
};

use crate::kernel::{GATEWAY, HOST, OTHER_HOST, OWNED, SERVER};

pub const POOL: Ip4 = Ip4::new([198, 51, 100, 10]);
pub const SERVER_PUBLIC: Ip4 = Ip4::new([198, 51, 100, 20]);
pub const REMOTE: Ip4 = Ip4::new([192, 0, 2, 80]);
pub const OTHER_REMOTE: Ip4 = Ip4::new([192, 0, 2, 81]);
const PEERED: Ip4 = Ip4::new([10, 99, 0, 1]);
const BRANCH: Ip4 = Ip4::new([172, 16, 0, 1]);
const STRANGER: Ip4 = Ip4::new([172, 20, 0, 1]);
const MULTICAST: Ip4 = Ip4::new([224, 0, 0, 251]);

/// One pool for all hosts; `pool` is more lines of it.
#[must_use]
pub fn one_pool(pool: &str) -> String {
    format!(
        "[[pool]]\nname = \"a\"\naddresses = [\"{POOL}\"]\n{pool}\n\
         [[snat]]\nsource = [\"10.0.0.0/8\"]\npool = \"a\"\n"
    )
}

/// The rules that the frames are made for; `pool` is more lines of the pool.
#[must_use]
pub fn rules(pool: &str) -> String {
    format!(
        "[[pool]]\nname = \"a\"\naddresses = [\"{POOL}\"]\n{pool}\n\
         [[snat]]\nsource = [\"10.0.0.0/16\"]\npool = \"a\"\nexempt = [\"{PEERED}/32\"]\n\
         [[forward]]\nprotocol = \"tcp\"\npublic = \"{POOL}:443\"\nprivate = \"{OTHER_HOST}:8443\"\n\
         [[forward]]\nprotocol = \"udp\"\npublic = \"{POOL}:8000-8003\"\nprivate = \"{OTHER_HOST}:9000-9003\"\n\
         [[one_to_one]]\npublic = \"{SERVER_PUBLIC}\"\nprivate = \"{SERVER}\"\n"
    )
}

/// xorshift (Marsaglia 2003): equal seeds make equal frames.
#[derive(Clone, Debug)]
pub struct Generator {
    state: u64,
    /// IP packets that went out before, to quote.
    seen: Vec<Vec<u8>>,
}

impl Generator {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: seed | 1, seen: Vec::new() }
    }

    fn number(&mut self, below: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 20) as usize % below
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.number(all.len())]
    }

    /// Remembers what the gateway sent, for errors about it.
    pub fn remember(&mut self, frame: &[u8]) {
        let packet = frame[14..].to_vec();
        if self.seen.len() < 256 {
            self.seen.push(packet);
        } else {
            let place = self.number(256);
            self.seen[place] = packet;
        }
    }

    fn port_of(&mut self, address: Ip4) -> u16 {
        let any = self.number(4) as u16;
        match address {
            HOST => 5000 + any,
            OTHER_HOST => [6000, 6001, 8443, 9000][usize::from(any)],
            SERVER => 7000 + any,
            POOL => {
                let all = [5000, 5001, 5002, 5003, 6000, 6001, 443, 8000, 8003, 1, 44444];
                self.one_of(&all)
            }
            _ => [53, 80, 443, 40000][usize::from(any)],
        }
    }

    /// A frame, and whether it comes from inside.
    pub fn frame(&mut self) -> (Vec<u8>, bool) {
        let inside = self.number(2) == 0;
        let packet = match self.number(12) {
            0 if !self.seen.is_empty() => self.error(inside),
            _ => self.packet(inside),
        };
        let mut frame = packet.frame();
        match self.number(10) {
            0 => self.damage(&mut frame),
            1 => frame.resize(frame.len().max(60) + self.number(4), 0xee),
            _ => {}
        }
        (frame, inside)
    }

    fn packet(&mut self, inside: bool) -> Packet {
        let insiders = [HOST, HOST, HOST, OTHER_HOST, OTHER_HOST, SERVER, STRANGER, REMOTE];
        let outsiders = [REMOTE, REMOTE, REMOTE, OTHER_REMOTE, OTHER_REMOTE, HOST, STRANGER];
        let from_inside = [
            REMOTE,
            REMOTE,
            REMOTE,
            OTHER_REMOTE,
            POOL,
            SERVER_PUBLIC,
            GATEWAY,
            OWNED,
            PEERED,
            BRANCH,
            OTHER_HOST,
            MULTICAST,
        ];
        let from_outside = [
            POOL,
            POOL,
            POOL,
            POOL,
            POOL,
            SERVER_PUBLIC,
            OWNED,
            GATEWAY,
            HOST,
            MULTICAST,
            STRANGER,
        ];
        let (src, dst) = if inside {
            (self.one_of(&insiders), self.one_of(&from_inside))
        } else {
            (self.one_of(&outsiders), self.one_of(&from_outside))
        };
        let (sport, dport) = (self.port_of(src), self.port_of(dst));
        let mut packet = match self.number(16) {
            0..6 => Packet::udp((src, sport), (dst, dport)),
            6..12 => {
                let flags = self.one_of(&[2, 2, 2, 18, 16, 16, 17, 4, 20, 0, 3]);
                let mut packet = Packet::tcp((src, sport), (dst, dport), flags);
                if let Payload::Tcp { options, .. } = &mut packet.payload {
                    *options = match self.number(3) {
                        0 => vec![],
                        1 => vec![2, 4, 0x05, 0xb4],
                        _ => vec![1, 2, 4, 0x23, 0x00, 1, 1, 1],
                    };
                }
                packet
            }
            12 => Packet::ping((src, sport), dst),
            13 => Packet::pong(src, (dst, dport)),
            14 => {
                let kind = self.number(20) as u8;
                let [high, low] = sport.to_be_bytes();
                Packet::icmp(src, dst, kind, 0, [high, low, 0, 0])
            }
            _ => {
                let protocol = self.one_of(&[2, 33, 47, 50, 132, 136]);
                Packet::new(src, dst, Payload::Other(protocol))
            }
        };
        let size = self.one_of(&[0, 1, 7, 12, 30, 31, 200, 1300]);
        packet.data = (0..size).map(|byte| byte as u8).collect();
        packet.ttl = self.one_of(&[64, 64, 64, 64, 255, 2, 1, 0]);
        packet.options = vec![1; self.one_of(&[0, 0, 0, 4, 40])];
        packet.dont_fragment = self.number(2) == 0;
        packet.tos = self.one_of(&[0, 0, 0x10, 0xb8]);
        if let Payload::Udp { checksum, .. } = &mut packet.payload {
            *checksum = self.number(8) != 0;
        }
        packet
    }

    /// An error about something that was on the wire.
    fn error(&mut self, inside: bool) -> Packet {
        let place = self.number(self.seen.len());
        let quoted = self.seen[place].clone();
        let about = Ip4::new([quoted[12], quoted[13], quoted[14], quoted[15]]);
        let src = if inside {
            self.one_of(&[HOST, OTHER_HOST, SERVER])
        } else {
            self.one_of(&[REMOTE, OTHER_REMOTE, STRANGER])
        };
        let dst = if self.number(8) == 0 { POOL } else { about };
        let (kind, code) = self.one_of(&[(3, 0), (3, 3), (3, 4), (11, 0), (12, 0), (4, 0), (5, 1)]);
        let bytes = self.one_of(&[0, 19, 20, 27, 28, 28, 36, 38, 68, 500]);
        Packet::error(src, dst, kind, code, &quoted, bytes)
    }

    fn damage(&mut self, frame: &mut Vec<u8>) {
        for _ in 0..=self.number(3) {
            // Not the addresses: chance would find broadcasts and neighbours of its own. Not the
            // offset and identification of fragments either, which have a test of their own.
            let places: Vec<usize> =
                [12, 13, 14, 16, 17, 22, 23, 24, 25].into_iter().chain(34..70).collect();
            let place = self.one_of(&places).min(frame.len() - 1);
            if !(26..34).contains(&place) && !(18..22).contains(&place) {
                frame[place] = self.number(256) as u8;
            }
        }
        let header = usize::from(frame[14] & 15) * 4;
        if self.number(2) == 0 && header >= 20 && frame.len() >= 14 + header {
            mend_ip(frame);
        }
        if self.number(4) == 0 {
            frame.truncate(14 + self.number(60));
        }
    }
}
