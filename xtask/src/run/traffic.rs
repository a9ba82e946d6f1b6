//! Real traffic through the gateway: curl both ways, DNS queries, ping; every answer checked.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::lab::{Lab, Namespace, SERVER, dns, http};

/// Bytes of one transfer.
const TRANSFER: u64 = 20_000_000;
/// DNS queries in a row from one port.
const QUERIES: u32 = 20;
const PATIENCE: Duration = Duration::from_secs(1);

/// How often something was tried and came out right.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    pub(super) tried: u64,
    pub(super) right: u64,
    /// How often one was tried again.
    pub(super) again: u64,
}

/// How often what gets no answer is tried, as a resolver does. Downloads and uploads fill the links, and what finds
/// a queue full is lost there; TCP sends it again by itself.
const ATTEMPTS: u32 = 3;
/// Of so many, one may be tried again: a gateway that loses more than full queues do is at fault.
const RARELY: u64 = 20;

/// What the traffic came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) downloads: Count,
    pub(super) uploads: Count,
    pub(super) queries: Count,
    pub(super) pings: Count,
    /// The public address that the server saw.
    pub(super) seen_as: Option<std::net::Ipv4Addr>,
    pub(super) faults: Vec<String>,
}

impl Tally {
    /// Every kind was tried, and all of it came out right, nearly always at once.
    pub(super) fn all_right(&self) -> bool {
        [self.downloads, self.uploads, self.queries, self.pings].iter().all(|count| {
            let at_once = count.again * RARELY <= count.tried;
            count.tried > 0 && count.tried == count.right && at_once
        })
    }

    pub(super) fn bytes(count: Count) -> u64 {
        count.right * TRANSFER
    }
}

/// Running traffic.
pub(super) struct Traffic {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    threads: Vec<JoinHandle<()>>,
}

type Kind = fn(&Namespace, &str, &mut dyn FnMut(Change)) -> Result<()>;

/// A step of the tally.
#[derive(Clone, Copy)]
enum Change {
    Download(bool),
    Upload(bool),
    Queries(dns::Exchanges, u32),
    Pings(Count),
}

impl Traffic {
    /// Starts every kind from every client.
    pub(super) fn start(lab: &Lab) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let digest = http::content_digest(TRANSFER);
        let kinds: [(&str, Kind); 4] =
            [("download", download), ("upload", upload), ("dns", queries), ("ping", pings)];
        let mut threads = Vec::new();
        for client in [lab.client(1), lab.client(2)] {
            // What uploads send; what downloads fetch is compared with its digest.
            for (name, kind) in kinds {
                let (stop, tally) = (Arc::clone(&stop), Arc::clone(&tally));
                let (client, digest) = (client.clone(), digest.clone());
                threads.push(std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let done = kind(&client, &digest, &mut |change| apply(&tally, change));
                        if let Err(error) = done {
                            let why = format!("{error:#}").trim().replace('\n', " ");
                            let fault = format!("{} {name}: {why}", client.role());
                            lock(&tally).faults.push(fault);
                            return;
                        }
                    }
                }));
            }
        }
        Self { stop, tally, threads }
    }

    pub(super) fn tally(&self) -> Tally {
        lock(&self.tally).clone()
    }

    /// Lets what is under way end, and returns the whole.
    pub(super) fn finish(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            if thread.join().is_err() {
                lock(&self.tally).faults.push("a traffic thread panicked".to_owned());
            }
        }
        lock(&self.tally).clone()
    }
}

fn lock(tally: &Mutex<Tally>) -> std::sync::MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

fn apply(tally: &Mutex<Tally>, change: Change) {
    let mut tally = lock(tally);
    let mut one = |sum: fn(&mut Tally) -> &mut Count, count: Count| {
        let sum = sum(&mut tally);
        sum.tried += count.tried;
        sum.right += count.right;
        sum.again += count.again;
    };
    let single = |right: bool| Count { tried: 1, right: right.into(), again: 0 };
    match change {
        Change::Download(right) => one(|tally| &mut tally.downloads, single(right)),
        Change::Upload(right) => one(|tally| &mut tally.uploads, single(right)),
        Change::Pings(count) => one(|tally| &mut tally.pings, count),
        Change::Queries(result, again) => {
            let (tried, right) = (result.sent.into(), result.answered.into());
            one(|tally| &mut tally.queries, Count { tried, right, again: again.into() });
            tally.seen_as = result.seen_as.or(tally.seen_as);
        }
    }
}

const CURL: [&str; 6] = ["curl", "-sS", "--connect-timeout", "5", "--max-time", "20"];

fn download(client: &Namespace, digest: &str, tell: &mut dyn FnMut(Change)) -> Result<()> {
    let file = client.dir().join(format!("{}.download", client.role()));
    let path = file.to_str().context("a path that is no text")?;
    let url = format!("http://{SERVER}/bytes/{TRANSFER}");
    let fetched = client.check(CURL.into_iter().chain(["-o", path, &url]));
    let right = fetched.is_ok() && http::file_digest(&file)? == digest;
    tell(Change::Download(right));
    fetched?;
    if !right {
        bail!("what arrived is not what was sent: its SHA-256 differs");
    }
    Ok(())
}

fn upload(client: &Namespace, digest: &str, tell: &mut dyn FnMut(Change)) -> Result<()> {
    let file = client.dir().join(format!("{}.upload", client.role()));
    if !file.exists() {
        let content: Vec<u8> = http::content(TRANSFER).flatten().collect();
        std::fs::write(&file, content)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    let path = file.to_str().context("a path that is no text")?;
    let url = format!("http://{SERVER}/upload");
    let answer = client.check(CURL.into_iter().chain(["-T", path, &url]));
    let right = answer.as_ref().is_ok_and(|text| text.trim() == digest);
    tell(Change::Upload(right));
    let answer = answer?;
    if !right {
        bail!("the server received something else: its SHA-256 is {answer:?}");
    }
    Ok(())
}

fn queries(client: &Namespace, _: &str, tell: &mut dyn FnMut(Change)) -> Result<()> {
    let server = SocketAddr::from((SERVER, 53));
    let mut result = dns::exchange(client, server, QUERIES, PATIENCE)?;
    let mut again = 0;
    for _ in 1..ATTEMPTS {
        if result.lost() > 0 {
            let more = dns::exchange(client, server, result.lost(), PATIENCE)?;
            again += more.sent;
            result.answered += more.answered;
            result.seen_as = more.seen_as.or(result.seen_as);
        }
    }
    tell(Change::Queries(result, again));
    if result.lost() > 0 {
        bail!("{} of {} queries got no answer", result.lost(), result.sent);
    }
    // As a resolver's load, not as a benchmark.
    std::thread::sleep(Duration::from_millis(50));
    Ok(())
}

fn pings(client: &Namespace, _: &str, tell: &mut dyn FnMut(Change)) -> Result<()> {
    let mut count = ping(client, 5)?;
    for _ in 1..ATTEMPTS {
        let lost = count.tried - count.right;
        if lost > 0 {
            count.right += ping(client, lost)?.right;
            count.again += lost;
        }
    }
    tell(Change::Pings(count));
    if count.right < count.tried {
        bail!("{} of {} echo requests got no reply", count.tried - count.right, count.tried);
    }
    Ok(())
}

fn ping(client: &Namespace, requests: u64) -> Result<Count> {
    let (server, requests) = (SERVER.to_string(), requests.to_string());
    let output = client.run(["ping", "-n", "-c", &requests, "-i", "0.2", "-W", "1", &server])?;
    ping_count(&output.stdout)
        .with_context(|| format!("ping printed {}{}", output.stdout, output.stderr))
}

/// Reads `5 packets transmitted, 4 received, …`.
fn ping_count(text: &str) -> Option<Count> {
    let line = text.lines().find(|line| line.contains("packets transmitted"))?;
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
    Some(Count { tried: numbers.next()?, right: numbers.next()?, again: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_summary_line_is_read() {
        let text = "PING\n5 packets transmitted, 4 received, 20% packet loss, time 805ms\n";
        let count = ping_count(text).unwrap();
        assert_eq!((count.tried, count.right), (5, 4));
        assert!(ping_count("ping: connect: Network is unreachable").is_none());
    }

    #[test]
    fn traffic_is_all_right_only_if_every_kind_was_tried_and_none_failed() {
        let good = Count { tried: 2, right: 2, again: 0 };
        let whole = Tally {
            downloads: good,
            uploads: good,
            queries: good,
            pings: good,
            ..Tally::default()
        };
        assert!(whole.all_right());
        assert!(!Tally { pings: Count::default(), ..whole.clone() }.all_right());
        assert!(!Tally { uploads: Count { right: 1, ..good }, ..whole.clone() }.all_right());
        assert!(!Tally { queries: Count { again: 1, ..good }, ..whole.clone() }.all_right());
        let rarely = Count { tried: 40, right: 40, again: 2 };
        assert!(Tally { queries: rarely, ..whole }.all_right());
    }
}
