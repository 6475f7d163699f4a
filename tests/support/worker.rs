//! What workers were given and where they are: the reports of `examples/probe`, the slots, the
//! addresses that panzer listens on.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::panzer::{Panzer, Running, shell_status};
use super::report::{Report, recorded};
use super::{example, process, wait_for};

/// Starts panzer with these options, separated by blanks, and this command.
pub(crate) fn panzer<S: AsRef<str>>(options: &str, command: &[S]) -> Panzer {
    Panzer::new(options.split_whitespace()).arg("--").args(command.iter().map(AsRef::as_ref))
}

/// A path as text.
pub(crate) fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().expect("a path of the tests is UTF-8").to_string()
}

/// The command `probe OUTFILE ACTION...`.
pub(crate) fn probe(outfile: &str, actions: &[&str]) -> Vec<String> {
    [text(example("probe")), outfile.to_string()].into_iter().chain(actions.iter().map(ToString::to_string)).collect()
}

/// The command `sh -c SCRIPT`.
pub(crate) fn sh(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(str::to_string).to_vec()
}

/// A wrapper that runs a shell script and then panzer in its place: `script; exec "$@"`.
pub(crate) fn through_shell(script: &str) -> Vec<String> {
    let mut words = sh(&format!("{script}; exec \"$@\""));
    words.push("sh".to_string());
    words
}

/// The reports in a directory, by pid.
pub(crate) fn reports(directory: &Path) -> BTreeMap<u32, Report> {
    fs::read_dir(directory)
        .expect("cannot read the directory of the reports")
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, Report::read(entry.path())?))
        })
        .collect()
}

/// Waits until there are so many reports in a directory.
#[track_caller]
pub(crate) fn wait_reports(directory: &Path, count: usize) -> BTreeMap<u32, Report> {
    wait_for(&format!("there are {count} reports"), || {
        let reports = reports(directory);
        assert!(reports.len() <= count, "more than {count} reports: {reports:#?}");
        (reports.len() == count).then_some(reports)
    })
}

/// Waits for the report of one process in a directory.
#[track_caller]
pub(crate) fn wait_report(directory: &Path, pid: u32) -> Report {
    wait_for(&format!("there is a report of {pid}"), || Report::read(directory.join(pid.to_string())))
}

/// Waits until exactly these signals were recorded.
#[track_caller]
pub(crate) fn wait_recorded(file: &Path, expected: &[i32]) {
    wait_for(&format!("{} holds {expected:?}", file.display()), || {
        let found = recorded(file);
        assert!(expected.starts_with(&found), "recorded {found:?}, expected {expected:?}");
        (found == expected).then_some(())
    });
}

impl Running {
    /// The pid of the worker in each slot that has executed its command.
    pub(crate) fn slots(&self) -> BTreeMap<u32, u32> {
        let panzer = self.panzer_pid();
        let children: Vec<u32> = match fs::read_to_string(format!("/proc/{panzer}/task/{panzer}/children")) {
            Ok(list) => list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect(),
            Err(_) => self.workers(),
        };
        let worker = |pid: u32| {
            let stat = process::stat(pid)?;
            let executed = stat.pgid == pid && !stat.is_dead() && !stat.comm.starts_with("panzer");
            let slot = process::environ(pid)?.get("PANZER_WORKER_ID")?.parse().ok()?;
            executed.then_some((slot, pid))
        };
        children.into_iter().filter_map(worker).collect()
    }

    /// Waits until each of so many slots has a worker.
    #[track_caller]
    pub(crate) fn wait_slots(&self, count: usize) -> BTreeMap<u32, u32> {
        wait_for(&format!("{count} slots have a worker"), || {
            assert_eq!(self.try_exit(), None, "panzer has ended");
            let slots = self.slots();
            (slots.len() == count).then_some(slots)
        })
    }

    /// Waits until a slot has a worker other than this one.
    #[track_caller]
    pub(crate) fn wait_replaced(&self, slot: u32, old: u32) -> u32 {
        wait_for(&format!("another worker than {old} is in slot {slot}"), || {
            self.slots().get(&slot).copied().filter(|pid| *pid != old)
        })
    }

    /// Kills the worker in a slot with KILL and waits for the next one.
    #[track_caller]
    pub(crate) fn kill_worker(&self, slot: u32) -> u32 {
        let old = wait_for(&format!("slot {slot} has a worker"), || self.slots().get(&slot).copied());
        assert!(process::send_signal(old, libc::SIGKILL), "cannot kill {old}");
        self.wait_replaced(slot, old)
    }

    /// Waits until panzer has said where it listens, and returns the addresses in order.
    #[track_caller]
    pub(crate) fn listening(&self) -> Vec<String> {
        wait_for("panzer says where it listens", || {
            let stderr = self.stderr();
            let (_, rest) = stderr.split_once(", listening on ")?;
            let (line, _) = rest.split_once('\n')?;
            Some(line.split(", ").map(str::to_string).collect())
        })
    }

    /// The port of the first TCP listener.
    #[track_caller]
    pub(crate) fn port(&self) -> u16 {
        let addresses = self.listening();
        let first = addresses.iter().find(|address| address.starts_with("tcp://")).expect("there is a TCP listener");
        port_of(first)
    }

    /// Sends a signal to panzer and checks what it exits with.
    #[track_caller]
    pub(crate) fn ends_with(&self, signal: i32, status: i32) {
        self.signal(signal);
        assert_eq!(shell_status(self.wait_exit()), status, "the exit status after signal {signal}");
    }
}

/// The port of an address such as `tcp://127.0.0.1:8080`.
#[track_caller]
pub(crate) fn port_of(address: &str) -> u16 {
    let (_, port) = address.rsplit_once(':').expect("there is a port");
    port.parse().expect("a port is a number")
}
