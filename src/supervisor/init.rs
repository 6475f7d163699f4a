//! Init mode: one child, every signal forwarded, panzer exits as the child does.
//!
//! Pure, like its parent module. Nothing escalates unless a stop schedule was asked for.

use std::time::Duration;

use super::commands::{Action, Actions};
use super::report::Report;
use super::stop::{Due, Escalation, Schedule};
use super::{Effect, End, Event, WorkerId, push_rest_signal, push_stop_signal};
use crate::error::Status;
use crate::signals::Signal;

/// The one child.
pub const CHILD: WorkerId = WorkerId { slot: 0, life: 1 };

/// What init mode goes by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What signals do.
    pub actions: Actions,
    /// The stop schedule, where one was asked for.
    pub stop: Option<Schedule>,
    /// Whether panzer looks after what the child leaves behind (not with `--no-group`).
    pub clear_rest: bool,
    /// How long that may take after TERM.
    pub linger: Duration,
    /// Statuses that count as 0.
    pub ok_exits: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Phase {
    /// The child lives; a stop schedule may be running.
    Running(Option<Escalation>),
    /// The child ended; what it left behind is being cleared.
    Clearing(Status, Option<Escalation>),
    /// Exit was asked for.
    Finished,
}

/// Looks after one child.
#[derive(Clone, Debug)]
pub struct Init {
    settings: Settings,
    schedule: Schedule,
    rest_schedule: Schedule,
    phase: Phase,
}

impl Init {
    /// Starts with nothing; [`Init::begin`] asks for the child.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            schedule: settings.stop.clone().unwrap_or_else(Schedule::standard),
            rest_schedule: Schedule::term_then_kill(settings.linger),
            settings,
            phase: Phase::Running(None),
        }
    }

    /// The first effect.
    #[must_use]
    pub fn begin(&self) -> Vec<Effect> {
        vec![Effect::Spawn(CHILD)]
    }

    /// Takes an event and says what to do.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            // There is nothing that a second try could be for: whoever started panzer waits for an answer.
            Event::NotStarted(_, why) => self.ended(&End::CannotRun(why), &mut effects),
            Event::Exited { end, .. } => self.ended(&end, &mut effects),
            Event::Suspended(signal) => {
                if signal == Signal::TSTP || signal == Signal::TTIN || signal == Signal::TTOU {
                    effects.push(Effect::Suspend);
                }
            }
            Event::Signal(signal) => self.signal(now, signal, &mut effects),
            Event::RestLeft => self.clear_rest(now, &mut effects),
            Event::NothingLeft => self.finish(&mut effects),
            Event::Executed(worker) => effects.push(Effect::Report(Report::Started(worker))),
            Event::GroupGone(_) | Event::Time => {}
        }
        self.advance(now, &mut effects);
        effects
    }

    /// When [`Event::Time`] is due, if nothing else happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Running(escalation) | Phase::Clearing(_, escalation) => {
                escalation.as_ref().and_then(Escalation::deadline)
            }
            Phase::Finished => None,
        }
    }

    fn ended(&mut self, end: &End, effects: &mut Vec<Effect>) {
        if !matches!(self.phase, Phase::Running(_)) {
            return;
        }
        let status = end.status();
        let status = if self.settings.ok_exits.contains(&status.0) { Status::SUCCESS } else { status };
        let report = match end {
            End::CannotRun(_) => Report::Ended(CHILD, end.clone(), super::report::Next::Stop),
            End::Exited(_) | End::Killed { .. } => Report::Stopped(CHILD, end.clone()),
        };
        effects.push(Effect::Report(report));
        if self.settings.clear_rest {
            self.phase = Phase::Clearing(status, None);
            effects.push(Effect::LookForRest);
        } else {
            self.phase = Phase::Finished;
            effects.push(Effect::Exit(status));
        }
    }

    fn signal(&mut self, now: Duration, signal: Signal, effects: &mut Vec<Effect>) {
        let action = self.settings.actions.of(signal);
        match &mut self.phase {
            Phase::Running(escalation) => match action {
                Action::Stop => {
                    if escalation.is_none() {
                        let (begun, first) = Escalation::begin(now, &self.schedule);
                        *escalation = Some(begun);
                        push_stop_signal(CHILD, first, effects);
                    }
                }
                Action::StopNow => effects.push(Effect::Signal(CHILD, Signal::KILL)),
                Action::Forward(other) => forward(other.unwrap_or(signal), effects),
                Action::Ignore | Action::Reserved(_) => {}
            },
            // The child is gone: whoever asks for an end now wants it at once.
            Phase::Clearing(_, Some(escalation)) => {
                if matches!(action, Action::StopNow) || signal == Signal::TERM || signal == Signal::INT {
                    effects.push(Effect::SignalRest(escalation.kill(now)));
                }
            }
            Phase::Clearing(_, None) | Phase::Finished => {}
        }
    }

    fn clear_rest(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if let Phase::Clearing(_, escalation @ None) = &mut self.phase {
            let (begun, signal) = Escalation::begin(now, &self.rest_schedule);
            *escalation = Some(begun);
            push_rest_signal(signal, effects);
        }
    }

    fn finish(&mut self, effects: &mut Vec<Effect>) {
        if let Phase::Clearing(status, _) = self.phase {
            self.phase = Phase::Finished;
            effects.push(Effect::Exit(status));
        }
    }

    fn advance(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        match &mut self.phase {
            Phase::Running(Some(escalation)) => match escalation.poll(now, &self.schedule) {
                Due::Nothing => {}
                Due::Send(signal) => {
                    effects.push(Effect::Report(Report::Escalated(CHILD, signal)));
                    push_stop_signal(CHILD, signal, effects);
                }
                // It cannot be killed; its end is waited for all the same, since panzer exits as the child does.
                Due::Abandon => effects.push(Effect::Report(Report::Abandoned(CHILD))),
            },
            Phase::Clearing(_, Some(escalation)) => match escalation.poll(now, &self.rest_schedule) {
                Due::Nothing => {}
                Due::Send(signal) => push_rest_signal(signal, effects),
                Due::Abandon => {
                    effects.push(Effect::Report(Report::RestAbandoned));
                    self.finish(effects);
                }
            },
            Phase::Running(None) | Phase::Clearing(_, None) | Phase::Finished => {}
        }
    }
}

/// Passes a signal on. TSTP, TTIN and TTOU go on as STOP, since their default action does nothing in an orphaned
/// process group, and stop panzer too; a signal that means "end" is followed by CONT, since a stopped process does
/// not end.
fn forward(signal: Signal, effects: &mut Vec<Effect>) {
    match signal {
        Signal::TSTP | Signal::TTIN | Signal::TTOU => {
            effects.push(Effect::Signal(CHILD, Signal::STOP));
            effects.push(Effect::Suspend);
        }
        Signal::CONT => {
            effects.push(Effect::TakeTerminal);
            effects.push(Effect::Signal(CHILD, Signal::CONT));
        }
        Signal::TERM | Signal::INT | Signal::QUIT | Signal::HUP => push_stop_signal(CHILD, signal, effects),
        other => effects.push(Effect::Signal(CHILD, other)),
    }
}
