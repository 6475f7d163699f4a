//! Reloads: new workers take the places of old ones, slot by slot, and what fails leaves the old ones where they are.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::binders::Binders;
use crate::support::lives::{GATED, Life, READY, Service, pids, places};
use crate::support::load::{self, Failure};
use crate::support::ports::{free_port, local};
use crate::support::report::recorded;
use crate::support::scratch::Scratch;
use crate::support::worker::{panzer, text};
use crate::support::{holds_for, process, wait_until};

/// How long a thing that must not happen is watched for.
const WATCH: Duration = Duration::from_millis(300);

/// A worker that takes its time: it says that it is ready when the file is there, and when it is told to end it says so
/// first. There is a file `ready.PID` from before panzer can know until the worker knows.
const SLOW: &str = "exec $PROBE - touch=$DIR/ready.$$ ready until=15 remove=$DIR/ready.$$ exit=0 >/dev/null";

/// A directory with an env-dir in it.
fn with_env(colour: &str) -> Scratch {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("env")).unwrap();
    scratch.write("env/COLOUR", colour);
    scratch
}

/// How many workers are ready by what they know themselves.
fn ready_files(directory: &Path) -> usize {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_str().unwrap().starts_with("ready.")).count()
}

/// Where this stands in a text.
#[track_caller]
fn position(text: &str, part: &str) -> usize {
    text.find(part).unwrap_or_else(|| panic!("no {part:?} in {text}"))
}

/// When a process was started, in milliseconds.
fn started(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    // In hundredths of a second, the 22nd field (`proc_pid_stat(5)`).
    rest.split_ascii_whitespace().nth(19).unwrap().parse::<u64>().unwrap() * 10
}

// Generations

#[test]
fn a_reload_replaces_all_workers_slot_by_slot_and_counts_the_generation() {
    let service = Service::start("-n 3 --ready fd -l 127.0.0.1:0", READY);
    let mut before = service.running.wait_generation(1, 3);
    service.wait_line("all 3 workers are ready");
    for (generation, (signal, name)) in
        (2..).zip([(libc::SIGHUP, "SIGHUP"), (libc::SIGUSR1, "SIGUSR1"), (libc::SIGHUP, "SIGHUP")])
    {
        service.running.signal(signal);
        service.wait_line(&format!("panzer: {name}: reloading 3 workers as generation {generation}\n"));
        service.wait_line(&format!("panzer: reloaded: all 3 workers are of generation {generation}\n"));
        let after = service.running.wait_generation(generation, 3);
        let stderr = service.running.stderr();
        let mut last = 0;
        for (old, new) in before.iter().zip(&after) {
            wait_until("the old one is gone", || !old.is_alive());
            let line = format!("panzer: worker {} (pid {}) is ready; stopping pid {}\n", new.slot, new.pid, old.pid);
            assert!(last < position(&stderr, &line), "slots in order: {stderr}");
            last = position(&stderr, &line);
            for name in ["PANZER_GENERATION", "SERVER_STARTER_GENERATION"] {
                assert_eq!(new.env(name), Some(generation.to_string()));
            }
            assert_eq!(new.env("PANZER_WORKER_COUNT").as_deref(), Some("3"));
        }
        before = after;
    }
    for words in ["ended", "was killed"] {
        assert_eq!(service.running.count_lines(&[words]), 0, "an old worker's end is nothing to tell of");
    }
    service.end();
}

#[test]
fn a_worker_that_dies_keeps_its_generation_and_the_env_dir_is_read_at_reloads_only() {
    let service = Service::start_in(with_env("red"), "-n 2 --ready fd --backoff 0:0 --env-dir $DIR/env", READY);
    service.wait_line("all 2 workers are ready");
    service.scratch.write("env/COLOUR", "blue");
    service.scratch.write("env/SHAPE", "round");
    service.running.kill_worker(1);
    for life in service.running.wait_generation(1, 2) {
        assert_eq!((life.env("COLOUR").as_deref(), life.env("SHAPE")), (Some("red"), None));
    }
    for life in service.reload(2, 2) {
        assert_eq!((life.env("COLOUR").as_deref(), life.env("SHAPE").as_deref()), (Some("blue"), Some("round")));
    }
    fs::remove_file(service.scratch.path("env/SHAPE")).unwrap();
    service.scratch.write("env/COLOUR", "green");
    service.running.kill_worker(0);
    for life in service.running.wait_generation(2, 2) {
        assert_eq!((life.env("COLOUR").as_deref(), life.env("SHAPE").as_deref()), (Some("blue"), Some("round")));
    }
    for life in service.reload(3, 2) {
        assert_eq!((life.env("COLOUR").as_deref(), life.env("SHAPE")), (Some("green"), None));
    }
    service.end();
}

#[test]
fn on_gives_the_reload_to_another_signal() {
    let service = Service::start("-n 1 --ready fd --on WINCH=reload --on HUP=ignore --on USR1=forward:URG", READY);
    service.wait_line("the worker is ready");
    service.running.signal(libc::SIGHUP);
    service.running.signal(libc::SIGUSR1);
    service.running.settle();
    service.running.signal(libc::SIGWINCH);
    service.wait_line("SIGWINCH: reloading 1 worker as generation 2\n");
    service.running.wait_generation(2, 1);
    service.end();
}

#[test]
fn the_lines_of_a_reload_have_their_levels_and_events() {
    let script = "[ $PANZER_GENERATION = 2 ] && exit 7\nexec $PROBE - ready sleep >/dev/null";
    let service = Service::start("-n 1 --ready fd --log-format json --reload-tries 2 --backoff 0:0", script);
    service.running.wait_generation(1, 1);
    service.wait_line("the worker is ready");
    service.running.signal(libc::SIGHUP);
    service.wait_line("the old workers stay");
    service.reload(3, 1);
    service.end();
    for [level, event] in [
        ["info", "reloading"],
        ["warning", "reload_retry"],
        ["error", "reload_failed"],
        ["info", "worker_replaced"],
        ["info", "reloaded"],
    ] {
        let words = [format!("\"level\":\"{level}\""), format!("\"event\":\"{event}\"")];
        assert!(service.running.count_lines(&[&words[0], &words[1]]) > 0, "{level} {event}");
    }
}

#[test]
fn a_reload_starts_a_worker_where_none_runs() {
    let script = "[ $PANZER_GENERATION = 1 ] && [ -e $DIR/broken ] && exit 7\nexec $PROBE - ready sleep >/dev/null";
    let service = Service::start("-n 2 --ready fd --backoff 1h:1h", script);
    service.wait_line("all 2 workers are ready");
    service.touch("broken");
    let slots = service.running.wait_slots(2);
    process::send_signal(slots[&1], libc::SIGKILL);
    service.wait_line("ended with status 7; starting a new one in ");
    service.reload(2, 2);
    service.end();
}

#[test]
fn a_reload_before_the_first_workers_are_ready_ends_with_new_ones() {
    let script = "exec $PROBE - wait=$DIR/go ready sleep >/dev/null";
    let service = Service::start("-n 2 --ready fd", script);
    service.running.wait_generation(1, 2);
    service.running.signal(libc::SIGHUP);
    service.wait_line("SIGHUP: reloading 2 workers as generation 2\n");
    service.touch("go");
    service.wait_line("reloaded: all 2 workers are of generation 2\n");
    service.running.wait_generation(2, 2);
    service.end();
}

// How many at once

#[test]
fn never_more_than_the_surge_beyond_n_and_never_fewer_than_n_ready() {
    for (options, surge) in [("", 1), ("--surge 2", 2), ("--surge 10", 10)] {
        let service = Service::start(&format!("-n 3 --ready fd {options}"), SLOW);
        service.wait_line("all 3 workers are ready");
        let mut most = 0;
        for generation in 2..6 {
            let all = format!("reloaded: all 3 workers are of generation {generation}\n");
            service.running.signal(libc::SIGHUP);
            wait_until("the reload has ended", || {
                let (lives, ready) = (service.running.lives(), ready_files(service.scratch.directory()));
                assert!(lives.len() <= 3 + surge, "{options}: {lives:?}");
                assert!(ready >= 3, "{options}: only {ready} are ready: {lives:?}");
                most = most.max(lives.len());
                service.running.stderr().contains(&all) && places(&lives) == [0, 1, 2].map(|slot| (generation, slot))
            });
        }
        println!("{options}: at most {most} at once");
        service.end();
    }
}

#[test]
fn the_surge_says_how_many_new_workers_are_started_at_once() {
    for (options, at_once) in [("", 1), ("--surge 2", 2), ("--surge 9", 4)] {
        let service = Service::start(&format!("-n 4 --ready fd {options}"), GATED);
        service.wait_line("all 4 workers are ready");
        service.running.signal(libc::SIGHUP);
        let expected: Vec<(u32, u32)> =
            (0..4).map(|slot| (1, slot)).chain((0..at_once).map(|slot| (2, slot))).collect();
        service.running.wait_places(&expected);
        holds_for(WATCH, "no more are started", || places(&service.running.lives()) == expected);
        for slot in 0..4 {
            service.touch(&format!("go.{slot}"));
        }
        service.wait_line("reloaded: all 4 workers are of generation 2\n");
        service.running.wait_generation(2, 4);
        service.end();
    }
}

#[test]
fn an_old_worker_that_takes_long_to_end_counts_until_it_is_gone() {
    // Deaf to the first signal, until there is a file.
    let script = "[ $PANZER_GENERATION = 1 ] || exec $PROBE - ready sleep >/dev/null
exec $PROBE - ready until=15 wait=$DIR/over.$PANZER_WORKER_ID exit=0 >/dev/null";
    let service = Service::start("-n 2 --ready fd --reload-stop TERM", script);
    service.wait_line("all 2 workers are ready");
    service.running.signal(libc::SIGHUP);
    service.wait_line("is ready; stopping pid ");
    let expected = [(1, 0), (1, 1), (2, 0)];
    service.running.wait_places(&expected);
    holds_for(WATCH, "the next slot waits", || places(&service.running.lives()) == expected);
    service.touch("over.0");
    service.wait_line("reloaded: all 2 workers are of generation 2\n");
    service.running.wait_places(&[(1, 1), (2, 0), (2, 1)]);
    service.touch("over.1");
    service.running.wait_generation(2, 2);
    service.end();
}

#[test]
fn kill_old_delay_lets_both_work_for_a_while() {
    let port = free_port();
    let steps = format!("tcp4 bind=127.0.0.1:{port} listen=511 serve sleep");
    for (options, ends) in [("--kill-old-delay 500ms", true), ("--kill-old-delay 1h", false)] {
        let all = Binders::start(&format!("-n 1 --ready bind {options}"), &steps);
        all.running.wait_line("the worker is ready");
        let old = all.running.wait_generation(1, 1)[0];
        all.running.signal(libc::SIGHUP);
        if ends {
            all.running.wait_generation(2, 1);
            wait_until("the old one is gone", || !old.is_alive());
        } else {
            let both = all.running.wait_places(&[(1, 0), (2, 0)]);
            let mut answered = BTreeSet::new();
            wait_until("both have answered", || {
                match load::one(&local(port).into()) {
                    Ok(body) => answered.insert(crate::support::binders::word(&body, "pid=")),
                    Err(Failure::TimedOut) => false,
                    Err(failure) => panic!("{failure}"),
                };
                answered.len() == 2
            });
            assert_eq!(answered, both.iter().map(|life| life.pid.to_string()).collect());
            assert!(old.is_alive());
            assert_eq!(all.running.count_lines(&["reloaded: "]), 0);
        }
        all.end();
    }
}

#[test]
fn while_the_old_worker_works_on_it_has_its_slot_again_when_the_new_one_dies() {
    let service = Service::start("-n 2 --ready fd --kill-old-delay 1h", READY);
    let old = service.running.wait_generation(1, 2);
    service.running.wait_line("all 2 workers are ready");
    for generation in [2, 3] {
        service.running.signal(libc::SIGHUP);
        let both = service.running.wait_places(&[(1, 0), (1, 1), (generation, 0)]);
        service.wait_line(&format!("worker 0 (pid {}) is ready; pid {} is to stop in 1h", both[2].pid, both[0].pid));
        service.running.settle();
        process::send_signal(both[2].pid, libc::SIGKILL);
        service.wait_line(&format!("worker 0 (pid {}) was killed by SIGKILL; pid {} goes on", both[2].pid, old[0].pid));
        service.wait_line(&format!("cannot reload to generation {generation}: worker 0 (pid {})", both[2].pid));
        assert_eq!(service.running.wait_generation(1, 2), old);
    }
    // It is a worker as any other.
    process::send_signal(old[0].pid, libc::SIGKILL);
    let again = service.running.wait_lives("a new one of the first generation", |lives| {
        places(lives) == [(1, 0), (1, 1)] && lives[0].pid != old[0].pid
    });
    assert_eq!(again[1], old[1]);
    service.end();
}

#[test]
fn per_worker_a_new_worker_takes_over_the_queue_of_its_slot() {
    for declared in [false, true] {
        let port = free_port();
        let (option, steps) = if declared {
            (format!("-l 127.0.0.1:{port}"), "fd=3 listen=511 inode serve sleep".to_string())
        } else {
            (String::new(), format!("tcp4 bind=127.0.0.1:{port} listen=511 inode serve sleep"))
        };
        let all = Binders::start(&format!("-n 2 --balance per-worker --ready bind {option}"), &steps);
        all.wait_all(2, "serve -> ok");
        for generation in 2..4 {
            let old = all.running.wait_generation(generation - 1, 2);
            all.running.signal(libc::SIGHUP);
            all.running.wait_line(&format!("reloaded: all 2 workers are of generation {generation}\n"));
            all.running.wait_generation(generation, 2);
            // The threads of a process that is ending may still accept (and drop) what comes.
            wait_until("the old ones are reaped", || old.iter().all(|life| process::stat(life.pid).is_none()));
            all.wait_answers(&local(port).into(), 2);
        }
        let inodes = [0, 1].map(|slot| all.values(slot, "inode", 3).into_iter().collect::<BTreeSet<_>>());
        assert!(inodes.iter().all(|of_slot| of_slot.len() == 1) && inodes[0] != inodes[1], "{declared}: {inodes:?}");
        all.end();
    }
}

#[test]
fn with_stagger_no_two_starts_are_closer_together() {
    // Between panzer's look at the clock and its fork there may be something else to do.
    const APART: u64 = 150;
    let service = Service::start("-n 4 --ready fd --surge 4 --backoff 0:0 --stagger 300ms", READY);
    let apart = |lives: &[Life]| {
        let mut times: Vec<u64> = lives.iter().map(|life| started(life.pid)).collect();
        times.sort_unstable();
        assert!(times.windows(2).all(|two| two[0] + APART <= two[1]), "{times:?}");
    };
    let first = service.running.wait_generation(1, 4);
    apart(&first);
    service.wait_line("all 4 workers are ready");
    for life in &first[1..] {
        process::send_signal(life.pid, libc::SIGKILL);
    }
    let second = service.running.wait_lives("all are replaced", |lives| {
        lives.len() == 4 && lives.iter().filter(|life| first.contains(life)).count() == 1
    });
    apart(&second);
    apart(&service.reload(2, 4));
    service.end();
}

// Reloads and stops while one is under way

#[test]
fn reloads_that_are_asked_for_during_one_are_done_once_more() {
    let service = Service::start("-n 2 --ready fd", GATED);
    service.wait_line("all 2 workers are ready");
    service.running.signal(libc::SIGHUP);
    service.running.wait_places(&[(1, 0), (1, 1), (2, 0)]);
    for _ in 0..2 {
        service.running.signal(libc::SIGHUP);
        service.wait_line("SIGHUP: a reload is under way; once more after it\n");
        service.running.settle();
    }
    assert_eq!(service.running.count_lines(&["generation 3"]), 0, "it waits");
    service.touch("go.0");
    service.touch("go.1");
    service.wait_line("reloaded: all 2 workers are of generation 2\n");
    service.wait_line("reloaded: all 2 workers are of generation 3\n");
    let lives = service.running.wait_generation(3, 2);
    service.running.settle();
    holds_for(WATCH, "there is no other one", || service.running.lives() == lives);
    assert_eq!(service.running.count_lines(&["generation 4"]), 0);
    service.reload(4, 2);
    service.end();
}

#[test]
fn a_reload_that_was_asked_for_during_one_that_fails_is_done_all_the_same() {
    let script = "[ $PANZER_GENERATION = 2 ] && exec $PROBE - wait=$DIR/go exit=7 >/dev/null
exec $PROBE - ready sleep >/dev/null";
    let service = Service::start("-n 2 --ready fd", script);
    service.wait_line("all 2 workers are ready");
    service.running.signal(libc::SIGHUP);
    service.running.wait_places(&[(1, 0), (1, 1), (2, 0)]);
    service.running.signal(libc::SIGHUP);
    service.wait_line("a reload is under way; once more after it\n");
    service.touch("go");
    service.wait_line("cannot reload to generation 2: ");
    service.wait_line("reloaded: all 2 workers are of generation 3\n");
    service.running.wait_generation(3, 2);
    service.end();
}

#[test]
fn a_stop_during_a_reload_stops_everything() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        for options in ["", "--surge 3"] {
            let service = Service::start(&format!("-n 3 --ready fd {options}"), GATED);
            service.wait_line("all 3 workers are ready");
            service.running.signal(libc::SIGHUP);
            service.running.wait_lives("a new one is there", |lives| lives.iter().any(|life| life.generation == 2));
            // One that waits for its turn, too.
            service.running.signal(libc::SIGHUP);
            service.wait_line("a reload is under way; once more after it\n");
            service.running.ends_with(signal, 0);
            assert_eq!(service.running.leftovers(), [0; 0]);
        }
    }
    let service = Service::start("-n 2 --ready fd", GATED);
    service.wait_line("all 2 workers are ready");
    service.running.signal(libc::SIGHUP);
    service.running.wait_places(&[(1, 0), (1, 1), (2, 0)]);
    service.running.ends_with(libc::SIGQUIT, 137);
}

#[test]
fn old_workers_get_the_reload_stop_and_at_a_stop_all_get_the_other_one() {
    let script = "exec $PROBE $DIR/report.$$ record=$DIR/record.$$";
    let service = Service::start("-n 1 --ready exec --reload-stop QUIT/4/KILL --stop USR1/4/KILL", script);
    let record = |life: &Life| service.scratch.path(&format!("record.{}", life.pid));
    let wait_report = |life: &Life| {
        wait_until("it records", || service.scratch.path(&format!("report.{}", life.pid)).exists());
    };
    let old = service.running.wait_generation(1, 1)[0];
    wait_report(&old);
    service.running.signal(libc::SIGHUP);
    let new = service.running.wait_generation(2, 1)[0];
    wait_report(&new);
    assert_eq!(recorded(&record(&old)), [libc::SIGQUIT, libc::SIGCONT]);
    service.running.signal(libc::SIGHUP);
    wait_until("the second one is told", || recorded(&record(&new)).contains(&libc::SIGQUIT));
    let third = service.running.wait_lives("a third one", |lives| lives.iter().any(|life| life.generation == 3));
    let third = third.into_iter().find(|life| life.generation == 3).unwrap();
    wait_report(&third);
    service.running.ends_with(libc::SIGTERM, 137);
    assert_eq!(recorded(&record(&third)), [libc::SIGUSR1, libc::SIGCONT]);
}

#[test]
fn an_old_worker_that_is_still_ending_is_stopped_with_all_the_others() {
    for options in ["--reload-stop TERM", "--kill-old-delay 1h"] {
        // It ends at the second TERM of those that may come.
        let script = "[ $PANZER_GENERATION = 1 ] || exec $PROBE - ready sleep >/dev/null
exec $PROBE - ready until=15 touch=$DIR/told until=15 exit=0 >/dev/null";
        let service =
            Service::start(&format!("-n 1 --ready fd --stop TERM/1/TERM/1/TERM/1/TERM/20/KILL {options}"), script);
        service.wait_line("the worker is ready");
        service.running.signal(libc::SIGHUP);
        service.wait_line(") is ready; ");
        service.running.wait_places(&[(1, 0), (2, 0)]);
        if options.contains("--reload-stop") {
            wait_until("it is told", || service.scratch.path("told").exists());
        }
        service.end();
    }
}

// Deaths during a reload

#[test]
fn an_old_worker_that_dies_before_a_new_one_was_ready_comes_back_as_it_was() {
    let service = Service::start_in(with_env("red"), "-n 2 --ready fd --backoff 0:0 --env-dir $DIR/env", GATED);
    service.wait_line("all 2 workers are ready");
    let first = service.running.wait_generation(1, 2);
    service.scratch.write("env/COLOUR", "blue");
    service.running.signal(libc::SIGHUP);
    let new = service.running.wait_places(&[(1, 0), (1, 1), (2, 0)])[2];
    assert_eq!(new.env("COLOUR").as_deref(), Some("blue"));
    // In another slot, and in the one that is being replaced.
    for old in [first[1], first[0]] {
        process::send_signal(old.pid, libc::SIGKILL);
        let lives = service.running.wait_lives("it has a new life of the old generation", |lives| {
            places(lives) == [(1, 0), (1, 1), (2, 0)] && !lives.contains(&old)
        });
        let again = lives.into_iter().find(|life| (life.generation, life.slot) == (1, old.slot)).unwrap();
        assert_eq!(again.env("COLOUR").as_deref(), Some("red"));
    }
    service.touch("go.0");
    service.touch("go.1");
    service.wait_line("reloaded: all 2 workers are of generation 2\n");
    for life in service.running.wait_generation(2, 2) {
        assert_eq!(life.env("COLOUR").as_deref(), Some("blue"));
    }
    service.end();
}

#[test]
fn an_old_worker_that_dies_after_a_new_one_was_ready_is_replaced_by_a_new_one() {
    // The old worker of slot 0 is long in ending, so that the next slot's turn does not come.
    let script = "[ $PANZER_GENERATION = 1 ] || exec $PROBE - ready sleep >/dev/null
exec $PROBE - ready until=15 wait=$DIR/over exit=0 >/dev/null";
    let options = "-n 3 --ready fd --backoff 0:0 --env-dir $DIR/env --reload-stop TERM";
    let service = Service::start_in(with_env("red"), options, script);
    service.wait_line("all 3 workers are ready");
    service.scratch.write("env/COLOUR", "blue");
    service.running.signal(libc::SIGHUP);
    service.wait_line("is ready; stopping pid ");
    let lives = service.running.wait_places(&[(1, 0), (1, 1), (1, 2), (2, 0)]);
    process::send_signal(lives[2].pid, libc::SIGKILL);
    let lives = service.running.wait_places(&[(1, 0), (1, 1), (2, 0), (2, 2)]);
    assert_eq!(lives[3].env("COLOUR").as_deref(), Some("blue"));
    service.touch("over");
    service.wait_line("reloaded: all 3 workers are of generation 2\n");
    service.running.wait_generation(2, 3);
    service.end();
}

#[test]
fn a_new_worker_that_dies_after_its_slot_was_replaced_comes_back_as_a_new_one() {
    let service = Service::start("-n 2 --ready fd --backoff 0:0", GATED);
    service.wait_line("all 2 workers are ready");
    service.running.signal(libc::SIGHUP);
    service.touch("go.0");
    let lives = service.running.wait_places(&[(1, 1), (2, 0), (2, 1)]);
    process::send_signal(lives[1].pid, libc::SIGKILL);
    service.running.wait_lives("it is replaced", |now| places(now) == places(&lives) && now[1] != lives[1]);
    assert!(lives[0].is_alive() && service.running.count_lines(&["cannot reload"]) == 0, "that is no failed try");
    service.touch("go.1");
    service.wait_line("reloaded: all 2 workers are of generation 2\n");
    service.running.wait_generation(2, 2);
    service.end();
}

// Failures

/// Makes sure that a reload fails with these words, leaves all as it was, and that the next one succeeds once `mend`ed.
#[track_caller]
fn fails_and_is_mended(service: &Service, causes: &[&str], mend: impl FnOnce()) {
    service.wait_line("all 2 workers are ready");
    let old = service.running.wait_generation(1, 2);
    service.running.signal(libc::SIGHUP);
    service.wait_line("the old workers stay\n");
    assert_eq!(service.running.wait_places(&[(1, 0), (1, 1)]), old);
    service.running.settle();
    let stderr = service.running.stderr();
    let said: Vec<&str> = stderr.lines().filter(|line| line.contains("the old workers stay")).collect();
    assert_eq!(said.len(), 1, "{stderr}");
    assert!(said[0].starts_with("panzer: cannot reload to generation 2: "), "{stderr}");
    assert!(said[0].ends_with("; the old workers stay"), "{stderr}");
    assert!(causes.iter().all(|cause| said[0].contains(cause)), "{causes:?}: {stderr}");
    assert!(!stderr.contains("reloaded: "), "{stderr}");
    assert_eq!(service.running.lives(), old, "it is not tried again by itself");
    mend();
    let new = service.reload(3, 2);
    assert!(pids(&new).iter().all(|pid| !pids(&old).contains(pid)));
    service.end();
}

#[test]
fn after_a_release_that_dies_the_old_workers_stay() {
    for (script, cause) in [("exit 7", "ended with status 7"), ("kill -9 $$", "was killed by SIGKILL")] {
        let service = Service::start("-n 2 --ready fd --backoff 0:0", READY);
        service.wait_line("all 2 workers are ready");
        service.release(script);
        fails_and_is_mended(&service, &["worker 0 (pid ", cause], || service.release(READY));
    }
}

#[test]
fn after_a_release_that_is_never_ready_the_old_workers_stay() {
    let service = Service::start("-n 2 --ready fd --ready-timeout 6s", READY);
    service.wait_line("all 2 workers are ready");
    service.release("exec sleep 100000");
    fails_and_is_mended(&service, &["worker 0 (pid ", "was not ready within 6s"], || service.release(READY));
}

#[test]
fn after_an_env_dir_that_cannot_be_read_the_old_workers_stay() {
    let service = Service::start_in(with_env("red"), "-n 2 --ready fd --env-dir $DIR/env", READY);
    service.wait_line("all 2 workers are ready");
    let (env, away) = (service.scratch.path("env"), service.scratch.path("away"));
    fs::rename(&env, &away).unwrap();
    let cause = format!("cannot read --env-dir {}: No such file or directory", env.display());
    fails_and_is_mended(&service, &[&cause], || {
        service.scratch.write("away/COLOUR", "blue");
        fs::rename(&away, &env).unwrap();
    });
}

#[test]
fn after_a_command_that_cannot_be_run_the_old_workers_stay() {
    let scratch = Scratch::new();
    let sleep = Command::new("sh").args(["-c", "command -v sleep"]).output().unwrap();
    let sleep = String::from_utf8(sleep.stdout).unwrap().trim().to_string();
    let link = scratch.path("sleep");
    symlink(&sleep, &link).unwrap();
    let running = panzer("-n 2 --ready exec --backoff 0:0", &[text(&link), "100000".to_string()]).start();
    running.wait_line("all 2 workers are ready");
    let old = running.wait_generation(1, 2);
    fs::remove_file(&link).unwrap();
    running.signal(libc::SIGHUP);
    running.wait_line(&format!(
        "panzer: cannot reload to generation 2: cannot run {}: No such file or directory; the old workers stay\n",
        link.display()
    ));
    running.settle();
    assert_eq!(running.lives(), old);
    symlink(&sleep, &link).unwrap();
    running.signal(libc::SIGHUP);
    running.wait_line("reloaded: all 2 workers are of generation 3\n");
    running.wait_generation(3, 2);
    assert_eq!(running.count_lines(&["cannot reload"]), 1);
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn slots_that_were_replaced_stay_so_when_a_later_one_fails() {
    let script = "[ $PANZER_WORKER_ID.$PANZER_GENERATION = 1.2 ] && exit 7\nexec $PROBE - ready sleep >/dev/null";
    let options = "-n 3 --ready fd --backoff 0:0 --env-dir $DIR/env";
    let service = Service::start_in(with_env("red"), options, script);
    service.wait_line("all 3 workers are ready");
    service.scratch.write("env/COLOUR", "blue");
    service.running.signal(libc::SIGHUP);
    service.wait_line("cannot reload to generation 2: worker 1 (pid ");
    let lives = service.running.wait_places(&[(1, 1), (1, 2), (2, 0)]);
    // Each comes back as what its slot has.
    for life in &lives {
        process::send_signal(life.pid, libc::SIGKILL);
    }
    let again = service.running.wait_lives("all came back", |now| {
        places(now) == places(&lives) && now.iter().all(|life| !lives.contains(life))
    });
    let colours: Vec<String> = again.iter().map(|life| life.env("COLOUR").unwrap()).collect();
    assert_eq!(colours, ["red", "red", "blue"]);
    service.reload(3, 3);
    service.end();
}

// Tries

#[test]
fn a_reload_is_tried_as_often_as_asked_for() {
    let script = "[ $PANZER_GENERATION = 2 ] && echo $PANZER_WORKER_ID >>$DIR/tried && exit 7
exec $PROBE - ready sleep >/dev/null";
    let options = "-n 2 --ready fd --reload-tries 3 --backoff 10ms:20ms";
    let service = Service::start(options, script);
    service.wait_line("all 2 workers are ready");
    let old = service.running.wait_generation(1, 2);
    service.running.signal(libc::SIGHUP);
    service.wait_line("cannot reload to generation 2: worker 0 (pid ");
    service.running.settle();
    assert_eq!(service.lines("tried"), ["0", "0", "0"]);
    let retries = service.running.count_lines(&["worker 0 (pid ", "ended with status 7; trying generation 2 again"]);
    assert_eq!(retries, 2, "{}", service.running.stderr());
    assert_eq!(service.running.lives(), old);
    service.reload(3, 2);
    service.end();
}

#[test]
fn a_reload_with_no_limit_is_tried_until_it_works() {
    let service = Service::start("-n 2 --ready fd --reload-tries 0 --backoff 10ms:20ms", READY);
    service.wait_line("all 2 workers are ready");
    let old = service.running.wait_generation(1, 2);
    service.release("exit 7");
    service.running.signal(libc::SIGHUP);
    service.running.wait_lines("ended with status 7; trying generation 2 again in ", 8);
    assert_eq!(
        pids(&old),
        service.running.lives().iter().filter(|l| l.generation == 1).map(|l| l.pid).collect::<Vec<_>>()
    );
    service.release(READY);
    service.wait_line("reloaded: all 2 workers are of generation 2\n");
    service.running.wait_generation(2, 2);
    assert_eq!(service.running.count_lines(&["the old workers stay"]), 0);
    // A stop ends the tries, too.
    service.release("exit 7");
    service.running.signal(libc::SIGHUP);
    service.running.wait_lines("trying generation 3 again in ", 2);
    service.end();
}

#[test]
fn a_stop_ends_the_wait_between_two_tries() {
    let service = Service::start("-n 1 --ready fd --reload-tries 0 --backoff 1h:1h", READY);
    service.wait_line("the worker is ready");
    service.release("exit 7");
    service.running.signal(libc::SIGHUP);
    service.wait_line("trying generation 2 again in ");
    service.end();
}
