//! The NAT engine of natgw: packet parsing, sessions, port choice, translation.
//!
//! Pure: no I/O, no allocation, no `unsafe`, no panics. The same code is compiled into the BPF
//! programs (`nat-ebpf`) and into host tests. What it needs from outside comes through four small
//! traits in [`env`]: the packet, the tables, the clock, the network.
//!
//! Read it in the order in which a packet walks: [`parse`] → [`stage`] (what happens to a packet,
//! one file a step) → [`translate`] → [`verdict`].
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

#[cfg(all(feature = "host", not(test)))]
extern crate std;

pub mod agenda;
pub mod answer;
pub mod cache;
pub mod capture;
pub mod checksum;
pub mod counters;
pub mod env;
pub mod event;
pub mod flow;
#[cfg(any(test, feature = "host"))]
pub mod host;
pub mod maps;
pub mod net;
pub mod next_hops;
pub mod pair;
pub mod parse;
pub mod port;
pub mod record;
pub mod refusal;
pub mod rules;
pub mod session;
pub mod sieve;
pub mod stage;
pub mod tcp_state;
pub mod trace;
pub mod translate;
pub mod verdict;
pub mod wire;
