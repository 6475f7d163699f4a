//! How workers say that they are ready, that they are alive, and what else they have to say: `--ready`, `--watchdog`.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use crate::support::binders::{Binders, binder, is_root, left_out, word};
use crate::support::lives::{Life, READY, Service};
use crate::support::load::{self, Failure};
use crate::support::panzer::{Running, binary, shell_status};
use crate::support::ports::{free_port, local};
use crate::support::report::{Report, recorded};
use crate::support::worker::{panzer, probe, sh, text};
use crate::support::{example, holds_for, process, wait_for, wait_until};

/// How long a thing that must not happen is watched for.
const WATCH: Duration = Duration::from_millis(500);

/// How often panzer has said that a worker of this slot is ready.
fn ready(running: &Running, slot: u32) -> usize {
    let lines = running.stderr();
    lines.lines().filter(|line| line.contains(&format!("worker {slot} (pid ")) && line.ends_with(" is ready")).count()
}

#[track_caller]
fn wait_ready(service: &Service, slot: u32, count: usize) {
    wait_until(&format!("worker {slot} is ready, {count}"), || ready(&service.running, slot) >= count);
}

/// A script in which slot 0 does one thing and all others another; both are actions of the probe.
fn first_and_others(first: &str, others: &str) -> String {
    format!(
        "[ $PANZER_WORKER_ID = 0 ] && exec $PROBE - {first} >/dev/null
exec $PROBE - {others} >/dev/null"
    )
}

/// The life in a slot.
#[track_caller]
fn life(service: &Service, slot: u32) -> Life {
    wait_for("the slot has a life", || service.running.lives().into_iter().find(|life| life.slot == slot))
}

// What a worker is given

#[test]
fn a_worker_is_given_the_numbers_of_its_descriptors_and_no_other_descriptors() {
    // Listeners, PANZER_PARENT_FD, and what follows it.
    for (options, count, names) in [
        ("--ready exec", 4, &["PANZER_PARENT_FD"][..]),
        ("--ready fd", 5, &["PANZER_PARENT_FD", "PANZER_READY_FD"]),
        ("--ready exec --watchdog 1h", 5, &["PANZER_PARENT_FD", "PANZER_HEARTBEAT_FD"]),
        ("--ready fd --watchdog 1h", 6, &["PANZER_PARENT_FD", "PANZER_READY_FD", "PANZER_HEARTBEAT_FD"]),
        ("--ready notify --watchdog 1h", 5, &["PANZER_PARENT_FD", "PANZER_HEARTBEAT_FD"]),
    ] {
        for (listeners, first) in [("", 3), ("-l 127.0.0.1:0 -l udp://127.0.0.1:0", 5)] {
            let script = "exec $PROBE $DIR/report.$PANZER_WORKER_ID.$$ sleep";
            let service = Service::start(&format!("-n 2 --backoff 0:0 --crash-limit 0 {options} {listeners}"), script);
            let report =
                |life: Life| Report::wait(&service.scratch.path(&format!("report.{}.{}", life.slot, life.pid)));
            let before = life(&service, 1);
            report(before);
            // A later life, too.
            process::send_signal(before.pid, libc::SIGKILL);
            let after = wait_for("it is replaced", || Some(life(&service, 1)).filter(|life| *life != before));
            for given in [report(life(&service, 0)), report(after)] {
                let descriptors = given.descriptors();
                let numbers: Vec<u32> = descriptors.iter().map(|one| one.number).collect();
                assert_eq!(numbers, (0..count + first - 3).collect::<Vec<_>>(), "{options} {listeners}: {given:?}");
                assert!(descriptors.iter().all(|one| !one.cloexec), "{given:?}");
                for (number, name) in (first..).zip(names) {
                    assert_eq!(given.env(name), Some(number.to_string().as_str()), "{options} {listeners}");
                }
                for name in ["PANZER_READY_FD", "PANZER_HEARTBEAT_FD"] {
                    assert_eq!(given.env(name).is_some(), names.contains(&name), "{options}: {name}");
                }
                let notify = options.contains("notify") || options.contains("--watchdog");
                assert_eq!(given.env("NOTIFY_SOCKET").is_some(), notify, "{options}");
                assert!(given.env("NOTIFY_SOCKET").is_none_or(|name| name.starts_with('@')), "{given:?}");
                let watchdog = options.contains("--watchdog").then_some("3600000000");
                assert_eq!(given.env("WATCHDOG_USEC"), watchdog, "{options}");
            }
            service.end();
        }
    }
}

#[test]
fn each_life_has_a_socket_of_its_own() {
    let service = Service::start(
        "-n 2 --ready notify --backoff 0:0",
        &first_and_others("notify=READY=1 sleep", "notify=READY=1 sleep"),
    );
    service.wait_line("all 2 workers are ready");
    let name = |slot| life(&service, slot).env("NOTIFY_SOCKET").unwrap();
    let first = name(0);
    assert_ne!(first, name(1));
    service.running.kill_worker(0);
    wait_until("its next life has another one", || name(0) != first);
    service.end();
}

// Ready by notify

#[test]
fn ready_by_notify_counts_for_the_worker_that_said_so_and_for_no_other() {
    let service =
        Service::start("-n 3 -v --ready notify", &first_and_others("wait=$DIR/go notify=READY=1 sleep", "sleep"));
    service.running.wait_generation(1, 3);
    holds_for(WATCH, "none is ready", || service.running.count_lines(&["is ready"]) == 0);
    service.touch("go");
    wait_ready(&service, 0, 1);
    holds_for(WATCH, "the others are not", || ready(&service.running, 1) + ready(&service.running, 2) == 0);
    service.end();
}

#[test]
fn ready_may_come_from_any_process_of_the_worker() {
    for sender in [
        "$PROBE - notify=READY=1 >/dev/null & exec sleep 100000",
        "$PROBE - notify=READY=1 >/dev/null; exec sleep 100000",
        // Forked twice, in a session of its own, its parents gone.
        "(setsid $PROBE - notify=READY=1 sleep >/dev/null &); exec sleep 100000",
        "(setsid sh -c '(setsid $PROBE - notify=READY=1 >/dev/null &)' &); exec sleep 100000",
        "exec env -u PANZER_WORKER_ID -u PANZER_PID $PROBE - notify=READY=1 sleep >/dev/null",
        "exec $PROBE - 'notify=FOO=bar\\nSTATUS=all is well\\nREADY=1\\n' sleep >/dev/null",
    ] {
        let script = format!("[ $PANZER_WORKER_ID = 1 ] || exec sleep 100000\n{sender}");
        let service = Service::start("-n 3 -v --ready notify --linger 20s", &script);
        wait_ready(&service, 1, 1);
        service.running.settle();
        assert_eq!(service.running.count_lines(&["is ready"]), 1, "{sender}: {}", service.running.stderr());
        service.end();
    }
}

#[test]
fn a_message_counts_whose_sender_is_gone_before_it_is_read() {
    let script = "[ $PANZER_WORKER_ID = 1 ] || exec sleep 100000
$PROBE - wait=$DIR/go notify=READY=1 >/dev/null
: >$DIR/gone
exec sleep 100000";
    let service = Service::start("-n 2 -v --ready notify", script);
    service.running.wait_generation(1, 2);
    // So that it reads nothing.
    service.running.signal(libc::SIGSTOP);
    let panzer = service.running.panzer_pid();
    wait_until("panzer is stopped", || process::stat(panzer).is_some_and(|one| one.state == 'T'));
    service.touch("go");
    wait_until("the sender is gone", || service.scratch.path("gone").exists());
    service.running.signal(libc::SIGCONT);
    wait_ready(&service, 1, 1);
    service.running.settle();
    assert_eq!(ready(&service.running, 0), 0);
    service.end();
}

#[test]
fn what_is_left_of_an_earlier_life_cannot_make_the_next_one_ready() {
    let script = "mkdir $DIR/once 2>/dev/null && (setsid sh -c ': >$DIR/apart; $PROBE - wait=$DIR/go notify=READY=1 >/dev/null; : >$DIR/said' &)
until [ -e $DIR/apart ]; do sleep 0.02; done
echo $$ >>$DIR/lives
exec sleep 100000";
    let service = Service::start("-n 1 -v --ready notify --backoff 0:0 --crash-limit 0", script);
    let old = wait_for("the first life", || service.lines("lives").first()?.parse().ok());
    process::send_signal(old, libc::SIGKILL);
    wait_until("the next life is there", || service.lines("lives").len() == 2);
    service.touch("go");
    wait_until("it was said", || service.scratch.path("said").exists());
    holds_for(WATCH, "none is ready", || ready(&service.running, 0) == 0);
    service.end();
}

#[test]
fn garbage_and_floods_of_messages_do_not_disturb() {
    for noise in [
        "notify-garbage",
        "notify-size=65536 notify-size=100000 notify-size=4096",
        "notify-many=10000",
        "barrier=300",
        "notify=MAINPID=1 notify=MAINPID=0 notify=MAINPID=-1 notify=MAINPID=x notify=MAINPID=99999999999 notify=MAINPID=$PPID",
        "notify=EXTEND_TIMEOUT_USEC=x notify=EXTEND_TIMEOUT_USEC=-1 notify=EXTEND_TIMEOUT_USEC=99999999999999999999",
        "notify=WATCHDOG_USEC=x notify=WATCHDOG=2 notify=WATCHDOG=1 notify=ERRNO=2 notify=BUSERROR=x notify=FDSTORE=1",
    ] {
        let script = first_and_others(
            &format!("{noise} touch=$DIR/quiet wait=$DIR/go notify=READY=1 sleep"),
            "notify=READY=1 sleep",
        );
        let service = Service::start("-n 2 -v --ready notify --backoff 0:0", &script);
        let noisy = life(&service, 0);
        wait_ready(&service, 1, 1);
        for round in 2..5 {
            service.running.kill_worker(1);
            wait_ready(&service, 1, round);
        }
        wait_until("all was sent", || service.scratch.path("quiet").exists());
        service.running.settle();
        assert_eq!(ready(&service.running, 0), 0, "{noise}: {}", service.running.stderr());
        // It is heard all the same.
        service.touch("go");
        wait_ready(&service, 0, 1);
        assert_eq!(life(&service, 0), noisy, "{noise}");
        service.end();
    }
}

#[test]
fn a_barrier_passes_and_no_descriptor_that_was_sent_stays_open_in_panzer() {
    let script = "exec $PROBE - barrier=1 touch=$DIR/first wait=$DIR/go barrier=300 notify=READY=1 barrier=1 touch=$DIR/last sleep >/dev/null";
    let service = Service::start("-n 1 -v --ready notify", script);
    wait_until("the first one has passed", || service.scratch.path("first").exists());
    let open = || fs::read_dir(format!("/proc/{}/fd", service.running.panzer_pid())).unwrap().count();
    service.running.settle();
    let before = open();
    service.touch("go");
    wait_until("all have passed", || service.scratch.path("last").exists());
    service.running.settle();
    assert_eq!(ready(&service.running, 0), 1, "what came before a barrier was read before it");
    wait_until("none is kept", || open() <= before);
    service.end();
}

#[test]
fn a_worker_that_says_more_than_ready_goes_on() {
    let words =
        "notify=RELOADING=1 notify=STATUS=reading notify=READY=1 notify=MAINPID=$$ notify=STATUS= notify=READY=1";
    let script = format!("exec $PROBE - notify=READY=1 {words} barrier=1 touch=$DIR/said.$$ sleep >/dev/null");
    let service = Service::start("-n 1 --ready notify", &script);
    service.wait_line("the worker is ready");
    let old = life(&service, 0);
    wait_until("all was said", || service.scratch.path(&format!("said.{}", old.pid)).exists());
    service.running.settle();
    assert_eq!(service.running.lives(), [old]);
    let new = service.reload(2, 1);
    wait_until("all was said", || service.scratch.path(&format!("said.{}", new[0].pid)).exists());
    service.end();
}

#[test]
fn a_foreign_main_process_is_not_taken_for_the_workers_own() {
    let script = "echo $$ >$DIR/pid.$PANZER_WORKER_ID.new; mv $DIR/pid.$PANZER_WORKER_ID.new $DIR/pid.$PANZER_WORKER_ID
[ $PANZER_WORKER_ID = 0 ] || exec $PROBE - notify=READY=1 sleep >/dev/null
until [ -e $DIR/pid.1 ]; do sleep 0.05; done
exec $PROBE - notify=MAINPID=$(cat $DIR/pid.1) notify=READY=1 barrier=1 touch=$DIR/said sleep >/dev/null";
    let service = Service::start("-n 2 --ready notify --backoff 0:0 --reload-stop TERM/1/KILL", script);
    service.wait_line("all 2 workers are ready");
    wait_until("all was said", || service.scratch.path("said").exists());
    let before = service.running.wait_generation(1, 2);
    // Its end is the end of its life, and nobody else is hurt.
    process::send_signal(before[0].pid, libc::SIGKILL);
    let after = service.running.wait_lives("it is replaced", |now| now.len() == 2 && now[0] != before[0]);
    assert_eq!(after[1], before[1]);
    service.reload(2, 2);
    service.end();
}

#[test]
fn a_worker_can_name_another_of_its_processes_as_the_one_that_stands_for_it() {
    // As a server does that goes into the background.
    let script = "$PROBE - sleep >/dev/null & child=$!
$PROBE - notify=MAINPID=$child notify=READY=1 barrier=1 >/dev/null
echo $child >>$DIR/children
exit 0";
    let service = Service::start("-n 1 --ready notify --backoff 0:0", script);
    service.wait_line("the worker is ready");
    let child =
        |life: usize| -> u32 { wait_for("there is a child", || service.lines("children").get(life)?.parse().ok()) };
    let first = child(0);
    wait_until("it is an orphan", || process::stat(first).is_some_and(|one| one.ppid == service.running.panzer_pid()));
    holds_for(WATCH, "its parent's end is not the worker's", || service.lines("children").len() == 1);
    assert!(process::alive(first));
    process::send_signal(first, libc::SIGKILL);
    let second = child(1);
    wait_until("the next one goes on", || {
        process::stat(second).is_some_and(|one| one.ppid == service.running.panzer_pid())
    });
    service.end();
    assert!(!process::alive(second));
}

#[test]
fn a_worker_that_is_stopping_gets_no_more_connections() {
    let port = free_port();
    let all = Binders::start_through(
        Binders::directory(),
        &[],
        // The watchdog is what gives it the socket.
        "-n 2 --balance per-worker --ready bind --watchdog 1h --backoff 0:0",
        |out| {
            let place = out.trim_end_matches("reports/").to_string();
            let steps =
                format!("tcp4 bind=127.0.0.1:{port} listen=511 serve wait={place}over.$PANZER_WORKER_ID exit=0");
            let server = binder(out, &steps).join(" ");
            let probe = text(example("probe"));
            sh(&format!(
                "rm -f {place}over.$PANZER_WORKER_ID
{probe} - wait={place}stop.$PANZER_WORKER_ID remove={place}stop.$PANZER_WORKER_ID notify=STOPPING=1 barrier=1 touch={place}said >/dev/null &
exec {server}"
            ))
        },
    );
    all.wait_all(2, "serve -> ok");
    all.wait_answers(&local(port).into(), 2);
    all.scratch.write("stop.0", "");
    wait_until("it was said", || all.scratch.path("said").exists());
    all.running.settle();
    let mut answered: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..60 {
        let body = load::one(&local(port).into()).unwrap_or_else(|failure: Failure| panic!("{failure}"));
        *answered.entry(word(&body, "worker=")).or_default() += 1;
    }
    assert_eq!(answered, BTreeMap::from([("1".to_string(), 60)]));
    all.scratch.write("over.0", "");
    all.wait_lines(0, "serve -> ok", 2);
    all.wait_answers(&local(port).into(), 2);
    all.end();
}

/// The options of a panzer within another one.
fn inside(options: &str) -> Vec<String> {
    let words = format!("{} {options} -n 1 --", text(binary()));
    words.split_whitespace().map(str::to_string).collect()
}

#[test]
fn a_worker_of_a_panzer_inside_a_worker_does_not_reach_the_outer_one() {
    let service = Service::start(
        "-n 1 -q --ready notify",
        "exec $PROBE - notify=READY=1 barrier=1 touch=$DIR/said sleep >/dev/null",
    );
    wait_until("alone it is said", || service.scratch.path("said").exists());
    service.end();

    let said = service.scratch.path("said.inside");
    // The inner panzer itself tells the outer one when it is ready (tests/systemd.rs), which it is not.
    let actions =
        ["notify=EXTEND_TIMEOUT_USEC=9000000\\nSTATUS=mine", "barrier=1", &format!("touch={}", text(&said)), "sleep"];
    let command = [inside("-q --ready notify"), probe("-", &actions)].concat();
    let running = panzer("-n 1 -v --ready notify", &command).start();
    wait_until("the inner one has read it", || said.exists());
    holds_for(WATCH, "the outer one has heard nothing", || {
        ready(&running, 0) == 0 && !running.stderr().contains("says: mine")
    });
    running.ends_with(libc::SIGTERM, 0);

    // And where the inner one wants to hear nothing there is nowhere to say it.
    let report = service.scratch.path("report");
    let command = [inside("-q --ready exec"), probe(&text(&report), &["sleep"])].concat();
    let running = panzer("-n 1 -v --ready notify --watchdog 1h", &command).start();
    let given = Report::wait(&report);
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "PANZER_READY_FD", "PANZER_HEARTBEAT_FD"] {
        assert_eq!(given.env(name), None, "{name}");
    }
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn workers_of_another_user_are_heard_as_well() {
    if !is_root() {
        return left_out("workers of another user: only root may start them");
    }
    for (ready, script) in [("notify", "exec $PROBE - notify=READY=1 sleep >/dev/null"), ("fd", READY)] {
        let service = Service::start(&format!("-n 2 -u 12345 --watchdog 1h --ready {ready}"), script);
        service.wait_line("all 2 workers are ready");
        assert_eq!(process::status_field(life(&service, 0).pid, "Uid").as_deref(), Some("12345\t12345\t12345\t12345"));
        service.reload(2, 2);
        service.end();
    }
}

// Ready by a descriptor

#[test]
fn a_line_feed_on_the_descriptor_means_ready() {
    for words in ["echo", "echo ready", "printf 'a\\nb'", "(printf a; sleep 0.2; printf '\\n')", "setsid sh -c 'echo'"]
    {
        let script =
            format!("until [ -e $DIR/go ]; do sleep 0.02; done\n{words} >&$PANZER_READY_FD\nexec sleep 100000");
        let service = Service::start("-n 2 -v --ready fd", &script);
        service.running.wait_generation(1, 2);
        service.running.settle();
        assert_eq!(service.running.count_lines(&["is ready"]), 0, "{words}");
        service.touch("go");
        service.wait_line("all 2 workers are ready");
        service.end();
    }
}

#[test]
fn a_descriptor_that_is_closed_or_written_to_without_a_line_feed_means_nothing() {
    for words in ["exec 4>&-", "printf ready >&$PANZER_READY_FD; exec 4>&-", "printf ready >&$PANZER_READY_FD"] {
        let script = format!(
            "[ $PANZER_READY_FD = 4 ] || exit 9
[ $PANZER_WORKER_ID = 0 ] || exec $PROBE - ready sleep >/dev/null
{words}
: >$DIR/done
exec sleep 100000"
        );
        let service = Service::start("-n 2 -v --ready fd --backoff 0:0", &script);
        wait_ready(&service, 1, 1);
        wait_until("it was done", || service.scratch.path("done").exists());
        holds_for(WATCH, "it is not ready", || ready(&service.running, 0) == 0);
        // And panzer waits for it, and sees to the others.
        service.running.kill_worker(1);
        wait_ready(&service, 1, 2);
        service.end();
    }
}

// In time

#[test]
fn a_worker_that_is_not_ready_in_time_is_stopped_and_replaced() {
    let script = "echo $$ >>$DIR/lives.$PANZER_WORKER_ID
[ $PANZER_WORKER_ID = 0 ] && exec $PROBE - ready sleep >/dev/null
[ -e $DIR/go ] && exec $PROBE - ready sleep >/dev/null
exec sleep 100000";
    let service = Service::start("-n 2 -v --ready fd --ready-timeout 3s --backoff 0:0", script);
    wait_ready(&service, 0, 1);
    let first = life(&service, 0);
    let slow = life(&service, 1);
    service.wait_line(&format!(
        "panzer: worker 1 (pid {}) was not ready within 3s (it did not say so); stopping it, ",
        slow.pid
    ));
    service.running.wait_replaced(1, slow.pid);
    service.touch("go");
    wait_ready(&service, 1, 1);
    assert_eq!(service.running.wait_generation(1, 2)[0], first);
    service.end();
}

#[test]
fn lives_that_are_never_ready_in_time_count_for_the_crash_limit() {
    for ready in ["notify", "fd", "bind"] {
        let options = format!("-n 1 --ready {ready} --ready-timeout 300ms --crash-limit 3 --backoff 0:0");
        let output = panzer(&options, &["sleep", "100000"]).run();
        assert_eq!(output.stderr.matches(" was not ready within 300ms (").count(), 3, "{}", output.stderr);
        assert!(output.stderr.contains("giving up: 3 workers in a row"), "{}", output.stderr);
        assert_eq!(shell_status(output.status), 125, "none of them ended by itself: {}", output.stderr);
    }
}

#[test]
fn a_worker_that_is_late_and_deaf_is_stopped_by_the_whole_schedule() {
    let script = "exec $PROBE $DIR/report.$$ record=$DIR/record.$$";
    let service =
        Service::start("-n 1 --ready fd --ready-timeout 3s --stop USR1/4/KILL --backoff 0:0 --crash-limit 0", script);
    // One that is too slow for that is replaced.
    let is_recording = |life: &Life| service.scratch.path(&format!("report.{}", life.pid)).exists();
    let late = wait_for("one records", || service.running.lives().into_iter().find(is_recording));
    let said = "was not ready within 3s (it did not say so); stopping it, starting a new one";
    service.wait_line(&format!("(pid {}) {said}", late.pid));
    service.running.wait_replaced(0, late.pid);
    wait_until("it is gone", || !late.is_alive());
    let record = recorded(&service.scratch.path(&format!("record.{}", late.pid)));
    assert_eq!(record, [libc::SIGUSR1, libc::SIGCONT]);
    service.running.ends_with(libc::SIGQUIT, 137);
}

#[test]
fn a_worker_can_ask_for_more_time() {
    let script = first_and_others("notify=EXTEND_TIMEOUT_USEC=3600000000 wait=$DIR/go notify=READY=1 sleep", "sleep");
    let service = Service::start("-n 2 -v --ready notify --ready-timeout 6s --backoff 0:0 --crash-limit 0", &script);
    let patient = life(&service, 0);
    // The other one has asked for nothing.
    wait_until("another one is stopped", || {
        service.running.count_lines(&["worker 1 (pid ", "was not ready within 6s"]) >= 1
    });
    assert_eq!(life(&service, 0), patient);
    service.touch("go");
    wait_ready(&service, 0, 1);
    assert_eq!(service.running.count_lines(&["worker 0 (pid ", "was not ready"]), 0);
    service.end();
}

// The watchdog

/// What is said of a worker that was silent.
fn silent(service: &Service, slot: u32) -> usize {
    service.running.count_lines(&[&format!("worker {slot} (pid "), " was silent for ", "; sent SIGABRT"])
}

#[test]
fn a_shell_script_can_beat_and_one_that_does_not_is_replaced() {
    // The silent one says how long that may be, which leaves the other one more time.
    let script = "[ $PANZER_WORKER_ID = 1 ] && exec $PROBE - notify=WATCHDOG_USEC=3500000 sleep >/dev/null
while :; do echo >&$PANZER_HEARTBEAT_FD; sleep 0.1; done";
    let service = Service::start("-n 2 --ready exec --watchdog 6s --backoff 0:0", script);
    let [beating, mute] = service.running.wait_generation(1, 2)[..] else { panic!("two lives") };
    service.wait_line(&format!(
        "panzer: worker 1 (pid {}) was silent for 3.5s; sent SIGABRT, starting a new one\n",
        mute.pid
    ));
    service.running.wait_replaced(1, mute.pid);
    wait_until("the next one as well", || silent(&service, 1) >= 2);
    wait_until("it is gone", || !mute.is_alive());
    assert_eq!((life(&service, 0), silent(&service, 0)), (beating, 0));
    service.end();
}

#[test]
fn a_worker_can_beat_by_notify() {
    let script = first_and_others(
        "notify=READY=1 beat=$DIR/enough touch=$DIR/stopped sleep",
        "notify=READY=1 notify=WATCHDOG_USEC=2700000 sleep",
    );
    let service = Service::start("-n 2 --ready notify --watchdog 5s --backoff 0:0", &script);
    let beating = life(&service, 0);
    wait_until("the silent one is replaced twice", || silent(&service, 1) >= 2);
    assert_eq!((life(&service, 0), silent(&service, 0)), (beating, 0));
    service.touch("enough");
    wait_until("it is silent now", || silent(&service, 0) >= 1);
    service.running.wait_replaced(0, beating.pid);
    service.end();
}

#[test]
fn beats_are_counted_from_when_a_worker_is_ready() {
    let script = "[ $PANZER_WORKER_ID = 0 ] && exec $PROBE - wait=$DIR/go ready sleep >/dev/null
exec $PROBE - ready sleep >/dev/null";
    let service = Service::start("-n 2 -v --ready fd --watchdog 1s --backoff 0:0", script);
    let waiting = life(&service, 0);
    wait_until("those that are ready are missed", || silent(&service, 1) >= 3);
    assert_eq!((life(&service, 0), silent(&service, 0)), (waiting, 0));
    service.touch("go");
    wait_until("now it is, too", || silent(&service, 0) >= 1);
    service.running.wait_replaced(0, waiting.pid);
    service.end();
}

#[test]
fn a_worker_that_is_stopped_is_silent_and_is_replaced() {
    let script = "exec $PROBE - notify=READY=1 beat=$DIR/never >/dev/null";
    let service = Service::start("-n 1 --ready notify --watchdog 3s --backoff 0:0", script);
    service.wait_line("the worker is ready");
    let frozen = life(&service, 0);
    process::send_signal(frozen.pid, libc::SIGSTOP);
    service.wait_line(&format!(
        "panzer: worker 0 (pid {}) was silent for 3s; sent SIGABRT, starting a new one\n",
        frozen.pid
    ));
    service.running.wait_replaced(0, frozen.pid);
    wait_until("it is gone", || !frozen.is_alive());
    assert_eq!(silent(&service, 0), 1);
    service.end();
}

#[test]
fn when_panzer_and_its_workers_were_stopped_together_nobody_was_silent() {
    // A worker that does not get to run for a second after the freeze is taken for silent, and rightly.
    assert!((0..3).any(|_| nobody_was_silent()));
}

/// Stops panzer and its workers together, for longer than these may be silent.
fn nobody_was_silent() -> bool {
    let script = "exec $PROBE - notify=READY=1 beat=$DIR/enough sleep >/dev/null";
    let service = Service::start("-n 2 --ready notify --watchdog 2s --backoff 0:0", script);
    service.wait_line("all 2 workers are ready");
    let workers = [life(&service, 0), life(&service, 1)];
    // panzer first: it finds that both are late.
    let all = [service.running.panzer_pid(), workers[0].pid, workers[1].pid];
    let send = |signal| assert!(all.iter().all(|pid| process::send_signal(*pid, signal)));
    send(libc::SIGSTOP);
    thread::sleep(Duration::from_secs(3));
    send(libc::SIGCONT);
    thread::sleep(WATCH);
    service.running.settle();
    let well = (silent(&service, 0), silent(&service, 1)) == (0, 0);
    // Who is silent now is missed as ever.
    service.touch("enough");
    wait_until("it is silent now", || silent(&service, 0) >= 1);
    service.end();
    well
}

#[test]
fn a_panzer_that_is_stopped_again_and_again_gets_to_kill_all_the_same() {
    let service = Service::start(
        "-n 1 --ready exec --stop TERM/2/KILL",
        "trap '' TERM; touch $DIR/deaf; while :; do sleep 1; done",
    );
    let deaf = life(&service, 0);
    wait_until("it ignores TERM", || service.scratch.path("deaf").exists());
    service.running.signal(libc::SIGTERM);
    service.wait_line("stopping 1 worker");
    wait_until("it is killed", || {
        service.running.signal(libc::SIGSTOP);
        thread::sleep(Duration::from_millis(50));
        service.running.signal(libc::SIGCONT);
        thread::sleep(Duration::from_millis(20));
        !deaf.is_alive()
    });
    service.running.wait_exit();
}

#[test]
fn after_an_abort_that_is_ignored_comes_the_stop_schedule_and_the_slot_does_not_wait_for_it() {
    // The next one may be silent for as long as it likes, also on a machine that does not let it run.
    let script = "if mkdir $DIR/once 2>/dev/null; then
  exec $PROBE $DIR/report 'notify=READY=1\\nWATCHDOG_USEC=500000' record=$DIR/record
fi
exec $PROBE - notify=READY=1 sleep >/dev/null";
    let stops = "--stop TERM/5/KILL --reload-stop TERM/5/KILL";
    let service = Service::start(&format!("-n 1 --ready notify --watchdog 1h --backoff 0:0 {stops}"), script);
    let deaf = life(&service, 0);
    Report::wait(&service.scratch.path("report"));
    service.wait_line(" was silent for 500ms; sent SIGABRT");
    let next = service.running.wait_lives("there is another one", |now| now.iter().any(|life| life.pid != deaf.pid));
    assert!(deaf.is_alive() && next.len() == 2, "{next:?}");
    let signals = || -> Vec<i32> {
        // A stopped one may have to be woken up for each.
        recorded(&service.scratch.path("record")).into_iter().filter(|signal| *signal != libc::SIGCONT).collect()
    };
    wait_until("it has seen that", || signals() == [libc::SIGABRT]);
    wait_until("it is told to end", || signals() == [libc::SIGABRT, libc::SIGTERM]);
    wait_until("it is killed", || !deaf.is_alive());
    assert_eq!((service.running.lives().len(), silent(&service, 0)), (1, 1));
    service.end();
}

#[test]
fn a_worker_can_ask_to_be_aborted_and_change_its_own_interval() {
    for words in ["notify=WATCHDOG=trigger", "'notify=READY=1\\nWATCHDOG_USEC=500000'"] {
        let script = format!(
            "echo $$ >>$DIR/pids
mkdir $DIR/once 2>/dev/null && exec $PROBE - notify=READY=1 {words} sleep >/dev/null
exec $PROBE - notify=READY=1 sleep >/dev/null"
        );
        let service = Service::start("-n 1 --ready notify --watchdog 1h --backoff 0:0", &script);
        service.wait_line("; sent SIGABRT, starting a new one\n");
        let next = wait_for("there is a next one", || service.lines("pids").get(1)?.parse().ok());
        holds_for(WATCH, "it is left alone", || process::alive(next));
        assert_eq!(service.running.count_lines(&["sent SIGABRT"]), 1, "{words}");
        service.end();
    }
}

#[test]
fn without_a_watchdog_nobody_has_to_beat() {
    let service = Service::start("-n 1 -v --ready fd", READY);
    wait_ready(&service, 0, 1);
    let life = life(&service, 0);
    assert_eq!((life.env("PANZER_HEARTBEAT_FD"), life.env("WATCHDOG_USEC")), (None, None));
    service.end();
}
