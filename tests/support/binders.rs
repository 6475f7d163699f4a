//! Workers that are `examples/binder`: starting them under panzer, reading what each of their steps gave, asking them.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use super::load::{self, Addr, Failure, Load, LoadOptions, Mode};
use super::panzer::Running;
use super::ports::{free_port, local};
use super::scratch::Scratch;
use super::worker::{panzer, text};
use super::{example, process, wait_for, wait_until};

/// Options for workers that are replaced at once, however often they die.
pub(crate) const AT_ONCE: &str = "--ready exec --backoff 0:0";

/// Says plainly what a run leaves out, past the test harness, which would swallow it.
pub(crate) fn left_out(what: &str) {
    let _ = std::io::stderr().write_all(format!("left out: {what}\n").as_bytes());
}

/// The same for what a script installs: with `PANZER_LEAVE_OUT_NOTHING=1` it is a failure.
#[track_caller]
pub(crate) fn not_installed(what: &str) {
    let may_be = std::env::var_os("PANZER_LEAVE_OUT_NOTHING").is_none_or(|value| value != "1");
    assert!(may_be, "{what}, and PANZER_LEAVE_OUT_NOTHING=1");
    left_out(what);
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(crate) fn has_ipv6() -> bool {
    TcpListener::bind("[::1]:0").is_ok()
}

/// A TCP address from its text.
#[track_caller]
pub(crate) fn addr(text: &str) -> Addr {
    Addr::Tcp(text.parse::<SocketAddr>().unwrap())
}

/// The command `binder OUTFILE STEP...`; the steps are separated by blanks.
pub(crate) fn binder(outfile: &str, steps: &str) -> Vec<String> {
    let words = [text(example("binder")), outfile.to_string()];
    words.into_iter().chain(steps.split_whitespace().map(str::to_string)).collect()
}

/// What these steps give without panzer.
#[track_caller]
pub(crate) fn alone(steps: &str) -> Vec<String> {
    let command = binder("-", steps);
    let output = Command::new(&command[0]).args(&command[1..]).env("PANZER_WORKER_ID", "alone").output().unwrap();
    assert!(output.status.success(), "{steps}: {output:?}");
    results(String::from_utf8(output.stdout).unwrap().lines())
}

/// The results without the numbers of processes.
fn results<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    lines.filter(|line| !line.starts_with("start -> ")).map(str::to_string).collect()
}

/// What panzer is run through: as it is, and as in a container without CAP_SYS_PTRACE.
pub(crate) fn ways() -> Vec<(&'static str, Vec<String>)> {
    let mut without_getfd = binder("-", "deny=pidfd_getfd exec");
    if is_root() {
        without_getfd.splice(..0, ["setpriv", "--bounding-set=-sys_ptrace"].map(str::to_string));
    }
    vec![("as it is", Vec::new()), ("without pidfd_getfd", without_getfd)]
}

/// Makes sure that these steps give every worker what they give without panzer, whatever panzer is run through.
#[track_caller]
pub(crate) fn same_as_alone(workers: u32, steps: &str) {
    same_in(&ways(), workers, steps);
}

/// The same for these ways of running it.
#[track_caller]
pub(crate) fn same_in(ways: &[(&str, Vec<String>)], workers: u32, steps: &str) {
    let expected = alone(steps);
    for (way, wrapper) in ways {
        let options = format!("-n {workers}");
        let all = Binders::start_through(Binders::directory(), wrapper, &options, |out| {
            binder(out, &format!("{steps} sleep"))
        });
        for slot in 0..workers {
            wait_until(&format!("slot {slot} has done all steps"), || all.results(slot).len() >= expected.len());
            assert_eq!(all.results(slot), expected, "slot {slot}, {way}");
        }
        all.end();
    }
}

/// Kills twenty of three workers that do these steps with a port, under load: what may be lost is what they had in hand.
#[track_caller]
pub(crate) fn kills_lose_what_was_in_hand(options: &str, steps: impl Fn(u16) -> String) {
    const KILLS: u32 = 20;
    const LOOPS: usize = 6;
    for mode in [Mode::Short, Mode::KeepAlive] {
        let port = free_port();
        let all = Binders::start(&format!("-n 3 {AT_ONCE} {options}"), &steps(port));
        all.wait_all(3, "serve -> ok");
        let load = Load::start(local(port), LoadOptions { connections: LOOPS, mode, ..LoadOptions::default() });
        for round in 0..KILLS {
            let before = load.count();
            wait_until("there is load", || load.count() > before + 20);
            all.running.kill_worker(round % 3);
        }
        let report = load.stop();
        println!("{mode:?}: {report}");
        assert_eq!((report.refused, report.timed_out, report.other.len()), (0, 0, 0), "{report}");
        assert!(report.lost() <= u64::from(KILLS) * LOOPS as u64, "{report}");
        all.end();
    }
}

/// Stops all threads of a process.
pub(crate) fn stop(pid: u32) {
    process::send_signal(pid, libc::SIGSTOP);
    wait_until("it is stopped", || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        threads.map(|thread| thread.file_name()).all(|thread| {
            let stat = fs::read_to_string(format!("/proc/{pid}/task/{}/stat", thread.display())).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
        })
    });
}

/// A wrapper that makes what follows PID 1 of a new namespace, where that is possible.
pub(crate) fn as_pid1() -> Option<Vec<String>> {
    const AS_ROOT: &[&str] = &["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    const AS_USER: &[&str] =
        &["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"];
    static WORKS: OnceLock<bool> = OnceLock::new();
    let words = if is_root() { AS_ROOT } else { AS_USER };
    let works =
        || Command::new(words[0]).args(&words[1..]).arg("true").output().is_ok_and(|done| done.status.success());
    WORKS.get_or_init(works).then(|| words.iter().map(ToString::to_string).collect())
}

/// panzer over binders; each slot reports into a file of its own, all its lives into the same one.
pub(crate) struct Binders {
    /// panzer.
    pub(crate) running: Running,
    /// A directory for what the test needs besides; everybody may write to it.
    pub(crate) scratch: Scratch,
    /// Without pidfd_getfd panzer sets TCP_NODELAY on the sockets that it makes: the one option that is not the app's.
    sets_nodelay: bool,
}

impl Binders {
    /// A new directory that everybody may write to, with one for the reports in it.
    pub(crate) fn directory() -> Scratch {
        let scratch = Scratch::new();
        fs::create_dir(scratch.path("reports")).unwrap();
        for open in [scratch.directory().to_path_buf(), scratch.path("reports")] {
            fs::set_permissions(open, fs::Permissions::from_mode(0o777)).unwrap();
        }
        scratch
    }

    /// Starts panzer with these options over binders that do these steps.
    #[track_caller]
    pub(crate) fn start(options: &str, steps: &str) -> Binders {
        Binders::start_in(Binders::directory(), options, steps)
    }

    /// The same in a directory that is there already.
    #[track_caller]
    pub(crate) fn start_in(scratch: Scratch, options: &str, steps: &str) -> Binders {
        Binders::start_through(scratch, &[], options, |outfile| binder(outfile, steps))
    }

    /// Starts panzer through a wrapper, over the command that is made of the binder's `OUTFILE`.
    #[track_caller]
    pub(crate) fn start_through(
        scratch: Scratch,
        wrapper: &[String],
        options: &str,
        command: impl FnOnce(&str) -> Vec<String>,
    ) -> Binders {
        let outfile = format!("{}/", text(scratch.path("reports")));
        let running = panzer(options, &command(&outfile)).wrapper(wrapper).start();
        let sets_nodelay = wrapper.iter().any(|word| word == "deny=pidfd_getfd");
        Binders { running, scratch, sets_nodelay }
    }

    fn report(&self, slot: u32) -> PathBuf {
        self.scratch.path("reports").join(slot.to_string())
    }

    /// The lines that a slot has written so far, as they are.
    pub(crate) fn raw_lines(&self, slot: u32) -> Vec<String> {
        let text = fs::read_to_string(self.report(slot)).unwrap_or_default();
        // A line without its end is still being written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(str::to_string).collect()
    }

    /// The lines that a slot has written so far, with the options as the app has them.
    pub(crate) fn lines(&self, slot: u32) -> Vec<String> {
        let as_the_app = |line: String| match self.sets_nodelay {
            true => line.replace(" nodelay=01000000", " nodelay=00000000"),
            false => line,
        };
        self.raw_lines(slot).into_iter().map(as_the_app).collect()
    }

    /// The results of a slot, without the numbers of its processes.
    pub(crate) fn results(&self, slot: u32) -> Vec<String> {
        results(self.lines(slot).iter().map(String::as_str))
    }

    /// How often a slot has written this line.
    pub(crate) fn count(&self, slot: u32, line: &str) -> usize {
        self.lines(slot).iter().filter(|found| *found == line).count()
    }

    /// Waits until a slot has written this line, at least so many times.
    #[track_caller]
    pub(crate) fn wait_lines(&self, slot: u32, line: &str, count: usize) {
        wait_until(&format!("slot {slot} has reported {line:?} {count} times"), || self.count(slot, line) >= count);
    }

    /// Waits until each slot from 0 on has written this line.
    #[track_caller]
    pub(crate) fn wait_all(&self, slots: u32, line: &str) {
        for slot in 0..slots {
            self.wait_lines(slot, line, 1);
        }
    }

    /// Waits until a slot has reported so many values of a step, and returns them.
    #[track_caller]
    pub(crate) fn values(&self, slot: u32, step: &str, count: usize) -> Vec<String> {
        let prefix = format!("{step} -> ");
        wait_for(&format!("slot {slot} has reported {step:?} {count} times"), || {
            let lines = self.lines(slot);
            let found = lines.iter().filter_map(|line| line.strip_prefix(&prefix).map(str::to_string));
            let found: Vec<String> = found.collect();
            (found.len() >= count).then_some(found)
        })
    }

    /// Waits until a slot has reported a step, and returns the last value of it.
    #[track_caller]
    pub(crate) fn value(&self, slot: u32, step: &str) -> String {
        self.values(slot, step, 1).pop().unwrap()
    }

    /// Asks at an address until so many workers have answered, and returns which of their sockets did.
    #[track_caller]
    pub(crate) fn wait_answers(&self, addr: &Addr, workers: usize) -> BTreeSet<String> {
        let (mut answered, mut sockets) = (BTreeSet::new(), BTreeSet::new());
        wait_until(&format!("{workers} workers have answered at {addr:?}"), || {
            match load::one(addr) {
                Ok(body) => {
                    answered.insert(word(&body, "worker="));
                    sockets.insert(word(&body, "socket="));
                }
                // A machine with much to do.
                Err(Failure::TimedOut) => {}
                Err(failure) => panic!("{addr:?}: {failure}"),
            }
            answered.len() == workers
        });
        sockets
    }

    /// Waits until panzer has done all that followed from what it has said so far: it takes up a signal after that.
    #[track_caller]
    pub(crate) fn settle(&self) {
        self.running.settle();
    }

    /// Ends panzer with TERM, which must give the status 0.
    #[track_caller]
    pub(crate) fn end(&self) {
        self.running.ends_with(libc::SIGTERM, 0);
    }
}

impl Drop for Binders {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for entry in fs::read_dir(self.scratch.path("reports")).into_iter().flatten().flatten() {
                let report = fs::read_to_string(entry.path()).unwrap_or_default();
                eprintln!("--- report of slot {}:\n{report}", entry.file_name().display());
            }
        }
    }
}

/// What stands behind this in an answer.
#[track_caller]
pub(crate) fn word(body: &str, name: &str) -> String {
    let found = body.split_ascii_whitespace().find_map(|word| word.strip_prefix(name));
    found.unwrap_or_else(|| panic!("no {name} in {body:?}")).to_string()
}
