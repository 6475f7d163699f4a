//! Ports for programs that want to be told a number, as servers do, and what the kernel says about them.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// A port that nobody has, and that the kernel gives to nobody who asks for just any.
///
/// The servers want a number, so it has to be free for a while without being held. Ports below the range for outgoing
/// connections and for `bind` to 0 are only taken by name, and here one after the other.
pub(crate) fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let end = range.split_ascii_whitespace().next().and_then(|low| low.parse().ok()).unwrap_or(32_768_u16);
    assert!(end > FIRST + 1000, "no ports are left to choose from below {end}");
    // Each program of tests begins elsewhere.
    let begin = std::process::id() * 64;
    loop {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = FIRST + u16::try_from((begin + step) % u32::from(end - FIRST)).unwrap();
        if ["0.0.0.0", "[::]"].iter().all(|host| is_free(host, port)) {
            return port;
        }
    }
}

/// Whether nothing listens there; a machine without IPv6 has nothing that listens on it.
fn is_free(host: &str, port: u16) -> bool {
    TcpListener::bind(format!("{host}:{port}")).is_ok() || TcpListener::bind(format!("{host}:0")).is_err()
}

/// A port on 127.0.0.1.
pub(crate) fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// How many connections wait at the listeners of a port of 127.0.0.1.
///
/// The listeners come first in the table. What follows is not read: after a load it is 100,000 connections that have
/// ended, and on a busy machine that takes seconds, since the kernel lets others run after each bucket (`cond_resched`).
pub(crate) fn queued(port: u16) -> usize {
    const LISTENING: &str = "0A";
    let table = BufReader::new(File::open("/proc/net/tcp").unwrap());
    let at = format!("0100007F:{port:04X}");
    let mut waiting = 0;
    for line in table.lines().skip(1) {
        let line = line.unwrap();
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let &[_, local, _, state, queues, ..] = fields.as_slice() else { panic!("{line:?}") };
        if state != LISTENING {
            break;
        }
        if local == at {
            let (_, queue) = queues.split_once(':').unwrap();
            waiting += usize::from_str_radix(queue, 16).unwrap();
        }
    }
    waiting
}
