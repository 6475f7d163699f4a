//! panzer's own manager, systemd or another panzer: tells it by `NOTIFY_SOCKET` how panzer is, and that it lives.
//!
//! Must never wait for it, wake panzer up where nothing is left to tell, nor end panzer over it.

use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sendto, socket_with};

use super::clock;
use super::sys;
use crate::supervisor::manager::Known;

/// How long a change of the status alone waits for the next one, and how long until a full queue is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// Beats are never closer than that, whatever is asked for.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// Where it listens: a path, or `@` and an abstract name.
const SOCKET: &str = "NOTIFY_SOCKET";

/// The process from which signs of life are expected.
pub(super) const WATCHDOG_PID: &str = "WATCHDOG_PID";

/// Whoever has started panzer and wants to know.
pub(super) struct Manager {
    /// What it was told.
    known: Known,
    /// How often it wants a sign of life.
    interval: Option<Duration>,
    /// When it is to have the next one.
    beat_at: Option<Duration>,
    /// Until then it is told only what is urgent.
    rests_until: Duration,
    /// When there is something to tell without anything happening.
    wake_at: Option<Duration>,
    /// It was said that it cannot be told.
    said: bool,
}

impl Manager {
    /// The one that panzer's environment names.
    pub(super) fn find() -> Option<Self> {
        sys::variable(SOCKET).filter(|name| !name.is_empty())?;
        // Twice in that time, as sd_watchdog_enabled(3) recommends.
        let interval = sys::number("WATCHDOG_USEC").filter(|time| *time > 0 && is_to_beat());
        let interval = interval.map(|time| SHORTEST_INTERVAL.max(Duration::from_micros(time / 2)));
        Some(Self {
            known: Known::default(),
            interval,
            beat_at: interval.map(|_| Duration::ZERO),
            rests_until: Duration::ZERO,
            wake_at: None,
            said: false,
        })
    }

    /// When [`Manager::tell`] has something to do without anything happening.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.wake_at
    }

    /// A beat is due, as after an absence.
    pub(super) fn beat_at_once(&mut self) {
        self.beat_at = self.interval.map(|_| Duration::ZERO);
    }

    /// Tells it what it does not know yet.
    ///
    /// # Errors
    /// It cannot be told anything. That is said once, until it can.
    pub(super) fn tell(&mut self, now: Duration, known: Known) -> Result<(), Errno> {
        let is_beat_due = self.beat_at.is_some_and(|at| at <= now);
        let (mut message, is_urgent) = known.since(&self.known, clock::monotonic());
        if is_beat_due {
            message.push_str("WATCHDOG=1\n");
        }
        self.wake_at = self.beat_at;
        if message.is_empty() {
            return Ok(());
        }
        let mut sent = Err(Errno::AGAIN);
        if is_urgent || is_beat_due || now >= self.rests_until {
            self.rests_until = now + PAUSE;
            sent = send(message.as_bytes());
        }
        // It will be read, or there will be what a socket takes.
        if let Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM | Errno::MFILE) = sent {
            self.wake_at = Some(self.rests_until);
            return Ok(());
        }
        if is_beat_due {
            self.beat_at = self.interval.map(|interval| now + interval);
            self.wake_at = self.beat_at;
        }
        // Where nobody is, it is told at the next event, should there be somebody then.
        let was_said = std::mem::replace(&mut self.said, sent.is_err());
        if sent.is_ok() {
            self.known = known;
        }
        sent.or(if was_said { Ok(()) } else { sent })
    }
}

/// Whether it is panzer from whom signs of life are expected, where any are.
pub(super) fn is_to_beat() -> bool {
    sys::number(WATCHDOG_PID).is_none_or(|pid| pid == std::process::id().into())
}

/// By a socket of its own each time, so that nothing is kept of a manager that was started anew.
fn send(message: &[u8]) -> Result<(), Errno> {
    let name = sys::variable(SOCKET).unwrap_or_default();
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name),
        [b'/', ..] => SocketAddrUnix::new(name.as_bytes()),
        _ => Err(Errno::AFNOSUPPORT),
    }?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    sendto(socket, message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL, &address).map(drop)
}
