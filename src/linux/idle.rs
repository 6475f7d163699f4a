//! Waiting for events in as little memory as can be.
//!
//! Must never call anything between giving the program's memory back and the wait: what runs is mapped again, 64 kB at a
//! time, so whatever else it called would stay resident for as long as panzer sleeps.

use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::sys;

/// How many events are taken from the kernel at a time.
const EVENTS_AT_ONCE: usize = 16;

/// Room for them.
pub(super) type Space = [MaybeUninit<epoll::Event>; EVENTS_AT_ONCE];

/// An empty one.
pub(super) const EMPTY: Space = [const { MaybeUninit::uninit() }; EVENTS_AT_ONCE];

/// Waits until something happens or the time is over; `releases`: after giving memory back, since nothing may happen for
/// long.
///
/// The only function that calls `epoll::wait`, so that the compiler puts that one into it, and never part of another.
///
/// # Errors
/// What the kernel says; a signal is none that panzer gets.
#[inline(never)]
pub(super) fn wait<'a>(
    epoll: BorrowedFd<'_>,
    space: &'a mut Space,
    timeout: Option<&Timespec>,
    releases: bool,
) -> Result<&'a [epoll::Event], Errno> {
    if releases {
        sys::release_stack();
        sys::release_program();
    }
    match epoll::wait(epoll, space, timeout) {
        Ok((events, _)) => Ok(events),
        Err(error) => Err(error),
    }
}
