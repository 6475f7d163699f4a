//! What a signal to panzer does: the actions, and which signal has which in each mode.
//!
//! Pure data. `--on` changes the table; the supervisor reads it.

use crate::signals::{SIGNAL_COUNT, Signal};

/// What panzer does when a signal arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Run the stop schedule on every worker, then exit.
    Stop,
    /// KILL to every worker, then exit.
    StopNow,
    /// Replace all workers, one after the other.
    Reload,
    /// One worker more.
    ScaleUp,
    /// One worker fewer.
    ScaleDown,
    /// Pass the signal on, or another one in its place.
    Forward(Option<Signal>),
    /// Nothing.
    Ignore,
    /// This version cannot do that: one line says so. Passing the signal on instead would kill workers that know nothing of
    /// it.
    Upgrade,
}

impl Action {
    /// The words that `--on` takes, for its error and its help.
    pub const WORDS: &'static str = "stop, stop-now, reload, scale-up, scale-down, forward, forward:SIG or ignore";

    /// Reads one of [`Action::WORDS`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "stop" => Some(Self::Stop),
            "stop-now" => Some(Self::StopNow),
            "reload" => Some(Self::Reload),
            "scale-up" => Some(Self::ScaleUp),
            "scale-down" => Some(Self::ScaleDown),
            "forward" => Some(Self::Forward(None)),
            "ignore" => Some(Self::Ignore),
            other => other.strip_prefix("forward:").and_then(Signal::parse).map(|signal| Self::Forward(Some(signal))),
        }
    }
}

/// The action of every signal.
#[derive(Clone, Debug)]
pub struct Actions([Action; SIGNAL_COUNT]);

impl Actions {
    /// Init mode: everything is forwarded. Where a stop schedule was asked for, TERM and INT run it.
    #[must_use]
    pub fn init(has_schedule: bool) -> Self {
        let mut actions = Self([Action::Forward(None); SIGNAL_COUNT]);
        if has_schedule {
            actions.set(Signal::TERM, Action::Stop);
            actions.set(Signal::INT, Action::Stop);
        }
        actions
    }

    /// Supervise mode: the signals of DESIGN, "Signals"; the rest is forwarded.
    #[must_use]
    pub fn supervise() -> Self {
        let mut actions = Self([Action::Forward(None); SIGNAL_COUNT]);
        actions.set(Signal::TERM, Action::Stop);
        actions.set(Signal::INT, Action::Stop);
        actions.set(Signal::QUIT, Action::StopNow);
        actions.set(Signal::HUP, Action::Reload);
        actions.set(Signal::USR1, Action::Reload);
        actions.set(Signal::USR2, Action::Upgrade);
        actions.set(Signal::TTIN, Action::ScaleUp);
        actions.set(Signal::TTOU, Action::ScaleDown);
        actions
    }

    /// Changes one row.
    pub fn set(&mut self, signal: Signal, action: Action) {
        if let Some(row) = self.0.get_mut(signal.index()) {
            *row = action;
        }
    }

    /// What `signal` does.
    #[must_use]
    pub fn of(&self, signal: Signal) -> Action {
        self.0.get(signal.index()).copied().unwrap_or(Action::Ignore)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_are_read_as_typed() {
        assert_eq!(Action::parse("stop-now"), Some(Action::StopNow));
        assert_eq!(Action::parse("forward:WINCH"), Signal::parse("WINCH").map(|s| Action::Forward(Some(s))));
        for text in ["", "Stop", "forward:", "forward:XYZ", "restart"] {
            assert_eq!(Action::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_schedule_makes_init_mode_stop_on_term() {
        assert_eq!(Actions::init(false).of(Signal::TERM), Action::Forward(None));
        assert_eq!(Actions::init(true).of(Signal::TERM), Action::Stop);
        assert_eq!(Actions::init(true).of(Signal::QUIT), Action::Forward(None));
    }
}
