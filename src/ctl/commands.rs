//! The table of commands and their options: the only place that knows them. The parser and the help are made from it.
//!
//! Must never ask panzer for anything: what a command does is in its row.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;

use lexopt::Arg;

use super::target::Server;
use super::{Failure, Variables, ready, reload, status, tell, top};
use crate::cli::{surplus_value, unknown};
use crate::error::Status;
use crate::signals::Signal;

const HELP: &str = "panzer ctl -h";

/// A row of the table.
pub(super) struct Command {
    pub(super) name: &'static str,
    /// What comes after it: `SIG` is a signal, anything else a number; in brackets where it may be left out.
    arguments: &'static str,
    summary: &'static str,
    pub(super) run: fn(&Given, &mut Server, Variables<'_>) -> Result<Status, Failure>,
}

/// Every command, in the order of the help.
static COMMANDS: [Command; 8] = [
    Command { name: "status", arguments: "", summary: "what panzer and its workers do", run: status },
    Command { name: "top", arguments: "", summary: "the same, live", run: top::run },
    Command {
        name: "ready",
        arguments: "",
        summary: "exit with 0 when all workers are ready, else with 1",
        run: ready,
    },
    Command { name: "reload", arguments: "", summary: "replace all workers, one after the other", run: reload },
    Command { name: "restart", arguments: "SLOT", summary: "replace one worker", run: tell },
    Command { name: "scale", arguments: "N", summary: "run N workers", run: tell },
    Command { name: "stop", arguments: "", summary: "stop all workers and panzer", run: tell },
    Command { name: "signal", arguments: "SIG [SLOT]", summary: "send SIG to all workers, or to one", run: tell },
];

/// An option.
struct Opt {
    name: &'static str,
    /// Its value's name; empty: it takes none.
    value: &'static str,
    /// The command that it is for; empty: all.
    command: &'static str,
    summary: &'static str,
}

static OPTIONS: [Opt; 7] = [
    Opt { name: "pid", value: "PID", command: "", summary: "the panzer with this pid" },
    Opt { name: "pid-file", value: "PATH", command: "", summary: "the panzer whose pid PATH holds" },
    Opt { name: "control", value: "PATH", command: "", summary: "the panzer with this control socket" },
    Opt { name: "json", value: "", command: "status", summary: "print JSON" },
    Opt { name: "min", value: "N", command: "ready", summary: "N ready workers are enough" },
    Opt { name: "wait", value: "", command: "reload", summary: "wait for the end; exit with 1 when it fails" },
    Opt { name: "help", value: "", command: "", summary: "print this help" },
];

const HELP_OPTION: &str = "help";

/// What was typed.
pub(super) struct Given {
    pub(super) command: &'static Command,
    /// The command and its arguments, as panzer is asked.
    pub(super) request: String,
    pub(super) least_ready: Option<u32>,
    options: Vec<(&'static Opt, OsString)>,
}

impl Given {
    /// The option's value; the last one counts.
    pub(super) fn value(&self, name: &str) -> Option<&OsStr> {
        self.options.iter().rev().find(|(option, _)| option.name == name).map(|(_, value)| value.as_os_str())
    }

    /// Whether the option was given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }
}

/// Reads the arguments; `None`: the help was asked for.
#[inline(never)]
pub(super) fn parse(arguments: Vec<OsString>) -> Result<Option<Given>, Failure> {
    let none = OsStr::new("");
    let (mut words, mut options) = (Vec::new(), Vec::new());
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next().map_err(|error| Failure::from(surplus_value(&error)))? {
        let name = match argument {
            Arg::Short('h') => HELP_OPTION,
            Arg::Long(name) => name,
            Arg::Short(letter) => {
                return Err(Failure::unusable(&format!("-{letter}"), none, "unknown option; see panzer ctl -h"));
            }
            Arg::Value(word) => {
                words.push(word);
                continue;
            }
        };
        let Some(option) = OPTIONS.iter().find(|option| option.name == name) else {
            return Err(unknown("option", "--", name, HELP, &mut OPTIONS.iter().map(|option| option.name)).into());
        };
        if option.name == HELP_OPTION {
            return Ok(None);
        }
        let mut value = OsString::new();
        if !option.value.is_empty() {
            let missing = || {
                Failure::unusable(&format!("--{}", option.name), none, &format!("it needs a value, {}", option.value))
            };
            value = parser.value().map_err(|_| missing())?;
        }
        options.push((option, value));
    }
    let mut words = words.iter();
    let Some(name) = words.next() else {
        return Err(Failure::unusable("ctl", none, "no command given; see panzer ctl -h"));
    };
    let Some(command) = COMMANDS.iter().find(|command| name == command.name) else {
        let mut known = COMMANDS.iter().map(|command| command.name);
        return Err(unknown("command", "", &name.to_string_lossy(), HELP, &mut known).into());
    };
    for (option, _) in &options {
        if !option.command.is_empty() && option.command != command.name {
            return Err(Failure::unusable(
                &format!("--{}", option.name),
                none,
                &format!("it is for {}", option.command),
            ));
        }
    }
    let mut request = command.name.to_owned();
    let mut names = command.arguments.split_ascii_whitespace();
    for word in words {
        let refuse = |cause: &str| Failure::unusable(command.name, word, cause);
        let Some(name) = names.next() else { return Err(refuse(&usage(command))) };
        let text = word.to_str().filter(|text| text.len() <= LONGEST_WORD).unwrap_or_default();
        if name == "SIG" && Signal::parse(text).is_none() {
            return Err(refuse("it is no signal"));
        }
        if name != "SIG" && text.parse::<u32>().is_err() {
            return Err(refuse("it is no number"));
        }
        request.push(' ');
        request.push_str(text);
    }
    if names.next().is_some_and(|name| !name.starts_with('[')) {
        return Err(Failure::unusable(command.name, none, &usage(command)));
    }
    let mut given = Given { command, request, least_ready: None, options };
    if let Some(value) = given.value("min") {
        let least = value.to_str().and_then(|text| text.parse().ok());
        let wrong = || Failure::unusable("--min", value, "it is no number");
        given.least_ready = Some(least.ok_or_else(wrong)?);
    }
    Ok(Some(given))
}

/// The longest word that can be a signal or a number. A request has an end, too.
const LONGEST_WORD: usize = 20;

fn usage(command: &Command) -> String {
    match command.arguments {
        "" => "it takes no argument".to_owned(),
        arguments => format!("it takes {arguments}"),
    }
}

/// `-h`
#[inline(never)]
pub(super) fn help() -> String {
    let mut out =
        "Usage: panzer ctl [OPTIONS] COMMAND [ARGUMENT]...\n\nSees and steers a panzer -n that runs.\n\n".to_owned();
    for command in &COMMANDS {
        line(&format!("{} {}", command.name, command.arguments), command.summary, &mut out);
    }
    out.push('\n');
    for option in &OPTIONS {
        line(&format!("--{} {}", option.name, option.value), option.summary, &mut out);
    }
    out.push_str(
        "\nWithout an option for it, panzer is that of PANZER_CONTROL, PANZER_PID, PID 1,\n\
         or the only one that you may ask.\n\n\
         Exit status: 0; 1 when panzer says no; 125 when it cannot be asked.\n",
    );
    out
}

fn line(what: &str, summary: &str, out: &mut String) {
    let _ = writeln!(out, "  {what:<18}{summary}");
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
        assert_eq!((given.least_ready, given.value("pid"), given.has("json")), (Some(2), Some(OsStr::new("2")), false));
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
        assert!(COMMANDS.iter().all(|command| help.contains(command.summary)));
        assert!(OPTIONS.iter().all(|option| help.contains(option.summary)));
    }
}
