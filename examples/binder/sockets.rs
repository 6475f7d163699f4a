//! What `binder` makes, sets and asks: sockets, addresses, options, and the system calls that have no safe wrapper.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, RawFd};

use rustix::net::{AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType};

use super::{errno_name, number, unknown};

/// How the value of an option is written.
#[derive(Clone, Copy)]
enum Kind {
    Int,
    Linger,
    Time,
    Text,
}

/// The options that are reported, and that can be set.
const OPTIONS: &[(&str, i32, i32, Kind)] = &[
    ("type", libc::SOL_SOCKET, libc::SO_TYPE, Kind::Int),
    ("domain", libc::SOL_SOCKET, libc::SO_DOMAIN, Kind::Int),
    ("protocol", libc::SOL_SOCKET, libc::SO_PROTOCOL, Kind::Int),
    ("acceptconn", libc::SOL_SOCKET, libc::SO_ACCEPTCONN, Kind::Int),
    ("reuseaddr", libc::SOL_SOCKET, libc::SO_REUSEADDR, Kind::Int),
    ("reuseport", libc::SOL_SOCKET, libc::SO_REUSEPORT, Kind::Int),
    ("keepalive", libc::SOL_SOCKET, libc::SO_KEEPALIVE, Kind::Int),
    ("broadcast", libc::SOL_SOCKET, libc::SO_BROADCAST, Kind::Int),
    ("dontroute", libc::SOL_SOCKET, libc::SO_DONTROUTE, Kind::Int),
    ("oobinline", libc::SOL_SOCKET, libc::SO_OOBINLINE, Kind::Int),
    ("linger", libc::SOL_SOCKET, libc::SO_LINGER, Kind::Linger),
    ("sndbuf", libc::SOL_SOCKET, libc::SO_SNDBUF, Kind::Int),
    ("rcvbuf", libc::SOL_SOCKET, libc::SO_RCVBUF, Kind::Int),
    ("rcvlowat", libc::SOL_SOCKET, libc::SO_RCVLOWAT, Kind::Int),
    ("rcvtimeo", libc::SOL_SOCKET, libc::SO_RCVTIMEO, Kind::Time),
    ("sndtimeo", libc::SOL_SOCKET, libc::SO_SNDTIMEO, Kind::Time),
    ("priority", libc::SOL_SOCKET, libc::SO_PRIORITY, Kind::Int),
    ("mark", libc::SOL_SOCKET, libc::SO_MARK, Kind::Int),
    ("passcred", libc::SOL_SOCKET, libc::SO_PASSCRED, Kind::Int),
    ("timestamp", libc::SOL_SOCKET, libc::SO_TIMESTAMP, Kind::Int),
    ("busypoll", libc::SOL_SOCKET, libc::SO_BUSY_POLL, Kind::Int),
    ("zerocopy", libc::SOL_SOCKET, libc::SO_ZEROCOPY, Kind::Int),
    ("bindtodevice", libc::SOL_SOCKET, libc::SO_BINDTODEVICE, Kind::Text),
    ("nodelay", libc::IPPROTO_TCP, libc::TCP_NODELAY, Kind::Int),
    ("cork", libc::IPPROTO_TCP, libc::TCP_CORK, Kind::Int),
    ("maxseg", libc::IPPROTO_TCP, libc::TCP_MAXSEG, Kind::Int),
    ("keepidle", libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, Kind::Int),
    ("keepintvl", libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, Kind::Int),
    ("keepcnt", libc::IPPROTO_TCP, libc::TCP_KEEPCNT, Kind::Int),
    ("syncnt", libc::IPPROTO_TCP, libc::TCP_SYNCNT, Kind::Int),
    ("linger2", libc::IPPROTO_TCP, libc::TCP_LINGER2, Kind::Int),
    ("deferaccept", libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, Kind::Int),
    ("windowclamp", libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, Kind::Int),
    ("quickack", libc::IPPROTO_TCP, libc::TCP_QUICKACK, Kind::Int),
    ("congestion", libc::IPPROTO_TCP, libc::TCP_CONGESTION, Kind::Text),
    ("usertimeout", libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, Kind::Int),
    ("fastopen", libc::IPPROTO_TCP, libc::TCP_FASTOPEN, Kind::Int),
    ("notsentlowat", libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, Kind::Int),
    ("savesyn", libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, Kind::Int),
    ("tos", libc::IPPROTO_IP, libc::IP_TOS, Kind::Int),
    ("ttl", libc::IPPROTO_IP, libc::IP_TTL, Kind::Int),
    ("freebind", libc::IPPROTO_IP, libc::IP_FREEBIND, Kind::Int),
    ("transparent", libc::IPPROTO_IP, libc::IP_TRANSPARENT, Kind::Int),
    ("bindnoport", libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, Kind::Int),
    ("mtudiscover", libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, Kind::Int),
    ("recverr", libc::IPPROTO_IP, libc::IP_RECVERR, Kind::Int),
    ("v6only", libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, Kind::Int),
    ("tclass", libc::IPPROTO_IPV6, libc::IPV6_TCLASS, Kind::Int),
    ("hops", libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, Kind::Int),
];

pub(crate) fn new_socket(text: &str) -> io::Result<RawFd> {
    let mut words = text.split('+');
    let name = words.next().unwrap_or("");
    let (family, kind) = match name {
        "tcp4" | "mptcp" => (AddressFamily::INET, SocketType::STREAM),
        "tcp6" => (AddressFamily::INET6, SocketType::STREAM),
        "udp4" => (AddressFamily::INET, SocketType::DGRAM),
        "udp6" => (AddressFamily::INET6, SocketType::DGRAM),
        "unix" => (AddressFamily::UNIX, SocketType::STREAM),
        "unixdgram" => (AddressFamily::UNIX, SocketType::DGRAM),
        "unixseq" => (AddressFamily::UNIX, SocketType::SEQPACKET),
        _ => return Err(unknown(text)),
    };
    let mut flags = SocketFlags::empty();
    for word in words {
        flags |= match word {
            "nonblock" => SocketFlags::NONBLOCK,
            "cloexec" => SocketFlags::CLOEXEC,
            _ => return Err(unknown(text)),
        };
    }
    let protocol = if name == "mptcp" { Some(rustix::net::ipproto::MPTCP) } else { None };
    Ok(rustix::net::socket_with(family, kind, flags, protocol)?.into_raw_fd())
}

/// An address as the kernel takes it; a path without a NUL where only that fits.
pub(crate) fn encode(text: &str) -> io::Result<Vec<u8>> {
    let family = |family: i32| u16::try_from(family).unwrap_or(0).to_ne_bytes();
    let mut bytes = Vec::new();
    if let Some(name) = text.strip_prefix('@') {
        bytes.extend(family(libc::AF_UNIX));
        bytes.extend([0].iter().chain(name.as_bytes()));
    } else if text.starts_with('/') || text.starts_with("unix:") {
        bytes.extend(family(libc::AF_UNIX));
        bytes.extend(text.strip_prefix("unix:").unwrap_or(text).bytes().chain([0]));
        bytes.truncate(size_of::<libc::sockaddr_un>());
    } else {
        let address: SocketAddr = number(text)?;
        match address {
            SocketAddr::V4(four) => {
                bytes.extend(family(libc::AF_INET));
                bytes.extend(four.port().to_be_bytes());
                bytes.extend(four.ip().octets());
                bytes.extend([0; 8]);
            }
            SocketAddr::V6(six) => {
                bytes.extend(family(libc::AF_INET6));
                bytes.extend(six.port().to_be_bytes());
                bytes.extend(six.flowinfo().to_be_bytes());
                bytes.extend(six.ip().octets());
                bytes.extend(six.scope_id().to_ne_bytes());
            }
        }
    }
    Ok(bytes)
}

/// The address as who uses one structure for all families passes it.
pub(crate) fn padded(text: &str) -> io::Result<Vec<u8>> {
    let mut bytes = encode(text)?;
    let family = bytes.first().map(|family| i32::from(*family));
    let size = if family == Some(libc::AF_UNIX) { size_of::<libc::sockaddr_un>() } else { 128 };
    bytes.resize(size, 0);
    Ok(bytes)
}

pub(crate) fn address_text(address: &SocketAddrAny) -> String {
    if address.address_family() == AddressFamily::UNIX {
        let unix = SocketAddrUnix::try_from(address.clone()).ok();
        let name = unix.as_ref().and_then(|unix| unix.abstract_name());
        let path = unix.as_ref().and_then(|unix| unix.path_bytes());
        return match (path, name) {
            (Some(path), _) => String::from_utf8_lossy(path).into_owned(),
            (None, Some(name)) if !name.is_empty() => format!("@{}", String::from_utf8_lossy(name)),
            (None, _) => "unnamed".to_string(),
        };
    }
    SocketAddr::try_from(address.clone()).map_or_else(|error| error.to_string(), |address| address.to_string())
}

pub(crate) fn options(socket: BorrowedFd<'_>) -> io::Result<String> {
    let mut words = Vec::new();
    for (name, level, option, _) in OPTIONS {
        let value = match get_option(socket, *level, *option) {
            Ok(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
            Err(error) => errno_name(&error),
        };
        words.push(format!("{name}={value}"));
    }
    let status = rustix::fs::fcntl_getfl(socket)?;
    let flags = rustix::io::fcntl_getfd(socket)?;
    words.push(format!("status={:x}", status.bits()));
    words.push(format!("flags={:x}", flags.bits()));
    Ok(words.join(" "))
}

pub(crate) fn set_option(socket: BorrowedFd<'_>, text: &str) -> io::Result<()> {
    let (name, value) = text.split_once(':').ok_or_else(|| unknown(text))?;
    let (_, level, option, kind) = OPTIONS.iter().find(|(known, ..)| *known == name).ok_or_else(|| unknown(text))?;
    let bytes: Vec<u8> = match kind {
        Kind::Int => number::<i32>(value)?.to_ne_bytes().to_vec(),
        Kind::Linger => [1_i32.to_ne_bytes(), number::<i32>(value)?.to_ne_bytes()].concat(),
        Kind::Time => [number::<i64>(value)?.to_ne_bytes(), 0_i64.to_ne_bytes()].concat(),
        Kind::Text => value.as_bytes().to_vec(),
    };
    put_option(socket, *level, *option, &bytes)
}

pub(crate) fn unshare(names: &str) -> io::Result<()> {
    let mut flags = 0;
    for name in names.split(',') {
        flags |= match name {
            "user" => libc::CLONE_NEWUSER,
            "net" => libc::CLONE_NEWNET,
            "mount" => libc::CLONE_NEWNS,
            _ => return Err(unknown(name)),
        };
    }
    leave_namespaces(flags)
}

fn denied_number(name: &str) -> io::Result<u32> {
    let number = match name {
        "pidfd_getfd" => libc::SYS_pidfd_getfd,
        "process_vm_readv" => libc::SYS_process_vm_readv,
        "seccomp" => libc::SYS_seccomp,
        "inotify_init1" => libc::SYS_inotify_init1,
        _ => return Err(unknown(name)),
    };
    u32::try_from(number).map_err(|_| unknown(name))
}

/// Installs a filter as the profile of a container runtime is one.
pub(crate) fn deny(names: &str) -> io::Result<()> {
    let step =
        |code: u32, k: u32, skip: u8| libc::sock_filter { code: u16::try_from(code).unwrap_or(0), jt: 0, jf: skip, k };
    let mut program = vec![step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    for name in names.split(',') {
        program.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, denied_number(name)?, 1));
        let refusal = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).unwrap_or(0);
        program.push(step(libc::BPF_RET | libc::BPF_K, refusal, 0));
    }
    program.push(step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0));
    install(&mut program)
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn length(bytes: &[u8]) -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(bytes.len()).map_err(io::Error::other)
}

/// A descriptor that is known by its number; the steps of a test say when it is closed.
#[allow(unsafe_code, reason = "a descriptor known by its number alone has no safe constructor")]
pub(crate) fn borrow(socket: RawFd) -> BorrowedFd<'static> {
    // SAFETY: it is used for system calls only; one that is not open makes them fail.
    unsafe { BorrowedFd::borrow_raw(socket) }
}

#[allow(unsafe_code, reason = "a raw system call")]
pub(crate) fn close(socket: RawFd) {
    // SAFETY: the call takes a number; nobody here owns the descriptor but the list that it was taken from.
    unsafe { libc::close(socket) };
}

extern "C" fn do_nothing(_signal: libc::c_int) {}

/// Has another thread send a signal to this one all the time; calls are begun anew after it.
#[allow(unsafe_code, reason = "a handler, and a signal for one thread")]
pub(crate) fn storm() -> io::Result<()> {
    // SAFETY: all fields of this C structure may be zero: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = do_nothing as extern "C" fn(libc::c_int) as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the structure is initialised, and the handler does nothing.
    check(unsafe { libc::sigaction(libc::SIGURG, &action, std::ptr::null_mut()) })?;
    let thread = rustix::thread::gettid().as_raw_nonzero().get();
    let process = rustix::process::getpid().as_raw_nonzero().get();
    std::thread::spawn(move || {
        loop {
            // SAFETY: the call takes three numbers; a thread that is gone makes it fail.
            unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGURG) };
            std::thread::sleep(std::time::Duration::from_micros(20));
        }
    });
    Ok(())
}

#[allow(unsafe_code, reason = "a raw system call")]
pub(crate) fn dup2(socket: BorrowedFd<'_>, wanted: RawFd) -> io::Result<()> {
    // SAFETY: the call takes two numbers; a test names one that is free or its own.
    check(unsafe { libc::dup2(socket.as_raw_fd(), wanted) })
}

/// Binds to an address of whatever bytes, also to one that no safe call would take.
#[allow(unsafe_code, reason = "a raw system call")]
pub(crate) fn bind(socket: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    let length = length(address)?;
    // SAFETY: the kernel reads so many bytes, and they are there.
    check(unsafe { libc::bind(socket.as_raw_fd(), address.as_ptr().cast(), length) })
}

/// Binds to an address that cannot be read.
#[allow(unsafe_code, reason = "a raw system call")]
pub(crate) fn bind_null(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the kernel finds out that there is nothing at this address.
    check(unsafe { libc::bind(socket.as_raw_fd(), std::ptr::null(), 16) })
}

#[allow(unsafe_code, reason = "a raw system call")]
pub(crate) fn connect(socket: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    let length = length(address)?;
    // SAFETY: the kernel reads so many bytes, and they are there.
    check(unsafe { libc::connect(socket.as_raw_fd(), address.as_ptr().cast(), length) })
}

#[allow(unsafe_code, reason = "a raw system call")]
fn get_option(socket: BorrowedFd<'_>, level: i32, option: i32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0_u8; 64];
    let mut size = length(&bytes)?;
    // SAFETY: the kernel writes at most `size` bytes, which are there, and then how many it wrote.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, bytes.as_mut_ptr().cast(), &raw mut size) })?;
    bytes.truncate(usize::try_from(size).map_err(io::Error::other)?);
    Ok(bytes)
}

#[allow(unsafe_code, reason = "a raw system call")]
fn put_option(socket: BorrowedFd<'_>, level: i32, option: i32, bytes: &[u8]) -> io::Result<()> {
    let size = length(bytes)?;
    // SAFETY: the kernel reads so many bytes, and they are there.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, bytes.as_ptr().cast(), size) })
}

#[allow(unsafe_code, reason = "a raw system call")]
fn leave_namespaces(flags: i32) -> io::Result<()> {
    // SAFETY: the call takes a number; descriptors and memory stay shared.
    check(unsafe { libc::unshare(flags) })
}

/// Installs the filter; who may not do so otherwise gives up new privileges first, as a container with Docker's
/// `no-new-privileges`.
#[allow(unsafe_code, reason = "raw system calls")]
fn install(program: &mut [libc::sock_filter]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    let filter: *const libc::sock_fprog = &raw const filter;
    // SAFETY: the program is valid for reading all through the call, which copies it.
    let install = || check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, filter) });
    install().or_else(|_| {
        rustix::thread::set_no_new_privs(true)?;
        install()
    })
}
