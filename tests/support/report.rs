//! Reads what `examples/probe.rs` has written: its report, and the signals that it recorded.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::wait_for;

/// The report of a probe.
#[derive(Debug)]
pub(crate) struct Report {
    values: BTreeMap<String, String>,
}

impl Report {
    /// Waits for the report at this path.
    #[track_caller]
    pub(crate) fn wait(path: &Path) -> Report {
        let text = wait_for(&format!("the report {}", path.display()), || fs::read_to_string(path).ok());
        Report::parse(&text)
    }

    /// Reads a report as it came over standard output.
    pub(crate) fn parse(text: &str) -> Report {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        Report { values: lines.map(|(key, value)| (key.to_string(), value.to_string())).collect() }
    }

    /// One value; of several lines with this key, the last one's.
    #[track_caller]
    pub(crate) fn get(&self, key: &str) -> &str {
        self.values.get(key).unwrap_or_else(|| panic!("no {key} in the report"))
    }

    /// An environment variable of the probe.
    pub(crate) fn env(&self, name: &str) -> Option<&str> {
        self.values.get(&format!("env:{name}")).map(String::as_str)
    }

    /// All environment variables whose name begins so.
    pub(crate) fn env_names(&self, prefix: &str) -> Vec<&str> {
        let names = self.values.keys().filter_map(|key| key.strip_prefix("env:"));
        names.filter(|name| name.starts_with(prefix)).collect()
    }

    /// A value that is a number.
    #[track_caller]
    pub(crate) fn number(&self, key: &str) -> u32 {
        let value = self.get(key);
        value.parse().unwrap_or_else(|_| panic!("{key}={value} is no number"))
    }

    /// The open descriptors: number and target.
    #[track_caller]
    pub(crate) fn fds(&self) -> Vec<(u32, String)> {
        let parse = |entry: &str| {
            let (number, rest) = entry.split_once(':').expect("a descriptor has a number");
            let (target, _) = rest.rsplit_once(':').expect("a descriptor has a flag");
            (number.parse().expect("a descriptor's number"), target.to_string())
        };
        self.get("fds").split(',').map(parse).collect()
    }
}

/// The signals in the file of a probe's `record=FILE`, in the order of their arrival.
pub(crate) fn recorded(file: &Path) -> Vec<i32> {
    let text = fs::read_to_string(file).unwrap_or_default();
    // A line without its end is still being written.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| line.parse().expect("a signal's number")).collect()
}
