//! Takes the command line apart: `-n2`, `-n 2`, `-n=2`, `-qn 2`, `--workers 2`, `--workers=2`, `--`. The first word that is
//! no option is the command, and what comes after it is the command's own.
//!
//! Must never know an option's name.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::vec::IntoIter;

use crate::error::Error;

/// What comes next.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Argument {
    /// `-n`
    Short(char),
    /// `--workers`, without the dashes
    Long(String),
    /// The command.
    Command(OsString),
}

/// The command line, and how far it has been read.
pub(super) struct Arguments {
    words: IntoIter<OsString>,
    /// The last option's word.
    word: OsString,
    /// Where that begins which is left of it: more letters, or a value behind an equals sign.
    at: usize,
}

impl Arguments {
    pub(super) fn new(words: Vec<OsString>) -> Self {
        Self { words: words.into_iter(), word: OsString::new(), at: 0 }
    }

    /// The next option, or the command; `None`: there is neither.
    ///
    /// # Errors
    /// The option before has been given a value that nobody has asked for.
    pub(super) fn next(&mut self) -> Result<Option<Argument>, Error> {
        if self.left().starts_with(b"=") {
            return Err(Error::about("use", &self.word.display(), "it takes no value".to_owned()));
        }
        if self.left().is_empty() {
            let Some(word) = self.words.next() else { return Ok(None) };
            match word.as_bytes() {
                b"--" => return Ok(self.words.next().map(Argument::Command)),
                [b'-', b'-', name @ ..] => {
                    let name = name.split(|byte| *byte == b'=').next().unwrap_or_default();
                    self.at = 2 + name.len();
                    let name = String::from_utf8_lossy(name).into_owned();
                    self.word = word;
                    return Ok(Some(Argument::Long(name)));
                }
                [b'-', _, ..] => self.at = 1,
                _ => return Ok(Some(Argument::Command(word))),
            }
            self.word = word;
        }
        let letter = String::from_utf8_lossy(self.left()).chars().next().unwrap_or_default();
        // Of more bytes than one is only what no option is called.
        self.at += 1;
        Ok(Some(Argument::Short(letter)))
    }

    /// The value of the option that came last; `None`: it has none.
    pub(super) fn value(&mut self) -> Option<OsString> {
        let left = self.left();
        if left.is_empty() {
            return self.words.next();
        }
        let value = left.strip_prefix(b"=").unwrap_or(left).to_vec();
        self.at = self.word.len();
        Some(OsString::from_vec(value))
    }

    /// The words after the command.
    pub(super) fn rest(self) -> IntoIter<OsString> {
        self.words
    }

    fn left(&self) -> &[u8] {
        self.word.as_bytes().get(self.at..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The options as read, where `-n`, `--name` and no others take a value; then the command and what is left.
    fn read(words: &[&[u8]]) -> Result<String, String> {
        let words = words.iter().map(|word| OsString::from_vec(word.to_vec())).collect();
        let (mut arguments, mut out) = (Arguments::new(words), String::new());
        while let Some(argument) = arguments.next().map_err(|error| error.to_string())? {
            let takes = match argument {
                Argument::Command(command) => {
                    let rest = std::iter::once(command).chain(arguments.rest());
                    return Ok(rest.fold(out, |out, word| format!("{out}<{}>", word.display())));
                }
                Argument::Short(letter) => {
                    out.push_str(&format!("-{letter}"));
                    letter == 'n'
                }
                Argument::Long(name) => {
                    out.push_str(&format!("--{name}"));
                    name == "name"
                }
            };
            if takes {
                let value = arguments.value().map(|value| value.display().to_string());
                out.push_str(&format!("({})", value.ok_or("no value")?));
            }
        }
        Ok(out)
    }

    #[test]
    fn an_option_and_its_value_may_be_written_in_each_usual_way() {
        for words in [&[&b"-n2"[..]][..], &[b"-n", b"2"], &[b"-n=2"]] {
            assert_eq!(read(words).unwrap(), "-n(2)");
        }
        for (words, read_as) in [
            (&[&b"--name=a=b"[..], b"x"][..], "--name(a=b)<x>"),
            (&[b"--name", b"a", b"x"], "--name(a)<x>"),
            (&[b"--name=", b"x"], "--name()<x>"),
            (&[b"--name", b"", b"x"], "--name()<x>"),
            (&[b"--name", b"--", b"x"], "--name(--)<x>"),
            (&[b"-qn2", b"x"], "-q-n(2)<x>"),
            (&[b"-qv", b"-n", b"-q", b"x"], "-q-v-n(-q)<x>"),
            (&[b"-n="], "-n()"),
            (&[b"-", b"-q"], "<-><-q>"),
            (&[b"", b"-q"], "<><-q>"),
            (&[b"-q", b"--", b"--", b"-q"], "-q<--><-q>"),
            (&[b"-q", b"--"], "-q"),
            (&[b"x", b"--", b"-n"], "<x><--><-n>"),
            (&[b"-=", b"x"], "-=<x>"),
            (&[b"-n\xff"], "-n(\u{fffd})"),
            (&[b"--\xff"], "--\u{fffd}"),
            (&[], ""),
        ] {
            assert_eq!(read(words).unwrap(), read_as);
        }
    }

    #[test]
    fn a_value_that_nobody_asks_for_is_an_error() {
        for words in [&[&b"--quiet=1"[..], b"x"][..], &[b"--quiet="], &[b"-q=1"], &[b"-vq="]] {
            let word = String::from_utf8_lossy(words[0]);
            assert_eq!(read(words), Err(format!("cannot use {word}: it takes no value")));
        }
    }

    #[test]
    fn what_is_no_name_is_shown_as_it_was_typed() {
        let first = |word: &[u8]| Arguments::new(vec![OsString::from_vec(word.to_vec())]).next().unwrap().unwrap();
        assert_eq!(first("-é".as_bytes()), Argument::Short('é'));
        assert_eq!(first(b"-\xff"), Argument::Short('\u{fffd}'));
        assert_eq!(first(b"--=y"), Argument::Long(String::new()));
    }

    #[test]
    fn a_value_that_is_missing_is_none() {
        for words in [&[&b"-n"[..]][..], &[b"-q", b"--name"]] {
            assert_eq!(read(words), Err("no value".to_owned()));
        }
    }
}
