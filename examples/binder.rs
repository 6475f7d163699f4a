//! A worker that makes sockets as servers do, one step after the other, and reports what each step gave.
//!
//! ```text
//! binder OUTFILE|- STEP...
//! ```
//!
//! The report is a line for each step, `STEP -> ok`, `STEP -> VALUE` or `STEP -> ERRNO`, written at once to standard
//! output (`-`) or appended to a file. When `OUTFILE` ends in `/` it is a directory, and the file in it is named by the
//! slot. The first line of each process that was started is `start -> PID`. A step that fails does not end it.
//!
//! | step | meaning |
//! | --- | --- |
//! | `tcp4`, `tcp6`, `mptcp`, `udp4`, `udp6`, `unix`, `unixdgram`, `unixseq` | makes a socket, which is the current one from then on; `tcp4+nonblock+cloexec` |
//! | `fd=N` | takes the descriptor N, which is open already, as the current socket |
//! | `set=NAME:VALUE` | sets a socket option; the names are those of `OPTIONS` in `binder/sockets.rs`, `linger` and the timeouts in seconds |
//! | `nonblock`, `cloexec` | sets the flag on the current socket |
//! | `bind=ADDR`, `connect=ADDR` | `127.0.0.1:80`, `[::1]:80`, `@name`, `/a/path`, `unix:relative/path` |
//! | `padded=ADDR` | binds to an address with as many zeros behind it as there is room for |
//! | `listen=N`, `shutdown`, `close` | close makes the socket before it the current one |
//! | `dup=N` | makes the current socket N, too (dup2), and N the current one |
//! | `name`, `fdnumber`, `inode` | the address, the number, the inode of the current socket |
//! | `options` | all its options in hexadecimal, its file status flags and its descriptor flags |
//! | `oddbinds` | what several binds give that are wrong in themselves |
//! | `send=TEXT`, `recv` | on a connected socket |
//! | `unlink=PATH`, `rename=FROM:TO`, `chdir=DIR`, `chroot=DIR`, `umask=MODE`, `setuid=N` | what they say; setuid sets the group too |
//! | `unshare=user,net,mount` | new namespaces |
//! | `flood=N:ADDR` | N times (0: for ever) a socket, bind, listen, close (of a path: after an unlink); gives how often each result came |
//! | `storm` | from now on a signal with a handler comes to the calling thread again and again, all the time |
//! | `serve` | answers on every socket that listens, and every datagram, with its slot and pid, from other threads |
//! | `fork=N`, `thread=N` | goes on in N children, or threads; the process waits for them and ends |
//! | `wait=PATH` | waits until the file exists |
//! | `deny=CALL,...` | from now on these system calls fail with EPERM (see `denied_number`) |
//! | `exec` | executes the command that the remaining arguments are |
//! | `sleep`, `exit=N` | for ever; with status N |
//!
//! After the last step it exits with status 0.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::io::FdFlags;
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType};
use rustix::process::{Gid, Uid, WaitOptions};
use sockets::{bind, bind_null, borrow, close, connect, dup2, encode, new_socket};

#[path = "binder/sockets.rs"]
mod sockets;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let done = match arguments.split_first() {
        Some((outfile, steps)) => Binder::new(outfile).and_then(|binder| binder.run(steps)),
        None => Err(io::Error::other("usage: binder OUTFILE|- STEP...; see the head of examples/binder.rs")),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("binder: {error}");
            ExitCode::from(2)
        }
    }
}

/// The process, or one of its threads.
#[derive(Clone)]
struct Binder {
    report: Arc<File>,
    /// The open sockets, and whether each listens; the last one is the current one.
    sockets: Vec<(RawFd, bool)>,
}

impl Binder {
    fn new(outfile: &str) -> io::Result<Binder> {
        let file = if outfile == "-" {
            File::from(io::stdout().as_fd().try_clone_to_owned()?)
        } else {
            let path = if outfile.ends_with('/') { Path::new(outfile).join(slot()) } else { PathBuf::from(outfile) };
            fs::OpenOptions::new().create(true).append(true).open(path)?
        };
        Ok(Binder { report: Arc::new(file), sockets: Vec::new() })
    }

    fn run(mut self, mut steps: &[String]) -> io::Result<u8> {
        self.say("start", &std::process::id().to_string())?;
        while let Some((step, rest)) = steps.split_first() {
            let (name, value) = step.split_once('=').unwrap_or((step, ""));
            steps = rest;
            match name {
                "sleep" => loop {
                    thread::sleep(Duration::from_secs(3600));
                },
                "exit" => return number(value),
                "exec" => {
                    let (program, arguments) = rest.split_first().ok_or_else(|| unknown("exec"))?;
                    return Err(Command::new(program).args(arguments).exec());
                }
                "fork" => match self.fork(number(value)?)? {
                    None => {}
                    Some(status) => return Ok(status),
                },
                "thread" => return self.threads(number(value)?, rest),
                _ => {
                    let result = match self.step(name, value) {
                        Ok(text) if text.is_empty() => "ok".to_string(),
                        Ok(text) => text,
                        // What is no error of the system is one of the test.
                        Err(error) if error.raw_os_error().is_none() => return Err(error),
                        Err(error) => errno_name(&error),
                    };
                    self.say(step, &result)?;
                }
            }
        }
        Ok(0)
    }

    fn say(&self, step: &str, result: &str) -> io::Result<()> {
        // One call: the lines of several processes do not mix.
        (&*self.report).write_all(format!("{step} -> {result}\n").as_bytes())
    }

    fn current(&self) -> io::Result<BorrowedFd<'static>> {
        self.sockets.last().map(|(socket, _)| borrow(*socket)).ok_or_else(|| io::Error::other("there is no socket yet"))
    }

    fn step(&mut self, name: &str, value: &str) -> io::Result<String> {
        let done = |()| String::new();
        match name {
            "fd" => self.sockets.push((number(value)?, true)),
            "set" => return sockets::set_option(self.current()?, value).map(done),
            "nonblock" => rustix::io::ioctl_fionbio(self.current()?, true)?,
            "cloexec" => rustix::io::fcntl_setfd(self.current()?, FdFlags::CLOEXEC)?,
            "bind" => bind(self.current()?, &encode(value)?)?,
            "padded" => bind(self.current()?, &sockets::padded(value)?)?,
            "connect" => connect(self.current()?, &encode(value)?)?,
            "listen" => {
                rustix::net::listen(self.current()?, number(value)?)?;
                if let Some((_, listens)) = self.sockets.last_mut() {
                    *listens = true;
                }
            }
            "shutdown" => rustix::net::shutdown(self.current()?, Shutdown::Both)?,
            "close" => {
                let (socket, _) = self.sockets.pop().ok_or_else(|| unknown("close"))?;
                close(socket);
            }
            "dup" => {
                let socket = self.current()?;
                let wanted = number(value)?;
                dup2(socket, wanted)?;
                self.sockets.push((wanted, false));
            }
            "name" => return Ok(sockets::address_text(&rustix::net::getsockname(self.current()?)?)),
            "fdnumber" => return Ok(self.sockets.last().map_or(String::new(), |(socket, _)| socket.to_string())),
            "inode" => return Ok(rustix::fs::fstat(self.current()?)?.st_ino.to_string()),
            "options" => return sockets::options(self.current()?),
            "oddbinds" => return odd_binds(),
            "send" => {
                rustix::net::send(self.current()?, value.as_bytes(), SendFlags::NOSIGNAL)?;
            }
            "recv" => {
                let mut buffer = [0_u8; 1024];
                let count = rustix::io::read(self.current()?, &mut buffer)?;
                return Ok(format!("got {}", String::from_utf8_lossy(buffer.get(..count).unwrap_or_default())));
            }
            "unlink" => rustix::fs::unlink(value)?,
            "rename" => {
                let (from, to) = value.split_once(':').ok_or_else(|| unknown(value))?;
                rustix::fs::rename(from, to)?;
            }
            "chdir" => env::set_current_dir(value)?,
            "chroot" => {
                rustix::process::chroot(value)?;
                env::set_current_dir("/")?;
            }
            "storm" => return sockets::storm().map(done),
            "umask" => {
                let mask = u32::from_str_radix(value, 8).map_err(|_| unknown(value))?;
                rustix::process::umask(Mode::from_raw_mode(mask));
            }
            "setuid" => {
                rustix::thread::set_thread_groups(&[])?;
                rustix::thread::set_thread_gid(Gid::from_raw(number(value)?))?;
                rustix::thread::set_thread_uid(Uid::from_raw(number(value)?))?;
            }
            "unshare" => return sockets::unshare(value).map(done),
            "flood" => return flood(value),
            "serve" => {
                for (index, (socket, listens)) in self.sockets.iter().enumerate() {
                    let socket = borrow(*socket);
                    if rustix::net::sockopt::socket_type(socket)? == SocketType::DGRAM {
                        thread::spawn(move || serve_datagrams(socket, index));
                    } else if *listens {
                        thread::spawn(move || serve(socket, index));
                    }
                }
            }
            "wait" => {
                while !Path::new(value).exists() {
                    thread::sleep(Duration::from_millis(2));
                }
            }
            "deny" => return sockets::deny(value).map(done),
            _ => self.sockets.push((new_socket(name)?, false)),
        }
        Ok(String::new())
    }

    /// Makes so many children, in which this returns None, and waits for them to end.
    #[allow(unsafe_code, reason = "std starts programs only; this needs processes")]
    fn fork(&self, count: u32) -> io::Result<Option<u8>> {
        for _ in 0..count {
            // SAFETY: the tests fork before they start threads, so the child's copy of every lock is free.
            match unsafe { libc::fork() } {
                0 => {
                    self.say("start", &std::process::id().to_string())?;
                    return Ok(None);
                }
                -1 => return Err(io::Error::last_os_error()),
                _ => {}
            }
        }
        let mut last = 0;
        for _ in 0..count {
            let ended = rustix::io::retry_on_intr(|| rustix::process::wait(WaitOptions::empty()))?;
            let status = ended.and_then(|(_, status)| status.exit_status()).unwrap_or(1);
            last = u8::try_from(status).unwrap_or(1);
        }
        Ok(Some(last))
    }

    /// Goes on in so many threads, and ends with them.
    fn threads(&self, count: u32, rest: &[String]) -> io::Result<u8> {
        let spawn = |_| {
            let (binder, steps) = (self.clone(), rest.to_vec());
            thread::spawn(move || binder.run(&steps))
        };
        let all: Vec<_> = (0..count).map(spawn).collect();
        let mut last = 0;
        for one in all {
            last = one.join().map_err(|_| io::Error::other("a thread panicked"))??;
        }
        Ok(last)
    }
}

fn slot() -> String {
    env::var("PANZER_WORKER_ID").unwrap_or_else(|_| "-".to_string())
}

fn unknown(text: &str) -> io::Error {
    io::Error::other(format!("cannot understand {text:?}; see the head of examples/binder.rs"))
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse().map_err(|_| unknown(text))
}

/// The errors that tests name; another one is given by its number.
const ERRORS: [(i32, &str); 10] = [
    (libc::EACCES, "EACCES"),
    (libc::EADDRINUSE, "EADDRINUSE"),
    (libc::EADDRNOTAVAIL, "EADDRNOTAVAIL"),
    (libc::EAGAIN, "EAGAIN"),
    (libc::EBADF, "EBADF"),
    (libc::ECONNREFUSED, "ECONNREFUSED"),
    (libc::EINVAL, "EINVAL"),
    (libc::ENOENT, "ENOENT"),
    (libc::ENOSYS, "ENOSYS"),
    (libc::EPERM, "EPERM"),
];

fn errno_name(error: &io::Error) -> String {
    let number = error.raw_os_error().unwrap_or(0);
    let name = ERRORS.iter().find(|(known, _)| *known == number);
    name.map_or_else(|| format!("errno {number}"), |(_, name)| name.to_string())
}

/// Each of these is refused by the kernel in its own way.
fn odd_binds() -> io::Result<String> {
    let stream = borrow(new_socket("tcp4")?);
    let file = File::open("/dev/null")?;
    let one = encode("127.0.0.1:1")?;
    let six = encode("[::1]:1")?;
    let mut unspecified = one.clone();
    unspecified.splice(..2, [0, 0]);
    let results = [
        ("nothing", bind(borrow(1_000_000), &one)),
        ("file", bind(file.as_fd(), &one)),
        ("short", bind(stream, one.get(..7).unwrap_or_default())),
        ("empty", bind(stream, &[])),
        ("long", bind(stream, &[one.clone(), vec![0; 200]].concat())),
        ("six", bind(stream, &six)),
        ("unix", bind(stream, &encode("/no/such/path")?)),
        ("unspecified", bind(stream, &unspecified)),
        ("null", bind_null(stream)),
        ("unbound", rustix::net::listen(file.as_fd(), 1).map_err(io::Error::from)),
    ];
    close(stream.as_raw_fd());
    let word = |(name, result): (&str, io::Result<()>)| {
        format!("{name}={}", result.map_or_else(|error| errno_name(&error), |()| "ok".to_string()))
    };
    Ok(results.into_iter().map(word).collect::<Vec<_>>().join(" "))
}

fn flood(text: &str) -> io::Result<String> {
    let (count, address) = text.split_once(':').ok_or_else(|| unknown(text))?;
    let count: u64 = number(count)?;
    let kind = match address.chars().next() {
        Some('/') => "unix",
        Some('[') => "tcp6",
        _ => "tcp4",
    };
    let bytes = encode(address)?;
    let mut results: BTreeMap<String, u64> = BTreeMap::new();
    let mut done = 0;
    while count == 0 || done < count {
        if kind == "unix" {
            let _ = fs::remove_file(address);
        }
        let socket = new_socket(kind)?;
        let result = bind(borrow(socket), &bytes).and_then(|()| Ok(rustix::net::listen(borrow(socket), 1)?));
        close(socket);
        *results.entry(result.map_or_else(|error| errno_name(&error), |()| "ok".to_string())).or_default() += 1;
        done += 1;
    }
    let words: Vec<String> = results.iter().map(|(name, count)| format!("{name}:{count}")).collect();
    Ok(words.join(" "))
}

/// What a request is answered with; of several sockets in one process, the answer says which.
fn answer(index: usize) -> String {
    format!("worker={} socket={index} pid={}\n", slot(), std::process::id())
}

fn serve(listener: BorrowedFd<'static>, index: usize) {
    loop {
        match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(connection) => {
                thread::spawn(move || serve_connection(&connection, index));
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
            Err(rustix::io::Errno::AGAIN) => thread::sleep(Duration::from_millis(1)),
            Err(_) => return,
        }
    }
}

/// Answers requests without a body until the connection ends.
fn serve_connection(connection: &OwnedFd, index: usize) {
    let mut received = Vec::new();
    let mut buffer = [0_u8; 4096];
    loop {
        let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") else {
            match rustix::io::read(connection, &mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(count) => received.extend(buffer.iter().take(count)),
            }
            continue;
        };
        let head: Vec<u8> = received.drain(..end + 4).collect();
        let close = String::from_utf8_lossy(&head).to_ascii_lowercase().contains("connection: close");
        let (body, word) = (answer(index), if close { "close" } else { "keep-alive" });
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: {word}\r\n\r\n{body}", body.len());
        if rustix::net::send(connection, head.as_bytes(), SendFlags::NOSIGNAL).is_err() || close {
            return;
        }
    }
}

fn serve_datagrams(socket: BorrowedFd<'static>, index: usize) {
    let mut buffer = [0_u8; 1024];
    while let Ok((_, _, Some(from))) = rustix::net::recvfrom(socket, &mut buffer, RecvFlags::empty()) {
        let _ = rustix::net::sendto(socket, answer(index).as_bytes(), SendFlags::empty(), &from);
    }
}
