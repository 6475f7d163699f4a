//! What happens to a life: it is started, proves itself, tells of itself, ends, and the slot has another.
//!
//! Pure. Must never mix up two lives: an event that is about an earlier one changes nothing.

use std::time::Duration;

use super::events::say;
use super::leaving::{Leaving, Manner};
use super::notice::Notice;
use super::report::{Next, Reason, Report};
use super::restart::{GOOD_LIFE, Random, Restart};
use super::rotation::SOON;
use super::settings::{Ready, Settings};
use super::statistics::Cause;
use super::worker::{Due, LastEnd, Life, Purpose, Recycling, Slot, State};
use super::{Effect, End, Failure, NotRun, Phase, Proof, Reached, Supervisor, Why, WorkerId, rotation};
use crate::error::Status;

/// A worker that was ready for at least this long and ends with success has done its work, as servers with a limit of
/// requests do: that is no failure.
const LEAST_READY_TIME: Duration = Duration::from_secs(1);

/// A kernel that has no process to give is not asked again sooner, whatever the backoff.
pub(super) const SHORTEST_RETRY: Duration = Duration::from_millis(10);

impl Supervisor {
    /// The slot with this number.
    pub(super) fn slot_mut(&mut self, number: u32) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(number).ok()?)
    }

    /// The same, together with what else its fate depends on.
    pub(super) fn slot_of(&mut self, number: u32) -> Option<(&mut Slot, &mut Random, &Settings)> {
        let slot = self.slots.get_mut(usize::try_from(number).ok()?)?;
        Some((slot, &mut self.random, &self.settings))
    }

    /// The slot of a life that is one of its own and is not over.
    fn living(&mut self, worker: WorkerId) -> Option<(&mut Slot, &mut Random, &Settings)> {
        let is_its_own = |slot: &Slot| slot.lives().any(|life| life.worker == worker && life.has_process());
        self.slot_of(worker.slot).filter(|(slot, ..)| is_its_own(slot))
    }

    /// Has the connections let go of that wait for a worker which takes long to boot, where others serve; only while the slot
    /// has no process: what waits when there is one is its own to take.
    fn let_go_of_queue(&mut self, number: u32, effects: &mut Vec<Effect>) {
        let has_old = self.leaving.iter().any(|leaving| leaving.worker.slot == number);
        let is_kept = has_old || !rotation::somebody_serves(&self.slots, &self.leaving);
        let Some(slot) = self.slot_mut(number).filter(|_| !is_kept) else { return };
        if slot.time_to_listen > SOON && !slot.lives().any(Life::has_process) {
            effects.push(Effect::LetGoOfQueue(number));
        }
    }

    /// Begins the next life of a slot that has no worker.
    pub(super) fn start(&mut self, now: Duration, number: u32, effects: &mut Vec<Effect>) {
        let (by, workers) = (now + self.settings.policy.ready_timeout, self.wanted);
        let Some(generation) = self.restarts_with(number) else { return };
        let Some(slot) = self.slot_mut(number) else { return };
        let worker = slot.next_life();
        let state = State::Starting { proof: Proof::Execution, by };
        slot.current = Life::new(worker, generation, Purpose::Vacancy, now, state);
        effects.push(Effect::Spawn { worker, generation, workers });
        self.earliest_start = now + self.settings.policy.stagger;
    }

    pub(super) fn not_started(&mut self, now: Duration, worker: WorkerId, why: NotRun, effects: &mut Vec<Effect>) {
        // It was given up before it was there.
        self.leaving.retain(|leaving| leaving.worker != worker);
        let Some((slot, random, settings)) = self.living(worker) else { return };
        // Not the worker's fault, so the crash limit does not count it; the delay grows all the same.
        slot.failures += 1;
        let delay = settings.policy.backoff.delay(slot.failures.max(2), random).max(SHORTEST_RETRY);
        if let Some(life) = slot.successor.take_if(|life| life.worker == worker) {
            self.put_off(&life, now + delay);
        } else {
            slot.current.state = State::Waiting { until: now + delay };
        }
        say(effects, Report::NotStarted(worker, why, delay));
    }

    pub(super) fn executed(&mut self, now: Duration, worker: WorkerId, effects: &mut Vec<Effect>) {
        let Some((slot, _, settings)) = self.living(worker) else { return };
        let has_listened = slot.has_listened;
        let Some(Life { state: State::Starting { proof: proof @ Proof::Execution, .. }, .. }) = slot.life_of(worker)
        else {
            return;
        };
        *proof = match settings.policy.ready {
            Ready::Exec => Proof::Shown,
            Ready::Delay(delay) => Proof::Age(now + delay),
            Ready::BindOrDelay(delay) if !has_listened => Proof::Age(now + delay),
            Ready::Bind | Ready::BindOrDelay(_) => Proof::Listening,
            Ready::Notify | Ready::Descriptor => Proof::Word,
        };
        say(effects, Report::Started(worker));
        self.reached = self.reached.max(Reached::Executed);
    }

    pub(super) fn listening(&mut self, now: Duration, worker: WorkerId, effects: &mut Vec<Effect>) {
        // The news of its execution may come second.
        self.executed(now, worker, effects);
        let Some((slot, _, settings)) = self.living(worker) else { return };
        // What one that is ready opens later says nothing of its boot; but the first one may be ready by its age alone.
        let is_first = !std::mem::replace(&mut slot.has_listened, true);
        let began = slot.life_of(worker).filter(|life| is_first || !life.is_ready()).map(|life| life.began);
        if let Some(began) = began {
            slot.time_to_listen = now.saturating_sub(began);
        }
        if let Ready::Bind | Ready::BindOrDelay(_) = settings.policy.ready {
            slot.life_of(worker).into_iter().for_each(|life| life.prove());
        }
    }

    /// A worker has told something about itself.
    pub(super) fn told(&mut self, now: Duration, worker: WorkerId, notice: Notice, effects: &mut Vec<Effect>) {
        if let (Some(leaving), Notice::ExtendTimeout(time)) =
            (self.leaving.iter_mut().find(|leaving| leaving.worker == worker), &notice)
        {
            leaving.extend(now + *time);
        }
        if notice == Notice::Ready {
            self.executed(now, worker, effects);
        }
        let Some((slot, _, settings)) = self.living(worker) else { return };
        let Some(life) = slot.life_of(worker) else { return };
        match notice {
            Notice::Ready if matches!(settings.policy.ready, Ready::Notify | Ready::Descriptor) => life.prove(),
            Notice::Ready => {}
            Notice::Stopping => {
                // It has as long as if it had been told.
                life.is_stopping = true;
                life.beat_by = settings.reload_stop.longest().map(|time| now + time);
                say(effects, Report::Says(worker, "it is stopping".to_owned()));
            }
            Notice::Reloading => say(effects, Report::Says(worker, "it is reloading".to_owned())),
            Notice::Status(text) => {
                life.status = Some(text.clone());
                say(effects, Report::Says(worker, text));
            }
            Notice::ExtendTimeout(time) => {
                if let State::Starting { by, .. } = &mut life.state {
                    *by = (now + time).max(*by);
                } else if life.is_stopping {
                    life.beat_by = life.beat_by.map(|by| by.max(now + time));
                }
            }
            Notice::Beat => life.beat(now),
            Notice::BeatInterval(interval) => {
                life.beat_interval = Some(interval);
                life.beat(now);
            }
            Notice::Trigger if life.is_ready() => {
                life.beat_by = Some(now);
                life.beat_interval = None;
            }
            // Which process that is, is for others to know.
            Notice::Trigger | Notice::MainProcess(_) => {}
        }
    }

    /// So many bytes are used by a worker.
    pub(super) fn measured(&mut self, now: Duration, worker: WorkerId, bytes: u64) {
        let Some((slot, _, settings)) = self.living(worker) else { return };
        let is_too_large = settings.policy.max_memory.is_some_and(|most| bytes > most);
        if is_too_large && slot.current.worker == worker && slot.current.is_ready() {
            slot.recycling.get_or_insert(Recycling::new(now, Why::Memory(bytes)));
        }
    }

    pub(super) fn exited(
        &mut self,
        now: Duration,
        worker: WorkerId,
        end: End,
        group_left: bool,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(at) = self.leaving.iter().position(|leaving| leaving.worker == worker && !leaving.is_orphaned) {
            let told = self.leaving.get(at).map(|leaving| (leaving.told_at, leaving.cause));
            let was_killed = self.leaving.get(at).is_some_and(Leaving::was_killed);
            let end = if was_killed { end.by_own_kill() } else { end };
            if let Some(told_at) = told.and_then(|(told_at, _)| told_at) {
                self.statistics.time_to_stop.add(now.saturating_sub(told_at));
            }
            // Only now: until it is told to stop, it may have its slot again.
            if let Some(cause) = told.and_then(|(_, cause)| cause) {
                self.remember_end(now, worker.slot, cause, end.to_string());
                self.statistics.count_restart(cause);
            }
            say(effects, Report::Stopped(worker, end));
            if let (true, Some(leaving)) = (group_left, self.leaving.get_mut(at)) {
                leaving.orphan(now, &self.settings, effects);
            } else {
                self.leaving.swap_remove(at);
            }
            return;
        }
        let Some((slot, ..)) = self.living(worker) else { return };
        if let Some(life) = slot.successor.take_if(|life| life.worker == worker) {
            self.orphan_group(now, &life, group_left, effects);
            return self.life_failed(now, &life, Failure::Ended(end), effects);
        }
        let life = slot.current.clone();
        let status = end.status();
        let success = status == Status::SUCCESS || self.settings.policy.ok_exits.contains(&status);
        let next = match self.reason_to_stop(&end, success) {
            Some(reason) => Next::Stop(reason),
            None => {
                self.remember_end(now, worker.slot, Cause::of_end(&end, success), end.to_string());
                self.vacate(now, worker.slot, success)
            }
        };
        if next == Next::Nobody && !success {
            self.last_failure = Some(status);
        }
        say(effects, Report::Ended { worker, end: end.clone(), success, next });
        self.orphan_group(now, &life, group_left, effects);
        if let Next::Stop(reason) = next {
            // It is gone already.
            if let Some(slot) = self.slot_mut(worker.slot) {
                slot.current.state = State::Ended;
            }
            say(effects, Report::GivingUp(worker, reason, status));
            self.stop_all(now, Some(status), effects);
            return;
        }
        self.let_go_of_queue(worker.slot, effects);
        if !life.is_ready() || matches!(next, Next::Old(_)) {
            self.life_failed(now, &life, Failure::Ended(end), effects);
        }
    }

    /// Stops what a main process has left in its group.
    fn orphan_group(&mut self, now: Duration, life: &Life, group_left: bool, effects: &mut Vec<Effect>) {
        if group_left {
            say(effects, Report::GroupOrphaned(life.worker));
            let mut leaving = Leaving::told(now, life.clone(), Manner::Stop, &self.settings, effects);
            leaving.is_orphaned = true;
            self.leaving.push(leaving);
        }
    }

    /// Whether the end of a worker that was not told to stop ends everything.
    fn reason_to_stop(&mut self, end: &End, success: bool) -> Option<Reason> {
        if self.settings.policy.fatal_exits.contains(&end.status()) {
            return Some(Reason::FatalExit);
        }
        if matches!(end, End::CannotRun(_)) && self.reached == Reached::Nothing {
            return Some(Reason::NeverExecuted);
        }
        self.count_early_death(success)
    }

    fn count_early_death(&mut self, success: bool) -> Option<Reason> {
        if self.reached >= Reached::OneReady || !self.is_restarted(success) {
            return None;
        }
        self.early_deaths += 1;
        let limit = self.settings.policy.crash_limit;
        (limit > 0 && self.early_deaths >= limit).then_some(Reason::CrashLimit(self.early_deaths))
    }

    fn is_restarted(&self, success: bool) -> bool {
        match self.settings.policy.restart {
            Restart::Always => true,
            Restart::OnFailure => !success,
            Restart::Never => false,
        }
    }

    /// Gives a slot back to the worker that this one has replaced and that was not told to stop yet.
    fn take_back(&mut self, now: Duration, successor: WorkerId) -> Option<WorkerId> {
        let at = self.leaving.iter().position(|leaving| leaving.can_return_for(successor))?;
        let old = self.leaving.remove(at);
        let slot = self.slot_mut(old.worker.slot)?;
        slot.recycling = old.replaced.and_then(|(_, recycling)| recycling);
        slot.proven = old.life.generation;
        slot.current = old.life;
        slot.current.beat(now);
        let Self { reload, slots, .. } = self;
        if let Some(reload) = reload {
            let works = |slot: &Slot| slot.current.is_ready() && slot.current.generation == reload.generation;
            reload.is_proven &= slots.iter().any(works);
        }
        Some(old.worker)
    }

    /// Remembers how the life before the present one ended.
    fn remember_end(&mut self, now: Duration, number: u32, cause: Cause, text: String) {
        if let Some(slot) = self.slot_mut(number) {
            slot.last_end = Some(LastEnd { cause, text, at: now });
        }
    }

    fn remember_failure(&mut self, now: Duration, number: u32, failure: &Failure) {
        self.remember_end(now, number, Cause::of_failure(failure), failure.text("it"));
    }

    /// Counts that a slot has another worker for the reason for which the last one ended.
    fn count_restart(&mut self, number: u32) {
        let Self { slots, statistics, .. } = self;
        let slot = usize::try_from(number).ok().and_then(|number| slots.get_mut(number));
        if let Some((slot, cause)) =
            slot.and_then(|slot| slot.last_end.as_ref().map(|end| end.cause).map(|cause| (slot, cause)))
        {
            slot.restarts += 1;
            statistics.count_restart(cause);
        }
    }

    /// Decides who comes after the worker of a slot that is gone, and when.
    fn vacate(&mut self, now: Duration, number: u32, success: bool) -> Next {
        let worker = self.slot_mut(number).map(|slot| slot.current.worker);
        if let Some(old) = worker.and_then(|worker| self.take_back(now, worker)) {
            return Next::Old(old);
        }
        let is_restarted = self.is_restarted(success);
        let Some(generation) = self.restarts_with(number) else { return Next::Nobody };
        let Some((slot, random, settings)) = self.slot_of(number) else { return Next::Nobody };
        let ready_for = match slot.current.state {
            State::Ready { since } => now.saturating_sub(since),
            State::Starting { .. } | State::Waiting { .. } | State::Ended => Duration::ZERO,
        };
        if ready_for >= GOOD_LIFE {
            slot.failures = 0;
        }
        let has_done_its_work = success && ready_for >= LEAST_READY_TIME;
        slot.failures += u32::from(!has_done_its_work);
        if let Some(successor) = slot.successor.take_if(|successor| successor.generation == generation) {
            slot.current = successor;
            self.count_restart(number);
            return Next::Successor;
        }
        if !is_restarted {
            slot.current.state = State::Ended;
            return Next::Nobody;
        }
        let delay =
            if has_done_its_work { Duration::ZERO } else { settings.policy.backoff.delay(slot.failures, random) };
        slot.current.state = State::Waiting { until: now + delay };
        self.count_restart(number);
        if delay.is_zero() { Next::Now } else { Next::After(delay) }
    }

    /// Does what is due for the lives of a slot. Nobody is given up for having said nothing before all have been heard.
    pub(super) fn advance_slot(&mut self, now: Duration, number: u32, all_are_heard: bool, effects: &mut Vec<Effect>) {
        match self.slot_mut(number).and_then(|slot| slot.successor.as_ref()?.due(now)) {
            Some(Due::Ready) => self.take_over(now, number, effects),
            Some(Due::TooLate) if all_are_heard => self.give_up_on_successor(now, number, effects),
            Some(Due::Start | Due::TooLate | Due::Silent | Due::TooOld(_)) | None => {}
        }
        let Some(slot) = self.slot_mut(number) else { return };
        match slot.current.due(now) {
            Some(Due::Ready) => {
                say(effects, Report::Ready(slot.current.worker));
                self.became_ready(now, number);
            }
            Some(Due::TooLate) if all_are_heard => self.give_up_on_late(now, number, effects),
            Some(Due::Silent) if all_are_heard => self.give_up_on_silent(now, number, effects),
            Some(Due::TooOld(age)) => {
                slot.current.retire_at = None;
                slot.recycling.get_or_insert(Recycling::new(now, Why::Age(age)));
            }
            Some(Due::Start | Due::TooLate | Due::Silent) | None => {}
        }
    }

    /// The successor has proved itself: it has the slot now, and the old worker goes.
    fn take_over(&mut self, now: Duration, number: u32, effects: &mut Vec<Effect>) {
        let delay = self.settings.policy.replacement.kill_old_delay;
        let Some(slot) = self.slot_mut(number) else { return };
        let Some(successor) = slot.successor.take() else { return };
        let (worker, recycling) = (successor.worker, slot.recycling.take());
        let why = recycling.as_ref().filter(|_| successor.purpose == Purpose::Recycling).map(|recycling| recycling.why);
        let cause = Cause::of_replacement(why);
        let old = std::mem::replace(&mut slot.current, successor);
        if old.has_process() {
            say(effects, Report::TookOver(worker, old.worker, delay));
            self.leaving.push(Leaving::working(now + delay, old).replaced_by(worker, recycling).for_cause(cause));
        } else {
            say(effects, Report::Ready(worker));
        }
        self.became_ready(now, number);
    }

    /// The worker of a slot has proved itself.
    fn became_ready(&mut self, now: Duration, number: u32) {
        let Some((slot, random, settings)) = self.slot_of(number) else { return };
        let life = &mut slot.current;
        let time_to_ready = now.saturating_sub(life.began);
        life.state = State::Ready { since: now };
        life.retire_at = settings.policy.max_age.map(|age| now + age.least + random.up_to(age.jitter));
        life.beat_interval = life.beat_interval.or(settings.policy.watchdog);
        life.beat(now);
        slot.proven = life.generation;
        let generation = life.generation;
        // A reason to replace was the one before's.
        if slot.successor.is_none() {
            slot.recycling = None;
        }
        if let Some(reload) = self.reload.as_mut().filter(|reload| reload.generation == generation) {
            reload.is_proven = true;
        }
        self.statistics.time_to_ready.add(time_to_ready);
        self.reached = self.reached.max(Reached::OneReady);
    }

    /// A successor has not proved itself in time.
    fn give_up_on_successor(&mut self, now: Duration, number: u32, effects: &mut Vec<Effect>) {
        let Some(life) = self.slot_mut(number).and_then(|slot| slot.successor.take()) else { return };
        self.leaving.push(Leaving::told(now, life.clone(), Manner::Stop, &self.settings, effects));
        self.life_failed(now, &life, too_late(&life), effects);
    }

    /// The worker of a slot has not proved itself in time.
    fn give_up_on_late(&mut self, now: Duration, number: u32, effects: &mut Vec<Effect>) {
        let Some(life) = self.slot_mut(number).map(|slot| slot.current.clone()) else { return };
        let failure = too_late(&life);
        let next = match self.count_early_death(false) {
            Some(reason) => Next::Stop(reason),
            None => {
                self.remember_failure(now, number, &failure);
                self.vacate(now, number, false)
            }
        };
        say(effects, Report::GivenUp(life.worker, failure.clone(), next));
        self.leave(now, life.clone(), Manner::Stop, next, effects);
        if let Next::Stop(reason) = next {
            if let Some(slot) = self.slot_mut(number) {
                slot.current.state = State::Ended;
            }
            say(effects, Report::GivingUp(life.worker, reason, Status::REFUSED));
            return self.stop_all(now, Some(Status::REFUSED), effects);
        }
        self.life_failed(now, &life, failure, effects);
    }

    /// The worker of a slot has not been heard of in time.
    fn give_up_on_silent(&mut self, now: Duration, number: u32, effects: &mut Vec<Effect>) {
        let Some(life) = self.slot_mut(number).map(|slot| slot.current.clone()) else { return };
        let (failure, manner) = if life.is_stopping {
            (Failure::NotEnded, Manner::Stop)
        } else {
            (Failure::Silent(life.beat_interval), Manner::Silent)
        };
        self.remember_failure(now, number, &failure);
        let next = self.vacate(now, number, false);
        say(effects, Report::GivenUp(life.worker, failure.clone(), next));
        self.leave(now, life.clone(), manner, next, effects);
        if let Next::Old(_) = next {
            self.life_failed(now, &life, failure, effects);
        }
    }

    /// Stops a worker that has failed and still runs. It has no status yet that panzer could exit with.
    fn leave(&mut self, now: Duration, life: Life, manner: Manner, next: Next, effects: &mut Vec<Effect>) {
        if next == Next::Nobody {
            self.last_failure = Some(Status::REFUSED);
        }
        self.leaving.push(Leaving::told(now, life, manner, &self.settings, effects));
    }

    /// Whether panzer still keeps workers alive.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }
}

impl Life {
    /// It has shown what it had to.
    fn prove(&mut self) {
        if let State::Starting { proof, .. } = &mut self.state {
            *proof = Proof::Shown;
        }
    }

    /// It has shown that it lives.
    fn beat(&mut self, now: Duration) {
        if self.is_ready() && !self.is_stopping {
            self.beat_by = self.beat_interval.map(|interval| now + interval);
        }
    }
}

/// That a life has not proved itself in time.
fn too_late(life: &Life) -> Failure {
    let (missing, by) = match life.state {
        State::Starting { proof, by } => (proof, by),
        State::Waiting { .. } | State::Ready { .. } | State::Ended => (Proof::Shown, life.began),
    };
    Failure::NotReady(by.saturating_sub(life.began), missing)
}
