//! `--check`: everything that can be checked without starting anything, and what would run. Must never change anything.

use std::fmt::{Display, Write};

use super::{cpus, files, listen, prepare, state_files};
use crate::config::{Config, ControlSocket, SharePorts, Workers};
use crate::error::Error;
use crate::supervisor::Ready;
use crate::supervisor::report::Rounded;
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
    let checked = prepare::check_command(config)?;
    line(&mut out, "program", &checked.program.display());
    match config.workers {
        None => out.push_str("  as: one child (init mode)\n"),
        Some(Workers::Count(count)) => line(&mut out, "workers", &count),
        Some(Workers::Auto) => line(&mut out, "workers", &format_args!("{} (auto)", cpus::usable())),
    }
    prepare::check_contradictions(config)?;
    let count = prepare::queues(config)?.count();
    if config.workers.is_some() {
        let shares = match config.share_ports {
            SharePorts::Auto => "shared where the kernel lets panzer see to it",
            SharePorts::On => "shared",
            SharePorts::Off => "each worker binds for itself",
        };
        line(&mut out, "ports", &format_args!("{shares}; {count} queue{} each", if count == 1 { "" } else { "s" }));
    }
    let directory = config.dir.clone().or_else(|| files::current_directory().ok()).unwrap_or_default();
    line(&mut out, "in", &directory.display());
    if let (Some(user), Some(credentials)) = (&config.user, &checked.credentials) {
        line(
            &mut out,
            "user",
            &format_args!("{user} (uid {}, gid {})", credentials.uid.as_raw(), credentials.gid.as_raw()),
        );
    }
    // Each stays bound until all were tried, so that two of the same are found.
    let mut bound = Vec::new();
    for wanted in &config.listen {
        bound.extend(listen::try_to_open(wanted)?);
        line(&mut out, "listen", &wanted.typed);
    }
    if let Some(directory) = &config.env_dir {
        let count = checked.changes.len();
        line(&mut out, "variables", &format_args!("{count} from {}", directory.display()));
    }
    if config.workers.is_none() && config.stop.is_none() {
        out.push_str("  stop: signals are forwarded\n");
    } else {
        line(&mut out, "stop", &Schedule::or_standard(config.stop.as_ref()));
    }
    if config.workers.is_some() {
        describe_replacement(config, &mut out)?;
    }
    Ok(out)
}

/// A line of the description.
#[inline(never)]
fn line(out: &mut String, name: &str, value: &dyn Display) {
    let _ = writeln!(out, "  {name}: {value}");
}

/// When a worker is ready and replaced, and who can read of it.
fn describe_replacement(config: &Config, out: &mut String) -> Result<(), Error> {
    let ready = match config.policy.ready {
        Ready::Exec => "when executed".to_owned(),
        Ready::Delay(delay) => format!("after {}", Rounded(delay)),
        Ready::Bind => "when it listens".to_owned(),
        Ready::BindOrDelay(delay) => format!("when it listens, or after {}", Rounded(delay)),
        Ready::Notify => "when it sends READY=1".to_owned(),
        Ready::Descriptor => "when it writes a newline to PANZER_READY_FD".to_owned(),
    };
    line(out, "ready", &format_args!("{ready}; within {}", Rounded(config.policy.ready_timeout)));
    if !config.policy.stop_delay.is_zero() {
        line(out, "stop delay", &Rounded(config.policy.stop_delay));
    }
    if let Some(schedule) = &config.reload_stop {
        line(out, "stop in a reload", &schedule);
    }
    if let Some(wanted) = &config.metrics {
        listen::try_to_open(wanted)?;
        line(out, "metrics", &wanted.typed);
    }
    match &config.control {
        ControlSocket::Abstract => {}
        ControlSocket::Off => out.push_str("  control: off\n"),
        ControlSocket::Path(path) => {
            listen::check_path(&state_files::absolute("--control", path)?)
                .map_err(|problem| Error::about("use --control", &path.display(), problem))?;
            line(out, "control", &path.display());
        }
    }
    if let Some(path) = &config.pid_file {
        let path = &state_files::absolute("--pid-file", path)?;
        state_files::lock_present(path)?;
        state_files::check("--pid-file", path)?;
        line(out, "pid file", &path.display());
    }
    if let Some(path) = &config.status_file {
        let path = &state_files::absolute("--status-file", path)?;
        state_files::check("--status-file", path)?;
        line(out, "status file", &path.display());
    }
    Ok(())
}
