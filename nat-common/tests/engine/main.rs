//! The engine as a whole, frame by frame, over plain tables.

mod answers;
mod bindings;
mod cache;
mod expiry;
mod faults;
mod first_look;
mod fragments;
mod gateway;
mod icmp_errors;
mod icmp_queries;
mod lifetime;
mod malformed;
mod next_hops;
mod one_to_one;
mod ports;
mod protocols;
mod races;
mod records;
mod rows;
mod slow_path;
mod tcp;
mod translation;
