//! Ports that workers share without knowing it: a worker's `bind` and `listen` come here, and it gets a listener that
//! panzer holds.
//!
//! Must never wait, and never answer a call otherwise than the kernel would have answered a worker that is alone: what
//! is not understood is passed on.
//!
//! - `filter`: which calls come here; `answer`: what becomes of each
//! - `caller`, `identity`: who makes one, what it is about, and doing something as that process
//! - `shared`: one address and its sockets; `names`: what else belongs to a path
//! - `queues`: one queue for each slot

mod answer;
mod caller;
pub(super) mod filter;
mod identity;
mod names;
mod queues;
mod shared;

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::event::epoll;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, SocketType, sockopt};

use super::files;
use super::idle;
use super::listen::{Listener, Queues};
use super::log::Log;
use super::socket_options::SocketOptions;
use crate::linux::words;
use crate::supervisor::report::Level;
use crate::supervisor::rotation::QueueState;
use crate::supervisor::{Event, WorkerId};
use answer::Waiting;
use names::{KeptName, Names, Place};
use shared::{Address, Changed, SharedListener};

pub(super) use caller::can_take_sockets;
pub(super) use filter::{AlsoSent, program};
pub(super) use queues::MOST_QUEUES;

/// What was bound and does not listen is looked at after this time, and then at the interval of [`UNUSED`].
const UNLISTENED: Duration = Duration::from_secs(1);

/// A listener that no worker has is let go of when no worker has started for so long.
const UNUSED: Duration = Duration::from_secs(60);

/// That a socket got connected wakes both sides of it. It is told once at the beginning, too.
const CONNECTED: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::OUT).union(epoll::EventFlags::ET);

/// What tells that a listener was shut down: for a port the hang-up, which is told whatever else is asked for.
fn until_shut_down(address: &Address) -> epoll::EventFlags {
    match address {
        Address::Internet(_) => epoll::EventFlags::empty(),
        Address::Path(_) => epoll::EventFlags::RDHUP,
    }
}

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
    /// How many queues each port has.
    pub(super) queues: Queues,
    /// What workers bind by themselves is shared.
    pub(super) shares_binds: bool,
    /// Workers' own sockets can be had.
    pub(super) takes_sockets: bool,
}

/// A worker's filter.
struct Filter {
    worker: WorkerId,
    descriptor: Rc<OwnedFd>,
    /// What it has set on sockets that it has not bound yet, the latest last.
    options: Vec<(u64, SocketOptions)>,
    /// In whose place there is a listener now, and which one, the latest last.
    replaced: Vec<(u64, Address)>,
}

/// Everything that is shared.
pub(super) struct Ports {
    settings: PortSettings,
    epoll: OwnedFd,
    filters: Vec<Filter>,
    /// Binds that are not answered yet.
    waiting: Vec<Waiting>,
    shared: Vec<SharedListener>,
    names: Names,
    /// Which slots take connections; empty until that is known.
    rotation: Vec<QueueState>,
    last_start: Duration,
    /// It was said that panzer cannot tell what a call is about.
    said_cannot_tell: bool,
    /// It was said that panzer has too few descriptors.
    said_no_room: bool,
    /// It was said that a socket is in an epoll set.
    said_in_epoll: bool,
}

impl Ports {
    /// Shares what `listeners` bind, and whatever workers bind later.
    pub(super) fn new(settings: PortSettings, listeners: &[Listener], log: &mut Log) -> Result<Self, Errno> {
        let mut ports = Self {
            settings,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            filters: Vec::new(),
            waiting: Vec::new(),
            shared: Vec::new(),
            names: Names::default(),
            rotation: Vec::new(),
            last_start: Duration::ZERO,
            said_cannot_tell: false,
            said_no_room: false,
            said_in_epoll: false,
        };
        let backlog = i32::try_from(settings.backlog).unwrap_or(i32::MAX);
        for listener in listeners {
            let Some(address) = address_of(listener) else { continue };
            let mut shared = SharedListener::declared(address, listener, backlog);
            // A path that somebody has handed to panzer is theirs to keep and to remove.
            if let (true, Some(_), Address::Path(path)) = (settings.shares_binds, &listener.path, &shared.address) {
                let name = KeptName::new(path, None);
                ports.keep_name(&mut shared, name, log);
            }
            if let Address::Internet(_) = shared.address {
                shared.watch(&ports.epoll, until_shut_down(&shared.address));
            }
            ports.shared.push(shared);
        }
        Ok(ports)
    }

    /// Readable when there is something to handle.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Answers the calls of a new worker from now on.
    ///
    /// # Errors
    /// The kernel has no memory to watch them; what the worker binds will fail then.
    pub(super) fn add(&mut self, now: Duration, worker: WorkerId, filter: OwnedFd) -> Result<(), Errno> {
        self.last_start = now;
        let data = Token::Filter(filter.as_raw_fd()).to_data();
        epoll::add(&self.epoll, &filter, data, epoll::EventFlags::IN)?;
        self.filters.push(Filter { worker, descriptor: Rc::new(filter), options: Vec::new(), replaced: Vec::new() });
        Ok(())
    }

    /// A life has ended: it listens nowhere any more.
    pub(super) fn life_ended(&mut self, worker: WorkerId, log: &mut Log) {
        for shared in &mut self.shared {
            let before = shared.listening.len();
            shared.listening.retain(|life| *life != worker);
            if shared.listening.len() < before {
                shared.steer(&self.rotation, &self.epoll, log);
            }
        }
    }

    /// Does what there is to do, and says what the supervisor wants to know.
    ///
    /// While workers are being stopped, what they shut down stays so.
    pub(super) fn handle(&mut self, now: Duration, is_stopping: bool, log: &mut Log) -> Vec<Event> {
        // epoll puts what it has told of at the end of its list, so each worker's turn comes as often.
        let mut space = idle::EMPTY;
        let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let ready = idle::wait(self.epoll.as_fd(), &mut space, Some(&none), false).unwrap_or_default();
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
        self.answer_waiting(now, log);
        told
    }

    /// When [`Ports::catch_up`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let waiting = self.waiting.iter().map(|waiting| waiting.until);
        self.shared.iter().filter_map(|shared| shared.look_at).chain(waiting).min()
    }

    /// Answers what has waited for long enough, and lets go of the listeners that nobody needs any more.
    pub(super) fn catch_up(&mut self, now: Duration, log: &mut Log) {
        self.answer_waiting(now, log);
        let started_lately = self.last_start + UNUSED > now;
        for index in (0..self.shared.len()).rev() {
            let Some(shared) = self.shared.get_mut(index) else { continue };
            if shared.look_at.is_none_or(|at| at > now) {
                continue;
            }
            shared.look_at = Some(now + UNUSED);
            let is_unused = match shared.backlog {
                None => shared.is_closed_again(),
                Some(_) => shared.holders.is_empty() && !started_lately,
            };
            if is_unused {
                if shared.backlog.is_some() {
                    let text = format!("no worker listens on {} any more; closing it", shared.address);
                    log.say(Level::Info, "port_closed", &text);
                }
                self.forget(index);
            }
        }
    }

    /// Whether a path is kept in place, so that workers that start now must have their removals of files intercepted.
    pub(super) fn intercepts_unlink(&self) -> bool {
        self.shared.iter().any(|shared| shared.name.is_some())
    }

    /// Whether each slot has a queue of its own.
    pub(super) fn have_queues(&self) -> bool {
        self.settings.queues != Queues::One
    }

    /// Gives so many slots a queue each, where slots have queues of their own.
    pub(super) fn grow(&mut self, count: u32, listeners: &mut [Listener], lowest: RawFd, log: &mut Log) {
        let Queues::PerSlot(before) = self.settings.queues else { return };
        let count = count.max(before);
        self.settings.queues = Queues::PerSlot(count);
        for shared in &mut self.shared {
            if let Err(error) = shared.grow(count, lowest, &self.epoll) {
                say_not_grown(&shared.address, error, log);
            }
        }
        for listener in listeners {
            let has_it = |shared: &&SharedListener| matches!((shared.sockets.first(), listener.sockets.first()), (Some(a), Some(b)) if Rc::ptr_eq(a, b));
            match self.shared.iter().find(has_it) {
                Some(shared) => listener.sockets.clone_from(&shared.sockets),
                None => {
                    if let Err(error) = listener.grow(count, lowest) {
                        say_not_grown(&listener.shown, error, log);
                    }
                }
            }
        }
    }

    /// Shows each address that workers have bound by themselves and listen on.
    pub(super) fn each_shared(&self, show: &mut dyn FnMut(&str, &[Rc<OwnedFd>])) {
        for shared in self.shared.iter().filter(|shared| shared.backlog.is_some() && !shared.declared) {
            show(&shared.address.to_string(), &shared.sockets);
        }
    }

    /// How many connections wait for the worker of a slot.
    pub(super) fn waiting_for(&self, slot: u32) -> u32 {
        self.shared.iter().map(|shared| shared.waiting_for(slot)).sum()
    }

    /// Resets what waits in the queues of a slot. It must have no process: panzer would wait for a connection together with
    /// whoever makes the socket block.
    pub(super) fn let_go_of(&self, slot: u32) {
        let queues = self.shared.iter().filter(|shared| shared.is_group).filter_map(|shared| shared.socket_of(slot));
        for queue in queues {
            let _ = queues::let_go(queue);
        }
    }

    /// Lets new connections go to the slots that take them.
    pub(super) fn rotate(&mut self, rotation: Vec<QueueState>, log: &mut Log) {
        if self.rotation != rotation {
            self.rotation = rotation;
            for shared in &mut self.shared {
                shared.steer(&self.rotation, &self.epoll, log);
            }
        }
    }

    /// Something has happened to a socket that panzer holds.
    fn socket_changed(&mut self, descriptor: RawFd, is_stopping: bool, log: &mut Log) {
        let Self { shared, rotation, epoll, .. } = self;
        let has_it = |shared: &SharedListener| shared.sockets.iter().any(|socket| socket.as_raw_fd() == descriptor);
        let Some(index) = shared.iter().position(has_it) else { return };
        let Some(shared) = shared.get_mut(index) else { return };
        match shared.change(descriptor) {
            Changed::Nothing => {}
            Changed::Connected => self.forget(index),
            Changed::Arrived(socket) => drop(queues::let_go(&socket)),
            Changed::ShutDown(socket) if is_stopping => drop(epoll::delete(&*epoll, &socket)),
            Changed::ShutDown(socket) => {
                // shutdown(2) ends a listener for all who have it, and some servers do that when they stop.
                let again = match shared.address {
                    Address::Internet(_) => shared.listen_again(&socket, rotation, epoll, log),
                    // A UNIX listener that was shut down stays so.
                    Address::Path(_) => false,
                };
                let what_next = if again { "listening again" } else { "whoever binds it next makes a new one" };
                let text = format!("a worker has shut {} down for all; {what_next}", shared.address);
                log.say(Level::Warning, "port_shut_down", &text);
                if !again {
                    self.forget(index);
                }
            }
        }
    }

    fn forget(&mut self, index: usize) {
        let shared = self.shared.swap_remove(index);
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
        for index in (0..self.shared.len()).rev() {
            let Some(shared) = self.shared.get_mut(index) else { continue };
            match shared.name.as_ref().map(KeptName::place) {
                None | Some(Place::There | Place::Taken) => continue,
                // It is the server's own business from now on.
                Some(Place::Renamed) => {
                    shared.name = None;
                    continue;
                }
                Some(Place::Gone) => {}
            }
            if shared.is_given_up(|holder| self.filters.iter().any(|filter| filter.worker == holder)) {
                self.forget(index);
            } else if let Some(Err(error)) = shared.name.as_ref().map(KeptName::restore) {
                shared.name = None;
                // Where it is one worker's own, that worker has removed the directory.
                if shared.has_been_shared {
                    let why = words(error);
                    let text = format!("cannot put back {}: {why}; clients find no socket there", shared.address);
                    log.say(Level::Error, "path_not_kept", &text);
                }
            }
        }
    }

    /// Has the path of `shared` put back whenever it goes.
    fn keep_name(&mut self, shared: &mut SharedListener, name: Result<KeptName, Errno>, log: &mut Log) {
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
            let why = words(error);
            let text = format!(
                "cannot keep {} in place by a second link (.NAME.panzer): {why}; a worker that removes it takes it from all",
                shared.address
            );
            log.say(Level::Warning, "path_not_kept", &text);
        }
    }
}

fn say_not_grown(address: &dyn std::fmt::Display, error: Errno, log: &mut Log) {
    let why = words(error);
    let text = format!("cannot add a queue to {address}: {why}; the new worker shares another's");
    log.say(Level::Error, "error", &text);
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
    let directory = files::open(path.parent()?, OFlags::PATH).ok()?;
    Some(Address::Path(files::path_of(&directory).ok()?.join(path.file_name()?)))
}

/// Without what is no part of where a listener is: the flow label, and the scope of an address that has none.
fn plain(mut address: SocketAddr) -> SocketAddr {
    if let SocketAddr::V6(address) = &mut address {
        address.set_flowinfo(0);
        if !address.ip().is_unicast_link_local() && !address.ip().is_multicast() {
            address.set_scope_id(0);
        }
    }
    address
}

/// Why a worker could not be put under a filter.
pub(super) fn refusal(errno: i32) -> String {
    match errno {
        // Only one such filter can be in force for a process.
        libc::EBUSY => "whoever runs panzer intercepts calls already (seccomp)".to_owned(),
        errno => words(Errno::from_raw_os_error(errno)),
    }
}

/// What is said once where nothing can be shared, and workers run all the same.
pub(super) fn say_not_shared(log: &mut Log, cause: &str) {
    let text =
        format!("cannot share ports: {cause}; each worker binds for itself: use -l, or SO_REUSEPORT in the command");
    log.say(Level::Warning, "ports_not_shared", &text);
}

/// The same where `--share-ports on` makes it an error.
pub(super) fn not_shared(cause: &str) -> String {
    format!("{cause}; use -l, or --share-ports off")
}
