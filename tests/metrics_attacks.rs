//! Whatever clients of the metrics do: scrapes go on, a killed worker is replaced, and panzer itself does not notice.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::control_attacks::idle_connections;
use crate::metrics::served;
use crate::support::attack::while_attacked;
use crate::support::http::{Connection, connect, get, send};
use crate::support::lives::{READY, Service};
use crate::support::load::Addr;
use crate::support::random::Random;
use crate::support::{process, wait_for, wait_until};

/// How many workers are killed during an attack.
const KILLS: u32 = 6;
/// How much more memory panzer and what serves the metrics may have afterwards, in kB.
const MORE_MEMORY: u64 = 4096;

#[track_caller]
fn start() -> (Service, Addr) {
    let (service, addr) = served("-n 2 --ready fd --backoff 0:0", READY);
    wait_for("the metrics are served", || get(&addr, "/livez").ok());
    (service, addr)
}

/// Kills workers, each of which is replaced, and scrapes in between.
#[track_caller]
fn goes_on(service: &Service, addr: &Addr) {
    for kill in 0..KILLS {
        service.running.kill_worker(kill % 2);
        for path in ["/metrics", "/livez"] {
            let answer = get(addr, path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!(answer.status, 200, "{path}");
        }
    }
}

/// What serves the metrics, and how much memory of its own it has in kB.
#[track_caller]
fn child(service: &Service) -> (u32, u64) {
    let pid = wait_for("there is a process for the metrics", || service.running.metrics_child());
    let field = process::status_field(pid, "RssAnon").unwrap();
    (pid, field.split_once(' ').unwrap().0.parse().unwrap())
}

/// Does this again and again while workers are killed and others scrape, then sees what is left of it.
#[track_caller]
fn attacked(attack: impl Fn(&Addr, &mut Random) + Sync) {
    let (service, addr) = start();
    let (descriptors, memory) = (service.running.descriptors(), service.running.memory());
    let (server, server_memory) = child(&service);
    while_attacked(|random| attack(&addr, random), || goes_on(&service, &addr));
    wait_until("panzer has no more descriptors than before", || service.running.descriptors() <= descriptors);
    assert!(service.running.memory() <= memory + MORE_MEMORY);
    let (now, now_memory) = child(&service);
    assert_eq!(now, server, "it has not died of it");
    assert!(now_memory <= server_memory + MORE_MEMORY, "{server_memory} kB before, {now_memory} kB now");
    goes_on(&service, &addr);
    service.end();
}

/// Opens a connection and sends this; both may fail.
fn open(addr: &Addr, bytes: &[u8]) -> Option<Box<dyn Connection>> {
    let mut connection = connect(addr).ok()?;
    let _ = connection.write_all(bytes);
    Some(connection)
}

#[test]
fn half_a_head_that_never_ends_keeps_nobody_out() {
    attacked(|addr, random| {
        let head = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: y\r\n";
        let halves: Vec<_> =
            (0..30).filter_map(|_| open(addr, &head[..usize::try_from(random.below(45)).unwrap()])).collect();
        drop(halves);
    });
}

#[test]
fn a_huge_head_is_refused() {
    attacked(|addr, random| {
        let length = 10_000 + usize::try_from(random.below(200_000)).unwrap();
        let head = [b"GET /metrics HTTP/1.1\r\nX: ".as_slice(), &vec![b'x'; length]].concat();
        // The other side may be gone before it is all sent.
        if let Ok(answer) = send(addr, &head) {
            assert_eq!(answer.status, 431);
        }
    });
}

#[test]
fn garbage_is_refused() {
    attacked(|addr, random| {
        let length = random.below(3000) + 1;
        let garbage: Vec<u8> = (0..length).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
        if let Ok(answer) = send(addr, &[&garbage, b"\r\n\r\n".as_slice()].concat()) {
            assert!([400, 404, 405, 431].contains(&answer.status), "{answer:?}");
        }
    });
}

#[test]
fn other_methods_and_other_protocols_are_refused() {
    attacked(|addr, random| {
        let requests: [(&[u8], u16); 7] = [
            (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 405),
            (b"PUT /readyz HTTP/1.1\r\n\r\n", 405),
            (b"GET /metrics\r\n\r\n", 400),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\nHost: x\n\n", 200),
            (b"CONNECT example.org:443 HTTP/1.1\r\n\r\n", 404),
        ];
        let (request, status) = requests[usize::try_from(random.below(7)).unwrap()];
        if let Ok(answer) = send(addr, request) {
            // Lines that end without a carriage return are a matter of taste, and so is what is checked first.
            let may_be = [status, 400];
            assert!(may_be.contains(&answer.status), "{request:?}: {answer:?}");
        }
    });
}

#[test]
fn a_thousand_idle_connections_leave_room_for_scrapes() {
    let (service, addr) = start();
    let descriptors = service.running.descriptors();
    let (server, _) = child(&service);
    let count = idle_connections();
    for head in [b"".as_slice(), b"GET /metr"] {
        let idle: Vec<_> = (0..count).filter_map(|_| open(&addr, head)).collect();
        assert!(idle.len() > count / 2, "{} connections were accepted", idle.len());
        goes_on(&service, &addr);
        wait_until("none of them is panzer's", || service.running.descriptors() <= descriptors);
    }
    assert_eq!(child(&service).0, server, "it has not died of it");
    service.end();
}

#[test]
fn who_never_reads_an_answer_holds_up_nobody() {
    let (service, addr) = start();
    let deaf: Vec<_> = (0..200).filter_map(|_| open(&addr, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")).collect();
    goes_on(&service, &addr);
    drop(deaf);
    goes_on(&service, &addr);
    service.end();
}

#[test]
fn clients_that_close_at_once_cost_nothing() {
    attacked(|addr, random| {
        let requests: [&[u8]; 3] = [b"", b"GET /met", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"];
        drop(open(addr, requests[usize::try_from(random.below(3)).unwrap()]));
    });
}

#[test]
fn those_who_wait_for_panzer_do_not_keep_others_out() {
    for stay in [false, true] {
        let (service, addr) = start();
        process::send_signal(service.running.panzer_pid(), libc::SIGSTOP);
        let Addr::Tcp(at) = &addr else { panic!("{addr:?}") };
        wait_until("what panzer has said is too old", || {
            let mut connection = TcpStream::connect(at).unwrap();
            connection.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
            connection.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            connection.read(&mut [0]).is_err()
        });
        // As many as there may be, and more, all of whom wait for what panzer says; some have gone again.
        let waiting: Vec<_> = (0..200)
            .filter_map(|_| open(&addr, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").filter(|_| stay))
            .collect();
        let answer = get(&addr, "/livez").unwrap_or_else(|error| panic!("they stay: {stay}: {error}"));
        assert!([200, 503].contains(&answer.status), "{answer:?}");
        process::send_signal(service.running.panzer_pid(), libc::SIGCONT);
        drop(waiting);
        goes_on(&service, &addr);
        service.end();
    }
}

#[test]
fn floods_of_scrapes_are_all_answered() {
    attacked(|addr, _| {
        let answer = get(addr, "/metrics").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(answer.status, 200);
    });
}

#[test]
fn a_server_that_is_killed_during_a_flood_comes_back() {
    let (service, addr) = start();
    let over = AtomicBool::new(false);
    let lives = service.running.wait_generation(1, 2);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // It may be killed with this one in hand.
                let _ = get(&addr, "/metrics");
            }
        });
        for _ in 0..5 {
            let (pid, _) = child(&service);
            process::send_signal(pid, libc::SIGKILL);
            wait_until("there is another", || service.running.metrics_child().is_some_and(|other| other != pid));
            wait_for("it serves", || get(&addr, "/livez").ok());
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(service.running.lives(), lives, "no worker has noticed");
    service.end();
}

#[test]
fn what_is_attacked_can_be_stopped() {
    let (service, addr) = start();
    let mut idle: Vec<_> = (0..100).filter_map(|_| open(&addr, b"GET /metrics HTTP/1.1\r\n")).collect();
    service.end();
    for one in &mut idle {
        let mut rest = Vec::new();
        // It is closed, one way or the other.
        let _ = one.read_to_end(&mut rest);
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 "), "{rest:?}");
    }
}
