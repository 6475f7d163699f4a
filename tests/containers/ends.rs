//! The container's status is how it ended.

use crate::support::engine::{Container, run_once};

/// What runs in the container ends by itself.
#[test]
#[ignore = "run by scripts/test-containers"]
fn an_end_by_itself_is_told_by_the_containers_status() {
    for (args, status) in [
        // Init mode: the child's own.
        (&["--", "sh", "-c", "exit 0"][..], 0),
        (&["--", "sh", "-c", "exit 7"], 7),
        (&["--", "sh", "-c", "kill -TERM $$"], 143),
        (&["--", "sh", "-c", "kill -KILL $$"], 137),
        (&["--ok-exit", "143", "--", "sh", "-c", "kill -TERM $$"], 0),
        // panzer refuses, cannot execute, does not find.
        (&["--bogus"], 125),
        (&["--", "/etc/hosts"], 126),
        (&["--", "/no/such/server"], 127),
        (&["-n", "2", "--bogus", "--", "true"], 125),
        (&["-n", "2", "--", "/etc/hosts"], 126),
        (&["-n", "2", "--", "no-such-server"], 127),
        // Supervise mode: what gives up says with what.
        (&["-n", "2", "--crash-limit", "3", "--backoff", "0:0", "--", "sh", "-c", "exit 9"], 9),
        (&["-n", "2", "--fatal-exit", "42", "--", "sh", "-c", "exit 42"], 42),
    ] {
        let (found, text) = run_once("panzer-tools", &[], args);
        assert_eq!(found, status, "{args:?}: {text}");
        assert!(!(125..=127).contains(&status) || text.contains("panzer: cannot "), "{args:?}: {text}");
    }
}

#[test]
#[ignore = "run by scripts/test-containers"]
fn a_stop_is_0_or_137_where_something_had_to_be_killed() {
    const DEAF: &[&str] =
        &["-n", "2", "--ready", "exec", "--stop", "TERM/1/KILL", "--", "hello", "127.0.0.1:80", "--deaf"];
    const GOOD: &[&str] = &["-n", "2", "--ready", "bind", "--", "hello", "127.0.0.1:80"];
    for (args, line, stop, status) in [
        (GOOD, "all 2 workers are ready", &["stop", "--time", "50"][..], 0),
        (GOOD, "all 2 workers are ready", &["kill", "--signal", "INT"], 0),
        (GOOD, "all 2 workers are ready", &["kill", "--signal", "QUIT"], 137),
        (DEAF, "all 2 workers are ready", &["stop", "--time", "50"], 137),
        // The engine loses its patience first.
        (GOOD, "all 2 workers are ready", &["kill", "--signal", "KILL"], 137),
    ] {
        let container = Container::start("panzer-tools", &["--network", "none"], args);
        container.wait_line(line);
        container.must(stop);
        assert_eq!(container.status(), status, "{args:?} {stop:?}");
    }
}

#[test]
#[ignore = "run by scripts/test-containers"]
fn in_init_mode_a_stop_is_the_childs_own_end() {
    for (script, status) in [
        ("echo up; sleep 1000", 143),
        ("trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done", 0),
        ("trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done", 3),
    ] {
        let container = Container::start("panzer-tools", &["--network", "none"], &["--", "sh", "-c", script]);
        container.wait_line("up");
        container.must(&["stop", "--time", "50"]);
        assert_eq!(container.status(), status, "{script}");
    }
}
