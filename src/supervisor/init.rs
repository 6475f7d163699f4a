//! Init mode: one child, every signal forwarded, panzer exits as the child does.
//!
//! Pure, like its parent module. Nothing escalates unless a stop schedule was asked for.

use std::time::Duration;

use super::actions::{Action, Actions};
use super::clearing::{Clearing, Progress};
use super::events::say;
use super::report::{Next, Reason, Report};
use super::stop::{Due, Escalation, Schedule};
use super::{Effect, End, Event, Generation, Reach, WorkerId};
use crate::error::Status;
use crate::signals::Signal;

/// The one child.
pub const CHILD: WorkerId = WorkerId { slot: 0, life: 1 };

/// What init mode goes by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What signals do.
    pub actions: Actions,
    /// How the child is stopped, where a signal asks for that.
    pub stop: Schedule,
    /// Signals go to the main process alone, and what it leaves behind is left alone.
    pub no_group: bool,
    /// How long what remains at the end may take after TERM.
    pub linger: Duration,
    /// Statuses that count as 0.
    pub ok_exits: Vec<Status>,
}

#[derive(Clone, Debug)]
enum Phase {
    /// The child lives; a stop schedule may be running.
    Running(Option<Escalation>),
    /// The child ended with this status; what remains is being cleared.
    Clearing(Status, Clearing),
    /// Exit was asked for.
    Finished,
}

/// Looks after one child.
#[derive(Clone, Debug)]
pub struct Init {
    settings: Settings,
    phase: Phase,
}

impl Init {
    /// Starts with nothing; [`Init::begin`] asks for the child.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, phase: Phase::Running(None) }
    }

    /// The first effect.
    #[must_use]
    pub fn begin(&self) -> Vec<Effect> {
        vec![Effect::Spawn { worker: CHILD, generation: Generation::FIRST, workers: 1 }]
    }

    /// Takes an event and says what to do.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            // There is nothing that a second try could be for: whoever started panzer waits for an answer.
            Event::NotStarted(_, why) => self.ended(End::CannotRun(why), &mut effects),
            Event::Exited { end, .. } => self.ended(end, &mut effects),
            Event::Executed(worker) => say(&mut effects, Report::Started(worker)),
            Event::Suspended(signal) => {
                if matches!(signal, Signal::STOP | Signal::TSTP | Signal::TTIN | Signal::TTOU) {
                    effects.push(Effect::SuspendWithChild);
                }
            }
            Event::Signal(signal) => self.signal(now, signal, &mut effects),
            Event::SomethingRemains => {
                if let Phase::Clearing(_, clearing) = &mut self.phase {
                    clearing.found(now, &mut effects);
                }
            }
            Event::NothingRemains => self.finish(&mut effects),
            Event::GroupGone(_) | Event::Listening(_) | Event::NothingShared | Event::Time => {}
            // Nothing asks for these where there is one child.
            Event::Told(..) | Event::GenerationLoaded(_) | Event::GenerationRefused(..) => {}
            Event::Queue(..) | Event::Memory(..) | Event::Asked(..) => {}
        }
        self.advance(now, &mut effects);
        effects
    }

    /// When [`Event::Time`] is due, if nothing else happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Running(escalation) => escalation.as_ref().and_then(Escalation::deadline),
            Phase::Clearing(_, clearing) => clearing.deadline(),
            Phase::Finished => None,
        }
    }

    fn ended(&mut self, end: End, effects: &mut Vec<Effect>) {
        if !matches!(self.phase, Phase::Running(_)) {
            return;
        }
        let status = end.status();
        let status = if self.settings.ok_exits.contains(&status) { Status::SUCCESS } else { status };
        say(
            effects,
            match end {
                End::CannotRun(_) => {
                    Report::Ended { worker: CHILD, end, success: false, next: Next::Stop(Reason::NeverExecuted) }
                }
                End::Exited(_) | End::Killed { .. } => Report::Stopped(CHILD, end),
            },
        );
        if self.settings.no_group {
            self.phase = Phase::Finished;
            effects.push(Effect::Exit(status));
        } else {
            self.phase = Phase::Clearing(status, Clearing::begin(self.settings.linger, effects));
        }
    }

    fn signal(&mut self, now: Duration, signal: Signal, effects: &mut Vec<Effect>) {
        let action = self.settings.actions.of(signal);
        match &mut self.phase {
            Phase::Running(escalation) => match action {
                Action::Stop => {
                    if escalation.is_none() {
                        let (begun, first) = Escalation::begin(now, &self.settings.stop);
                        *escalation = Some(begun);
                        self.push_stop_signal(first, effects);
                    }
                }
                Action::StopNow => self.push_signal(Signal::KILL, effects),
                Action::Forward(other) => self.forward(other.unwrap_or(signal), effects),
                Action::Ignore | Action::Upgrade | Action::Reload | Action::ScaleUp | Action::ScaleDown => {}
            },
            // The child is gone: whoever asks for an end now wants it at once.
            Phase::Clearing(_, clearing) => {
                let asks_for_an_end = match action {
                    Action::Stop | Action::StopNow => true,
                    Action::Forward(other) => {
                        matches!(other.unwrap_or(signal), Signal::TERM | Signal::INT | Signal::QUIT)
                    }
                    Action::Ignore | Action::Upgrade | Action::Reload | Action::ScaleUp | Action::ScaleDown => false,
                };
                if asks_for_an_end {
                    clearing.kill(now, effects);
                }
            }
            Phase::Finished => {}
        }
    }

    fn push_signal(&self, signal: Signal, effects: &mut Vec<Effect>) {
        let reach = if self.settings.no_group { Reach::MainProcess } else { Reach::Group };
        effects.push(Effect::Signal(CHILD, reach, signal));
    }

    /// A signal that means "end". CONT follows, since a stopped process cannot act on anything but KILL.
    fn push_stop_signal(&self, signal: Signal, effects: &mut Vec<Effect>) {
        self.push_signal(signal, effects);
        if signal != Signal::KILL {
            self.push_signal(Signal::CONT, effects);
        }
    }

    fn forward(&self, signal: Signal, effects: &mut Vec<Effect>) {
        match signal {
            // As STOP: where the child's group is orphaned the kernel does not let these stop it (`setpgid(2)`).
            Signal::TSTP | Signal::TTIN | Signal::TTOU => {
                self.push_signal(Signal::STOP, effects);
                effects.push(Effect::Suspend);
            }
            Signal::CONT => {
                effects.push(Effect::TakeTerminal);
                self.push_signal(Signal::CONT, effects);
            }
            Signal::TERM | Signal::INT | Signal::QUIT | Signal::HUP => self.push_stop_signal(signal, effects),
            other => self.push_signal(other, effects),
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
            Phase::Running(Some(escalation)) => match escalation.poll(now, &self.settings.stop) {
                Due::Nothing => {}
                Due::Send(signal) => {
                    say(effects, Report::Escalated(CHILD, signal));
                    self.push_stop_signal(signal, effects);
                }
                // It cannot be killed; its end is waited for all the same, since panzer exits as the child does.
                Due::Abandon => say(effects, Report::Abandoned(CHILD)),
            },
            Phase::Clearing(_, clearing) => match clearing.advance(now, effects) {
                Progress::Waiting => {}
                Progress::Abandoned => self.finish(effects),
            },
            Phase::Running(None) | Phase::Finished => {}
        }
    }
}
