//! Which slots get new connections, where each has a queue of its own.
//!
//! Pure. Must never leave a connection to a slot where nobody will answer it while another slot could.

use std::time::Duration;

use super::worker::{Slot, State};

/// Connections wait for a worker that comes no later than this.
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

/// What happens to those of each slot. While nobody is ready all of them take what comes.
pub(super) fn queues(slots: &[Slot], now: Duration) -> Vec<QueueState> {
    if !slots.iter().any(|slot| matches!(slot.state, State::Ready { .. })) {
        return vec![QueueState::Serving; slots.len()];
    }
    let queue_of = |slot: &Slot| match slot.state {
        State::Ready { .. } => QueueState::Serving,
        State::Starting { .. } | State::Draining(_) => QueueState::Held,
        State::Waiting { until } if until <= now + SOON => QueueState::Held,
        State::Waiting { .. } | State::Ended => QueueState::Abandoned,
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
    if both.is_empty() { listening.to_vec() } else { both }
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
