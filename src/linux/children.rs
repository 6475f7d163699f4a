//! The children that are workers, or what is left of their groups. Whoever else was adopted is not here.
//!
//! Must never signal a number that may be somebody else's by now.

use std::os::fd::OwnedFd;

use super::spawn::Failure;
use super::sys::{self, Pid, Target};
use crate::signals::Signal;
use crate::supervisor::{Reach, WorkerId};

/// A worker's process, or what is left of its group.
pub(super) struct Child {
    /// Whose it is.
    pub(super) worker: WorkerId,
    /// Its number, which is its group's too.
    pub(super) pid: Pid,
    /// Open until the program is executed.
    pub(super) channel: Option<OwnedFd>,
    /// What went wrong before that; told when the child is reaped, which follows at once.
    pub(super) failure: Option<Failure>,
    /// The main process was reaped; its number now stands for the group only.
    pub(super) reaped: bool,
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

    /// The one whose main process `pid` is.
    pub(super) fn running(&mut self, pid: Pid) -> Option<&mut Child> {
        self.0.iter_mut().find(|child| child.pid == pid && !child.reaped)
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
        let (process, group) = (Target::Process(child.pid), Target::Group(child.pid));
        if child.reaped {
            if !child.is_given_away() {
                let _ = sys::kill(group, signal);
            }
        } else if reach == Reach::MainProcess || sys::kill(group, signal).is_err() {
            let _ = sys::kill(process, signal);
        }
    }
}

impl Child {
    /// The group keeps its number as long as one of its processes lives; a process of that very number was made later.
    fn is_given_away(&self) -> bool {
        self.reaped && sys::exists(Target::Process(self.pid))
    }
}
