//! What is measured: each subject is a gateway in a topology of its own, all of them alive at
//! once, so that repetitions can interleave.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::{
    conntrack,
    context::Context,
    kind::Kind,
    load::{Arrivals, Blend, Load, Order, SHORT, Settings, Traffic},
    natgw::Natgw,
    topology::{GATEWAY_PUBLIC, Topology, interface_index},
};
use crate::interrupt;

/// natgw's default capacity, kept while it suffices.
const NATGW_CAPACITY: u32 = 1 << 20;

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// A packet's way from the generator to the sink, all of it.
    pub nanoseconds: f64,
    /// Packets that did not arrive, as a share of those sent.
    pub lost: f64,
    /// Packets that arrived with another source than the public address.
    pub wrong: u64,
}

/// A gateway that runs.
pub(super) struct Subject {
    pub kind: Kind,
    // Declared, and so dropped, in this order: daemon, programs, namespaces.
    natgw: Option<Natgw>,
    load: Load,
    topology: Topology,
    cpus: Vec<usize>,
    length: u32,
    round: u32,
    /// Sessions for which natgw's flow cache has its size.
    fitted: u32,
    /// Lines of memory that a floor has.
    lines: u32,
}

impl Subject {
    /// Starts a gateway of this kind with one queue for each of `cpus` and room for `sessions`,
    /// and for not less than natgw's default.
    pub(super) fn start(
        kind: Kind,
        context: &Context,
        cpus: &[usize],
        sessions: u32,
    ) -> Result<Self> {
        let capacity = sessions.next_power_of_two().max(NATGW_CAPACITY);
        Self::begin(kind, context, cpus, sessions, capacity)
    }

    /// The same with natgw's capacity as given.
    pub(super) fn start_with(
        kind: Kind,
        context: &Context,
        cpus: &[usize],
        capacity: u32,
    ) -> Result<Self> {
        Self::begin(kind, context, cpus, capacity, capacity)
    }

    fn begin(
        kind: Kind,
        context: &Context,
        cpus: &[usize],
        flows: u32,
        capacity: u32,
    ) -> Result<Self> {
        interrupt::check()?;
        let topology = Topology::build(kind.tag(), cpus.len())?;
        let tables = kind.tables(flows, capacity);
        let mut load = Load::new(&context.object, tables)?;
        let out = interface_index(&topology.gateway, "n1")?;
        {
            let _inside = topology.client.enter()?;
            load.send_from(0, interface_index(&topology.client, "c0")?)?;
            load.attach_sink("c0")?;
        }
        {
            let _inside = topology.server.enter()?;
            load.send_from(1, interface_index(&topology.server, "s0")?)?;
            match kind {
                Kind::NftSkbSink => load.attach_skb_sink("s0")?,
                _ => load.attach_sink("s0")?,
            }
        }
        if let Some(program) = kind.floor() {
            let _inside = topology.gateway.enter()?;
            load.attach_floor(program, "n0", out)?;
        }
        let mut natgw = None;
        match kind {
            Kind::GeneratorAlone | Kind::Floor | Kind::LineFloor | Kind::EntriesFloor => {}
            Kind::NftXdpSink | Kind::NftSkbSink => start_nft(&topology)?,
            Kind::DropFloor => {
                let _inside = topology.gateway.enter()?;
                load.attach_sink("n1")?;
            }
            Kind::NatgwNative | Kind::NatgwTc => {
                let binary =
                    context.natgw.as_ref().map_err(|reason| anyhow::anyhow!("{reason}"))?;
                let mode = kind.hook().unwrap_or("auto");
                natgw = Some(Natgw::start(binary, &topology.gateway, mode, capacity)?);
            }
        }
        Ok(Self {
            kind,
            natgw,
            load,
            topology,
            cpus: cpus.to_vec(),
            length: SHORT,
            round: 0,
            fitted: 0,
            lines: tables.lines,
        })
    }

    /// Uses only these of the subject's CPUs from now on.
    pub(super) fn use_cpus(&mut self, cpus: &[usize]) {
        self.cpus = cpus.to_vec();
    }

    /// Points the generator at the gateway with flows `first..first + flows`.
    pub(super) fn prepare(
        &mut self,
        traffic: Traffic,
        first: u32,
        flows: u32,
        order: Order,
    ) -> Result<()> {
        self.prepare_blend(traffic, Blend::None, first, flows, order)
    }

    /// The same with frames of a second kind among them.
    pub(super) fn prepare_blend(
        &mut self,
        traffic: Traffic,
        blend: Blend,
        first: u32,
        flows: u32,
        order: Order,
    ) -> Result<()> {
        let settings = self.settings(traffic, blend);
        self.load.configure(settings)?;
        self.load.flows(&self.cpus, first, flows, order)
    }

    /// Frames of `length` bytes from the next `prepare` on.
    pub(super) fn use_length(&mut self, length: u32) {
        self.length = length;
    }

    /// [`Traffic::UdpToOne`] goes to the `round`-th remote endpoint from the next `prepare` on.
    pub(super) fn use_round(&mut self, round: u32) {
        self.round = round;
    }

    fn settings(&self, traffic: Traffic, blend: Blend) -> Settings {
        let inbound = matches!(traffic, Traffic::UdpIn | Traffic::TcpIn | Traffic::SynAckIn);
        Settings {
            ethernet: [Topology::ethernet_out(), Topology::ethernet_in()],
            floor_ethernet: Topology::ethernet_forwarded(),
            public: self.kind.public().unwrap_or(GATEWAY_PUBLIC).to_bits(),
            round: self.round,
            generator_only: u32::from(self.kind == Kind::GeneratorAlone),
            // What comes in keeps its source.
            expected_source: match self.kind.public() {
                Some(public) if !inbound => public.to_bits(),
                _ => 0,
            },
            service_only: u32::from(matches!(blend, Blend::Flood(..))),
            lines: self.lines,
            ..Settings::of(traffic, blend, self.length)
        }
    }

    /// Creates the sessions of the flows, one packet each, every one checked at the sink:
    /// address, and both checksums recomputed.
    pub(super) fn establish(&mut self, traffic: Traffic, first: u32, flows: u32) -> Result<()> {
        self.load.configure(Settings { verify: 1, ..self.settings(traffic, Blend::None) })?;
        self.load.flows(&self.cpus[..1], first, flows, Order::Sequential)?;
        let (_, arrivals) = self.send(flows)?;
        let (name, Arrivals { packets, wrong_source, wrong_checksum }) =
            (self.kind.name(), arrivals);
        if self.kind != Kind::GeneratorAlone
            && (packets * 1000 < u64::from(flows) * 999 || wrong_source + wrong_checksum > 0)
        {
            bail!(
                "{name}: of {flows} first packets {packets} arrived, {wrong_source} with a wrong \
                 source, {wrong_checksum} with a wrong checksum; its figures would mean nothing"
            );
        }
        if flows > self.fitted
            && let Some(natgw) = &self.natgw
        {
            natgw.wait_for_cache(flows)?;
            self.fitted = flows;
        }
        Ok(())
    }

    /// Sends `packets` prepared packets on one CPU and measures them.
    pub(super) fn measure(&mut self, packets: u32) -> Result<Sample> {
        let (nanoseconds, arrivals) = self.send(packets)?;
        if self.kind == Kind::GeneratorAlone {
            return Ok(Sample { nanoseconds, lost: 0.0, wrong: 0 });
        }
        let missing = u64::from(packets).saturating_sub(arrivals.packets);
        Ok(Sample {
            nanoseconds,
            lost: missing as f64 / f64::from(packets),
            wrong: arrivals.wrong_source + arrivals.wrong_checksum,
        })
    }

    /// Sends `packets` on the CPU of this thread; returns once they have arrived or are lost.
    fn send(&mut self, packets: u32) -> Result<(f64, Arrivals)> {
        self.load.forget_arrivals()?;
        let nanoseconds = {
            let _inside = self.topology.client.enter()?;
            self.load.generate(packets)?
        };
        // The last frames may still be in the softirq's hands for a moment.
        let mut arrivals = self.load.arrivals()?;
        for _ in 0..100 {
            if arrivals.packets >= u64::from(packets) || self.kind == Kind::GeneratorAlone {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
            arrivals = self.load.arrivals()?;
        }
        Ok((nanoseconds, arrivals))
    }

    /// Sends on all CPUs of the subject at once; nanoseconds of the slowest, per packet and CPU.
    pub(super) fn measure_all_cpus(&mut self, packets: u32) -> Result<Sample> {
        self.load.forget_arrivals()?;
        let (load, client) = (&self.load, &self.topology.client);
        let runs: Vec<Result<f64>> = std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .cpus
                .iter()
                .map(|&cpu| {
                    scope.spawn(move || {
                        super::context::pin(cpu)?;
                        let _inside = client.enter()?;
                        load.generate(packets)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("generator thread")).collect()
        });
        let mut nanoseconds: f64 = 0.0;
        for run in runs {
            nanoseconds = nanoseconds.max(run?);
        }
        std::thread::sleep(Duration::from_millis(20));
        let arrivals = self.load.arrivals()?;
        let sent = f64::from(packets) * self.cpus.len() as f64;
        let lost = (sent - arrivals.packets as f64).max(0.0) / sent;
        Ok(Sample { nanoseconds, lost, wrong: arrivals.wrong_source })
    }

    /// Measures unsolicited packets, which no sink sees: lost are those that the gateway's public
    /// interface did not receive.
    pub(super) fn measure_dropped(&mut self, packets: u32) -> Result<Sample> {
        let before = self.received("n1")?;
        let nanoseconds = {
            let _inside = self.topology.client.enter()?;
            self.load.generate(packets)?
        };
        let received = self.received("n1")?.saturating_sub(before);
        let lost = u64::from(packets).saturating_sub(received) as f64 / f64::from(packets);
        Ok(Sample { nanoseconds, lost, wrong: 0 })
    }

    /// Sends `packets` prepared packets, `expected` of which the sink is to count; how many of
    /// these it did not.
    pub(super) fn count_missing(&mut self, packets: u32, expected: u32) -> Result<u64> {
        self.load.forget_arrivals()?;
        {
            let _inside = self.topology.client.enter()?;
            self.load.generate(packets)?;
        }
        let deadline = Instant::now() + Duration::from_secs(1);
        loop {
            let missing = u64::from(expected).saturating_sub(self.load.arrivals()?.packets);
            if missing == 0 || Instant::now() > deadline {
                return Ok(missing);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn received(&self, interface: &str) -> Result<u64> {
        let arguments = ["-json", "-statistics", "link", "show", interface];
        let text = self.topology.gateway.output("ip", &arguments)?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        links[0]["stats64"]["rx"]["packets"].as_u64().context("ip shows no receive counter")
    }

    /// Ends all sessions.
    pub(super) fn forget_sessions(&mut self) -> Result<()> {
        if self.kind.is_nft() {
            let _inside = self.topology.gateway.enter()?;
            conntrack::flush()?;
        }
        if self.kind == Kind::EntriesFloor {
            self.load.forget_entries()?;
        }
        self.fitted = 0;
        self.natgw.as_ref().map_or(Ok(()), Natgw::flush)
    }

    /// Makes nftables drop what comes in unasked, as a gateway with a filter does.
    pub(super) fn drop_unsolicited(&self) -> Result<()> {
        if !self.kind.is_nft() {
            return Ok(());
        }
        let rules = "table ip filter {\n\tchain input {\n\t\ttype filter hook input priority 0\n\
                     \t\tiifname \"n1\" ct state new drop\n\t}\n}\n";
        self.topology.gateway.feed("nft", &["-f", "-"], rules)
    }

    /// The daemon, where this is natgw.
    pub(super) fn natgw(&self) -> Option<&Natgw> {
        self.natgw.as_ref()
    }

    pub(super) fn load_mut(&mut self) -> &mut Load {
        &mut self.load
    }

    pub(super) fn topology(&self) -> &Topology {
        &self.topology
    }
}

/// Masquerade and nothing else; GRO gives the interfaces the NAPI that redirected frames need.
pub(super) fn start_nft(topology: &Topology) -> Result<()> {
    let rules = "table ip nat {\n\tchain postrouting {\n\t\ttype nat hook postrouting priority 100\n\
                 \t\toifname \"n1\" masquerade\n\t}\n}\n";
    topology.gateway.feed("nft", &["-f", "-"], rules)?;
    for interface in ["n0", "n1"] {
        topology.gateway.output("ethtool", &["-K", interface, "gro", "on"])?;
    }
    // Sessions must outlive the pauses in which other subjects are measured.
    topology.gateway.set("netfilter/nf_conntrack_udp_timeout", "600")?;
    topology.gateway.set("netfilter/nf_conntrack_udp_timeout_stream", "600")
}
