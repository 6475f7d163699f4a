//! How many connections wait at a listener, and how many may.
//!
//! Must never take one. The kernels that panzer is built for are little-endian.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

use super::sys;

/// The queue of a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct QueueLength {
    /// So many wait.
    pub(super) length: u32,
    /// So many may.
    pub(super) limit: u32,
}

/// That of these listeners together; `None`: they have none, or the kernel does not tell.
pub(super) fn of_all(listeners: &[Rc<OwnedFd>]) -> Option<QueueLength> {
    let mut all = QueueLength::default();
    for listener in listeners {
        let one = of_port(listener).or_else(|| of_path(listener))?;
        all.length += one.length;
        all.limit += one.limit;
    }
    listeners.first().map(|_| all)
}

/// `tcp_get_info` (net/ipv4/tcp.c) tells a listener's queue as `tcpi_unacked` and its limit as `tcpi_sacked`.
#[inline(never)]
pub(super) fn of_port(listener: &OwnedFd) -> Option<QueueLength> {
    const UNACKED_AT: usize = 24;
    let mut info = [0; UNACKED_AT + 2 * size_of::<u32>()];
    let is_read = sys::read_socket_option(listener.as_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, &mut info);
    is_read.then(|| pair(&info, UNACKED_AT)).flatten()
}

/// A UNIX listener's is told by `sock_diag(7)` alone, by the number of its inode.
fn of_path(listener: &OwnedFd) -> Option<QueueLength> {
    /// `struct nlmsghdr`, `struct unix_diag_msg`, `struct rtattr`: the two numbers come after these.
    const ANSWER_AT: usize = 16 + 16 + 4;
    const QUEUE_ATTRIBUTE: [u8; 2] = 4_u16.to_le_bytes(); // UNIX_DIAG_RQLEN
    let inode = u32::try_from(rustix::fs::fstat(listener).ok()?.st_ino).ok()?;
    let [a, b, c, d] = inode.to_le_bytes();
    #[rustfmt::skip]
    let request = [
        // struct nlmsghdr: length, type (SOCK_DIAG_BY_FAMILY), flags (NLM_F_REQUEST), sequence, port.
        40, 0, 0, 0, 20, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        // struct unix_diag_req: family (AF_UNIX), protocol, padding, states (TCP_LISTEN), inode, what to show
        // (UDIAG_SHOW_RQLEN), cookie (any).
        1, 0, 0, 0, 0, 4, 0, 0, a, b, c, d, 0x10, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255,
    ];
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG));
    let socket = socket.ok()?;
    send(&socket, &request, SendFlags::DONTWAIT).ok()?;
    let mut answer = [0_u8; 128];
    let (count, _) = recv(&socket, &mut answer, rustix::net::RecvFlags::DONTWAIT).ok()?;
    let answer = answer.get(..count)?;
    let has_queue = answer.get(ANSWER_AT - 2..ANSWER_AT)? == QUEUE_ATTRIBUTE;
    has_queue.then(|| pair(answer, ANSWER_AT)).flatten()
}

fn pair(bytes: &[u8], at: usize) -> Option<QueueLength> {
    let number = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    Some(QueueLength { length: number(at)?, limit: number(at + 4)? })
}

#[cfg(test)]
mod tests {
    fn of(listener: impl Into<OwnedFd>) -> Option<QueueLength> {
        of_all(&[Rc::new(listener.into())])
    }

    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn connections_that_wait_are_counted() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let _clients = [(); 2].map(|()| TcpStream::connect(tcp.local_addr().unwrap()).unwrap());
        let tcp = of(tcp).unwrap();
        assert!(tcp.length == 2 && tcp.limit >= 2, "{tcp:?}");
        let path = std::env::temp_dir().join(format!("panzer-queue-{}", std::process::id()));
        let unix = UnixListener::bind(&path).unwrap();
        let _clients = [(); 3].map(|()| UnixStream::connect(&path).unwrap());
        rustix::fs::unlink(&path).unwrap();
        let unix = of(unix).unwrap();
        assert!(unix.length == 3 && unix.limit >= 3, "{unix:?}");
    }

    #[test]
    fn what_has_no_queue_has_no_length() {
        assert_eq!(of(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()), None);
    }
}
