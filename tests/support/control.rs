//! The control socket of a panzer, asked directly, and `panzer ctl`.

use std::fs;
use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use super::json::Json;
use super::panzer::{Output, Panzer, Running, shell_status};
use super::{deadline_or, process, wait_for};

/// The abstract name of the control socket of the panzer with this pid, in the PID namespace of the tests.
pub(crate) fn control_name(pid: u32) -> String {
    let inode = fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino());
    format!("panzer/{inode}/{pid}")
}

/// Connects to an abstract name. A full queue of the listener is waited for.
pub(crate) fn connect(name: &str) -> io::Result<UnixStream> {
    let stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?;
    let limit = Some(deadline_or(Duration::from_secs(20)));
    stream.set_read_timeout(limit)?;
    stream.set_write_timeout(limit)?;
    Ok(stream)
}

/// Sends bytes and reads all that comes.
pub(crate) fn exchange(mut stream: UnixStream, request: &[u8]) -> io::Result<String> {
    // It may have been answered, and closed, before all of it was sent; what was sent in vain resets the connection.
    let sent = stream.write_all(request);
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    if answer.is_empty() {
        sent.and(read.map(|_| ()))?;
    }
    String::from_utf8(answer).map_err(io::Error::other)
}

/// The body of an answer, or the message of an error; panics where it is neither.
#[track_caller]
pub(crate) fn body(answer: &str) -> Result<String, String> {
    let Some((first, body)) = answer.split_once('\n') else { panic!("no whole line: {answer:?}") };
    if first == "panzer 1 ok" {
        assert!(body.is_empty() || body.ends_with('\n'), "{answer:?}");
        return Ok(body.to_string());
    }
    let message = first.strip_prefix("panzer 1 error ").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    assert_eq!(body, "", "an error is one line");
    Err(message.to_string())
}

/// The command `panzer ctl` with these words, separated by blanks.
pub(crate) fn ctl(words: &str) -> Panzer {
    Panzer::new(["ctl"]).args(words.split_ascii_whitespace())
}

/// What a command printed, where it ended with this status and wrote nothing to standard error.
#[track_caller]
pub(crate) fn printed(output: &Output, status: i32) -> &str {
    assert_eq!((shell_status(output.status), output.stderr.as_str()), (status, ""), "{output:?}");
    &output.stdout
}

/// Makes sure that a command has printed nothing, and one line on standard error with all of these parts.
#[track_caller]
pub(crate) fn assert_fails(output: &Output, status: i32, parts: &[&str]) {
    assert_eq!((shell_status(output.status), output.stdout.as_str()), (status, ""), "{output:?}");
    let line = output.stderr.strip_suffix('\n').unwrap_or_else(|| panic!("no whole line: {output:?}"));
    assert!(!line.contains(char::is_control), "one line, without escapes: {output:?}");
    assert!(line.starts_with("panzer: "), "{output:?}");
    for part in parts {
        assert!(line.contains(part), "no {part:?} in {line:?}");
    }
}

impl Running {
    /// The abstract name of its control socket.
    #[track_caller]
    pub(crate) fn control_name(&self) -> String {
        control_name(self.panzer_pid())
    }

    /// Asks it, and returns the body of the answer, or the message of the error.
    #[track_caller]
    pub(crate) fn ask(&self, request: &str) -> Result<String, String> {
        let stream = wait_for("the control socket is there", || connect(&self.control_name()).ok());
        let answer = exchange(stream, format!("{request}\n").as_bytes());
        body(&answer.unwrap_or_else(|error| panic!("{request}: {error}")))
    }

    /// The status document as it came.
    #[track_caller]
    pub(crate) fn status_text(&self) -> String {
        self.ask("status").unwrap_or_else(|error| panic!("{error}"))
    }

    /// The status document.
    #[track_caller]
    pub(crate) fn status(&self) -> Json {
        Json::parse(&self.status_text())
    }

    /// Waits until the status is like this, and returns it.
    #[track_caller]
    pub(crate) fn wait_status(&self, what: &str, is_so: impl Fn(&Json) -> bool) -> Json {
        wait_for(&format!("the status: {what}"), || {
            assert_eq!(self.try_exit(), None, "panzer has ended");
            Some(self.status()).filter(|status| is_so(status))
        })
    }

    /// The command `panzer ctl --pid PID` with these words.
    #[track_caller]
    pub(crate) fn ctl_command(&self, words: &str) -> Panzer {
        ctl(&format!("--pid {} {words}", self.panzer_pid()))
    }

    /// Runs it to its end.
    #[track_caller]
    pub(crate) fn ctl(&self, words: &str) -> Output {
        self.ctl_command(words).run()
    }

    /// How many descriptors it has open, but for those of its standard error, which is opened anew for each line.
    #[track_caller]
    pub(crate) fn descriptors(&self) -> usize {
        let directory = PathBuf::from(format!("/proc/{}/fd", self.panzer_pid()));
        let stderr = fs::read_link(directory.join("2")).expect("panzer runs");
        let all = fs::read_dir(directory).expect("panzer runs").flatten();
        all.filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target != stderr)).count()
    }

    /// How much memory of its own it has, in kB.
    #[track_caller]
    pub(crate) fn memory(&self) -> u64 {
        let field = process::status_field(self.panzer_pid(), "RssAnon").expect("panzer runs");
        field.split_once(' ').expect("a number and kB").0.parse().expect("a number")
    }
}

/// What the head of the status says.
#[track_caller]
pub(crate) fn head<'a>(status: &'a Json, field: &str) -> &'a Json {
    status.get("panzer").get(field)
}

/// The lines of a slot's workers.
#[track_caller]
pub(crate) fn rows(status: &Json, slot: u64) -> Vec<&Json> {
    status.get("workers").list().iter().filter(|row| row.get("slot").number() == slot).collect()
}

/// The states of a slot's workers, its first line first.
#[track_caller]
pub(crate) fn states(status: &Json, slot: u64) -> Vec<&str> {
    rows(status, slot).into_iter().map(|row| row.get("state").text()).collect()
}
