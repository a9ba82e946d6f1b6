//! Every packet is accounted for, to the last one, and every session is shown.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, bail};
use nat_tests::frames::{Path, flag, mutated, untranslatable};
use nat_tests::wiring::{QUIET, SOON, Wiring};
use rstest::rstest;
use serde_json::Value;
use xtask::lab::{Arms, Frame, Gateway, Lab, LabOptions, Sniffer, send_frames};

/// From both sides together; `NATGW_E2E_FRAMES` overrides it.
const FRAMES: usize = 100_000;

fn count() -> Result<usize> {
    std::env::var("NATGW_E2E_FRAMES").map_or(Ok(FRAMES), |text| {
        text.parse().with_context(|| format!("NATGW_E2E_FRAMES={text} is no number of frames"))
    })
}

/// Recordings of all that the gateway receives and sends, on the wire and in its host.
struct Taps {
    /// The far ends of the gateway's interfaces: what really came in and went out.
    wire: Vec<Sniffer>,
    /// The gateway's own interfaces: what XDP let through, and what the host's stack sent.
    host: Vec<Sniffer>,
}

#[derive(Debug, Default)]
struct Tapped {
    to_gateway: usize,
    from_gateway: Vec<Frame>,
    to_host: usize,
    from_host: usize,
}

impl Taps {
    fn start(lab: &Lab) -> Result<Self> {
        let mut wire = vec![Sniffer::start(lab.ns("lan"), "gw")?];
        let mut host = vec![Sniffer::start(lab.gateway(), lab.private_interface())?];
        if lab.arms() == Arms::Two {
            wire.push(Sniffer::start(lab.router(), "pub0")?);
            host.push(Sniffer::start(lab.gateway(), lab.public_interface())?);
        }
        Ok(Self { wire, host })
    }

    /// What was recorded until now, once nothing more is on its way.
    fn tapped(&self) -> Result<Tapped> {
        for tap in self.wire.iter().chain(&self.host) {
            tap.settle(QUIET)?;
        }
        let mut all = Tapped::default();
        for tap in &self.wire {
            let (to, from): (Vec<_>, Vec<_>) =
                tap.frames().into_iter().partition(|frame| frame.outgoing);
            all.to_gateway += to.len();
            all.from_gateway.extend(from.into_iter().filter(|frame| !is_announcement(frame)));
        }
        for tap in &self.host {
            let frames = tap.frames();
            let made = |frame: &&Frame| frame.outgoing && !is_announcement(frame);
            all.from_host += frames.iter().filter(made).count();
            all.to_host += frames.iter().filter(|frame| !frame.outgoing).count();
        }
        Ok(all)
    }

    /// An error if a recording is not complete.
    fn stop(self) -> Result<()> {
        self.wire.into_iter().chain(self.host).try_for_each(|tap| tap.stop().map(drop))
    }
}

/// Does something at a moment when no packet comes: a neighbour's ARP between a look at the
/// counters and one at the wire would belong to one of them only.
fn undisturbed<T>(gateway: &Gateway, mut act: impl FnMut() -> Result<T>) -> Result<(Value, T)> {
    let received = |counters: &Value| {
        ["packets_in_from_source", "packets_in_from_destination"].map(|key| counters[key].as_u64())
    };
    for _ in 0..20 {
        let before = gateway.wait_for(&["counters"], SOON, |it| it["packets_held"] == 0)?;
        let done = act()?;
        let after = gateway.json(&["counters"])?;
        if received(&before) == received(&after) {
            return Ok((after, done));
        }
    }
    bail!("packets come all the time, though nobody sends any")
}

/// The daemon's own word about a public address: an ARP packet with one address twice.
fn is_announcement(frame: &Frame) -> bool {
    let bytes = &frame.bytes;
    bytes.get(12..14) == Some(&[8, 6]) && bytes.len() >= 42 && bytes[28..32] == bytes[38..42]
}

/// How much each counter grew.
struct Growth<'a> {
    before: &'a Value,
    after: &'a Value,
}

impl Growth<'_> {
    fn of(&self, keys: &[&str]) -> i64 {
        let number = |counters: &Value, key: &str| {
            counters[key].as_i64().unwrap_or_else(|| panic!("no counter {key} in {counters:#}"))
        };
        keys.iter().map(|key| number(self.after, key) - number(self.before, key)).sum()
    }
}

/// Every kind of frame, from inside and from outside.
fn every_kind(lab: &Lab, count: usize) -> Result<[Vec<Vec<u8>>; 2]> {
    let (out, back) = (Path::outward(lab)?, Path::inward(lab)?);
    let mix = |path: &Path, seed: u64| {
        let mut frames: Vec<Vec<u8>> =
            untranslatable(path).into_iter().map(|(_, frame)| frame).collect();
        let wanted = count / 2;
        let sound = wanted / 2;
        for number in 0..sound {
            // 500 endpoints: most frames meet a session that an earlier one made.
            let port = 20_000 + (number / 4 % 500) as u16;
            frames.push(match number % 4 {
                0 => path.udp(port, 9, b"datagram"),
                1 => path.tcp(port, 80, flag::SYN, &[]),
                2 => path.tcp(port, 80, flag::ACK | flag::PSH, b"segment"),
                _ => path.echo_request(port, 1),
            });
        }
        frames.extend(mutated(path, wanted.saturating_sub(frames.len()), seed));
        frames
    };
    Ok([mix(&out, 11), mix(&back, 12)])
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn every_packet_is_delivered_given_to_the_host_answered_or_dropped_for_one_reason(
    #[values(Wiring::TwoArmed, Wiring::OneArmed, Wiring::TwoArmedTc)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab_with(LabOptions { gro: false, ..LabOptions::default() })?;
    let [from_inside, from_outside] = every_kind(&lab, count()?)?;
    let gateway = lab.start_natgw(&lab.config())?;
    let (before, taps) = undisturbed(&gateway, || Taps::start(&lab))?;
    let (router, interface) = lab.outside();
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| send_frames(lab.client(1), "eth0", &from_inside));
        send_frames(router, interface, &from_outside)?;
        inside.join().expect("the sender does not panic")
    })?;
    let (after, tapped) = undisturbed(&gateway, || taps.tapped())?;
    taps.stop()?;
    let growth = Growth { before: &before, after: &after };

    let came = growth.of(&["packets_in_from_source", "packets_in_from_destination"]);
    let sent = growth.of(&["packets_out_to_destination", "packets_out_to_source"]);
    let answered = growth.of(&["packets_answered"]);
    let to_host = growth.of(&["packets_to_host"]);
    let dropped = growth.of(&["packets_drop_count"]);
    assert_eq!(came, sent + answered + to_host + dropped, "{after:#}");
    let by_reason = |counters: &Value| -> Option<i64> {
        counters["drops"].as_object()?.values().map(Value::as_i64).sum()
    };
    let reasons = by_reason(&after).context("drops")? - by_reason(&before).context("drops")?;
    assert_eq!(dropped, reasons);

    assert_eq!(came, tapped.to_gateway as i64, "what the wire carried in: {after:#}");
    if wiring == Wiring::TwoArmedTc {
        // The host's own taps are between the device and tc, both ways.
        return Ok(());
    }
    assert_eq!(to_host, tapped.to_host as i64, "what the host received: {after:#}");
    let from_programs = tapped.from_gateway.len() - tapped.from_host;
    assert_eq!(sent + answered, from_programs as i64, "what the wire carried out: {after:#}");
    Ok(())
}

/// Protocol, public and remote endpoint of a translated packet on the outside.
fn session_of(frame: &Frame) -> Option<(&'static str, SocketAddrV4, SocketAddrV4)> {
    let packet = frame.ipv4()?;
    let later = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
    let l4 = packet.get(usize::from(packet[0] & 15) * 4..)?;
    let number = |at: usize| l4.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes);
    let (protocol, from, to) = match (frame.protocol()?, l4.first()?) {
        _ if later => return None,
        (6, _) => ("tcp", number(0)?, number(2)?),
        (17, _) => ("udp", number(0)?, number(2)?),
        // Queries; of replies and errors none has a session here.
        (1, 8 | 13 | 17) => ("icmp", number(4)?, 0),
        _ => return None,
    };
    let endpoint = |address: Option<Ipv4Addr>, port| address.map(|a| SocketAddrV4::new(a, port));
    Some((protocol, endpoint(frame.source(), from)?, endpoint(frame.destination(), to)?))
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn flows_shows_the_sessions_that_exist_and_no_others(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab_with(LabOptions { gro: false, ..LabOptions::default() })?;
    let [from_inside, from_outside] = every_kind(&lab, 8_000)?;
    let gateway = lab.start_natgw(&lab.config())?;
    let (router, interface) = lab.outside();
    let outside = Sniffer::start(router, interface)?;
    send_frames(lab.client(1), "eth0", &from_inside)?;
    send_frames(router, interface, &from_outside)?;
    outside.settle(QUIET)?;
    let mac = lab.gateway().interface(lab.public_interface())?.mac;
    let eip = lab.eip();
    let frames = outside.stop()?;
    let translated = frames.iter().filter(|frame| {
        !frame.outgoing && frame.source() == Some(eip) && frame.bytes.get(6..12) == Some(&mac)
    });
    let seen: BTreeSet<_> = translated
        .filter_map(session_of)
        .map(|(protocol, public, remote)| (protocol.to_owned(), public, remote))
        .collect();
    assert!(seen.len() > 1000, "only {} sessions", seen.len());

    let flows = gateway.json(&["flows"])?;
    let mut shown = BTreeSet::new();
    for flow in flows.as_array().context("an array")? {
        let text = |key: &str| flow[key].as_str().with_context(|| format!("{key} in {flow}"));
        let row =
            (text("protocol")?.to_owned(), text("public")?.parse()?, text("remote")?.parse()?);
        assert!(shown.insert(row), "twice: {flow}");
    }
    assert_eq!(shown.difference(&seen).collect::<Vec<_>>(), Vec::<&_>::new(), "shown, not there");
    assert_eq!(seen.difference(&shown).collect::<Vec<_>>(), Vec::<&_>::new(), "there, not shown");
    assert_eq!(gateway.json(&["flows", "count"])?["count"], shown.len());
    assert_eq!(gateway.counter("sessions")?, shown.len() as u64);
    Ok(())
}
