//! What the supervisor has to say: one line for each event, as data.
//!
//! The words stand here and nowhere else; `linux::log` adds pids, time and format. Must never print.

use std::fmt;
use std::time::Duration;

use super::{End, NotRun, WorkerId};
use crate::signals::Signal;

/// How loud a line is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// panzer cannot do what it was asked to do.
    Error,
    /// A worker did what it should not; panzer deals with it.
    Warning,
    /// The ordinary course of things.
    Info,
    /// Only with `-v`.
    Debug,
}

impl Level {
    /// The word in a JSON line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// What comes after a worker's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// A new one at once.
    Now,
    /// A new one after this delay.
    After(Duration),
    /// Nobody: `--restart` says so.
    Nobody,
    /// panzer is stopping or gives up.
    Stop,
}

/// One thing that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Report {
    /// A worker's program was executed; not the first of its slot.
    Replaced(WorkerId),
    /// A worker's program was executed, the first of its slot.
    Started(WorkerId),
    /// A worker has proved itself.
    Ready(WorkerId),
    /// Every slot has a ready worker, for the first time.
    AllReady(u32),
    /// A worker ended that was not told to.
    Ended(WorkerId, End, Next),
    /// A worker ended that was told to.
    Stopped(WorkerId, End),
    /// The kernel had no process to give; why, and when the next try is.
    NotStarted(WorkerId, NotRun, Duration),
    /// The main process ended, others of its process group did not and were told to.
    GroupLeft(WorkerId),
    /// A step of the stop schedule after the first.
    Escalated(WorkerId, Signal),
    /// It was killed and does not go away.
    Abandoned(WorkerId),
    /// So many lives in a row ended before any worker was ready.
    GivingUp(u32),
    /// A worker ended with a status that `--fatal-exit` names.
    FatalExit(WorkerId, u8),
    /// All workers were told to stop.
    Stopping(Signal, u32),
    /// All workers were killed.
    StoppingNow(Signal, u32),
    /// Whatever the workers left behind gets this signal.
    ClearingRest(Signal),
    /// Killed processes do not go away; panzer exits all the same.
    RestAbandoned,
    /// A signal was passed on to so many workers.
    Forwarded(Signal, u32),
    /// A signal whose command this version does not have.
    Unavailable(Signal, &'static str),
    /// panzer's work is done.
    Finished,
}

impl Report {
    /// How loud it is.
    #[must_use]
    pub fn level(&self) -> Level {
        match self {
            Self::NotStarted(..) | Self::Abandoned(_) | Self::GivingUp(_) | Self::FatalExit(..) => Level::Error,
            Self::RestAbandoned | Self::Ended(_, End::CannotRun(_), _) => Level::Error,
            Self::Ended(..) | Self::Escalated(..) | Self::Unavailable(..) => Level::Warning,
            Self::Replaced(_) | Self::AllReady(_) | Self::GroupLeft(_) => Level::Info,
            Self::Stopping(..) | Self::StoppingNow(..) | Self::ClearingRest(_) | Self::Finished => Level::Info,
            Self::Started(_) | Self::Ready(_) | Self::Stopped(..) | Self::Forwarded(..) => Level::Debug,
        }
    }

    /// The event's name in a JSON line.
    #[must_use]
    pub fn event(&self) -> &'static str {
        match self {
            Self::Replaced(_) | Self::Started(_) => "worker_started",
            Self::Ready(_) => "worker_ready",
            Self::AllReady(_) => "all_ready",
            Self::Ended(..) => "worker_ended",
            Self::Stopped(..) => "worker_stopped",
            Self::NotStarted(..) => "worker_not_started",
            Self::GroupLeft(_) => "group_left",
            Self::Escalated(..) => "worker_escalated",
            Self::Abandoned(_) => "worker_abandoned",
            Self::GivingUp(_) => "giving_up",
            Self::FatalExit(..) => "fatal_exit",
            Self::Stopping(..) => "stopping",
            Self::StoppingNow(..) => "stopping_now",
            Self::ClearingRest(_) => "clearing_rest",
            Self::RestAbandoned => "rest_abandoned",
            Self::Forwarded(..) => "signal_forwarded",
            Self::Unavailable(..) => "signal_unavailable",
            Self::Finished => "finished",
        }
    }

    /// Whom it is about.
    #[must_use]
    pub fn worker(&self) -> Option<WorkerId> {
        match self {
            Self::Replaced(w) | Self::Started(w) | Self::Ready(w) | Self::GroupLeft(w) | Self::Abandoned(w) => Some(*w),
            Self::Ended(w, ..) | Self::Stopped(w, _) | Self::NotStarted(w, ..) => Some(*w),
            Self::Escalated(w, _) | Self::FatalExit(w, _) => Some(*w),
            Self::AllReady(_) | Self::GivingUp(_) | Self::Stopping(..) | Self::StoppingNow(..) => None,
            Self::ClearingRest(_) | Self::RestAbandoned | Self::Forwarded(..) | Self::Unavailable(..) => None,
            Self::Finished => None,
        }
    }

    /// The line's words. `pid` is the worker's, where it has or had a process.
    #[must_use]
    pub fn text(&self, pid: Option<i32>) -> String {
        let worker = |w: &WorkerId| match pid {
            Some(pid) => format!("worker {} (pid {pid})", w.slot),
            None => format!("worker {}", w.slot),
        };
        match self {
            Self::Replaced(w) | Self::Started(w) => format!("{} started", worker(w)),
            Self::Ready(w) => format!("{} is ready", worker(w)),
            Self::AllReady(1) => "the worker is ready".to_owned(),
            Self::AllReady(count) => format!("all {count} workers are ready"),
            Self::Ended(w, End::CannotRun(why), next) => match next {
                Next::Now => format!("{}; trying again for worker {}", why.error, w.slot),
                Next::After(delay) => format!("{}; trying again for worker {} in {}", why.error, w.slot, Human(*delay)),
                Next::Nobody => format!("{}; worker {} is not started again", why.error, w.slot),
                Next::Stop => why.error.clone(),
            },
            Self::Ended(w, end, next) => match next {
                Next::Now => format!("{} {end}; starting a new one", worker(w)),
                Next::After(delay) => format!("{} {end}; starting a new one in {}", worker(w), Human(*delay)),
                Next::Nobody => format!("{} {end}; it is not started again", worker(w)),
                Next::Stop => format!("{} {end}", worker(w)),
            },
            Self::Stopped(w, end) => format!("{} {end}", worker(w)),
            Self::NotStarted(_, why, delay) => format!("{}; trying again in {}", why.error, Human(*delay)),
            Self::GroupLeft(w) => format!("{} left processes behind in its group; stopping them", worker(w)),
            Self::Escalated(w, signal) => format!("{} did not end in time; sent {signal}", worker(w)),
            Self::Abandoned(w) => format!("cannot kill {}: the kernel does not let it go; going on", worker(w)),
            Self::GivingUp(lives) => format!("giving up: {lives} workers in a row died before any was ready"),
            Self::FatalExit(w, status) => format!("{} ended with fatal status {status}; stopping all", worker(w)),
            Self::Stopping(signal, count) => format!("{signal}: stopping {}", Workers(*count)),
            Self::StoppingNow(signal, count) => format!("{signal}: killing {}", Workers(*count)),
            Self::ClearingRest(signal) => format!("processes were left behind; sent them {signal}"),
            Self::RestAbandoned => "cannot kill what was left behind: the kernel does not let it go".to_owned(),
            Self::Forwarded(signal, count) => format!("{signal}: forwarded to {}", Workers(*count)),
            Self::Unavailable(signal, command) => {
                format!("cannot {command} on {signal}: not in this version; ignored (--on can forward it)")
            }
            Self::Finished => "all is stopped".to_owned(),
        }
    }
}

/// `1 worker`, `3 workers`.
struct Workers(u32);

impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} worker{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}

/// A delay as people read it: `120ms`, `1.3s`.
struct Human(Duration);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        if ms < 1000 { write!(f, "{ms}ms") } else { write!(f, "{}.{}s", ms / 1000, ms % 1000 / 100) }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "ended with status {status}"),
            Self::Killed { signal, core: false } => write!(f, "was killed by {signal}"),
            Self::Killed { signal, core: true } => write!(f, "was killed by {signal} (core dumped)"),
            Self::CannotRun(why) => f.write_str(&why.error),
        }
    }
}
