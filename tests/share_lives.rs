//! Shared ports while workers die, flood and start; and where there are none.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use crate::support::binders::{
    AT_ONCE, Binders, addr, as_pid1, binder, is_root, kills_lose_what_was_in_hand, stop, ways, word,
};
use crate::support::load::{self, Failure, Load, LoadOptions};
use crate::support::panzer::{Panzer, Running, binary, shell_status};
use crate::support::ports::{free_port, local, queued};
use crate::support::random::Random;
use crate::support::worker::{panzer, sh, text, through_shell};
use crate::support::{example, holds_for, process, wait_for, wait_until};

/// How long a thing that must not happen is watched for; panzer would else do it after a second.
const WATCH: Duration = Duration::from_millis(1500);

// Deaths

#[test]
fn killed_workers_under_load_refuse_no_connection() {
    let steps = |port| format!("tcp4 set=reuseaddr:1 bind=127.0.0.1:{port} listen=511 serve sleep");
    kills_lose_what_was_in_hand("", steps);
}

#[test]
fn connections_wait_while_the_only_worker_is_away() {
    for (way, wrapper) in ways() {
        let port = free_port();
        let scratch = Binders::directory();
        let go = scratch.write("go", "");
        let steps = format!("wait={} tcp4 bind=127.0.0.1:{port} listen=5 inode serve sleep", text(&go));
        let options = format!("-n 1 {AT_ONCE}");
        let all = Binders::start_through(scratch, &wrapper, &options, |out| binder(out, &steps));
        all.wait_all(1, "serve -> ok");
        std::fs::remove_file(&go).unwrap();
        all.running.kill_worker(0);
        let clients: Vec<_> = (0..20)
            .map(|_| std::thread::spawn(move || load::one_within(&local(port).into(), Duration::from_secs(20))))
            .collect();
        wait_until("they wait", || queued(port) == 20);
        all.scratch.write("go", "");
        for client in clients {
            let answer = client.join().unwrap();
            assert!(answer.is_ok(), "{way}: {answer:?}");
        }
        let inodes = all.values(0, "inode", 2);
        assert_eq!(inodes[0], inodes[1]);
        all.end();
    }
}

#[test]
fn workers_that_die_at_any_moment_of_a_bind_block_nobody() {
    let mut random = Random::new();
    let (port, other) = (free_port(), free_port());
    let steps = format!(
        "thread=1 tcp4 set=reuseaddr:1 bind=127.0.0.1:{port} listen=5 serve thread=3 flood=0:127.0.0.1:{other}"
    );
    let all = Binders::start(&format!("-n 4 {AT_ONCE}"), &steps);
    all.wait_all(4, "serve -> ok");
    let load = Load::start(local(port), LoadOptions { connections: 2, ..LoadOptions::default() });
    for _ in 0..100 {
        let slot = u32::try_from(random.below(4)).unwrap();
        let old = wait_for("the slot has a worker", || all.running.slots().get(&slot).copied());
        random.spin(Duration::from_millis(3));
        process::send_signal(old, libc::SIGKILL);
        all.running.wait_replaced(slot, old);
    }
    let lives: Vec<usize> = (0..4).map(|slot| all.count(slot, "serve -> ok")).collect();
    for slot in 0..4 {
        all.wait_lines(slot, "serve -> ok", 1);
    }
    println!("lives that served: {lives:?}");
    let report = load.stop();
    println!("{report}");
    assert_eq!((report.refused, report.timed_out, report.other.len()), (0, 0, 0), "{report}");
    all.wait_answers(&addr(&format!("127.0.0.1:{port}")), 4);
    assert!(process::zombies_of(all.running.pid()).len() <= 1);
    all.end();
}

#[test]
fn a_stopped_worker_with_a_bind_in_hand_blocks_nobody() {
    let port = free_port();
    let other = free_port();
    let all = Binders::start_through(Binders::directory(), &[], &format!("-n 3 {AT_ONCE}"), |out| {
        let flood = binder(out, &format!("thread=4 flood=0:127.0.0.1:{other}")).join(" ");
        let serve = binder(out, &format!("tcp4 bind=127.0.0.1:{port} listen=5 serve sleep")).join(" ");
        sh(&format!("if [ $PANZER_WORKER_ID = 0 ]; then exec {flood}; else exec {serve}; fi"))
    });
    all.wait_lines(1, "serve -> ok", 1);
    let flooding = all.running.wait_slots(3)[&0];
    let mut random = Random::new();
    for round in 1..20 {
        stop(flooding);
        all.running.kill_worker(1);
        all.wait_lines(1, "serve -> ok", round + 1);
        process::send_signal(flooding, libc::SIGCONT);
        random.spin(Duration::from_millis(2));
    }
    all.wait_answers(&addr(&format!("127.0.0.1:{port}")), 2);
    all.end();
}

#[test]
fn a_worker_that_floods_panzer_with_binds_does_not_starve_the_others() {
    for flood in ["127.0.0.1:{}", "192.0.2.1:{}", "127.0.0.1:0"] {
        let port = free_port();
        let flood = flood.replace("{}", &free_port().to_string());
        let all = Binders::start_through(Binders::directory(), &[], &format!("-n 3 {AT_ONCE}"), |out| {
            let flood = binder(out, &format!("fork=4 thread=4 flood=0:{flood}")).join(" ");
            let serve = binder(out, &format!("tcp4 bind=127.0.0.1:{port} listen=5 serve sleep")).join(" ");
            sh(&format!("if [ $PANZER_WORKER_ID = 0 ]; then exec {flood}; else exec {serve}; fi"))
        });
        all.wait_lines(1, "serve -> ok", 1);
        for round in 2..12 {
            all.running.kill_worker(1);
            all.wait_lines(1, "serve -> ok", round);
        }
        all.wait_answers(&addr(&format!("127.0.0.1:{port}")), 2);
        // The flooding worker can be replaced, and panzer stopped.
        all.running.kill_worker(0);
        all.end();
    }
}

#[test]
fn a_worker_that_binds_many_ports_leaves_the_others_theirs() {
    // More than panzer has room for, with as many descriptors as a careless ulimit gives. What it cannot share is the
    // worker's own; who asks for many gets them.
    const LIMIT: u16 = 60;
    const PORTS: u16 = 45;
    let port = free_port();
    let many_ports: Vec<u16> = (0..PORTS).map(|_| free_port()).collect();
    let (first, others) = many_ports.split_first().unwrap();
    let limited = through_shell(&format!("ulimit -n {LIMIT}"));
    let all = Binders::start_through(Binders::directory(), &limited, &format!("-n 2 {AT_ONCE}"), |out| {
        let bind = |port: &u16| format!("tcp4 bind=127.7.7.7:{port} listen=1");
        let others: Vec<String> = others.iter().map(bind).collect();
        let many = binder(out, &format!("{} serve {} name sleep", bind(first), others.join(" "))).join(" ");
        let serve = binder(out, &format!("tcp4 bind=127.0.0.1:{port} listen=5 serve sleep")).join(" ");
        sh(&format!("if [ $PANZER_WORKER_ID = 0 ]; then exec {many}; else exec {serve}; fi"))
    });
    all.wait_lines(1, "serve -> ok", 1);
    all.value(0, "name");
    for round in 2..5 {
        all.running.kill_worker(1);
        all.wait_lines(1, "serve -> ok", round);
    }
    assert_eq!(word(&load::one(&local(port).into()).unwrap(), "worker="), "1");
    let last = format!("127.7.7.7:{}", others[others.len() - 1]);
    assert_eq!(word(&load::one(&addr(&format!("127.7.7.7:{first}"))).unwrap(), "worker="), "0");
    TcpStream::connect(&last).unwrap();
    let refused: Vec<String> = all.results(0).into_iter().filter(|line| !line.ends_with(" -> ok")).collect();
    assert_eq!(refused, [format!("name -> {last}")]);
    let said = format!("panzer may have only {LIMIT} descriptors");
    all.running.wait_line(&said);
    // The one that has so many is replaced as well.
    all.running.kill_worker(0);
    wait_until("its next life has bound all of them", || all.count(0, &format!("name -> {last}")) == 2);
    let stderr = all.running.stderr();
    assert_eq!(stderr.matches(&said).count(), 1, "it is said once: {stderr}");
    all.end();
}

#[test]
fn panzer_takes_the_descriptors_that_it_may_have_and_gives_workers_what_they_had() {
    const LIMITS: &str = "ulimit -Sn; ulimit -Hn";
    let lowered = through_shell("ulimit -S -n 100");
    for options in ["", "-n 1 --restart never -q", "-n 1 --restart never --share-ports off -q"] {
        let output = panzer(options, &sh(LIMITS)).wrapper(&lowered).run();
        assert_eq!(output.stdout, alone_with(&lowered, LIMITS), "{options}: {output:?}");
    }
    let running = panzer("-n 2", &["sleep", "100000"]).wrapper(&lowered).start();
    let workers = running.wait_slots(2);
    let limits = |pid: u32| {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
        line.split_ascii_whitespace().take(2).map(str::to_string).collect::<Vec<_>>()
    };
    let own = limits(running.panzer_pid());
    assert_eq!(own[0], own[1], "panzer has all that it may have");
    // Of a later life as well.
    for worker in [workers[&0], running.kill_worker(1)] {
        assert_eq!(limits(worker), ["100", own[1].as_str()]);
    }
    running.ends_with(libc::SIGTERM, 0);
}

/// What a shell script writes behind a wrapper, without panzer.
fn alone_with(wrapper: &[String], script: &str) -> String {
    let output = Command::new(&wrapper[0]).args(&wrapper[1..]).args(sh(script)).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_port_that_a_worker_has_bound_and_closed_again_is_free_for_another_program() {
    let mut all = Vec::new();
    for (way, wrapper) in ways() {
        for user in if is_root() { &["", "-u 12345"][..] } else { &[""] } {
            for (who, options) in [
                ("the worker", "--balance shared"),
                ("the worker", "--balance per-worker"),
                ("a child", "--balance shared"),
                ("a child that has ended", "--balance shared"),
            ] {
                let port = free_port();
                let steps = format!("tcp4 bind=127.0.0.1:{port} close");
                let options = format!("-n 1 {options} {user}");
                let one = Binders::start_through(Binders::directory(), &wrapper, &options, |out| match who {
                    "the worker" => binder(out, &format!("{steps} sleep")),
                    "a child" => binder(out, &format!("fork=1 {steps} sleep")),
                    _ => sh(&format!("{}; exec sleep 100000", binder(out, &steps).join(" "))),
                });
                all.push((format!("{who}, {way}, {options}"), one, port));
            }
        }
    }
    for (what, one, port) in all {
        one.wait_all(1, "close -> ok");
        wait_until(&format!("another program has the port: {what}"), || TcpListener::bind(local(port)).is_ok());
        one.end();
    }
}

#[test]
fn a_port_that_a_worker_has_bound_and_kept_stays_its_own() {
    let port = free_port();
    let scratch = Binders::directory();
    let go = scratch.path("go");
    let steps = format!("tcp4 bind=127.0.0.1:{port} wait={} listen=5 inode serve sleep", text(&go));
    let all = Binders::start_in(scratch, "-n 2", &steps);
    all.wait_all(2, &format!("bind=127.0.0.1:{port} -> ok"));
    holds_for(WATCH, "it is not free", || TcpListener::bind(local(port)).is_err());
    all.scratch.write("go", "");
    all.wait_all(2, "serve -> ok");
    assert_eq!(all.value(0, "inode"), all.value(1, "inode"));
    all.wait_answers(&local(port).into(), 2);
    all.end();
}

#[test]
fn a_worker_that_shuts_its_listener_down_is_replaced_by_one_that_listens() {
    // WEBrick does so when it ends.
    let port = free_port();
    let steps = format!("tcp4 set=reuseaddr:1 bind=127.0.0.1:{port} listen=5 serve sleep");
    let scratch = Binders::directory();
    let go = scratch.path("go");
    let all = Binders::start_through(scratch, &[], &format!("-n 1 {AT_ONCE}"), |out| {
        let first = steps.replace("sleep", &format!("wait={} shutdown exit=0", text(&go)));
        let (first, later) = (binder(out, &first).join(" "), binder(out, &steps).join(" "));
        sh(&format!("if [ -e {} ]; then exec {later}; else exec {first}; fi", text(&go)))
    });
    all.wait_all(1, "serve -> ok");
    load::one(&local(port).into()).unwrap();
    all.scratch.write("go", "");
    all.wait_lines(0, "serve -> ok", 2);
    wait_until("the next life answers", || load::one(&local(port).into()).is_ok());
    all.end();
}

// Readiness

/// How often panzer has said that a slot is ready.
fn ready(running: &Running, slot: u32) -> usize {
    running
        .stderr()
        .lines()
        .filter(|line| line.contains(&format!("worker {slot} ")) && line.ends_with(" is ready"))
        .count()
}

#[test]
fn with_ready_bind_a_worker_is_ready_when_it_listens_and_not_before() {
    for before in ["", "fork=1"] {
        let port = free_port();
        let scratch = Binders::directory();
        let go = scratch.path("go");
        let steps = format!("{before} tcp4 bind=127.0.0.1:{port} wait={} listen=5 sleep", text(&go));
        let all = Binders::start_in(scratch, "-n 1 -v --ready bind", &steps);
        all.wait_all(1, &format!("bind=127.0.0.1:{port} -> ok"));
        holds_for(WATCH, "it is not ready", || ready(&all.running, 0) == 0);
        all.scratch.write("go", "");
        wait_until("it is ready", || ready(&all.running, 0) == 1);
        all.end();
    }
}

#[test]
fn with_ready_bind_a_listen_elsewhere_counts_for_nothing() {
    let scratch = Binders::directory();
    let go = scratch.path("go");
    let port = free_port();
    let steps = format!("tcp4 bind=127.0.0.1:0 listen=5 wait={} tcp4 bind=127.0.0.1:{port} listen=5 sleep", text(&go));
    let all = Binders::start_in(scratch, "-n 2 -v --ready bind", &steps);
    all.wait_all(2, "listen=5 -> ok");
    holds_for(WATCH, "they are not ready", || ready(&all.running, 0) + ready(&all.running, 1) == 0);
    all.scratch.write("go", "");
    wait_until("they are ready", || ready(&all.running, 0) + ready(&all.running, 1) == 2);
    all.end();
}

#[test]
fn with_ready_bind_a_declared_listener_counts() {
    for address in ["127.0.0.1:0", "127.0.0.1:{}"] {
        let port = free_port();
        let address = address.replace("{}", &port.to_string());
        let scratch = Binders::directory();
        let go = scratch.path("go");
        // One takes the descriptor, the other binds it.
        let socket = if address.ends_with(":0") { "fd=3".to_string() } else { format!("tcp4 bind={address}") };
        let steps = format!("wait={} {socket} listen=5 sleep", text(&go));
        let all = Binders::start_in(scratch, &format!("-n 1 -v --ready bind -l {address}"), &steps);
        all.running.wait_slots(1);
        holds_for(WATCH, "it is not ready", || ready(&all.running, 0) == 0);
        all.scratch.write("go", "");
        wait_until("it is ready", || ready(&all.running, 0) == 1);
        all.end();
    }
}

#[test]
fn by_default_a_slot_that_has_listened_is_ready_when_its_next_life_listens() {
    let port = free_port();
    let scratch = Binders::directory();
    let go = scratch.write("go", "");
    let steps = format!("wait={} tcp4 bind=127.0.0.1:{port} listen=5 sleep", text(&go));
    let all = Binders::start_in(scratch, "-n 1 -v", &steps);
    all.wait_all(1, "listen=5 -> ok");
    wait_until("it is ready", || ready(&all.running, 0) == 1);
    std::fs::remove_file(&go).unwrap();
    all.running.kill_worker(0);
    holds_for(WATCH, "the next one is not ready", || ready(&all.running, 0) == 1);
    all.scratch.write("go", "");
    wait_until("the next one is ready", || ready(&all.running, 0) == 2);
    all.end();
}

#[test]
fn by_default_a_worker_that_binds_nothing_is_ready_all_the_same() {
    let running = panzer("-n 2 -v", &["sleep", "100000"]).start();
    wait_until("they are ready", || ready(&running, 0) + ready(&running, 1) == 2);
    running.ends_with(libc::SIGTERM, 0);
}

// Where nothing is shared

#[test]
fn with_share_ports_off_nothing_is_intercepted() {
    let port = free_port();
    let all = Binders::start("-n 2 --share-ports off", &format!("tcp4 bind=127.0.0.1:{port} listen=5 serve sleep"));
    all.wait_all(2, "serve -> ok");
    let mut results: Vec<String> = (0..2).map(|slot| all.value(slot, &format!("bind=127.0.0.1:{port}"))).collect();
    results.sort();
    assert_eq!(results, ["EADDRINUSE", "ok"]);
    for worker in all.running.wait_slots(2).values() {
        assert_eq!(process::status_field(*worker, "Seccomp_filters"), Some(own_filters()));
    }
    all.end();
}

/// How many seccomp filters there are around the tests already.
fn own_filters() -> String {
    process::status_field(std::process::id(), "Seccomp_filters").unwrap()
}

#[test]
fn without_workers_nothing_is_intercepted() {
    let port = free_port();
    let steps = format!("tcp4 bind=127.0.0.1:{port} listen=5");
    let output = panzer("", &binder("-", &steps)).run();
    assert_eq!(shell_status(output.status), 0);
    assert!(output.stdout.ends_with(&format!("bind=127.0.0.1:{port} -> ok\nlisten=5 -> ok\n")), "{output:?}");
    let filters = panzer("", &sh("grep Seccomp_filters: /proc/self/status")).run();
    assert!(filters.stdout.ends_with(&format!("{}\n", own_filters())), "{filters:?}");
}

#[test]
fn ready_bind_needs_shared_ports() {
    for options in ["--ready bind", "-n 2 --share-ports off --ready bind"] {
        let output = panzer(options, &["true"]).run();
        assert_eq!(shell_status(output.status), 125, "{options}: {output:?}");
        assert_eq!(output.stderr.lines().count(), 1, "{options}: {output:?}");
        assert!(output.stderr.starts_with("panzer: cannot "), "{options}: {output:?}");
    }
}

/// What panzer is run through where it cannot share ports: within one that does, and where a profile forbids it.
fn refusing_kernels() -> [Vec<String>; 2] {
    let outer = [text(binary()), "-q".to_string(), "-n".to_string(), "1".to_string(), "--restart".to_string()];
    let outer = outer.into_iter().chain(["never", "--"].map(str::to_string));
    [outer.collect(), binder("-", "deny=seccomp exec")]
}

#[test]
fn where_the_kernel_refuses_on_is_status_125() {
    for wrapper in refusing_kernels() {
        let output = Panzer::new(["-n", "2", "--share-ports", "on", "--", "true"]).wrapper(&wrapper).run();
        assert_eq!(shell_status(output.status), 125, "{output:?}");
        let said: Vec<&str> = output.stderr.lines().filter(|line| line.contains("share ports")).collect();
        assert_eq!(said.len(), 1, "{output:?}");
        assert!(said[0].starts_with("panzer: cannot share ports: "), "{output:?}");
    }
}

#[test]
fn where_the_kernel_refuses_auto_says_so_once_and_what_to_do_and_the_workers_run() {
    for wrapper in refusing_kernels() {
        let port = free_port();
        let steps = format!("tcp4 set=reuseport:1 bind=127.0.0.1:{port} listen=5 serve sleep");
        let scratch = Binders::directory();
        let all = Binders::start_through(scratch, &wrapper, "-n 2 -v", |out| binder(out, &steps));
        for slot in 0..2 {
            all.wait_lines(slot, "serve -> ok", 1);
        }
        // A worker may be there before panzer's words are.
        all.running.wait_line("cannot share ports: ");
        let stderr = all.running.stderr();
        let said: Vec<&str> = stderr.lines().filter(|line| line.contains("cannot share ports: ")).collect();
        assert_eq!(said.len(), 1, "{stderr}");
        assert!(said[0].contains("-l") && said[0].contains("SO_REUSEPORT"), "{stderr}");
        all.end();
    }
}

#[test]
fn a_panzer_inside_a_worker_of_a_panzer_that_shares_nothing_shares() {
    let port = free_port();
    let outer = ["-n", "1", "--share-ports", "off", "-q", "--"].map(str::to_string);
    let wrapper: Vec<String> = [text(binary())].into_iter().chain(outer).collect();
    let steps = format!("tcp4 bind=127.0.0.1:{port} listen=5 serve sleep");
    let all =
        Binders::start_through(Binders::directory(), &wrapper, "-n 3 --share-ports on", |out| binder(out, &steps));
    all.wait_all(3, "serve -> ok");
    all.wait_answers(&addr(&format!("127.0.0.1:{port}")), 3);
    all.end();
}

#[test]
fn workers_of_a_panzer_inside_a_worker_share_through_the_outer_one() {
    let port = free_port();
    let wrapper = [text(binary()), "-n".to_string(), "2".to_string(), "-q".to_string(), "--".to_string()];
    let steps = format!("tcp4 bind=127.0.0.1:{port} listen=5 serve sleep");
    let all = Binders::start_through(Binders::directory(), &wrapper, "-n 2 -q", |out| binder(out, &steps));
    // Both inner ones have a slot 0 and a slot 1.
    for slot in 0..2 {
        all.wait_lines(slot, "serve -> ok", 2);
    }
    all.wait_answers(&addr(&format!("127.0.0.1:{port}")), 2);
    all.end();
}

// When panzer is gone

#[test]
fn after_a_kill_of_panzer_in_the_middle_of_binds_everything_is_gone_and_the_port_free() {
    let mut random = Random::new();
    for _ in 0..20 {
        let (port, other) = (free_port(), free_port());
        let steps = format!("tcp4 bind=127.0.0.1:{port} listen=5 thread=2 flood=0:127.0.0.1:{other}");
        let running = panzer("-n 4 --stop TERM/1/KILL", &binder("-", &steps)).start();
        wait_until("they listen", || running.stdout().matches("listen=5 -> ok").count() == 4);
        random.spin(Duration::from_millis(5));
        running.kill();
        running.wait_exit();
        wait_until("all of panzer's processes are gone", || running.leftovers().is_empty());
        assert_eq!(load::one(&local(port).into()), Err(Failure::Refused));
    }
}

#[test]
fn at_a_stop_no_new_connection_is_taken_once_panzer_has_ended() {
    for wrapper in [Some(Vec::new()), as_pid1()].into_iter().flatten() {
        let port = free_port();
        let command = |out: &str| binder(out, &format!("tcp4 bind=127.0.0.1:{port} listen=5 serve sleep"));
        let all = Binders::start_through(Binders::directory(), &wrapper, "-n 2", command);
        all.wait_all(2, "serve -> ok");
        let mut kept = TcpStream::connect(local(port)).unwrap();
        kept.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        all.end();
        assert_eq!(load::one(&local(port).into()), Err(Failure::Refused));
    }
}

#[test]
fn the_bundled_server_runs_three_times_on_one_port() {
    let port = free_port();
    let command = [text(example("hello")), format!("127.0.0.1:{port}")];
    let running = panzer("-n 3 -v", &command).start();
    running.wait_line("all 3 workers are ready");
    let mut answered = std::collections::BTreeSet::new();
    wait_until("all three have answered", || {
        answered.insert(word(&load::one(&local(port).into()).unwrap(), "worker="));
        answered.len() == 3
    });
    running.ends_with(libc::SIGTERM, 0);
}
