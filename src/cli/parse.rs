//! Reads the command line, the `PANZER_*` variables and the file of `--config` by the option table. The command line wins,
//! then the variables. Must never know an option by name but `-h` and `--config`.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use lexopt::Arg;

use super::options::{OPTIONS, Opt, Takes};
use super::values::Read;
use crate::config::{Config, Show};
use crate::error::{Error, Typed};

/// An option is worth naming where no more than one letter in so many is wrong.
const LETTERS_PER_MISTAKE: usize = 3;

/// Where else options may stand.
#[derive(Clone, Copy)]
pub struct Elsewhere<'a> {
    /// A variable's value.
    pub variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// A file's text, or why there is none.
    pub read: &'a dyn Fn(&Path) -> Result<String, String>,
    /// The file where none is named.
    pub file: Option<&'a Path>,
}

/// An option with its value.
struct Said {
    option: &'static Opt,
    value: OsString,
    from: From,
}

/// Where it was said. What comes later wins.
#[derive(Clone, Copy)]
enum From {
    /// In this line of the file.
    File(usize),
    /// In a variable.
    Variable,
    /// On the command line.
    Typed,
}

/// Reads arguments (without the program's name), and what stands elsewhere.
///
/// # Errors
/// The first argument, variable or line that is not what it should be, as typed.
pub fn parse(arguments: impl IntoIterator<Item = OsString>, elsewhere: Elsewhere<'_>) -> Result<Config, Error> {
    let mut config = Config::default();
    let mut typed: Vec<Said> = Vec::new();
    gather(arguments.into_iter().collect(), From::Typed, &mut typed, &mut config)?;
    let mut variables: Vec<Said> = Vec::new();
    for option in OPTIONS {
        let Some(name) = option.variable() else { continue };
        // An empty one is as if it were not set, since a Dockerfile cannot unset one.
        if let Some(value) = (elsewhere.variable)(&name).filter(|value| !value.is_empty()) {
            variables.push(Said { option, value, from: From::Variable });
        }
        config.own_variables.push(name);
    }
    let named = typed.iter().rev().chain(&variables).find(|said| said.option.long == "config");
    let file = named.map(|said| Path::new(&said.value)).or(elsewhere.file).filter(|_| config.show.is_none());
    let file = file.unwrap_or(Path::new("")).to_owned();
    let mut all = Vec::new();
    if !file.as_os_str().is_empty() {
        let text = (elsewhere.read)(&file).map_err(|cause| Error::about("read", &file.display(), cause))?;
        read_lines(&text, &file, &mut all, &mut config)?;
    }
    all.append(&mut variables);
    all.append(&mut typed);
    for said in &all {
        // Of each option only what wins counts, also where it may be given more than once.
        let loses = |other: &Said| std::ptr::eq(said.option, other.option) && said.from.loses_to(other.from);
        if !all.iter().any(loses) {
            said.apply(&mut config).map_err(|error| said.from.name(error, &file))?;
        }
    }
    if config.show.is_none() {
        // A variable may be set for a whole image; what is typed must mean something.
        let mut meant = all.iter().filter(|said| !matches!(said.from, From::Variable));
        if config.workers.is_none()
            && let Some(said) = meant.find(|said| said.option.needs_workers)
        {
            let error = Error::new(format!("use --{}", said.option.long), "it needs -n");
            return Err(said.from.name(error, &file));
        }
        if config.command.is_empty() {
            return Err(Error::new("start", "no command given; see panzer -h"));
        }
    }
    Ok(config)
}

impl From {
    fn loses_to(self, other: Self) -> bool {
        matches!((self, other), (Self::File(_), Self::Variable | Self::Typed) | (Self::Variable, Self::Typed))
    }

    /// An error with its place, where it is not clear from its words.
    fn name(self, error: Error, file: &Path) -> Error {
        match self {
            Self::File(line) => error.within(&file.display(), line),
            Self::Variable | Self::Typed => error,
        }
    }
}

impl Said {
    fn apply(&self, config: &mut Config) -> Result<(), Error> {
        self.set(config).map_err(|cause| {
            let name = match self.from {
                From::Variable => self.option.variable().unwrap_or_default() + "=",
                From::File(_) | From::Typed => "--".to_owned() + self.option.long,
            };
            bad_value(&name, &self.value, cause)
        })
    }

    /// A variable gives the same value as the option would; several values are separated by spaces, and what takes none
    /// may say that it is not meant.
    fn set(&self, config: &mut Config) -> Read<()> {
        let Self { option, value, from } = self;
        if !matches!((from, option.takes), (From::Variable, Takes::Nothing(_) | Takes::Many(..))) {
            return option.takes.set(config, value);
        }
        let text = value.to_str().ok_or("it is not UTF-8")?;
        if let Takes::Nothing(_) = option.takes {
            return if matches!(text, "0" | "false" | "no" | "off") { Ok(()) } else { option.takes.set(config, value) };
        }
        text.split_ascii_whitespace().try_for_each(|part| option.takes.set(config, OsStr::new(part)))
    }
}

/// Reads arguments: options and their values, up to the command.
fn gather(arguments: Vec<OsString>, from: From, all: &mut Vec<Said>, config: &mut Config) -> Result<(), Error> {
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next().map_err(|error| surplus_value(&error))? {
        let option = match argument {
            Arg::Short('h') => {
                config.show = Some(Show::ShortHelp);
                continue;
            }
            Arg::Short(letter) => OPTIONS
                .iter()
                .find(|option| option.short == Some(letter))
                .ok_or_else(|| Error::new(format!("use -{letter}"), "unknown option; see panzer -h"))?,
            Arg::Long(name) => OPTIONS.iter().find(|option| option.long == name).ok_or_else(|| unknown_option(name))?,
            Arg::Value(command) => {
                config.command.push(command);
                let rest = parser.raw_args().map_err(|error| surplus_value(&error))?;
                config.command.extend(rest);
                break;
            }
        };
        let mut value = OsString::from("1");
        if let Some(kind) = option.takes.value_name() {
            value = parser
                .value()
                .map_err(|_| Error::new(format!("use --{}", option.long), format!("it needs a value, {kind}")))?;
        }
        let show = if let Takes::Show(show) = option.takes { Some(show) } else { None };
        if matches!(from, From::File(_)) && (show.is_some() || option.long == "config") {
            return Err(Error::new(format!("use --{}", option.long), "it is for the command line"));
        }
        config.show = show.or(config.show);
        all.push(Said { option, value, from });
    }
    Ok(())
}

/// Reads a file of options: a line is `NAME`, `NAME VALUE` or `NAME=VALUE`, with `--` before it or not; `-- COMMAND ARGUMENT...`
/// is the command, unless there is one; a comment begins with `#`.
fn read_lines(text: &str, file: &Path, all: &mut Vec<Said>, config: &mut Config) -> Result<(), Error> {
    let is_given = !config.command.is_empty();
    let mut rest = text;
    let mut number = 0;
    while !rest.is_empty() {
        let (line, after) = cut(rest, |byte| byte == b'\n');
        rest = after.get(1..).unwrap_or_default();
        number += 1;
        let (name, value) = cut(line.trim_ascii(), |byte| matches!(byte, b' ' | b'\t' | b'='));
        if name == "--" {
            if !is_given {
                config.command = value.split_ascii_whitespace().map(OsString::from).collect();
            }
        } else if !name.is_empty() && !name.starts_with('#') {
            let mut word = "--".to_owned() + name.strip_prefix("--").unwrap_or(name);
            let value = value.trim_ascii_start();
            let value = value.strip_prefix('=').unwrap_or(value).trim_ascii_start();
            if !value.is_empty() {
                word.push('=');
                word.push_str(value);
            }
            let from = From::File(number);
            gather(vec![word.into()], from, all, config).map_err(|error| from.name(error, file))?;
        }
    }
    Ok(())
}

/// What stands before the first of these bytes, and the rest.
#[inline(never)]
fn cut(text: &str, ends: fn(u8) -> bool) -> (&str, &str) {
    let end = text.bytes().position(ends).unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

fn bad_value(option: &str, value: &OsStr, cause: String) -> Error {
    let separator = if option.ends_with('=') { "" } else { " " };
    Error::new(format!("use {option}{separator}{}", Typed(value)), cause)
}

fn unknown_option(name: &str) -> Error {
    let names: Vec<&str> = OPTIONS.iter().map(|option| option.long).collect();
    unknown("option", "--", name, "panzer -h", &names)
}

/// The refusal of a word that no table knows; the nearest one that is known is named where this may be a slip.
pub fn unknown(kind: &str, dashes: &str, word: &str, help: &str, known: &[&'static str]) -> Error {
    let nearest =
        known.iter().map(|name| (strsim::levenshtein(word, name), *name)).min_by_key(|(distance, _)| *distance);
    let cause = match nearest {
        Some((distance, name)) if distance * LETTERS_PER_MISTAKE <= word.len() => {
            format!("unknown {kind}; did you mean {dashes}{name}?")
        }
        _ => format!("unknown {kind}; see {help}"),
    };
    Error::new(format!("use {dashes}{word}"), cause)
}

/// The refusal of a command line that gives an option a value which takes none.
#[must_use]
fn surplus_value(error: &lexopt::Error) -> Error {
    if let lexopt::Error::UnexpectedValue { option, value } = error {
        return Error::new(format!("use {option}={}", value.display()), "it takes no value");
    }
    Error::new("read the command line", "it holds more than it should")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LogFormat, Workers};
    use crate::supervisor::report::Level;

    fn read_with(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Config, String> {
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value));
        read_all(arguments, &variable, "", None)
    }

    fn read_all(
        arguments: &[&str],
        variable: &dyn Fn(&str) -> Option<OsString>,
        text: &str,
        file: Option<&Path>,
    ) -> Result<Config, String> {
        let read = |path: &Path| match path.to_str() {
            Some("/there") => Ok(text.to_owned()),
            _ => Err("No such file or directory".to_owned()),
        };
        let elsewhere = Elsewhere { variable, read: &read, file };
        parse(arguments.iter().map(OsString::from), elsewhere).map_err(|error| error.to_string())
    }

    /// With a file that holds this, and no variables.
    fn read_file(arguments: &[&str], text: &str) -> Result<Config, String> {
        read_all(&[&["--config", "/there"], arguments].concat(), &|_| None, text, None)
    }

    fn read(arguments: &[&str]) -> Result<Config, String> {
        read_with(arguments, &[])
    }

    #[test]
    fn the_commands_own_options_are_left_alone() {
        for arguments in [&["-n", "2", "--", "sh", "-c", "x", "-n"][..], &["-n2", "sh", "-c", "x", "-n"]] {
            let config = read(arguments).unwrap();
            assert_eq!(config.workers, Some(Workers::Count(2)));
            assert_eq!(config.command, ["sh", "-c", "x", "-n"]);
        }
        assert_eq!(read(&["--", "--", "x"]).unwrap().command, ["--", "x"]);
    }

    #[test]
    fn the_command_line_wins_over_variables() {
        let variables = [("PANZER_WORKERS", "3"), ("PANZER_LISTEN", "80 unix:///x"), ("PANZER_QUIET", "yes")];
        let config = read_with(&["-n", "auto", "x"], &variables).unwrap();
        assert_eq!((config.workers, config.listen.len(), config.level), (Some(Workers::Auto), 2, Level::Warning));
        assert_eq!(read_with(&["-l", "1", "x"], &variables).unwrap().listen.len(), 1);
        assert_eq!(read_with(&["x"], &[("PANZER_LOG_FORMAT", "")]).unwrap().log_format, LogFormat::Text);
    }

    #[test]
    fn every_refusal_names_the_option_the_value_and_the_cause() {
        for (arguments, line) in [
            (&["--worker", "2", "x"][..], "cannot use --worker: unknown option; did you mean --workers?"),
            (&["--zzzzzz", "x"], "cannot use --zzzzzz: unknown option; see panzer -h"),
            (&["-Z", "x"], "cannot use -Z: unknown option; see panzer -h"),
            (&["-n", "0", "x"], "cannot use --workers 0: \"0\" is not a whole number from 1 to 10000, nor \"auto\""),
            (&["--quiet=1", "x"], "cannot use --quiet=1: it takes no value"),
            (&["x", "--", "y"], ""),
            (&["-n"], "cannot use --workers: it needs a value, N|auto"),
            (&["-n", "2"], "cannot start: no command given; see panzer -h"),
            (&["--linger", "2x", "x"], "cannot use --linger 2x: \"2x\" is not a duration (write 500ms, 10s, 5m or 1h)"),
            (&["--stop", "TERM/x", "y"], "cannot use --stop TERM/x: \"x\" is not a whole number of seconds"),
            (&["--on", "KILL=stop", "y"], "cannot use --on KILL=stop: SIGKILL cannot be given another action"),
            (&["--restart", "never", "y"], "cannot use --restart: it needs -n"),
            (&["--backoff", "2s:1s", "y"], "cannot use --backoff 2s:1s: MIN is longer than MAX"),
        ] {
            match read(arguments) {
                Ok(_) => assert_eq!(line, "", "{arguments:?} was taken"),
                Err(error) => assert_eq!(error, line),
            }
        }
        assert!(read_with(&["x"], &[("PANZER_VERSION", "1.2"), ("PANZER_HELP", "1")]).unwrap().show.is_none());
        let error = read_with(&["x"], &[("PANZER_CHECK", "maybe")]).unwrap_err();
        assert_eq!(error, "cannot use PANZER_CHECK=maybe: write 1 or 0");
    }

    #[test]
    fn a_line_of_a_file_is_an_option_or_the_command() {
        let text = "# a comment\n\n  workers 2\n--listen=80\n\tlisten = unix:///x?mode=660 \non TERM=ignore\r\nquiet\n-- a  b --c";
        let config = read_file(&[], text).unwrap();
        assert_eq!((config.workers, config.listen.len(), config.level), (Some(Workers::Count(2)), 2, Level::Warning));
        assert_eq!((config.on.len(), config.command), (1, ["a", "b", "--c"].map(OsString::from).to_vec()));
        assert_eq!(read_file(&["x", "y"], text).unwrap().command, ["x", "y"]);
        let named = read_all(&[], &|_| None, text, Some(Path::new("/there"))).unwrap();
        assert_eq!(named.workers, Some(Workers::Count(2)));
    }

    #[test]
    fn what_is_typed_wins_over_variables_and_they_win_over_a_file() {
        let text = "workers 2\nlisten 80\nlisten 81\nquiet\nlog-format json\n-- a";
        let variable = |name: &str| match name {
            "PANZER_LISTEN" => Some(OsString::from("90")),
            "PANZER_CONFIG" => Some(OsString::from("/there")),
            "PANZER_LOG_FORMAT" => Some(OsString::new()),
            _ => None,
        };
        let config = read_all(&["-v", "-n", "3"], &variable, text, Some(Path::new("/other"))).unwrap();
        assert_eq!((config.workers, config.listen.len(), config.level), (Some(Workers::Count(3)), 1, Level::Debug));
        assert_eq!(config.log_format, LogFormat::Json);
        assert_eq!(read_all(&["-l1", "-l2", "-l3"], &variable, text, None).unwrap().listen.len(), 3);
        // A word that only prints does not depend on any file.
        assert_eq!(read_all(&["--config", "/gone", "-V"], &|_| None, "", None).unwrap().show, Some(Show::Version));
    }

    #[test]
    fn a_refusal_of_a_line_names_file_and_line() {
        for (text, line) in [
            ("\n\n--worker 2", "line 3: --worker: unknown option; did you mean --workers?"),
            ("workers 0", "line 1: --workers 0: \"0\" is not a whole number from 1 to 10000, nor \"auto\""),
            ("quiet maybe", "line 1: --quiet=maybe: it takes no value"),
            ("#\nlisten", "line 2: --listen: it needs a value, [NAME=]ADDR"),
            ("config /there", "line 1: --config: it is for the command line"),
            ("version", "line 1: --version: it is for the command line"),
            ("- x", "line 1: ---: unknown option; see panzer -h"),
            ("linger 1s\nrestart never\n-- x", "line 2: --restart: it needs -n"),
        ] {
            assert_eq!(read_file(&["x"], text).unwrap_err(), format!("cannot use /there {line}"), "{text}");
        }
        for arguments in [&["--config", "/gone"][..], &["--config=/gone", "x"]] {
            let error = read_all(arguments, &|_| None, "", None).unwrap_err();
            assert_eq!(error, "cannot read /gone: No such file or directory");
        }
        assert_eq!(read_file(&[], "quiet").unwrap_err(), "cannot start: no command given; see panzer -h");
    }

    #[test]
    fn help_is_short_or_long_and_needs_no_command() {
        assert_eq!(read(&["-h"]).unwrap().show, Some(Show::ShortHelp));
        assert_eq!(read(&["--help"]).unwrap().show, Some(Show::Help));
        assert_eq!(read(&["-V"]).unwrap().show, Some(Show::Version));
    }

    #[test]
    fn the_defaults_that_the_table_prints_are_the_defaults() {
        for option in OPTIONS {
            if let (Takes::One(..) | Takes::Path(..), false) =
                (option.takes, option.default.contains(' ') || option.default.is_empty())
            {
                let mut config = Config::default();
                option.takes.set(&mut config, OsStr::new(option.default)).unwrap();
                config.listen_env.explicit = false;
                assert_eq!(config, Config::default(), "--{}", option.long);
            }
        }
    }

    #[test]
    fn no_letter_and_no_name_stands_for_two_options() {
        for (at, option) in OPTIONS.iter().enumerate() {
            for other in &OPTIONS[at + 1..] {
                assert!(option.long != other.long && (option.short.is_none() || option.short != other.short));
            }
        }
    }
}
