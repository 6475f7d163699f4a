//! The controlling terminal, in init mode: which process group may read from it.
//!
//! Every call may say ENOTTY, ENXIO, EBADF or EACCES where there is no terminal of ours; panzer carries on.

use rustix::termios::{tcgetpgrp, tcsetpgrp};

use super::sys::{self, Pid};

/// Whether standard input is a terminal whose foreground group panzer is in, so that it is panzer's to pass on.
pub(super) fn is_ours() -> bool {
    foreground().is_some_and(|group| Some(group) == sys::own_group())
}

/// Makes `group` the terminal's foreground group. SIGTTOU must be blocked. Async-signal-safe.
pub(super) fn give_to(group: Pid) {
    if let Some(group) = rustix::process::Pid::from_raw(group.number()) {
        let _ = tcsetpgrp(rustix::stdio::stdin(), group);
    }
}

/// Takes the terminal back from `group`, if it still has it: a script that goes on after panzer wants to read.
pub(super) fn take_back_from(group: Pid) {
    if let (true, Some(own)) = (foreground() == Some(group), sys::own_group()) {
        give_to(own);
    }
}

fn foreground() -> Option<Pid> {
    tcgetpgrp(rustix::stdio::stdin()).ok().map(Pid::from)
}
