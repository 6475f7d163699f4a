//! `podman pause`: the kernel stops all of a container, panzer and workers, and time goes on.

use std::thread;
use std::time::Duration;

use crate::support::engine::Container;
use crate::support::{holds_for, wait_until};

/// Longer than any of the times that panzer gives a worker here.
const PAUSE: Duration = Duration::from_secs(3);

fn pause(container: &Container) {
    container.must(&["pause"]);
    thread::sleep(PAUSE);
    container.must(&["unpause"]);
}

#[test]
#[ignore = "run by scripts/test-containers"]
fn nobody_is_taken_for_silent_after_a_pause() {
    let options = ["--network", "none"];
    let args = "-n 3 --ready notify --watchdog 2500ms -- probe - notify=READY=1 beat=/enough sleep";
    let container = Container::start("panzer-tools", &options, &args.split(' ').collect::<Vec<&str>>());
    container.wait_line("all 3 workers are ready");
    let workers = container.wait_workers(3);
    for _ in 0..2 {
        pause(&container);
        holds_for(Duration::from_secs(1), "the workers are the same", || container.workers() == workers);
    }
    assert!(!container.log().contains("silent"), "{}", container.log());
    // Who is silent of his own is found as before.
    assert!(container.exec(&["sh", "-c", "touch /enough"]).status.success());
    container.wait_line("was silent for 2.5s; sent SIGABRT, ");
    wait_until("all are replaced", || container.workers().iter().all(|pid| !workers.contains(pid)));
    container.must(&["stop", "--time", "50"]);
    container.status();
}

#[test]
#[ignore = "run by scripts/test-containers"]
fn nobody_is_taken_for_late_after_a_pause() {
    let options = ["--network", "none"];
    let script = "sleep 1; exec probe - notify=READY=1 sleep";
    let args = ["-n", "2", "--ready", "notify", "--ready-timeout", "2900ms", "--", "sh", "-c", script];
    let container = Container::start("panzer-tools", &options, &args);
    let workers = container.wait_workers(2);
    pause(&container);
    container.wait_line("all 2 workers are ready");
    assert_eq!(container.workers(), workers);
    assert!(!container.log().contains("was not ready"), "{}", container.log());
    container.must(&["stop", "--time", "50"]);
    assert_eq!(container.status(), 0);
}
