//! Reads the command line and the `PANZER_*` variables by the option table. The command line wins. Must never know an
//! option by name but `-h`.

use std::ffi::{OsStr, OsString};

use super::arguments::{Argument, Arguments};
use super::options::{OPTIONS, Opt, Takes};
use crate::config::{Config, Show};
use crate::error::{Error, Typed};

/// An option is worth naming where no more than one letter in so many is wrong.
const LETTERS_PER_MISTAKE: usize = 3;

/// Reads arguments (without the program's name) and variables.
///
/// # Errors
/// The first argument or variable that is not what it should be, as typed.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Config, Error> {
    let own_variables = OPTIONS.iter().filter_map(Opt::variable).collect();
    let mut config = Config { own_variables, ..Config::default() };
    let mut given = Vec::new();
    let mut arguments = Arguments::new(arguments.into_iter().collect());
    while let Some(argument) = arguments.next()? {
        let option = match argument {
            Argument::Short('h') => {
                config.show = Some(Show::ShortHelp);
                continue;
            }
            Argument::Short(letter) => OPTIONS
                .iter()
                .find(|option| option.short == Some(letter))
                .ok_or_else(|| Error::new(format!("use -{letter}"), "unknown option; see panzer -h"))?,
            Argument::Long(name) => {
                OPTIONS.iter().find(|option| option.long == name).ok_or_else(|| unknown_option(&name))?
            }
            Argument::Command(command) => {
                config.command.push(command);
                config.command.extend(arguments.rest());
                break;
            }
        };
        given.push(option.long);
        match option.takes {
            Takes::Nothing(set) => set(&mut config),
            Takes::Show(show) => config.show = Some(show),
            Takes::One(name, _) | Takes::Path(name, _) | Takes::Many(name, _) => {
                let value = arguments
                    .value()
                    .ok_or_else(|| Error::new(format!("use --{}", option.long), format!("it needs a value, {name}")))?;
                option
                    .takes
                    .set(&mut config, &value)
                    .map_err(|cause| bad_value(&format!("--{}", option.long), &value, cause))?;
            }
        }
    }
    let mut useless = OPTIONS.iter().filter(|option| option.needs_workers && given.contains(&option.long));
    for option in OPTIONS.iter().filter(|option| !given.contains(&option.long)) {
        let Some(name) = option.variable() else { continue };
        if let Some(value) = variable(&name) {
            apply_variable(&mut config, option, &format!("{name}="), &value)?;
        }
    }
    // A variable may be set for a whole image; what is typed must mean something.
    if let (None, None, Some(option)) = (config.workers, config.show, useless.next()) {
        return Err(Error::new(format!("use --{}", option.long), "it needs -n"));
    }
    if config.command.is_empty() && config.show.is_none() {
        return Err(Error::new("start", "no command given; see panzer -h"));
    }
    Ok(config)
}

/// A variable gives the same value as the option would. Several values are separated by spaces; an empty one is as if
/// it were not set, since a Dockerfile cannot unset one.
fn apply_variable(config: &mut Config, option: &Opt, name: &str, value: &OsStr) -> Result<(), Error> {
    if value.is_empty() {
        return Ok(());
    }
    let refuse = |cause: String| bad_value(name, value, cause);
    match option.takes {
        Takes::Nothing(set) => match value.to_str() {
            Some("1" | "true" | "yes" | "on") => set(config),
            Some("0" | "false" | "no" | "off") => {}
            _ => return Err(refuse("write 1 or 0".to_owned())),
        },
        Takes::Show(_) => {}
        Takes::One(..) | Takes::Path(..) => option.takes.set(config, value).map_err(refuse)?,
        Takes::Many(..) => {
            let list = value.to_str().ok_or_else(|| refuse("it is not UTF-8".to_owned()))?;
            for part in list.split_ascii_whitespace() {
                option.takes.set(config, OsStr::new(part)).map_err(refuse)?;
            }
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LogFormat, Workers};
    use crate::supervisor::report::Level;

    fn read_with(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Config, String> {
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value));
        parse(arguments.iter().map(OsString::from), variable).map_err(|error| error.to_string())
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
