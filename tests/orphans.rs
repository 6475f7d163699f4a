//! When panzer dies, whatever it died of, everything that it started is gone too.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::binders::left_out;
use crate::support::load::{Load, LoadOptions};
use crate::support::panzer::Running;
use crate::support::random::Random;
use crate::support::report::Report;
use crate::support::scratch::Scratch;
use crate::support::worker::{panzer, probe, sh, text, wait_reports};
use crate::support::{example, holds_for, process, wait_for, wait_until};

// In the schedules here stand USR1 and USR2, since INT and QUIT are ignored in what a shell has started with `&`.

const SLEEP: [&str; 2] = ["sleep", "100000"];

/// A directory for reports.
fn reports_in(scratch: &Scratch) -> PathBuf {
    let path = scratch.path("reports");
    fs::create_dir(&path).unwrap();
    path
}

/// A worker with a child in its group and another that escaped from it; all of them deaf if asked.
fn family(directory: &Path, deaf: bool) -> Vec<String> {
    let outfile = format!("{}/", directory.display());
    // An ignored signal stays ignored in the processes that are started.
    let deaf: &[&str] = if deaf { &["ignore=15", "ignore=2"] } else { &[] };
    probe(&outfile, &[deaf, &["spawn-child", "spawn-setsid", "sleep"]].concat())
}

/// Waits until everything that panzer had started is gone, the guard too.
#[track_caller]
fn wait_all_gone(running: &Running) {
    running.wait_exit();
    wait_until("all of panzer's processes are gone", || running.leftovers().is_empty());
}

/// Waits for a guard other than this one.
#[track_caller]
fn wait_new_guard(running: &Running, old: u32) -> u32 {
    wait_for("there is another guard", || running.guard().filter(|guard| *guard != old))
}

#[track_caller]
fn wait_guard(running: &Running) -> u32 {
    wait_new_guard(running, 0)
}

// kill -9 of panzer

#[test]
fn after_a_kill_of_panzer_workers_their_children_and_what_escaped_are_gone() {
    for options in ["-n 3", "-n 3 --stop TERM/1/KILL", "-n 3 --stop USR1/100000/KILL", ""] {
        let scratch = Scratch::new();
        let directory = reports_in(&scratch);
        let running = panzer(options, &family(&directory, false)).start();
        wait_reports(&directory, if options.is_empty() { 3 } else { 9 });
        wait_guard(&running);
        running.kill();
        wait_all_gone(&running);
        assert!(running.stderr().contains("panzer is gone; stopping "), "{options}: {}", running.stderr());
    }
}

#[test]
fn after_a_kill_of_panzer_deaf_workers_are_killed_at_the_end_of_the_schedule() {
    for (options, count) in [("-n 2 --stop TERM/1/INT/1/KILL", 6), ("--stop TERM/1/KILL", 3), ("--linger 1s", 3)] {
        let scratch = Scratch::new();
        let directory = reports_in(&scratch);
        let running = panzer(options, &family(&directory, true)).start();
        wait_reports(&directory, count);
        wait_guard(&running);
        running.kill();
        wait_all_gone(&running);
    }
}

#[test]
fn the_guard_sends_each_signal_of_the_schedule() {
    let scratch = Scratch::new();
    let (report, record) = (scratch.path("report"), scratch.path("record"));
    // In a session of its own, so that the kernel's own signal does not reach it.
    let escaped = probe(&text(&report), &[&format!("record={}", record.display())]).join(" ");
    let worker = sh(&format!("setsid --fork {escaped}; exec sleep 100000"));
    let running = panzer("-n 1 --stop INT/3/TERM/4/KILL", &worker).start();
    wait_until("the process that escaped runs", || report.exists());
    wait_guard(&running);
    running.kill();
    wait_all_gone(&running);
    let signals = crate::support::report::recorded(&record);
    assert_eq!(signals, [libc::SIGINT, libc::SIGCONT, libc::SIGTERM, libc::SIGCONT]);
}

#[test]
fn after_a_kill_of_panzer_stopped_processes_are_gone_too() {
    let scratch = Scratch::new();
    let directory = reports_in(&scratch);
    let running = panzer("-n 2 --stop TERM/100000/KILL", &family(&directory, false)).start();
    let started = wait_reports(&directory, 6);
    wait_guard(&running);
    for pid in started.keys() {
        process::send_signal(*pid, libc::SIGSTOP);
        wait_until("it is stopped", || process::stat(*pid).is_some_and(|one| one.state == 'T'));
    }
    running.kill();
    wait_all_gone(&running);
}

#[test]
fn a_kill_of_panzer_at_any_moment_of_its_start_leaves_nobody() {
    let mut random = Random::new();
    for round in 0..60 {
        let options = if round % 2 == 0 { "-n 6 --stop TERM/1/KILL" } else { "" };
        let running = panzer(options, &SLEEP).start();
        random.spin(Duration::from_millis(12));
        running.kill();
        wait_all_gone(&running);
    }
}

#[test]
fn a_kill_of_panzer_in_the_middle_of_a_crash_loop_leaves_nobody() {
    let mut random = Random::new();
    for _ in 0..15 {
        let worker = sh("sleep 100000 & setsid --fork sleep 100000; exit 1");
        let running = panzer("-n 2 --crash-limit 0 --backoff 0:0 --stop TERM/1/KILL", &worker).start();
        wait_guard(&running);
        running.wait_lines("ended with status 1", 1);
        random.spin(Duration::from_millis(20));
        running.kill();
        wait_all_gone(&running);
    }
}

#[test]
fn a_kill_of_panzer_in_the_middle_of_a_stop_leaves_nobody() {
    let scratch = Scratch::new();
    let directory = reports_in(&scratch);
    let running = panzer("-n 2 --stop TERM/2/KILL", &family(&directory, true)).start();
    wait_reports(&directory, 6);
    wait_guard(&running);
    running.signal(libc::SIGTERM);
    running.wait_line("SIGTERM: stopping 2 workers");
    running.kill();
    wait_all_gone(&running);
}

// As PID 1, and beside one

/// A wrapper that makes what follows PID 1 of a new namespace, where that is possible.
fn as_pid1() -> Option<Vec<String>> {
    let words: &[&str] = if rustix::process::geteuid().is_root() {
        &["unshare", "--pid", "--fork", "--mount-proc"]
    } else {
        &["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    };
    let works = Command::new(words[0]).args(&words[1..]).arg("true").output().is_ok_and(|done| done.status.success());
    works.then(|| words.iter().map(ToString::to_string).collect())
}

#[test]
fn after_a_kill_of_panzer_as_pid_1_the_whole_namespace_is_gone() {
    let Some(wrapper) = as_pid1() else {
        return left_out("PID 1: this user may make no PID namespace");
    };
    for options in ["-n 2", ""] {
        let scratch = Scratch::new();
        let directory = reports_in(&scratch);
        let running = panzer(options, &family(&directory, true)).wrapper(&wrapper).start();
        wait_reports(&directory, if options.is_empty() { 3 } else { 6 });
        assert_eq!(running.guard(), None, "PID 1 needs no guard");
        running.kill();
        wait_all_gone(&running);
    }
}

#[test]
fn after_a_kill_of_panzer_beside_another_pid_1_its_processes_are_gone() {
    let Some(mut wrapper) = as_pid1() else {
        return left_out("PID 1: this user may make no PID namespace");
    };
    // This PID 1 reaps nobody but its own children, and stays.
    wrapper.extend(sh("\"$@\" & wait; exec sleep 100000"));
    wrapper.push("sh".to_string());
    let scratch = Scratch::new();
    let directory = reports_in(&scratch);
    let running = panzer("-n 2 --stop TERM/1/KILL", &family(&directory, true)).wrapper(&wrapper).start();
    wait_reports(&directory, 6);
    wait_guard(&running);
    // What has made the one in a session of its own may not have ended yet.
    let panzer_processes =
        wait_for("the guard, and three for each worker", || Some(running.descendants()).filter(|all| all.len() == 7));
    running.kill();
    wait_until("all of panzer's processes are gone", || !panzer_processes.iter().any(|pid| process::alive(*pid)));
}

// The guard itself

#[test]
fn after_the_guard_was_killed_first_the_next_one_clears_up() {
    for (options, count) in [("-n 2 --stop TERM/1/KILL", 6), ("--linger 1s", 3)] {
        for deaf in [false, true] {
            let scratch = Scratch::new();
            let directory = reports_in(&scratch);
            let running = panzer(options, &family(&directory, deaf)).start();
            let started = wait_reports(&directory, count);
            let mut guard = wait_guard(&running);
            for _ in 0..3 {
                process::send_signal(guard, libc::SIGKILL);
                guard = wait_new_guard(&running, guard);
            }
            assert!(started.keys().all(|pid| process::alive(*pid)), "they are left alone meanwhile");
            running.kill();
            wait_all_gone(&running);
        }
    }
}

#[test]
fn a_guard_that_dies_together_with_panzer_leaves_no_worker_that_heeds_term() {
    // Nobody is left then but the kernel, which tells each worker, not the children it has.
    let mut random = Random::new();
    for round in 0..60 {
        let running = panzer("-n 3 --ready exec", &SLEEP).start();
        let workers: Vec<u32> = running.wait_slots(3).into_values().collect();
        let guard = wait_guard(&running);
        let first_guard = random.below(2) == 0;
        println!("round {round}: the guard {} panzer", if first_guard { "before" } else { "after" });
        if first_guard {
            process::send_signal(guard, libc::SIGKILL);
            random.spin(Duration::from_millis(3));
            running.kill();
        } else {
            running.kill();
            random.spin(Duration::from_millis(3));
            process::send_signal(guard, libc::SIGKILL);
        }
        running.wait_exit();
        wait_until("the workers are gone", || !workers.iter().any(|pid| process::alive(*pid)));
        wait_until("all of panzer's processes are gone", || running.leftovers().is_empty());
    }
}

#[test]
fn a_healthy_panzer_loses_no_worker_and_no_request_to_its_guards_deaths() {
    let running = panzer("-n 3 -l 127.0.0.1:0 --ready exec", &[text(example("hello"))]).start();
    let workers = running.wait_slots(3);
    let address = SocketAddr::from(([127, 0, 0, 1], running.port()));
    let load = Load::start(address, LoadOptions::default());
    let mut guard = wait_guard(&running);
    for _ in 0..50 {
        let before = load.count();
        process::send_signal(guard, libc::SIGKILL);
        guard = wait_new_guard(&running, guard);
        wait_until("requests are answered", || load.count() > before);
    }
    let report = load.stop();
    println!("{report}");
    assert_eq!(report.lost(), 0, "{report}");
    assert_eq!(running.slots(), workers, "the same processes still");
    assert!(process::zombies_of(running.pid()).is_empty(), "dead guards are reaped");
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn the_guard_ignores_what_is_meant_for_panzer() {
    let running = panzer("-n 1 --ready exec", &SLEEP).start();
    running.wait_slots(1);
    let guard = wait_guard(&running);
    for signal in (1..=64).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)) {
        process::send_signal(guard, signal);
    }
    holds_for(Duration::from_millis(200), "the guard lives", || running.guard() == Some(guard));
    assert_ne!(process::stat(guard).unwrap().pgid, process::stat(running.pid()).unwrap().pgid);
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_stopped_guard_does_not_hold_panzer_up_however_many_workers_die() {
    let running = panzer("-n 4 -q --crash-limit 0 --backoff 0:0 --ready exec", &sh("exit 1")).start();
    let guard = wait_guard(&running);
    wait_until("the guard has let go of the rest", || descriptors_of_guard(guard).len() == 2);
    // The guard's pipe is made as small as it can be, so that it is full the sooner.
    let of_guard = |(number, target, _): &(u32, String, i32)| *number != 2 && target.starts_with("pipe:");
    let (number, _, _) = descriptors(guard).into_iter().find(of_guard).unwrap();
    let pipe = fs::File::open(format!("/proc/{guard}/fd/{number}")).unwrap();
    // While more than that is in it the kernel says EBUSY: then it fills up at its own size.
    let _ = rustix::pipe::fcntl_setpipe_size(&pipe, 4096);
    drop(pipe);
    process::send_signal(guard, libc::SIGSTOP);
    running.wait_line("the guard died; starting another");
    let dead = running.stderr().matches("ended with status 1").count();
    running.wait_lines("ended with status 1", dead + 500);
    println!("{} workers had died when the stopped guard's pipe was full", dead);
    wait_new_guard(&running, guard);
    assert!(!process::alive(guard), "the stopped one was done away with");
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn a_stopped_guard_does_not_hold_a_stop_up() {
    let running = panzer("-n 2", &SLEEP).start();
    running.wait_slots(2);
    process::send_signal(wait_guard(&running), libc::SIGSTOP);
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn the_guard_holds_nothing_but_its_pipe_and_stderr() {
    let running = panzer("-n 2 -l 127.0.0.1:0 -l udp://127.0.0.1:0", &SLEEP).start();
    let workers = running.wait_slots(2);
    let first = wait_guard(&running);
    process::send_signal(first, libc::SIGKILL);
    let guard = wait_new_guard(&running, first);
    let held = wait_for("the guard has let go of the rest", || {
        let held = descriptors_of_guard(guard);
        (held.len() == 2).then_some(held)
    });
    let (_, pipe, access) = held.iter().find(|(number, _, _)| *number != 2).unwrap();
    assert!(held.iter().any(|(number, _, _)| *number == 2), "{held:?}");
    assert_eq!((pipe.starts_with("pipe:"), *access), (true, libc::O_RDONLY), "{held:?}");
    for worker in workers.values() {
        assert!(descriptors(*worker).iter().all(|(_, target, _)| target != pipe), "a worker holds the guard's pipe");
    }
    assert_eq!(fs::read_link(format!("/proc/{guard}/cwd")).unwrap(), Path::new("/"));
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn who_reads_panzers_stdout_finds_its_end_even_while_the_guard_is_stopped() {
    let wrapper = sh("\"$@\" | cat; echo the reader has ended >&2");
    let running = panzer("-n 2 --ready exec", &SLEEP).wrapper([&wrapper[..], &["sh".to_string()]].concat()).start();
    running.wait_slots(2);
    let guard = wait_guard(&running);
    wait_until("the guard has let go of the rest", || descriptors_of_guard(guard).len() == 2);
    process::send_signal(guard, libc::SIGSTOP);
    running.kill();
    running.wait_line("the reader has ended");
    process::send_signal(guard, libc::SIGCONT);
    wait_until("the guard ends", || !process::alive(guard));
}

// The parent-death pipe

/// The open descriptors of a process: number, target, how it is opened.
fn descriptors(pid: u32) -> Vec<(u32, String, i32)> {
    let list = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    list.filter_map(|entry| {
        let entry = entry.ok()?;
        let number: u32 = entry.file_name().to_str()?.parse().ok()?;
        let target = text(fs::read_link(entry.path()).ok()?);
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
        Some((number, target, i32::from_str_radix(flags.trim(), 8).ok()? & libc::O_ACCMODE))
    })
    .collect()
}

/// The same without the epoll instance by which it waits.
fn descriptors_of_guard(guard: u32) -> Vec<(u32, String, i32)> {
    descriptors(guard).into_iter().filter(|(_, target, _)| target != "anon_inode:[eventpoll]").collect()
}

#[test]
fn a_worker_finds_the_end_of_the_parent_death_pipe_when_panzer_dies() {
    let scratch = Scratch::new();
    let (ready, seen) = (text(scratch.path("ready")), text(scratch.path("seen")));
    // Deaf, so that nothing else ends it. The guard waits longer than that takes.
    let worker = sh(&format!(
        "trap '' TERM; : >{ready}.$PANZER_WORKER_ID; read line <&$PANZER_PARENT_FD; echo $? >{seen}.$PANZER_WORKER_ID"
    ));
    let running = panzer("-n 2 -l 127.0.0.1:0 --stop TERM/100000/KILL", &worker).start();
    for slot in 0..2 {
        wait_until("the worker runs", || Path::new(&format!("{ready}.{slot}")).exists());
    }
    holds_for(Duration::from_millis(200), "there is no end while panzer lives", || {
        !Path::new(&format!("{seen}.0")).exists()
    });
    running.kill();
    running.wait_exit();
    for slot in 0..2 {
        wait_until("the worker has found the end", || {
            fs::read_to_string(format!("{seen}.{slot}")).is_ok_and(|status| status == "1\n")
        });
    }
    wait_until("all of panzer's processes are gone", || running.leftovers().is_empty());
}

#[test]
fn nobody_but_panzer_holds_the_write_end_of_the_parent_death_pipe() {
    let scratch = Scratch::new();
    let directory = reports_in(&scratch);
    let running = panzer("-n 3 --ready exec --backoff 0:0", &family(&directory, false)).start();
    let given = wait_reports(&directory, 9);
    running.kill_worker(1);
    let first = wait_guard(&running);
    process::send_signal(first, libc::SIGKILL);
    let guard = wait_new_guard(&running, first);
    wait_until("the guard has let go of the rest", || descriptors_of_guard(guard).len() == 2);
    running.wait_slots(3);
    let any = given.values().next().unwrap();
    let number: u32 = any.env("PANZER_PARENT_FD").unwrap().parse().unwrap();
    let pipe = any.descriptors().into_iter().find(|descriptor| descriptor.number == number).unwrap().target;
    let holders: Vec<(u32, u32)> = process::all()
        .into_iter()
        .filter(|one| !one.is_dead() && fs::read_dir(format!("/proc/{}/fd", one.pid)).is_ok())
        .flat_map(|one| descriptors(one.pid).into_iter().map(move |descriptor| (one.pid, descriptor)))
        .filter(|(_, (_, target, access))| *target == pipe && *access != libc::O_RDONLY)
        .map(|(pid, (number, _, _))| (pid, number))
        .collect();
    assert_eq!(holders.len(), 1, "{holders:?}");
    assert_eq!(holders[0].0, running.pid());
    let readers =
        running.slots().values().filter(|pid| descriptors(**pid).iter().any(|(_, target, _)| *target == pipe)).count();
    assert_eq!(readers, 3, "the check has looked at the right pipe");
    running.ends_with(libc::SIGTERM, 0);
}

#[test]
fn the_kernel_tells_each_worker_the_first_signal_of_the_schedule() {
    for (options, signal) in [("-n 1", "15"), ("-n 1 --stop USR2/30/TERM/5/KILL", "12"), ("", "15")] {
        let scratch = Scratch::new();
        let report = scratch.path("report");
        let running = panzer(options, &probe(&text(&report), &["sleep"])).start();
        let given = wait_for("the worker reports", || Report::read(&report));
        assert_eq!(given.get("pdeathsig"), signal, "{options}");
        running.signal(libc::SIGTERM);
        running.wait_exit();
    }
}

#[test]
fn the_workers_of_a_panzer_inside_a_worker_are_not_left_either() {
    let scratch = Scratch::new();
    let directory = reports_in(&scratch);
    let inner = family(&directory, true);
    let mut command = vec![text(crate::support::panzer::binary())];
    command.extend(["-n", "2", "--stop", "TERM/1/KILL", "--"].map(str::to_owned));
    command.extend(inner);
    let running = panzer("-n 1 --stop TERM/1/KILL", &command).start();
    wait_reports(&directory, 6);
    running.kill();
    wait_all_gone(&running);
}

#[test]
fn what_forks_without_end_does_not_outlive_a_stop() {
    // Each process starts the next one, in the same group, and ends: no list of processes is ever complete.
    let chain = r#"trap "" TERM; f() { (sleep 0.01; f) & }; f; exit"#;
    let script = format!("setsid sh -c '{chain}' & sleep 100000");
    let running = panzer("-n 1 --linger 100ms", &sh(&script)).start();
    running.wait_slots(1);
    running.signal(libc::SIGTERM);
    running.wait_exit();
    wait_until("the chain is broken", || running.leftovers().is_empty());
}

#[test]
fn in_a_namespace_without_a_proc_of_its_own_the_groups_are_cleared() {
    if !rustix::process::geteuid().is_root() {
        return left_out("only root may make a PID namespace");
    }
    // A shell is PID 1, so that panzer is not; /proc shows the numbers of the namespace outside.
    let scratch = Scratch::new();
    let ready = text(scratch.path("ready"));
    let worker = format!("trap '' TERM; : >'{ready}'; while :; do sleep 0.1; done");
    let script = format!(
        r#""$0" -n 1 --stop TERM/1/KILL -- sh -c "$1" & until [ -e '{ready}' ]; do sleep 0.01; done; kill -9 $!; wait; sleep 100000"#
    );
    let mut outside = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "sh", "-c", &script])
        .arg(crate::support::panzer::binary())
        .arg(&worker)
        .env("CHAIN_COOKIE", &ready)
        .spawn()
        .unwrap();
    let of_worker = || {
        let own = |stat: &process::Stat| process::command_line(stat.pid).contains("while :; do");
        let ours = |stat: &process::Stat| {
            process::environ(stat.pid).is_some_and(|all| all.get("CHAIN_COOKIE") == Some(&ready))
        };
        process::all()
            .into_iter()
            .filter(|stat| !stat.is_dead() && stat.comm == "sh" && own(stat) && ours(stat))
            .count()
    };
    wait_until("the worker runs", || Path::new(&ready).exists());
    wait_until("only PID 1 still names the worker's script", || of_worker() <= 1);
    outside.kill().unwrap();
    outside.wait().unwrap();
}
