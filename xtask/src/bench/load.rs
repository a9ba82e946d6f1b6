//! The generator, the floor and the sink of one topology, loaded into the kernel.
//!
//! The structures mirror `nat-ebpf/src/bench/main.rs`: xtask imports no product crate.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod, TestRunAttrs, TestRunOptions,
    maps::{Array, DevMap, HashMap, MapData, PerCpuArray, PerCpuValues, ProgramArray},
    programs::{ProgramFd, SchedClassifier, TcAttachType, TestRun as _, Xdp, XdpMode},
    util::nr_cpus,
};
use nix::time::{ClockId, clock_gettime};

use super::softirq;

/// Frames that the kernel makes at a time; 16 to 256 differ by 6 %.
const BATCH: u32 = 64;
/// A 64-byte frame of the wire.
pub(super) const SHORT: u32 = 60;
/// A full one.
pub(super) const FULL: u32 = 1514;

/// What the frames are; numbers of `kind` in `nat-ebpf/src/bench/frame.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Traffic {
    /// UDP from private hosts.
    UdpOut = 0,
    /// TCP SYNs from private hosts.
    SynOut = 1,
    /// The answers to `UdpOut`.
    UdpIn = 2,
    /// UDP that nobody asked for, to the public address.
    Unsolicited = 3,
    /// The answers to `SynOut`.
    SynAckIn = 4,
    /// ACKs of connections, outwards and inwards.
    TcpOut = 5,
    TcpIn = 6,
    /// UDP to one remote endpoint.
    UdpToOne = 7,
    /// UDP to another service than `UdpOut`'s.
    UdpElsewhere = 8,
    /// ICMP echo requests.
    EchoOut = 9,
}

/// Frames of a second kind among the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blend {
    None,
    /// A random half, of the same flows.
    Half(Traffic),
    /// All but one of so many, each of another flow.
    Flood(Traffic, u32),
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Settings {
    pub ethernet: [[u32; 3]; 2],
    pub floor_ethernet: [u32; 3],
    pub traffic: u32,
    pub second_traffic: u32,
    pub blend: u32,
    pub length: u32,
    pub public: u32,
    /// The remote endpoint of [`Traffic::UdpToOne`].
    pub round: u32,
    pub generator_only: u32,
    pub expected_source: u32,
    pub service_only: u32,
    pub verify: u32,
    pub lines: u32,
}

impl Settings {
    pub(super) fn of(traffic: Traffic, blend: Blend, length: u32) -> Self {
        let (second_traffic, blend) = match blend {
            Blend::None => (0, 0),
            Blend::Half(second) => (second as u32, 1),
            Blend::Flood(second, of) => (second as u32, of),
        };
        Self { traffic: traffic as u32, second_traffic, blend, length, ..Self::default() }
    }
}

/// Flows of one CPU: `flows` of them from number `first`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Lane {
    random: u64,
    first: u32,
    flows: u32,
    next: u32,
    order: u32,
    turn: u32,
    second_next: u32,
}

/// What arrived at the sink, over all CPUs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Arrivals {
    pub packets: u64,
    pub wrong_source: u64,
    pub wrong_checksum: u64,
}

// SAFETY: plain integers without padding, any bytes are a value.
unsafe impl Pod for Settings {}
// SAFETY: as above.
unsafe impl Pod for Lane {}
// SAFETY: as above.
unsafe impl Pod for Arrivals {}

/// In which order the flows are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Uniform = 0,
    Sequential = 1,
    /// The n-th flow with a probability of about 1/n.
    Zipf = 2,
}

/// What the floors have to remember flows in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tables {
    /// Lines of memory, a power of two.
    pub lines: u32,
    /// Entries of a hash map.
    pub entries: u32,
}

/// The bench's programs in the kernel.
pub(super) struct Load {
    ebpf: Ebpf,
    random: u64,
    /// Where the second kind of frames begins with its flows.
    second_next: u32,
    length: usize,
}

impl Load {
    /// With what the floors need.
    pub(super) fn new(object: &[u8], tables: Tables) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("LINES", tables.lines.max(1));
        loader.map_max_entries("ENTRIES", tables.entries.max(1));
        let mut ebpf = loader.load(object).context("load the bench's BPF object")?;
        for name in ["generate", "rebuild", "stub", "floor", "sink", "touch", "recall", "enter"] {
            xdp(&mut ebpf, name)?.load().with_context(|| format!("load program {name}"))?;
        }
        classifier(&mut ebpf)?.load().context("load program sink_tc")?;
        Ok(Self { ebpf, random: 0x9e37_79b9_7f4a_7c15, second_next: 0, length: SHORT as usize })
    }

    pub(super) fn configure(&mut self, settings: Settings) -> Result<()> {
        self.length = settings.length as usize;
        let map = self.ebpf.map_mut("SETTINGS").context("map SETTINGS")?;
        Ok(Array::<&mut MapData, Settings>::try_from(map)?.set(0, settings, 0)?)
    }

    /// Gives each of `cpus` an equal share of `flows` flows, from number `first`.
    pub(super) fn flows(
        &mut self,
        cpus: &[usize],
        first: u32,
        flows: u32,
        order: Order,
    ) -> Result<()> {
        let share = flows / u32::try_from(cpus.len())?;
        let mut lanes = vec![Lane::default(); nr_cpus().map_err(|(_, error)| error)?];
        for (&cpu, index) in cpus.iter().zip(0u32..) {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let lane = lanes.get_mut(cpu).with_context(|| format!("there is no CPU {cpu}"))?;
            *lane = Lane {
                random: self.random,
                first: first + index * share,
                flows: share,
                next: 0,
                order: order as u32,
                turn: 0,
                // Far from each other: two CPUs, and two rounds, never share a flow.
                second_next: self.second_next.wrapping_add(index << 25),
            };
        }
        let map = self.ebpf.map_mut("LANE").context("map LANE")?;
        PerCpuArray::<&mut MapData, Lane>::try_from(map)?.set(
            0,
            PerCpuValues::try_from(lanes)?,
            0,
        )?;
        Ok(())
    }

    /// The second kind of frames begins with flow `first`.
    pub(super) fn second_flows_from(&mut self, first: u32) {
        self.second_next = first;
    }

    /// Sends generated frames of private hosts (`side` 0) or remote ones (1) out of interface
    /// `index` of the namespace this thread is in.
    pub(super) fn send_from(&mut self, side: u32, index: u32) -> Result<()> {
        self.port("GENERATOR_PORT", side, index)
    }

    /// Attaches the floor `program` to `interface`, to send out of interface `out`, both in the
    /// namespace this thread is in.
    pub(super) fn attach_floor(&mut self, program: &str, interface: &str, out: u32) -> Result<()> {
        self.port("FLOOR_PORT", 0, out)?;
        xdp(&mut self.ebpf, program)?
            .attach(interface, XdpMode::Driver)
            .with_context(|| format!("attach {program}"))?;
        Ok(())
    }

    /// Empties the hash map that the floor `enter` fills.
    pub(super) fn forget_entries(&mut self) -> Result<()> {
        let map = self.ebpf.map_mut("ENTRIES").context("map ENTRIES")?;
        let mut map = HashMap::<&mut MapData, [u32; 4], [u64; 8]>::try_from(map)?;
        let keys = map.keys().collect::<Result<Vec<_>, _>>()?;
        for key in keys {
            map.remove(&key)?;
        }
        Ok(())
    }

    fn port(&mut self, name: &str, place: u32, index: u32) -> Result<()> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("map {name}"))?;
        Ok(DevMap::try_from(map)?.set(place, index, None, 0)?)
    }

    /// Attaches the XDP sink to `interface` of the namespace this thread is in.
    pub(super) fn attach_sink(&mut self, interface: &str) -> Result<()> {
        xdp(&mut self.ebpf, "sink")?.attach(interface, XdpMode::Driver).context("attach sink")?;
        Ok(())
    }

    /// Attaches the sink for skbs to `interface`.
    pub(super) fn attach_skb_sink(&mut self, interface: &str) -> Result<()> {
        classifier(&mut self.ebpf)?
            .attach(interface, TcAttachType::Ingress)
            .context("attach sink_tc")?;
        Ok(())
    }

    /// What arrived since the last [`Self::forget_arrivals`].
    pub(super) fn arrivals(&self) -> Result<Arrivals> {
        let map = self.ebpf.map("ARRIVALS").context("map ARRIVALS")?;
        let values = PerCpuArray::<&MapData, Arrivals>::try_from(map)?.get(&0, 0)?;
        Ok(values.iter().fold(Arrivals::default(), |sum, cpu| Arrivals {
            packets: sum.packets + cpu.packets,
            wrong_source: sum.wrong_source + cpu.wrong_source,
            wrong_checksum: sum.wrong_checksum + cpu.wrong_checksum,
        }))
    }

    pub(super) fn forget_arrivals(&mut self) -> Result<()> {
        let zero = vec![Arrivals::default(); nr_cpus().map_err(|(_, error)| error)?];
        let map = self.ebpf.map_mut("ARRIVALS").context("map ARRIVALS")?;
        let mut map = PerCpuArray::<&mut MapData, Arrivals>::try_from(map)?;
        Ok(map.set(0, PerCpuValues::try_from(zero)?, 0)?)
    }

    /// Sends `packets` frames on the CPU this thread runs on, and returns nanoseconds a packet: as
    /// the kernel counts them, set-up not included, and with what it left to its softirq thread.
    pub(super) fn generate(&self, packets: u32) -> Result<f64> {
        let frame = vec![0; self.length];
        let options = TestRunOptions {
            data_in: Some(&frame),
            repeat: packets,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        };
        let before = softirq::thread_time();
        let result = self.program("generate")?.test_run(options).context("run the generator")?;
        let deferred = softirq::thread_time().saturating_sub(before);
        Ok(result.duration.as_nanos() as f64 + deferred.as_nanos() as f64 / f64::from(packets))
    }

    /// Runs the wrapper `repeat` times over one buffer, as if the frame came in by interface
    /// `ingress` of the namespace this thread is in, and returns nanoseconds a time. Fails when
    /// the last verdict is not `verdict`.
    pub(super) fn repeat(&self, repeat: u32, ingress: u32, verdict: u32) -> Result<f64> {
        let frame = [0; SHORT as usize];
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        let words = [0, SHORT, 0, ingress, 0, 0];
        let context: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            repeat,
            ..TestRunOptions::new()
        };
        // The kernel's own figure is in whole nanoseconds, too coarse to subtract.
        let before = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
        let result = self.program("rebuild")?.test_run(options).context("run the wrapper")?;
        let spent = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)? - before;
        ensure!(
            result.return_value == verdict,
            "XDP verdict {} where {verdict} was expected",
            result.return_value
        );
        Ok(Duration::from(spent).as_nanos() as f64 / f64::from(repeat))
    }

    /// Puts `callee` behind the wrapper.
    pub(super) fn call(&mut self, callee: &ProgramFd) -> Result<()> {
        let map = self.ebpf.map_mut("CALLEE").context("map CALLEE")?;
        ProgramArray::try_from(map)?
            .set(0, callee, 0)
            .context("the wrapper cannot call this program; is it an XDP program with frags?")
    }

    /// A program of the bench's own object, for [`Self::call`].
    pub(super) fn own(&self, name: &str) -> Result<ProgramFd> {
        let program = self.ebpf.program(name).with_context(|| format!("program {name}"))?;
        Ok(program.fd()?.try_clone()?)
    }

    fn program(&self, name: &str) -> Result<&Xdp> {
        Ok(self.ebpf.program(name).with_context(|| format!("program {name}"))?.try_into()?)
    }
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("program {name}"))?;
    Ok(program.try_into()?)
}

fn classifier(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier> {
    Ok(ebpf.program_mut("sink_tc").context("program sink_tc")?.try_into()?)
}
