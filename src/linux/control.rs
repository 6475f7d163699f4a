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

use super::listen::bind_path;
use super::own_path::OwnPath;
use super::peer::{Peer, peer_of};
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
#[derive(Debug)]
enum Stage {
    /// It has sent this much of its request.
    Asking(Vec<u8>),
    /// It waits for its answer; it has asked to be told how a reload ends.
    Waiting { follows: bool },
    /// It is told how this reload goes on; what it was told last.
    Following(Generation, Option<(u32, u32)>),
    /// It takes this answer, from here on.
    Taking(Vec<u8>, usize),
}

/// A client.
#[derive(Debug)]
struct Connection {
    client: Client,
    socket: OwnedFd,
    stage: Stage,
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
        let mut space = Vec::with_capacity(DONE_AT_ONCE);
        let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let buffer = rustix::buffer::spare_capacity(&mut space);
        if epoll::wait(&self.epoll, buffer, Some(&at_once)).is_err() {
            return Vec::new();
        }
        let mut requests = Vec::new();
        for event in space {
            match event.data.u64() {
                LISTENER => self.let_in(now, &mut requests),
                number => requests.extend(self.serve(Client(number))),
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
            let stage = Stage::Asking(Vec::new());
            self.connections.push(Connection { client, socket, stage });
            if self.connections.len() > MOST_CLIENTS {
                // Whoever follows a reload stays if there is another one, and this one stays in any case.
                let may_go = |one: &Connection| one.client != client && !matches!(one.stage, Stage::Following(..));
                let oldest = self.connections.iter().position(may_go).unwrap_or(0);
                self.connections.remove(oldest);
            }
            match self.refusal(client) {
                Some(refusal) => {
                    self.pass_over_request(client);
                    self.answer(client, Err(refusal));
                }
                // Most have sent their request by now.
                None => requests.extend(self.serve(client)),
            }
        }
    }

    fn index_of(&self, client: Client) -> Option<usize> {
        self.connections.iter().position(|one| one.client == client)
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

    /// Takes what has come of a request that is not even looked at: a socket that is closed before that breaks the answer.
    fn pass_over_request(&self, client: Client) {
        if let Some(connection) = self.index_of(client).and_then(|index| self.connections.get(index)) {
            let _ = recv(&connection.socket, &mut [0_u8; LONGEST_REQUEST], RecvFlags::DONTWAIT);
        }
    }

    /// A client can be read from or written to, or is gone.
    fn serve(&mut self, client: Client) -> Option<Request> {
        let index = self.index_of(client)?;
        let connection = self.connections.get_mut(index)?;
        match &mut connection.stage {
            Stage::Asking(request) => {
                let mut bytes = [0; LONGEST_REQUEST];
                match recv(&connection.socket, &mut bytes, RecvFlags::DONTWAIT) {
                    Err(Errno::AGAIN | Errno::INTR) => return None,
                    Err(_) | Ok((0, _)) => {
                        self.connections.remove(index);
                        return None;
                    }
                    Ok((count, _)) => request.extend(bytes.iter().take(count)),
                }
                let end = request.iter().position(|byte| *byte == b'\n');
                let parsed = match end {
                    Some(end) if end < LONGEST_REQUEST => commands::parse(request.get(..end).unwrap_or_default()),
                    None if request.len() < LONGEST_REQUEST => return None,
                    Some(_) | None => {
                        Err(format!("cannot read the request: it is longer than {LONGEST_REQUEST} bytes"))
                    }
                };
                match parsed {
                    Ok(command) => {
                        connection.stage = Stage::Waiting { follows: command == Command::Reload { waits: true } };
                        return Some((client, command));
                    }
                    Err(refusal) => self.answer(client, Err(refusal)),
                }
            }
            // It says more than it should, or is gone.
            Stage::Waiting { .. } | Stage::Following(..) => drop(self.connections.remove(index)),
            Stage::Taking(..) => self.send_rest(index),
        }
        None
    }

    /// Sends the answer to a request: the first line, and what there is to say. That is the end of it, but for a client that
    /// follows a reload.
    pub(super) fn answer(&mut self, client: Client, answer: Result<String, String>) {
        let Some(index) = self.index_of(client) else { return };
        let Some(connection) = self.connections.get_mut(index) else { return };
        let (first, body) = match &answer {
            Ok(body) => ("panzer 1 ok\n", body),
            Err(refusal) => ("panzer 1 error ", refusal),
        };
        let end = if body.is_empty() || body.ends_with('\n') { "" } else { "\n" };
        let bytes = [first, body, end].concat().into_bytes();
        let follows = matches!(connection.stage, Stage::Waiting { follows: true });
        let generation = answer.as_ref().ok().filter(|_| follows).and_then(|body| generation_in(body));
        if let Some(generation) = generation {
            connection.stage = Stage::Following(generation, None);
            // It may say no more and wait all the same. Its end is told without being asked for.
            let data = epoll::EventData::new_u64(client.0);
            let _ = epoll::modify(&self.epoll, &connection.socket, data, epoll::EventFlags::empty());
            self.tell(index, &bytes);
        } else {
            connection.stage = Stage::Taking(bytes, 0);
            self.send_rest(index);
        }
    }

    /// Sends what a client can take now; when it has all, it is let go of.
    fn send_rest(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        let Stage::Taking(bytes, sent) = &mut connection.stage else { return };
        while let Some(rest) = bytes.get(*sent..).filter(|rest| !rest.is_empty()) {
            match send(&connection.socket, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => *sent += count,
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
        self.connections.remove(index);
    }

    /// Sends a line to a client that follows a reload; whether it has taken it. One that does not is let go of.
    fn tell(&mut self, index: usize, line: &[u8]) -> bool {
        let Some(connection) = self.connections.get(index) else { return false };
        let sent = send(&connection.socket, line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        let is_whole = sent == Ok(line.len());
        if !is_whole {
            self.connections.remove(index);
        }
        is_whole
    }

    /// Tells those who follow this reload how far it has come.
    pub(super) fn reload_goes_on(&mut self, (generation, done, of): (Generation, u32, u32)) {
        let line = format!("{{\"generation\":{},\"done\":{done},\"of\":{of}}}\n", generation.0);
        let mut index = 0;
        while let Some(connection) = self.connections.get_mut(index) {
            if let Stage::Following(followed, told) = &mut connection.stage
                && *followed == generation
                && told.replace((done, of)) != Some((done, of))
                && !self.tell(index, line.as_bytes())
            {
                continue;
            }
            index += 1;
        }
    }

    /// Tells those who follow this reload how it has ended, and lets go of them; `None`: of all, since panzer is stopping.
    pub(super) fn reload_ended(&mut self, ended: Option<(Generation, &str)>) {
        let mut index = 0;
        while let Some(connection) = self.connections.get(index) {
            match (&connection.stage, ended) {
                (Stage::Following(followed, _), Some((generation, line))) if *followed == generation => {
                    if self.tell(index, line.as_bytes()) {
                        self.connections.remove(index);
                    }
                }
                (Stage::Following(..), None) => drop(self.connections.remove(index)),
                (Stage::Following(..) | Stage::Asking(_) | Stage::Waiting { .. } | Stage::Taking(..), _) => index += 1,
            }
        }
    }
}

/// The number in the answer to a reload: `{"generation":2}`.
fn generation_in(body: &str) -> Option<Generation> {
    let digits: String = body.chars().filter(char::is_ascii_digit).collect();
    digits.parse().ok().map(Generation)
}
