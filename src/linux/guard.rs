//! The guard: a small child of panzer that clears up when panzer dies, whatever it died of.
//!
//! It is told each worker's process group over a pipe. The pipe's end means that panzer is gone: then it runs the stop
//! schedule on those groups, and on whatever carries panzer's cookie in its environment, and ends. Until then it sleeps
//! in one read. Must never act while panzer lives.
//!
//! Where panzer is PID 1 there is no guard: the kernel ends the whole namespace with it.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::log::Log;
use super::processes::{self, Process};
use super::sys::{self, Fork, Pid, Target};
use crate::error::Status;
use crate::signals::Signal;
use crate::supervisor::report::Level;
use crate::supervisor::stop::{KILL_GRACE, Schedule};

/// How long the guard waits for a schedule that does not end in KILL: nothing may be left behind for ever.
const PATIENCE: Duration = Duration::from_secs(25);

/// How often the guard looks whether all is gone: often at first, since most go at once.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const SLOWEST_LOOK: Duration = Duration::from_millis(100);

/// What the guard needs to know beforehand.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// How workers are stopped.
    pub(super) schedule: Schedule,
    /// `NAME=value` in the environment of everything that panzer starts.
    pub(super) cookie: String,
}

/// panzer's side of it.
#[derive(Debug)]
pub(super) struct Guard {
    pid: Pid,
    pipe: OwnedFd,
}

impl Guard {
    /// Forks the guard and tells it of the groups that there are.
    ///
    /// # Errors
    /// The kernel gives no pipe or no process.
    pub(super) fn start(plan: &Plan, groups: impl Iterator<Item = Pid>, log: &mut Log) -> std::io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&writer, true)?;
        match sys::fork(None)? {
            Fork::Child => watch(&reader, plan, log),
            Fork::Parent(pid) => {
                let guard = Self { pid, pipe: writer };
                for group in groups {
                    guard.add(group)?;
                }
                Ok(guard)
            }
        }
    }

    /// Tells it of a new group.
    ///
    /// # Errors
    /// The guard is gone, or does not read.
    pub(super) fn add(&self, group: Pid) -> std::io::Result<()> {
        self.tell(group.number())
    }

    /// Tells it that a group is gone.
    ///
    /// # Errors
    /// As [`Guard::add`].
    pub(super) fn remove(&self, group: Pid) -> std::io::Result<()> {
        self.tell(-group.number())
    }

    fn tell(&self, message: i32) -> std::io::Result<()> {
        rustix::io::write(&self.pipe, &message.to_ne_bytes())?;
        Ok(())
    }

    /// Has an error on it as soon as the guard is gone.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Its process, which is no business of panzer's clearing up.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }
}

impl Drop for Guard {
    /// panzer is done, or starts another: this one must not see the pipe's end.
    fn drop(&mut self) {
        let _ = sys::kill(Target::Process(self.pid), Signal::KILL);
        sys::reap_hidden(self.pid);
    }
}

/// In the guard: sleeps until panzer is gone, clears up, ends.
fn watch(pipe: &OwnedFd, plan: &Plan, log: &mut Log) -> ! {
    let _ = rustix::thread::set_name(c"panzer-guard");
    // Its own group, and all signals stay blocked: what is meant for panzer or its terminal must not reach it.
    sys::lead_group(Pid::own());
    let _ = rustix::process::chdir(c"/");
    close_all_but(pipe);
    let mut groups = BTreeSet::new();
    loop {
        sys::release_program();
        let mut message = [0; size_of::<i32>()];
        match rustix::io::read(pipe, &mut message) {
            Ok(length) if length == message.len() => {
                let message = i32::from_ne_bytes(message);
                match (Pid::from_number(message), Pid::from_number(message.saturating_neg())) {
                    (Some(group), _) => drop(groups.insert(group)),
                    (_, Some(group)) => drop(groups.remove(&group)),
                    (None, None) => {}
                }
            }
            Err(Errno::INTR) => {}
            Ok(_) | Err(_) => break,
        }
    }
    clear(&groups, plan, log);
    sys::exit_now(Status::SUCCESS.0)
}

/// Only the pipe and stderr: a listener kept open here would hold its port, a pipe its reader.
fn close_all_but(pipe: &OwnedFd) {
    let number = pipe.as_raw_fd();
    sys::close_range(0, 1);
    sys::close_range(3, number - 1);
    sys::close_range(number + 1, i32::MAX);
}

/// Runs the schedule on everything that panzer has left.
fn clear(groups: &BTreeSet<Pid>, plan: &Plan, log: &mut Log) {
    let found = left(groups, &plan.cookie);
    if found.is_empty() {
        return;
    }
    let text = format!("panzer is gone; stopping the {} processes that it left ({})", found.len(), plan.schedule);
    log.say(Level::Warning, "guard", &text);
    for step in plan.schedule.steps() {
        for target in left(groups, &plan.cookie) {
            send(target, step.signal);
        }
        if wait_until_gone(groups, &plan.cookie, step.wait.unwrap_or(PATIENCE)) {
            return;
        }
    }
    let deadline = Instant::now() + KILL_GRACE;
    while Instant::now() < deadline {
        for target in left(groups, &plan.cookie) {
            send(target, Signal::KILL);
        }
        if wait_until_gone(groups, &plan.cookie, SLOWEST_LOOK) {
            return;
        }
    }
    log.say(Level::Error, "guard", "cannot kill what panzer left behind: the kernel does not let it go");
}

/// CONT follows, since a stopped process cannot act on anything but KILL.
fn send(target: Target, signal: Signal) {
    let _ = sys::kill(target, signal);
    if signal != Signal::KILL {
        let _ = sys::kill(target, Signal::CONT);
    }
}

fn wait_until_gone(groups: &BTreeSet<Pid>, cookie: &str, longest: Duration) -> bool {
    let deadline = Instant::now() + longest;
    let mut pause = FIRST_LOOK;
    while !left(groups, cookie).is_empty() {
        let now = Instant::now();
        if now >= deadline {
            return false;
        }
        std::thread::sleep(pause.min(deadline - now));
        pause = (pause * 2).min(SLOWEST_LOOK);
    }
    true
}

/// Every living process that is in one of the groups or carries the cookie. Without `/proc` the groups as a whole.
fn left(groups: &BTreeSet<Pid>, cookie: &str) -> Vec<Target> {
    let Some(all) = processes::all() else {
        return groups.iter().copied().map(Target::Group).filter(|target| sys::exists(*target)).collect();
    };
    let own = Pid::own();
    let ours = |process: &&Process| {
        !process.zombie
            && process.pid != own
            && (groups.contains(&process.group) || processes::has_variable(process.pid, cookie))
    };
    all.iter().filter(ours).map(|process| Target::Process(process.pid)).collect()
}
