//! What there is to say: one line for each event, as data, and its words.
//!
//! Pure. `linux::log` adds time and format. Must never print.

use std::fmt;
use std::time::Duration;

use super::{Asker, End, Failure, Generation, NotRun, Note, Proof, Why, WorkerId};
use crate::error::Status;
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
    /// The one that is starting already in its place.
    Successor,
    /// The one that it has replaced and that was not told to stop yet.
    Old(WorkerId),
    /// Nobody: `--restart` says so.
    Nobody,
    /// panzer stops everything.
    Stop(Reason),
}

/// Why the end of one worker ends everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// `--fatal-exit` names its status.
    FatalExit,
    /// So many lives in a row ended before any worker was ready (`--crash-limit`).
    CrashLimit(u32),
    /// The command was never executed: panzer refuses, as it would have at the start had it known.
    NeverExecuted,
}

/// One thing that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Report {
    /// A worker's program was executed.
    Started(WorkerId),
    /// A worker has proved itself.
    Ready(WorkerId),
    /// Every slot has a ready worker, for the first time.
    AllReady(u32),
    /// A worker ended that was not told to.
    Ended {
        /// Which one.
        worker: WorkerId,
        /// How it ended.
        end: End,
        /// Whether that counts as success.
        success: bool,
        /// Who comes after it.
        next: Next,
    },
    /// A worker ended that was told to.
    Stopped(WorkerId, End),
    /// A worker that runs has failed and is stopped; who comes after it.
    GivenUp(WorkerId, Failure, Next),
    /// What a worker says of itself.
    Says(WorkerId, String),
    /// The first one has proved itself and takes the place of the second one, which is to stop so much later.
    TookOver(WorkerId, WorkerId, Duration),
    /// All workers are being replaced; `None`: because that was asked for during the reload before.
    Reloading(Option<Asker>, u32, Generation),
    /// A reload was asked for during another.
    ReloadQueued(Asker),
    /// A try has failed; how long until the next.
    ReloadRetry(WorkerId, Generation, Failure, Duration),
    /// The last try has failed.
    ReloadFailed(WorkerId, Generation, Failure),
    /// There was nothing to try, and why.
    ReloadRefused(Generation, String),
    /// All workers are of this generation and ready.
    Reloaded(u32, Generation),
    /// One worker is being replaced.
    Recycling(WorkerId, Why),
    /// That has failed; how long until the next try.
    RecycleFailed(WorkerId, Failure, Duration),
    /// There are so many workers, which is so many more.
    ScaledUp(Asker, u32, u32),
    /// There are so many workers, which is so many fewer.
    ScaledDown(Asker, u32, u32),
    /// There are as many workers as there may be.
    CannotScaleUp(Asker, u32),
    /// There is one worker.
    CannotScaleDown(Asker),
    /// The system was short of something; why, and how long until the next try.
    NotStarted(WorkerId, NotRun, Duration),
    /// The main process ended, others of its process group did not and were told to.
    GroupOrphaned(WorkerId),
    /// A step of the stop schedule after the first.
    Escalated(WorkerId, Signal),
    /// It was killed and does not go away.
    Abandoned(WorkerId),
    /// The end of this worker ends everything; panzer will exit with this status.
    GivingUp(WorkerId, Reason, Status),
    /// All workers were told to stop, or will be so much later.
    Stopping(Asker, u32, Duration),
    /// All workers were killed.
    StoppingNow(Signal, u32),
    /// Whatever remains of what panzer started or adopted gets this signal.
    SignallingRemaining(Signal),
    /// What remains was killed and does not go away.
    RemainingAbandoned,
    /// A signal was passed on to so many workers.
    Forwarded(Signal, u32),
    /// A signal was sent to these workers, as a client has asked.
    Sent(Signal, String),
    /// A worker that was to start later starts now, as a client has asked.
    StartAsked(u32),
    /// A signal that asks for an upgrade, which this version cannot do.
    Unavailable(Signal),
    /// panzer's work is done.
    Finished,
}

impl Report {
    /// Who wants to read it.
    #[must_use]
    pub fn level(&self) -> Level {
        match self {
            Self::NotStarted(..) | Self::Abandoned(_) | Self::RemainingAbandoned => Level::Error,
            Self::ReloadFailed(..) | Self::ReloadRefused(..) => Level::Error,
            Self::GivenUp(..) | Self::ReloadRetry(..) | Self::RecycleFailed(..) => Level::Warning,
            Self::CannotScaleUp(..) | Self::CannotScaleDown(_) => Level::Warning,
            Self::TookOver(..) | Self::Reloading(..) | Self::ReloadQueued(_) | Self::Reloaded(..) => Level::Info,
            Self::Recycling(..) | Self::ScaledUp(..) | Self::ScaledDown(..) => Level::Info,
            Self::Sent(..) | Self::StartAsked(_) => Level::Info,
            Self::GivingUp(_, Reason::NeverExecuted, _) => Level::Debug,
            Self::GivingUp(_, Reason::FatalExit | Reason::CrashLimit(_), _) => Level::Error,
            Self::Ended { end: End::CannotRun(_), .. } => Level::Error,
            Self::Ended { success: true, .. } => Level::Info,
            Self::Ended { success: false, .. } | Self::Escalated(..) | Self::Unavailable(_) => Level::Warning,
            // At the start one line says it for all.
            Self::Started(worker) => {
                if worker.life == 1 {
                    Level::Debug
                } else {
                    Level::Info
                }
            }
            Self::AllReady(_) | Self::GroupOrphaned(_) => Level::Info,
            Self::SignallingRemaining(Signal::KILL) => Level::Warning,
            Self::Stopping(..) | Self::StoppingNow(..) | Self::SignallingRemaining(_) | Self::Finished => Level::Info,
            Self::Ready(_) | Self::Stopped(..) | Self::Says(..) | Self::Forwarded(..) => Level::Debug,
        }
    }

    /// The event's name in a JSON line.
    #[must_use]
    pub fn event(&self) -> &'static str {
        match self {
            Self::Started(_) => "worker_started",
            Self::Ready(_) => "worker_ready",
            Self::AllReady(_) => "all_ready",
            Self::Ended { .. } => "worker_ended",
            Self::Stopped(..) => "worker_stopped",
            Self::GivenUp(_, Failure::Silent(_) | Failure::NotEnded, _) => "worker_silent",
            Self::GivenUp(_, Failure::NotReady(..) | Failure::Ended(_), _) => "worker_not_ready",
            Self::Says(..) => "worker_says",
            Self::TookOver(..) => "worker_replaced",
            Self::Reloading(..) => "reloading",
            Self::ReloadQueued(_) => "reload_queued",
            Self::ReloadRetry(..) => "reload_retry",
            Self::ReloadFailed(..) | Self::ReloadRefused(..) => "reload_failed",
            Self::Reloaded(..) => "reloaded",
            Self::Recycling(..) => "recycling",
            Self::RecycleFailed(..) => "recycle_failed",
            Self::ScaledUp(..) | Self::ScaledDown(..) => "scaled",
            Self::CannotScaleUp(..) | Self::CannotScaleDown(_) => "cannot_scale",
            Self::NotStarted(..) => "worker_not_started",
            Self::GroupOrphaned(_) => "group_orphaned",
            Self::Escalated(..) => "worker_escalated",
            Self::Abandoned(_) => "worker_abandoned",
            Self::GivingUp(..) => "giving_up",
            Self::Stopping(_, _, Duration::ZERO) => "stopping",
            Self::Stopping(..) => "stop_delayed",
            Self::StoppingNow(..) => "stopping_now",
            Self::SignallingRemaining(_) => "signalling_remaining",
            Self::RemainingAbandoned => "remaining_abandoned",
            Self::Forwarded(..) => "signal_forwarded",
            Self::Sent(..) => "signal_sent",
            Self::StartAsked(_) => "start_asked",
            Self::Unavailable(_) => "signal_unavailable",
            Self::Finished => "finished",
        }
    }

    /// Where it is the end of a reload: of which one, and whether it has gone well.
    #[must_use]
    pub fn reload_result(&self) -> Option<(Generation, bool)> {
        if let Self::Reloaded(_, generation) = self {
            return Some((*generation, true));
        }
        let failed = if let Self::ReloadFailed(_, generation, _) | Self::ReloadRefused(generation, _) = self {
            Some(*generation)
        } else {
            None
        };
        failed.map(|generation| (generation, false))
    }

    /// The worker that it is about.
    #[must_use]
    pub fn worker(&self) -> Option<WorkerId> {
        match self {
            Self::Started(w) | Self::Ready(w) | Self::GroupOrphaned(w) => Some(*w),
            Self::Ended { worker, .. } => Some(*worker),
            Self::Stopped(w, _) | Self::NotStarted(w, ..) | Self::Abandoned(w) => Some(*w),
            Self::GivenUp(w, ..) | Self::Says(w, _) | Self::TookOver(w, ..) => Some(*w),
            Self::ReloadRetry(w, ..) | Self::ReloadFailed(w, ..) => Some(*w),
            Self::Recycling(w, _) | Self::RecycleFailed(w, ..) => Some(*w),
            Self::Escalated(w, _) | Self::GivingUp(w, ..) => Some(*w),
            Self::AllReady(_) | Self::Stopping(..) | Self::StoppingNow(..) => None,
            Self::SignallingRemaining(_) | Self::RemainingAbandoned => None,
            Self::Reloading(..) | Self::ReloadQueued(_) | Self::ReloadRefused(..) | Self::Reloaded(..) => None,
            Self::ScaledUp(..) | Self::ScaledDown(..) | Self::CannotScaleUp(..) | Self::CannotScaleDown(_) => None,
            Self::Forwarded(..) | Self::Unavailable(_) | Self::Sent(..) | Self::StartAsked(_) => None,
            Self::Finished => None,
        }
    }

    /// The other worker that it is about.
    #[must_use]
    pub fn other_worker(&self) -> Option<WorkerId> {
        if let Self::TookOver(_, old, _)
        | Self::Ended { next: Next::Old(old), .. }
        | Self::GivenUp(_, _, Next::Old(old)) = self
        {
            Some(*old)
        } else {
            None
        }
    }

    /// The line's words. `who` is what to call the worker that it is about: `worker 2 (pid 431)`; `other` the process of
    /// the other one: `pid 399`.
    #[must_use]
    pub fn text(&self, who: &str, other: &str) -> String {
        match self {
            Self::Started(_) => format!("{who} started"),
            Self::Ready(_) => format!("{who} is ready"),
            Self::AllReady(1) => "the worker is ready".to_owned(),
            Self::AllReady(count) => format!("all {count} workers are ready"),
            Self::Ended { end: End::CannotRun(why), next: Next::Stop(_), .. } => why.error.clone(),
            Self::Ended { worker, end: End::CannotRun(why), next, .. } => {
                format!("{}; worker {}: {}", why.error, worker.slot, next.text(other))
            }
            Self::Ended { end, next: Next::Stop(_), .. } => format!("{who} {end}"),
            Self::Ended { end, next, .. } => format!("{who} {end}; {}", next.text(other)),
            Self::Stopped(_, end) => format!("{who} {end}"),
            Self::GivenUp(_, failure, next) => {
                let told = if let Failure::Silent(_) = failure { "sent SIGABRT" } else { "stopping it" };
                let next = next.text(other);
                format!("{}; {told}{}{next}", failure.text(who), if next.is_empty() { "" } else { ", " })
            }
            Self::Says(_, text) => format!("{who} says: {text}"),
            Self::TookOver(_, _, Duration::ZERO) => format!("{who} is ready; stopping {other}"),
            Self::TookOver(_, _, delay) => format!("{who} is ready; {other} is to stop in {}", Rounded(*delay)),
            Self::Reloading(Some(asker), count, generation) => {
                format!("{asker}: reloading {} as generation {}", Workers(*count), generation.0)
            }
            Self::Reloading(None, count, generation) => {
                format!("as asked for meanwhile: reloading {} as generation {}", Workers(*count), generation.0)
            }
            Self::ReloadQueued(asker) => format!("{asker}: a reload is under way; once more after it"),
            Self::ReloadRetry(_, generation, failure, delay) => {
                format!("{}; trying generation {} again {}", failure.text(who), generation.0, In(*delay))
            }
            Self::ReloadFailed(_, generation, failure) => {
                let failure = failure.text(who);
                format!("cannot reload to generation {}: {failure}; the old workers stay", generation.0)
            }
            Self::ReloadRefused(generation, error) => {
                format!("cannot reload to generation {}: {error}; the old workers stay", generation.0)
            }
            Self::Reloaded(count, generation) => {
                let all = if *count == 1 { "the worker is".to_owned() } else { format!("all {count} workers are") };
                format!("reloaded: {all} of generation {}", generation.0)
            }
            Self::Recycling(_, Why::Age(age)) => format!("{who} is {} old; replacing it", Rounded(*age)),
            Self::Recycling(_, Why::Memory(bytes)) => format!("{who} uses {} MiB; replacing it", bytes >> 20),
            Self::Recycling(_, Why::Asked) => format!("ctl: replacing {who}"),
            Self::RecycleFailed(_, failure, delay) => {
                let failure = failure.text(&format!("{who}, its replacement,"));
                format!("{failure}; the old one stays, trying again {}", In(*delay))
            }
            Self::ScaledUp(asker, count, by) => format!("{asker}: {}", Scaled(*count, *by, "more")),
            Self::ScaledDown(asker, count, by) => format!("{asker}: {}", Scaled(*count, *by, "fewer")),
            Self::CannotScaleUp(asker, count) => {
                format!("cannot scale up on {asker}: there are {count} workers, and no more can be had; ignored")
            }
            Self::CannotScaleDown(asker) => format!("cannot scale down on {asker}: there is 1 worker; ignored"),
            Self::NotStarted(_, why, delay) => format!("{}; trying again {}", why.error, In(*delay)),
            Self::GroupOrphaned(_) => format!("{who} left processes behind in its group; stopping them"),
            Self::Escalated(_, signal) => format!("{who} did not end in time; sent {signal}"),
            Self::Abandoned(_) => format!("cannot kill {who}: the kernel does not let it go; going on"),
            Self::GivingUp(_, Reason::FatalExit, status) => {
                format!("{who} ended with fatal status {}; stopping all and exiting with it", status.0)
            }
            Self::GivingUp(_, Reason::CrashLimit(lives), status) => format!(
                "giving up: {lives} workers in a row failed before any was ready; stopping all and exiting with status {}",
                status.0
            ),
            Self::GivingUp(_, Reason::NeverExecuted, _) => "giving up: the command was never executed".to_owned(),
            Self::Stopping(asker, count, Duration::ZERO) => format!("{asker}: stopping {}", Workers(*count)),
            Self::Stopping(asker, count, delay) => format!("{asker}: stopping {} {}", Workers(*count), In(*delay)),
            Self::StoppingNow(signal, count) => format!("{signal}: killing {}", Workers(*count)),
            Self::SignallingRemaining(signal) => format!("processes were left behind; sent them {signal}"),
            Self::RemainingAbandoned => {
                "cannot kill what was left behind: the kernel does not let it go; exiting all the same".to_owned()
            }
            Self::Forwarded(signal, count) => format!("{signal}: forwarded to {}", Workers(*count)),
            Self::Sent(signal, whom) => format!("ctl: sent {signal} to {whom}"),
            Self::StartAsked(slot) => format!("ctl: starting worker {slot}"),
            Self::Unavailable(signal) => {
                format!("cannot upgrade on {signal}: not in this version; ignored (--on can forward it)")
            }
            Self::Finished => "everything has stopped".to_owned(),
        }
    }
}

impl Failure {
    pub(super) fn text(&self, who: &str) -> String {
        match self {
            Self::Ended(End::CannotRun(why)) => why.error.clone(),
            Self::Ended(end) => format!("{who} {end}"),
            Self::NotReady(limit, missing) => {
                let missing = match missing {
                    Proof::Execution => " (its program was not executed)",
                    Proof::Listening => " (it listened on no shared port)",
                    Proof::Word => " (it did not say so)",
                    Proof::Age(_) | Proof::Shown => "",
                };
                format!("{who} was not ready within {}{missing}", Rounded(*limit))
            }
            Self::Silent(Some(limit)) => format!("{who} was silent for {}", Rounded(*limit)),
            Self::Silent(None) => format!("{who} has asked for its end"),
            Self::NotEnded => format!("{who} said that it was stopping and has not ended"),
        }
    }
}

impl Next {
    /// `other` is what to call the worker that goes on.
    fn text(self, other: &str) -> String {
        match self {
            Self::Now => "starting a new one".to_owned(),
            Self::After(delay) => format!("starting a new one {}", In(delay)),
            Self::Successor => "a new one is starting already".to_owned(),
            Self::Old(_) => format!("{other} goes on"),
            Self::Nobody => "it is not started again".to_owned(),
            Self::Stop(_) => String::new(),
        }
    }
}

/// `in 120ms`, or `at once`.
pub(super) struct In(pub(super) Duration);

impl fmt::Display for In {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() { f.write_str("at once") } else { write!(f, "in {}", Rounded(self.0)) }
    }
}

/// `1 worker`, `3 workers`.
pub(super) struct Workers(pub(super) u32);

impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} worker{}", self.0, if self.0 == 1 { "" } else { "s" })
    }
}

/// `5 workers now, 2 more`.
pub(super) struct Scaled(pub(super) u32, pub(super) u32, pub(super) &'static str);

impl fmt::Display for Scaled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(count, by, more) = self;
        if *by == 1 {
            write!(f, "{} now, one {more}", Workers(*count))
        } else {
            write!(f, "{} now, {by} {more}", Workers(*count))
        }
    }
}

/// A time as people read it: `120ms`, `1.3s`, `60s`, `61m`, `25h`.
pub struct Rounded(pub Duration);

impl fmt::Display for Rounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, ms) = (self.0.as_secs(), self.0.subsec_millis());
        match seconds {
            0 => write!(f, "{ms}ms"),
            1..=60 if ms >= 100 => write!(f, "{seconds}.{}s", ms / 100),
            1..=120 => write!(f, "{seconds}s"),
            _ if seconds % 3600 == 0 || seconds > 7200 => write!(f, "{}h", seconds / 3600),
            _ => write!(f, "{}m", seconds / 60),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "ended with status {status}"),
            Self::Killed { signal, note } => {
                let note = match note {
                    Note::Nothing => "",
                    Note::CoreDumped => " (core dumped)",
                    Note::OutOfMemory => " (out of memory)",
                };
                write!(f, "was killed by {signal}{note}")
            }
            Self::CannotRun(why) => f.write_str(&why.error),
        }
    }
}
