//! The time, and waiting. std's clocks can fail in its view, and say so with all that an error's Debug takes: 4 kB.
//!
//! Must never be asked by what decides: `supervisor` is told the time.

use std::time::Duration;

use super::sys;

/// A moment.
#[derive(Clone, Copy, Debug)]
pub struct Instant(Duration);

impl Instant {
    /// The present one.
    #[must_use]
    pub fn now() -> Self {
        Self(monotonic())
    }

    /// The moment so much after it.
    pub(super) fn later(self, by: Duration) -> Self {
        Self(self.0 + by)
    }

    /// How long ago it was.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        monotonic().saturating_sub(self.0)
    }
}

/// The time since the machine has started.
pub(super) fn monotonic() -> Duration {
    sys::read_clock(libc::CLOCK_MONOTONIC)
}

/// The time since 1970.
pub(super) fn since_epoch() -> Duration {
    sys::read_clock(libc::CLOCK_REALTIME)
}

/// Waits at least so long; a signal does not end it, since all are held.
pub(super) fn sleep(pause: Duration) {
    if let Ok(pause) = pause.try_into() {
        let _ = rustix::thread::nanosleep(&pause);
    }
}
