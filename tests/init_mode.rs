//! Init mode: one child, every signal forwarded, panzer exits as the child does and leaves nothing.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::pipe::{PipeFlags, pipe_with};

use crate::support::panzer::{Output, Panzer, Running, shell_status};
use crate::support::report::{Descriptor, Report, recorded};
use crate::support::scratch::Scratch;
use crate::support::{example, process, wait_for, wait_until};

/// A shell that waits for two files, those of its arguments 1 and 2.
const UNTIL_BOTH: &str = r#"until [ -e "$1" ] && [ -e "$2" ]; do sleep 0.01; done"#;

/// panzer with these options, in front of a shell with this script; what follows is `$0` and so on.
fn shell(options: &[&str], script: &str) -> Panzer {
    Panzer::new(options).args(["--", "sh", "-c", script])
}

/// panzer with these options, in front of a probe that reports to `out`.
fn probe(options: &[&str], out: &Path) -> Panzer {
    Panzer::new(options).arg("--").arg(example("probe")).arg(out)
}

/// The action of a probe that records signals in this file.
pub(crate) fn record(file: &Path) -> OsString {
    let mut action = OsString::from("record=");
    action.push(file);
    action
}

/// A child and another member of its process group, which both record every signal.
struct Recorders {
    panzer: Running,
    scratch: Scratch,
    child: u32,
    member: u32,
}

impl Recorders {
    #[track_caller]
    fn start(options: &[&str]) -> Recorders {
        let scratch = Scratch::new();
        let script = r#""$0" "$1" "record=$2" & exec "$0" "$3" "record=$4""#;
        let files = ["member", "member.log", "child", "child.log"].map(|name| scratch.path(name));
        let panzer = shell(options, script).arg(example("probe")).args(&files).start();
        let [member, child] = ["member", "child"].map(|name| Report::wait(&scratch.path(name)));
        assert_eq!(member.get("pgid"), child.get("pid"), "both are in the group that the child leads");
        let (child, member) = (child.number("pid"), member.number("pid"));
        Recorders { panzer, scratch, child, member }
    }

    fn child_log(&self) -> PathBuf {
        self.scratch.path("child.log")
    }

    fn member_log(&self) -> PathBuf {
        self.scratch.path("member.log")
    }

    /// Ends both by KILL, which is what panzer then exits with.
    #[track_caller]
    fn end(self) {
        for pid in [self.member, self.child] {
            process::send_signal(pid, libc::SIGKILL);
        }
        assert_eq!(shell_status(self.panzer.wait_exit()), 128 + libc::SIGKILL);
    }
}

/// Waits until exactly these signals are recorded.
#[track_caller]
pub(crate) fn wait_recorded(log: &Path, expected: &[i32], what: &str) {
    wait_until(&format!("{what}: {} holds {expected:?}, it holds {:?}", log.display(), recorded(log)), || {
        recorded(log) == expected
    });
}

/// Waits until a process is stopped, or is not.
#[track_caller]
pub(crate) fn wait_state(pid: u32, stopped: bool, what: &str) {
    wait_until(what, || process::stat(pid).is_some_and(|found| (found.state == 'T') == stopped));
}

#[track_caller]
fn wait_gone(pid: u32) {
    wait_until(&format!("process {pid} is gone"), || !process::alive(pid));
}

/// What a process gets for a signal that panzer got.
pub(crate) fn forwarded_as(signal: i32) -> Vec<i32> {
    match signal {
        // A stopped process ends only after CONT.
        libc::SIGTERM | libc::SIGINT | libc::SIGQUIT | libc::SIGHUP => vec![signal, libc::SIGCONT],
        other => vec![other],
    }
}

/// The signals that can be forwarded as they are.
pub(crate) fn forwardable() -> impl Iterator<Item = i32> {
    let others = [libc::SIGKILL, libc::SIGSTOP, libc::SIGCHLD, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    (1..=64).filter(move |signal| !others.contains(signal))
}

#[test]
fn every_exit_status_of_the_child_is_panzers_own() {
    for status in 0..=255 {
        let output = shell(&[], "exit $0").arg(status.to_string()).run();
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", ""), "status {status}");
    }
}

#[test]
fn a_child_that_a_signal_killed_makes_128_and_its_number() {
    let harmless = [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH];
    let stopping = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    for signal in (1..=64).filter(|signal| !harmless.contains(signal) && !stopping.contains(signal)) {
        let script = r#"ulimit -c 0; exec "$0" - default "kill=$1" exit=99"#;
        let output = shell(&[], script).arg(example("probe")).arg(signal.to_string()).run();
        assert_eq!(output.status.code(), Some(128 + signal), "{output:?}");
        assert_eq!(output.stderr, "", "signal {signal}");
    }
}

#[test]
fn ok_exit_counts_a_status_and_a_death_as_success() {
    for (options, script, status) in [
        (&["--ok-exit", "143"][..], "kill -TERM $$", 0),
        (&["--ok-exit", "143"], "exit 143", 0),
        (&["--ok-exit", "143"], "exit 142", 142),
        (&["--ok-exit", "143"], "kill -KILL $$", 137),
        (&["--ok-exit", "143", "--ok-exit", "3"], "exit 3", 0),
        // A killed process has no exit status that could be 0 or 15.
        (&["--ok-exit", "15"], "kill -TERM $$", 143),
        (&["--ok-exit", "0"], "kill -TERM $$", 143),
    ] {
        assert_eq!(shell(options, script).run().status.code(), Some(status), "{options:?} {script}");
    }
}

#[test]
fn ok_exit_counts_after_a_forwarded_term() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let panzer = probe(&["--ok-exit", "143"], &out).arg("sleep").start();
    Report::wait(&out);
    panzer.signal(libc::SIGTERM);
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

#[test]
fn every_signal_reaches_the_child_and_its_group() {
    let recorders = Recorders::start(&[]);
    let mut expected = Vec::new();
    for signal in forwardable() {
        recorders.panzer.signal(signal);
        expected.extend(forwarded_as(signal));
        for log in [recorders.child_log(), recorders.member_log()] {
            wait_recorded(&log, &expected, &format!("signal {signal} is forwarded"));
        }
    }
    recorders.end();
}

#[test]
fn with_no_group_every_signal_reaches_the_child_alone() {
    let recorders = Recorders::start(&["--no-group"]);
    let mut expected = Vec::new();
    for signal in forwardable() {
        recorders.panzer.signal(signal);
        expected.extend(forwarded_as(signal));
        wait_recorded(&recorders.child_log(), &expected, &format!("signal {signal} is forwarded"));
    }
    // The one that is taken last of all that are pending: nothing came before it.
    process::send_signal(recorders.member, 64);
    wait_recorded(&recorders.member_log(), &[64], "nothing else reached the other member");
    recorders.end();
}

#[test]
fn real_time_signals_are_forwarded_as_often_as_they_come() {
    let recorders = Recorders::start(&[]);
    // Held up, panzer finds all of them at once.
    process::send_signal(recorders.panzer.pid(), libc::SIGSTOP);
    wait_state(recorders.panzer.pid(), true, "panzer is stopped");
    for signal in [35, 35, 64, 35] {
        recorders.panzer.signal(signal);
    }
    recorders.panzer.signal(libc::SIGCONT);
    let expected = [libc::SIGCONT, 35, 35, 35, 64];
    for log in [recorders.child_log(), recorders.member_log()] {
        wait_until(&format!("{expected:?} are recorded, in any order"), || {
            let mut found = recorded(&log);
            found.sort_unstable();
            found == expected
        });
    }
    recorders.end();
}

#[test]
fn chld_from_outside_is_not_forwarded() {
    let recorders = Recorders::start(&[]);
    recorders.panzer.signal(libc::SIGCHLD);
    recorders.panzer.signal(64);
    for log in [recorders.child_log(), recorders.member_log()] {
        wait_recorded(&log, &[64], "the signal after CHLD comes, CHLD does not");
    }
    recorders.end();
}

#[test]
fn terminal_stop_signals_stop_the_group_and_panzer_and_cont_resumes_them() {
    let recorders = Recorders::start(&[]);
    let all = [recorders.child, recorders.member, recorders.panzer.pid()];
    for (index, signal) in [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].into_iter().enumerate() {
        recorders.panzer.signal(signal);
        for pid in all {
            wait_state(pid, true, &format!("signal {signal} stops {pid}"));
        }
        recorders.panzer.signal(libc::SIGCONT);
        for pid in all {
            wait_state(pid, false, &format!("CONT resumes {pid}"));
        }
        // The child gets CHLD as well, of the member whose parent it is.
        for log in [recorders.child_log(), recorders.member_log()] {
            wait_until("CONT is forwarded; the stop came as STOP", || {
                let mut found = recorded(&log);
                found.retain(|signal| *signal != libc::SIGCHLD);
                found == vec![libc::SIGCONT; index + 1]
            });
        }
    }
    recorders.end();
}

#[test]
fn with_no_group_a_stop_signal_stops_the_child_alone() {
    let recorders = Recorders::start(&["--no-group"]);
    recorders.panzer.signal(libc::SIGTSTP);
    for pid in [recorders.child, recorders.panzer.pid()] {
        wait_state(pid, true, &format!("TSTP stops {pid}"));
    }
    process::send_signal(recorders.member, 64);
    wait_recorded(&recorders.member_log(), &[64], "the other member runs");
    recorders.panzer.signal(libc::SIGCONT);
    wait_state(recorders.child, false, "CONT resumes the child");
    recorders.end();
}

#[test]
fn a_stopped_child_ends_on_each_signal_that_means_end() {
    let signals = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP];
    for (options, signal) in signals
        .map(|signal| (&[][..], signal))
        .into_iter()
        .chain([(&["--no-group"][..], libc::SIGTERM), (&["--stop", "TERM"][..], libc::SIGTERM)])
    {
        let scratch = Scratch::new();
        let out = scratch.path("out");
        let script = r#"ulimit -c 0; exec "$0" "$1" default sleep"#;
        let panzer = shell(options, script).arg(example("probe")).arg(&out).start();
        let child = Report::wait(&out).number("pid");
        process::send_signal(child, libc::SIGSTOP);
        wait_state(child, true, "the child is stopped");
        panzer.signal(signal);
        assert_eq!(shell_status(panzer.wait_exit()), 128 + signal, "{options:?}");
    }
}

#[test]
fn a_term_at_any_moment_of_the_start_ends_it() {
    for turn in 0..100 {
        let panzer = Panzer::new(["--", "sleep", "1000"]).start();
        // Another moment each time.
        for _ in 0..turn * 10 {
            thread::yield_now();
        }
        panzer.signal(libc::SIGTERM);
        // By itself, before main, or as its child.
        assert_eq!(shell_status(panzer.wait_exit()), 143);
        wait_until("nothing is left", || panzer.leftovers().is_empty());
    }
}

#[test]
fn with_nothing_left_behind_panzer_ends_at_once_however_long_it_might_linger() {
    for (script, status) in [
        ("exit 0", 0),
        ("sleep 0.01 & wait; exit 4", 4),
        // Orphans, dead before the child is.
        ("(true &); (true &); exit 5", 5),
        ("kill -KILL $$", 137),
    ] {
        assert_eq!(shell(&["--linger", "1h"], script).run().status.code(), Some(status), "{script}");
    }
}

#[test]
fn what_the_child_leaves_behind_gets_term_and_is_waited_for() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let script = format!(r#""$0" "${{1%.child}}" spawn-child spawn-setsid; {UNTIL_BOTH}; exit 3"#);
    let files = [scratch.path("out.child"), scratch.path("out.setsid")];
    let panzer = shell(&["--linger", "1h"], &script).arg(example("probe")).args(&files).start();
    assert_eq!(panzer.wait_exit().code(), Some(3));
    let starter = Report::wait(&out);
    let [member, daemon] = files.map(|file| Report::wait(&file));
    assert_eq!(member.get("pgid"), starter.get("pgid"));
    assert_eq!(daemon.get("sid"), daemon.get("pid"));
    for report in [member, daemon] {
        assert!(!process::alive(report.number("pid")), "{report:?} is left");
    }
}

#[test]
fn what_ends_by_itself_after_term_is_given_the_time() {
    let slow = r#"trap 'sleep 0.3; echo done; exit' TERM; : >"$1"; while :; do sleep 0.01; done"#;
    let scratch = Scratch::new();
    let script = r#"sh -c "$0" sh "$1" & until [ -e "$1" ]; do sleep 0.01; done; exit 6"#;
    let output = shell(&["--linger", "1h"], script).arg(slow).arg(scratch.path("ready")).run();
    assert_eq!((output.status.code(), output.stdout.as_str()), (Some(6), "done\n"), "{output:?}");
}

/// A member of the child's group and a daemon, which both ignore everything, and whose child ends
/// with 5 as soon as they run.
fn deaf_remains(options: &[&str], scratch: &Scratch) -> Running {
    let script =
        format!(r#""$0" "$1" "record=$1.log" & setsid --fork "$0" "$2" "record=$2.log"; {UNTIL_BOTH}; exit 5"#);
    shell(options, &script).arg(example("probe")).args(["member", "daemon"].map(|name| scratch.path(name))).start()
}

#[test]
fn what_ignores_term_is_killed_after_the_linger_time() {
    let scratch = Scratch::new();
    let panzer = deaf_remains(&["--linger", "200ms"], &scratch);
    assert_eq!(panzer.wait_exit().code(), Some(5));
    // That TERM comes first is for the next test: a killed process may not have come to write it down.
    for name in ["member", "daemon"] {
        assert!(!process::alive(Report::wait(&scratch.path(name)).number("pid")), "{name} is left");
    }
    assert_eq!(panzer.stderr(), "panzer: processes were left behind; sent them SIGKILL\n");
}

#[test]
fn another_term_ends_the_linger_time() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let scratch = Scratch::new();
        let panzer = deaf_remains(&["--linger", "1h"], &scratch);
        for name in ["member", "daemon"] {
            let log = scratch.path(&format!("{name}.log"));
            wait_recorded(&log, &[libc::SIGTERM, libc::SIGCONT], "what is left gets TERM");
            assert!(process::alive(Report::wait(&scratch.path(name)).number("pid")), "{name} is given its time");
        }
        assert_eq!(panzer.try_exit(), None, "panzer waits");
        panzer.signal(signal);
        assert_eq!(panzer.wait_exit().code(), Some(5));
    }
}

#[test]
fn a_stopped_process_that_is_left_behind_ends_too() {
    let script = r#"sleep 1000 & kill -STOP $!; exit 8"#;
    assert_eq!(shell(&["--linger", "1h"], script).run().status.code(), Some(8));
}

#[test]
fn with_no_group_what_is_left_behind_is_left_alone() {
    let scratch = Scratch::new();
    let script = format!(r#""$0" "${{1%.child}}" spawn-child spawn-setsid; {UNTIL_BOTH}; exit 3"#);
    let files = [scratch.path("out.child"), scratch.path("out.setsid")];
    let panzer = shell(&["--no-group"], &script).arg(example("probe")).args(&files).start();
    assert_eq!(panzer.wait_exit().code(), Some(3));
    for pid in files.map(|file| Report::wait(&file).number("pid")) {
        assert!(process::alive(pid), "{pid} was not left alone");
        process::send_signal(pid, libc::SIGKILL);
        wait_gone(pid);
    }
}

#[test]
fn panzer_itself_says_nothing() {
    let scratch = Scratch::new();
    let panzer = shell(&["--linger", "1h"], r#"echo out; echo err >&2; sleep 1000 & "$0" "$1" default sleep"#)
        .arg(example("probe"))
        .arg(scratch.path("out"))
        .start();
    let probe = Report::wait(&scratch.path("out")).number("pid");
    for signal in [libc::SIGWINCH, libc::SIGURG] {
        panzer.signal(signal);
    }
    process::send_signal(probe, libc::SIGINT);
    assert_eq!(panzer.wait_exit().code(), Some(130));
    assert_eq!((panzer.stdout().as_str(), panzer.stderr().as_str()), ("out\n", "err\n"));
}

#[test]
fn a_child_that_daemonizes_gives_its_own_status_and_the_daemon_ends() {
    for status in [0, 7] {
        let output = shell(&["--linger", "1h"], "setsid --fork sleep 1000; exit $0").arg(status.to_string()).run();
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        assert_eq!(output.stderr, "");
    }
}

#[test]
fn a_process_that_leaves_its_group_while_term_is_on_its_way_gets_it_too() {
    // Each of them is between two groups for a moment, and panzer signals whole groups: a signal that
    // misses one makes panzer wait for an hour.
    let script = "i=0; while [ $i -lt 30 ]; do setsid sleep 1000 & i=$((i+1)); done; exit 7";
    for _ in 0..40 {
        let panzer = shell(&["--linger", "1h"], script).start();
        assert_eq!(panzer.wait_exit().code(), Some(7));
    }
}

#[test]
fn a_stop_schedule_escalates_for_a_deaf_child() {
    // Both at once, since the schedule takes its time: the child must come to write down what it got.
    let runs = [libc::SIGTERM, libc::SIGINT].map(|signal| {
        let scratch = Scratch::new();
        let [out, log] = ["out", "log"].map(|name| scratch.path(name));
        let panzer = probe(&["--stop", "QUIT/0/TERM/4/KILL"], &out).arg(record(&log)).start();
        Report::wait(&out);
        panzer.signal(signal);
        (panzer, scratch)
    });
    for (panzer, scratch) in runs {
        assert_eq!(panzer.wait_exit().code(), Some(137));
        let mut found = recorded(&scratch.path("log"));
        found.sort_unstable();
        found.dedup();
        assert_eq!(found, [libc::SIGQUIT, libc::SIGTERM, libc::SIGCONT], "the schedule is run, whatever began it");
    }
}

#[test]
fn a_stop_schedule_lets_a_child_end_by_itself() {
    for (options, status) in [(&["--stop", "TERM/1000/KILL"][..], 143), (&["--stop", "INT/1000/KILL"], 130)] {
        let scratch = Scratch::new();
        let out = scratch.path("out");
        let panzer = probe(options, &out).args(["default", "sleep"]).start();
        Report::wait(&out);
        panzer.signal(libc::SIGTERM);
        assert_eq!(panzer.wait_exit().code(), Some(status), "{options:?}");
    }
}

#[test]
fn without_a_stop_schedule_nothing_escalates() {
    let recorders = Recorders::start(&[]);
    for count in 1..=3 {
        recorders.panzer.signal(libc::SIGTERM);
        let expected = [libc::SIGTERM, libc::SIGCONT].repeat(count);
        wait_recorded(&recorders.child_log(), &expected, "TERM is forwarded each time");
    }
    recorders.end();
}

/// panzer as the child of a shell that does nothing but wait, with a child that records.
fn with_own_parent(options: &[&str], scratch: &Scratch) -> Running {
    let parent = ["sh", "-c", r#""$@" & wait"#, "sh"];
    let panzer = probe(options, &scratch.path("out")).arg(record(&scratch.path("log"))).wrapper(parent).start();
    Report::wait(&scratch.path("out"));
    assert_ne!(panzer.panzer_pid(), panzer.pid());
    panzer
}

#[test]
fn pdeathsig_tells_panzer_of_its_parents_death() {
    let scratch = Scratch::new();
    let panzer = with_own_parent(&["--pdeathsig", "USR1"], &scratch);
    process::send_signal(panzer.pid(), libc::SIGKILL);
    wait_recorded(&scratch.path("log"), &[libc::SIGUSR1], "the signal comes, and is forwarded");
    wait_until("there is a guard", || panzer.guard().is_some());
    process::send_signal(panzer.panzer_pid(), libc::SIGKILL);
    wait_until("the guard clears up", || panzer.leftovers().is_empty());
}

#[test]
fn without_pdeathsig_panzer_outlives_its_parent() {
    let scratch = Scratch::new();
    let panzer = with_own_parent(&[], &scratch);
    process::send_signal(panzer.pid(), libc::SIGKILL);
    panzer.wait_exit();
    process::send_signal(panzer.panzer_pid(), 64);
    wait_recorded(&scratch.path("log"), &[64], "panzer runs on and was told nothing");
    process::send_signal(panzer.panzer_pid(), libc::SIGKILL);
    wait_until("the guard clears up", || panzer.leftovers().is_empty());
}

#[test]
fn an_orphan_is_adopted_and_reaped() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let panzer = probe(&[], &out).args(["spawn-setsid", "sleep"]).start();
    let orphan = Report::wait(&scratch.path("out.setsid"));
    let orphan = orphan.number("pid");
    let own = panzer.panzer_pid();
    wait_until("panzer is its parent", || process::stat(orphan).is_some_and(|found| found.ppid == own));
    process::send_signal(orphan, libc::SIGKILL);
    wait_until("it is reaped", || process::stat(orphan).is_none());
    assert_eq!(process::zombies_of(own), []);
    panzer.signal(libc::SIGTERM);
    assert_eq!(panzer.wait_exit().code(), Some(143));
}

#[test]
fn a_thousand_orphans_leave_no_zombie_and_their_ends_are_not_the_childs() {
    let panzer = Panzer::new(["--"]).arg(example("probe")).args(["-", "orphans=1000", "print=made", "sleep"]).start();
    wait_until("all are made", || panzer.stdout().ends_with("\nmade\n"));
    let own = panzer.panzer_pid();
    // One look at all of them: the last orphans may not even have ended yet.
    wait_until("panzer, its guard and the probe are left, and no zombie", || {
        let tree = process::tree(own);
        tree.len() == 3 && tree.iter().all(|found| !found.is_dead())
    });
    assert_eq!(panzer.try_exit(), None);
    panzer.signal(libc::SIGTERM);
    assert_eq!(panzer.wait_exit().code(), Some(143));
}

#[test]
fn the_child_leads_a_group_of_its_own_in_panzers_session_and_directory() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let panzer = probe(&[], &out).arg("sleep").cwd(scratch.directory()).start();
    let report = Report::wait(&out);
    let own = process::stat(panzer.pid()).expect("panzer runs");
    assert_eq!(report.number("pgid"), report.number("pid"));
    assert_eq!(report.number("ppid"), own.pid);
    assert_eq!(report.number("sid"), own.sid);
    assert_ne!(report.number("pgid"), own.pgid);
    assert_eq!(Path::new(report.get("cwd")), fs::canonicalize(scratch.directory()).unwrap());
    panzer.signal(libc::SIGTERM);
    assert_eq!(panzer.wait_exit().code(), Some(143));
}

/// The descriptors above 2 that everything inherits which these tests start: whoever runs them may
/// have some open.
fn ambient() -> Vec<u32> {
    let inherited = |number: &u32| {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).map(str::trim);
        let flags = flags.and_then(|flags| i32::from_str_radix(flags, 8).ok());
        flags.is_some_and(|flags| flags & libc::O_CLOEXEC == 0)
    };
    let all = descriptors(std::process::id()).into_iter().map(|(number, _)| number);
    all.filter(|number| *number > 2).filter(inherited).collect()
}

/// The numbers of the descriptors that a probe had, but for the [`ambient`] ones.
fn numbers_in(report: &Report) -> Vec<u32> {
    let ambient = ambient();
    report.descriptors().iter().map(|one| one.number).filter(|number| !ambient.contains(number)).collect()
}

/// The open descriptors of a process, and where they lead.
fn descriptors(pid: u32) -> Vec<(u32, String)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors can be listed");
    let mut found: Vec<(u32, String)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let target = fs::read_link(entry.path()).ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, target.to_str()?.to_string()))
        })
        .collect();
    found.sort_unstable();
    found
}

#[test]
fn what_panzer_inherits_is_the_childs_alone() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let [seven, nine] = ["seven", "nine"].map(|name| scratch.write(name, ""));
    let wrapper = [OsString::from("sh"), "-c".into(), r#"exec "$@" 7<seven 9<nine"#.into(), "sh".into()];
    let panzer = probe(&[], &out).arg("sleep").wrapper(wrapper).cwd(scratch.directory()).start();
    let report = Report::wait(&out);
    assert_eq!(numbers_in(&report), [0, 1, 2, 7, 9], "the child has what panzer was given, and no more: {report:?}");
    for (number, file) in [(7, &seven), (9, &nine)] {
        let target = file.display().to_string();
        assert!(report.descriptors().iter().any(|one| one.number == number && one.target == target));
    }

    let own = panzer.panzer_pid();
    let of_its_own = |(number, target): &(u32, String)| {
        *number <= 2 || target.starts_with("anon_inode:") || target.starts_with("pipe:")
    };
    wait_until("panzer has let go of what is the child's", || {
        let found = descriptors(own);
        // The standard ones; epoll, signals, and the pipe to the guard.
        fs::read_link(format!("/proc/{own}/cwd")).is_ok_and(|cwd| cwd == Path::new("/"))
            && found.iter().all(of_its_own)
            && found.len() <= 6
    });
    let guard = wait_for("there is a guard", || panzer.guard());
    wait_until("the guard has stderr, its pipe and what it waits by", || {
        let held: Vec<String> = descriptors(guard).into_iter().map(|(_, target)| target).collect();
        let pipes = held.iter().filter(|target| target.starts_with("pipe:")).count();
        fs::read_link(format!("/proc/{guard}/cwd")).is_ok_and(|cwd| cwd == Path::new("/"))
            && held.len() == 3
            && held.iter().any(|target| target == "anon_inode:[eventpoll]")
            && pipes >= 1
    });
    panzer.signal(libc::SIGTERM);
    assert_eq!(panzer.wait_exit().code(), Some(143));
}

#[test]
fn a_listener_in_init_mode_is_the_childs_alone() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let panzer = probe(&["-l", "tcp://127.0.0.1:0"], &out).arg("sleep").start();
    let report = Report::wait(&out);
    let sockets: Vec<Descriptor> =
        report.descriptors().into_iter().filter(|one| one.target.starts_with("socket:")).collect();
    assert!(matches!(&sockets[..], [Descriptor { number: 3, .. }]), "{report:?}");
    assert_eq!(report.env("LISTEN_PID"), Some(report.get("pid")));
    wait_until("panzer has let go of the listener", || {
        descriptors(panzer.pid()).iter().all(|(_, target)| *target != sockets[0].target)
    });
    panzer.signal(libc::SIGTERM);
    assert_eq!(panzer.wait_exit().code(), Some(143));
}

/// What a process does with signals: blocked, ignored, caught.
fn dispositions(pid: u32) -> [Vec<u32>; 3] {
    ["SigBlk", "SigIgn", "SigCgt"].map(|field| process::signals_in(pid, field).expect("the process runs"))
}

/// A `sleep` that is started through the same words as panzer is, but without panzer.
struct Bare(Child);

impl Bare {
    fn start(words: &[&str]) -> Bare {
        let mut command = Command::new(words.first().unwrap_or(&"sleep"));
        command.args(words.iter().skip(1));
        if !words.is_empty() {
            command.arg("sleep");
        }
        let child = command.arg("1000").stdin(Stdio::null()).spawn().expect("sleep can be started");
        wait_until("it sleeps", || process::stat(child.id()).is_some_and(|found| found.comm == "sleep"));
        Bare(child)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_callers_signal_mask_and_dispositions_are_the_childs() {
    let can_block = Command::new("env")
        .args(["--block-signal=USR2", "true"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success());
    if !can_block {
        eprintln!("left out: blocked signals, and those that a shell does not ignore: this env(1) cannot do that");
    }
    const BLOCKED: usize = 0;
    const IGNORED: usize = 1;
    // The words, and what they are sure to make: in which mask, which signals.
    let shell_cases = [
        (&[][..], IGNORED, &[][..]),
        (&["sh", "-c", r#"trap "" HUP USR1; exec "$@""#, "sh"], IGNORED, &[1, 10]),
        (&["sh", "-c", r#"trap "" PIPE; exec "$@""#, "sh"], IGNORED, &[13]),
        (&["sh", "-c", r#"trap "" TERM TSTP TTIN TTOU WINCH; exec "$@""#, "sh"], IGNORED, &[15, 20, 21, 22, 28]),
    ];
    let env_cases = [
        (&["env", "--block-signal=USR2"][..], BLOCKED, &[12][..]),
        (&["env", "--block-signal=CHLD,CONT,TERM,TSTP,PIPE"], BLOCKED, &[13, 15, 17, 18, 20]),
        (&["env", "--block-signal=35", "--block-signal=64"], BLOCKED, &[35, 64]),
        (&["env", "--ignore-signal=PIPE", "--block-signal=USR2,PIPE"], IGNORED, &[13]),
        (&["env", "--ignore-signal=CHLD"], IGNORED, &[17]),
        (&["env", "--ignore-signal=64"], IGNORED, &[64]),
    ];
    for (words, kind, signals) in shell_cases.into_iter().chain(env_cases.into_iter().filter(|_| can_block)) {
        let bare = Bare::start(words);
        let expected = dispositions(bare.0.id());
        for signal in signals {
            assert!(expected[kind].contains(signal), "{words:?} does not do its part: {expected:?}");
        }
        let panzer = Panzer::new(["--", "sleep", "1000"]).wrapper(words).start();
        let child = panzer.wait_workers(1)[0];
        wait_until("it sleeps", || process::stat(child).is_some_and(|found| found.comm == "sleep"));
        assert_eq!(dispositions(child), expected, "{words:?}: blocked, ignored, caught");
        process::send_signal(child, libc::SIGKILL);
        assert_eq!(panzer.wait_exit().code(), Some(137), "{words:?}");
    }
}

#[test]
fn a_blocked_or_ignored_signal_is_forwarded_all_the_same() {
    let scratch = Scratch::new();
    let [out, log] = ["out", "log"].map(|name| scratch.path(name));
    let wrapper = ["sh", "-c", r#"trap "" USR1 TERM; exec "$@""#, "sh"];
    let panzer = probe(&[], &out).arg(record(&log)).wrapper(wrapper).start();
    Report::wait(&out);
    panzer.signal(libc::SIGUSR1);
    wait_recorded(&log, &[libc::SIGUSR1], "USR1 is forwarded");
    panzer.signal(libc::SIGTERM);
    wait_recorded(&log, &[libc::SIGUSR1, libc::SIGTERM, libc::SIGCONT], "TERM is forwarded");
    process::send_signal(panzer.workers()[0], libc::SIGKILL);
    assert_eq!(panzer.wait_exit().code(), Some(137));
}

#[test]
fn with_chld_ignored_the_status_comes_through_and_orphans_are_reaped() {
    let wrapper = ["sh", "-c", r#"trap "" CHLD; exec "$@""#, "sh"];
    let output = shell(&["--linger", "1h"], "(true &); exit 7").wrapper(wrapper).run();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
}

#[test]
fn standard_input_is_the_childs() {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let panzer = Panzer::new(["--", "cat"]).stdin(reader).start();
    File::from(writer).write_all(b"one\ntwo\n").unwrap();
    assert_eq!(panzer.wait_exit().code(), Some(0));
    assert_eq!(panzer.stdout(), "one\ntwo\n");
}

/// Writes a file that can be executed.
fn executable(directory: &Path, name: &str, content: &str) -> PathBuf {
    fs::create_dir_all(directory).unwrap();
    let path = directory.join(name);
    // Another test's child would hold a file that is written here open, and exec would say ETXTBSY.
    let status = Command::new("sh")
        .args(["-c", r#"printf %s "$0" >"$1" && chmod 755 "$1""#, content])
        .arg(&path)
        .status()
        .expect("a shell runs");
    assert!(status.success());
    path
}

#[test]
fn a_script_without_an_interpreter_line_is_run_by_the_shell() {
    let scratch = Scratch::new();
    let script = executable(scratch.directory(), "script", "echo \"$0:$1:$#\"\nexit 5\n");
    let output = Panzer::new(["--"]).arg(&script).args(["a b", "c"]).run();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert_eq!(output.stdout, format!("{}:a b:2\n", script.display()));

    let output = Panzer::new(["--", "script", "x"]).env("PATH", scratch.directory()).run();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert_eq!(output.stdout, format!("{}:x:1\n", script.display()));
}

#[test]
fn the_program_is_looked_for_along_path_as_execvp_does() {
    let scratch = Scratch::new();
    let directories = ["closed", "first", "second"].map(|name| scratch.path(name));
    let [closed, first, second] = &directories;
    fs::set_permissions(executable(closed, "tool", "#!/bin/sh\necho closed\n"), fs::Permissions::from_mode(0o644))
        .unwrap();
    executable(first, "tool", "#!/bin/sh\necho first\n");
    executable(second, "tool", "#!/bin/sh\necho second\n");
    executable(second, "other", "#!/bin/sh\necho other\n");
    executable(scratch.directory(), "tool", "#!/bin/sh\necho here\n");
    // A directory of that name is passed over.
    fs::create_dir(first.join("other")).unwrap();
    let path = |parts: &[&Path]| std::env::join_paths(parts).unwrap();
    let missing = scratch.path("missing");
    let here = scratch.directory();
    for (path, command, word) in [
        (path(&[&missing, closed, first, second]), "tool", "first\n"),
        (path(&[second, first]), "tool", "second\n"),
        (path(&[first, second]), "other", "other\n"),
        // An empty part is the current directory.
        (path(&[Path::new(""), first]), "tool", "here\n"),
        // A name with a slash is not looked for.
        (path(&[first]), "./tool", "here\n"),
        (path(&[first]), "second/tool", "second\n"),
    ] {
        let output = Panzer::new(["--", command]).env("PATH", &path).cwd(here).run();
        assert_eq!((output.status.code(), output.stdout.as_str()), (Some(0), word), "{command}: {output:?}");
    }
    let output = Panzer::new(["--", "sleep", "0"]).env_remove("PATH").run();
    assert_eq!(output.status.code(), Some(0), "without PATH there is a usual one: {output:?}");
}

#[test]
fn standard_descriptors_that_are_closed_at_the_start_do_no_harm() {
    for closed in ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"] {
        let scratch = Scratch::new();
        let out = scratch.path("out");
        let script = format!(r#"exec "$@" {closed}"#);
        let Output { status, .. } = probe(&[], &out).arg("exit=7").wrapper(["sh", "-c", &script, "sh"]).run();
        assert_eq!(status.code(), Some(7), "{closed}");
        let report = Report::wait(&out);
        assert_eq!(numbers_in(&report), [0, 1, 2], "{closed}: {report:?}");
    }
}

#[test]
fn panzers_own_variables_work_and_are_not_the_childs() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let panzer =
        probe(&[], &out).arg("exit=9").env("PANZER_OK_EXIT", "8 9").env("PANZER_LINGER", "1h").env("OTHER", "x");
    assert_eq!(panzer.run().status.code(), Some(0));
    let report = Report::wait(&out);
    assert_eq!(report.env("OTHER"), Some("x"));
    assert_eq!(report.env("PANZER_OK_EXIT"), None);
    assert_eq!(report.env("PANZER_LINGER"), None);
}

#[test]
fn a_child_that_ended_before_panzer_was_executed_is_reaped() {
    // The shell that becomes panzer never waits for it.
    let scratch = Scratch::new();
    let wrapper = [
        "sh",
        "-c",
        r#"true & while kill -0 $! && ! grep -q "^State:.Z" /proc/$!/status; do :; done; exec "$@""#,
        "sh",
    ];
    let panzer = probe(&[], &scratch.path("out")).arg("sleep").wrapper(wrapper).start();
    Report::wait(&scratch.path("out"));
    wait_until("no zombie is left", || process::zombies_of(panzer.pid()).is_empty());
    panzer.signal(libc::SIGTERM);
    assert_eq!(panzer.wait_exit().code(), Some(143));
}

#[test]
fn a_directory_that_may_not_be_searched_can_be_inherited() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root can have another user start in its directory");
        return;
    }
    let scratch = Scratch::new();
    let directory = scratch.path("closed");
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
    let wrapper = ["setpriv", "--reuid", "23456", "--regid", "23456", "--clear-groups"];
    let output = Panzer::new(["--", "true"]).cwd(&directory).wrapper(wrapper).run();
    assert_eq!((output.status.code(), output.stderr.as_str()), (Some(0), ""));
}
