//! Workers that take long to boot: nobody waits for one while it is to replace another.
//!
//! How long the longest wait may be is held by `scripts/bench` on a quiet machine. Here a worker boots until every loop has
//! had further answers: a request that waited for it would wait for ever.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::{App, HELLO, Loads, Service, eventually, over_both};
use crate::support::load::{Load, LoadOptions};
use crate::support::scratch::Scratch;
use crate::support::wait_until;

/// A worker of it boots until there is a token for its slot, takes that, and boots on for more than a second: panzer takes
/// it for one that boots for long from the first time on.
const GATED: App = App {
    name: "hello, behind a gate",
    command: "sh {apps}/gate.sh {hello} 127.0.0.1:{port} --start-delay 1100",
    ..HELLO
};

/// Lets one worker of a slot through.
fn let_through(scratch: &Scratch, slot: usize) {
    scratch.write(&format!("token.{slot}"), "");
}

/// Starts the workers and lets each of them through once.
#[track_caller]
fn start(balance: &'static str) -> (Service, Loads) {
    let scratch = Scratch::new();
    (0..GATED.workers).for_each(|slot| let_through(&scratch, slot));
    let service = Service::start_in(scratch, GATED, balance, "").expect("sh is there");
    let loads = service.load();
    loads.wait_more();
    (service, loads)
}

/// A new worker of this slot has been started. While it boots, all loops are answered as before; then it is let through.
#[track_caller]
fn nobody_waits(service: &Service, loads: &Loads, slot: usize) {
    let prefix = format!("panzer: worker {slot} (pid ");
    let is_started = |line: &str| line.starts_with(&prefix) && line.ends_with(" started");
    eventually("it is started", || service.running.stderr().lines().any(is_started).then_some(()));
    loads.wait_more();
    loads.wait_more();
    let_through(&service.scratch, slot);
}

#[test]
fn in_a_reload_nobody_waits_for_a_worker_that_boots() {
    over_both(|balance| {
        let (service, loads) = start(balance);
        service.running.signal(libc::SIGHUP);
        (0..GATED.workers).for_each(|slot| nobody_waits(&service, &loads, slot));
        service.wait_said(&format!("reloaded: all {} workers are of generation 2", GATED.workers));
        service.wait_answers(GATED.workers);
        service.end(loads, "a reload of workers that boot for long", 0);
    });
}

#[test]
fn after_a_crash_nobody_waits_for_the_worker_that_boots() {
    over_both(|balance| {
        let (service, loads) = start(balance);
        service.running.kill_worker(1);
        nobody_waits(&service, &loads, 1);
        service.wait_answers(GATED.workers);
        // A loop can lose the one request that it has there, in hand or queued.
        service.end(loads, "a crash of a worker that boots for long", GATED.loops());
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
    let load =
        Load::start(addr, LoadOptions { connections: 2, deadline: Duration::from_secs(20), ..LoadOptions::default() });
    wait_until("the other one is answered", || load.count() > 20);
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
