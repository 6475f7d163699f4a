//! How everything is just now, for whoever asks.
//!
//! Pure. Must never change anything; processes and their use of the machine are `linux`'s to add.

use std::time::Duration;

use super::report::{In, Workers};
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
    pub fn overview(&self, now: Duration) -> Overview {
        let ready = self.wanted_slots().filter(|slot| slot.current.is_ready()).count();
        let ready = u32::try_from(ready).unwrap_or(u32::MAX);
        let (state, doing) = match (&self.phase, self.reload_progress()) {
            (Phase::Running, _) if self.stop_at.is_some() => {
                let at = self.stop_at.map_or(now, |(at, _)| at);
                ("stopping", format!("stopping {}", In(at.saturating_sub(now))))
            }
            (Phase::Running, Some((generation, done, of))) => {
                ("reloading", format!("reloading {done} of {of} to generation {}", generation.0))
            }
            (Phase::Running, None) if self.reached < Reached::AllReady => {
                ("starting", format!("starting {ready} of {}", self.wanted))
            }
            (Phase::Running, None) if ready < self.wanted => {
                ("running", format!("running, {ready} of {} ready", self.wanted))
            }
            (Phase::Running, None) => ("running", "running".to_owned()),
            (Phase::Stopping(_) | Phase::Clearing(..) | Phase::Finished, _) => {
                let count = u32::try_from(self.leaving.len()).unwrap_or(u32::MAX);
                ("stopping", format!("stopping {}", Workers(count)))
            }
        };
        Overview { state, doing, generation: self.generation, workers: self.wanted, ready }
    }

    /// Shows all lives, slot by slot: the one that has it, the one that is to follow, those that are leaving.
    pub fn each_row(&self, show: &mut dyn FnMut(&Row<'_>)) {
        for slot in &self.slots {
            let mut first = Some(slot);
            let mut show = |life: &Life, state, has_process| {
                let last_end = slot.last_end.as_ref().filter(|_| life.worker.life == slot.current.worker.life);
                show(&Row { life, state, slot: first.take(), has_process, last_end });
            };
            let is_there = slot.number < self.wanted && self.is_running();
            for life in slot.lives() {
                if is_there || life.has_process() {
                    show(life, state(life), life.has_process());
                }
            }
            for leaving in &self.leaving {
                if leaving.worker.slot == slot.number {
                    show(&leaving.life, "stopping", true);
                }
            }
        }
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
