//! Sends requests to a server and counts exactly what became of them.
//!
//! ```text
//! load ADDRESS [--seconds S] [--until-file PATH] [--connections N] [--keepalive]
//! load --free-port
//! ```
//!
//! `ADDRESS` is `127.0.0.1:8080` or the path of a UNIX socket. It ends after `S` seconds, or when
//! `PATH` appears, whichever is first; with neither, after ten seconds. It prints one line and exits
//! with status 0 when every request was answered, else 1. The tests use the same client. `--free-port` prints the number
//! of a TCP port that nobody has bound at that moment.

#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../tests/support/load.rs"]
mod load;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use load::{Addr, Load, LoadOptions, Mode};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs the load and returns whether nothing was lost.
fn run() -> Result<bool, String> {
    let mut addr: Option<Addr> = None;
    let mut options = LoadOptions::default();
    let mut seconds: Option<f64> = None;
    let mut until_file: Option<PathBuf> = None;
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--seconds" => seconds = Some(parse(&value()?)?),
            "--connections" => options.connections = parse(&value()?)?,
            "--until-file" => until_file = Some(value()?.into()),
            "--free-port" => {
                println!("{}", free_port().map_err(|error| error.to_string())?);
                return Ok(true);
            }
            "--keepalive" => options.mode = Mode::KeepAlive,
            other if other.starts_with("--") => return Err(format!("unknown option {other}")),
            other => addr = Some(other.parse()?),
        }
    }
    let addr = addr.ok_or("usage: load ADDRESS [--seconds S] [--until-file PATH] [--connections N] [--keepalive]")?;
    if seconds.is_none() && until_file.is_none() {
        seconds = Some(10.0);
    }
    let end = seconds
        .map(Duration::try_from_secs_f64)
        .transpose()
        .map_err(|error| error.to_string())?
        .map(|length| Instant::now() + length);

    let load = Load::start(addr, options);
    while end.is_none_or(|end| Instant::now() < end) && !until_file.as_ref().is_some_and(|path| path.exists()) {
        thread::sleep(Duration::from_millis(10));
    }
    let report = load.stop();
    println!("{report}");
    Ok(report.lost() == 0)
}

fn free_port() -> std::io::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn parse<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("not a number: {text}"))
}
