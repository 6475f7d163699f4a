//! The process that serves metrics: what it may do, and that nobody depends on it.

use std::fs;
use std::path::Path;

use super::{answer, metrics, scrape, served, wait_metrics};
use crate::support::binders::{is_root, left_out};
use crate::support::control::{rows, states};
use crate::support::http::get;
use crate::support::lives::READY;
use crate::support::panzer::Running;
use crate::support::{process, wait_for, wait_until};

#[track_caller]
fn child(running: &Running) -> u32 {
    wait_for("there is a process for the metrics", || running.metrics_child())
}

#[test]
fn what_serves_the_metrics_can_do_nothing() {
    let (service, addr) = served("-n 2 --ready fd -l 127.0.0.1:0", READY);
    scrape(&addr);
    let pid = child(&service.running);
    let field = |name: &str| process::status_field(pid, name).unwrap();
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2", "a filter of system calls");
    if is_root() {
        let ids = ["65534"; 4].join("\t");
        assert_eq!((field("Uid"), field("Gid"), field("Groups")), (ids.clone(), ids, String::new()));
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
        let targets = targets(pid);
        assert!(targets.len() <= 6, "only what it needs: {targets:?}");
        let stderr = fs::read_link(format!("/proc/{}/fd/2", service.running.panzer_pid())).unwrap();
        let is_others = |target: &&String| target.starts_with("pipe:") && Path::new(target) != stderr;
        assert_eq!(targets.iter().find(is_others), None, "nothing of the workers: {targets:?}");
    } else {
        left_out("what serves the metrics gives up root: only root can");
    }
    let stat = process::stat(pid).unwrap();
    assert_eq!(stat.pgid, pid, "a group of its own");
    for worker in service.running.workers() {
        let sockets = targets(worker).iter().filter(|target| target.starts_with("socket:")).count();
        assert_eq!(sockets, 1, "its listener and nothing of the metrics: {:?}", targets(worker));
    }
    service.end();
}

/// What the descriptors of a process are.
fn targets(pid: u32) -> Vec<String> {
    let all = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    all.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.to_str()?.to_string())).collect()
}

#[test]
fn when_it_is_killed_another_comes_and_no_worker_notices() {
    let (service, addr) = served("-n 2 --ready fd --backoff 0:0", READY);
    let lives = service.running.wait_generation(1, 2);
    let descriptors = service.running.descriptors();
    for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGSEGV, libc::SIGHUP, libc::SIGKILL] {
        let pid = child(&service.running);
        // It may not care, but for the last one.
        process::send_signal(pid, signal);
        process::send_signal(pid, libc::SIGKILL);
        wait_until("it is another one", || service.running.metrics_child().is_some_and(|other| other != pid));
        // The listener is panzer's: nobody is refused meanwhile.
        assert_eq!(metrics(&addr).number("panzer_workers{state=\"ready\"}"), 2);
        assert_eq!(service.running.lives(), lives);
    }
    wait_until("no descriptor was lost", || service.running.descriptors() <= descriptors);
    assert!(process::zombies_of(service.running.panzer_pid()).is_empty());
    let status = service.running.status();
    assert!(status.get("restarts").names().iter().all(|name| status.get("restarts").get(name).number() == 0));
    service.end();
}

#[test]
fn it_is_gone_with_panzer() {
    for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGQUIT] {
        let (service, addr) = served("-n 2 --ready fd", READY);
        scrape(&addr);
        let pid = child(&service.running);
        service.running.signal(signal);
        service.running.wait_exit();
        wait_until("it is gone", || !process::alive(pid));
        get(&addr, "/livez").expect_err("nothing serves there any more");
        assert_eq!(service.running.count_lines(&["left behind"]), 0, "it is not taken for an orphan");
        wait_until("nothing is left", || service.running.leftovers().is_empty());
    }
}

#[test]
fn it_serves_until_the_last_worker_has_stopped() {
    let (service, addr) =
        served("-n 2 --ready fd --stop TERM/1000/KILL", "exec $PROBE - ignore=15 ready sleep >/dev/null");
    service.running.signal(libc::SIGTERM);
    wait_metrics(&addr, "both are stopping", |metrics| metrics.number("panzer_workers{state=\"stopping\"}") == 2);
    assert_eq!(answer(&addr, "/livez", "").status, 200);
    service.running.ends_with(libc::SIGQUIT, 137);
}

#[test]
fn it_is_no_worker() {
    let (service, addr) = served("-n 2 --ready fd --linger 1h", READY);
    scrape(&addr);
    let pid = u64::from(child(&service.running));
    let status = service.running.status();
    assert_eq!(status.get("workers").list().len(), 2);
    for slot in 0..2 {
        assert_eq!(states(&status, slot), ["ready"]);
        assert_ne!(rows(&status, slot)[0].get("pid").number(), pid);
        assert_eq!(rows(&status, slot)[0].get("processes").number(), 1);
    }
    // An orphan is waited for, for an hour; what serves metrics is none.
    service.end();
}
