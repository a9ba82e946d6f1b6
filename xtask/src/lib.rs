//! Everything that one does with this repository: set-up, the lab, tests, benchmarks. The
//! network-namespace [`lab`] is also what the end-to-end tests are made of.
//!
//! Imports no crate of the product: it knows the gateway as its users do, by its command line.

pub mod bench;
pub mod dist;
mod interrupt;
pub mod lab;
pub mod run;
pub mod serve;
pub mod setup;
pub mod test;
pub mod vm;
pub mod workspace;
