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
    pub fn to_be_known(&self, failure: Option<&str>) -> Known {
        let standing = match &self.phase {
            Phase::Running if self.reached < Reached::AllReady => Standing::Starting,
            Phase::Running if self.reload.is_some() => Standing::Reloading,
            Phase::Running => Standing::Ready,
            Phase::Stopping(_) | Phase::Clearing(..) | Phase::Finished => Standing::Stopping,
        };
        // A manager that waits for the start is told of no reload before.
        let generation = if standing == Standing::Starting { Generation::FIRST } else { self.last_generation };
        let overview = self.overview();
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
