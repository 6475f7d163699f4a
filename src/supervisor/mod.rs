//! The decisions: an event and the time go in, effects come out.
//!
//! Pure. It sees no descriptor, no pid and no clock, so that any schedule of events can be replayed in a test in
//! microseconds. Must never call the system; `linux` performs what it asks for.
//!
//! [`Supervisor`] keeps N workers alive, [`init::Init`] looks after one child. Around them:
//!
//! - `events`, `settings`: what goes in and out, and what it goes by
//! - [`actions`], [`commands`]: what a signal to panzer does, and what `panzer ctl` may ask
//! - [`worker`]: one slot's states; `lives`: what happens to one of its lives; [`notice`]: what a worker tells of itself
//! - [`rollout`]: reload, recycling, scaling; `leaving`: workers without a slot
//! - [`restart`]: policy, backoff, jitter
//! - [`stop`]: stop schedules
//! - [`rotation`]: which slots get new connections
//! - `clearing`: what remains at the end
//! - [`report`], [`status`], [`statistics`]: what there is to say, how everything is, what has happened so far
//! - [`manager`]: what panzer's own manager is told

pub mod actions;
mod clearing;
pub mod commands;
mod events;
pub mod init;
mod leaving;
mod lives;
pub mod manager;
pub mod notice;
pub mod report;
pub mod restart;
pub mod rollout;
pub mod rotation;
mod settings;
#[cfg(test)]
mod simulation;
pub mod statistics;
pub mod status;
pub mod stop;
pub mod worker;

use std::time::Duration;

use crate::error::Status;
use crate::signals::Signal;
use actions::Action;
use clearing::{Clearing, Progress};
use events::say;
pub use events::{
    Asker, Client, Effect, End, Event, Failure, Generation, NotRun, Note, Proof, Reach, Why, WorkerId, sooner,
};
use leaving::{Leaving, Manner, Others, Outcome};
use report::Report;
use restart::Random;
use rollout::Reload;
use rotation::QueueState;
pub use settings::{Age, Policy, Ready, Replacement, Settings};
use statistics::Statistics;
use worker::{Slot, State};

/// How often the memory of workers is looked at, where it has a limit.
const MEASURE_INTERVAL: Duration = Duration::from_secs(5);

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
    /// By number. Those from `wanted` on have been scaled away.
    slots: Vec<Slot>,
    /// How many workers there are to be.
    wanted: u32,
    leaving: Vec<Leaving>,
    phase: Phase,
    /// When workers are stopped that go on until then, and who has asked for it.
    stop_at: Option<(Duration, Asker)>,
    reached: Reached,
    /// What a slot that is added starts with.
    generation: Generation,
    /// The highest number that a generation has had.
    last_generation: Generation,
    reload: Option<Reload>,
    /// No life begins before this (`--stagger`).
    earliest_start: Duration,
    /// When memory is looked at next.
    measure_at: Option<Duration>,
    /// Lives that ended before any worker was ready.
    early_deaths: u32,
    /// INT has asked for a stop; another one means at once.
    interrupted: bool,
    /// Something had to be killed in a stop.
    killed: bool,
    /// The last end that was no success and that nobody came after.
    last_failure: Option<Status>,
    statistics: Statistics,
}

impl Supervisor {
    /// A supervisor whose workers all start at `now`, with the first [`Event::Time`].
    #[must_use]
    pub fn new(settings: Settings, now: Duration) -> Self {
        let slots = (0..settings.workers).map(|slot| Slot::new(slot, Generation::FIRST, now)).collect();
        Self {
            random: Random::new(settings.seed),
            slots,
            wanted: settings.workers,
            leaving: Vec::new(),
            phase: Phase::Running,
            stop_at: None,
            reached: Reached::Nothing,
            generation: Generation::FIRST,
            last_generation: Generation::FIRST,
            reload: None,
            earliest_start: now,
            measure_at: settings.policy.max_memory.map(|_| now + MEASURE_INTERVAL),
            early_deaths: 0,
            interrupted: false,
            killed: false,
            last_failure: None,
            statistics: Statistics::default(),
            settings,
        }
    }

    /// How many workers there are to be.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.wanted
    }

    /// The generation and the name of each worker that has a main process, by generation and slot.
    #[must_use]
    pub fn workers(&self) -> Vec<(Generation, WorkerId)> {
        let in_slots = self.slots.iter().flat_map(Slot::lives).filter(|life| life.has_process());
        let in_slots = in_slots.map(|life| (life.generation, life.worker));
        let leaving = self.leaving.iter().filter(|leaving| !leaving.is_orphaned);
        let mut all: Vec<_> =
            in_slots.chain(leaving.map(|leaving| (leaving.life.generation, leaving.worker))).collect();
        all.sort_unstable();
        all
    }

    fn count_workers(&self) -> u32 {
        u32::try_from(self.workers().len()).unwrap_or(u32::MAX)
    }

    /// Takes an event and says what to do.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        if matches!(self.phase, Phase::Finished) {
            return effects;
        }
        let all_are_heard = event == Event::Time;
        match event {
            Event::NotStarted(worker, why) => self.not_started(now, worker, why, &mut effects),
            Event::Executed(worker) => self.executed(now, worker, &mut effects),
            Event::Listening(worker) => self.listening(now, worker, &mut effects),
            Event::NothingShared => self.settings.policy.ready = self.settings.policy.ready.without_sharing(),
            Event::Told(worker, notice) => self.told(now, worker, notice, &mut effects),
            Event::GenerationLoaded(generation) => self.generation_loaded(generation),
            Event::GenerationRefused(generation, error) => {
                self.generation_refused(now, generation, error, &mut effects);
            }
            Event::Queue(worker, length) => {
                if let Some(leaving) = self.leaving.iter_mut().find(|leaving| leaving.worker == worker) {
                    leaving.queue_has(now, length, &self.settings, &mut effects);
                }
            }
            Event::Memory(worker, bytes) => self.measured(now, worker, bytes),
            Event::Exited { worker, end, group_left } => self.exited(now, worker, end, group_left, &mut effects),
            Event::GroupGone(worker) => {
                self.leaving.retain(|leaving| !(leaving.is_orphaned && leaving.worker == worker));
            }
            Event::Signal(signal) => self.signal(now, signal, &mut effects),
            Event::Asked(client, command) => {
                let answer = self.do_command(now, command, &mut effects);
                effects.push(Effect::Answer(client, answer));
            }
            Event::SomethingRemains => {
                if let Phase::Clearing(_, clearing) = &mut self.phase {
                    clearing.found(now, &mut effects);
                }
            }
            Event::NothingRemains => self.finish(&mut effects),
            Event::Suspended(_) | Event::Time => {}
        }
        self.advance(now, all_are_heard, &mut effects);
        effects
    }

    /// When [`Event::Time`] is due, if nothing else happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let mut next = None;
        for leaving in &self.leaving {
            next = sooner(next, leaving.deadline());
        }
        match &self.phase {
            Phase::Running => {
                for life in self.slots.iter().flat_map(Slot::lives) {
                    next = sooner(next, life.deadline(self.earliest_start));
                }
                let stop_at = self.stop_at.map(|(at, _)| at);
                sooner(sooner(next, self.rollout_deadline()), sooner(self.measure_at, stop_at))
            }
            Phase::Stopping(_) => next,
            Phase::Clearing(_, clearing) => clearing.deadline(),
            Phase::Finished => None,
        }
    }

    /// Whether workers are being stopped, or are gone.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        !self.is_running()
    }

    /// The same, or that is to come: nothing new is begun.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.stop_at.is_some() || self.is_stopping()
    }

    /// What happens to the connections of each slot, where it has a queue of its own.
    #[must_use]
    pub fn queues(&self, now: Duration) -> Vec<QueueState> {
        rotation::queues(&self.slots, &self.leaving, self.wanted, now)
    }

    fn wanted_slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().take(usize::try_from(self.wanted).unwrap_or(usize::MAX))
    }

    fn signal(&mut self, now: Duration, signal: Signal, effects: &mut Vec<Effect>) {
        let workers = self.workers();
        let count = u32::try_from(workers.len()).unwrap_or(u32::MAX);
        match self.settings.actions.of(signal) {
            Action::Stop if self.interrupted && signal == Signal::INT => self.stop_now(now, signal, count, effects),
            Action::Stop => {
                self.interrupted |= signal == Signal::INT;
                self.stop(now, Asker::Signal(signal), effects);
            }
            Action::StopNow => self.stop_now(now, signal, count, effects),
            Action::Reload if !self.is_ending() => self.reload(now, Asker::Signal(signal), effects),
            Action::ScaleUp if !self.is_ending() => self.scale_up(now, Asker::Signal(signal), effects),
            Action::ScaleDown if !self.is_ending() => self.scale_down(now, Asker::Signal(signal), effects),
            Action::Reload | Action::ScaleUp | Action::ScaleDown | Action::Ignore => {}
            Action::Forward(other) => {
                let sent = other.unwrap_or(signal);
                say(effects, Report::Forwarded(sent, count));
                self.send(sent, workers, effects);
                // Ctrl-Z at a terminal: the workers stop, and the shell wants its terminal back.
                if sent == Signal::TSTP {
                    effects.push(Effect::Suspend);
                }
            }
            Action::Upgrade => say(effects, Report::Unavailable(signal)),
        }
    }

    /// Sends a signal to workers as it comes.
    fn send(&self, signal: Signal, workers: Vec<(Generation, WorkerId)>, effects: &mut Vec<Effect>) {
        let reach = if self.settings.policy.no_group { Reach::MainProcess } else { Reach::Group };
        effects.extend(workers.into_iter().map(|(_, worker)| Effect::Signal(worker, reach, signal)));
    }

    /// Stops everything in the ordinary way: after `--stop-delay` when it is asked for first, at once when it is again.
    fn stop(&mut self, now: Duration, asker: Asker, effects: &mut Vec<Effect>) {
        if self.is_stopping() {
            return;
        }
        let delay = if self.is_ending() { Duration::ZERO } else { self.settings.policy.stop_delay };
        say(effects, Report::Stopping(asker, self.count_workers(), delay));
        if delay.is_zero() {
            return self.stop_all(now, None, effects);
        }
        self.stop_at = Some((now + delay, asker));
        self.reload.iter_mut().for_each(|reload| reload.once_more = false);
    }

    /// Begins the stop schedule on every worker; from here on nothing is started.
    fn stop_all(&mut self, now: Duration, status: Option<Status>, effects: &mut Vec<Effect>) {
        self.phase = Phase::Stopping(status);
        self.reload = None;
        let Self { slots, leaving, settings, .. } = self;
        for one in leaving.iter_mut() {
            one.change_manner(now, Manner::Stop, settings, effects);
        }
        for slot in slots {
            for life in slot.lives().filter(|life| life.has_process()) {
                leaving.push(Leaving::told(now, life.clone(), Manner::Stop, settings, effects));
            }
            slot.successor = None;
            slot.current.state = State::Ended;
        }
        self.killed |= self.leaving.iter().any(Leaving::was_killed);
    }

    /// KILL to everything that is still there.
    fn stop_now(&mut self, now: Duration, signal: Signal, count: u32, effects: &mut Vec<Effect>) {
        say(effects, Report::StoppingNow(signal, count));
        if self.is_running() {
            self.stop_all(now, None, &mut Vec::new());
        }
        for leaving in &mut self.leaving {
            self.killed = true;
            leaving.kill(now, &self.settings, effects);
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
                say(effects, Report::Finished);
            }
            effects.push(Effect::Exit(status.unwrap_or(ordinary)));
        }
    }

    /// Does all that is due at `now`.
    fn advance(&mut self, now: Duration, all_are_heard: bool, effects: &mut Vec<Effect>) {
        if let Some((_, asker)) = self.stop_at.filter(|(at, _)| *at <= now) {
            self.stop(now, asker, effects);
        }
        for number in 0..self.wanted {
            if self.is_running() {
                self.advance_slot(now, number, all_are_heard, effects);
            }
        }
        let is_running = self.is_running();
        if let Some(at) = self.measure_at.as_mut().filter(|at| is_running && **at <= now) {
            *at = now + MEASURE_INTERVAL;
            effects.push(Effect::MeasureMemory);
        }
        self.advance_leaving(now, effects);
        // After these: whoever is gone makes room.
        if self.is_running() {
            self.advance_starts(now, effects);
        }
        self.killed |= self.is_stopping() && self.leaving.iter().any(Leaving::was_killed);
        self.advance_phase(now, effects);
    }

    fn advance_leaving(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let mut index = 0;
        while let Some(one) = self.leaving.get(index) {
            let others = match one.is_to_be_told(now) {
                true => rotation::others(&self.slots, &self.leaving, self.wanted, one.worker.slot),
                false => Others::Nobody,
            };
            let Some(one) = self.leaving.get_mut(index) else { return };
            match one.advance(now, others, &self.settings, effects) {
                Outcome::Leaving => index += 1,
                Outcome::Abandoned => drop(self.leaving.remove(index)),
            }
        }
    }

    fn advance_phase(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if self.reached < Reached::AllReady && self.wanted_slots().all(|slot| slot.current.is_ready()) {
            self.reached = Reached::AllReady;
            say(effects, Report::AllReady(self.wanted));
        }
        let is_vacant = |slot: &Slot| slot.has_ended() && slot.successor.is_none();
        let all_gone = self.leaving.is_empty() && self.slots.iter().all(is_vacant);
        match &mut self.phase {
            // Only `--restart` ends every slot while running: panzer exits as the last failure did.
            Phase::Running if all_gone => {
                let status = self.last_failure.unwrap_or(Status::SUCCESS);
                self.phase = Phase::Clearing(Some(status), Clearing::begin(self.settings.policy.linger, effects));
            }
            Phase::Stopping(status) if all_gone => {
                self.phase = Phase::Clearing(*status, Clearing::begin(self.settings.policy.linger, effects));
            }
            Phase::Clearing(_, clearing) => match clearing.advance(now, effects) {
                Progress::Waiting => {}
                Progress::Abandoned => self.finish(effects),
            },
            Phase::Running | Phase::Stopping(_) | Phase::Finished => {}
        }
    }
}
