//! Releases that are bad, and what waits in the queue of a worker that is told to end.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use super::{ABRUPT, BALANCES, HELLO, LOOPS, Service, dropped};
use crate::balance::Waiting;
use crate::support::binders::stop;
use crate::support::load::{self, Addr, Load, LoadOptions};
use crate::support::ports::{free_port, local};
use crate::support::scratch::Scratch;
use crate::support::worker::{panzer, text};
use crate::support::{example, holds_for, process, wait_until};

// Bad releases

/// Makes `current` the release of this name, in one step.
fn release(directory: &Path, name: &str) {
    let new = directory.join("new");
    symlink(name, &new).unwrap();
    fs::rename(new, directory.join("current")).unwrap();
}

/// Why a reload does not come to its end, each with the release that is named so.
const BAD: [(&str, &str, &str); 4] = [
    ("absent", "cannot run ", ": No such file or directory"),
    ("not-executable", "cannot run ", ": Permission denied"),
    ("dies", "worker 0 (pid ", ") ended with status 3"),
    ("never-ready", "worker 0 (pid ", ") was not ready within 4s"),
];

#[test]
fn while_a_bad_release_is_tried_the_old_workers_answer_everything() {
    for balance in BALANCES {
        let scratch = Scratch::new();
        let port = free_port();
        let scripts = [
            ("good", format!("exec {} 127.0.0.1:{port}", text(example("hello"))), 0o755),
            ("not-executable", "exit 0".to_string(), 0o644),
            ("dies", "exit 3".to_string(), 0o755),
            ("never-ready", "exec sleep 100000".to_string(), 0o755),
        ];
        for (name, script, mode) in scripts {
            let path = scratch.write(name, &format!("#!/bin/sh\n{script}\n"));
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        release(scratch.directory(), "good");
        let options = format!("-n 3 --balance {balance} --ready bind --ready-timeout 4s");
        let running = panzer(&options, &[text(scratch.path("current"))]).start();
        let addr = Addr::Tcp(local(port));
        running.wait_line("all 3 workers are ready\n");
        let load = Load::start(addr.clone(), LoadOptions { connections: LOOPS, ..LoadOptions::default() });
        let mut generation = 1;
        let more = || {
            let before = load.count();
            wait_until("there is a load", || load.count() > before + 100);
        };
        more();
        let old = running.wait_slots(3);
        for (name, front, back) in BAD {
            release(scratch.directory(), name);
            generation += 1;
            running.signal(libc::SIGHUP);
            running.wait_line(&format!("panzer: cannot reload to generation {generation}: {front}"));
            running.wait_line(back);
            running.wait_lines("; the old workers stay\n", generation - 1);
            more();
            assert_eq!(load.lost(), 0, "{balance}, {name}");
            wait_until("the old workers are there, and nobody else", || {
                running.slots() == old && running.workers().len() == 3
            });
        }
        release(scratch.directory(), "good");
        generation += 1;
        running.signal(libc::SIGHUP);
        running.wait_line(&format!("panzer: reloaded: all 3 workers are of generation {generation}\n"));
        wait_until("no old worker is left", || old.values().all(|pid| !process::alive(*pid)));
        let new = running.wait_slots(3);
        assert!(load::one(&addr).unwrap().contains(&format!(" generation={generation}\n")));
        more();
        let report = load.stop();
        println!("{balance}: {} bad releases: {report}", BAD.len());
        assert_eq!(report.lost(), 0, "{balance}: {report}");
        let known: Vec<u32> = old.values().chain(new.values()).copied().collect();
        assert!(report.answered_by.keys().all(|pid| known.contains(pid)), "{report:?}");
        running.ends_with(libc::SIGTERM, 0);
    }
}

// What waits in a queue

const WAITING: usize = 40;
/// How long a worker that is to be told is watched not to be told, while something waits at it: the queue has ten seconds.
const WATCH: Duration = Duration::from_millis(500);

/// Whether a stopped worker has a TERM before it.
fn is_told(worker: u32) -> bool {
    process::signals_in(worker, "ShdPnd").is_some_and(|signals| signals.contains(&15))
}

/// Checks that all were answered, some of them by this worker, and returns how many were dropped all the same: a worker
/// that has accepted one and does not get to run may be told before it has answered it, and says so.
#[track_caller]
fn all_answered(waiting: Waiting, by: &str) -> u64 {
    let (answered, reset, closed) = waiting.all_ends();
    assert_eq!(answered.values().sum::<usize>() + reset + closed, WAITING, "{answered:?}");
    assert!(answered.contains_key(by), "{answered:?}");
    u64::try_from(reset + closed).unwrap()
}

/// The port that a service listens on.
fn port(service: &Service) -> u16 {
    match &service.addr {
        Addr::Tcp(addr) => addr.port(),
        Addr::Unix(path) => panic!("{} is no port", path.display()),
    }
}

#[test]
fn per_worker_what_waits_at_a_worker_that_is_reloaded_is_answered_by_its_next_life() {
    for app in [ABRUPT, HELLO] {
        let Some(service) = Service::start(app, "per-worker", "") else { return };
        let mut resets = 0;
        for (generation, slot) in (2..).zip([1, 0, 2]) {
            let slots = service.running.wait_slots(3);
            stop(slots[&slot]);
            let waiting = Waiting::at(port(&service), WAITING);
            service.running.signal(libc::SIGHUP);
            service.wait_said(&format!("reloaded: all 3 workers are of generation {generation}"));
            resets += all_answered(waiting, &slot.to_string());
            wait_until("no old worker is left", || slots.values().all(|pid| !process::alive(*pid)));
            service.wait_answers(3);
        }
        service.running.ends_with(libc::SIGTERM, 0);
        assert_eq!(dropped(&service.running.stderr()), resets, "none that waited was reset");
    }
}

#[test]
fn per_worker_what_waits_at_a_worker_that_is_one_too_many_is_answered_before_it_is_told() {
    for app in [ABRUPT, HELLO] {
        let Some(service) = Service::start(app, "per-worker", "") else { return };
        let mut resets = 0;
        for _ in 0..3 {
            let slots = service.running.wait_slots(3);
            stop(slots[&2]);
            let waiting = Waiting::at(port(&service), WAITING);
            service.scale(libc::SIGTTOU, 2);
            holds_for(WATCH, "it is not told", || process::alive(slots[&2]) && !is_told(slots[&2]));
            // It is out of rotation: the others answer whatever comes now.
            service.running.settle();
            for _ in 0..WAITING {
                let body = load::one(&service.addr).unwrap_or_else(|failure| panic!("{failure}"));
                assert!(!body.contains("worker=2 "), "{body}");
            }
            process::send_signal(slots[&2], libc::SIGCONT);
            resets += all_answered(waiting, "2");
            wait_until("it has ended", || !process::alive(slots[&2]));
            service.wait_answers(2);
            service.scale(libc::SIGTTIN, 3);
            service.wait_answers(3);
        }
        service.running.ends_with(libc::SIGTERM, 0);
        assert_eq!(dropped(&service.running.stderr()), resets, "none that waited was reset");
    }
}

#[test]
fn shared_what_waits_while_workers_are_replaced_is_answered_by_others() {
    for app in [ABRUPT, HELLO] {
        let Some(service) = Service::start(app, "shared", "") else { return };
        let mut resets = 0;
        for generation in 2..5 {
            let slots = service.running.wait_slots(3);
            for worker in slots.values() {
                stop(*worker);
            }
            let waiting = Waiting::at(port(&service), WAITING);
            service.running.signal(libc::SIGHUP);
            service.wait_said(&format!("reloaded: all 3 workers are of generation {generation}"));
            let (answered, reset) = waiting.ends();
            assert_eq!(answered.values().sum::<usize>() + reset, WAITING, "{answered:?}");
            resets += reset;
            wait_until("no old worker is left", || slots.values().all(|pid| !process::alive(*pid)));
            service.wait_answers(3);
        }
        service.running.ends_with(libc::SIGTERM, 0);
        // One that was stopped in accept may take a connection before it sees its TERM.
        assert_eq!(resets as u64, dropped(&service.running.stderr()));
    }
}
