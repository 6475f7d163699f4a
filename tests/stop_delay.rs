//! `--stop-delay`: workers go on for a while after a stop was asked for, and nobody new is sent to them.

use std::collections::BTreeSet;

use crate::control::status::all_ready;
use crate::metrics::served;
use crate::support::binders::word;
use crate::support::control::{assert_fails, head, printed};
use crate::support::http::get;
use crate::support::json::Json;
use crate::support::lives::{GATED, READY, Service, pids};
use crate::support::load::{self, Load, LoadOptions};
use crate::support::panzer::{Running, shell_status};
use crate::support::ports::local;
use crate::support::worker::{panzer, sh, text};
use crate::support::{example, process, wait_for, wait_until};

/// `hello` on a port of panzer's.
fn hello(options: &str) -> Running {
    let running = panzer(&format!("{options} -l 127.0.0.1:0"), &[text(example("hello"))]).start();
    running.wait_status("all are ready", all_ready);
    running
}

/// Asks for a stop that is to come much later.
#[track_caller]
fn ask_for_a_stop(running: &Running, signal: i32) {
    running.signal(signal);
    running.wait_line(" workers in 1h\n");
}

fn is_stopping(status: &Json) -> bool {
    head(status, "state").text() == "stopping"
}

#[test]
fn workers_serve_during_the_delay_and_a_dead_one_is_replaced() {
    for balance in ["shared", "per-worker"] {
        let running = hello(&format!("-n 2 --ready exec --backoff 0:0 --stop-delay 1h --balance {balance}"));
        let (port, lives) = (running.port(), pids(&running.wait_generation(1, 2)));
        ask_for_a_stop(&running, libc::SIGTERM);
        let load = Load::start(local(port), LoadOptions::default());
        wait_until("requests are answered", || load.count() >= 20);
        assert_eq!(load.stop().lost(), 0, "{balance}: before the kill");
        assert_eq!(pids(&running.wait_generation(1, 2)), lives, "{balance}: nobody was told to stop");
        let new = running.kill_worker(0);
        running.wait_status("the new one is ready", |status| head(status, "ready").number() == 2);
        let mut workers = BTreeSet::new();
        wait_until("both answer again", || {
            workers.extend(load::one(&local(port).into()).ok().map(|body| word(&body, "pid=")));
            [new, lives[1]].iter().all(|pid| workers.contains(&pid.to_string()))
        });
        // The second one is not for later.
        running.ends_with(libc::SIGTERM, 0);
        assert_eq!(running.count_lines(&["SIGTERM: stopping 2 workers"]), 2, "{}", running.stderr());
        assert_eq!(running.count_lines(&["in 1h"]), 1, "{}", running.stderr());
    }
}

#[test]
fn when_the_delay_is_over_the_schedule_begins() {
    let service = Service::start("-n 2 --ready fd --stop-delay 300ms --stop TERM", READY);
    service.running.wait_status("all are ready", all_ready);
    service.end();
    let (said, later, now) = ("SIGTERM: stopping 2 workers", " in 300ms\n", "\n");
    let stderr = service.running.stderr();
    let at = |end: &str| stderr.find(&format!("{said}{end}"));
    assert!(at(later).is_some() && at(later) < at(now), "first that it will, then that it does: {stderr}");
}

#[test]
fn panzer_is_not_ready_from_the_first_moment_and_says_why() {
    let (service, addr) = served("-n 2 --ready fd --stop-delay 1h", READY);
    let running = &service.running;
    wait_until("it is ready", || get(&addr, "/readyz").is_ok_and(|answer| answer.status == 200));
    assert_eq!(printed(&running.ctl("ready"), 0), "2 of 2 workers are ready\n");
    assert_eq!(printed(&running.ctl("stop"), 0), "stopping in 1h\n");
    let line = "panzer: cannot be ready: panzer is stopping\n";
    for words in ["ready", "ready --min 1", "ready --min 0"] {
        let output = running.ctl(words);
        assert_fails(&output, 1, &[]);
        assert_eq!(output.stderr, line, "{words}");
    }
    // What serves it may have been told how everything was a moment ago.
    let answer = wait_for("it is not ready", || get(&addr, "/readyz").ok().filter(|answer| answer.status != 200));
    assert_eq!((answer.status, answer.body.as_str()), (503, "stopping\n"));
    assert_eq!(get(&addr, "/livez").unwrap().status, 200);
    let status = running.status();
    assert!(is_stopping(&status), "{status:?}");
    assert!(head(&status, "doing").text().starts_with("stopping in "), "{status:?}");
    assert_eq!(head(&status, "ready").number(), 2, "its workers are: {status:?}");
    let states: Vec<&str> = status.get("workers").list().iter().map(|row| row.get("state").text()).collect();
    assert_eq!(states, ["ready", "ready"]);
    let table = running.ctl("status");
    assert!(printed(&table, 0).contains(": stopping in "), "{table:?}");
    assert!(get(&addr, "/metrics").unwrap().body.contains("\npanzer_workers{state=\"ready\"} 2\n"));
    service.end();
}

#[test]
fn nothing_new_is_begun_during_the_delay() {
    let service = Service::start("-n 2 --ready fd --stop-delay 1h", READY);
    let running = &service.running;
    let lives = running.wait_generation(1, 2);
    running.wait_status("all are ready", all_ready);
    ask_for_a_stop(running, libc::SIGTERM);
    for (words, what) in [
        ("reload", "reload"),
        ("reload --wait", "reload"),
        ("scale 3", "scale"),
        ("scale 1", "scale"),
        ("restart 0", "restart a worker"),
    ] {
        let output = running.ctl(words);
        assert_fails(&output, 1, &[]);
        assert_eq!(output.stderr, format!("panzer: cannot {what}: panzer is stopping\n"));
    }
    for signal in [libc::SIGHUP, libc::SIGUSR1, libc::SIGTTIN, libc::SIGTTOU] {
        running.signal(signal);
    }
    running.settle();
    // A signal to the workers is no new beginning.
    assert_eq!(printed(&running.ctl("signal CONT"), 0), "sent SIGCONT to 2 workers\n");
    assert_eq!(running.lives(), lives);
    assert!(is_stopping(&running.status()));
    service.end();
}

#[test]
fn a_second_request_of_any_kind_ends_the_delay_and_begins_the_schedule() {
    for (first, second) in [(libc::SIGINT, libc::SIGTERM), (libc::SIGTERM, libc::SIGINT), (libc::SIGTERM, 0)] {
        let service = Service::start("-n 2 --ready fd --stop-delay 1h", READY);
        service.running.wait_status("all are ready", all_ready);
        ask_for_a_stop(&service.running, first);
        match second {
            0 => assert_eq!(printed(&service.running.ctl("stop"), 0), "stopping 2 workers\n"),
            signal => service.running.signal(signal),
        }
        assert_eq!(shell_status(service.running.wait_exit()), 0, "{first} {second}: {}", service.running.stderr());
    }
}

#[test]
fn stop_now_does_not_wait_and_two_ints_are_that() {
    for signals in [&[libc::SIGQUIT][..], &[libc::SIGTERM, libc::SIGQUIT], &[libc::SIGINT, libc::SIGINT]] {
        let service = Service::start("-n 2 --ready fd --stop-delay 1h", READY);
        service.running.wait_status("all are ready", all_ready);
        let (last, first) = signals.split_last().unwrap();
        first.iter().for_each(|signal| ask_for_a_stop(&service.running, *signal));
        service.running.ends_with(*last, 137);
        assert!(service.running.stderr().contains(": killing 2 workers\n"), "{signals:?}");
    }
}

#[test]
fn after_a_kill_of_panzer_in_the_delay_the_guard_clears_at_once() {
    // Deaf to what the kernel itself sends them.
    let script = "exec $PROBE - ignore=15 ready sleep >/dev/null";
    let service = Service::start("-n 2 --ready fd --stop-delay 1h --stop TERM/1/KILL", script);
    let running = &service.running;
    running.wait_status("all are ready", all_ready);
    let lives = running.lives();
    ask_for_a_stop(running, libc::SIGTERM);
    running.kill();
    running.wait_exit();
    wait_until("all of panzer's processes are gone", || running.leftovers().is_empty());
    assert!(!pids(&lives).into_iter().any(process::alive));
    assert!(running.stderr().contains("panzer is gone; stopping what it left (TERM/1/KILL)"), "{}", running.stderr());
}

#[test]
fn a_reload_that_is_under_way_goes_on_and_the_one_behind_it_is_dropped() {
    let service = Service::start("-n 2 --ready fd --stop-delay 1h", GATED);
    let running = &service.running;
    running.wait_generation(1, 2);
    running.wait_status("all are ready", all_ready);
    let waiting = running.ctl_command("reload --wait").start();
    running.wait_line("reloading 2 workers as generation 2");
    running.signal(libc::SIGHUP);
    running.wait_line("once more after it");
    ask_for_a_stop(running, libc::SIGTERM);
    service.touch("go.0");
    service.touch("go.1");
    running.wait_generation(2, 2);
    assert_eq!(shell_status(waiting.wait_exit()), 0, "{}", waiting.stderr());
    running.settle();
    assert!(!running.stderr().contains("as asked for meanwhile"), "{}", running.stderr());
    service.end();
}

#[test]
fn who_ends_everything_does_so_in_the_delay_too() {
    // A fatal status, and the last worker that has done its work.
    for (options, status) in [("--fatal-exit 7", 7), ("--restart never", 7)] {
        let script = "exec $PROBE - ready wait=$DIR/go exit=7 >/dev/null";
        let service = Service::start(&format!("-n 1 --ready fd --stop-delay 1h {options}"), script);
        service.running.wait_status("all are ready", all_ready);
        service.running.signal(libc::SIGTERM);
        service.running.wait_line(" 1 worker in 1h\n");
        service.touch("go");
        assert_eq!(shell_status(service.running.wait_exit()), status, "{options}: {}", service.running.stderr());
    }
}

#[test]
fn check_tells_of_the_delay() {
    let said = |options: &str| panzer(&format!("--check -n 1 {options}"), &sh("exit")).run().stdout;
    assert!(said("--stop-delay 5s").contains("\n  stop delay: 5s\n"));
    assert!(!said("").contains("delay"));
}
