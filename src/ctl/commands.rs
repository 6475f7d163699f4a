//! The table of commands and their options: the only place that knows them. The parser and the help are made from it.
//!
//! Must never ask panzer for anything: what a command does is in its function.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::target::Server;
use super::{Failure, Variables, ready, reload, status, tell, top};
use crate::cli::unknown;
use crate::error::Status;
use crate::records::column;
use crate::signals::Signal;

/// Every command, then every option, in the order of the help. The columns:
///
/// - the name
/// - what comes after it: `SIG` is a signal, anything else behind a command a number; in brackets where it may be left out
/// - the command that an option is for; nothing: all
/// - what it is
///
/// Texts, since a table of their parts would be twice as large.
pub const WORDS: [&str; 15] = [
    "status|||what panzer and its workers do",
    "top|||the same, live",
    "ready|||exit with 0 when all workers are ready, else with 1",
    "reload|||replace all workers, one after the other",
    "restart|SLOT||replace one worker",
    "scale|N||run N workers",
    "stop|||stop all workers and panzer",
    "signal|SIG [SLOT]||send SIG to all workers, or to one",
    "--pid|PID||the panzer with this pid",
    "--pid-file|PATH||the panzer whose pid PATH holds",
    "--control|PATH||the panzer with this control socket",
    "--json||status|print JSON",
    "--min|N|ready|N ready workers are enough",
    "--wait||reload|wait for the end; exit with 1 when it fails",
    "--help|||print this help",
];

/// The first option.
const FIRST_OPTION: &str = "--pid";
const HELP_OPTION: &str = "--help";

/// Where the help's second column stands.
const SECOND_COLUMN: usize = 20;

/// A row of the table.
pub struct Word {
    /// `status`, `--json`
    pub name: &'static str,
    /// What comes after it.
    pub takes: &'static str,
    /// The command that an option is for; empty: all.
    pub command: &'static str,
    /// What it is.
    pub summary: &'static str,
}

impl Word {
    /// Reads one of [`WORDS`].
    #[must_use]
    pub fn read(mut row: &'static str) -> Self {
        let mut next = || column(&mut row);
        Self { name: next(), takes: next(), command: next(), summary: next() }
    }

    fn find(typed: &OsStr) -> Result<Self, Failure> {
        let mut names = Vec::new();
        for row in WORDS {
            let word = Self::read(row);
            if typed == word.name {
                return Ok(word);
            }
            names.push(word.name);
        }
        let kind = if typed.as_bytes().starts_with(b"-") { "option" } else { "command" };
        Err(unknown(kind, "", &typed.to_string_lossy(), "panzer ctl -h", &names).into())
    }

    fn refuse_arguments(&self, typed: &OsStr) -> Failure {
        let cause = if self.takes.is_empty() { "it takes no argument" } else { &format!("it takes {}", self.takes) };
        Failure::unusable(self.name, typed, cause)
    }
}

/// What a command does.
type Run = fn(&Given, &mut Server, Variables<'_>) -> Result<Status, Failure>;

/// What was typed.
#[derive(Default)]
pub(super) struct Given {
    /// The command and its arguments, as panzer is asked.
    pub(super) request: String,
    pub(super) least_ready: Option<u32>,
    options: Vec<(Word, OsString)>,
}

impl Given {
    /// The option's value; the last one counts.
    #[inline(never)]
    pub(super) fn value(&self, name: &str) -> Option<&OsStr> {
        self.options.iter().rev().find(|(option, _)| option.name == name).map(|(_, value)| value.as_os_str())
    }

    /// Whether the option was given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// What does it.
    pub(super) fn run(&self) -> Run {
        match self.request.as_str() {
            "status" => status,
            "top" => top::run,
            "ready" => ready,
            "reload" => reload,
            _ => tell,
        }
    }
}

/// Reads the arguments; `None`: the help was asked for.
#[inline(never)]
pub(super) fn parse(arguments: Vec<OsString>) -> Result<Option<Given>, Failure> {
    let none = OsStr::new("");
    let mut given = Given::default();
    let mut words = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let bytes = argument.as_bytes();
        if bytes == b"--" {
            words.extend(arguments);
            break;
        }
        if !bytes.starts_with(b"-") {
            words.push(argument);
            continue;
        }
        let equals = bytes.iter().position(|byte| *byte == b'=').unwrap_or(bytes.len());
        let (typed, value) = bytes.split_at_checked(equals).unwrap_or_default();
        let typed = OsStr::from_bytes(typed);
        if typed == "-h" || typed == HELP_OPTION {
            return Ok(None);
        }
        let option = Word::find(typed)?;
        let value = match value.get(1..) {
            Some(_) if option.takes.is_empty() => return Err(Failure::unusable("", &argument, "it takes no value")),
            Some(value) => OsStr::from_bytes(value).to_owned(),
            None if option.takes.is_empty() => OsString::new(),
            None => match arguments.next() {
                Some(value) => value,
                None => {
                    return Err(Failure::unusable(option.name, none, &format!("it needs a value, {}", option.takes)));
                }
            },
        };
        given.options.push((option, value));
    }
    let mut words = words.iter();
    let Some(name) = words.next() else {
        return Err(Failure::unusable("ctl", none, "no command given; see panzer ctl -h"));
    };
    let command = Word::find(name)?;
    for (option, _) in &given.options {
        if !option.command.is_empty() && option.command != command.name {
            return Err(Failure::unusable(option.name, none, &format!("it is for {}", option.command)));
        }
    }
    given.request.push_str(command.name);
    let mut names = command.takes.split_ascii_whitespace();
    for word in words {
        let Some(name) = names.next() else { return Err(command.refuse_arguments(word)) };
        let text = word.to_str().filter(|text| text.len() <= LONGEST_WORD).unwrap_or_default();
        let is_signal = name == "SIG";
        if is_signal && Signal::parse(text).is_none() || !is_signal && text.parse::<u32>().is_err() {
            let cause = if is_signal { "it is no signal" } else { NO_NUMBER };
            return Err(Failure::unusable(command.name, word, cause));
        }
        given.request.push(' ');
        given.request.push_str(text);
    }
    if names.next().is_some_and(|name| !name.starts_with('[')) {
        return Err(command.refuse_arguments(none));
    }
    if let Some(value) = given.value("--min") {
        given.least_ready = value.to_str().and_then(|text| text.parse().ok());
        if given.least_ready.is_none() {
            return Err(Failure::unusable("--min", given.value("--min").unwrap_or(none), NO_NUMBER));
        }
    }
    Ok(Some(given))
}

/// The longest word that can be a signal or a number. A request has an end, too.
const LONGEST_WORD: usize = 20;

const NO_NUMBER: &str = "it is no number";

/// `-h`
#[inline(never)]
pub(super) fn help() -> String {
    let mut out = "Usage: panzer ctl [OPTIONS] COMMAND [ARGUMENT]...\n\nAsks a panzer -n that runs.\n\n".to_owned();
    for row in WORDS {
        let word = Word::read(row);
        if word.name == FIRST_OPTION {
            out.push('\n');
        }
        let end = out.len() + SECOND_COLUMN;
        for part in ["  ", word.name, " ", word.takes] {
            out.push_str(part);
        }
        while out.len() < end {
            out.push(' ');
        }
        for part in [word.command, if word.command.is_empty() { "" } else { ": " }, word.summary, "\n"] {
            out.push_str(part);
        }
    }
    out.push_str(
        "\nWithout an option for it, panzer is that of PANZER_CONTROL, PANZER_PID, PID 1,\n\
         or the only one that you may ask.\n\n\
         Exit status: 0; 1 when panzer says no; 125 when it cannot be asked.\n",
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> Result<Option<Given>, String> {
        parse(arguments.iter().map(OsString::from).collect()).map_err(Failure::line)
    }

    #[test]
    fn options_stand_anywhere_and_the_request_is_what_was_typed() {
        for (arguments, request) in [
            (&["status"][..], "status"),
            (&["--pid", "7", "signal", "--control=x", "usr2", "3"], "signal usr2 3"),
            (&["restart", "0"], "restart 0"),
            (&["scale", "--pid=1", "12"], "scale 12"),
            (&["reload", "--wait"], "reload"),
        ] {
            assert_eq!(read(arguments).unwrap().unwrap().request, request);
        }
        let given = read(&["ready", "--min", "2", "--pid", "1", "--pid", "2"]).unwrap().unwrap();
        assert_eq!(
            (given.least_ready, given.value("--pid"), given.has("--json")),
            (Some(2), Some(OsStr::new("2")), false)
        );
    }

    #[test]
    fn what_means_nothing_is_refused_by_its_name() {
        let long = "0".repeat(300);
        for (arguments, line) in [
            (&[][..], "cannot use ctl: no command given; see panzer ctl -h"),
            (&["relod"], "cannot use relod: unknown command; did you mean reload?"),
            (&["zzzzzz"], "cannot use zzzzzz: unknown command; see panzer ctl -h"),
            (&["status", "--jsn"], "cannot use --jsn: unknown option; did you mean --json?"),
            (&["-x"], "cannot use -x: unknown option; see panzer ctl -h"),
            (&["stop", "--json"], "cannot use --json: it is for status"),
            (&["status", "--json=1"], "cannot use --json=1: it takes no value"),
            (&["status", "--pid"], "cannot use --pid: it needs a value, PID"),
            (&["restart"], "cannot use restart: it takes SLOT"),
            (&["stop", "now"], "cannot use stop now: it takes no argument"),
            (&["restart", "1 2"], "cannot use restart 1 2: it is no number"),
            (&["restart", &long], &format!("cannot use restart {long}: it is no number")),
            (&["signal"], "cannot use signal: it takes SIG [SLOT]"),
            (&["signal", "TERM\nx"], "cannot use signal TERM\\nx: it is no signal"),
            (&["signal", "HUP", "x"], "cannot use signal x: it is no number"),
            (&["ready", "--min", "x"], "cannot use --min x: it is no number"),
        ] {
            assert_eq!(read(arguments).err().as_deref(), Some(line));
        }
    }

    #[test]
    fn the_help_names_everything_and_fits() {
        assert!(read(&["status", "-h"]).unwrap().is_none() && read(&["--help"]).unwrap().is_none());
        let help = help();
        assert!(help.lines().all(|line| line.len() <= 80), "{help}");
        for row in WORDS {
            let word = Word::read(row);
            assert!(
                help.contains(&format!("\n  {} {}", word.name, word.takes)) && help.contains(word.summary),
                "{row}"
            );
        }
    }
}
