//! One slot's states, from one life to the next.
//!
//! Pure data and the questions one can ask of it; `super::Supervisor` moves it.

use std::time::Duration;

use super::events::{Proof, Why, sooner};
use super::statistics::Cause;
use super::{Generation, WorkerId};

/// Why a life was begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Its slot had no worker.
    Vacancy,
    /// A reload replaces the worker of its slot.
    Reload,
    /// The worker of its slot is too old or too large.
    Recycling,
}

/// What a life's time has come for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// It begins.
    Start,
    /// It is ready.
    Ready,
    /// It has not proved itself in time.
    TooLate,
    /// It has not been heard of in time.
    Silent,
    /// It has been ready for so long that it is to be replaced.
    TooOld(Duration),
}

/// What a life is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
        /// When it has failed, if it has not been shown by then.
        by: Duration,
    },
    /// The worker does its work.
    Ready {
        /// Since when.
        since: Duration,
    },
    /// No process, and there will be none.
    Ended,
}

/// One life, or the time until the next.
#[derive(Clone, Debug)]
pub struct Life {
    /// Which one.
    pub worker: WorkerId,
    /// What it was started from.
    pub generation: Generation,
    /// Why it was begun.
    pub purpose: Purpose,
    /// What it is doing.
    pub state: State,
    /// When it was begun.
    pub began: Duration,
    /// It has said that it is about to end by itself.
    pub is_stopping: bool,
    /// What it has said it is doing (`STATUS=`).
    pub status: Option<String>,
    /// How often it must beat once it is ready.
    pub beat_interval: Option<Duration>,
    /// When it has been silent for too long, or has taken too long to end by itself.
    pub beat_by: Option<Duration>,
    /// When it is old enough to be replaced.
    pub retire_at: Option<Duration>,
}

impl Life {
    /// A life in this state.
    #[must_use]
    pub fn new(worker: WorkerId, generation: Generation, purpose: Purpose, began: Duration, state: State) -> Self {
        Self {
            worker,
            generation,
            purpose,
            state,
            began,
            is_stopping: false,
            status: None,
            beat_interval: None,
            beat_by: None,
            retire_at: None,
        }
    }

    /// Whether it has a process.
    #[must_use]
    pub fn has_process(&self) -> bool {
        match self.state {
            State::Starting { .. } | State::Ready { .. } => true,
            State::Waiting { .. } | State::Ended => false,
        }
    }

    /// Whether it does its work.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready { .. })
    }

    /// What is due at `now`.
    #[must_use]
    pub fn due(&self, now: Duration) -> Option<Due> {
        match self.state {
            State::Waiting { until } if until <= now => Some(Due::Start),
            State::Starting { proof: Proof::Shown, .. } => Some(Due::Ready),
            State::Starting { proof: Proof::Age(at), .. } => (at <= now).then_some(Due::Ready),
            State::Starting { by, .. } if by <= now => Some(Due::TooLate),
            State::Ready { .. } if self.beat_by.is_some_and(|by| by <= now) => Some(Due::Silent),
            State::Ready { since } if self.retire_at.is_some_and(|at| at <= now) => {
                Some(Due::TooOld(now.saturating_sub(since)))
            }
            State::Waiting { .. } | State::Starting { .. } | State::Ready { .. } | State::Ended => None,
        }
    }

    /// When it needs attention without anything happening. No start comes before `earliest_start`.
    #[must_use]
    pub fn deadline(&self, earliest_start: Duration) -> Option<Duration> {
        match self.state {
            State::Waiting { until } => Some(until.max(earliest_start)),
            State::Starting { proof: Proof::Age(at), .. } => Some(at),
            State::Starting { by, .. } => Some(by),
            State::Ready { .. } => sooner(self.beat_by, self.retire_at),
            State::Ended => None,
        }
    }
}

/// A worker that is to be replaced, and what has come of that so far.
#[derive(Clone, Debug)]
pub struct Recycling {
    /// The reason.
    pub(super) why: Why,
    /// No try comes before this time.
    pub(super) not_before: Duration,
    /// Tries in a row that failed.
    pub(super) failures: u32,
}

impl Recycling {
    /// Due now: whoever has waited longer comes first, a reload too.
    pub(super) fn new(now: Duration, why: Why) -> Self {
        Self { why, not_before: now, failures: 0 }
    }
}

/// How the life before the present one ended.
#[derive(Clone, Debug)]
pub struct LastEnd {
    /// Why there is another one.
    pub cause: Cause,
    /// `was killed by SIGKILL`
    pub text: String,
    /// When.
    pub at: Duration,
}

/// A numbered place for a worker.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Its number, from 0.
    pub number: u32,
    /// How many lives have begun.
    lives: u64,
    /// The worker that the slot has.
    pub current: Life,
    /// A new life that is to take its place and has not proved itself yet.
    pub successor: Option<Life>,
    /// Why the worker is to be replaced, apart from a reload.
    pub recycling: Option<Recycling>,
    /// The generation of the last worker that was ready here: what a restart starts.
    pub proven: Generation,
    /// Lives in a row that failed; forgotten after a good one.
    pub failures: u32,
    /// How long the last life that has listened took to boot; zero where none has.
    pub time_to_listen: Duration,
    /// How often its worker was started again after it had ended by itself or failed.
    pub restarts: u64,
    /// How the last life ended.
    pub last_end: Option<LastEnd>,
    /// A life of it has listened on a port that workers share.
    pub has_listened: bool,
}

impl Slot {
    /// A slot whose first life begins at `start`.
    #[must_use]
    pub fn new(number: u32, generation: Generation, start: Duration) -> Self {
        let worker = WorkerId { slot: number, life: 0 };
        Self {
            number,
            lives: 0,
            current: Life::new(worker, generation, Purpose::Vacancy, start, State::Waiting { until: start }),
            successor: None,
            recycling: None,
            proven: generation,
            failures: 0,
            time_to_listen: Duration::ZERO,
            restarts: 0,
            last_end: None,
            has_listened: false,
        }
    }

    /// Numbers the next life.
    pub fn next_life(&mut self) -> WorkerId {
        self.lives += 1;
        WorkerId { slot: self.number, life: self.lives }
    }

    /// Its lives: the current one and the successor.
    pub fn lives(&self) -> impl Iterator<Item = &Life> {
        std::iter::once(&self.current).chain(&self.successor)
    }

    /// Whether it has no worker and starts none by itself.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.current.state, State::Ended)
    }

    /// The life of a process that is its own.
    pub fn life_of(&mut self, worker: WorkerId) -> Option<&mut Life> {
        let lives = std::iter::once(&mut self.current).chain(&mut self.successor);
        lives.into_iter().find(|life| life.worker == worker && life.has_process())
    }
}
