//! A small HTTP client that shows everything of an answer.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::deadline_or;
use super::load::Addr;

/// A connection of either kind.
pub(crate) trait Connection: Read + Write + Send {}

impl Connection for TcpStream {}
impl Connection for UnixStream {}

/// Connects, with the tests' deadline on each read and write.
pub(crate) fn connect(addr: &Addr) -> io::Result<Box<dyn Connection>> {
    let limit = Some(deadline_or(Duration::from_secs(20)));
    Ok(match addr {
        Addr::Tcp(addr) => {
            let stream = TcpStream::connect(addr)?;
            stream.set_read_timeout(limit)?;
            stream.set_write_timeout(limit)?;
            Box::new(stream)
        }
        Addr::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(limit)?;
            stream.set_write_timeout(limit)?;
            Box::new(stream)
        }
    })
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    /// A header, which is there once.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> &str {
        let found: Vec<&String> =
            self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect();
        let [value] = found[..] else { panic!("{name} is there {} times: {self:?}", found.len()) };
        value
    }

    fn parse(text: &str) -> Option<Answer> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let first = lines.next()?.strip_prefix("HTTP/1.1 ")?;
        let status = first.split(' ').next()?.parse().ok()?;
        let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_string(), value.to_string()));
        Some(Answer { status, headers: lines.map(header).collect::<Option<_>>()?, body: body.to_string() })
    }
}

/// Sends these bytes and reads an answer to its end; what is no answer is an error that shows it.
pub(crate) fn send(addr: &Addr, request: &[u8]) -> io::Result<Answer> {
    let mut connection = connect(addr)?;
    // It may be answered before it was all sent.
    let sent = connection.write_all(request).and_then(|()| connection.flush());
    let mut text = Vec::new();
    let read = connection.read_to_end(&mut text);
    // A server that closes with something unread resets the connection, but what it sent before that counts.
    let text = String::from_utf8_lossy(&text).into_owned();
    match Answer::parse(&text) {
        Some(answer) => Ok(answer),
        None => {
            Err(read.and(sent.map(|()| 0)).err().unwrap_or_else(|| io::Error::other(format!("no answer: {text:?}"))))
        }
    }
}

/// `GET` with this further header lines, each with its end.
pub(crate) fn get_with(addr: &Addr, path: &str, headers: &str) -> io::Result<Answer> {
    send(addr, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").as_bytes())
}

pub(crate) fn get(addr: &Addr, path: &str) -> io::Result<Answer> {
    get_with(addr, path, "")
}
