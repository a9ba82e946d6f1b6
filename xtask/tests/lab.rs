//! The lab itself, proved with the kernel's own forwarding and nftables masquerade in the
//! gateway's place. Needs root: `cargo xtask test e2e` runs it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use xtask::lab::{
    Arms, Frame, Lab, LabOptions, SERVER, SERVER_2, Sniffer, XdpAction, XdpProgram, client_address,
    dns, http, send_frames,
};

const SOON: Duration = Duration::from_secs(5);

/// Makes the gateway's host a NAT of the kernel's.
fn masquerade(lab: &Lab) {
    let gateway = lab.gateway();
    gateway.sysctl("net.ipv4.ip_forward", "1").unwrap();
    let rule = format!("ip saddr 10.0.1.0/24 oifname {} masquerade", lab.public_interface());
    gateway.check(["nft", "add table ip nat"]).unwrap();
    let chain = "add chain ip nat post { type nat hook postrouting priority 100; }";
    gateway.check(["nft", chain]).unwrap();
    gateway.check(["nft", &format!("add rule ip nat post {rule}")]).unwrap();
}

fn labs(options: &LabOptions) -> [Lab; 2] {
    [Lab::two_armed(options.clone()).unwrap(), Lab::one_armed(options.clone()).unwrap()]
}

/// The gateway's own address on its public side, which masquerade translates to.
fn public_address(lab: &Lab) -> &'static str {
    match lab.arms() {
        Arms::Two => "198.51.100.2",
        Arms::One => "10.0.1.1",
    }
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_nat_in_the_gateways_place_carries_http_dns_and_ping() {
    for lab in labs(&LabOptions::default()) {
        masquerade(&lab);
        let web = http::HttpServer::start(lab.server(), 80).unwrap();
        let names = dns::DnsServer::start(lab.server(), 53).unwrap();
        for client in [lab.client(1), lab.client(2)] {
            client.check(["ping", "-c", "2", "-i", "0.05", "203.0.113.10"]).unwrap();
            let url = format!("http://{SERVER_2}:{}/", web.port());
            let seen = client.check(["curl", "-sS", &url]).unwrap();
            assert!(seen.starts_with(&format!("{}:", public_address(&lab))), "{seen}");
            let server = SocketAddr::from((SERVER, names.port()));
            let exchanges = dns::exchange(client, server, 50, SOON).unwrap();
            assert_eq!((exchanges.answered, exchanges.lost()), (50, 0));
            assert_eq!(exchanges.seen_as, Some(public_address(&lab).parse().unwrap()));
        }
    }
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_transfer_in_each_direction_arrives_whole() {
    let lab = Lab::two_armed(LabOptions { mtu: 9000, ..LabOptions::default() }).unwrap();
    masquerade(&lab);
    let _web = http::HttpServer::start(lab.server(), 80).unwrap();
    let file = lab.dir().join("download");
    let path = file.to_str().unwrap();
    let count = 20_000_000;
    let client = lab.client(1);
    let url = format!("http://{SERVER}/bytes/{count}");
    client.check(["curl", "-sS", "-o", path, &url]).unwrap();
    assert_eq!(http::file_digest(&file).unwrap(), http::content_digest(count));
    let answer = client.check(["curl", "-sS", "-T", path, &format!("http://{SERVER}/up")]).unwrap();
    assert_eq!(answer.trim(), http::content_digest(count));
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn traceroute_shows_the_gateway_and_the_router() {
    for lab in labs(&LabOptions::default()) {
        masquerade(&lab);
        let argv = ["traceroute", "-n", "-q", "1", "-w", "2", "203.0.113.10"];
        let text = lab.client(1).check(argv).unwrap();
        let hops: Vec<&str> =
            text.lines().skip(1).filter_map(|l| l.split_whitespace().nth(1)).collect();
        let router = if lab.arms() == Arms::Two { "198.51.100.1" } else { "10.0.1.254" };
        assert_eq!(hops, ["10.0.1.1", router, "203.0.113.10"], "{text}");
    }
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn the_narrow_link_behind_the_router_is_reported_to_the_client() {
    let options = LabOptions { path_mtu: Some(1400), ..LabOptions::default() };
    let lab = Lab::two_armed(options).unwrap();
    masquerade(&lab);
    let argv = ["ping", "-c", "1", "-M", "do", "-s", "1472", "203.0.113.10"];
    let output = lab.client(1).run(argv).unwrap();
    assert!(output.stdout.contains("mtu = 1400"), "{output:?}");
    let argv = ["ping", "-c", "1", "-M", "do", "-s", "1372", "203.0.113.10"];
    lab.client(1).check(argv).unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn without_translation_a_client_is_heard_outside_and_gets_no_answer() {
    let lab = Lab::two_armed(LabOptions { ip_forward: true, ..LabOptions::default() }).unwrap();
    let (router, interface) = lab.outside();
    let sniffer = Sniffer::start(router, interface).unwrap();
    let output = lab.client(1).run(["ping", "-c", "1", "-W", "1", "203.0.113.10"]).unwrap();
    assert!(!output.status.success(), "{output:?}");
    let leak = sniffer.wait_for(SOON, |frame| frame.source() == Some(client_address(1))).unwrap();
    assert_eq!(leak.destination(), Some(SERVER));
    assert!(leak.mentions(client_address(1)));
}

/// A broadcast Ethernet frame with a VLAN tag and a serial number.
fn numbered_frame(number: u16) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([0x02, 0, 0, 0, 0, 1, 0x81, 0x00, 0x00, 0x07, 0x88, 0xb5]);
    frame.extend(number.to_be_bytes());
    frame.resize(60, 0);
    frame
}

fn is_ours(frame: &Frame) -> bool {
    frame.bytes.get(16..18) == Some(&[0x88, 0xb5])
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn frames_sent_by_hand_arrive_byte_for_byte_and_none_is_lost() {
    for gro in [true, false] {
        let lab = Lab::two_armed(LabOptions { gro, ..LabOptions::default() }).unwrap();
        let sniffer = Sniffer::start(lab.gateway(), "lan0").unwrap();
        let frames: Vec<_> = (0..20_000).map(numbered_frame).collect();
        send_frames(lab.client(1), "eth0", &frames).unwrap();
        sniffer.wait_for_count(SOON, frames.len(), is_ours).unwrap();
        let seen = sniffer.stop().unwrap();
        let seen: Vec<_> = seen.iter().filter(|f| is_ours(f)).map(|f| f.bytes.clone()).collect();
        assert!(seen == frames, "{} frames, not those sent", seen.len());
    }
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_process_is_waited_for_by_its_lines_and_killed_on_drop() {
    let lab = Lab::two_armed(LabOptions::default()).unwrap();
    let script =
        "echo started; trap 'echo got the signal; exit 3' TERM; while :; do sleep 0.01; done";
    let mut process = lab.client(1).spawn(["sh", "-c", script]).unwrap();
    assert_eq!(process.wait_for_line("start", SOON).unwrap(), "started");
    let error = process.wait_for_line("never", Duration::from_millis(50)).unwrap_err();
    assert!(error.to_string().contains("started"), "{error}");
    process.signal(Signal::SIGTERM).unwrap();
    let output = process.wait(SOON).unwrap();
    assert_eq!((output.code(), output.stdout.as_str()), (Some(3), "started\ngot the signal\n"));

    let process = lab.client(1).spawn(["sleep", "1000"]).unwrap();
    let place = format!("/proc/{}", process.pid());
    assert!(Path::new(&place).exists());
    drop(process);
    assert!(!Path::new(&place).exists());
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn nothing_of_a_lab_is_left_after_a_panic() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let outcome = std::thread::spawn(move || {
        let lab = Lab::one_armed(LabOptions::default()).unwrap();
        let mut command = lab.gateway().command("sh");
        // A grandchild that no handle knows
        command.args(["-c", "sleep 1000 & echo $!"]);
        let process = lab.gateway().spawn_command(command).unwrap();
        let orphan = process.wait(SOON).unwrap().stdout.trim().to_owned();
        sender.send((lab.name().to_owned(), lab.dir().to_owned(), orphan)).unwrap();
        panic!("as a failing test does");
    })
    .join();
    assert!(outcome.is_err());
    let (name, dir, orphan) = receiver.recv().unwrap();
    let left: Vec<_> = fs::read_dir("/run/netns")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|entry| entry.starts_with(&format!("{name}-")))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!dir.exists());
    // Killed, though whoever inherited it may not have reaped it yet.
    let state = fs::read_to_string(format!("/proc/{orphan}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "{state}");
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn the_namespaces_keep_the_mounts_of_the_machine() {
    let lab = Lab::two_armed(LabOptions::default()).unwrap();
    let text = lab.gateway().check(["stat", "-f", "-c", "%T", "/sys/fs/bpf"]).unwrap();
    assert_eq!(text.trim(), "bpf_fs");
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn pool_addresses_reach_the_gateway_and_are_owned_by_nobody() {
    for lab in labs(&LabOptions::default()) {
        let (router, _) = lab.outside();
        let sniffer = Sniffer::start(lab.gateway(), lab.public_interface()).unwrap();
        let eip: Ipv4Addr = lab.eip();
        router.run(["ping", "-c", "1", "-W", "1", &eip.to_string()]).unwrap();
        let asks_for_it = |frame: &Frame| {
            frame.bytes.get(12..14) == Some(&[0x08, 0x06])
                && frame.bytes.get(38..42) == Some(&eip.octets())
        };
        sniffer.wait_for(SOON, asks_for_it).unwrap();
        let output = router.check(["ip", "neigh", "show", &eip.to_string()]).unwrap();
        assert!(!output.contains("lladdr"), "{output}");
    }
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn what_xdp_redirects_between_the_gateways_interfaces_arrives() {
    for gro in [true, false] {
        for mtu in [1500, 9000] {
            let lab = Lab::two_armed(LabOptions { gro, mtu, ..LabOptions::default() }).unwrap();
            let wan = lab.gateway().interface("wan0").unwrap().index;
            // A devmap-less redirect needs no program on the target; the peer's NAPI is the point.
            let _program =
                XdpProgram::attach(lab.gateway(), "lan0", XdpAction::Redirect(wan)).unwrap();
            let sniffer = Sniffer::start(lab.router(), "pub0").unwrap();
            let mut frames: Vec<_> = (0..1000).map(numbered_frame).collect();
            frames[999].resize(usize::try_from(mtu).unwrap(), 0xaa);
            send_frames(lab.client(1), "eth0", &frames).unwrap();
            sniffer.wait_for_count(SOON, frames.len(), is_ours).unwrap();
            let seen = sniffer.stop().unwrap();
            let seen: Vec<_> =
                seen.iter().filter(|f| is_ours(f)).map(|f| f.bytes.clone()).collect();
            assert!(seen == frames, "{} frames, not those sent", seen.len());
        }
    }
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn what_xdp_sends_back_out_of_a_one_armed_gateway_arrives() {
    for gro in [true, false] {
        for mtu in [1500, 9000] {
            let lab = Lab::one_armed(LabOptions { gro, mtu, ..LabOptions::default() }).unwrap();
            let _program = XdpProgram::attach(lab.gateway(), "eth0", XdpAction::Bounce).unwrap();
            // The bridge sees the sender's address on the gateway's port and forwards the
            // broadcast to everybody else again.
            let sniffer = Sniffer::start(lab.ns("lan"), "gw").unwrap();
            let mut frames: Vec<_> = (0..1000).map(numbered_frame).collect();
            frames[999].resize(usize::try_from(mtu).unwrap(), 0xaa);
            send_frames(lab.client(1), "eth0", &frames).unwrap();
            let came_back = |frame: &Frame| is_ours(frame) && !frame.outgoing;
            let seen = sniffer.wait_for_count(SOON, frames.len(), came_back).unwrap();
            let seen: Vec<_> = seen.into_iter().map(|frame| frame.bytes).collect();
            assert!(seen == frames, "{} frames, not those sent", seen.len());
        }
    }
}
