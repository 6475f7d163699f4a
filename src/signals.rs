//! The signal table: every number from 1 to 64 and what people call it (`signal(7)`).
//!
//! Pure data. Must never send or receive anything; `linux` does that.

use std::fmt;

/// A signal's number, 1 to 64. No other value can exist.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(u8);

/// The first number that is nobody's signal: an array that one indexes by number has this length.
pub const SIGNAL_COUNT: usize = 65;

/// glibc and musl keep 32 and 33 for their threads, so `RTMIN` is 34 for everyone who types it.
const RTMIN: u8 = 34;

/// Names of the numbers 1 to 31, the same on x86_64 and aarch64.
const NAMES: [(u8, &str); 31] = [
    (1, "HUP"),
    (2, "INT"),
    (3, "QUIT"),
    (4, "ILL"),
    (5, "TRAP"),
    (6, "ABRT"),
    (7, "BUS"),
    (8, "FPE"),
    (9, "KILL"),
    (10, "USR1"),
    (11, "SEGV"),
    (12, "USR2"),
    (13, "PIPE"),
    (14, "ALRM"),
    (15, "TERM"),
    (16, "STKFLT"),
    (17, "CHLD"),
    (18, "CONT"),
    (19, "STOP"),
    (20, "TSTP"),
    (21, "TTIN"),
    (22, "TTOU"),
    (23, "URG"),
    (24, "XCPU"),
    (25, "XFSZ"),
    (26, "VTALRM"),
    (27, "PROF"),
    (28, "WINCH"),
    (29, "IO"),
    (30, "PWR"),
    (31, "SYS"),
];

impl Signal {
    /// `SIGHUP`
    pub const HUP: Self = Self(1);
    /// `SIGINT`
    pub const INT: Self = Self(2);
    /// `SIGQUIT`
    pub const QUIT: Self = Self(3);
    /// `SIGBUS`
    pub const BUS: Self = Self(7);
    /// `SIGABRT`
    pub const ABRT: Self = Self(6);
    /// `SIGKILL`
    pub const KILL: Self = Self(9);
    /// `SIGUSR1`
    pub const USR1: Self = Self(10);
    /// `SIGSEGV`
    pub const SEGV: Self = Self(11);
    /// `SIGUSR2`
    pub const USR2: Self = Self(12);
    /// `SIGPIPE`
    pub const PIPE: Self = Self(13);
    /// `SIGTERM`
    pub const TERM: Self = Self(15);
    /// `SIGCHLD`
    pub const CHLD: Self = Self(17);
    /// `SIGCONT`
    pub const CONT: Self = Self(18);
    /// `SIGSTOP`
    pub const STOP: Self = Self(19);
    /// `SIGTSTP`
    pub const TSTP: Self = Self(20);
    /// `SIGTTIN`
    pub const TTIN: Self = Self(21);
    /// `SIGTTOU`
    pub const TTOU: Self = Self(22);

    /// The signal with this number, if there is one.
    #[must_use]
    pub fn from_number(number: i64) -> Option<Self> {
        let number = u8::try_from(number).ok()?;
        (1..=64).contains(&number).then_some(Self(number))
    }

    /// Reads `TERM`, `SIGTERM`, `term`, `15`, `RTMIN+3`, `RTMAX` or `RTMAX-2`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Ok(number) = name.parse::<u8>() {
            return Self::from_number(number.into());
        }
        if let Some(offset) = name.strip_prefix("RTMIN") {
            let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse::<u8>().ok()? };
            return Self::from_number(i64::from(RTMIN) + i64::from(offset));
        }
        if let Some(offset) = name.strip_prefix("RTMAX") {
            let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('-')?.parse::<u8>().ok()? };
            let number = 64 - i64::from(offset);
            return if number < i64::from(RTMIN) { None } else { Self::from_number(number) };
        }
        NAMES.iter().find(|(_, known)| *known == name).map(|(number, _)| Self(*number))
    }

    /// The number, 1 to 64.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }

    /// Where this signal stands in an array of [`SIGNAL_COUNT`].
    #[must_use]
    pub fn index(self) -> usize {
        self.0.into()
    }

    /// Every signal, in the order of the numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..=64).map(Self)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => write!(f, "SIG{name}"),
            None if self.0 == RTMIN => f.write_str("SIGRTMIN"),
            None if self.0 > RTMIN => write!(f, "SIGRTMIN+{}", self.0 - RTMIN),
            None => write!(f, "signal {}", self.0),
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_real_time_forms_are_read() {
        for (text, number) in [
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigterm", 15),
            ("15", 15),
            ("RTMIN", 34),
            ("RTMIN+3", 37),
            ("SIGRTMAX-2", 62),
            ("64", 64),
            ("33", 33),
        ] {
            assert_eq!(Signal::parse(text).map(Signal::number), Some(number), "{text}");
        }
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        for text in ["", "0", "65", "-1", "TERMINATE", "SIG", "RTMIN+31", "RTMIN+", "RTMAX-31", "RTMIN3"] {
            assert_eq!(Signal::parse(text), None, "{text}");
        }
    }

    #[test]
    fn every_name_reads_back_as_its_own_number() {
        for signal in Signal::all() {
            let name = signal.to_string();
            let typed = name.strip_prefix("signal ").unwrap_or(&name);
            assert_eq!(Signal::parse(typed), Some(signal), "{name}");
        }
    }
}
