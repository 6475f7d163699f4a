//! What attacks on reloads, heartbeats, queues and files have found, each as a scenario.

use std::fs;
use std::thread;
use std::time::Duration;

use crate::support::lives::{READY, Service, pids, places};
use crate::support::load;
use crate::support::panzer::shell_status;
use crate::support::ports::{free_port, local};
use crate::support::scratch::Scratch;
use crate::support::worker::{panzer, sh, text};
use crate::support::{example, holds_for, process, wait_until};

/// How long a thing that must not happen is watched for.
const WATCH: Duration = Duration::from_millis(500);

/// The answers of so many requests, each from another connection: by whom.
#[track_caller]
fn answers(port: u16, count: usize) -> Vec<String> {
    let one = |_| load::one(&local(port).into()).unwrap_or_else(|failure| panic!("{failure}"));
    (0..count).map(one).map(|body| crate::support::binders::word(&body, "worker=")).collect()
}

#[test]
fn a_successor_that_fails_does_not_take_its_slot_out_of_rotation() {
    let port = free_port();
    let serves = format!("exec {} 127.0.0.1:{port}", text(example("hello")));
    let service = Service::start("-n 2 --balance per-worker --ready bind", &serves);
    service.wait_line("all 2 workers are ready");
    // Its second life is one that boots for ever.
    service.release("[ $PANZER_GENERATION = 1 ] && exec sleep 1000; exit 1");
    service.running.signal(libc::SIGHUP);
    service.wait_line("cannot reload to generation 2");
    service.running.kill_worker(1);
    service.wait_line("worker 1 (pid ");
    // Nobody else is there, and this one is.
    assert!(answers(port, 40).iter().all(|worker| worker == "0"));
    service.end();
}

/// How many clock ticks a process has used (`proc_pid_stat(5)`).
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn what_the_group_of_an_ended_worker_goes_on_to_say_costs_nothing() {
    let script = "if [ ! -e $DIR/once ]; then
touch $DIR/once
(trap '' TERM; while :; do echo >&$PANZER_HEARTBEAT_FD; sleep 0.01; done) &
sleep 0.2; exit 1
fi
exec $PROBE - ready sleep >/dev/null";
    let service = Service::start("-n 1 --ready fd --watchdog 1h --stop TERM/1000/KILL --crash-limit 0", script);
    service.wait_line("left processes behind in its group");
    service.wait_line("the worker is ready");
    let before = ticks(service.running.panzer_pid());
    thread::sleep(Duration::from_secs(1));
    // A hundred ticks are all that one second has.
    assert!(ticks(service.running.panzer_pid()) - before < 20);
    service.running.ends_with(libc::SIGQUIT, 137);
}

#[test]
fn a_reload_ends_when_every_slot_has_had_a_ready_worker_of_it_also_where_they_crash_later() {
    let script = "[ $PANZER_GENERATION = 2 ] && exec $PROBE - ready exit=1 >/dev/null
exec $PROBE - ready sleep >/dev/null";
    let service = Service::start("-n 4 --ready fd --backoff 100ms:1h", script);
    service.wait_line("all 4 workers are ready");
    service.running.signal(libc::SIGHUP);
    service.wait_line("reloaded: all 4 workers are of generation 2");
    // So the next one can mend it.
    service.reload(3, 4);
    service.end();
}

#[test]
fn a_reload_that_is_tried_without_end_makes_way_for_the_next_one() {
    let service = Service::start("-n 2 --ready fd --reload-tries 0 --backoff 50ms:100ms", READY);
    // Before they are ready they may not have read their script yet.
    service.wait_line("all 2 workers are ready");
    let old = service.running.wait_generation(1, 2);
    service.release("exit 1");
    service.running.signal(libc::SIGHUP);
    service.wait_line("; trying generation 2 again");
    assert_eq!(service.running.wait_lives("the old ones", |lives| places(lives) == [(1, 0), (1, 1)]), old);
    service.release(READY);
    // What fails next gives way, what works is the second generation after all.
    service.running.signal(libc::SIGHUP);
    service
        .running
        .wait_lives("none of the first", |lives| lives.len() == 2 && lives.iter().all(|one| one.generation > 1));
    service.wait_line("reloaded: all 2 workers are of generation ");
    service.end();
}

#[test]
fn beats_that_wait_to_be_read_are_heard_before_anybody_is_taken_for_silent() {
    let script = "printf '\\n' >&$PANZER_READY_FD; while :; do echo >&$PANZER_HEARTBEAT_FD; sleep 0.1; done";
    let service = Service::start("-n 8 --ready fd --watchdog 4s", script);
    service.wait_line("all 8 workers are ready");
    let before = service.running.wait_generation(1, 8);
    process::send_signal(service.running.panzer_pid(), libc::SIGSTOP);
    thread::sleep(Duration::from_secs(5));
    process::send_signal(service.running.panzer_pid(), libc::SIGCONT);
    service.running.settle();
    holds_for(WATCH, "nobody is silent", || service.running.count_lines(&["silent"]) == 0);
    assert_eq!(service.running.lives(), before);
    service.end();
}

#[test]
fn of_two_panzers_that_are_started_at_once_one_has_the_pid_file() {
    for _ in 0..10 {
        let scratch = Scratch::new();
        let path = scratch.path("pid");
        let option = format!("-n 1 --pid-file {}", path.display());
        let both = [panzer(&option, &["sleep", "1000"]).start(), panzer(&option, &["sleep", "1000"]).start()];
        wait_until("one has ended", || both.iter().any(|one| one.try_exit().is_some()));
        let (ended, lives): (Vec<_>, Vec<_>) = both.iter().partition(|one| one.try_exit().is_some());
        assert_eq!((ended.len(), lives.len()), (1, 1));
        assert_eq!(shell_status(ended[0].wait_exit()), 125);
        wait_until("it has its pid", || {
            fs::read_to_string(&path).is_ok_and(|pid| pid == format!("{}\n", lives[0].panzer_pid()))
        });
        lives[0].ends_with(libc::SIGTERM, 0);
    }
}

#[test]
fn a_worker_that_asks_for_less_time_than_it_has_keeps_what_it_has() {
    let script = "exec $PROBE - notify=EXTEND_TIMEOUT_USEC=1000 wait=$DIR/go notify=READY=1 sleep >/dev/null";
    let service = Service::start("-n 1 --ready notify --ready-timeout 1h", script);
    service.running.wait_generation(1, 1);
    holds_for(WATCH, "nobody is stopped", || service.running.count_lines(&["was not ready"]) == 0);
    service.touch("go");
    service.wait_line("the worker is ready");
    service.end();
}

#[test]
fn with_stagger_a_slot_that_crashes_all_the_time_does_not_keep_the_others_waiting() {
    let script = "[ $PANZER_WORKER_ID = 0 ] && [ -e $DIR/crash ] && exit 1
exec $PROBE - ready sleep >/dev/null";
    let service = Service::start("-n 2 --ready fd --stagger 100ms --backoff 10ms:10ms", script);
    service.wait_line("all 2 workers are ready");
    service.touch("crash");
    service.running.kill_worker(0);
    service.running.wait_lines("worker 0 (pid ", 4);
    service.running.kill_worker(1);
    service.running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_worker_that_says_that_it_is_stopping_and_hangs_is_replaced() {
    let script = "[ -e $DIR/once ] && exec $PROBE - ready sleep >/dev/null
touch $DIR/once; exec $PROBE - ready wait=$DIR/go notify=STOPPING=1 sleep >/dev/null";
    let service = Service::start("-n 1 --ready fd --watchdog 1h --reload-stop TERM/1/KILL", script);
    let first = service.running.wait_generation(1, 1);
    service.touch("go");
    service.wait_line("said that it was stopping and has not ended; stopping it, starting a new one");
    service.running.wait_lives("another one", |lives| lives.len() == 1 && pids(lives) != pids(&first));
    service.end();
}

#[test]
fn recycling_waits_for_the_reload_to_have_replaced_the_worker() {
    let service = Service::start("-n 2 --ready fd --max-age 300ms", "sleep 0.3; exec $PROBE - ready sleep >/dev/null");
    service.wait_line("all 2 workers are ready");
    let seen = service.running.stderr().matches("replacing it").count();
    service.running.signal(libc::SIGHUP);
    service.wait_line("reloaded: all 2 workers are of generation 2");
    let log = service.running.stderr();
    let during = log.split("SIGHUP: reloading").nth(1).unwrap().split("reloaded: ").next().unwrap();
    // Those that the reload has replaced already may be old again.
    assert!(during.matches("replacing it").count() <= 2, "{seen}\n{log}");
    service.running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn options_about_workers_that_an_image_sets_do_nothing_without_them() {
    let scratch = Scratch::new();
    let output = panzer("", &sh("exit 7"))
        .env("PANZER_PID_FILE", scratch.path("pid"))
        .env("PANZER_STATUS_FILE", scratch.path("status"))
        .env("PANZER_WATCHDOG", "1")
        .env("PANZER_READY", "notify")
        .run();
    assert_eq!(shell_status(output.status), 7, "{}", output.stderr);
    assert!(!scratch.path("pid").exists() && !scratch.path("status").exists());
    let output = panzer("--on HUP=reload", &["true"]).run();
    assert_eq!(shell_status(output.status), 125);
    assert!(output.stderr.contains("cannot use --on for SIGHUP: what it is to do needs -n"), "{}", output.stderr);
}

#[test]
fn a_worker_that_hung_and_is_not_started_again_is_no_success() {
    let running = panzer("-n 1 --restart never --ready exec --watchdog 1s --stop KILL", &["sleep", "1000"])
        .wrapper(["sh", "-c", "ulimit -c 0; exec \"$@\"", "sh"])
        .start();
    running.wait_line("was silent for 1s; sent SIGABRT, it is not started again");
    assert_eq!(shell_status(running.wait_exit()), 125);
}
