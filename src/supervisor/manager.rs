//! What panzer's own manager is told of it: systemd, or another panzer, in the words of `sd_notify(3)`.
//!
//! Pure; `linux::manager` sends it. Must never say more than one line of status, nor that panzer is ready before it is.

use std::fmt::Write;
use std::time::Duration;

use super::report::Workers;
use super::{Generation, Phase, Reached, Supervisor, notice};

/// How panzer stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    /// Not all workers have been ready yet.
    Starting,
    /// They have.
    Ready,
    /// They are being replaced.
    Reloading,
    /// It is about to end.
    Stopping,
}

/// What a manager knows, or is to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known {
    standing: Standing,
    /// What the last reload makes, or was to make. It tells one from the next.
    generation: Generation,
    /// How panzer is, for people.
    status: String,
}

impl Default for Known {
    /// What is known before anything was told.
    fn default() -> Self {
        Self { standing: Standing::Starting, generation: Generation::FIRST, status: String::new() }
    }
}

impl Supervisor {
    /// What a manager is to know. `failure`: why the last reload has failed, if it has.
    #[must_use]
    pub fn to_be_known(&self, now: Duration, failure: Option<&str>) -> Known {
        let standing = match &self.phase {
            Phase::Running if self.stop_at.is_some() => Standing::Stopping,
            Phase::Running if self.reached < Reached::AllReady => Standing::Starting,
            Phase::Running if self.reload.is_some() => Standing::Reloading,
            Phase::Running => Standing::Ready,
            Phase::Stopping(_) | Phase::Clearing(..) | Phase::Finished => Standing::Stopping,
        };
        // A manager that waits for the start is told of no reload before.
        let generation = if standing == Standing::Starting { Generation::FIRST } else { self.last_generation };
        let overview = self.overview(now);
        let mut status = overview.doing;
        if standing == Standing::Ready && overview.ready == overview.workers {
            status = format!("{} ready, generation {}", Workers(overview.ready), overview.generation.0);
        }
        if let (Standing::Ready, Some(failure)) = (standing, failure) {
            status.push_str("; ");
            status.push_str(failure);
        }
        Known { standing, generation, status: notice::printable(status.as_bytes()) }
    }
}

impl Known {
    /// What to tell a manager that knows `before`, and whether more than the status is new. `clock` is the time of
    /// `CLOCK_MONOTONIC`, by which the manager sees that this is the reload that it has asked for.
    #[must_use]
    pub fn since(&self, before: &Self, clock: Duration) -> (String, bool) {
        let mut message = String::new();
        let has_changed = self.standing != before.standing;
        // One that is over already counts too: the manager may be waiting for it.
        let has_reloaded = self.generation != before.generation;
        match self.standing {
            Standing::Starting => {}
            Standing::Stopping if has_changed => message.push_str("STOPPING=1\n"),
            Standing::Stopping => {}
            Standing::Ready | Standing::Reloading => {
                if has_reloaded {
                    let _ = writeln!(message, "RELOADING=1\nMONOTONIC_USEC={}", notice::to_microseconds(clock));
                }
                if self.standing == Standing::Ready && (has_changed || has_reloaded) {
                    message.push_str("READY=1\n");
                }
            }
        }
        let is_urgent = !message.is_empty();
        if self.status != before.status {
            message.push_str("STATUS=");
            message.push_str(&self.status);
            message.push('\n');
        }
        (message, is_urgent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signals::Signal;
    use crate::supervisor::actions::Actions;
    use crate::supervisor::stop::Schedule;
    use crate::supervisor::{Effect, End, Event, Policy, Ready, Settings, WorkerId};

    /// A supervisor, and what its manager knows.
    struct Told {
        supervisor: Supervisor,
        known: Known,
        started: Vec<WorkerId>,
        failure: Option<String>,
    }

    impl Told {
        fn new(workers: u32) -> Self {
            let stop = Schedule::standard();
            let policy = Policy { ready: Ready::Exec, ..Policy::default() };
            let settings = Settings {
                workers,
                most_workers: 10,
                policy,
                reload_stop: stop.clone(),
                silent_stop: stop.clone(),
                stop,
                have_own_queues: false,
                actions: Actions::supervise(),
                seed: 1,
            };
            let supervisor = Supervisor::new(settings, Duration::ZERO);
            let mut told = Self { supervisor, known: Known::default(), started: Vec::new(), failure: None };
            told.happens(Event::Time);
            told
        }

        /// All that comes of an event, as long as nothing has to be waited for.
        fn happens(&mut self, event: Event) {
            let mut events = vec![event];
            while let Some(event) = events.pop() {
                for effect in self.supervisor.handle(Duration::from_secs(1), event) {
                    if let Effect::Spawn { worker, .. } = &effect {
                        self.started.push(*worker);
                    } else if let Effect::LoadGeneration(generation, _) = &effect {
                        events.push(match self.failure.clone() {
                            None => Event::GenerationLoaded(*generation),
                            Some(failure) => Event::GenerationRefused(*generation, failure),
                        });
                    } else if effect == Effect::LookForRemaining {
                        events.push(Event::NothingRemains);
                    }
                }
            }
        }

        /// The last one that was started is ready.
        fn is_ready(&mut self) {
            self.happens(Event::Executed(*self.started.last().unwrap()));
        }

        fn ends(&mut self, worker: WorkerId) {
            self.happens(Event::Exited { worker, end: End::Exited(3), group_left: false });
        }

        /// What is sent now.
        #[track_caller]
        fn sends(&mut self, expected: &str) {
            let known = self.supervisor.to_be_known(Duration::ZERO, self.failure.as_deref());
            let (message, is_urgent) = known.since(&self.known, Duration::new(7, 1_234_999));
            assert_eq!(message, expected);
            assert_eq!(is_urgent, message.contains("=1\n"), "{message}");
            self.known = known;
            assert_eq!(self.known.since(&self.known, Duration::ZERO), (String::new(), false));
        }
    }

    const RELOADING: &str = "RELOADING=1\nMONOTONIC_USEC=7001234\n";

    #[test]
    fn ready_comes_once_all_workers_are_and_never_again_for_a_crash() {
        let mut told = Told::new(2);
        told.sends("STATUS=starting 0 of 2\n");
        let [first, second] = told.started[..] else { panic!("{:?}", told.started) };
        told.happens(Event::Executed(first));
        told.sends("STATUS=starting 1 of 2\n");
        told.happens(Event::Executed(second));
        told.sends("READY=1\nSTATUS=2 workers ready, generation 1\n");
        told.ends(first);
        told.sends("STATUS=running, 1 of 2 ready\n");
        told.is_ready();
        told.sends("STATUS=2 workers ready, generation 1\n");
    }

    #[test]
    fn a_reload_begins_with_its_time_and_ends_with_ready() {
        let mut told = Told::new(1);
        told.is_ready();
        told.sends("READY=1\nSTATUS=1 worker ready, generation 1\n");
        told.happens(Event::Signal(Signal::HUP));
        told.sends(&format!("{RELOADING}STATUS=reloading 0 of 1 to generation 2\n"));
        // Asked for during the first: the manager waits for one that began after it had asked.
        told.happens(Event::Signal(Signal::HUP));
        told.sends("");
        told.is_ready();
        told.sends(&format!("{RELOADING}STATUS=reloading 0 of 1 to generation 3\n"));
        let old = told.started[1];
        told.ends(told.started[0]);
        told.is_ready();
        told.ends(old);
        told.sends("READY=1\nSTATUS=1 worker ready, generation 3\n");
    }

    #[test]
    fn a_reload_that_has_failed_ends_with_ready_too_and_the_status_says_why_in_one_line() {
        let mut told = Told::new(1);
        told.is_ready();
        told.sends("READY=1\nSTATUS=1 worker ready, generation 1\n");
        // It is over before anything could be sent.
        told.failure = Some("no\nSTOPPING=1 \u{e4}\u{1b}".to_owned());
        told.happens(Event::Signal(Signal::HUP));
        told.sends(&format!("{RELOADING}READY=1\nSTATUS=1 worker ready, generation 1; no STOPPING=1 \u{e4} \n"));
        told.failure = Some("x".repeat(5000));
        told.happens(Event::Signal(Signal::HUP));
        let known = told.supervisor.to_be_known(Duration::ZERO, told.failure.as_deref());
        assert!(known.status.len() <= 200, "{known:?}");
    }

    #[test]
    fn a_reload_before_all_have_been_ready_puts_ready_off_and_is_not_told_before() {
        let mut told = Told::new(2);
        told.sends("STATUS=starting 0 of 2\n");
        told.happens(Event::Signal(Signal::HUP));
        told.sends("STATUS=reloading 0 of 2 to generation 2\n");
    }

    #[test]
    fn stopping_is_said_once_whatever_comes_after_it() {
        let mut told = Told::new(1);
        told.is_ready();
        told.sends("READY=1\nSTATUS=1 worker ready, generation 1\n");
        told.happens(Event::Signal(Signal::HUP));
        told.happens(Event::Signal(Signal::TERM));
        told.sends("STOPPING=1\nSTATUS=stopping 2 workers\n");
        told.ends(told.started[0]);
        told.sends("STATUS=stopping 1 worker\n");
        told.ends(told.started[1]);
        told.sends("STATUS=stopping 0 workers\n");
    }

    #[test]
    fn a_stop_that_is_over_at_once_is_told_all_the_same() {
        let mut told = Told::new(1);
        told.sends("STATUS=starting 0 of 1\n");
        // The second one is to start later: there is no process.
        told.ends(told.started[0]);
        told.ends(told.started[1]);
        told.happens(Event::Signal(Signal::TERM));
        told.sends("STOPPING=1\nSTATUS=stopping 0 workers\n");
    }
}
