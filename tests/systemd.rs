//! panzer as a service of systemd, or of another panzer: `NOTIFY_SOCKET`, `LISTEN_FDS`, `WATCHDOG_USEC`. The unit files of
//! `deploy/systemd` are read and run by a stand-in.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::binders::not_installed;
use crate::support::control::ctl;
use crate::support::http::get_with;
use crate::support::lives::{READY as GOOD, Service};
use crate::support::load::{self, Addr, Load, LoadOptions};
use crate::support::panzer::{Panzer, Running, binary, shell_status};
use crate::support::report::Report;
use crate::support::scratch::Scratch;
use crate::support::systemd::{Systemd, Unit, UnitState};
use crate::support::worker::{panzer, probe, sh, text, through_shell};
use crate::support::{example, holds_for, process, wait_until};

/// How long a thing that must not happen is watched for.
const WATCH: Duration = Duration::from_millis(500);

fn sleep() -> Vec<String> {
    ["sleep", "100000"].map(str::to_string).to_vec()
}

/// How often panzer has waited for something.
fn waits(running: &Running) -> u64 {
    let count = process::status_field(running.panzer_pid(), "voluntary_ctxt_switches");
    count.and_then(|count| count.parse().ok()).expect("the count of waits")
}

/// Waits until panzer has nothing left to do, and makes sure that it then sleeps.
#[track_caller]
fn sleeps(running: &Running) {
    let mut last = 0;
    wait_until("panzer sleeps for half a second", || {
        last = waits(running);
        std::thread::sleep(WATCH);
        waits(running) == last
    });
}

// The units

#[test]
fn the_units_start_serve_reload_beat_and_stop() {
    let (service, socket) = (Unit::read("panzer-example.service"), Unit::read("panzer-example.socket"));
    assert_eq!(service.get("Unit", "Requires"), "panzer-example.socket");
    assert_eq!(socket.get("Socket", "ListenStream"), "0.0.0.0:8080");
    let name = socket.get("Socket", "FileDescriptorName");
    // systemd's socket is there before the service is; the port may be taken here.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = Addr::Tcp(listener.local_addr().unwrap());
    // Until its answer comes all that there is has to start.
    let early = |addr: &Addr| get_with(addr, "/", "Connection: close\r\n").map(|answer| answer.body);
    let waiting = std::thread::spawn({
        let addr = addr.clone();
        move || early(&addr)
    });
    let mut systemd = Systemd::new();
    let running = systemd.start_unit(&service, &listener, name);
    systemd.wait(UnitState::Active);
    systemd.wait_status("4 workers ready, generation 1");
    systemd.wait_beats(0);
    assert!(systemd.beats > 0, "{:?}", systemd.messages);
    assert!(waiting.join().unwrap().unwrap().contains("generation=1"));
    let slots = running.wait_slots(4);
    let environ = process::environ(slots[&0]).unwrap();
    for (variable, value) in [("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", name)] {
        assert_eq!(environ.get(variable).map(String::as_str), Some(value), "{variable}");
    }
    for variable in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PIDFDID"] {
        assert_eq!(environ.get(variable), None, "{variable} is panzer's own");
    }

    let load =
        Load::start(SocketAddr::from(([127, 0, 0, 1], listener.local_addr().unwrap().port())), LoadOptions::default());
    let reload = Panzer::new(service.arguments("ExecReload", &running.pid().to_string())).run();
    assert_eq!(shell_status(reload.status), 0, "{reload:?}");
    systemd.wait(UnitState::Active);
    systemd.wait_status("4 workers ready, generation 2");
    assert_eq!(systemd.history, [UnitState::Active, UnitState::Reloading, UnitState::Active]);
    // The old ones were told, and may still answer what they have accepted.
    running.wait_generation(2, 4);
    assert!(load::one(&addr).unwrap().contains("generation=2"));
    let report = load.stop();
    assert_eq!(report.lost(), 0, "{report}");

    // KillMode=mixed: the main process alone gets TERM.
    assert_eq!(service.get("Service", "KillMode"), "mixed");
    running.ends_with(libc::SIGTERM, 0);
    systemd.wait(UnitState::Deactivating);
    assert!(systemd.status.starts_with("stopping "), "{:?}", systemd.messages);
    assert_eq!(running.leftovers(), []);
    // The next start takes up what has come in the meantime.
    let meanwhile = std::thread::spawn(move || early(&addr));
    let mut systemd = Systemd::with_abstract_name();
    let running = systemd.start_unit(&service, &listener, name);
    assert!(meanwhile.join().unwrap().unwrap().contains("generation=1"));
    systemd.wait(UnitState::Active);
    // It has not beaten for so long: systemd sends what the unit says, and CONT. ABRT would be forwarded to all workers.
    assert_eq!(service.get("Service", "WatchdogSignal"), "SIGTERM");
    running.signal(libc::SIGSTOP);
    running.signal(libc::SIGTERM);
    running.ends_with(libc::SIGCONT, 0);
    systemd.wait(UnitState::Deactivating);
}

#[test]
fn the_units_times_fit_panzers() {
    let service = Unit::read("panzer-example.service");
    let arguments = service.arguments("ExecStart", "");
    let stop = arguments.iter().skip_while(|word| *word != "--stop").nth(1).expect("the schedule is in the unit");
    let schedule: u64 = stop.split('/').filter_map(|part| part.parse::<u64>().ok()).sum();
    // What was killed may hang in the kernel for five seconds; then what escaped is cleared in --linger, and five again.
    assert!(service.seconds("TimeoutStopSec") >= schedule + 5 + 2 + 5, "{stop}");
    // --ready-timeout is 60s.
    assert!(service.seconds("TimeoutStartSec") > 60);
    // Everything that the example is asked for can be done.
    let output = Panzer::new(["--check"]).args(arguments).run();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn systemd_itself_finds_nothing_wrong_with_the_units() {
    let scratch = Scratch::new();
    let units = ["panzer-example.service", "panzer-example.socket"].map(|name| Unit::read(name).copy(&scratch));
    let Ok(output) = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(units).output() else {
        return not_installed("what systemd-analyze says of deploy/systemd: Debian's package systemd is not installed");
    };
    let said = String::from_utf8_lossy(&output.stderr);
    // What is said of other units of this machine is not meant.
    let about_ours: Vec<&str> = said.lines().filter(|line| line.contains("panzer-example")).collect();
    assert!(output.status.success() && about_ours.is_empty(), "{said}");
}

// The start

#[test]
fn ready_is_said_once_all_workers_are_ready_and_never_for_a_replacement() {
    for mut systemd in [Systemd::new(), Systemd::with_abstract_name()] {
        let script = "exec $PROBE - wait=$DIR/go$PANZER_WORKER_ID ready sleep >/dev/null";
        let [zero, one] = ["go0", "go1"].map(|name| systemd.scratch().path(name));
        fs::write(&zero, "").unwrap();
        let running = systemd.start(
            panzer("-n 2 --ready fd --backoff 0:0", &sh(script))
                .env("PROBE", example("probe"))
                .env("DIR", systemd.scratch().directory()),
        );
        systemd.wait_status("starting 1 of 2");
        holds_for(WATCH, "one worker is not all", || {
            systemd.hear();
            systemd.active == UnitState::Activating
        });
        fs::write(one, "").unwrap();
        systemd.wait(UnitState::Active);
        systemd.wait_status("2 workers ready, generation 1");
        fs::remove_file(&zero).unwrap();
        running.kill_worker(0);
        systemd.wait_status("running, 1 of 2 ready");
        fs::write(zero, "").unwrap();
        systemd.wait_status("2 workers ready, generation 1");
        assert_eq!(systemd.history, [UnitState::Active]);
        sleeps(&running);
        running.ends_with(libc::SIGTERM, 0);
        systemd.wait(UnitState::Deactivating);
    }
}

#[test]
fn a_start_that_fails_is_never_ready_and_ends_with_the_last_workers_status() {
    let mut systemd = Systemd::new();
    let running = systemd.start(panzer("-n 1 --backoff 0:0 --crash-limit 3", &sh("exit 7")));
    assert_eq!(shell_status(running.wait_exit()), 7);
    systemd.hear();
    assert_eq!(systemd.active, UnitState::Activating);
    assert!(systemd.was_told("STOPPING=1"), "{:?}", systemd.messages);
    // A refusal has nothing to tell.
    let mut systemd = Systemd::new();
    let running = systemd.start(panzer("-n 1", &["./is-not-there"]));
    assert_eq!(shell_status(running.wait_exit()), 127);
    systemd.hear();
    assert_eq!(systemd.messages.len(), 0);
}

// A reload

/// A service whose release can be changed, as a unit of `Type=notify-reload`.
fn notify_reload(systemd: &mut Systemd, options: &str, script: &str) -> Service {
    systemd.main_pid = 0;
    let scratch = Scratch::new();
    let app = scratch.write("app", script);
    let running = systemd.start(
        panzer(&options.replace("$DIR", &text(scratch.directory())), &["sh".to_string(), text(app)])
            .env("DIR", scratch.directory())
            .env("PROBE", example("probe")),
    );
    Service { running, scratch }
}

#[test]
fn a_reload_by_signal_ends_for_the_manager_however_it_ends() {
    let mut systemd = Systemd::new();
    let service = notify_reload(&mut systemd, "-n 2 --ready fd --env-dir $DIR/env", GOOD);
    // There was no such directory: it is refused, and that is all.
    assert_eq!(shell_status(service.running.wait_exit()), 125);
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("env")).unwrap();
    let options = format!("-n 2 --ready fd --env-dir {}", scratch.path("env").display());
    let service = notify_reload(&mut systemd, &options, GOOD);
    systemd.wait(UnitState::Active);

    systemd.reload_by_signal(&service.running);
    systemd.wait(UnitState::Active);
    systemd.wait_status("2 workers ready, generation 2");
    assert!(systemd.history.contains(&UnitState::Reloading), "{:?}", systemd.history);

    // A bad release.
    service.release("exit 9");
    systemd.reload_by_signal(&service.running);
    systemd.wait(UnitState::Active);
    systemd.wait_status("2 workers ready, generation 2; cannot reload to generation 3: ");
    assert!(systemd.status.ends_with("the old workers stay"), "{}", systemd.status);

    // What cannot even be tried is over at once.
    fs::rename(scratch.path("env"), scratch.path("gone")).unwrap();
    systemd.reload_by_signal(&service.running);
    systemd.wait(UnitState::Active);
    systemd.wait_status("2 workers ready, generation 2; cannot reload to generation 4: ");
    fs::rename(scratch.path("gone"), scratch.path("env")).unwrap();
    service.release(GOOD);
    systemd.reload_by_signal(&service.running);
    systemd.wait(UnitState::Active);
    systemd.wait_status("2 workers ready, generation 5");
    assert!(!systemd.status.contains("cannot"), "{}", systemd.status);
    service.running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_reload_that_was_asked_for_during_another_is_told_as_one_of_its_own() {
    let mut systemd = Systemd::new();
    let slow = "exec $PROBE - wait=$DIR/go$PANZER_GENERATION ready sleep >/dev/null";
    let service = notify_reload(&mut systemd, "-n 1 --ready fd", slow);
    service.touch("go1");
    systemd.wait(UnitState::Active);
    assert_eq!(shell_status(ctl(&format!("--pid {} reload", service.running.pid())).run().status), 0);
    systemd.wait(UnitState::Reloading);
    // systemd would wait; an older one that had not read of the first yet sends its signal.
    systemd.active = UnitState::Active;
    systemd.reload_by_signal(&service.running);
    service.wait_line("SIGHUP: a reload is under way");
    systemd.hear();
    assert!(matches!(systemd.active, UnitState::ReloadSignal(_)), "the first one is not what was asked for");
    service.touch("go2");
    systemd.wait(UnitState::Reloading);
    systemd.wait_status("reloading 0 of 1 to generation 3");
    service.touch("go3");
    systemd.wait(UnitState::Active);
    systemd.wait_status("1 worker ready, generation 3");
    service.running.ends_with(libc::SIGTERM, 0);
}

// The end

#[test]
fn stopping_is_said_for_every_way_to_end() {
    for (options, script, way, status) in [
        ("", GOOD, "stop", 0),
        ("", GOOD, "signal", 0),
        ("--stop KILL", GOOD, "signal", 137),
        ("--fatal-exit 4", "exec $PROBE - ready wait=$DIR/go exit=4 >/dev/null", "go", 4),
        ("--restart never", "exec $PROBE - ready wait=$DIR/go exit=5 >/dev/null", "go", 5),
        // Nobody is there to be waited for.
        ("--backoff 1h:1h", "exec $PROBE - ready wait=$DIR/go exit=5 >/dev/null", "waiting", 0),
    ] {
        let mut systemd = Systemd::new();
        let service = notify_reload(&mut systemd, &format!("-n 1 --ready fd {options}"), script);
        systemd.wait(UnitState::Active);
        match way {
            "stop" => drop(ctl(&format!("--pid {} stop", service.running.pid())).run()),
            "signal" => service.running.signal(libc::SIGTERM),
            "waiting" => {
                service.touch("go");
                service.wait_line("starting a new one in ");
                service.running.signal(libc::SIGTERM);
            }
            go => service.touch(go),
        }
        assert_eq!(shell_status(service.running.wait_exit()), status, "{options} {way}");
        systemd.hear();
        assert_eq!(systemd.active, UnitState::Deactivating, "{options} {way}: {:?}", systemd.messages);
        assert_eq!(systemd.messages.iter().filter(|message| message.contains("STOPPING=1")).count(), 1);
    }
}

// A manager that does not listen

#[test]
fn a_manager_that_does_not_read_holds_nothing_up_and_is_told_once_it_reads() {
    for mut systemd in [Systemd::new(), Systemd::with_abstract_name()] {
        let filled = systemd.fill();
        assert!(filled > 0);
        let running = systemd.start(panzer("-n 2 --ready exec --backoff 0:0", &sleep()));
        running.wait_line("all 2 workers are ready");
        running.kill_worker(1);
        running.signal(libc::SIGHUP);
        running.wait_line("reloaded: ");
        systemd.drain(filled);
        // Nothing happens any more: panzer has not forgotten.
        systemd.wait(UnitState::Active);
        systemd.wait_status("2 workers ready, generation 2");
        assert_eq!(running.stderr().matches("NOTIFY_SOCKET").count(), 0, "that is no news");
        sleeps(&running);
        let filled = systemd.fill();
        running.ends_with(libc::SIGTERM, 0);
        systemd.drain(filled);
    }
}

#[test]
fn a_manager_that_is_not_there_is_said_once_and_told_when_it_comes() {
    let scratch = Scratch::new();
    let path = scratch.path("notify");
    let long = format!("/{}", "x".repeat(200));
    for name in [text(&path).as_str(), "vsock:2:1234", "relative/path", "@", "/", &long, "@panzer-test-nobody"] {
        let running = panzer("-n 2 --ready exec --backoff 0:0", &sleep()).env("NOTIFY_SOCKET", name).start();
        running.wait_line("all 2 workers are ready");
        running.kill_worker(0);
        running.kill_worker(1);
        sleeps(&running);
        let stderr = running.stderr();
        let lines: Vec<&str> = stderr.lines().filter(|line| line.contains("NOTIFY_SOCKET")).collect();
        let [line] = lines[..] else { panic!("{name}: {stderr}") };
        assert!(line.starts_with("panzer: cannot notify NOTIFY_SOCKET: "), "{line}");
        if name == text(&path) {
            let listens = UnixDatagram::bind(&path).unwrap();
            running.kill_worker(0);
            let mut bytes = [0; 4096];
            let length = listens.recv(&mut bytes).unwrap();
            let told = String::from_utf8_lossy(&bytes[..length]);
            assert!(told.starts_with("READY=1\n"), "{told}");
        }
        running.ends_with(libc::SIGTERM, 0);
    }
    // Empty is none.
    let running = panzer("-n 1 --ready exec", &sleep()).env("NOTIFY_SOCKET", "").start();
    running.wait_line("the worker is ready");
    assert!(!running.stderr().contains("NOTIFY_SOCKET"));
    running.ends_with(libc::SIGTERM, 0);
}

// Signs of life

#[test]
fn beats_come_where_they_are_asked_of_panzer_and_nothing_wakes_it_where_not() {
    for (variables, beats) in [
        ("WATCHDOG_USEC=100000", true),
        ("WATCHDOG_PID=$$ WATCHDOG_USEC=100000", true),
        ("WATCHDOG_PID=1 WATCHDOG_USEC=100000", false),
        ("WATCHDOG_USEC=0", false),
        ("WATCHDOG_USEC=-5", false),
        ("WATCHDOG_USEC=x", false),
        ("WATCHDOG_USEC=18446744073709551615", false),
        ("X=y", false),
    ] {
        let mut systemd = Systemd::new();
        let wrapper = through_shell(&format!("export {variables}"));
        let running = systemd.start(panzer("-n 1 --ready exec", &sleep()).wrapper(wrapper));
        systemd.wait(UnitState::Active);
        if beats {
            systemd.wait_beats(10);
            // In a reload and in a stop too.
            running.signal(libc::SIGSTOP);
            systemd.hear();
            running.signal(libc::SIGCONT);
            systemd.wait_beats(2);
        } else {
            sleeps(&running);
            systemd.hear();
            // One that is due in half a million years begins with the first.
            assert!(systemd.beats <= usize::from(variables.len() > 30), "{variables}: {:?}", systemd.messages);
        }
        running.ends_with(libc::SIGTERM, 0);
    }
}

#[test]
fn beats_go_on_while_workers_are_told_to_stop() {
    let mut systemd = Systemd::new();
    let command = probe("-", &[&format!("ignore={}", libc::SIGTERM), "sleep"]);
    let running =
        systemd.start(panzer("-n 1 --ready exec --stop TERM/600/KILL", &command).env("WATCHDOG_USEC", "100000"));
    systemd.wait(UnitState::Active);
    running.wait_slots(1);
    // The probe ignores it by now.
    wait_until("the worker ignores TERM", || {
        running.slots().get(&0).and_then(|pid| process::signals_in(*pid, "SigIgn")).is_some_and(|all| all.contains(&15))
    });
    running.signal(libc::SIGTERM);
    systemd.wait(UnitState::Deactivating);
    systemd.wait_beats(5);
    running.ends_with(libc::SIGQUIT, 137);
}

#[test]
fn after_an_absence_a_beat_comes_at_once() {
    let mut systemd = Systemd::new();
    // The next one would come in an hour.
    let started = panzer("-n 1 --ready exec", &["sleep", "100000"]).env("WATCHDOG_USEC", "7200000000");
    let running = systemd.start(started);
    systemd.wait(UnitState::Active);
    systemd.wait_beats(0);
    let before = systemd.beats;
    wait_until("there is a beat", || {
        running.signal(libc::SIGSTOP);
        running.signal(libc::SIGCONT);
        systemd.wait_beats(0);
        systemd.beats > before
    });
    running.ends_with(libc::SIGTERM, 0);
}

// Who is told by whom

#[test]
fn as_an_init_the_child_speaks_for_itself() {
    let mut systemd = Systemd::new();
    let report = systemd.scratch().path("report");
    let wrapper = through_shell("export WATCHDOG_PID=$$ WATCHDOG_USEC=5000000");
    let command = probe(&text(&report), &["notify=READY=1\\nSTATUS=mine", "sleep"]);
    let running = systemd.start(panzer("", &command).wrapper(wrapper));
    // NotifyAccess=all
    systemd.main_pid = 0;
    systemd.wait(UnitState::Active);
    assert_eq!((systemd.status.as_str(), systemd.messages.len()), ("mine", 1));
    let given = Report::wait(&report);
    assert_eq!(given.env("NOTIFY_SOCKET"), Some(systemd.name.as_str()));
    assert_eq!(given.env("WATCHDOG_USEC"), Some("5000000"));
    assert_eq!(given.env("WATCHDOG_PID"), None, "it is not panzer's pid that beats");
    running.ends_with(libc::SIGTERM, 128 + libc::SIGTERM);
}

#[test]
fn an_outer_panzer_is_told_by_an_inner_one() {
    let mut inner = vec![text(binary())];
    inner.extend(["-n", "2", "--ready", "fd", "--"].map(str::to_string));
    inner.extend(probe("-", &["ready", "sleep"]));
    let running = panzer("-n 1 --ready notify --watchdog 10s", &inner).start();
    running.wait_line("panzer: the worker is ready");
    wait_until("the inner one's status is there", || {
        let shown = ctl(&format!("--pid {} status --json", running.pid())).run().stdout;
        shown.contains("\"2 workers ready, generation 1\"")
    });
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn workers_cannot_speak_to_the_manager_of_panzer() {
    let mut systemd = Systemd::new();
    let report = systemd.scratch().path("report");
    let running = systemd.start(
        panzer("-n 1 --ready notify", &probe(&text(&report), &["notify=READY=1\\nSTATUS=mine\\nMAINPID=1", "sleep"]))
            .env("WATCHDOG_USEC", "60000000"),
    );
    systemd.wait(UnitState::Active);
    let given = Report::wait(&report);
    assert_ne!(given.env("NOTIFY_SOCKET"), Some(systemd.name.as_str()));
    assert_eq!(given.env("WATCHDOG_USEC"), None);
    assert!(Path::new(&systemd.name).exists());
    assert!(!systemd.was_told("STATUS=mine"), "{:?}", systemd.messages);
    running.ends_with(libc::SIGTERM, 0);
}
