//! Workers that boot for two seconds, and how long anyone waits for an answer while they are replaced.
//!
//! The budget, 25 ms more than without a replacement, is held by `scripts/bench` on a quiet machine. Here the bound is
//! far above what a busy machine does, and far below the two seconds that a wait for a booting worker takes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use super::{App, HELLO, Loads, QUIET, Service, at_once, eventually};
use crate::support::load::{Load, LoadOptions};
use crate::support::{process, wait_until};

const SLOW: App =
    App { name: "hello, two seconds to boot", command: "{hello} 127.0.0.1:{port} --start-delay 2000", ..HELLO };
/// How much longer than in the steady load the longest stall may be.
const MOST: Duration = Duration::from_millis(500);
/// How long the steady load is measured.
const STEADY: Duration = Duration::from_secs(2);
/// What the machine does besides spoils a measurement now and then: the best one of so many counts.
const TRIES: u32 = 3;

/// Measures the longest stall of the steady load and of a replacement, which is told how often there was one before.
#[track_caller]
fn measure(what: &str, excused: u64, replace: impl Fn(&Service, &Loads, u32) + Sync) {
    let _quiet = QUIET.write().unwrap_or_else(PoisonError::into_inner);
    at_once(|balance| {
        let Some(service) = Service::start(SLOW, balance, "") else { return };
        let loads = service.load();
        let mut figures = Vec::new();
        for before in 0..TRIES {
            loads.wait_more();
            loads.mark();
            thread::sleep(STEADY);
            loads.wait_more();
            let steady = loads.mark();
            replace(&service, &loads, before);
            service.wait_answers(SLOW.workers);
            loads.wait_more();
            let stall = loads.mark();
            println!("{balance}: longest stall: {} ms steady, {} ms {what}", steady.as_millis(), stall.as_millis());
            figures.push((steady, stall));
            if stall <= steady + MOST {
                break;
            }
        }
        let tries = u64::try_from(figures.len()).unwrap();
        assert!(figures.iter().any(|(steady, stall)| *stall <= *steady + MOST), "{balance}, {what}: {figures:?}");
        service.end(loads, what, tries * excused);
    });
}

#[test]
fn a_reload_of_workers_that_boot_for_two_seconds_stalls_nobody() {
    measure("in a reload", 0, |service, _, before| {
        service.running.signal(libc::SIGHUP);
        service.wait_said(&format!("reloaded: all {} workers are of generation {}", SLOW.workers, before + 2));
    });
}

#[test]
fn a_crash_of_one_worker_of_three_that_boots_for_two_seconds_stalls_nobody() {
    measure("in a crash", SLOW.loops(), |service, loads, _| {
        let worker = eventually("a worker answers", || service.ask());
        loads.wait_more();
        process::send_signal(worker, libc::SIGKILL);
        eventually("it is replaced", || (!service.running.workers().contains(&worker)).then_some(()));
    });
}

#[test]
fn one_loop_without_an_answer_is_a_stall_however_many_the_others_get() {
    const AT_LEAST: Duration = Duration::from_millis(50);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let (release, released) = mpsc::channel::<()>();
    // Answers, or says that nothing was asked.
    let answer = |mut connection: TcpStream| {
        let asked = connection.read(&mut [0; 512]).is_ok_and(|count| count > 0);
        let _ = connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        asked
    };
    let server = thread::spawn(move || {
        // The first one waits until the test lets it go.
        let first = listener.accept().unwrap().0;
        let waiting = thread::spawn(move || released.recv().map(|()| answer(first)));
        while answer(listener.accept().unwrap().0) {}
        waiting.join().unwrap()
    });
    let load = Load::start(addr, LoadOptions { connections: 2, ..LoadOptions::default() });
    wait_until("the other one is answered", || load.count() > 100);
    thread::sleep(AT_LEAST);
    assert!(load.counts().contains(&0) && load.mark() >= AT_LEAST);
    release.send(()).unwrap();
    wait_until("both are answered", || !load.counts().contains(&0));
    let whole = load.mark();
    assert!(whole >= AT_LEAST, "a mark in the middle does not divide it: {whole:?}");
    let report = load.stop();
    assert!(report.longest_stall >= whole && report.lost() == 0, "{report}");
    drop(TcpStream::connect(addr));
    assert_eq!(server.join().unwrap(), Ok(true));
}
