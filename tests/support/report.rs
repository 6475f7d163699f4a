//! Reads what `examples/probe.rs` has written: its report, and the signals that it recorded.

use std::fs;
use std::path::Path;

use super::wait_for;

/// The report of a probe.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    lines: Vec<(String, String)>,
}

/// One open descriptor of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// Its number.
    pub(crate) number: u32,
    /// What it is: `/dev/null`, `pipe:[123]`, `socket:[123]`.
    pub(crate) target: String,
    /// Whether it is closed at exec.
    pub(crate) cloexec: bool,
}

impl Report {
    /// Reads the report at this path, or None while there is none.
    pub(crate) fn read(path: impl AsRef<Path>) -> Option<Report> {
        fs::read_to_string(path).ok().map(|text| Report::parse(&text))
    }

    /// Waits for the report at this path.
    #[track_caller]
    pub(crate) fn wait(path: &Path) -> Report {
        wait_for(&format!("the report {}", path.display()), || Report::read(path))
    }

    /// Reads a report as it came over standard output.
    pub(crate) fn parse(text: &str) -> Report {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        Report { lines: lines.map(|(key, value)| (key.to_string(), value.to_string())).collect() }
    }

    /// Every value of a key.
    pub(crate) fn all(&self, key: &str) -> Vec<&str> {
        self.lines.iter().filter(|(known, _)| known == key).map(|(_, value)| value.as_str()).collect()
    }

    /// The only value of a key.
    #[track_caller]
    pub(crate) fn get(&self, key: &str) -> &str {
        match self.all(key)[..] {
            [value] => value,
            ref other => panic!("{key} is there {} times: {other:?}", other.len()),
        }
    }

    /// A value that is a number.
    #[track_caller]
    pub(crate) fn number(&self, key: &str) -> u32 {
        let value = self.get(key);
        value.parse().unwrap_or_else(|_| panic!("{key}={value} is not a number"))
    }

    /// An environment variable, which must not be there twice.
    #[track_caller]
    pub(crate) fn env(&self, name: &str) -> Option<&str> {
        match self.all(&format!("env:{name}"))[..] {
            [] => None,
            [value] => Some(value),
            ref other => panic!("{name} is there {} times: {other:?}", other.len()),
        }
    }

    /// The names of all environment variables that begin with this, sorted.
    pub(crate) fn env_names(&self, prefix: &str) -> Vec<&str> {
        let names = self.lines.iter().filter_map(|(key, _)| key.strip_prefix("env:"));
        let mut names: Vec<&str> = names.filter(|name| name.starts_with(prefix)).collect();
        names.sort_unstable();
        names
    }

    /// The open descriptors.
    #[track_caller]
    pub(crate) fn descriptors(&self) -> Vec<Descriptor> {
        let one = |entry: &str| {
            let (number, rest) = entry.split_once(':')?;
            let (target, flag) = rest.rsplit_once(':')?;
            Some(Descriptor { number: number.parse().ok()?, target: target.to_string(), cloexec: flag == "cloexec" })
        };
        self.get("fds").split(',').map(|entry| one(entry).expect("N:TARGET:FLAG")).collect()
    }
}

/// The signals in the file of a probe's `record=FILE`, in the order of their arrival.
pub(crate) fn recorded(file: &Path) -> Vec<i32> {
    let text = fs::read_to_string(file).unwrap_or_default();
    // A line without its end is still being written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| line.parse().expect("a signal's number")).collect()
}
