//! The decisions: an event and the time go in, effects come out.
//!
//! Pure. It sees no descriptor, no pid and no clock, so that any schedule of events can be replayed in a test in
//! microseconds. Must never call the system; `linux` performs what it asks for.
//!
//! [`Supervisor`] keeps N workers alive, [`init::Init`] looks after one child. Around them:
//!
//! - [`actions`]: what a signal to panzer does
//! - [`worker`]: one slot's states
//! - [`restart`]: policy, backoff, jitter
//! - [`stop`]: stop schedules
//! - [`rotation`]: which slots get new connections
//! - `clearing`: what remains at the end
//! - [`report`]: what there is to say

pub mod actions;
mod clearing;
pub mod init;
pub mod report;
pub mod restart;
pub mod rotation;
#[cfg(test)]
mod simulation;
pub mod stop;
pub mod worker;

use std::time::Duration;

use crate::error::Status;
use crate::signals::Signal;
use actions::{Action, Actions};
use clearing::{Clearing, Progress};
use report::{Next, Reason, Report};
use restart::{Backoff, GOOD_LIFE, Random, Restart};
use rotation::QueueState;
use stop::{Due, Escalation, Schedule};
use worker::{OrphanedGroup, Proof, Ready, Slot, State};

/// A worker that was ready for at least this long and ends with success has done its work, as servers with a limit of
/// requests do: that is no failure.
const LEAST_READY_TIME: Duration = Duration::from_secs(1);

/// A kernel that has no process to give is not asked again sooner, whatever the backoff.
const SHORTEST_RETRY: Duration = Duration::from_millis(10);

/// One life of one slot. An event that names an earlier life is stale and is dropped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct WorkerId {
    /// 0 to N-1.
    pub slot: u32,
    /// Counted from 1 in each slot.
    pub life: u64,
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
        /// Whether it left a core dump.
        core: bool,
    },
    /// The command could not be executed.
    CannotRun(NotRun),
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
    /// The answer to [`Effect::LookForRemaining`]: something is still there.
    SomethingRemains,
    /// The answer to [`Effect::LookForRemaining`], now or later: nothing is there any more.
    NothingRemains,
    /// Time has passed.
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
    /// Start this worker.
    Spawn(WorkerId),
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
    /// Exit with this status.
    Exit(Status),
}

/// What the supervisor goes by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many slots.
    pub workers: u32,
    /// When a worker is ready.
    pub ready: Ready,
    /// Whether an ended one is started again.
    pub restart: Restart,
    /// The delays before that.
    pub backoff: Backoff,
    /// How many lives in a row may end before any worker is ready; 0: any number.
    pub crash_limit: u32,
    /// Statuses that end it all.
    pub fatal_exits: Vec<Status>,
    /// Statuses that count as success.
    pub ok_exits: Vec<Status>,
    /// How workers are stopped.
    pub stop: Schedule,
    /// Signals go to main processes alone; all but KILL in a stop, which must end within its schedule.
    pub no_group: bool,
    /// How long what remains at the end may take after TERM.
    pub linger: Duration,
    /// What signals do.
    pub actions: Actions,
    /// Where jitter starts from.
    pub seed: u64,
}

impl Settings {
    /// Appends a step of a stop. CONT follows, since a stopped process cannot act on anything but KILL.
    fn push_stop_signal(&self, worker: WorkerId, signal: Signal, effects: &mut Vec<Effect>) {
        let reach = if self.no_group && signal != Signal::KILL { Reach::MainProcess } else { Reach::Group };
        effects.push(Effect::Signal(worker, reach, signal));
        if signal != Signal::KILL {
            effects.push(Effect::Signal(worker, reach, Signal::CONT));
        }
    }
}

/// How far the workers have come, all in all. It only ever grows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Reached {
    /// No program was executed yet.
    Nothing,
    /// A program was executed.
    Executed,
    /// A worker was ready.
    OneReady,
    /// All workers were ready at the same time.
    AllReady,
}

/// Where panzer as a whole is.
#[derive(Clone, Debug)]
enum Phase {
    /// Workers are kept alive.
    Running,
    /// Workers are being stopped; the status to exit with, where it is not that of an ordinary stop.
    Stopping(Option<Status>),
    /// The workers are gone; what escaped from their groups is being cleared.
    Clearing(Option<Status>, Clearing),
    /// Exit was asked for.
    Finished,
}

/// Keeps N workers alive.
#[derive(Clone, Debug)]
pub struct Supervisor {
    settings: Settings,
    random: Random,
    slots: Vec<Slot>,
    orphaned_groups: Vec<OrphanedGroup>,
    phase: Phase,
    reached: Reached,
    /// Lives that ended before any worker was ready.
    early_deaths: u32,
    /// INT has asked for a stop; another one means at once.
    interrupted: bool,
    /// Something had to be killed in a stop.
    killed: bool,
    /// The last end that was no success and that nobody came after.
    last_failure: Option<Status>,
}

impl Supervisor {
    /// A supervisor whose workers all start at `now`, with the first [`Event::Time`].
    #[must_use]
    pub fn new(settings: Settings, now: Duration) -> Self {
        let slots = (0..settings.workers).map(|slot| Slot::new(slot, now)).collect();
        Self {
            random: Random::new(settings.seed),
            settings,
            slots,
            orphaned_groups: Vec::new(),
            phase: Phase::Running,
            reached: Reached::Nothing,
            early_deaths: 0,
            interrupted: false,
            killed: false,
            last_failure: None,
        }
    }

    /// How many slots there are.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.settings.workers
    }

    /// Takes an event and says what to do.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        if matches!(self.phase, Phase::Finished) {
            return effects;
        }
        match event {
            Event::NotStarted(worker, why) => self.not_started(now, worker, why, &mut effects),
            Event::Executed(worker) => self.executed(now, worker, &mut effects),
            Event::Listening(worker) => self.listening(now, worker, &mut effects),
            Event::NothingShared => self.settings.ready = self.settings.ready.without_sharing(),
            Event::Exited { worker, end, group_left } => self.exited(now, worker, end, group_left, &mut effects),
            Event::GroupGone(worker) => self.orphaned_groups.retain(|group| group.worker != worker),
            Event::Signal(signal) => self.signal(now, signal, &mut effects),
            Event::SomethingRemains => {
                if let Phase::Clearing(_, clearing) = &mut self.phase {
                    clearing.found(now, &mut effects);
                }
            }
            Event::NothingRemains => self.finish(&mut effects),
            Event::Suspended(_) | Event::Time => {}
        }
        self.advance(now, &mut effects);
        effects
    }

    /// When [`Event::Time`] is due, if nothing else happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Running | Phase::Stopping(_) => {
                let slots = self.slots.iter().filter_map(Slot::deadline);
                slots.chain(self.orphaned_groups.iter().filter_map(|group| group.escalation.deadline())).min()
            }
            Phase::Clearing(_, clearing) => clearing.deadline(),
            Phase::Finished => None,
        }
    }

    /// The slot of a life that is not over, together with what else its fate depends on.
    fn living(&mut self, worker: WorkerId) -> Option<(&mut Slot, &mut Random, &Settings)> {
        let slot = self.slots.get_mut(usize::try_from(worker.slot).ok()?)?;
        (slot.worker == worker && slot.has_process()).then_some((slot, &mut self.random, &self.settings))
    }

    fn not_started(&mut self, now: Duration, worker: WorkerId, why: NotRun, effects: &mut Vec<Effect>) {
        let running = matches!(self.phase, Phase::Running);
        let Some((slot, random, settings)) = self.living(worker) else { return };
        if !running {
            slot.state = State::Ended;
            return;
        }
        // Not the worker's fault, so the crash limit does not count it; the delay grows all the same.
        slot.failures += 1;
        let delay = settings.backoff.delay(slot.failures.max(2), random).max(SHORTEST_RETRY);
        slot.state = State::Waiting { until: now + delay };
        effects.push(Effect::Report(Report::NotStarted(worker, why, delay)));
    }

    fn executed(&mut self, now: Duration, worker: WorkerId, effects: &mut Vec<Effect>) {
        let Some((slot, _, settings)) = self.living(worker) else { return };
        let State::Starting { proof: proof @ Proof::Execution } = &mut slot.state else { return };
        *proof = match settings.ready {
            Ready::Exec => Proof::Age(now),
            Ready::Delay(delay) => Proof::Age(now + delay),
            Ready::BindOrDelay(delay) if !slot.has_listened => Proof::Age(now + delay),
            Ready::Bind | Ready::BindOrDelay(_) => Proof::Listening,
        };
        let report = if worker.life == 1 { Report::Started } else { Report::Replaced };
        effects.push(Effect::Report(report(worker)));
        self.reached = self.reached.max(Reached::Executed);
    }

    fn listening(&mut self, now: Duration, worker: WorkerId, effects: &mut Vec<Effect>) {
        // The news of its execution may come second.
        self.executed(now, worker, effects);
        let Some((slot, _, settings)) = self.living(worker) else { return };
        slot.has_listened = true;
        if let (Ready::Bind | Ready::BindOrDelay(_), State::Starting { proof }) = (settings.ready, &mut slot.state) {
            *proof = Proof::Age(now);
        }
    }

    /// Whether workers are being stopped, or are gone.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        !matches!(self.phase, Phase::Running)
    }

    /// What happens to the connections of each slot, where it has a queue of its own.
    #[must_use]
    pub fn queues(&self, now: Duration) -> Vec<QueueState> {
        rotation::queues(&self.slots, now)
    }

    fn exited(&mut self, now: Duration, worker: WorkerId, end: End, group_left: bool, effects: &mut Vec<Effect>) {
        let Some((slot, ..)) = self.living(worker) else { return };
        let before = std::mem::replace(&mut slot.state, State::Ended);
        if let State::Draining(escalation) = before {
            if group_left {
                self.orphaned_groups.push(OrphanedGroup { worker, escalation });
            }
            effects.push(Effect::Report(Report::Stopped(worker, end)));
            return;
        }
        let status = end.status();
        let success = status == Status::SUCCESS || self.settings.ok_exits.contains(&status);
        let ready_for = match before {
            State::Ready { since } => now.saturating_sub(since),
            State::Starting { .. } | State::Waiting { .. } | State::Draining(_) | State::Ended => Duration::ZERO,
        };
        let next = match self.reason_to_stop(&end, success) {
            Some(reason) => Next::Stop(reason),
            None => self.restart(now, worker, success, ready_for),
        };
        if next == Next::Nobody && !success {
            self.last_failure = Some(status);
        }
        effects.push(Effect::Report(Report::Ended { worker, end, success, next }));
        if group_left {
            let (escalation, signal) = Escalation::begin(now, &self.settings.stop);
            effects.push(Effect::Report(Report::GroupOrphaned(worker)));
            self.settings.push_stop_signal(worker, signal, effects);
            self.orphaned_groups.push(OrphanedGroup { worker, escalation });
        }
        if let Next::Stop(reason) = next {
            effects.push(Effect::Report(Report::GivingUp(worker, reason, status)));
            self.stop_all(now, Some(status), effects);
        }
    }

    /// Whether the end of a worker that was not told to stop ends everything.
    fn reason_to_stop(&mut self, end: &End, success: bool) -> Option<Reason> {
        if !matches!(self.phase, Phase::Running) {
            return None;
        }
        if self.settings.fatal_exits.contains(&end.status()) {
            return Some(Reason::FatalExit);
        }
        if matches!(end, End::CannotRun(_)) && self.reached == Reached::Nothing {
            return Some(Reason::NeverExecuted);
        }
        if self.reached < Reached::OneReady && self.is_restarted(success) {
            self.early_deaths += 1;
            if self.settings.crash_limit > 0 && self.early_deaths >= self.settings.crash_limit {
                return Some(Reason::CrashLimit(self.early_deaths));
            }
        }
        None
    }

    fn is_restarted(&self, success: bool) -> bool {
        match self.settings.restart {
            Restart::Always => true,
            Restart::OnFailure => !success,
            Restart::Never => false,
        }
    }

    /// Decides when the slot of a worker that ended by itself has its next life.
    fn restart(&mut self, now: Duration, worker: WorkerId, success: bool, ready_for: Duration) -> Next {
        if !self.is_restarted(success) {
            return Next::Nobody;
        }
        let Self { slots, random, settings, .. } = self;
        let Some(slot) = slots.iter_mut().find(|slot| slot.worker == worker) else { return Next::Nobody };
        if ready_for >= GOOD_LIFE {
            slot.failures = 0;
        }
        let delay = if success && ready_for >= LEAST_READY_TIME {
            Duration::ZERO
        } else {
            slot.failures += 1;
            settings.backoff.delay(slot.failures, random)
        };
        slot.state = State::Waiting { until: now + delay };
        if delay.is_zero() { Next::Now } else { Next::After(delay) }
    }

    fn signal(&mut self, now: Duration, signal: Signal, effects: &mut Vec<Effect>) {
        let living = u32::try_from(self.slots.iter().filter(|slot| slot.has_process()).count()).unwrap_or(u32::MAX);
        match self.settings.actions.of(signal) {
            Action::Stop if self.interrupted && signal == Signal::INT => self.stop_now(now, signal, living, effects),
            Action::Stop => {
                self.interrupted |= signal == Signal::INT;
                if matches!(self.phase, Phase::Running) {
                    effects.push(Effect::Report(Report::Stopping(signal, living)));
                    self.stop_all(now, None, effects);
                }
            }
            Action::StopNow => self.stop_now(now, signal, living, effects),
            Action::Forward(other) => {
                let sent = other.unwrap_or(signal);
                effects.push(Effect::Report(Report::Forwarded(sent, living)));
                let reach = if self.settings.no_group { Reach::MainProcess } else { Reach::Group };
                let workers = self.slots.iter().filter(|slot| slot.has_process());
                effects.extend(workers.map(|slot| Effect::Signal(slot.worker, reach, sent)));
                // Ctrl-Z at a terminal: the workers stop, and the shell wants its terminal back.
                if sent == Signal::TSTP {
                    effects.push(Effect::Suspend);
                }
            }
            Action::Ignore => {}
            Action::Reserved(command) => effects.push(Effect::Report(Report::Unavailable(signal, command))),
        }
    }

    /// Begins the stop schedule on every worker; from here on nothing is started.
    fn stop_all(&mut self, now: Duration, status: Option<Status>, effects: &mut Vec<Effect>) {
        self.phase = Phase::Stopping(status);
        for slot in &mut self.slots {
            match slot.state {
                State::Starting { .. } | State::Ready { .. } => {
                    let (escalation, signal) = Escalation::begin(now, &self.settings.stop);
                    self.killed |= escalation.was_killed();
                    slot.state = State::Draining(escalation);
                    self.settings.push_stop_signal(slot.worker, signal, effects);
                }
                State::Waiting { .. } => slot.state = State::Ended,
                State::Draining(_) | State::Ended => {}
            }
        }
    }

    /// KILL to everything that is still there.
    fn stop_now(&mut self, now: Duration, signal: Signal, living: u32, effects: &mut Vec<Effect>) {
        effects.push(Effect::Report(Report::StoppingNow(signal, living)));
        if matches!(self.phase, Phase::Running) {
            self.stop_all(now, None, &mut Vec::new());
        }
        let draining = self.slots.iter_mut().filter_map(|slot| match &mut slot.state {
            State::Draining(escalation) => Some((slot.worker, escalation)),
            State::Waiting { .. } | State::Starting { .. } | State::Ready { .. } | State::Ended => None,
        });
        let orphaned = self.orphaned_groups.iter_mut().map(|group| (group.worker, &mut group.escalation));
        for (worker, escalation) in draining.chain(orphaned) {
            self.killed = true;
            self.settings.push_stop_signal(worker, escalation.kill(now), effects);
        }
        if let Phase::Clearing(_, clearing) = &mut self.phase {
            clearing.kill(now, effects);
        }
    }

    fn finish(&mut self, effects: &mut Vec<Effect>) {
        if let Phase::Clearing(status, clearing) = &self.phase {
            let killed = self.killed || clearing.was_killed();
            let ordinary = if killed { Status::KILLED } else { Status::SUCCESS };
            let status = *status;
            self.phase = Phase::Finished;
            if status.is_none() {
                effects.push(Effect::Report(Report::Finished));
            }
            effects.push(Effect::Exit(status.unwrap_or(ordinary)));
        }
    }

    /// Does all that is due at `now`.
    fn advance(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let running = matches!(self.phase, Phase::Running);
        let Self { slots, settings, .. } = self;
        for slot in slots {
            match &mut slot.state {
                State::Waiting { until } if running && *until <= now => {
                    slot.worker.life += 1;
                    slot.state = State::Starting { proof: Proof::Execution };
                    effects.push(Effect::Spawn(slot.worker));
                }
                State::Starting { proof: Proof::Age(at) } if *at <= now => {
                    slot.state = State::Ready { since: now };
                    self.reached = self.reached.max(Reached::OneReady);
                    effects.push(Effect::Report(Report::Ready(slot.worker)));
                }
                State::Draining(escalation) => {
                    if !advance_stop(now, slot.worker, escalation, settings, effects) {
                        slot.state = State::Ended;
                    } else {
                        self.killed |= escalation.was_killed();
                    }
                }
                State::Waiting { .. } | State::Starting { .. } | State::Ready { .. } | State::Ended => {}
            }
        }
        self.orphaned_groups.retain_mut(|group| {
            let goes_on = advance_stop(now, group.worker, &mut group.escalation, settings, effects);
            self.killed |= !running && group.escalation.was_killed();
            goes_on
        });
        self.advance_phase(now, effects);
    }

    fn advance_phase(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let is_ready = |slot: &Slot| matches!(slot.state, State::Ready { .. });
        if self.reached < Reached::AllReady && self.slots.iter().all(is_ready) {
            self.reached = Reached::AllReady;
            effects.push(Effect::Report(Report::AllReady(self.settings.workers)));
        }
        let has_ended = |slot: &Slot| matches!(slot.state, State::Ended);
        let all_gone = self.orphaned_groups.is_empty() && self.slots.iter().all(has_ended);
        match &mut self.phase {
            // Only `--restart` ends every slot while running: panzer exits as the last failure did.
            Phase::Running if all_gone => {
                let status = self.last_failure.unwrap_or(Status::SUCCESS);
                self.phase = Phase::Clearing(Some(status), Clearing::begin(self.settings.linger, effects));
            }
            Phase::Stopping(status) if all_gone => {
                self.phase = Phase::Clearing(*status, Clearing::begin(self.settings.linger, effects));
            }
            Phase::Clearing(_, clearing) => match clearing.advance(now, effects) {
                Progress::Waiting => {}
                Progress::Abandoned => self.finish(effects),
            },
            Phase::Running | Phase::Stopping(_) | Phase::Finished => {}
        }
    }
}

/// Does what is due in the stop of one worker or of what it left; false when it is given up.
fn advance_stop(
    now: Duration,
    worker: WorkerId,
    escalation: &mut Escalation,
    settings: &Settings,
    effects: &mut Vec<Effect>,
) -> bool {
    match escalation.poll(now, &settings.stop) {
        Due::Nothing => {}
        Due::Send(signal) => {
            effects.push(Effect::Report(Report::Escalated(worker, signal)));
            settings.push_stop_signal(worker, signal, effects);
        }
        Due::Abandon => {
            effects.push(Effect::Report(Report::Abandoned(worker)));
            return false;
        }
    }
    true
}
