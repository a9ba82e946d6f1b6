//! Empty: makes the crate a build dependency, so that cargo rebuilds what embeds the programs.
#![no_std]
