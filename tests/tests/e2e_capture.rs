//! `natgw capture`: packets as they came and as they left, read back by tcpdump; and the gateway
//! under traffic while captures begin and end, in every way in which they can end.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nat_tests::datagrams::Datagrams;
use nat_tests::stream::{self, Stream, echo_server};
use nat_tests::wiring::{SOON, Wiring, at_server};
use nix::sys::signal::Signal;
use rstest::rstest;
use xtask::lab::{Lab, Process, SERVER, client_address, dns, natgw_binary};

/// An option of a packet: code, value.
type Options = Vec<(u16, Vec<u8>)>;
/// A capture loads some twenty programs of its own first, which a busy machine takes its time for.
const LOADED: Duration = Duration::from_secs(60);

const COMMENT: u16 = 1;
const FLAGS: u16 = 2;
const PACKET_ID: u16 = 5;
const VERDICT: u16 = 7;
/// What `epb_verdict` begins with: whose verdict it is.
const TC: u8 = 1;
const XDP: u8 = 2;

/// A packet block of the file.
struct Packet {
    /// Number of its interface in the file.
    interface: u32,
    kept: usize,
    /// Bytes of the whole frame.
    length: usize,
    options: Options,
}

impl Packet {
    fn option(&self, code: u16) -> Vec<u8> {
        let found = self.options.iter().find(|(it, _)| *it == code);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    }

    fn comment(&self) -> String {
        String::from_utf8_lossy(&self.option(COMMENT)).into_owned()
    }
}

fn file(lab: &Lab) -> PathBuf {
    lab.dir().join("file.pcapng")
}

/// Starts a capture into [`file`], and waits until it runs.
fn capture(lab: &Lab, more: &[&str]) -> Result<Process> {
    let (natgw, state, file) = (natgw_binary()?, lab.state_dir(), file(lab));
    let [natgw, state, file] = [&natgw, &state, &file].map(|path| path.display().to_string());
    let fixed = [&natgw, "--name", lab.name(), "--state-dir", &state, "capture", "-w", &file];
    let mut process = lab.gateway().spawn(fixed.iter().chain(more))?;
    process.wait_for_line("capturing", LOADED)?;
    Ok(process)
}

/// What tcpdump reads in a file, a packet a line.
fn tcpdump(path: &Path) -> Result<Vec<String>> {
    let output = std::process::Command::new("tcpdump").arg("-nr").arg(path).output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

/// Every packet block: by hand, so that the crate that wrote them is not
/// asked about itself (draft-ietf-opsawg-pcapng, section 4.3).
fn packets(path: &Path) -> Result<Vec<Packet>> {
    const ENHANCED_PACKET: u32 = 6;
    let bytes = fs::read(path)?;
    let word = |at: usize| -> Result<u32> {
        Ok(u32::from_le_bytes(bytes.get(at..at + 4).context("a whole block")?.try_into()?))
    };
    let (mut found, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let length = word(at + 4)? as usize;
        assert_eq!(word(at + length - 4)? as usize, length, "both lengths of a block");
        if word(at)? == ENHANCED_PACKET {
            let kept = word(at + 20)? as usize;
            let (mut option, mut options) = (at + 28 + kept.next_multiple_of(4), Vec::new());
            loop {
                let [code, length] =
                    [0, 16].map(|shift| (word(option).unwrap_or(0) >> shift) as u16);
                if code == 0 {
                    break;
                }
                let value = &bytes[option + 4..option + 4 + usize::from(length)];
                options.push((code, value.to_vec()));
                option += 4 + usize::from(length).next_multiple_of(4);
            }
            let (interface, length) = (word(at + 8)?, word(at + 24)? as usize);
            found.push(Packet { interface, kept, length, options });
        }
        at += length;
    }
    Ok(found)
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_packet_is_read_as_it_came_and_as_it_left_joined_by_its_session(
    #[values(Wiring::TwoArmed, Wiring::OneArmed, Wiring::TwoArmedTc, Wiring::OneArmedTc)]
    wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let _gateway = lab.start_natgw(&lab.config())?;
    let names = dns::DnsServer::start(lab.server(), 53)?;
    let private = client_address(1).to_string();
    let filter = ["--private", &private, "--protocol", "udp", "--count", "2", "-s", "60"];
    let running = capture(&lab, &filter)?;
    // Another host's packets are not asked for.
    assert_eq!(dns::exchange(lab.client(2), at_server(names.port()), 1, SOON)?.lost(), 0);
    assert_eq!(dns::exchange(lab.client(1), at_server(names.port()), 1, SOON)?.lost(), 0);
    let said = running.wait(SOON)?.success()?;
    assert_eq!(said.trim(), "2 packets captured, 0 lost");

    let lines = tcpdump(&file(&lab))?;
    let ways = [
        (format!("{private}."), format!("{SERVER}.53")),
        (format!("{}.", lab.eip()), format!("{SERVER}.53")),
        (format!("{SERVER}.53"), format!("{}.", lab.eip())),
        (format!("{SERVER}.53"), format!("{private}.")),
    ];
    assert_eq!(lines.len(), ways.len(), "{lines:#?}");
    for (line, (from, to)) in lines.iter().zip(&ways) {
        assert!(
            line.contains(&format!("IP {from}")) && line.contains(&format!("> {to}")),
            "{line}"
        );
    }

    let packets = packets(&file(&lab))?;
    let query = packets[0].comment();
    let session = query.split(';').next().context("a session")?;
    assert!(session.starts_with(&format!("udp session {private}:")), "{query}");
    assert!(session.ends_with(&format!(" -> {SERVER}:53")), "{query}");
    assert!(query.contains("sent to the destination by"), "{query}");
    let hook = if is_tc(wiring) { TC } else { XDP };
    for (number, packet) in packets.iter().enumerate() {
        assert!(packet.comment().starts_with(session), "{}: {session}", packet.comment());
        assert!(packet.kept <= 60, "the snapshot is as short as asked");
        let direction = if number % 2 == 0 { 1 } else { 2 };
        assert_eq!(packet.option(FLAGS), [direction, 0, 0, 0]);
        let id = u8::try_from(number / 2 + 1)?;
        assert_eq!(packet.option(PACKET_ID), [id, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(packet.option(VERDICT).first(), Some(&hook));
    }
    if !wiring.is_one_armed() {
        assert_ne!(packets[0].interface, packets[1].interface, "it leaves by the other interface");
    }
    Ok(())
}

/// Many packets travel as one there, and are shown as one: how long it was, however little is kept.
#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_packet_that_is_many_is_read_whole_as_it_came_and_as_it_left() -> Result<()> {
    const WRITE: usize = 60_000;
    let lab = Wiring::TwoArmedTc.lab()?;
    let echo = echo_server(lab.server(), 7)?;
    let gateway = lab.start_natgw(&lab.config())?;
    let mut connection = stream::connect(lab.client(1), at_server(echo.port()), SOON)?;
    let mut running = capture(&lab, &["--protocol", "tcp", "-s", "128"])?;
    for _ in 0..20 {
        stream::echo(&mut connection, &vec![7; WRITE])?;
    }
    running.signal(Signal::SIGINT)?;
    let said = running.wait(SOON)?.success()?;
    assert!(said.trim().ends_with(" 0 lost"), "{said}");

    let packets = packets(&file(&lab))?;
    // What the kernel makes of it, each with Ethernet, IP and TCP headers, timestamps included.
    let many = |packet: &Packet| match packet.length.checked_sub(66) {
        Some(payload) if payload > 1448 => Some(payload.div_ceil(1448)),
        _ => None,
    };
    let mut large = 0;
    for pair in packets.chunks(2) {
        let [came, left] = pair else { anyhow::bail!("one that did not leave") };
        assert_eq!(came.option(PACKET_ID), left.option(PACKET_ID));
        assert_eq!(came.length, left.length);
        assert!(came.kept <= 128 && left.kept <= 128);
        for packet in pair {
            let comment = packet.comment();
            match many(packet) {
                Some(many) => {
                    assert!(comment.contains(&format!("; {many} packets in one; ")), "{comment}");
                    large += 1;
                }
                None => assert!(!comment.contains("packets in one"), "{comment}"),
            }
        }
    }
    assert!(large > 0, "none of {} is many", packets.len());
    assert_eq!(tcpdump(&file(&lab))?.len(), packets.len());
    assert_eq!(gateway.counter("packets_drop_count")?, 0);
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn what_is_dropped_is_read_with_its_reason_and_the_rest_is_not(
    #[values(Wiring::TwoArmed, Wiring::TwoArmedTc)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let gateway = lab.start_natgw(&lab.config())?;
    let names = dns::DnsServer::start(lab.server(), 53)?;
    let mut running = capture(&lab, &["--drops"])?;
    let second = gateway.natgw(&["capture", "-w", "-"])?;
    assert_eq!((second.code(), second.stdout.as_str()), (Some(1), ""));
    assert!(second.stderr.contains("another capture runs"), "{}", second.stderr);
    assert_eq!(dns::exchange(lab.client(1), at_server(names.port()), 1, SOON)?.lost(), 0);
    let stranger = lab.server().enter(|| -> Result<()> {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        Ok(socket.send_to(b"who?", (lab.eip(), 40000)).map(drop)?)
    });
    stranger?;
    gateway.wait_for(&["counters"], SOON, |it| it["drops"]["unsolicited"] == 1)?;
    let start = std::time::Instant::now();
    while packets(&file(&lab))?.is_empty() {
        assert!(start.elapsed() < SOON, "the packet comes into the file at once");
        std::thread::sleep(Duration::from_millis(10));
    }
    running.signal(Signal::SIGINT)?;
    let said = running.wait(SOON)?.success()?;
    assert_eq!(said.trim(), "1 packets captured, 0 lost");

    let packets = packets(&file(&lab))?;
    let comments: Vec<String> = packets.iter().map(Packet::comment).collect();
    assert_eq!(comments.len(), 1, "{comments:?}");
    assert!(comments[0].contains("; dropped: unsolicited: "), "{comments:?}");
    assert!(comments[0].contains(&format!("no session: {}:40000", lab.eip())), "{comments:?}");
    assert_eq!(tcpdump(&file(&lab))?.len(), 1);
    Ok(())
}

fn is_tc(wiring: Wiring) -> bool {
    matches!(wiring, Wiring::TwoArmedTc | Wiring::OneArmedTc)
}

/// Stage tables of the hook that are pinned: one for each set of programs that is in use.
fn stage_tables(lab: &Lab, wiring: Wiring) -> Result<usize> {
    let prefix = if is_tc(wiring) { "tc-stages-" } else { "stages-" };
    let directory = fs::read_dir(lab.pins_dir())?.next().context("no layout")??.path();
    let names = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name()));
    let names: Vec<_> = names.collect::<std::io::Result<_>>()?;
    Ok(names.iter().filter(|name| name.to_string_lossy().starts_with(prefix)).count())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn however_a_capture_ends_no_packet_is_lost_and_the_gateway_has_its_own_programs(
    #[values(Wiring::TwoArmed, Wiring::TwoArmedTc)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    echo_server(lab.server(), 7)?;
    let mut gateway = lab.start_natgw_with(&lab.config(), &["--on-exit", "keep"])?;
    let stream = Stream::start(lab.client(2), at_server(7))?;
    let datagrams = Datagrams::start(lab.client(2), lab.server(), at_server(10))?;
    let pulse = |what: &str| -> Result<()> {
        datagrams.wait_for_more(1000).with_context(|| format!("after {what}"))?;
        stream.wait_for_more(20).with_context(|| format!("after {what}"))
    };
    let ended = |gateway: &mut xtask::lab::Gateway, captures: usize| {
        let done = |log: &str| log.matches("the capture has ended").count() == captures;
        let start = std::time::Instant::now();
        while !done(&gateway.log()?) {
            anyhow::ensure!(start.elapsed() < SOON, "{}", gateway.log()?);
            std::thread::sleep(Duration::from_millis(10));
        }
        anyhow::Ok(())
    };

    let running = capture(&lab, &["--count", "3"])?;
    assert!(running.wait(SOON)?.success()?.starts_with("3 packets captured"));
    ended(&mut gateway, 1)?;
    assert_eq!(stage_tables(&lab, wiring)?, 1);
    pulse("a capture of three packets")?;

    let mut running = capture(&lab, &["-s", "64"])?;
    pulse("the start of a capture")?;
    running.kill()?;
    ended(&mut gateway, 2)?;
    assert_eq!(stage_tables(&lab, wiring)?, 1);
    pulse("a capture whose reader was killed")?;

    let running = capture(&lab, &["-s", "64"])?;
    assert!(gateway.sigterm()?.success());
    assert!(running.wait(SOON)?.status.success(), "a capture ends with its gateway");
    assert_eq!(stage_tables(&lab, wiring)?, 1, "the programs go on alone as they were");
    pulse("a stop that keeps")?;

    let mut gateway = lab.start_natgw(&lab.config())?;
    let _running = capture(&lab, &["-s", "64"])?;
    gateway.sigkill()?;
    assert_eq!(stage_tables(&lab, wiring)?, 2);
    pulse("SIGKILL within a capture")?;
    let gateway = lab.start_natgw(&lab.config())?;
    assert_eq!(stage_tables(&lab, wiring)?, 1);
    pulse("the start after it")?;

    stream.finish()?;
    let arrived = datagrams.finish()?;
    assert!(arrived.missing.is_empty(), "{} sent, missing {:?}", arrived.sent, arrived.missing);
    gateway.detach()?;
    assert!(!lab.pins_dir().exists());
    Ok(())
}
