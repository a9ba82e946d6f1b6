//! Waiting for the programs that run.

use std::time::Duration;

/// Where the kernel has no better way; a packet takes microseconds.
const LONG: Duration = Duration::from_millis(20);

/// Returns when every program that was running has ended (some milliseconds): those that begin meanwhile see
/// what was written before. Programs run within an RCU read-side section, and `membarrier` waits for all of these
/// (kernel/sched/membarrier.c, Linux 4.3).
pub fn wait_for_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes no pointer.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        std::thread::sleep(LONG);
    }
}
