//! The decisions: an event and the time go in, effects come out.
//!
//! Pure. It sees no descriptor, no pid and no clock, so that any schedule of events can be replayed in a test in
//! microseconds. Must never call the system; `linux` performs what it asks for.
//!
//! [`Supervisor`] keeps N workers alive, [`init::Init`] looks after one child.

pub mod commands;
pub mod init;
pub mod report;
pub mod restart;
#[cfg(test)]
mod simulation;
pub mod stop;
pub mod worker;

use std::time::Duration;

use crate::error::Status;
use crate::signals::Signal;
use commands::{Action, Actions};
use report::{Next, Report};
use restart::{Backoff, GOOD_LIFE, Random, Restart};
use stop::{Due, Escalation, Schedule};
use worker::{Leftover, Ready, Slot, State};

/// A ready worker that lived at least this long and ends with success has done its work, as servers with a limit of
/// requests do: that is no failure.
const SHORT_LIFE: Duration = Duration::from_secs(1);

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
    /// The worker's main process ended and was reaped.
    Exited {
        /// Whose.
        worker: WorkerId,
        /// How.
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
    /// The answer to [`Effect::LookForRest`]: something was left behind.
    RestLeft,
    /// The answer to [`Effect::LookForRest`], now or later: nothing is left.
    NothingLeft,
    /// Time has passed.
    Time,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Start this worker.
    Spawn(WorkerId),
    /// Send a signal to a worker (its process group, unless `--no-group`).
    Signal(WorkerId, Signal),
    /// See whether anything that panzer started is left, and say when nothing is.
    LookForRest,
    /// Send a signal to all that is left.
    SignalRest(Signal),
    /// Stop panzer itself, so that a shell takes its terminal back.
    Suspend,
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
    /// How long that takes.
    pub backoff: Backoff,
    /// How many lives in a row may end before any worker is ready; 0: any number.
    pub crash_limit: u32,
    /// Statuses that end it all.
    pub fatal_exits: Vec<u8>,
    /// Statuses that count as success.
    pub ok_exits: Vec<u8>,
    /// How workers are stopped.
    pub stop: Schedule,
    /// How long what workers left behind may take after TERM.
    pub linger: Duration,
    /// What signals do.
    pub actions: Actions,
    /// Where jitter starts from.
    pub seed: u64,
}

/// Where panzer as a whole is.
#[derive(Clone, Debug)]
enum Phase {
    /// Workers are kept alive.
    Running,
    /// Workers are being stopped; the status to exit with, where it is not that of an ordinary stop.
    Stopping(Option<Status>),
    /// The workers are gone; what escaped from their groups is being cleared. The escalation begins when there is
    /// something.
    Clearing(Option<Status>, Option<Escalation>),
    /// Exit was asked for.
    Finished,
}

/// Keeps N workers alive.
#[derive(Clone, Debug)]
pub struct Supervisor {
    settings: Settings,
    rest_schedule: Schedule,
    random: Random,
    slots: Vec<Slot>,
    leftovers: Vec<Leftover>,
    phase: Phase,
    /// A program was executed at least once.
    ever_ran: bool,
    /// A worker was ready at least once.
    ever_ready: bool,
    /// All workers were ready at the same time at least once.
    ever_all_ready: bool,
    /// Lives that ended before any worker was ready.
    early_deaths: u32,
    /// How often INT came.
    interrupts: u32,
    /// Something had to be killed.
    killed: bool,
    /// The last end that was no success.
    last_failure: Option<Status>,
}

impl Supervisor {
    /// A supervisor whose workers all start at `now`, with the first [`Event::Time`].
    #[must_use]
    pub fn new(settings: Settings, now: Duration) -> Self {
        let slots = (0..settings.workers)
            .map(|slot| Slot { worker: WorkerId { slot, life: 0 }, state: State::Waiting { until: now }, failures: 0 })
            .collect();
        Self {
            rest_schedule: Schedule::term_then_kill(settings.linger),
            random: Random::new(settings.seed),
            settings,
            slots,
            leftovers: Vec::new(),
            phase: Phase::Running,
            ever_ran: false,
            ever_ready: false,
            ever_all_ready: false,
            early_deaths: 0,
            interrupts: 0,
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
            Event::Exited { worker, end, group_left } => self.exited(now, worker, end, group_left, &mut effects),
            Event::GroupGone(worker) => self.leftovers.retain(|leftover| leftover.worker != worker),
            Event::Signal(signal) => self.signal(now, signal, &mut effects),
            Event::RestLeft => self.clear_rest(now, &mut effects),
            Event::NothingLeft => self.finish(&mut effects),
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
                slots.chain(self.leftovers.iter().filter_map(|leftover| leftover.escalation.deadline())).min()
            }
            Phase::Clearing(_, escalation) => escalation.as_ref().and_then(Escalation::deadline),
            Phase::Finished => None,
        }
    }

    fn slot_of(&mut self, worker: WorkerId) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(worker.slot).ok()?).filter(|slot| slot.worker == worker)
    }

    fn not_started(&mut self, now: Duration, worker: WorkerId, why: NotRun, effects: &mut Vec<Effect>) {
        let Self { slots, random, settings, phase, .. } = self;
        let Some(slot) = slots.iter_mut().find(|slot| slot.worker == worker && slot.has_process()) else { return };
        if !matches!(phase, Phase::Running) {
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
        self.ever_ran = true;
        let delay = match self.settings.ready {
            Ready::Exec => Duration::ZERO,
            Ready::Delay(delay) => delay,
        };
        if let Some(slot) = self.slot_of(worker)
            && let State::Starting { ready_at: ready_at @ None } = &mut slot.state
        {
            *ready_at = Some(now + delay);
            let report = if worker.life == 1 { Report::Started } else { Report::Replaced };
            effects.push(Effect::Report(report(worker)));
        }
    }

    fn exited(&mut self, now: Duration, worker: WorkerId, end: End, group_left: bool, effects: &mut Vec<Effect>) {
        let Some(slot) = self.slot_of(worker).filter(|slot| slot.has_process()) else { return };
        let before = std::mem::replace(&mut slot.state, State::Ended);
        if let State::Draining(escalation) = before {
            if group_left {
                self.leftovers.push(Leftover { worker, escalation });
            }
            effects.push(Effect::Report(Report::Stopped(worker, end)));
            return;
        }
        let next = self.after_an_end(now, worker, &before, &end);
        let status = end.status();
        effects.push(Effect::Report(Report::Ended(worker, end, next)));
        if group_left {
            let (escalation, signal) = Escalation::begin(now, &self.settings.stop);
            effects.push(Effect::Report(Report::GroupLeft(worker)));
            push_stop_signal(worker, signal, effects);
            self.leftovers.push(Leftover { worker, escalation });
        }
        if matches!(next, Next::Stop) {
            self.stop_for_good(now, worker, status, effects);
        }
    }

    /// Decides what follows the end of a worker that was not told to stop, and leaves its slot so.
    fn after_an_end(&mut self, now: Duration, worker: WorkerId, before: &State, end: &End) -> Next {
        let status = end.status();
        let success = status == Status::SUCCESS || self.settings.ok_exits.contains(&status.0);
        if !success {
            self.last_failure = Some(status);
        }
        if self.settings.fatal_exits.contains(&status.0) {
            return Next::Stop;
        }
        if matches!(end, End::CannotRun(_)) && !self.ever_ran {
            return Next::Stop;
        }
        match (self.settings.restart, success) {
            (Restart::Never, _) | (Restart::OnFailure, true) => return Next::Nobody,
            (Restart::Always, _) | (Restart::OnFailure, false) => {}
        }
        if !self.ever_ready {
            self.early_deaths += 1;
            if self.settings.crash_limit > 0 && self.early_deaths >= self.settings.crash_limit {
                return Next::Stop;
            }
        }
        let Self { slots, random, settings, .. } = self;
        let Some(slot) = slots.iter_mut().find(|slot| slot.worker == worker) else { return Next::Stop };
        let ready_for = match before {
            State::Ready { since } => now.saturating_sub(*since),
            State::Starting { .. } | State::Waiting { .. } | State::Draining(_) | State::Ended => Duration::ZERO,
        };
        if ready_for >= GOOD_LIFE {
            slot.failures = 0;
        }
        let delay = if success && ready_for >= SHORT_LIFE {
            Duration::ZERO
        } else {
            slot.failures += 1;
            settings.backoff.delay(slot.failures, random)
        };
        slot.state = State::Waiting { until: now + delay };
        if delay.is_zero() { Next::Now } else { Next::After(delay) }
    }

    /// Stops everything because of how `worker` ended.
    fn stop_for_good(&mut self, now: Duration, worker: WorkerId, status: Status, effects: &mut Vec<Effect>) {
        if self.settings.fatal_exits.contains(&status.0) {
            effects.push(Effect::Report(Report::FatalExit(worker, status.0)));
        } else if self.early_deaths > 0 {
            effects.push(Effect::Report(Report::GivingUp(self.early_deaths)));
        }
        if matches!(self.phase, Phase::Running) {
            self.stop_all(now, Some(status), effects);
        }
    }

    fn signal(&mut self, now: Duration, signal: Signal, effects: &mut Vec<Effect>) {
        if signal == Signal::INT {
            self.interrupts += 1;
        }
        let living = u32::try_from(self.slots.iter().filter(|slot| slot.has_process()).count()).unwrap_or(u32::MAX);
        match self.settings.actions.of(signal) {
            Action::Stop if self.interrupts > 1 && signal == Signal::INT => self.stop_now(now, signal, living, effects),
            Action::Stop => {
                if matches!(self.phase, Phase::Running) {
                    effects.push(Effect::Report(Report::Stopping(signal, living)));
                    self.stop_all(now, None, effects);
                }
            }
            Action::StopNow => self.stop_now(now, signal, living, effects),
            Action::Forward(other) => {
                let sent = other.unwrap_or(signal);
                effects.push(Effect::Report(Report::Forwarded(sent, living)));
                let workers = self.slots.iter().filter(|slot| slot.has_process());
                effects.extend(workers.map(|slot| Effect::Signal(slot.worker, sent)));
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
                    push_stop_signal(slot.worker, signal, effects);
                }
                State::Waiting { .. } => slot.state = State::Ended,
                State::Draining(_) | State::Ended => {}
            }
        }
    }

    fn stop_now(&mut self, now: Duration, signal: Signal, living: u32, effects: &mut Vec<Effect>) {
        effects.push(Effect::Report(Report::StoppingNow(signal, living)));
        if matches!(self.phase, Phase::Running) {
            self.phase = Phase::Stopping(None);
        }
        for slot in &mut self.slots {
            match &mut slot.state {
                State::Starting { .. } | State::Ready { .. } => {
                    let (mut escalation, _) = Escalation::begin(now, &self.settings.stop);
                    effects.push(Effect::Signal(slot.worker, escalation.kill(now)));
                    slot.state = State::Draining(escalation);
                    self.killed = true;
                }
                State::Draining(escalation) => {
                    effects.push(Effect::Signal(slot.worker, escalation.kill(now)));
                    self.killed = true;
                }
                State::Waiting { .. } => slot.state = State::Ended,
                State::Ended => {}
            }
        }
        for leftover in &mut self.leftovers {
            effects.push(Effect::Signal(leftover.worker, leftover.escalation.kill(now)));
            self.killed = true;
        }
        if let Phase::Clearing(_, Some(escalation)) = &mut self.phase {
            effects.push(Effect::SignalRest(escalation.kill(now)));
            self.killed = true;
        }
    }

    fn clear_rest(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if let Phase::Clearing(_, escalation @ None) = &mut self.phase {
            let (begun, signal) = Escalation::begin(now, &self.rest_schedule);
            *escalation = Some(begun);
            effects.push(Effect::Report(Report::ClearingRest(signal)));
            push_rest_signal(signal, effects);
        }
    }

    fn finish(&mut self, effects: &mut Vec<Effect>) {
        if let Phase::Clearing(status, _) = self.phase {
            self.phase = Phase::Finished;
            effects.push(Effect::Report(Report::Finished));
            let ordinary = if self.killed { Status::KILLED } else { Status::SUCCESS };
            effects.push(Effect::Exit(status.unwrap_or(ordinary)));
        }
    }

    /// Does all that is due at `now`.
    fn advance(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let running = matches!(self.phase, Phase::Running);
        for slot in &mut self.slots {
            match &mut slot.state {
                State::Waiting { until } if running && *until <= now => {
                    slot.worker.life += 1;
                    slot.state = State::Starting { ready_at: None };
                    effects.push(Effect::Spawn(slot.worker));
                }
                State::Starting { ready_at: Some(at) } if *at <= now => {
                    slot.state = State::Ready { since: now };
                    self.ever_ready = true;
                    effects.push(Effect::Report(Report::Ready(slot.worker)));
                }
                State::Draining(escalation) => match escalation.poll(now, &self.settings.stop) {
                    Due::Nothing => {}
                    Due::Send(signal) => {
                        self.killed |= signal == Signal::KILL;
                        effects.push(Effect::Report(Report::Escalated(slot.worker, signal)));
                        push_stop_signal(slot.worker, signal, effects);
                    }
                    Due::Abandon => {
                        slot.state = State::Ended;
                        effects.push(Effect::Report(Report::Abandoned(slot.worker)));
                    }
                },
                State::Waiting { .. } | State::Starting { .. } | State::Ready { .. } | State::Ended => {}
            }
        }
        self.leftovers.retain_mut(|leftover| match leftover.escalation.poll(now, &self.settings.stop) {
            Due::Nothing => true,
            Due::Send(signal) => {
                self.killed |= signal == Signal::KILL && !running;
                effects.push(Effect::Report(Report::Escalated(leftover.worker, signal)));
                push_stop_signal(leftover.worker, signal, effects);
                true
            }
            Due::Abandon => {
                effects.push(Effect::Report(Report::Abandoned(leftover.worker)));
                false
            }
        });
        self.advance_phase(now, effects);
    }

    fn advance_phase(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if !self.ever_all_ready && self.slots.iter().all(|slot| matches!(slot.state, State::Ready { .. })) {
            self.ever_all_ready = true;
            effects.push(Effect::Report(Report::AllReady(self.settings.workers)));
        }
        let all_gone = self.leftovers.is_empty() && self.slots.iter().all(|slot| matches!(slot.state, State::Ended));
        match &mut self.phase {
            // Only `--restart` ends every slot while running: what panzer exits with is how the last failure ended.
            Phase::Running if all_gone => {
                self.look_for_rest(Some(self.last_failure.unwrap_or(Status::SUCCESS)), effects)
            }
            Phase::Stopping(status) if all_gone => {
                let status = *status;
                self.look_for_rest(status, effects);
            }
            Phase::Clearing(_, Some(escalation)) => match escalation.poll(now, &self.rest_schedule) {
                Due::Nothing => {}
                Due::Send(signal) => {
                    self.killed |= signal == Signal::KILL;
                    effects.push(Effect::Report(Report::ClearingRest(signal)));
                    push_rest_signal(signal, effects);
                }
                Due::Abandon => {
                    effects.push(Effect::Report(Report::RestAbandoned));
                    self.finish(effects);
                }
            },
            Phase::Running | Phase::Stopping(_) | Phase::Clearing(_, None) | Phase::Finished => {}
        }
    }

    fn look_for_rest(&mut self, status: Option<Status>, effects: &mut Vec<Effect>) {
        self.phase = Phase::Clearing(status, None);
        effects.push(Effect::LookForRest);
    }
}

/// A step of a stop. CONT follows, since a stopped process cannot act on anything but KILL.
fn push_stop_signal(worker: WorkerId, signal: Signal, effects: &mut Vec<Effect>) {
    effects.push(Effect::Signal(worker, signal));
    if signal != Signal::KILL {
        effects.push(Effect::Signal(worker, Signal::CONT));
    }
}

/// The same for what was left behind.
fn push_rest_signal(signal: Signal, effects: &mut Vec<Effect>) {
    effects.push(Effect::SignalRest(signal));
    if signal != Signal::KILL {
        effects.push(Effect::SignalRest(Signal::CONT));
    }
}
