//! What the scenarios are written with: starting panzer, looking at processes, waiting for a
//! condition, an exact load client.

pub(crate) mod attack;
pub(crate) mod binders;
pub(crate) mod control;
pub(crate) mod engine;
pub(crate) mod http;
pub(crate) mod json;
pub(crate) mod lives;
pub(crate) mod load;
pub(crate) mod panzer;
pub(crate) mod ports;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod report;
pub(crate) mod scratch;
pub(crate) mod systemd;
pub(crate) mod worker;
pub(crate) mod yaml;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The path of a built example, which stands beside the program under test.
pub(crate) fn example(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_BIN_EXE_panzer")).parent().expect("a file in a directory");
    let path = directory.join("examples").join(name);
    assert!(path.exists(), "{} is missing: run cargo build --examples", path.display());
    path
}

/// How long anything is waited for: `TEST_DEADLINE_SECS`, or `default`.
pub(crate) fn deadline_or(default: Duration) -> Duration {
    std::env::var("TEST_DEADLINE_SECS")
        .ok()
        .and_then(|seconds| seconds.parse().ok())
        .map_or(default, Duration::from_secs)
}

/// Waits until the condition holds, and panics with `what` when it does not within 20 seconds.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// Waits until there is a value, and panics with `what` when there is none within 20 seconds.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let limit = deadline_or(Duration::from_secs(20));
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(Instant::now() < end, "waited {limit:?} in vain: {what}");
        thread::sleep(POLL_INTERVAL);
    }
}

/// Makes sure that the condition holds all through a span of time.
#[track_caller]
pub(crate) fn holds_for(span: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + span;
    while Instant::now() < end {
        assert!(condition(), "no longer true: {what}");
        thread::sleep(POLL_INTERVAL);
    }
}
