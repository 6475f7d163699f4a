//! What the supervisor goes by. Pure data.

use std::time::Duration;

use super::actions::Actions;
use super::restart::{Backoff, Restart};
use super::stop::Schedule;
use super::{Effect, Reach, WorkerId};
use crate::error::Status;
use crate::signals::Signal;

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
    /// When it says so to `NOTIFY_SOCKET` (`sd_notify(3)`).
    Notify,
    /// When it writes a newline to `PANZER_READY_FD`, as with s6.
    Descriptor,
}

/// How long a worker must live to be ready where nothing else tells.
const STANDARD_DELAY: Duration = Duration::from_secs(1);

impl Ready {
    /// The same where nobody can be seen to listen.
    #[must_use]
    pub fn without_sharing(self) -> Self {
        match self {
            Self::Bind => Self::Delay(STANDARD_DELAY),
            Self::BindOrDelay(delay) => Self::Delay(delay),
            Self::Exec | Self::Delay(_) | Self::Notify | Self::Descriptor => self,
        }
    }
}

/// How old a worker may become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Age {
    /// At least this old.
    pub least: Duration,
    /// Up to so much older; drawn once for each life.
    pub jitter: Duration,
}

/// How a reload, and any other replacement, goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replacement {
    /// How often a new life may fail before the reload ends; 0: any number of times.
    pub tries: u32,
    /// How many processes there may be beyond one for each slot.
    pub surge: u32,
    /// How long an old worker goes on after the new one is ready.
    pub kill_old_delay: Duration,
}

/// What was asked for about workers, and is gone by as it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// When a worker is ready.
    pub ready: Ready,
    /// How long it may take to show that.
    pub ready_timeout: Duration,
    /// Whether an ended one is started again.
    pub restart: Restart,
    /// The delays before that.
    pub backoff: Backoff,
    /// No two starts are closer together.
    pub stagger: Duration,
    /// How many lives in a row may end before any worker is ready; 0: any number.
    pub crash_limit: u32,
    /// Statuses that end it all.
    pub fatal_exits: Vec<Status>,
    /// Statuses that count as success.
    pub ok_exits: Vec<Status>,
    /// How workers are replaced.
    pub replacement: Replacement,
    /// How old they may become.
    pub max_age: Option<Age>,
    /// How many bytes the process group of each may use.
    pub max_memory: Option<u64>,
    /// How often they must beat.
    pub watchdog: Option<Duration>,
    /// Signals go to main processes alone; all but KILL in a stop, which must end within its schedule.
    pub no_group: bool,
    /// How long workers go on after a stop was asked for.
    pub stop_delay: Duration,
    /// How long what remains at the end may take after TERM.
    pub linger: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            ready: Ready::BindOrDelay(STANDARD_DELAY),
            ready_timeout: Duration::from_secs(60),
            restart: Restart::Always,
            backoff: Backoff { min: Duration::from_millis(100), max: Duration::from_secs(30) },
            stagger: Duration::ZERO,
            crash_limit: 5,
            fatal_exits: Vec::new(),
            ok_exits: Vec::new(),
            replacement: Replacement { tries: 1, surge: 1, kill_old_delay: Duration::ZERO },
            max_age: None,
            max_memory: None,
            watchdog: None,
            no_group: false,
            stop_delay: Duration::ZERO,
            linger: Duration::from_secs(2),
        }
    }
}

/// What the supervisor goes by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many slots there are at first.
    pub workers: u32,
    /// How many there may be at the most.
    pub most_workers: u32,
    /// What was asked for.
    pub policy: Policy,
    /// How workers are stopped.
    pub stop: Schedule,
    /// How one is stopped while the others go on.
    pub reload_stop: Schedule,
    /// How one that is silent is stopped.
    pub silent_stop: Schedule,
    /// Each slot has a queue of connections to itself.
    pub have_own_queues: bool,
    /// What signals do.
    pub actions: Actions,
    /// Where jitter starts from.
    pub seed: u64,
}

impl Settings {
    /// Appends a step of a stop. CONT follows, since a stopped process cannot act on anything but KILL.
    pub(super) fn push_stop_signal(&self, worker: WorkerId, signal: Signal, effects: &mut Vec<Effect>) {
        let reach = if self.policy.no_group && signal != Signal::KILL { Reach::MainProcess } else { Reach::Group };
        effects.push(Effect::Signal(worker, reach, signal));
        if signal != Signal::KILL {
            effects.push(Effect::Signal(worker, reach, Signal::CONT));
        }
    }
}
