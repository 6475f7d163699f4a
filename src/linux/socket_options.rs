//! The options of a socket that a server sets before it binds: read from one socket, given to others.
//!
//! Must never set what the server did not: a buffer's size that is set, even to what it was, stops growing by itself.

use std::ffi::c_int;
use std::os::fd::BorrowedFd;

use crate::linux::sys;

/// (level, name) of an option whose value is an integer.
type Name = (c_int, c_int);

/// `TCP_MD5SIG` and the like are not here: they are no integers, and come with an address.
const KNOWN: [Name; 32] = [
    (libc::SOL_SOCKET, SO_BINDTOIFINDEX),
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT),
    (libc::SOL_SOCKET, libc::SO_RCVBUF),
    (libc::SOL_SOCKET, libc::SO_SNDBUF),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE),
    (libc::SOL_SOCKET, libc::SO_PRIORITY),
    (libc::SOL_SOCKET, libc::SO_MARK),
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT),
    (libc::SOL_SOCKET, libc::SO_BUSY_POLL),
    (libc::SOL_SOCKET, libc::SO_PASSCRED),
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::IPPROTO_IP, libc::IP_TTL),
    (libc::IPPROTO_IP, libc::IP_FREEBIND),
    (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
    (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
    (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_MAXSEG),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_SYNCNT),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (libc::IPPROTO_TCP, libc::TCP_QUICKACK),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN),
    (libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT),
];

/// What is watched where a caller's socket cannot be had: what a server sets on a listener and hardly ever on a
/// connection, needs no privilege, and is an integer. The rest of [`KNOWN`] would cost a round trip for each connection.
pub(super) const WATCHED: [Name; 11] = [
    (libc::SOL_SOCKET, libc::SO_BINDTODEVICE),
    (libc::SOL_SOCKET, SO_BINDTOIFINDEX),
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT),
    (libc::SOL_SOCKET, libc::SO_RCVBUF),
    (libc::SOL_SOCKET, libc::SO_SNDBUF),
    (libc::IPPROTO_IP, libc::IP_FREEBIND),
    (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    (libc::IPPROTO_TCP, libc::TCP_MAXSEG),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (libc::IPPROTO_TCP, libc::TCP_FASTOPEN),
];

/// The number of the network interface that a socket is bound to (`socket(7)`, Linux 5.0); the same on all machines that
/// panzer is built for. `SO_BINDTODEVICE` says the same by name.
pub(super) const SO_BINDTOIFINDEX: c_int = 62;

/// SocketOptions with the values that they were set to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct SocketOptions(Vec<(Name, [u8; sys::SOCKET_OPTION_LENGTH])>);

impl SocketOptions {
    /// Those in which `socket` differs from `fresh`, a new one of its kind.
    pub(super) fn difference(socket: BorrowedFd<'_>, fresh: BorrowedFd<'_>) -> Self {
        let set = KNOWN.iter().filter_map(|(level, name)| {
            let value = sys::socket_option(socket, *level, *name)?;
            (Some(value) != sys::socket_option(fresh, *level, *name)).then_some(((*level, *name), value))
        });
        // The kernel doubles what a buffer's size is set to (socket(7)).
        Self(set.map(|(name, value)| (name, if is_buffer(name) { halved(value) } else { value })).collect())
    }

    /// What `name` of `level` was set to, if it was.
    pub(super) fn value(&self, level: c_int, name: c_int) -> Option<[u8; sys::SOCKET_OPTION_LENGTH]> {
        self.0.iter().find(|(known, _)| *known == (level, name)).map(|(_, value)| *value)
    }

    /// The network interface, 0 for none.
    pub(super) fn device(&self) -> Option<[u8; sys::SOCKET_OPTION_LENGTH]> {
        self.value(libc::SOL_SOCKET, SO_BINDTOIFINDEX).or(Some([0; sys::SOCKET_OPTION_LENGTH]))
    }

    /// Whether it was bound to a network interface, of which only the beginning of the name is known.
    pub(super) fn names_a_device(&self) -> bool {
        let names = [libc::SO_BINDTODEVICE, SO_BINDTOIFINDEX];
        names.iter().any(|name| self.value(libc::SOL_SOCKET, *name).is_some())
    }

    /// Remembers that `name` of `level` was set to `value`.
    pub(super) fn set(&mut self, level: c_int, name: c_int, value: [u8; sys::SOCKET_OPTION_LENGTH]) {
        self.0.retain(|(known, _)| *known != (level, name));
        self.0.push(((level, name), value));
    }

    /// Gives them to a socket that is bound already: what decides where it is bound stays.
    pub(super) fn apply_to_bound(&self, socket: BorrowedFd<'_>) {
        let fixed = [libc::SO_REUSEADDR, libc::SO_REUSEPORT].map(|name| (libc::SOL_SOCKET, name));
        let later = self.0.iter().filter(|(name, _)| !fixed.contains(name) && name.1 != libc::IPV6_V6ONLY);
        Self(later.copied().collect()).apply(socket);
    }

    /// Gives them to `socket`; what it does not take is left out, as it was with the server's own.
    pub(super) fn apply(&self, socket: BorrowedFd<'_>) {
        for ((level, name), value) in &self.0 {
            let _ = sys::set_socket_option(socket, *level, *name, value);
        }
    }
}

fn is_buffer(name: Name) -> bool {
    name == (libc::SOL_SOCKET, libc::SO_RCVBUF) || name == (libc::SOL_SOCKET, libc::SO_SNDBUF)
}

fn halved(value: [u8; sys::SOCKET_OPTION_LENGTH]) -> [u8; sys::SOCKET_OPTION_LENGTH] {
    (c_int::from_ne_bytes(value) / 2).to_ne_bytes()
}
