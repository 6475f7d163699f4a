//! Whatever clients of the control socket do: a killed worker is replaced, others get their answers, and nothing of it stays.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::control::document::assert_document;
use crate::control::status::all_ready;
use crate::support::attack::while_attacked;
use crate::support::binders::left_out;
use crate::support::control::{body, connect, exchange, head, rows};
use crate::support::json::Json;
use crate::support::panzer::Running;
use crate::support::random::Random;
use crate::support::worker::{panzer, probe};
use crate::support::{wait_for, wait_until};

/// How many workers are killed during an attack.
const KILLS: u32 = 10;
/// How many connections are left open at once, where the tests may have so many descriptors.
const IDLE: usize = 1000;
/// How much more memory panzer may have afterwards, in kB.
const MORE_MEMORY: u64 = 4096;

/// How many connections can be left open at once here, beside what other tests have open.
pub(crate) fn idle_connections() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    if limit >= 4096 {
        return IDLE;
    }
    left_out(&format!("a thousand idle connections, since there may be only {limit} descriptors: 200 of them"));
    200
}

/// Two workers that are replaced at once.
#[track_caller]
fn start() -> Running {
    let running = panzer("-n 2 --ready exec --backoff 0:0", &["sleep", "1000"]).start();
    running.wait_status("all are ready", all_ready);
    running
}

/// Kills workers and makes sure that each is replaced, and that whoever asks is answered.
#[track_caller]
fn goes_on(running: &Running) {
    for kill in 0..KILLS {
        let pid = running.kill_worker(kill % 2);
        let is_shown = |row: &&Json| {
            let pids = row.get("pid");
            !pids.is_null() && pids.number() == u64::from(pid)
        };
        // One that has not sent its request yet may be let go of for those who came after it: it asks again.
        wait_until("the new one is ready", || {
            let answer = connect(&running.control_name()).and_then(|stream| exchange(stream, b"status\n"));
            let Some(answer) = answer.ok().filter(|answer| !answer.is_empty()) else { return false };
            let status = Json::parse(&body(&answer).unwrap());
            rows(&status, u64::from(kill % 2)).iter().any(is_shown) && all_ready(&status)
        });
    }
}

/// Does this again and again while workers are killed, then sees what is left of it.
#[track_caller]
fn attacked(running: &Running, attack: impl Fn(&str, &mut Random) + Sync) {
    let (descriptors, memory) = (running.descriptors(), running.memory());
    let name = running.control_name();
    while_attacked(|random| attack(&name, random), || goes_on(running));
    afterwards(running, descriptors, memory);
}

#[track_caller]
fn afterwards(running: &Running, descriptors: usize, memory: u64) {
    wait_until("panzer has no more descriptors than before", || running.descriptors() <= descriptors);
    let now = running.memory();
    assert!(now <= memory + MORE_MEMORY, "{memory} kB before, {now} kB now");
    assert!(!running.stderr().contains("panicked"), "{}", running.stderr());
    goes_on(running);
}

/// Sends bytes, and reads whatever comes until the other side closes; both may fail.
fn send(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    if let Ok(mut stream) = connect(name) {
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut answer);
    }
    answer
}

/// Makes sure that this was refused in one line, or not answered at all.
#[track_caller]
fn assert_refused(answer: &[u8]) {
    let answer = String::from_utf8(answer.to_vec()).unwrap();
    if !answer.is_empty() {
        let error = body(&answer).unwrap_err();
        assert!(!error.contains(char::is_control), "{error:?}");
    }
}

fn random_bytes(random: &mut Random, most: u64) -> Vec<u8> {
    let length = random.below(most) + 1;
    (0..length).map(|_| u8::try_from(random.below(256)).unwrap()).collect()
}

#[test]
fn garbage_is_refused_and_costs_nothing() {
    let running = start();
    attacked(&running, |name, random| {
        // One byte in front, so that it is no request by chance.
        let bytes = [b"\xff".to_vec(), random_bytes(random, 600), b"\n".to_vec()].concat();
        assert_refused(&send(name, &bytes));
    });
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn half_a_line_is_not_waited_for() {
    let running = start();
    attacked(&running, |name, random| {
        let halves: Vec<UnixStream> = (0..20).filter_map(|_| connect(name).ok()).collect();
        for mut half in &halves {
            let length = usize::try_from(random.below(6)).unwrap();
            let _ = half.write_all(&b"status"[..length]);
        }
    });
    // One that ends in the middle of its line is no request.
    assert_refused(&send(&running.control_name(), b"stop"));
    running.wait_status("it goes on", all_ready);
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn seventy_kilobytes_without_a_newline_are_refused() {
    let running = start();
    attacked(&running, |name, _| assert_refused(&send(name, &[b'x'; 70_000])));
    attacked(&running, |name, _| {
        let line = [b"status".as_slice(), &[b' '; 70_000], b"\n"].concat();
        assert_refused(&send(name, &line));
    });
    // The longest that may be, and one more.
    for (length, what) in [(255, "a whole line of 256 bytes"), (256, "one of 257")] {
        let line = [vec![b'y'; length], b"\n".to_vec()].concat();
        let answer = exchange(connect(&running.control_name()).unwrap(), &line);
        body(&answer.unwrap_or_else(|error| panic!("{what}: {error}"))).unwrap_err();
    }
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn nul_bytes_are_no_request() {
    let running = start();
    attacked(&running, |name, random| {
        let zeros = vec![0; usize::try_from(random.below(5000)).unwrap() + 1];
        assert_refused(&send(name, &zeros));
        assert_refused(&send(name, b"stop\0\n"));
        assert_refused(&send(name, b"\0stop\n"));
    });
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn bytes_that_come_one_at_a_time_are_a_request_all_the_same() {
    let running = start();
    attacked(&running, |name, _| {
        let Ok(mut stream) = connect(name) else { return };
        for byte in b"status\n" {
            // Others may have taken its place meanwhile.
            let _ = stream.write_all(&[*byte]);
        }
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.is_empty() || body(&answer).is_ok(), "{answer}");
    });
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_thousand_idle_connections_keep_nobody_out() {
    let running = start();
    let (descriptors, memory) = (running.descriptors(), running.memory());
    let count = idle_connections();
    for round in 0..3 {
        let name = running.control_name();
        let mut idle = Vec::new();
        for number in 0..count {
            let mut stream = connect(&name).unwrap_or_else(|error| panic!("connection {number}: {error}"));
            if round > 0 {
                let _ = stream.write_all(b"stat");
            }
            idle.push(stream);
        }
        goes_on(&running);
        assert!(running.descriptors() < descriptors + count / 2, "not all of them are kept");
        drop(idle);
        wait_until("panzer has no more descriptors than before", || running.descriptors() <= descriptors);
    }
    afterwards(&running, descriptors, memory);
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn who_waits_for_a_reload_cannot_keep_others_out_either() {
    let running = start();
    let (descriptors, memory) = (running.descriptors(), running.memory());
    let name = running.control_name();
    let mut waiting = Vec::new();
    for _ in 0..200 {
        let mut stream = connect(&name).unwrap();
        let _ = stream.write_all(b"reload wait\n");
        waiting.push(stream);
    }
    wait_until("panzer has calmed down", || head(&running.status(), "state").text() == "running");
    goes_on(&running);
    drop(waiting);
    afterwards(&running, descriptors, memory);
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_reader_that_never_reads_a_large_answer_holds_up_nobody() {
    let said = format!("notify=READY=1\\nSTATUS={}", "\"".repeat(200));
    let running = panzer("-n 400 --ready notify --backoff 0:0", &probe("-", &[&said, "sleep"])).start();
    let status = wait_for("all have said something", || {
        let text = running.status_text();
        (text.matches("\\\"\"}").count() == 400).then_some(text)
    });
    assert!(status.len() > 250_000, "more than a socket holds: {}", status.len());
    let (descriptors, memory) = (running.descriptors(), running.memory());
    let mut deaf = Vec::new();
    for _ in 0..300 {
        let mut stream = connect(&running.control_name()).unwrap();
        let _ = stream.write_all(b"status\n");
        deaf.push(stream);
    }
    for _ in 0..KILLS {
        running.kill_worker(7);
    }
    let status = running.status();
    assert_eq!(status.get("workers").list().len(), 400);
    let most = memory + 64 * 1024;
    assert!(running.memory() < most, "what nobody reads is not kept without end: {} kB", running.memory());
    drop(deaf);
    wait_until("panzer has no more descriptors than before", || running.descriptors() <= descriptors);
    running.kill_worker(8);
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_slow_reader_gets_all_of_its_answer() {
    let said = format!("notify=READY=1\\nSTATUS={}", "\"".repeat(200));
    let running = panzer("-n 300 --ready notify", &probe("-", &[&said, "sleep"])).start();
    running.wait_status("all are ready", all_ready);
    let mut stream = connect(&running.control_name()).unwrap();
    stream.write_all(b"status\n").unwrap();
    let (mut answer, mut buffer) = (Vec::new(), [0; 1000]);
    loop {
        let count = stream.read(&mut buffer).unwrap();
        answer.extend(&buffer[..count]);
        if count == 0 {
            break;
        }
        // Others are served between two of its reads.
        if answer.len() % 50_000 < 1000 {
            running.ask("status").unwrap();
        }
    }
    let document = body(&String::from_utf8(answer).unwrap()).unwrap();
    assert_document(&document);
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn clients_that_close_at_once_cost_nothing() {
    let running = start();
    attacked(&running, |name, random| {
        let Ok(mut stream) = connect(name) else { return };
        match random.below(4) {
            0 => {}
            1 => drop(stream.write_all(b"status\n")),
            2 => drop(stream.write_all(b"sta")),
            _ => drop(stream.write_all(b"restart 99\n")),
        }
    });
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn floods_of_requests_are_all_answered() {
    let running = start();
    attacked(&running, |name, _| {
        let answer = exchange(connect(name).unwrap(), b"status\n").unwrap();
        assert_document(&body(&answer).unwrap());
    });
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn what_is_attacked_can_be_stopped() {
    let running = start();
    let name = running.control_name();
    let idle: Vec<UnixStream> = (0..idle_connections() / 4).map(|_| connect(&name).unwrap()).collect();
    for mut one in &idle {
        let _ = one.write_all(b"status");
    }
    assert_eq!(running.ask("stop").unwrap(), "stopping 2 workers\n");
    assert_eq!(running.wait_exit().code(), Some(0), "those who are connected are not waited for");
}
