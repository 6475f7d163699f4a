//! A server that knows nothing of panzer, eight times in an image with nothing else in it.

use std::collections::BTreeSet;

use crate::support::binders::word;
use crate::support::engine::Container;
use crate::support::load::{self, Load, LoadOptions};
use crate::support::{process, wait_until};

/// What an orchestrator that trusts nobody takes away.
const LOCKED: &[&str] = &["--user", "1000", "--cap-drop", "all", "--read-only", "--security-opt", "no-new-privileges"];
const AS_ROOT: &[&str] = &["--user", "0"];

/// The server, eight times, and every one ready.
#[track_caller]
fn server(options: &[&str]) -> Container {
    let container = Container::start("panzer-server", options, &[]);
    container.wait_line("all 8 workers are ready");
    container
}

#[test]
#[ignore = "run by scripts/test-containers"]
fn a_scratch_image_serves_eight_times_as_root_and_as_nobody_much() {
    for options in [AS_ROOT, LOCKED] {
        let container = server(options);
        let workers = container.wait_workers(8);
        if options == LOCKED {
            for pid in workers.iter().chain(&[container.pid()]) {
                let field = |name| process::status_field(*pid, name).unwrap();
                assert_eq!((field("NoNewPrivs").as_str(), field("CapEff").trim_start_matches('0')), ("1", ""));
                assert_eq!(field("Uid"), "1000\t1000\t1000\t1000");
            }
        }
        let load = Load::start(container.at(8080), LoadOptions { connections: 16, ..LoadOptions::default() });
        let mut answered = BTreeSet::new();
        wait_until("there were many answers, and some of each", || {
            answered.extend(load::one(&container.at(8080).into()).ok().map(|body| word(&body, "pid=")));
            load.count() > 2000 && answered.len() == 8
        });
        let report = load.stop();
        assert_eq!(report.lost(), 0, "{report}");
        assert!(container.exec(&["/bin/panzer", "ctl", "ready"]).status.success());

        process::send_signal(workers[3], libc::SIGKILL);
        container.wait_line("was killed by SIGKILL; starting a new one");
        wait_until("there is another one", || {
            let now = container.workers();
            now.len() == 8 && !now.contains(&workers[3])
        });
        assert!(!container.log().contains("out of memory"), "somebody else's KILL is not called so");
        container.must(&["stop"]);
        assert_eq!(container.status(), 0);
    }
}

#[test]
#[ignore = "run by scripts/test-containers"]
fn a_stop_lets_a_server_end_gracefully_and_is_status_0() {
    for options in [AS_ROOT, LOCKED] {
        let container = server(options);
        // podman would kill after this time, with status 137. It does not: nobody waits for anything.
        container.must(&["stop", "--time", "50"]);
        assert_eq!(container.status(), 0);
        let log = container.log();
        assert!(log.contains("SIGTERM: stopping 8 workers") && log.contains("everything has stopped"), "{log}");
        assert!(!log.contains("did not end in time"), "{log}");
    }
}

#[test]
#[ignore = "run by scripts/test-containers"]
fn hup_reloads_without_loss() {
    for options in [AS_ROOT, LOCKED] {
        let container = server(options);
        let before = container.wait_workers(8);
        let load = Load::start(container.at(8080), LoadOptions::default());
        wait_until("there are answers", || load.count() > 100);
        for generation in [2, 3] {
            container.must(&["kill", "--signal", "HUP"]);
            container.wait_line(&format!("reloaded: all 8 workers are of generation {generation}"));
        }
        wait_until("the old ones are gone", || {
            let now = container.workers();
            now.len() == 8 && now.iter().all(|pid| !before.contains(pid))
        });
        let report = load.stop();
        assert_eq!(report.lost(), 0, "{report}");
        assert!(report.answered_by.len() > 8, "{report}");
        container.must(&["stop"]);
        assert_eq!(container.status(), 0);
    }
}

#[test]
#[ignore = "run by scripts/test-containers"]
fn a_health_check_asks_panzer() {
    let check = |container: &Container| container.podman(&["healthcheck", "run"]).status.code();
    let container = server(LOCKED);
    assert_eq!(check(&container), Some(0));
    assert_eq!(container.inspect("{{.State.Health.Status}}"), "healthy");
    // One that never gets ready is unhealthy after so many tries, once its time to start is over.
    let start = ["--env", "PANZER_READY=notify", "--health-cmd", r#"["/bin/panzer", "ctl", "ready"]"#];
    let options = [&start[..], &["--health-start-period", "0s", "--health-retries", "2"]].concat();
    let container = Container::start("panzer-server", &options, &[]);
    container.wait_workers(8);
    assert_eq!([check(&container), check(&container)], [Some(1), Some(1)]);
    assert_eq!(container.inspect("{{.State.Health.Status}}"), "unhealthy");
}
