//! What a worker's environment holds: panzer's own, less panzer's options, with `--env-dir` and what a worker is told.
//! Must never change panzer's own environment.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::env_dir::{self, Change};
use super::listen::{self, Listener};
use super::sys::StringList;
use super::users::Credentials;
use crate::config::ListenEnv;
use crate::supervisor::WorkerId;

/// `LISTEN_PID` must be the pid of the process that executes the command, which only that process knows: it puts its
/// own in this one's place, see [`listen_pid`].
const LISTEN_PID: &[u8] = b"LISTEN_PID=";

/// The worker's slot.
const WORKER_ID: &str = "PANZER_WORKER_ID";

/// Room for a pid and the string's end.
const LISTEN_PID_LENGTH: usize = LISTEN_PID.len() + 11;

/// Variables of a listening convention, and of one worker: never passed on from outside.
const OF_LISTENERS: [&str; 5] =
    ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "SERVER_STARTER_PORT", "SERVER_STARTER_GENERATION"];
const OF_A_SUPERVISOR: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// What the environment is made from.
pub(super) struct EnvironmentSource<'a> {
    /// Variables that give panzer's options.
    pub(super) own_variables: &'a [String],
    /// How many workers; `None`: init mode, where the child is told nothing about workers.
    pub(super) workers: Option<u32>,
    /// What workers inherit.
    pub(super) listeners: &'a [Listener],
    /// How they are told of it.
    pub(super) listen_env: ListenEnv,
    /// The user whom they run as.
    pub(super) credentials: Option<&'a Credentials>,
    /// What `--env-dir` changes.
    pub(super) changes: &'a [Change],
    /// The number at which the parent-death pipe is seen, where there is one.
    pub(super) parent_descriptor: Option<i32>,
    /// `NAME=value` by which the guard knows the processes, where there is a guard.
    pub(super) cookie: Option<&'a str>,
}

/// The variables that are the same for every worker.
pub(super) fn common(
    inherited: impl Iterator<Item = (OsString, OsString)>,
    from: &EnvironmentSource<'_>,
) -> StringList {
    let replaced = from.workers.is_some() || !from.listeners.is_empty();
    let mut variables: Vec<(OsString, OsString)> = inherited
        .filter(|(name, _)| !from.own_variables.iter().any(|own| name == OsStr::new(own)))
        .filter(|(name, _)| !(replaced && is_of_listeners(name)))
        .filter(|(name, _)| from.workers.is_none() || !OF_A_SUPERVISOR.iter().any(|known| name == *known))
        .collect();
    if let Some((name, home)) = from.credentials.and_then(|credentials| credentials.account.as_ref()) {
        for (variable, value) in [("HOME", home), ("USER", name), ("LOGNAME", name)] {
            env_dir::set(&mut variables, OsStr::new(variable), Some(OsStr::new(value)));
        }
    }
    env_dir::apply(from.changes, &mut variables);
    let mut told: Vec<(String, String)> = Vec::new();
    let mut tell = |name: &str, value: String| told.push((name.to_owned(), value));
    if let Some(count) = from.workers {
        tell("PANZER_WORKER_COUNT", count.to_string());
        tell("PANZER_GENERATION", "1".to_owned());
        tell("PANZER_PID", std::process::id().to_string());
    }
    if let Some(number) = from.parent_descriptor {
        tell("PANZER_PARENT_FD", number.to_string());
    }
    if let Some((name, value)) = from.cookie.and_then(|cookie| cookie.split_once('=')) {
        tell(name, value.to_owned());
    }
    tell_of_listeners(from, &mut tell);
    for (name, value) in &told {
        env_dir::set(&mut variables, OsStr::new(name), Some(OsStr::new(value)));
    }
    // Each worker has its own of these, see `of_worker`.
    let of_one_worker =
        |name: &OsStr| (from.workers.is_some() && name == WORKER_ID) || (replaced && name == "LISTEN_PID");
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

fn tell_of_listeners(from: &EnvironmentSource<'_>, tell: &mut impl FnMut(&str, String)) {
    let (listeners, conventions) = (from.listeners, from.listen_env);
    if conventions.systemd && !listeners.is_empty() {
        let names: Vec<&str> = listeners.iter().map(|listener| listener.name.as_str()).collect();
        tell("LISTEN_FDS", listeners.len().to_string());
        tell("LISTEN_FDNAMES", names.join(":"));
    }
    if conventions.server_starter && (!listeners.is_empty() || conventions.explicit) {
        tell("SERVER_STARTER_PORT", listen::server_starter_port(listeners));
        tell("SERVER_STARTER_GENERATION", "1".to_owned());
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
pub(super) fn of_worker(worker: WorkerId, supervised: bool, has_listen_pid: bool) -> StringList {
    let mut list = StringList::default();
    if has_listen_pid {
        list.push(LISTEN_PID);
    }
    if supervised {
        list.push(format!("{WORKER_ID}={}", worker.slot).as_bytes());
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
