//! One address that workers share: the sockets that panzer holds for it, and who uses them.
//!
//! Must never bind what the worker could not bind by itself: the kernel is asked as the worker.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt};

use super::caller::{Caller, CallersSocket, Protocol, Wanted, inode};
use super::names::KeptName;
use super::{CONNECTED, Token, queues, until_shut_down};
use crate::linux::address::Shown;
use crate::linux::files;
use crate::linux::listen::{Listener, Queues, another_member, unix_address};
use crate::linux::log::Log;
use crate::linux::socket_options::SocketOptions;
use crate::linux::words;
use crate::linux::{processes, queue_length, sys};
use crate::supervisor::WorkerId;
use crate::supervisor::report::Level;
use crate::supervisor::rotation::{self, QueueState};

/// How often a path is bound that others remove at the same time.
const PATH_TRIES: u32 = 100;

/// The state of a TCP socket that is neither connected nor listening (`TCP_CLOSE`, include/net/tcp_states.h).
const TCP_CLOSE: u8 = 7;

/// What the workers call it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Address {
    /// A port.
    Internet(SocketAddr),
    /// A path from the root, with no link in its directory.
    Path(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Internet(address) => write!(f, "tcp://{}", Shown(*address)),
            Self::Path(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// What has happened to a socket.
pub(super) enum Changed {
    /// Nothing that matters.
    Nothing,
    /// It was bound, and is connected to somebody now: it is no listener.
    Connected,
    /// A connection came for a slot that has no worker.
    Arrived(Rc<OwnedFd>),
    /// It does not listen any more.
    ShutDown(Rc<OwnedFd>),
}

/// A listener that workers share.
#[derive(Debug)]
pub(super) struct SharedListener {
    /// What they call it.
    pub(super) address: Address,
    /// One for all, or one for each slot.
    pub(super) sockets: Vec<Rc<OwnedFd>>,
    /// They are a SO_REUSEPORT group.
    pub(super) is_group: bool,
    /// The slots in the order in which the kernel has their sockets in its SO_REUSEPORT group.
    order: Vec<u32>,
    /// What was made of the slots last.
    told: Vec<QueueState>,
    /// The length of the queue, once it listens.
    pub(super) backlog: Option<i32>,
    /// `--listen` names it: it is there for as long as panzer is, and for every user.
    pub(super) declared: bool,
    /// Who bound it first; its user is the only one who shares it.
    maker: Option<(sys::Pid, u32)>,
    /// The lives that listen there.
    pub(super) listening: Vec<WorkerId>,
    /// The slots of which any life has listened there.
    have_listened: Vec<u32>,
    /// The life that had it first.
    first_holder: Option<WorkerId>,
    /// There was another one.
    pub(super) has_been_shared: bool,
    /// The lives that have it.
    pub(super) holders: Vec<WorkerId>,
    /// When to see whether anybody still needs it.
    pub(super) look_at: Option<Duration>,
    /// Keeps a path in place.
    pub(super) name: Option<KeptName>,
    /// It was said that it is in a worker's way.
    pub(super) was_explained: bool,
}

/// The sockets, and what keeps their path.
pub(super) type Bound = (Vec<OwnedFd>, Option<Result<KeptName, Errno>>);

/// A first bind, and what is needed for it.
pub(super) struct FirstBind<'a> {
    /// Who binds.
    pub(super) caller: &'a Caller,
    /// The socket that is bound.
    pub(super) socket: &'a CallersSocket,
    /// panzer's own descriptor for it, where it can be had.
    pub(super) taken: Option<OwnedFd>,
    /// What the caller has set on it.
    pub(super) options: &'a SocketOptions,
    /// The address as the caller wrote it.
    pub(super) wanted: &'a Wanted,
    /// The same for panzer.
    pub(super) address: &'a Address,
    /// How many queues it is to have.
    pub(super) queues: Queues,
}

impl FirstBind<'_> {
    /// Binds the address, with the caller's own socket where it can be had and one queue is enough. To be called as the
    /// caller.
    ///
    /// # Errors
    /// What the kernel says to the caller.
    pub(super) fn bind(&self) -> Result<Bound, Errno> {
        match (self.wanted, self.address) {
            (Wanted::Internet(address), _) => Ok((self.bind_port(*address)?, None)),
            (Wanted::Path(typed), Address::Path(path)) => self.bind_path(typed, path),
            (Wanted::Path(_), Address::Internet(_)) => Err(Errno::INVAL),
        }
    }

    fn bind_port(&self, address: SocketAddr) -> Result<Vec<OwnedFd>, Errno> {
        if self.queues == Queues::One {
            let socket = self.one_socket()?;
            bind(&socket, &address)?;
            return Ok(vec![socket]);
        }
        let one = |is_of_group: bool| {
            let socket = self.new_socket()?;
            if is_of_group {
                sockopt::set_socket_reuseport(&socket, true)?;
            }
            bind(&socket, &address).map(|()| socket)
        };
        // Sockets of a group bind beside those of another server of the same user; this one only where the caller's would.
        drop(one(false)?);
        (0..self.queues.count()).map(|_| one(true)).collect()
    }

    fn bind_path(&self, typed: &Path, path: &Path) -> Result<Bound, Errno> {
        let mut socket = self.one_socket()?;
        for _ in 0..PATH_TRIES {
            bind_to_path(&socket, typed, self.caller)?;
            match KeptName::new(path, Some(self.caller.identity.clone())) {
                // Another worker has removed the path in this very moment, to bind it next: this socket is lost.
                Err(Errno::NOENT) => socket = self.new_socket()?,
                // Where it cannot be kept, the path is as safe as it would be without panzer.
                name => return Ok((vec![socket], Some(name))),
            }
        }
        Err(Errno::ADDRINUSE)
    }

    /// The caller's own socket, or one that is like it.
    fn one_socket(&self) -> Result<OwnedFd, Errno> {
        match &self.taken {
            Some(taken) => rustix::io::fcntl_dupfd_cloexec(taken, 0),
            None => self.new_socket(),
        }
    }

    /// A socket that is like the caller's.
    fn new_socket(&self) -> Result<OwnedFd, Errno> {
        // Multipath TCP knows no groups; its clients speak plain TCP then.
        let protocol = match self.socket.protocol.ok_or(Errno::PROTONOSUPPORT)? {
            Protocol::Mptcp if self.queues != Queues::One => Protocol::Tcp,
            protocol @ (Protocol::Tcp | Protocol::Mptcp | Protocol::UnixStream) => protocol,
        };
        let socket = new_socket(protocol, self.socket.is_ipv6)?;
        if self.taken.is_none() && protocol != Protocol::UnixStream {
            // Many servers set it on the listener, where it costs nothing to have; it is not watched, since others set it
            // on each connection.
            sockopt::set_tcp_nodelay(&socket, true)?;
        }
        self.options.apply(socket.as_fd());
        Ok(socket)
    }
}

/// Binds to a path as the caller has written it: the socket tells everyone who asks what it was bound to.
fn bind_to_path(socket: &OwnedFd, typed: &Path, caller: &Caller) -> Result<(), Errno> {
    let address = unix_address(typed)?;
    if typed.is_absolute() {
        return bind(socket, &address);
    }
    let own = files::open_directory(Path::new("."))?;
    rustix::process::fchdir(caller.directory()?)?;
    let bound = bind(socket, &address);
    rustix::process::fchdir(own)?;
    bound
}

/// A new socket of this kind.
pub(super) fn new_socket(protocol: Protocol, is_ipv6: bool) -> Result<OwnedFd, Errno> {
    let internet = if is_ipv6 { AddressFamily::INET6 } else { AddressFamily::INET };
    let (family, protocol) = match protocol {
        Protocol::Tcp => (internet, None),
        Protocol::Mptcp => (internet, Some(ipproto::MPTCP)),
        Protocol::UnixStream => (AddressFamily::UNIX, None),
    };
    socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, protocol)
}

impl SharedListener {
    fn new(address: Address, sockets: Vec<Rc<OwnedFd>>, is_group: bool) -> Self {
        Self {
            address,
            is_group,
            order: (0..).zip(&sockets).map(|(slot, _)| slot).collect(),
            sockets,
            told: Vec::new(),
            backlog: None,
            declared: false,
            maker: None,
            listening: Vec::new(),
            have_listened: Vec::new(),
            first_holder: None,
            has_been_shared: false,
            holders: Vec::new(),
            look_at: None,
            name: None,
            was_explained: false,
        }
    }

    /// What a worker has just bound.
    pub(super) fn bound(address: Address, caller: &Caller, sockets: Vec<OwnedFd>, queues: Queues) -> Self {
        let is_group = queues != Queues::One && matches!(address, Address::Internet(_));
        let maker = Some((caller.identity.process, caller.identity.uid()));
        Self { maker, ..Self::new(address, sockets.into_iter().map(Rc::new).collect(), is_group) }
    }

    /// An address that `--listen` names and that listens already.
    pub(super) fn declared(address: Address, listener: &Listener, backlog: i32) -> Self {
        Self {
            backlog: Some(backlog),
            declared: true,
            ..Self::new(address, listener.sockets.clone(), listener.is_group)
        }
    }

    /// Gives slots up to `count` queues of their own too, where the others have them. What workers are handed has a number
    /// of at least `lowest`.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn grow(&mut self, count: u32, lowest: RawFd, epoll: &OwnedFd) -> Result<(), Errno> {
        let Some(member) = self.sockets.first().filter(|_| self.is_group).map(Rc::clone) else { return Ok(()) };
        let first = u32::try_from(self.sockets.len()).unwrap_or(count);
        for slot in first..count {
            let socket = another_member(&member, lowest)?;
            if let Some(backlog) = self.backlog {
                listen(&socket, backlog)?;
            }
            let flags = if self.backlog.is_some() { until_shut_down(&self.address) } else { CONNECTED };
            epoll::add(epoll, &socket, Token::Socket(socket.as_raw_fd()).to_data(), flags)?;
            self.sockets.push(Rc::new(socket));
            self.order.push(slot);
        }
        Ok(())
    }

    /// How many connections wait for the worker of a slot, where the slot has a queue of its own.
    pub(super) fn waiting_for(&self, slot: u32) -> u32 {
        let socket = usize::try_from(slot).ok().and_then(|slot| self.sockets.get(slot));
        socket
            .filter(|_| self.backlog.is_some())
            .and_then(|socket| queue_length::of_port(socket))
            .map_or(0, |queue| queue.length)
    }

    /// The socket of a slot.
    pub(super) fn socket_of(&self, slot: u32) -> Option<&Rc<OwnedFd>> {
        usize::try_from(slot).ok().and_then(|slot| self.sockets.get(slot)).or_else(|| self.sockets.first())
    }

    /// Has panzer told of what happens to the sockets.
    pub(super) fn watch(&self, epoll: &OwnedFd, flags: epoll::EventFlags) {
        for socket in &self.sockets {
            let data = Token::Socket(socket.as_raw_fd()).to_data();
            if epoll::add(epoll, socket, data, flags) == Err(Errno::EXIST) {
                let _ = epoll::modify(epoll, socket, data, flags);
            }
        }
    }

    /// What has happened to the socket with this descriptor.
    pub(super) fn change(&self, descriptor: RawFd) -> Changed {
        let Some(socket) = self.sockets.iter().find(|socket| socket.as_raw_fd() == descriptor) else {
            return Changed::Nothing;
        };
        match self.address {
            _ if self.backlog.is_none() => {
                if self.is_connected() {
                    Changed::Connected
                } else {
                    Changed::Nothing
                }
            }
            Address::Internet(_) if sockopt::socket_acceptconn(socket) == Ok(true) => {
                let slot = self.sockets.iter().position(|known| Rc::ptr_eq(known, socket));
                let is_abandoned = slot.and_then(|slot| self.told.get(slot)) == Some(&QueueState::Abandoned);
                if is_abandoned { Changed::Arrived(Rc::clone(socket)) } else { Changed::Nothing }
            }
            Address::Internet(_) | Address::Path(_) => Changed::ShutDown(Rc::clone(socket)),
        }
    }

    /// Tells the kernel which slots take connections now, where each has a queue of its own.
    pub(super) fn steer(&mut self, rotation: &[QueueState], epoll: &OwnedFd, log: &mut Log) {
        if self.sockets.len() < 2 || self.backlog.is_none() {
            return;
        }
        // Who is handed the socket at its start need not tell that it listens.
        let listening: Vec<u32> = match (self.declared, self.listening.as_slice()) {
            (true, _) => Vec::new(),
            (false, []) => self.have_listened.clone(),
            (false, lives) => lives.iter().map(|life| life.slot).collect(),
        };
        let serving = rotation::serving(rotation, &listening);
        let place = |slot: &u32| self.order.iter().position(|known| known == slot);
        let places: Vec<u32> = serving.iter().filter_map(place).filter_map(|place| u32::try_from(place).ok()).collect();
        let Some(member) = self.order.first().and_then(|slot| self.socket_of(*slot)) else { return };
        if let (false, Err(error)) = (places.is_empty(), queues::steer(member, &places)) {
            let text = format!(
                "cannot steer the connections of {}: {}; new ones may wait for a worker that is not there",
                self.address,
                words(error)
            );
            log.say(Level::Error, "error", &text);
        }
        let told = self.told.iter().map(Some).chain(std::iter::repeat(None));
        for ((socket, state), told) in self.sockets.iter().zip(rotation).zip(told) {
            let (is_abandoned, was_abandoned) = (*state == QueueState::Abandoned, told == Some(&QueueState::Abandoned));
            if is_abandoned != was_abandoned {
                let data = Token::Socket(socket.as_raw_fd()).to_data();
                let flags = if is_abandoned { epoll::EventFlags::IN } else { until_shut_down(&self.address) };
                let _ = epoll::modify(epoll, socket, data, flags);
            }
        }
        self.told = rotation.to_vec();
    }

    /// Lets a socket listen again that somebody has shut down; false where that fails.
    pub(super) fn listen_again(
        &mut self,
        socket: &Rc<OwnedFd>,
        rotation: &[QueueState],
        epoll: &OwnedFd,
        log: &mut Log,
    ) -> bool {
        let listens = self.backlog.is_some_and(|backlog| listen(socket, backlog).is_ok());
        if listens {
            self.note_new_place(socket);
            self.steer(rotation, epoll, log);
        }
        listens
    }

    /// A socket that stops listening leaves its group, the last one takes its place, and it comes back as the last one
    /// (`reuseport_detach_sock`, net/core/sock_reuseport.c).
    fn note_new_place(&mut self, socket: &Rc<OwnedFd>) {
        let slot = self.sockets.iter().position(|known| Rc::ptr_eq(known, socket));
        let slot = slot.and_then(|slot| u32::try_from(slot).ok());
        if let Some((place, slot)) = slot.and_then(|slot| Some((self.order.iter().position(|s| *s == slot)?, slot))) {
            self.order.swap_remove(place);
            self.order.push(slot);
        }
    }

    /// Notes that a life listens; false where that was known.
    pub(super) fn is_listened_to_by(&mut self, worker: WorkerId) -> bool {
        let is_new = !self.listening.contains(&worker);
        if is_new {
            self.listening.push(worker);
        }
        if !self.have_listened.contains(&worker.slot) {
            self.have_listened.push(worker.slot);
        }
        is_new
    }

    /// Notes that a life has it.
    pub(super) fn is_held_by(&mut self, worker: WorkerId) {
        if !self.holders.contains(&worker) {
            self.holders.push(worker);
        }
        self.has_been_shared |= *self.first_holder.get_or_insert(worker) != worker;
    }

    /// Whether its path is nobody's any more: only one life has ever had it, as with a socket in a temporary directory,
    /// and has closed it. A life that has ended has not given anything up: the next one takes it over.
    pub(super) fn is_given_up(&self, lives: impl Fn(WorkerId) -> bool) -> bool {
        let may_give_up = !self.declared && !self.has_been_shared && self.first_holder.is_some_and(lives);
        may_give_up && !self.is_open_somewhere()
    }

    /// Whether one of its sockets is this one.
    pub(super) fn has(&self, wanted: u64) -> bool {
        self.sockets.iter().any(|socket| inode(socket) == Some(wanted))
    }

    /// Whether it is one that `user` may share: its maker's, or one that `--listen` names.
    pub(super) fn is_for(&self, user: u32) -> bool {
        self.maker.is_none_or(|(_, uid)| uid == user)
    }

    /// Whether it was bound and never listened, and is connected to somebody by now: no listener, and not to be shared.
    pub(super) fn is_connected(&self) -> bool {
        let state = |socket: &Rc<OwnedFd>| {
            sys::socket_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_INFO).map(|[state, ..]| state)
        };
        self.backlog.is_none()
            && self.sockets.iter().any(|socket| state(socket).is_some_and(|state| state != TCP_CLOSE))
    }

    /// Whether it never listened, and whoever had it has closed it.
    pub(super) fn is_closed_again(&self) -> bool {
        self.backlog.is_none() && !self.is_open_somewhere()
    }

    /// Whether it is a UNIX listener that was shut down. It stays so.
    pub(super) fn is_dead_path(&self) -> bool {
        let is_shut_down = |socket: &Rc<OwnedFd>| {
            let mut state = [PollFd::new(socket, PollFlags::RDHUP)];
            let none = Timespec { tv_sec: 0, tv_nsec: 0 };
            poll(&mut state, Some(&none)).is_ok_and(|count| count > 0)
        };
        let is_path = matches!(self.address, Address::Path(_));
        is_path && !self.declared && self.backlog.is_some() && self.sockets.iter().any(is_shut_down)
    }

    /// Whether its path is gone for good: somebody has removed the directory with all that is in it, or there was no
    /// second link.
    pub(super) fn has_lost_its_path(&self) -> bool {
        let is_gone = match (&self.address, &self.name) {
            (_, Some(name)) => name.restore().is_err(),
            (Address::Path(path), None) => !files::exists(path),
            (Address::Internet(_), None) => false,
        };
        !self.declared && is_gone
    }

    /// Whether any process below panzer has one of the sockets. The maker is asked first: mostly it has.
    pub(super) fn is_open_somewhere(&self) -> bool {
        let inodes: Vec<u64> = self.sockets.iter().filter_map(|socket| inode(socket)).collect();
        let has_one = |process: sys::Pid| Caller::new(process).is_ok_and(|caller| caller.has_any_open(&inodes));
        if self.maker.is_some_and(|(process, _)| has_one(process)) {
            return true;
        }
        // Where they cannot be seen it is as well to go on holding it.
        let Some(all) = processes::all() else { return true };
        let below = processes::descendants(&all, sys::Pid::own(), &[]);
        below.iter().any(|process| has_one(process.pid))
    }

    /// Lets it listen, with a queue at least as long as it has by now. True where it did not before.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn listen(&mut self, caller: &Caller, backlog: i32) -> Result<bool, Errno> {
        let longest = self.backlog.map_or(backlog, |before| before.max(backlog));
        let is_listening = |socket: &Rc<OwnedFd>| sockopt::socket_acceptconn(socket) == Ok(true);
        let shut_down: Vec<Rc<OwnedFd>> = self.sockets.iter().filter(|socket| !is_listening(socket)).cloned().collect();
        if shut_down.is_empty() && self.backlog == Some(longest) {
            return Ok(false);
        }
        let sockets = &self.sockets;
        let all = || sockets.iter().try_for_each(|socket| listen(socket, longest));
        // A client may ask whose a UNIX listener is.
        match self.address {
            Address::Path(_) => caller.act(all)??,
            Address::Internet(_) => all()?,
        }
        if self.backlog.is_some() {
            for socket in &shut_down {
                self.note_new_place(socket);
            }
        }
        Ok(self.backlog.replace(longest).is_none())
    }
}
