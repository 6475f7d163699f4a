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
    /// When it listens on a port that workers share.
    Bind,
    /// The same, or when it has lived this long, unless an earlier life of its slot has listened.
    BindOrDelay(Duration),
}

/// How long a worker must live to be ready where nothing else tells.
pub const STANDARD_DELAY: Duration = Duration::from_secs(1);

impl Ready {
    /// The same where nobody can be seen to listen.
    #[must_use]
    pub fn without_sharing(self) -> Self {
        match self {
            Self::Bind => Self::Delay(STANDARD_DELAY),
            Self::BindOrDelay(delay) => Self::Delay(delay),
            Self::Exec | Self::Delay(_) => self,
        }
    }
}

/// What a starting worker has to show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proof {
    /// That its program is executed.
    Execution,
    /// That it lives at this time.
    Age(Duration),
    /// That it listens.
    Listening,
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
        /// What comes next.
        proof: Proof,
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
    /// A life of it has listened on a port that workers share.
    pub has_listened: bool,
}

impl Slot {
    /// A slot whose first life begins at `start`.
    #[must_use]
    pub fn new(slot: u32, start: Duration) -> Self {
        Self {
            worker: WorkerId { slot, life: 0 },
            state: State::Waiting { until: start },
            failures: 0,
            has_listened: false,
        }
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
            State::Starting { proof: Proof::Age(at) } => Some(*at),
            State::Starting { proof: Proof::Execution | Proof::Listening } => None,
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
