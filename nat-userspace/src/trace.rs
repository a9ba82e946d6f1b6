//! `natgw trace`: a packet made of a question, and the dataplane's answers put into words.

mod frame;
mod steps;

pub use frame::{describe, frame};
pub use steps::{Names, explain};
