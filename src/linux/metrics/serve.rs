//! The child's loop: connections, what they ask for, what panzer says.
//!
//! Must never wait for one client while others are there, nor wake up while there is none.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::event::{Timespec, epoll, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};

use super::http::{self, Page, Request};
use super::{ASK, MORE, text};
use crate::error::Status;
use crate::linux::clock::Instant;
use crate::linux::{idle, sys};

/// Time since the start of the child. Smaller in the file than the standard library's.
type Millis = i64;

/// More connections than that push out the oldest one.
const MOST_CONNECTIONS: usize = 64;

/// How old a snapshot may be.
const FRESH: Millis = 250;

/// How long there must be nothing to do before memory is given back.
const PAUSE: Millis = 200;

/// How long to rest where the kernel has no descriptor for a client and none can be closed for it.
const REST: Millis = 100;

/// What stands before a document.
const LENGTH: usize = size_of::<u32>();

/// How much is read at a time, and how often at most after an answer.
const READ_AT_ONCE: usize = 2048;
const MOST_READS: u32 = 256;

/// What the events of the child's epoll instance are about, beside connections, which have their descriptors' numbers.
const PANZER: u64 = u64::MAX;
const LISTENER: u64 = u64::MAX - 1;

/// What is said with an answer that holds no metrics.
const WORDS: &str = "text/plain; charset=utf-8";

/// What a connection is waiting for.
#[derive(Clone, Copy)]
enum State {
    /// The head of the request.
    Reading,
    /// panzer.
    Waiting(Request),
    /// The client's taking the answer.
    Writing,
    /// The client's end of it: what it still sends is read, since the kernel would take the answer away from it
    /// otherwise. So many reads are left for that.
    Closing(u32),
}

impl State {
    /// For how long.
    fn limit(self) -> Millis {
        match self {
            Self::Reading | Self::Writing => 10_000,
            Self::Waiting(_) => 5000,
            Self::Closing(_) => 2000,
        }
    }
}

/// A client.
struct Connection {
    socket: OwnedFd,
    state: State,
    /// When that began.
    since: Millis,
    /// The head that has come so far, then the answer.
    bytes: Vec<u8>,
    /// How much of the answer has been taken.
    taken: usize,
    /// Something has happened to it.
    is_awake: bool,
    /// The client has closed its side. It may still take the answer.
    has_gone: bool,
}

/// What panzer has said.
struct Snapshot {
    panzer: OwnedFd,
    /// The document's length in four bytes, and what has come of it.
    bytes: Vec<u8>,
    /// It is asked for and has not come yet.
    is_asked_for: bool,
    /// When it was there as a whole.
    at: Option<Millis>,
}

/// Serves until panzer is gone.
pub(super) fn serve(panzer: OwnedFd, listener: &OwnedFd, epoll: &OwnedFd) -> ! {
    let mut snapshot = Snapshot { panzer, bytes: Vec::new(), is_asked_for: false, at: None };
    let mut connections: Vec<Connection> = Vec::new();
    let mut was_quiet = false;
    let start = Instant::now();
    let mut now = 0;
    loop {
        let pause = if was_quiet { None } else { Some(now + PAUSE) };
        let deadline = connections.iter().map(Connection::deadline).min().or(pause);
        let timeout = deadline.map(|at| timespec((at - now).max(0)));
        let mut space = idle::EMPTY;
        let events = idle::wait(epoll.as_fd(), &mut space, timeout.as_ref(), timeout.is_none()).unwrap_or_default();
        let elapsed = start.elapsed();
        now = Millis::try_from(elapsed.as_secs()).unwrap_or(0) * 1000 + Millis::from(elapsed.subsec_millis());
        for event in events {
            match event.data.u64() {
                PANZER => {
                    if !snapshot.read(now) {
                        sys::exit_now(Status::SUCCESS.0);
                    }
                    connections.iter_mut().for_each(|one| one.is_awake |= matches!(one.state, State::Waiting(_)));
                }
                LISTENER => accept(listener, epoll, &mut connections, now),
                number => {
                    // What is not found has been closed since.
                    if let Some(one) = connections.iter_mut().find(|one| data_of(&one.socket) == number) {
                        one.is_awake = true;
                        let flags = event.flags;
                        one.has_gone |= flags.contains(epoll::EventFlags::RDHUP);
                    }
                }
            }
        }
        connections.retain_mut(|one| one.go_on(&mut snapshot, now));
        was_quiet = events.is_empty();
        if was_quiet && !snapshot.is_asked_for {
            (snapshot.bytes, snapshot.at) = (Vec::new(), None);
        }
    }
}

/// What tells of panzer and of new connections.
///
/// # Errors
/// The kernel has none.
pub(super) fn open(panzer: &OwnedFd, listener: &OwnedFd) -> Result<OwnedFd, Errno> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (socket, data) in [(panzer, PANZER), (listener, LISTENER)] {
        epoll::add(&epoll, socket, epoll::EventData::new_u64(data), epoll::EventFlags::IN)?;
    }
    Ok(epoll)
}

fn timespec(time: Millis) -> Timespec {
    Timespec { tv_sec: time / 1000, tv_nsec: time % 1000 * 1_000_000 }
}

fn data_of(socket: &OwnedFd) -> u64 {
    socket.as_raw_fd().unsigned_abs().into()
}

/// Takes the next client.
fn accept(listener: &OwnedFd, epoll: &OwnedFd, connections: &mut Vec<Connection>, now: Millis) {
    match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(socket) => {
            // Told once of each change, so what is asked for stays the same whatever it waits for.
            let flags =
                epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
            if epoll::add(epoll, &socket, epoll::EventData::new_u64(data_of(&socket)), flags).is_ok() {
                let bytes = Vec::new();
                connections.push(Connection {
                    socket,
                    state: State::Reading,
                    since: now,
                    bytes,
                    taken: 0,
                    is_awake: false,
                    has_gone: false,
                });
            }
            if let Some((_, others)) = connections.split_last_mut()
                && others.len() >= MOST_CONNECTIONS
            {
                push_out(others);
            }
        }
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
        // No descriptors, no memory. The client stays in the queue, and would be told of again at once.
        Err(_) => {
            if !push_out(connections) {
                let _ = poll(&mut [], Some(&timespec(REST)));
            }
        }
    }
}

/// Lets the time be over for the oldest connection, first of those whose client has gone, last of those that wait for
/// panzer; whether there was one.
fn push_out(connections: &mut [Connection]) -> bool {
    let has_gone = connections.iter().position(|one| one.has_gone);
    let at = has_gone.or_else(|| connections.iter().position(|one| !matches!(one.state, State::Waiting(_))));
    let Some(oldest) = connections.get_mut(at.unwrap_or(0)) else { return false };
    oldest.since = Millis::MIN / 2;
    true
}

impl Connection {
    fn deadline(&self) -> Millis {
        self.since + self.state.limit()
    }

    fn enter(&mut self, state: State, bytes: Vec<u8>, now: Millis) {
        (self.state, self.bytes, self.since) = (state, bytes, now);
    }

    /// Does what can be done now; whether it goes on.
    fn go_on(&mut self, snapshot: &mut Snapshot, now: Millis) -> bool {
        if now >= self.deadline() {
            let State::Waiting(request) = &mut self.state else { return false };
            request.page = Page::Unavailable;
        } else if !self.is_awake {
            return true;
        }
        self.is_awake = false;
        loop {
            let done = match self.state {
                State::Reading | State::Closing(_) => self.read(now),
                State::Waiting(request) => self.answer(&request, snapshot, now),
                State::Writing => self.write(now),
            };
            if let Some(goes_on) = done {
                return goes_on;
            }
        }
    }

    /// A step of it; `None`: there may be another one.
    fn read(&mut self, now: Millis) -> Option<bool> {
        let mut space = [0; READ_AT_ONCE];
        let length = match rustix::io::read(&self.socket, &mut space) {
            Err(Errno::AGAIN) => return Some(true),
            Ok(0) | Err(_) => return Some(false),
            Ok(length) => length,
        };
        if let State::Closing(left) = &mut self.state {
            *left -= 1;
            return (*left == 0).then_some(false);
        }
        self.bytes.extend_from_slice(space.get(..length).unwrap_or_default());
        if let Some(request) = http::parse(&self.bytes) {
            self.enter(State::Waiting(request), Vec::new(), now);
        }
        None
    }

    /// As [`Connection::read`].
    fn answer(&mut self, request: &Request, snapshot: &mut Snapshot, now: Millis) -> Option<bool> {
        let document = match request.page {
            Page::Bad | Page::NotFound | Page::NotAllowed | Page::TooLarge | Page::Unavailable => "",
            Page::Metrics | Page::Livez | Page::Readyz => match snapshot.document(now) {
                Some(document) => document,
                None => {
                    snapshot.ask();
                    return Some(true);
                }
            },
        };
        let (mut page, mut kind, mut body) = (request.page, WORDS, Vec::new());
        match page {
            Page::Metrics => kind = text::render(document, request.open_metrics, &mut body),
            Page::Livez => text::push(&mut body, &["ok\n"]),
            Page::Readyz => {
                if !text::readiness(document, &mut body) {
                    page = Page::Unavailable;
                }
            }
            Page::Unavailable => text::push(&mut body, &["panzer does not answer\n"]),
            Page::Bad | Page::NotFound | Page::NotAllowed | Page::TooLarge => {}
        }
        self.enter(State::Writing, http::answer(page, request.is_head, kind, &body), now);
        None
    }

    /// As [`Connection::read`].
    fn write(&mut self, now: Millis) -> Option<bool> {
        let rest = self.bytes.get(self.taken..).unwrap_or_default();
        match rustix::io::write(&self.socket, rest) {
            Err(Errno::AGAIN) => return Some(true),
            Err(_) => return Some(false),
            Ok(length) => self.taken += length,
        }
        if self.taken >= self.bytes.len() {
            let _ = shutdown(&self.socket, Shutdown::Write);
            self.enter(State::Closing(MOST_READS), Vec::new(), now);
        }
        None
    }
}

impl Snapshot {
    /// The document, where it is there and not too old.
    fn document(&self, now: Millis) -> Option<&str> {
        self.at.filter(|at| now < *at + FRESH)?;
        std::str::from_utf8(self.bytes.get(LENGTH..)?).ok()
    }

    /// Asks panzer for another one.
    fn ask(&mut self) {
        if !self.is_asked_for {
            (self.bytes, self.at) = (Vec::new(), None);
            self.is_asked_for = rustix::io::write(&self.panzer, &[ASK]).is_ok();
        }
    }

    /// Takes what panzer says; whether panzer is still there.
    fn read(&mut self, now: Millis) -> bool {
        let mut space = [0; READ_AT_ONCE];
        loop {
            match rustix::io::read(&self.panzer, &mut space) {
                Err(Errno::AGAIN) => break,
                Ok(0) | Err(_) => return false,
                Ok(length) => self.bytes.extend_from_slice(space.get(..length).unwrap_or_default()),
            }
        }
        let length = self.bytes.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        let length = length.and_then(|length| usize::try_from(length).ok()).unwrap_or(usize::MAX);
        if self.bytes.len().saturating_sub(LENGTH) >= length {
            (self.is_asked_for, self.at) = (false, Some(now));
        } else {
            let _ = rustix::io::write(&self.panzer, &[MORE]);
        }
        true
    }
}
