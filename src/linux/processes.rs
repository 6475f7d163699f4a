//! Which processes there are, from `/proc`: whose child each is, and in which group.
//!
//! Read where panzer or its guard clears up, where memory is measured, and where a worker tells of another process: never
//! just because workers run.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use super::files;
use super::sys::{self, Pid, Target};
use crate::signals::Signal;

/// What `/proc/PID/stat` says (`proc_pid_stat(5)`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Process {
    /// Its id.
    pub(super) pid: Pid,
    /// Its parent; `None`: none in this namespace.
    pub(super) parent: Option<Pid>,
    /// Its process group's.
    pub(super) group: Pid,
    /// Dead, and not reaped yet.
    pub(super) zombie: bool,
    /// Stopped by a signal.
    pub(super) stopped: bool,
    /// The pages of memory that it uses.
    pub(super) resident: u64,
    /// The processor time that it has used, and those of its children that it has waited for.
    pub(super) processor: Duration,
}

/// How `/proc` counts processor time, on all machines that panzer is built for (`USER_HZ`, include/asm-generic/param.h).
const TICK: Duration = Duration::from_millis(10);

/// Whether `/proc` is mounted and that of this PID namespace: that of another one has other numbers.
pub(super) fn are_visible() -> bool {
    files::read_link(Path::new("/proc/self")).is_ok_and(|own| own.to_str() == Some(&Pid::own().number().to_string()))
}

/// Every process that can be seen; `None` where none can.
pub(super) fn all() -> Option<Vec<Process>> {
    if !are_visible() {
        return None;
    }
    let mut found = Vec::new();
    let process = |name: &OsStr| read(Pid::from_number(name.to_str()?.parse().ok()?)?);
    let listed = files::for_each_name(Path::new("/proc"), &mut |name| {
        found.extend(process(name));
        true
    });
    listed.ok()?;
    if found.is_empty() { None } else { Some(found) }
}

/// panzer's descendants, as the kernel lists the children of each thread (`proc_pid_task(5)`); where it does not, every
/// process that can be seen. This costs as much as panzer has of them, however many the machine has; one that is made or
/// ends just then may be missing.
pub(super) fn below_panzer() -> Vec<Process> {
    let (mut found, mut parents) = (Vec::new(), vec![Pid::own()]);
    while let Some(parent) = parents.pop() {
        let tasks = format!("/proc/{}/task", parent.number());
        let listed = files::for_each_name(Path::new(&tasks), &mut |thread| {
            let children = files::read_text(Path::new(&format!("{tasks}/{}/children", thread.display())));
            for pid in children.iter().flat_map(|list| list.split_ascii_whitespace()) {
                let process = pid.parse().ok().and_then(Pid::from_number).and_then(read);
                parents.extend(process.map(|process| process.pid));
                found.extend(process);
            }
            children.is_some()
        });
        if listed.is_err() && parent == Pid::own() {
            break;
        }
    }
    if found.is_empty() { all().unwrap_or_default() } else { found }
}

fn read(pid: Pid) -> Option<Process> {
    parse(&files::read(Path::new(&format!("/proc/{}/stat", pid.number()))).ok()?)
}

/// Whether `pid` is in this group; also where that cannot be seen.
pub(super) fn is_in_group(pid: Pid, group: Pid) -> bool {
    read(pid).is_none_or(|process| process.group == group)
}

/// Whether `pid` is a child of panzer that lives.
pub(super) fn is_own_child(pid: Pid) -> bool {
    read(pid).is_some_and(|process| process.parent == Some(Pid::own()) && !process.zombie)
}

/// Whether `pid` is stopped by a signal; also where that cannot be seen.
pub(super) fn is_stopped(pid: Pid) -> bool {
    read(pid).is_none_or(|process| process.stopped)
}

/// The name, second, may hold anything, spaces and parentheses too: what comes after the last one counts.
fn parse(stat: &[u8]) -> Option<Process> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let (head, tail) = (stat.get(..name_end)?, stat.get(name_end + 1..)?);
    let number = |text: &str| Pid::from_number(text.parse().ok()?);
    let pid = number(std::str::from_utf8(head.split(|byte| *byte == b' ').next()?).ok()?)?;
    let mut fields = std::str::from_utf8(tail).ok()?.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = number(fields.next()?);
    let group = number(fields.next()?)?;
    // The 14th to 17th of all, and the 24th; the third was the state.
    let mut number = |skipped: usize| fields.nth(skipped).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    let ticks = number(8) + number(0) + number(0) + number(0);
    let processor = TICK * u32::try_from(ticks).unwrap_or(u32::MAX);
    let resident = number(6);
    Some(Process {
        pid,
        parent,
        group,
        zombie: state == "Z" || state == "X",
        stopped: state == "T",
        resident,
        processor,
    })
}

/// How far up a process's ancestors are looked at.
const MOST_ANCESTORS: usize = 1000;

/// The child of panzer that `pid` is or is below of: a worker's main process, or what was left to panzer by others.
pub(super) fn branch_of(pid: Pid) -> Option<Pid> {
    let (own, mut branch) = (Pid::own(), pid);
    for _ in 0..MOST_ANCESTORS {
        match read(branch)?.parent? {
            parent if parent == own => return Some(branch),
            parent => branch = parent,
        }
    }
    None
}

/// The children of `root`, their children, and so on, without `root` and without those of `except` and what is below them.
pub(super) fn descendants(all: &[Process], root: Pid, except: &[Pid]) -> Vec<Process> {
    let mut parents = vec![root];
    let mut found = Vec::new();
    while let Some(parent) = parents.pop() {
        for process in all.iter().filter(|process| process.parent == Some(parent) && !except.contains(&process.pid)) {
            found.push(*process);
            parents.push(process.pid);
        }
    }
    found
}

/// Signals what is to be cleared, over and over, each process once with each signal: a list of processes is out of date
/// as soon as it is read, since they fork and change their groups. KILL is sent again each time.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    signal: Option<Signal>,
    signalled: Vec<Pid>,
}

impl Sweep {
    /// Another signal is another round.
    fn begin(&mut self, signal: Signal) {
        if self.signal != Some(signal) {
            self.signal = Some(signal);
            self.signalled.clear();
        }
    }

    /// True the first time that it is asked of `target` in this round.
    fn is_new(&mut self, target: Pid) -> bool {
        let is_new = !self.signalled.contains(&target);
        if is_new {
            self.signalled.push(target);
        }
        is_new
    }

    /// Sends `signal` to those of `chosen` that have not had it yet. CONT follows, since a stopped process cannot act on
    /// anything but KILL.
    pub(super) fn send(&mut self, signal: Signal, all: &[Process], chosen: &[Process]) {
        self.begin(signal);
        if signal == Signal::KILL {
            // Nothing forks its way out of a group that is killed as a whole.
            for group in whole_groups(all, chosen) {
                let _ = sys::kill(Target::Group(group), signal);
            }
        }
        for process in chosen.iter().filter(|process| !process.zombie) {
            if signal == Signal::KILL {
                let _ = sys::kill(Target::Process(process.pid), signal);
            } else if self.is_new(process.pid) {
                let _ = sys::kill(Target::Process(process.pid), signal);
                let _ = sys::kill(Target::Process(process.pid), Signal::CONT);
            }
        }
    }

    /// The same for everything that PID 1 may signal. The kernel does that in one go, so that nothing forks past it.
    pub(super) fn send_to_namespace(&mut self, signal: Signal) {
        if self.signal != Some(signal) || signal == Signal::KILL {
            self.begin(signal);
            let _ = sys::kill(Target::Namespace, signal);
            if signal != Signal::KILL {
                let _ = sys::kill(Target::Namespace, Signal::CONT);
            }
        }
    }

    /// The same for whole groups, where no processes can be seen.
    pub(super) fn send_to_groups(&mut self, signal: Signal, groups: &[Pid]) {
        self.begin(signal);
        for group in groups {
            if signal != Signal::KILL && !self.is_new(*group) {
                continue;
            }
            let _ = sys::kill(Target::Group(*group), signal);
            if signal != Signal::KILL {
                let _ = sys::kill(Target::Group(*group), Signal::CONT);
            }
        }
    }
}

/// The groups all of whose processes were chosen.
fn whole_groups(all: &[Process], chosen: &[Process]) -> Vec<Pid> {
    let mut groups = Vec::new();
    for process in chosen.iter().filter(|process| !process.zombie) {
        if !groups.contains(&process.group) {
            groups.push(process.group);
        }
    }
    for other in all.iter().filter(|process| !process.zombie && !chosen.contains(process)) {
        groups.retain(|group| *group != other.group);
    }
    groups
}

/// Whether `pid` was started with `variable` (`NAME=value`) in its environment.
pub(super) fn has_variable(pid: Pid, variable: &str) -> bool {
    let environment = files::read(Path::new(&format!("/proc/{}/environ", pid.number()))).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32, group: i32, zombie: bool) -> Process {
        let pid = Pid::from_number(pid).unwrap();
        Process {
            pid,
            parent: Pid::from_number(parent),
            group: Pid::from_number(group).unwrap(),
            zombie,
            stopped: false,
            resident: 0,
            processor: Duration::ZERO,
        }
    }

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        assert_eq!(parse(b"42 (a) S 1 (b) R 7 41 40 0 -1"), Some(process(42, 7, 41, false)));
        assert_eq!(parse(b"42 (x) Z 0 42 42"), Some(process(42, 0, 42, true)));
        let whole = b"7 (x) R 1 7 7 0 -1 4 1 2 3 4 100 20 3 1 20 0 1 0 55 1000 25 0";
        let expected = Process { resident: 25, processor: Duration::from_millis(1240), ..process(7, 1, 7, false) };
        assert_eq!(parse(whole), Some(expected));
        for broken in [&b""[..], b"42", b"42 (x", b"42 (x) S", b"x (x) S 1 2"] {
            assert_eq!(parse(broken), None);
        }
    }

    #[test]
    fn a_group_is_killed_as_a_whole_only_where_all_of_it_is_meant() {
        let all = [process(2, 1, 2, false), process(3, 1, 2, false), process(4, 1, 4, false), process(5, 9, 4, false)];
        let chosen = [all[0], all[1], all[2], process(6, 1, 6, true)];
        assert_eq!(whole_groups(&all, &chosen), [Pid::from_number(2).unwrap()]);
    }

    #[test]
    fn descendants_leave_out_the_guard() {
        let all =
            [(1, 0), (2, 1), (3, 2), (4, 1), (5, 4), (9, 0)].map(|(pid, parent)| process(pid, parent, pid, false));
        let root = Pid::from_number(1).unwrap();
        let mut found: Vec<_> = descendants(&all, root, &[Pid::from_number(4).unwrap()])
            .iter()
            .map(|process| process.pid.number())
            .collect();
        found.sort_unstable();
        assert_eq!(found, [2, 3]);
    }
}
