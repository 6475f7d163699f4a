//! `panzer ctl status --json`: every field that is promised, and true.

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{SystemTime, UNIX_EPOCH};

use super::document::{RESTARTS, assert_document};
use crate::support::binders::{AT_ONCE, Binders, stop};
use crate::support::control::{assert_fails, head, printed, rows, states};
use crate::support::json::Json;
use crate::support::lives::{GATED, READY, Service, pids};
use crate::support::ports::{free_port, local};
use crate::support::scratch::Scratch;
use crate::support::worker::{panzer, probe, text};
use crate::support::{process, wait_until};

/// The only line of a slot.
#[track_caller]
pub(super) fn row(status: &Json, slot: u64) -> &Json {
    let rows = rows(status, slot);
    assert_eq!(rows.len(), 1, "{status:?}");
    rows[0]
}

/// Whether every worker that is asked for is ready.
pub(crate) fn all_ready(status: &Json) -> bool {
    head(status, "ready") == head(status, "workers")
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[test]
fn the_document_has_every_field_and_what_it_says_is_true() {
    let before = now();
    let service = Service::start("-n 3 --ready fd -l web=127.0.0.1:0 --backoff 0:0", READY);
    // One that was measured while it executed its program has no memory.
    let is_measured = |row: &Json| !row.get("memory_bytes").is_null() && row.get("memory_bytes").number() > 10_000;
    let status = service.running.wait_status("all are ready, and measured", |status| {
        all_ready(status) && status.get("workers").list().iter().all(is_measured)
    });
    let after = now();
    let lives = service.running.wait_generation(1, 3);
    assert_document(&service.running.status_text());
    let number = |field| head(&status, field).number();
    assert_eq!(head(&status, "version").text(), env!("CARGO_PKG_VERSION"));
    assert_eq!(number("pid"), u64::from(service.running.panzer_pid()));
    // The kernel's clock for this may be a tick behind.
    let started = head(&status, "started_at_seconds").decimal();
    assert!(before - 1.0 <= started && started <= after, "{before} {started} {after}");
    assert!(head(&status, "uptime_seconds").decimal() <= after - before + 1.0);
    assert_eq!((head(&status, "state").text(), number("generation")), ("running", 1));
    assert_eq!((number("workers"), number("ready")), (3, 3));
    for field in ["reload_generation", "reload_done", "reload_of", "reload_result", "reload_message"] {
        assert!(head(&status, field).is_null(), "{field}");
    }
    for life in &lives {
        let row = row(&status, life.slot.into());
        assert_eq!(row.get("pid").number(), u64::from(life.pid));
        assert_eq!((row.get("generation").number(), row.get("state").text()), (1, "ready"));
        assert_eq!((row.get("restarts").number(), row.get("processes").number()), (0, 1));
        assert!(row.get("last_end").is_null() && row.get("queue").is_null() && row.get("status").is_null());
    }
    let [listener] = status.get("listeners").list() else { panic!("{status:?}") };
    assert_eq!(listener.get("address").text(), service.running.listening()[0]);
    assert_eq!((listener.get("name").text(), listener.get("origin").text()), ("web", "listen"));
    assert_eq!(listener.get("queue").number(), 0);
    let ready = &status.get("histograms").list()[0];
    assert_eq!(ready.get("+Inf").number(), 3);

    // The command prints it as it came, and it is the same for everybody who asks.
    let output = service.running.ctl("status --json");
    let shown = assert_document(printed(&output, 0));
    assert_eq!(row(&shown, 2).get("pid"), row(&status, 2).get("pid"));
    service.end();
}

#[test]
fn without_listeners_the_list_is_empty() {
    let running = panzer("-n 1 --ready exec --share-ports off", &["sleep", "1000"]).start();
    let status = running.wait_status("it is ready", all_ready);
    assert_eq!(status.get("listeners").list(), []);
    assert_document(&running.status_text());
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_killed_worker_is_counted_and_its_end_is_shown() {
    let service = Service::start("-n 2 --ready fd --backoff 0:0", READY);
    let before = service.running.wait_status("all are ready", all_ready);
    for kills in 1..=3 {
        let pid = service.running.kill_worker(1);
        let status = service.running.wait_status("all are ready", |status| {
            all_ready(status) && rows(status, 1).iter().any(|row| *row.get("pid") == Json::Number(pid.to_string()))
        });
        let killed = row(&status, 1);
        assert_eq!((killed.get("restarts").number(), killed.get("state").text()), (kills, "ready"));
        assert_eq!(killed.get("last_end").text(), "was killed by SIGKILL");
        assert_eq!(killed.get("last_end_reason").text(), "signal");
        assert!(killed.get("last_end_seconds_ago").decimal() <= head(&status, "uptime_seconds").decimal());
        assert_eq!(status.get("restarts").get("signal").number(), kills);
        assert_eq!(row(&status, 0).get("pid"), row(&before, 0).get("pid"), "the other is as it was");
        assert_eq!(row(&status, 0).get("restarts").number(), 0);
        assert_document(&service.running.status_text());
    }
    service.end();
}

/// How a worker of slot 0 comes to its end, and what is said of it.
struct Ending {
    options: &'static str,
    /// What the first life does; those after it stay.
    first: &'static str,
    reason: &'static str,
    last_end: &'static str,
    /// Whether it ended by itself.
    by_itself: bool,
}

#[test]
fn restarts_are_counted_by_their_reasons() {
    let plain = Ending { options: "", first: "", reason: "", last_end: "", by_itself: true };
    let endings = [
        Ending { first: "ready exit=0", reason: "exit", last_end: "ended with status 0", ..plain },
        Ending { first: "ready exit=7", reason: "failure", last_end: "ended with status 7", ..plain },
        Ending { first: "default ready kill=10", reason: "signal", last_end: "was killed by SIGUSR1", ..plain },
        Ending { options: "--ready-timeout 200ms", first: "sleep", reason: "not_ready", ..plain },
        Ending { options: "--watchdog 300ms", first: "ready sleep", reason: "watchdog", ..plain },
        Ending { options: "--max-age 300ms", first: "ready sleep", reason: "max_age", by_itself: false, ..plain },
        Ending { options: "--max-rss 64M", first: "ready eat=100 sleep", reason: "max_rss", by_itself: false, ..plain },
    ];
    for ending in endings {
        let later = match ending.reason {
            "watchdog" => "ready beat=$DIR/never",
            _ => "ready sleep",
        };
        // The second life is of a great age, too, so there may be more than one restart.
        let script = format!(
            "[ -e $DIR/once ] && exec $PROBE - {later} >/dev/null
touch $DIR/once; exec $PROBE - {} >/dev/null",
            ending.first
        );
        let options = format!("-n 1 --ready fd --backoff 0:0 --crash-limit 0 {}", ending.options);
        let service = Service::start(&options, &script);
        let status = service.running.wait_status(&format!("one more: {}", ending.reason), |status| {
            status.get("restarts").get(ending.reason).number() > 0
                && rows(status, 0)
                    .iter()
                    .any(|row| *row.get("last_end_reason") == Json::Text(ending.reason.to_string()))
        });
        let text = rows(&status, 0)[0];
        if !ending.last_end.is_empty() {
            assert_eq!(text.get("last_end").text(), ending.last_end, "{}", ending.reason);
        }
        let restarts = text.get("restarts").number();
        assert_eq!(restarts > 0, ending.by_itself, "{}: {restarts}", ending.reason);
        for (other, _) in RESTARTS.iter().filter(|(other, _)| *other != ending.reason) {
            assert_eq!(status.get("restarts").get(other).number(), 0, "{}: {other}", ending.reason);
        }
        assert_document(&service.running.status_text());
        service.running.signal(libc::SIGTERM);
        service.running.wait_exit();
    }
}

#[test]
fn a_command_that_is_gone_is_a_reason_too() {
    let scratch = Scratch::new();
    let app = scratch.path("app");
    // Not by this process: what another test starts meanwhile would have the file open for writing until it executes.
    let copied = std::process::Command::new("cp").args([&crate::support::example("probe"), &app]).status();
    assert!(copied.unwrap().success());
    let running = panzer("-n 1 --ready fd --backoff 0:1h", &[&text(&app), "-", "ready", "sleep"]).start();
    let pid = row(&running.wait_status("it is ready", all_ready), 0).get("pid").number();
    std::fs::remove_file(&app).unwrap();
    process::send_signal(u32::try_from(pid).unwrap(), libc::SIGKILL);
    let status = running.wait_status("it cannot be run", |status| {
        rows(status, 0).iter().any(|row| *row.get("last_end_reason") == Json::Text("cannot_run".to_string()))
    });
    assert!(row(&status, 0).get("last_end").text().contains("No such file"), "{status:?}");
    assert_document(&running.status_text());
    running.signal(libc::SIGTERM);
    running.wait_exit();
}

#[test]
fn a_slot_without_a_process_says_whether_one_will_come() {
    let service = Service::start(
        "-n 2 --ready fd --backoff 1h:1h",
        "[ $PANZER_WORKER_ID = 0 ] && exit 3\nexec $PROBE - ready sleep",
    );
    let status = service.running.wait_status("it waits", |status| states(status, 0) == ["waiting"]);
    let waiting = row(&status, 0);
    assert_eq!(waiting.get("last_end").text(), "ended with status 3");
    assert_eq!(waiting.get("last_end_reason").text(), "failure");
    let status = service.running.wait_status("the other is ready", |status| states(status, 1) == ["ready"]);
    assert_eq!(head(&status, "ready").number(), 1);
    assert_eq!(head(&status, "state").text(), "starting", "not every worker has been ready yet");
    assert_eq!(head(&status, "doing").text(), "starting 1 of 2");
    assert_document(&service.running.status_text());
    service.running.signal(libc::SIGTERM);
    service.running.wait_exit();

    let script = "[ $PANZER_WORKER_ID = 0 ] && exec $PROBE - ready wait=$DIR/go exit=0\nexec $PROBE - ready sleep";
    let service = Service::start("-n 2 --ready fd --restart never", script);
    service.running.wait_status("all are ready", all_ready);
    service.touch("go");
    let status = service.running.wait_status("it has ended", |status| states(status, 0) == ["ended"]);
    assert_eq!(row(&status, 0).get("last_end").text(), "ended with status 0");
    assert_eq!((head(&status, "workers").number(), head(&status, "ready").number()), (2, 1));
    assert_document(&service.running.status_text());
    service.running.signal(libc::SIGTERM);
    service.running.wait_exit();
}

#[test]
fn the_text_of_a_worker_comes_through_whatever_is_in_it() {
    // Cut after 200 bytes, in the middle of a letter.
    let long = format!("x{}", "é".repeat(120));
    let cut = format!("x{}\u{fffd}", "é".repeat(99));
    for (said, shown) in [
        ("42 requests", "42 requests"),
        (r#""quoted" and \back\ /slash"#, r#""quoted" and \back\ /slash"#),
        ("tab\tbell\u{7}escape\u{1b}[1m\u{7f}", "tab bell escape [1m "),
        ("grüße ☃ 🦀 \u{2028}", "grüße ☃ 🦀 \u{2028}"),
        ("{\"panzer\":1}", "{\"panzer\":1}"),
        (&long, &cut),
    ] {
        let action = format!("notify=READY=1\\nSTATUS={said}");
        let running = panzer("-n 1 --ready notify", &probe("-", &[&action, "sleep"])).start();
        let status = running.wait_status("it has said something", |status| {
            all_ready(status) && !rows(status, 0)[0].get("status").is_null()
        });
        assert_eq!(row(&status, 0).get("status").text(), shown);
        assert_document(&running.status_text());
        running.ends_with(libc::SIGTERM, 0);
    }
}

#[test]
fn a_reload_shows_both_workers_of_a_slot_and_how_far_it_is() {
    let service = Service::start("-n 2 --ready fd", GATED);
    service.running.wait_status("all are ready", all_ready);
    let old = pids(&service.running.wait_generation(1, 2));
    service.running.signal(libc::SIGHUP);
    for (done, slot) in [(0, 0), (1, 1)] {
        let status = service.running.wait_status("there are two in the slot", |status| {
            states(status, slot) == ["ready", "starting"] && head(status, "reload_done").number() == done
        });
        let document = assert_document(&service.running.status_text());
        assert_eq!(states(&document, slot), ["ready", "starting"]);
        let both = rows(&status, slot);
        assert_eq!(both[0].get("pid").number(), u64::from(old[usize::try_from(slot).unwrap()]));
        assert_eq!([0, 1].map(|line: usize| both[line].get("generation").number()), [1, 2]);
        assert!(!both[0].get("restarts").is_null() && both[1].get("restarts").is_null());
        assert_eq!(head(&status, "state").text(), "reloading");
        assert_eq!(head(&status, "doing").text(), format!("reloading {done} of 2 to generation 2"));
        assert_eq!(head(&status, "reload_generation").number(), 2);
        assert_eq!(head(&status, "reload_of").number(), 2);
        assert!(head(&status, "reload_result").is_null() && head(&status, "reload_message").is_null());
        assert_eq!((head(&status, "workers").number(), head(&status, "ready").number()), (2, 2));
        service.touch(&format!("go.{slot}"));
    }
    let status = service.running.wait_status("it is over", |status| !head(status, "reload_result").is_null());
    assert_eq!((head(&status, "state").text(), head(&status, "generation").number()), ("running", 2));
    assert_eq!(head(&status, "reload_result").text(), "ok");
    assert_eq!(head(&status, "reload_message").text(), "reloaded: all 2 workers are of generation 2");
    assert_eq!((head(&status, "reload_done").number(), head(&status, "reload_of").number()), (2, 2));
    assert_eq!(status.get("reloads").get("ok").number(), 1);
    service.running.wait_generation(2, 2);
    let status = service.running.wait_status("one line each", |status| status.get("workers").list().len() == 2);
    assert_eq!(row(&status, 0).get("last_end_reason").text(), "reload");
    assert_eq!(row(&status, 0).get("restarts").number(), 0, "it was no crash");
    service.end();
}

#[test]
fn old_workers_that_do_not_end_are_shown_with_those_who_came_after_them() {
    let service = Service::start(
        "-n 1 --ready fd --reload-stop TERM/1000/KILL --surge 3",
        "[ $PANZER_GENERATION -lt 3 ] && exec $PROBE - ignore=15 ready sleep\nexec $PROBE - ready sleep",
    );
    for generation in 2..=3 {
        service.running.wait_status("all are ready", all_ready);
        service.running.signal(libc::SIGHUP);
        service.wait_line(&format!("of generation {generation}\n"));
    }
    let status = service.running.wait_status("three are there", |status| status.get("workers").list().len() == 3);
    assert_document(&service.running.status_text());
    let of = |row: &Json| (row.get("generation").number(), row.get("state").text().to_string());
    let mut shown: Vec<(u64, String)> = rows(&status, 0).into_iter().map(of).collect();
    assert_eq!(shown.iter().filter(|(_, state)| state == "ready").count(), 1);
    shown.sort();
    assert_eq!(shown, [(1, "stopping".to_string()), (2, "stopping".to_string()), (3, "ready".to_string())]);
    let restarts: Vec<bool> = rows(&status, 0).iter().map(|row| row.get("restarts").is_null()).collect();
    assert_eq!(restarts, [false, true, true], "the slot's number stands on its first line");
    service.running.ends_with(libc::SIGQUIT, 137);
}

#[test]
fn a_reload_that_failed_is_told_with_its_reason() {
    let service = Service::start("-n 2 --ready fd", "[ $PANZER_GENERATION = 2 ] && exit 7\nexec $PROBE - ready sleep");
    service.running.wait_status("all are ready", all_ready);
    service.running.signal(libc::SIGHUP);
    let status = service.running.wait_status("it is over", |status| !head(status, "reload_result").is_null());
    assert_eq!(head(&status, "reload_result").text(), "failed");
    let message = head(&status, "reload_message").text();
    assert!(message.starts_with("cannot reload to generation 2: worker 0 (pid "), "{message}");
    assert!(message.ends_with(") ended with status 7; the old workers stay"), "{message}");
    assert_eq!((head(&status, "state").text(), head(&status, "generation").number()), ("running", 1));
    assert_eq!(status.get("reloads").get("failed").number(), 1);
    assert_eq!(status.get("reloads").get("ok").number(), 0);
    assert_document(&service.running.status_text());
    service.end();
}

#[test]
fn the_times_to_get_ready_and_to_stop_are_counted() {
    // Long beside what panzer's clock leaves out when panzer could not run.
    let script = "[ $PANZER_GENERATION = 1 ] && sleep 3.4; exec $PROBE - ready sleep";
    let service = Service::start("-n 2 --ready fd --backoff 0:0", script);
    let status = service.running.wait_status("all are ready", all_ready);
    let [ready, stop] = status.get("histograms").list() else { panic!("{status:?}") };
    assert_eq!((ready.get("+Inf").number(), ready.get("0.3").number()), (2, 0));
    assert!(ready.get("sum").decimal() >= 0.7, "{ready:?}");
    assert_eq!(stop.get("+Inf").number(), 0, "nobody was told to stop");
    service.reload(2, 2);
    let status = service
        .running
        .wait_status("two have stopped", |status| status.get("histograms").list()[1].get("+Inf").number() == 2);
    assert_eq!(status.get("histograms").list()[0].get("+Inf").number(), 4);
    service.end();
}

#[test]
fn the_start_and_the_stop_are_shown_while_they_go_on() {
    let service = Service::start(
        "-n 3 --ready fd --stop TERM/1000/KILL",
        "exec $PROBE - ignore=15 wait=$DIR/go.$PANZER_WORKER_ID ready sleep",
    );
    let starting = |count: u64| format!("starting {count} of 3");
    for ready in 0..3 {
        let status = service.running.wait_status("so many are ready", |status| head(status, "ready").number() == ready);
        assert_eq!(head(&status, "state").text(), "starting");
        assert_eq!(head(&status, "doing").text(), starting(ready));
        service.touch(&format!("go.{ready}"));
    }
    let status = service.running.wait_status("all are ready", all_ready);
    assert_eq!((head(&status, "state").text(), head(&status, "doing").text()), ("running", "running"));
    service.running.signal(libc::SIGTERM);
    let status = service.running.wait_status("it stops", |status| head(status, "state").text() == "stopping");
    assert_eq!(head(&status, "doing").text(), "stopping 3 workers");
    assert!((0..3).all(|slot| states(&status, slot) == ["stopping"]), "{status:?}");
    assert_document(&service.running.status_text());
    printed(&service.running.ctl("status"), 0);
    process::send_signal(service.running.lives()[0].pid, libc::SIGKILL);
    let doing = |status: &Json| head(status, "doing").text() == "stopping 2 workers";
    service.running.wait_status("it says how many are left", doing);
    service.running.ends_with(libc::SIGQUIT, 137);
}

// Queues

/// The addresses of the listeners with what waits there.
fn queues(status: &Json) -> Vec<(String, Option<u64>)> {
    let queue = |one: &Json| Some(one.get("queue")).filter(|queue| !queue.is_null()).map(Json::number);
    status.get("listeners").list().iter().map(|one| (one.get("address").text().to_string(), queue(one))).collect()
}

#[test]
fn the_queue_of_a_listener_is_what_waits_there() {
    let scratch = Scratch::new();
    let path = scratch.path("socket");
    let options =
        format!("-n 1 --ready exec --backlog 77 -l 127.0.0.1:0 -l app=unix://{} -l udp://127.0.0.1:0", path.display());
    let running = panzer(&options, &["sleep", "1000"]).start();
    let addresses = running.listening();
    let status = running.wait_status("it is ready", all_ready);
    assert_eq!(queues(&status).into_iter().map(|(address, _)| address).collect::<Vec<_>>(), addresses);
    let tcp: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(local(running.port())).unwrap()).collect();
    let unix: Vec<UnixStream> = (0..5).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let expected = [Some(3), Some(5), None];
    let status = running
        .wait_status("all of them wait", |status| queues(status).into_iter().map(|(_, queue)| queue).eq(expected));
    let limits: Vec<&Json> = status.get("listeners").list().iter().map(|one| one.get("queue_limit")).collect();
    assert_eq!((limits[0].number(), limits[1].number(), limits[2].is_null()), (77, 77, true));
    assert_document(&running.status_text());
    drop((tcp, unix));
    running.ends_with(libc::SIGTERM, 0);
}

/// A server on a port of its own.
fn serving(options: &str) -> (Binders, u16) {
    let port = free_port();
    let steps = format!("tcp4 bind=127.0.0.1:{port} listen=511 serve sleep");
    let all = Binders::start(&format!("-n 2 {AT_ONCE} {options}"), &steps);
    all.wait_all(2, "serve -> ok");
    (all, port)
}

#[test]
fn what_workers_bind_by_themselves_is_among_the_listeners() {
    let (all, port) = serving("");
    let status = all.running.wait_status("it is there", |status| !status.get("listeners").list().is_empty());
    let [listener] = status.get("listeners").list() else { panic!("{status:?}") };
    assert_eq!(listener.get("address").text(), format!("tcp://127.0.0.1:{port}"));
    assert!(listener.get("origin").text() == "shared" && listener.get("name").is_null(), "{status:?}");
    assert_eq!(listener.get("queue").number(), 0);
    assert!(listener.get("queue_limit").number() >= 511);
    assert_document(&all.running.status_text());
    all.end();
}

#[test]
fn with_a_queue_for_each_a_stopped_worker_shows_what_waits_for_it() {
    let (all, port) = serving("--balance per-worker");
    let slots = all.running.wait_slots(2);
    let status = all.running.wait_status("both are ready", all_ready);
    assert_eq!([0, 1].map(|slot| row(&status, slot).get("queue").number()), [0, 0]);
    stop(slots[&1]);
    let mut clients = Vec::new();
    wait_until("some wait for it", || {
        let mut client = TcpStream::connect(local(port)).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        clients.push(client);
        row(&all.running.status(), 1).get("queue").number() >= 3
    });
    let status =
        all.running.wait_status("nothing waits for the other, and the listener's is the sum of all", |status| {
            let of = |slot| row(status, slot).get("queue").number();
            of(0) == 0 && queues(status)[0].1 == Some(of(1))
        });
    assert!(row(&status, 1).get("queue").number() >= 3, "{status:?}");
    assert_document(&all.running.status_text());
    process::send_signal(slots[&1], libc::SIGCONT);
    all.running.wait_status("they are taken", |status| row(status, 1).get("queue").number() == 0);
    all.end();
}

// What it costs to be asked

#[test]
fn cpu_and_memory_are_those_of_the_whole_group() {
    let script = "(while :; do :; done) & exec $PROBE - ready eat=30 sleep";
    let service = Service::start("-n 1 --ready fd", script);
    let is_so = |row: &Json| {
        !row.get("cpu_seconds").is_null()
            && row.get("cpu_seconds").decimal() > 0.2
            && row.get("memory_bytes").number() > 30 << 20
            && row.get("processes").number() == 2
    };
    let status = service.running.wait_status("the group's use is seen", |status| {
        all_ready(status) && rows(status, 0).iter().all(|row| is_so(row))
    });
    let earlier = row(&status, 0).get("cpu_seconds").decimal();
    service.running.wait_status("it goes on", |status| row(status, 0).get("cpu_seconds").decimal() > earlier);
    service.end();
}

#[test]
fn asking_changes_nothing_of_what_is_asked_about() {
    // Not by descriptor: the pipe for it would be closed a moment after it was read.
    let service = Service::start("-n 2 --ready exec", "exec sleep 100000");
    service.wait_line("all 2 workers are ready");
    let lives = service.running.wait_generation(1, 2);
    // All its lines have been read, and nobody has asked before.
    service.running.settle();
    let (lines, descriptors) = (service.running.stderr(), service.running.descriptors());
    for _ in 0..200 {
        service.running.status();
    }
    wait_until("it has as many descriptors as before", || service.running.descriptors() == descriptors);
    assert_eq!((service.running.lives(), service.running.stderr()), (lives, lines));
    service.running.settle();
    assert_eq!(service.running.descriptors(), descriptors);
    service.end();
}

/// A panzer in init mode has no control socket.
#[test]
fn without_workers_there_is_nothing_to_ask() {
    let running = panzer("", &["sleep", "1000"]).start();
    running.wait_workers(1);
    assert_fails(&running.ctl("status"), 125, &["cannot", &running.pid().to_string()]);
    running.signal(libc::SIGTERM);
    running.wait_exit();
}
