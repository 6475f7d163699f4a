//! Real servers, each unmodified and with its own command line: under `-n 3` three processes of it serve one port.
//!
//! `scripts/setup-servers` installs them. A server that is not there is left out, which is said; with
//! `PANZER_LEAVE_OUT_NOTHING=1` it is a failure.
//!
//! Every application answers `pid=` and the process that it runs in. Which worker that is shows the process group: a
//! worker leads one of its own, and what a server starts by itself is in it too.

mod redis;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::binders::not_installed;
use crate::support::load::{self, Addr, Failure, Load, LoadOptions, Report};
use crate::support::panzer::{Running, shell_status};
use crate::support::ports::free_port;
use crate::support::process::{self, Stat};
use crate::support::random::Random;
use crate::support::scratch::Scratch;
use crate::support::worker::{panzer, text};
use crate::support::{deadline_or, wait_until};

/// Where the applications stand.
const APPS: &str = "tests/servers/apps";
const WORKERS: usize = 3;
const KILLS: u64 = 20;
/// How many loops send requests, each one at a time and on a connection of its own.
const LOOPS: usize = 4;
/// How many requests are answered between two kills, so that most have some in hand.
const REQUESTS_BETWEEN_KILLS: u64 = 10;
/// What a worker has in hand at most when it accepts whatever is queued: the one request of each loop.
const OF_EACH_LOOP: u64 = LOOPS as u64;
/// How many servers run at once. They take all the processors there are to boot, and the other scenarios run beside them.
const TURNS: usize = 2;
/// How long anything is waited for: three Java machines or Djangos boot beside other scenarios on two processors.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server, and how it is run.
struct Server {
    name: &'static str,
    /// The command as its documentation has it. `{port}`, `{scratch}`, `{apps}`, `{built}` and `{venv}` stand for the port,
    /// the test's own directory, `tests/servers/apps`, `target/servers`, and the programs of the venv in it.
    command: &'static str,
    /// A further file that must be there, with the same placeholders.
    needs: &'static str,
    /// A file in the test's directory that the server reads, its name and content, with the same placeholders.
    file: (&'static str, &'static str),
    /// The name of a UNIX socket in the test's directory, where the server does not listen on the port.
    unix: &'static str,
    /// panzer's own options beside `-n 3`.
    options: &'static str,
    /// How many requests a killed worker can take with it.
    in_hand: u64,
}

/// What is the same for most of them. An event loop accepts whatever is queued, and so does a thread that accepts for
/// others: it has the one request of each loop in hand at most.
const PLAIN: Server =
    Server { name: "", command: "", needs: "", file: ("", ""), unix: "", options: "", in_hand: OF_EACH_LOOP };

impl Server {
    /// Runs it three times on one address, and kills workers under load.
    #[track_caller]
    fn serves(self) {
        let _turn = Turn::take();
        let scratch = Scratch::new();
        let place = Place { port: free_port(), scratch: scratch.directory() };
        let command = place.words(self.command);
        if !is_installed(self.name, &command, &place.fill(self.needs)) {
            return;
        }
        if !self.file.0.is_empty() {
            scratch.write(self.file.0, &place.fill(self.file.1));
        }
        let addr = match self.unix {
            "" => Addr::Tcp(SocketAddr::from(([127, 0, 0, 1], place.port))),
            name => Addr::Unix(scratch.path(name)),
        };
        let options = format!("-n {WORKERS} --backoff 0:0 {}", self.options);
        let running = start(&options, &command, scratch.directory());
        let mut clock = Clock::start(self.name);
        // The first workers start when there is no path to be kept yet: one that makes room for its own takes the path from
        // those that serve already, until panzer has put it back.
        self.wait_all_answer(&running, &addr, !self.unix.is_empty());
        clock.lap("the first answer of each");

        let deadline = deadline_or(PATIENCE);
        let load = Load::start(addr.clone(), LoadOptions { connections: LOOPS, deadline, ..LoadOptions::default() });
        let mut random = Random::new();
        let mut serving = BTreeSet::new();
        for _ in 0..KILLS {
            let before = load.count();
            // Which one is left to chance, but for those that have not answered yet: they had nothing in hand.
            let victim = eventually("there is a load, and a worker that serves", || {
                serving.extend(answering_worker(&running, &load::one(&addr)));
                let workers = running.workers();
                serving.retain(|pid| workers.contains(pid));
                let enough = load.count() >= before + REQUESTS_BETWEEN_KILLS;
                let index = usize::try_from(random.below(u64::try_from(serving.len().max(1)).unwrap())).unwrap();
                serving.iter().nth(index).copied().filter(|_| enough)
            });
            kill(&running, victim);
        }
        clock.lap("the kills");
        self.wait_all_answer(&running, &addr, false);
        clock.lap("the last answer of each");
        wait_until("nothing of what was killed is left", || is_all_of_workers(&running));
        let report = load.stop();
        println!("{}: {report}", self.name);
        self.check(&report);
        running.wait_lines("was killed by SIGKILL; starting a new one", usize::try_from(KILLS).unwrap());
        let deaths = running.stderr().matches("was killed by SIGKILL; starting a new one").count();
        assert_eq!(u64::try_from(deaths).unwrap(), KILLS, "nothing but what was killed has died");
        end(&running);
        clock.lap("the end");
        if self.unix.is_empty() {
            assert_eq!(load::one(&addr), Err(Failure::Refused), "nothing holds the port");
        }
    }

    /// Waits until each of the workers that there are now has answered; once one has, nobody is refused, or that is excused.
    #[track_caller]
    fn wait_all_answer(&self, running: &Running, addr: &Addr, may_refuse: bool) {
        let mut answered = BTreeSet::new();
        let mut served = false;
        eventually(&format!("{WORKERS} processes answer"), || {
            assert_eq!(running.try_exit(), None, "panzer has ended");
            let answer = load::one(addr);
            // Nobody has bound it in the beginning.
            assert!(!served || may_refuse || answer != Err(Failure::Refused), "refused after it was served");
            served |= answer.is_ok();
            answered.extend(answering_worker(running, &answer));
            let workers = running.workers();
            answered.retain(|pid| workers.contains(pid));
            (answered.len() == WORKERS).then_some(())
        });
    }

    /// What may be lost is what the killed ones had in hand.
    #[track_caller]
    fn check(&self, report: &Report) {
        assert_eq!((report.refused, report.timed_out), (0, 0), "{report}");
        assert_eq!(report.other, [""; 0], "{report}");
        assert!(!report.answered_by.contains_key(&0), "every answer names its process");
        let most = KILLS * self.in_hand;
        assert!(report.lost() <= most, "more than {most}: {report}");
        assert!(report.answered() >= KILLS * REQUESTS_BETWEEN_KILLS, "{report}");
    }
}

/// What the placeholders of a command stand for.
pub(crate) struct Place<'a> {
    pub(crate) port: u16,
    pub(crate) scratch: &'a Path,
}

impl Place<'_> {
    fn fill(&self, template: &str) -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let values = [
            ("{port}", self.port.to_string()),
            ("{scratch}", text(self.scratch)),
            ("{apps}", text(root.join(APPS))),
            ("{built}", text(root.join("target/servers"))),
            ("{venv}", text(root.join("target/servers/venv/bin"))),
        ];
        values.iter().fold(template.to_string(), |text, (name, value)| text.replace(name, value))
    }

    /// The words of a command; what is filled in may hold blanks.
    pub(crate) fn words(&self, template: &str) -> Vec<String> {
        template.split_whitespace().map(|word| self.fill(word)).collect()
    }
}

/// Whether a command's program and a file are there; where not, says so.
pub(crate) fn is_installed(name: &str, command: &[String], needs: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &str| std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    // Joined to a folder, an absolute path stays what it is.
    let installed = is_there(&command[0]) && (needs.is_empty() || Path::new(needs).exists());
    if !installed {
        not_installed(&format!("{name} is not installed (scripts/setup-servers)"));
    }
    installed
}

/// Starts panzer in a test's directory, so that nothing is left in another.
#[track_caller]
pub(crate) fn start(options: &str, command: &[String], directory: &Path) -> Running {
    panzer(options, command)
        .cwd(directory)
        // An ordinary user of the tests has none; gunicorn keeps a control socket in it.
        .env("HOME", directory)
        .env_remove("XDG_RUNTIME_DIR")
        .env("PYTHONPATH", Path::new(env!("CARGO_MANIFEST_DIR")).join(APPS))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        // It would ask the registry for a newer npm.
        .env("NPM_CONFIG_UPDATE_NOTIFIER", "false")
        // Else each Java machine keeps a file in /tmp, for which one that is killed cannot care.
        .env("JAVA_TOOL_OPTIONS", "-XX:-UsePerfData")
        .start()
}

/// Waits, longer than the other scenarios do, until there is a value.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let limit = deadline_or(PATIENCE);
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(Instant::now() < end, "waited {limit:?} in vain: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The worker whose process, or child, has given this answer; None where that one is gone by now.
pub(crate) fn answering_worker(running: &Running, answer: &Result<String, Failure>) -> Option<u32> {
    let body = answer.as_ref().ok()?;
    let pid = body.split_ascii_whitespace().find_map(|word| word.strip_prefix("pid=")?.parse().ok());
    let group = process::stat(pid.unwrap_or_else(|| panic!("no pid= in {body:?}")))?.pgid;
    running.workers().contains(&group).then_some(group)
}

/// Whether each process that came of panzer is panzer's own, or in the group of a worker that there is.
fn is_all_of_workers(running: &Running) -> bool {
    let (panzer, workers) = (running.panzer_pid(), running.workers());
    let found = running.leftovers().into_iter().chain(running.descendants()).filter_map(process::stat);
    let mut found = found.filter(|one| !one.is_dead() && one.pid != panzer && !one.comm.starts_with("panzer"));
    workers.len() == WORKERS && found.all(|one| workers.contains(&one.pgid))
}

/// Kills a worker with KILL, and waits until another runs in its place.
#[track_caller]
fn kill(running: &Running, worker: u32) {
    assert!(process::send_signal(worker, libc::SIGKILL), "worker {worker} is gone by itself");
    eventually("another worker runs", || {
        assert_eq!(running.try_exit(), None, "panzer has ended");
        let workers = running.workers();
        (workers.len() == WORKERS && !workers.contains(&worker)).then_some(())
    });
}

/// Stops panzer and makes sure that nothing of the server is left, by number and name: some (nginx, redis) write their title
/// over the environment by which the other scenarios find what is left.
#[track_caller]
fn end(running: &Running) {
    let processes: BTreeMap<u32, Stat> =
        running.descendants().into_iter().filter_map(|pid| Some((pid, process::stat(pid)?))).collect();
    assert!(processes.len() > WORKERS, "the workers and the guard");
    running.signal(libc::SIGTERM);
    assert_eq!(shell_status(running.wait_exit()), 0, "the exit status");
    let is_same = |(pid, before): (&u32, &Stat)| {
        process::stat(*pid).is_some_and(|now| now.comm == before.comm && now.pgid == before.pgid && !now.is_dead())
    };
    wait_until("nothing of the server is left", || !processes.iter().any(is_same));
}

/// One of the turns.
struct Turn;

static TURNS_LEFT: Mutex<usize> = Mutex::new(TURNS);
static TURN_ENDED: Condvar = Condvar::new();

impl Turn {
    fn take() -> Turn {
        let left = TURNS_LEFT.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = TURN_ENDED.wait_while(left, |left| *left == 0).unwrap_or_else(PoisonError::into_inner);
        *left -= 1;
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TURNS_LEFT.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        TURN_ENDED.notify_one();
    }
}

/// Says how long the parts of a test took; nothing depends on it.
struct Clock {
    name: &'static str,
    last: Instant,
}

impl Clock {
    fn start(name: &'static str) -> Clock {
        Clock { name, last: Instant::now() }
    }

    fn lap(&mut self, what: &str) {
        println!("{}: {what}: {} ms", self.name, self.last.elapsed().as_millis());
        self.last = Instant::now();
    }
}

// Servers of one process

#[test]
fn node_http_serves_from_three_unmodified_processes() {
    Server { name: "Node http", command: "node {apps}/server.js {port}", ..PLAIN }.serves();
}

#[test]
fn uvicorn_serves_from_three_unmodified_processes() {
    Server { name: "uvicorn", command: "{venv}/uvicorn app:asgi --port {port}", ..PLAIN }.serves();
}

#[test]
fn waitress_serves_from_three_unmodified_processes() {
    let command = "{venv}/waitress-serve --listen 127.0.0.1:{port} app:wsgi";
    Server { name: "waitress", command, ..PLAIN }.serves();
}

#[test]
fn flasks_development_server_serves_from_three_unmodified_processes() {
    Server { name: "Flask", command: "{venv}/flask --app flask_app run --port {port}", ..PLAIN }.serves();
}

#[test]
fn go_net_http_serves_from_three_unmodified_processes() {
    Server { name: "Go net/http", command: "{built}/go-server :{port}", ..PLAIN }.serves();
}

#[test]
fn java_http_server_serves_from_three_unmodified_processes() {
    let needs = "{built}/java/Server.class";
    Server { name: "Java HttpServer", command: "java -cp {built}/java Server {port}", needs, ..PLAIN }.serves();
}

#[test]
fn puma_serves_from_three_unmodified_processes() {
    Server { name: "Puma", command: "puma --port {port} {apps}/config.ru", ..PLAIN }.serves();
}

#[test]
fn webrick_serves_from_three_unmodified_processes() {
    // It binds the port twice, for IPv4 and for IPv6.
    let needs = "/var/lib/dpkg/info/ruby-webrick.list";
    Server { name: "WEBrick", command: "ruby {apps}/webrick.rb {port}", needs, ..PLAIN }.serves();
}

#[test]
fn php_s_serves_from_three_unmodified_processes() {
    Server { name: "php -S", command: "php -S 127.0.0.1:{port} {apps}/index.php", ..PLAIN }.serves();
}

#[test]
fn axum_serves_from_three_unmodified_processes() {
    Server { name: "axum", command: "{built}/axum-server 0.0.0.0:{port}", ..PLAIN }.serves();
}

// Servers with processes of their own. What is killed is the one that panzer started, which answers nothing itself; what
// is left of its group then gets TERM, the first signal of the stop schedule.

/// The children answer what they have accepted, and end.
const FINISHES: u64 = 0;

#[test]
fn gunicorn_with_one_sync_worker_serves_from_three_unmodified_processes() {
    let command = "{venv}/gunicorn -w 1 -b 127.0.0.1:{port} app:wsgi";
    Server { name: "gunicorn -w 1", command, in_hand: FINISHES, ..PLAIN }.serves();
}

#[test]
fn gunicorn_with_two_sync_workers_serves_from_three_unmodified_processes() {
    let command = "{venv}/gunicorn -w 2 -b 127.0.0.1:{port} app:wsgi";
    Server { name: "gunicorn -w 2", command, in_hand: FINISHES, ..PLAIN }.serves();
}

#[test]
fn gunicorn_with_one_gthread_worker_serves_from_three_unmodified_processes() {
    let command = "{venv}/gunicorn -w 1 -k gthread --threads 4 -b 127.0.0.1:{port} app:wsgi";
    Server { name: "gunicorn -k gthread -w 1", command, in_hand: FINISHES, ..PLAIN }.serves();
}

#[test]
fn gunicorn_with_two_gthread_workers_serves_from_three_unmodified_processes() {
    let command = "{venv}/gunicorn -w 2 -k gthread --threads 4 -b 127.0.0.1:{port} app:wsgi";
    Server { name: "gunicorn -k gthread -w 2", command, in_hand: FINISHES, ..PLAIN }.serves();
}

#[test]
fn granian_serves_from_three_unmodified_processes() {
    // Its child finishes what it answers, but now and then drops what it has only just accepted.
    let command = "{venv}/granian --interface asgi --port {port} app:asgi";
    Server { name: "granian", command, ..PLAIN }.serves();
}

#[test]
fn hypercorn_serves_from_three_unmodified_processes() {
    // Its child has no handler for TERM: it ends with what it has in hand.
    let command = "{venv}/hypercorn --bind 127.0.0.1:{port} app:asgi";
    Server { name: "hypercorn", command, ..PLAIN }.serves();
}

#[test]
fn djangos_development_server_serves_from_three_unmodified_processes() {
    // The child that serves, and is started anew when a file changes, exits at TERM without waiting for its threads.
    Server { name: "Django", command: "{venv}/python {apps}/manage.py runserver {port}", ..PLAIN }.serves();
}

#[test]
fn nginx_serves_from_three_unmodified_processes() {
    let file = (
        "nginx.conf",
        "daemon off;
        pid {scratch}/nginx.pid;
        error_log stderr;
        events {}
        http {
            access_log off;
            client_body_temp_path {scratch}/body;
            proxy_temp_path {scratch}/proxy;
            fastcgi_temp_path {scratch}/fastcgi;
            uwsgi_temp_path {scratch}/uwsgi;
            scgi_temp_path {scratch}/scgi;
            server {
                listen {port};
                location / { return 200 \"pid=$pid\\n\"; }
            }
        }",
    );
    // At TERM its child ends with what it has in hand, at QUIT it finishes that.
    let options = "--stop QUIT/25/KILL";
    let command = "nginx -c {scratch}/nginx.conf";
    Server { name: "nginx", command, file, options, in_hand: FINISHES, ..PLAIN }.serves();
}

#[test]
fn npm_start_serves_from_three_unmodified_processes() {
    // The one that binds and serves is the shell's child, and that is npm's. At TERM it ends with what it has in hand.
    let command = "{built}/bin/npm start --prefix {apps}/npm -- {port}";
    Server { name: "npm start", command, ..PLAIN }.serves();
}

// UNIX paths

#[test]
fn uvicorn_serves_a_unix_path_from_three_unmodified_processes() {
    let command = "{venv}/uvicorn app:asgi --uds {scratch}/x.sock";
    Server { name: "uvicorn", command, unix: "x.sock", ..PLAIN }.serves();
}

#[test]
fn gunicorn_serves_a_unix_path_from_three_unmodified_processes() {
    let command = "{venv}/gunicorn --bind unix:{scratch}/x.sock app:wsgi";
    Server { name: "gunicorn", command, unix: "x.sock", in_hand: FINISHES, ..PLAIN }.serves();
}

#[test]
fn node_http_serves_a_unix_path_from_three_unmodified_processes() {
    let command = "node {apps}/server.js {scratch}/x.sock";
    Server { name: "Node http", command, unix: "x.sock", ..PLAIN }.serves();
}
