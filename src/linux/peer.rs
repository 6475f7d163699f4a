//! Who is at the other end of a UNIX socket, and how long to wait for it.
//!
//! Must never ask that end itself: the kernel knows.

use std::os::fd::BorrowedFd;
use std::path::Path;

use super::{files, sys};

/// The process at the other end, as it was when it connected, or when it began to listen (`SO_PEERCRED`, `unix(7)`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its pid; 0 where this PID namespace does not show it, which is why rustix, whose pids are never 0, is not used.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
}

/// Whether a peer is of the same user as this process.
///
/// In a user namespace the kernel shows whoever has no number there as 65534 (`overflowuid`, `user_namespaces(7)`): for who
/// is 65534 itself, that could be anybody.
#[must_use]
pub fn is_own_user(uid: u32) -> bool {
    const OVERFLOW: u32 = 65534;
    uid == rustix::process::geteuid().as_raw() && (uid != OVERFLOW || all_users_are_known())
}

/// Whether this user namespace has all users of the machine: its map is one line, from 0 to 0, and of all numbers.
fn all_users_are_known() -> bool {
    let map = files::read_text(Path::new("/proc/self/uid_map")).unwrap_or_default();
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// Who is at the other end of this UNIX socket; `None`: it has none.
#[must_use]
pub fn peer_of(socket: BorrowedFd<'_>) -> Option<Peer> {
    // struct ucred: pid, uid, gid.
    let mut bytes = [0; 12];
    if !sys::read_socket_option(socket, libc::SOL_SOCKET, libc::SO_PEERCRED, &mut bytes) {
        return None;
    }
    let [a, b, c, d, e, f, g, h, ..] = bytes;
    Some(Peer { pid: i32::from_ne_bytes([a, b, c, d]), uid: u32::from_ne_bytes([e, f, g, h]) })
}

/// Lets a connect, a read and a write wait for so many seconds at the most; 0: without limit (`SO_RCVTIMEO`, `socket(7)`).
pub fn limit_waiting(socket: BorrowedFd<'_>, seconds: u8) {
    // struct timeval: seconds, microseconds.
    let time = u128::from(seconds).to_le_bytes();
    for name in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        let _ = sys::set_socket_option(socket, libc::SOL_SOCKET, name, &time);
    }
}
