//! Ports for programs that want to be told a number, as servers do, and what the kernel says about them.

use std::fs;
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

/// How many connections there are at a port of 127.0.0.1, on the side that was connected to.
pub(crate) fn established(port: u16) -> usize {
    queues_at(port, "01").len()
}

/// How many connections wait at the listeners of a port of 127.0.0.1.
pub(crate) fn queued(port: u16) -> usize {
    queues_at(port, "0A").iter().sum()
}

/// What waits to be received at each of the sockets of a port of 127.0.0.1 that are in this state: `01` connected, `0A`
/// listening.
fn queues_at(port: u16, state: &str) -> Vec<usize> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let at = format!("0100007F:{port:04X}");
    let queue = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (_, queue) = fields.get(4)?.split_once(':')?;
        let is_wanted = fields.get(1) == Some(&at.as_str()) && fields.get(3) == Some(&state);
        is_wanted.then(|| usize::from_str_radix(queue, 16).unwrap())
    };
    table.lines().filter_map(queue).collect()
}
