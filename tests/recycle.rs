//! Workers that are replaced without a reload, by their age and by their memory; and more and fewer of them.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::binders::Binders;
use crate::support::lives::{Life, READY, Service, pids, places};
use crate::support::ports::{free_port, local};
use crate::support::{holds_for, process, wait_until};

/// How long a thing that must not happen is watched for.
const WATCH: Duration = Duration::from_millis(300);

// By age

#[test]
fn workers_past_their_age_are_replaced_and_there_are_never_too_many_or_too_few() {
    for (options, surge) in [("--max-age 1s", 1), ("--max-age 1s~1s --surge 2", 2)] {
        let script = "exec $PROBE - touch=$DIR/ready.$$ ready until=15 remove=$DIR/ready.$$ exit=0 >/dev/null";
        let service = Service::start(&format!("-n 3 --ready fd {options}"), script);
        service.wait_line("all 3 workers are ready");
        let mut seen: [BTreeSet<u32>; 3] = Default::default();
        wait_until("each slot has had three lives", || {
            let lives = service.running.lives();
            let names = std::fs::read_dir(service.scratch.directory()).unwrap().map(|entry| entry.unwrap().file_name());
            let ready = names.filter(|name| name.to_str().unwrap().starts_with("ready.")).count();
            assert!(lives.len() <= 3 + surge, "{options}: {lives:?}");
            assert!(ready >= 3, "{options}: only {ready} are ready: {lives:?}");
            for life in lives {
                assert_eq!(life.generation, 1, "that is no reload");
                seen[usize::try_from(life.slot).unwrap()].insert(life.pid);
            }
            seen.iter().all(|pids| pids.len() >= 3)
        });
        wait_until("it was said", || service.running.count_lines(&["worker 0 (pid ", " old; replacing it"]) >= 2);
        service.end();
    }
}

#[test]
fn a_worker_whose_replacement_fails_stays_until_one_works() {
    let script = "mkdir $DIR/first 2>/dev/null || [ -e $DIR/mended ] || exit 7\nexec $PROBE - ready sleep >/dev/null";
    let service = Service::start("-n 1 --ready fd --max-age 2s --backoff 10ms:100ms", script);
    let old = service.running.wait_lives("the first one", |lives| lives.len() == 1)[0];
    let says = ", its replacement, ended with status 7; the old one stays, trying again in ";
    service.running.wait_lines(says, 4);
    assert!(old.is_alive());
    service.touch("mended");
    wait_until("it is replaced", || !old.is_alive());
    service.running.wait_lives("by one that works", |lives| lives.iter().any(|life| *life != old));
    assert_eq!(service.running.count_lines(&["cannot reload"]), 0);
    service.end();
}

#[test]
fn a_young_worker_is_left_alone() {
    let service = Service::start("-n 2 --ready fd --max-age 1h~1h --max-rss 4G", READY);
    service.wait_line("all 2 workers are ready");
    let lives = service.running.wait_generation(1, 2);
    holds_for(WATCH, "they stay", || service.running.lives() == lives);
    // And what has a limit can be reloaded and stopped as any other.
    service.reload(2, 2);
    service.end();
}

// By memory

#[test]
fn a_worker_that_uses_too_much_memory_is_replaced_and_no_other_one() {
    for eater in [
        "exec $PROBE - ready eat=300 sleep >/dev/null",
        // Its children count.
        "$PROBE - eat=150 sleep >/dev/null & $PROBE - eat=150 sleep >/dev/null & exec $PROBE - ready sleep >/dev/null",
    ] {
        // The first life alone.
        let script = format!(
            "[ $PANZER_WORKER_ID = 1 ] && mkdir $DIR/once 2>/dev/null && {{ echo $$ >$DIR/big; {eater}; }}\nexec $PROBE - ready sleep >/dev/null"
        );
        let service = Service::start("-n 2 --ready fd --max-rss 200M", &script);
        service.wait_line("all 2 workers are ready");
        let small = service.running.slots()[&0];
        let big = service.lines("big")[0].parse().unwrap();
        service.wait_line(&format!("panzer: worker 1 (pid {big}) uses "));
        service.running.wait_replaced(1, big);
        wait_until("it is gone", || !process::alive(big));
        assert_eq!(service.running.wait_generation(1, 2)[0].pid, small);
        assert_eq!(service.running.count_lines(&[" uses ", " MiB; replacing it"]), 1);
        service.end();
        assert_eq!(service.running.leftovers(), [0; 0]);
    }
}

// More and fewer

#[test]
fn ttin_starts_one_more_and_ttou_stops_the_top_one() {
    let service = Service::start("-n 2 --ready fd", READY);
    service.wait_line("all 2 workers are ready");
    let two = service.running.wait_generation(1, 2);
    service.running.signal(libc::SIGTTIN);
    service.wait_line("panzer: SIGTTIN: 3 workers now, one more\n");
    let three = service.running.wait_generation(1, 3);
    assert_eq!(three[..2], two);
    let count = |life: &Life| life.env("PANZER_WORKER_COUNT").unwrap();
    assert_eq!(three.iter().map(count).collect::<Vec<_>>(), ["2", "2", "3"], "as many as there were at the start");
    // One that is started now knows of all.
    service.running.kill_worker(0);
    let three = service.running.wait_generation(1, 3);
    assert_eq!(count(&three[0]), "3");

    service.running.signal(libc::SIGTTOU);
    service.wait_line("panzer: SIGTTOU: 2 workers now, one fewer\n");
    assert_eq!(service.running.wait_generation(1, 2), three[..2]);
    wait_until("it is gone", || !three[2].is_alive());
    service.running.signal(libc::SIGTTOU);
    service.wait_line("SIGTTOU: 1 worker");
    let one = service.running.wait_generation(1, 1);
    assert_eq!(one, three[..1]);
    service.running.signal(libc::SIGTTOU);
    service.wait_line("panzer: cannot scale down on SIGTTOU: there is 1 worker; ignored\n");
    holds_for(WATCH, "the last one stays", || service.running.lives() == one);
    // What was taken away is not started again, and comes back when it is asked for.
    for count in [2, 3] {
        service.running.signal(libc::SIGTTIN);
        service.running.wait_generation(1, count);
    }
    service.end();
}

#[test]
fn on_gives_scaling_to_other_signals() {
    let service = Service::start("-n 1 --ready fd --on WINCH=scale-up --on URG=scale-down --on TTIN=ignore", READY);
    service.wait_line("the worker is ready");
    service.running.signal(libc::SIGTTIN);
    for (signal, count) in [(libc::SIGWINCH, 2), (libc::SIGWINCH, 3), (libc::SIGURG, 2)] {
        service.running.signal(signal);
        service.running.wait_generation(1, count);
    }
    service.end();
}

#[test]
fn a_worker_that_is_taken_away_gets_the_reload_stop() {
    let script = "exec $PROBE - ready until=12 touch=$DIR/told.$PANZER_WORKER_ID exit=0 >/dev/null";
    let service = Service::start("-n 2 --ready fd --reload-stop USR2/10/KILL --stop KILL", script);
    service.wait_line("all 2 workers are ready");
    service.running.signal(libc::SIGTTOU);
    wait_until("it is told", || service.scratch.path("told.1").exists());
    service.running.wait_generation(1, 1);
    assert!(!service.scratch.path("told.0").exists());
    service.running.ends_with(libc::SIGTERM, 137);
}

#[test]
fn a_worker_that_was_taken_away_and_asked_for_again_is_there_once() {
    // Slot 1 is long in ending.
    let script = "[ $PANZER_WORKER_ID = 0 ] && exec $PROBE - ready sleep >/dev/null
exec $PROBE - ready until=15 wait=$DIR/over exit=0 >/dev/null";
    let service = Service::start("-n 2 --ready fd", script);
    service.wait_line("all 2 workers are ready");
    let old = service.running.wait_generation(1, 2)[1];
    service.running.signal(libc::SIGTTOU);
    service.wait_line("SIGTTOU: 1 worker");
    service.running.signal(libc::SIGTTIN);
    service.wait_line("SIGTTIN: 2 workers now, one more\n");
    service.touch("over");
    service.running.wait_lives("one that is new is in its place", |lives| {
        places(lives) == [(1, 0), (1, 1)] && !pids(lives).contains(&old.pid)
    });
    service.end();
}

#[test]
fn a_worker_that_dies_after_it_was_taken_away_is_not_started_again() {
    let script = "[ $PANZER_WORKER_ID = 0 ] && exec $PROBE - ready sleep >/dev/null
exec $PROBE - ready until=15 wait=$DIR/never exit=0 >/dev/null";
    let service = Service::start("-n 2 --ready fd --backoff 0:0", script);
    service.wait_line("all 2 workers are ready");
    let lives = service.running.wait_generation(1, 2);
    service.running.signal(libc::SIGTTOU);
    service.wait_line("SIGTTOU: 1 worker");
    process::send_signal(lives[1].pid, libc::SIGKILL);
    wait_until("it is gone", || !lives[1].is_alive());
    service.running.settle();
    holds_for(WATCH, "none takes its place", || service.running.lives() == lives[..1]);
    service.end();
}

#[test]
fn scaling_and_reloading_at_once_end_with_as_many_new_ones_as_there_should_be() {
    let script = "[ $PANZER_GENERATION = 1 ] || WAIT=wait=$DIR/go\nexec $PROBE - $WAIT ready sleep >/dev/null";
    for (signals, count) in [
        (&[libc::SIGTTIN][..], 3),
        (&[libc::SIGTTOU], 1),
        (&[libc::SIGTTIN, libc::SIGTTOU], 2),
        (&[libc::SIGTTOU, libc::SIGTTIN], 2),
    ] {
        let service = Service::start("-n 2 --ready fd", script);
        service.wait_line("all 2 workers are ready");
        service.running.signal(libc::SIGHUP);
        service.running.wait_places(&[(1, 0), (1, 1), (2, 0)]);
        for signal in signals {
            let says = if *signal == libc::SIGTTIN { "one more\n" } else { "one fewer\n" };
            service.running.signal(*signal);
            service.wait_line(says);
        }
        service.touch("go");
        service.running.wait_generation(2, count);
        service.wait_line("reloaded: ");
        service.end();
    }
}

#[test]
fn per_worker_a_slot_that_is_added_gets_connections_and_one_that_is_taken_away_none() {
    for declared in [false, true] {
        let port = free_port();
        let (option, steps) = if declared {
            (format!("-l 127.0.0.1:{port}"), "fd=3 listen=511 inode serve sleep".to_string())
        } else {
            (String::new(), format!("tcp4 bind=127.0.0.1:{port} listen=511 inode serve sleep"))
        };
        let all = Binders::start(&format!("-n 2 --balance per-worker --ready bind {option}"), &steps);
        all.wait_all(2, "serve -> ok");
        all.wait_answers(&local(port).into(), 2);
        for round in 1..4 {
            all.running.signal(libc::SIGTTIN);
            all.wait_lines(2, "serve -> ok", round);
            // None may be refused or reset in here.
            all.wait_answers(&local(port).into(), 3);
            let inodes: BTreeSet<String> = (0..3).map(|slot| all.value(slot, "inode")).collect();
            assert_eq!(inodes.len(), 3, "declared: {declared}: each has a queue");
            all.running.signal(libc::SIGTTOU);
            all.running.wait_lines("SIGTTOU: 2 workers now, one fewer\n", round);
            all.running.wait_generation(1, 2);
            for _ in 0..3 {
                all.wait_answers(&local(port).into(), 2);
            }
        }
        all.end();
    }
}
