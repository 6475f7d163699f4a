//! What has happened so far, counted: why workers were started again, how reloads ended, how long starts and stops took.
//!
//! Pure. Numbers only grow. Must never decide anything.

use std::time::Duration;

use super::{End, Failure, Why};

/// Why a slot has another worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// It ended with a status that counts as success.
    Exit,
    /// It ended with another one.
    Failure,
    /// A signal killed it.
    Signal,
    /// Its command could not be executed.
    CannotRun,
    /// It was not ready in time.
    NotReady,
    /// It was silent for too long.
    Watchdog,
    /// It was too old.
    MaxAge,
    /// It used too much memory.
    MaxRss,
    /// Somebody has asked for another one.
    Asked,
    /// A reload has replaced it.
    Reload,
    /// There were to be fewer.
    Scale,
}

/// Those that are counted as restarts; reloads have numbers of their own.
pub const RESTARTS: [Cause; 9] = [
    Cause::Exit,
    Cause::Failure,
    Cause::Signal,
    Cause::CannotRun,
    Cause::NotReady,
    Cause::Watchdog,
    Cause::MaxAge,
    Cause::MaxRss,
    Cause::Asked,
];

impl Cause {
    /// Its name in the status.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::Failure => "failure",
            Self::Signal => "signal",
            Self::CannotRun => "cannot_run",
            Self::NotReady => "not_ready",
            Self::Watchdog => "watchdog",
            Self::MaxAge => "max_age",
            Self::MaxRss => "max_rss",
            Self::Asked => "asked",
            Self::Reload => "reload",
            Self::Scale => "scale",
        }
    }

    /// That of a life that ended by itself.
    #[must_use]
    pub fn of_end(end: &End, success: bool) -> Self {
        match end {
            End::Exited(_) if success => Self::Exit,
            End::Exited(_) => Self::Failure,
            End::Killed { .. } => Self::Signal,
            End::CannotRun(_) => Self::CannotRun,
        }
    }

    /// That of a life that failed.
    #[must_use]
    pub fn of_failure(failure: &Failure) -> Self {
        match failure {
            Failure::Ended(end) => Self::of_end(end, false),
            Failure::NotReady(..) => Self::NotReady,
            Failure::Silent(_) | Failure::NotEnded => Self::Watchdog,
        }
    }

    /// That of a worker that was replaced without having failed.
    #[must_use]
    pub fn of_replacement(why: Option<Why>) -> Self {
        match why {
            Some(Why::Age(_)) => Self::MaxAge,
            Some(Why::Memory(_)) => Self::MaxRss,
            Some(Why::Asked) => Self::Asked,
            None => Self::Reload,
        }
    }
}

/// The upper bounds of a histogram's buckets in milliseconds; the last one has none.
pub const BOUNDS: [u64; 10] = [10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, u64::MAX];

/// How long something took, each time.
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// How often it took no longer than each of [`BOUNDS`].
    pub counts: [u64; BOUNDS.len()],
    /// All in all.
    pub sum: Duration,
}

impl Histogram {
    /// It has taken so long once more.
    pub fn add(&mut self, time: Duration) {
        self.sum += time;
        let milliseconds = time.as_secs() * 1000 + u64::from(time.subsec_millis());
        for (count, bound) in self.counts.iter_mut().zip(BOUNDS) {
            *count += u64::from(milliseconds <= bound);
        }
    }
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    /// How often each of [`RESTARTS`] was the cause.
    pub restarts: [u64; RESTARTS.len()],
    /// How many reloads have ended well.
    pub reloads_ok: u64,
    /// How many have not.
    pub reloads_failed: u64,
    /// From a worker's start until it was ready.
    pub time_to_ready: Histogram,
    /// From the moment that a worker was told to stop until it had.
    pub time_to_stop: Histogram,
}

impl Statistics {
    /// A slot has another worker for this cause.
    pub fn count_restart(&mut self, cause: Cause) {
        for (count, known) in self.restarts.iter_mut().zip(RESTARTS) {
            *count += u64::from(known == cause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_what_is_no_longer_than_each_bound() {
        let mut histogram = Histogram::default();
        for milliseconds in [0, 10, 11, 250, 100_001] {
            histogram.add(Duration::from_millis(milliseconds));
        }
        assert_eq!(histogram.counts, [2, 3, 3, 4, 4, 4, 4, 4, 4, 5]);
        assert_eq!(histogram.sum, Duration::from_millis(100_272));
    }

    #[test]
    fn causes_have_names_and_are_counted_by_them() {
        let mut statistics = Statistics::default();
        for cause in [Cause::Exit, Cause::Asked, Cause::Asked, Cause::Reload] {
            statistics.count_restart(cause);
        }
        assert_eq!(statistics.restarts, [1, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!([Cause::Watchdog, Cause::Reload, Cause::Scale].map(Cause::name), ["watchdog", "reload", "scale"]);
    }
}
