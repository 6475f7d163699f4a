//! What a worker tells about itself, in the words of `sd_notify(3)`.
//!
//! Pure. Must never trust a message: whatever a worker sends is read to its end or passed over, line by line.

use std::time::Duration;

/// No status text is kept beyond this many bytes.
const LONGEST_STATUS: usize = 200;

/// One thing that was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// `READY=1`, or a newline on `PANZER_READY_FD`.
    Ready,
    /// `STATUS=`: what it is doing, for people.
    Status(String),
    /// `STOPPING=1`: it is about to end.
    Stopping,
    /// `RELOADING=1`: it reads its configuration again; the next `READY=1` ends that.
    Reloading,
    /// `MAINPID=`: the process that stands for the worker from now on.
    MainProcess(i32),
    /// `EXTEND_TIMEOUT_USEC=`: what is being waited for comes within this time.
    ExtendTimeout(Duration),
    /// `WATCHDOG=1`, or a byte on `PANZER_HEARTBEAT_FD`.
    Beat,
    /// `WATCHDOG=trigger`: as if it had been silent for too long.
    Trigger,
    /// `WATCHDOG_USEC=`: from now on it beats at least this often.
    BeatInterval(Duration),
}

/// The lines that have one value only.
static KNOWN: [(&str, Notice); 5] = [
    ("READY=1", Notice::Ready),
    ("STOPPING=1", Notice::Stopping),
    ("RELOADING=1", Notice::Reloading),
    ("WATCHDOG=1", Notice::Beat),
    ("WATCHDOG=trigger", Notice::Trigger),
];

/// Reads a message. What is not known, or has a value that it cannot have, is passed over.
#[must_use]
pub fn parse(message: &[u8]) -> Vec<Notice> {
    message.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Notice> {
    let known = KNOWN.iter().find(|(known, _)| known.as_bytes() == line);
    if let Some((_, notice)) = known {
        return Some(notice.clone());
    }
    let equals = line.iter().position(|byte| *byte == b'=')?;
    let (name, value) = (line.get(..equals)?, line.get(equals + 1..)?);
    match name {
        b"WATCHDOG_USEC" => microseconds(value).filter(|interval| !interval.is_zero()).map(Notice::BeatInterval),
        b"EXTEND_TIMEOUT_USEC" => microseconds(value).map(Notice::ExtendTimeout),
        b"MAINPID" => number(value).and_then(|pid| i32::try_from(pid).ok()).map(Notice::MainProcess),
        b"STATUS" => Some(Notice::Status(printable(value))),
        _ => None,
    }
}

fn number(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A time of more than ten years is none: sums of times could overflow.
fn microseconds(value: &[u8]) -> Option<Duration> {
    const TEN_YEARS: u64 = 10 * 365 * 24 * 3600 * 1_000_000;
    number(value).filter(|number| *number <= TEN_YEARS).map(Duration::from_micros)
}

/// The other way round, in 64 bits: all of 128 take 500 bytes of code to be written.
#[must_use]
pub fn to_microseconds(time: Duration) -> u64 {
    time.as_secs() * 1_000_000 + u64::from(time.subsec_micros())
}

/// A status is shown on terminals: control characters are not for them.
pub(super) fn printable(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value.get(..LONGEST_STATUS).unwrap_or(value));
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_line_by_line_and_what_is_unknown_is_passed_over() {
        let message = b"READY=1\nFDNAME=x\nSTATUS=up \x1b[1m\xff\nMAINPID=42\nBARRIER=1\n\nWATCHDOG=1\nnonsense";
        let status = Notice::Status("up  [1m\u{fffd}".to_owned());
        assert_eq!(parse(message), [Notice::Ready, status, Notice::MainProcess(42), Notice::Beat]);
    }

    #[test]
    fn values_that_cannot_be_are_passed_over() {
        for line in [
            "READY=2",
            "READY=",
            "READY",
            "=1",
            "STOPPING=0",
            "MAINPID=-1",
            "MAINPID=+1",
            "MAINPID=99999999999999999999",
            "MAINPID=",
            "WATCHDOG_USEC=0",
            "WATCHDOG_USEC=1e3",
            "WATCHDOG=yes",
            "EXTEND_TIMEOUT_USEC=18446744073709551615",
            "ready=1",
        ] {
            assert_eq!(parse(line.as_bytes()), [], "{line}");
        }
        assert_eq!(parse(b"EXTEND_TIMEOUT_USEC=1500000"), [Notice::ExtendTimeout(Duration::from_millis(1500))]);
        assert_eq!(parse(b"WATCHDOG_USEC=20"), [Notice::BeatInterval(Duration::from_micros(20))]);
        assert_eq!(parse(b"WATCHDOG=trigger\nRELOADING=1"), [Notice::Trigger, Notice::Reloading]);
        assert_eq!(parse(b"STOPPING=1"), [Notice::Stopping]);
    }

    #[test]
    fn a_status_is_cut() {
        let message = [b"STATUS=".as_slice(), &[b'x'; 100_000]].concat();
        assert_eq!(parse(&message), [Notice::Status("x".repeat(LONGEST_STATUS))]);
    }
}
