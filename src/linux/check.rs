//! `--check`: everything that can be checked without starting anything, and what would run.

use std::fmt::Write;

use super::{cpus, listen, prepare, users};
use crate::config::{Config, Workers};
use crate::error::Error;
use crate::supervisor::stop::Schedule;

/// Checks what a start would need and describes it, a line each.
///
/// # Errors
/// The first thing that a start would refuse.
pub fn check(config: &Config) -> Result<String, Error> {
    let mut out = String::from("would run:");
    for argument in &config.command {
        let _ = write!(out, " {}", argument.display());
    }
    out.push('\n');
    let surroundings = prepare::surroundings(config)?;
    let _ = writeln!(out, "  program: {}", surroundings.program.display());
    match config.workers {
        None => out.push_str("  as: one child of an init\n"),
        Some(Workers::Count(count)) => drop(writeln!(out, "  as: {count} workers")),
        Some(Workers::Auto) => drop(writeln!(out, "  as: {} workers (auto)", cpus::usable())),
    }
    let directory = config.dir.clone().or_else(|| std::env::current_dir().ok()).unwrap_or_default();
    let _ = writeln!(out, "  in: {}", directory.display());
    if let Some(user) = &config.user {
        let credentials = users::look_up(user)?;
        let _ = writeln!(out, "  user: {} (uid {}, gid {})", user, credentials.uid.as_raw(), credentials.gid.as_raw());
    }
    for wanted in &config.listen {
        listen::check(wanted)?;
        let _ = writeln!(out, "  listen: {}", wanted.typed);
    }
    if let Some(directory) = &config.env_dir {
        let count = surroundings.changes.len();
        let _ = writeln!(out, "  variables: {count} from {}", directory.display());
    }
    match (&config.stop, config.workers) {
        (Some(schedule), _) => drop(writeln!(out, "  stop: {schedule}")),
        (None, Some(_)) => drop(writeln!(out, "  stop: {}", Schedule::standard())),
        (None, None) => out.push_str("  stop: signals are forwarded\n"),
    }
    Ok(out)
}
