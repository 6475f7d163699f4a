//! Which of the two pure supervisors decides; the event loop asks it in the same words. Must never decide by itself.

use std::time::Duration;

use crate::supervisor::init::Init;
use crate::supervisor::{Effect, Event, Supervisor};

/// Who decides.
pub(super) enum Decider {
    /// One child.
    Init(Box<Init>),
    /// N workers.
    Supervise(Box<Supervisor>),
}

impl Decider {
    /// Takes an event and says what to do.
    pub(super) fn handle(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        match self {
            Self::Init(init) => init.handle(now, event),
            Self::Supervise(supervisor) => supervisor.handle(now, event),
        }
    }

    /// `-n` was given.
    pub(super) fn is_supervisor(&self) -> bool {
        matches!(self, Self::Supervise(_))
    }

    /// The first effects.
    pub(super) fn begin(&mut self, now: Duration) -> Vec<Effect> {
        match self {
            Self::Init(init) => init.begin(),
            Self::Supervise(supervisor) => supervisor.handle(now, Event::Time),
        }
    }

    /// When [`Event::Time`] is due, if nothing else happens.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        match self {
            Self::Init(init) => init.next_deadline(),
            Self::Supervise(supervisor) => supervisor.next_deadline(),
        }
    }
}
