//! Chooses what to do, does it, exits with its status.
#![cfg_attr(panzer_without_unwinder, no_main)]

use std::ffi::OsString;

use panzer::cli::{self, Elsewhere, help};
use panzer::config::{Config, Show};
use panzer::ctl;
use panzer::error::{Error, Status};
use panzer::linux::{self, Log, Machine};
use panzer::supervisor::report::Level;

panzer::begin_with!(start);

fn start(arguments: Vec<OsString>) -> u8 {
    linux::hold_signals();
    let mut log = Log::new(Level::Info, panzer::config::LogFormat::Text);
    let mut machine = Machine::enter(&mut log);
    let status = run(arguments, machine.as_mut(), &mut log).unwrap_or_else(|error| {
        log.say(Level::Error, "refused", &error.to_string());
        error.status()
    });
    if let Some(machine) = machine {
        machine.end(status, &mut log);
    }
    status.0
}

fn run(mut arguments: Vec<OsString>, mut machine: Option<&mut Machine>, log: &mut Log) -> Result<Status, Error> {
    if ctl::is_asked_for(&mut arguments) {
        return Ok(ctl::run(arguments, &linux::variable));
    }
    let file = machine.as_deref().and_then(Machine::file);
    let elsewhere = Elsewhere { variable: &linux::variable, read: &linux::read_options, file };
    let mut config = cli::parse(arguments, elsewhere)?;
    if let Some(machine) = &mut machine {
        machine.adapt(&mut config);
    }
    *log = Log::new(config.shown_level(), config.log_format);
    match shown(&config)? {
        Some(text) => print(&text),
        None => Ok(linux::prepare(&config, *log, machine.is_some())?.run()),
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
    linux::print(text).map_err(|error| Error::new("write to stdout", linux::words(error)))?;
    Ok(Status::SUCCESS)
}
