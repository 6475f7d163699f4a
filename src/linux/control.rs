//! The control socket: takes requests of `panzer ctl`, sends answers.
//!
//! Must never wait for a client, nor keep more of it than a few: whatever one does (half a request, none, not reading,
//! coming a thousand times) costs no worker anything.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen,
    recv, send, shutdown, socket_with,
};

use super::idle;
use super::listen::bind_path;
use super::own_path::OwnPath;
use super::peer::{Peer, is_own_user, peer_of};
use crate::supervisor::commands::{self, Command, LONGEST_REQUEST};
use crate::supervisor::{Client, Generation};

/// So many clients are kept; for one more, the one that came first goes.
const MOST_CLIENTS: usize = 16;

/// So many more may follow a reload; a further one is told no more than that it has begun.
const MOST_FOLLOWERS: usize = 64;

/// How many things are done for clients before panzer looks at anything else.
const DONE_AT_ONCE: usize = 8;

/// How many clients the kernel keeps until they are let in.
const BACKLOG: i32 = 64;

/// How long nobody is let in where the system is short of descriptors.
const REST: Duration = Duration::from_secs(1);

/// The mode of a socket in the file system: who may do more is looked at when somebody comes.
const MODE: u32 = 0o600;

/// How far a client is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// It sends its request.
    Asking,
    /// It waits for its answer; it has asked to be told how a reload ends.
    Waiting { follows: bool },
    /// It is told how this reload goes on.
    Following(Generation),
    /// It takes its answer.
    Taking,
}

/// A client.
#[derive(Debug)]
struct Connection {
    client: Client,
    socket: OwnedFd,
    stage: Stage,
    /// What it has sent of its request; what it has not taken of its answer.
    bytes: Vec<u8>,
}

impl Connection {
    /// Sends it something; how much it has taken.
    fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        send(&self.socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
    }
}

/// The socket and who has come to it.
#[derive(Debug)]
pub(super) struct Control {
    epoll: OwnedFd,
    listeners: Vec<OwnedFd>,
    /// The one that is in the file system.
    path: Option<OwnPath>,
    connections: Vec<Connection>,
    last: Client,
    /// Until when nobody is let in.
    rests_until: Option<Duration>,
}

/// What the listeners are among the clients' numbers: below this one.
const FIRST_CLIENT: u64 = 2;

/// A request, or why there is none to be done.
pub(super) type Request = (Client, Command);

impl Control {
    /// Nobody can come yet.
    ///
    /// # Errors
    /// The kernel has no descriptor.
    pub(super) fn new() -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let (listeners, connections) = (Vec::new(), Vec::new());
        Ok(Self { epoll, listeners, path: None, connections, last: Client(FIRST_CLIENT), rests_until: None })
    }

    /// Listens under an abstract name (`unix(7)`), which needs no file system.
    ///
    /// # Errors
    /// Somebody has that name, or the kernel has no descriptor.
    pub(super) fn listen_by_name(&mut self, name: &str) -> Result<(), Errno> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
        listen(&socket, BACKLOG)?;
        self.add(socket)
    }

    /// Listens at a path. Never takes it away from somebody who does.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub(super) fn listen_at(&mut self, path: &Path) -> Result<(), String> {
        let (socket, own) = bind_path(path, Some(MODE), BACKLOG)?;
        self.path = Some(own);
        self.add(socket).map_err(super::sys::words)
    }

    fn add(&mut self, listener: OwnedFd) -> Result<(), Errno> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        self.listeners.push(listener);
        self.listen_again()
    }

    fn watch(&self, socket: &OwnedFd, number: u64, events: epoll::EventFlags) -> Result<(), Errno> {
        epoll::add(&self.epoll, socket, epoll::EventData::new_u64(number), events)
    }

    /// Readable when there is something to do for clients.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// When [`Control::handle`] has something to do by itself.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.rests_until
    }

    /// Does what there is to do, a little at a time; the requests that have come.
    pub(super) fn handle(&mut self, now: Duration) -> Vec<Request> {
        if self.rests_until.take_if(|until| *until <= now).is_some() && self.listen_again().is_err() {
            self.rests_until = Some(now + REST);
        }
        let mut space = idle::EMPTY;
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let events = idle::wait(self.epoll.as_fd(), &mut space, Some(&at_once), false).unwrap_or_default();
        let mut requests = Vec::new();
        for event in events {
            match event.data.u64() {
                number if number >= FIRST_CLIENT => self.serve(Client(number), &mut requests),
                number => self.let_in(now, number, &mut requests),
            }
        }
        requests
    }

    /// Has epoll tell of those who come.
    fn listen_again(&self) -> Result<(), Errno> {
        for (number, listener) in (0..).zip(&self.listeners) {
            match self.watch(listener, number, epoll::EventFlags::IN) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Lets those in who have come to a listener.
    fn let_in(&mut self, now: Duration, number: u64, requests: &mut Vec<Request>) {
        let index = usize::try_from(number).unwrap_or_default();
        for _ in 0..DONE_AT_ONCE {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let Some(listener) = self.listeners.get(index) else { return };
            let socket = match accept_with(listener, flags) {
                Ok(socket) => socket,
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return,
                Err(_) => {
                    // Short of descriptors: the kernel would tell of the same client again and again.
                    let _ = epoll::delete(&self.epoll, listener);
                    self.rests_until = Some(now + REST);
                    self.make_room(0);
                    return;
                }
            };
            if let Some(refusal) = refusal(&socket) {
                // What has come of a request is taken: a socket that is closed before that breaks the answer.
                let _ = recv(&socket, &mut [0_u8; LONGEST_REQUEST], RecvFlags::DONTWAIT);
                let line = format!("panzer 1 error {refusal}\n");
                let _ = send(&socket, line.as_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
                continue;
            }
            self.make_room(MOST_CLIENTS - 1);
            self.last.0 += 1;
            let client = self.last;
            if self.watch(&socket, client.0, epoll::EventFlags::IN).is_err() {
                continue;
            }
            self.connections.push(Connection { client, socket, stage: Stage::Asking, bytes: Vec::new() });
            // Most have sent their request by now.
            self.serve(client, requests);
        }
    }

    /// Lets go of those who came first until no more than so many are left, beside those who follow a reload.
    fn make_room(&mut self, most: usize) {
        let may_go = |one: &Connection| !matches!(one.stage, Stage::Following(_));
        while self.connections.iter().filter(|one| may_go(one)).count() > most {
            let Some(oldest) = self.connections.iter().position(may_go) else { return };
            self.let_go(oldest);
        }
    }

    fn index_of(&self, client: Client) -> Option<usize> {
        self.connections.iter().position(|one| one.client == client)
    }

    /// Closes a connection for all who have a copy: a child that has not executed yet keeps one, with which epoll would go on
    /// telling of it, and the client would wait for its end.
    #[inline(never)]
    fn let_go(&mut self, index: usize) {
        let connection = self.connections.remove(index);
        let _ = epoll::delete(&self.epoll, &connection.socket);
        let _ = shutdown(&connection.socket, Shutdown::Both);
    }

    /// A client can be read from or written to, or is gone.
    fn serve(&mut self, client: Client, requests: &mut Vec<Request>) {
        let Some(index) = self.index_of(client) else { return };
        let Some(connection) = self.connections.get_mut(index) else { return };
        if connection.stage == Stage::Taking {
            return self.send_rest(index);
        }
        let mut bytes = [0; LONGEST_REQUEST];
        let count = match recv(&connection.socket, &mut bytes, RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::INTR) => return,
            Ok((count, _)) if connection.stage == Stage::Asking => count,
            // It says more than it should, or is gone.
            Ok(_) | Err(_) => 0,
        };
        if count == 0 {
            return self.let_go(index);
        }
        connection.bytes.extend_from_slice(bytes.get(..count).unwrap_or_default());
        let request = &connection.bytes;
        let parsed = match request.iter().position(|byte| *byte == b'\n') {
            Some(end) if end < LONGEST_REQUEST => commands::parse(request.get(..end).unwrap_or_default()),
            None if request.len() < LONGEST_REQUEST => return,
            Some(_) | None => Err(format!("cannot read the request: it is longer than {LONGEST_REQUEST} bytes")),
        };
        match parsed {
            Ok(command) => {
                connection.stage = Stage::Waiting { follows: command == Command::Reload { waits: true } };
                requests.push((client, command));
            }
            Err(refusal) => self.answer(client, Err(refusal), None),
        }
    }

    /// Sends the answer to a request: the first line, and what there is to say. That is the end of it, but for a client that
    /// follows the `reload` that the answer is about.
    pub(super) fn answer(&mut self, client: Client, answer: Result<String, String>, reload: Option<Generation>) {
        let followers = self.connections.iter().filter(|one| matches!(one.stage, Stage::Following(_))).count();
        let Some(index) = self.index_of(client) else { return };
        let Some(connection) = self.connections.get_mut(index) else { return };
        let is_ok = answer.is_ok();
        let (Ok(body) | Err(body)) = answer;
        let mut text = String::from(if is_ok { "panzer 1 ok\n" } else { "panzer 1 error " });
        text.push_str(&body);
        if !text.ends_with('\n') {
            text.push('\n');
        }
        connection.bytes = text.into_bytes();
        connection.stage = match (connection.stage, reload) {
            (Stage::Waiting { follows: true }, Some(generation)) if followers < MOST_FOLLOWERS => {
                Stage::Following(generation)
            }
            (Stage::Asking | Stage::Waiting { .. } | Stage::Following(_) | Stage::Taking, _) => Stage::Taking,
        };
        if connection.stage == Stage::Taking {
            return self.send_rest(index);
        }
        // It may say no more and wait all the same. Its end is told without being asked for.
        let data = epoll::EventData::new_u64(client.0);
        let _ = epoll::modify(&self.epoll, &connection.socket, data, epoll::EventFlags::empty());
        if connection.send(&connection.bytes) != Ok(connection.bytes.len()) {
            self.let_go(index);
        }
    }

    /// Sends what a client can take now; when it has all, it is let go of.
    fn send_rest(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        while !connection.bytes.is_empty() {
            match connection.send(&connection.bytes) {
                Ok(count) => connection.bytes = connection.bytes.get(count..).unwrap_or_default().to_vec(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let data = epoll::EventData::new_u64(connection.client.0);
                    if epoll::modify(&self.epoll, &connection.socket, data, epoll::EventFlags::OUT).is_ok() {
                        return;
                    }
                    break;
                }
                Err(_) => break,
            }
        }
        self.let_go(index);
    }

    /// Tells those who follow this reload (`None`: any) how it goes on. Lets go of them where that `is_last`, and of those who
    /// do not take it.
    pub(super) fn tell(&mut self, generation: Option<Generation>, line: &str, is_last: bool) {
        let mut index = 0;
        while let Some(one) = self.connections.get(index) {
            let is_told = match one.stage {
                Stage::Following(followed) => generation.is_none_or(|generation| generation == followed),
                Stage::Asking | Stage::Waiting { .. } | Stage::Taking => false,
            };
            if is_told && (one.send(line.as_bytes()) != Ok(line.len()) || is_last) {
                self.let_go(index);
            } else {
                index += 1;
            }
        }
    }
}

/// Why somebody may not ask anything: only root and panzer's own user may.
fn refusal(socket: &OwnedFd) -> Option<String> {
    match peer_of(socket.as_fd()) {
        Some(Peer { uid, .. }) if uid == 0 || is_own_user(uid) => None,
        Some(Peer { uid, .. }) => Some(format!("cannot let user {uid} steer this panzer: it is another user's")),
        None => Some("cannot tell who asks".to_owned()),
    }
}
