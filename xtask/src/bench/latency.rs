//! Round trips of one small UDP datagram at a time, between sockets, through the gateway.

use std::{
    io::ErrorKind,
    net::{SocketAddrV4, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    context::{self, Context},
    endpoints::{Endpoints, SERVER},
    kind::Kind,
    report::{Report, Row},
    spread::Spread,
};
use crate::interrupt;

const KINDS: [Kind; 3] = [Kind::NatgwNative, Kind::NatgwTc, Kind::NftXdpSink];
const PORT: u16 = 7007;
/// Round trips in a row before it is the next subject's turn.
const TURN: usize = 500;
const WAIT: Duration = Duration::from_millis(500);

pub(super) fn measure(context: &Context, report: &mut Report) -> Result<()> {
    let mut subjects = Vec::new();
    for kind in KINDS {
        match Endpoints::start(kind, context) {
            Ok(endpoints) => subjects.push(Trips::open(endpoints)?),
            Err(error) if kind.is_nft() => return Err(error),
            Err(error) => {
                report.skip(&format!("round trip, {}", kind.name()), format!("{error:#}"));
            }
        }
    }
    let turns = if context.quick { 6 } else { 20 };
    let done = AtomicBool::new(false);
    let measured = std::thread::scope(|scope| {
        for subject in &subjects {
            let (echo, done) = (&subject.echo, &done);
            scope.spawn(move || answer(context.cpu, echo, done));
        }
        let measured = interleaved(context, &subjects, turns);
        done.store(true, Ordering::Relaxed);
        measured
    })?;
    let (_, nft) = measured.last().context("no subject")?;
    for (kind, medians) in &measured {
        let ratio = |(own, nft): (&[f64; 2], &[f64; 2])| nft[0] / own[0];
        for (place, name) in [(0, "median"), (1, "99th percentile")] {
            let Some(value) = Spread::of(medians.iter().map(|trip| trip[place])) else { continue };
            let vs_nft = Spread::of(medians.iter().zip(nft).map(ratio));
            report.rows.push(Row {
                bench: "round trip of a UDP datagram, both hosts on one core".to_owned(),
                subject: format!("{}, {name}", kind.name_of_path()),
                unit: "µs".to_owned(),
                value,
                vs_nft: vs_nft.filter(|_| place == 0),
                lost: None,
            });
        }
    }
    // Of the better hook, as `auto` would choose.
    let best = measured
        .iter()
        .filter(|(kind, _)| !kind.is_nft())
        .filter_map(|(_, own)| Spread::of(own.iter().zip(nft).map(|(own, nft)| own[0] / nft[0])))
        .min_by(|left, right| left.median.total_cmp(&right.median));
    report.figure("rtt_vs_nft_p50", best);
    Ok(())
}

/// Median and 99th percentile of each repetition, microseconds.
type Repetitions = Vec<[f64; 2]>;

fn interleaved(
    context: &Context,
    subjects: &[Trips],
    turns: usize,
) -> Result<Vec<(Kind, Repetitions)>> {
    for subject in subjects {
        subject.turn(&mut Vec::new())?; // addresses are resolved, the session is open
    }
    let mut all: Vec<_> = subjects.iter().map(|it| (it.endpoints.kind, Vec::new())).collect();
    for _ in 0..context.repetitions {
        let mut times: Vec<Vec<f64>> = vec![Vec::new(); subjects.len()];
        for _ in 0..turns {
            for (subject, times) in subjects.iter().zip(&mut times) {
                interrupt::check()?;
                subject.turn(times)?;
            }
        }
        for ((_, repetitions), mut times) in all.iter_mut().zip(times) {
            times.sort_by(f64::total_cmp);
            repetitions.push([times[times.len() / 2], times[times.len() * 99 / 100]]);
        }
    }
    Ok(all)
}

struct Trips {
    endpoints: Endpoints,
    ask: UdpSocket,
    echo: UdpSocket,
}

impl Trips {
    fn open(endpoints: Endpoints) -> Result<Self> {
        let echo = {
            let _inside = endpoints.topology.server.enter()?;
            UdpSocket::bind(SocketAddrV4::new(SERVER, PORT)).context("bind in the server")?
        };
        let ask = {
            let _inside = endpoints.topology.client.enter()?;
            let socket = UdpSocket::bind("10.0.0.2:0").context("bind in the client")?;
            socket.connect(SocketAddrV4::new(SERVER, PORT))?;
            socket
        };
        for socket in [&echo, &ask] {
            socket.set_read_timeout(Some(WAIT))?;
        }
        Ok(Self { endpoints, ask, echo })
    }

    fn turn(&self, times: &mut Vec<f64>) -> Result<()> {
        let mut answer = [0; 64];
        for _ in 0..TURN {
            let started = Instant::now();
            self.ask.send(&[0; 18])?;
            match self.ask.recv(&mut answer) {
                Ok(_) => times.push(started.elapsed().as_nanos() as f64 / 1000.0),
                // A lost one (the first, while its next hop is resolved) is not counted.
                Err(error) if is_timeout(error.kind()) => {}
                Err(error) => return Err(error).context("wait for the answer"),
            }
        }
        Ok(())
    }
}

fn answer(cpu: usize, socket: &UdpSocket, done: &AtomicBool) {
    if let Err(error) = context::pin(cpu) {
        eprintln!("{error:#}");
    }
    let mut datagram = [0; 64];
    while !done.load(Ordering::Relaxed) {
        match socket.recv_from(&mut datagram) {
            Ok((length, from)) => drop(socket.send_to(&datagram[..length], from)),
            Err(error) if is_timeout(error.kind()) => {}
            Err(_) => return,
        }
    }
}

fn is_timeout(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
