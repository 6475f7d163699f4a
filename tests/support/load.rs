//! An exact load client: every request it sends is accounted for, as an answer or as one kind of
//! loss.
//!
//! It is used by the tests and by `examples/load.rs`.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

/// Where the server listens.
#[derive(Clone, Debug)]
pub(crate) enum Addr {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a UNIX stream socket.
    Unix(PathBuf),
}

impl FromStr for Addr {
    type Err = String;

    /// Reads `127.0.0.1:8080`, `[::1]:8080`, or a path, which has a slash in it.
    fn from_str(text: &str) -> Result<Addr, String> {
        if text.contains('/') {
            return Ok(Addr::Unix(text.strip_prefix("unix://").unwrap_or(text).into()));
        }
        text.parse().map(Addr::Tcp).map_err(|error| format!("{text}: {error}"))
    }
}

impl From<SocketAddr> for Addr {
    fn from(addr: SocketAddr) -> Addr {
        Addr::Tcp(addr)
    }
}

/// How connections are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// One request a connection, with `Connection: close`.
    Short,
    /// A connection is used again until the server says that it closes it.
    KeepAlive,
}

/// How much load there is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadOptions {
    /// How many loops send requests, each one at a time on a connection of its own.
    pub(crate) connections: usize,
    /// How connections are used.
    pub(crate) mode: Mode,
    /// How long one request may take, from connecting to the last byte of the answer.
    pub(crate) deadline: Duration,
    /// How long each loop waits between an answer and its next request: leaves processors to what else has to run.
    pub(crate) pause: Duration,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions { connections: 4, mode: Mode::Short, deadline: Duration::from_secs(20), pause: Duration::ZERO }
    }
}

/// What became of a request that was not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nothing listens there.
    Refused,
    /// The connection was reset, in whatever phase.
    Reset,
    /// The connection was closed before the first byte of the answer.
    EmptyClose,
    /// The connection was closed in the middle of the answer.
    ShortClose,
    /// There was no whole answer within the deadline.
    TimedOut,
    /// Anything else: an error, or an answer that is not `200 OK`.
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Refused => formatter.write_str("refused"),
            Failure::Reset => formatter.write_str("reset"),
            Failure::EmptyClose => formatter.write_str("closed without an answer"),
            Failure::ShortClose => formatter.write_str("closed in the middle of the answer"),
            Failure::TimedOut => formatter.write_str("timed out"),
            Failure::Other(what) => formatter.write_str(what),
        }
    }
}

impl std::error::Error for Failure {}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Failure {
        match error {
            Errno::CONNREFUSED | Errno::NOENT => Failure::Refused,
            Errno::CONNRESET | Errno::PIPE => Failure::Reset,
            Errno::AGAIN | Errno::TIMEDOUT | Errno::INPROGRESS => Failure::TimedOut,
            other => Failure::Other(other.to_string()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match Errno::from_io_error(&error) {
            Some(errno) => errno.into(),
            None if error.kind() == io::ErrorKind::TimedOut => Failure::TimedOut,
            None => Failure::Other(error.to_string()),
        }
    }
}

/// What became of all requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// How many requests were tried: the answers and the losses.
    pub(crate) requests: u64,
    /// How many answers each worker gave, by the `pid=` in the answer (0 where there is none).
    pub(crate) answered_by: BTreeMap<u32, u64>,
    /// How many connections were refused.
    pub(crate) refused: u64,
    /// How many connections were reset.
    pub(crate) reset: u64,
    /// How many connections were closed without a byte of an answer.
    pub(crate) empty_close: u64,
    /// How many connections were closed in the middle of an answer.
    pub(crate) short_close: u64,
    /// How many requests had no whole answer within the deadline.
    pub(crate) timed_out: u64,
    /// What else went wrong.
    pub(crate) other: Vec<String>,
    /// The longest time that any one loop was without an answer, from its start to its end.
    pub(crate) longest_stall: Duration,
}

impl Report {
    /// How many requests were answered.
    pub(crate) fn answered(&self) -> u64 {
        self.answered_by.values().sum()
    }

    /// How many requests were not answered.
    pub(crate) fn lost(&self) -> u64 {
        self.requests - self.answered()
    }

    fn add_result(&mut self, result: &Result<String, Failure>) {
        self.requests += 1;
        match result {
            Ok(body) => *self.answered_by.entry(pid_in(body)).or_default() += 1,
            Err(Failure::Refused) => self.refused += 1,
            Err(Failure::Reset) => self.reset += 1,
            Err(Failure::EmptyClose) => self.empty_close += 1,
            Err(Failure::ShortClose) => self.short_close += 1,
            Err(Failure::TimedOut) => self.timed_out += 1,
            Err(Failure::Other(what)) => self.other.push(what.clone()),
        }
    }

    fn add_report(&mut self, more: Report) {
        self.requests += more.requests;
        for (pid, count) in more.answered_by {
            *self.answered_by.entry(pid).or_default() += count;
        }
        self.refused += more.refused;
        self.reset += more.reset;
        self.empty_close += more.empty_close;
        self.short_close += more.short_close;
        self.timed_out += more.timed_out;
        self.other.extend(more.other);
        self.longest_stall = self.longest_stall.max(more.longest_stall);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} requests, {} answered by {} processes, {} lost ({} refused, {} reset, \
             {} closed without an answer, {} closed in the middle, {} timed out, {} other), \
             longest stall {} ms",
            self.requests,
            self.answered(),
            self.answered_by.len(),
            self.lost(),
            self.refused,
            self.reset,
            self.empty_close,
            self.short_close,
            self.timed_out,
            self.other.len(),
            self.longest_stall.as_millis(),
        )?;
        match self.other.first() {
            Some(first) => write!(formatter, "; first other: {first}"),
            None => Ok(()),
        }
    }
}

/// The number behind `pid=` in an answer, or 0.
fn pid_in(body: &str) -> u32 {
    body.split_ascii_whitespace().find_map(|word| word.strip_prefix("pid=")?.parse().ok()).unwrap_or(0)
}

/// What the loops share.
struct Shared {
    stopping: AtomicBool,
    started: Instant,
    /// How many requests were not answered so far.
    losses: AtomicU64,
    loops: Vec<Answers>,
}

/// The answers that one loop has had.
#[derive(Default)]
struct Answers {
    count: AtomicU64,
    /// When the last one came, in microseconds since the start.
    last: AtomicU64,
    /// The longest time without one that ended since the last mark, in microseconds.
    longest_since_mark: AtomicU64,
    /// The longest one of all, but for those since the last mark.
    longest_before_mark: AtomicU64,
}

impl Answers {
    /// An answer came, this long after the start.
    fn add(&self, now: u64) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let before = self.last.swap(now, Ordering::Relaxed);
        self.longest_since_mark.fetch_max(now.saturating_sub(before), Ordering::Relaxed);
    }

    /// Begins a new phase and returns the longest time without an answer of the one that ends. What lasts now counts in
    /// both: in this one as long as it has lasted, in the next one from its beginning.
    fn mark(&self, now: u64) -> u64 {
        let lasting = now.saturating_sub(self.last.load(Ordering::Relaxed));
        let longest = self.longest_since_mark.swap(0, Ordering::Relaxed).max(lasting);
        self.longest_before_mark.fetch_max(longest, Ordering::Relaxed);
        longest
    }
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Loops that send requests until they are told to stop.
pub(crate) struct Load {
    shared: Arc<Shared>,
    loops: Vec<JoinHandle<Report>>,
}

impl Load {
    /// Starts the loops.
    pub(crate) fn start(addr: impl Into<Addr>, options: LoadOptions) -> Load {
        let addr = addr.into();
        let shared = Arc::new(Shared {
            stopping: AtomicBool::new(false),
            started: Instant::now(),
            losses: AtomicU64::new(0),
            loops: (0..options.connections).map(|_| Answers::default()).collect(),
        });
        let loops = (0..options.connections)
            .map(|index| {
                let (addr, shared) = (addr.clone(), Arc::clone(&shared));
                thread::spawn(move || match shared.loops.get(index) {
                    Some(answers) => send_until_stopped(&addr, options, &shared, answers),
                    None => Report::default(),
                })
            })
            .collect();
        Load { shared, loops }
    }

    /// How many answers there have been so far.
    pub(crate) fn count(&self) -> u64 {
        self.counts().iter().sum()
    }

    /// How many answers each loop has had so far.
    pub(crate) fn counts(&self) -> Vec<u64> {
        self.shared.loops.iter().map(|answers| answers.count.load(Ordering::Relaxed)).collect()
    }

    /// How many requests were not answered so far.
    pub(crate) fn lost(&self) -> u64 {
        self.shared.losses.load(Ordering::Relaxed)
    }

    /// Ends a phase of the load and returns the longest time in it that any one loop was without an answer. The report
    /// is about all phases.
    pub(crate) fn mark(&self) -> Duration {
        let now = self.shared.now();
        let longest = self.shared.loops.iter().map(|answers| answers.mark(now)).max();
        Duration::from_micros(longest.unwrap_or_default())
    }

    /// Lets each loop finish the request in hand, and reports.
    pub(crate) fn stop(mut self) -> Report {
        self.shared.stopping.store(true, Ordering::Relaxed);
        let mut total = Report::default();
        for one in self.loops.drain(..) {
            match one.join() {
                Ok(report) => total.add_report(report),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        total
    }
}

impl Drop for Load {
    /// Ends the loops of a load that nobody stopped, as when a test panics.
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
    }
}

/// Sends one request on a connection of its own and returns the body of the answer, which must come within five seconds.
pub(crate) fn one(addr: &Addr) -> Result<String, Failure> {
    one_within(addr, Duration::from_secs(5))
}

/// The same within this time.
pub(crate) fn one_within(addr: &Addr, limit: Duration) -> Result<String, Failure> {
    let deadline = Instant::now() + limit;
    Connection::open(addr, deadline)?.request(Mode::Short, deadline)
}

/// One loop: a request at a time, on one connection or on many.
fn send_until_stopped(addr: &Addr, options: LoadOptions, shared: &Shared, answers: &Answers) -> Report {
    let mut report = Report::default();
    let mut kept: Option<Connection> = None;
    while !shared.stopping.load(Ordering::Relaxed) {
        let deadline = Instant::now() + options.deadline;
        let result = match kept.take() {
            Some(connection) => Ok(connection),
            None => Connection::open(addr, deadline),
        }
        .and_then(|mut connection| {
            let body = connection.request(options.mode, deadline)?;
            if connection.usable {
                kept = Some(connection);
            } else {
                connection.wait_for_close();
            }
            Ok(body)
        });
        match &result {
            Ok(_) => {
                answers.add(shared.now());
                if !options.pause.is_zero() {
                    thread::sleep(options.pause);
                }
            }
            Err(_) => {
                shared.losses.fetch_add(1, Ordering::Relaxed);
                // A server that is away is not asked a hundred thousand times a second.
                thread::sleep(Duration::from_millis(1));
            }
        }
        report.add_result(&result);
    }
    // To the end: what was never answered is a stall too.
    answers.mark(shared.now());
    report.longest_stall = Duration::from_micros(answers.longest_before_mark.load(Ordering::Relaxed));
    report
}

/// One connection to the server.
struct Connection {
    socket: OwnedFd,
    /// Whether another request may be sent.
    usable: bool,
}

impl Connection {
    fn open(addr: &Addr, deadline: Instant) -> Result<Connection, Failure> {
        loop {
            let result = match addr {
                Addr::Tcp(addr) => TcpStream::connect_timeout(addr, time_left(deadline)?)
                    .map(OwnedFd::from)
                    .map_err(Failure::from_connect),
                Addr::Unix(path) => connect_unix(path, deadline),
            };
            match result {
                Ok(socket) => return Ok(Connection { socket, usable: true }),
                // This machine is out of local ports: not the server's doing, so try again.
                Err(ConnectError::NoLocalPort) => thread::sleep(Duration::from_millis(1)),
                Err(ConnectError::Failed(failure)) => return Err(failure),
            }
        }
    }

    /// Sends one request and reads the whole answer, of which it returns the body.
    fn request(&mut self, mode: Mode, deadline: Instant) -> Result<String, Failure> {
        self.usable = false;
        let header = match mode {
            Mode::Short => "Connection: close\r\n",
            Mode::KeepAlive => "",
        };
        let request = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{header}\r\n");
        set_socket_timeout(&self.socket, Timeout::Send, Some(time_left(deadline)?))?;
        let mut unsent = request.as_bytes();
        while !unsent.is_empty() {
            let count = rustix::io::retry_on_intr(|| rustix::net::send(&self.socket, unsent, SendFlags::NOSIGNAL))?;
            unsent = unsent.get(count..).unwrap_or_default();
        }

        let mut received = Vec::new();
        let mut answer: Option<Answer> = None;
        loop {
            let ended = !self.receive(&mut received, deadline)?;
            if answer.is_none() {
                answer = Answer::parse(&received)?;
            }
            match &answer {
                Some(answer) => {
                    let body = received.get(answer.head_length..).unwrap_or_default();
                    let whole = match answer.body_length {
                        Some(length) if body.len() > length => {
                            return Err(Failure::Other("bytes after the answer".to_string()));
                        }
                        Some(length) => body.len() == length,
                        None => ended,
                    };
                    if whole {
                        self.usable = mode == Mode::KeepAlive && !answer.closes && !ended;
                        return Ok(String::from_utf8_lossy(body).into_owned());
                    }
                    if ended {
                        return Err(Failure::ShortClose);
                    }
                }
                None if ended && received.is_empty() => return Err(Failure::EmptyClose),
                None if ended => return Err(Failure::ShortClose),
                None => {}
            }
        }
    }

    /// Appends what comes next, or returns false at the end of the connection.
    fn receive(&self, received: &mut Vec<u8>, deadline: Instant) -> Result<bool, Failure> {
        set_socket_timeout(&self.socket, Timeout::Recv, Some(time_left(deadline)?))?;
        let mut buffer = [0_u8; 4096];
        let (count, _) =
            rustix::io::retry_on_intr(|| rustix::net::recv(&self.socket, &mut buffer, RecvFlags::empty()))?;
        received.extend(buffer.iter().take(count));
        Ok(count > 0)
    }

    /// Gives the server a moment to close first, so that the local port is free again at once.
    fn wait_for_close(&self) {
        let _ = self.receive(&mut Vec::new(), Instant::now() + Duration::from_millis(100));
    }
}

/// How connecting failed.
enum ConnectError {
    NoLocalPort,
    Failed(Failure),
}

impl From<Errno> for ConnectError {
    fn from(error: Errno) -> ConnectError {
        match error {
            Errno::ADDRNOTAVAIL => ConnectError::NoLocalPort,
            other => ConnectError::Failed(other.into()),
        }
    }
}

impl From<Failure> for ConnectError {
    fn from(failure: Failure) -> ConnectError {
        ConnectError::Failed(failure)
    }
}

impl Failure {
    fn from_connect(error: io::Error) -> ConnectError {
        match Errno::from_io_error(&error) {
            Some(errno) => errno.into(),
            None => ConnectError::Failed(error.into()),
        }
    }
}

/// Connects to a UNIX socket; the send timeout bounds the wait for a place in a full queue.
fn connect_unix(path: &PathBuf, deadline: Instant) -> Result<OwnedFd, ConnectError> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(time_left(deadline)?))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// The time until the deadline, which is never zero: past it the request has timed out.
fn time_left(deadline: Instant) -> Result<Duration, Failure> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(Failure::TimedOut),
        left => Ok(left.max(Duration::from_millis(1))),
    }
}

/// What the head of an answer says.
struct Answer {
    head_length: usize,
    /// None: the body ends where the connection does.
    body_length: Option<usize>,
    closes: bool,
}

impl Answer {
    /// Reads the head, or returns None while it is not whole.
    fn parse(received: &[u8]) -> Result<Option<Answer>, Failure> {
        let Some(start) = received.windows(4).position(|window| window == b"\r\n\r\n") else {
            return Ok(None);
        };
        let head = String::from_utf8_lossy(received.get(..start).unwrap_or_default()).to_ascii_lowercase();
        let header = |name: &str| {
            head.lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value.trim())
        };
        let status_line = head.lines().next().unwrap_or_default();
        if status_line.split_ascii_whitespace().nth(1) != Some("200") {
            return Err(Failure::Other(format!("answer {status_line:?}")));
        }
        if header("transfer-encoding").is_some() {
            return Err(Failure::Other("an answer in chunks is not understood".to_string()));
        }
        let body_length = match header("content-length") {
            Some(length) => Some(length.parse().map_err(|_| Failure::Other("bad Content-Length".to_string()))?),
            None => None,
        };
        let closes = match header("connection") {
            Some("close") => true,
            Some("keep-alive") => false,
            Some(_) | None => status_line.starts_with("http/1.0"),
        };
        Ok(Some(Answer { head_length: start + 4, body_length, closes }))
    }
}
