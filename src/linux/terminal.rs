//! The controlling terminal: which process group may read from it, and whether panzer may be stopped there.
//!
//! Every call may say ENOTTY, ENXIO, EBADF or EACCES where there is no terminal; panzer carries on. Must never be waited
//! for.

use std::os::fd::BorrowedFd;

use rustix::termios::{tcgetpgrp, tcsetpgrp};

use super::sys::{self, Pid, Target};

/// Standard input is the controlling terminal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terminal {
    /// The group that panzer is in, to which a shell gives the terminal.
    own_group: Pid,
}

impl Terminal {
    /// The terminal, whoever has it now.
    pub(super) fn find() -> Option<Self> {
        foreground()?;
        sys::own_group().map(|own_group| Self { own_group })
    }

    /// Gives the terminal to `group`, if it is panzer's to give: not where panzer was started in the background.
    /// SIGTTOU must be blocked. Async-signal-safe.
    pub(super) fn pass_to(self, group: Pid) {
        if foreground() == Some(self.own_group) {
            give_to(group);
        }
    }

    /// Takes the terminal back at the end from `group`, or from one that is gone: a script that goes on after panzer
    /// wants to read.
    pub(super) fn take_back_from(self, group: Pid) {
        if foreground().is_some_and(|current| current == group || !sys::exists(Target::Group(current))) {
            give_to(self.own_group);
        }
    }
}

/// How a terminal treats what is typed.
#[derive(Clone, Copy)]
pub struct Modes(libc::termios);

impl Modes {
    /// Those in force.
    ///
    /// # Errors
    /// It is no terminal.
    pub fn of(terminal: BorrowedFd<'_>) -> Result<Self, rustix::io::Errno> {
        sys::terminal_modes(terminal).map(Self)
    }

    /// The same, with each key given at once, as a key, and shown nowhere; and Ctrl-S does not hold back what is written.
    /// Ctrl-C is no signal either: where the terminal does not control the process (`docker exec`), none would come.
    #[must_use]
    pub fn for_keys(mut self) -> Self {
        self.0.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG);
        self.0.c_iflag &= !libc::IXON;
        self
    }

    /// Puts them in force at once.
    pub fn apply(self, terminal: BorrowedFd<'_>) {
        sys::set_terminal_modes(terminal, &self.0);
    }
}

/// Whether nobody could continue panzer's group if it stopped: the session's leader is in it, or panzer's parent is in
/// another session.
pub(super) fn is_orphaned() -> bool {
    let session = rustix::process::getsid(None).ok();
    session.map(Pid::from) == sys::own_group()
        || rustix::process::getppid().is_none_or(|parent| rustix::process::getsid(Some(parent)).ok() != session)
}

fn give_to(group: Pid) {
    if let Some(group) = rustix::process::Pid::from_raw(group.number()) {
        let _ = tcsetpgrp(rustix::stdio::stdin(), group);
    }
}

fn foreground() -> Option<Pid> {
    tcgetpgrp(rustix::stdio::stdin()).ok().map(Pid::from)
}
