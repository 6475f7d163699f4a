//! Containers: podman with the settings of `scripts/setup-containers`, one container a value, gone when that is dropped.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use super::panzer::shell_status;
use super::process;
use super::wait_for;

/// No command of podman's takes longer, but for the build of an image.
const LIMIT_SECS: &str = "60";

/// What `scripts/setup-containers` has made.
pub(crate) fn settings() -> &'static Path {
    static SETTINGS: OnceLock<PathBuf> = OnceLock::new();
    SETTINGS.get_or_init(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/containers");
        assert!(path.join("env").exists(), "containers are not set up: run scripts/setup-containers");
        path
    })
}

/// `podman` with these arguments, not started yet.
pub(crate) fn podman<S: AsRef<str>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new("timeout");
    command.args([LIMIT_SECS, "podman"]).args(args.into_iter().map(|arg| arg.as_ref().to_owned()));
    command.env("CONTAINERS_CONF", settings().join("containers.conf"));
    command.env("CONTAINERS_STORAGE_CONF", settings().join("storage.conf"));
    // Where memory is short, what watches a container leaves a file "oom" in the directory that it was started in.
    command.current_dir(settings());
    command.stdin(Stdio::null());
    command
}

/// Runs podman to its end.
#[track_caller]
pub(crate) fn run<S: AsRef<str>>(args: impl IntoIterator<Item = S>) -> Output {
    podman(args).output().expect("podman can be started")
}

/// What it prints, where it must succeed.
#[track_caller]
pub(crate) fn answer<S: AsRef<str>>(args: impl IntoIterator<Item = S>) -> String {
    let mut command = podman(args);
    let output = command.output().expect("podman can be started");
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// All that was printed.
pub(crate) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A name that no other container has.
pub(crate) fn new_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The workers of a panzer that is a container's first process: all its children that run a command.
pub(crate) fn workers(panzer: u32) -> Vec<u32> {
    let children = process::all().into_iter().filter(|one| one.ppid == panzer && !one.is_dead());
    let mut pids: Vec<u32> = children.filter(|one| !one.comm.starts_with("panzer")).map(|one| one.pid).collect();
    pids.sort_unstable();
    pids
}

/// A container that was started. Dropped, it is removed; on a failure its command line, log and processes are printed.
pub(crate) struct Container {
    name: String,
    words: Vec<String>,
    log: PathBuf,
    pid: u32,
    address: String,
}

impl Container {
    /// Starts one from an image, with options of `podman run`, and a command in the place of the image's.
    #[track_caller]
    pub(crate) fn start(image: &str, options: &[&str], command: &[&str]) -> Container {
        let name = new_name();
        let image = format!("localhost/{image}");
        let words: Vec<String> = ["run", "--detach", "--name", &name]
            .iter()
            .chain(options)
            .chain(&[image.as_str()])
            .chain(command)
            .map(|word| (*word).to_owned())
            .collect();
        let mut container = Container { name, words, log: PathBuf::new(), pid: 0, address: String::new() };
        // An end at once is no failure here: its status is asked for later.
        let output = run(&container.words);
        assert!(output.status.success(), "cannot start the container: {}", said(&output));
        let format = "{{.State.Pid}} {{.HostConfig.LogConfig.Path}} \
                      {{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let known = container.inspect(format);
        let mut words = known.split(' ');
        container.pid = words.next().and_then(|pid| pid.parse().ok()).expect("a process id");
        container.log = PathBuf::from(words.next().expect("the path of the log"));
        container.address = words.next().unwrap_or_default().to_owned();
        container
    }

    /// Its name, for commands that are not run by [`Container::podman`].
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What podman knows of it, by a template.
    #[track_caller]
    pub(crate) fn inspect(&self, format: &str) -> String {
        answer(["container", "inspect", "--format", format, &self.name])
    }

    /// Runs a command of podman's that takes the container's name last.
    #[track_caller]
    pub(crate) fn podman(&self, args: &[&str]) -> Output {
        run(args.iter().chain(&[self.name.as_str()]))
    }

    /// The same, which must succeed.
    #[track_caller]
    pub(crate) fn must(&self, args: &[&str]) {
        let output = self.podman(args);
        assert!(output.status.success(), "podman {args:?}: {}", said(&output));
    }

    /// Runs a command in the container.
    #[track_caller]
    pub(crate) fn exec(&self, command: &[&str]) -> Output {
        run(["exec", &self.name].iter().chain(command))
    }

    /// The process that is PID 1 in there, as it is known out here.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Where a port of it is reached.
    #[track_caller]
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        format!("{}:{port}", self.address).parse().expect("the container has an address")
    }

    /// What was written to its stdout and stderr so far, from the log's own file: asking podman takes 60 ms.
    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        // 2026-11-22T21:00:00.000000000+00:00 stderr F the line
        let lines = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
        lines.fold(String::new(), |all, line| all + line + "\n")
    }

    /// Waits until the log holds this text.
    #[track_caller]
    pub(crate) fn wait_line(&self, text: &str) {
        wait_for(&format!("the log holds {text:?}"), || self.log().contains(text).then_some(()));
    }

    /// The workers, as processes out here.
    pub(crate) fn workers(&self) -> Vec<u32> {
        workers(self.pid)
    }

    /// Waits until there are so many.
    #[track_caller]
    pub(crate) fn wait_workers(&self, count: usize) -> Vec<u32> {
        wait_for(&format!("there are {count} workers"), || Some(self.workers()).filter(|found| found.len() == count))
    }

    /// Waits for its end and says with which status.
    #[track_caller]
    pub(crate) fn status(&self) -> i32 {
        let text = answer(["wait", &self.name]);
        text.parse().unwrap_or_else(|_| panic!("podman wait said {text:?}"))
    }

    fn print_state(&self) {
        eprintln!("--- command: podman {}", self.words.join(" "));
        eprintln!("--- log:\n{}", said(&self.podman(&["logs"])));
        eprintln!("--- processes: pid ppid pgid state comm command");
        for one in process::tree(self.pid).iter().filter(|_| self.pid != 0) {
            let command = process::command_line(one.pid);
            eprintln!("{} {} {} {} {} {command}", one.pid, one.ppid, one.pgid, one.state, one.comm);
        }
        eprintln!("---");
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if thread::panicking() {
            self.print_state();
        }
        drop(Removed(std::mem::take(&mut self.name)));
    }
}

/// The name of a container that is there no more once this is dropped.
pub(crate) struct Removed(pub(crate) String);

impl Drop for Removed {
    fn drop(&mut self) {
        let removed = run(["rm", "--force", "--ignore", "--time", "0", &self.0]);
        let well = removed.status.success() || thread::panicking();
        assert!(well, "cannot remove the container: {}", said(&removed));
    }
}

/// Runs a container to its end and gives back its status and what it has printed.
#[track_caller]
pub(crate) fn run_once(image: &str, options: &[&str], command: &[&str]) -> (i32, String) {
    let image = format!("localhost/{image}");
    let output =
        run(["run", "--rm", "--network", "none"].iter().chain(options).chain(&[image.as_str()]).chain(command));
    (shell_status(output.status), said(&output))
}
