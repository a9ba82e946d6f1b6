//! Real clients and servers through the gateway: bytes intact, nothing lost, errors understood.

use std::io::{Read, Write};
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use nat_tests::stream;
use nat_tests::wiring::{SOON, Wiring, at_server};
use rstest::rstest;
use xtask::lab::{LabOptions, SERVER, client_address, dns, http};

/// Of a transfer; `NATGW_E2E_BYTES` overrides it.
const BYTES: u64 = 200_000_000;

fn transfer_size() -> Result<u64> {
    std::env::var("NATGW_E2E_BYTES").map_or(Ok(BYTES), |text| {
        text.parse().with_context(|| format!("NATGW_E2E_BYTES={text} is no number of bytes"))
    })
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_download_and_an_upload_arrive_unchanged(
    #[values(
        Wiring::TwoArmed,
        Wiring::OneArmed,
        Wiring::TwoArmedTc,
        Wiring::OneArmedTc,
        Wiring::Jumbo,
        Wiring::JumboOneArmed
    )]
    wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let _web = http::HttpServer::start(lab.server(), 80)?;
    let gateway = lab.start_natgw(&lab.config())?;
    let count = transfer_size()?;

    let file = lab.dir().join("download");
    let path = file.display().to_string();
    let url = format!("http://{SERVER}/bytes/{count}");
    lab.client(1).check(["curl", "-sS", "--fail", "-o", &path, &url])?;
    assert_eq!(http::file_digest(&file)?, http::content_digest(count));

    let digest = lab.client(1).check([
        "curl",
        "-sS",
        "--fail",
        "-T",
        &path,
        &format!("http://{SERVER}/"),
    ])?;
    assert_eq!(digest.trim(), http::content_digest(count));

    assert!(gateway.counter("bytes_out_to_source")? > count);
    assert!(gateway.counter("bytes_out_to_destination")? > count);
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn eight_streams_run_each_way(
    #[values(Wiring::TwoArmed, Wiring::OneArmed, Wiring::Jumbo, Wiring::JumboOneArmed)]
    wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let mut server = lab.server().spawn(["iperf3", "-s", "--forceflush"])?;
    server.wait_for_line("Server listening", SOON)?;
    let _gateway = lab.start_natgw(&lab.config())?;
    for direction in [&[][..], &["-R"]] {
        let server = SERVER.to_string();
        let argv = ["iperf3", "-c", &server, "-P", "8", "-t", "2", "-J"];
        let text = lab.client(1).check(argv.into_iter().chain(direction.iter().copied()))?;
        let report: serde_json::Value = serde_json::from_str(&text)?;
        ensure!(report["error"].is_null(), "iperf3: {}", report["error"]);
        let streams = report["end"]["streams"].as_array().context("iperf3 lists its streams")?;
        assert_eq!(streams.len(), 8);
        for stream in streams {
            let received = stream["receiver"]["bytes"].as_u64().context("received bytes")?;
            assert!(received > 0, "a stream {direction:?} received nothing: {stream}");
        }
    }
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn five_hundred_connections_of_two_hosts_are_open_at_once(
    #[values(Wiring::TwoArmed, Wiring::OneArmed, Wiring::Jumbo, Wiring::JumboOneArmed)]
    wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let _web = http::HttpServer::start(lab.server(), 80)?;
    let gateway = lab.start_natgw(&lab.config())?;
    let mut open = Vec::new();
    for _ in 0..250 {
        for client in [lab.client(1), lab.client(2)] {
            open.push(stream::connect(client, at_server(80), SOON)?);
        }
    }
    let flows = gateway.json(&["flows", "--protocol", "tcp"])?;
    let flows = flows.as_array().context("an array")?;
    assert_eq!(flows.iter().filter(|flow| flow["state"] == "established").count(), 500);
    assert_eq!(gateway.counter("active_connection_count")?, 500);

    let mut seen = Vec::new();
    for stream in &mut open {
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        let address = reply.lines().last().context("an empty reply")?;
        seen.push(address.parse::<SocketAddr>().with_context(|| reply.clone())?);
    }
    assert!(seen.iter().all(|address| address.ip() == lab.eip()), "{seen:?}");
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 500, "each connection has a public port of its own");
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn none_of_ten_thousand_udp_exchanges_is_lost(
    #[values(
        Wiring::TwoArmed,
        Wiring::OneArmed,
        Wiring::TwoArmedTc,
        Wiring::OneArmedTc,
        Wiring::Jumbo,
        Wiring::JumboOneArmed
    )]
    wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let names = dns::DnsServer::start(lab.server(), 53)?;
    let _gateway = lab.start_natgw(&lab.config())?;
    let exchanges = dns::exchange(lab.client(1), at_server(names.port()), 10_000, SOON)?;
    assert_eq!((exchanges.sent, exchanges.lost()), (10_000, 0));
    assert_eq!(exchanges.seen_as, Some(lab.eip()));
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn every_ping_is_answered_the_first_included(
    #[values(Wiring::TwoArmed, Wiring::OneArmed, Wiring::Jumbo, Wiring::JumboOneArmed)]
    wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab()?;
    let gateway = lab.start_natgw(&lab.config())?;
    let server = SERVER.to_string();
    let largest = (lab.client(1).interface("eth0")?.mtu - 28).to_string();
    for size in ["0", "56", &largest] {
        let said = lab.client(1).check([
            "ping", "-n", "-M", "do", "-c", "5", "-i", "0.05", "-W", "5", "-s", size, &server,
        ])?;
        assert!(said.contains(" 0% packet loss"), "{size} bytes: {said}");
    }
    let flows = gateway.json(&["flows", "--protocol", "icmp"])?;
    let flows = flows.as_array().context("an array")?;
    assert_eq!(flows.len(), 3, "{flows:?}");
    for flow in flows {
        assert_eq!((&flow["packets_out"], &flow["packets_in"]), (&5.into(), &5.into()), "{flow}");
        assert_eq!(flow["remote"], format!("{SERVER}:0"));
    }
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn traceroute_shows_the_gateway_and_the_hops_behind_it(
    #[values(Wiring::TwoArmed, Wiring::OneArmed, Wiring::Jumbo, Wiring::JumboOneArmed)]
    wiring: Wiring,
    #[values("-U", "-I", "-T")] method: &str,
) -> Result<()> {
    let lab = wiring.lab()?;
    let _web = http::HttpServer::start(lab.server(), 80)?;
    let _gateway = lab.start_natgw(&lab.config())?;
    let server = SERVER.to_string();
    let said = lab.client(1).check(["traceroute", "-n", "-w", "3", "-q", "2", method, &server])?;
    // "NUMBER  ADDRESS  TIME ms  TIME ms"
    let hops: Vec<&str> =
        said.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
    let expected = ["10.0.1.1".to_owned(), wiring.next_hop().to_string(), server];
    assert_eq!(hops, expected, "{said}");
    assert!(!said.contains('*'), "no probe is lost: {said}");
    Ok(())
}

#[rstest]
#[ignore = "needs root: cargo xtask test e2e"]
fn a_host_learns_the_mtu_of_a_narrower_link_behind_the_gateway(
    #[values(Wiring::TwoArmed, Wiring::OneArmed, Wiring::Jumbo, Wiring::JumboOneArmed)]
    wiring: Wiring,
) -> Result<()> {
    let lab = wiring.lab_with(LabOptions { path_mtu: Some(1400), ..LabOptions::default() })?;
    let _web = http::HttpServer::start(lab.server(), 80)?;
    // Or its segments would fit from the start.
    lab.server().ip_batch("route change default via 203.0.113.1 advmss 1460\n")?;
    let gateway =
        lab.start_natgw(&lab.config().replace("[gateway]\n", "[gateway]\nmss_clamp = \"off\"\n"))?;
    let server = SERVER.to_string();
    let client = lab.client(1);

    let refused = client.run(["ping", "-n", "-M", "do", "-c", "1", "-s", "1400", &server])?;
    assert!(refused.stdout.contains("mtu = 1400"), "{}{}", refused.stdout, refused.stderr);
    assert!(refused.stdout.contains(&format!("From {}", wiring.next_hop())), "{}", refused.stdout);
    let route = client.check(["ip", "route", "get", &server])?;
    assert!(route.contains("mtu 1400"), "{route}");
    client.check(["ping", "-n", "-M", "do", "-c", "1", "-W", "5", "-s", "1372", &server])?;

    // Another host, which knows nothing of it yet, by TCP.
    let file = lab.dir().join("upload");
    let content: Vec<u8> = http::content(2_000_000).flatten().collect();
    std::fs::write(&file, content)?;
    let path = file.display().to_string();
    let url = format!("http://{SERVER}/");
    let digest = lab.client(2).check(["curl", "-sS", "--fail", "-m", "30", "-T", &path, &url])?;
    assert_eq!(digest.trim(), http::content_digest(2_000_000));
    let route = lab.client(2).check(["ip", "route", "get", &server])?;
    assert!(route.contains("mtu 1400"), "{} has not learnt it: {route}", client_address(2));
    assert_eq!(gateway.counter("packets_drop_count")?, 0);
    Ok(())
}

#[test]
#[ignore = "needs root: cargo xtask test e2e"]
fn the_gateway_tells_what_does_not_fit_its_own_way_out() -> Result<()> {
    let lab = Wiring::TwoArmed.lab()?;
    lab.gateway().ip_batch("link set wan0 mtu 1300\n")?;
    let gateway = lab.start_natgw(&lab.config())?;
    let server = SERVER.to_string();
    let argv = ["ping", "-n", "-M", "do", "-c", "1", "-s", "1400", &server];
    let refused = lab.client(1).run(argv)?;
    assert!(refused.stdout.contains("From 10.0.1.1"), "{}", refused.stdout);
    assert!(refused.stdout.contains("mtu = 1300"), "{}", refused.stdout);
    lab.client(1).check(["ping", "-n", "-M", "do", "-c", "1", "-W", "5", "-s", "1272", &server])?;
    assert!(gateway.counter("packets_answered")? >= 1);
    Ok(())
}
