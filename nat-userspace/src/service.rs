//! What the service manager is told. Without one (no NOTIFY_SOCKET) each call does nothing.

use sd_notify::NotifyState;

/// Traffic flows.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload begins; `ready` says that it is over.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        // systemd takes a reload message only with the time at which it began.
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => log::warn!("cannot tell the service manager of the reload: {error}"),
    }
}

/// The end begins; `status` says what is left, and how to end that too.
pub fn stopping(status: &str) {
    notify(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// A sign of life, where the service manager waits for them (WATCHDOG_USEC).
pub fn alive() {
    if sd_notify::watchdog_enabled().is_some() {
        notify(&[NotifyState::Watchdog]);
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        log::warn!("cannot reach the service manager: {error}; check NOTIFY_SOCKET");
    }
}
