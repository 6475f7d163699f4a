//! Metrics over HTTP, by a child of panzer's own that may do nothing else.
//!
//! What comes from a network is read there and never in panzer: panzer gives it the status document when it asks, over a
//! pair of sockets. The child asks with one byte; the answer is the document's length in four bytes and the document. What
//! does not fit into the socket at once is kept until the child, which has taken all that is there, asks for more with
//! another byte: so panzer never waits for the child, nor is told by epoll of room that it has no use for.
//!
//! - `serve`: the child's loop; `confine`: what it gives up
//! - `http`, `text`: the bytes that come and go. Pure
//!
//! Must never wait for the child nor believe it anything: it may have become anybody's.

mod confine;
mod http;
mod serve;
mod text;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::sys::{self, Fork, Pid, Target};
use crate::error::Status;
use crate::signals::Signal;

/// What the child asks with: for a document, for the rest of it.
const ASK: u8 = b'?';
const MORE: u8 = b'+';

/// An honest child has fewer bytes under way.
const MOST_ASKED: usize = 16;

/// What the child wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wish {
    /// Nothing that is for others to do.
    Nothing,
    /// The status document: [`Server::answer`].
    Document,
    /// Nothing ever again: it is gone, or has lost its senses. Another is to be started.
    Restart,
}

/// panzer's side of it.
#[derive(Debug)]
pub(super) struct Server {
    pid: Pid,
    socket: OwnedFd,
    /// The answer.
    answer: Vec<u8>,
    /// How much of it the child has been given.
    given: usize,
}

impl Server {
    /// Forks the child, which answers whoever connects to `listener`.
    ///
    /// # Errors
    /// The kernel gives no sockets or no process.
    pub(super) fn start(listener: &OwnedFd) -> std::io::Result<Self> {
        // Not for workers, so that it is nobody's business. An accept must not wait for a client that has gone again.
        rustix::io::ioctl_fionbio(listener, true)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, childs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match sys::fork(None)? {
            Fork::Child => {
                confine::confine(&childs, listener);
                let epoll = serve::open(&childs, listener);
                confine::lock();
                // Without an epoll instance nothing can be done; panzer sees the end and starts another.
                match epoll {
                    Ok(epoll) => serve::serve(childs, listener, &epoll),
                    Err(_) => sys::exit_now(Status::REFUSED.0),
                }
            }
            Fork::Parent(pid) => Ok(Self { pid, socket, answer: Vec::new(), given: 0 }),
        }
    }

    /// Readable when the child wants something or is gone.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Its process, which is no business of panzer's clearing up, and no worker's.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// What the child wants. Gives it the rest of an answer by itself.
    pub(super) fn wish(&mut self) -> Wish {
        let mut bytes = [0; MOST_ASKED];
        match rustix::io::read(&self.socket, &mut bytes) {
            Err(Errno::AGAIN | Errno::INTR) => Wish::Nothing,
            Ok(0 | MOST_ASKED) | Err(_) => Wish::Restart,
            Ok(_) if bytes.contains(&ASK) => Wish::Document,
            Ok(_) => {
                self.write();
                Wish::Nothing
            }
        }
    }

    /// Gives the child the document that it wants.
    pub(super) fn answer(&mut self, document: &str) {
        // One that asks again has taken all that was there, so nothing is cut off by this.
        let length = u32::try_from(document.len()).unwrap_or(0);
        self.answer = length.to_le_bytes().to_vec();
        self.answer.extend_from_slice(document.as_bytes());
        self.given = 0;
        self.write();
    }

    /// As much as there is room for. That the child is gone is told by the next read.
    fn write(&mut self) {
        let rest = self.answer.get(self.given..).unwrap_or_default();
        self.given += rustix::io::write(&self.socket, rest).unwrap_or(0);
        if self.given >= self.answer.len() {
            self.answer = Vec::new();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = sys::kill(Target::Process(self.pid), Signal::KILL);
        sys::reap_hidden(self.pid);
    }
}
