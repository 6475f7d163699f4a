//! Who makes a call, and what the call is about: read once from `/proc` and the caller's memory.
//!
//! Must never go by a value and read it again: the caller's other threads can change it in between.

use std::ffi::{OsStr, OsString};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::identity::{Identity, With};
use crate::linux::files;
use crate::linux::sys::Pid;

/// The longest address that the kernel takes (`struct sockaddr_storage`).
const LONGEST_ADDRESS: usize = 128;

/// The longest path that the kernel takes, with its end (`PATH_MAX`).
const LONGEST_PATH: usize = 4096;

/// Where a sockaddr has its parts, the family first (`ip(7)`, `ipv6(7)`, `unix(7)`).
const PATH_AT: usize = 2;
const PATH_SPACE: usize = 108;

/// An address that can be shared, as the caller wrote it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    /// A fixed port.
    Internet(SocketAddr),
    /// A path, perhaps relative.
    Path(PathBuf),
}

/// The protocols whose listeners can be shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Protocol {
    /// TCP, over IPv4 or IPv6.
    Tcp,
    /// Multipath TCP, which Go uses for its listeners.
    Mptcp,
    /// UNIX streams.
    UnixStream,
}

/// A thread that has made a call and waits.
#[derive(Debug)]
pub(super) struct Caller {
    thread: Pid,
    /// Who it is.
    pub(super) identity: Identity,
    /// panzer can look into it only as its user.
    only_as_its_user: bool,
}

/// A caller's memory.
pub(super) struct Memory(OwnedFd);

impl Memory {
    /// That of `thread`, where panzer may read it just as it is.
    pub(super) fn open(thread: Pid) -> Result<Self, Errno> {
        files::open(Path::new(&format!("/proc/{}/mem", thread.number())), OFlags::RDONLY).map(Self)
    }

    /// `length` bytes.
    pub(super) fn bytes(&self, at: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; length];
        // What it asks for is at most an address, which memory either holds or ends before.
        let read = self.read(&mut bytes, at)?;
        if read == length { Ok(bytes) } else { Err(Errno::FAULT) }
    }

    /// The address that the caller has written; `None` where it is none that can be shared.
    pub(super) fn address(&self, at: u64, length: usize) -> Result<Option<Wanted>, Errno> {
        if !(PATH_AT..=LONGEST_ADDRESS).contains(&length) {
            return Ok(None);
        }
        self.bytes(at, length).map(|bytes| parse(&bytes))
    }

    /// The path that the caller has written, which ends in a NUL.
    pub(super) fn path(&self, at: u64) -> Result<PathBuf, Errno> {
        let mut bytes = vec![0; LONGEST_PATH];
        // What comes after the path may not be there at all: then the kernel reads less.
        let length = self.read(&mut bytes, at)?;
        let end = bytes.iter().take(length).position(|byte| *byte == 0).ok_or(Errno::FAULT)?;
        bytes.truncate(end);
        Ok(PathBuf::from(OsString::from_vec(bytes)))
    }

    fn read(&self, bytes: &mut [u8], at: u64) -> Result<usize, Errno> {
        rustix::io::retry_on_intr(|| rustix::io::pread(&self.0, &mut *bytes, at))
    }
}

/// That an epoll set of the caller's has a socket in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Registration {
    /// The set's descriptor in the caller.
    pub(super) epoll: RawFd,
    /// What it is to tell of.
    pub(super) events: u32,
    /// What it tells.
    pub(super) data: u64,
}

/// A socket of the caller's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct CallersSocket {
    /// Tells it from all others.
    pub(super) inode: u64,
    /// The protocol, where it can be shared.
    pub(super) protocol: Option<Protocol>,
    /// It is for IPv6 addresses.
    pub(super) is_ipv6: bool,
    /// It is closed when the caller executes something else.
    pub(super) close_on_exec: bool,
    /// O_NONBLOCK is set.
    pub(super) nonblock: bool,
}

impl CallersSocket {
    /// Whether it can be bound to `wanted`: the kernel has its own words for what cannot.
    pub(super) fn takes(&self, wanted: &Wanted) -> bool {
        match (self.protocol, wanted) {
            (Some(Protocol::Tcp | Protocol::Mptcp), Wanted::Internet(address)) => address.is_ipv6() == self.is_ipv6,
            (Some(Protocol::UnixStream), Wanted::Path(_)) => true,
            _ => false,
        }
    }
}

impl Caller {
    /// The caller `thread`.
    ///
    /// # Errors
    /// It is gone, or panzer may not look into it.
    pub(super) fn new(thread: Pid) -> Result<Self, Errno> {
        let identity = Identity::of(thread).ok_or(Errno::NOENT)?;
        let mut caller = Self { thread, identity, only_as_its_user: false };
        let namespaces = match caller.same_namespace("user") {
            Err(Errno::ACCESS | Errno::PERM) => {
                caller.only_as_its_user = true;
                caller.same_namespace("user")
            }
            known => known,
        };
        if !namespaces? {
            caller.identity.forget_capabilities();
        }
        Ok(caller)
    }

    fn path(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.thread.number())
    }

    /// Does something as the caller: the kernel judges it as it would judge the caller.
    ///
    /// # Errors
    /// panzer may not become the caller, and nothing was done.
    pub(super) fn act<T>(&self, action: impl FnMut() -> T) -> Result<T, Errno> {
        self.identity.act(With::ItsOwn, action)
    }

    /// Looks into the caller.
    fn look<T>(&self, mut look: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
        if self.only_as_its_user { self.identity.act(With::Panzers, look)? } else { look() }
    }

    /// Whether the caller is in panzer's own namespace of this kind.
    fn same_namespace(&self, kind: &str) -> Result<bool, Errno> {
        self.same_file(&format!("ns/{kind}"), &format!("/proc/self/ns/{kind}"))
    }

    fn same_file(&self, name: &str, own: &str) -> Result<bool, Errno> {
        let path = self.path(name);
        let (theirs, own) = self.look(|| Ok((files::stat(Path::new(&path))?, files::stat(Path::new(own))?)))?;
        Ok((theirs.st_dev, theirs.st_ino) == (own.st_dev, own.st_ino))
    }

    /// Whether an address means the same to the caller as to panzer.
    pub(super) fn shares_namespaces(&self, wanted: &Wanted) -> bool {
        let same = |kind| self.same_namespace(kind) == Ok(true);
        match wanted {
            Wanted::Internet(_) => same("net"),
            Wanted::Path(_) => same("mnt") && self.same_file("root", "/") == Ok(true),
        }
    }

    /// A path as panzer sees it: from the root, with no link in its directory. A relative one starts at the caller's
    /// descriptor `start`, or in its directory (`AT_FDCWD`).
    pub(super) fn resolve(&self, start: RawFd, path: &Path) -> Result<PathBuf, Errno> {
        let name = path.file_name().ok_or(Errno::NOENT)?;
        let start = if start == libc::AT_FDCWD { "cwd".to_owned() } else { format!("fd/{start}") };
        // An absolute path takes the place of what it is joined to.
        let directory = if path.is_absolute() {
            PathBuf::from("/")
        } else {
            self.look(|| files::read_link(Path::new(&self.path(&start))))?
        };
        let full = directory.join(path);
        let directory = self.act(|| files::open(full.parent().unwrap_or(Path::new("/")), OFlags::PATH))??;
        Ok(files::path_of(&directory)?.join(name))
    }

    /// The caller's directory.
    pub(super) fn directory(&self) -> Result<OwnedFd, Errno> {
        let path = self.path("cwd");
        self.look(|| files::open_directory(Path::new(&path)))
    }

    /// The caller's memory.
    pub(super) fn memory(&self) -> Result<Memory, Errno> {
        self.look(|| Memory::open(self.thread))
    }

    /// What the caller's descriptor `number` is; `None`: no socket.
    pub(super) fn socket(&self, number: RawFd) -> Result<Option<CallersSocket>, Errno> {
        let (link, info) = (self.path(&format!("fd/{number}")), self.path(&format!("fdinfo/{number}")));
        self.look(|| {
            let Some(inode) = socket_inode(Path::new(&link))? else { return Ok(None) };
            let mut name = [0_u8; 16];
            let length =
                rustix::fs::getxattr(&*files::c_string(Path::new(&link))?, c"system.sockprotoname", &mut name)?;
            let name = name.get(..length).unwrap_or_default();
            let (protocol, is_ipv6) = (protocol(name), name.starts_with(b"TCPv6") || name.starts_with(b"MPTCPv6"));
            let flags = files::read_text(Path::new(&info)).and_then(|info| flags(&info)).unwrap_or(OFlags::empty());
            let (close_on_exec, nonblock) = (flags.contains(OFlags::CLOEXEC), flags.contains(OFlags::NONBLOCK));
            Ok(Some(CallersSocket { inode, protocol, is_ipv6, close_on_exec, nonblock }))
        })
    }

    /// Whether the caller's process has one of these sockets open.
    pub(super) fn has_any_open(&self, inodes: &[u64]) -> bool {
        let path = format!("/proc/{}/fd", self.identity.process.number());
        let path = Path::new(&path);
        let found = self.look(|| {
            let mut found = false;
            let is_one = |inode: Option<u64>| inode.is_some_and(|inode| inodes.contains(&inode));
            files::for_each_name(path, &mut |name| {
                found = socket_inode(&path.join(name)).is_ok_and(is_one);
                !found
            })?;
            Ok(found)
        });
        found == Ok(true)
    }

    /// The epoll sets that have the caller's descriptor `number` in them (`proc_pid_fdinfo(5)`).
    pub(super) fn epoll_registrations(&self, number: RawFd) -> Vec<Registration> {
        let process = self.identity.process.number();
        let found = self.look(|| {
            let mut found = Vec::new();
            let path = format!("/proc/{process}/fd");
            let path = Path::new(&path);
            files::for_each_name(path, &mut |name| {
                let target = files::read_link(&path.join(name)).unwrap_or_default();
                if target.as_os_str() == "anon_inode:[eventpoll]" {
                    found.extend(epoll_registration(process, name, number));
                }
                true
            })?;
            Ok(found)
        });
        found.unwrap_or_default()
    }

    /// A descriptor for the caller's own socket (`pidfd_getfd(2)`, Linux 5.6), which many containers forbid.
    pub(super) fn take(&self, number: RawFd) -> Result<OwnedFd, Errno> {
        let process = rustix::process::Pid::from_raw(self.identity.process.number()).ok_or(Errno::SRCH)?;
        let pidfd = pidfd_open(process, PidfdFlags::empty())?;
        pidfd_getfd(pidfd, number, PidfdGetfdFlags::empty())
    }
}

/// Whether sockets of workers can be taken: allowed at all (panzer tries it on itself), and also where a worker is
/// another user.
pub(in crate::linux) fn can_take_sockets() -> bool {
    let own = rustix::process::getpid();
    let allowed = pidfd_open(own, PidfdFlags::empty())
        .and_then(|pidfd| pidfd_getfd(&pidfd, std::os::fd::AsRawFd::as_raw_fd(&pidfd), PidfdGetfdFlags::empty()))
        .is_ok();
    let may_trace = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_PTRACE));
    allowed && (may_trace || !rustix::process::geteuid().is_root())
}

/// What is registered for descriptor `number` of a process in its epoll set of this name.
fn epoll_registration(process: i32, set: &OsStr, number: RawFd) -> Option<Registration> {
    let epoll = set.to_str()?.parse().ok()?;
    let info = files::read_text(Path::new(&format!("/proc/{process}/fdinfo/{epoll}")))?;
    let (events, data) = info.lines().find_map(|line| registration(line, number))?;
    Some(Registration { epoll, events, data })
}

/// The inode of the socket that a link of `/proc/PID/fd` is; `None`: something else.
fn socket_inode(link: &Path) -> Result<Option<u64>, Errno> {
    let target = files::read_link(link)?;
    let Some(text) = target.to_str() else { return Ok(None) };
    Ok(text.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')).and_then(|inode| inode.parse().ok()))
}

/// The name ends in a NUL. Before Linux 5.15 UNIX streams were called as UNIX datagrams are, and are left alone.
fn protocol(name: &[u8]) -> Option<Protocol> {
    match name.strip_suffix(b"\0").unwrap_or(name) {
        b"TCP" | b"TCPv6" => Some(Protocol::Tcp),
        b"MPTCP" | b"MPTCPv6" => Some(Protocol::Mptcp),
        b"UNIX-STREAM" => Some(Protocol::UnixStream),
        _ => None,
    }
}

/// The flags of a descriptor, O_CLOEXEC among them (`proc_pid_fdinfo(5)`).
fn flags(info: &str) -> Option<OFlags> {
    let octal = info.lines().find_map(|line| line.strip_prefix("flags:"))?.trim_ascii();
    Some(OFlags::from_bits_retain(u32::from_str_radix(octal, 8).ok()?))
}

/// `tfd:        5 events:       19 data:                5  pos:0 ino:9a sdev:8`: events and data of descriptor `number`.
fn registration(line: &str, number: RawFd) -> Option<(u32, u64)> {
    let mut words = line.split([' ', ':']).filter(|word| !word.is_empty());
    let mut value = |name: &str| if words.next()? == name { words.next() } else { None };
    let found = value("tfd")?.parse::<RawFd>().ok()?;
    let events = u32::from_str_radix(value("events")?, 16).ok()?;
    let data = u64::from_str_radix(value("data")?, 16).ok()?;
    (found == number).then_some((events, data))
}

/// Reads a sockaddr as the kernel does.
fn parse(bytes: &[u8]) -> Option<Wanted> {
    let part = |at: usize, length: usize| bytes.get(at..at + length);
    let family = u16::from_ne_bytes(part(0, 2)?.try_into().ok()?);
    let port = || part(2, 2)?.try_into().ok().map(u16::from_be_bytes).filter(|port| *port > 0);
    match libc::c_int::from(family) {
        family @ (libc::AF_INET | libc::AF_UNSPEC) => {
            let octets: [u8; 4] = part(4, 4)?.try_into().ok()?;
            part(8, 8)?;
            // No family at all means IPv4 to the kernel where it is for all addresses.
            if family == libc::AF_UNSPEC && octets != [0; 4] {
                return None;
            }
            Some(Wanted::Internet(SocketAddrV4::new(Ipv4Addr::from(octets), port()?).into()))
        }
        libc::AF_INET6 => {
            let octets: [u8; 16] = part(8, 16)?.try_into().ok()?;
            // The flow label means nothing to bind(2); the scope may be missing.
            let scope = part(24, 4).and_then(|scope| scope.try_into().ok()).map_or(0, u32::from_ne_bytes);
            Some(Wanted::Internet(SocketAddrV6::new(Ipv6Addr::from(octets), port()?, 0, scope).into()))
        }
        libc::AF_UNIX => {
            let path = bytes.get(PATH_AT..bytes.len().min(PATH_AT + PATH_SPACE))?;
            let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len());
            // No path: the kernel chooses an abstract name, or the caller has given one.
            let path = path.get(..end).filter(|path| !path.is_empty())?;
            Some(Wanted::Path(PathBuf::from(OsString::from_vec(path.to_vec()))))
        }
        _ => None,
    }
}

/// The number that tells a socket from all others.
pub(super) fn inode(socket: &OwnedFd) -> Option<u64> {
    Some(rustix::fs::fstat(socket).ok()?.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn internet(text: &str) -> Option<Wanted> {
        Some(Wanted::Internet(text.parse().unwrap()))
    }

    #[test]
    fn addresses_read_as_the_kernel_reads_them() {
        let v4 = |port: u16| [&2_u16.to_ne_bytes()[..], &port.to_be_bytes(), &[127, 0, 0, 1], &[0; 8]].concat();
        assert_eq!(parse(&v4(8080)), internet("127.0.0.1:8080"));
        assert_eq!(parse(&v4(0)), None);
        assert_eq!(parse(&v4(8080)[..15]), None, "the kernel says EINVAL");
        let v6 = |scope: &[u8]| {
            [&10_u16.to_ne_bytes()[..], &8080_u16.to_be_bytes(), &[1, 2, 3, 4], &[0; 15], &[1], scope].concat()
        };
        assert_eq!(parse(&v6(&[0; 4])), internet("[::1]:8080"));
        assert_eq!(parse(&v6(&[])), internet("[::1]:8080"), "24 bytes are enough (SIN6_LEN_RFC2133)");
        assert_eq!(parse(&v6(&[3, 0, 0, 0])), internet("[::1%3]:8080"));
        let unix = |path: &[u8]| [&1_u16.to_ne_bytes()[..], path].concat();
        assert_eq!(parse(&unix(b"/run/a.sock\0rest")), Some(Wanted::Path("/run/a.sock".into())));
        assert_eq!(parse(&unix(b"a")), Some(Wanted::Path("a".into())));
        for other in [&unix(b"")[..], &unix(b"\0name"), &16_u16.to_ne_bytes(), &[1], &[]] {
            assert_eq!(parse(other), None);
        }
    }

    #[test]
    fn only_streams_are_shared() {
        assert_eq!(protocol(b"TCP\0"), Some(Protocol::Tcp));
        assert_eq!(protocol(b"MPTCPv6\0"), Some(Protocol::Mptcp));
        for other in [&b"UDP\0"[..], b"UNIX\0", b"NETLINK\0", b"TCPX\0", b""] {
            assert_eq!(protocol(other), None);
        }
    }

    #[test]
    fn registrations_are_hexadecimal() {
        let line = "tfd:        7 events: 80002019 data:        500000007  pos:0 ino:51e1 sdev:8";
        assert_eq!(registration(line, 7), Some((0x8000_2019, 0x5_0000_0007)));
        assert_eq!(registration(line, 8), None);
        assert_eq!(registration("pos:\t0", 0), None);
    }

    #[test]
    fn flags_are_octal() {
        assert_eq!(flags("pos:\t0\nflags:\t02004002\n"), Some(OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::RDWR));
        assert_eq!(flags("pos:\t0\n"), None);
    }
}
