//! The client side of `panzer ctl`: finds a running panzer, asks it one thing, prints what it answers.
//!
//! Must never wait without limit for a panzer that does not answer, nor let what it answers steer the terminal.
//!
//! Functions that are called once are kept out of their callers where the file is smaller so.
//!
//! - `commands`: the table of commands and options, and what the help says of them
//! - `target`: which panzer is meant
//! - `connection`: a request and its answer
//! - `table`: the status for people
//! - `top`: the same, live

pub mod commands;
mod connection;
mod table;
mod target;
mod top;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use rustix::termios::isatty;

use crate::config::LogFormat;
use crate::error::{Error, Status};
use crate::linux::{self, Log};
use crate::records::{Record, records};
use crate::supervisor::report::Level;
use commands::Given;
use connection::END;
use table::{View, clean};
use target::Server;

/// The environment.
type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// What ends a command early: the line that says so, and the exit status. One word, since it is passed on everywhere.
struct Failure(Box<(String, Status)>);

impl Failure {
    /// Something could not be asked.
    #[inline(never)]
    fn new(action: &str, cause: &str) -> Self {
        Error::new(action, cause).into()
    }

    /// What was typed means nothing.
    #[inline(never)]
    fn unusable(what: &str, typed: &OsStr, cause: &str) -> Self {
        let space = if what.is_empty() || typed.is_empty() { "" } else { " " };
        Self::new(&format!("use {what}{space}{}", typed.display()), cause)
    }

    /// It was asked, and this line says why it was not done.
    fn answer(line: String) -> Self {
        Self(Box::new((line, REFUSED_BY_PANZER)))
    }

    /// The same line, where it is an answer that there is none any more.
    fn into_answer(self) -> Self {
        Self::answer(self.line())
    }

    fn line(self) -> String {
        self.0.0
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(Box::new((error.to_string(), error.status())))
    }
}

/// What the client exits with when panzer answers no.
const REFUSED_BY_PANZER: Status = Status(1);

/// Takes the program's name off the arguments, and the word `ctl`; whether it is the client that is meant.
pub fn is_asked_for(arguments: &mut Vec<OsString>) -> bool {
    let program = arguments.first().map(|program| program.as_bytes()).unwrap_or_default();
    let is_called_so = program == b"panzerctl" || program.ends_with(b"/panzerctl");
    let is_told_so = !is_called_so && arguments.get(1).is_some_and(|word| word == "ctl");
    let taken = 1 + usize::from(is_told_so);
    arguments.drain(..taken.min(arguments.len()));
    is_called_so || is_told_so
}

/// Does what the arguments after `ctl` ask for, and says why it could not.
pub fn run(arguments: Vec<OsString>, variable: &dyn Fn(&str) -> Option<OsString>) -> Status {
    linux::release_signals();
    try_to_run(arguments, variable).unwrap_or_else(|failure| {
        Log::new(Level::Info, LogFormat::Text).say(Level::Error, "refused", &failure.0.0);
        failure.0.1
    })
}

fn try_to_run(arguments: Vec<OsString>, variable: Variables<'_>) -> Result<Status, Failure> {
    let Some(given) = commands::parse(arguments)? else { return print(&commands::help()) };
    let mut server = target::find(&given, variable)?;
    let run = given.run();
    run(&given, &mut server, variable)
}

fn print(text: &str) -> Result<Status, Failure> {
    match linux::print(text) {
        Ok(()) => Ok(Status::SUCCESS),
        Err(error) => Err(Failure::new("write to stdout", &linux::words(error))),
    }
}

/// The whole answer to a request, of which the last line must be `end`.
fn ask(server: &mut Server, request: &str, end: &str) -> Result<String, Failure> {
    let mut connection = server.send(request)?;
    connection.begin()?;
    connection.rest(end)
}

/// The document's record about panzer itself.
fn of_panzer(document: &str) -> Option<Record<'_>> {
    records(document).next().map(|(_, record)| record)
}

/// `status`
fn status(given: &Given, server: &mut Server, variable: Variables<'_>) -> Result<Status, Failure> {
    let document = ask(server, &given.request, END)?;
    if given.has("--json") {
        return print(&document);
    }
    let stdout = rustix::stdio::stdout();
    let (mut columns, mut is_colourful) = (80, false);
    if isatty(stdout) {
        columns = table::size(stdout).0;
        is_colourful = table::is_colourful(variable);
    }
    let view = View { columns, lines: None, is_colourful, before: "", measured: 0 };
    print(&table::page(&document, &view))
}

/// `ready`
fn ready(given: &Given, server: &mut Server, _: Variables<'_>) -> Result<Status, Failure> {
    let document = ask(server, "ready", "}\n")?;
    let number = |name: &str| of_panzer(&document)?.thousandths(name).map(|number| number / 1000);
    let (Some(ready), Some(workers)) = (number("ready"), number("workers")) else {
        return Err(Failure::new("read the answer", "it gives no numbers"));
    };
    let least = given.least_ready.map_or(workers, u64::from);
    let wanted = if least == workers { String::new() } else { format!("; {least} are enough") };
    print(&format!("{ready} of {workers} workers are ready{wanted}\n"))?;
    Ok(if ready >= least { Status::SUCCESS } else { REFUSED_BY_PANZER })
}

/// `reload`
fn reload(given: &Given, server: &mut Server, _: Variables<'_>) -> Result<Status, Failure> {
    if !given.has("--wait") {
        let body = ask(server, "reload", "")?;
        let generation = of_panzer(&body).and_then(|record| record.get("generation")).unwrap_or_default();
        return print(&format!("reloading to generation {}\n", clean(generation)));
    }
    let mut connection = server.send("reload wait")?;
    connection.begin()?;
    connection.wait_without_limit();
    let is_shown = isatty(rustix::stdio::stderr());
    let mut end = "";
    let ended = loop {
        let line = match connection.line() {
            Ok(Some(line)) => line,
            Ok(None) => break Err(Failure::new("wait for the reload", "panzer has ended or is stopping").into_answer()),
            Err(failure) => break Err(failure),
        };
        let Some(record) = of_panzer(&line) else { continue };
        let get = |name: &str| clean(record.get(name).unwrap_or_default());
        if let Some(result) = record.get("result") {
            let message = get("message");
            break if result == "ok" { Ok(message + "\n") } else { Err(Failure::answer(message)) };
        }
        if is_shown && record.get("of").is_some() {
            progress(&format!("\rreloading to generation {}: {} of {}", get("generation"), get("done"), get("of")));
            end = "\n";
        }
    };
    progress(end);
    print(&ended?)
}

fn progress(text: &str) {
    let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
}

/// `restart`, `scale`, `stop`, `signal`: panzer says in words what it does.
fn tell(given: &Given, server: &mut Server, _: Variables<'_>) -> Result<Status, Failure> {
    print(&ask(server, &given.request, "")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_meant_by_its_name_or_by_the_first_word() {
        for (arguments, is_client, left) in [
            (&["panzer", "ctl", "status"][..], true, 1),
            (&["/usr/bin/panzerctl", "ctl"], true, 1),
            (&["panzerctl"], true, 0),
            (&["panzer", "--", "ctl"], false, 2),
            (&["xpanzerctl", "ls"], false, 1),
            (&[], false, 0),
        ] {
            let mut arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            assert_eq!((is_asked_for(&mut arguments), arguments.len()), (is_client, left));
        }
    }
}
