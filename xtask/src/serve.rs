//! The lab's servers as a process of their own, so that a kept lab goes on without its maker.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};

use crate::lab::{dns, http};

/// Answer HTTP and DNS until killed (the lab runs it).
#[derive(Debug, clap::Args)]
pub struct Options {
    #[arg(long, default_value_t = 80)]
    http: u16,
    #[arg(long, default_value_t = 53)]
    dns: u16,
}

/// `cargo xtask serve`; prints `serving` when both ports are open.
pub fn main(options: &Options) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, options.http))
        .with_context(|| format!("cannot listen on TCP port {}", options.http))?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, options.dns))
        .with_context(|| format!("cannot listen on UDP port {}", options.dns))?;
    println!("serving");
    std::io::stdout().flush()?;
    std::thread::spawn(move || http::serve(&listener));
    dns::serve(&socket, &AtomicBool::new(false)).context("the DNS server failed")
}
