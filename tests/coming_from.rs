//! docs/coming-from.md gives people the signals that they are used to. Its command lines are run as they stand there,
//! but for the command, the port and the paths, and each signal is sent.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::binders::not_installed;
use crate::support::panzer::{Panzer, Running, shell_status};
use crate::support::process;
use crate::support::scratch::Scratch;
use crate::support::worker::sh;
use crate::support::{holds_for, wait_for, wait_until};

const CRYSTAL: &str = "The Crystal panzer";
const SERVER_ENGINE: &str = "ServerEngine";
const GHOST: &str = "Acme::Ghost";
const STARTER: &str = "Server::Starter";
const UNICORN: &str = "unicorn";
const PAGES: [&str; 5] = [CRYSTAL, SERVER_ENGINE, GHOST, STARTER, UNICORN];

/// How many workers the command lines have, but for that of Server::Starter.
const WORKERS: usize = 4;
/// How long nothing is seen to happen.
const WATCH: Duration = Duration::from_millis(500);

// The document

/// One page of the document.
#[track_caller]
fn page(title: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/coming-from.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, rest) = text.split_once(&format!("\n## {title}\n")).unwrap_or_else(|| panic!("no page for {title}"));
    rest.split("\n## ").next().unwrap().to_owned()
}

/// The options of the page's only command line of panzer: the words between `panzer` and `--`.
#[track_caller]
fn documented(title: &str) -> Vec<String> {
    let page = page(title);
    let blocks = page.split("\n```sh\n").skip(1).map(|rest| rest.split("\n```").next().unwrap());
    let lines: Vec<String> = blocks.map(|block| block.replace("\\\n", " ")).collect();
    let [line] = &lines[..] else { panic!("{title} has {} command lines", lines.len()) };
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let (first, words) = words.split_first().unwrap();
    assert_eq!(*first, "panzer", "{line}");
    let options: Vec<String> = words.iter().take_while(|word| **word != "--").map(ToString::to_string).collect();
    assert!(options.len() + 1 < words.len(), "no command: {line}");
    options
}

/// The table of a page, a line each.
fn table(title: &str) -> Vec<String> {
    page(title).lines().filter(|line| line.starts_with('|')).map(str::to_owned).collect()
}

#[test]
fn every_command_line_is_accepted_as_it_stands() {
    for title in PAGES {
        let scratch = Scratch::new();
        let options = placed(&documented(title), &scratch);
        let output = Panzer::new(["--check"]).args(options).args(["--", "true"]).run();
        assert!(output.status.success(), "{title}: {}", output.stderr);
    }
}

#[test]
fn every_option_of_a_command_line_is_explained_in_its_table() {
    for title in PAGES {
        let options = documented(title);
        let rows = table(title).join("\n");
        for pair in options.windows(2).filter(|pair| pair[0].starts_with('-')) {
            let wanted = if pair[0] == "--on" { format!("`--on {}`", pair[1]) } else { format!("`{}", pair[0]) };
            assert!(rows.contains(&wanted), "{title}: the table does not have {wanted}");
        }
    }
}

// Running it

/// The options with paths of this test's own, and with a port that is free.
fn placed(options: &[String], scratch: &Scratch) -> Vec<String> {
    let mut before = "";
    let mut placed = Vec::new();
    for word in options {
        placed.push(match before {
            "-l" => word.replace("8080", "0"),
            "--env-dir" => {
                let directory = env_dir(scratch);
                fs::create_dir_all(&directory).unwrap();
                directory.display().to_string()
            }
            _ if word.starts_with('/') => {
                scratch.path(Path::new(word).file_name().unwrap().to_str().unwrap()).display().to_string()
            }
            _ => word.clone(),
        });
        before = word;
    }
    placed
}

fn env_dir(scratch: &Scratch) -> PathBuf {
    scratch.path("env")
}

/// What a worker does with a signal.
#[derive(Clone, Copy, PartialEq, Eq)]
enum On {
    /// Writes it down and ends with success.
    End,
    /// Writes it down and goes on.
    Note,
}

/// The script of a worker that writes down `start` and its signals, a line `SLOT GENERATION WORD` each. Signals that are
/// not named have their default action.
fn worker(log: &Path, signals: &[(&str, On)]) -> String {
    let log = log.display();
    let names: Vec<&str> = signals.iter().map(|(name, _)| *name).collect();
    let names = names.join(" ");
    let traps: String = signals
        .iter()
        .map(|(name, on)| match on {
            On::End => format!("trap 'say {name}; kill -KILL $child; exit 0' {name}\n"),
            On::Note => format!("trap 'say {name}' {name}\n"),
        })
        .collect();
    // The child is there to be waited for, which a trap interrupts. It is started with the signals ignored: they go to
    // the whole process group, and are meant for the shell alone.
    format!(
        "say() {{ echo \"$PANZER_WORKER_ID $PANZER_GENERATION $1\" >>{log}; }}\n\
         trap '' {names}\n\
         sleep 100000 & child=$!\n\
         {traps}\
         say start\n\
         while kill -0 $child; do wait $child; done 2>/dev/null"
    )
}

/// What a worker wrote down.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    slot: usize,
    generation: u32,
    what: String,
}

/// A documented command line with such workers.
struct Service {
    scratch: Scratch,
    running: Running,
}

impl Service {
    /// Starts it and waits until all workers are ready.
    #[track_caller]
    fn start(title: &str, signals: &[(&str, On)]) -> Service {
        let scratch = Scratch::new();
        let script = worker(&scratch.path("log"), signals);
        let service = Service::run(title, scratch, &script, &[]);
        let count = if title == STARTER { 1 } else { WORKERS };
        service.running.wait_line(if count == 1 { "the worker is ready" } else { "all 4 workers are ready" });
        service.wait_said("start", 1, count);
        service
    }

    /// Starts it with this script, and other values for some options.
    #[track_caller]
    fn run(title: &str, scratch: Scratch, script: &str, changed: &[(&str, &str)]) -> Service {
        let mut options = placed(&documented(title), &scratch);
        for (option, value) in changed {
            let index = options.iter().position(|word| word == option).unwrap();
            options[index + 1] = (*value).to_owned();
        }
        let running = Panzer::new(options).arg("--").args(sh(script)).start();
        Service { scratch, running }
    }

    fn said(&self) -> Vec<Said> {
        let text = fs::read_to_string(self.scratch.path("log")).unwrap_or_default();
        let one = |line: &str| {
            let mut words = line.split(' ');
            let (slot, generation) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            Some(Said { slot, generation, what: words.next()?.to_owned() })
        };
        text.lines().map(|line| one(line).unwrap_or_else(|| panic!("a worker wrote {line:?}"))).collect()
    }

    /// How often workers of a generation have written this down.
    fn count(&self, what: &str, generation: u32) -> usize {
        self.said().iter().filter(|said| said.what == what && said.generation == generation).count()
    }

    #[track_caller]
    fn wait_said(&self, what: &str, generation: u32, count: usize) {
        wait_until(&format!("{count} workers of generation {generation} have written {what:?}"), || {
            self.count(what, generation) >= count
        });
        assert_eq!(self.count(what, generation), count, "{what:?} of generation {generation}: {:?}", self.said());
    }

    /// Sends a signal to panzer that reloads, and waits for the end of that: the old workers have written this down.
    #[track_caller]
    fn reloads(&self, signal: i32, generation: u32, told: &str, workers: usize) {
        self.running.signal(signal);
        wait_until(&format!("the reload to generation {generation} has ended"), || {
            let stderr = self.running.stderr();
            stderr.lines().any(|line| {
                line.starts_with("panzer: reloaded: ") && line.ends_with(&format!(" of generation {generation}"))
            })
        });
        self.wait_said("start", generation, workers);
        self.wait_said(told, generation - 1, workers);
        wait_until("the old ones have gone", || self.running.workers().len() == workers);
    }

    /// Sends a signal that ends panzer: each worker, all of this generation, has written this down, and none was killed.
    #[track_caller]
    fn stops(&self, signal: i32, generation: u32, told: &str, workers: usize) {
        self.running.ends_with(signal, 0);
        self.wait_said(told, generation, workers);
        assert!(!self.running.stderr().contains("SIGKILL"), "{}", self.running.stderr());
    }

    /// Sends a signal that ends panzer by killing everything: no worker has written anything down.
    #[track_caller]
    fn is_killed(&self, signal: i32) {
        let workers = self.running.workers();
        self.running.ends_with(signal, 137);
        assert!(self.said().iter().all(|said| said.what == "start"), "{:?}", self.said());
        assert!(workers.iter().all(|pid| !process::alive(*pid)));
    }

    /// Sends a signal to panzer that every worker gets, and that ends none of them.
    #[track_caller]
    fn passes_on(&self, signal: i32, name: &str) {
        let before = self.running.wait_slots(WORKERS);
        self.running.signal(signal);
        self.wait_said(name, 1, WORKERS);
        assert_eq!(self.running.slots(), before, "workers were replaced");
    }

    /// Sends a signal to panzer that changes nothing.
    #[track_caller]
    fn ignores(&self, signal: i32) {
        let before = self.running.wait_slots(WORKERS);
        let said = self.said();
        self.running.signal(signal);
        holds_for(WATCH, "the workers stay as they are", || self.running.slots() == before && self.said() == said);
    }

    /// One worker more, and one fewer again: that of the top slot, which writes this down.
    #[track_caller]
    fn scales(&self, told: &str) {
        let before = self.running.wait_slots(WORKERS);
        self.running.signal(libc::SIGTTIN);
        let more = self.running.wait_slots(WORKERS + 1);
        self.wait_said("start", 1, WORKERS + 1);
        self.running.wait_line("SIGTTIN: 5 workers now, one more");
        assert!(before.iter().all(|(slot, pid)| more.get(slot) == Some(pid)), "{before:?}, {more:?}");
        self.running.signal(libc::SIGTTOU);
        self.running.wait_line("SIGTTOU: 4 workers now, one fewer");
        self.wait_said(told, 1, 1);
        let told: Vec<usize> = self.said().iter().filter(|said| said.what == told).map(|said| said.slot).collect();
        assert_eq!(told, [WORKERS]);
        wait_until("only the first four are left", || self.running.slots() == before);
    }
}

// The Crystal panzer

const TERM_ENDS: [(&str, On); 1] = [("TERM", On::End)];

#[test]
fn crystal_usr1_replaces_all_workers_and_term_ends_the_old_ones() {
    let service = Service::start(CRYSTAL, &TERM_ENDS);
    service.reloads(libc::SIGUSR1, 2, "TERM", WORKERS);
    service.reloads(libc::SIGUSR1, 3, "TERM", WORKERS);
    service.stops(libc::SIGTERM, 3, "TERM", WORKERS);
}

#[test]
fn crystal_int_stops_with_term_as_well() {
    let service = Service::start(CRYSTAL, &TERM_ENDS);
    service.stops(libc::SIGINT, 1, "TERM", WORKERS);
}

#[test]
fn crystal_a_second_int_kills() {
    // TERM is written down, and that is all.
    let service = Service::start(CRYSTAL, &[("TERM", On::Note)]);
    service.running.signal(libc::SIGINT);
    service.wait_said("TERM", 1, WORKERS);
    service.running.ends_with(libc::SIGINT, 137);
}

#[test]
fn crystal_a_monitor_may_say_by_vtalrm_that_it_has_started() {
    let service = Service::start(CRYSTAL, &TERM_ENDS);
    // Its default action ends a process.
    service.ignores(libc::SIGVTALRM);
    service.stops(libc::SIGTERM, 1, "TERM", WORKERS);
}

#[test]
fn crystal_a_program_that_keeps_its_monitor_runs_as_the_only_worker() {
    let scratch = Scratch::new();
    // What the monitor does when it has started.
    let script = worker(&scratch.path("log"), &TERM_ENDS).replace("say start\n", "say start\nkill -VTALRM $PPID\n");
    let service = Service::run(CRYSTAL, scratch, &script, &[("-n", "1")]);
    service.running.wait_line("the worker is ready");
    service.wait_said("start", 1, 1);
    service.reloads(libc::SIGUSR1, 2, "TERM", 1);
    service.stops(libc::SIGTERM, 2, "TERM", 1);
    assert!(!service.running.stderr().contains("SIGVTALRM; starting"), "{}", service.running.stderr());
}

// ServerEngine

#[test]
fn server_engine_term_and_int_stop_gracefully() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let service = Service::start(SERVER_ENGINE, &TERM_ENDS);
        service.stops(signal, 1, "TERM", WORKERS);
    }
}

#[test]
fn server_engine_quit_stops_at_once() {
    let service = Service::start(SERVER_ENGINE, &[("TERM", On::End), ("QUIT", On::End)]);
    service.is_killed(libc::SIGQUIT);
}

#[test]
fn server_engine_usr1_restarts_gracefully() {
    let service = Service::start(SERVER_ENGINE, &TERM_ENDS);
    service.reloads(libc::SIGUSR1, 2, "TERM", WORKERS);
    service.stops(libc::SIGTERM, 2, "TERM", WORKERS);
}

#[test]
fn server_engine_hup_restarts_at_once() {
    let service = Service::start(SERVER_ENGINE, &[("TERM", On::End), ("HUP", On::End)]);
    let before = service.running.wait_slots(WORKERS);
    service.running.signal(libc::SIGHUP);
    service.running.wait_lines("was killed by SIGKILL; starting a new one", WORKERS);
    // The generation stays as it is.
    service.wait_said("start", 1, 2 * WORKERS);
    let after = service.running.wait_slots(WORKERS);
    assert!(after.values().all(|pid| before.values().all(|old| old != pid)), "{before:?}, {after:?}");
    assert_eq!((service.count("TERM", 1), service.count("HUP", 1)), (0, 0), "none was told");
    service.running.ends_with(libc::SIGTERM, 0);
    service.wait_said("TERM", 1, WORKERS);
}

#[test]
fn server_engine_usr2_and_cont_go_to_the_workers() {
    let signals = [("TERM", On::End), ("USR2", On::Note), ("CONT", On::Note)];
    let service = Service::start(SERVER_ENGINE, &signals);
    service.passes_on(libc::SIGUSR2, "USR2");
    service.passes_on(libc::SIGCONT, "CONT");
    service.stops(libc::SIGTERM, 1, "TERM", WORKERS);
}

#[test]
fn server_engine_the_pid_file_is_there_while_it_runs() {
    let service = Service::start(SERVER_ENGINE, &TERM_ENDS);
    let file = service.scratch.path("my.pid");
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{}\n", service.running.pid()));
    service.stops(libc::SIGTERM, 1, "TERM", WORKERS);
    assert!(!file.exists());
}

// Acme::Ghost

const QUIT_ENDS: [(&str, On); 2] = [("QUIT", On::End), ("TERM", On::End)];

#[test]
fn ghost_quit_stops_gracefully() {
    let service = Service::start(GHOST, &QUIT_ENDS);
    service.stops(libc::SIGQUIT, 1, "QUIT", WORKERS);
}

#[test]
fn ghost_int_and_term_stop_at_once() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        Service::start(GHOST, &QUIT_ENDS).is_killed(signal);
    }
}

#[test]
fn ghost_ttin_and_ttou_change_the_number_of_spirits() {
    let service = Service::start(GHOST, &QUIT_ENDS);
    service.scales("QUIT");
    service.running.ends_with(libc::SIGQUIT, 0);
}

#[test]
fn ghost_hup_reloads_and_quit_ends_the_old_spirits() {
    let service = Service::start(GHOST, &QUIT_ENDS);
    service.reloads(libc::SIGHUP, 2, "QUIT", WORKERS);
    service.stops(libc::SIGQUIT, 2, "QUIT", WORKERS);
}

#[test]
fn ghost_a_spirit_without_a_heartbeat_is_replaced() {
    let scratch = Scratch::new();
    // All but the first spirit of slot 0 beat.
    let script = format!(
        "trap 'exit 0' QUIT\n\
         [ $PANZER_WORKER_ID = 0 ] && mkdir {} 2>/dev/null && exec sleep 100000\n\
         while :; do echo >&$PANZER_HEARTBEAT_FD; sleep 0.1; done",
        scratch.path("first").display(),
    );
    // Five seconds are long enough for a script on a machine that is busy with other tests.
    let Service { scratch: _scratch, running } = Service::run(GHOST, scratch, &script, &[("--watchdog", "5")]);
    let silent = wait_for("slot 0 has a worker", || running.slots().get(&0).copied());
    running.wait_line(&format!("worker 0 (pid {silent}) was silent for 5s; sent SIGABRT"));
    running.wait_replaced(0, silent);
    running.ends_with(libc::SIGQUIT, 0);
    assert_eq!(running.stderr().matches("was silent for").count(), 1, "{}", running.stderr());
}

#[test]
fn ghost_a_spirit_that_ends_before_it_is_ready_ends_everything() {
    let scratch = Scratch::new();
    let service = Service::run(GHOST, scratch, "exit 3", &[]);
    assert_eq!(shell_status(service.running.wait_exit()), 3, "{}", service.running.stderr());
}

// Server::Starter

const STARTER_SIGNALS: [(&str, On); 2] = [("QUIT", On::End), ("TERM", On::End)];

#[test]
fn server_starter_hup_starts_a_new_server_and_then_tells_the_old_one_by_the_signal_for_that() {
    let service = Service::start(STARTER, &STARTER_SIGNALS);
    service.reloads(libc::SIGHUP, 2, "QUIT", 1);
    service.reloads(libc::SIGHUP, 3, "QUIT", 1);
    service.stops(libc::SIGTERM, 3, "TERM", 1);
    assert_eq!(service.count("QUIT", 3), 0);
}

#[test]
fn server_starter_int_stops_too() {
    let service = Service::start(STARTER, &STARTER_SIGNALS);
    service.stops(libc::SIGINT, 1, "TERM", 1);
}

#[test]
fn server_starter_the_server_finds_its_port_its_generation_and_the_environment_directory() {
    let scratch = Scratch::new();
    let given = scratch.path("given");
    let options = placed(&documented(STARTER), &scratch);
    fs::write(env_dir(&scratch).join("COLOUR"), "red\n").unwrap();
    let script = format!(
        "echo \"$SERVER_STARTER_GENERATION $COLOUR ${{SERVER_STARTER_PORT##*=}}\" >>{}; exec sleep 100000",
        given.display()
    );
    let running = Panzer::new(options).arg("--").args(sh(&script)).start();
    let wait_given = |lines: &[&str]| {
        let expected: String = lines.iter().map(|line| format!("{line}\n")).collect();
        wait_until(&format!("servers were given {lines:?}"), || {
            fs::read_to_string(&given).is_ok_and(|found| found == expected)
        });
    };
    running.wait_line("the worker is ready");
    wait_given(&["1 red 3"]);
    fs::write(env_dir(&scratch).join("COLOUR"), "green\n").unwrap();
    running.signal(libc::SIGHUP);
    wait_given(&["1 red 3", "2 green 3"]);
    running.wait_line("reloaded: ");
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn server_starter_the_status_file_has_both_generations_during_a_reload() {
    let scratch = Scratch::new();
    let script = worker(&scratch.path("log"), &STARTER_SIGNALS);
    let service = Service::run(STARTER, scratch, &script, &[("--kill-old-delay", "3s")]);
    service.running.wait_line("the worker is ready");
    service.wait_said("start", 1, 1);
    let (pid, status) = (service.scratch.path("my.pid"), service.scratch.path("my.status"));
    let lines = || -> BTreeMap<u32, u32> {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = |line: &str| {
            let (generation, pid) = line.split_once(':')?;
            Some((generation.parse().ok()?, pid.parse().ok()?))
        };
        text.lines().map(|found| line(found).unwrap_or_else(|| panic!("{found:?}"))).collect()
    };
    assert_eq!(fs::read_to_string(&pid).unwrap(), format!("{}\n", service.running.pid()));
    let old = service.running.wait_slots(1)[&0];
    wait_until("the first generation is there", || lines() == BTreeMap::from([(1, old)]));
    service.running.signal(libc::SIGHUP);
    wait_until("both are there", || {
        let found = lines();
        found.keys().copied().eq([1, 2]) && found[&1] == old
    });
    wait_until("only the second is there", || lines().keys().copied().eq([2]));
    assert_eq!(lines()[&2], service.running.wait_slots(1)[&0]);
    service.running.ends_with(libc::SIGTERM, 0);
    assert!(!pid.exists() && !status.exists());
}

#[test]
fn server_starter_a_server_that_does_not_start_is_tried_until_it_does_while_the_old_one_stays() {
    let scratch = Scratch::new();
    let broken = scratch.path("broken");
    let script = worker(&scratch.path("log"), &STARTER_SIGNALS);
    let script = format!("[ -e {} ] && exit 1\n{script}", broken.display());
    let service = Service::run(STARTER, scratch, &script, &[]);
    service.running.wait_line("the worker is ready");
    let old = service.running.wait_slots(1)[&0];
    fs::write(&broken, "").unwrap();
    service.running.signal(libc::SIGHUP);
    service.running.wait_lines("trying generation 2 again in ", 2);
    assert!(process::alive(old));
    assert_eq!(service.count("QUIT", 1), 0);
    fs::remove_file(&broken).unwrap();
    service.running.wait_line("reloaded: ");
    service.wait_said("QUIT", 1, 1);
    service.wait_said("start", 2, 1);
    service.stops(libc::SIGTERM, 2, "TERM", 1);
}

#[test]
fn server_starter_its_own_restart_and_stop_work_on_panzers_files() {
    if Command::new("start_server").arg("--version").output().is_err() {
        return not_installed(
            "start_server --restart and --stop: Debian's package libserver-starter-perl is not installed",
        );
    }
    let service = Service::start(STARTER, &STARTER_SIGNALS);
    let files = [("--pid-file", "my.pid"), ("--status-file", "my.status")];
    let files = files.map(|(option, name)| format!("{option}={}", service.scratch.path(name).display()));
    let their = |command: &str| {
        // It waits without a limit of its own.
        let output = Command::new("timeout").args(["60", "start_server", command]).args(&files).output().unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    };
    // It waits until the new generation is the only one.
    their("--restart");
    service.wait_said("start", 2, 1);
    service.wait_said("QUIT", 1, 1);
    // It waits until the pid file is no longer locked.
    their("--stop");
    assert_eq!(shell_status(service.running.wait_exit()), 0);
    service.wait_said("TERM", 2, 1);
}

// unicorn

const UNICORN_SIGNALS: [(&str, On); 4] = [("QUIT", On::End), ("TERM", On::End), ("USR1", On::Note), ("WINCH", On::End)];

#[test]
fn unicorn_quit_stops_gracefully() {
    let service = Service::start(UNICORN, &UNICORN_SIGNALS);
    service.stops(libc::SIGQUIT, 1, "QUIT", WORKERS);
}

#[test]
fn unicorn_term_and_int_stop_at_once() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        Service::start(UNICORN, &UNICORN_SIGNALS).is_killed(signal);
    }
}

#[test]
fn unicorn_hup_and_usr2_restart_all_workers_gracefully() {
    let service = Service::start(UNICORN, &UNICORN_SIGNALS);
    service.reloads(libc::SIGHUP, 2, "QUIT", WORKERS);
    service.reloads(libc::SIGUSR2, 3, "QUIT", WORKERS);
    service.stops(libc::SIGQUIT, 3, "QUIT", WORKERS);
}

#[test]
fn unicorn_usr1_goes_to_the_workers_and_winch_does_not() {
    let service = Service::start(UNICORN, &UNICORN_SIGNALS);
    service.passes_on(libc::SIGUSR1, "USR1");
    service.ignores(libc::SIGWINCH);
    service.stops(libc::SIGQUIT, 1, "QUIT", WORKERS);
}

#[test]
fn unicorn_ttin_and_ttou_change_the_number_of_workers() {
    let service = Service::start(UNICORN, &UNICORN_SIGNALS);
    service.scales("QUIT");
    service.running.ends_with(libc::SIGQUIT, 0);
}
