//! panzer as PID 1, in a PID namespace that `unshare` makes.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::init_mode::{forwardable, forwarded_as, record, wait_recorded, wait_state};
use crate::support::binders::left_out;
use crate::support::panzer::{Panzer, Running, binary};
use crate::support::report::Report;
use crate::support::scratch::Scratch;
use crate::support::{example, process, wait_for, wait_until};

/// The words that make a namespace, or None where that is not allowed.
fn unshare() -> Option<&'static [&'static str]> {
    const AS_ROOT: &[&str] = &["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    const AS_USER: &[&str] =
        &["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"];
    static WORKS: OnceLock<bool> = OnceLock::new();
    let words = if rustix::process::geteuid().is_root() { AS_ROOT } else { AS_USER };
    let works = *WORKS.get_or_init(|| {
        let test = Command::new(words[0]).args(&words[1..]).arg("true").stderr(Stdio::null()).status();
        test.is_ok_and(|status| status.success())
    });
    if !works {
        left_out(&format!("panzer as PID 1, since {} does not work here", words.join(" ")));
    }
    works.then_some(words)
}

/// panzer as PID 1 with these arguments, or None where there are no namespaces.
fn pid1(args: &[&str]) -> Option<Panzer> {
    Some(Panzer::new(args).wrapper(unshare()?))
}

#[test]
fn the_childs_status_comes_through() {
    for (script, status) in
        [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -KILL $$", 137)]
    {
        let Some(panzer) = pid1(&["--linger", "1h", "--", "sh", "-c", script]) else { return };
        let output = panzer.run();
        assert_eq!(output.status.code(), Some(status), "{script}: {output:?}");
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", ""), "{script}");
    }
}

#[test]
fn a_refusal_is_125_and_a_missing_command_127() {
    for (args, status) in [(&["--bogus", "true"][..], 125), (&["--", "/no/such/command"], 127)] {
        let Some(panzer) = pid1(args) else { return };
        let output = panzer.run();
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        assert!(output.stderr.starts_with("panzer: cannot "), "{output:?}");
    }
}

#[test]
fn in_a_container_nothing_is_mounted_or_set_and_nothing_ends_but_panzer() {
    // What panzer could change as a machine's init, before it and in its child.
    let look = "cat /proc/self/mountinfo /proc/sys/kernel/hostname /proc/sys/kernel/ctrl-alt-del; ulimit -Hn; \
                cat /proc/net/dev_mcast; readlink /proc/self/fd/0 /proc/self/fd/2; ls /dev";
    let script = format!(r#"{look}; echo --; exec "$0" --on-exit reboot -- sh -c '{look}; exit 3'"#);
    let Some(words) = unshare() else { return };
    let mut shell = Command::new(words[0]);
    shell.args(&words[1..]).args(["--uts", "--net", "sh", "-c", &script]).arg(binary());
    let output = shell.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (before, inside) = text.split_once("--\n").expect("both have looked");
    assert!(before.contains(" /proc ") && before == inside, "{text}");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(3), ""));
}

#[test]
fn in_a_container_without_proc_none_is_mounted() {
    if unshare().is_none_or(|words| words.contains(&"--user")) {
        return left_out("/proc is taken away by root alone");
    }
    let script = r#"umount -l /proc && exec "$0" -- sh -c 'echo /proc/*; exit 4'"#;
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]).arg(binary());
    let output = shell.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "/proc/*\n", "{output:?}");
}

#[test]
fn it_is_pid_1_and_has_no_guard() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    let Some(panzer) = pid1(&["--"]) else { return };
    let panzer = panzer.arg(example("probe")).arg(&out).arg("sleep").start();
    let report = Report::wait(&out);
    assert_eq!(report.number("ppid"), 1);
    assert_eq!(report.env_names("PANZER_COOKIE"), Vec::<&str>::new(), "there is no guard that would look for it");
    assert_eq!(panzer.guard(), None);
    assert_eq!(panzer.descendants(), panzer.workers(), "the child is all that there is");
    panzer.signal(libc::SIGTERM);
    assert_eq!(panzer.wait_exit().code(), Some(143));
}

/// Every process from this one down, dead ones too, itself first.
fn tree_pids(root: u32) -> Vec<u32> {
    process::tree(root).iter().map(|found| found.pid).collect()
}

/// The only child of PID 1 that waits, as the probe does once it has made its orphans.
#[track_caller]
fn worker_of(pid1: u32) -> u32 {
    wait_for("the probe sleeps and is alone", || match &process::tree(pid1)[..] {
        [_, worker] if worker.comm == "probe" && worker.state == 'S' => Some(worker.pid),
        _ => None,
    })
}

/// A child that records every signal, and the file that it writes them to.
fn recorder(scratch: &Scratch, options: &[&str]) -> Option<Running> {
    let [out, log] = ["out", "log"].map(|name| scratch.path(name));
    let panzer = pid1(options)?.arg("--").arg(example("probe")).arg(&out).arg(record(&log)).start();
    Report::wait(&out);
    Some(panzer)
}

#[test]
fn every_signal_is_forwarded_though_the_kernel_shields_pid_1() {
    let scratch = Scratch::new();
    let Some(panzer) = recorder(&scratch, &[]) else { return };
    let mut expected = Vec::new();
    for signal in forwardable() {
        panzer.signal(signal);
        expected.extend(forwarded_as(signal));
        wait_recorded(&scratch.path("log"), &expected, &format!("signal {signal} is forwarded"));
    }
    process::send_signal(panzer.workers()[0], libc::SIGKILL);
    assert_eq!(panzer.wait_exit().code(), Some(137));
}

#[test]
fn stop_signals_stop_the_child_and_not_pid_1() {
    let scratch = Scratch::new();
    let Some(panzer) = recorder(&scratch, &[]) else { return };
    let child = panzer.workers()[0];
    for signal in [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU] {
        panzer.signal(signal);
        wait_state(child, true, &format!("signal {signal} stops the child"));
        panzer.signal(libc::SIGCONT);
        wait_state(child, false, "CONT resumes it");
    }
    // panzer, which cannot be stopped, answered without being resumed.
    panzer.signal(libc::SIGTSTP);
    wait_state(child, true, "the child is stopped");
    assert_ne!(process::stat(panzer.panzer_pid()).expect("panzer runs").state, 'T');
    process::send_signal(child, libc::SIGKILL);
    assert_eq!(panzer.wait_exit().code(), Some(137));
}

#[test]
fn a_signal_from_inside_the_namespace_is_forwarded_too() {
    let Some(panzer) = pid1(&["--", "sh", "-c", "kill -TERM 1; sleep 1000"]) else { return };
    assert_eq!(panzer.run().status.code(), Some(143));
}

/// Has a probe make orphans, a thousand at a time, and makes sure that none is left.
#[track_caller]
fn make_orphans(options: &[&str], thousands: u32, status: i32) {
    let Some(panzer) = pid1(options) else { return };
    let actions = (1..=thousands).flat_map(|turn| ["orphans=1000".to_string(), format!("print=thousand {turn}")]);
    let panzer = panzer.arg("--").arg(example("probe")).arg("-").args(actions).arg("sleep").start();
    for turn in 1..=thousands {
        // The report holds the words too, behind `arg=print=`.
        wait_until(&format!("thousand {turn} is made"), || panzer.stdout().contains(&format!("\nthousand {turn}\n")));
    }
    // One look at all of them: the last orphans may not even have ended when all are made.
    let own = panzer.panzer_pid();
    let worker = worker_of(own);
    assert_eq!(tree_pids(own), [own, worker], "neither an orphan nor a zombie comes back");
    panzer.signal(libc::SIGTERM);
    assert_eq!(panzer.wait_exit().code(), Some(status));
    assert_eq!(panzer.stderr(), "");
}

#[test]
fn twenty_thousand_orphans_leave_no_zombie_and_panzer_still_answers() {
    make_orphans(&[], 20, 143);
}

#[test]
fn orphans_leave_no_zombie_in_supervise_mode() {
    make_orphans(&["-q", "-n", "1"], 2, 0);
}

#[test]
fn zombies_that_have_piled_up_are_all_reaped() {
    let scratch = Scratch::new();
    let Some(panzer) = pid1(&["--"]) else { return };
    let script = r#"until [ -e "$1" ]; do sleep 0.01; done; exec "$0" - orphans=3000 print=made sleep"#;
    let panzer = panzer.args(["sh", "-c", script]).arg(example("probe")).arg(scratch.path("go")).start();
    let (own, child) = (panzer.panzer_pid(), panzer.wait_workers(1)[0]);
    // From outside of the namespace it can be held up.
    process::send_signal(own, libc::SIGSTOP);
    wait_state(own, true, "panzer is held up");
    scratch.write("go", "");
    wait_until("all are made", || panzer.stdout().contains("\nmade\n"));
    wait_until("there are three thousand zombies", || process::zombies_of(own).len() >= 3000);
    process::send_signal(own, libc::SIGCONT);
    wait_until("they are all reaped", || process::zombies_of(own).is_empty());
    assert_eq!(panzer.workers(), [child]);
    panzer.signal(libc::SIGTERM);
    assert_eq!(panzer.wait_exit().code(), Some(143));
}

#[test]
fn a_killed_worker_is_replaced_and_term_stops_all() {
    let Some(panzer) = pid1(&["-n", "3", "--", "sleep", "1000"]) else { return };
    let panzer = panzer.start();
    let mut before = panzer.wait_workers(3);
    assert_eq!(panzer.guard(), None);
    for _ in 0..3 {
        process::send_signal(before[0], libc::SIGKILL);
        wait_until("there is another in its place", || {
            let now = panzer.workers();
            now.len() == 3 && !now.contains(&before[0])
        });
        before = panzer.workers();
    }
    assert_eq!(panzer.descendants(), panzer.workers(), "neither a guard nor a zombie");
    panzer.signal(libc::SIGTERM);
    assert_eq!(panzer.wait_exit().code(), Some(0));
}

#[test]
fn a_daemon_that_left_its_session_gets_term_at_the_end_and_can_be_killed_then() {
    // In supervise mode the status says that something had to be killed.
    for (options, now, status) in
        [(&["--linger", "1h"][..], libc::SIGINT, 143), (&["-n", "1", "--linger", "1h"], libc::SIGQUIT, 137)]
    {
        let scratch = Scratch::new();
        let [out, log] = ["out", "log"].map(|name| scratch.path(name));
        let script = r#"setsid --fork "$0" "$1" "record=$2"; exec sleep 1000"#;
        let Some(panzer) = pid1(options) else { return };
        let panzer = panzer.args(["--", "sh", "-c", script]).arg(example("probe")).args([&out, &log]).start();
        let report = Report::wait(&out);
        assert_eq!(report.get("sid"), report.get("pid"));
        panzer.signal(libc::SIGTERM);
        wait_recorded(&log, &[libc::SIGTERM, libc::SIGCONT], &format!("{options:?}: the daemon gets TERM"));
        assert_eq!(panzer.try_exit(), None, "{options:?}: it is given its time");
        panzer.signal(now);
        assert_eq!(panzer.wait_exit().code(), Some(status), "{options:?}");
        wait_until("it was killed", || panzer.leftovers().is_empty());
    }
}

#[test]
fn a_daemon_that_ends_on_term_is_not_waited_for_any_longer() {
    for (options, status) in [(&["--linger", "1h"][..], 143), (&["-n", "2", "--linger", "1h"], 0)] {
        let scratch = Scratch::new();
        let directory = scratch.path("out");
        fs::create_dir(&directory).unwrap();
        let Some(panzer) = pid1(options) else { return };
        let mut out = directory.clone().into_os_string();
        out.push("/");
        let panzer = panzer.arg("--").arg(example("probe")).arg(out).args(["spawn-setsid", "sleep"]).start();
        let count = if status == 0 { 4 } else { 2 };
        wait_until("all report", || fs::read_dir(&directory).unwrap().filter(is_report).count() == count);
        panzer.signal(libc::SIGTERM);
        assert_eq!(panzer.wait_exit().code(), Some(status), "{options:?}");
    }
}

/// Whether this entry is a whole report, not one that is being written.
fn is_report(entry: &std::io::Result<fs::DirEntry>) -> bool {
    entry.as_ref().is_ok_and(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
}

#[test]
fn when_pid_1_is_killed_from_outside_nothing_is_left() {
    for options in [&["--"][..], &["-n", "3", "--"]] {
        let scratch = Scratch::new();
        let directory = scratch.path("out");
        fs::create_dir(&directory).unwrap();
        let mut out = directory.clone().into_os_string();
        out.push("/");
        let Some(panzer) = pid1(options) else { return };
        // Deaf ones, too.
        let actions = ["ignore=15", "spawn-child", "spawn-setsid", "sleep"];
        let panzer = panzer.arg(example("probe")).arg(out).args(actions).start();
        let count = if options.len() > 1 { 9 } else { 3 };
        wait_until("all report", || fs::read_dir(&directory).unwrap().filter(is_report).count() == count);
        // setsid's own process may end later than the one that it made reports.
        let all =
            wait_for("only those that report are left", || Some(panzer.descendants()).filter(|all| all.len() == count));
        panzer.kill();
        panzer.wait_exit();
        wait_until("nothing is left", || panzer.leftovers().is_empty());
        for pid in all {
            assert!(!process::alive(pid), "{pid} is left");
        }
    }
}
