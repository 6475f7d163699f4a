//! Workers that have no slot any more: told to stop, or about to be, or a process group whose main process has ended.
//!
//! Pure. Must never tell a worker to stop while a connection that only it can answer waits for it, but for a bounded time.

use std::time::Duration;

use super::events::{say, sooner};
use super::report::Report;
use super::settings::Settings;
use super::statistics::Cause;
use super::stop::{Due, Escalation, Schedule};
use super::worker::{Life, Recycling};
use super::{Effect, WorkerId};
use crate::signals::Signal;

/// A worker is told when its queue has been empty for this long: what was on its way has come by then, and what was taken
/// from it is mostly answered.
const QUEUE_REST: Duration = Duration::from_millis(100);

/// How often a queue is looked at.
const QUEUE_LOOK: Duration = Duration::from_millis(20);

/// How long it may take to become empty.
const QUEUE_LIMIT: Duration = Duration::from_secs(10);

/// By which schedule a worker is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Manner {
    /// `--stop`: all are, or this one has not proved itself.
    Stop,
    /// `--reload-stop`: the others go on.
    Alone,
    /// ABRT, then `--stop`: it was silent.
    Silent,
}

impl Manner {
    fn schedule(self, settings: &Settings) -> &Schedule {
        match self {
            Self::Stop => &settings.stop,
            Self::Alone => &settings.reload_stop,
            Self::Silent => &settings.silent_stop,
        }
    }
}

/// How far it has come.
#[derive(Clone, Debug)]
enum Stage {
    /// It goes on working until then, and a little longer where nobody else could take its slot's connections just then.
    Working { until: Duration, limit: Duration },
    /// Its slot gets no new connections; those that wait are still its own.
    Emptying { look_at: Duration, until: Duration, empty_since: Option<Duration> },
    /// It was told to stop. Until `rests_until` its slot gets no new connections: it may take one up to its very end.
    Stopping { escalation: Escalation, rests_until: Option<Duration> },
}

/// A worker without a slot, or what is left of its process group.
#[derive(Clone, Debug)]
pub(super) struct Leaving {
    /// Which one.
    pub(super) worker: WorkerId,
    /// It, as it was in its slot.
    pub(super) life: Life,
    /// Whose successor has the slot now, and why it was replaced apart from a reload: with these it can have it again.
    pub(super) replaced: Option<(WorkerId, Option<Recycling>)>,
    /// Its main process has ended and was reaped; others of its group have not.
    pub(super) is_orphaned: bool,
    /// When it was told to stop.
    pub(super) told_at: Option<Duration>,
    /// Why its slot has another worker, or none, where that is not known before it has ended.
    pub(super) cause: Option<Cause>,
    manner: Manner,
    stage: Stage,
}

/// Who else could take the new connections of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Others {
    /// Some slot does.
    Serve,
    /// Some slot will in a moment; now it is kept out for an old worker of its own.
    Rest,
    /// Nobody.
    Nobody,
}

/// What [`Leaving::advance`] came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// It goes on.
    Leaving,
    /// It was killed and does not go away; panzer goes on without it.
    Abandoned,
}

impl Leaving {
    /// Tells it to stop.
    pub(super) fn told(
        now: Duration,
        life: Life,
        manner: Manner,
        settings: &Settings,
        effects: &mut Vec<Effect>,
    ) -> Self {
        let mut leaving = Self { manner, ..Self::working(now, life) };
        leaving.tell(now, settings, effects);
        leaving
    }

    /// Leaves it alone until `until`, and tells it to stop then.
    pub(super) fn working(until: Duration, life: Life) -> Self {
        let stage = Stage::Working { until, limit: until + QUEUE_LIMIT };
        let (worker, manner) = (life.worker, Manner::Alone);
        Self { worker, life, replaced: None, is_orphaned: false, told_at: None, cause: None, manner, stage }
    }

    /// Remembers why its slot has another worker, or none.
    pub(super) fn for_cause(mut self, cause: Cause) -> Self {
        self.cause = Some(cause);
        self
    }

    /// Remembers who has its slot now.
    pub(super) fn replaced_by(mut self, successor: WorkerId, recycling: Option<Recycling>) -> Self {
        self.replaced = Some((successor, recycling));
        self
    }

    /// Whether it works as before, and the successor that has its slot is this one.
    pub(super) fn can_return_for(&self, successor: WorkerId) -> bool {
        let works = matches!(self.stage, Stage::Working { .. } | Stage::Emptying { .. });
        works && self.replaced.as_ref().is_some_and(|(known, _)| *known == successor)
    }

    /// Has it stop by this manner from now on, unless that is so.
    pub(super) fn change_manner(
        &mut self,
        now: Duration,
        manner: Manner,
        settings: &Settings,
        effects: &mut Vec<Effect>,
    ) {
        if self.manner != manner && !self.was_killed() {
            self.manner = manner;
            self.tell(now, settings, effects);
        }
    }

    fn tell(&mut self, now: Duration, settings: &Settings, effects: &mut Vec<Effect>) {
        let (escalation, signal) = Escalation::begin(now, self.manner.schedule(settings));
        let rests_until = self.is_emptying().then_some(now + QUEUE_REST);
        self.told_at.get_or_insert(now);
        self.stage = Stage::Stopping { escalation, rests_until };
        settings.push_stop_signal(self.worker, signal, effects);
        // The schedule may leave it no time at all. It has some after KILL.
        let _ = self.poll(now, settings, effects);
    }

    /// Its main process has ended, and its group has not.
    pub(super) fn orphan(&mut self, now: Duration, settings: &Settings, effects: &mut Vec<Effect>) {
        self.is_orphaned = true;
        match self.stage {
            Stage::Working { .. } | Stage::Emptying { .. } => self.tell(now, settings, effects),
            Stage::Stopping { .. } => {}
        }
    }

    /// So many connections wait for it.
    pub(super) fn queue_has(&mut self, now: Duration, length: u32, settings: &Settings, effects: &mut Vec<Effect>) {
        let Stage::Emptying { empty_since, .. } = &mut self.stage else { return };
        if length > 0 {
            *empty_since = None;
        } else if now >= *empty_since.get_or_insert(now) + QUEUE_REST {
            self.tell(now, settings, effects);
        }
    }

    /// KILL now.
    pub(super) fn kill(&mut self, now: Duration, settings: &Settings, effects: &mut Vec<Effect>) {
        if !matches!(self.stage, Stage::Stopping { .. }) {
            let (escalation, _) = Escalation::begin(now, &settings.stop);
            self.stage = Stage::Stopping { escalation, rests_until: None };
        }
        if let Stage::Stopping { escalation, .. } = &mut self.stage {
            settings.push_stop_signal(self.worker, escalation.kill(now), effects);
        }
    }

    /// It asks for more time.
    pub(super) fn extend(&mut self, until: Duration) {
        if let Stage::Stopping { escalation, .. } = &mut self.stage {
            escalation.extend(until);
        }
    }

    fn is_emptying(&self) -> bool {
        matches!(self.stage, Stage::Emptying { .. })
    }

    /// Whether its slot is out of rotation for it.
    pub(super) fn keeps_slot_out(&self) -> bool {
        match self.stage {
            Stage::Working { .. } => false,
            Stage::Emptying { .. } => true,
            Stage::Stopping { rests_until, .. } => rests_until.is_some() && !self.is_orphaned,
        }
    }

    /// Whether it has worked for as long as it was to.
    pub(super) fn is_to_be_told(&self, now: Duration) -> bool {
        matches!(self.stage, Stage::Working { until, .. } if until <= now)
    }

    /// KILL was sent.
    pub(super) fn was_killed(&self) -> bool {
        matches!(&self.stage, Stage::Stopping { escalation, .. } if escalation.was_killed())
    }

    /// When it needs attention.
    pub(super) fn deadline(&self) -> Option<Duration> {
        match &self.stage {
            Stage::Working { until, .. } => Some(*until),
            Stage::Emptying { look_at, until, .. } => Some(*look_at.min(until)),
            Stage::Stopping { escalation, rests_until } => sooner(escalation.deadline(), *rests_until),
        }
    }

    /// Does what is due. `others`: who could take the new connections of its slot.
    pub(super) fn advance(
        &mut self,
        now: Duration,
        others: Others,
        settings: &Settings,
        effects: &mut Vec<Effect>,
    ) -> Outcome {
        let others = if settings.have_own_queues { others } else { Others::Nobody };
        match &mut self.stage {
            Stage::Working { until, .. } if *until <= now && others == Others::Serve => {
                self.stage = Stage::Emptying { look_at: now + QUEUE_LOOK, until: now + QUEUE_LIMIT, empty_since: None };
            }
            Stage::Working { until, limit } if *until <= now && others == Others::Rest && now < *limit => {
                *until = now + QUEUE_LOOK;
            }
            Stage::Working { until, .. } | Stage::Emptying { until, .. } if *until <= now => {
                self.tell(now, settings, effects);
            }
            Stage::Emptying { look_at, .. } if *look_at <= now => {
                *look_at = now + QUEUE_LOOK;
                effects.push(Effect::LookAtQueue(self.worker));
            }
            Stage::Working { .. } | Stage::Emptying { .. } | Stage::Stopping { .. } => {}
        }
        self.poll(now, settings, effects)
    }

    /// Does what its schedule asks for.
    fn poll(&mut self, now: Duration, settings: &Settings, effects: &mut Vec<Effect>) -> Outcome {
        while let Stage::Stopping { escalation, rests_until } = &mut self.stage {
            rests_until.take_if(|until| *until <= now);
            match escalation.poll(now, self.manner.schedule(settings)) {
                Due::Nothing => break,
                Due::Send(signal) => self.escalate(signal, settings, effects),
                Due::Abandon => {
                    say(effects, Report::Abandoned(self.worker));
                    return Outcome::Abandoned;
                }
            }
        }
        Outcome::Leaving
    }

    fn escalate(&self, signal: Signal, settings: &Settings, effects: &mut Vec<Effect>) {
        say(effects, Report::Escalated(self.worker, signal));
        settings.push_stop_signal(self.worker, signal, effects);
    }
}
