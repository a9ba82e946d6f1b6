//! The dataplane's BPF programs once more, for `natgw trace`: they change nothing and send nothing.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(internal_features, reason = "read-modify-write atomics, see atomics.rs")
)]

#[cfg(target_arch = "bpf")]
mod account;
#[cfg(target_arch = "bpf")]
mod atomics;
#[cfg(target_arch = "bpf")]
mod frame;
#[cfg(target_arch = "bpf")]
mod guard;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
#[path = "mode/trace.rs"]
mod mode;
#[cfg(target_arch = "bpf")]
mod network;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod reach;
#[cfg(target_arch = "bpf")]
mod runtime;
#[cfg(target_arch = "bpf")]
mod stages;
#[cfg(target_arch = "bpf")]
#[expect(dead_code, reason = "programs that see no packet are not among these")]
mod tables;

/// On the host there is only this, so that `cargo clippy --workspace` works.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
