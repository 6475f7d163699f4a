//! Choices that differ from run to run, and can be made again.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Numbers that look random, from a seed (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    /// Takes the seed from `TEST_SEED`, or from the clock, and prints it.
    pub(crate) fn new() -> Random {
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock past 1970").as_micros().to_string();
        let seed = std::env::var("TEST_SEED").unwrap_or_else(|_| clock());
        println!("TEST_SEED={seed}");
        Random(seed.parse().expect("TEST_SEED is a number"))
    }

    /// Another sequence, which follows from this one.
    pub(crate) fn derived(&mut self) -> Random {
        Random(self.below(u64::MAX))
    }

    /// A number from 0 to `limit` - 1.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    /// Keeps busy for a time of less than `limit`, so that what comes next hits another moment.
    pub(crate) fn spin(&mut self, limit: Duration) {
        let limit = u64::try_from(limit.as_nanos()).expect("a short time");
        let end = Instant::now() + Duration::from_nanos(self.below(limit));
        while Instant::now() < end {
            std::hint::spin_loop();
        }
    }
}
