//! How many connections wait at a listener, and how many may.

use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

use super::sys;

/// The queue of a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct QueueLength {
    /// So many wait.
    pub(super) length: u32,
    /// So many may.
    pub(super) limit: u32,
}

/// That of a listener; `None`: it has none, or the kernel does not tell.
pub(super) fn of(listener: &OwnedFd) -> Option<QueueLength> {
    of_port(listener).or_else(|| of_path(listener))
}

/// `tcp_get_info` (net/ipv4/tcp.c) tells a listener's queue as `tcpi_unacked` and its limit as `tcpi_sacked`.
pub(super) fn of_port(listener: &OwnedFd) -> Option<QueueLength> {
    const UNACKED_AT: usize = 24;
    let mut info = [0; UNACKED_AT + 2 * size_of::<u32>()];
    let is_read = sys::read_socket_option(listener.as_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, &mut info);
    is_read.then(|| pair(&info, UNACKED_AT)).flatten()
}

/// A UNIX listener's is told by `sock_diag(7)` alone, by the number of its inode.
fn of_path(listener: &OwnedFd) -> Option<QueueLength> {
    const REQUEST: u16 = 1; // NLM_F_REQUEST
    const LISTENING: u32 = 1 << 10; // TCP_LISTEN
    const SHOW_QUEUE: u32 = 0x10; // UDIAG_SHOW_RQLEN
    /// `struct nlmsghdr`, `struct unix_diag_msg`, `struct rtattr`: the two numbers come after these.
    const ANSWER_AT: usize = 16 + 16 + 4;
    const QUEUE_ATTRIBUTE: [u8; 2] = 4_u16.to_ne_bytes(); // UNIX_DIAG_RQLEN
    let inode = u32::try_from(rustix::fs::fstat(listener).ok()?.st_ino).ok()?;
    let length: u32 = 16 + 24;
    let family = u8::try_from(libc::AF_UNIX).ok()?;
    let mut request = Vec::new();
    // struct nlmsghdr: length, type, flags, sequence, port
    request.extend(length.to_ne_bytes());
    request.extend(20_u16.to_ne_bytes()); // SOCK_DIAG_BY_FAMILY
    request.extend(REQUEST.to_ne_bytes());
    request.extend([0; 8]);
    // struct unix_diag_req: family, protocol, padding, states, inode, what to show, cookie (any)
    request.extend([family, 0, 0, 0]);
    for number in [LISTENING, inode, SHOW_QUEUE, u32::MAX, u32::MAX] {
        request.extend(number.to_ne_bytes());
    }
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
    let number = |at: usize| Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    Some(QueueLength { length: number(at)?, limit: number(at + 4)? })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn connections_that_wait_are_counted() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let _clients = [(); 2].map(|()| TcpStream::connect(tcp.local_addr().unwrap()).unwrap());
        let tcp = of(&tcp.into()).unwrap();
        assert!(tcp.length == 2 && tcp.limit >= 2, "{tcp:?}");
        let path = std::env::temp_dir().join(format!("panzer-queue-{}", std::process::id()));
        let unix = UnixListener::bind(&path).unwrap();
        let _clients = [(); 3].map(|()| UnixStream::connect(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        let unix = of(&unix.into()).unwrap();
        assert!(unix.length == 3 && unix.limit >= 3, "{unix:?}");
    }

    #[test]
    fn what_has_no_queue_has_no_length() {
        assert_eq!(of(&std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into()), None);
    }
}
