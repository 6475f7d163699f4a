//! How everything is just now, for whoever asks.
//!
//! Pure. Must never change anything; processes and their use of the machine are `linux`'s to add.

use std::time::Duration;

use super::report::Workers;
use super::statistics::Statistics;
use super::worker::{LastEnd, Life, Slot, State};
use super::{Generation, Phase, Reached, Supervisor};

/// panzer as a whole.
#[derive(Clone, Debug)]
pub struct Overview {
    /// `starting`, `running`, `reloading` or `stopping`.
    pub state: &'static str,
    /// The same for people: `reloading 1 of 3 to generation 2`.
    pub doing: String,
    /// What a slot that is added starts with.
    pub generation: Generation,
    /// How many workers there are to be.
    pub workers: u32,
    /// How many slots have a ready worker.
    pub ready: u32,
}

/// A life, or the time until a slot's next.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Which one.
    pub life: &'a Life,
    /// `waiting`, `starting`, `ready`, `stopping` or `ended`.
    pub state: &'static str,
    /// Its slot, where this is the slot's first row.
    pub slot: Option<&'a Slot>,
    /// It has a process, or its group has.
    pub has_process: bool,
    /// How the life before ended.
    pub last_end: Option<&'a LastEnd>,
}

impl Supervisor {
    /// How panzer is as a whole.
    #[must_use]
    pub fn overview(&self) -> Overview {
        let ready = self.wanted_slots().filter(|slot| slot.current.is_ready()).count();
        let ready = u32::try_from(ready).unwrap_or(u32::MAX);
        let (state, doing) = match (&self.phase, self.reload_progress()) {
            (Phase::Running, Some((generation, done, of))) => {
                ("reloading", format!("reloading {done} of {of} to generation {}", generation.0))
            }
            (Phase::Running, None) if self.reached < Reached::AllReady => {
                ("starting", format!("starting {ready} of {}", self.wanted))
            }
            (Phase::Running, None) => ("running", "running".to_owned()),
            (Phase::Stopping(_) | Phase::Clearing(..) | Phase::Finished, _) => {
                let count = u32::try_from(self.leaving.len()).unwrap_or(u32::MAX);
                ("stopping", format!("stopping {}", Workers(count)))
            }
        };
        Overview { state, doing, generation: self.generation, workers: self.wanted, ready }
    }

    /// All lives, slot by slot: the one that has it, the one that is to follow, those that are leaving.
    #[must_use]
    pub fn rows(&self) -> Vec<Row<'_>> {
        let mut rows = Vec::new();
        for slot in &self.slots {
            let leaving = self.leaving.iter().filter(|leaving| leaving.worker.slot == slot.number);
            let is_there = slot.number < self.wanted && self.is_running();
            let own = slot.lives().filter(|life| is_there || life.has_process());
            let mut lives: Vec<(&Life, &'static str)> = own.map(|life| (life, state(life))).collect();
            lives.extend(leaving.map(|leaving| (&leaving.life, "stopping")));
            let slots_own = slot.current.worker.life;
            let mut is_first = true;
            for (life, state) in lives {
                let has_process = state == "stopping" || life.has_process();
                let first = std::mem::take(&mut is_first).then_some(slot);
                let last_end = slot.last_end.as_ref().filter(|_| life.worker.life == slots_own);
                rows.push(Row { life, state, slot: first, has_process, last_end });
            }
        }
        rows
    }

    /// What has happened so far.
    #[must_use]
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }
}

fn state(life: &Life) -> &'static str {
    match life.state {
        State::Waiting { .. } => "waiting",
        State::Starting { .. } => "starting",
        State::Ready { .. } => "ready",
        State::Ended => "ended",
    }
}

impl Row<'_> {
    /// How long it has been there.
    #[must_use]
    pub fn age(&self, now: Duration) -> Option<Duration> {
        self.has_process.then(|| now.saturating_sub(self.life.began))
    }
}
