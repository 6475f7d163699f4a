//! Chooses what to do, does it, exits with its status.

use std::io::Write;
use std::process::ExitCode;

use panzer::cli::{self, help};
use panzer::config::{Config, Show};
use panzer::error::{Error, Status};
use panzer::linux::{self, Log};
use panzer::supervisor::report::Level;

fn main() -> ExitCode {
    linux::hold_signals();
    let mut log = Log::new(Level::Info, panzer::config::LogFormat::Text);
    let status = run(&mut log).unwrap_or_else(|error| {
        log.say(Level::Error, "refused", &error.to_string());
        error.status()
    });
    ExitCode::from(status.0)
}

fn run(log: &mut Log) -> Result<Status, Error> {
    let config = cli::parse(std::env::args_os().skip(1), |name| std::env::var_os(name))?;
    *log = Log::new(config.shown_level(), config.log_format);
    match shown(&config)? {
        Some(text) => print(&text),
        None => Ok(linux::prepare(&config, *log)?.run()),
    }
}

/// What is to be printed instead of running anything.
fn shown(config: &Config) -> Result<Option<String>, Error> {
    match config.show {
        Some(Show::ShortHelp) => Ok(Some(help::short())),
        Some(Show::Help) => Ok(Some(help::long())),
        Some(Show::Version) => Ok(Some(format!("panzer {}\n", panzer::config::VERSION))),
        None if config.check => linux::check(config).map(Some),
        None => Ok(None),
    }
}

fn print(text: &str) -> Result<Status, Error> {
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| Error::new("write to stdout", panzer::error::cause(&error)))?;
    Ok(Status::SUCCESS)
}
