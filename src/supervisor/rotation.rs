//! Which slots get new connections, where each has a queue of its own.
//!
//! Pure. Must never leave a connection to a slot where nobody will answer it while another slot could.

use std::time::Duration;

use super::leaving::{Leaving, Others};
use super::worker::{Life, Slot, State};

/// Connections wait for a worker that comes no later than this, where others could have taken them.
pub const SOON: Duration = Duration::from_secs(1);

/// What happens to the connections of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueueState {
    /// New ones come.
    Serving,
    /// New ones go to others; those that wait will be answered by the worker that is there, or will be soon.
    Held,
    /// New ones go to others; those that wait are let go of, since nobody will answer them soon.
    Abandoned,
}

/// Whether an old worker of this slot is being let empty its queue, or has just been told to stop.
fn is_kept_out(leaving: &[Leaving], slot: u32) -> bool {
    leaving.iter().any(|leaving| leaving.worker.slot == slot && leaving.keeps_slot_out())
}

fn serves(slot: &Slot, leaving: &[Leaving]) -> bool {
    slot.current.is_ready() && !slot.current.is_stopping && !is_kept_out(leaving, slot.number)
}

/// Whether any slot takes new connections because its worker is there for them.
pub(super) fn somebody_serves(slots: &[Slot], leaving: &[Leaving]) -> bool {
    slots.iter().any(|slot| serves(slot, leaving))
}

/// Who else could take the new connections of this slot, of which `wanted` are to be.
pub(super) fn others(slots: &[Slot], leaving: &[Leaving], wanted: u32, number: u32) -> Others {
    let others = || slots.iter().filter(|slot| slot.number != number);
    if others().any(|slot| serves(slot, leaving)) {
        Others::Serve
    } else if !others().any(|slot| slot.current.is_ready()) {
        Others::Nobody
    } else if number < wanted {
        Others::Rest
    } else {
        // While nobody serves, a slot that rests does; one that is not wanted any more does not.
        Others::Serve
    }
}

/// What happens to the connections of each slot. While nobody is ready all that are wanted take what comes.
pub(super) fn queues(slots: &[Slot], leaving: &[Leaving], wanted: u32, now: Duration) -> Vec<QueueState> {
    let has_old_worker =
        |number: u32| leaving.iter().any(|leaving| leaving.worker.slot == number && !leaving.is_orphaned);
    let is_served_soon = |slot: &Slot| {
        let starts_soon = matches!(slot.current.state, State::Waiting { until } if until <= now + SOON);
        starts_soon || slot.lives().any(Life::has_process) || has_old_worker(slot.number)
    };
    let somebody_serves = somebody_serves(slots, leaving);
    let somebody_is_ready = slots.iter().any(|slot| slot.current.is_ready());
    let takes_new_ones = |slot: &Slot| {
        if somebody_serves {
            serves(slot, leaving)
        } else if somebody_is_ready {
            slot.current.is_ready()
        } else {
            slot.number < wanted
        }
    };
    let queue_of = |slot: &Slot| {
        if takes_new_ones(slot) {
            QueueState::Serving
        } else if is_served_soon(slot) {
            QueueState::Held
        } else {
            QueueState::Abandoned
        }
    };
    slots.iter().map(queue_of).collect()
}

/// The slots that take new connections at one port. `listening` are those whose life is known to listen there; none where
/// that cannot be known.
///
/// Of the slots that serve, those that listen. While none of these does, any that listens: a worker that is ready may have
/// this port still to come.
#[must_use]
pub fn serving(states: &[QueueState], listening: &[u32]) -> Vec<u32> {
    let serving = (0..).zip(states).filter(|(_, state)| **state == QueueState::Serving).map(|(slot, _)| slot);
    let serving: Vec<u32> = serving.collect();
    if listening.is_empty() {
        return serving;
    }
    let both: Vec<u32> = serving.into_iter().filter(|slot| listening.contains(slot)).collect();
    if !both.is_empty() {
        return both;
    }
    let mut all = listening.to_vec();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::QueueState::{Abandoned, Held, Serving};
    use super::*;

    #[test]
    fn a_port_is_served_by_those_who_are_ready_and_listen_there() {
        for (states, listening, expected) in [
            (&[Serving, Serving, Serving][..], &[][..], &[0, 1, 2][..]),
            (&[Serving, Held, Abandoned], &[], &[0]),
            (&[Serving, Serving, Serving], &[1], &[1]),
            (&[Serving, Held, Serving], &[0, 1, 2], &[0, 2]),
            // Ready by its age, and the only one who listens is about to be.
            (&[Serving, Held, Held], &[2], &[2]),
            (&[], &[1], &[1]),
            (&[], &[], &[]),
        ] {
            assert_eq!(serving(states, listening), expected, "{states:?} {listening:?}");
        }
    }
}
