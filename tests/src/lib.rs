//! What the end-to-end tests share: the wirings they run over, the traffic that runs beside
//! them, and the frames that they send.

pub mod alone;
pub mod another_build;
pub mod attached;
pub mod datagrams;
pub mod exchange;
pub mod frames;
pub mod generator;
pub mod kernel;
pub mod links;
pub mod mirror;
pub mod packet_socket;
pub mod stage;
pub mod stream;
pub mod wiring;
