//! redis-server, which speaks another protocol and keeps data in its process.
//!
//! What was found: a shared port does it no harm, and is of no use. Three processes are three stores. A connection stays
//! with one of them and sees that one's data from its beginning to its end; the next connection may meet another. What
//! keeps its data in the process is to be run once, with `-n 1`, or without `-n`.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::io::Errno;

use super::{
    Clock, KILLS, LOOPS, OF_EACH_LOOP, PATIENCE, Place, REQUESTS_BETWEEN_KILLS, Turn, WORKERS, end, eventually,
    is_installed, kill, start,
};
use crate::support::panzer::Running;
use crate::support::ports::free_port;
use crate::support::random::Random;
use crate::support::scratch::Scratch;

/// A connection on which commands are sent one at a time.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(port: u16) -> io::Result<Connection> {
        loop {
            match TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE))?;
                    return Ok(Connection(BufReader::new(stream)));
                }
                // This machine is out of local ports, which is not the server's doing.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::ADDRNOTAVAIL) => {
                    thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a command and returns the answer, which is None where there is no such value.
    fn send(&mut self, command: &str) -> io::Result<Option<String>> {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let line = line.strip_suffix("\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        match line.split_at_checked(1) {
            Some(("+", text)) => Ok(Some(text.to_string())),
            Some(("$", "-1")) => Ok(None),
            Some(("$", length)) => {
                let length: usize = length.parse().map_err(io::Error::other)?;
                let mut value = vec![0; length + 2];
                self.0.read_exact(&mut value)?;
                value.truncate(length);
                Ok(Some(String::from_utf8_lossy(&value).into_owned()))
            }
            _ => Err(io::Error::other(format!("the answer {line:?} to {command}"))),
        }
    }

    /// The process at the other end.
    fn process(&mut self) -> io::Result<u32> {
        let info = self.send("INFO server")?.unwrap_or_default();
        let pid = info.lines().find_map(|line| line.strip_prefix("process_id:")?.parse().ok());
        pid.ok_or_else(|| io::Error::other(format!("no process_id in {info:?}")))
    }
}

/// Waits until there is a connection to each of the workers.
#[track_caller]
fn connect_to_all(running: &Running, port: u16) -> BTreeMap<u32, Connection> {
    let mut found = BTreeMap::new();
    eventually(&format!("{WORKERS} processes answer"), || {
        assert_eq!(running.try_exit(), None, "panzer has ended");
        let mut connection = Connection::open(port).ok()?;
        if let Ok(pid) = connection.process() {
            found.insert(pid, connection);
        }
        let workers = running.workers();
        found.retain(|pid, _| workers.contains(pid));
        (found.len() == WORKERS).then_some(())
    });
    found
}

/// What the loops of a load count.
#[derive(Default)]
struct Counted {
    stopping: AtomicBool,
    answered: AtomicU64,
    refused: AtomicU64,
    lost: AtomicU64,
}

/// One loop: a connection for each PING. The server closes it first, so that the local port is free again at once.
fn ping_until_stopped(port: u16, counted: &Counted) {
    while !counted.stopping.load(Ordering::Relaxed) {
        let answer = Connection::open(port).and_then(|mut connection| {
            let answer = connection.send("PING")?;
            connection.0.get_mut().write_all(b"QUIT\r\n")?;
            io::copy(&mut connection.0, &mut io::sink())?;
            Ok(answer)
        });
        let counter = match answer {
            Ok(answer) => {
                assert_eq!(answer.as_deref(), Some("PONG"));
                &counted.answered
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => &counted.refused,
            Err(error) => {
                assert!(
                    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof),
                    "another loss than that of a killed process: {error}"
                );
                &counted.lost
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn redis_server_serves_from_three_unmodified_processes_that_are_three_stores() {
    let _turn = Turn::take();
    let scratch = Scratch::new();
    let port = free_port();
    let place = Place { port, scratch: scratch.directory() };
    // Nothing is saved: three of them would also write one file.
    let mut command = place.words("redis-server --port {port} --appendonly no --save");
    command.push(String::new());
    if !is_installed("redis-server", &command, "") {
        return;
    }
    let running = start(&format!("-n {WORKERS} --backoff 0:0"), &command, scratch.directory());
    let mut clock = Clock::start("redis-server");

    let mut connections = connect_to_all(&running, port);
    clock.lap("the first answer of each");
    for (pid, connection) in &mut connections {
        assert_eq!(connection.send("GET owner").unwrap(), None, "nobody else's value is seen");
        assert_eq!(connection.send(&format!("SET owner {pid}")).unwrap().as_deref(), Some("OK"));
    }
    for (pid, connection) in &mut connections {
        assert_eq!(connection.send("GET owner").unwrap(), Some(pid.to_string()), "a connection keeps its store");
    }
    drop(connections);

    let counted = Arc::new(Counted::default());
    let loops: Vec<JoinHandle<()>> = (0..LOOPS)
        .map(|_| {
            let counted = Arc::clone(&counted);
            thread::spawn(move || ping_until_stopped(port, &counted))
        })
        .collect();
    let mut random = Random::new();
    for _ in 0..KILLS {
        let before = counted.answered.load(Ordering::Relaxed);
        eventually("there is a load", || {
            (counted.answered.load(Ordering::Relaxed) >= before + REQUESTS_BETWEEN_KILLS).then_some(())
        });
        let workers = running.workers();
        let victim = usize::try_from(random.below(u64::try_from(workers.len()).unwrap())).unwrap();
        kill(&running, workers[victim]);
    }
    clock.lap("the kills");
    drop(connect_to_all(&running, port));
    clock.lap("the last answer of each");
    counted.stopping.store(true, Ordering::Relaxed);
    for one in loops {
        one.join().unwrap();
    }
    let [answered, refused, lost] =
        [&counted.answered, &counted.refused, &counted.lost].map(|counter| counter.load(Ordering::Relaxed));
    println!("redis-server: {answered} answered, {refused} refused, {lost} lost");
    assert_eq!(refused, 0);
    assert!(lost <= KILLS * OF_EACH_LOOP, "an event loop has one request of each of our loops in hand: {lost}");
    end(&running);
    clock.lap("the end");
    assert!(Connection::open(port).is_err(), "nothing holds the port");
}
