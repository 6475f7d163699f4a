//! Listeners: bound once before the first worker, held for as long as panzer lives, handed down from descriptor 3 on.
//!
//! Must never take a UNIX path away from somebody who listens on it, nor remove one that is not panzer's own.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, getsockname, listen, socket_with, sockopt,
};

use super::address::Shown;
use super::clock;
use super::files;
use super::own_path::OwnPath;
use super::socket_options::SocketOptions;
use super::sys;
use crate::config::{Address, Listen};
use crate::error::Error;
use crate::linux::words;

/// The number that the first handed-down descriptor has in a worker (`SD_LISTEN_FDS_START`, `sd_listen_fds(3)`).
pub(super) const FIRST_DESCRIPTOR: RawFd = 3;

/// How long to wait for another program that is binding a path in the same directory.
const DIRECTORY_LOCK_TRIES: u32 = 100;
const DIRECTORY_LOCK_PAUSE: Duration = Duration::from_millis(10);

/// How many queues of connections a port has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Queues {
    /// One, from which all workers take.
    One,
    /// One for each of so many slots.
    PerSlot(u32),
}

impl Queues {
    /// How many sockets that takes.
    pub(super) fn count(self) -> u32 {
        match self {
            Self::One => 1,
            Self::PerSlot(count) => count,
        }
    }
}

/// A socket that workers inherit.
#[derive(Debug)]
pub(super) struct Listener {
    /// The socket, or one for each slot. Their numbers are above those that workers see, so that giving out the numbers
    /// overwrites none.
    pub(super) sockets: Vec<Rc<OwnedFd>>,
    /// They are a SO_REUSEPORT group: each slot has its own.
    pub(super) is_group: bool,
    /// Its name in `LISTEN_FDNAMES`.
    pub(super) name: String,
    /// Its key in `SERVER_STARTER_PORT`; an abstract name has none.
    pub(super) key: Option<String>,
    /// Where it listens, for people: `tcp://0.0.0.0:8080`.
    pub(super) shown: String,
    /// The path to remove at the end.
    pub(super) path: Option<OwnPath>,
}

impl Listener {
    /// The socket that a slot gets.
    pub(super) fn socket_of(&self, slot: u32) -> Option<&Rc<OwnedFd>> {
        usize::try_from(slot).ok().and_then(|slot| self.sockets.get(slot)).or_else(|| self.sockets.first())
    }
}

impl Listener {
    /// Gives slots up to `count` sockets of their own, where slots have those.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn grow(&mut self, count: u32, lowest: RawFd) -> Result<(), Errno> {
        let Some(member) = self.sockets.first().filter(|_| self.is_group).map(Rc::clone) else { return Ok(()) };
        while u32::try_from(self.sockets.len()).is_ok_and(|length| length < count) {
            self.sockets.push(Rc::new(another_member(&member, lowest)?));
        }
        Ok(())
    }

    /// Lets go of the datagram sockets of slots from `count` on. Nobody steers around them: what comes to them is lost.
    pub(super) fn shrink(&mut self, count: u32) {
        let is_of_datagrams = |socket: &Rc<OwnedFd>| sockopt::socket_type(socket) == Ok(SocketType::DGRAM);
        if self.is_group && self.sockets.first().is_some_and(is_of_datagrams) {
            self.sockets.truncate(usize::try_from(count).unwrap_or(usize::MAX));
        }
    }
}

/// Takes over the sockets that whoever started panzer hands down by `LISTEN_FDS`.
pub(super) fn inherit() -> Vec<Listener> {
    if sys::number("LISTEN_PID") != Some(std::process::id().into()) {
        return Vec::new();
    }
    let count = sys::number("LISTEN_FDS").and_then(|count| RawFd::try_from(count).ok()).unwrap_or(0);
    let names = sys::variable("LISTEN_FDNAMES").and_then(|names| names.into_string().ok()).unwrap_or_default();
    let mut names = names.split(':');
    let numbers = FIRST_DESCRIPTOR..FIRST_DESCRIPTOR.saturating_add(count);
    let taken = numbers.map_while(|number| {
        let socket = sys::adopt(number)?;
        let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unknown").to_owned();
        let (key, shown) = describe(&socket, "inherited");
        Some(Listener { sockets: vec![Rc::new(socket)], is_group: false, name, key, shown, path: None })
    });
    taken.collect()
}

/// Binds what `--listen` asks for: a port so many times over, each with a queue of its own.
///
/// # Errors
/// Names the address as typed and why it cannot be bound.
pub(super) fn open(wanted: &Listen, backlog: u32, queues: Queues) -> Result<Listener, Error> {
    let refuse = |error: Errno| Error::about("listen on", &wanted.typed, bind_cause(wanted, error));
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    let (sockets, path) = match &wanted.address {
        Address::Tcp(address) => {
            let sockets = internet(wanted, *address, SocketType::STREAM, queues).map_err(refuse)?;
            sockets.iter().try_for_each(|socket| listen(socket, backlog)).map_err(refuse)?;
            (sockets, None)
        }
        Address::Udp(address) => (internet(wanted, *address, SocketType::DGRAM, queues).map_err(refuse)?, None),
        Address::Unix(path) => {
            let (socket, path) = bind_path(path, wanted.mode, backlog)
                .map_err(|problem| Error::about("listen on", &wanted.typed, problem))?;
            (vec![socket], Some(path))
        }
        Address::Abstract(name) => {
            let socket = stream(AddressFamily::UNIX).map_err(refuse)?;
            let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).map_err(refuse)?;
            bind(&socket, &address).map_err(refuse)?;
            listen(&socket, backlog).map_err(refuse)?;
            (vec![socket], None)
        }
    };
    // O_NONBLOCK lives in the open file description, which all workers share: it is set only where asked for.
    if wanted.nonblock {
        sockets.iter().try_for_each(|one| rustix::fs::fcntl_setfl(one, OFlags::NONBLOCK)).map_err(refuse)?;
    }
    let described = sockets.first().map(|socket| describe(socket, &wanted.typed));
    let (key, shown) = described.unwrap_or_else(|| (None, wanted.typed.clone()));
    let key = key.map(|key| match key.bytes().rposition(|byte| byte == b':') {
        Some(colon) if wanted.port_only => key.get(colon + 1..).unwrap_or_default().to_owned(),
        _ => key,
    });
    let sockets = sockets.into_iter().map(Rc::new).collect();
    let is_group = queues != Queues::One && matches!(wanted.address, Address::Tcp(_) | Address::Udp(_));
    Ok(Listener { sockets, is_group, name: wanted.name.clone(), key, shown, path })
}

/// Moves the sockets to numbers above those at which workers see them.
///
/// # Errors
/// There are more listeners than descriptors.
pub(super) fn raise(listeners: &mut [Listener], lowest: RawFd) -> Result<(), Error> {
    for listener in listeners {
        for socket in &mut listener.sockets {
            let raised = rustix::io::fcntl_dupfd_cloexec(&*socket, lowest);
            *socket = Rc::new(raised.map_err(|error| Error::about("listen on", &listener.shown, words(error)))?);
        }
    }
    Ok(())
}

fn stream(family: AddressFamily) -> Result<OwnedFd, Errno> {
    socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

fn internet(wanted: &Listen, mut address: SocketAddr, kind: SocketType, queues: Queues) -> Result<Vec<OwnedFd>, Errno> {
    let is_group = queues != Queues::One;
    // Sockets of a group bind beside those of another panzer of the same user; this one does not.
    if is_group {
        drop(one_of(wanted, address, kind, false)?);
    }
    let mut sockets = Vec::new();
    for _ in 0..queues.count() {
        let socket = one_of(wanted, address, kind, is_group)?;
        // The kernel has chosen a port for the first one; the others are to have the same.
        if address.port() == 0 {
            address = SocketAddr::try_from(getsockname(&socket)?)?;
        }
        sockets.push(socket);
    }
    Ok(sockets)
}

fn one_of(wanted: &Listen, address: SocketAddr, kind: SocketType, is_of_group: bool) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, wanted.v6only)?;
    }
    if kind == SocketType::STREAM {
        sockopt::set_socket_reuseaddr(&socket, true)?;
        // Accepted sockets inherit it. Servers that take over a listener often forget it: 40 ms a request.
        sockopt::set_tcp_nodelay(&socket, true)?;
    }
    if is_of_group {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    bind(&socket, &address)?;
    Ok(socket)
}

/// A socket that is like one of a group and bound beside it, with a number of at least `lowest`.
pub(super) fn another_member(member: &OwnedFd, lowest: RawFd) -> Result<OwnedFd, Errno> {
    let (address, kind) = (SocketAddr::try_from(getsockname(member)?)?, sockopt::socket_type(member)?);
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    SocketOptions::difference(member.as_fd(), socket.as_fd()).apply(socket.as_fd());
    sockopt::set_socket_reuseport(&socket, true)?;
    let flags = rustix::fs::fcntl_getfl(member)?;
    rustix::fs::fcntl_setfl(&socket, flags)?;
    // All of a group must be one user's, and a socket is whose its inode is (`sockfs_setattr`, net/socket.c).
    let owner = rustix::fs::fstat(member)?.st_uid;
    if owner != rustix::process::geteuid().as_raw() {
        rustix::fs::fchown(&socket, Some(rustix::process::Uid::from_raw(owner)), None)?;
    }
    bind(&socket, &address)?;
    rustix::io::fcntl_dupfd_cloexec(socket, lowest)
}

/// Binds a path with its mode from the first moment on.
///
/// Not under a temporary name that is renamed: the socket would then tell everyone who asks (`getsockname(2)`) the
/// temporary one. The lock on the directory keeps two starting panzers from taking each other for stale.
pub(super) fn bind_path(path: &Path, mode: Option<u32>, backlog: i32) -> Result<(OwnedFd, OwnPath), String> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let _lock = lock_directory(directory);
    match look_at(path)? {
        AtPath::Nothing => {}
        AtPath::Stale => files::unlink(path).map_err(words)?,
    }
    let socket = stream(AddressFamily::UNIX).map_err(words)?;
    let address = unix_address(path).map_err(words)?;
    let before = mode.map(|mode| rustix::process::umask(Mode::from_raw_mode(!mode & 0o777)));
    let bound = bind(&socket, &address);
    if let Some(before) = before {
        rustix::process::umask(before);
    }
    bound.map_err(words)?;
    let own = OwnPath::of(path).map_err(words)?;
    listen(&socket, backlog).map_err(words)?;
    Ok((socket, own))
}

/// The address that a path is.
pub(super) fn unix_address(path: &Path) -> Result<SocketAddrUnix, Errno> {
    SocketAddrUnix::new(&*files::c_string(path)?)
}

/// Without a lock (somebody else's, no leave to read, a file system that has none) it goes on after a moment: whoever
/// listens is still found out.
fn lock_directory(directory: &Path) -> Option<OwnedFd> {
    let handle = files::open(directory, OFlags::RDONLY | OFlags::DIRECTORY).ok()?;
    for _ in 0..DIRECTORY_LOCK_TRIES {
        match rustix::fs::flock(&handle, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => clock::sleep(DIRECTORY_LOCK_PAUSE),
            Ok(()) | Err(_) => break,
        }
    }
    Some(handle)
}

/// What stands at a path that is to be bound.
enum AtPath {
    /// Nothing: it can be bound.
    Nothing,
    /// A socket that nobody listens on any more: it can be removed.
    Stale,
}

/// Says what is at `path`, or why it cannot be had. Never waits, changes nothing.
fn look_at(path: &Path) -> Result<AtPath, String> {
    match files::lstat(path) {
        Ok(found) if FileType::from_raw_mode(found.st_mode) != FileType::Socket => {
            return Err("there is a file of another kind at this path".to_owned());
        }
        Ok(_) => {}
        Err(Errno::NOENT) => return Ok(AtPath::Nothing),
        Err(error) => return Err(words(error)),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(words)?;
    let address = unix_address(path).map_err(words)?;
    match connect(&probe, &address) {
        // Refused is what the kernel says when no socket is bound to the file any more.
        Err(Errno::CONNREFUSED) => Ok(AtPath::Stale),
        Err(Errno::NOENT) => Ok(AtPath::Nothing),
        // A full queue (EAGAIN) or a datagram socket (EPROTOTYPE) is alive as well.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err("somebody is listening there".to_owned()),
        Err(error) => Err(format!("cannot tell whether somebody is listening there: {}", words(error))),
    }
}

fn bind_cause(wanted: &Listen, error: Errno) -> String {
    let said = words(error);
    let port = match wanted.address {
        Address::Tcp(address) | Address::Udp(address) => address.port(),
        Address::Unix(_) | Address::Abstract(_) => 0,
    };
    if error == Errno::ACCESS && port > 0 { format!("{said} (ports below 1024 need root)") } else { said }
}

/// The key of `SERVER_STARTER_PORT` and the address for people, from what the kernel says.
fn describe(socket: &OwnedFd, otherwise: &str) -> (Option<String>, String) {
    let kind = match sockopt::socket_type(socket) {
        Ok(SocketType::DGRAM) => "udp",
        _ => "tcp",
    };
    let Ok(address) = getsockname(socket) else { return (None, otherwise.to_owned()) };
    if let Ok(address) = SocketAddr::try_from(address.clone()) {
        let address = Shown(address).to_string();
        let shown = format!("{kind}://{address}");
        return (Some(address), shown);
    }
    let Ok(address) = SocketAddrUnix::try_from(address) else { return (None, otherwise.to_owned()) };
    if let Some(path) = address.path_bytes() {
        let path = OsStr::from_bytes(path).to_string_lossy().into_owned();
        return (Some(path.clone()), format!("unix://{path}"));
    }
    let name = address.abstract_name().map(String::from_utf8_lossy).unwrap_or_default();
    (None, format!("unix://@{name}"))
}

/// `8080=3;/run/a.sock=4`, as Server::Starter writes it.
pub(super) fn server_starter_port(listeners: &[Listener]) -> String {
    let entries = listeners.iter().zip(FIRST_DESCRIPTOR..);
    let entries = entries.filter_map(|(listener, number)| Some(format!("{}={number}", listener.key.as_ref()?)));
    entries.collect::<Vec<_>>().join(";")
}

/// Whether `wanted` could be bound now. A path is only looked at; anything else is bound, and what is given back keeps
/// it so that the next one is tried beside it.
///
/// # Errors
/// As [`open`].
pub(super) fn try_to_open(wanted: &Listen) -> Result<Option<Listener>, Error> {
    let Address::Unix(path) = &wanted.address else { return open(wanted, 1, Queues::One).map(Some) };
    check_path(path).map_err(|problem| Error::about("listen on", &wanted.typed, problem))?;
    Ok(None)
}

/// Whether a path could be bound now. It is only looked at.
///
/// # Errors
/// Why not.
pub(super) fn check_path(path: &Path) -> Result<(), String> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let may_write = files::access(directory, rustix::fs::Access::WRITE_OK)
        .map_err(|error| format!("{}: {}", directory.display(), words(error)));
    may_write.and_then(|()| look_at(path)).map(drop)
}
