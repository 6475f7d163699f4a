//! What `panzer ctl` may ask of a running panzer, in one line of words.
//!
//! Pure. Must never trust a line: whatever a client sends is a command or a refusal of one line.

use crate::error::Error;
use crate::signals::Signal;

/// No request is longer than this, its end included.
pub const LONGEST_REQUEST: usize = 256;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// `status`: the state of everything.
    Status,
    /// `reload`; `reload wait`: to be told how it goes on and ends.
    Reload {
        /// Whether the client waits for the end.
        waits: bool,
    },
    /// `restart SLOT`: another worker in the place of this one.
    Restart(u32),
    /// `scale N`: so many workers.
    Scale(u32),
    /// `stop`: stop all workers, then panzer.
    Stop,
    /// `signal SIG [SLOT]`: a signal to one worker, or to all.
    Signal(Signal, Option<u32>),
}

/// Reads a request, without the end of its line.
///
/// # Errors
/// What is wrong with it, to be sent back.
pub fn parse(line: &[u8]) -> Result<Command, String> {
    let text = std::str::from_utf8(line).map_err(|_| "cannot read the request: it is not UTF-8".to_owned())?;
    let mut words = text.split(' ');
    let command = match (words.next().unwrap_or_default(), words.next(), words.next(), words.next()) {
        ("status", None, ..) => Some(Command::Status),
        ("reload", None, ..) => Some(Command::Reload { waits: false }),
        ("reload", Some("wait"), None, _) => Some(Command::Reload { waits: true }),
        ("stop", None, ..) => Some(Command::Stop),
        ("restart", Some(slot), None, _) => Some(Command::Restart(number("restart worker", slot)?)),
        ("scale", Some(count), None, _) => Some(Command::Scale(number("scale to", count)?)),
        ("signal", Some(signal), slot, None) => {
            let known = Signal::parse(signal).ok_or_else(|| refusal("send", signal, "it is not a signal"))?;
            Some(Command::Signal(known, slot.map(|slot| number("signal worker", slot)).transpose()?))
        }
        _ => None,
    };
    command.ok_or_else(|| refusal("do", text, "it is no request; see docs/control.md"))
}

fn number(action: &str, text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|_| !text.starts_with('+'));
    number.ok_or_else(|| refusal(action, text, "it is not a number"))
}

/// One line, whatever was sent.
fn refusal(action: &str, text: &str, cause: &str) -> String {
    Error::new(format!("{action} \"{text}\""), cause).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_word_by_word() {
        for (line, command) in [
            ("status", Command::Status),
            ("reload", Command::Reload { waits: false }),
            ("reload wait", Command::Reload { waits: true }),
            ("restart 0", Command::Restart(0)),
            ("scale 12", Command::Scale(12)),
            ("stop", Command::Stop),
            ("signal USR2", Command::Signal(Signal::USR2, None)),
            ("signal 12 3", Command::Signal(Signal::USR2, Some(3))),
        ] {
            assert_eq!(parse(line.as_bytes()), Ok(command), "{line}");
        }
    }

    #[test]
    fn anything_else_is_refused_in_one_line() {
        for line in [
            "",
            " ",
            "statu",
            "status ",
            "status now",
            "STATUS",
            "reload now",
            "reload wait 1",
            "restart",
            "restart x",
            "restart -1",
            "restart +1",
            "restart 99999999999",
            "restart 1 2",
            "scale",
            "scale 1.5",
            "stop now",
            "signal",
            "signal XYZ",
            "signal TERM x",
            "signal TERM 1 2",
            "a\nb",
            "\u{1b}[2J",
        ] {
            let refusal = parse(line.as_bytes()).unwrap_err();
            assert!(refusal.starts_with("cannot ") && !refusal.chars().any(char::is_control), "{line}: {refusal}");
        }
        assert!(parse(b"\xff").is_err());
    }
}
