//! The gateway that the tests talk to.

use std::cell::Cell;

use nat_common::{
    counters::Counters,
    env::Tables as _,
    flow::FlowKey,
    host::{
        HostFrame, Run, Way, World,
        packet::{Endpoint, Packet, Seen, ip, seen},
    },
    net::{Ip4, Mac, proto},
    next_hops::PLACES,
    parse::{Parse, parse},
    rules::{CacheShape, Control, Pool, address, control, pool, role, routing},
    session::State,
    sieve,
    stage::{Out, reap, request},
    verdict::{DropReason, Verdict},
};

pub(crate) const HOST: Ip4 = ip(10, 0, 0, 5);
pub(crate) const OTHER_HOST: Ip4 = ip(10, 0, 0, 6);
/// Has a public address of its own.
pub(crate) const SERVER: Ip4 = ip(10, 0, 0, 9);
pub(crate) const SERVER_PUBLIC: Ip4 = ip(198, 51, 100, 20);
/// A pool address that the host does not own.
pub(crate) const POOL: Ip4 = ip(198, 51, 100, 10);
/// A pool address that the host owns.
pub(crate) const OWNED: Ip4 = ip(203, 0, 113, 2);
pub(crate) const REMOTE: Ip4 = ip(192, 0, 2, 80);
pub(crate) const OTHER_REMOTE: Ip4 = ip(192, 0, 2, 81);
/// Exempt from translation.
pub(crate) const PEERED: Ip4 = ip(10, 99, 0, 1);
/// Behind the private interface, in no rule.
pub(crate) const BRANCH: Ip4 = ip(172, 16, 0, 1);
/// The gateway's own private address.
pub(crate) const GATEWAY: Ip4 = ip(10, 0, 0, 1);
pub(crate) const ROUTER: Ip4 = ip(203, 0, 113, 1);

pub(crate) const ROUTER_MAC: Mac = Mac([2, 0xaa, 0, 0, 0, 1]);
pub(crate) const INSIDE_MAC: Mac = Mac([2, 0xcc, 0, 0, 0, 2]);
pub(crate) const OUTSIDE_MAC: Mac = Mac([2, 0xcc, 0, 0, 0, 3]);

pub(crate) const HZ: u32 = 100;
/// Seconds.
pub(crate) const ESTABLISHED: u32 = 350;
pub(crate) const TRANSITORY: u32 = 60;

pub(crate) const POOL_SLOT: u32 = 1;
pub(crate) const OWNED_SLOT: u32 = 2;
pub(crate) const SERVER_SLOT: u32 = 3;

pub(crate) const EXEMPTIONS: u32 = 7;

pub(crate) struct Gateway {
    pub(crate) world: World,
    pub(crate) inside: u32,
    pub(crate) outside: u32,
}

/// Whatever a test did, the sieve has counted what the session table holds.
impl Drop for Gateway {
    fn drop(&mut self) {
        let world = &self.world;
        if std::thread::panicking() || world.sieve.is_empty() {
            return;
        }
        let mut counted = vec![0_u64; world.sieve.len()];
        for key in world.sessions.borrow().keys() {
            let (word, one) = sieve::share(key, &world.control);
            counted[word as usize] += one;
        }
        let words: Vec<u64> = world.sieve.iter().map(Cell::get).collect();
        assert_eq!(words, counted, "the sieve");
    }
}

impl Gateway {
    /// Private interface 2, public interface 3.
    pub(crate) fn two_armed() -> Self {
        let mut world = World::default();
        world.add_interface(2, role::PRIVATE, INSIDE_MAC, GATEWAY, 1500);
        world.add_interface(3, role::PUBLIC, OUTSIDE_MAC, OWNED, 1500);
        Self::with(world, 2, 3)
    }

    /// Interface 4 is both.
    pub(crate) fn one_armed() -> Self {
        let mut world = World::default();
        world.add_interface(4, role::PRIVATE | role::PUBLIC, OUTSIDE_MAC, GATEWAY, 1500);
        world.add_host_address(OWNED, 4);
        Self::with(world, 4, 4)
    }

    pub(crate) fn both() -> [Self; 2] {
        [Self::two_armed(), Self::one_armed()]
    }

    fn with(mut world: World, inside: u32, outside: u32) -> Self {
        let mut timeouts = [0; State::COUNT];
        for (state, seconds) in [
            (State::Udp, ESTABLISHED),
            (State::Icmp, TRANSITORY),
            (State::TcpOpeningOut, TRANSITORY),
            (State::TcpOpeningIn, TRANSITORY),
            (State::TcpEstablished, ESTABLISHED),
            (State::TcpFinOut, ESTABLISHED),
            (State::TcpFinIn, ESTABLISHED),
            (State::TcpClosing, TRANSITORY),
            (State::TcpReset, TRANSITORY),
        ] {
            timeouts[state as usize] = seconds * HZ;
        }
        world.control = Control {
            epoch: 1,
            heartbeat: world.now.get(),
            hz: HZ,
            generation: 1,
            flags: control::IDLE_RESET,
            mss: control::MSS_AUTO,
            refresh: HZ / 4,
            timeouts,
            cache: CacheShape { slots: 128, seed: [1, 2, 3, 4] },
            routing: routing::BY_ADDRESSES,
            // With room for the fullest of all tests.
            sieve_mask: (1 << 15) - 1,
            ..bytemuck::Zeroable::zeroed()
        };
        world.cache.resize_with(128, Default::default);
        world.next_hops.resize_with(PLACES as usize, Default::default);
        world.sieve.resize_with(1 << 15, Default::default);
        let usual = Pool {
            mapping: pool::ADDRESS_AND_PORT_DEPENDENT,
            fall_over: 1,
            ..bytemuck::Zeroable::zeroed()
        };
        let answered = address::ACTIVE | address::ANSWER_ARP;
        world.add_address(POOL_SLOT, POOL, 0, (1024, 65535), answered);
        world.add_pool(0, usual, &[POOL_SLOT]);
        let owned = address::ACTIVE | address::HOST_OWNED;
        world.add_address(OWNED_SLOT, OWNED, 1, (1024, 32767), owned);
        world.add_pool(1, usual, &[OWNED_SLOT]);
        world.add_one_to_one(SERVER_SLOT, SERVER_PUBLIC, SERVER);
        world.add_snat(ip(10, 0, 0, 0), 16, EXEMPTIONS, 0);
        world.exempt.push((EXEMPTIONS, ip(10, 99, 0, 0), 16));
        world.add_forward(proto::TCP, (POOL, 443), (OTHER_HOST, 8443));
        for port in 0..10 {
            world.add_forward(proto::UDP, (POOL, 8000 + port), (OTHER_HOST, 9000 + port));
        }
        let direct = |destination, prefix, ifindex| Way {
            destination,
            prefix,
            ifindex,
            gateway: None,
            mtu: 1500,
        };
        world.ways = vec![
            direct(ip(10, 0, 0, 0), 16, inside),
            Way { gateway: Some(HOST), ..direct(ip(172, 16, 0, 0), 16, inside) },
            Way { gateway: Some(ROUTER), ..direct(Ip4::UNSPECIFIED, 0, outside) },
        ];
        world.neighbours.insert(ROUTER, ROUTER_MAC);
        for host in [HOST, OTHER_HOST, SERVER] {
            world.neighbours.insert(host, Mac([2, 0xbb, 0, 0, 0, host.octets()[3]]));
        }
        Self { world, inside, outside }
    }

    /// The profile `rfc`: endpoint-independent mapping, address-dependent filtering, hairpin.
    pub(crate) fn rfc() -> Self {
        let mut gateway = Self::two_armed();
        gateway.world.control.flags =
            control::HAIRPIN | control::EXHAUSTION_ERROR | control::HOLD_SYN;
        gateway.world.control.port_hold = 120 * HZ;
        gateway.pool().mapping = pool::ENDPOINT_INDEPENDENT;
        gateway.pool().filtering = pool::ADDRESS_DEPENDENT;
        gateway
    }

    pub(crate) fn pool(&mut self) -> &mut Pool {
        self.world.pools.get_mut(&0).expect("the pool")
    }

    /// The pool gives out these ports only.
    pub(crate) fn limit_ports(&mut self, first: u16, last: u16) {
        let flags = address::ACTIVE | address::ANSWER_ARP | address::FORWARDS;
        self.world.add_address(POOL_SLOT, POOL, 0, (first, last), flags);
    }

    pub(crate) fn out(&self, packet: &Packet) -> Run {
        self.world.receive(self.inside, &packet.frame())
    }

    pub(crate) fn back(&self, packet: &Packet) -> Run {
        self.world.receive(self.outside, &packet.frame())
    }

    /// Sends from inside; it has to leave by the public side.
    pub(crate) fn sent_out(&self, packet: &Packet) -> Seen {
        let run = self.out(packet);
        assert_eq!(run.verdict(), Verdict::ToDestination, "{packet:?} by stages {:?}", run.stages);
        assert_eq!(run.outcome.out, Out::Slot(self.outside as u16));
        let seen = seen(&run.frame);
        assert_eq!((seen.from, seen.to), (OUTSIDE_MAC, ROUTER_MAC));
        seen
    }

    /// Sends from outside; it has to reach a private host.
    pub(crate) fn sent_back(&self, packet: &Packet) -> Seen {
        let run = self.back(packet);
        assert_eq!(run.verdict(), Verdict::ToSource, "{packet:?} by stages {:?}", run.stages);
        assert_eq!(run.outcome.out, Out::Slot(self.inside as u16));
        let seen = seen(&run.frame);
        assert_eq!(
            seen.to,
            Mac([2, 0xbb, 0, 0, 0, seen.dst.octets()[3]]),
            "the host's own MAC address"
        );
        seen
    }

    pub(crate) fn refused_out(&self, packet: &Packet) -> DropReason {
        refused(&self.out(packet))
    }

    pub(crate) fn refused_back(&self, packet: &Packet) -> DropReason {
        refused(&self.back(packet))
    }

    /// Time goes by while the daemon lives.
    pub(crate) fn pass(&mut self, ticks: u32) {
        let now = self.world.now.get().wrapping_add(ticks);
        self.world.now.set(now);
        self.world.control.heartbeat = now;
    }

    pub(crate) fn entries(&self) -> usize {
        self.world.sessions.borrow().len()
    }

    pub(crate) fn totals(&self) -> Counters {
        *self.world.totals.borrow()
    }

    /// State of the session that this packet belongs to.
    pub(crate) fn state(&self, packet: &Packet) -> Option<State> {
        self.world.session(&key(packet)).map(|session| session.word().state())
    }

    /// What the daemon's sweep does: every session is offered to the reaper.
    pub(crate) fn sweep(&self) -> usize {
        let keys: Vec<FlowKey> = self.world.sessions.borrow().keys().copied().collect();
        keys.iter().filter(|key| reap::one(&self.world, request::EXPIRE, key)).count()
    }

    /// A TCP connection from `HOST` to a remote endpoint, established.
    pub(crate) fn connect(&self, from: Endpoint, to: Endpoint) -> Endpoint {
        let public = self.sent_out(&Packet::tcp(from, to, SYN)).source();
        assert_eq!(self.sent_back(&Packet::tcp(to, public, SYN | ACK)).destination(), from);
        assert_eq!(self.sent_out(&Packet::tcp(from, to, ACK)).source(), public);
        public
    }
}

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

pub(crate) fn refused(run: &Run) -> DropReason {
    match run.verdict() {
        Verdict::Drop(reason) => {
            assert_eq!(run.outcome.out, Out::None);
            reason
        }
        verdict => panic!("{verdict:?} by stages {:?}", run.stages),
    }
}

pub(crate) fn key(packet: &Packet) -> FlowKey {
    let mut frame = HostFrame::new(1, &packet.frame());
    match parse(&mut frame, 0) {
        Parse::Ipv4(parsed) => parsed.key,
        other => panic!("{other:?}"),
    }
}
