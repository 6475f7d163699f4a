//! Replacing workers that work: a reload, one that is too old or too large, and changing their number.
//!
//! Pure. There is one mechanism: a slot gets a successor beside its worker; when that has proved itself it takes the slot,
//! and only then the old worker is told. Must never take a worker away whose successor has not proved itself.

use std::time::Duration;

use super::leaving::{Leaving, Manner};
use super::report::Report;
use super::worker::{Life, Proof, Slot, State};
use super::{Effect, End, Generation, Supervisor, WorkerId};
use crate::signals::Signal;

/// Why a single worker is replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// It is so old.
    Age(Duration),
    /// It uses so many bytes.
    Memory(u64),
}

/// A worker that is to be replaced, and what has come of that so far.
#[derive(Clone, Debug)]
pub struct Recycling {
    /// The reason.
    why: Why,
    /// No try comes before this time.
    not_before: Duration,
    /// Tries in a row that failed.
    failures: u32,
}

impl Recycling {
    /// At once.
    pub(super) fn new(why: Why) -> Self {
        Self { why, not_before: Duration::ZERO, failures: 0 }
    }
}

/// Why a new life did not take the place of the old one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Failure {
    /// It ended.
    Ended(End),
    /// It had not proved itself within this time.
    NotReady(Duration),
    /// It was ready, and then not heard of.
    Silent,
}

/// A reload.
#[derive(Clone, Debug)]
pub(super) struct Reload {
    /// What it makes.
    pub(super) generation: Generation,
    /// A worker of this generation has been ready.
    pub(super) is_proven: bool,
    /// What a generation is made from was read.
    is_loaded: bool,
    failed_tries: u32,
    next_try: Duration,
    /// Another one was asked for in the meantime.
    once_more: bool,
}

impl Supervisor {
    /// A reload was asked for.
    pub(super) fn reload(&mut self, now: Duration, signal: Signal, effects: &mut Vec<Effect>) {
        match &mut self.reload {
            None => self.begin_reload(now, Some(signal), effects),
            Some(reload) => {
                reload.once_more = true;
                effects.push(Effect::Report(Report::ReloadQueued(signal)));
            }
        }
    }

    fn begin_reload(&mut self, now: Duration, signal: Option<Signal>, effects: &mut Vec<Effect>) {
        self.last_generation.0 += 1;
        let generation = self.last_generation;
        self.reload = Some(Reload {
            generation,
            is_proven: false,
            is_loaded: false,
            failed_tries: 0,
            next_try: now,
            once_more: false,
        });
        effects.push(Effect::Report(Report::Reloading(signal, self.count_running(), generation)));
        let mut in_use = vec![self.generation];
        in_use.extend(self.slots.iter().flat_map(|slot| [slot.current.generation, slot.proven]));
        in_use.extend(self.leaving.iter().map(|leaving| leaving.life.generation));
        effects.push(Effect::LoadGeneration(generation, in_use));
    }

    /// The new generation can be started.
    pub(super) fn generation_loaded(&mut self, generation: Generation) {
        if let Some(reload) = self.reload.as_mut().filter(|reload| reload.generation == generation) {
            reload.is_loaded = true;
        }
    }

    /// The new generation cannot be started.
    pub(super) fn generation_refused(
        &mut self,
        now: Duration,
        generation: Generation,
        error: String,
        effects: &mut Vec<Effect>,
    ) {
        if self.reload.as_ref().is_some_and(|reload| reload.generation == generation) {
            effects.push(Effect::Report(Report::ReloadRefused(generation, error)));
            self.end_reload(now, effects);
        }
    }

    /// A new life has failed once too often. With more than one at a time there may be others on their way.
    fn stop_successors(&mut self, now: Duration, generation: Generation, effects: &mut Vec<Effect>) {
        let Self { slots, leaving, settings, .. } = self;
        for slot in slots {
            if let Some(life) = slot.successor.take_if(|life| life.generation == generation) {
                leaving.push(Leaving::told(now, life, Manner::Stop, settings, effects));
            }
        }
    }

    /// The reload is over, however it went.
    fn end_reload(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let Some(reload) = self.reload.take() else { return };
        if reload.once_more {
            self.begin_reload(now, None, effects);
        }
    }

    /// How many slots a reload is about: where `--restart` lets no worker come any more, none comes.
    fn count_running(&self) -> u32 {
        u32::try_from(self.wanted_slots().filter(|slot| !slot.has_ended()).count()).unwrap_or(u32::MAX)
    }

    /// Counts a failed life against the reload that makes its generation: whether it was the last try, and the time until
    /// the next.
    fn count_try(&mut self, now: Duration, generation: Generation) -> Option<(bool, Duration)> {
        let Self { reload, settings, random, .. } = self;
        let reload = reload.as_mut().filter(|reload| reload.generation == generation)?;
        reload.failed_tries += 1;
        let delay = settings.backoff.delay(reload.failed_tries, random);
        reload.next_try = now + delay;
        Some((settings.replacement.tries > 0 && reload.failed_tries >= settings.replacement.tries, delay))
    }

    /// A life that was not ready yet has failed.
    pub(super) fn life_failed(
        &mut self,
        now: Duration,
        (worker, generation): (WorkerId, Generation),
        was_successor: bool,
        failure: Failure,
        effects: &mut Vec<Effect>,
    ) {
        // Where the worker is of that generation already, it was to be replaced for another reason.
        let is_of_reload = |slot: &Slot| !was_successor || slot.current.generation != generation;
        let is_of_reload = self.slot_mut(worker.slot).is_some_and(|slot| is_of_reload(slot));
        let tried = if is_of_reload { self.count_try(now, generation) } else { None };
        match tried {
            Some((true, _)) => {
                effects.push(Effect::Report(Report::ReloadFailed(worker, generation, failure)));
                self.stop_successors(now, generation, effects);
                self.end_reload(now, effects);
            }
            Some((false, delay)) if was_successor => {
                effects.push(Effect::Report(Report::ReloadRetry(worker, generation, failure, delay)));
            }
            None if was_successor => {
                let Some((slot, random, settings)) = self.slot_of(worker.slot) else { return };
                let Some(recycling) = &mut slot.recycling else { return };
                recycling.failures += 1;
                let delay = settings.backoff.delay(recycling.failures, random);
                recycling.not_before = now + delay;
                effects.push(Effect::Report(Report::RecycleFailed(worker, failure, delay)));
            }
            // It has its own line.
            Some((false, _)) | None => {}
        }
    }

    /// Puts the next try of a successor off that the system could not start.
    pub(super) fn put_off(&mut self, worker: WorkerId, until: Duration) {
        if let Some(reload) = &mut self.reload {
            reload.next_try = until;
        }
        if let Some((slot, ..)) = self.slot_of(worker.slot)
            && let Some(recycling) = &mut slot.recycling
        {
            recycling.not_before = until;
        }
    }

    /// The generation that a slot restarts with: a new one only once it has been seen to work.
    pub(super) fn restarts_with(&self, number: u32) -> Option<Generation> {
        let slot = self.slots.get(usize::try_from(number).ok()?)?;
        let reload = self.reload.as_ref().filter(|reload| reload.is_proven);
        Some(reload.map_or(slot.proven, |reload| reload.generation))
    }

    /// Begins the replacements that are due, and sees whether a reload has ended.
    pub(super) fn advance_rollout(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        self.finish_reload(now, effects);
        while let Some((number, generation, at)) = self.next_replacement()
            && at <= now
        {
            self.start_successor(now, number, generation, effects);
        }
    }

    /// When the next replacement can begin, if one can without anything else happening.
    pub(super) fn rollout_deadline(&self) -> Option<Duration> {
        self.next_replacement().map(|(_, _, at)| at)
    }

    /// Which slot gets a successor next, of which generation, and when.
    fn next_replacement(&self) -> Option<(u32, Generation, Duration)> {
        let successors = self.slots.iter().filter(|slot| slot.successor.is_some()).count();
        let extra = successors + self.leaving.iter().filter(|leaving| !leaving.is_orphaned).count();
        if extra >= usize::try_from(self.settings.replacement.surge).unwrap_or(usize::MAX) {
            return None;
        }
        let vacant = || self.wanted_slots().filter(|slot| slot.successor.is_none());
        let reload = self.reload.as_ref().filter(|reload| reload.is_loaded).and_then(|reload| {
            let is_old = |slot: &&Slot| slot.current.generation != reload.generation && !slot.has_ended();
            vacant().find(is_old).map(|slot| (slot.number, reload.generation, reload.next_try))
        });
        let recycle = vacant().filter(|slot| slot.current.is_ready()).filter_map(|slot| {
            let recycling = slot.recycling.as_ref()?;
            Some((slot.number, slot.proven, recycling.not_before))
        });
        let next = reload.into_iter().chain(recycle).min_by_key(|(_, _, at)| *at);
        next.map(|(number, generation, at)| (number, generation, at.max(self.earliest_start)))
    }

    fn start_successor(&mut self, now: Duration, number: u32, generation: Generation, effects: &mut Vec<Effect>) {
        let (by, workers) = (now + self.settings.ready_timeout, self.wanted);
        let Some(slot) = self.slot_mut(number) else { return };
        let worker = slot.next_life();
        if let (Some(Recycling { why, failures: 0, .. }), true) = (&slot.recycling, generation == slot.proven) {
            effects.push(Effect::Report(Report::Recycling(slot.current.worker, *why)));
        }
        slot.successor = Some(Life::new(worker, generation, State::Starting { proof: Proof::Execution, by }));
        effects.push(Effect::Spawn { worker, generation, workers });
        self.earliest_start = now + self.settings.stagger;
    }

    fn finish_reload(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let Some(reload) = self.reload.as_ref().filter(|reload| reload.is_loaded) else { return };
        let generation = reload.generation;
        let is_final = |worker| !self.leaving.iter().any(|leaving| leaving.can_return_for(worker));
        let is_done = |slot: &Slot| {
            (slot.current.generation == generation && slot.current.is_ready() && is_final(slot.current.worker))
                || (slot.has_ended() && slot.successor.is_none())
        };
        if self.wanted_slots().all(is_done) {
            if reload.is_proven {
                self.generation = generation;
            }
            effects.push(Effect::Report(Report::Reloaded(self.count_running(), generation)));
            self.end_reload(now, effects);
        }
    }

    /// One worker more, in the slot above the others.
    pub(super) fn scale_up(&mut self, now: Duration, signal: Signal, effects: &mut Vec<Effect>) {
        if self.wanted >= self.settings.most_workers {
            effects.push(Effect::Report(Report::CannotScaleUp(signal, self.wanted)));
            return;
        }
        let (number, generation) = (self.wanted, self.generation);
        self.wanted += 1;
        match self.slot_mut(number) {
            None => self.slots.push(Slot::new(number, generation, now)),
            Some(slot) => {
                slot.current.state = State::Waiting { until: now };
                slot.current.generation = generation;
                slot.proven = generation;
                slot.failures = 0;
            }
        }
        effects.push(Effect::Report(Report::ScaledUp(signal, self.wanted)));
    }

    /// One worker fewer: that of the top slot.
    pub(super) fn scale_down(&mut self, now: Duration, signal: Signal, effects: &mut Vec<Effect>) {
        if self.wanted == 1 {
            effects.push(Effect::Report(Report::CannotScaleDown(signal)));
            return;
        }
        self.wanted -= 1;
        effects.push(Effect::Report(Report::ScaledDown(signal, self.wanted)));
        let number = self.wanted;
        let Self { slots, leaving, settings, .. } = self;
        let Some(slot) = usize::try_from(number).ok().and_then(|number| slots.get_mut(number)) else { return };
        slot.recycling = None;
        if let Some(life) = slot.successor.take() {
            leaving.push(Leaving::told(now, life, Manner::Stop, settings, effects));
        }
        let life = &mut slot.current;
        if life.has_process() {
            leaving.push(Leaving::working(now, life.clone()));
        }
        life.state = State::Ended;
    }
}
