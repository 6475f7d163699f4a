//! What a worker can tell panzer by while it runs: `NOTIFY_SOCKET` (`sd_notify(3)`), `PANZER_READY_FD`,
//! `PANZER_HEARTBEAT_FD`.
//!
//! Each life has its own, so that whoever writes there speaks for that worker and for no other, however it was forked.
//! Must never wait for a worker, nor trust what it says beyond what it may say of itself.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};
use rustix::pipe::{PipeFlags, pipe_with};

use super::processes;
use super::sys::{self, Pid};
use crate::supervisor::notice::{self, Notice};

/// The longest message that is read, as with systemd: longer ones are passed over.
const LONGEST_MESSAGE: usize = 4096;

/// How many messages of one worker are read before panzer looks at anything else.
const MESSAGES_AT_ONCE: usize = 16;

/// What workers are given.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Asked {
    /// `NOTIFY_SOCKET`
    pub(super) notify: bool,
    /// `PANZER_READY_FD`
    pub(super) ready: bool,
    /// `PANZER_HEARTBEAT_FD`
    pub(super) heartbeat: bool,
}

/// panzer's side.
#[derive(Debug, Default)]
pub(super) struct Feedback {
    notify: Option<OwnedFd>,
    ready: Option<OwnedFd>,
    heartbeat: Option<OwnedFd>,
}

/// The worker's side.
#[derive(Debug, Default)]
pub(super) struct WorkersSide {
    /// What `NOTIFY_SOCKET` says: `@` and the abstract name, which needs no file system.
    pub(super) notify: Option<Vec<u8>>,
    /// The pipes in the order of their numbers.
    pub(super) pipes: Vec<OwnedFd>,
}

/// Makes both sides. What the worker is handed has a number of at least `lowest`.
///
/// # Errors
/// The kernel has too few descriptors.
pub(super) fn open(asked: Asked, lowest: RawFd) -> Result<(Feedback, WorkersSide), Errno> {
    let (mut feedback, mut side) = (Feedback::default(), WorkersSide::default());
    let mut pipe = |wanted: bool| -> Result<Option<OwnedFd>, Errno> {
        if !wanted {
            return Ok(None);
        }
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&reader, true)?;
        side.pipes.push(rustix::io::fcntl_dupfd_cloexec(writer, lowest)?);
        Ok(Some(reader))
    };
    feedback.ready = pipe(asked.ready)?;
    feedback.heartbeat = pipe(asked.heartbeat)?;
    if asked.notify {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        sockopt::set_socket_passcred(&socket, true)?;
        // With no name at all the kernel chooses an abstract one that is free (unix(7), "Autobind").
        bind(&socket, &SocketAddrUnix::new_unnamed())?;
        let address = SocketAddrUnix::try_from(getsockname(&socket)?)?;
        side.notify = address.abstract_name().map(|name| [b"@", name].concat());
        feedback.notify = Some(socket);
    }
    Ok((feedback, side))
}

impl Feedback {
    /// Whether the worker has no way to tell anything.
    pub(super) fn is_mute(&self) -> bool {
        self.descriptors().next().is_none()
    }

    /// What becomes readable when the worker tells something.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.notify, &self.ready, &self.heartbeat].into_iter().flatten().map(AsFd::as_fd)
    }

    /// What the worker has told. `close` is called with what will tell nothing more, before it is closed.
    pub(super) fn read(&mut self, speakers: &Speakers, close: &mut dyn FnMut(&OwnedFd)) -> Vec<Notice> {
        let mut notices = Vec::new();
        let mut bytes = [0; LONGEST_MESSAGE];
        for _ in 0..MESSAGES_AT_ONCE {
            let Some(socket) = &self.notify else { break };
            let Some(message) = sys::receive_with_sender(socket.as_fd(), &mut bytes) else { break };
            let text = bytes.get(..message.length).unwrap_or_default();
            if !message.is_cut && speakers.may_speak(message.pid, message.uid) {
                notices.extend(notice::parse(text));
            }
        }
        let mut read = |pipe: &mut Option<OwnedFd>| -> usize {
            let Some(open) = pipe else { return 0 };
            let length = match rustix::io::read(&*open, &mut bytes) {
                Err(Errno::AGAIN | Errno::INTR) => return 0,
                Ok(length) => length,
                Err(_) => 0,
            };
            // All who could write have closed it.
            if length == 0 {
                close(open);
                *pipe = None;
            }
            length
        };
        if read(&mut self.heartbeat) > 0 {
            notices.push(Notice::Beat);
        }
        let length = read(&mut self.ready);
        if bytes.iter().take(length).any(|byte| *byte == b'\n') {
            notices.push(Notice::Ready);
            if let Some(pipe) = self.ready.take() {
                close(&pipe);
            }
        }
        notices
    }
}

/// Who may speak for a worker.
pub(super) struct Speakers {
    /// Its process.
    pub(super) process: Pid,
    /// Its slot.
    pub(super) slot: u32,
    /// The user whom it was started as.
    pub(super) uid: u32,
    /// Processes that are others': of other workers, and the guard.
    pub(super) others: Vec<Pid>,
}

impl Speakers {
    /// Abstract names are for everyone to see, so it matters who writes: a process that this PID namespace does not show
    /// (0) is another container's. Whoever is of another user must belong to the worker.
    fn may_speak(&self, pid: i32, uid: u32) -> bool {
        let Some(pid) = Pid::from_number(pid) else { return false };
        uid == 0 || uid == self.uid || uid == rustix::process::geteuid().as_raw() || self.may_name(pid)
    }

    /// Whether a process belongs to the worker: it descends from it, or was left to panzer by whoever did.
    pub(super) fn may_name(&self, pid: Pid) -> bool {
        let Some(branch) = processes::branch_of(pid) else { return false };
        let is_of_slot = || processes::has_variable(branch, &format!("PANZER_WORKER_ID={}", self.slot));
        branch == self.process || (!self.others.contains(&branch) && is_of_slot())
    }
}
