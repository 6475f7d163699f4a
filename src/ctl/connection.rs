//! A request and its answer, over a UNIX stream.
//!
//! Must never wait longer than [`LIMIT`] for the next byte, where it was not asked to, nor keep more than [`LONGEST`].

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use super::Failure;
use super::table::printable;
use crate::linux::limit_waiting;
use crate::linux::words;

/// How many seconds panzer may say nothing.
pub(super) const LIMIT: u8 = 5;

/// The longest answer: ten thousand workers are a tenth of that.
const LONGEST: usize = 64 << 20;

/// The longest line of an answer that is read line by line.
const LONGEST_LINE: usize = 64 << 10;

/// How a document ends.
pub(super) const END: &str = "]}\n";

/// A request that was sent.
pub(super) struct Connection {
    socket: OwnedFd,
    shown: String,
    bytes: Vec<u8>,
}

impl Connection {
    /// Sends the request over a connected socket.
    pub(super) fn send(socket: OwnedFd, shown: String, request: &str) -> Self {
        // Where panzer lets nobody in it may have said so and closed already: the answer is there all the same.
        let _ = send(&socket, format!("{request}\n").as_bytes(), SendFlags::NOSIGNAL);
        Self { socket, shown, bytes: Vec::new() }
    }

    /// Waits for what comes next for as long as it takes.
    pub(super) fn wait_without_limit(&self) {
        limit_waiting(self.socket.as_fd(), 0);
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    fn error(&self, cause: &str) -> Failure {
        Failure::new(&format!("ask {}", self.shown), cause)
    }

    /// It has not answered in time.
    pub(super) fn silent(&self) -> Failure {
        self.error("it has said nothing for 5s")
    }

    /// Takes in what comes next; `false`: that was all.
    pub(super) fn more(&mut self) -> Result<bool, Failure> {
        let mut chunk = [0; 8192];
        match rustix::io::retry_on_intr(|| rustix::io::read(self.socket.as_fd(), &mut chunk)) {
            // An answer that was closed before the whole request was read ends like this.
            Ok(0) | Err(Errno::CONNRESET) => return Ok(false),
            Ok(length) => self.bytes.extend_from_slice(chunk.get(..length).unwrap_or_default()),
            Err(Errno::AGAIN) => return Err(self.silent()),
            Err(error) => return Err(self.error(&words(error))),
        }
        if self.bytes.len() > LONGEST { Err(self.error("its answer does not end")) } else { Ok(true) }
    }

    /// The next line; `None`: there is no whole one any more.
    pub(super) fn line(&mut self) -> Result<Option<String>, Failure> {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let rest = self.bytes.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.bytes, rest);
                line.pop();
                return self.text(line).map(Some);
            }
            if self.bytes.len() > LONGEST_LINE {
                return Err(self.error("its answer is none"));
            }
            if !self.more()? {
                return Ok(None);
            }
        }
    }

    /// Reads the first line, which says whether panzer does what it was asked.
    pub(super) fn begin(&mut self) -> Result<(), Failure> {
        let Some(line) = self.line()? else { return Err(self.error("it has closed the connection")) };
        match line.strip_prefix("panzer 1 ") {
            Some("ok") => Ok(()),
            Some(rest) => match rest.strip_prefix("error ") {
                Some(message) => Err(Failure::answer(printable(message))),
                None => Err(self.error("its answer is none")),
            },
            None if line.starts_with("panzer ") => Err(self.error("it is of another version than this client")),
            None => Err(self.error("its answer is none")),
        }
    }

    /// All lines that are left, of which the last must be `end`.
    pub(super) fn rest(mut self, end: &str) -> Result<String, Failure> {
        while self.more()? {}
        let bytes = std::mem::take(&mut self.bytes);
        let text = self.text(bytes)?;
        if text.ends_with(end) { Ok(text) } else { Err(self.error("its answer is cut off")) }
    }

    fn text(&self, bytes: Vec<u8>) -> Result<String, Failure> {
        String::from_utf8(bytes).map_err(|_| self.error("its answer is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    /// What the client makes of this answer to `status`.
    fn answered(answer: &[u8]) -> Result<String, String> {
        let (own, peer) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let mut connection = Connection::send(own, "panzer (pid 7)".to_owned(), "status");
        assert_eq!(send(&peer, answer, SendFlags::NOSIGNAL), Ok(answer.len()));
        // The request is left unread, so the connection ends in ECONNRESET.
        drop(peer);
        connection.begin().and_then(|()| connection.rest(END)).map_err(Failure::line)
    }

    #[test]
    fn an_answer_is_taken_whole_or_refused() {
        assert_eq!(answered(b"panzer 1 ok\n{\"panzer\":\n]}\n"), Ok("{\"panzer\":\n]}\n".to_owned()));
        for (answer, line) in [
            (&b""[..], "cannot ask panzer (pid 7): it has closed the connection"),
            (b"panzer 1 ok", "cannot ask panzer (pid 7): it has closed the connection"),
            (b"panzer 1 ok\n{\"panzer\":\n", "cannot ask panzer (pid 7): its answer is cut off"),
            (b"panzer 1 ok\n\xff]}\n", "cannot ask panzer (pid 7): its answer is not UTF-8"),
            (b"panzer 2 ok\n]}\n", "cannot ask panzer (pid 7): it is of another version than this client"),
            (b"HTTP/1.1 200 OK\n]}\n", "cannot ask panzer (pid 7): its answer is none"),
            (b"panzer 1 okay\n]}\n", "cannot ask panzer (pid 7): its answer is none"),
            (&[b'x'; LONGEST_LINE + 1], "cannot ask panzer (pid 7): its answer is none"),
            (b"panzer 1 error cannot x: \x1b[2Jy\n", "cannot x:  [2Jy"),
        ] {
            assert_eq!(answered(answer), Err(line.to_owned()));
        }
    }
}
