//! `--pid-file` and `--status-file`: right at every moment, nobody else's, and gone at the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::lives::{GATED, Life, READY, Service};
use crate::support::panzer::{Output, Running};
use crate::support::scratch::Scratch;
use crate::support::worker::{panzer, text};
use crate::support::{holds_for, process, wait_until};

/// How long a thing that must not happen is watched for.
const WATCH: Duration = Duration::from_millis(300);

/// A worker that ends at TERM.
const SLEEP: [&str; 2] = ["sleep", "100000"];

/// Starts panzer with one worker and this pid file, and waits until it is there.
#[track_caller]
fn with_pid_file(path: &Path) -> Running {
    let running = panzer(&format!("-n 1 --ready exec --pid-file {}", path.display()), &SLEEP).start();
    running.wait_line("the worker is ready");
    wait_pid_file(&running, path);
    // The guard was forked with all that panzer has open, and lets go of it as soon as it runs.
    wait_until("nobody but panzer has it open", || {
        running.descendants().into_iter().all(|process| {
            let mut open = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
            !open.any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == path))
        })
    });
    running
}

#[track_caller]
fn wait_pid_file(running: &Running, path: &Path) {
    let expected = format!("{}\n", running.panzer_pid());
    wait_until("the pid file holds panzer's pid", || fs::read_to_string(path).is_ok_and(|text| text == expected));
}

/// Makes sure that panzer has refused: one line, with all of these parts.
#[track_caller]
fn assert_refused(output: &Output, parts: &[&str]) {
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    assert!(output.stderr.starts_with("panzer: cannot "), "{output:?}");
    assert!(parts.iter().all(|part| output.stderr.contains(part)), "{parts:?}: {output:?}");
}

/// What a directory holds.
fn names(scratch: &Scratch) -> Vec<String> {
    let entries = fs::read_dir(scratch.directory()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|name| name.to_str().unwrap().to_string()).collect();
    names.sort();
    names
}

// The pid file

#[test]
fn the_pid_file_holds_panzers_pid_and_is_gone_at_the_end() {
    let scratch = Scratch::new();
    let running = with_pid_file(&scratch.path("pid"));
    assert_eq!(names(&scratch), ["pid"], "nothing else is left there");
    running.kill_worker(0);
    wait_pid_file(&running, &scratch.path("pid"));
    running.ends_with(libc::SIGTERM, 0);
    assert_eq!(names(&scratch), [""; 0]);
}

#[test]
fn the_files_may_be_given_by_variables_and_relative_to_where_panzer_was_started() {
    let scratch = Scratch::new();
    let running = panzer("-n 1 --ready exec -d /", &SLEEP)
        .cwd(scratch.directory())
        .env("PANZER_PID_FILE", "pid")
        .env("PANZER_STATUS_FILE", "status")
        .start();
    running.wait_line("the worker is ready");
    wait_pid_file(&running, &scratch.path("pid"));
    wait_status(&running, &scratch.path("status"), &running.wait_generation(1, 1));
    running.ends_with(libc::SIGTERM, 0);
    assert_eq!(names(&scratch), [""; 0]);
}

#[test]
fn a_second_panzer_with_the_same_pid_file_is_refused_and_told_the_pid() {
    let scratch = Scratch::new();
    let path = scratch.path("pid");
    let running = with_pid_file(&path);
    let lives = running.lives();
    let started = scratch.path("started");
    for _ in 0..2 {
        let options = format!("-n 1 --pid-file {}", path.display());
        let output = panzer(&options, &["touch", &text(&started)]).run();
        assert_refused(&output, &[&text(&path), &running.pid().to_string()]);
        assert!(!started.exists(), "nothing was started");
    }
    wait_pid_file(&running, &path);
    assert_eq!((running.lives(), names(&scratch)), (lives, vec!["pid".to_string()]));
    running.ends_with(libc::SIGTERM, 0);
    // Now it can have it.
    with_pid_file(&path).ends_with(libc::SIGTERM, 0);
    assert!(!path.exists());
}

#[test]
fn a_pid_file_that_a_killed_panzer_left_is_no_hindrance() {
    let scratch = Scratch::new();
    let path = scratch.path("pid");
    for _ in 0..3 {
        let running = with_pid_file(&path);
        running.kill();
        running.wait_exit();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", running.pid()), "it is stale now");
        // At once: what the killed one left may still be going.
        let next = with_pid_file(&path);
        next.ends_with(libc::SIGTERM, 0);
        assert!(!path.exists());
        wait_until("all of the killed one are gone", || running.leftovers().is_empty());
    }
}

#[test]
fn a_stale_pid_file_is_taken_whatever_it_holds() {
    let scratch = Scratch::new();
    let path = scratch.path("pid");
    // Of one that lives, and of none.
    for content in [format!("{}\n", std::process::id()), "1\n".to_string(), String::new(), "nonsense".repeat(1000)] {
        fs::write(&path, &content).unwrap();
        with_pid_file(&path).ends_with(libc::SIGTERM, 0);
        assert!(!path.exists());
    }
}

#[test]
fn a_pid_file_of_somebody_else_in_the_place_of_ours_is_not_removed() {
    let scratch = Scratch::new();
    let path = scratch.path("pid");
    for renamed in [true, false] {
        let running = with_pid_file(&path);
        if renamed {
            let other = scratch.write("other", "999999\n");
            fs::rename(other, &path).unwrap();
        } else {
            fs::write(&path, "999999\n").unwrap();
        }
        running.ends_with(libc::SIGTERM, 0);
        assert_eq!(fs::read_to_string(&path).unwrap(), "999999\n", "renamed: {renamed}");
    }
    fs::remove_file(&path).unwrap();
    // One that is gone is nothing to fail for.
    let running = with_pid_file(&path);
    fs::remove_file(&path).unwrap();
    running.ends_with(libc::SIGTERM, 0);
    assert_eq!(names(&scratch), [""; 0]);
}

#[test]
fn no_process_but_panzer_holds_the_pid_file_or_its_lock() {
    let scratch = Scratch::new();
    let path = scratch.path("pid");
    let running = with_pid_file(&path);
    for process in running.descendants() {
        for entry in fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            assert!(!target.starts_with(scratch.directory()), "{process}: {}", target.display());
        }
    }
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_file_that_cannot_be_made_is_refused_and_check_makes_none() {
    let scratch = Scratch::new();
    let started = scratch.path("started");
    let missing = scratch.path("missing/file");
    let directory = scratch.path("directory");
    fs::create_dir(&directory).unwrap();
    for option in ["--pid-file", "--status-file"] {
        for path in [&missing, &directory] {
            let output = panzer(&format!("-n 1 {option} {}", path.display()), &["touch", &text(&started)]).run();
            assert_refused(&output, &[&text(path)]);
            assert!(!started.exists(), "nothing was started");
        }
        let output = panzer(&format!("-n 1 --check {option} {}", scratch.path("file").display()), &SLEEP).run();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    assert_eq!(names(&scratch), ["directory"]);
}

// The status file

/// What the status file should be with these lives.
fn status_of(lives: &[Life]) -> String {
    lives.iter().map(|life| format!("{}:{}\n", life.generation, life.pid)).collect()
}

#[track_caller]
fn wait_status(running: &Running, path: &Path, lives: &[Life]) {
    let expected = status_of(lives);
    wait_until(&format!("the status file says {expected:?}"), || {
        assert_eq!(running.try_exit(), None, "panzer has ended");
        fs::read_to_string(path).is_ok_and(|text| text == expected)
    });
}

/// A service with a status file, and the file's path.
#[track_caller]
fn with_status_file(options: &str, script: &str) -> (Service, PathBuf) {
    let service = Service::start(&format!("{options} --status-file $DIR/status"), script);
    let path = service.scratch.path("status");
    (service, path)
}

#[test]
fn the_status_file_has_a_line_for_each_worker_and_follows_them() {
    let (service, path) = with_status_file("-n 3 --ready fd --backoff 0:0", READY);
    service.wait_line("all 3 workers are ready");
    let first = service.running.wait_generation(1, 3);
    wait_status(&service.running, &path, &first);
    service.running.kill_worker(1);
    let second = service.running.wait_generation(1, 3);
    assert_ne!(first, second);
    wait_status(&service.running, &path, &second);
    service.running.signal(libc::SIGTTIN);
    wait_status(&service.running, &path, &service.running.wait_generation(1, 4));
    service.running.signal(libc::SIGTTOU);
    wait_status(&service.running, &path, &service.running.wait_generation(1, 3));
    service.end();
    assert!(!path.exists());
}

#[test]
fn the_status_file_shows_both_generations_during_a_reload() {
    let (service, path) = with_status_file("-n 2 --ready fd", GATED);
    service.wait_line("all 2 workers are ready");
    wait_status(&service.running, &path, &service.running.wait_generation(1, 2));
    service.running.signal(libc::SIGHUP);
    // One more than there are slots.
    wait_status(&service.running, &path, &service.running.wait_places(&[(1, 0), (1, 1), (2, 0)]));
    service.touch("go.0");
    wait_status(&service.running, &path, &service.running.wait_places(&[(1, 1), (2, 0), (2, 1)]));
    service.touch("go.1");
    wait_status(&service.running, &path, &service.running.wait_generation(2, 2));
    service.end();
    assert!(!path.exists());
}

#[test]
fn the_status_file_is_right_after_a_reload_that_failed() {
    let script = "[ $PANZER_GENERATION = 2 ] && exit 7\nexec $PROBE - ready sleep >/dev/null";
    let (service, path) = with_status_file("-n 2 --ready fd", script);
    service.wait_line("all 2 workers are ready");
    let lives = service.running.wait_generation(1, 2);
    service.running.signal(libc::SIGHUP);
    service.wait_line("the old workers stay\n");
    wait_status(&service.running, &path, &lives);
    wait_status(&service.running, &path, &service.reload(3, 2));
    service.end();
}

#[test]
fn the_status_file_is_whole_whenever_it_is_read() {
    let (service, path) = with_status_file("-n 4 --ready exec --backoff 0:0", "exec sleep 100000");
    service.wait_line("all 4 workers are ready");
    service.running.wait_generation(1, 4);
    let is_line = |line: &str| {
        let numbers: Vec<Option<u32>> = line.split(':').map(|word| word.parse().ok()).collect();
        matches!(numbers[..], [Some(1), Some(_)])
    };
    for round in 0..20 {
        let old = service.running.slots().get(&(round % 4)).copied();
        if let Some(old) = old {
            process::send_signal(old, libc::SIGKILL);
        }
        for _ in 0..20 {
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.ends_with('\n') && text.lines().all(is_line), "{text:?}");
            assert!((1..=4).contains(&text.lines().count()), "{text:?}");
        }
    }
    wait_status(&service.running, &path, &service.running.wait_generation(1, 4));
    assert_eq!(names(&service.scratch), ["app", "status"], "nothing else is left there");
    service.end();
}

#[test]
fn a_status_file_from_before_is_replaced() {
    let scratch = Scratch::new();
    let path = scratch.write("status", "7:1\n7:2\n7:3\n");
    let service = Service::start_in(scratch, "-n 1 --ready fd --status-file $DIR/status", READY);
    service.wait_line("the worker is ready");
    let lives = service.running.wait_generation(1, 1);
    wait_status(&service.running, &path, &lives);
    let expected = status_of(&lives);
    holds_for(WATCH, "it stays", || fs::read_to_string(&path).is_ok_and(|text| text == expected));
    service.end();
    assert!(!path.exists());
}
