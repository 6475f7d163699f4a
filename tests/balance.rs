//! `--balance`: one queue for all workers, or one for each, which panzer keeps over the lives of its slot.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::binders::{
    AT_ONCE, Binders, addr, alone, binder, has_ipv6, is_root, kills_lose_what_was_in_hand, left_out, stop, ways, word,
};
use crate::support::load::{self, Failure};
use crate::support::panzer::shell_status;
use crate::support::ports::{free_port, local, queued};
use crate::support::worker::{panzer, sh, text};
use crate::support::{deadline_or, process, wait_for, wait_until};

/// The steps of a server on this port.
fn serving(port: u16) -> String {
    format!("tcp4 bind=127.0.0.1:{port} listen=511 inode options serve sleep")
}

/// The steps of a server that takes what is handed down.
const TAKING: &str = "fd=3 listen=511 inode options serve sleep";

/// How many of so many requests each worker answered.
#[track_caller]
fn shares(port: u16, count: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..count {
        let body = load::one(&local(port).into()).unwrap_or_else(|failure| panic!("{failure}"));
        *shares.entry(word(&body, "worker=")).or_default() += 1;
    }
    shares
}

/// How a request ended that had all the time of a test's deadline.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// This worker has answered.
    By(String),
    /// The connection was reset.
    Reset,
    /// It was closed without an answer, by somebody who had read the request.
    Closed,
    /// Anything else.
    Other(String),
}

fn request(port: u16) -> End {
    let limit = deadline_or(Duration::from_secs(20));
    let ask = || {
        let mut connection = TcpStream::connect_timeout(&local(port), limit)?;
        connection.set_read_timeout(Some(limit))?;
        connection.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    };
    match ask() {
        Ok(answer) if answer.contains("worker=") => End::By(word(&answer, "worker=")),
        Ok(answer) if answer.is_empty() => End::Closed,
        Ok(answer) => End::Other(answer),
        Err(error) if std::io::Error::kind(&error) == ErrorKind::ConnectionReset => End::Reset,
        Err(error) => End::Other(error.to_string()),
    }
}

/// Requests some of which wait at a worker that is stopped.
pub(crate) struct Waiting(Vec<JoinHandle<End>>);

impl Waiting {
    /// Sends so many requests, each of which is answered or waits in a queue when this returns.
    #[track_caller]
    pub(crate) fn at(port: u16, count: usize) -> Waiting {
        let waiting = Waiting((0..count).map(|_| thread::spawn(move || request(port))).collect());
        // Twice, since what waits at another worker is taken from its queue before it is answered.
        wait_until("each is answered or waits", || {
            (0..2).all(|_| {
                thread::sleep(Duration::from_millis(2));
                waiting.open() == queued(port)
            })
        });
        assert!(waiting.open() > 0, "none waits");
        waiting
    }

    fn open(&self) -> usize {
        self.0.iter().filter(|one| !one.is_finished()).count()
    }

    /// How many were answered by each worker, and how many reset; none was closed without an answer.
    #[track_caller]
    pub(crate) fn ends(self) -> (BTreeMap<String, usize>, usize) {
        let (answered, reset, closed) = self.all_ends();
        assert_eq!(closed, 0, "closed without an answer");
        (answered, reset)
    }

    /// How many were answered by each worker, how many reset, and how many closed without an answer.
    #[track_caller]
    pub(crate) fn all_ends(self) -> (BTreeMap<String, usize>, usize, usize) {
        let (mut answered, mut reset, mut closed) = (BTreeMap::new(), 0, 0);
        for one in self.0 {
            match one.join().unwrap() {
                End::By(worker) => *answered.entry(worker).or_default() += 1,
                End::Reset => reset += 1,
                End::Closed => closed += 1,
                End::Other(what) => panic!("a request ended with {what:?}"),
            }
        }
        (answered, reset, closed)
    }
}

// Queues

#[test]
fn by_default_all_workers_share_one_queue() {
    for option in ["", "--balance shared"] {
        let port = free_port();
        let all = Binders::start(&format!("-n 3 {option}"), &serving(port));
        all.wait_all(3, "serve -> ok");
        let inodes: BTreeSet<String> = (0..3).map(|slot| all.value(slot, "inode")).collect();
        assert_eq!(inodes.len(), 1);
        assert!(all.value(2, "options").contains(" reuseport=00000000 "));
        all.end();
    }
}

#[test]
fn per_worker_each_slot_has_a_queue_that_its_lives_keep() {
    for declared in [false, true] {
        for (way, wrapper) in ways() {
            let port = free_port();
            let (option, steps) = if declared {
                (format!("-l 127.0.0.1:{port}"), TAKING.to_string())
            } else {
                (String::new(), serving(port))
            };
            let options = format!("-n 3 --balance per-worker {AT_ONCE} {option}");
            let all = Binders::start_through(Binders::directory(), &wrapper, &options, |out| binder(out, &steps));
            all.wait_all(3, "serve -> ok");
            let inodes: BTreeSet<String> = (0..3).map(|slot| all.value(slot, "inode")).collect();
            assert_eq!(inodes.len(), 3, "{way}");
            for slot in 0..3 {
                assert!(all.value(slot, "options").contains(" reuseport=01000000 "), "{way}");
                for _ in 0..2 {
                    all.running.kill_worker(slot);
                }
                all.wait_lines(slot, "serve -> ok", 2);
                let of_lives: BTreeSet<String> = all.values(slot, "inode", 2).into_iter().collect();
                assert_eq!(of_lives.len(), 1, "{way}");
            }
            all.wait_answers(&local(port).into(), 3);
            all.end();
            assert_eq!(load::one(&local(port).into()), Err(Failure::Refused));
        }
    }
}

#[test]
fn per_worker_a_worker_that_binds_a_declared_address_gets_the_queue_that_it_was_handed() {
    let port = free_port();
    let steps = format!("fd=3 inode tcp4 bind=127.0.0.1:{port} listen=5 inode serve sleep");
    let all = Binders::start(&format!("-n 3 --balance per-worker -l 127.0.0.1:{port}"), &steps);
    all.wait_all(3, "serve -> ok");
    for slot in 0..3 {
        let inodes = all.values(slot, "inode", 2);
        assert_eq!(inodes[0], inodes[1]);
    }
    all.wait_answers(&local(port).into(), 3);
    all.end();
}

#[test]
fn per_worker_the_options_but_one_are_the_apps_own() {
    for set in ["tcp4+nonblock set=reuseaddr:1 set=rcvbuf:65536", "tcp4+cloexec set=deferaccept:5 set=fastopen:16"] {
        for (way, wrapper) in ways() {
            let port = free_port();
            let steps = format!("{set} bind=127.0.0.1:{port} listen=511 name options");
            let expected: Vec<String> =
                alone(&steps).iter().map(|line| line.replace(" reuseport=00000000", " reuseport=01000000")).collect();
            let options = "-n 3 --balance per-worker";
            let all = Binders::start_through(Binders::directory(), &wrapper, options, |out| {
                binder(out, &format!("{steps} sleep"))
            });
            for slot in 0..3 {
                wait_until("all steps are done", || all.results(slot).len() == expected.len());
                assert_eq!(all.results(slot), expected, "{way}");
            }
            all.end();
        }
    }
}

#[test]
fn per_worker_paths_stay_one_queue() {
    for (way, wrapper) in ways() {
        let scratch = Binders::directory();
        let path = scratch.path("x.sock");
        let steps = format!("fd=3 inode unlink={0} unix bind={0} listen=5 inode serve sleep", path.display());
        let options = format!("-n 3 --balance per-worker -l unix://{}.declared", path.display());
        let all = Binders::start_through(scratch, &wrapper, &options, |out| binder(out, &steps));
        all.wait_all(3, "serve -> ok");
        let inodes: BTreeSet<Vec<String>> = (0..3).map(|slot| all.values(slot, "inode", 2)).collect();
        assert_eq!(inodes.len(), 1, "{way}");
        all.wait_answers(&load::Addr::Unix(path), 3);
        all.end();
    }
}

#[test]
fn per_worker_works_for_another_user_and_for_both_families() {
    let user = if is_root() { "-u 12345" } else { "" };
    let port = free_port();
    let all = Binders::start(&format!("-n 3 --balance per-worker {user}"), &serving(port));
    all.wait_all(3, "serve -> ok");
    all.wait_answers(&local(port).into(), 3);
    all.end();
    if !has_ipv6() {
        return left_out("IPv6: this machine has none");
    }
    let port = free_port();
    let steps = format!(
        "tcp4 bind=0.0.0.0:{port} listen=5 tcp6 set=v6only:1 bind=[::]:{port} listen=5 tcp4 bind=127.0.0.1:{} listen=5 serve sleep",
        free_port()
    );
    let all = Binders::start(&format!("-n 3 --balance per-worker {user}"), &steps);
    all.wait_all(3, "serve -> ok");
    assert_eq!(all.wait_answers(&addr(&format!("127.0.0.1:{port}")), 3), BTreeSet::from(["0".to_string()]));
    assert_eq!(all.wait_answers(&addr(&format!("[::1]:{port}")), 3), BTreeSet::from(["1".to_string()]));
    all.end();
    let port = free_port();
    let all = Binders::start("-n 3 --balance per-worker", &format!("tcp6 bind=[::]:{port} listen=5 serve sleep"));
    all.wait_all(3, "serve -> ok");
    all.wait_answers(&addr(&format!("127.0.0.1:{port}")), 3);
    all.wait_answers(&addr(&format!("[::1]:{port}")), 3);
    all.end();
}

#[test]
fn per_worker_another_program_can_have_neither_the_port_nor_a_share_of_it() {
    let port = free_port();
    let all = Binders::start("-n 2 --balance per-worker", &serving(port));
    all.wait_all(2, "serve -> ok");
    assert_eq!(alone(&format!("tcp4 bind=127.0.0.1:{port}"))[1], format!("bind=127.0.0.1:{port} -> EADDRINUSE"));
    all.end();
}

// Shares

#[test]
fn per_worker_connections_are_spread_evenly() {
    let port = free_port();
    let all = Binders::start("-n 4 --balance per-worker", &serving(port));
    all.wait_all(4, "serve -> ok");
    all.wait_answers(&local(port).into(), 4);
    // A hundred each are expected; fewer than fifty is one case in a million.
    let short = shares(port, 400);
    println!("short connections: {short:?}");
    assert!(short.len() == 4 && short.values().all(|count| *count >= 50), "{short:?}");
    let mut kept: Vec<TcpStream> = Vec::new();
    let mut shares: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..400 {
        let mut connection = TcpStream::connect(local(port)).unwrap();
        connection.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = [0; 512];
        let count = connection.read(&mut answer).unwrap();
        *shares.entry(word(&String::from_utf8_lossy(&answer[..count]), "worker=")).or_default() += 1;
        kept.push(connection);
    }
    println!("kept connections: {shares:?}");
    assert!(shares.len() == 4 && shares.values().all(|count| *count >= 50), "{shares:?}");
    drop(kept);
    all.end();
}

#[test]
fn per_worker_datagrams_are_spread_too_and_each_client_keeps_its_worker() {
    let port = free_port();
    let all = Binders::start(
        &format!("-n 4 --balance per-worker {AT_ONCE} -l udp://127.0.0.1:{port}"),
        "fd=3 inode serve sleep",
    );
    all.wait_all(4, "serve -> ok");
    let inodes: BTreeSet<String> = (0..4).map(|slot| all.value(slot, "inode")).collect();
    assert_eq!(inodes.len(), 4);
    let ask = |client: &UdpSocket| {
        client.send_to(b"who", local(port)).unwrap();
        let mut answer = [0; 100];
        let count = client.recv(&mut answer).unwrap();
        word(&String::from_utf8_lossy(&answer[..count]), "worker=")
    };
    let mut shares: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..400 {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let worker = ask(&client);
        assert_eq!(ask(&client), worker);
        *shares.entry(worker).or_default() += 1;
    }
    println!("datagrams: {shares:?}");
    assert!(shares.len() == 4 && shares.values().all(|count| *count >= 50), "{shares:?}");
    all.end();
}

// Rotation

/// Two workers of which the second one waits for a file before it listens.
fn one_waits(options: &str, port: u16, declared: bool) -> (Binders, PathBuf) {
    let scratch = Binders::directory();
    let go = scratch.path("go");
    let option = if declared { format!("-l 127.0.0.1:{port}") } else { String::new() };
    let steps = if declared { TAKING.to_string() } else { serving(port) };
    let options = format!("-n 2 --balance per-worker --ready bind {options} {option}");
    let all = Binders::start_through(scratch, &[], &options, |out| {
        let waits = binder(out, &format!("wait={} {steps}", text(&go))).join(" ");
        let serves = binder(out, &steps).join(" ");
        sh(&format!("if [ $PANZER_WORKER_ID = 0 ]; then exec {serves}; else exec {waits}; fi"))
    });
    (all, go)
}

#[test]
fn per_worker_a_slot_that_is_not_ready_is_given_no_connection() {
    for declared in [false, true] {
        let port = free_port();
        let (all, go) = one_waits("--backoff 0:0", port, declared);
        all.wait_lines(0, "serve -> ok", 1);
        all.running.wait_slots(2);
        // The first one is in rotation alone.
        all.settle();
        assert_eq!(shares(port, 100), BTreeMap::from([("0".to_string(), 100)]), "declared: {declared}");
        fs::write(&go, "").unwrap();
        all.wait_lines(1, "serve -> ok", 1);
        all.wait_answers(&local(port).into(), 2);
        // Once more, for a slot that has been ready before.
        fs::remove_file(&go).unwrap();
        all.running.kill_worker(1);
        // What comes before panzer knows of it waits there for the next one.
        all.settle();
        assert_eq!(shares(port, 100), BTreeMap::from([("0".to_string(), 100)]), "declared: {declared}");
        fs::write(&go, "").unwrap();
        all.wait_answers(&local(port).into(), 2);
        all.end();
    }
}

#[test]
fn per_worker_while_no_slot_is_ready_connections_wait_at_all_and_none_is_lost() {
    let port = free_port();
    let scratch = Binders::directory();
    let go = scratch.path("go");
    let steps = format!("wait={} {TAKING}", text(&go));
    let options = format!("-n 2 --balance per-worker --ready bind -l 127.0.0.1:{port}");
    let all = Binders::start_in(scratch, &options, &steps);
    all.running.listening();
    let waiting = Waiting::at(port, 40);
    assert_eq!(waiting.open(), 40);
    fs::write(&go, "").unwrap();
    let (answered, reset) = waiting.ends();
    assert_eq!((answered.len(), answered.values().sum(), reset), (2, 40, 0), "{answered:?}");
    all.end();
}

/// Two that have begun to listen within a second: what waits at a slot where that takes longer is let go of instead.
fn booted_fast(declared: bool) -> (u16, Binders) {
    wait_for("both boot within a second", || {
        let (port, begin) = (free_port(), Instant::now());
        let (option, steps) = if declared {
            (format!("-l 127.0.0.1:{port}"), TAKING.to_string())
        } else {
            (String::new(), serving(port))
        };
        let all = Binders::start(&format!("-n 2 --balance per-worker {AT_ONCE} {option}"), &steps);
        all.wait_all(2, "serve -> ok");
        (begin.elapsed() < Duration::from_secs(1)).then_some((port, all))
    })
}

#[test]
fn per_worker_what_waits_at_a_slot_is_answered_by_its_next_life() {
    for declared in [false, true] {
        let (port, all) = booted_fast(declared);
        for life in 2..5 {
            let slots = all.running.wait_slots(2);
            all.settle();
            stop(slots[&1]);
            let waiting = Waiting::at(port, 40);
            process::send_signal(slots[&1], libc::SIGKILL);
            let (answered, reset) = waiting.ends();
            assert_eq!((answered.len(), answered.values().sum(), reset), (2, 40, 0), "{answered:?}");
            all.wait_lines(1, "serve -> ok", life);
        }
        all.end();
    }
}

#[test]
fn per_worker_what_waits_at_a_slot_that_is_away_for_long_is_reset_at_once() {
    // Away for an hour, or for ever.
    for (options, lives) in [("--ready exec --backoff 1h:1h", 2), ("--ready exec --restart never", 1)] {
        for declared in [false, true] {
            let port = free_port();
            let (option, steps) = if declared {
                (format!("-l 127.0.0.1:{port}"), TAKING.to_string())
            } else {
                (String::new(), serving(port))
            };
            let all = Binders::start(&format!("-n 2 --balance per-worker {options} {option}"), &steps);
            all.wait_all(2, "serve -> ok");
            for life in 1..lives {
                // The first time there is no delay.
                all.running.kill_worker(1);
                all.wait_lines(1, "serve -> ok", life + 1);
            }
            let slots = all.running.wait_slots(2);
            all.settle();
            stop(slots[&1]);
            let waiting = Waiting::at(port, 40);
            process::send_signal(slots[&1], libc::SIGKILL);
            let (answered, reset) = waiting.ends();
            assert!(reset > 0, "those at the slot that is gone");
            assert_eq!(answered, BTreeMap::from([("0".to_string(), 40 - reset)]));
            assert_eq!(shares(port, 100), BTreeMap::from([("0".to_string(), 100)]), "nothing more goes there");
            all.end();
        }
    }
}

#[test]
fn per_worker_what_waits_is_kept_while_no_other_slot_could_take_it() {
    let port = free_port();
    let scratch = Binders::directory();
    let go = scratch.write("go", "");
    let options = "-n 2 --balance per-worker --ready bind --backoff 3s:3s";
    let all = Binders::start_in(scratch, options, &format!("wait={} {}", text(&go), serving(port)));
    all.wait_all(2, "serve -> ok");
    for slot in 0..2 {
        all.running.kill_worker(slot);
        all.wait_lines(slot, "serve -> ok", 2);
    }
    // From here on nobody is ready until both have a life again.
    fs::remove_file(&go).unwrap();
    let slots = all.running.wait_slots(2);
    for worker in slots.values() {
        stop(*worker);
    }
    let waiting = Waiting::at(port, 40);
    for worker in slots.values() {
        process::send_signal(*worker, libc::SIGKILL);
    }
    for slot in 0..2 {
        let starts = || all.lines(slot).iter().filter(|line| line.starts_with("start -> ")).count();
        wait_until(&format!("slot {slot} has its third life"), || starts() == 3);
    }
    all.scratch.write("go", "");
    // What came to the first slot that died may have been let go, as the other one was still ready.
    let (answered, reset) = waiting.ends();
    println!("answered: {answered:?}, reset: {reset}");
    assert!(!answered.is_empty());
    all.end();
}

/// Three workers with queues of their own, each of which shuts its listener down and ends when its file is there
/// (`go.SLOT`), and starts only when another is (`up.SLOT`).
fn shutting_down(options: &str, port: u16) -> Binders {
    let scratch = Binders::directory();
    let place = text(scratch.directory());
    for slot in 0..3 {
        scratch.write(&format!("up.{slot}"), "");
    }
    Binders::start_through(scratch, &[], &format!("-n 3 --balance per-worker {options}"), |out| {
        let files = |name: &str| format!("{place}/{name}.$PANZER_WORKER_ID");
        let serving = serving(port).replace("sleep", &format!("wait={} shutdown exit=0", files("go")));
        let steps = binder(out, &format!("wait={} {serving}", files("up"))).join(" ");
        sh(&format!("rm -f {}; exec {steps}", files("go")))
    })
}

/// What panzer says when it has a listener listen again that was shut down.
const SHUT_DOWN: &str = "panzer: a worker has shut tcp://127.0.0.1:";

/// Makes sure that these slots, and no others, answer sixty requests, none of which is lost.
#[track_caller]
fn served_by(port: u16, slots: &[u32]) {
    let answered = shares(port, 60);
    let expected: BTreeSet<String> = slots.iter().map(u32::to_string).collect();
    assert_eq!(answered.keys().cloned().collect::<BTreeSet<_>>(), expected, "{answered:?}");
}

#[test]
fn per_worker_after_a_worker_has_shut_its_listener_down_and_ended_the_others_answer_all() {
    for leaving in [[0, 1], [1, 2], [2, 0], [0, 2]] {
        let port = free_port();
        let all = shutting_down("--restart never", port);
        all.wait_all(3, "serve -> ok");
        all.wait_answers(&local(port).into(), 3);
        let mut staying = vec![0, 1, 2];
        for (gone, slot) in (1..).zip(leaving) {
            all.scratch.write(&format!("go.{slot}"), "");
            all.running.wait_lines(SHUT_DOWN, gone);
            all.running.wait_lines("it is not started again", gone);
            all.settle();
            staying.retain(|other| *other != slot);
            served_by(port, &staying);
        }
        all.end();
    }
}

#[test]
fn per_worker_after_many_shutdowns_connections_still_go_where_they_should() {
    let port = free_port();
    let all = shutting_down("--ready bind --backoff 0:0", port);
    all.wait_all(3, "serve -> ok");
    let mut lives = [1; 3];
    let shut_downs = [1, 0, 2, 2, 0, 1, 0, 0, 1];
    for (count, slot) in (1..).zip(shut_downs) {
        all.scratch.write(&format!("go.{slot}"), "");
        all.running.wait_lines(SHUT_DOWN, count);
        let index = usize::try_from(slot).unwrap();
        lives[index] += 1;
        all.wait_lines(slot, "serve -> ok", lives[index]);
        all.settle();
        served_by(port, &[0, 1, 2]);
    }
    for slot in 0..3 {
        // Its next life does not listen.
        fs::remove_file(all.scratch.path(&format!("up.{slot}"))).unwrap();
        all.running.kill_worker(slot);
        all.settle();
        let others: Vec<u32> = (0..3).filter(|other| *other != slot).collect();
        served_by(port, &others);
        all.scratch.write(&format!("up.{slot}"), "");
        let index = usize::try_from(slot).unwrap();
        lives[index] += 1;
        all.wait_lines(slot, "serve -> ok", lives[index]);
        all.settle();
        served_by(port, &[0, 1, 2]);
    }
    all.end();
}

#[test]
fn per_worker_killed_workers_under_load_lose_no_more_than_what_they_had_in_hand() {
    kills_lose_what_was_in_hand("--balance per-worker", serving);
}

// Words

#[test]
fn another_word_or_no_workers_are_refused() {
    for options in ["-n 2 --balance evenly", "--balance per-worker", "-n 2 --share-ports maybe"] {
        let output = panzer(options, &["true"]).run();
        assert_eq!(shell_status(output.status), 125, "{options}: {output:?}");
        assert!(output.stderr.starts_with("panzer: cannot "), "{output:?}");
        assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    }
}
