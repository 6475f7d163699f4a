//! The guard: a small child of panzer that clears up when panzer dies, whatever it died of.
//!
//! It is told each worker's process group over a pipe. The pipe's end means that panzer is gone: then it runs the stop
//! schedule on those groups, and on whatever carries panzer's cookie in its environment, and ends. Until then it sleeps
//! in one read. Must never act while panzer lives.
//!
//! Where panzer is PID 1 there is no guard: the kernel ends the whole namespace with it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::clock::{self, Instant};
use super::idle;
use super::log::Log;
use super::processes::{self, Process, Sweep};
use super::sys::{self, Fork, Pid, Target};
use crate::error::Status;
use crate::signals::Signal;
use crate::supervisor::report::Level;
use crate::supervisor::stop::{Due, Escalation, Schedule};

/// How often the guard looks whether all is gone: often at first, since most go at once.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const SLOWEST_LOOK: Duration = Duration::from_millis(100);

/// How long after the last message the guard takes its code out of its resident memory.
const RELEASE_DELAY: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// What the guard needs to know beforehand.
#[derive(Clone, Debug)]
pub(super) struct GuardSettings {
    /// What it runs on everything that panzer leaves; ends in KILL.
    pub(super) schedule: Schedule,
    /// `NAME=1`, whose name is panzer's own, in the environment of everything that panzer starts.
    pub(super) cookie: String,
}

/// What panzer tells the guard. On the pipe it is one 32-bit number, so that no message is ever cut in two: a group's
/// number to add it, the negative of it to remove it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Message {
    /// There is this process group.
    Add(Pid),
    /// It is gone.
    Remove(Pid),
}

/// The length of a message in bytes.
const MESSAGE_LENGTH: usize = size_of::<i32>();

impl Message {
    fn to_bytes(self) -> [u8; MESSAGE_LENGTH] {
        match self {
            Self::Add(group) => group.number().to_ne_bytes(),
            Self::Remove(group) => (-group.number()).to_ne_bytes(),
        }
    }

    fn from_bytes(bytes: [u8; MESSAGE_LENGTH]) -> Option<Self> {
        let number = i32::from_ne_bytes(bytes);
        match Pid::from_number(number) {
            Some(group) => Some(Self::Add(group)),
            None => Pid::from_number(number.checked_neg()?).map(Self::Remove),
        }
    }
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
    pub(super) fn start(
        settings: &GuardSettings,
        groups: impl Iterator<Item = Pid>,
        log: &mut Log,
    ) -> Result<Self, Errno> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&writer, true)?;
        match sys::fork(None)? {
            Fork::Child => watch(&reader, settings, log),
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
    pub(super) fn add(&self, group: Pid) -> Result<(), Errno> {
        self.tell(Message::Add(group))
    }

    /// Tells it that a group is gone.
    ///
    /// # Errors
    /// As [`Guard::add`].
    pub(super) fn remove(&self, group: Pid) -> Result<(), Errno> {
        self.tell(Message::Remove(group))
    }

    fn tell(&self, message: Message) -> Result<(), Errno> {
        rustix::io::write(&self.pipe, &message.to_bytes())?;
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

impl Guard {
    /// panzer is done, or starts another: this one must not see the pipe's end. It is reaped when it is dropped.
    pub(super) fn dismiss(&self) {
        let _ = sys::kill(Target::Process(self.pid), Signal::KILL);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.dismiss();
        sys::reap_hidden(self.pid);
    }
}

/// In the guard: sleeps until panzer is gone, clears up, ends.
fn watch(pipe: &OwnedFd, settings: &GuardSettings, log: &mut Log) -> ! {
    let _ = rustix::thread::set_name(c"panzer-guard");
    // Its own group, and all signals stay blocked: what is meant for panzer or its terminal must not reach it.
    sys::lead_group(Pid::own());
    let _ = rustix::process::chdir(c"/");
    close_all_but(pipe);
    let mut groups = Vec::new();
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).and_then(|epoll| {
        epoll::add(&epoll, pipe, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        Ok(epoll)
    });
    loop {
        // Without an epoll instance the read waits just as well, in more memory.
        if let Ok(epoll) = &epoll {
            let mut space = idle::EMPTY;
            // Not at once: panzer may have more to tell, or be done with a short command already.
            let nothing = idle::wait(epoll.as_fd(), &mut space, Some(&RELEASE_DELAY), false);
            if nothing.is_ok_and(<[_]>::is_empty) {
                let _ = idle::wait(epoll.as_fd(), &mut space, None, true);
            }
        }
        let mut bytes = [0; MESSAGE_LENGTH];
        match rustix::io::read(pipe, &mut bytes) {
            Ok(MESSAGE_LENGTH) => match Message::from_bytes(bytes) {
                Some(Message::Add(group)) => groups.push(group),
                Some(Message::Remove(group)) => groups.retain(|known| *known != group),
                None => {}
            },
            Err(Errno::INTR) => {}
            Ok(_) | Err(_) => break,
        }
    }
    clear(&Left { groups, cookie: settings.cookie.clone() }, &settings.schedule, log);
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
fn clear(left: &Left, schedule: &Schedule, log: &mut Log) {
    if left.find().is_empty() {
        return;
    }
    let start = Instant::now();
    let (mut escalation, mut signal) = Escalation::begin(Duration::ZERO, schedule);
    let mut sweep = Sweep::default();
    let mut pause = FIRST_LOOK;
    let mut said = false;
    loop {
        let found = left.find();
        if found.is_empty() {
            return;
        }
        found.send(signal, &mut sweep);
        if !said {
            said = true;
            log.say(Level::Warning, "guard_clearing", &format!("panzer is gone; stopping what it left ({schedule})"));
        }
        clock::sleep(pause);
        pause = (pause * 2).min(SLOWEST_LOOK);
        match escalation.poll(start.elapsed(), schedule) {
            Due::Nothing => {}
            Due::Send(next) => signal = next,
            Due::Abandon => {
                let text = "cannot kill what panzer left: the kernel does not let it go; ending all the same";
                return log.say(Level::Error, "guard_abandoned", text);
            }
        }
    }
}

/// How to tell what panzer has started from everything else.
struct Left {
    groups: Vec<Pid>,
    cookie: String,
}

/// What there is of it.
enum Found {
    /// All processes, and those that panzer has left.
    Processes(Vec<Process>, Vec<Process>),
    /// The groups alone, where there is no `/proc`.
    Groups(Vec<Pid>),
}

impl Left {
    /// Every living process that is in one of the groups or carries the cookie.
    fn find(&self) -> Found {
        let Some(all) = processes::all() else {
            let groups = self.groups.iter().copied();
            return Found::Groups(groups.filter(|group| sys::exists(Target::Group(*group))).collect());
        };
        let own = Pid::own();
        let is_left = |process: &&Process| {
            !process.zombie
                && process.pid != own
                && (self.groups.contains(&process.group) || processes::has_variable(process.pid, &self.cookie))
        };
        let left = all.iter().filter(is_left).copied().collect();
        Found::Processes(all, left)
    }
}

impl Found {
    fn is_empty(&self) -> bool {
        match self {
            Self::Processes(_, left) => left.is_empty(),
            Self::Groups(groups) => groups.is_empty(),
        }
    }

    fn send(&self, signal: Signal, sweep: &mut Sweep) {
        match self {
            Self::Processes(all, left) => sweep.send(signal, all, left),
            Self::Groups(groups) => sweep.send_to_groups(signal, groups),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_back_as_they_were_written() {
        let group = Pid::from_number(4_194_304).unwrap();
        for message in [Message::Add(group), Message::Remove(group)] {
            assert_eq!(Message::from_bytes(message.to_bytes()), Some(message));
        }
        for number in [0, i32::MIN] {
            assert_eq!(Message::from_bytes(i32::to_ne_bytes(number)), None);
        }
    }
}
