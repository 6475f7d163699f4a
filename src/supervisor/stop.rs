//! Stop schedules: which signal a process gets, how long it may take, what it gets then.
//!
//! Pure: it is told the time and says what is due. Must never know a process.

use std::fmt;
use std::time::Duration;

use crate::signals::Signal;

/// How long a killed process may take to disappear before panzer goes on without it. Only a process that hangs
/// inside the kernel (state D) takes longer than a moment, and nothing can be done about that one.
pub const KILL_GRACE: Duration = Duration::from_secs(5);

/// How long the guard lets the last signal work where the schedule has no KILL: as long as the standard one.
const LAST_SIGNAL_WAIT: Duration = Duration::from_secs(25);

/// One step of a schedule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// What is sent.
    pub signal: Signal,
    /// How long to wait before the next step; `None` on the last one.
    pub wait: Option<Duration>,
}

/// A stop schedule as start-stop-daemon(8) writes it: `TERM/10/KILL`. Never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule {
    first: Step,
    later: Vec<Step>,
}

impl Schedule {
    /// Reads `SIGNAL[/SECONDS/SIGNAL]...`.
    ///
    /// # Errors
    /// Says which part is not what it should be.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.split('/');
        let mut next_signal = parts.next().unwrap_or_default();
        let mut steps = Vec::new();
        loop {
            let signal = Signal::parse(next_signal).ok_or_else(|| format!("\"{next_signal}\" is not a signal"))?;
            let Some(seconds) = parts.next() else {
                steps.push(Step { signal, wait: None });
                break;
            };
            let wait = seconds.parse::<u32>().map_err(|_| format!("\"{seconds}\" is not a whole number of seconds"))?;
            steps.push(Step { signal, wait: Some(Duration::from_secs(wait.into())) });
            next_signal = parts.next().ok_or("it ends with a time; the last part must be a signal")?;
        }
        let first = steps.remove(0);
        Ok(Self { first, later: steps })
    }

    /// TERM, then KILL after `wait`.
    #[must_use]
    pub fn term_then_kill(wait: Duration) -> Self {
        Self {
            first: Step { signal: Signal::TERM, wait: Some(wait) },
            later: vec![Step { signal: Signal::KILL, wait: None }],
        }
    }

    /// TERM, 25 seconds, KILL: inside the thirty seconds that Kubernetes gives.
    #[must_use]
    pub fn standard() -> Self {
        Self::term_then_kill(LAST_SIGNAL_WAIT)
    }

    /// ABRT, which makes a core or a stack trace, and after `wait` this schedule.
    #[must_use]
    pub fn after_abort(&self, wait: Duration) -> Self {
        let first = Step { signal: Signal::ABRT, wait: Some(wait) };
        Self { first, later: self.steps().collect() }
    }

    /// What was asked for, or the standard one.
    #[must_use]
    pub fn or_standard(asked: Option<&Self>) -> Self {
        asked.cloned().unwrap_or_else(Self::standard)
    }

    /// What the guard runs when panzer is gone: nobody is left who could ask for an end, so it always ends in KILL.
    #[must_use]
    pub fn for_guard(asked: Option<&Self>, supervised: bool, linger: Duration) -> Self {
        let mut schedule = match asked {
            Some(schedule) => schedule.clone(),
            None if supervised => Self::standard(),
            None => Self::term_then_kill(linger),
        };
        let last = schedule.later.last_mut().unwrap_or(&mut schedule.first);
        if last.signal != Signal::KILL {
            last.wait = Some(LAST_SIGNAL_WAIT);
            schedule.later.push(Step { signal: Signal::KILL, wait: None });
        }
        schedule
    }

    /// The first signal of it.
    #[must_use]
    pub fn first_signal(&self) -> Signal {
        self.first.signal
    }

    /// How long it takes to its last step; `None`: that one waits without limit.
    #[must_use]
    pub fn longest(&self) -> Option<Duration> {
        let is_last_kill = self.steps().last().is_some_and(|step| step.signal == Signal::KILL);
        is_last_kill.then(|| self.steps().filter_map(|step| step.wait).sum())
    }

    /// All steps in order.
    pub fn steps(&self) -> impl Iterator<Item = Step> + '_ {
        std::iter::once(self.first).chain(self.later.iter().copied())
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in self.steps() {
            let name = step.signal.to_string();
            f.write_str(name.strip_prefix("SIG").unwrap_or(&name))?;
            if let Some(wait) = step.wait {
                write!(f, "/{}/", wait.as_secs())?;
            }
        }
        Ok(())
    }
}

/// A schedule that is being run on one process group.
#[derive(Clone, Debug)]
pub struct Escalation {
    /// How many steps have been taken.
    taken: usize,
    /// When the next one is due; `None`: the last signal leaves the process all the time it wants.
    due: Option<Duration>,
    /// KILL was sent.
    killed: bool,
}

/// What an escalation asks for when its time has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// Nothing yet.
    Nothing,
    /// Send this signal.
    Send(Signal),
    /// It was killed and is still there: go on without it.
    Abandon,
}

impl Escalation {
    /// Begins `schedule` and says which signal to send at once.
    #[must_use]
    pub fn begin(now: Duration, schedule: &Schedule) -> (Self, Signal) {
        let mut escalation = Self { taken: 0, due: None, killed: false };
        let signal = escalation.take(now, schedule.first);
        (escalation, signal)
    }

    /// KILL, whatever the schedule says. Said again, it is sent again and puts nothing off.
    pub fn kill(&mut self, now: Duration) -> Signal {
        if !self.killed {
            self.taken = usize::MAX;
            self.take(now, Step { signal: Signal::KILL, wait: None });
        }
        Signal::KILL
    }

    /// Puts the next step off until then, unless it is later already. Nothing puts off what comes after KILL.
    pub fn extend(&mut self, until: Duration) {
        if let (Some(due), false) = (&mut self.due, self.killed) {
            *due = until.max(*due);
        }
    }

    /// When [`Escalation::poll`] has something to say, if ever.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.due
    }

    /// KILL was sent.
    #[must_use]
    pub fn was_killed(&self) -> bool {
        self.killed
    }

    /// What is due at `now`.
    pub fn poll(&mut self, now: Duration, schedule: &Schedule) -> Due {
        if self.due.is_none_or(|due| now < due) {
            return Due::Nothing;
        }
        match schedule.steps().nth(self.taken) {
            Some(step) => Due::Send(self.take(now, step)),
            None => {
                self.due = None;
                Due::Abandon
            }
        }
    }

    fn take(&mut self, now: Duration, step: Step) -> Signal {
        self.taken = self.taken.saturating_add(1);
        self.killed |= step.signal == Signal::KILL;
        self.due = match step.wait {
            Some(wait) => Some(now + wait),
            None => self.killed.then_some(now + KILL_GRACE),
        };
        step.signal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn schedules_read_and_print_the_same() {
        for text in ["TERM/10/KILL", "QUIT/30/TERM/5/KILL", "TERM", "INT/0/KILL", "RTMIN+3/5/KILL"] {
            assert_eq!(Schedule::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_bad_schedule_is_named() {
        for (text, cause) in [
            ("", "\"\" is not a signal"),
            ("TERM/x/KILL", "\"x\" is not a whole number of seconds"),
            ("TERM/10", "it ends with a time; the last part must be a signal"),
            ("TERM/10/", "\"\" is not a signal"),
            ("TERM//KILL", "\"\" is not a whole number of seconds"),
            ("TERM/-1/KILL", "\"-1\" is not a whole number of seconds"),
        ] {
            assert_eq!(Schedule::parse(text).unwrap_err(), cause, "{text}");
        }
    }

    #[test]
    fn each_step_comes_at_its_time_and_a_process_that_survives_kill_is_abandoned() {
        let schedule = Schedule::parse("QUIT/30/TERM/5/KILL").unwrap();
        let (mut run, first) = Escalation::begin(seconds(100), &schedule);
        assert_eq!(first, Signal::QUIT);
        assert_eq!(run.poll(seconds(129), &schedule), Due::Nothing);
        assert_eq!(run.poll(seconds(130), &schedule), Due::Send(Signal::TERM));
        assert!(!run.was_killed());
        assert_eq!(run.poll(seconds(135), &schedule), Due::Send(Signal::KILL));
        assert!(run.was_killed());
        assert_eq!(run.poll(seconds(139), &schedule), Due::Nothing);
        assert_eq!(run.poll(seconds(140), &schedule), Due::Abandon);
        assert_eq!(run.poll(seconds(999), &schedule), Due::Nothing);
    }

    #[test]
    fn the_guards_schedule_always_ends_in_kill() {
        let guard = |text: &str| {
            let asked = (!text.is_empty()).then(|| Schedule::parse(text).unwrap());
            Schedule::for_guard(asked.as_ref(), false, seconds(2)).to_string()
        };
        assert_eq!(guard("TERM/3/KILL"), "TERM/3/KILL");
        assert_eq!(guard("QUIT/3/TERM"), "QUIT/3/TERM/25/KILL");
        assert_eq!(guard("TERM"), "TERM/25/KILL");
        assert_eq!(guard(""), "TERM/2/KILL");
    }

    #[test]
    fn a_schedule_without_kill_waits_for_ever() {
        let schedule = Schedule::parse("TERM").unwrap();
        let (mut run, _) = Escalation::begin(seconds(1), &schedule);
        assert_eq!(run.deadline(), None);
        assert_eq!(run.poll(seconds(1_000_000), &schedule), Due::Nothing);
    }
}
