//! What panzer itself prints from the option table: `-h`, `--help`, `--version`.

use std::fmt::Write;

use super::options::{OPTIONS, Opt};

const USAGE: &str = "panzer [OPTIONS] [--] COMMAND [ARGUMENT]...";

const PURPOSE: &str = "Runs COMMAND as a correct init, or with -n keeps N processes of it alive.";

/// `-h`: one screen.
#[must_use]
pub fn short() -> String {
    let mut out = format!("Usage: {USAGE}\n\n{PURPOSE}\n\n");
    for option in OPTIONS {
        let _ = writeln!(out, "  {:<26} {}", flags(option), first_clause(option.summary));
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
        let _ = writeln!(out, "  {}", flags(option));
        wrap(option.summary, "      ", &mut out);
        if !option.default.is_empty() {
            wrap(&format!("[{}]", option.default), "      ", &mut out);
        }
    }
    out.push_str(
        "\nEach long option also reads from the environment: --crash-limit is PANZER_CRASH_LIMIT. The command line wins.\n\
         Without -n signals are forwarded and panzer exits as COMMAND does. With -n TERM and INT stop the workers, a\n\
         second INT or QUIT kills them. Exit status: 125 when panzer refuses, 126 or 127 when COMMAND cannot be run.\n",
    );
    out
}

/// `-n, --workers N|auto`
#[must_use]
pub fn flags(option: &Opt) -> String {
    let short = option.short.map_or("    ".to_owned(), |letter| format!("-{letter}, "));
    let value = option.takes.value_name().map_or(String::new(), |name| format!(" {name}"));
    format!("{short}--{}{value}", option.long)
}

/// The part of a summary that fits in one line of `-h`.
fn first_clause(summary: &str) -> &str {
    let end = [": ", "; ", " ("].iter().filter_map(|end| summary.find(end)).min();
    end.and_then(|end| summary.get(..end)).unwrap_or(summary)
}

/// Writes `text` in lines of at most 80 columns.
fn wrap(text: &str, indent: &str, out: &mut String) {
    let mut column = 0;
    for word in text.split(' ') {
        if column > 0 && column + 1 + word.len() > 80 {
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
        assert!(short().lines().all(|line| line.len() <= 92), "{}", short());
        assert!(short().lines().count() <= 40);
    }

    #[test]
    fn the_long_help_fits_eighty_columns_but_for_its_last_words() {
        assert!(long().lines().all(|line| line.len() <= 120), "{}", long());
        for option in OPTIONS {
            assert!(long().contains(&flags(option)));
        }
    }
}
