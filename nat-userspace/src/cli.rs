//! The command line: what may be written. Meaning is given to it in [`crate::cmd`].

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum, builder::PossibleValue};

use crate::{
    api::{
        capture::CaptureRequest,
        model::{EipChange, EndpointFilter, FlowFilter},
        trace::TraceQuery,
    },
    config::{self, Endpoints, Forward, Protocol, XdpMode},
    output::Format,
    top::app::Sort,
};

/// A NAT gateway in XDP: the daemon, and the commands that talk to it.
#[derive(Debug, Parser)]
#[command(name = "natgw", version, arg_required_else_help = true)]
#[command(
    after_help = "Exit status: 0 done; 1 the request failed; 2 wrong usage or a wrong configuration."
)]
pub struct Cli {
    #[command(flatten)]
    pub gateway: GatewayArgs,
    #[command(subcommand)]
    pub command: Command,
}

/// What is told of the command line itself, for packages.
#[derive(Debug, Subcommand)]
pub enum Description {
    /// Write a man page for every command into a directory
    #[command(hide = true)]
    Man { directory: PathBuf },
    /// Print the completions of a shell
    #[command(hide = true)]
    Completions { shell: clap_complete::Shell },
}

/// Which gateway of this host is meant.
#[derive(Debug, Clone, Args)]
pub struct GatewayArgs {
    /// Name of the gateway [default: default; run: gateway.name of the file]
    #[arg(long, global = true, value_name = "NAME", value_parser = config::name)]
    pub name: Option<String>,
    /// Directory that holds NAME.sock [default: /run/natgw; run: gateway.state_dir of the file]
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load, attach, serve
    Run(RunArgs),
    /// Validate a configuration file
    Check(CheckArgs),
    /// What on this host stands in the way of the gateway, and how to mend it
    Doctor(DoctorArgs),
    /// State, uptime, interfaces, addresses
    Status(OutputArgs),
    /// The metrics, once or repeatedly
    Counters(CountersArgs),
    /// Live sessions: list, count, flush
    Flows(FlowsArgs),
    /// A live view: rates, sessions, ports, who talks, what is dropped
    Top(TopArgs),
    /// What would become of a packet, and why; nothing is sent or changed
    Trace(TraceArgs),
    /// Write packets into a pcapng file, as they come and as they leave, with session and fate
    Capture(CaptureArgs),
    /// Elastic IPs: list, add, drain, remove
    #[command(subcommand)]
    Eip(EipCommand),
    /// Port forwarding: list, add, remove
    #[command(subcommand)]
    Forward(ForwardCommand),
    /// What the traffic so far would have cost on the managed gateway
    Cost(CostArgs),
    /// The flow log: who had a public endpoint, and what is written
    #[command(subcommand)]
    Log(LogCommand),
    /// Take the changed configuration file into use
    Reload(ReloadArgs),
    /// Take over sessions that another version has left pinned
    Migrate(DetachArgs),
    /// Remove everything of this gateway from the system: programs, guard, sessions
    Detach(DetachArgs),
    /// Keep what `run --confirm` would otherwise detach
    Confirm,
    #[command(flatten)]
    Describe(Description),
}

#[derive(Debug, Clone, Copy, Args)]
pub struct OutputArgs {
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Configuration file [default: /etc/natgw/natgw.toml]
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["public", "private", "eip", "source"])]
    pub config: Option<PathBuf>,
    /// Where the programs hook in; over the file's xdp_mode
    #[arg(long, value_name = "MODE")]
    pub xdp_mode: Option<XdpMode>,
    /// At SIGTERM: end translation, or let the dataplane go on alone
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = OnExit::Stop)]
    pub on_exit: OnExit,
    /// Detach everything again unless `natgw confirm` comes in this time, such as 60s
    #[arg(long, value_name = "TIME", value_parser = positive_duration)]
    pub confirm: Option<Duration>,
    /// Give up sessions of an earlier run, also those that this version cannot read
    #[arg(long)]
    pub cold: bool,
    /// Instead of a file: an interface towards the internet
    #[arg(long, value_name = "IF", requires_all = ["private", "eip", "source"])]
    pub public: Vec<String>,
    /// Instead of a file: an interface towards the private subnets
    #[arg(long, value_name = "IF", requires_all = ["public", "eip", "source"])]
    pub private: Vec<String>,
    /// Instead of a file: an address, prefix or interface to translate to
    #[arg(long, value_name = "ADDR", requires_all = ["public", "private", "source"])]
    pub eip: Vec<String>,
    /// Instead of a file: who is translated
    #[arg(long, value_name = "CIDR", requires_all = ["public", "private", "eip"])]
    pub source: Vec<String>,
}

/// What SIGTERM and SIGINT leave behind; sessions and guard stay pinned either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnExit {
    Stop,
    Keep,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Configuration file
    #[arg(short, long, value_name = "FILE", default_value = config::CONFIG_FILE)]
    pub config: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Configuration file [default: /etc/natgw/natgw.toml]
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the programs are to hook in; over the file's xdp_mode
    #[arg(long, value_name = "MODE")]
    pub xdp_mode: Option<XdpMode>,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct CountersArgs {
    /// Print again every so many seconds
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub watch: Option<u64>,
    /// List every drop reason with its meaning
    #[arg(long, conflicts_with = "watch")]
    pub explain: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct FlowsArgs {
    #[command(subcommand)]
    pub command: Option<FlowsCommand>,
    #[command(flatten)]
    pub filter: FilterArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum FlowsCommand {
    /// Print them (this is the default)
    List,
    /// Say how many there are
    Count,
    /// End them
    Flush,
}

#[derive(Debug, Clone, Copy, Args)]
pub struct FilterArgs {
    /// Only sessions of this private endpoint
    #[arg(long, global = true, value_name = "ADDR[:PORT]")]
    pub private: Option<EndpointFilter>,
    /// Only sessions with this remote endpoint
    #[arg(long, global = true, value_name = "ADDR[:PORT]")]
    pub remote: Option<EndpointFilter>,
    /// Only sessions translated to this public endpoint
    #[arg(long, global = true, value_name = "ADDR[:PORT]")]
    pub public: Option<EndpointFilter>,
    /// Only sessions of this protocol
    #[arg(long, global = true)]
    pub protocol: Option<Protocol>,
    /// At most so many sessions
    #[arg(long, global = true, value_name = "N")]
    pub limit: Option<u64>,
}

impl From<FilterArgs> for FlowFilter {
    fn from(args: FilterArgs) -> Self {
        let FilterArgs { private, remote, public, protocol, limit } = args;
        Self { private, remote, public, protocol, limit }
    }
}

#[derive(Debug, Args)]
pub struct TopArgs {
    /// Seconds between two looks
    #[arg(long, value_name = "SECS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
    /// Print one frame, of that long, and end
    #[arg(long)]
    pub once: bool,
    /// Order of hosts and destinations
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = Sort::Traffic)]
    pub sort: Sort,
    /// At most so many hosts, and as many destinations [default: 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub limit: Option<u16>,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Sender of the packet; for ICMP the port is the identifier of an echo request
    #[arg(long, value_name = "ADDR:PORT")]
    pub from: EndpointFilter,
    /// Receiver; for ICMP the port is the identifier of an echo reply
    #[arg(long, value_name = "ADDR:PORT")]
    pub to: EndpointFilter,
    /// What it carries
    #[arg(long)]
    pub protocol: Protocol,
    /// The interface that it comes by [default: the one that leads to the sender]
    #[arg(long = "in", value_name = "IF")]
    pub interface: Option<String>,
    /// TCP flags, such as syn, ack, fin+ack
    #[arg(long, value_name = "FLAGS", default_value = "syn")]
    pub tcp_flags: String,
    /// Bytes of the IP packet [default: its headers]
    #[arg(long, value_name = "BYTES")]
    pub length: Option<u16>,
    /// Time to live
    #[arg(long, value_name = "HOPS", default_value_t = 64)]
    pub ttl: u8,
    /// The packet may not be fragmented
    #[arg(long)]
    pub dont_fragment: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

impl TraceArgs {
    #[must_use]
    pub fn query(&self) -> TraceQuery {
        TraceQuery {
            from: self.from,
            to: self.to,
            protocol: self.protocol,
            interface: self.interface.clone(),
            length: self.length,
            ttl: self.ttl,
            dont_fragment: self.dont_fragment,
            tcp_flags: self.tcp_flags.clone(),
        }
    }
}

#[derive(Debug, Args)]
pub struct CaptureArgs {
    /// The file, written anew; - is the standard output
    #[arg(short, long, value_name = "FILE")]
    pub write: PathBuf,
    /// Only packets of this private endpoint
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub private: Option<EndpointFilter>,
    /// Only packets from or to this remote endpoint
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub remote: Option<EndpointFilter>,
    /// Only packets of this public endpoint
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub public: Option<EndpointFilter>,
    /// Only packets of this protocol
    #[arg(long)]
    pub protocol: Option<Protocol>,
    /// Only packets that are dropped
    #[arg(long)]
    pub drops: bool,
    /// End after so many packets
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after this time, such as 30s
    #[arg(long, value_name = "TIME", value_parser = positive_duration)]
    pub duration: Option<Duration>,
    /// Bytes to keep of each frame [default: all of it, up to 9216]
    #[arg(short, long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(14..))]
    pub snaplen: Option<u32>,
    #[command(flatten)]
    pub output: OutputArgs,
}

impl CaptureArgs {
    #[must_use]
    pub fn request(&self) -> CaptureRequest {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        CaptureRequest {
            private: self.private,
            remote: self.remote,
            public: self.public,
            protocol: self.protocol,
            drops: self.drops,
            count: self.count,
            duration_ms: self.duration.map(milliseconds),
            snaplen: self.snaplen,
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum EipCommand {
    /// Print what `status` says of addresses
    List {
        /// Only this pool's
        #[arg(long, value_name = "NAME")]
        pool: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Add an address to a pool
    Add(EipArgs),
    /// Give an address no new sessions; release it when its last one ends
    Drain {
        #[command(flatten)]
        eip: EipArgs,
        /// Release it after this time at the latest
        #[arg(long, value_name = "TIME", default_value = "350s", value_parser = max_wait)]
        max_wait: Duration,
    },
    /// End the sessions of an address and remove it at once
    Remove(EipArgs),
}

#[derive(Debug, Args)]
pub struct EipArgs {
    /// The Elastic IP
    pub address: Ipv4Addr,
    /// The pool it belongs to
    #[arg(long, value_name = "NAME")]
    pub pool: Option<String>,
    /// Also write the change into the configuration file
    #[arg(long)]
    pub save: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Subcommand)]
pub enum ForwardCommand {
    /// Print every forward
    List(OutputArgs),
    /// Add a forward
    Add(ForwardArgs),
    /// Remove a forward
    Remove(ForwardRemoveArgs),
}

#[derive(Debug, Args)]
pub struct ForwardArgs {
    /// tcp or udp
    #[arg(long, value_parser = transport)]
    pub protocol: Protocol,
    /// Where it is reached from outside
    #[arg(long, value_name = "ADDR:PORT")]
    pub public: Endpoints,
    /// Where it leads to
    #[arg(long, value_name = "ADDR:PORT")]
    pub private: Endpoints,
    /// Also write the change into the configuration file
    #[arg(long)]
    pub save: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

impl ForwardArgs {
    #[must_use]
    pub fn forward(&self) -> Forward {
        Forward { protocol: self.protocol, public: self.public, private: self.private }
    }
}

#[derive(Debug, Args)]
pub struct ForwardRemoveArgs {
    /// tcp or udp
    #[arg(long, value_parser = transport)]
    pub protocol: Protocol,
    /// Where it is reached from outside
    #[arg(long, value_name = "ADDR:PORT")]
    pub public: Endpoints,
    /// Where it leads to; may be left out, for there is one at most
    #[arg(long, value_name = "ADDR:PORT")]
    pub private: Option<Endpoints>,
    /// Also write the change into the configuration file
    #[arg(long)]
    pub save: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct CostArgs {
    /// The managed gateway's price of an hour
    #[arg(long, value_name = "PRICE", default_value_t = 0.045, value_parser = price)]
    pub hour_price: f64,
    /// The managed gateway's price of a gigabyte (1,000,000,000 bytes) that it processes
    #[arg(long, value_name = "PRICE", default_value_t = 0.045, value_parser = price)]
    pub gb_price: f64,
    /// What an hour of the machine that this gateway runs on costs
    #[arg(long, value_name = "PRICE", value_parser = price)]
    pub instance_price: Option<f64>,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Say who had a public endpoint at a time
    Who(WhoArgs),
    /// Say where records go, and how many were written and lost
    Status(OutputArgs),
}

#[derive(Debug, Args)]
pub struct WhoArgs {
    /// The public endpoint, for ICMP ADDR:ID
    #[arg(value_name = "ADDR:PORT", required_unless_present = "batch", requires = "at")]
    pub public: Option<SocketAddrV4>,
    /// When: 14:05:09 (local time, today or yesterday), "2026-11-21 14:05:09" (local time), or
    /// 2026-11-21T14:05:09Z
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
    /// tcp, udp or icmp [default: all of them]
    #[arg(long)]
    pub protocol: Option<Protocol>,
    /// With whom; a port serves many remote endpoints [default: all of them]
    #[arg(long, value_name = "ADDR:PORT")]
    pub remote: Option<SocketAddrV4>,
    /// The log, with what was rotated away from it [default: the one that the gateway writes]
    #[arg(long, value_name = "FILE")]
    pub file: Vec<PathBuf>,
    /// Answer a list of questions, a line each: ADDR:PORT [PROTOCOL] [REMOTE:PORT] TIME; - is the standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["public", "at", "protocol", "remote"])]
    pub batch: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// Say what would be done and do nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct DetachArgs {
    /// Directory of the pinned state, where the file's bpf_dir names another than the default
    #[arg(long, value_name = "DIR")]
    pub bpf_dir: Option<PathBuf>,
}

fn price(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(price) if price.is_finite() && price >= 0.0 => Ok(price),
        _ => Err("write a price such as 0.045".to_owned()),
    }
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match config::duration(text)? {
        Duration::ZERO => Err("a time of zero leaves no time to confirm; write 60s".to_owned()),
        duration => Ok(duration),
    }
}

fn max_wait(text: &str) -> Result<Duration, String> {
    let duration = config::duration(text)?;
    if duration.is_zero() || duration > EipChange::LONGEST_MAX_WAIT {
        return Err("write a time from 1s to 4000s".to_owned());
    }
    Ok(duration)
}

fn transport(text: &str) -> Result<Protocol, String> {
    match Protocol::from_word(text) {
        Some(protocol @ (Protocol::Tcp | Protocol::Udp)) => Ok(protocol),
        _ => Err("a forward is tcp or udp".to_owned()),
    }
}

macro_rules! word_values {
    ($($name:ty),+) => {$(
        impl ValueEnum for $name {
            fn value_variants<'a>() -> &'a [Self] {
                Self::ALL
            }

            fn to_possible_value(&self) -> Option<PossibleValue> {
                Some(PossibleValue::new(self.word()))
            }
        }
    )+};
}
word_values!(Protocol, XdpMode);
