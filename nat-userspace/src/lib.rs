//! natgw in userspace: configuration, command line, control socket.

pub mod announce;
pub mod api;
pub mod capture;
pub mod cli;
pub mod cmd;
pub mod config;
pub mod controller;
pub mod crowds;
pub mod daemon;
pub mod datapath;
pub mod doctor;
pub mod expire;
pub mod flowlog;
pub mod flows;
pub mod forwarding;
pub mod metrics;
pub mod netdev;
pub mod output;
pub mod preflight;
pub mod service;
pub mod slowpath;
pub mod talkers;
pub mod top;
pub mod trace;
