//! The lines on stderr. The only place that writes there; nothing is ever written to stdout while running.
//!
//! Must never wait: a reader that has stopped reading must not stop PID 1.

use std::fmt::Write;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::SendFlags;

use super::clock;
use super::json::Form;
use crate::config::LogFormat;
use crate::supervisor::report::{Level, Report};

/// A write of at most this many bytes to a pipe that is writable does not block (`PIPE_BUF`, `pipe(7)`).
const LONGEST_LINE: usize = 4096;

/// Writes lines to stderr.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    level: Level,
    format: LogFormat,
    lost: u64,
}

impl Log {
    /// A log that leaves out what is quieter than `level`.
    #[must_use]
    pub fn new(level: Level, format: LogFormat) -> Self {
        Self { level, format, lost: 0 }
    }

    /// Says what the supervisor reports, about a worker or about init mode's one child. `pid` is that of its process,
    /// `other` that of the other worker that it is about. Returns the words where they matter to others than readers of the
    /// log.
    pub fn report(&mut self, report: &Report, supervised: bool, pid: Option<i32>, other: Option<i32>) -> String {
        if report.level() > self.level && report.reload_result().is_none() {
            return String::new();
        }
        let slot = report.worker().map(|worker| worker.slot).filter(|_| supervised);
        let mut who = slot.map_or_else(|| "the command".to_owned(), |slot| format!("worker {slot}"));
        if let Some(pid) = pid {
            let _ = write!(who, " (pid {pid})");
        }
        let other = other.map_or_else(|| "the old one".to_owned(), |pid| format!("pid {pid}"));
        let text = report.text(&who, &other);
        if report.level() <= self.level {
            self.line(report.level(), report.event(), slot, pid, &text);
        }
        text
    }

    /// Says something of panzer's own.
    pub fn say(&mut self, level: Level, event: &str, text: &str) {
        if level <= self.level {
            self.line(level, event, None, None, text);
        }
    }

    /// Says something about the worker of a slot.
    pub fn say_of_worker(&mut self, level: Level, event: &str, slot: u32, text: &str) {
        if level <= self.level {
            self.line(level, event, Some(slot), None, text);
        }
    }

    fn line(&mut self, level: Level, event: &str, slot: Option<u32>, pid: Option<i32>, text: &str) {
        let mut line = match self.format {
            LogFormat::Text => format!("panzer: {text}"),
            LogFormat::Json => json(level, event, slot, pid, text, self.lost),
        };
        if self.lost > 0 && self.format == LogFormat::Text {
            let _ = write!(line, " ({} lines before this one were lost)", self.lost);
        }
        // Not in the middle of a character, and with room for the line's end.
        let end = (0..LONGEST_LINE).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
        line.truncate(end);
        line.push('\n');
        if write_at_once(line.as_bytes()) {
            self.lost = 0;
        } else {
            self.lost += 1;
        }
    }
}

/// Writes to stderr, unless that would have to wait.
///
/// That poll(2) finds room does not mean enough room: a terminal takes a part of the line and waits, and workers may
/// fill the same pipe in the meantime. O_NONBLOCK on stderr itself would be everybody's, so it is opened anew.
fn write_at_once(line: &[u8]) -> bool {
    let stderr = rustix::stdio::stderr();
    let kind = rustix::fs::fstat(stderr).map(|stat| FileType::from_raw_mode(stat.st_mode));
    if let Ok(FileType::Socket) = kind {
        return rustix::net::send(stderr, line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_ok();
    }
    if let Ok(FileType::CharacterDevice | FileType::Fifo) = kind {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        if let Ok(own) = rustix::fs::open(c"/proc/self/fd/2", flags, Mode::empty()) {
            return rustix::io::write(own, line).is_ok();
        }
    }
    // No /proc, or a pipe of another user's: this is nearly as good.
    let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let writable = poll(&mut ready, Some(&now)) == Ok(1);
    writable && rustix::io::write(stderr, line).is_ok()
}

/// `lost`: how many lines before this one nobody has taken.
fn json(level: Level, event: &str, slot: Option<u32>, pid: Option<i32>, text: &str, lost: u64) -> String {
    let mut form = Form::default();
    form.then("{\"ts\":#,\"level\":#,\"event\":#");
    form.seconds(Some(clock::since_epoch()));
    form.text(Some(level.name()));
    form.text(Some(event));
    if slot.is_some() {
        form.then(",\"slot\":#");
        form.number(slot.map(u64::from));
    }
    if let Some(pid) = pid {
        form.then(",\"pid\":#");
        form.number(Some(pid.unsigned_abs().into()));
    }
    // The text is cut to 600 characters, so that the line stays whole JSON below the longest line, whatever is escaped.
    let end = text.char_indices().nth(600).map_or(text.len(), |(end, _)| end);
    form.then(",\"message\":#");
    form.text(text.get(..end));
    if lost > 0 {
        form.then(",\"lost\":#");
        form.number(Some(lost));
    }
    form.then("}");
    form.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines_escape_what_a_name_may_hold() {
        let line = json(Level::Error, "x", Some(2), None, "a \"b\" \\ \n é", 3);
        assert!(
            line.ends_with(r#","level":"error","event":"x","slot":2,"message":"a \"b\" \\ \u000a é","lost":3}"#),
            "{line}"
        );
    }

    #[test]
    fn the_longest_text_is_still_whole_json() {
        let line = json(Level::Info, "x", None, None, &"\u{1}".repeat(5000), 0);
        assert!(line.len() < LONGEST_LINE && line.ends_with("\"}"));
    }
}
