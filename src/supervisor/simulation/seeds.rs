//! Runs a model for every seed, and counts what happened in it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::supervisor::restart::Random;

pub(super) const SIMULATIONS: u64 = 100_000;

pub(super) fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Draws from the seed.
pub(super) struct Dice(pub(super) Random);

impl Dice {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0.draw() % bound
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(super) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()].clone()
    }
}

/// How often each kind of thing happened, by name.
pub(super) type Tally = BTreeMap<&'static str, u64>;

pub(super) fn simulations() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("PANZER_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("PANZER_SIMULATIONS").unwrap_or(SIMULATIONS)).collect(),
    }
}

/// Runs `one` for every seed on all cores and adds up what happened; says which seed failed. Where many were run, each
/// thing of `expected` must have happened: a model that never gets there proves nothing.
pub(super) fn for_each_seed(one: fn(u64) -> Tally, expected: &[&str]) {
    let seeds = simulations();
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let mut total = Tally::new();
    std::thread::scope(|scope| {
        let run_part = |part: &[u64]| {
            let mut tally = Tally::new();
            for seed in part {
                match std::panic::catch_unwind(|| one(*seed)) {
                    Ok(happened) => add(&mut tally, &happened),
                    Err(_) => panic!("seed {seed} failed; replay it with PANZER_SEED={seed} cargo test simulation"),
                }
            }
            tally
        };
        let parts = seeds.chunks(seeds.len().div_ceil(threads).max(1));
        let threads: Vec<_> = parts.map(|part| scope.spawn(move || run_part(part))).collect();
        for thread in threads {
            add(&mut total, &thread.join().expect("a seed failed"));
        }
    });
    eprintln!("{} schedules: {total:?}", seeds.len());
    if seeds.len() > 1000 {
        for name in expected {
            assert!(total.get(name).is_some_and(|count| *count > 100), "{name} hardly ever happens in the model");
        }
    }
}

pub(super) fn add(total: &mut Tally, happened: &Tally) {
    for (name, count) in happened {
        *total.entry(name).or_insert(0) += count;
    }
}
