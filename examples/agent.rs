//! The worker of the tests that run in a machine: it does what it is told over its port, since there is no shell.
//!
//! ```text
//! agent [FILE]
//! ```
//!
//! It serves the inherited listener at descriptor 3, or port 8080. A client writes one line and reads the answer up to the
//! connection's end. With a file it does that file's lines first, and their answers go to stdout.
//!
//! - `pid`, `variable NAME`, `read PATH`, `link PATH`, `list DIRECTORY`: what there is
//! - `run PROGRAM ARGUMENT...`: its output, and `status=N`
//! - `terminal`: the controlling terminal, the foreground group and its own group, as numbers
//! - `limit PID RESOURCE BYTES`: `prlimit(2)` of `as`
//! - `signal PID NUMBER`: `kill(2)`
//! - `break PID`: puts an instruction that there is not where the process will go on
//! - `write PATH TEXT`, `mount TYPE SOURCE PLACE`: a plus in the path is a blank
//! - `become PROGRAM ARGUMENT...`: for what comes before panzer
//! - `spawn PROGRAM ARGUMENT...`: a process that nobody waits for
//! - `deaf`: sleeps for good, and does not heed TERM
//! - `exit STATUS`: ends the worker

#![allow(clippy::indexing_slicing, reason = "it is a part of tests")]

use std::error::Error;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::{env, fs, process};

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

fn main() -> ExitCode {
    let Err(error) = run() else { return ExitCode::SUCCESS };
    eprintln!("agent: {error}");
    ExitCode::FAILURE
}

fn run() -> Result<(), Box<dyn Error>> {
    if let Some(path) = env::args_os().nth(1) {
        for line in fs::read_to_string(path)?.lines() {
            println!("{}", answer(line).unwrap_or_else(|error| error.to_string()).trim_end());
        }
    }
    let listener = match env::var("LISTEN_FDS") {
        Ok(_) => inherited()?,
        Err(_) => TcpListener::bind("0.0.0.0:8080")?,
    };
    loop {
        let (connection, _) = listener.accept()?;
        let mut line = String::new();
        BufReader::new(&connection).read_line(&mut line)?;
        let answer = answer(line.trim_end()).unwrap_or_else(|error| format!("error: {error}\n"));
        let _ = (&connection).write_all(answer.as_bytes());
    }
}

/// A copy of the listener at descriptor 3, by the kernel's own list of what is open here.
fn inherited() -> Result<TcpListener, Box<dyn Error>> {
    let own = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())?;
    let copy: OwnedFd = rustix::process::pidfd_getfd(&own, 3, rustix::process::PidfdGetfdFlags::empty())?;
    Ok(copy.into())
}

fn answer(line: &str) -> Result<String, Box<dyn Error>> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    Ok(match words.as_slice() {
        ["pid"] => format!("{}\n", process::id()),
        ["variable", name] => format!("{}\n", env::var(name)?),
        ["read", path] => String::from_utf8_lossy(&fs::read(path)?).into_owned(),
        ["write", path, text] => {
            fs::write(path.replace('+', " "), text)?;
            "written\n".to_owned()
        }
        ["link", path] => format!("{}\n", fs::read_link(path)?.display()),
        ["list", path] => {
            let mut names: Vec<String> = fs::read_dir(path)?
                .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
                .collect::<Result<_, _>>()?;
            names.sort();
            names.join("\n")
        }
        ["run", program, arguments @ ..] => {
            let output = Command::new(program).args(arguments).output()?;
            let mut text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            writeln!(text, "status={}", output.status.code().unwrap_or(-1))?;
            text
        }
        ["terminal"] => {
            let stdin = rustix::stdio::stdin();
            let foreground = rustix::termios::tcgetpgrp(stdin)?;
            let group = rustix::process::getpgrp();
            let session = rustix::process::getsid(None)?;
            format!("foreground={foreground} group={group} session={session}\n")
        }
        ["limit", pid, bytes] => {
            let limit = Rlimit { current: Some(bytes.parse()?), maximum: None };
            prlimit(Pid::from_raw(pid.parse()?), Resource::As, limit)?;
            "limited\n".to_owned()
        }
        ["break", pid] => {
            let call = fs::read_to_string(format!("/proc/{pid}/syscall"))?;
            let place = call.split_ascii_whitespace().last().and_then(|word| word.strip_prefix("0x")).ok_or("no pc")?;
            let memory = fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/mem"))?;
            // ud2
            memory.write_all_at(&[0x0f, 0x0b], u64::from_str_radix(place, 16)?)?;
            "broken\n".to_owned()
        }
        ["mount", kind, source, place] => {
            let place = place.replace('+', " ");
            fs::create_dir_all(&place)?;
            rustix::mount::mount(*source, &place, *kind, rustix::mount::MountFlags::empty(), None)?;
            "mounted\n".to_owned()
        }
        ["signal", pid, number] => {
            let number = Signal::from_named_raw(number.parse()?).ok_or("there is no such signal")?;
            rustix::process::kill_process(Pid::from_raw(pid.parse()?).ok_or("there is no such process")?, number)?;
            "sent\n".to_owned()
        }
        ["become", program, arguments @ ..] => return Err(Command::new(program).args(arguments).exec().into()),
        ["spawn", program, arguments @ ..] => format!("{}\n", Command::new(program).args(arguments).spawn()?.id()),
        ["deaf"] => {
            ignore_term();
            println!("deaf");
            loop {
                std::thread::park();
            }
        }
        ["exit", status] => process::exit(status.parse()?),
        _ => return Err(format!("what is \"{line}\"?").into()),
    })
}

#[allow(unsafe_code, reason = "there is no safe way to it")]
fn ignore_term() {
    // SAFETY: SIG_IGN is no function, so no code runs in a handler.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
}
