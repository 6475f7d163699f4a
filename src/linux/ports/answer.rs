//! What becomes of each call that a filter sends: panzer does it, or the kernel does.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::getsockname;
use rustix::process::{Resource, getrlimit};

use super::caller::{Caller, CallersSocket, Memory, Registration, Wanted, inode};
use super::filter::Call;
use super::names::Place;
use super::shared::{Address, FirstBind, SharedListener, new_socket};
use super::{CONNECTED, Ports, UNLISTENED, plain, until_shut_down};
use crate::linux::files;
use crate::linux::log::Log;
use crate::linux::socket_options::{SO_BINDTOIFINDEX, SocketOptions};
use crate::linux::sys::{self, Answer, Notification};
use crate::linux::words;
use crate::supervisor::report::Level;
use crate::supervisor::{Event, WorkerId};

/// How long a bind waits for the first one of its address to become a listener, or something else.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// For how many sockets of a worker the options are remembered until it binds them.
const SOCKETS_REMEMBERED: usize = 64;

/// So many descriptors are kept for starting workers.
const DESCRIPTORS_KEPT: u64 = 24;

/// The number of the first port that everybody may bind (`ip(7)`).
const UNPRIVILEGED_START: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// A call that waits for its answer.
struct Request<'a> {
    filter: BorrowedFd<'a>,
    worker: WorkerId,
    notification: Notification,
    now: Duration,
    /// It has waited for long enough.
    is_last_try: bool,
}

/// A bind that waits until it is known what became of the first one of its address.
pub(super) struct Waiting {
    filter: Rc<OwnedFd>,
    worker: WorkerId,
    notification: Notification,
    pub(super) until: Duration,
}

impl Request<'_> {
    /// Whether the caller still waits, so that what was learnt about its number was about it.
    fn is_valid(&self) -> bool {
        sys::is_notification_valid(self.filter, self.notification.id)
    }
}

/// Why the kernel is to do what was asked for.
enum PassOn {
    /// It is none of panzer's business, or the kernel has the answer to it.
    NotOurs,
    /// panzer cannot find out what it is about.
    CannotTell(Errno),
    /// panzer has too few descriptors left for another listener.
    NoRoom,
    /// The socket is in an epoll set, from which panzer cannot take over.
    InEpoll,
}

/// What becomes of a request.
enum Decision {
    /// This is the answer, and this is what the supervisor wants to know.
    Answer(Answer, Option<Event>),
    /// It is too early to say.
    Wait,
}

impl From<Errno> for PassOn {
    fn from(error: Errno) -> Self {
        match error {
            // Whoever is gone needs no answer, and a pointer to nowhere (EIO, EFAULT) has one from the kernel.
            Errno::NOENT | Errno::SRCH | Errno::IO | Errno::FAULT => Self::NotOurs,
            Errno::MFILE | Errno::NFILE => Self::NoRoom,
            error => Self::CannotTell(error),
        }
    }
}

/// A socket that a caller binds.
struct Binding<'a> {
    request: &'a Request<'a>,
    caller: &'a Caller,
    descriptor: RawFd,
    socket: &'a CallersSocket,
    /// What the caller has set on it.
    options: &'a SocketOptions,
}

impl Ports {
    /// Answers the call that waits at the filter with this descriptor, and says what the supervisor wants to know of it.
    pub(super) fn answer(&mut self, filter: RawFd, now: Duration, log: &mut Log) -> Option<Event> {
        let filter = self.filters.iter().find(|known| known.descriptor.as_raw_fd() == filter)?;
        let (worker, filter) = (filter.worker, Rc::clone(&filter.descriptor));
        let notification = sys::receive_notification(filter.as_fd()).ok()?;
        self.answer_or_wait(Waiting { filter, worker, notification, until: now + LONGEST_WAIT }, now, log)
    }

    /// Answers what has waited, where that can be done by now.
    pub(super) fn answer_waiting(&mut self, now: Duration, log: &mut Log) {
        for waiting in std::mem::take(&mut self.waiting) {
            // Only binds wait, and these tell the supervisor nothing.
            self.answer_or_wait(waiting, now, log);
        }
    }

    fn answer_or_wait(&mut self, waiting: Waiting, now: Duration, log: &mut Log) -> Option<Event> {
        let Waiting { worker, notification, until, .. } = waiting;
        let filter = Rc::clone(&waiting.filter);
        let request = Request { filter: filter.as_fd(), worker, notification, now, is_last_try: until <= now };
        let (answer, event) = match self.decide(&request, log) {
            Ok(Decision::Answer(answer, event)) => (answer, event),
            Ok(Decision::Wait) => {
                self.waiting.push(waiting);
                return None;
            }
            Err(why) => {
                self.say_passed_on(worker, &why, log);
                (Answer::PassOn, None)
            }
        };
        let _ = sys::answer_notification(filter.as_fd(), notification.id, answer);
        event
    }

    fn decide(&mut self, request: &Request<'_>, log: &mut Log) -> Result<Decision, PassOn> {
        match Call::of(&request.notification).ok_or(PassOn::NotOurs)? {
            Call::Bind(descriptor, address_at, length) => self.bind(request, descriptor, (address_at, length), log),
            Call::Listen(descriptor, backlog) => self.listen(request, descriptor, backlog, log),
            Call::AskWhetherListening(descriptor) => self.asked_whether_listening(request, descriptor, log),
            Call::Unlink(directory, path_at) => {
                self.unlink(request, directory, path_at).map(|answer| Decision::Answer(answer, None))
            }
            Call::SetOption(descriptor, level, name, value_at) => {
                self.remember(request, descriptor, (level, name), value_at)?;
                Ok(Decision::Answer(Answer::PassOn, None))
            }
        }
    }

    /// One line for each cause, not for each call.
    fn say_passed_on(&mut self, worker: WorkerId, why: &PassOn, log: &mut Log) {
        let (said, cause) = match why {
            PassOn::NotOurs => return,
            PassOn::CannotTell(error) => (&mut self.said_cannot_tell, words(*error)),
            PassOn::NoRoom => {
                let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
                (&mut self.said_no_room, format!("panzer may have only {limit} descriptors (ulimit -n)"))
            }
            PassOn::InEpoll => {
                let words = "its socket is in an epoll set already, which takes CAP_SYS_PTRACE to change";
                (&mut self.said_in_epoll, words.to_owned())
            }
        };
        if !std::mem::replace(said, true) {
            let text = format!("cannot share a port of worker {}: {cause}; it binds for itself", worker.slot);
            log.say_of_worker(Level::Warning, "port_not_shared", worker.slot, &text);
        }
    }

    fn bind(
        &mut self,
        request: &Request<'_>,
        descriptor: RawFd,
        (address_at, length): (u64, usize),
        log: &mut Log,
    ) -> Result<Decision, PassOn> {
        // Programs that bind often bind port 0: there is no need to ask who they are.
        let thread = request.notification.thread;
        if Memory::open(thread).and_then(|memory| memory.address(address_at, length)) == Ok(None) {
            return Err(PassOn::NotOurs);
        }
        let caller = Caller::new(thread)?;
        let wanted = caller.memory()?.address(address_at, length)?.ok_or(PassOn::NotOurs)?;
        let socket = caller.socket(descriptor)?.filter(|socket| socket.takes(&wanted)).ok_or(PassOn::NotOurs)?;
        if !request.is_valid() || !caller.shares_namespaces(&wanted) {
            return Err(PassOn::NotOurs);
        }
        let address = match &wanted {
            Wanted::Internet(address) => Address::Internet(plain(*address)),
            // What cannot be resolved cannot be bound.
            Wanted::Path(path) => Address::Path(caller.resolve(libc::AT_FDCWD, path).map_err(|_| PassOn::NotOurs)?),
        };
        let known = match self.shared.iter().position(|shared| shared.address == address) {
            // A signal has made the caller begin anew.
            Some(index) if self.is_socket_of(index, socket.inode) => return Ok(Decision::Answer(Answer::Done, None)),
            Some(index) if self.is_no_listener(index) => {
                self.forget(index);
                None
            }
            Some(index) if !request.is_last_try && self.may_be_no_listener(index, request.worker) => {
                return Ok(Decision::Wait);
            }
            known => known,
        };
        let (taken, options) = self.options_of(request, &caller, descriptor, &socket);
        let is_of_a_device = !self.settings.takes_sockets && options.names_a_device();
        if is_of_a_device || taken.as_ref().is_some_and(is_bound) {
            return Err(PassOn::NotOurs);
        }
        let binding = Binding { request, caller: &caller, descriptor, socket: &socket, options: &options };
        let answer = match known {
            Some(index) => self.give(index, &binding)?,
            None => {
                let queues = self.settings.queues;
                let (options, socket) = (&options, &socket);
                let first =
                    FirstBind { caller: &caller, socket, taken, options, wanted: &wanted, address: &address, queues };
                self.bind_first(&binding, &first, log)?
            }
        };
        Ok(Decision::Answer(answer, None))
    }

    /// Whether another life has bound it and may be about to connect from it, as with a fixed port of one's own: two must
    /// not have one connection.
    fn may_be_no_listener(&self, index: usize, worker: WorkerId) -> bool {
        let is_just_bound = |shared: &SharedListener| shared.backlog.is_none() && !shared.holders.contains(&worker);
        self.shared.get(index).is_some_and(is_just_bound)
    }

    fn is_socket_of(&self, index: usize, inode: u64) -> bool {
        self.shared.get(index).is_some_and(|shared| shared.has(inode))
    }

    /// Whether it was bound, and used for something else or given up since; or nobody can reach it any more, and panzer is
    /// still to hear of it.
    fn is_no_listener(&self, index: usize) -> bool {
        let is_none = |one: &SharedListener| {
            one.is_connected() || one.is_closed_again() || one.is_dead_path() || one.has_lost_its_path()
        };
        self.shared.get(index).is_some_and(is_none)
    }

    /// The caller's socket, where it can be had, and what the caller has set on it.
    fn options_of(
        &mut self,
        request: &Request<'_>,
        caller: &Caller,
        descriptor: RawFd,
        socket: &CallersSocket,
    ) -> (Option<OwnedFd>, SocketOptions) {
        let taken = if self.settings.takes_sockets { caller.take(descriptor).ok() } else { None };
        let taken = taken.filter(|taken| inode(taken) == Some(socket.inode));
        let fresh = socket.protocol.and_then(|protocol| new_socket(protocol, socket.is_ipv6).ok());
        let options = match (&taken, fresh) {
            (Some(taken), Some(fresh)) => SocketOptions::difference(taken.as_fd(), fresh.as_fd()),
            _ => self.remembered(request, socket.inode),
        };
        (taken, options)
    }

    /// Binds an address that nobody has bound yet.
    fn bind_first(&mut self, binding: &Binding<'_>, first: &FirstBind<'_>, log: &mut Log) -> Result<Answer, PassOn> {
        if !self.has_room() {
            // A worker that binds without end must not take what panzer needs to start another.
            return Err(PassOn::NoRoom);
        }
        let (request, caller) = (binding.request, binding.caller);
        let mut bound = caller.act(|| first.bind())?;
        if matches!(bound, Err(Errno::ADDRINUSE)) && self.let_go_of_port(first.address) {
            bound = caller.act(|| first.bind())?;
        }
        let (sockets, name) = match bound {
            Ok(bound) => bound,
            // That is panzer's own shortage: bind(2) does not know it.
            Err(error @ (Errno::MFILE | Errno::NFILE)) => return Err(error.into()),
            Err(error) => {
                self.explain(request.worker, first.address, error, log);
                return Ok(Answer::Failed(error.raw_os_error()));
            }
        };
        let mut shared = SharedListener::bound(first.address.clone(), caller, sockets, first.queues);
        shared.is_held_by(request.worker);
        shared.look_at = Some(request.now + UNLISTENED);
        let own = shared.socket_of(request.worker.slot).map(Rc::clone).ok_or(Errno::BADF)?;
        if !shared.has(binding.socket.inode) {
            hand_over(request, caller, binding.descriptor, binding.socket, &own, self.settings.takes_sockets)?;
            self.note_replaced(request, binding.socket.inode, first.address);
        }
        if let Some(name) = name {
            self.keep_name(&mut shared, name, log);
        }
        if let Address::Internet(_) = shared.address {
            shared.watch(&self.epoll, CONNECTED);
        }
        self.shared.push(shared);
        Ok(Answer::Done)
    }

    /// Lets go of listeners of the same port that nobody has open any more: a program may try one address, close it and
    /// bind another. True where there was one.
    fn let_go_of_port(&mut self, address: &Address) -> bool {
        let Address::Internet(wanted) = address else { return false };
        let count = self.shared.len();
        for index in (0..count).rev() {
            let is_unused = self.shared.get(index).is_some_and(|shared| match shared.address {
                Address::Internet(other) => {
                    !shared.declared && other.port() == wanted.port() && !shared.is_open_somewhere()
                }
                Address::Path(_) => false,
            });
            if is_unused {
                self.forget(index);
            }
        }
        self.shared.len() < count
    }

    /// Whether another address leaves panzer the descriptors that it needs.
    fn has_room(&self) -> bool {
        let lowest_free = rustix::io::fcntl_dupfd_cloexec(&self.epoll, 0).map(|free| free.as_raw_fd().unsigned_abs());
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let needed = u64::from(self.settings.queues.count()) + DESCRIPTORS_KEPT;
        lowest_free.is_ok_and(|free| u64::from(free) + needed <= limit)
    }

    /// Gives the caller a listener that is there already.
    fn give(&mut self, index: usize, binding: &Binding<'_>) -> Result<Answer, PassOn> {
        let (caller, worker) = (binding.caller, binding.request.worker);
        let shared = self.shared.get_mut(index).ok_or(PassOn::NotOurs)?;
        // Otherwise the kernel says what it has to say about an address that is in use.
        let may_have = shared.is_for(caller.identity.uid()) && may_bind(caller, &shared.address);
        if !shared.declared && !may_have {
            return Err(PassOn::NotOurs);
        }
        if let Address::Path(path) = &shared.address {
            let leads_elsewhere = match &shared.name {
                Some(name) => {
                    name.restore()?;
                    matches!(name.place(), Place::Renamed | Place::Taken)
                }
                None => !files::exists(path),
            };
            if leads_elsewhere {
                return Err(PassOn::NotOurs);
            }
        }
        let own = shared.socket_of(worker.slot).map(Rc::clone).ok_or(Errno::BADF)?;
        if !same_families(&shared.address, &own, binding.socket, binding.options) {
            return Err(PassOn::NotOurs);
        }
        binding.options.apply_to_bound(own.as_fd());
        let (request, takes_sockets) = (binding.request, self.settings.takes_sockets);
        hand_over(request, caller, binding.descriptor, binding.socket, &own, takes_sockets)?;
        shared.is_held_by(worker);
        if shared.backlog.is_some() {
            shared.look_at = None;
        }
        let address = shared.address.clone();
        self.note_replaced(request, binding.socket.inode, &address);
        Ok(Answer::Done)
    }

    fn listen(
        &mut self,
        request: &Request<'_>,
        descriptor: RawFd,
        backlog: i32,
        log: &mut Log,
    ) -> Result<Decision, PassOn> {
        let caller = Caller::new(request.notification.thread)?;
        let socket = caller.socket(descriptor)?.ok_or(PassOn::NotOurs)?;
        if !request.is_valid() {
            return Err(PassOn::NotOurs);
        }
        let replaced = self.address_of_replaced(request, socket.inode);
        let Self { shared, settings, rotation, epoll, .. } = self;
        let is_it =
            |shared: &&mut SharedListener| shared.has(socket.inode) || replaced.as_ref() == Some(&shared.address);
        let shared = shared.iter_mut().find(is_it).ok_or(PassOn::NotOurs)?;
        if !shared.has(socket.inode) {
            let own = shared.socket_of(request.worker.slot).map(Rc::clone).ok_or(Errno::BADF)?;
            hand_over(request, &caller, descriptor, &socket, &own, settings.takes_sockets)?;
        }
        let least = i32::try_from(settings.backlog).unwrap_or(i32::MAX);
        let begins = match shared.listen(&caller, backlog.max(least)) {
            Ok(begins) => begins,
            Err(error) => return Ok(Decision::Answer(Answer::Failed(error.raw_os_error()), None)),
        };
        shared.is_held_by(request.worker);
        shared.look_at = None;
        if begins {
            log.say(Level::Info, "port_shared", &format!("workers share {}", shared.address));
            shared.watch(epoll, until_shut_down(&shared.address));
        }
        if shared.is_listened_to_by(request.worker) {
            shared.steer(rotation, epoll, log);
        }
        Ok(Decision::Answer(Answer::Done, Some(Event::Listening(request.worker))))
    }

    /// A program that finds that its socket listens already does not call listen any more (gunicorn): it listens from here
    /// on. What it reads is the kernel's answer.
    fn asked_whether_listening(
        &mut self,
        request: &Request<'_>,
        descriptor: RawFd,
        log: &mut Log,
    ) -> Result<Decision, PassOn> {
        let socket = Caller::new(request.notification.thread)?.socket(descriptor)?.ok_or(PassOn::NotOurs)?;
        let is_it = |shared: &SharedListener| shared.has(socket.inode) && shared.backlog.is_some();
        if !self.shared.iter().any(is_it) {
            return Err(PassOn::NotOurs);
        }
        match self.listen(request, descriptor, 0, log)? {
            Decision::Answer(_, event) => Ok(Decision::Answer(Answer::PassOn, event)),
            Decision::Wait => Ok(Decision::Wait),
        }
    }

    /// A path that is kept is not removed: there would be no socket for a moment. Whoever wants to bind it next, or ends
    /// and cleans up, finds that it could.
    fn unlink(&mut self, request: &Request<'_>, directory: RawFd, path_at: u64) -> Result<Answer, PassOn> {
        // Most files are others: there is no need to ask who removes them.
        let thread = request.notification.thread;
        if Memory::open(thread).and_then(|memory| memory.path(path_at)).is_ok_and(|typed| !self.keeps_name_of(&typed)) {
            return Err(PassOn::NotOurs);
        }
        let caller = Caller::new(thread)?;
        let typed = caller.memory()?.path(path_at)?;
        if !self.keeps_name_of(&typed) || !request.is_valid() {
            return Err(PassOn::NotOurs);
        }
        let address = Address::Path(caller.resolve(directory, &typed).map_err(|_| PassOn::NotOurs)?);
        let is_it = |shared: &SharedListener| shared.address == address && shared.is_for(caller.identity.uid());
        let index = self.shared.iter().position(is_it).ok_or(PassOn::NotOurs)?;
        let shared = self.shared.get(index).ok_or(PassOn::NotOurs)?;
        let name = shared
            .name
            .as_ref()
            .filter(|name| matches!(name.place(), Place::There | Place::Gone))
            .ok_or(PassOn::NotOurs)?;
        if !caller.shares_namespaces(&Wanted::Path(typed)) {
            return Err(PassOn::NotOurs);
        }
        if shared.is_given_up(|holder| holder == request.worker) {
            self.forget(index);
            return Ok(Answer::Done);
        }
        name.restore()?;
        Ok(Answer::Done)
    }

    /// Whether a path that is kept ends in the same name.
    fn keeps_name_of(&self, typed: &Path) -> bool {
        let ends = |shared: &SharedListener| match &shared.address {
            Address::Path(path) => path.file_name() == typed.file_name(),
            Address::Internet(_) => false,
        };
        self.shared.iter().any(ends)
    }

    /// Remembers an option of a socket that panzer will not be able to look into.
    fn remember(
        &mut self,
        request: &Request<'_>,
        descriptor: RawFd,
        (level, name): (i32, i32),
        value_at: u64,
    ) -> Result<(), PassOn> {
        let caller = Caller::new(request.notification.thread)?;
        let socket = caller.socket(descriptor)?.ok_or(PassOn::NotOurs)?;
        let value = caller.memory()?.bytes(value_at, sys::SOCKET_OPTION_LENGTH)?;
        let value = value.try_into().map_err(|_| PassOn::NotOurs)?;
        let mut options = self.remembered(request, socket.inode);
        options.set(level, name, value);
        if let Some(filter) = self.filters.iter_mut().find(|filter| filter.worker == request.worker) {
            filter.options.push((socket.inode, options));
            let surplus = filter.options.len().saturating_sub(SOCKETS_REMEMBERED);
            filter.options.drain(..surplus);
        }
        Ok(())
    }

    /// Remembers that a listener has taken the place of a socket of which the caller may have other descriptors.
    fn note_replaced(&mut self, request: &Request<'_>, inode: u64, address: &Address) {
        if let Some(filter) = self.filters.iter_mut().find(|filter| filter.worker == request.worker) {
            filter.replaced.push((inode, address.clone()));
            let surplus = filter.replaced.len().saturating_sub(SOCKETS_REMEMBERED);
            filter.replaced.drain(..surplus);
        }
    }

    /// What a socket was bound to in whose place there is a listener, at another descriptor.
    fn address_of_replaced(&self, request: &Request<'_>, inode: u64) -> Option<Address> {
        let filter = self.filters.iter().find(|filter| filter.worker == request.worker)?;
        filter.replaced.iter().find(|(known, _)| *known == inode).map(|(_, address)| address.clone())
    }

    /// Takes out what is remembered of a socket.
    fn remembered(&mut self, request: &Request<'_>, inode: u64) -> SocketOptions {
        let filter = self.filters.iter_mut().find(|filter| filter.worker == request.worker);
        let Some(filter) = filter else { return SocketOptions::default() };
        let found = filter.options.iter().position(|(known, _)| *known == inode);
        found.map(|found| filter.options.remove(found).1).unwrap_or_default()
    }

    /// An address that a `-l` of panzer's own keeps from a worker is a riddle to the reader of the worker's error.
    fn explain(&mut self, worker: WorkerId, address: &Address, error: Errno, log: &mut Log) {
        let Address::Internet(wanted) = address else { return };
        let declared = self.shared.iter_mut().filter(|shared| shared.declared && !shared.was_explained);
        let in_the_way = declared.into_iter().find(|shared| match shared.address {
            Address::Internet(other) => other.port() == wanted.port(),
            Address::Path(_) => false,
        });
        if let (Errno::ADDRINUSE, Some(shared)) = (error, in_the_way) {
            shared.was_explained = true;
            let (slot, own) = (worker.slot, &shared.address);
            let text = format!("cannot bind {address} for worker {slot}: -l {own} is in its way; use -l {address}");
            log.say_of_worker(Level::Warning, "bind_failed", slot, &text);
        }
    }
}

/// Whether it has a port already: no socket can be bound twice.
fn is_bound(socket: &OwnedFd) -> bool {
    getsockname(socket).ok().and_then(|name| SocketAddr::try_from(name).ok()).is_some_and(|name| name.port() > 0)
}

/// Puts `own` in the place of the caller's socket, in epoll sets too.
fn hand_over(
    request: &Request<'_>,
    caller: &Caller,
    descriptor: RawFd,
    socket: &CallersSocket,
    own: &OwnedFd,
    takes_sockets: bool,
) -> Result<(), PassOn> {
    let registrations = caller.epoll_registrations(descriptor);
    if !takes_sockets && !registrations.is_empty() {
        return Err(PassOn::InEpoll);
    }
    if socket.nonblock {
        // All who have the listener see the flag. It is never taken away: who counts on it would hang without it.
        let flags = rustix::fs::fcntl_getfl(own)?;
        rustix::fs::fcntl_setfl(own, flags | OFlags::NONBLOCK)?;
    }
    let (id, number) = (request.notification.id, descriptor.unsigned_abs());
    sys::replace_descriptor(request.filter, id, own.as_fd(), number, socket.close_on_exec)?;
    // What was registered went with the old socket.
    for Registration { epoll, events, data } in registrations {
        let epoll = caller.take(epoll)?;
        sys::add_to_epoll_as(epoll.as_fd(), own.as_fd(), descriptor, events, data)?;
    }
    Ok(())
}

/// Whether what the caller wants to bind takes IPv4 connections, or does not, just as `own` does: where the address can
/// be for both, that makes them two.
fn same_families(address: &Address, own: &OwnedFd, socket: &CallersSocket, options: &SocketOptions) -> bool {
    let can_be_both = match address {
        Address::Internet(SocketAddr::V6(address)) => {
            address.ip().is_unspecified() || address.ip().to_ipv4_mapped().is_some()
        }
        Address::Internet(SocketAddr::V4(_)) | Address::Path(_) => false,
    };
    let v6only = |socket: &OwnedFd| sys::socket_option(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
    let by_default = || socket.protocol.and_then(|protocol| v6only(&new_socket(protocol, socket.is_ipv6).ok()?));
    let same_device = options.device() == sys::socket_option(own.as_fd(), libc::SOL_SOCKET, SO_BINDTOIFINDEX);
    let same_families =
        !can_be_both || options.value(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY).or_else(by_default) == v6only(own);
    same_families && (same_device || matches!(address, Address::Path(_)))
}

/// Whether the kernel would let the caller bind this port, were it free.
fn may_bind(caller: &Caller, address: &Address) -> bool {
    let Address::Internet(address) = address else { return true };
    let start = files::read_text(Path::new(UNPRIVILEGED_START)).and_then(|text| text.trim_ascii().parse::<u64>().ok());
    u64::from(address.port()) >= start.unwrap_or(1024) || caller.identity.may_bind_any_port()
}
