//! Ports that workers share without knowing it: a worker's `bind` and `listen` come here, and it gets a listener that
//! panzer holds.
//!
//! Must never wait, and never answer a call otherwise than the kernel would have answered a worker that is alone: what
//! is not understood is passed on.
//!
//! - `filter`: which calls come here; `answer`: what becomes of each
//! - `caller`, `identity`: who makes one, what it is about, and doing something as that process
//! - `shared`: one address and its sockets; `options` and `names`: what else belongs to them
//! - `queues`: one queue for each slot

mod answer;
mod caller;
mod filter;
mod identity;
mod names;
mod options;
mod queues;
mod shared;

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, SocketType, sockopt};

use super::listen::Listener;
use super::log::Log;
use super::sys::{self, Answer, Notification};
use crate::error::cause;
use crate::supervisor::report::Level;
use crate::supervisor::rotation::Queue;
use crate::supervisor::{Event, WorkerId};
use names::{KeptName, Names};
use options::Options;
use shared::{Address, Shared};

pub(super) use caller::can_take_sockets;
pub(super) use filter::{AlsoSent, program};

/// How many calls are answered before panzer looks at anything else. Each worker's turn comes as often.
const EVENTS_AT_ONCE: usize = 16;

/// What was bound and does not listen is looked at after this time, and then at the interval of [`UNUSED`].
const UNLISTENED: Duration = Duration::from_secs(1);

/// A listener that no worker has is let go of when no worker has started for so long.
const UNUSED: Duration = Duration::from_secs(60);

/// That a listener was shut down is told whatever else is asked for.
const SHUT_DOWN: epoll::EventFlags = epoll::EventFlags::empty();

/// That a socket got connected wakes both sides of it. It is told once at the beginning, too.
const CONNECTED: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::OUT).union(epoll::EventFlags::ET);

/// What is ready; the kernel keeps it as one number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token {
    /// A worker's call waits at this filter.
    Filter(RawFd),
    /// Something has happened to a socket that panzer holds.
    Socket(RawFd),
    /// A link to a UNIX path is gone.
    Names,
}

impl Token {
    fn to_data(self) -> epoll::EventData {
        let number = |kind: u64, descriptor: RawFd| (kind << 32) | u64::from(descriptor.unsigned_abs());
        epoll::EventData::new_u64(match self {
            Self::Filter(descriptor) => number(0, descriptor),
            Self::Socket(descriptor) => number(1, descriptor),
            Self::Names => number(2, 0),
        })
    }

    fn from_data(data: epoll::EventData) -> Self {
        let descriptor = RawFd::try_from(data.u64() & u64::from(u32::MAX)).unwrap_or(-1);
        match data.u64() >> 32 {
            0 => Self::Filter(descriptor),
            1 => Self::Socket(descriptor),
            _ => Self::Names,
        }
    }
}

/// How ports are shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PortSettings {
    /// The least length of a queue.
    pub(super) backlog: u32,
    /// How many queues an address has: one, or one a slot.
    pub(super) queues: u32,
    /// What workers bind by themselves is shared.
    pub(super) are_shared: bool,
    /// Workers' own sockets can be had.
    pub(super) takes_sockets: bool,
}

/// A call that waits for its answer.
struct Pending<'a> {
    filter: BorrowedFd<'a>,
    worker: WorkerId,
    notification: Notification,
    now: Duration,
}

/// A worker's filter.
struct Filter {
    worker: WorkerId,
    descriptor: Rc<OwnedFd>,
    /// What it has set on sockets that it has not bound yet, the latest last.
    options: Vec<(u64, Options)>,
}

/// Everything that is shared.
pub(super) struct Ports {
    settings: PortSettings,
    epoll: OwnedFd,
    filters: Vec<Filter>,
    shared: Vec<Shared>,
    names: Names,
    /// Which slots take connections; empty until that is known.
    rotation: Vec<Queue>,
    last_start: Duration,
    /// The kernel cannot put a listener in a socket's place (before Linux 5.9).
    is_useless: bool,
    /// It was said that a call could not be understood.
    said: bool,
}

/// Why a call is passed on to the kernel.
enum Unshared {
    /// It is none of panzer's business.
    OfNoConcern,
    /// It may be, and panzer cannot find out.
    Unknown(Errno),
}

impl From<Errno> for Unshared {
    fn from(error: Errno) -> Self {
        match error {
            // Whoever is gone needs no answer, and a pointer to nowhere (EIO, EFAULT) has one from the kernel.
            Errno::NOENT | Errno::SRCH | Errno::IO | Errno::FAULT => Self::OfNoConcern,
            error => Self::Unknown(error),
        }
    }
}

impl Ports {
    /// Shares what `listeners` bind, and whatever workers bind later.
    pub(super) fn new(settings: PortSettings, listeners: &[Listener], log: &mut Log) -> Result<Self, Errno> {
        let mut ports = Self {
            settings,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            filters: Vec::new(),
            shared: Vec::new(),
            names: Names::default(),
            rotation: Vec::new(),
            last_start: Duration::ZERO,
            is_useless: false,
            said: false,
        };
        let backlog = i32::try_from(settings.backlog).unwrap_or(i32::MAX);
        for listener in listeners {
            let Some(address) = address_of(listener) else { continue };
            let mut shared = Shared::declared(address, listener.sockets.clone(), backlog);
            // A path that somebody has handed to panzer is theirs to keep and to remove.
            if let (true, Some(_), Address::Path(path)) = (settings.are_shared, &listener.path, &shared.address) {
                let name = KeptName::new(path, None);
                ports.keep_name(&mut shared, name, log);
            }
            ports.shared.push(shared);
            ports.watch(ports.shared.len() - 1, SHUT_DOWN);
        }
        Ok(ports)
    }

    /// Readable when there is something to handle.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Answers the calls of a new worker from now on.
    pub(super) fn add(&mut self, now: Duration, worker: WorkerId, descriptor: OwnedFd, log: &mut Log) {
        self.last_start = now;
        for shared in &mut self.shared {
            shared.listening.retain(|slot| *slot != worker.slot);
        }
        // A call that nobody makes: a kernel that knows the request says ENOENT.
        let probe = sys::replace_descriptor(descriptor.as_fd(), 0, descriptor.as_fd(), 0, true);
        if !self.is_useless && probe.is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL)) {
            self.is_useless = true;
            say_not_shared(log, "this kernel cannot replace a descriptor (Linux 5.9 can)");
        }
        let data = Token::Filter(descriptor.as_raw_fd()).to_data();
        if let Err(error) = epoll::add(&self.epoll, &descriptor, data, epoll::EventFlags::IN) {
            // Dropped, the worker's calls would fail; so they wait until it is told to stop.
            say_not_shared(log, &cause(&error.into()));
        }
        self.filters.push(Filter { worker, descriptor: Rc::new(descriptor), options: Vec::new() });
    }

    /// Does what there is to do, and says what the supervisor wants to know.
    ///
    /// While workers are being stopped, what they shut down stays so.
    pub(super) fn handle(&mut self, now: Duration, is_stopping: bool, log: &mut Log) -> Vec<Event> {
        let mut space = [const { MaybeUninit::uninit() }; EVENTS_AT_ONCE];
        let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let ready: &[epoll::Event] = match epoll::wait(&self.epoll, &mut space, Some(&none)) {
            Ok((events, _)) => events,
            Err(_) => &[],
        };
        let mut told = Vec::new();
        for event in ready {
            let flags = event.flags;
            match Token::from_data(event.data) {
                Token::Filter(descriptor) if flags.contains(epoll::EventFlags::IN) => {
                    told.extend(self.answer(descriptor, now, log));
                }
                Token::Filter(descriptor) => self.forget_filter(descriptor, now),
                Token::Socket(descriptor) => self.socket_changed(descriptor, is_stopping, log),
                Token::Names => self.restore_names(log),
            }
        }
        told
    }

    /// When [`Ports::clear`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.shared.iter().filter_map(|shared| shared.look_at).min()
    }

    /// Lets go of the listeners that nobody needs any more.
    pub(super) fn clear(&mut self, now: Duration, log: &mut Log) {
        let last_start = self.last_start;
        self.shared.retain_mut(|shared| {
            if shared.look_at.is_none_or(|at| at > now) {
                return true;
            }
            shared.look_at = Some(now + UNUSED);
            let is_unused = if shared.backlog.is_none() {
                shared.is_closed_again()
            } else {
                shared.holders.is_empty() && last_start + UNUSED <= now
            };
            if is_unused && shared.backlog.is_some() {
                let text = format!("no worker listens on {} any more; closing it", shared.address);
                log.say(Level::Info, "port_closed", &text);
            }
            !is_unused
        });
    }

    /// Whether a path is kept in place, which a worker may want to remove.
    pub(super) fn keep_names(&self) -> bool {
        self.shared.iter().any(|shared| shared.name.is_some())
    }

    /// Whether each slot has a queue of its own.
    pub(super) fn have_queues(&self) -> bool {
        self.settings.queues > 1
    }

    /// Lets new connections go to the slots that take them.
    pub(super) fn rotate(&mut self, rotation: Vec<Queue>, log: &mut Log) {
        if self.rotation != rotation {
            let before = std::mem::replace(&mut self.rotation, rotation);
            for at in 0..self.shared.len() {
                self.steer(at, &before, log);
            }
        }
    }

    /// Tells the kernel who takes connections now; `before` is what it was told last.
    fn steer(&mut self, at: usize, before: &[Queue], log: &mut Log) {
        let Self { shared, rotation, epoll, .. } = self;
        let Some(shared) = shared.get(at).filter(|one| one.sockets.len() > 1 && one.backlog.is_some()) else { return };
        let serving = (0..).zip(&*rotation).filter(|(_, queue)| **queue == Queue::Serving);
        let serving = shared.of_those_who_listen(serving.map(|(slot, _)| slot).collect());
        if serving.is_empty() {
            return;
        }
        if let Err(error) = queues::steer(&shared.sockets, &serving) {
            let text = format!("cannot steer the connections of {}: {}; going on", shared.address, cause(&error));
            log.say(Level::Error, "error", &text);
        }
        let before = before.iter().map(Some).chain(std::iter::repeat(None));
        for ((socket, queue), before) in shared.sockets.iter().zip(&*rotation).zip(before) {
            let (is_abandoned, was_abandoned) = (*queue == Queue::Abandoned, before == Some(&Queue::Abandoned));
            if is_abandoned != was_abandoned {
                let data = Token::Socket(socket.as_raw_fd()).to_data();
                let _ =
                    epoll::modify(&*epoll, socket, data, if is_abandoned { epoll::EventFlags::IN } else { SHUT_DOWN });
            }
        }
    }

    /// A socket that was bound and does not listen got connected; or a listener was shut down; or something came for a
    /// slot that has no worker.
    fn socket_changed(&mut self, descriptor: RawFd, is_stopping: bool, log: &mut Log) {
        let is_it = |socket: &&Rc<OwnedFd>| socket.as_raw_fd() == descriptor;
        let Some(at) = self.shared.iter().position(|shared| shared.sockets.iter().any(|one| is_it(&one))) else {
            return;
        };
        let Some(shared) = self.shared.get(at) else { return };
        let Some(socket) = shared.sockets.iter().find(is_it) else { return };
        match shared.backlog {
            None if shared.is_connected() => self.forget(at),
            None => {}
            Some(_) if sockopt::socket_acceptconn(socket) == Ok(true) => drop(queues::let_go(socket)),
            Some(_) if is_stopping => drop(epoll::delete(&self.epoll, socket)),
            Some(backlog) => {
                // shutdown(2) ends a listener for all who have it, and some servers do that when they stop.
                let text = format!("a worker has shut {} down for all; listening again", shared.address);
                log.say(Level::Warning, "port_shut_down", &text);
                if rustix::net::listen(socket, backlog).is_err() {
                    let _ = epoll::delete(&self.epoll, socket);
                }
            }
        }
    }

    /// Has panzer told of what happens to the sockets at `at`.
    fn watch(&self, at: usize, flags: epoll::EventFlags) {
        let Some(shared) = self.shared.get(at) else { return };
        // A UNIX listener that was shut down stays so.
        if let Address::Internet(_) = shared.address {
            for socket in &shared.sockets {
                let data = Token::Socket(socket.as_raw_fd()).to_data();
                if epoll::add(&self.epoll, socket, data, flags) == Err(Errno::EXIST) {
                    let _ = epoll::modify(&self.epoll, socket, data, flags);
                }
            }
        }
    }

    fn forget(&mut self, at: usize) {
        let shared = self.shared.swap_remove(at);
        for socket in &shared.sockets {
            // A child that has not executed yet may hold a copy, and epoll would go on telling of it.
            let _ = epoll::delete(&self.epoll, socket);
        }
    }

    fn forget_filter(&mut self, descriptor: RawFd, now: Duration) {
        let Some(at) = self.filters.iter().position(|filter| filter.descriptor.as_raw_fd() == descriptor) else {
            return;
        };
        let filter = self.filters.swap_remove(at);
        let _ = epoll::delete(&self.epoll, &filter.descriptor);
        for shared in &mut self.shared {
            shared.holders.retain(|holder| *holder != filter.worker);
            if shared.holders.is_empty() && !shared.declared {
                shared.look_at.get_or_insert(now + UNUSED);
            }
        }
    }

    fn restore_names(&mut self, log: &mut Log) {
        self.names.drain();
        for name in self.shared.iter().filter_map(|shared| Some((&shared.address, shared.name.as_ref()?))) {
            if let (address, Err(error)) = (name.0, name.1.restore()) {
                let text = format!("cannot put back {address}: {}; going on", cause(&error.into()));
                log.say(Level::Error, "error", &text);
            }
        }
    }

    /// Has the path of `shared` put back whenever it goes.
    fn keep_name(&mut self, shared: &mut Shared, name: Result<KeptName, Errno>, log: &mut Log) {
        let Self { epoll, names, .. } = self;
        let watched = name.and_then(|name| {
            let name = shared.name.insert(name);
            let descriptor = names.watch(name)?;
            match epoll::add(&*epoll, descriptor, Token::Names.to_data(), epoll::EventFlags::IN) {
                Err(Errno::EXIST) => Ok(()),
                added => added,
            }
        });
        if let Err(error) = watched {
            let words = cause(&error.into());
            let text =
                format!("cannot keep {} in place: {words}; a worker that removes it takes it from all", shared.address);
            log.say(Level::Warning, "path_not_kept", &text);
        }
    }

    /// Answers one call.
    fn answer(&mut self, descriptor: RawFd, now: Duration, log: &mut Log) -> Option<Event> {
        let filter = self.filters.iter().find(|filter| filter.descriptor.as_raw_fd() == descriptor)?;
        let (worker, filter) = (filter.worker, Rc::clone(&filter.descriptor));
        let notification = sys::receive_notification(filter.as_fd()).ok()?;
        let pending = Pending { filter: filter.as_fd(), worker, notification, now };
        let (answer, event) = match self.decide(&pending, log) {
            Ok(decided) => decided,
            Err(Unshared::OfNoConcern) => (Answer::PassOn, None),
            Err(Unshared::Unknown(error)) => {
                if !std::mem::replace(&mut self.said, true) {
                    let why = with_advice(&cause(&error.into()));
                    let text = format!("cannot share a port of worker {}: {why}", worker.slot);
                    log.say(Level::Warning, "ports_not_shared", &text);
                }
                (Answer::PassOn, None)
            }
        };
        let _ = sys::answer_notification(filter.as_fd(), notification.id, answer);
        event
    }
}

/// What `listener` is bound to, where workers may bind it too.
fn address_of(listener: &Listener) -> Option<Address> {
    let socket = listener.sockets.first()?;
    if sockopt::socket_type(socket) != Ok(SocketType::STREAM) {
        return None;
    }
    let address = rustix::net::getsockname(socket).ok()?;
    if let Ok(address) = SocketAddr::try_from(address.clone()) {
        return Some(Address::Internet(plain(address)));
    }
    let address = SocketAddrUnix::try_from(address).ok()?;
    let path = Path::new(OsStr::from_bytes(address.path_bytes()?));
    Some(Address::Path(std::fs::canonicalize(path.parent()?).ok()?.join(path.file_name()?)))
}

/// Without the flow label, which is no part of where a listener is.
fn plain(mut address: SocketAddr) -> SocketAddr {
    if let SocketAddr::V6(address) = &mut address {
        address.set_flowinfo(0);
    }
    address
}

/// Why a worker could not be put under a filter, and what to do instead.
pub(super) fn refusal(errno: i32) -> String {
    let words = match errno {
        // Only one such filter can be in force for a process.
        libc::EBUSY => "whoever runs panzer intercepts calls already (seccomp)".to_owned(),
        errno => cause(&std::io::Error::from_raw_os_error(errno)),
    };
    with_advice(&words)
}

/// What to do instead is part of the line.
pub(super) fn with_advice(cause: &str) -> String {
    format!("{cause}; use -l, or SO_REUSEPORT in the command")
}

/// One line about a kernel, or a worker, with which it cannot be done.
fn say_not_shared(log: &mut Log, cause: &str) {
    let text = format!("cannot share ports: {}", with_advice(cause));
    log.say(Level::Warning, "ports_not_shared", &text);
}
