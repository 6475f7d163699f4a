//! What a worker's environment holds: panzer's own, less panzer's options, with `--env-dir` and what a worker is told.
//! Must never change panzer's own environment.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use super::env_dir::{self, Change};
use super::feedback::Asked;
use super::listen::{self, Listener};
use super::manager;
use super::sys::{self, StringList};
use super::users::Credentials;
use crate::config::ListenEnv;
use crate::supervisor::Generation;
use crate::supervisor::notice::to_microseconds;

/// `LISTEN_PID` must be the pid of the process that executes the command, which only that process knows: it puts its
/// own in this one's place, see [`listen_pid`].
const LISTEN_PID: &[u8] = b"LISTEN_PID=";

/// Room for a pid and the string's end.
const LISTEN_PID_LENGTH: usize = LISTEN_PID.len() + 11;

/// The worker's slot, how many there are, and where it can tell of itself.
const OF_ONE_WORKER: [&str; 3] = ["PANZER_WORKER_ID", "PANZER_WORKER_COUNT", "NOTIFY_SOCKET"];

/// The numbers of the pipes that a worker has.
const PARENT: &str = "PANZER_PARENT_FD";
const READY: &str = "PANZER_READY_FD";
const HEARTBEAT: &str = "PANZER_HEARTBEAT_FD";

/// Variables of a listening convention: never passed on from outside where panzer has listeners or workers of its own.
const OF_LISTENERS: [&str; 6] = [
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "SERVER_STARTER_PORT",
    "SERVER_STARTER_GENERATION",
];

/// What panzer's own supervisor tells panzer: never passed on to workers.
const OF_A_SUPERVISOR: [&str; 5] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", READY, HEARTBEAT];

/// What the environment of every generation is made from.
pub(super) struct EnvironmentSource {
    /// Variables that give panzer's options.
    pub(super) own_variables: Vec<String>,
    /// In init mode the child is told nothing about workers.
    pub(super) supervised: bool,
    /// How workers are told of their listeners.
    pub(super) listen_env: ListenEnv,
    /// What they are given to tell panzer by.
    pub(super) asked: Asked,
    /// How often they must beat.
    pub(super) watchdog: Option<Duration>,
    /// `NAME=value` by which the guard knows the processes, where there is a guard.
    pub(super) cookie: Option<String>,
}

/// What differs between generations, or is the launcher's.
pub(super) struct OfGeneration<'a> {
    /// Which one.
    pub(super) generation: Generation,
    /// What `--env-dir` changes.
    pub(super) changes: &'a [Change],
    /// What workers inherit.
    pub(super) listeners: &'a [Listener],
    /// The user whom they run as.
    pub(super) credentials: Option<&'a Credentials>,
}

/// The variables that are the same for every worker of a generation.
pub(super) fn common(from: &EnvironmentSource, of: &OfGeneration<'_>) -> StringList {
    let replaced = from.supervised || !of.listeners.is_empty();
    let is_not_passed_on = |name: &OsStr| {
        from.own_variables.iter().any(|own| name == OsStr::new(own))
            || (replaced && is_of_listeners(name))
            || (from.supervised && OF_A_SUPERVISOR.iter().any(|known| name == *known))
            // As an init panzer leaves the beats to its child, which would take them for somebody else's.
            || (name == manager::WATCHDOG_PID && manager::is_to_beat())
    };
    let mut variables = sys::variables();
    variables.retain(|(name, _)| !is_not_passed_on(name));
    if let Some((name, home)) = of.credentials.and_then(|credentials| credentials.account.as_ref()) {
        for (variable, value) in [("HOME", home), ("USER", name), ("LOGNAME", name)] {
            env_dir::set(&mut variables, OsStr::new(variable), Some(OsStr::new(value)));
        }
    }
    env_dir::apply(of.changes, &mut variables);
    let mut told: Vec<(String, String)> = Vec::new();
    let mut tell = |name: &str, value: String| told.push((name.to_owned(), value));
    if from.supervised {
        tell("PANZER_GENERATION", of.generation.0.to_string());
        tell("PANZER_PID", std::process::id().to_string());
        // In the order in which they are handed down, after the listeners.
        let pipes = [(PARENT, true), (READY, from.asked.ready), (HEARTBEAT, from.asked.heartbeat)];
        let given = pipes.into_iter().filter(|(_, is_given)| *is_given);
        for ((name, _), number) in given.zip((listen::FIRST_DESCRIPTOR..).skip(of.listeners.len())) {
            tell(name, number.to_string());
        }
    }
    if let Some(interval) = from.watchdog {
        tell("WATCHDOG_USEC", to_microseconds(interval).to_string());
    }
    if let Some((name, value)) = from.cookie.as_deref().and_then(|cookie| cookie.split_once('=')) {
        tell(name, value.to_owned());
    }
    tell_of_listeners(from.listen_env, of, &mut tell);
    for (name, value) in &told {
        env_dir::set(&mut variables, OsStr::new(name), Some(OsStr::new(value)));
    }
    // Each worker has its own of these, see `of_worker`.
    let of_one_worker = |name: &OsStr| {
        (from.supervised && OF_ONE_WORKER.iter().any(|known| name == *known)) || (replaced && name == "LISTEN_PID")
    };
    variables.retain(|(name, _)| !of_one_worker(name));
    let mut list = StringList::default();
    for (name, value) in &variables {
        list.push(&[name.as_bytes(), b"=", value.as_bytes()].concat());
    }
    list
}

fn is_of_listeners(name: &OsStr) -> bool {
    OF_LISTENERS.iter().any(|known| name == *known) || name.as_bytes().starts_with(b"EINHORN_")
}

fn tell_of_listeners(conventions: ListenEnv, of: &OfGeneration<'_>, tell: &mut dyn FnMut(&str, String)) {
    let listeners = of.listeners;
    if conventions.systemd && !listeners.is_empty() {
        let names: Vec<&str> = listeners.iter().map(|listener| listener.name.as_str()).collect();
        tell("LISTEN_FDS", listeners.len().to_string());
        tell("LISTEN_FDNAMES", names.join(":"));
    }
    if conventions.server_starter && (!listeners.is_empty() || conventions.explicit) {
        tell("SERVER_STARTER_PORT", listen::server_starter_port(listeners));
        tell("SERVER_STARTER_GENERATION", of.generation.0.to_string());
    }
    if conventions.einhorn && !listeners.is_empty() {
        tell("EINHORN_FD_COUNT", listeners.len().to_string());
        for (index, number) in (0..listeners.len()).zip(listen::FIRST_DESCRIPTOR..) {
            tell(&format!("EINHORN_FD_{index}"), number.to_string());
        }
        tell("EINHORN_MASTER_PID", std::process::id().to_string());
    }
}

/// The variables of one worker. The first one stands for `LISTEN_PID`, where `has_listen_pid` says so.
pub(super) fn of_worker(slot: u32, workers: u32, notify: Option<&[u8]>, has_listen_pid: bool) -> StringList {
    let [id, count, socket] = OF_ONE_WORKER;
    let mut list = of_child(has_listen_pid);
    list.push(format!("{id}={slot}").as_bytes());
    list.push(format!("{count}={workers}").as_bytes());
    if let Some(name) = notify {
        list.push(&[socket.as_bytes(), b"=", name].concat());
    }
    list
}

/// The same in init mode.
pub(super) fn of_child(has_listen_pid: bool) -> StringList {
    let mut list = StringList::default();
    if has_listen_pid {
        list.push(LISTEN_PID);
    }
    list
}

/// `LISTEN_PID=` with this pid, and the string's end. Async-signal-safe.
pub(super) fn listen_pid(pid: i32) -> [u8; LISTEN_PID_LENGTH] {
    let mut digits = [0_u8; 10];
    let mut rest = pid.unsigned_abs();
    let mut count = 0;
    for digit in &mut digits {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        count += 1;
        if rest == 0 {
            break;
        }
    }
    let text = LISTEN_PID.iter().chain(digits.iter().take(count).rev());
    let mut string = [0; LISTEN_PID_LENGTH];
    for (place, byte) in string.iter_mut().zip(text) {
        *place = *byte;
    }
    string
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_is_written_without_leading_zeros_and_ends_there() {
        for (pid, text) in [(7, "LISTEN_PID=7"), (4_194_304, "LISTEN_PID=4194304"), (i32::MAX, "LISTEN_PID=2147483647")]
        {
            let string = listen_pid(pid);
            let text_length = string.iter().position(|byte| *byte == 0).unwrap();
            assert_eq!(&string[..text_length], text.as_bytes());
        }
    }
}
