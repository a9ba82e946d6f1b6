//! The programs for tc once more, for `natgw capture`: they forward, and show what they do.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(internal_features, reason = "read-modify-write atomics, see atomics.rs")
)]

#[cfg(target_arch = "bpf")]
#[path = "../account.rs"]
mod account;
#[cfg(target_arch = "bpf")]
#[path = "../atomics.rs"]
mod atomics;
#[cfg(target_arch = "bpf")]
mod frame;
#[cfg(target_arch = "bpf")]
#[path = "../mode/capture/tc.rs"]
mod hook;
#[cfg(target_arch = "bpf")]
#[path = "../maps.rs"]
#[expect(dead_code, reason = "the way out goes by interface")]
mod maps;
#[cfg(target_arch = "bpf")]
#[path = "../mode/capture.rs"]
#[expect(dead_code, reason = "there is one way here, and no program but this that counts nothing")]
mod mode;
#[cfg(target_arch = "bpf")]
#[path = "../network.rs"]
mod network;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
#[path = "../reach.rs"]
mod reach;
#[cfg(target_arch = "bpf")]
#[path = "../runtime.rs"]
mod runtime;
#[cfg(target_arch = "bpf")]
#[path = "../stages.rs"]
mod stages;
#[cfg(target_arch = "bpf")]
#[path = "../tables.rs"]
#[expect(dead_code, reason = "programs that see no packet are not among these")]
mod tables;

/// On the host there is only this, so that `cargo clippy --workspace` works.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
