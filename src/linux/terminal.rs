//! The controlling terminal, in init mode: which process group may read from it.
//!
//! Every call may say ENOTTY, ENXIO, EBADF or EACCES where there is no terminal of ours; panzer carries on.

use rustix::process::getpgrp;
use rustix::termios::{tcgetpgrp, tcsetpgrp};

use super::sys::Pid;

/// Whether standard input is a terminal whose foreground group panzer is in, so that it is panzer's to pass on.
pub(super) fn is_ours() -> bool {
    tcgetpgrp(rustix::stdio::stdin()) == Ok(getpgrp())
}

/// Makes `group` the terminal's foreground group. SIGTTOU must be blocked. Async-signal-safe.
pub(super) fn give_to(group: Pid) {
    if let Some(group) = rustix::process::Pid::from_raw(group.number()) {
        let _ = tcsetpgrp(rustix::stdio::stdin(), group);
    }
}

/// Takes the terminal back from `group`, if it still has it: a script that goes on after panzer wants to read.
pub(super) fn take_back_from(group: Pid) {
    if tcgetpgrp(rustix::stdio::stdin()).map(Pid::from) == Ok(group) {
        give_to(getpgrp().into());
    }
}
