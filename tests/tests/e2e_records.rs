//! The flow log accounts for every session, to the last packet and byte, and knows who had it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use jiff::Timestamp;
use nat_tests::exchange::{self, Conversation, Counts, Served, Server};
use nat_tests::wiring::{SOON, Wiring};
use netflow_parser::variable_versions::field_types::{FlowEndReason, NatEvent};
use netflow_parser::variable_versions::ipfix::FlowSetBody;
use netflow_parser::{FieldValue, NetflowPacket, NetflowParser};
use nix::sys::signal::Signal;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use serde_json::Value;
use xtask::lab::{Gateway, Lab, LabOptions, SERVER, client_address};

/// `NATGW_E2E_SESSIONS` overrides it.
const SESSIONS: usize = 2_000;
/// Ports of the server: as many sessions share a port of the client.
const PORTS: u16 = 50;
/// For the writer to have written all of it.
const WRITTEN: Duration = Duration::from_secs(120);

fn sessions() -> Result<usize> {
    std::env::var("NATGW_E2E_SESSIONS").map_or(Ok(SESSIONS), |text| {
        text.parse().with_context(|| format!("NATGW_E2E_SESSIONS={text} is no number"))
    })
}

fn lab() -> Result<Lab> {
    Wiring::TwoArmed.lab_with(LabOptions { gro: false, ..LabOptions::default() })
}

/// Conversations, and what the server counted of them.
fn converse(lab: &Lab, count: usize) -> Result<(Vec<Conversation>, Served)> {
    let server = Server::start(lab.server(), PORTS)?;
    let client = client_address(1);
    let all = exchange::converse(lab.client(1), client, SERVER, PORTS, count)?;
    Ok((all, server.finish()?))
}

/// Ends every session and waits until nothing more is to be written.
fn end_all(gateway: &Gateway, records: usize) -> Result<()> {
    gateway.natgw(&["flows", "flush"])?.success()?;
    let status = gateway.wait_for(&["log", "status"], WRITTEN, |status| {
        status["written"].as_u64().is_some_and(|written| written >= records as u64)
    })?;
    assert_eq!((status["written"].as_u64(), &status["lost"]), (Some(records as u64), &0.into()));
    Ok(())
}

fn endpoint(record: &Value, key: &str) -> Result<SocketAddrV4> {
    let text = record[key].as_str().with_context(|| format!("no {key} in {record}"))?;
    text.parse().with_context(|| format!("{key} in {record}"))
}

fn number(record: &Value, key: &str) -> Result<u64> {
    record[key].as_u64().with_context(|| format!("no {key} in {record}"))
}

/// By private and remote endpoint: the sums of the records, and the public endpoint.
type Logged = BTreeMap<(SocketAddrV4, SocketAddrV4), (Counts, SocketAddrV4)>;

/// What the endpoints counted is what was logged, session by session.
fn assert_accounted(logged: &Logged, conversations: &[Conversation], served: &Served) {
    assert_eq!(logged.len(), conversations.len());
    for conversation in conversations {
        let key = (conversation.private, conversation.remote);
        let (counts, public) = logged.get(&key).unwrap_or_else(|| panic!("no record of {key:?}"));
        assert_eq!(*counts, conversation.counts, "{key:?}, by the client");
        let server = served[&(*public, conversation.remote.port())];
        let mirrored = Counts {
            packets_out: server.packets_in,
            bytes_out: server.bytes_in,
            packets_in: server.packets_out,
            bytes_in: server.bytes_out,
        };
        assert_eq!(*counts, mirrored, "{key:?}, by the server");
    }
}

fn read_json_lines(text: &str) -> Result<Logged> {
    let mut logged = Logged::new();
    for line in text.lines() {
        let record: Value = serde_json::from_str(line).context(line.to_owned())?;
        let key = (endpoint(&record, "private")?, endpoint(&record, "remote")?);
        let public = endpoint(&record, "public")?;
        let (counts, earlier) = logged.entry(key).or_insert((Counts::default(), public));
        assert_eq!(*earlier, public, "one session, one public endpoint");
        counts.packets_out += number(&record, "packets_out")?;
        counts.bytes_out += number(&record, "bytes_out")?;
        counts.packets_in += number(&record, "packets_in")?;
        counts.bytes_in += number(&record, "bytes_in")?;
    }
    Ok(logged)
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn the_log_accounts_for_what_both_ends_counted_and_knows_who_it_was() -> Result<()> {
    let lab = lab()?;
    let file = lab.dir().join("flows.jsonl");
    let gateway = lab.start_natgw(&format!("{}\n[log]\nfile = {file:?}\n", lab.config()))?;
    let count = sessions()?;
    let (conversations, served) = converse(&lab, count)?;
    end_all(&gateway, 2 * count)?;

    let text = fs::read_to_string(&file)?;
    assert_eq!(text.lines().filter(|line| line.contains("\"open\"")).count(), count);
    let logged = read_json_lines(&text)?;
    assert_accounted(&logged, &conversations, &served);

    // All questions in one go: to the endpoint that the server saw, at a time of the client's.
    let mut questions = String::new();
    for conversation in &conversations {
        let (_, public) = logged[&(conversation.private, conversation.remote)];
        let at = Timestamp::try_from(conversation.at)?;
        questions += &format!("{public} udp {} {at:.6}\n", conversation.remote);
    }
    let list = lab.dir().join("questions");
    fs::write(&list, questions)?;
    let list = list.display().to_string();
    let answers = gateway.json(&["log", "who", "--batch", &list])?;
    let answers = answers.as_array().context("a list")?;
    assert_eq!(answers.len(), conversations.len());
    for (answer, conversation) in answers.iter().zip(&conversations) {
        let holders = answer["holders"].as_array().context("a list")?;
        let remote = conversation.remote.to_string();
        let found: Vec<_> = holders.iter().filter(|it| it["remote"] == remote).collect();
        assert_eq!(found.len(), 1, "{conversation:?}: {answer:#}");
        assert_eq!(found[0]["private"], conversation.private.to_string());
        assert_eq!(found[0]["evidence"], "log");
    }
    Ok(())
}

/// Receives IPFIX in the gateway's own namespace, and keeps the messages for later.
struct Collector {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Vec<u8>>>,
}

impl Collector {
    fn start(lab: &Lab) -> Result<Self> {
        let socket = lab.gateway().enter(|| UdpSocket::bind("127.0.0.1:0"))?;
        // The exporter does not wait: all that it sends at once must have room.
        setsockopt(&socket, RcvBufForce, &(64 << 20))?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        let address = socket.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut messages, mut buffer) = (Vec::new(), [0; 65_536]);
            loop {
                match socket.recv(&mut buffer) {
                    Ok(length) => messages.push(buffer[..length].to_vec()),
                    // Nothing for a while, and nothing more to come.
                    Err(_) if stopped.load(Ordering::Relaxed) => return messages,
                    Err(_) => {}
                }
            }
        });
        Ok(Self { address, stop, thread })
    }

    fn finish(self) -> Vec<Vec<u8>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the collector does not panic")
    }
}

/// A data record, as the decoder reads it: values by the decoder's names of the elements.
fn decoded(messages: &[Vec<u8>]) -> Result<Vec<BTreeMap<String, FieldValue>>> {
    let mut parser = NetflowParser::default();
    let mut records = Vec::new();
    for message in messages {
        let result = parser.parse_bytes(message);
        ensure!(result.error.is_none(), "{:?}", result.error);
        for packet in result.packets {
            let NetflowPacket::IPFix(ipfix) = packet else { bail!("no IPFIX: {packet:?}") };
            // Data records before this message, of which none is missing.
            assert_eq!(ipfix.header.sequence_number as usize, records.len());
            for set in ipfix.flowsets {
                match set.body {
                    FlowSetBody::Data(data) => {
                        records.extend(data.fields.into_iter().map(|record| {
                            let named = |(field, value)| (format!("{field:?}"), value);
                            record.into_iter().map(named).collect()
                        }));
                    }
                    FlowSetBody::Template(_) | FlowSetBody::Templates(_) => {}
                    other => bail!("not decoded: {other:?}"),
                }
            }
        }
    }
    Ok(records)
}

fn read_ipfix(messages: &[Vec<u8>]) -> Result<Logged> {
    let mut logged = Logged::new();
    for record in decoded(messages)? {
        let value = |name: &str| {
            let name = format!("IANA({name})");
            record.get(&name).with_context(|| format!("no {name} in {record:?}"))
        };
        let sum = |name: &str| -> Result<u64> {
            let value = record.get(name).with_context(|| format!("no {name} in {record:?}"))?;
            u64::try_from(value).map_err(|error| anyhow!("{name}: {error}"))
        };
        let endpoint = |address: &str, port: &str| -> Result<SocketAddrV4> {
            let FieldValue::Ip4Addr(address) = value(address)? else { bail!("{address}") };
            let port = u16::try_from(value(port)?).map_err(|error| anyhow!("{port}: {error}"))?;
            Ok(SocketAddrV4::new(*address, port))
        };
        let private = endpoint("SourceIpv4address", "SourceTransportPort")?;
        let public = endpoint("PostNatsourceIpv4address", "PostNaptsourceTransportPort")?;
        let remote = endpoint("DestinationIpv4address", "DestinationTransportPort")?;
        match value("NatEvent")? {
            FieldValue::NatEvent(NatEvent::Nat44SessionCreate) => {
                let earlier = logged.insert((private, remote), (Counts::default(), public));
                assert_eq!(earlier, None, "one session, one beginning");
            }
            FieldValue::NatEvent(NatEvent::Nat44SessionDelete) => {
                let (counts, opened) = logged.get_mut(&(private, remote)).context("no begin")?;
                assert_eq!(*opened, public);
                assert_eq!(*counts, Counts::default(), "one session, one end");
                *counts = Counts {
                    packets_out: sum("IANA(PacketDeltaCount)")?,
                    bytes_out: sum("IANA(OctetDeltaCount)")?,
                    packets_in: sum("ReverseInformationElement(ReversePacketDeltaCount)")?,
                    bytes_in: sum("ReverseInformationElement(ReverseOctetDeltaCount)")?,
                };
                let forced = FieldValue::FlowEndReason(FlowEndReason::ForcedEnd);
                assert_eq!(value("FlowEndReason")?, &forced, "ended by a command");
            }
            other => bail!("a NAT event {other:?}"),
        }
    }
    Ok(logged)
}

const VPC_FIELDS: &str = "srcaddr dstaddr srcport dstport pkt-srcaddr pkt-dstaddr packets bytes \
                          flow-direction";

/// The flows at the private interface, which name both ends; those at the public one must agree.
fn assert_vpc_accounts(text: &str, logged: &Logged) -> Result<()> {
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some(VPC_FIELDS));
    let mut sums: BTreeMap<(SocketAddrV4, SocketAddrV4), [u64; 4]> = BTreeMap::new();
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, _, from_port, to_port, from, to, packets, bytes, _] = words[..] else {
            bail!("{line}")
        };
        let end = |address: &str, port: &str| format!("{address}:{port}").parse();
        let key = (end(from, from_port)?, end(to, to_port)?);
        let sum = sums.entry(key).or_default();
        let egress = usize::from(line.ends_with("egress")) * 2;
        sum[egress] += packets.parse::<u64>()?;
        sum[egress + 1] += bytes.parse::<u64>()?;
    }
    for (&(private, remote), (counts, public)) in logged {
        let flow = |from, to| sums.get(&(from, to)).copied().unwrap_or_default();
        let out = [counts.packets_out, counts.bytes_out];
        let back = [counts.packets_in, counts.bytes_in];
        // Where the public port is the private one's, as here, the packets' own addresses differ.
        assert_eq!(flow(private, remote), [out[0], out[1], 0, 0], "{private} in");
        assert_eq!(flow(*public, remote), [0, 0, out[0], out[1]], "{private} out");
        assert_eq!(flow(remote, *public), [back[0], back[1], 0, 0], "{private} back in");
        assert_eq!(flow(remote, private), [0, 0, back[0], back[1]], "{private} back out");
    }
    assert_eq!(sums.len(), 4 * logged.len());
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn an_independent_decoder_and_the_vpc_records_account_for_the_same() -> Result<()> {
    let lab = lab()?;
    let file = lab.dir().join("vpc.log");
    let collector = Collector::start(&lab)?;
    let gateway = lab.start_natgw(&format!(
        "{}\n[log]\nfile = {file:?}\nformat = \"vpc\"\nfields = \"{VPC_FIELDS}\"\nipfix = \"{}\"\n",
        lab.config(),
        collector.address
    ))?;
    let count = sessions()?;
    let (conversations, served) = converse(&lab, count)?;
    end_all(&gateway, 2 * count)?;
    let logged = read_ipfix(&collector.finish())?;
    assert_accounted(&logged, &conversations, &served);
    assert_vpc_accounts(&fs::read_to_string(&file)?, &logged)
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_living_session_is_reported_in_parts_that_add_up_and_a_renamed_file_is_let_go() -> Result<()> {
    let lab = lab()?;
    let file = lab.dir().join("flows.jsonl");
    let mut gateway =
        lab.start_natgw(&format!("{}\n[log]\nfile = {file:?}\ninterval = \"1s\"\n", lab.config()))?;
    let (first, _) = converse(&lab, 20)?;
    let reported = |at_least: usize| {
        let limit = SOON * 3;
        gateway.wait_for(&["log", "status"], limit, |status| {
            status["written"].as_u64().is_some_and(|written| written >= at_least as u64)
        })
    };
    // Opened, and reported once: nothing new is nothing to report.
    reported(40)?;
    let aside = lab.dir().join("flows.jsonl.1");
    fs::rename(&file, &aside)?;
    // The same endpoints again, so the same sessions.
    let (second, served) = converse(&lab, 20)?;
    reported(60)?;
    gateway.signal(Signal::SIGUSR1)?;
    let limit = std::time::Instant::now();
    while !file.exists() {
        assert!(limit.elapsed() < SOON, "the file is not made anew");
        std::thread::sleep(Duration::from_millis(5));
    }
    end_all(&gateway, 80)?;

    let (before, after) = (fs::read_to_string(&aside)?, fs::read_to_string(&file)?);
    assert_eq!(after.lines().filter(|line| line.contains("\"close\"")).count(), 20);
    let logged = read_json_lines(&format!("{before}{after}"))?;
    assert_eq!(served.len(), 20);
    for (one, two) in first.iter().zip(&second) {
        let (counts, _) = logged[&(one.private, one.remote)];
        let both = Counts {
            packets_out: one.counts.packets_out + two.counts.packets_out,
            bytes_out: one.counts.bytes_out + two.counts.bytes_out,
            packets_in: one.counts.packets_in + two.counts.packets_in,
            bytes_in: one.counts.bytes_in + two.counts.bytes_in,
        };
        assert_eq!(counts, both, "{one:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn nobody_is_an_answer_with_an_exit_status_of_its_own() -> Result<()> {
    let lab = lab()?;
    let file = lab.dir().join("flows.jsonl");
    let gateway = lab.start_natgw(&format!("{}\n[log]\nfile = {file:?}\n", lab.config()))?;
    let asked = format!("{}:31337", lab.eip());
    let output = gateway.natgw(&["log", "who", &asked, "--at", "14:05:09"])?;
    assert_eq!((output.status.code(), output.stdout.as_str()), (Some(1), ""));
    assert!(output.stderr.contains(&format!("nobody had {asked}")), "{}", output.stderr);
    let output = gateway.natgw(&["log", "who", &asked, "--at", "five"])?;
    assert_eq!(output.status.code(), Some(2), "{}", output.stderr);
    Ok(())
}
