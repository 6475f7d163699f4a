//! What a container may use, and panzer where that is not enough.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::engine::{Container, said};
use crate::support::{process, wait_until};

#[test]
#[ignore = "run by scripts/test-containers"]
fn auto_honours_the_cpus_that_the_container_has() {
    let all = std::thread::available_parallelism().unwrap().get();
    for (limit, value, workers) in
        [("--cpus", "1", 1), ("--cpus", "0.5", 1), ("--cpus", "1.2", 2.min(all)), ("--cpuset-cpus", "0", 1)]
    {
        let options = [limit, value, "--network", "none"];
        let container = Container::start("panzer-tools", &options, &["-n", "auto", "--", "sleep", "1000"]);
        container.wait_line(&format!("workers: {workers} of sleep"));
        container.wait_workers(workers);
    }
}

/// A file of the container's control group, of either version.
fn group_file(container: &Container, controller: &str, file: &str) -> PathBuf {
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", container.pid())).unwrap();
    let find = |name: &str| {
        let mut fields = groups.lines().map(|line| line.splitn(3, ':').collect::<Vec<&str>>());
        fields.find(|fields| fields[1].split(',').any(|one| one == name)).map(|fields| fields[2].to_owned())
    };
    let root = Path::new("/sys/fs/cgroup");
    let (mount, group) = match find(controller) {
        Some(group) => (root.join(controller), group),
        None => (root.to_owned(), find("").expect("it is in a group")),
    };
    mount.join(group.trim_start_matches('/')).join(file)
}

#[test]
#[ignore = "run by scripts/test-containers"]
fn at_the_limit_of_processes_panzer_says_so_and_goes_on_trying() {
    let options = ["--pids-limit", "4", "--network", "none"];
    let args = ["-n", "6", "--ready", "exec", "--backoff", "50ms:200ms", "--", "sleep", "1000"];
    let container = Container::start("panzer-tools", &options, &args);
    container.wait_line("cannot start worker 5: Resource temporarily unavailable; trying again in ");
    container.wait_line("cannot start worker 3: Resource temporarily unavailable; trying again in ");
    // panzer and three workers are four.
    container.wait_workers(3);
    // One that ends has its place taken, if only by one that has waited.
    process::send_signal(container.workers()[0], libc::SIGKILL);
    container.wait_line("was killed by SIGKILL; ");
    container.wait_workers(3);
    let limit = group_file(&container, "pids", "pids.max");
    fs::write(&limit, "100").unwrap_or_else(|error| panic!("{}: {error}", limit.display()));
    container.wait_line("all 6 workers are ready");
    container.wait_workers(6);
    container.must(&["stop", "--time", "50"]);
    assert_eq!(container.status(), 0);
}

#[test]
#[ignore = "run by scripts/test-containers"]
fn a_worker_that_the_kernel_kills_for_want_of_memory_is_named_as_such() {
    let options = ["--memory", "64m", "--network", "none"];
    // Worker 1's first life takes more than there is.
    let script = "if [ $PANZER_WORKER_ID = 1 ] && mkdir /once; then exec probe - eat=200 sleep; fi; exec sleep 1000";
    let args = ["-n", "2", "--ready", "exec", "--backoff", "0:0", "--", "sh", "-c", script];
    let container = Container::start("panzer-tools", &options, &args);
    wait_until("the death is said with its cause", || {
        let log = container.log();
        let line = log.lines().find(|line| line.contains("was killed by SIGKILL"));
        line.is_some_and(|line| {
            assert!(line.contains("worker 1 (pid "), "{line}");
            assert!(line.contains(" was killed by SIGKILL (out of memory); starting a new one"), "{line}");
            true
        })
    });
    let workers = container.wait_workers(2);
    let status = said(&container.exec(&["panzer", "ctl", "status", "--json"]));
    assert!(status.contains("was killed by SIGKILL (out of memory)"), "{status}");
    // The next one is somebody else's doing.
    process::send_signal(workers[0], libc::SIGKILL);
    container.wait_line("was killed by SIGKILL; starting a new one");
    assert_eq!(container.log().matches("out of memory").count(), 1, "{}", container.log());
    container.must(&["stop", "--time", "50"]);
    assert_eq!(container.status(), 0);
}
