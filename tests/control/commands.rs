//! What `panzer ctl` does: each command, what it prints, what it exits with, what it changes.

use std::io::{BufRead, BufReader, Write};

use super::status::{all_ready, row};
use crate::support::control::{assert_fails, body, connect, ctl, exchange, head, printed, rows, states};
use crate::support::json::Json;
use crate::support::lives::{GATED, READY, Service, pids, places};
use crate::support::panzer::Running;
use crate::support::report::recorded;
use crate::support::worker::panzer;
use crate::support::{process, wait_until};
use crate::terminal::Terminal;

/// A release that dies before it is ready.
const DIES: &str = "[ $PANZER_GENERATION = 2 ] && exit 7\nexec $PROBE - ready sleep >/dev/null";
/// One that never gets ready.
const HANGS: &str = "[ $PANZER_GENERATION = 2 ] && exec $PROBE - sleep\nexec $PROBE - ready sleep >/dev/null";

#[track_caller]
fn ready(options: &str, script: &str) -> Service {
    let service = Service::start(options, script);
    service.running.wait_status("all are ready", all_ready);
    service
}

/// Waits until a command has ended with this status, and returns what it printed.
#[track_caller]
fn ended(command: &Running, status: i32) -> (String, String) {
    assert_eq!(command.wait_exit().code(), Some(status), "{}{}", command.stdout(), command.stderr());
    (command.stdout(), command.stderr())
}

// ready

#[test]
fn ready_counts_the_slots_that_have_a_ready_worker() {
    let script = "exec $PROBE - wait=$DIR/go.$PANZER_WORKER_ID ready sleep >/dev/null";
    let service = Service::start("-n 3 --ready fd", script);
    service.running.wait_generation(1, 3);
    for count in 0..=3_i32 {
        if count > 0 {
            service.touch(&format!("go.{}", count - 1));
        }
        let is_so = |status: &Json| head(status, "ready").number() == u64::try_from(count).unwrap();
        service.running.wait_status("so many are ready", is_so);
        let line = format!("{count} of 3 workers are ready\n");
        for (words, min) in
            [("ready", 3), ("ready --min 1", 1), ("ready --min 2", 2), ("--min 3 ready", 3), ("ready --min=0", 0)]
        {
            let line = if min == 3 { line.clone() } else { line.replace('\n', &format!("; {min} are enough\n")) };
            assert_eq!(printed(&service.running.ctl(words), i32::from(count < min)), line, "{words}");
        }
    }
    assert_fails(&service.running.ctl("ready --min many"), 125, &["cannot", "many"]);
    service.end();
}

#[test]
fn a_reload_that_overlaps_leaves_everything_ready() {
    let service = ready("-n 2 --ready fd", GATED);
    service.running.signal(libc::SIGHUP);
    service.running.wait_status("there are two", |status| states(status, 0) == ["ready", "starting"]);
    assert_eq!(printed(&service.running.ctl("ready"), 0), "2 of 2 workers are ready\n");
    service.running.ends_with(libc::SIGTERM, 0);
}

// reload

#[test]
fn reload_says_to_which_generation_and_does_it() {
    let service = ready("-n 2 --ready fd", READY);
    assert_eq!(printed(&service.running.ctl("reload"), 0), "reloading to generation 2\n");
    service.running.wait_generation(2, 2);
    service.wait_line("reloaded: all 2 workers are of generation 2\n");
    service.end();
}

#[test]
fn reload_wait_ends_with_the_reloads_own_result() {
    let service = ready("-n 3 --ready fd", READY);
    let line = "reloaded: all 3 workers are of generation 2\n";
    assert_eq!(printed(&service.running.ctl("reload --wait"), 0), line);
    assert_eq!(head(&service.running.status(), "generation").number(), 2);
    assert!(service.running.lives().iter().filter(|life| life.generation == 2).count() == 3);
    service.end();

    for (options, script, words) in [
        ("-n 2 --ready fd", DIES, ") ended with status 7; the old workers stay"),
        (
            "-n 2 --ready fd --ready-timeout 3s",
            HANGS,
            ") was not ready within 3s (it did not say so); the old workers stay",
        ),
    ] {
        let service = ready(options, script);
        let before = service.running.wait_generation(1, 2);
        let output = service.running.ctl("reload --wait");
        assert_fails(&output, 1, &["panzer: cannot reload to generation 2: worker 0 (pid ", words]);
        assert_eq!(service.running.wait_generation(1, 2), before, "the old ones have stayed");
        // The next release is a good one.
        let line = "reloaded: all 2 workers are of generation 3\n";
        assert_eq!(printed(&service.running.ctl("--wait reload"), 0), line);
        service.end();
    }
}

#[test]
fn reload_wait_waits() {
    let service = ready("-n 2 --ready fd", GATED);
    let waiting = service.running.ctl_command("reload --wait").start();
    service.running.wait_status("it is under way", |status| states(status, 0) == ["ready", "starting"]);
    service.touch("go.0");
    service.running.wait_status("one is done", |status| head(status, "reload_done").number() == 1);
    assert_eq!(waiting.try_exit(), None);
    service.touch("go.1");
    let (stdout, stderr) = ended(&waiting, 0);
    assert_eq!((stdout.as_str(), stderr.as_str()), ("reloaded: all 2 workers are of generation 2\n", ""));
    service.end();
}

#[test]
fn a_reload_that_is_asked_for_during_another_comes_after_it_and_each_has_its_own_result() {
    let service = ready("-n 2 --ready fd", GATED);
    let first = service.running.ctl_command("reload --wait").start();
    service.running.wait_status("it is under way", |status| states(status, 0) == ["ready", "starting"]);
    let second = service.running.ctl_command("reload --wait").start();
    service.wait_line("once more after it");
    assert_eq!(printed(&service.running.ctl("reload"), 0), "reloading to generation 3\n");
    service.touch("go.0");
    service.touch("go.1");
    assert_eq!(ended(&first, 0).0, "reloaded: all 2 workers are of generation 2\n");
    assert_eq!(ended(&second, 0).0, "reloaded: all 2 workers are of generation 3\n");
    service.running.wait_generation(3, 2);
    assert_eq!(service.running.status().get("reloads").get("ok").number(), 2, "what was asked for twice is done once");
    service.end();
}

#[test]
fn when_panzer_stops_or_is_gone_reload_wait_says_so() {
    for (signal, status) in [(libc::SIGTERM, 0), (libc::SIGKILL, 137)] {
        let service = ready("-n 2 --ready fd", GATED);
        let waiting = service.running.ctl_command("reload --wait").start();
        service.running.wait_status("it is under way", |status| states(status, 0) == ["ready", "starting"]);
        service.running.ends_with(signal, status);
        let (stdout, stderr) = ended(&waiting, 1);
        assert!(stdout.is_empty() && stderr.lines().count() == 1 && stderr.starts_with("panzer: "), "{stderr}");
        wait_until("nothing is left", || service.running.leftovers().is_empty());
    }
    let service = ready("-n 2 --ready fd", GATED);
    let waiting = service.running.ctl_command("reload --wait").start();
    service.running.wait_status("it is under way", |status| states(status, 0) == ["ready", "starting"]);
    printed(&service.running.ctl("stop"), 0);
    assert_eq!(ended(&waiting, 1).0, "");
    assert_eq!(service.running.wait_exit().code(), Some(0));
}

#[test]
fn on_a_terminal_reload_wait_shows_how_far_it_is() {
    let service = ready("-n 3 --ready fd", GATED);
    let pid = service.running.panzer_pid();
    let script = format!("\"$PROGRAM\" ctl --pid {pid} reload --wait; echo \"status=$?\"");
    let Some(terminal) = Terminal::start(&script) else { return service.end() };
    for done in 0..3 {
        terminal.wait_shown(&format!("reloading to generation 2: {done} of 3"));
        service.touch(&format!("go.{done}"));
    }
    terminal.wait_shown("reloaded: all 3 workers are of generation 2");
    terminal.wait_shown("status=0");
    terminal.running.wait_exit();
    service.end();
}

/// The lines that come on a connection, each of them as JSON.
fn lines(stream: std::os::unix::net::UnixStream) -> impl Iterator<Item = Json> {
    let mut lines = BufReader::new(stream).lines().map(|line| line.unwrap());
    assert_eq!(lines.next().as_deref(), Some("panzer 1 ok"));
    lines.map(|line| Json::parse(&line))
}

#[test]
fn the_protocol_of_a_reload_is_a_line_for_each_change() {
    let service = ready("-n 3 --ready fd", GATED);
    assert_eq!(service.running.ask("reload").unwrap(), "{\"generation\":2}\n");
    (0..3).for_each(|slot| service.touch(&format!("go.{slot}")));
    service.wait_line("reloaded: all 3 workers are of generation 2\n");

    let mut stream = connect(&service.running.control_name()).unwrap();
    stream.write_all(b"reload wait\n").unwrap();
    let all: Vec<Json> = lines(stream).collect();
    let (last, progress) = all.split_last().unwrap();
    assert_eq!(last.names(), ["generation", "result", "message"]);
    assert_eq!((last.get("generation").number(), last.get("result").text()), (3, "ok"));
    assert_eq!(last.get("message").text(), "reloaded: all 3 workers are of generation 3");
    // The first one says which it is; one that waits for another has nothing more to tell yet.
    let (first, progress) = progress.split_first().unwrap();
    assert_eq!((first.names(), first.get("generation").number()), (vec!["generation"], 3));
    let done: Vec<u64> = progress.iter().map(|line| line.get("done").number()).collect();
    assert!(!done.is_empty() && done.is_sorted() && done.iter().all(|done| *done <= 3), "{all:?}");
    assert!(progress.iter().all(|line| line.get("of").number() == 3 && line.get("generation").number() == 3));
    service.end();
}

#[test]
fn one_who_waits_for_a_reload_and_goes_away_costs_nothing() {
    let service = ready("-n 2 --ready fd", GATED);
    let before = service.running.descriptors();
    for _ in 0..20 {
        let mut stream = connect(&service.running.control_name()).unwrap();
        stream.write_all(b"reload wait\n").unwrap();
    }
    wait_until("they are forgotten", || service.running.descriptors() <= before + 2);
    service.touch("go.0");
    service.touch("go.1");
    let generation = |status: &Json| head(status, "generation").number() >= 2;
    service.running.wait_status("it is done all the same", generation);
    service.running.ends_with(libc::SIGTERM, 0);
}

// restart

#[test]
fn restart_replaces_one_worker_gracefully() {
    let script = "[ -e $DIR/gate ] && exec $PROBE - wait=$DIR/go ready sleep\nexec $PROBE - ready sleep >/dev/null";
    let service = ready("-n 3 --ready fd", script);
    let before = service.running.wait_generation(1, 3);
    service.touch("gate");
    assert_eq!(printed(&service.running.ctl("restart 1"), 0), "replacing worker 1\n");
    // Its own replacement is not ready, so it is still there.
    service.running.wait_status("both are there", |status| states(status, 1) == ["ready", "starting"]);
    assert!(before[1].is_alive());
    service.touch("go");
    let after = service
        .running
        .wait_lives("another one", |lives| places(lives) == [(1, 0), (1, 1), (1, 2)] && !lives.contains(&before[1]));
    assert_eq!((after[0], after[2]), (before[0], before[2]), "nobody else was touched");
    let status = service.running.wait_status("it is counted", |status| {
        status.get("restarts").get("asked").number() == 1 && rows(status, 1).len() == 1
    });
    assert_eq!(row(&status, 1).get("restarts").number(), 0, "it did not end by itself");
    assert_eq!(row(&status, 1).get("last_end_reason").text(), "asked");
    service.end();
}

#[test]
fn restart_starts_at_once_what_waits_and_what_has_ended() {
    let script = "[ -e $DIR/good ] || exit 3\nexec $PROBE - ready sleep >/dev/null";
    let service = Service::start("-n 1 --ready fd --backoff 1h:1h", script);
    service.running.wait_status("it waits", |status| states(status, 0) == ["waiting"]);
    service.touch("good");
    assert_eq!(printed(&service.running.ctl("restart 0"), 0), "starting worker 0\n");
    service.running.wait_status("it is ready", all_ready);
    service.end();

    let script = "[ $PANZER_WORKER_ID = 0 ] && [ ! -e $DIR/good ] && exec $PROBE - ready wait=$DIR/go exit=0
exec $PROBE - ready sleep >/dev/null";
    let service = ready("-n 2 --ready fd --restart never", script);
    service.touch("go");
    service.running.wait_status("it has ended", |status| states(status, 0) == ["ended"]);
    service.touch("good");
    assert_eq!(printed(&service.running.ctl("restart 0"), 0), "starting worker 0\n");
    service.running.wait_status("it is ready", all_ready);
    service.running.signal(libc::SIGTERM);
    service.running.wait_exit();
}

#[test]
fn what_cannot_be_restarted_is_an_error_that_names_it() {
    let service = Service::start("-n 2 --ready fd", "exec $PROBE - wait=$DIR/go ready sleep >/dev/null");
    let lives = service.running.wait_generation(1, 2);
    assert_fails(&service.running.ctl("restart 0"), 1, &["cannot restart", "0"]);
    service.touch("go");
    service.running.wait_status("all are ready", all_ready);
    assert_fails(&service.running.ctl("restart 2"), 1, &["cannot restart", "2"]);
    for slot in ["4294967296", "-1", "x", "0x1", "01a"] {
        let output = service.running.ctl_command("restart --").arg(slot).run();
        assert!([1, 125].contains(&output.status.code().unwrap()), "{slot}: {output:?}");
        assert_fails(&output, output.status.code().unwrap(), &[slot]);
    }
    for words in ["restart", "restart 0 1"] {
        assert_fails(&service.running.ctl(words), 125, &["cannot"]);
    }
    assert_eq!(service.running.lives(), lives);
    service.end();
}

// scale

#[test]
fn scale_makes_so_many_workers() {
    let service = ready("-n 3 --ready fd", READY);
    let first = service.running.wait_generation(1, 3);
    for (count, says) in [
        (5, "5 workers now, 2 more\n"),
        (5, "5 workers already\n"),
        (1, "1 worker now, 4 fewer\n"),
        (1, "1 worker already\n"),
        (2, "2 workers now, one more\n"),
        (3, "3 workers now, one more\n"),
        (2, "2 workers now, one fewer\n"),
    ] {
        assert_eq!(printed(&service.running.ctl(&format!("scale {count}")), 0), says);
        let lives = service.running.wait_generation(1, count);
        assert_eq!(lives[0], first[0], "the first one stays through all of it");
        let status = service.running.wait_status("all are ready", |status| {
            all_ready(status) && status.get("workers").list().len() == usize::try_from(count).unwrap()
        });
        assert_eq!(head(&status, "workers").number(), u64::from(count));
    }
    // The signals go on from there.
    service.running.signal(libc::SIGTTIN);
    service.running.wait_generation(1, 3);
    service.end();
}

#[test]
fn a_scale_that_cannot_be_changes_nothing() {
    let service = ready("-n 2 --ready fd", READY);
    let lives = service.running.wait_generation(1, 2);
    assert_fails(
        &service.running.ctl("scale 0"),
        1,
        &["panzer: cannot scale to 0: there is always one worker\n".trim()],
    );
    assert_fails(&service.running.ctl("scale 10001"), 1, &["cannot scale to 10001"]);
    for count in ["4294967297", "99999999999999999999999", "-1", "+3", "3.0", "three", ""] {
        let output = service.running.ctl_command("scale --").arg(count).run();
        let status = output.status.code().unwrap();
        assert!([1, 125].contains(&status), "{count}: {output:?}");
        assert_fails(&output, status, &["cannot", count]);
    }
    assert_fails(&service.running.ctl("scale"), 125, &["cannot"]);
    assert_fails(&service.running.ctl("scale 1 2"), 125, &["cannot"]);
    assert_eq!((service.running.lives(), head(&service.running.status(), "workers").number()), (lives, 2));
    service.end();
}

#[test]
fn scaling_back_and_forth_while_a_reload_goes_on_ends_where_it_should() {
    let service = ready("-n 2 --ready fd --backoff 0:0", READY);
    for round in 0..5 {
        service.running.ask("reload").unwrap();
        for count in [6, 1, 4, 2 + round % 2] {
            service.running.ask(&format!("scale {count}")).unwrap();
        }
    }
    let status = service.running.wait_status("it is calm", |status| {
        head(status, "state").text() == "running" && all_ready(status) && status.get("workers").list().len() == 2
    });
    let generation = u32::try_from(head(&status, "generation").number()).unwrap();
    service.running.wait_generation(generation, 2);
    service.end();
}

// stop

#[test]
fn stop_stops_all() {
    for (options, says) in [("-n 3", "stopping 3 workers\n"), ("-n 1", "stopping 1 worker\n")] {
        let service = ready(&format!("{options} --ready fd"), READY);
        let lives = service.running.lives();
        assert_eq!(printed(&service.running.ctl("stop"), 0), says);
        assert_eq!(service.running.wait_exit().code(), Some(0));
        assert!(!pids(&lives).into_iter().any(process::alive));
    }
}

#[test]
fn a_second_stop_is_no_reason_to_hurry() {
    let service = ready("-n 1 --ready fd --stop TERM/1000/KILL", "exec $PROBE - ignore=15 ready sleep >/dev/null");
    printed(&service.running.ctl("stop"), 0);
    service.running.wait_status("it stops", |status| head(status, "state").text() == "stopping");
    // It is told that this goes on already, or does nothing; nobody is killed for it.
    let again = service.running.ctl("stop");
    assert!([0, 1].contains(&again.status.code().unwrap()), "{again:?}");
    for words in ["reload", "scale 5", "restart 0"] {
        let output = service.running.ctl(words);
        assert_fails(&output, 1, &["cannot", "stopping"]);
    }
    assert_eq!(states(&service.running.status(), 0), ["stopping"]);
    service.running.ends_with(libc::SIGQUIT, 137);
}

// signal

#[test]
fn signal_reaches_all_workers_or_one() {
    let script = "exec $PROBE $DIR/report.$PANZER_WORKER_ID record=$DIR/log.$PANZER_WORKER_ID";
    let service = Service::start("-n 3 --ready exec", script);
    service.running.wait_status("all are ready", all_ready);
    let report = |slot| service.scratch.path(&format!("report.{slot}"));
    wait_until("all report", || (0..3).all(|slot| report(slot).exists()));
    let log = |slot: usize| recorded(&service.scratch.path(&format!("log.{slot}")));
    let mut expected = vec![Vec::new(); 3];
    for (words, says, signal, slots) in [
        ("signal USR2", "sent SIGUSR2 to 3 workers\n", libc::SIGUSR2, 0..3),
        ("signal SIGUSR1 1", "sent SIGUSR1 to worker 1\n", libc::SIGUSR1, 1..2),
        ("signal 1 2", "sent SIGHUP to worker 2\n", libc::SIGHUP, 2..3),
        ("signal term", "sent SIGTERM to 3 workers\n", libc::SIGTERM, 0..3),
        ("signal RTMIN+3 0", "sent SIGRTMIN+3 to worker 0\n", 37, 0..1),
    ] {
        assert_eq!(printed(&service.running.ctl(words), 0), says);
        slots.for_each(|slot: usize| expected[slot].push(signal));
        // CONT may follow TERM, as with a forwarded one.
        let heard = |slot| log(slot).into_iter().filter(|one| *one != libc::SIGCONT).collect::<Vec<_>>();
        wait_until(&format!("{words} has come"), || (0..3).all(|slot| heard(slot) == expected[slot]));
    }
    assert_eq!(printed(&service.running.ctl("signal KILL"), 0), "sent SIGKILL to 3 workers\n");
    service.running.wait_status("all were replaced", |status| status.get("restarts").get("signal").number() >= 3);
    service.running.ends_with(libc::SIGQUIT, 137);
}

#[test]
fn a_signal_that_cannot_be_sent_is_an_error_that_names_it() {
    let service = Service::start(
        "-n 2 --ready fd --backoff 1h:1h",
        "[ $PANZER_WORKER_ID = 1 ] && exit 3\nexec $PROBE - ready sleep",
    );
    service
        .running
        .wait_status("one waits", |status| states(status, 1) == ["waiting"] && states(status, 0) == ["ready"]);
    assert_fails(&service.running.ctl("signal USR1 7"), 1, &["7"]);
    assert_fails(&service.running.ctl("signal USR1 1"), 1, &["1"]);
    for signal in ["0", "65", "USR3", "SIG", "9999999999"] {
        let output = service.running.ctl(&format!("signal {signal}"));
        let status = output.status.code().unwrap();
        assert!([1, 125].contains(&status), "{output:?}");
        assert_fails(&output, status, &["cannot", signal]);
    }
    for words in ["signal", "signal USR1 0 1"] {
        assert_fails(&service.running.ctl(words), 125, &["cannot"]);
    }
    assert_eq!(printed(&service.running.ctl("signal URG"), 0), "sent SIGURG to 1 worker\n");
    service.running.signal(libc::SIGTERM);
    service.running.wait_exit();
}

// What is no command

#[test]
fn a_command_that_there_is_not_is_refused_with_the_nearest_one() {
    let running = panzer("-n 1 --ready exec", &["sleep", "1000"]).start();
    running.wait_status("it is ready", all_ready);
    for (words, parts) in [
        ("stauts", &["stauts", "status"][..]),
        ("relaod", &["relaod", "reload"]),
        ("restrat 1", &["restrat", "restart"]),
        ("xyzzyxyzzy", &["xyzzyxyzzy"]),
        ("--jsno status", &["--jsno"]),
        ("status --wait", &["--wait"]),
        ("reload --json", &["--json"]),
        ("status more", &["more"]),
        ("--min", &["--min"]),
        ("", &["command"]),
    ] {
        assert_fails(&running.ctl(words), 125, &[&["panzer: cannot "], parts].concat());
    }
    for words in ["-h", "--help", "status -h"] {
        let output = ctl(words).run();
        let help = printed(&output, 0);
        for command in ["status", "ready", "reload", "restart", "scale", "stop", "signal", "top"] {
            assert!(help.contains(command), "{words}: no {command} in\n{help}");
        }
        assert!(help.lines().all(|line| line.chars().count() <= 80), "{help}");
    }
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn the_socket_refuses_what_is_no_request_in_one_line() {
    let running = panzer("-n 1 --ready exec", &["sleep", "1000"]).start();
    running.wait_status("it is ready", all_ready);
    for request in [
        "",
        " ",
        "xyzzy",
        "status ",
        " status",
        "status more",
        "STATUS",
        "reload  wait",
        "reload later",
        "restart",
        "restart x",
        "scale",
        "scale -1",
        "signal",
        "signal NONE",
        "signal USR1 x",
        "stop now",
        "status\r",
        "\u{1b}[1m",
        "scale 1\u{0}",
        "grüße",
    ] {
        let answer = exchange(connect(&running.control_name()).unwrap(), format!("{request}\n").as_bytes()).unwrap();
        let error = body(&answer).unwrap_err();
        assert!(!error.is_empty() && !error.contains(char::is_control), "{request:?}: {error:?}");
    }
    assert_eq!(running.try_exit(), None);
    // What comes behind the line is not read: one request for each connection.
    let answer = exchange(connect(&running.control_name()).unwrap(), b"status\nstop\n");
    let document = answer.map(|answer| body(&answer).unwrap());
    assert!(document.is_ok_and(|document| all_ready(&Json::parse(&document))));
    running.wait_status("it goes on", all_ready);
    running.ends_with(libc::SIGTERM, 0);
}
