//! Which panzer is meant, and the way to it.
//!
//! Must never take somebody else's socket for panzer's: anybody may bind an abstract name, so the kernel is asked who
//! listens there.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::commands::Given;
use super::connection::{Connection, LIMIT};
use super::table::printable;
use super::{Failure, Variables};
use crate::config::control_name;
use crate::error::Typed;
use crate::linux::{is_own_user, limit_waiting, peer_of, read_file, words};

/// What `/proc/net/unix` says of a socket that listens.
const LISTENS: &str = "00010000";

/// How much of a command line is shown.
const LONGEST_SHOWN: usize = 200;

/// A panzer that answers, or has answered.
pub(super) struct Server {
    /// Where it listens; empty: at the abstract name that its pid gives.
    path: OsString,
    /// What its pid must be; 0: whatever it is.
    pid: i32,
    /// It was asked for by name, and not found by the name that somebody has given himself.
    is_named: bool,
    /// The first connection, which has shown that it is there.
    connected: Option<OwnedFd>,
}

/// Why there is no connection.
enum Miss {
    /// Nobody listens there.
    Nobody,
    /// For this cause.
    Because(String),
}

impl From<Errno> for Miss {
    fn from(error: Errno) -> Self {
        if error == Errno::CONNREFUSED { Self::Nobody } else { Self::Because(words(error)) }
    }
}

impl Server {
    /// The one with this pid, or at this path, if it is there and may be asked. `is_named`: nobody else will do, so that
    /// root takes it whosever it is.
    fn new(pid: i32, path: &OsStr, is_named: bool) -> Result<Self, Miss> {
        let mut server = Self { path: path.to_owned(), pid, is_named, connected: None };
        server.connected = Some(server.connect()?);
        Ok(server)
    }

    /// The one that was named.
    fn named(pid: i32, path: &OsStr) -> Result<Self, Failure> {
        Self::new(pid, path, true).map_err(|miss| refuse(pid, path, miss, "nobody listens there; panzer does with -n"))
    }

    /// Sends a request.
    pub(super) fn send(&mut self, request: &str) -> Result<Connection, Failure> {
        let socket = match self.connected.take() {
            Some(socket) => socket,
            None => self.connect().map_err(|miss| refuse(self.pid, &self.path, miss, "it has ended"))?,
        };
        Ok(Connection::send(socket, shown(self.pid, &self.path), request))
    }

    fn connect(&self) -> Result<OwnedFd, Miss> {
        let address = if self.path.is_empty() {
            SocketAddrUnix::new_abstract_name(control_name(own_namespace(), self.pid).as_bytes())?
        } else {
            SocketAddrUnix::new(self.path.as_os_str())?
        };
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        limit_waiting(socket.as_fd(), LIMIT);
        connect(&socket, &address)?;
        let Some(peer) = peer_of(socket.as_fd()) else { return Err(Miss::Nobody) };
        // panzer takes requests from root and from its own user. Anybody may bind an abstract name, so a client believes
        // its own user alone; root any whom it has named, since below it is made sure that this is that process.
        let is_believed = is_own_user(peer.uid) || (self.is_named && rustix::process::geteuid().is_root());
        if !is_believed {
            return Err(Miss::Because(format!("it belongs to uid {}, and only that user may ask it", peer.uid)));
        }
        if self.pid != 0 && peer.pid != self.pid {
            return Err(Miss::Because(format!("pid {} listens in its place", peer.pid)));
        }
        Ok(socket)
    }
}

/// Its name in errors.
fn shown(pid: i32, path: &OsStr) -> String {
    if path.is_empty() { format!("panzer (pid {pid})") } else { format!("panzer at {}", Typed(path)) }
}

fn refuse(pid: i32, path: &OsStr, miss: Miss, nobody: &str) -> Failure {
    let action = format!("ask {}", shown(pid, path));
    match miss {
        Miss::Nobody => Failure::new(&action, nobody),
        Miss::Because(cause) => Failure::new(&action, &cause),
    }
}

/// The PID namespace that this process is in.
fn own_namespace() -> u64 {
    inode("/proc/self/ns/pid")
}

/// The number of a file; 0: one may not look.
#[inline(never)]
fn inode(path: &str) -> u64 {
    rustix::fs::stat(path).map_or(0, |found| found.st_ino)
}

/// The panzer that is meant: by an option, by a variable, PID 1, or the only one.
#[inline(never)]
pub(super) fn find(given: &Given, variable: Variables<'_>) -> Result<Server, Failure> {
    let none = OsStr::new("");
    if let Some(path) = given.value("--control") {
        return Server::named(0, path);
    }
    if let Some(typed) = given.value("--pid") {
        let wrong = || Failure::unusable("--pid", typed, "it is no pid");
        return Server::named(typed.to_str().and_then(pid_of).ok_or_else(wrong)?, none);
    }
    if let Some(path) = given.value("--pid-file") {
        let refuse = |cause: &str| Failure::unusable("--pid-file", path, cause);
        let content = read_file(Path::new(path)).map_err(|error| refuse(&words(error)))?;
        let content = std::str::from_utf8(&content).unwrap_or_default();
        return Server::named(pid_of(content.trim_ascii()).ok_or_else(|| refuse("it holds no pid"))?, none);
    }
    if let Some(path) = variable("PANZER_CONTROL").filter(|path| !path.is_empty() && path != "off") {
        return Server::named(0, &path);
    }
    let mut cause = "none listens here; panzer does with -n".to_owned();
    if let Some(pid) = variable("PANZER_PID").and_then(|pid| pid_of(pid.to_str()?)) {
        return Server::named(pid, none);
    }
    match Server::new(1, none, true) {
        Ok(server) => return Ok(server),
        Err(Miss::Nobody) => {}
        Err(miss) => return Err(refuse(1, none, miss, "")),
    }
    let mut found = Vec::new();
    let mut pids = listening(&read_file(Path::new("/proc/net/unix")).unwrap_or_default(), own_namespace());
    keep_those_here(&mut pids);
    for pid in pids {
        visit(pid, &mut found, &mut cause);
    }
    if found.len() > 1 {
        return Err(Failure::new("choose a panzer", &choices(&found)));
    }
    found.pop().ok_or_else(|| Failure::new("find a panzer", &cause))
}

/// In a pod whose containers share their processes, each has files of its own, and PID 1 has others: whoever has the same
/// ones as this process is meant, if somebody has. On a host, where PID 1 has the same files, nobody is meant before others.
#[inline(never)]
fn keep_those_here(pids: &mut Vec<i32>) {
    let own = inode("/proc/self/ns/mnt");
    let is_here = |pid: &i32| inode(&in_proc(*pid, "ns/mnt")) == own;
    if !is_here(&1) && pids.iter().any(is_here) {
        pids.retain(is_here);
    }
}

/// A file of a process.
#[inline(never)]
fn in_proc(pid: i32, name: &str) -> String {
    format!("/proc/{pid}/{name}")
}

/// Keeps the panzer with this pid, or why it may not be asked, if there is one.
#[inline(never)]
fn visit(pid: i32, found: &mut Vec<Server>, cause: &mut String) {
    match Server::new(pid, OsStr::new(""), false) {
        Ok(server) => found.push(server),
        Err(Miss::Nobody) => {}
        Err(Miss::Because(why)) => *cause = format!("pid {pid}: {why}"),
    }
}

fn pid_of(text: &str) -> Option<i32> {
    text.parse().ok().filter(|pid| *pid > 0)
}

/// The pids that stand in the names of control sockets, in `/proc/net/unix`.
#[inline(never)]
fn listening(table: &[u8], namespace: u64) -> Vec<i32> {
    let start = format!("@{}", control_name(namespace, 0));
    let start = start.strip_suffix('0').unwrap_or(&start);
    let mut found = Vec::new();
    for line in table.split(|byte| *byte == b'\n') {
        // Num RefCount Protocol Flags Type St Inode Path
        let mut words = std::str::from_utf8(line).unwrap_or_default().split_ascii_whitespace();
        if words.nth(3) == Some(LISTENS) {
            found.extend(words.nth(3).and_then(|name| pid_of(name.strip_prefix(start)?)));
        }
    }
    found
}

/// The pid and the command line of each.
#[inline(never)]
fn choices(servers: &[Server]) -> String {
    let mut out = "there are several; use --pid:".to_owned();
    for server in servers {
        let line = read_file(Path::new(&in_proc(server.pid, "cmdline"))).unwrap_or_default();
        let line = String::from_utf8_lossy(line.get(..LONGEST_SHOWN).unwrap_or(&line));
        let separator = if out.ends_with(':') { "" } else { "," };
        let _ = write!(out, "{separator} {} ({})", server.pid, printable(&line).trim_ascii_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_that_listen_in_this_namespace_count() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1234 @panzer/42/7\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 1235 @panzer/42/7\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1236 @panzer/43/8\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1237\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1238 @panzer/42/x\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1239 @panzer/42/-1\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1240 \xff\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 1241 @panzer/42/10\n";
        assert_eq!(listening(table, 42), [7, 10]);
        assert_eq!(listening(b"", 42), []);
    }
}
