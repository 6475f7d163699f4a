//! When a dead worker is started again: policy, backoff and jitter.
//!
//! Pure: randomness comes from a seed, time is told.

use std::time::Duration;

/// A worker that was ready for so long has its earlier failures forgotten.
pub const GOOD_LIFE: Duration = Duration::from_secs(60);

/// Whether a worker that ended is started again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Restart {
    /// Whatever it ended with.
    Always,
    /// Unless it ended with status 0, or one named by `--ok-exit`.
    OnFailure,
    /// Never: each slot lives once.
    Never,
}

/// The delay before a restart: none after the first failure, then `min`, doubling up to `max`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backoff {
    /// After the second failure in a row.
    pub min: Duration,
    /// Never longer than this.
    pub max: Duration,
}

impl Backoff {
    /// The delay after this many failures in a row. Jitter takes away up to half of it, so that workers that died
    /// together do not all come back together; it never adds.
    pub fn delay(&self, failures: u32, random: &mut Random) -> Duration {
        if failures <= 1 {
            return Duration::ZERO;
        }
        let doublings = (failures - 2).min(31);
        let full = self.min.saturating_mul(1 << doublings).min(self.max);
        let half = full / 2;
        half + random.up_to(full - half)
    }
}

/// A small generator of numbers for jitter (splitmix64): the same seed gives the same numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A time of at most this.
    pub fn up_to(&mut self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX - 1);
        Duration::from_nanos(self.draw() % (most + 1))
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(30) };

    #[test]
    fn the_first_restart_is_at_once_then_the_delay_doubles_up_to_its_bound() {
        let mut random = Random::new(1);
        assert_eq!(BACKOFF.delay(1, &mut random), Duration::ZERO);
        for failures in 2..80 {
            let full = BACKOFF.min.saturating_mul(1_u32.checked_shl(failures - 2).unwrap_or(u32::MAX)).min(BACKOFF.max);
            for _ in 0..100 {
                let delay = BACKOFF.delay(failures, &mut random);
                assert!(delay <= full && delay >= full / 2, "{failures}: {delay:?} of {full:?}");
            }
        }
    }

    #[test]
    fn jitter_uses_the_whole_half() {
        let mut random = Random::new(7);
        let delays: Vec<_> = (0..1000).map(|_| BACKOFF.delay(2, &mut random).as_millis()).collect();
        assert!(*delays.iter().min().unwrap() < 53 && *delays.iter().max().unwrap() > 97);
    }

    #[test]
    fn a_backoff_of_nothing_is_nothing() {
        let none = Backoff { min: Duration::ZERO, max: Duration::ZERO };
        assert_eq!(none.delay(50, &mut Random::new(3)), Duration::ZERO);
    }
}
