//! A small HTTP/1.1 server for transfers whose content both ends can check.
//!
//! `GET /bytes/N` answers with [`content`] of N bytes, `PUT` and `POST` with the SHA-256 of what
//! was sent, `GET /` with the address and port that the request came from, as the server sees it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fmt::Write as _, fs, io};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::namespace::Namespace;

/// A client that says nothing for so long is given up.
const IDLE_LIMIT: Duration = Duration::from_secs(60);
const CHUNK: usize = 64 << 10;

/// A server in a namespace; dropping it stops it.
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// Listens on every address of the namespace; port 0 chooses one.
    pub fn start(namespace: &Namespace, port: u16) -> Result<Self> {
        let bound = namespace.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)));
        let listener = bound
            .with_context(|| format!("cannot listen on port {port} in {}", namespace.name()))?;
        let address = listener.local_addr()?;
        let accepting = listener.try_clone()?;
        // Started inside, so that whatever it opens belongs to the namespace.
        let thread = namespace.enter(|| std::thread::spawn(move || serve(&accepting)));
        Ok(Self { address, listener, thread: Some(thread) })
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        // accept(2) fails on a listener that was shut down, which ends the thread.
        // SAFETY: shutdown(2) takes integers; the descriptor is ours and open.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RDWR) };
        if let Some(thread) = self.thread.take() {
            // A panic in it was printed by its thread.
            let _ = thread.join();
        }
    }
}

/// Serves until the listener fails or is shut down; each connection on a thread of its own.
pub fn serve(listener: &TcpListener) {
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                std::thread::spawn(move || {
                    if let Err(error) = answer(&stream) {
                        // Clients of tests hang up on purpose; whoever cares sees its own end.
                        eprintln!("http: {:?}: {error}", stream.peer_addr().ok());
                    }
                });
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(_) => return,
        }
    }
}

struct Request {
    method: String,
    path: String,
    length: u64,
    expects_continue: bool,
}

fn answer(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE_LIMIT))?;
    stream.set_write_timeout(Some(IDLE_LIMIT))?;
    let mut input = BufReader::with_capacity(CHUNK, stream);
    // A connection that only opens and closes is no fault.
    let Some(request) = read_request(&mut input)? else { return Ok(()) };
    match (request.method.as_str(), request.path.strip_prefix("/bytes/")) {
        ("GET", Some(count)) => match count.parse() {
            Ok(count) => {
                write_head(stream, "200 OK", count)?;
                for chunk in content(count) {
                    stream.write_all(&chunk)?;
                }
            }
            Err(_) => write_text(stream, "400 Bad Request", "N of /bytes/N is no number\n")?,
        },
        ("GET", None) if request.path == "/" => {
            write_text(stream, "200 OK", &format!("{}\n", stream.peer_addr()?))?;
        }
        ("PUT" | "POST", _) => {
            if request.expects_continue {
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            let digest = digest_of(&mut input.take(request.length))?;
            write_text(stream, "200 OK", &format!("{digest}\n"))?;
        }
        _ => write_text(stream, "404 Not Found", "there are /, /bytes/N, and PUT anywhere\n")?,
    }
    stream.shutdown(Shutdown::Write)?;
    // Read to the client's FIN: closing on unread bytes would send a reset.
    io::copy(&mut stream.take(CHUNK as u64), &mut io::sink())?;
    Ok(())
}

fn read_request(input: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return Err(io::Error::other(format!("not HTTP: {line:?}")));
    };
    let mut request = Request { method, path, length: 0, expects_continue: false };
    loop {
        let mut header = String::new();
        if input.read_line(&mut header)? == 0 || header.trim().is_empty() {
            return Ok(Some(request));
        }
        let Some((name, value)) = header.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("content-length") {
            request.length = value.trim().parse().map_err(io::Error::other)?;
        } else if name.eq_ignore_ascii_case("expect") {
            request.expects_continue = value.trim().eq_ignore_ascii_case("100-continue");
        }
    }
}

fn write_head(mut stream: &TcpStream, status: &str, length: u64) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n"
    )
}

fn write_text(mut stream: &TcpStream, status: &str, text: &str) -> io::Result<()> {
    write_head(stream, status, text.len() as u64)?;
    stream.write_all(text.as_bytes())
}

/// `count` bytes without a pattern that a lost or repeated segment could fit, in chunks.
pub fn content(count: u64) -> impl Iterator<Item = Vec<u8>> {
    let chunk = CHUNK as u64;
    (0..count.div_ceil(chunk)).map(move |number| {
        let length = chunk.min(count - number * chunk) as usize;
        // splitmix64 of the position
        let mut state = number << 32;
        let words = (0..length.div_ceil(8)).flat_map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = state;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (word ^ (word >> 31)).to_le_bytes()
        });
        words.take(length).collect()
    })
}

/// SHA-256 of [`content`] of `count` bytes, in hexadecimal.
pub fn content_digest(count: u64) -> String {
    let mut hash = Sha256::new();
    for chunk in content(count) {
        hash.update(&chunk);
    }
    hexadecimal(&hash.finalize())
}

/// SHA-256 of a file, in hexadecimal.
pub fn file_digest(path: &std::path::Path) -> Result<String> {
    let mut file =
        fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    digest_of(&mut file).with_context(|| format!("cannot read {}", path.display()))
}

fn digest_of(input: &mut impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match input.read(&mut buffer)? {
            0 => return Ok(hexadecimal(&hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_has_the_length_asked_for_and_a_longer_one_begins_the_same() {
        let flat = |count| content(count).flatten().collect::<Vec<u8>>();
        for count in [0, 1, 8, 65_535, 65_536, 65_537, 200_000] {
            assert_eq!(flat(count).len() as u64, count);
        }
        assert_eq!(flat(70_000)[..], flat(200_000)[..70_000]);
    }

    #[test]
    fn a_digest_is_that_of_the_standard() {
        // FIPS 180-2, appendix B.1
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest_of(&mut &b"abc"[..]).unwrap(), expected);
    }

    #[test]
    fn an_upload_is_answered_with_its_digest() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || serve(&listener));
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"PUT /x HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
        assert!(reply.ends_with(
            "\r\n\r\nba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n"
        ));
    }
}
