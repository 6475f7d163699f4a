//! Replacing workers loses no connection: reloads, scaling, recycling, and all of it at once, under a load that accounts
//! for every request.
//!
//! How much is done say `PANZER_RELOADS` (how many reloads, and how many steps of scaling), `PANZER_RECYCLE_SECS` and
//! `PANZER_CHAOS_SECS`. The servers are those of `tests/servers.rs`: one that is not installed is left out.

mod releases;
mod stalls;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::servers::{Place, answering_worker, eventually, is_installed, start};
use crate::support::load::{self, Addr, Load, LoadOptions, Mode, Report};
use crate::support::panzer::{Running, shell_status};
use crate::support::ports::{free_port, local};
use crate::support::random::Random;
use crate::support::scratch::Scratch;
use crate::support::worker::text;
use crate::support::{deadline_or, example, process};

/// How many loops send requests on short connections, each one at a time.
const LOOPS: usize = 8;
/// How many loops keep their connections, where the server lets go of them without a loss.
const KEEPING_LOOPS: usize = 4;
/// How long an answer may take before it counts as lost.
const DEADLINE: Duration = Duration::from_secs(20);
/// How long a stop may take: the stop schedule's 25 seconds, and some.
const STOPS_WITHIN: Duration = Duration::from_secs(60);
/// How many requests are answered between two steps.
const REQUESTS_BETWEEN_STEPS: u64 = 50;
const BALANCES: [&str; 2] = ["shared", "per-worker"];

/// What panzer says when the stop schedule has come to its end.
const KILLED: &str = " did not end in time; sent SIGKILL\n";

/// What a server does at TERM with the connections that it has accepted and not answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AtTerm {
    /// It answers them.
    Answers,
    /// It answers those of which it has read something, and drops the others.
    DropsUnread,
    /// It drops them, and says how many there were.
    DropsAndSays,
}

/// A server, and what is known of it.
#[derive(Clone, Copy)]
struct App {
    name: &'static str,
    /// The command, with the placeholders of `tests/servers.rs`; `{hello}` stands for the bundled server.
    command: &'static str,
    workers: usize,
    /// Whether it boots for so long that both balances share the number of steps, half of them each.
    is_slow: bool,
    /// Whether clients that keep their connections lose nothing either.
    lets_go: bool,
    at_term: AtTerm,
    /// Whether it ends by a TERM that comes while it boots.
    stops_booting: bool,
}

/// On TERM it answers what it has accepted, and tells those that keep their connections.
const HELLO: App = App {
    name: "hello",
    command: "{hello} 127.0.0.1:{port}",
    workers: 3,
    is_slow: false,
    lets_go: true,
    at_term: AtTerm::Answers,
    stops_booting: true,
};

/// On TERM it ends that instant, and says exactly how many it had accepted and not answered.
const ABRUPT: App = App {
    name: "hello --abrupt",
    command: "{hello} 127.0.0.1:{port} --abrupt",
    lets_go: false,
    at_term: AtTerm::DropsAndSays,
    ..HELLO
};

/// On TERM it answers a moment longer, then what it has accepted.
const NODE: App =
    App { name: "Node http", command: "node {apps}/graceful.js {port}", workers: 2, lets_go: false, ..HELLO };

/// Its worker looks whether to end after each request only: what it has accepted, it answers.
const GUNICORN: App =
    App { name: "gunicorn", command: "{venv}/gunicorn -w 1 -b 127.0.0.1:{port} app:wsgi", is_slow: true, ..NODE };

/// On TERM it closes every connection on which no request is being answered (`Server.shutdown`: `connection.shutdown()`
/// closes where there is no cycle), and so those that it has accepted a moment before and not read yet.
const UVICORN: App = App {
    name: "uvicorn",
    command: "{venv}/uvicorn app:asgi --port {port} --log-level warning --no-access-log",
    is_slow: true,
    at_term: AtTerm::DropsUnread,
    ..NODE
};

/// On TERM its reactor closes the connections that have sent nothing so far (`reactor_wakeup`: `client.timeout!`), and so
/// those that it has accepted a moment before and not read yet. A TERM while it boots can be lost on it.
const PUMA: App = App {
    stops_booting: false,
    name: "Puma",
    command: "puma --port {port} {apps}/config.ru",
    is_slow: true,
    at_term: AtTerm::DropsUnread,
    ..NODE
};

impl App {
    /// How many steps are taken over each balance.
    fn steps(&self) -> u64 {
        number("PANZER_RELOADS", if self.is_slow { 3 } else { 6 })
    }

    /// What may be lost when so many workers are told to end, beyond what a server says itself. With a queue for each,
    /// a worker is out of rotation for a tenth of a second before it is told: it has read what it has accepted, but for one
    /// now and then on a machine that does not let it run.
    fn may_lose(&self, balance: &str, told: u64) -> u64 {
        match (self.at_term, balance) {
            (AtTerm::DropsUnread, "shared") => told * self.loops(),
            (AtTerm::DropsUnread, _) => told,
            (AtTerm::Answers | AtTerm::DropsAndSays, _) => 0,
        }
    }

    /// How many loops there are in its load: the requests that one worker can have in hand, or queued, at most.
    fn loops(&self) -> u64 {
        let loops = if self.lets_go { LOOPS + KEEPING_LOOPS } else { LOOPS };
        u64::try_from(loops).unwrap()
    }
}

/// A number that a variable sets.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
}

/// Runs a scenario over both balances at once.
fn over_both(scenario: impl Fn(&'static str) + Sync) {
    thread::scope(|scope| {
        for balance in BALANCES {
            let scenario = &scenario;
            scope.spawn(move || scenario(balance));
        }
    });
}

/// A server under panzer.
struct Service {
    app: App,
    balance: &'static str,
    running: Running,
    addr: Addr,
    /// How many single requests were lost.
    lost: AtomicU64,
    scratch: Scratch,
}

impl Service {
    /// Starts so many workers and waits until each one has answered; None where the server is not installed.
    #[track_caller]
    fn start(app: App, balance: &'static str, options: &str) -> Option<Service> {
        Service::start_in(Scratch::new(), app, balance, options)
    }

    /// The same in a directory that is there already.
    #[track_caller]
    fn start_in(scratch: Scratch, app: App, balance: &'static str, options: &str) -> Option<Service> {
        let port = free_port();
        let place = Place { port, scratch: scratch.directory() };
        let fill = |word: String| word.replace("{hello}", &text(example("hello")));
        let command: Vec<String> = place.words(app.command).into_iter().map(fill).collect();
        if !is_installed(app.name, &command, "") {
            return None;
        }
        let options = format!("-n {} --balance {balance} --ready bind --backoff 0:0 {options}", app.workers);
        let running = start(&options, &command, scratch.directory());
        let (addr, lost) = (Addr::Tcp(local(port)), AtomicU64::new(0));
        let service = Service { app, balance, running, addr, lost, scratch };
        service.wait_answers(app.workers);
        // Nobody had bound the port in the beginning.
        service.lost.store(0, Ordering::Relaxed);
        Some(service)
    }

    /// Sends a request beside the load, and returns which worker has answered.
    #[track_caller]
    fn ask(&self) -> Option<u32> {
        let answer = load::one_within(&self.addr, deadline_or(DEADLINE));
        self.lost.fetch_add(u64::from(answer.is_err()), Ordering::Relaxed);
        answering_worker(&self.running, &answer)
    }

    /// Waits until exactly so many workers are there, and each has answered.
    #[track_caller]
    fn wait_answers(&self, workers: usize) {
        let mut answered = BTreeSet::new();
        eventually(&format!("{workers} workers answer"), || {
            assert_eq!(self.running.try_exit(), None, "panzer has ended");
            answered.extend(self.ask());
            let there = self.running.workers();
            answered.retain(|pid| there.contains(pid));
            (answered.len() == workers && there.len() == workers).then_some(())
        });
    }

    /// Waits until panzer has said this; a reload that failed is a failure.
    #[track_caller]
    fn wait_said(&self, line: &str) {
        eventually(&format!("panzer says {line:?}"), || {
            let stderr = self.running.stderr();
            assert!(!stderr.contains("panzer: cannot reload "), "the reload failed");
            assert_eq!(self.running.try_exit(), None, "panzer has ended");
            stderr.contains(&format!("{line}\n")).then_some(())
        });
    }

    /// Sends TTIN or TTOU, and waits until panzer has said that there shall be so many.
    #[track_caller]
    fn scale(&self, signal: i32, next: usize) {
        let name = if signal == libc::SIGTTIN { "SIGTTIN" } else { "SIGTTOU" };
        let said = format!("panzer: {name}: {next} worker");
        let times = self.running.stderr().matches(&said).count();
        self.running.signal(signal);
        self.running.wait_lines(&said, times + 1);
    }

    /// Starts the load.
    fn load(&self) -> Loads {
        // Where booting takes a processor, the load leaves it one.
        let pause = if self.app.is_slow { Duration::from_millis(4) } else { Duration::from_millis(1) };
        let deadline = deadline_or(DEADLINE);
        let options = LoadOptions { connections: LOOPS, mode: Mode::Short, deadline, pause };
        let mut all = vec![Load::start(self.addr.clone(), options)];
        if self.app.lets_go {
            let keeping = LoadOptions { connections: KEEPING_LOOPS, mode: Mode::KeepAlive, ..options };
            all.push(Load::start(self.addr.clone(), keeping));
        }
        Loads(all)
    }

    /// Ends the load and panzer, and makes sure that nothing was lost but what the app dropped, and at most `excused`.
    #[track_caller]
    fn end(self, loads: Loads, what: &str, excused: u64) {
        let reports = loads.stop();
        // Where a TERM is lost on a worker that boots it answers requests as soon as it can, until it is killed.
        let deaf = if self.app.stops_booting { 0 } else { self.running.stderr().matches(KILLED).count() };
        let excused = excused + u64::try_from(deaf).unwrap() * self.app.loops();
        // One that was just being started is killed at the end of the schedule, where it does not heed TERM by then.
        self.running.signal(libc::SIGTERM);
        let status = shell_status(self.running.wait_exit_within(STOPS_WITHIN));
        let was_killed = self.running.stderr().contains(KILLED);
        assert!(status == 0 || (status == 137 && was_killed && !self.app.stops_booting), "status {status}");
        let said = dropped(&self.running.stderr());
        let requests: u64 = reports.iter().map(|report| report.requests).sum();
        let thousands = requests / 1000;
        println!(
            "{}, {}: {what}: {thousands} thousand requests, {said} dropped by the app",
            self.app.name, self.balance
        );
        for report in &reports {
            println!("  {report}");
            assert_eq!((report.refused, report.timed_out), (0, 0), "{what}: {report}");
            // Some servers write head and body of an answer apart: a kill can come in between.
            assert!(report.short_close == 0 || excused > 0, "{what}: {report}");
            assert_eq!(report.other, [""; 0], "{what}: {report}");
        }
        let lost = reports.iter().map(Report::lost).sum::<u64>() + self.lost.load(Ordering::Relaxed);
        // Whatever it dropped was asked for here, so it is lost as well: the number is exact.
        assert!((said..=said + excused).contains(&lost), "{what}: {lost} lost, {said} dropped, {excused} excused");
        assert!(requests > REQUESTS_BETWEEN_STEPS, "there was a load");
    }
}

/// How many connections the bundled server has dropped by its own account.
fn dropped(stderr: &str) -> u64 {
    let counts = stderr.split("hello: dropped=").skip(1);
    counts.map(|rest| rest.split('\n').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// The loads of a service: of short connections, and of kept ones.
struct Loads(Vec<Load>);

impl Loads {
    /// Waits until each has had some more answers, and each loop at least one.
    #[track_caller]
    fn wait_more(&self) {
        for load in &self.0 {
            let (before, all) = (load.counts(), load.count());
            eventually("there is a load on every loop", || {
                let every = load.counts().iter().zip(&before).all(|(now, before)| now > before);
                (every && load.count() >= all + REQUESTS_BETWEEN_STEPS).then_some(())
            });
        }
    }

    fn lost(&self) -> u64 {
        self.0.iter().map(Load::lost).sum()
    }

    fn stop(self) -> Vec<Report> {
        self.0.into_iter().map(Load::stop).collect()
    }
}

// Reloads

/// Reloads one time after the other, each when the one before has ended.
#[track_caller]
fn reloads(app: App) {
    over_both(|balance| {
        let Some(service) = Service::start(app, balance, "") else { return };
        let loads = service.load();
        let (workers, mut done) = (app.workers, 0);
        // After a loss that nothing excuses, the rest would only hide where it was.
        while done < app.steps() && (loads.lost() == 0 || app.at_term != AtTerm::Answers) {
            loads.wait_more();
            service.running.signal(libc::SIGHUP);
            done += 1;
            service.wait_said(&format!("reloaded: all {workers} workers are of generation {}", done + 1));
        }
        loads.wait_more();
        service.wait_answers(workers);
        let excused = app.may_lose(balance, done * u64::try_from(workers).unwrap());
        service.end(loads, &format!("{done} reloads"), excused);
    });
}

#[test]
fn reloads_of_the_bundled_server_lose_nothing() {
    reloads(HELLO);
}

#[test]
fn reloads_of_a_server_that_exits_at_once_lose_only_what_it_had_accepted() {
    reloads(ABRUPT);
}

#[test]
fn reloads_of_node_lose_nothing() {
    reloads(NODE);
}

#[test]
fn reloads_of_gunicorn_lose_nothing() {
    reloads(GUNICORN);
}

#[test]
fn reloads_of_uvicorn_lose_only_what_it_had_accepted() {
    reloads(UVICORN);
}

#[test]
fn reloads_of_puma_lose_only_what_it_had_accepted() {
    reloads(PUMA);
}

// Scaling

const MOST_WORKERS: usize = 5;

/// How many workers there shall be after a step at random, and the signal for it.
fn next_count(random: &mut Random, count: usize) -> (usize, i32) {
    let up = count == 1 || (count < MOST_WORKERS && random.below(2) == 0);
    if up { (count + 1, libc::SIGTTIN) } else { (count - 1, libc::SIGTTOU) }
}

/// Walks at random between one worker and five.
#[track_caller]
fn scale_steps(app: App) {
    let random = Mutex::new(Random::new());
    over_both(|balance| {
        let mut random = random.lock().unwrap().derived();
        let Some(service) = Service::start(app, balance, "") else { return };
        let loads = service.load();
        let (mut count, mut fewer) = (app.workers, 0);
        for _ in 0..app.steps() {
            loads.wait_more();
            let (next, signal) = next_count(&mut random, count);
            service.scale(signal, next);
            fewer += u64::from(next < count);
            count = next;
            // The other half of the steps comes in the middle of a start or of a stop.
            if random.below(2) == 0 {
                service.wait_answers(count);
            }
        }
        service.wait_answers(count);
        service.end(loads, &format!("{} steps of scaling", app.steps()), app.may_lose(balance, fewer));
    });
}

#[test]
fn scaling_the_bundled_server_loses_nothing() {
    scale_steps(HELLO);
}

#[test]
fn scaling_a_server_that_exits_at_once_loses_only_what_it_had_accepted() {
    scale_steps(ABRUPT);
}

#[test]
fn scaling_node_loses_nothing() {
    scale_steps(NODE);
}

#[test]
fn scaling_gunicorn_loses_nothing() {
    scale_steps(GUNICORN);
}

#[test]
fn scaling_uvicorn_loses_only_what_it_had_accepted() {
    scale_steps(UVICORN);
}

#[test]
fn scaling_puma_loses_only_what_it_had_accepted() {
    scale_steps(PUMA);
}

// Recycling

/// Replaces each worker every second or two for a while.
#[track_caller]
fn recycling(app: App, balance: &'static str) {
    let seconds = number("PANZER_RECYCLE_SECS", 4);
    let Some(service) = Service::start(app, balance, "--max-age 1s~1s") else { return };
    let loads = service.load();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        assert_eq!(service.running.try_exit(), None, "panzer has ended");
        thread::sleep(Duration::from_millis(20));
    }
    // Each life is replaced after two seconds at most; how long that takes is the machine's to say.
    let least = app.workers * usize::try_from(seconds).unwrap() / 6;
    let recycled = || service.running.stderr().matches(" old; replacing it\n").count();
    eventually(&format!("{least} workers are replaced"), || (recycled() >= least).then_some(()));
    loads.wait_more();
    let recycled = recycled();
    let may_lose = app.may_lose(balance, u64::try_from(recycled).unwrap());
    service.end(loads, &format!("{recycled} workers recycled in {seconds} s"), may_lose);
}

/// The same for some servers at once.
#[track_caller]
fn recycling_of(apps: [App; 2]) {
    over_both(|balance| {
        thread::scope(|scope| {
            for app in apps {
                scope.spawn(move || recycling(app, balance));
            }
        });
    });
}

#[test]
fn recycling_every_second_loses_only_what_a_server_that_exits_at_once_had_accepted() {
    recycling_of([HELLO, ABRUPT]);
}

#[test]
fn recycling_every_second_of_node_and_gunicorn_loses_nothing() {
    recycling_of([NODE, GUNICORN]);
}

#[test]
fn recycling_every_second_of_uvicorn_and_puma_loses_only_what_they_had_accepted() {
    recycling_of([UVICORN, PUMA]);
}

// All of it at once

/// A worker that is stopped, and until when.
struct Stopped {
    worker: u32,
    until: Instant,
}

impl Stopped {
    /// Has it go on, if it is still there.
    fn end(&self, running: &Running) {
        if running.workers().contains(&self.worker) {
            process::send_signal(self.worker, libc::SIGCONT);
        }
    }
}

/// Reloads, scales, recycles, kills and stops workers at random for a while.
#[track_caller]
fn chaos(app: App) {
    let seconds = number("PANZER_CHAOS_SECS", 5);
    let random = Mutex::new(Random::new());
    over_both(|balance| {
        let mut random = random.lock().unwrap().derived();
        let Some(service) = Service::start(app, balance, "--max-age 1s~1s") else { return };
        let running = &service.running;
        let loads = service.load();
        let (mut count, mut kills) = (app.workers, 0);
        let mut steps = [0; 5];
        let mut stopped: Vec<Stopped> = Vec::new();
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            assert_eq!(running.try_exit(), None, "panzer has ended");
            let now = Instant::now();
            for over in stopped.extract_if(.., |one| one.until <= now) {
                over.end(running);
            }
            let workers = running.workers();
            let chosen =
                workers.get(usize::try_from(random.below(u64::try_from(workers.len().max(1)).unwrap())).unwrap());
            match (random.below(8), chosen) {
                (0, _) => {
                    for _ in 0..=random.below(3) {
                        running.signal(libc::SIGHUP);
                        steps[0] += 1;
                    }
                }
                (1..4, _) => {
                    let (next, signal) = next_count(&mut random, count);
                    service.scale(signal, next);
                    count = next;
                    steps[1 + usize::from(signal == libc::SIGTTOU)] += 1;
                }
                (4..6, Some(worker)) => {
                    if process::send_signal(*worker, libc::SIGKILL) {
                        kills += 1;
                        steps[3] += 1;
                    }
                }
                (_, Some(worker)) => {
                    if process::send_signal(*worker, libc::SIGSTOP) {
                        let until = now + Duration::from_millis(random.below(300));
                        stopped.push(Stopped { worker: *worker, until });
                        steps[4] += 1;
                    }
                }
                (_, None) => {}
            }
            thread::sleep(Duration::from_millis(random.below(100)));
        }
        for one in stopped {
            one.end(running);
        }
        // Whatever is under way or has failed: a reload that is asked for now comes to its end.
        let reloaded = || running.stderr().matches("panzer: reloaded: ").count();
        let before = reloaded();
        running.signal(libc::SIGHUP);
        eventually("a reload ends well", || (reloaded() > before).then_some(()));
        loads.wait_more();
        let [reloads, more, fewer, _, stops] = steps;
        let what =
            format!("{reloads} reloads, {more} more, {fewer} fewer, {kills} killed, {stops} stopped in {seconds} s");
        let told = ["; stopping pid ", ", one fewer"].map(|words| running.stderr().matches(words).count());
        let may_lose = app.may_lose(balance, u64::try_from(told.iter().sum::<usize>()).unwrap());
        // With each one that is killed, a loop can lose the one request that it has there, in hand or queued.
        service.end(loads, &what, kills * app.loops() + may_lose);
    });
}

#[test]
fn all_at_once_and_at_random_the_bundled_server_loses_only_what_was_killed() {
    chaos(HELLO);
}

#[test]
fn all_at_once_and_at_random_a_server_that_exits_at_once_loses_only_what_it_had_accepted() {
    chaos(ABRUPT);
}

#[test]
fn all_at_once_and_at_random_node_loses_only_what_was_killed() {
    chaos(NODE);
}

#[test]
fn all_at_once_and_at_random_gunicorn_loses_only_what_was_killed() {
    chaos(GUNICORN);
}

#[test]
fn all_at_once_and_at_random_uvicorn_loses_only_what_was_killed_or_accepted() {
    chaos(UVICORN);
}

#[test]
fn all_at_once_and_at_random_puma_loses_only_what_was_killed_or_accepted() {
    chaos(PUMA);
}
