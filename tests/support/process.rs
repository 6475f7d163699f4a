//! What `/proc` says about processes.

use std::collections::BTreeMap;
use std::fs;

/// One process, as `/proc/PID/stat` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// The process id.
    pub(crate) pid: u32,
    /// The name: at most 15 bytes.
    pub(crate) comm: String,
    /// The state: `R`, `S`, `T`, `Z` and so on.
    pub(crate) state: char,
    /// The parent's process id.
    pub(crate) ppid: u32,
    /// The process group.
    pub(crate) pgid: u32,
    /// The session.
    pub(crate) sid: u32,
}

impl Stat {
    /// Whether the process has ended and only waits to be reaped.
    pub(crate) fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// Reads one process, or None when it does not exist.
pub(crate) fn stat(pid: u32) -> Option<Stat> {
    let bytes = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    // The name may hold parentheses and spaces itself.
    let (front, rest) = text.rsplit_once(')')?;
    let (_, comm) = front.split_once('(')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let mut number = || fields.next()?.parse().ok();
    Some(Stat { pid, comm: comm.to_string(), state, ppid: number()?, pgid: number()?, sid: number()? })
}

/// Reads all processes.
pub(crate) fn all() -> Vec<Stat> {
    fs::read_dir("/proc")
        .expect("cannot read /proc")
        .filter_map(|entry| stat(entry.ok()?.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// Whether the process exists and is not a zombie.
pub(crate) fn alive(pid: u32) -> bool {
    stat(pid).is_some_and(|process| !process.is_dead())
}

/// The zombies that wait for this parent.
pub(crate) fn zombies_of(parent: u32) -> Vec<Stat> {
    all().into_iter().filter(|process| process.ppid == parent && process.is_dead()).collect()
}

/// The process and all that descend from it, dead ones too, parents first.
pub(crate) fn tree(root: u32) -> Vec<Stat> {
    let mut rest = all();
    let mut found: Vec<Stat> = rest.iter().filter(|process| process.pid == root).cloned().collect();
    rest.retain(|process| process.pid != root);
    let mut parents = vec![root];
    while !parents.is_empty() {
        let (children, others): (Vec<Stat>, Vec<Stat>) =
            rest.into_iter().partition(|process| parents.contains(&process.ppid));
        parents = children.iter().map(|child| child.pid).collect();
        found.extend(children);
        rest = others;
    }
    found
}

/// One field of `/proc/PID/status`, such as `SigBlk`.
pub(crate) fn status_field(pid: u32, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.trim().to_string())
}

/// The signals of a mask field of `/proc/PID/status` (`SigBlk`, `SigIgn`, `SigCgt`, ...), sorted.
pub(crate) fn signals_in(pid: u32, field: &str) -> Option<Vec<u32>> {
    let mask = u64::from_str_radix(&status_field(pid, field)?, 16).ok()?;
    Some((1..=64).filter(|number| mask >> (number - 1) & 1 == 1).collect())
}

/// The environment that the process was started with, or None when it cannot be read.
pub(crate) fn environ(pid: u32) -> Option<BTreeMap<String, String>> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let variables = bytes.split(|byte| *byte == 0).filter_map(|entry| {
        let entry = String::from_utf8_lossy(entry);
        let (name, value) = entry.split_once('=')?;
        Some((name.to_string(), value.to_string()))
    });
    Some(variables.collect())
}

/// The command line, with spaces between the arguments.
pub(crate) fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim_end_matches('\0').replace('\0', " ")
}

/// Sends a signal of any number, 1 to 64, to one process, and returns whether that was possible.
#[allow(unsafe_code, reason = "no safe call sends a signal of any number")]
pub(crate) fn send_signal(pid: u32, signal: i32) -> bool {
    let pid = i32::try_from(pid).expect("a process id is a positive number");
    assert!(pid > 0, "a signal is for one process");
    // SAFETY: the call takes two numbers and touches no memory.
    unsafe { libc::kill(pid, signal) == 0 }
}

/// The foreground process group of the process's controlling terminal, if it has one.
pub(crate) fn foreground_group(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    // Behind the name: state, ppid, pgid, sid, terminal, foreground group (-1: no terminal).
    rest.split_ascii_whitespace().nth(5)?.parse().ok()
}
