//! Which slots get new connections, where each has a queue of its own.
//!
//! Pure. Must never leave a connection to a slot where nobody will answer it while another slot could.

use std::time::Duration;

use super::worker::{Slot, State};

/// Connections wait for a worker that comes no later than this.
pub const SOON: Duration = Duration::from_secs(1);

/// What happens to the connections of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Queue {
    /// New ones come.
    Serving,
    /// New ones go to others; those that wait will be answered by the worker that is there, or will be soon.
    Held,
    /// New ones go to others; those that wait are let go of, since nobody will answer them soon.
    Abandoned,
}

/// What happens to those of each slot. While nobody is ready all of them take what comes.
pub(super) fn queues(slots: &[Slot], now: Duration) -> Vec<Queue> {
    if !slots.iter().any(|slot| matches!(slot.state, State::Ready { .. })) {
        return vec![Queue::Serving; slots.len()];
    }
    let queue_of = |slot: &Slot| match slot.state {
        State::Ready { .. } => Queue::Serving,
        State::Starting { .. } | State::Draining(_) => Queue::Held,
        State::Waiting { until } if until <= now + SOON => Queue::Held,
        State::Waiting { .. } | State::Ended => Queue::Abandoned,
    };
    slots.iter().map(queue_of).collect()
}
