//! The control socket: what the daemon tells and takes, over HTTP on a unix socket.
//!
//! `curl --unix-socket /run/natgw/default.sock http://natgw/v1/status` shows it without natgw.

pub mod capture;
pub mod client;
mod control;
mod counters;
mod details;
pub mod instance;
pub mod model;
mod reply;
pub mod schema;
pub mod server;
pub mod top;
pub mod trace;

pub use control::{Control, ControlError};
pub use counters::{Counters, Metric, MetricKind};
pub use details::{AddressDetail, Details};
