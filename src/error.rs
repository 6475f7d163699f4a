//! How panzer refuses: one line `cannot VERB OBJECT: cause`, and the status that it exits with.
//!
//! Must never print by itself: `main` and `linux::log` do that, in one place each.

use std::ffi::OsStr;
use std::fmt;

/// What panzer exits with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status(pub u8);

impl Status {
    /// All went as it should.
    pub const SUCCESS: Self = Self(0);
    /// panzer itself refuses: a bad option, a port in use, no such user.
    pub const REFUSED: Self = Self(125);
    /// The command was found and cannot be executed.
    pub const CANNOT_EXECUTE: Self = Self(126);
    /// The command was not found.
    pub const NOT_FOUND: Self = Self(127);
    /// Something had to be killed in a stop: 128 + SIGKILL.
    pub const KILLED: Self = Self(137);
}

/// A refusal: what panzer could not do, and why. A pointer, so that handing it on costs each caller a register.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error(Box<Refusal>);

#[derive(Clone, PartialEq, Eq, Debug)]
struct Refusal {
    action: String,
    cause: String,
    status: Status,
}

impl Error {
    /// `cannot ACTION: CAUSE`, status 125. The action holds the value as the user typed it.
    pub fn new(action: impl Into<String>, cause: impl Into<String>) -> Self {
        Self::boxed(action.into(), cause.into())
    }

    #[cold]
    #[inline(never)]
    fn boxed(action: String, cause: String) -> Self {
        Self(Box::new(Refusal { action, cause, status: Status::REFUSED }))
    }

    /// `cannot ACTION OBJECT: CAUSE`. One function for all, so that each refusal is a few bytes where it is made.
    #[cold]
    #[inline(never)]
    pub fn about(action: &str, object: &dyn fmt::Display, cause: String) -> Self {
        Self::new(format!("{action} {object}"), cause)
    }

    /// The same refusal, with another exit status.
    #[must_use]
    pub fn with_status(mut self, status: Status) -> Self {
        self.0.status = status;
        self
    }

    /// What panzer exits with for it.
    #[must_use]
    pub fn status(&self) -> Status {
        self.0.status
    }
}

impl fmt::Display for Error {
    /// One line whatever the user typed: control characters are shown as escapes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = format!("cannot {}: {}", self.0.action, self.0.cause);
        for c in line.chars() {
            if c.is_ascii_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}

/// A value as the user typed it: bare, or in quotes where it would not be seen otherwise.
pub struct Typed<'a>(pub &'a OsStr);

impl fmt::Display for Typed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("\"\"") } else { write!(f, "{}", self.0.display()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_whatever_was_typed() {
        let error = Error::new("use --stop a\nb", "no such signal");
        assert_eq!(error.to_string(), "cannot use --stop a\\nb: no such signal");
    }
}
