//! What XDP cannot send on at once: packets without a neighbour, fragments before their first one,
//! packets larger than the way out. With the daemon they arrive; without it they are drops.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nat_tests::frames::{Path, checksum};
use nat_tests::wiring::{SOON, Wiring};
use nix::sys::signal::Signal;
use rstest::rstest;
use serde_json::Value;
use xtask::lab::{Gateway, Lab, LabOptions, Namespace, SERVER, Sniffer, client_address};

const UDP: u8 = 17;
const TCP: u8 = 6;
const LINK: usize = 14;
const IP: usize = 20;
const MORE: u16 = 0x2000;

fn socket(namespace: &Namespace, port: u16) -> Result<UdpSocket> {
    socket_at(namespace, Ipv4Addr::UNSPECIFIED, port)
}

fn socket_at(namespace: &Namespace, address: Ipv4Addr, port: u16) -> Result<UdpSocket> {
    let socket = namespace.enter(|| UdpSocket::bind((address, port)))?;
    socket.set_read_timeout(Some(SOON))?;
    // Without the don't-fragment bit, whatever size.
    let value = libc::IP_PMTUDISC_DONT;
    // SAFETY: pointer and size are those of a live integer, which is only read.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    ensure!(set == 0, "IP_MTU_DISCOVER: {}", std::io::Error::last_os_error());
    Ok(socket)
}

fn receive(socket: &UdpSocket) -> Result<(Vec<u8>, SocketAddr)> {
    let mut buffer = vec![0; 65_536];
    let (length, from) = socket.recv_from(&mut buffer).context("no datagram came")?;
    buffer.truncate(length);
    Ok((buffer, from))
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|byte| (byte * 7 + byte / 251) as u8).collect()
}

/// The fragments of a frame, each with `size` bytes of content at most; `size` divides by eight.
fn fragments(frame: &[u8], id: u16, size: usize) -> Vec<Vec<u8>> {
    let (head, content) = frame.split_at(LINK + IP);
    let count = content.len().div_ceil(size);
    let piece = |(number, part): (usize, &[u8])| {
        let mut piece = [head, part].concat();
        let offset = u16::try_from(number * size / 8).expect("within a datagram");
        let more = if number + 1 < count { MORE } else { 0 };
        let length = u16::try_from(IP + part.len()).expect("a short piece");
        piece[LINK + 2..LINK + 4].copy_from_slice(&length.to_be_bytes());
        piece[LINK + 4..LINK + 6].copy_from_slice(&id.to_be_bytes());
        piece[LINK + 6..LINK + 8].copy_from_slice(&(more | offset).to_be_bytes());
        piece[LINK + 10..LINK + 12].fill(0);
        let sum = checksum(&piece[LINK..LINK + IP]);
        piece[LINK + 10..LINK + 12].copy_from_slice(&sum);
        piece
    };
    content.chunks(size).enumerate().map(piece).collect()
}

/// Another order, the same for the same seed (Fisher and Yates, numbers by Knuth).
fn shuffled<T>(mut list: Vec<T>, mut seed: u64) -> Vec<T> {
    for last in (1..list.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        list.swap(last, (seed >> 33) as usize % (last + 1));
    }
    list
}

fn number_from(variable: &str, default: u64) -> Result<u64> {
    match std::env::var(variable) {
        Ok(number) => number.parse().with_context(|| format!("{variable} is no number")),
        Err(_) => Ok(default),
    }
}

/// Repetitions of a test with random orders.
fn rounds() -> Result<u64> {
    number_from("NATGW_TEST_ROUNDS", 25)
}

fn count(counters: &Value, key: &str) -> u64 {
    counters[key].as_u64().unwrap_or_else(|| panic!("no counter {key} in {counters}"))
}

/// Waits until nothing is held, and checks that every packet received is in exactly one class.
fn all_accounted_for(gateway: &Gateway) -> Result<Value> {
    let settled = |counters: &Value| {
        let received = count(counters, "packets_in_from_source")
            + count(counters, "packets_in_from_destination");
        let classes = [
            "packets_out_to_destination",
            "packets_out_to_source",
            "packets_to_host",
            "packets_answered",
            "packets_drop_count",
        ];
        let became: u64 = classes.iter().map(|class| count(counters, class)).sum();
        count(counters, "packets_held") == 0 && received == became
    };
    gateway.wait_for(&["counters"], 2 * SOON, settled)
}

fn drops(counters: &Value, reason: &str) -> u64 {
    counters["drops"][reason].as_u64().unwrap_or_default()
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn the_first_packet_to_a_next_hop_without_an_address_arrives_without_being_sent_again() -> Result<()>
{
    let lab = Lab::two_armed(LabOptions::default())?;
    let neighbour = Ipv4Addr::new(198, 51, 100, 77);
    lab.router().check(["ip", "addr", "add", "198.51.100.77/24", "dev", "pub0"])?;
    let gateway = lab.start_natgw(&lab.config())?;
    let (router, interface) = lab.outside();

    // Outward: UDP, then the SYN of a connection, each the first thing that the gateway sends there.
    let server = socket_at(router, neighbour, 7000)?;
    let client = socket(lab.client(1), 40_000)?;
    client.send_to(b"first", (neighbour, 7000))?;
    let (bytes, public) = receive(&server)?;
    assert_eq!(bytes, b"first");

    lab.gateway().check(["ip", "neigh", "del", "198.51.100.77", "dev", "wan0"])?;
    let outside = Sniffer::start(router, interface)?;
    let _listener = router.enter(|| std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 7001)))?;
    let start = Instant::now();
    let address = SocketAddr::from((neighbour, 7001));
    lab.client(1).enter(|| std::net::TcpStream::connect_timeout(&address, SOON))?;
    assert!(start.elapsed() < Duration::from_millis(900), "TCP repeats a SYN after a second");
    let syn = |frame: &xtask::lab::Frame| {
        frame.protocol() == Some(TCP)
            && frame.ipv4().and_then(|packet| packet.get(33)).is_some_and(|flags| flags & 0x12 == 2)
    };
    outside.wait_for(SOON, syn)?;
    assert_eq!(outside.frames().iter().filter(|frame| syn(frame)).count(), 1);

    // Inward, where the gateway has forgotten the client.
    lab.gateway().check(["ip", "neigh", "flush", "dev", "lan0"])?;
    server.send_to(b"answer", public)?;
    assert_eq!(receive(&client)?.0, b"answer");

    let counters = all_accounted_for(&gateway)?;
    assert_eq!(count(&counters, "packets_drop_count"), 0, "{counters}");
    Ok(())
}

/// News of the kernel come when the daemon gets round to them. It hears that the next hop was lost
/// after it has asked for it anew, and must not take the one for the outcome of the other.
#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_packet_waits_on_for_its_next_hop_when_the_loss_of_it_is_heard_of_late() -> Result<()> {
    let lab = Lab::two_armed(LabOptions::default())?;
    let mut gateway = lab.start_natgw(&lab.config())?;
    let client = socket(lab.client(1), 40_000)?;
    let server = socket(lab.server(), 7000)?;
    client.send_to(b"first", (SERVER, 7000))?;
    let public = receive(&server)?.1;
    let (router, interface) = lab.outside();
    for round in 1..=3_u8 {
        let outside = Sniffer::start(router, interface)?;
        gateway.signal(Signal::SIGSTOP)?;
        lab.gateway().check(["ip", "neigh", "flush", "dev", "lan0"])?;
        server.send_to(&[round], public)?;
        outside.wait_for(SOON, |frame| {
            frame.protocol() == Some(UDP) && frame.destination() == Some(lab.eip())
        })?;
        gateway.signal(Signal::SIGCONT)?;
        assert_eq!(receive(&client)?.0, [round]);
    }
    let counters = all_accounted_for(&gateway)?;
    assert_eq!(count(&counters, "packets_drop_count"), 0, "{counters}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn packets_to_a_next_hop_that_never_answers_are_dropped_for_that_reason() -> Result<()> {
    let lab = Lab::two_armed(LabOptions::default())?;
    let gateway = lab.start_natgw(&lab.config())?;
    let client = socket(lab.client(1), 40_000)?;
    for _ in 0..10 {
        client.send_to(b"to nobody", (Ipv4Addr::new(198, 51, 100, 78), 7000))?;
    }
    gateway.wait_for(&["counters"], SOON, |counters| count(counters, "packets_held") > 0)?;
    let given_up = gateway.wait_for(&["counters"], SOON, |all| drops(all, "no_neighbour") == 10)?;
    assert_eq!(count(&given_up, "packets_held"), 0);
    all_accounted_for(&gateway).map(drop)
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_large_ping_passes_both_ways() -> Result<()> {
    let lab = Lab::two_armed(LabOptions::default())?;
    let gateway = lab.start_natgw(&lab.config())?;
    let server = SERVER.to_string();
    lab.client(1).check(["ping", "-c", "5", "-i", "0.2", "-W", "2", "-s", "10000", &server])?;
    let counters = all_accounted_for(&gateway)?;
    assert_eq!(count(&counters, "packets_drop_count"), 0, "{counters}");
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn fragments_of_a_large_datagram_arrive_whatever_their_order_both_ways(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
    #[values("native", "generic", "tc")] mode: &str,
) -> Result<()> {
    let lab = wiring.lab()?;
    let gateway = lab.start_natgw_with(&lab.config(), &["--xdp-mode", mode])?;
    let client = socket(lab.client(1), 40_000)?;
    let server = socket(lab.server(), 7000)?;
    let payload = content(60_000);
    let frame = Path::outward(&lab)?.udp(40_000, 7000, &payload);
    let rounds = rounds()?;
    let mut public = None;
    for seed in 1..=rounds {
        let frames = shuffled(fragments(&frame, seed as u16, 1480), seed);
        xtask::lab::send_frames(lab.client(1), "eth0", &frames)?;
        let (bytes, from) = receive(&server).with_context(|| format!("outward, seed {seed}"))?;
        assert!(bytes == payload, "outward, seed {seed}: other bytes");
        public = Some(from);
    }
    let public = public.context("a public endpoint")?;
    assert_eq!(public.ip(), lab.eip());

    let frame = Path::inward(&lab)?.udp(7000, public.port(), &payload);
    let (router, interface) = lab.outside();
    for seed in 1..=rounds {
        let frames = shuffled(fragments(&frame, 10_000 + seed as u16, 1480), seed);
        xtask::lab::send_frames(router, interface, &frames)?;
        let (bytes, _) = receive(&client).with_context(|| format!("inward, seed {seed}"))?;
        assert!(bytes == payload, "inward, seed {seed}: other bytes");
    }
    let counters = all_accounted_for(&gateway)?;
    assert_eq!(count(&counters, "packets_drop_count"), 0, "{counters}");
    Ok(())
}

/// Messages of ICMP that a host has received, by their name in `/proc/net/snmp`.
fn icmp_received(host: &Namespace, name: &str) -> Result<u64> {
    let table = host.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))?;
    let mut lines = table.lines().filter(|line| line.starts_with("Icmp: "));
    let (names, values) = lines.next().zip(lines.next()).context("no counters of ICMP")?;
    let place = names.split(' ').position(|it| it == name).context("no such counter")?;
    Ok(values.split(' ').nth(place).context("a value")?.parse()?)
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_large_ping_in_fragments_of_any_order_passes_both_ways() -> Result<()> {
    let lab = Lab::two_armed(LabOptions::default())?;
    let gateway = lab.start_natgw(&lab.config())?;
    let (router, interface) = lab.outside();
    let wait = |host: &Namespace, name: &str, count: u64| -> Result<()> {
        let start = Instant::now();
        while icmp_received(host, name)? < count {
            ensure!(start.elapsed() < SOON, "{name} has not come to {count}");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    };
    let body = [&[0x9c, 0x42, 0, 1][..], &content(10_000)].concat();
    let request = Path::outward(&lab)?.icmp(8, 0, &body);
    let reply = Path::inward(&lab)?.icmp(0, 0, &body);
    let (mut asked, mut heard) =
        (icmp_received(lab.server(), "InEchos")?, icmp_received(lab.client(1), "InEchoReps")?);
    for seed in 1..=rounds()? {
        let frames = shuffled(fragments(&request, seed as u16, 1480), seed);
        xtask::lab::send_frames(lab.client(1), "eth0", &frames)?;
        (asked, heard) = (asked + 1, heard + 1);
        wait(lab.server(), "InEchos", asked).with_context(|| format!("outward, seed {seed}"))?;
        // The server's own answer, which is in order, and then one that is not.
        wait(lab.client(1), "InEchoReps", heard)?;
        let frames = shuffled(fragments(&reply, 10_000 + seed as u16, 1480), seed);
        xtask::lab::send_frames(router, interface, &frames)?;
        heard += 1;
        wait(lab.client(1), "InEchoReps", heard).with_context(|| format!("inward, seed {seed}"))?;
    }
    let counters = all_accounted_for(&gateway)?;
    assert_eq!(count(&counters, "packets_drop_count"), 0, "{counters}");
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn fragments_for_the_host_itself_reach_it_in_any_order(
    #[values(Wiring::TwoArmed, Wiring::OneArmed)] wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let own = wiring.gateway_outside();
    let pool = format!("addresses = [\"{own}\"]\nports = \"20000-60000\"");
    let gateway = lab.start_natgw(&lab.config_with_pool(&pool))?;
    lab.gateway().sysctl("net.ipv4.conf.all.rp_filter", "1")?;
    let host = socket_at(lab.gateway(), own, 7000)?;
    let payload = content(4000);
    let frame = Path { destination: own, ..Path::inward(&lab)? }.udp(7001, 7000, &payload);
    let (router, interface) = lab.outside();
    for id in 1..=5 {
        let mut frames = fragments(&frame, id, 1480);
        frames.reverse();
        xtask::lab::send_frames(router, interface, &frames)?;
        let (bytes, from) = receive(&host).with_context(|| format!("datagram {id}"))?;
        assert!(bytes == payload && from == SocketAddr::from((SERVER, 7001)), "datagram {id}");
    }
    let counters = all_accounted_for(&gateway)?;
    assert_eq!(count(&counters, "packets_drop_count"), 0, "{counters}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn packets_larger_than_the_way_out_arrive_in_fragments_if_they_may_be_fragmented() -> Result<()> {
    let lab = Lab::two_armed(LabOptions::default())?;
    lab.gateway().check(["ip", "link", "set", "wan0", "mtu", "1400"])?;
    let gateway = lab.start_natgw(&lab.config())?;
    let (router, interface) = lab.outside();
    let outside = Sniffer::start(router, interface)?;
    let client = socket(lab.client(1), 40_000)?;
    let server = socket(lab.server(), 7000)?;

    let payload = content(1472);
    for _ in 0..3 {
        client.send_to(&payload, (SERVER, 7000))?;
        assert_eq!(receive(&server)?.0, payload);
    }
    let outgoing = |frame: &xtask::lab::Frame| {
        frame.protocol() == Some(UDP) && frame.destination() == Some(SERVER)
    };
    let pieces = outside.wait_for_count(SOON, 6, outgoing)?;
    for piece in &pieces {
        assert!(piece.bytes.len() <= LINK + 1400, "{} bytes", piece.bytes.len());
        assert!(!piece.mentions(client_address(1)));
    }
    let counters = all_accounted_for(&gateway)?;
    assert_eq!(count(&counters, "packets_drop_count"), 0, "{counters}");

    // Fragments that are too large themselves, and come in any order.
    let payload = content(30_000);
    let frame = Path::outward(&lab)?.udp(40_001, 7000, &payload);
    for seed in 1..=5 {
        let frames = shuffled(fragments(&frame, seed as u16, 1480), seed);
        xtask::lab::send_frames(lab.client(1), "eth0", &frames)?;
        let (bytes, _) = receive(&server).with_context(|| format!("seed {seed}"))?;
        assert!(bytes == payload, "seed {seed}: other bytes");
    }
    let counters = all_accounted_for(&gateway)?;
    assert_eq!(count(&counters, "packets_drop_count"), 0, "{counters}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_reload_leaves_the_slow_path_in_use() -> Result<()> {
    let lab = Lab::two_armed(LabOptions::default())?;
    lab.gateway().check(["ip", "link", "set", "wan0", "mtu", "1400"])?;
    let gateway = lab.start_natgw(&lab.config())?;
    lab.write_config(&(lab.config() + "[timeouts]\nudp = \"60s\"\n"))?;
    gateway.natgw(&["reload"])?.success()?;
    let client = socket(lab.client(1), 40_000)?;
    let server = socket(lab.server(), 7000)?;
    client.send_to(&content(1472), (SERVER, 7000))?;
    assert_eq!(receive(&server)?.0.len(), 1472);
    all_accounted_for(&gateway).map(drop)
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn without_the_daemon_such_packets_are_dropped_with_a_reason_and_others_pass() -> Result<()> {
    let lab = Lab::two_armed(LabOptions::default())?;
    lab.gateway().check(["ip", "link", "set", "wan0", "mtu", "1400"])?;
    let mut gateway = lab.start_natgw(&lab.config())?;
    let client = socket(lab.client(1), 40_000)?;
    let server = socket(lab.server(), 7000)?;
    client.send_to(b"small", (SERVER, 7000))?;
    receive(&server)?;
    // One that waits when the daemon dies.
    let orphan = &fragments(&Path::outward(&lab)?.udp(40_000, 7000, &content(3000)), 9, 1480)[1];
    xtask::lab::send_frames(lab.client(1), "eth0", &[orphan])?;
    gateway.wait_for(&["counters"], SOON, |counters| count(counters, "packets_held") == 1)?;
    gateway.sigkill()?;
    lab.gateway().retry(SOON, ["sh", "-c", "! ip link show type tun | grep -q natgw"])?;

    for _ in 0..5 {
        client.send_to(&content(1472), (SERVER, 7000))?;
    }
    client.send_to(b"small", (SERVER, 7000))?;
    assert_eq!(receive(&server)?.0, b"small", "what needs no daemon passes, and nothing else did");

    let gateway = lab.start_natgw(&lab.config())?;
    let counters = all_accounted_for(&gateway)?;
    assert_eq!(drops(&counters, "slow_path_unavailable"), 6, "{counters}");
    client.send_to(&content(1472), (SERVER, 7000))?;
    assert_eq!(receive(&server)?.0.len(), 1472, "served again");
    all_accounted_for(&gateway).map(drop)
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_stopped_gateway_leaves_no_device_and_nothing_held() -> Result<()> {
    let lab = Lab::two_armed(LabOptions::default())?;
    let mut gateway = lab.start_natgw(&lab.config())?;
    lab.gateway().check(["sh", "-c", "ip link show type tun | grep -q natgw"])?;
    let orphan = &fragments(&Path::outward(&lab)?.udp(40_000, 7000, &content(3000)), 9, 1480)[1];
    xtask::lab::send_frames(lab.client(1), "eth0", &[orphan])?;
    gateway.wait_for(&["counters"], SOON, |counters| count(counters, "packets_held") == 1)?;
    assert!(gateway.sigterm()?.success());
    lab.gateway().check(["sh", "-c", "! ip link show type tun | grep -q natgw"])?;

    let gateway = lab.start_natgw(&lab.config())?;
    let counters = gateway.json(&["counters"])?;
    assert_eq!(count(&counters, "packets_held"), 0, "{counters}");
    assert_eq!(drops(&counters, "slow_path_unavailable"), 1, "{counters}");
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_flood_of_fragments_without_a_first_one_harms_nobody_else() -> Result<()> {
    let flooded = number_from("NATGW_TEST_ORPHANS", 60_000)?;
    let lab = Lab::two_armed(LabOptions::default())?;
    let gateway = lab.start_natgw(&lab.config())?;
    let frame = Path::outward(&lab)?.udp(40_000, 7000, &content(200));
    let orphan = |number: u64| fragments(&frame, number as u16, 104).swap_remove(1);
    let flood: Vec<Vec<u8>> = (0..flooded).map(orphan).collect();
    let server = SERVER.to_string();
    std::thread::scope(|scope| -> Result<()> {
        let sender = scope.spawn(|| xtask::lab::send_frames(lab.client(1), "eth0", &flood));
        let ping = ["ping", "-c", "20", "-i", "0.05", "-W", "2", "-s", "4000", &server];
        loop {
            let output = lab.client(2).check(ping)?;
            ensure!(output.contains(" 0% packet loss"), "{output}");
            if sender.is_finished() {
                break;
            }
        }
        sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let counters = all_accounted_for(&gateway)?;
    let reasons = ["fragment_orphan", "fragment_table_full", "slow_path_unavailable"];
    let dropped: u64 = reasons.iter().map(|reason| drops(&counters, reason)).sum();
    // A slow machine loses some of the flood before the gateway.
    assert!(dropped > flooded / 2, "{counters}");
    assert_eq!(count(&counters, "packets_drop_count"), dropped, "nothing else: {counters}");
    Ok(())
}
