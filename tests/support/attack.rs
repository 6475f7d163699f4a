//! An attack: the same again and again, in threads of its own, while something else goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::random::Random;

/// How many threads attack, and how often each does it at the least.
const ATTACKERS: u32 = 2;
const ROUNDS: u32 = 3;

/// Attacks until this has been done, however that ends.
#[track_caller]
pub(crate) fn while_attacked(attack: impl Fn(&mut Random) + Sync, goes_on: impl FnOnce()) {
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let mut random = Random::new();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = Ends(&over);
        for _ in 0..ATTACKERS {
            let (mut random, over, attack) = (random.derived(), &over, &attack);
            scope.spawn(move || {
                let mut rounds = 0;
                while !over.load(Ordering::Relaxed) || rounds < ROUNDS {
                    attack(&mut random);
                    rounds += 1;
                }
            });
        }
        goes_on();
    });
}
