//! What goes into the supervisors and what comes out: events, effects, and how lives are named and end.
//!
//! Pure data. Must never hold a descriptor, a pid or a clock.

use std::fmt;
use std::time::Duration;

use super::commands::{Answer, Command};
use super::notice::Notice;
use super::report::Report;
use crate::error::Status;
use crate::signals::Signal;

/// One life of one slot. An event that names an earlier life is stale and is dropped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct WorkerId {
    /// 0 to N-1.
    pub slot: u32,
    /// Counted from 1 in each slot.
    pub life: u64,
}

/// What a reload makes: the workers of one generation have the same command, directory and variables. Counted from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Generation(pub u64);

impl Generation {
    /// That of panzer's start.
    pub const FIRST: Self = Self(1);
}

/// How a life ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// The main process ended by itself.
    Exited(u8),
    /// A signal killed it.
    Killed {
        /// Which one.
        signal: Signal,
        /// What else is known of it.
        note: Note,
    },
    /// The command could not be executed.
    CannotRun(NotRun),
}

/// What is known of a death beside the signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Note {
    /// Nothing.
    Nothing,
    /// It left a core dump.
    CoreDumped,
    /// The kernel has killed for want of memory in panzer's group since the last death by KILL.
    OutOfMemory,
}

/// Why a command was not executed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NotRun {
    /// What panzer exits with where that is the end: 125 for panzer's or the worker's surroundings, 126 or 127 for the
    /// command itself.
    pub status: Status,
    /// `cannot run ./app: No such file or directory`
    pub error: String,
}

impl End {
    /// The status as a shell would give it: 128+n for a signal.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Exited(status) => Status(*status),
            Self::Killed { signal, .. } => Status(128 + signal.number()),
            Self::CannotRun(not_run) => not_run.status,
        }
    }

    /// That of a worker which panzer itself has sent KILL: no other cause is to be named.
    pub(super) fn by_own_kill(mut self) -> Self {
        if let Self::Killed { signal: Signal::KILL, note } = &mut self {
            *note = Note::Nothing;
        }
        self
    }
}

/// A client of the control socket that waits for an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Client(pub u64);

/// Who asks for something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asker {
    /// A signal to panzer.
    Signal(Signal),
    /// `panzer ctl`.
    Control,
}

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(signal) => signal.fmt(f),
            Self::Control => f.write_str("ctl"),
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
    /// Its own word.
    Word,
    /// Nothing more.
    Shown,
}

/// Why a single worker is replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// It is so old.
    Age(Duration),
    /// It uses so many bytes.
    Memory(u64),
    /// Somebody has asked for it.
    Asked,
}

/// Why a new life did not take the place of the old one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// It ended.
    Ended(End),
    /// It had not proved itself within this time; what it had still to show.
    NotReady(Duration, Proof),
    /// It was ready, and not heard of for this long; `None`: it has asked for this.
    Silent(Option<Duration>),
    /// It has said that it was stopping, and did not end.
    NotEnded,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The system is short of something that a start needs (EAGAIN, ENOMEM, EMFILE); it is no fault of the worker's.
    NotStarted(WorkerId, NotRun),
    /// The worker's program was executed.
    Executed(WorkerId),
    /// The worker listens on a port that workers share.
    Listening(WorkerId),
    /// Ports are not shared after all, so that nobody can be seen to listen.
    NothingShared,
    /// The worker has told something about itself.
    Told(WorkerId, Notice),
    /// The answer to [`Effect::LoadGeneration`]: it can be started.
    GenerationLoaded(Generation),
    /// The other answer: it cannot, and this is why.
    GenerationRefused(Generation, String),
    /// The answer to [`Effect::LookAtQueue`]: so many connections wait for this worker.
    Queue(WorkerId, u32),
    /// An answer to [`Effect::MeasureMemory`]: so many bytes.
    Memory(WorkerId, u64),
    /// The worker's main process ended and was reaped.
    Exited {
        /// The life that ended.
        worker: WorkerId,
        /// How it ended.
        end: End,
        /// Whether other processes of its group are still there.
        group_left: bool,
    },
    /// The last process of a group that outlived its main process is gone.
    GroupGone(WorkerId),
    /// The child was stopped by job control (init mode at a terminal).
    Suspended(Signal),
    /// panzer got a signal.
    Signal(Signal),
    /// A client has sent a request.
    Asked(Client, Command),
    /// The answer to [`Effect::LookForRemaining`]: something is still there.
    SomethingRemains,
    /// The answer to [`Effect::LookForRemaining`], now or later: nothing is there any more.
    NothingRemains,
    /// Time has passed, and all that workers have told until now was told to the supervisor.
    Time,
}

/// How far a signal to a worker reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// The main process alone (`--no-group`).
    MainProcess,
    /// The whole process group.
    Group,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Start a worker.
    Spawn {
        /// Which one.
        worker: WorkerId,
        /// What it is started from.
        generation: Generation,
        /// How many slots there are.
        workers: u32,
    },
    /// Read anew what a generation is made from, and forget all others but these.
    LoadGeneration(Generation, Vec<Generation>),
    /// Let go of the connections that wait in the queue of this slot, which has no process and gets no new ones: its next
    /// worker takes long to boot, and others can answer them at once when they are tried again.
    LetGoOfQueue(u32),
    /// Say how many connections wait in the queue of this worker's slot.
    LookAtQueue(WorkerId),
    /// Say how much memory each worker uses.
    MeasureMemory,
    /// Send a signal to a worker.
    Signal(WorkerId, Reach, Signal),
    /// See whether anything that panzer started or adopted remains, and say when nothing does.
    LookForRemaining,
    /// Send a signal to all that remains and has not had it yet, KILL to all of it; CONT after any other.
    SignalRemaining(Signal),
    /// Stop panzer itself, so that a shell takes its terminal back; with workers only where there is a terminal.
    Suspend,
    /// The same, because the child was stopped; not if it runs again by now.
    SuspendWithChild,
    /// Give the terminal to the child again, if the shell has given it to panzer.
    TakeTerminal,
    /// Say this.
    Report(Report),
    /// Tell a client what has become of its request, or why nothing has.
    Answer(Client, Result<Answer, String>),
    /// Exit with this status.
    Exit(Status),
}

/// The sooner of two times, where there is one. In one place: the compiler would copy it to each.
#[inline(never)]
#[must_use]
pub fn sooner(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Has this said. In one place: it is said in fifty, and the compiler would copy it to each.
#[inline(never)]
pub(super) fn say(effects: &mut Vec<Effect>, report: Report) {
    effects.push(Effect::Report(report));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_death_for_want_of_memory_is_named_but_by_panzers_own_kill() {
        let end = End::Killed { signal: Signal::KILL, note: Note::OutOfMemory };
        assert_eq!(end.to_string(), "was killed by SIGKILL (out of memory)");
        assert_eq!(end.status(), Status(137));
        assert_eq!(end.by_own_kill().to_string(), "was killed by SIGKILL");
        let end = End::Killed { signal: Signal::ABRT, note: Note::CoreDumped };
        assert_eq!(end.by_own_kill().to_string(), "was killed by SIGABRT (core dumped)");
    }
}
