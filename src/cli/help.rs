//! What panzer itself prints from the option table: `-h` and `--help`. Must never know an option by name.

use std::fmt::Write;

use super::options::{OPTIONS, Opt, Takes};

const USAGE: &str = "panzer [OPTIONS] [--] COMMAND [ARGUMENT]...\n       panzer ctl COMMAND  (see panzer ctl -h)";

const PURPOSE: &str = "Runs COMMAND as a correct init, or with -n keeps N processes of it alive.";

/// The width of a terminal that everything must fit.
const COLUMNS: usize = 80;

/// `-h`: one screen.
#[must_use]
pub fn short() -> String {
    let mut out = format!("Usage: {USAGE}\n\n{PURPOSE}\n\n");
    for option in OPTIONS {
        let summary = option.summary.split([';', '(']).next().unwrap_or_default().trim_ascii_end();
        let _ = writeln!(out, "  {:<26} {summary}", flags(option));
    }
    out.push_str("\nMore: panzer --help\n");
    out
}

/// `--help`: everything.
#[must_use]
pub fn long() -> String {
    let mut out = format!("Usage: {USAGE}\n\n{PURPOSE}\n");
    let mut group = "";
    for option in OPTIONS {
        if option.group != group {
            group = option.group;
            let _ = write!(out, "\n{group}:\n");
        }
        let repeatable = if matches!(option.takes, Takes::Many(..)) { " (repeatable)" } else { "" };
        let _ = writeln!(out, "  {}{repeatable}", flags(option));
        wrap(option.summary, "          ", &mut out);
        if !option.default.is_empty() {
            wrap(&format!("[default: {}]", option.default), "          ", &mut out);
        }
    }
    out.push('\n');
    for paragraph in [
        "T is 500ms, 10s, 5m or 1h; a bare number is seconds. SIZE is 512K, 512M or 1G; a bare number is bytes.",
        "Each long option also reads from the environment: --crash-limit is PANZER_CRASH_LIMIT. Several values in one \
         variable are separated by spaces; an option without a value takes 1 or 0. The command line wins.",
        "With -n TERM and INT stop the workers (a second INT kills them), QUIT kills them, HUP and USR1 reload, TTIN and \
         TTOU start one more and stop one, USR2 is reserved, and other signals are forwarded. Without -n all signals are \
         forwarded, and panzer exits as COMMAND does.",
        "Exit status: 0 after a stop, 137 when something had to be killed, 125 when panzer refuses, 126 or 127 when \
         COMMAND cannot be run.",
    ] {
        wrap(paragraph, "", &mut out);
    }
    out
}

/// `-n, --workers N|auto`
#[must_use]
pub fn flags(option: &Opt) -> String {
    let short = option.short.map_or("    ".to_owned(), |letter| format!("-{letter}, "));
    let value = option.takes.value_name().map_or(String::new(), |name| format!(" {name}"));
    format!("{short}--{}{value}", option.long)
}

/// Writes `text` in lines that fit.
fn wrap(text: &str, indent: &str, out: &mut String) {
    let mut column = 0;
    for word in text.split(' ') {
        if column > 0 && column + 1 + word.len() > COLUMNS {
            out.push('\n');
            column = 0;
        }
        if column == 0 {
            out.push_str(indent);
            column = indent.len();
        } else {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += word.len();
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_short_help_fits_one_screen() {
        assert!(short().lines().all(|line| line.len() <= COLUMNS), "{}", short());
        assert!(short().lines().count() <= 50);
    }

    #[test]
    fn the_long_help_fits_eighty_columns_and_has_every_option() {
        assert!(long().lines().all(|line| line.len() <= COLUMNS), "{}", long());
        for option in OPTIONS {
            assert!(long().contains(&flags(option)));
        }
    }
}
