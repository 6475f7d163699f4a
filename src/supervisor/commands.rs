//! What `panzer ctl` may ask of a running panzer, in one line of words, and what comes of it.
//!
//! Pure. Must never trust a line: whatever a client sends is a command or a refusal of one line.

use std::time::Duration;

use super::events::say;
use super::report::{Report, Scaled, Workers};
use super::statistics::Cause;
use super::worker::{Recycling, State};
use super::{Asker, Effect, Generation, Supervisor, Why};
use crate::error::Error;
use crate::signals::Signal;

/// No request is longer than this, its end included.
pub const LONGEST_REQUEST: usize = 256;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// `status`: the state of everything.
    Status,
    /// `ready`: how many workers are ready.
    Ready,
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

/// What a client is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The state of everything, which takes more than the supervisor knows.
    Document,
    /// How many slots have a ready worker, and how many workers there are to be.
    Ready(u32, u32),
    /// A reload has begun, or will, that makes this generation.
    Reloading(Generation),
    /// What was done, for people.
    Done(String),
}

impl Supervisor {
    /// Does what a client asks for.
    pub(super) fn do_command(
        &mut self,
        now: Duration,
        command: Command,
        effects: &mut Vec<Effect>,
    ) -> Result<Answer, String> {
        let is_of_no_use = match command {
            Command::Reload { .. } => "reload",
            Command::Restart(_) => "restart a worker",
            Command::Scale(_) => "scale",
            Command::Ready => "be ready",
            Command::Status | Command::Stop | Command::Signal(..) => "",
        };
        if self.is_ending() && !is_of_no_use.is_empty() {
            return Err(format!("cannot {is_of_no_use}: panzer is stopping"));
        }
        match command {
            Command::Status => Ok(Answer::Document),
            Command::Ready => {
                let overview = self.overview(now);
                Ok(Answer::Ready(overview.ready, overview.workers))
            }
            Command::Reload { .. } => {
                self.reload(now, Asker::Control, effects);
                let is_queued = self.reload.as_ref().is_some_and(|reload| reload.once_more);
                Ok(Answer::Reloading(Generation(self.last_generation.0 + u64::from(is_queued))))
            }
            Command::Restart(number) => self.restart(now, number, effects).map(Answer::Done),
            Command::Scale(wanted) => self.scale_to(now, wanted, effects).map(Answer::Done),
            Command::Stop => {
                self.stop(now, Asker::Control, effects);
                Ok(Answer::Done(self.overview(now).doing))
            }
            Command::Signal(signal, number) => self.send_as_asked(signal, number, effects).map(Answer::Done),
        }
    }

    /// Another worker in the place of this one, or a start that was still to come.
    fn restart(&mut self, now: Duration, number: u32, effects: &mut Vec<Effect>) -> Result<String, String> {
        let wanted = self.wanted;
        let refuse = |cause: &str| Err(format!("cannot restart worker {number}: {cause}"));
        let Some(slot) = self.slot_mut(number).filter(|_| number < wanted) else { return refuse("there is none") };
        match slot.current.state {
            State::Ready { .. } if slot.successor.is_some() => refuse("it is being replaced already"),
            State::Ready { .. } => {
                slot.recycling = Some(Recycling::new(now, Why::Asked));
                Ok(format!("replacing worker {number}"))
            }
            State::Starting { .. } => refuse("it is starting already"),
            State::Waiting { .. } | State::Ended => {
                if slot.has_ended() {
                    slot.restarts += 1;
                    self.statistics.count_restart(Cause::Asked);
                    // Somebody comes after it now.
                    self.last_failure = None;
                }
                let Some(slot) = self.slot_mut(number) else { return refuse("there is none") };
                slot.current.state = State::Waiting { until: now };
                say(effects, Report::StartAsked(number));
                Ok(format!("starting worker {number}"))
            }
        }
    }

    fn scale_to(&mut self, now: Duration, wanted: u32, effects: &mut Vec<Effect>) -> Result<String, String> {
        let (before, most) = (self.wanted, self.settings.most_workers);
        if wanted == 0 {
            return Err("cannot scale to 0: there is always one worker".to_owned());
        }
        if wanted > most {
            return Err(format!("cannot scale to {wanted}: there can be {most} at the most"));
        }
        self.scale(now, Asker::Control, wanted, effects);
        Ok(match wanted.checked_sub(before) {
            Some(0) => format!("{} already", Workers(wanted)),
            Some(more) => Scaled(wanted, more, "more").to_string(),
            None => Scaled(wanted, before - wanted, "fewer").to_string(),
        })
    }

    /// A signal to the workers of a slot, or to all.
    fn send_as_asked(&self, signal: Signal, number: Option<u32>, effects: &mut Vec<Effect>) -> Result<String, String> {
        let mut workers = self.workers();
        workers.retain(|(_, worker)| number.is_none_or(|number| worker.slot == number));
        let whom = match number {
            None => Workers(u32::try_from(workers.len()).unwrap_or(u32::MAX)).to_string(),
            Some(number) if workers.is_empty() => return Err(format!("cannot signal worker {number}: there is none")),
            Some(number) => format!("worker {number}"),
        };
        say(effects, Report::Sent(signal, whom.clone()));
        self.send(signal, workers, effects);
        Ok(format!("sent {signal} to {whom}"))
    }
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
        ("ready", None, ..) => Some(Command::Ready),
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
            ("ready", Command::Ready),
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
