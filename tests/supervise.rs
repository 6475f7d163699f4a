//! Supervise mode with real workers: slots, restarts, stops, signals, and what a worker is given.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::support::binders::left_out;
use crate::support::panzer::{Panzer, Running, binary, shell_status};
use crate::support::report::{Report, recorded};
use crate::support::scratch::Scratch;
use crate::support::worker::{
    panzer, probe, reports, sh, text, through_shell, wait_recorded, wait_report, wait_reports,
};
use crate::support::{holds_for, process, wait_for, wait_until};

/// How long a thing that must not happen is watched for.
const WATCH: Duration = Duration::from_millis(300);

/// A worker that ends at TERM.
const SLEEP: [&str; 2] = ["sleep", "100000"];

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A directory that everybody may write to.
fn open_directory(scratch: &Scratch, name: &str) -> PathBuf {
    let path = scratch.path(name);
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    path
}

/// The `OUTFILE` of a probe that reports into a directory by its pid.
fn into(directory: &Path) -> String {
    format!("{}/", directory.display())
}

/// A script that can be executed.
fn script(scratch: &Scratch, name: &str, content: &str) -> PathBuf {
    let path = scratch.write(name, content);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn lines_with(running: &Running, words: &str) -> usize {
    running.stderr().lines().filter(|line| line.contains(words)).count()
}

/// Runs a command that must succeed, such as `prlimit`.
#[track_caller]
fn command(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap_or_else(|e| panic!("{words:?}: {e}"));
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

// Slots and environment

#[test]
fn each_slot_has_a_worker_with_its_own_environment() {
    let scratch = Scratch::new();
    let reports_in = open_directory(&scratch, "reports");
    let running = panzer("", &probe(&into(&reports_in), &["sleep"]))
        .env("PANZER_WORKERS", "3")
        .env("PANZER_BACKOFF", "0:0")
        .env("PANZER_VERBOSE", "0")
        .env("PANZER_NOT_AN_OPTION", "kept")
        .env("NOTIFY_SOCKET", "/run/outside")
        .env("WATCHDOG_USEC", "1000000")
        .env("WATCHDOG_PID", "1")
        .env("LISTEN_FDS", "2")
        .env("LISTEN_PID", "1")
        .env("LISTEN_FDNAMES", "a:b")
        .env("SERVER_STARTER_PORT", "80=3")
        .env("SERVER_STARTER_GENERATION", "9")
        .env("EINHORN_FD_COUNT", "1")
        .env("EINHORN_FD_0", "3")
        .env("EINHORN_MASTER_PID", "1")
        .env("PLAIN", "a=b c\td")
        .start();
    let given = wait_reports(&reports_in, 3);
    let slots: BTreeSet<&str> = given.values().map(|one| one.env("PANZER_WORKER_ID").unwrap()).collect();
    assert_eq!(slots, BTreeSet::from(["0", "1", "2"]));
    for (pid, one) in &given {
        assert_eq!(one.env("PANZER_WORKER_COUNT"), Some("3"));
        assert_eq!(one.env("PANZER_GENERATION"), Some("1"));
        assert_eq!(one.env("PANZER_PID"), Some(running.pid().to_string().as_str()));
        assert_eq!(one.env("PANZER_PARENT_FD"), Some("3"));
        assert_eq!(one.get("ppid"), running.pid().to_string());
        assert_eq!(one.get("pgid"), pid.to_string(), "a worker leads its own process group");
        assert_eq!(one.env_names("PANZER_COOKIE_").len(), 1);
        assert_eq!(
            one.env_names("PANZER_").into_iter().filter(|name| !name.starts_with("PANZER_COOKIE_")).collect::<Vec<_>>(),
            [
                "PANZER_GENERATION",
                "PANZER_NOT_AN_OPTION",
                "PANZER_PARENT_FD",
                "PANZER_PID",
                "PANZER_WORKER_COUNT",
                "PANZER_WORKER_ID"
            ]
        );
        for prefix in ["NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "SERVER_STARTER_", "EINHORN_"] {
            assert_eq!(one.env_names(prefix), [""; 0], "of outside");
        }
        assert_eq!(one.env("PLAIN"), Some("a=b c\td"));
    }
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_worker_of_a_panzer_inside_a_worker_has_each_variable_once() {
    let scratch = Scratch::new();
    let reports_in = open_directory(&scratch, "reports");
    let running = panzer("-n 2", &probe(&into(&reports_in), &["sleep"]))
        .env("PANZER_WORKER_ID", "77")
        .env("PANZER_WORKER_COUNT", "78")
        .env("PANZER_GENERATION", "79")
        .env("PANZER_PID", "80")
        .env("PANZER_PARENT_FD", "81")
        .env("PANZER_COOKIE_OF_ANOTHER", "1")
        .start();
    let given = wait_reports(&reports_in, 2);
    let slots: BTreeSet<&str> = given.values().map(|one| one.env("PANZER_WORKER_ID").unwrap()).collect();
    assert_eq!(slots, BTreeSet::from(["0", "1"]));
    for one in given.values() {
        assert_eq!(one.env("PANZER_WORKER_COUNT"), Some("2"));
        assert_eq!(one.env("PANZER_GENERATION"), Some("1"));
        assert_eq!(one.env("PANZER_PID"), Some(running.pid().to_string().as_str()));
        assert_eq!(one.env("PANZER_PARENT_FD"), Some("3"));
        // Not replaced: the guard of a panzer outside looks for its own.
        assert_eq!(one.env("PANZER_COOKIE_OF_ANOTHER"), Some("1"));
        assert_eq!(one.env_names("PANZER_COOKIE_").len(), 2);
    }
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_killed_worker_is_replaced_in_its_own_slot() {
    let running = panzer("-n 3 --ready exec --backoff 0:0", &SLEEP).start();
    let before = running.wait_slots(3);
    for slot in [1, 0, 2, 1] {
        let old = running.slots()[&slot];
        running.kill_worker(slot);
        running.wait_line(&format!("worker {slot} (pid {old}) was killed by SIGKILL; starting a new one"));
    }
    let after = running.wait_slots(3);
    assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    assert!(before.values().all(|pid| !process::alive(*pid)));
    wait_until("every dead worker is reaped", || process::zombies_of(running.pid()).is_empty());
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_worker_in_another_slot_is_left_alone_when_one_is_replaced() {
    let running = panzer("-n 3 --ready exec --backoff 0:0", &SLEEP).start();
    let before = running.wait_slots(3);
    for _ in 0..10 {
        running.kill_worker(1);
    }
    let after = running.wait_slots(3);
    assert_eq!((before[&0], before[&2]), (after[&0], after[&2]));
    running.ends_with(libc::SIGTERM, 0);
}

// Restarts

#[test]
fn with_restart_always_a_worker_that_ends_with_success_is_started_again() {
    let running = panzer("-n 1 --restart always --ready exec --backoff 0:0", &["true"]).start();
    running.wait_lines("ended with status 0; starting a new one", 20);
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn with_restart_on_failure_success_is_the_end_and_failure_is_not() {
    let scratch = Scratch::new();
    let tried = text(scratch.path("tried"));
    let worker = sh(&format!("mkdir {tried}.$PANZER_WORKER_ID 2>/dev/null && exit 3; exit 0"));
    let output = panzer("-n 2 --restart on-failure --backoff 0:0", &worker).run();
    assert_eq!(output.stderr.matches("ended with status 3; starting a new one").count(), 2, "{}", output.stderr);
    assert_eq!(output.stderr.matches("ended with status 0; it is not started again").count(), 2, "{}", output.stderr);
    assert_eq!(shell_status(output.status), 0, "in the end every worker has succeeded");
}

#[test]
fn with_restart_on_failure_a_signal_is_a_failure() {
    let running = panzer("-n 1 --restart on-failure --ready exec --backoff 0:0", &SLEEP).start();
    running.kill_worker(0);
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn with_restart_never_panzer_ends_with_how_the_last_failure_ended() {
    for (worker, status) in [
        ("exit 0", 0),
        ("exit 10", 10),
        ("[ $PANZER_WORKER_ID = 0 ] && exit 7; exit 0", 7),
        ("kill -9 $$", 137),
        ("kill -USR1 $$", 138),
    ] {
        let output = panzer("-n 2 --restart never", &sh(worker)).run();
        assert_eq!(shell_status(output.status), status, "{worker}: {}", output.stderr);
        assert_eq!(output.stderr.matches("it is not started again").count(), 2, "{worker}: {}", output.stderr);
    }
}

#[test]
fn a_backoff_delays_the_second_restart_and_term_ends_it_at_once() {
    let running = panzer("-n 1 --ready exec --backoff 1h:1h", &SLEEP).start();
    running.wait_slots(1);
    let second = running.kill_worker(0);
    running.wait_line("was killed by SIGKILL; starting a new one\n");
    process::send_signal(second, libc::SIGKILL);
    running.wait_line("was killed by SIGKILL; starting a new one in ");
    holds_for(WATCH, "nobody is started during the backoff", || running.workers().is_empty());
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_backoff_ends_and_the_worker_is_started() {
    let running = panzer("-n 1 --ready exec --backoff 10ms:40ms", &SLEEP).start();
    running.wait_slots(1);
    for _ in 0..6 {
        running.kill_worker(0);
    }
    running.wait_lines("starting a new one in ", 5);
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn the_crash_limit_ends_panzer_with_the_last_ones_status() {
    for (options, lives) in [("--crash-limit 3", 3), ("", 5), ("--crash-limit 1", 1)] {
        let output = panzer(&format!("-n 1 --backoff 0:0 --ready delay:1h {options}"), &sh("exit 7")).run();
        assert_eq!(shell_status(output.status), 7, "{options}: {}", output.stderr);
        assert_eq!(output.stderr.matches("ended with status 7").count(), lives, "{options}: {}", output.stderr);
        assert!(output.stderr.contains(&format!("giving up: {lives} workers in a row")), "{}", output.stderr);
    }
}

#[test]
fn giving_up_stops_the_workers_that_still_run() {
    let worker = sh("[ $PANZER_WORKER_ID = 0 ] && exec sleep 100000; kill -9 $$");
    let output = panzer("-n 2 --backoff 0:0 --ready delay:1h --crash-limit 4", &worker).run();
    assert_eq!(shell_status(output.status), 137, "{}", output.stderr);
    assert!(output.stderr.contains("giving up: 4 workers in a row"), "{}", output.stderr);
}

#[test]
fn a_crash_limit_of_zero_never_gives_up() {
    let running = panzer("-n 2 --backoff 0:0 --crash-limit 0", &sh("exit 7")).start();
    running.wait_lines("ended with status 7; starting a new one", 60);
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn the_crash_limit_does_not_count_once_a_worker_was_ready() {
    let running = panzer("-n 1 --backoff 0:0 --ready exec --crash-limit 2", &SLEEP).start();
    running.wait_slots(1);
    for _ in 0..6 {
        running.kill_worker(0);
    }
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_fatal_exit_stops_all_and_is_panzers_own_status() {
    let worker = sh("[ $PANZER_WORKER_ID = 1 ] && exit 42; exec sleep 100000");
    let output = panzer("-n 3 --fatal-exit 41 --fatal-exit 42", &worker).run();
    assert_eq!(shell_status(output.status), 42, "{}", output.stderr);
    assert!(output.stderr.contains("ended with fatal status 42; stopping all"), "{}", output.stderr);
    assert_eq!(output.stderr.matches("ended with status 42").count(), 1, "{}", output.stderr);
}

#[test]
fn a_status_named_by_ok_exit_is_a_success() {
    let output = panzer("-n 2 --restart on-failure --ok-exit 3", &sh("exit 3")).run();
    assert_eq!(shell_status(output.status), 0, "{}", output.stderr);
    assert_eq!(output.stderr.matches("ended with status 3; it is not started again").count(), 2, "{}", output.stderr);
}

// Stops

#[test]
fn a_clean_stop_ends_with_success_on_term_and_int() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let running = panzer("-n 4", &SLEEP).start();
        running.wait_slots(4);
        running.ends_with(signal, 0);
        assert!(running.stderr().contains("everything has stopped"), "{}", running.stderr());
    }
}

#[test]
fn a_worker_that_ends_with_a_failure_when_told_to_stop_makes_no_failure_of_the_stop() {
    let running = panzer("-n 1", &sh("trap 'exit 9' TERM; sleep 100000 & wait")).start();
    // A shell's child that has not executed its program yet loses a signal for which there is a trap.
    let is_sleep = |pid: &u32| process::stat(*pid).is_some_and(|one| one.comm == "sleep");
    wait_until("the shell waits for its child", || running.descendants().iter().any(is_sleep));
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_deaf_worker_gets_each_signal_of_the_schedule_and_then_kill() {
    let scratch = Scratch::new();
    let (report, record) = (scratch.path("report"), scratch.path("record"));
    let worker = probe(&text(&report), &[&format!("record={}", record.display())]);
    let running = panzer("-n 1 --stop QUIT/3/TERM/3/USR1/4/KILL", &worker).start();
    wait_until("the worker runs", || report.exists());
    running.ends_with(libc::SIGTERM, 137);
    let (quit, cont, term, usr1) = (libc::SIGQUIT, libc::SIGCONT, libc::SIGTERM, libc::SIGUSR1);
    // Of two that are pending at the same time the lower number is taken first.
    assert_eq!(recorded(&record), [quit, cont, term, cont, usr1, cont]);
    let stderr = running.stderr();
    let at = |name: &&str| stderr.find(&format!("did not end in time; sent {name}"));
    let order: Vec<Option<usize>> = ["SIGTERM", "SIGUSR1", "SIGKILL"].iter().map(at).collect();
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{stderr}");
}

#[test]
fn a_schedule_without_kill_waits_as_long_as_the_worker_wants() {
    let scratch = Scratch::new();
    let (report, record) = (scratch.path("report"), scratch.path("record"));
    let worker = probe(&text(&report), &[&format!("record={}", record.display())]);
    let running = panzer("-n 1 --stop TERM/0/HUP", &worker).start();
    wait_until("the worker runs", || report.exists());
    let pid = running.wait_slots(1)[&0];
    running.signal(libc::SIGTERM);
    wait_until("HUP has come", || recorded(&record).contains(&libc::SIGHUP));
    holds_for(WATCH, "nobody is killed", || process::alive(pid) && running.try_exit().is_none());
    process::send_signal(pid, libc::SIGKILL);
    assert_eq!(shell_status(running.wait_exit()), 0, "panzer did not kill it");
}

#[test]
fn a_second_int_kills_at_once() {
    let scratch = Scratch::new();
    let (report, record) = (scratch.path("report"), scratch.path("record"));
    let worker = probe(&text(&report), &[&format!("record={}", record.display())]);
    let running = panzer("-n 1 --stop TERM/100000/KILL", &worker).start();
    wait_until("the worker runs", || report.exists());
    running.signal(libc::SIGINT);
    wait_until("the worker was told", || recorded(&record).contains(&libc::SIGTERM));
    holds_for(WATCH, "the schedule runs", || running.try_exit().is_none());
    running.ends_with(libc::SIGINT, 137);
    assert!(!recorded(&record).contains(&libc::SIGINT));
}

#[test]
fn quit_kills_at_once() {
    let scratch = Scratch::new();
    let (report, record) = (scratch.path("report"), scratch.path("record"));
    let worker = probe(&text(&report), &[&format!("record={}", record.display())]);
    let running = panzer("-n 1 --stop TERM/100000/KILL", &worker).start();
    wait_until("the worker runs", || report.exists());
    running.ends_with(libc::SIGQUIT, 137);
    assert_eq!(recorded(&record), [0; 0], "nothing but KILL was sent");
}

#[test]
fn quit_during_a_stop_kills_at_once() {
    let scratch = Scratch::new();
    let (report, record) = (scratch.path("report"), scratch.path("record"));
    let worker = probe(&text(&report), &[&format!("record={}", record.display())]);
    let running = panzer("-n 1 --stop TERM/100000/KILL", &worker).start();
    wait_until("the worker runs", || report.exists());
    running.signal(libc::SIGTERM);
    running.wait_line("SIGTERM: stopping 1 worker");
    running.ends_with(libc::SIGQUIT, 137);
}

#[test]
fn a_stopped_worker_still_ends_on_term() {
    let running = panzer("-n 2", &SLEEP).start();
    for pid in running.wait_slots(2).into_values() {
        process::send_signal(pid, libc::SIGSTOP);
        wait_until("the worker is stopped", || process::stat(pid).is_some_and(|one| one.state == 'T'));
    }
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_stop_ends_what_a_worker_left_in_its_group_too() {
    let scratch = Scratch::new();
    let ready = text(scratch.path("ready"));
    let worker =
        sh(&format!("(trap '' TERM; : >{ready}; exec sleep 100000) & trap 'exit 0' TERM; while :; do wait; done"));
    let running = panzer("-n 1 --stop TERM/1/KILL --linger 1h", &worker).start();
    wait_until("the worker runs", || Path::new(&ready).exists());
    let main = running.wait_slots(1)[&0];
    running.signal(libc::SIGTERM);
    wait_until("the main process has ended", || !process::alive(main));
    assert_eq!(shell_status(running.wait_exit()), 137, "its child had to be killed: {}", running.stderr());
}

#[test]
fn what_a_crashed_worker_left_in_its_group_is_stopped_while_the_next_one_already_runs() {
    let scratch = Scratch::new();
    let (report, record) = (scratch.path("report"), scratch.path("record"));
    let left = probe(&text(&report), &[&format!("record={}", record.display())]).join(" ");
    // The first life alone leaves somebody behind.
    let worker = sh(&format!("mkdir {} 2>/dev/null && {left} & exec sleep 100000", scratch.path("once").display()));
    let running = panzer("-n 1 --ready exec --backoff 0:0 --stop TERM/5/KILL", &worker).start();
    wait_until("the child in the worker's group runs", || report.exists());
    let child: u32 = Report::read(&report).unwrap().get("pid").parse().unwrap();
    let main = running.wait_slots(1)[&0];
    assert_eq!(process::stat(child).unwrap().pgid, main);
    let next = running.kill_worker(0);
    assert!(process::alive(child), "the next worker does not wait for what the last one left");
    running.wait_line("left processes behind in its group; stopping them");
    wait_until("the child was told to stop", || recorded(&record) == [libc::SIGTERM, libc::SIGCONT]);
    wait_until("the child was killed at the end of the schedule", || !process::alive(child));
    wait_until("nothing is left unreaped", || process::zombies_of(running.pid()).is_empty());
    assert_eq!(running.slots()[&0], next, "the next one is left alone");
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn what_escaped_from_its_group_is_cleared_at_the_end() {
    let scratch = Scratch::new();
    let reports_in = open_directory(&scratch, "reports");
    let running = panzer("-n 2 --linger 20s", &probe(&into(&reports_in), &["spawn-setsid", "sleep"])).start();
    let given = wait_reports(&reports_in, 4);
    let escaped: Vec<u32> = given.iter().filter(|(_, one)| one.get("sid") == one.get("pid")).map(|(p, _)| *p).collect();
    assert_eq!(escaped.len(), 2);
    running.ends_with(libc::SIGTERM, 0);
    assert!(escaped.iter().all(|pid| !process::alive(*pid)));
    assert!(running.stderr().contains("processes were left behind; sent them SIGTERM"), "{}", running.stderr());
}

#[test]
fn what_escaped_and_is_deaf_is_killed_after_the_linger_time() {
    let scratch = Scratch::new();
    let reports_in = open_directory(&scratch, "reports");
    // An ignored signal stays ignored in the processes that are started.
    let worker = probe(&into(&reports_in), &["ignore=15", "spawn-setsid", "exit=0"]);
    let output = panzer("-n 1 --restart never --linger 200ms", &worker).run();
    assert_eq!(output.stderr.matches("left behind; sent them SIGKILL").count(), 1, "{}", output.stderr);
}

#[test]
fn an_orphan_that_panzer_adopts_is_reaped() {
    let scratch = Scratch::new();
    let count = scratch.path("count");
    // Each inner shell leaves two grandchildren that end by themselves.
    let worker = sh(&format!(
        "i=0; while [ $i -lt 50 ]; do sh -c 'true & (exit 3) &'; i=$((i+1)); done; echo done >{}; exec sleep 100000",
        count.display()
    ));
    let running = panzer("-n 1 --crash-limit 1", &worker).start();
    wait_until("all orphans were made", || count.exists());
    wait_until("no orphan is left", || {
        running.descendants().len() == 2 && process::zombies_of(running.pid()).is_empty()
    });
    assert_eq!(lines_with(&running, "ended with status"), 0, "an orphan's status is no worker's");
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_term_before_the_first_exec_ends_with_success_and_leaves_nobody() {
    // The moment differs from round to round: from the first one in which panzer holds its signals
    // back, through the starts of its workers, to all of them running.
    for round in 0..80_u32 {
        let running = panzer("-n 4", &SLEEP).start();
        let pid = running.pid();
        let begun = Instant::now();
        let limit = Duration::from_secs(20);
        while process::signals_in(pid, "SigBlk").is_none_or(|blocked| blocked.len() < 60) {
            assert!(begun.elapsed() < limit, "panzer does not block signals");
        }
        let later = Instant::now() + Duration::from_micros((50 * (round / 2)).into());
        while Instant::now() < later {
            std::hint::spin_loop();
        }
        running.ends_with(libc::SIGTERM, 0);
        assert_eq!(running.leftovers(), [0; 0], "round {round}");
    }
}

// Signals

/// Starts two workers that record each signal and returns their records.
fn recorders(scratch: &Scratch, options: &str) -> (Running, [PathBuf; 2]) {
    let reports_in = open_directory(scratch, "reports");
    let record = text(scratch.path("record"));
    let mut words = probe(&into(&reports_in), &[]);
    words.push(format!("record={record}.$PANZER_WORKER_ID"));
    let running = panzer(&format!("-n 2 -v {options}"), &sh(&format!("exec {}", words.join(" ")))).start();
    wait_reports(&reports_in, 2);
    (running, [scratch.path("record.0"), scratch.path("record.1")])
}

#[test]
fn every_signal_that_is_no_command_is_forwarded_to_all_workers() {
    let scratch = Scratch::new();
    let (running, records) = recorders(&scratch, "");
    let commands = [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGKILL,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGTERM,
        libc::SIGCHLD,
        libc::SIGSTOP,
        libc::SIGTTIN,
        libc::SIGTTOU,
    ];
    let mut sent = Vec::new();
    for signal in (1..=64).filter(|signal| !commands.contains(signal)) {
        running.signal(signal);
        sent.push(signal);
        for record in &records {
            wait_recorded(record, &sent);
        }
    }
    assert_eq!(sent.len(), 53);
    running.wait_lines("forwarded to 2 workers", 53);
    running.ends_with(libc::SIGQUIT, 137);
}

#[test]
fn a_signal_whose_command_is_not_there_yet_is_named_and_not_passed_on() {
    let scratch = Scratch::new();
    let (running, records) = recorders(&scratch, "");
    running.signal(libc::SIGUSR2);
    running.wait_line(" on SIGUSR2: not in this version");
    assert_eq!(lines_with(&running, "not in this version"), 1, "one line");
    running.signal(libc::SIGCHLD);
    // What comes after them is the first that the workers see.
    running.signal(64);
    for record in &records {
        wait_recorded(record, &[64]);
    }
    running.ends_with(libc::SIGQUIT, 137);
}

#[test]
fn on_changes_what_a_signal_does() {
    let scratch = Scratch::new();
    let (running, records) = recorders(
        &scratch,
        "--stop TERM/100000/KILL --on HUP=forward --on USR1=forward:USR2 --on TERM=ignore --on INT=forward --on WINCH=stop-now",
    );
    let mut sent = Vec::new();
    for (signal, arrives) in [(libc::SIGHUP, 1), (libc::SIGUSR1, libc::SIGUSR2), (libc::SIGINT, 2)] {
        running.signal(signal);
        sent.push(arrives);
        for record in &records {
            wait_recorded(record, &sent);
        }
    }
    running.signal(libc::SIGTERM);
    running.signal(64);
    sent.push(64);
    for record in &records {
        wait_recorded(record, &sent);
    }
    assert_eq!(running.try_exit(), None);
    running.ends_with(libc::SIGWINCH, 137);
}

#[test]
fn on_can_make_any_signal_stop() {
    for signal in [libc::SIGHUP, libc::SIGUSR2, 34, 64] {
        let running = panzer(&format!("-n 2 --on {signal}=stop"), &SLEEP).start();
        running.wait_slots(2);
        running.ends_with(signal, 0);
    }
}

#[test]
fn a_forwarded_signal_goes_to_the_group_and_with_no_group_to_the_main_process_alone() {
    for (options, child_gets) in [("", vec![28, 64]), ("--no-group", vec![])] {
        let scratch = Scratch::new();
        let reports_in = open_directory(&scratch, "reports");
        let record = |name: &str| format!("record={}", scratch.path(name).display());
        let child = probe(&into(&reports_in), &[&record("child")]).join(" ");
        let main = probe(&into(&reports_in), &[&record("main")]).join(" ");
        let running = panzer(&format!("-n 1 {options}"), &sh(&format!("{child} & exec {main}"))).start();
        wait_reports(&reports_in, 2);
        let mut sent = Vec::new();
        for signal in [28, 64] {
            running.signal(signal);
            sent.push(signal);
            wait_recorded(&scratch.path("main"), &sent);
        }
        wait_recorded(&scratch.path("child"), &child_gets);
        // KILL goes to the group even so.
        running.ends_with(libc::SIGQUIT, 137);
    }
}

// What a worker is given

#[test]
fn the_directory_may_be_absolute_or_relative_and_a_link_is_followed_at_each_start() {
    let scratch = Scratch::new();
    let reports_in = open_directory(&scratch, "reports");
    let (first, second) = (scratch.path("first"), scratch.path("second"));
    fs::create_dir(&first).unwrap();
    fs::create_dir(&second).unwrap();
    symlink("first", scratch.path("link")).unwrap();
    let canonical = |path: &Path| text(path.canonicalize().unwrap());
    for directory in [text(scratch.path("link")), "link".to_string(), "first/../link".to_string()] {
        let running = panzer("-n 1 --ready exec --backoff 0:0", &probe(&into(&reports_in), &["sleep"]))
            .cwd(scratch.directory())
            .env("PANZER_DIR", &directory)
            .start();
        let pid = running.wait_slots(1)[&0];
        assert_eq!(wait_report(&reports_in, pid).get("cwd"), canonical(&first), "{directory}");
        symlink("second", scratch.path("new")).unwrap();
        fs::rename(scratch.path("new"), scratch.path("link")).unwrap();
        let pid = running.kill_worker(0);
        assert_eq!(wait_report(&reports_in, pid).get("cwd"), canonical(&second), "{directory}");
        assert_eq!(fs::read_link(format!("/proc/{}/cwd", running.pid())).unwrap(), Path::new("/"));
        running.ends_with(libc::SIGTERM, 0);
        symlink("first", scratch.path("new")).unwrap();
        fs::rename(scratch.path("new"), scratch.path("link")).unwrap();
    }
}

#[test]
fn without_a_directory_a_worker_runs_where_panzer_was_started() {
    let scratch = Scratch::new();
    let reports_in = open_directory(&scratch, "reports");
    let running = panzer("-n 1", &probe(&into(&reports_in), &["sleep"])).cwd(scratch.directory()).start();
    let given = wait_reports(&reports_in, 1).into_values().next().unwrap();
    assert_eq!(given.get("cwd"), text(scratch.directory().canonicalize().unwrap()));
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_relative_command_is_looked_for_in_the_workers_directory() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("app")).unwrap();
    let ran = text(scratch.path("ran"));
    // Without "#!" in its first line, as execvp(3) allows.
    script(&scratch, "app/run", &format!("echo \"$0 $1\" >{ran}\nexit 0\n"));
    let output = panzer("-n 1 --restart never -d app", &["./run", "x y"]).cwd(scratch.directory()).run();
    assert_eq!(shell_status(output.status), 0, "{}", output.stderr);
    assert_eq!(fs::read_to_string(&ran).unwrap(), "./run x y\n");
}

#[test]
fn the_umask_is_the_one_given_or_the_callers() {
    let scratch = Scratch::new();
    for (options, expected) in [("--umask 027", "0027"), ("--umask 0", "0000"), ("", "0135")] {
        let report = scratch.path("report");
        // The umask hits the report too: it must stay readable for its owner.
        let output = panzer(&format!("-n 1 --restart never {options}"), &probe(&text(&report), &["exit=0"]))
            .wrapper(through_shell("umask 0135"))
            .run();
        assert_eq!(shell_status(output.status), 0, "{}", output.stderr);
        assert_eq!(Report::read(&report).unwrap().get("umask"), expected, "{options}");
        fs::remove_file(&report).unwrap();
    }
}

#[test]
fn an_env_dir_sets_and_unsets_variables() {
    let scratch = Scratch::new();
    let report = scratch.path("report");
    fs::create_dir(scratch.path("env")).unwrap();
    for (name, content) in [
        ("SET", "value of  it \t\nsecond line\n"),
        ("CHANGED", "new"),
        ("UNSET", ""),
        ("EMPTY", "\n"),
        ("LINES", "a\0b\n"),
        ("PANZER_WORKER_ID", "99"),
        ("PANZER_PID", "99"),
        (".hidden", "x"),
        ("..data", "x"),
    ] {
        scratch.write(&format!("env/{name}"), content);
    }
    let output = panzer("-n 1 --restart never --env-dir env", &probe(&text(&report), &["exit=0"]))
        .cwd(scratch.directory())
        .env("CHANGED", "old")
        .env("UNSET", "old")
        .run();
    assert_eq!(shell_status(output.status), 0, "{}", output.stderr);
    let given = Report::read(&report).unwrap();
    assert_eq!(given.env("SET"), Some("value of  it"));
    assert_eq!(given.env("CHANGED"), Some("new"));
    assert_eq!(given.env("UNSET"), None);
    assert_eq!(given.env("EMPTY"), Some(""));
    assert_eq!(given.env("LINES"), Some("a\\nb"));
    assert_eq!((given.env(".hidden"), given.env("..data")), (None, None));
    assert_eq!(given.env("PANZER_WORKER_ID"), Some("0"), "what panzer tells is not for the directory to change");
    assert_ne!(given.env("PANZER_PID"), Some("99"));
}

/// What `-u` made of a worker.
fn identity(given: &Report) -> [&str; 4] {
    [given.get("uids"), given.get("gids"), given.get("groups"), given.get("pdeathsig")]
}

#[test]
fn a_number_as_user_is_taken_without_an_entry() {
    if !is_root() {
        return left_out("workers of another user: only root may start them");
    }
    let scratch = Scratch::new();
    let reports_in = open_directory(&scratch, "reports");
    for (user, expected) in [
        ("12345", ["12345,12345,12345,12345", "12345,12345,12345,12345", "12345", "15"]),
        ("12345:23456", ["12345,12345,12345,12345", "23456,23456,23456,23456", "23456", "15"]),
    ] {
        let running = panzer(&format!("-n 1 -u {user}"), &probe(&into(&reports_in), &["sleep"]))
            .env("HOME", "/unchanged")
            .start();
        let given = wait_report(&reports_in, running.wait_slots(1)[&0]);
        assert_eq!(identity(&given), expected, "{user}");
        assert_eq!(given.env("HOME"), Some("/unchanged"));
        running.ends_with(libc::SIGTERM, 0);
    }
}

#[test]
fn a_named_user_brings_its_groups_and_home() {
    let mounts = ["unshare", "--mount", "true"];
    let may_mount = Command::new(mounts[0]).args(&mounts[1..]).status().is_ok_and(|status| status.success());
    if !is_root() || !may_mount {
        return left_out("workers of a named user: only root may start them, and give /etc/passwd another content");
    }
    let scratch = Scratch::new();
    let reports_in = open_directory(&scratch, "reports");
    let passwd = scratch.write("passwd", "root:x:0:0::/root:/bin/sh\nweb:x:41234:41235:Web,,,:/home/of-web:/bin/sh\n");
    let group =
        scratch.write("group", "root:x:0:\nweb:x:41235:\ntape:x:41236:web,x\nlog:x:41237:x\nadm:x:41238:x,web\n");
    let mount = format!("mount --bind {} /etc/passwd && mount --bind {} /etc/group", passwd.display(), group.display());
    for (user, groups) in
        [("web", "41235,41236,41238"), ("41234", "41235,41236,41238"), ("web:log", "41237"), ("web:7", "7")]
    {
        let gid = if groups.starts_with("41235") { "41235" } else { groups };
        let mut wrapper = vec!["unshare".to_string(), "--mount".to_string()];
        wrapper.extend(through_shell(&mount));
        let running = panzer(&format!("-n 1 --stop USR1/25/KILL -u {user}"), &probe(&into(&reports_in), &["sleep"]))
            .wrapper(wrapper)
            .env("HOME", "/of/root")
            .env("USER", "root")
            .env("LOGNAME", "root")
            .start();
        let given = wait_report(&reports_in, running.wait_slots(1)[&0]);
        let uids = ["41234"; 4].join(",");
        assert_eq!(identity(&given), [&uids, &[gid; 4].join(","), groups, "10"], "{user}");
        assert_eq!(given.env("HOME"), Some("/home/of-web"));
        assert_eq!((given.env("USER"), given.env("LOGNAME")), (Some("web"), Some("web")));
        running.ends_with(libc::SIGTERM, 0);
    }
}

/// A wrapper that makes root an ordinary user, and this user's and group's numbers.
fn as_ordinary_user() -> (Vec<String>, u32, u32) {
    if !is_root() {
        return (Vec::new(), rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    }
    let words = ["setpriv", "--reuid", "12345", "--regid", "23456", "--clear-groups"];
    (words.map(str::to_string).to_vec(), 12345, 23456)
}

#[test]
fn an_ordinary_user_may_name_itself_and_nobody_else() {
    let scratch = Scratch::new();
    let reports_in = open_directory(&scratch, "reports");
    let (wrapper, uid, gid) = as_ordinary_user();
    let running =
        panzer(&format!("-n 1 -u {uid}:{gid}"), &probe(&into(&reports_in), &["sleep"])).wrapper(&wrapper).start();
    running.wait_slots(1);
    let given = wait_reports(&reports_in, 1).into_values().next().unwrap();
    assert_eq!(given.get("uids"), [uid.to_string().as_str(); 4].join(","));
    running.ends_with(libc::SIGTERM, 0);

    for other in ["0", "root", "12346", &format!("{uid}:0")] {
        let output = panzer(&format!("-n 1 -u {other}"), &["true"]).wrapper(&wrapper).run();
        assert_eq!(shell_status(output.status), 125, "{other}");
        assert_eq!(
            output.stderr,
            format!("panzer: cannot use --user {other}: only root may run workers as another user\n")
        );
    }
}

/// Descriptors as `0=/dev/null 1=pipe ...`, without the inode numbers.
fn shape(given: &Report) -> String {
    let shape = given.descriptors().into_iter().map(|descriptor| {
        assert!(!descriptor.cloexec, "{descriptor:?}");
        let (kind, _) = descriptor.target.split_once(':').unwrap_or((&descriptor.target, ""));
        format!("{}={kind}", descriptor.number)
    });
    shape.collect::<Vec<_>>().join(" ")
}

#[test]
fn a_worker_has_exactly_the_descriptors_that_are_meant_for_it() {
    let stray = "exec 3</etc/passwd 4</etc/passwd 5</etc/passwd 6</etc/passwd 8</etc/passwd 9</etc/passwd";
    let cases = [
        ("", "0=/dev/null 1=pipe 2=pipe 3=pipe"),
        ("-l 127.0.0.1:0 -l udp://127.0.0.1:0", "0=/dev/null 1=pipe 2=pipe 3=socket 4=socket 5=pipe"),
    ];
    for (listeners, expected) in cases {
        for wrapper in [Vec::new(), through_shell(stray)] {
            let scratch = Scratch::new();
            let reports_in = open_directory(&scratch, "reports");
            let options = format!("-n 3 --ready exec --backoff 0:0 {listeners}");
            let stdin = fs::File::open("/etc/passwd").unwrap();
            let running =
                panzer(&options, &probe(&into(&reports_in), &["sleep"])).wrapper(wrapper).stdin(stdin).start();
            running.wait_slots(3);
            wait_reports(&reports_in, 3);
            running.kill_worker(1);
            for given in wait_reports(&reports_in, 4).values() {
                assert_eq!(shape(given), expected, "{listeners}");
            }
            for number in fs::read_dir(format!("/proc/{}/fd", running.panzer_pid())).unwrap() {
                let number = number.unwrap().path();
                let stdin = number.ends_with("0");
                assert!(stdin || fs::read_link(&number).unwrap() != Path::new("/etc/passwd"), "{number:?}");
            }
            running.ends_with(libc::SIGTERM, 0);
        }
    }
}

#[test]
fn closed_standard_descriptors_do_not_shift_the_others() {
    let scratch = Scratch::new();
    let reports_in = open_directory(&scratch, "reports");
    let running = panzer("-n 1 -l 127.0.0.1:0", &probe(&into(&reports_in), &["sleep"]))
        .wrapper(through_shell("exec 0<&- 1>&- 2>&-"))
        .start();
    let given = wait_reports(&reports_in, 1).into_values().next().unwrap();
    assert_eq!(shape(&given), "0=/dev/null 1=/dev/null 2=/dev/null 3=socket 4=pipe");
    running.ends_with(libc::SIGTERM, 0);
}

/// The signal masks of `sleep` when it is started in this way without panzer.
fn masks_without_panzer(wrapper: &[&str]) -> [Vec<u32>; 3] {
    let words: Vec<&str> = wrapper.iter().chain(&SLEEP).copied().collect();
    let mut child = Command::new(words[0]).args(&words[1..]).spawn().unwrap();
    wait_until("sleep was executed", || process::stat(child.id()).is_some_and(|one| one.comm == "sleep"));
    let masks = masks(child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    masks
}

fn masks(pid: u32) -> [Vec<u32>; 3] {
    ["SigBlk", "SigIgn", "SigCgt"].map(|field| process::signals_in(pid, field).unwrap())
}

#[test]
fn signal_mask_and_dispositions_are_those_of_the_caller() {
    let plain = masks_without_panzer(&[]);
    assert_eq!(plain[0], [0; 0], "the tests themselves run with an empty mask");
    let cases: [(&[&str], [&[u32]; 2]); 3] = [
        (&[], [&[], &[]]),
        (&["env", "--ignore-signal=HUP", "--ignore-signal=PIPE", "--ignore-signal=USR2"], [&[], &[1, 12, 13]]),
        (
            &["env", "--ignore-signal=CHLD", "--block-signal=USR1", "--block-signal=64", "--block-signal=CHLD"],
            [&[10, 17, 64], &[17]],
        ),
    ];
    for (wrapper, [blocked, ignored]) in cases {
        let expected = masks_without_panzer(wrapper);
        assert!(blocked.iter().all(|signal| expected[0].contains(signal)), "{expected:?}");
        assert!(ignored.iter().all(|signal| expected[1].contains(signal)), "{expected:?}");
        let running = panzer("-n 2 --ready exec --backoff 0:0", &SLEEP).wrapper(wrapper).start();
        for pid in running.wait_slots(2).into_values() {
            assert_eq!(masks(pid), expected, "{wrapper:?}");
        }
        let pid = running.kill_worker(1);
        assert_eq!(masks(pid), expected, "{wrapper:?}");
        running.ends_with(libc::SIGTERM, 0);
    }
}

/// Waits until the scripts of so many workers have executed `sleep` and need their file no more.
#[track_caller]
fn wait_sleeping(running: &Running, count: usize) {
    let is_sleep = |pid: &u32| process::stat(*pid).is_some_and(|one| one.comm == "sleep");
    wait_until("the workers sleep", || running.slots().values().filter(|pid| is_sleep(pid)).count() == count);
}

// What the kernel may refuse

/// A wrapper after which panzer and what it starts may be so many processes and no more, and the
/// command that lifts this limit, but for the process id.
fn with_processes(limit: u32) -> Option<(Vec<String>, Vec<String>)> {
    let own = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    let limit = format!("--nproc={limit}:");
    if is_root() {
        // Root itself is exempt: a user whom nobody else is.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let uid = (1_000_000 + std::process::id() * 10 + NEXT.fetch_add(1, Ordering::Relaxed)).to_string();
        let user = ["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups"];
        let wrapper = own(&[&user[..], &["prlimit", &limit]].concat());
        return Some((wrapper, own(&[&user[..], &["prlimit", "--nproc=1000:", "--pid"]].concat())));
    }
    // A user namespace counts its processes for itself.
    let works = Command::new("unshare").args(["--user", "true"]).output().is_ok_and(|output| output.status.success());
    works.then(|| (own(&["unshare", "--user", "prlimit", &limit]), own(&["prlimit", "--nproc=1000:", "--pid"])))
}

fn lift(mut command_words: Vec<String>, running: &Running) {
    command_words.push(running.panzer_pid().to_string());
    command(&command_words.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn a_worker_that_cannot_be_forked_is_started_once_the_limit_is_lifted() {
    // panzer, its guard and one worker.
    let Some((wrapper, lifting)) = with_processes(3) else {
        return left_out("RLIMIT_NPROC: this user may make no user namespace, and shares its limit with others");
    };
    let running = panzer("-n 3 --ready exec --backoff 10ms:100ms", &SLEEP).wrapper(wrapper).start();
    running.wait_lines("cannot start worker 1: Resource temporarily unavailable; trying again in ", 2);
    running.wait_lines("cannot start worker 2: Resource temporarily unavailable; trying again in ", 2);
    assert_eq!(running.wait_slots(1).into_keys().collect::<Vec<_>>(), [0]);
    lift(lifting, &running);
    let slots = running.wait_slots(3);
    running.wait_line("all 3 workers are ready");
    for slot in [1, 2] {
        let started = format!("worker {slot} (pid {}) started", slots[&slot]);
        running.wait_line(&started);
        assert_eq!(lines_with(&running, &format!("worker {slot} started")), 0, "said only of one that was started");
    }
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn even_the_guard_is_started_once_the_limit_is_lifted() {
    let Some((wrapper, lifting)) = with_processes(1) else {
        return left_out("RLIMIT_NPROC: this user may make no user namespace, and shares its limit with others");
    };
    let running = panzer("-n 1 --ready exec --backoff 10ms:100ms", &SLEEP).wrapper(wrapper).start();
    running.wait_line("cannot start the guard: Resource temporarily unavailable");
    running.wait_line("cannot start worker 0: Resource temporarily unavailable");
    lift(lifting, &running);
    running.wait_slots(1);
    wait_until("there is a guard", || running.guard().is_some());
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn term_ends_panzer_while_no_process_can_be_forked() {
    let Some((wrapper, _)) = with_processes(1) else {
        return left_out("RLIMIT_NPROC: this user may make no user namespace, and shares its limit with others");
    };
    let running = panzer("-n 2", &SLEEP).wrapper(wrapper).start();
    running.wait_lines("cannot start worker 0: Resource temporarily unavailable", 2);
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_worker_is_replaced_once_there_are_descriptors_again() {
    let running = panzer("-n 2 --ready exec --backoff 0:0", &SLEEP).start();
    let before = running.wait_slots(2);
    running.wait_line("all 2 workers are ready");
    let pid = running.pid().to_string();
    let limit = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let old = limit.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let old = old.split_ascii_whitespace().next().unwrap().to_string();
    command(&["prlimit", "--pid", &pid, "--nofile=3:"]);
    process::send_signal(before[&1], libc::SIGKILL);
    // The words differ between C libraries: "Too many open files", "No file descriptors available".
    running.wait_lines("cannot start worker 1: ", 3);
    let stderr = running.stderr();
    for line in stderr.lines().filter(|line| line.contains("cannot start worker 1: ")) {
        let cause = ["Too many open files", "No file descriptors available"].iter().any(|words| line.contains(words));
        assert!(cause && line.contains("; trying again in "), "{line}");
    }
    assert_eq!(running.slots(), BTreeMap::from([(0, before[&0])]));
    command(&["prlimit", "--pid", &pid, &format!("--nofile={old}:")]);
    let next = running.wait_replaced(1, before[&1]);
    running.wait_line(&format!("worker 1 (pid {next}) started"));
    assert_eq!(lines_with(&running, "worker 1 started"), 0, "said only of one that was started");
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_program_that_is_gone_is_tried_again_until_it_is_back() {
    let scratch = Scratch::new();
    let app = script(&scratch, "app", "#!/bin/sh\nexec sleep 100000\n");
    let away = scratch.path("away");
    let running = panzer("-n 2 --ready exec --backoff 1ms:10ms --crash-limit 2", &[text(&app)]).start();
    running.wait_slots(2);
    wait_sleeping(&running, 2);
    fs::rename(&app, &away).unwrap();
    let old = running.slots()[&1];
    process::send_signal(old, libc::SIGKILL);
    running.wait_lines(&format!("cannot run {}: No such file or directory", app.display()), 5);
    fs::rename(&away, &app).unwrap();
    running.wait_replaced(1, old);
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_directory_that_is_gone_is_tried_again_until_it_is_back() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("here")).unwrap();
    let options = format!("-n 1 --ready exec --backoff 1ms:10ms -d {}", scratch.path("here").display());
    let running = panzer(&options, &SLEEP).start();
    let old = running.wait_slots(1)[&0];
    running.wait_line("the worker is ready");
    fs::rename(scratch.path("here"), scratch.path("away")).unwrap();
    process::send_signal(old, libc::SIGKILL);
    running.wait_lines("cannot change to directory ", 3);
    fs::rename(scratch.path("away"), scratch.path("here")).unwrap();
    running.wait_replaced(0, old);
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_thousand_workers_start_run_and_stop() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nproc).current;
    if !is_root() && limit.is_some_and(|limit| limit < 2000) {
        return left_out("a thousand workers: this user may not have so many processes");
    }
    let running = panzer("-n 1000", &SLEEP).start();
    let workers = running.wait_workers(1000);
    running.wait_line("all 1000 workers are ready");
    for pid in workers.iter().step_by(97) {
        process::send_signal(*pid, libc::SIGKILL);
    }
    wait_until("the dead ones are replaced", || {
        let now = running.workers();
        now.len() == 1000 && workers.iter().step_by(97).all(|pid| !now.contains(pid))
    });
    running.ends_with(libc::SIGTERM, 0);
    assert_eq!(running.leftovers(), [0; 0]);
}

#[test]
fn auto_is_one_worker_on_one_cpu() {
    let allowed = process::status_field(std::process::id(), "Cpus_allowed_list").unwrap();
    let first = allowed.split([',', '-']).next().unwrap().to_string();
    let running = panzer("-n auto", &SLEEP).wrapper(["taskset", "-c", &first]).start();
    running.wait_line("the worker is ready");
    assert_eq!(running.slots().len(), 1);
    assert!(running.stderr().contains("workers: 1 of sleep"), "{}", running.stderr());
    running.ends_with(libc::SIGTERM, 0);
}

/// A control group that is removed again.
struct ControlGroup(PathBuf);

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // It cannot be removed before the last process in it was reaped.
        wait_until("the control group is empty", || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn auto_is_cut_by_a_quota_of_cpu_time() {
    // Version 1 has its own mount for CPU time, version 2 one for all.
    let version1 = Path::new("/sys/fs/cgroup/cpu");
    let version2 = Path::new("/sys/fs/cgroup");
    let (root, quota, value) = if version1.join("cpu.cfs_quota_us").exists() {
        (version1, "cpu.cfs_quota_us", "50000")
    } else {
        (version2, "cpu.max", "50000 100000")
    };
    let group = root.join(format!("panzer-test-{}", std::process::id()));
    if fs::create_dir(&group).is_err() {
        return left_out("no control group can be made here");
    }
    let group = ControlGroup(group);
    if fs::write(group.0.join(quota), value).is_err() {
        return left_out("there is no quota for control groups here");
    }
    // Half a CPU is one worker, however many CPUs there are.
    let join = format!("echo $$ >{}/cgroup.procs", group.0.display());
    let output = panzer("-n auto --check", &["true"]).wrapper(through_shell(&join)).run();
    assert!(output.stdout.contains("workers: 1 (auto)"), "{output:?}");
    assert_eq!(shell_status(output.status), 0);
}

// Lines on stderr

/// The members of a flat JSON object: text and numbers alone.
fn parse_json(line: &str) -> Result<BTreeMap<String, Json>, String> {
    let mut rest = line.strip_prefix('{').ok_or("no {")?;
    let mut members = BTreeMap::new();
    loop {
        let (key, after) = parse_json_text(rest)?;
        rest = after.strip_prefix(':').ok_or("no :")?;
        let value = if rest.starts_with('"') {
            let (value, after) = parse_json_text(rest)?;
            rest = after;
            Json::Text(value)
        } else {
            let end = rest.find([',', '}']).ok_or("no end")?;
            let (number, after) = rest.split_at(end);
            if number.starts_with(['+', '.', 'i', 'n']) || number.ends_with('.') {
                return Err(format!("bad number {number}"));
            }
            rest = after;
            Json::Number(number.parse().map_err(|_| format!("bad number {number}"))?)
        };
        if members.insert(key.clone(), value).is_some() {
            return Err(format!("{key} is there twice"));
        }
        match rest.split_at_checked(1) {
            Some((",", after)) => rest = after,
            Some(("}", "")) => return Ok(members),
            _ => return Err(format!("unexpected {rest:?}")),
        }
    }
}

#[derive(Debug, PartialEq)]
enum Json {
    Text(String),
    Number(f64),
}

fn parse_json_text(text: &str) -> Result<(String, &str), String> {
    let mut chars = text.strip_prefix('"').ok_or_else(|| format!("no text at {text:?}"))?.chars();
    let mut value = String::new();
    loop {
        match chars.next().ok_or("the text has no end")? {
            '"' => return Ok((value, chars.as_str())),
            '\\' => match chars.next().ok_or("the text has no end")? {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                'u' => {
                    let digits: String = chars.by_ref().take(4).collect();
                    let code = u32::from_str_radix(&digits, 16).map_err(|_| format!("bad escape {digits}"))?;
                    value.push(char::from_u32(code).ok_or("half a character")?);
                }
                other if "\"\\/".contains(other) => value.push(other),
                other => return Err(format!("bad escape {other}")),
            },
            control if control < ' ' => return Err("a control character".to_string()),
            other => value.push(other),
        }
    }
}

#[test]
fn every_line_is_json_where_json_is_asked_for() {
    let scratch = Scratch::new();
    let odd = script(&scratch, "a \"b\" \\ \u{e9}\tc", "#!/bin/sh\nexec sleep 100000\n");
    let options = "-n 2 -v --log-format json --ready exec --backoff 0:0 -l 127.0.0.1:0";
    let running = panzer(options, &[text(&odd)]).start();
    let before = running.wait_slots(2);
    running.kill_worker(1);
    running.signal(libc::SIGUSR2);
    running.signal(libc::SIGWINCH);
    running.wait_line("SIGWINCH");
    wait_sleeping(&running, 2);
    fs::rename(&odd, scratch.path("away")).unwrap();
    process::send_signal(before[&0], libc::SIGKILL);
    running.wait_line("cannot run ");
    fs::rename(scratch.path("away"), &odd).unwrap();
    running.wait_replaced(0, before[&0]);
    running.ends_with(libc::SIGTERM, 0);

    let mut events = BTreeSet::new();
    for line in running.stderr().lines() {
        let members = parse_json(line).unwrap_or_else(|problem| panic!("{problem}: {line}"));
        let text = |key: &str| match members.get(key) {
            Some(Json::Text(text)) => text.clone(),
            other => panic!("{key} is {other:?}: {line}"),
        };
        let number = |key: &str| match members.get(key) {
            Some(Json::Number(number)) => Some(*number),
            None => None,
            other => panic!("{key} is {other:?}: {line}"),
        };
        assert!(number("ts").is_some_and(|ts| ts > 1.7e9), "{line}");
        assert!(["error", "warning", "info", "debug"].contains(&text("level").as_str()), "{line}");
        assert!(!text("message").is_empty(), "{line}");
        assert!(text("event").bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{line}");
        if text("event") == "worker_ended" && text("message").contains("SIGKILL") {
            assert!(number("slot").is_some_and(|slot| slot < 2.0), "{line}");
            assert!(number("pid").is_some_and(|pid| pid > 1.0), "{line}");
        }
        if text("message").contains("cannot run") {
            assert!(text("message").contains("a \"b\" \\ \u{e9}"), "{line}");
        }
        events.insert(text("event"));
    }
    for event in ["started", "worker_started", "worker_ready", "all_ready", "worker_ended", "signal_unavailable"] {
        assert!(events.contains(event), "no {event} in {events:?}");
    }
    for event in ["signal_forwarded", "stopping", "worker_stopped", "finished"] {
        assert!(events.contains(event), "no {event} in {events:?}");
    }
}

#[test]
fn a_refusal_is_json_too_where_json_is_asked_for() {
    let output = panzer("-n 1 --log-format json", &["/no/such/program"]).run();
    assert_eq!(shell_status(output.status), 127);
    let members = parse_json(output.stderr.trim_end()).unwrap_or_else(|problem| panic!("{problem}: {}", output.stderr));
    assert_eq!(members["level"], Json::Text("error".to_string()));
}

#[test]
fn quiet_prints_warnings_alone() {
    let running = panzer("-n 2 -q --ready exec --backoff 0:0", &SLEEP).start();
    running.wait_slots(2);
    running.kill_worker(0);
    running.ends_with(libc::SIGTERM, 0);
    let stderr = running.stderr();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("was killed by SIGKILL"), "{stderr}");
}

#[test]
fn verbose_prints_every_start_readiness_signal_and_end() {
    let running = panzer("-n 2 -v --ready exec", &SLEEP).start();
    let slots = running.wait_slots(2);
    running.wait_line("all 2 workers are ready");
    running.signal(libc::SIGURG);
    running.wait_line("SIGURG: forwarded to 2 workers");
    running.ends_with(libc::SIGTERM, 0);
    for (slot, pid) in slots {
        for what in ["started", "is ready", "was killed by SIGTERM"] {
            assert_eq!(lines_with(&running, &format!("worker {slot} (pid {pid}) {what}")), 1, "{}", running.stderr());
        }
    }
    assert_eq!(running.stdout(), "", "panzer writes nothing to stdout");
}

/// A named pipe, opened for reading and writing so that no open of it waits.
fn named_pipe(scratch: &Scratch) -> (PathBuf, fs::File) {
    let path = scratch.path("stderr");
    command(&["mkfifo", &text(&path)]);
    let options = || fs::OpenOptions::new();
    let file = options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    (path, file)
}

/// Starts panzer with two workers and its stderr in a named pipe.
fn with_stderr(path: &Path) -> Running {
    let wrapper = through_shell(&format!("exec 2>>{}", path.display()));
    let running = panzer("-n 2 -v --ready exec --backoff 0:0", &SLEEP).wrapper(wrapper).start();
    running.wait_slots(2);
    running
}

#[test]
fn a_stderr_that_nobody_reads_does_not_stop_panzer() {
    let scratch = Scratch::new();
    let (path, mut pipe) = named_pipe(&scratch);
    let running = with_stderr(&path);
    // Up to the last byte; what panzer has written is in there too.
    for size in [4096, 1] {
        while pipe.write(&vec![b'x'; size]).is_ok() {}
    }
    for round in 0..25 {
        running.kill_worker(round % 2);
    }
    // A reader that comes back is told how much it missed.
    let mut read = String::new();
    let mut buffer = [0; 65536];
    wait_for("panzer's next line says how many were lost", || {
        if let Ok(count) = pipe.read(&mut buffer) {
            read.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        running.kill_worker(0);
        read.contains(" lines before this one were lost)").then_some(())
    });
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_full_stderr_does_not_stop_panzer_from_stopping() {
    let scratch = Scratch::new();
    let (path, mut pipe) = named_pipe(&scratch);
    let running = with_stderr(&path);
    for size in [4096, 1] {
        while pipe.write(&vec![b'x'; size]).is_ok() {}
    }
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_stderr_whose_reader_is_gone_does_not_stop_panzer() {
    let scratch = Scratch::new();
    let reports_in = open_directory(&scratch, "reports");
    let (path, pipe) = named_pipe(&scratch);
    let record = text(scratch.path("record"));
    let wrapper = through_shell(&format!("exec 2>>{}", path.display()));
    let worker = sh(&format!("exec {} record={record}.$$", probe(&into(&reports_in), &[]).join(" ")));
    let running = panzer("-n 2 -v --ready exec --backoff 0:0", &worker).wrapper(wrapper).start();
    wait_reports(&reports_in, 2);
    drop(pipe);
    for round in 0..25 {
        running.kill_worker(round % 2);
    }
    wait_until("the last ones have reported", || {
        let (slots, reports) = (running.slots(), reports(&reports_in));
        slots.len() == 2 && slots.values().all(|pid| reports.contains_key(pid))
    });
    running.signal(64);
    for pid in running.wait_slots(2).into_values() {
        // The PIPE that panzer's own lines raise is nobody else's.
        wait_recorded(&scratch.path(&format!("record.{pid}")), &[64]);
    }
    running.ends_with(libc::SIGQUIT, 137);
}

#[test]
fn panzer_is_executed_from_the_file_under_test() {
    // A wrapper or an old binary in the path would make every other test worthless.
    let running = Panzer::new(["-n", "1", "sleep", "100000"]).start();
    running.wait_slots(1);
    let executed = fs::read_link(format!("/proc/{}/exe", running.pid())).unwrap();
    assert_eq!(executed, binary().canonicalize().unwrap());
    running.ends_with(libc::SIGTERM, 0);
}
