//! `--check`: everything that can be checked without starting anything, and what would run. Must never change anything.

use std::fmt::Write;

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
    let _ = writeln!(out, "  program: {}", checked.program.display());
    match config.workers {
        None => out.push_str("  as: one child (init mode)\n"),
        Some(Workers::Count(count)) => drop(writeln!(out, "  workers: {count}")),
        Some(Workers::Auto) => drop(writeln!(out, "  workers: {} (auto)", cpus::usable())),
    }
    prepare::check_contradictions(config)?;
    let count = prepare::queues(config)?.count();
    if config.workers.is_some() {
        let shares = match config.share_ports {
            SharePorts::Auto => "shared where the kernel lets panzer see to it",
            SharePorts::On => "shared",
            SharePorts::Off => "each worker binds for itself",
        };
        let _ = writeln!(out, "  ports: {shares}; {count} queue{} each", if count == 1 { "" } else { "s" });
    }
    let directory = config.dir.clone().or_else(|| files::current_directory().ok()).unwrap_or_default();
    let _ = writeln!(out, "  in: {}", directory.display());
    if let (Some(user), Some(credentials)) = (&config.user, &checked.credentials) {
        let _ = writeln!(out, "  user: {user} (uid {}, gid {})", credentials.uid.as_raw(), credentials.gid.as_raw());
    }
    // Each stays bound until all were tried, so that two of the same are found.
    let mut bound = Vec::new();
    for wanted in &config.listen {
        bound.extend(listen::try_to_open(wanted)?);
        let _ = writeln!(out, "  listen: {}", wanted.typed);
    }
    if let Some(directory) = &config.env_dir {
        let count = checked.changes.len();
        let _ = writeln!(out, "  variables: {count} from {}", directory.display());
    }
    if config.workers.is_none() && config.stop.is_none() {
        out.push_str("  stop: signals are forwarded\n");
    } else {
        let _ = writeln!(out, "  stop: {}", Schedule::or_standard(config.stop.as_ref()));
    }
    if config.workers.is_some() {
        describe_replacement(config, &mut out)?;
    }
    Ok(out)
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
    let _ = writeln!(out, "  ready: {ready}; within {}", Rounded(config.policy.ready_timeout));
    if let Some(schedule) = &config.reload_stop {
        let _ = writeln!(out, "  stop in a reload: {schedule}");
    }
    if let Some(wanted) = &config.metrics {
        listen::try_to_open(wanted)?;
        let _ = writeln!(out, "  metrics: {}", wanted.typed);
    }
    match &config.control {
        ControlSocket::Abstract => {}
        ControlSocket::Off => out.push_str("  control: off\n"),
        ControlSocket::Path(path) => {
            listen::check_path(&state_files::absolute("--control", path)?)
                .map_err(|problem| Error::new(format!("use --control {}", path.display()), problem))?;
            let _ = writeln!(out, "  control: {}", path.display());
        }
    }
    if let Some(path) = &config.pid_file {
        let path = &state_files::absolute("--pid-file", path)?;
        state_files::lock_present(path)?;
        state_files::check("--pid-file", path)?;
        let _ = writeln!(out, "  pid file: {}", path.display());
    }
    if let Some(path) = &config.status_file {
        let path = &state_files::absolute("--status-file", path)?;
        state_files::check("--status-file", path)?;
        let _ = writeln!(out, "  status file: {}", path.display());
    }
    Ok(())
}
