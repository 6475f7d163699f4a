//! The bundled example server: a small HTTP/1.1 server that says which worker answered.
//!
//! ```text
//! hello [ADDRESS] [--start-delay MS] [--deaf] [--abrupt]
//! ```
//!
//! It serves the inherited listener at descriptor 3 (TCP or UNIX stream) when `LISTEN_FDS` and
//! `LISTEN_PID` say that there is one for it, and else binds `ADDRESS` (`127.0.0.1:8080`; with a
//! slash in it, the path of a UNIX socket). Every answer is one line:
//! `pid=PID worker=PANZER_WORKER_ID generation=PANZER_GENERATION`.
//!
//! On TERM it stops accepting, answers the requests in hand, tells keep-alive clients to close (it
//! waits for their next request for at most one second) and exits with status 0. `--start-delay`
//! sleeps before the address is bound and the first connection accepted; `--deaf` ignores TERM.
//!
//! With `--abrupt` it is the server that a supervisor should fear: on TERM it ends at once, whatever it has in hand, and
//! every connection is for one request. Its last line on standard error is `hello: dropped=N`, where N is exactly how
//! many connections it had accepted and not answered.
//!
//! A worker shares its listener with the others, so one thing needs care: a connection that was
//! accepted must be answered, and the listener must not be changed for the others (no `O_NONBLOCK`,
//! no `shutdown`). The main thread therefore blocks in `accept`, and TERM interrupts it there. A
//! signal that comes just before the call would be missed, so another thread sends it again until
//! the main thread has left its loop.

use std::env;
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::pipe::PipeFlags;
use rustix::process::Signal;

/// How long an idle connection may still send a request after TERM.
const LAST_REQUEST_WAIT: Duration = Duration::from_secs(1);
/// How often an `accept` that may have missed its TERM is interrupted again.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(2);
/// A request head longer than this ends the connection.
const LONGEST_HEAD: usize = 64 * 1024;

/// Set by TERM.
static STOPPING: AtomicBool = AtomicBool::new(false);
/// Set once the main thread will not accept again.
static ACCEPT_ENDED: AtomicBool = AtomicBool::new(false);
/// With `--abrupt`: how many connections were accepted and not answered. Who answers holds it until the answer is written
/// and counted, and so does the end: an answer comes whole and counted, or not at all.
static UNANSWERED: Mutex<u64> = Mutex::new(0);
/// The pipe (read end, write end) that becomes readable, for good, when TERM arrives.
static STOP_PIPE: OnceLock<(OwnedFd, OwnedFd)> = OnceLock::new();

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hello: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the command line asks for.
struct Options {
    address: String,
    start_delay: Duration,
    deaf: bool,
    abrupt: bool,
}

fn run() -> io::Result<()> {
    let options = parse_options()?;
    // Descriptor 3 is looked at before anything here opens one.
    let inherited = inherited_listener();
    let (stop_read, stop_write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let (stop, _) = STOP_PIPE.get_or_init(|| (stop_read, stop_write));
    if options.deaf {
        set_term_action(libc::SIG_IGN)?;
    } else {
        set_term_action(on_term as extern "C" fn(libc::c_int) as *const () as libc::sighandler_t)?;
        thread::Builder::new().spawn(move || interrupt_accept(stop.as_fd()))?;
    }
    if wait_readable(stop.as_fd(), None, Some(options.start_delay))? {
        return Ok(());
    }

    let listener = match inherited {
        Some(listener) => listener,
        None if options.address.contains('/') => UnixListener::bind(&options.address)?.into(),
        None => TcpListener::bind(&options.address)?.into(),
    };
    let answer: Arc<str> = format!(
        "pid={} worker={} generation={}\n",
        std::process::id(),
        env::var("PANZER_WORKER_ID").unwrap_or_else(|_| "-".to_string()),
        env::var("PANZER_GENERATION").unwrap_or_else(|_| "-".to_string()),
    )
    .into();

    // Each connection's thread holds a sender: the channel is closed when the last one has ended.
    let (in_hand, all_done) = mpsc::channel::<()>();
    let accepted = accept_until_term(&listener, stop.as_fd(), &answer, &in_hand, options.abrupt);
    ACCEPT_ENDED.store(true, Ordering::SeqCst);
    if options.abrupt && accepted.is_ok() {
        end_abruptly();
    }
    drop(in_hand);
    accepted?;
    // Every connection ends by itself; this bound is for a client that does not read its answer.
    let _ = all_done.recv_timeout(LAST_REQUEST_WAIT * 2);
    Ok(())
}

fn parse_options() -> io::Result<Options> {
    let address = "127.0.0.1:8080".to_string();
    let mut options = Options { address, start_delay: Duration::ZERO, deaf: false, abrupt: false };
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--deaf" => options.deaf = true,
            "--abrupt" => options.abrupt = true,
            "--start-delay" => {
                let milliseconds = arguments
                    .next()
                    .and_then(|value| value.parse().ok())
                    .ok_or_else(|| io::Error::other("--start-delay needs milliseconds"))?;
                options.start_delay = Duration::from_millis(milliseconds);
            }
            other if other.starts_with('-') => {
                return Err(io::Error::other(format!("unknown option {other}")));
            }
            address => options.address = address.to_string(),
        }
    }
    Ok(options)
}

/// Takes the first listener that was handed down by the protocol of `sd_listen_fds`, if it is for
/// this process.
#[allow(unsafe_code, reason = "a descriptor known by its number alone has no safe constructor")]
fn inherited_listener() -> Option<OwnedFd> {
    let count: u32 = env::var("LISTEN_FDS").ok()?.parse().ok()?;
    let pid: u32 = env::var("LISTEN_PID").ok()?.parse().ok()?;
    if count == 0 || pid != std::process::id() {
        return None;
    }
    // SAFETY: by the protocol descriptor 3 is open and belongs to this process, and nothing else
    // here takes it.
    Some(unsafe { OwnedFd::from_raw_fd(3) })
}

/// Sets what TERM does, without `SA_RESTART`, so that it interrupts `accept`.
#[allow(unsafe_code, reason = "a signal handler can only be installed by an unsafe call")]
fn set_term_action(action: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: all fields of this C structure may be zero: no flags, an empty mask.
    let mut sigaction: libc::sigaction = unsafe { std::mem::zeroed() };
    sigaction.sa_sigaction = action;
    // SAFETY: the structure is initialised, and the handler makes async-signal-safe calls only.
    match unsafe { libc::sigaction(libc::SIGTERM, &sigaction, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The handler of TERM: an atomic store and one `write`, both async-signal-safe.
extern "C" fn on_term(_signal: libc::c_int) {
    if !STOPPING.swap(true, Ordering::SeqCst)
        && let Some((_, write_end)) = STOP_PIPE.get()
    {
        let _ = rustix::io::write(write_end, b"x");
    }
}

/// Waits for TERM and then sends it again and again until the main thread has left `accept`.
///
/// Linux gives a signal that is sent to a process to its main thread whenever that thread does not
/// block it.
fn interrupt_accept(stop: BorrowedFd<'_>) {
    let _ = wait_readable(stop, None, None);
    while !ACCEPT_ENDED.load(Ordering::SeqCst) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::TERM);
        thread::sleep(INTERRUPT_INTERVAL);
    }
}

/// Accepts connections, each into a thread of its own, until TERM.
fn accept_until_term(
    listener: &OwnedFd,
    stop: BorrowedFd<'static>,
    answer: &Arc<str>,
    in_hand: &mpsc::Sender<()>,
    abrupt: bool,
) -> io::Result<()> {
    while !STOPPING.load(Ordering::SeqCst) {
        match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(connection) => {
                // TERM ends nothing before the count: its handler only says that this loop shall end.
                *unanswered() += u64::from(abrupt);
                let answer = Arc::clone(answer);
                let in_hand = in_hand.clone();
                let serve = move || {
                    // An error here is the client's own end of the connection: nothing to do.
                    let _ = match abrupt {
                        true => serve_one(&connection, stop, &answer),
                        false => serve_connection(&connection, stop, &answer),
                    };
                    drop(in_hand);
                };
                if let Err(error) = thread::Builder::new().stack_size(128 * 1024).spawn(serve) {
                    eprintln!("hello: cannot start a thread: {error}");
                }
            }
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            // The listener was handed down non-blocking.
            Err(Errno::AGAIN) => {
                wait_readable(listener.as_fd(), Some(stop), None)?;
            }
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Answers the requests of one connection until it ends.
fn serve_connection(connection: &OwnedFd, stop: BorrowedFd<'_>, answer: &str) -> io::Result<()> {
    let mut received = Vec::new();
    while let Some(request) = read_request(connection, stop, &mut received)? {
        let close = !request.keep_alive || STOPPING.load(Ordering::SeqCst);
        write_all(connection, whole_answer(answer, close).as_bytes())?;
        if close {
            return Ok(());
        }
    }
    Ok(())
}

/// Answers the one request of a connection, with `--abrupt`.
fn serve_one(connection: &OwnedFd, stop: BorrowedFd<'_>, answer: &str) -> io::Result<()> {
    let request = read_request(connection, stop, &mut Vec::new());
    let mut unanswered = unanswered();
    *unanswered -= 1;
    match request? {
        Some(_) => write_all(connection, whole_answer(answer, true).as_bytes()),
        None => Ok(()),
    }
}

fn unanswered() -> MutexGuard<'static, u64> {
    UNANSWERED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says what is dropped, and ends: nobody answers any more, since that takes the number that is held here.
#[allow(unsafe_code, reason = "no safe call ends a process at once")]
fn end_abruptly() -> ! {
    let dropped = unanswered();
    // In one piece: the others write to the same pipe.
    let _ = io::stderr().write_all(format!("hello: dropped={dropped}\n").as_bytes());
    // SAFETY: the call takes a number and does not return.
    unsafe { libc::_exit(0) }
}

fn whole_answer(answer: &str, close: bool) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {}\r\n\r\n{answer}",
        answer.len(),
        if close { "close" } else { "keep-alive" },
    )
}

/// What matters of a request.
struct Request {
    keep_alive: bool,
}

/// Reads one request with its body, or `None` at the end of the connection.
fn read_request(connection: &OwnedFd, stop: BorrowedFd<'_>, received: &mut Vec<u8>) -> io::Result<Option<Request>> {
    let head_length = loop {
        if let Some(start) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            break start + 4;
        }
        if received.len() > LONGEST_HEAD || !read_more(connection, stop, received)? {
            return Ok(None);
        }
    };
    let head: Vec<u8> = received.drain(..head_length).collect();
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let header = |name: &str| {
        head.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.trim())
    };
    let http_1_0 = head.lines().next().is_some_and(|line| line.ends_with("http/1.0"));
    let keep_alive = match header("connection") {
        Some("close") => false,
        Some("keep-alive") => true,
        Some(_) | None => !http_1_0,
    };
    let body_length = header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0_usize);
    while received.len() < body_length {
        if !read_more(connection, stop, received)? {
            return Ok(None);
        }
    }
    received.drain(..body_length);
    Ok(Some(Request { keep_alive }))
}

/// Waits for bytes and appends them, or returns false at the end of the connection or when TERM
/// came and nothing more did.
fn read_more(connection: &OwnedFd, stop: BorrowedFd<'_>, received: &mut Vec<u8>) -> io::Result<bool> {
    let connection = connection.as_fd();
    if !wait_readable(connection, Some(stop), None)? && !wait_readable(connection, None, Some(LAST_REQUEST_WAIT))? {
        return Ok(false);
    }
    let mut buffer = [0_u8; 4096];
    let count = rustix::io::retry_on_intr(|| rustix::io::read(connection, &mut buffer))?;
    received.extend(buffer.iter().take(count));
    Ok(count > 0)
}

/// Waits until `descriptor` is readable and returns true, or returns false when `stop` is readable
/// and `descriptor` is not, or when the time is over.
fn wait_readable(
    descriptor: BorrowedFd<'_>,
    stop: Option<BorrowedFd<'_>>,
    limit: Option<Duration>,
) -> io::Result<bool> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    let mut polled = vec![PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    polled.extend(stop.map(|stop| PollFd::from_borrowed_fd(stop, PollFlags::IN)));
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) => return Ok(polled.first().is_some_and(|first| !first.revents().is_empty())),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn write_all(connection: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = rustix::io::retry_on_intr(|| rustix::io::write(connection, bytes))?;
        bytes = bytes.get(count..).unwrap_or_default();
    }
    Ok(())
}
