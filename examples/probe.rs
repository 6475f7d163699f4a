//! A worker that reports what it was given and then, if asked, does something.
//!
//! ```text
//! probe OUTFILE|- [ACTION...]
//! ```
//!
//! The report is lines of `key=value`, written to standard output (`-`) or to a file that appears at
//! once and whole: a temporary file is renamed. When `OUTFILE` ends in `/` it is a directory and the
//! file in it is named by the pid.
//!
//! | key | value |
//! | --- | --- |
//! | `pid`, `ppid`, `pgid`, `sid` | numbers |
//! | `uid`, `gid` | the real ones |
//! | `uids`, `gids` | real, effective, saved and filesystem, between commas |
//! | `groups` | the supplementary groups, sorted, between commas |
//! | `cwd`, `umask` | the directory, and the mask as four octal digits |
//! | `sigblk`, `sigign`, `sigcgt` | signal masks as sixteen hexadecimal digits |
//! | `fds` | the open descriptors, sorted: `N:TARGET:cloexec` or `N:TARGET:-`, between commas |
//! | `tty_foreground` | the foreground process group of the terminal at stdin, or `-` |
//! | `pdeathsig` | the number of the parent-death signal, or 0 |
//! | `arg` | one line for each argument, the program's name first |
//! | `env:NAME` | one line for each environment variable |
//!
//! A line feed in a value is written as `\n`.
//!
//! The Rust runtime does two things before `main` that the report cannot hide: it ignores PIPE, so
//! `sigign` always has it, and it opens `/dev/null` in the place of a closed standard descriptor;
//! it also catches SEGV and BUS. A test of the exact dispositions reads `/proc/PID/status` of a
//! `sleep` instead.
//!
//! The actions are done in order:
//!
//! | action | meaning |
//! | --- | --- |
//! | `sleep` | sleeps for ever |
//! | `exit=N` | exits with status N |
//! | `kill=SIGNAL` | sends itself that signal, given by its number |
//! | `ignore=SIGNAL` | ignores that signal, from before the report on |
//! | `default` | gives every signal its default action and blocks none, from before the report on |
//! | `record=FILE` | appends the number of each signal that comes, a line each, for ever; from before the report on all signals are blocked |
//! | `spawn-child` | starts `probe OUTFILE.child sleep` in the same process group |
//! | `spawn-setsid` | starts `probe OUTFILE.setsid sleep` in a new session, its parent gone |
//! | `orphans=N` | makes N processes, one after the other, that lose their parent and end at once |
//! | `accept` | accepts one connection on descriptor 3 and prints `accepted nodelay=BOOL` about its socket |
//! | `print=TEXT` | prints a line |
//! | `wait=FILE`, `touch=FILE`, `remove=FILE` | waits until the file exists, makes it, removes it |
//! | `until=SIGNAL` | goes on when that signal comes; from before the report on all signals are blocked, and stay so |
//! | `eat=N` | takes N MB of memory, for good |
//! | `ready` | writes a line feed to `PANZER_READY_FD` |
//! | `notify=TEXT` | sends TEXT to `NOTIFY_SOCKET`, with a line feed for each `\n`; one that cannot be sent is named on stderr |
//! | `notify-size=N` | sends it one message of N bytes |
//! | `notify-many=N` | sends it N messages of `STATUS=` |
//! | `notify-garbage` | sends it what is no message, among it the empty one and what nearly says `READY=1` |
//! | `barrier=N` | N times: sends `BARRIER=1` with a descriptor, and waits until it is closed, as sd_notify_barrier(3) |
//! | `beat=FILE` | sends `WATCHDOG=1` every 20 ms until the file exists |
//!
//! After the last action it exits with status 0. With `-` or a directory the processes that are
//! started get the same `OUTFILE`.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

fn main() -> ExitCode {
    // The open descriptors come first, before anything here opens one.
    let descriptors = open_descriptors();
    match run(descriptors) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("probe: {error}");
            ExitCode::from(2)
        }
    }
}

/// Something to do after the report.
enum Action {
    Sleep,
    Exit(u8),
    Kill(i32),
    Ignore(i32),
    Default,
    Record(PathBuf),
    SpawnChild,
    SpawnSetsid,
    Orphans(u32),
    Accept,
    Print(String),
    Wait(PathBuf),
    Touch(PathBuf),
    Remove(PathBuf),
    Until(i32),
    Eat(usize),
    Ready,
    Notify(String),
    NotifySize(usize),
    NotifyMany(u32),
    NotifyGarbage,
    Barrier(u32),
    Beat(PathBuf),
}

fn run(descriptors: io::Result<String>) -> io::Result<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    let outfile = arguments
        .next()
        .ok_or_else(|| io::Error::other("usage: probe OUTFILE|- [ACTION...]; see the head of examples/probe.rs"))?;
    let actions = arguments.map(|text| parse_action(&text)).collect::<io::Result<Vec<_>>>()?;
    let report = report(&descriptors?)?;
    // A test that sees the report may send signals at once.
    for action in &actions {
        match action {
            Action::Ignore(signal) => ignore(*signal)?,
            Action::Default => reset_signals(),
            Action::Record(file) => {
                change_mask(libc::SIG_BLOCK)?;
                append(file, "")?;
            }
            Action::Until(_) => change_mask(libc::SIG_BLOCK)?,
            Action::Sleep
            | Action::Exit(_)
            | Action::Kill(_)
            | Action::SpawnChild
            | Action::SpawnSetsid
            | Action::Orphans(_)
            | Action::Accept
            | Action::Print(_)
            | Action::Wait(_)
            | Action::Touch(_)
            | Action::Remove(_)
            | Action::Eat(_)
            | Action::Ready
            | Action::Notify(_)
            | Action::NotifySize(_)
            | Action::NotifyMany(_)
            | Action::NotifyGarbage
            | Action::Barrier(_)
            | Action::Beat(_) => {}
        }
    }
    write_report(&outfile, &report)?;

    let mut children: Vec<Child> = Vec::new();
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    for action in actions {
        match action {
            Action::Sleep => sleep_for_ever(),
            Action::Exit(status) => return Ok(ExitCode::from(status)),
            Action::Kill(signal) => kill_self(signal)?,
            Action::Ignore(_) | Action::Default => {}
            Action::Record(file) => record_signals(&file)?,
            Action::SpawnChild => children.push(spawn_child(&outfile)?),
            Action::SpawnSetsid => spawn_setsid(&outfile)?,
            Action::Orphans(count) => make_orphans(count)?,
            Action::Accept => accept()?,
            Action::Print(text) => println!("{text}"),
            Action::Wait(file) => {
                while !file.exists() {
                    thread::sleep(Duration::from_millis(2));
                }
            }
            Action::Touch(file) => append(&file, "")?,
            Action::Remove(file) => fs::remove_file(file)?,
            Action::Until(signal) => while take_signal()? != signal {},
            // Written to, or the kernel would not give any.
            Action::Eat(megabytes) => eaten.push(std::hint::black_box(vec![1; megabytes << 20])),
            Action::Ready => ready()?,
            Action::Notify(text) => notify(text.replace("\\n", "\n").as_bytes()),
            Action::NotifySize(size) => notify(&vec![b'x'; size]),
            Action::NotifyMany(count) => (0..count).for_each(|number| notify(format!("STATUS={number}").as_bytes())),
            Action::NotifyGarbage => GARBAGE.iter().for_each(|message| notify(message)),
            Action::Barrier(count) => (0..count).try_for_each(|_| barrier())?,
            Action::Beat(file) => {
                while !file.exists() {
                    notify(b"WATCHDOG=1");
                    thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn parse_action(text: &OsStr) -> io::Result<Action> {
    let unknown = || io::Error::other(format!("unknown action {}", text.display()));
    let text = text.to_str().ok_or_else(unknown)?;
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    let number = || value.parse::<i32>().map_err(|_| unknown());
    Ok(match name {
        "sleep" => Action::Sleep,
        "exit" => Action::Exit(value.parse().map_err(|_| unknown())?),
        "kill" => Action::Kill(number()?),
        "ignore" => Action::Ignore(number()?),
        "default" => Action::Default,
        "record" => Action::Record(value.into()),
        "spawn-child" => Action::SpawnChild,
        "spawn-setsid" => Action::SpawnSetsid,
        "orphans" => Action::Orphans(value.parse().map_err(|_| unknown())?),
        "accept" => Action::Accept,
        "print" => Action::Print(value.to_string()),
        "wait" => Action::Wait(value.into()),
        "touch" => Action::Touch(value.into()),
        "remove" => Action::Remove(value.into()),
        "until" => Action::Until(number()?),
        "eat" => Action::Eat(value.parse().map_err(|_| unknown())?),
        "ready" => Action::Ready,
        "notify" => Action::Notify(value.to_string()),
        "notify-size" => Action::NotifySize(value.parse().map_err(|_| unknown())?),
        "notify-many" => Action::NotifyMany(value.parse().map_err(|_| unknown())?),
        "notify-garbage" => Action::NotifyGarbage,
        "barrier" => Action::Barrier(value.parse().map_err(|_| unknown())?),
        "beat" => Action::Beat(value.into()),
        _ => return Err(unknown()),
    })
}

/// Lists the open descriptors with their targets.
fn open_descriptors() -> io::Result<String> {
    let mut numbers: Vec<u32> =
        fs::read_dir("/proc/self/fd")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    // The descriptor of the directory itself is closed by now, so it has no target any more.
    let listed: Vec<String> = numbers
        .iter()
        .filter_map(|number| {
            let target = fs::read_link(format!("/proc/self/fd/{number}")).ok()?;
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).ok()?;
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
            let flags = i32::from_str_radix(flags.trim(), 8).ok()?;
            let cloexec = if flags & libc::O_CLOEXEC == 0 { "-" } else { "cloexec" };
            Some(format!("{number}:{}:{cloexec}", target.display()))
        })
        .collect();
    Ok(listed.join(","))
}

/// Collects everything that is reported, one line each.
fn report(descriptors: &str) -> io::Result<String> {
    let status = fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| {
        status
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| *key == name)
            .map_or("", |(_, value)| value.trim())
    };
    let stat = fs::read_to_string("/proc/self/stat")?;
    // Behind the name: state, ppid, pgid, sid.
    let stat: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace().collect();
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    let mut groups: Vec<u32> = rustix::process::getgroups()?.iter().map(|group| group.as_raw()).collect();
    groups.sort_unstable();
    let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
    let foreground = match rustix::termios::tcgetpgrp(io::stdin()) {
        Ok(group) => group.as_raw_nonzero().to_string(),
        Err(_) => "-".to_string(),
    };
    let death_signal = rustix::process::parent_process_death_signal()?.map_or(0, rustix::process::Signal::as_raw);

    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{key}={}", value.replace('\n', "\\n"));
    };
    line("pid", &std::process::id().to_string());
    line("ppid", &parent.to_string());
    line("pgid", stat.get(2).unwrap_or(&""));
    line("sid", stat.get(3).unwrap_or(&""));
    line("uid", &rustix::process::getuid().as_raw().to_string());
    line("gid", &rustix::process::getgid().as_raw().to_string());
    line("uids", &field("Uid").replace('\t', ","));
    line("gids", &field("Gid").replace('\t', ","));
    line("groups", &groups.join(","));
    line("cwd", &env::current_dir()?.to_string_lossy());
    line("umask", field("Umask"));
    line("sigblk", field("SigBlk"));
    line("sigign", field("SigIgn"));
    line("sigcgt", field("SigCgt"));
    line("fds", descriptors);
    line("tty_foreground", &foreground);
    line("pdeathsig", &death_signal.to_string());
    for argument in env::args_os() {
        line("arg", &argument.to_string_lossy());
    }
    for (name, value) in env::vars_os() {
        line(&format!("env:{}", name.display()), &value.to_string_lossy());
    }
    Ok(text)
}

/// Writes the report so that whoever sees the file sees all of it.
fn write_report(outfile: &OsStr, report: &str) -> io::Result<()> {
    if outfile == "-" {
        return io::stdout().write_all(report.as_bytes());
    }
    let pid = std::process::id().to_string();
    let path = if is_directory(outfile) { Path::new(outfile).join(&pid) } else { PathBuf::from(outfile) };
    let temporary = path.with_file_name(format!(".probe.{pid}.tmp"));
    fs::write(&temporary, report)?;
    fs::rename(&temporary, &path)
}

fn is_directory(outfile: &OsStr) -> bool {
    outfile.as_bytes().ends_with(b"/")
}

/// The `OUTFILE` for a process that this one starts.
fn outfile_of_child(outfile: &OsStr, suffix: &str) -> OsString {
    let mut name = outfile.to_os_string();
    if outfile != "-" && !is_directory(outfile) {
        name.push(suffix);
    }
    name
}

/// Says what a connection inherits from the listener.
#[allow(unsafe_code, reason = "a descriptor known by its number alone has no safe constructor")]
fn accept() -> io::Result<()> {
    // SAFETY: it is used for this call only; one that is not open makes the call fail.
    let listener = unsafe { BorrowedFd::borrow_raw(3) };
    let connection = rustix::net::accept(listener)?;
    println!("accepted nodelay={}", rustix::net::sockopt::tcp_nodelay(&connection)?);
    Ok(())
}

fn spawn_child(outfile: &OsStr) -> io::Result<Child> {
    Command::new(env::current_exe()?).arg(outfile_of_child(outfile, ".child")).arg("sleep").stdin(Stdio::null()).spawn()
}

/// Starts the process through `setsid --fork` of util-linux, whose own process ends at once: the new
/// one is an orphan in a session of its own.
fn spawn_setsid(outfile: &OsStr) -> io::Result<()> {
    let status = Command::new("setsid")
        .arg("--fork")
        .arg(env::current_exe()?)
        .arg(outfile_of_child(outfile, ".setsid"))
        .arg("sleep")
        .stdin(Stdio::null())
        .status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("setsid failed")) }
}

/// Makes each orphan by two forks, of which the first one's process ends at once.
#[allow(unsafe_code, reason = "std starts programs only; this needs processes, and fast")]
fn make_orphans(count: u32) -> io::Result<()> {
    for _ in 0..count {
        // SAFETY: this program has one thread, so the child's copy of every lock is free.
        let parent = unsafe { libc::fork() };
        if parent == 0 {
            // SAFETY: as above. Both processes then end.
            unsafe { libc::fork() };
            // SAFETY: the call takes a number and does not return.
            unsafe { libc::_exit(0) };
        }
        if parent < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a null status is allowed.
        if unsafe { libc::waitpid(parent, std::ptr::null_mut(), 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn sleep_for_ever() -> ! {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

fn append(file: &Path, text: &str) -> io::Result<()> {
    fs::OpenOptions::new().create(true).append(true).open(file)?.write_all(text.as_bytes())
}

#[allow(unsafe_code, reason = "a signal's disposition can only be set by an unsafe call")]
fn ignore(signal: i32) -> io::Result<()> {
    // SAFETY: no handler is installed.
    match unsafe { libc::signal(signal, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[allow(unsafe_code, reason = "no safe call sends a signal of any number")]
fn kill_self(signal: i32) -> io::Result<()> {
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: the call takes two numbers and touches no memory.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// All 64 signals as the kernel's mask; libc's own `sigset_t` calls leave out 32 and 33.
const ALL_SIGNALS: u64 = u64::MAX;
/// The size of that mask, which the system calls want to be told.
const MASK_SIZE: usize = size_of::<u64>();

/// Blocks or unblocks all signals.
#[allow(unsafe_code, reason = "a raw system call")]
fn change_mask(how: i32) -> io::Result<()> {
    let old = std::ptr::null_mut::<u64>();
    let new: *const u64 = &ALL_SIGNALS;
    // SAFETY: `new` points to a mask of the size given, and a null `old` is allowed.
    match unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, new, old, MASK_SIZE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What whoever started this has set, and what the Rust runtime does, is undone.
#[allow(unsafe_code, reason = "a raw system call")]
fn reset_signals() {
    // The kernel's `struct sigaction`: handler, flags, restorer, mask. Zeros are the default action.
    let default = [0_u64; 4];
    let old = std::ptr::null_mut::<u64>();
    for signal in 1..=64 {
        // SAFETY: `default` is as long as the structure; a null `old` is allowed. KILL and STOP are refused.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), old, MASK_SIZE) };
    }
    // It fails for no reason but a wrong argument.
    let _ = change_mask(libc::SIG_UNBLOCK);
}

/// Appends the number of each signal to `file`, for ever.
fn record_signals(file: &Path) -> io::Result<()> {
    loop {
        append(file, &format!("{}\n", take_signal()?))?;
    }
}

/// Waits for a signal and takes it; all of them are blocked.
#[allow(unsafe_code, reason = "a raw system call")]
fn take_signal() -> io::Result<i32> {
    let mask: *const u64 = &ALL_SIGNALS;
    let info = std::ptr::null_mut::<libc::siginfo_t>();
    let no_limit = std::ptr::null::<libc::timespec>();
    loop {
        // SAFETY: `mask` points to a mask of the size given; the other two may be null.
        let signal = unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, mask, info, no_limit, MASK_SIZE) };
        if signal > 0 {
            return i32::try_from(signal).map_err(io::Error::other);
        }
        let error = io::Error::last_os_error();
        // A stop and its CONT end the wait too.
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn variable(name: &str) -> io::Result<String> {
    env::var(name).map_err(|error| io::Error::other(format!("{name}: {error}")))
}

/// Says that this is ready, as s6 has it.
#[allow(unsafe_code, reason = "a descriptor known by its number alone has no safe constructor")]
fn ready() -> io::Result<()> {
    let number = variable("PANZER_READY_FD")?.parse().map_err(io::Error::other)?;
    // SAFETY: it is used for this call only; one that is not open makes the call fail.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::write(descriptor, b"\n")?;
    Ok(())
}

/// What is no message, or none that panzer may act upon.
const GARBAGE: [&[u8]; 12] = [
    b"",
    b"\n",
    b"\n\n\n",
    b"=",
    b"\0",
    b"\xff\xfe=\x80\n\0\0",
    b"READY",
    b"READY=",
    b"READY=0",
    b"READY=11",
    b"XREADY=1",
    b"STATUS=READY=1",
];

/// A socket that is connected to `NOTIFY_SOCKET`; a name that begins with `@` is an abstract one.
fn notify_socket() -> io::Result<UnixDatagram> {
    let name = variable("NOTIFY_SOCKET")?;
    let socket = UnixDatagram::unbound()?;
    match name.strip_prefix('@') {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(name)?,
    }
    Ok(socket)
}

fn notify(message: &[u8]) {
    if let Err(error) = notify_socket().and_then(|socket| socket.send(message)) {
        eprintln!("probe: cannot notify: {error}");
    }
}

/// The other end of the pipe is closed once all messages before this one were read.
fn barrier() -> io::Result<()> {
    let (mut reader, writer) = io::pipe()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let rights = [writer.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&rights)) {
        return Err(io::Error::other("there is no room for a descriptor"));
    }
    rustix::net::sendmsg(&notify_socket()?, &[IoSlice::new(b"BARRIER=1")], &mut control, SendFlags::NOSIGNAL)?;
    drop(writer);
    reader.read_to_end(&mut Vec::new())?;
    Ok(())
}
