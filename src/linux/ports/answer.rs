//! What becomes of each call: shared, or passed on to the kernel.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::getsockname;

use super::caller::{Caller, CallersSocket, Memory, Wanted, file_at, inode};
use super::filter::Call;
use super::options::Options;
use super::shared::{Address, FirstBind, Shared, new_socket};
use super::{CONNECTED, Pending, Ports, SHUT_DOWN, UNLISTENED, Unshared, plain};
use crate::error::cause;
use crate::linux::log::Log;
use crate::linux::sys::{self, Answer};
use crate::supervisor::Event;
use crate::supervisor::report::Level;

/// For how many sockets of a worker the options are remembered until it binds them.
const SOCKETS_REMEMBERED: usize = 64;

/// So many descriptors are kept for starting workers.
const DESCRIPTORS_KEPT: u64 = 24;

/// The number of the first port that everybody may bind (`ip(7)`).
const UNPRIVILEGED_START: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

impl Ports {
    /// Says what becomes of a call, and what the supervisor wants to know of it.
    pub(super) fn decide(&mut self, call: &Pending<'_>, log: &mut Log) -> Result<(Answer, Option<Event>), Unshared> {
        if self.is_useless {
            return Err(Unshared::OfNoConcern);
        }
        match Call::of(&call.notification).ok_or(Unshared::OfNoConcern)? {
            Call::Bind(number, at, length) => self.bind(call, number, (at, length), log).map(|answer| (answer, None)),
            Call::Listen(number, backlog) => self.listen(call, number, backlog, log),
            Call::Unlink(directory, at) => self.unlink(call, directory, at).map(|answer| (answer, None)),
            Call::SetOption(number, level, name, at) => {
                self.remember(call, number, (level, name), at)?;
                Err(Unshared::OfNoConcern)
            }
        }
    }

    fn bind(
        &mut self,
        call: &Pending<'_>,
        number: RawFd,
        (at, length): (u64, usize),
        log: &mut Log,
    ) -> Result<Answer, Unshared> {
        // Programs that bind often bind port 0: there is no need to ask who they are.
        let thread = call.notification.thread;
        if Memory::open(thread).and_then(|memory| memory.address(at, length)) == Ok(None) {
            return Err(Unshared::OfNoConcern);
        }
        let caller = Caller::new(thread)?;
        let wanted = caller.memory()?.address(at, length)?.ok_or(Unshared::OfNoConcern)?;
        let socket = caller.socket(number)?.filter(|socket| socket.takes(&wanted)).ok_or(Unshared::OfNoConcern)?;
        // All of this was the caller's, and not somebody's who has its number by now.
        if !sys::is_notification_valid(call.filter, call.notification.id) || !caller.shares_namespaces(&wanted) {
            return Err(Unshared::OfNoConcern);
        }
        let address = match &wanted {
            Wanted::Internet(address) => Address::Internet(plain(*address)),
            Wanted::Path(path) => Address::Path(caller.resolve(libc::AT_FDCWD, path)?),
        };
        let mut known = self.shared.iter().position(|shared| shared.address == address);
        if let Some(shared) = known.and_then(|at| self.shared.get(at)) {
            if shared.has(socket.inode) {
                // A signal has made the caller begin anew.
                return Ok(Answer::Done);
            }
            if shared.is_connected() || shared.is_closed_again() {
                self.forget(known.take().unwrap_or_default());
            }
        }
        let (taken, options) = self.options_of(call, &caller, number, &socket);
        if taken.as_ref().is_some_and(is_bound) {
            return Err(Unshared::OfNoConcern);
        }
        match known {
            Some(at) => self.give(call, at, &caller, number, &socket, &options),
            None => {
                let first = FirstBind {
                    caller: &caller,
                    socket: &socket,
                    taken,
                    options: &options,
                    wanted: &wanted,
                    address: &address,
                    queues: self.settings.queues,
                };
                self.bind_first(call, number, &first, log)
            }
        }
    }

    /// The caller's socket, where it can be had, and what the caller has set on it.
    fn options_of(
        &mut self,
        call: &Pending<'_>,
        caller: &Caller,
        number: RawFd,
        socket: &CallersSocket,
    ) -> (Option<OwnedFd>, Options) {
        let taken = if self.settings.takes_sockets { caller.take(number).ok() } else { None };
        let taken = taken.filter(|taken| inode(taken) == Some(socket.inode));
        let fresh = socket.protocol.and_then(|protocol| new_socket(protocol, socket.is_ipv6).ok());
        let options = match (&taken, fresh) {
            (Some(taken), Some(fresh)) => Options::difference(taken.as_fd(), fresh.as_fd()),
            _ => self.remembered(call, socket.inode),
        };
        (taken, options)
    }

    /// Binds an address that nobody has bound yet.
    fn bind_first(
        &mut self,
        call: &Pending<'_>,
        number: RawFd,
        first: &FirstBind<'_>,
        log: &mut Log,
    ) -> Result<Answer, Unshared> {
        let (caller, socket) = (first.caller, first.socket);
        if !self.has_room() {
            // A worker that binds without end must not take what panzer needs to start another.
            return Err(Unshared::Unknown(Errno::MFILE));
        }
        let bound = match caller.identity.act(caller.with, || first.bind())? {
            Ok(bound) => bound,
            // That is panzer's own shortage: bind(2) does not know it.
            Err(error @ (Errno::MFILE | Errno::NFILE)) => return Err(error.into()),
            Err(error) => {
                self.explain(call, first.address, error, log);
                return Ok(Answer::Failed(error.raw_os_error()));
            }
        };
        let (sockets, name) = bound;
        let mut shared = Shared::bound(first.address.clone(), caller, sockets);
        shared.is_held_by(call.worker);
        shared.look_at = Some(call.now + UNLISTENED);
        let own = shared.socket_of(call.worker.slot).map(Rc::clone).ok_or(Errno::BADF)?;
        if !shared.has(socket.inode) {
            hand_over(call, &own, number, socket)?;
        }
        if let Some(name) = name {
            self.keep_name(&mut shared, name, log);
        }
        self.shared.push(shared);
        self.watch(self.shared.len() - 1, CONNECTED);
        Ok(Answer::Done)
    }

    /// Whether another address leaves panzer the descriptors that it needs.
    fn has_room(&self) -> bool {
        let lowest_free = rustix::io::fcntl_dupfd_cloexec(&self.epoll, 0).map(|free| free.as_raw_fd().unsigned_abs());
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
        lowest_free.is_ok_and(|free| u64::from(free) + u64::from(self.settings.queues) + DESCRIPTORS_KEPT <= limit)
    }

    /// Gives the caller a listener that is there already.
    fn give(
        &mut self,
        call: &Pending<'_>,
        at: usize,
        caller: &Caller,
        number: RawFd,
        socket: &CallersSocket,
        options: &Options,
    ) -> Result<Answer, Unshared> {
        let shared = self.shared.get_mut(at).ok_or(Unshared::OfNoConcern)?;
        // Otherwise the kernel says what it has to say about an address that is in use.
        let may_have = shared.is_for(caller.identity.uid()) && may_bind(caller, &shared.address);
        if !shared.declared && !may_have {
            return Err(Unshared::OfNoConcern);
        }
        if let Address::Path(path) = &shared.address {
            let leads_elsewhere = match &shared.name {
                Some(name) => {
                    name.restore()?;
                    name.is_taken()
                }
                None => file_at(path).is_none(),
            };
            if leads_elsewhere {
                return Err(Unshared::OfNoConcern);
            }
        }
        let own = shared.socket_of(call.worker.slot).map(Rc::clone).ok_or(Errno::BADF)?;
        if !same_families(&shared.address, &own, socket, options) {
            return Err(Unshared::OfNoConcern);
        }
        options.apply_to_bound(own.as_fd());
        hand_over(call, &own, number, socket)?;
        shared.is_held_by(call.worker);
        if shared.backlog.is_some() {
            shared.look_at = None;
        }
        Ok(Answer::Done)
    }

    fn listen(
        &mut self,
        call: &Pending<'_>,
        number: RawFd,
        backlog: i32,
        log: &mut Log,
    ) -> Result<(Answer, Option<Event>), Unshared> {
        let caller = Caller::new(call.notification.thread)?;
        let socket = caller.socket(number)?.ok_or(Unshared::OfNoConcern)?;
        if !sys::is_notification_valid(call.filter, call.notification.id) {
            return Err(Unshared::OfNoConcern);
        }
        let at = self.shared.iter().position(|shared| shared.has(socket.inode)).ok_or(Unshared::OfNoConcern)?;
        let shared = self.shared.get_mut(at).ok_or(Unshared::OfNoConcern)?;
        let least = i32::try_from(self.settings.backlog).unwrap_or(i32::MAX);
        match shared.listen(&caller, backlog.max(least)) {
            Err(error) => return Ok((Answer::Failed(error.raw_os_error()), None)),
            Ok(begins) => {
                shared.is_held_by(call.worker);
                shared.look_at = None;
                let is_new = !shared.listening.contains(&call.worker.slot);
                if is_new {
                    shared.listening.push(call.worker.slot);
                }
                if begins {
                    log.say(Level::Info, "port_shared", &format!("workers share {}", shared.address));
                    self.watch(at, SHUT_DOWN);
                }
                if is_new {
                    let before = if begins { Vec::new() } else { self.rotation.clone() };
                    self.steer(at, &before, log);
                }
            }
        }
        Ok((Answer::Done, Some(Event::Listening(call.worker))))
    }

    /// A path that is kept is not removed: there would be no socket for a moment. Whoever wants to bind it next, or ends
    /// and cleans up, finds that it could.
    fn unlink(&self, call: &Pending<'_>, directory: RawFd, at: u64) -> Result<Answer, Unshared> {
        let thread = call.notification.thread;
        // Most files are others: there is no need to ask who removes them.
        if Memory::open(thread).and_then(|memory| memory.path(at)).is_ok_and(|typed| !self.keeps_name_of(&typed)) {
            return Err(Unshared::OfNoConcern);
        }
        let caller = Caller::new(thread)?;
        let typed = caller.memory()?.path(at)?;
        if !self.keeps_name_of(&typed) || !sys::is_notification_valid(call.filter, call.notification.id) {
            return Err(Unshared::OfNoConcern);
        }
        let address = Address::Path(caller.resolve(directory, &typed)?);
        let shared =
            self.shared.iter().find(|shared| shared.address == address && shared.is_for(caller.identity.uid()));
        let name = shared.and_then(|shared| shared.name.as_ref()).filter(|name| !name.is_taken());
        let name = name.filter(|_| caller.shares_namespaces(&Wanted::Path(typed))).ok_or(Unshared::OfNoConcern)?;
        name.restore()?;
        Ok(Answer::Done)
    }

    /// Whether a path that is kept ends in the same name.
    fn keeps_name_of(&self, typed: &Path) -> bool {
        let ends = |shared: &Shared| match &shared.address {
            Address::Path(path) => path.file_name() == typed.file_name(),
            Address::Internet(_) => false,
        };
        self.shared.iter().any(ends)
    }

    /// Remembers an option of a socket that panzer will not be able to look into.
    fn remember(&mut self, call: &Pending<'_>, number: RawFd, name: (i32, i32), at: u64) -> Result<(), Unshared> {
        let caller = Caller::new(call.notification.thread)?;
        let socket = caller.socket(number)?.ok_or(Unshared::OfNoConcern)?;
        let value = caller.memory()?.bytes(at, sys::SOCKET_OPTION_LENGTH)?;
        let value = value.try_into().map_err(|_| Unshared::OfNoConcern)?;
        let mut options = self.remembered(call, socket.inode);
        options.set(name.0, name.1, value);
        if let Some(filter) = self.filters.iter_mut().find(|filter| filter.worker == call.worker) {
            filter.options.push((socket.inode, options));
            let surplus = filter.options.len().saturating_sub(SOCKETS_REMEMBERED);
            filter.options.drain(..surplus);
        }
        Ok(())
    }

    /// Takes out what is remembered of a socket.
    fn remembered(&mut self, call: &Pending<'_>, inode: u64) -> Options {
        let filter = self.filters.iter_mut().find(|filter| filter.worker == call.worker);
        let Some(filter) = filter else { return Options::default() };
        let at = filter.options.iter().position(|(known, _)| *known == inode);
        at.map(|at| filter.options.remove(at).1).unwrap_or_default()
    }

    /// An address in use by panzer itself is a riddle to the reader of the worker's error.
    fn explain(&self, call: &Pending<'_>, address: &Address, error: Errno, log: &mut Log) {
        let Address::Internet(wanted) = address else { return };
        let declared = self.shared.iter().filter(|shared| shared.declared).find_map(|shared| match shared.address {
            Address::Internet(other) if other.port() == wanted.port() => Some(other),
            Address::Internet(_) | Address::Path(_) => None,
        });
        if let Some(other) = declared {
            let text = format!(
                "worker {} cannot bind {address}: {}; -l has tcp://{other}: give -l the address that the command binds",
                call.worker.slot,
                cause(&error.into())
            );
            log.say(Level::Warning, "bind_failed", &text);
        }
    }
}

/// Whether it has a port already: no socket can be bound twice.
fn is_bound(socket: &OwnedFd) -> bool {
    getsockname(socket).ok().and_then(|name| SocketAddr::try_from(name).ok()).is_some_and(|name| name.port() > 0)
}

/// Puts `own` in the place of the caller's socket.
fn hand_over(call: &Pending<'_>, own: &OwnedFd, number: RawFd, socket: &CallersSocket) -> Result<(), Unshared> {
    if socket.nonblock {
        // All who have the listener see the flag. It is never taken away: who counts on it would hang without it.
        let flags = rustix::fs::fcntl_getfl(own)?;
        rustix::fs::fcntl_setfl(own, flags | OFlags::NONBLOCK)?;
    }
    let (id, close_on_exec) = (call.notification.id, socket.close_on_exec);
    sys::replace_descriptor(call.filter, id, own.as_fd(), number.unsigned_abs(), close_on_exec)
        .map_err(|error| Errno::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EINVAL)).into())
}

/// Whether what the caller wants to bind takes IPv4 connections, or does not, just as `own` does: where the address can
/// be for both, that makes them two.
fn same_families(address: &Address, own: &OwnedFd, socket: &CallersSocket, options: &Options) -> bool {
    let can_be_both = match address {
        Address::Internet(SocketAddr::V6(address)) => {
            address.ip().is_unspecified() || address.ip().to_ipv4_mapped().is_some()
        }
        Address::Internet(SocketAddr::V4(_)) | Address::Path(_) => false,
    };
    let v6only = |socket: &OwnedFd| sys::socket_option(socket.as_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
    let by_default = || socket.protocol.and_then(|protocol| v6only(&new_socket(protocol, socket.is_ipv6).ok()?));
    !can_be_both || options.value(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY).or_else(by_default) == v6only(own)
}

/// Whether the kernel would let the caller bind this port, were it free.
fn may_bind(caller: &Caller, address: &Address) -> bool {
    let Address::Internet(address) = address else { return true };
    let start = std::fs::read_to_string(UNPRIVILEGED_START).ok().and_then(|text| text.trim().parse::<u16>().ok());
    address.port() >= start.unwrap_or(1024) || caller.identity.may_bind_any_port()
}
