//! What must hold whatever happens: asked after each event, and when an effect is asked for.

use super::*;

impl World {
    pub(super) fn check(&self, holds: bool, why: &str) {
        if !holds {
            self.fail(why);
        }
    }

    /// When everything must have ended; never where the schedule has no KILL and nobody asks for it.
    pub(super) fn latest_end(&self) -> Option<Duration> {
        let after_kill = KILL_GRACE + self.settings.policy.linger + KILL_GRACE + LATENCY * 4;
        let killed = self.kill_told.map(|told| told + after_kill);
        let ends_in_kill = self.settings.stop.steps().any(|step| step.signal == Signal::KILL);
        // Whatever else was under way begins anew with this one, and what was killed before takes no longer.
        let schedule: Duration = self.settings.stop.steps().filter_map(|step| step.wait).sum();
        // What is left of a group by a worker's own end is stopped by the same schedule, begun no later.
        let stopped = self.stop_told.filter(|_| ends_in_kill).map(|told| told + schedule + after_kill);
        [killed, stopped].into_iter().flatten().min()
    }

    pub(super) fn check_proof(&self, worker: WorkerId) {
        let Some(process) = self.processes.get(&worker) else { return };
        let must = self.settings.policy.ready == Ready::Bind && !self.nothing_shared;
        self.check(!must || process.listened, "a worker is ready that does not listen");
        if let Ready::Delay(delay) = self.settings.policy.ready {
            self.check(self.now >= process.executed_at + delay, "a worker is ready before its time");
        }
        let must = self.settings.policy.ready == Ready::Notify;
        self.check(!must || process.said_ready, "a worker is ready that has not said so");
    }

    /// Nobody is left in a state that should have ended by now.
    pub(super) fn check_waiting(&self, supervisor: &Supervisor) {
        if self.has_stop_begun() {
            return;
        }
        let must_show = matches!(self.settings.policy.ready, Ready::Notify)
            || (self.settings.policy.ready == Ready::Bind && !self.nothing_shared);
        // Whoever was replaced is about to go, and neither waited for nor listened to.
        let stays = |(worker, process): &(&WorkerId, &Process)| !process.told && !self.replaced.contains(*worker);
        for (_, process) in self.alive().filter(stays) {
            let is_late = must_show && !process.is_ready && self.now > process.ready_by + LATENCY;
            self.check(!is_late, "a worker that does not get ready is left alone");
            let is_silent = process.is_ready && process.beat_by.is_some_and(|by| self.now > by + LATENCY);
            self.check(!is_silent, "a silent worker is left alone");
        }
        let something_comes = supervisor.next_deadline().is_some() || self.next_happening().is_some();
        let waits_for_the_old = !supervisor.leaving.is_empty();
        self.check(
            supervisor.reload.is_none() || something_comes || waits_for_the_old || !self.queue.is_empty(),
            "a reload that nothing will end",
        );
    }

    /// A worker that does its work is told to go only when another one is ready in its slot, or it is not wanted any more.
    pub(super) fn check_may_be_told(&self, worker: WorkerId) {
        let Some(process) = self.processes.get(&worker) else { return };
        if self.has_stop_begun() || process.told || process.ended || !process.is_ready || worker.slot >= self.wanted {
            return;
        }
        self.check(self.replaced.contains(&worker), "a worker is taken away that nobody has replaced");
        let is_early = self.not_told_before.get(&worker).is_some_and(|at| self.now < *at);
        self.check(!is_early, "an old worker is told before its time");
    }

    /// What a client is told is true.
    pub(super) fn check_status(&self, supervisor: &Supervisor) {
        let overview = supervisor.overview(self.now);
        let (mut lives, mut firsts) = (Vec::new(), Vec::new());
        supervisor.each_row(&mut |row| {
            lives.extend(row.has_process.then_some(row.life.worker));
            firsts.extend(row.slot.map(|slot| slot.number));
        });
        self.check(overview.workers == self.wanted || supervisor.is_stopping(), "a wrong number of workers is shown");
        let is_told = (overview.state == "stopping") == self.stop_told.is_some();
        self.check(is_told || self.exit.is_some(), "that a stop is to come is not shown, or wrongly");
        self.check(overview.ready <= overview.workers, "too many are shown as ready");
        let shown = |worker: &WorkerId| lives.iter().filter(|shown| *shown == worker).count();
        let is_news = |worker: &WorkerId| self.queue.iter().any(|event| life(event) == Some(*worker));
        let right = self.alive().all(|(worker, one)| one.unkillable || shown(worker) == 1 || is_news(worker));
        self.check(right, "a worker is not shown, or twice");
        self.check(firsts.is_sorted_by(|one, next| one < next), "a slot is counted twice");
        let histograms = [&supervisor.statistics().time_to_ready, &supervisor.statistics().time_to_stop];
        self.check(histograms.iter().all(|one| one.counts.is_sorted()), "a histogram that is not cumulative");
    }

    /// Whoever has a queue to itself gets connections only where somebody will answer them.
    pub(super) fn check_queues(&mut self, supervisor: &Supervisor) {
        let queues = supervisor.queues(self.now);
        self.check(queues.contains(&QueueState::Serving), "nobody takes connections");
        let wanted = usize::try_from(self.wanted).unwrap();
        let somebody_left_out = queues.iter().take(wanted).any(|queue| *queue != QueueState::Serving);
        for (slot, queue) in (0..).zip(queues) {
            // panzer may have given up on what cannot be killed.
            let killable = self.alive().any(|(worker, process)| worker.slot == slot && !process.unkillable);
            let lives = self.alive().any(|(worker, _)| worker.slot == slot);
            // What is on its way to the supervisor, it cannot know yet.
            let is_news = self.queue.iter().any(|event| life(event).is_some_and(|worker| worker.slot == slot));
            match queue {
                QueueState::Serving if somebody_left_out => {
                    self.check(lives || is_news, "connections go to a slot without a worker");
                }
                QueueState::Serving => {}
                QueueState::Held => *self.tally.entry("queue_held").or_insert(0) += 1,
                QueueState::Abandoned => {
                    self.check(!killable || is_news, "a living worker's queue is abandoned");
                    let is_it = |one: &&Slot| one.number == slot && slot < self.wanted;
                    let next = supervisor.slots.iter().find(is_it).and_then(|one| one.current.deadline(self.now));
                    self.check(next.is_none_or(|at| at > self.now + SOON), "connections are let go of too early");
                    *self.tally.entry("queue_abandoned").or_insert(0) += 1;
                }
            }
        }
    }

    /// Whether an old worker goes on beside a new one that is ready.
    pub(super) fn has_delay(&self) -> bool {
        !self.settings.policy.replacement.kill_old_delay.is_zero() || self.settings.have_own_queues
    }
}
