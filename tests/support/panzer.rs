//! Starts panzer, collects what it writes, and makes sure that nothing of it stays behind.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::process::{self, Stat};
use super::{deadline_or, wait_for};

/// The variable that marks all that a test starts. panzer passes it on as any other.
const COOKIE: &str = "TEST_COOKIE";
/// How long panzer may take to end.
const EXIT_DEADLINE: Duration = Duration::from_secs(30);
/// How long the rest of the output, and the last processes, may take after the end of panzer.
const GRACE: Duration = Duration::from_secs(2);
/// The variables that would reach panzer or a worker from around the tests.
const REMOVED_PREFIXES: [&str; 5] = ["PANZER_", "LISTEN_", "WATCHDOG_", "SERVER_STARTER_", "EINHORN_"];

/// The program under test: `PANZER_BIN`, or the one that cargo built.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("PANZER_BIN").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_panzer")), PathBuf::from)
}

/// How panzer shall be started.
#[must_use]
pub(crate) struct Panzer {
    args: Vec<OsString>,
    wrapper: Vec<OsString>,
    /// Variables that are set, or removed where there is no value, in order.
    env: Vec<(OsString, Option<OsString>)>,
    cwd: Option<PathBuf>,
    stdin: Stdio,
}

impl Panzer {
    /// Starts panzer with these arguments.
    pub(crate) fn new<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Panzer {
        Panzer { args: Vec::new(), wrapper: Vec::new(), env: Vec::new(), cwd: None, stdin: Stdio::null() }.args(args)
    }

    /// Adds one argument.
    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Panzer {
        self.args.push(arg.as_ref().to_os_string());
        self
    }

    /// Adds arguments.
    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Panzer {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_os_string()));
        self
    }

    /// Sets an environment variable.
    pub(crate) fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Panzer {
        let value = Some(value.as_ref().to_os_string());
        self.env.push((name.as_ref().to_os_string(), value));
        self
    }

    /// Removes an environment variable.
    pub(crate) fn env_remove(mut self, name: impl AsRef<OsStr>) -> Panzer {
        self.env.push((name.as_ref().to_os_string(), None));
        self
    }

    /// Gives panzer this standard input instead of `/dev/null`.
    pub(crate) fn stdin(mut self, stdin: impl Into<Stdio>) -> Panzer {
        self.stdin = stdin.into();
        self
    }

    /// Starts panzer in this directory.
    pub(crate) fn cwd(mut self, directory: impl AsRef<Path>) -> Panzer {
        self.cwd = Some(directory.as_ref().to_path_buf());
        self
    }

    /// Starts panzer through another command, such as `unshare --pid --fork`.
    pub(crate) fn wrapper<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Panzer {
        self.wrapper.extend(words.into_iter().map(|word| word.as_ref().to_os_string()));
        self
    }

    /// Starts it, in a process group of its own.
    #[track_caller]
    pub(crate) fn start(self) -> Running {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let cookie = format!("panzer-test-{}-{number}", std::process::id());

        let mut words = self.wrapper.clone();
        words.push(binary().into_os_string());
        words.extend(self.args);
        let (program, args) = words.split_first().expect("there is at least the program");
        let mut command = Command::new(program);
        command.args(args).stdin(self.stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text == "NOTIFY_SOCKET" || REMOVED_PREFIXES.iter().any(|p| text.starts_with(p)) {
                command.env_remove(&name);
            }
        }
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env(COOKIE, &cookie);
        if let Some(directory) = &self.cwd {
            command.current_dir(directory);
        }
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        let stdout = Collected::from_pipe(child.stdout.take());
        let stderr = Collected::from_pipe(child.stderr.take());
        Running {
            pid: child.id(),
            wrapped: !self.wrapper.is_empty(),
            panzer_pid: OnceLock::new(),
            state: Mutex::new(State { child, status: None }),
            stdout,
            stderr,
            cookie,
            words,
        }
    }

    /// Runs it to its end, which must come within 30 seconds.
    #[track_caller]
    pub(crate) fn run(self) -> Output {
        let running = self.start();
        let status = running.wait_exit();
        Output { status, stdout: running.stdout(), stderr: running.stderr() }
    }
}

/// What a finished run left.
#[derive(Debug)]
pub(crate) struct Output {
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// All of its standard output.
    pub(crate) stdout: String,
    /// All of its standard error.
    pub(crate) stderr: String,
}

/// Output that a thread collects.
#[derive(Clone, Default)]
struct Collected {
    text: Arc<Mutex<CollectedText>>,
    ended: Arc<Condvar>,
}

#[derive(Default)]
struct CollectedText {
    bytes: Vec<u8>,
    ended: bool,
}

impl Collected {
    /// Starts the thread, which reads until nobody has the pipe open any more.
    fn from_pipe(pipe: Option<impl Read + Send + 'static>) -> Collected {
        let collected = Collected::default();
        let mut pipe = pipe.expect("the output is a pipe");
        let writer = collected.clone();
        thread::spawn(move || {
            let mut buffer = [0_u8; 4096];
            loop {
                let count = pipe.read(&mut buffer).unwrap_or(0);
                let mut text = lock(&writer.text);
                text.bytes.extend(buffer.iter().take(count));
                if count == 0 {
                    text.ended = true;
                    writer.ended.notify_all();
                    break;
                }
            }
        });
        collected
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.text).bytes).into_owned()
    }

    /// Waits until the pipe is closed everywhere, but not for ever: a process that was left behind
    /// may hold it. Whether it is.
    fn wait_for_end(&self, limit: Duration) -> bool {
        let text = lock(&self.text);
        let waited = self.ended.wait_timeout_while(text, limit, |text| !text.ended);
        !waited.unwrap_or_else(|poisoned| poisoned.into_inner()).1.timed_out()
    }
}

/// Locks, whatever a thread that panicked did.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

struct State {
    child: Child,
    /// Set once the child is reaped: its pid may then belong to another.
    status: Option<ExitStatus>,
}

/// panzer while it runs.
///
/// When this is dropped, every process that panzer started is killed. After a normal end of panzer,
/// one that the test waited for, there must be none, else the test fails. When the test is failing
/// already, what panzer wrote and its processes are printed.
pub(crate) struct Running {
    pid: u32,
    wrapped: bool,
    panzer_pid: OnceLock<u32>,
    state: Mutex<State>,
    stdout: Collected,
    stderr: Collected,
    cookie: String,
    words: Vec<OsString>,
}

impl Running {
    /// The process id of what was started: panzer, or the wrapper.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// The process id of panzer itself; behind a wrapper it is waited for.
    #[track_caller]
    pub(crate) fn panzer_pid(&self) -> u32 {
        if !self.wrapped {
            return self.pid;
        }
        if let Some(pid) = self.panzer_pid.get() {
            return *pid;
        }
        let pid = wait_for("panzer runs behind its wrapper", || {
            process::tree(self.pid).iter().find(|process| is_panzer(process)).map(|found| found.pid)
        });
        *self.panzer_pid.get_or_init(|| pid)
    }

    /// Sends a signal, 1 to 64, to panzer. Nothing happens when it was already waited for.
    #[track_caller]
    pub(crate) fn signal(&self, signal: i32) {
        let pid = self.panzer_pid();
        let state = lock(&self.state);
        if state.status.is_none() {
            // Behind a wrapper panzer may be gone before the wrapper is.
            let sent = process::send_signal(pid, signal);
            assert!(sent || self.wrapped, "cannot send signal {signal} to {pid}");
        }
    }

    /// Sends KILL to panzer.
    #[track_caller]
    pub(crate) fn kill(&self) {
        self.signal(libc::SIGKILL);
    }

    /// What panzer and its workers have written to standard output so far.
    pub(crate) fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What panzer and its workers have written to standard error so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits until standard error holds this text.
    #[track_caller]
    pub(crate) fn wait_line(&self, text: &str) {
        self.wait_lines(text, 1);
    }

    /// Waits until standard error holds this text at least so many times.
    #[track_caller]
    pub(crate) fn wait_lines(&self, text: &str, count: usize) {
        wait_for(&format!("standard error holds {text:?} {count} times"), || {
            // The order matters: what an ended panzer wrote is all there.
            let ended = self.try_exit().is_some();
            if ended {
                self.wait_for_output();
            }
            let found = self.stderr().matches(text).count() >= count;
            assert!(found || !ended, "panzer has ended without {text:?} ({count} times)");
            found.then_some(())
        });
    }

    /// How panzer (or the wrapper) has ended, or None while it runs.
    pub(crate) fn try_exit(&self) -> Option<ExitStatus> {
        let mut state = lock(&self.state);
        if state.status.is_none() {
            state.status = state.child.try_wait().expect("cannot wait for panzer");
        }
        state.status
    }

    /// Waits for the rest of the output. Who was left behind may hold it; else its thread has only not run yet.
    fn wait_for_output(&self) {
        for output in [&self.stdout, &self.stderr] {
            if !output.wait_for_end(GRACE) && self.leftovers().is_empty() {
                output.wait_for_end(3 * GRACE);
            }
        }
    }

    /// Waits for the end, at most 30 seconds, and for the rest of the output.
    #[track_caller]
    pub(crate) fn wait_exit(&self) -> ExitStatus {
        self.wait_exit_within(deadline_or(EXIT_DEADLINE))
    }

    /// Waits for the end, at most so long, and for the rest of the output.
    #[track_caller]
    pub(crate) fn wait_exit_within(&self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.try_exit() {
                self.wait_for_output();
                return status;
            }
            assert!(Instant::now() < end, "panzer has not ended within {limit:?}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// All live processes below panzer, sorted.
    #[track_caller]
    pub(crate) fn descendants(&self) -> Vec<u32> {
        let panzer = self.panzer_pid();
        pids(process::tree(panzer).iter().filter(|one| one.pid != panzer && !one.is_dead()))
    }

    /// The live direct children of panzer that run a command, sorted: neither the guard, nor what serves metrics, nor a
    /// worker that has not executed its command yet.
    #[track_caller]
    pub(crate) fn workers(&self) -> Vec<u32> {
        let children = self.child_stats();
        pids(children.iter().filter(|one| !one.comm.starts_with("panzer")))
    }

    /// Waits until there are exactly so many workers, and returns them, sorted.
    #[track_caller]
    pub(crate) fn wait_workers(&self, count: usize) -> Vec<u32> {
        wait_for(&format!("there are {count} workers"), || {
            let workers = self.workers();
            (workers.len() == count).then_some(workers)
        })
    }

    /// The guard, when there is one.
    #[track_caller]
    pub(crate) fn guard(&self) -> Option<u32> {
        self.child_stats().iter().find(|one| one.comm == "panzer-guard").map(|one| one.pid)
    }

    /// What serves metrics, when there is one.
    #[track_caller]
    pub(crate) fn metrics_child(&self) -> Option<u32> {
        // A process's name has at most 15 bytes.
        self.child_stats().iter().find(|one| one.comm.starts_with("panzer-metric")).map(|one| one.pid)
    }

    #[track_caller]
    fn child_stats(&self) -> Vec<Stat> {
        let panzer = self.panzer_pid();
        process::all().into_iter().filter(|one| one.ppid == panzer && !one.is_dead()).collect()
    }

    /// The live processes that were started here, wherever they are now, sorted: panzer, too, while
    /// it runs. One that was given another environment is not found.
    pub(crate) fn leftovers(&self) -> Vec<u32> {
        let marked = process::all().into_iter().filter(|one| {
            !one.is_dead() && process::environ(one.pid).is_some_and(|environ| environ.get(COOKIE) == Some(&self.cookie))
        });
        pids(marked.collect::<Vec<Stat>>().iter())
    }

    /// Everything to be killed: by its environment, and by its ancestors.
    fn remains(&self) -> BTreeSet<u32> {
        let mut found: BTreeSet<u32> = self.leftovers().into_iter().collect();
        if lock(&self.state).status.is_none() {
            let tree = process::tree(self.pid);
            found.extend(tree.iter().filter(|one| !one.is_dead()).map(|one| one.pid));
        }
        found
    }

    /// Prints what a failing test should be read with.
    fn print_state(&self) {
        let words: Vec<String> = self.words.iter().map(|word| word.display().to_string()).collect();
        eprintln!("--- command: {}", words.join(" "));
        match self.try_exit() {
            Some(status) => eprintln!("--- ended: {status}"),
            None => eprintln!("--- runs as {}", self.pid),
        }
        eprintln!("--- stderr:\n{}", self.stderr());
        eprintln!("--- stdout:\n{}", self.stdout());
        eprintln!("--- processes: pid ppid pgid state comm command");
        let mut pids: BTreeSet<u32> = self.leftovers().into_iter().collect();
        if lock(&self.state).status.is_none() {
            pids.extend(process::tree(self.pid).iter().map(|one| one.pid));
        }
        for one in pids.into_iter().filter_map(process::stat) {
            let command = process::command_line(one.pid);
            eprintln!("{} {} {} {} {} {command}", one.pid, one.ppid, one.pgid, one.state, one.comm);
        }
        eprintln!("---");
    }

    /// Kills everything until nothing is found any more.
    fn kill_all(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let remains = self.remains();
            // panzer first, so that it starts nothing anew.
            if lock(&self.state).status.is_none() {
                process::send_signal(self.pid, libc::SIGKILL);
            }
            for pid in &remains {
                process::send_signal(*pid, libc::SIGKILL);
            }
            if (remains.is_empty() && self.try_exit().is_some()) || Instant::now() > end {
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if thread::panicking() {
            self.print_state();
            self.kill_all();
            return;
        }
        let mut left = Vec::new();
        if lock(&self.state).status.is_some_and(|status| status.code().is_some()) {
            let end = Instant::now() + EXIT_DEADLINE;
            left = self.leftovers();
            while !left.is_empty() && Instant::now() < end {
                thread::sleep(Duration::from_millis(2));
                left = self.leftovers();
            }
            if !left.is_empty() {
                self.print_state();
            }
        }
        self.kill_all();
        assert!(left.is_empty(), "left behind after the end of panzer: {left:?}");
    }
}

/// How a status reads in the shell: the exit status, or 128 and the signal.
pub(crate) fn shell_status(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// Whether this process is panzer, by its name or by its executable file.
fn is_panzer(process: &Stat) -> bool {
    process.comm == "panzer"
        || std::fs::read_link(format!("/proc/{}/exe", process.pid)).is_ok_and(|file| file == binary())
}

fn pids<'a>(processes: impl Iterator<Item = &'a Stat>) -> Vec<u32> {
    let mut pids: Vec<u32> = processes.map(|process| process.pid).collect();
    pids.sort_unstable();
    pids
}
