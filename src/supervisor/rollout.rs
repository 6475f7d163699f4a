//! Replacing workers that work: a reload, one that is too old or too large, and changing their number.
//!
//! Pure. There is one mechanism: a slot gets a successor beside its worker; when that has proved itself it takes the slot,
//! and only then the old worker is told. Must never take a worker away whose successor has not proved itself.

use std::time::Duration;

use super::events::say;
use super::events::{Failure, Proof};
use super::leaving::{Leaving, Manner};
use super::report::Report;
use super::statistics::Cause;
use super::worker::{Life, Purpose, Recycling, Slot, State};
use super::{Asker, Effect, Generation, Supervisor};

/// A replacement that can begin.
struct Due {
    slot: u32,
    generation: Generation,
    purpose: Purpose,
    /// Since when it has been wanted.
    since: Duration,
    /// When it can begin.
    at: Duration,
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
    pub(super) once_more: bool,
}

impl Supervisor {
    /// A reload was asked for.
    pub(super) fn reload(&mut self, now: Duration, asker: Asker, effects: &mut Vec<Effect>) {
        match &mut self.reload {
            None => self.begin_reload(now, Some(asker), effects),
            Some(reload) => {
                reload.once_more = true;
                say(effects, Report::ReloadQueued(asker));
            }
        }
    }

    fn begin_reload(&mut self, now: Duration, asker: Option<Asker>, effects: &mut Vec<Effect>) {
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
        say(effects, Report::Reloading(asker, self.count_running(), generation));
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
            self.end_reload(now, Report::ReloadRefused(generation, error), effects);
        }
    }

    /// A new life has failed once too often. With more than one at a time there may be others on their way.
    fn stop_successors(&mut self, now: Duration, generation: Generation, effects: &mut Vec<Effect>) {
        let Self { slots, leaving, settings, .. } = self;
        for slot in slots {
            let is_of_reload = |life: &mut Life| life.purpose == Purpose::Reload && life.generation == generation;
            if let Some(life) = slot.successor.take_if(is_of_reload) {
                leaving.push(Leaving::told(now, life, Manner::Stop, settings, effects));
            }
        }
    }

    /// The reload is over, however it went: this says it.
    fn end_reload(&mut self, now: Duration, result: Report, effects: &mut Vec<Effect>) {
        let Some(reload) = self.reload.take() else { return };
        let is_ok = result.reload_result().is_some_and(|(_, is_ok)| is_ok);
        *(if is_ok { &mut self.statistics.reloads_ok } else { &mut self.statistics.reloads_failed }) += 1;
        say(effects, result);
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
        let delay = settings.policy.backoff.delay(reload.failed_tries, random);
        reload.next_try = now + delay;
        Some((settings.policy.replacement.tries > 0 && reload.failed_tries >= settings.policy.replacement.tries, delay))
    }

    /// A life has failed that was not ready yet, or whose place the old one takes again.
    pub(super) fn life_failed(&mut self, now: Duration, life: &Life, failure: Failure, effects: &mut Vec<Effect>) {
        let (worker, generation) = (life.worker, life.generation);
        if life.purpose == Purpose::Recycling {
            let Some((slot, random, settings)) = self.slot_of(worker.slot) else { return };
            let Some(recycling) = &mut slot.recycling else { return };
            recycling.failures += 1;
            let delay = settings.policy.backoff.delay(recycling.failures, random);
            recycling.not_before = now + delay;
            say(effects, Report::RecycleFailed(worker, failure, delay));
            return;
        }
        match self.count_try(now, generation) {
            Some((is_last, _)) if is_last || self.reload.as_ref().is_some_and(|reload| reload.once_more) => {
                self.stop_successors(now, generation, effects);
                self.end_reload(now, Report::ReloadFailed(worker, generation, failure), effects);
            }
            Some((_, delay)) if life.purpose == Purpose::Reload => {
                say(effects, Report::ReloadRetry(worker, generation, failure, delay));
            }
            // It has its own line.
            Some(_) | None => {}
        }
    }

    /// Puts the next try off where the system could not start this one.
    pub(super) fn put_off(&mut self, life: &Life, until: Duration) {
        if life.purpose == Purpose::Reload {
            self.reload.iter_mut().for_each(|reload| reload.next_try = until);
        } else if let Some(recycling) = self.slot_mut(life.worker.slot).and_then(|slot| slot.recycling.as_mut()) {
            recycling.not_before = until;
        }
    }

    /// The generation that a slot restarts with: a new one only once it has been seen to work.
    pub(super) fn restarts_with(&self, number: u32) -> Option<Generation> {
        let slot = self.slots.get(usize::try_from(number).ok()?)?;
        let reload = self.reload.as_ref().filter(|reload| reload.is_proven);
        Some(reload.map_or(slot.proven, |reload| reload.generation))
    }

    /// Begins the lives that are due, whoever has waited longest first, and sees whether a reload has ended.
    pub(super) fn advance_starts(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        self.finish_reload(now, effects);
        while self.earliest_start <= now {
            let vacant = |slot: &Slot| match slot.current.state {
                State::Waiting { until } if until <= now => Some((until, slot.number)),
                State::Waiting { .. } | State::Starting { .. } | State::Ready { .. } | State::Ended => None,
            };
            let vacancy = self.wanted_slots().filter_map(vacant).min();
            let replacement = self.next_replacement().filter(|due| due.at <= now);
            match (vacancy, replacement) {
                (Some((_, number)), None) => self.start(now, number, effects),
                (Some((since, number)), Some(due)) if since <= due.since => self.start(now, number, effects),
                (_, Some(due)) => self.start_successor(now, &due, effects),
                (None, None) => break,
            }
        }
    }

    /// When the next replacement can begin, if one can without anything else happening.
    pub(super) fn rollout_deadline(&self) -> Option<Duration> {
        self.next_replacement().map(|due| due.at)
    }

    /// Which slot gets a successor next, and when.
    fn next_replacement(&self) -> Option<Due> {
        let successors = self.slots.iter().filter(|slot| slot.successor.is_some()).count();
        let extra = successors + self.leaving.iter().filter(|leaving| !leaving.is_orphaned).count();
        if extra >= usize::try_from(self.settings.policy.replacement.surge).unwrap_or(usize::MAX) {
            return None;
        }
        let due = |slot: &Slot, generation, purpose, since: Duration| {
            Some(Due { slot: slot.number, generation, purpose, since, at: since.max(self.earliest_start) })
        };
        let replaceable = self.wanted_slots().filter(|slot| slot.successor.is_none());
        let next = replaceable.filter_map(|slot| match (&self.reload, &slot.recycling) {
            (Some(reload), _) if slot.current.generation != reload.generation => {
                let is_due = reload.is_loaded && !slot.has_ended();
                due(slot, reload.generation, Purpose::Reload, reload.next_try).filter(|_| is_due)
            }
            (_, Some(recycling)) if slot.current.is_ready() => {
                due(slot, slot.proven, Purpose::Recycling, recycling.not_before)
            }
            (_, Some(_) | None) => None,
        });
        next.min_by_key(|due| due.since)
    }

    fn start_successor(&mut self, now: Duration, due: &Due, effects: &mut Vec<Effect>) {
        let Due { generation, purpose, .. } = *due;
        let (by, workers) = (now + self.settings.policy.ready_timeout, self.wanted);
        let Some(slot) = self.slot_mut(due.slot) else { return };
        let worker = slot.next_life();
        if let (Purpose::Recycling, Some(Recycling { why, failures: 0, .. })) = (purpose, &slot.recycling) {
            say(effects, Report::Recycling(slot.current.worker, *why));
        }
        let state = State::Starting { proof: Proof::Execution, by };
        slot.successor = Some(Life::new(worker, generation, purpose, now, state));
        effects.push(Effect::Spawn { worker, generation, workers });
        self.earliest_start = now + self.settings.policy.stagger;
    }

    fn finish_reload(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let Some(reload) = self.reload.as_ref().filter(|reload| reload.is_loaded) else { return };
        let generation = reload.generation;
        let is_final = |worker| !self.leaving.iter().any(|leaving| leaving.can_return_for(worker));
        // One that has been ready and has ended since is a crash like any other: the reload does not wait for it.
        let is_done = |slot: &Slot| {
            (slot.proven == generation && is_final(slot.current.worker))
                || (slot.has_ended() && slot.successor.is_none())
        };
        if self.wanted_slots().all(is_done) {
            if reload.is_proven {
                self.generation = generation;
            }
            self.end_reload(now, Report::Reloaded(self.count_running(), generation), effects);
        }
    }

    /// The generation that is being made, how many slots have it, and how many are to; `None`: there is no reload.
    #[must_use]
    pub fn reload_progress(&self) -> Option<(Generation, u32, u32)> {
        let generation = self.reload.as_ref()?.generation;
        let done = self.wanted_slots().filter(|slot| slot.proven == generation && !slot.has_ended()).count();
        Some((generation, u32::try_from(done).unwrap_or(u32::MAX), self.count_running()))
    }

    /// So many workers from now on, more in the slots above the others, or those of the top slots away. `asker` has made
    /// sure that there may be so many.
    pub(super) fn scale(&mut self, now: Duration, asker: Asker, count: u32, effects: &mut Vec<Effect>) {
        let before = self.wanted;
        while self.wanted < count {
            self.add_worker(now);
        }
        while self.wanted > count {
            self.take_worker_away(now, effects);
        }
        if count > before {
            say(effects, Report::ScaledUp(asker, count, count - before));
        } else if count < before {
            say(effects, Report::ScaledDown(asker, count, before - count));
        }
    }

    /// One worker more, if there may be more.
    pub(super) fn scale_up(&mut self, now: Duration, asker: Asker, effects: &mut Vec<Effect>) {
        if self.wanted >= self.settings.most_workers {
            say(effects, Report::CannotScaleUp(asker, self.wanted));
        } else {
            self.scale(now, asker, self.wanted + 1, effects);
        }
    }

    /// One worker fewer, if there is more than one.
    pub(super) fn scale_down(&mut self, now: Duration, asker: Asker, effects: &mut Vec<Effect>) {
        if self.wanted == 1 {
            say(effects, Report::CannotScaleDown(asker));
        } else {
            self.scale(now, asker, self.wanted - 1, effects);
        }
    }

    fn add_worker(&mut self, now: Duration) {
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
    }

    fn take_worker_away(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        self.wanted -= 1;
        let number = self.wanted;
        let Self { slots, leaving, settings, .. } = self;
        let Some(slot) = usize::try_from(number).ok().and_then(|number| slots.get_mut(number)) else { return };
        slot.recycling = None;
        if let Some(life) = slot.successor.take() {
            leaving.push(Leaving::told(now, life, Manner::Stop, settings, effects));
        }
        let life = &mut slot.current;
        if life.has_process() {
            leaving.push(Leaving::working(now, life.clone()).for_cause(Cause::Scale));
        }
        life.state = State::Ended;
    }
}
