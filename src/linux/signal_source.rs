//! The signals that panzer gets, read from a descriptor.
//!
//! Must never lose one, nor keep the loop from the rest of its work in a flood of them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::sys::{self, Pid};
use crate::signals::Signal;

/// `sizeof(struct signalfd_siginfo)`, and where in it the sender's pid stands; the signal's number comes first (`signalfd(2)`).
const SIGNAL_RECORD: usize = 128;
const SIGNALS_AT_ONCE: usize = 16;
const SENDER_AT: usize = 12;

/// Where blocked signals are read.
pub struct SignalSource(OwnedFd);

impl SignalSource {
    /// Opens it.
    ///
    /// # Errors
    /// The kernel has no descriptor or no memory.
    pub fn new() -> Result<Self, Errno> {
        sys::signal_descriptor().map(Self)
    }

    /// Readable when a signal has come.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Those that have come, without SIGCHLD. What is not read now wakes the loop again.
    #[must_use]
    pub fn read(&self) -> Vec<Signal> {
        let mut records = [0_u8; SIGNAL_RECORD * SIGNALS_AT_ONCE];
        let length = rustix::io::read(&self.0, &mut records).unwrap_or(0);
        let own = Pid::own().number();
        let mut signals = Vec::new();
        for record in records.chunks_exact(SIGNAL_RECORD).take(length / SIGNAL_RECORD) {
            let (Some(signal), Some(sender)) = (word(record, 0), word(record, SENDER_AT)) else { continue };
            // What panzer sends to itself is SIGPIPE, for a line that nobody reads.
            let is_own = i32::try_from(sender) == Ok(own);
            let signal = Signal::from_number(signal.into());
            signals.extend(signal.filter(|signal| *signal != Signal::CHLD && !is_own));
        }
        signals
    }
}

fn word(record: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(record.get(at..at + 4)?.try_into().ok()?))
}
