//! DNS over UDP, as far as a lab needs it: a server that answers every A query, and a client
//! that counts what comes back.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::namespace::Namespace;

/// The server looks this often whether it is to stop.
const WAKE: Duration = Duration::from_millis(50);
/// The longest datagram it takes.
const LONGEST: usize = 65_535;
const HEADER: usize = 12;
/// QR, RD and RA of RFC 1035 §4.1.1: an answer.
const ANSWER_FLAGS: [u8; 2] = [0x81, 0x80];

/// A server in a namespace; dropping it stops it. The answer to every query is the address that
/// the query came from, as the server sees it.
#[derive(Debug)]
pub struct DnsServer {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl DnsServer {
    /// Listens on every address of the namespace; port 0 chooses one.
    pub fn start(namespace: &Namespace, port: u16) -> Result<Self> {
        let bound = namespace.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)));
        let socket = bound
            .with_context(|| format!("cannot listen on port {port} in {}", namespace.name()))?;
        socket.set_read_timeout(Some(WAKE))?;
        let port = socket.local_addr()?.port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || serve(&socket, &stopped));
        Ok(Self { port, stop, thread: Some(thread) })
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A failed receive has shown at the clients.
            let _ = thread.join();
        }
    }
}

/// Answers queries until `stop`; the socket needs a read timeout to notice.
pub fn serve(socket: &UdpSocket, stop: &AtomicBool) -> io::Result<()> {
    let mut buffer = vec![0; LONGEST];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((length, SocketAddr::V4(from))) => {
                if let Some(reply) = answer(&buffer[..length], *from.ip()) {
                    socket.send_to(&reply, from)?;
                }
            }
            Ok((_, SocketAddr::V6(_))) => {}
            // A refused one is the ICMP error for an earlier answer.
            Err(error) if is_timeout(&error) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// A query for the A record of `name`.
fn query(id: u16, name: &str) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    // Recursion desired, one question.
    let mut packet = vec![high, low, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).expect("a label has at most 63 bytes"));
        packet.extend(label.bytes());
    }
    // End of the name, type A, class IN
    packet.extend([0, 0, 1, 0, 1]);
    packet
}

/// The answer to `query`: its question, and `address` with a TTL of 60 s.
fn answer(query: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    let is_query = *query.get(2)? & 0x80 == 0;
    if !is_query || query.len() < HEADER {
        return None;
    }
    let mut end = HEADER;
    while *query.get(end)? != 0 {
        end += 1 + usize::from(query[end]);
    }
    // The closing zero, type and class
    let question = query.get(HEADER..end + 5)?;
    let mut packet = query[..2].to_vec();
    packet.extend(ANSWER_FLAGS);
    packet.extend([0, 1, 0, 1, 0, 0, 0, 0]);
    packet.extend(question);
    // Name by reference to the question, type A, class IN, TTL, length
    packet.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    packet.extend(address.octets());
    Some(packet)
}

/// What became of a number of queries.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Exchanges {
    pub sent: u32,
    /// Queries whose own answer came back, from the address asked.
    pub answered: u32,
    /// Public address that the server saw at last.
    pub seen_as: Option<Ipv4Addr>,
}

impl Exchanges {
    pub fn lost(&self) -> u32 {
        self.sent - self.answered
    }
}

/// Sends `count` queries one after the other from one socket, each once, and waits at most
/// `limit` for each answer.
pub fn exchange(
    namespace: &Namespace,
    server: SocketAddr,
    count: u32,
    limit: Duration,
) -> Result<Exchanges> {
    namespace.enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(server).with_context(|| format!("no way to {server}"))?;
        socket.set_read_timeout(Some(limit))?;
        let mut result = Exchanges::default();
        for number in 0..count {
            let id = u16::try_from(number & 0xffff).expect("masked to 16 bits");
            socket.send(&query(id, &format!("host-{number}.example")))?;
            result.sent += 1;
            if let Some(address) = own_answer(&socket, id)? {
                result.answered += 1;
                result.seen_as = Some(address);
            }
        }
        Ok(result)
    })
}

/// The answer with this id; answers to queries given up before are passed over.
fn own_answer(socket: &UdpSocket, id: u16) -> Result<Option<Ipv4Addr>> {
    let mut buffer = [0; 512];
    loop {
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if is_timeout(&error) => return Ok(None),
            Err(error) => return Err(error).context("waiting for an answer"),
        };
        let packet = &buffer[..length];
        if packet.get(2..4) != Some(&ANSWER_FLAGS[..]) {
            bail!("what came back is no answer: {packet:02x?}");
        }
        if packet[..2] == id.to_be_bytes() {
            let address: Option<[u8; 4]> = packet.last_chunk().copied();
            return Ok(address.map(Ipv4Addr::from));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_repeats_the_question_and_ends_with_the_address() {
        let query = query(0x1234, "a.example");
        let reply = answer(&query, Ipv4Addr::new(198, 51, 100, 10)).unwrap();
        assert_eq!(reply[..4], [0x12, 0x34, 0x81, 0x80]);
        assert_eq!(reply[HEADER..query.len()], query[HEADER..]);
        assert!(reply.ends_with(&[0, 4, 198, 51, 100, 10]));
    }

    #[test]
    fn what_is_no_query_gets_no_answer() {
        let query = query(1, "a.example");
        let reply = answer(&query, Ipv4Addr::LOCALHOST).unwrap();
        assert_eq!(answer(&reply, Ipv4Addr::LOCALHOST), None);
        for cut in 0..query.len() {
            assert_eq!(answer(&query[..cut], Ipv4Addr::LOCALHOST), None, "{cut} bytes");
        }
    }
}
