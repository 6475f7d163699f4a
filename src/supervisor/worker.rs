//! One slot's states, from one life to the next.
//!
//! Pure data and the questions one can ask of it; `super::Supervisor` moves it.

use std::time::Duration;

use super::WorkerId;
use super::stop::Escalation;

/// When a worker counts as ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ready {
    /// As soon as its program was executed.
    Exec,
    /// When it has lived this long after that.
    Delay(Duration),
}

/// What a slot is doing.
#[derive(Clone, Debug)]
pub enum State {
    /// No process; the next life begins at `until`.
    Waiting {
        /// Time of the next start.
        until: Duration,
    },
    /// There is a process that has not proved itself yet.
    Starting {
        /// When it will have lived long enough; unknown until its program is executed.
        ready_at: Option<Duration>,
    },
    /// The worker does its work.
    Ready {
        /// Since when.
        since: Duration,
    },
    /// The worker was told to stop.
    Draining(Escalation),
    /// No process, and there will be none.
    Ended,
}

/// A numbered place for a worker.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Which slot, and which life the state speaks of.
    pub worker: WorkerId,
    /// What it is doing.
    pub state: State,
    /// Lives in a row that failed; forgotten after a good one.
    pub failures: u32,
}

impl Slot {
    /// A slot whose first life begins at `start`.
    #[must_use]
    pub fn new(slot: u32, start: Duration) -> Self {
        Self { worker: WorkerId { slot, life: 0 }, state: State::Waiting { until: start }, failures: 0 }
    }

    /// Whether the slot has a process.
    #[must_use]
    pub fn has_process(&self) -> bool {
        match self.state {
            State::Starting { .. } | State::Ready { .. } | State::Draining(_) => true,
            State::Waiting { .. } | State::Ended => false,
        }
    }

    /// When the slot needs attention without anything happening.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        match &self.state {
            State::Waiting { until } => Some(*until),
            State::Starting { ready_at } => *ready_at,
            State::Draining(escalation) => escalation.deadline(),
            State::Ready { .. } | State::Ended => None,
        }
    }
}

/// A life whose main process has ended and whose process group has not: it is being stopped, and its slot may
/// already have a new life.
#[derive(Clone, Debug)]
pub struct OrphanedGroup {
    /// Whose group it is.
    pub worker: WorkerId,
    /// How far its stop is.
    pub escalation: Escalation,
}
