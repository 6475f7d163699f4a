//! How much processor time and memory workers use.
//!
//! Must never look by itself, only when somebody asks, and seldom.

use std::time::Duration;

use super::children::Child;
use super::processes::{self, Process};
use super::sys;

/// What was found is good for so long.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// What the process group of a worker uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Usage {
    /// Processor time, that of processes that have ended and were waited for included.
    pub(super) processor: Duration,
    /// What is resident, in bytes.
    pub(super) memory: u64,
    /// How many processes there are.
    pub(super) processes: u64,
}

/// What was found last.
#[derive(Debug, Default)]
pub(super) struct Usages {
    /// When.
    pub(super) looked_at: Option<Duration>,
    all: Vec<Process>,
}

impl Usages {
    /// Looks again, if it is time to.
    pub(super) fn look(&mut self, now: Duration) {
        if self.looked_at.is_none_or(|at| at + GOOD_FOR <= now) {
            self.looked_at = Some(now);
            self.all = processes::below_panzer();
        }
    }

    /// What the group of a worker uses, together with its main process, which may have left it; `None`: nothing of it was
    /// there.
    pub(super) fn of(&self, child: &Child) -> Option<Usage> {
        let (mut usage, main) = (Usage::default(), child.main());
        for process in self.all.iter().filter(|process| process.group == child.pid || process.pid == main) {
            usage.processor += process.processor;
            usage.memory += process.resident * sys::page_size();
            usage.processes += 1;
        }
        (usage.processes > 0).then_some(usage)
    }
}
