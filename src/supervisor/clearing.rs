//! What remains at the end, of all that panzer started or adopted: it gets TERM, then time, then KILL.
//!
//! Pure. The two supervisors share it. Must never name a process: what remains is signalled as a whole.

use std::time::Duration;

use super::Effect;
use super::events::{say, sooner};
use super::report::Report;
use super::stop::{Due, Escalation, Schedule};
use crate::signals::Signal;

/// How often the signal is sent again to what has not had it: processes fork and change their groups while it is sent.
const AGAIN: Duration = Duration::from_millis(100);

/// The clearing up at the end. The escalation begins when something turns out to remain.
#[derive(Clone, Debug)]
pub(super) struct Clearing {
    schedule: Schedule,
    escalation: Option<Escalation>,
    /// What was sent last, and when it is due once more.
    again: Option<(Signal, Duration)>,
}

/// What [`Clearing::advance`] came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    /// It goes on.
    Waiting,
    /// What remains was killed and does not go away: nothing more can be done.
    Abandoned,
}

impl Clearing {
    /// Asks whether anything remains; `linger` is how long that may take after TERM.
    pub(super) fn begin(linger: Duration, effects: &mut Vec<Effect>) -> Self {
        effects.push(Effect::LookForRemaining);
        Self { schedule: Schedule::term_then_kill(linger), escalation: None, again: None }
    }

    /// Something remains.
    pub(super) fn found(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if self.escalation.is_none() {
            let (escalation, signal) = Escalation::begin(now, &self.schedule);
            self.escalation = Some(escalation);
            self.push_signal(now, signal, effects);
        }
    }

    /// KILL now, if anything remains.
    pub(super) fn kill(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if let Some(signal) = self.escalation.as_mut().map(|escalation| escalation.kill(now)) {
            self.push_signal(now, signal, effects);
        }
    }

    /// Does what is due.
    pub(super) fn advance(&mut self, now: Duration, effects: &mut Vec<Effect>) -> Progress {
        let Some(escalation) = &mut self.escalation else { return Progress::Waiting };
        match escalation.poll(now, &self.schedule) {
            Due::Nothing => {
                if let Some((signal, at)) = &mut self.again
                    && *at <= now
                {
                    *at = now + AGAIN;
                    effects.push(Effect::SignalRemaining(*signal));
                }
                Progress::Waiting
            }
            Due::Send(signal) => {
                self.push_signal(now, signal, effects);
                Progress::Waiting
            }
            Due::Abandon => {
                say(effects, Report::RemainingAbandoned);
                Progress::Abandoned
            }
        }
    }

    /// When [`Clearing::advance`] has something to do, if ever.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let step = self.escalation.as_ref().and_then(Escalation::deadline);
        sooner(step, self.again.map(|(_, at)| at))
    }

    /// Something had to be killed.
    pub(super) fn was_killed(&self) -> bool {
        self.escalation.as_ref().is_some_and(Escalation::was_killed)
    }

    fn push_signal(&mut self, now: Duration, signal: Signal, effects: &mut Vec<Effect>) {
        say(effects, Report::SignallingRemaining(signal));
        effects.push(Effect::SignalRemaining(signal));
        self.again = Some((signal, now + AGAIN));
    }
}
