//! The children that are workers, or what is left of their groups. Whoever else was adopted is not here.
//!
//! Must never signal a number that may be somebody else's by now.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::feedback::{Feedback, Speakers};
use super::processes;
use super::spawn::Failure;
use super::sys::{self, Pid, Target};
use crate::signals::Signal;
use crate::supervisor::notice::Notice;
use crate::supervisor::{Event, Reach, WorkerId};

/// A worker's process, or what is left of its group.
pub(super) struct Child {
    /// Whose it is.
    pub(super) worker: WorkerId,
    /// The number of the process that panzer has started, which is its group's too.
    pub(super) pid: Pid,
    /// Another process that stands for the worker, because the worker has named it (`MAINPID=`).
    pub(super) named: Option<Named>,
    /// What it tells of itself.
    pub(super) feedback: Feedback,
    /// Open until the program is executed.
    pub(super) channel: Option<OwnedFd>,
    /// What went wrong before that; told when the child is reaped, which follows at once.
    pub(super) failure: Option<Failure>,
    /// The main process was reaped; its number now stands for the group only.
    pub(super) reaped: bool,
}

/// A process that a worker has named. Others may reap it, and its number may be given away: the descriptor stays with it.
pub(super) struct Named {
    pid: Pid,
    handle: OwnedFd,
}

/// All of them.
#[derive(Default)]
pub(super) struct Children(Vec<Child>);

impl Children {
    /// Adds one.
    pub(super) fn add(&mut self, child: Child) {
        self.0.push(child);
    }

    /// The first, in init mode the only one.
    pub(super) fn first(&self) -> Option<&Child> {
        self.0.first()
    }

    /// That of `worker`.
    pub(super) fn of(&self, worker: WorkerId) -> Option<&Child> {
        self.0.iter().find(|child| child.worker == worker)
    }

    /// The one that `pid` is the main process of, or was started as.
    pub(super) fn with_process(&mut self, pid: Pid) -> Option<&mut Child> {
        let is_named = |child: &Child| child.named.as_ref().is_some_and(|named| named.pid == pid);
        self.0.iter_mut().find(|child| !child.reaped && (child.pid == pid || is_named(child)))
    }

    /// What the worker that was started as `pid` has told, where workers run as this user. `helpers` are nobody's processes;
    /// `close`: see [`Feedback::read`].
    pub(super) fn hear(
        &mut self,
        pid: Pid,
        uid: u32,
        helpers: Vec<Pid>,
        close: &mut dyn FnMut(&OwnedFd),
    ) -> Vec<Event> {
        if self.with_process(pid).is_none_or(|child| child.feedback.is_mute()) {
            return Vec::new();
        }
        let others = || self.0.iter().filter(|child| child.pid != pid);
        let named = others().filter_map(|child| child.named.as_ref()).map(|named| named.pid);
        let others = others().map(|child| child.pid).chain(named).chain(helpers).collect();
        let Some(child) = self.with_process(pid) else { return Vec::new() };
        let speakers = Speakers { process: child.pid, slot: child.worker.slot, uid, others };
        let notices = child.feedback.read(&speakers, close);
        for notice in &notices {
            if let Notice::MainProcess(number) = notice {
                child.name(*number, &speakers);
            }
        }
        let worker = child.worker;
        notices.into_iter().map(|notice| Event::Told(worker, notice)).collect()
    }

    /// Those whose main process has not ended.
    pub(super) fn living(&self) -> impl Iterator<Item = &Child> {
        self.0.iter().filter(|child| !child.reaped)
    }

    /// The numbers of their groups.
    pub(super) fn groups(&self) -> impl Iterator<Item = Pid> {
        self.0.iter().map(|child| child.pid)
    }

    /// The same without those whose number was given away: where there is a process of that very number though its
    /// main process was reaped, the group had gone.
    pub(super) fn groups_left(&self) -> Vec<Pid> {
        let left = self.0.iter().filter(|child| !child.is_given_away());
        left.map(|child| child.pid).collect()
    }

    /// What tells of the starts that are under way.
    pub(super) fn channels(&self) -> impl Iterator<Item = &OwnedFd> {
        self.0.iter().filter_map(|child| child.channel.as_ref())
    }

    /// Takes out those of whose group nothing is left.
    pub(super) fn take_the_gone(&mut self) -> impl Iterator<Item = Child> {
        self.0.extract_if(.., |child| child.reaped && !sys::exists(Target::Group(child.pid)))
    }

    /// Signals a worker, or what is left of it.
    pub(super) fn signal(&self, worker: WorkerId, reach: Reach, signal: Signal) {
        let Some(child) = self.of(worker) else { return };
        let group = Target::Group(child.pid);
        let may_reach_group = child.reaped || reach == Reach::Group;
        let reached = may_reach_group && !child.is_given_away() && sys::kill(group, signal).is_ok();
        if child.reaped {
            return;
        }
        match child.named.as_ref().filter(|named| named.is_alive()) {
            // It may be in a group of its own.
            Some(named) if !reached || !processes::is_in_group(named.pid, child.pid) => {
                let _ = sys::signal_process(named.handle.as_fd(), signal);
            }
            Some(_) => {}
            None if reached => {}
            None => drop(sys::kill(Target::Process(child.pid), signal)),
        }
    }
}

impl Named {
    fn is_alive(&self) -> bool {
        let mut ended = [PollFd::new(&self.handle, PollFlags::IN)];
        poll(&mut ended, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(0)
    }
}

impl Child {
    /// The process that stands for the worker.
    pub(super) fn main(&self) -> Pid {
        self.named.as_ref().filter(|named| named.is_alive()).map_or(self.pid, |named| named.pid)
    }

    /// The worker names the process that is to stand for it.
    fn name(&mut self, number: i32, speakers: &Speakers) {
        let Some(pid) = Pid::from_number(number) else { return };
        if pid == self.pid {
            self.named = None;
        } else if let Ok(handle) = sys::open_process(pid)
            && speakers.may_name(pid)
        {
            self.named = Some(Named { pid, handle });
        }
    }

    /// Whether the worker lives on when `pid` has ended: it has named another process, which was left to panzer.
    pub(super) fn goes_on_without(&self, pid: Pid) -> bool {
        let named = self.named.as_ref().filter(|named| named.pid != pid && named.is_alive());
        named.is_some_and(|named| processes::is_own_child(named.pid))
    }

    /// The group keeps its number as long as one of its processes lives; a process of that very number was made later.
    fn is_given_away(&self) -> bool {
        let is_started_one_gone = self.reaped || self.named.is_some();
        is_started_one_gone && sys::exists(Target::Process(self.pid)) && !processes::is_own_child(self.pid)
    }
}
