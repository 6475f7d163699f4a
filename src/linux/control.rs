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
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, recv,
    send, socket_with,
};

use super::idle;
use super::listen::bind_path;
use super::own_path::OwnPath;
use super::peer::{Peer, peer_of};
use crate::records::records;
use crate::supervisor::commands::{self, Command, LONGEST_REQUEST};
use crate::supervisor::{Client, Generation};

/// So many clients are kept; for one more, the one that came first goes.
const MOST_CLIENTS: usize = 16;

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
    listener: OwnedFd,
    /// Where it is in the file system.
    _path: Option<OwnPath>,
    connections: Vec<Connection>,
    last: Client,
    /// Until when nobody is let in.
    rests_until: Option<Duration>,
}

/// What the listener is among the clients' numbers.
const LISTENER: u64 = 0;

/// A request, or why there is none to be done.
pub(super) type Request = (Client, Command);

impl Control {
    /// Listens under an abstract name (`unix(7)`), which needs no file system.
    ///
    /// # Errors
    /// Somebody has that name, or the kernel has no descriptor.
    pub(super) fn abstract_name(name: &str) -> Result<Self, Errno> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
        listen(&socket, BACKLOG)?;
        Self::new(socket, None)
    }

    /// Listens at a path. Never takes it away from somebody who does.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub(super) fn path(path: &Path) -> Result<Self, String> {
        let (socket, own) = bind_path(path, Some(MODE), BACKLOG)?;
        Self::new(socket, Some(own)).map_err(|error| crate::error::cause(&error.into()))
    }

    fn new(listener: OwnedFd, path: Option<OwnPath>) -> Result<Self, Errno> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let (connections, rests_until) = (Vec::new(), None);
        let control = Self { epoll, listener, _path: path, connections, last: Client(LISTENER), rests_until };
        control.watch(&control.listener, LISTENER, epoll::EventFlags::IN)?;
        Ok(control)
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
                LISTENER => self.let_in(now, &mut requests),
                number => self.serve(Client(number), &mut requests),
            }
        }
        requests
    }

    fn listen_again(&self) -> Result<(), Errno> {
        self.watch(&self.listener, LISTENER, epoll::EventFlags::IN)
    }

    /// Lets those in who have come.
    fn let_in(&mut self, now: Duration, requests: &mut Vec<Request>) {
        for _ in 0..DONE_AT_ONCE {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = match accept_with(&self.listener, flags) {
                Ok(socket) => socket,
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return,
                Err(_) => {
                    // Short of descriptors: the kernel would tell of the same client again and again.
                    self.connections.clear();
                    let _ = epoll::delete(&self.epoll, &self.listener);
                    self.rests_until = Some(now + REST);
                    return;
                }
            };
            self.last.0 += 1;
            let client = self.last;
            if self.watch(&socket, client.0, epoll::EventFlags::IN).is_err() {
                continue;
            }
            self.connections.push(Connection { client, socket, stage: Stage::Asking, bytes: Vec::new() });
            if self.connections.len() > MOST_CLIENTS {
                // Whoever follows a reload stays if there is another one, and this one stays in any case.
                let may_go = |one: &Connection| one.client != client && !matches!(one.stage, Stage::Following(..));
                let oldest = self.connections.iter().position(may_go).unwrap_or(0);
                self.let_go(oldest);
            }
            match self.refusal(client) {
                Some(refusal) => self.answer(client, Err(refusal)),
                // Most have sent their request by now.
                None => self.serve(client, requests),
            }
        }
    }

    fn index_of(&self, client: Client) -> Option<usize> {
        self.connections.iter().position(|one| one.client == client)
    }

    #[inline(never)]
    fn let_go(&mut self, index: usize) {
        drop(self.connections.remove(index));
    }

    /// Why somebody may not ask anything: only root and panzer's own user may.
    fn refusal(&self, client: Client) -> Option<String> {
        let connection = self.connections.get(self.index_of(client)?)?;
        let own = rustix::process::geteuid().as_raw();
        match peer_of(connection.socket.as_fd()) {
            Some(Peer { uid, .. }) if uid == 0 || uid == own => None,
            Some(Peer { uid, .. }) => Some(format!("cannot let user {uid} steer this panzer: it is user {own}'s")),
            None => Some("cannot tell who asks".to_owned()),
        }
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
            Err(refusal) => self.answer(client, Err(refusal)),
        }
    }

    /// Sends the answer to a request: the first line, and what there is to say. That is the end of it, but for a client that
    /// follows a reload.
    pub(super) fn answer(&mut self, client: Client, answer: Result<String, String>) {
        let Some(index) = self.index_of(client) else { return };
        let Some(connection) = self.connections.get_mut(index) else { return };
        let is_ok = answer.is_ok();
        let (Ok(body) | Err(body)) = answer;
        let mut text = String::from(if is_ok { "panzer 1 ok\n" } else { "panzer 1 error " });
        text.push_str(&body);
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let follows = is_ok && connection.stage == Stage::Waiting { follows: true };
        connection.bytes = text.into_bytes();
        connection.stage = match generation_in(&body) {
            Some(generation) if follows => Stage::Following(generation),
            Some(_) | None => Stage::Taking,
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
        self.connections.retain(|one| match one.stage {
            Stage::Following(followed) if generation.is_none_or(|generation| generation == followed) => {
                one.send(line.as_bytes()) == Ok(line.len()) && !is_last
            }
            Stage::Following(_) | Stage::Asking | Stage::Waiting { .. } | Stage::Taking => true,
        });
    }
}

/// The number in the answer to a reload: `{"generation":2}`.
fn generation_in(body: &str) -> Option<Generation> {
    let (_, record) = records(body).next()?;
    record.get("generation")?.parse().ok().map(Generation)
}
