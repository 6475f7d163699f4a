//! Starts a worker: fork, what the child becomes, exec.
//!
//! Between fork and exec nothing is allocated and no lock is taken: all strings are made before, and the child makes
//! system calls only. What fails there comes back over a close-on-exec channel as (step, errno).

use std::ffi::{CStr, CString, OsStr, OsString};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{Access, Mode};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::environment::{self, EnvironmentSource, OfGeneration};
use super::feedback::{self, Feedback};
use super::listen::{FIRST_DESCRIPTOR, Listener};
use super::own_path::OwnPath;
use super::sys::{self, Fork, InitialSignals, Instruction, Pid, Pointers, StringList};
use super::terminal::Terminal;
use super::users::Credentials;
use super::{env_dir, ports};
use crate::error::{Error, Status};
use crate::linux::words;
use crate::signals::Signal;
use crate::supervisor::rotation::QueueState;
use crate::supervisor::{Generation, NotRun, WorkerId};

/// Where execvp(3) looks when there is no PATH.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What runs a script without `#!`, as with execvp(3).
const SHELL: &CStr = c"/bin/sh";

/// What the child was doing when it failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Step {
    /// Going to its directory.
    Directory = 1,
    /// Becoming its user, with that user's groups.
    User = 2,
    /// Asking for a signal at panzer's death.
    ParentDeath = 3,
    /// Finding that panzer has died already; nobody reads of it.
    NoParent = 4,
    /// Arranging its descriptors.
    Descriptors = 5,
    /// Executing the command.
    Execute = 6,
    /// Executing a command that is there, while what its first line names, or its dynamic loader, is not.
    Interpreter = 7,
    /// Having its calls of bind and listen sent to panzer. With errno 0 it has succeeded, and the filter comes along.
    SharePorts = 8,
}

impl Step {
    const ALL: [Self; 8] = [
        Self::Directory,
        Self::User,
        Self::ParentDeath,
        Self::NoParent,
        Self::Descriptors,
        Self::Execute,
        Self::Interpreter,
        Self::SharePorts,
    ];
}

/// Why a child did not get as far as its program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Failure {
    /// What it was.
    pub(super) why: NotRun,
    /// The system was short of something: worth trying again.
    pub(super) is_transient: bool,
}

/// A message on the channel: step and errno.
const MESSAGE_LENGTH: usize = 5;

/// Room for one descriptor beside a message.
const DESCRIPTOR_SPACE: usize = rustix::cmsg_space!(ScmRights(1));

/// What a child says of its start.
pub(super) enum News {
    /// Its calls come through this filter.
    Filter(OwnedFd),
    /// It could not be put under a filter and goes on without one; this is why.
    NoFilter(String),
    /// Its program was executed.
    Executed,
    /// It has given up.
    Failed(Failure),
}

/// What every worker is put under, so that its calls of bind and listen come to panzer.
pub(super) struct PortFilter {
    /// The filter's program.
    pub(super) program: Vec<Instruction>,
    /// The same for workers that start when a UNIX path is kept in place.
    pub(super) program_with_unlink: Vec<Instruction>,
    /// A worker that cannot be put under it is not to run.
    pub(super) required: bool,
}

/// A new process.
pub(super) struct Spawned {
    /// Its id, which is its process group's too.
    pub(super) pid: Pid,
    /// Holds messages about its start; ends when the program is executed.
    pub(super) channel: OwnedFd,
    /// What it tells later.
    pub(super) feedback: Feedback,
}

/// A life that is to begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Birth {
    /// Which one.
    pub(super) worker: WorkerId,
    /// What it is started from.
    pub(super) generation: Generation,
    /// How many workers there are.
    pub(super) workers: u32,
    /// A UNIX path is kept in place.
    pub(super) intercept_unlink: bool,
}

/// What the child is told.
struct Start<'a> {
    panzer: Pid,
    slot: u32,
    intercept_unlink: bool,
    pipes: &'a [OwnedFd],
}

/// What the workers of a generation are started from.
pub(super) struct Loaded {
    generation: Generation,
    /// Where the program may be, in order.
    candidates: Vec<CString>,
    /// Variables that all of them have.
    variables: StringList,
}

/// What exec takes, made before the fork.
struct Strings<'a> {
    arguments: Pointers<'a>,
    /// The same for the shell; the second one is put in by the child.
    shell: Pointers<'a>,
    /// The first one is put in by the child where `LISTEN_PID` is told.
    variables: Pointers<'a>,
    /// Where the program may be, in order.
    candidates: &'a [CString],
}

/// A pipe whose end of file means that panzer is gone.
pub(super) struct DeathPipe {
    reader: OwnedFd,
    /// Held open until then, by nobody else.
    _writer: OwnedFd,
}

impl DeathPipe {
    /// Makes one whose read end has a number of at least `lowest`.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub(super) fn new(lowest: RawFd) -> Result<Self, Errno> {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok(Self { reader: rustix::io::fcntl_dupfd_cloexec(reader, lowest)?, _writer: writer })
    }
}

/// Everything that is needed to start a worker, made once.
pub(super) struct Launcher {
    /// The command as typed.
    pub(super) command: OsString,
    /// Its arguments, itself first.
    pub(super) arguments: StringList,
    /// The same for the shell, which runs a script without `#!`; the second is the script's path.
    pub(super) shell_arguments: StringList,
    /// What their environment is made from.
    pub(super) environment: EnvironmentSource,
    /// Where some of it is read anew for each generation, and the same as typed.
    pub(super) env_dir: Option<(PathBuf, PathBuf)>,
    /// The generations that workers may be started from.
    pub(super) loaded: Vec<Loaded>,
    /// Where panzer was started; its own directory is `/`.
    pub(super) start_directory: Option<OwnedFd>,
    /// Where the command runs, seen from there.
    pub(super) directory: Option<CString>,
    /// `directory` as typed.
    pub(super) typed_directory: PathBuf,
    /// As whom it runs.
    pub(super) credentials: Option<Credentials>,
    /// As whom, as typed.
    pub(super) typed_user: String,
    /// Its file mode creation mask.
    pub(super) umask: Option<Mode>,
    /// What the command finds signals like.
    pub(super) signals: InitialSignals,
    /// What the worker gets when panzer dies.
    pub(super) parent_death: Signal,
    /// Standard input; `None`: panzer's own.
    pub(super) stdin: Option<OwnedFd>,
    /// The terminal, where there is one; init mode passes it on.
    pub(super) terminal: Option<Terminal>,
    /// Sockets to hand down.
    pub(super) listeners: Vec<Listener>,
    /// Tells workers of panzer's end.
    pub(super) death_pipe: Option<DeathPipe>,
    /// Sends what they bind to panzer.
    pub(super) filter: Option<PortFilter>,
    /// How many descriptors they may have, where panzer has changed that for itself.
    pub(super) descriptor_limit: Option<Rlimit>,
}

impl Launcher {
    /// Reads anew what a generation is started from, and forgets all others but those in use.
    ///
    /// # Errors
    /// `--env-dir` cannot be read.
    pub(super) fn load(&mut self, generation: Generation, in_use: &[Generation]) -> Result<(), Error> {
        let changes = match &self.env_dir {
            Some((path, typed)) => env_dir::read(path, typed)?,
            None => Vec::new(),
        };
        let path = changes.iter().find(|(name, _)| name == OsStr::new("PATH")).map(|(_, value)| value.clone());
        let candidates = candidates(&self.command, path.unwrap_or_else(|| sys::variable("PATH")).as_deref());
        let of = OfGeneration {
            generation,
            changes: &changes,
            listeners: &self.listeners,
            credentials: self.credentials.as_ref(),
        };
        let variables = environment::common(&self.environment, &of);
        self.loaded.retain(|loaded| in_use.contains(&loaded.generation));
        self.loaded.push(Loaded { generation, candidates, variables });
        Ok(())
    }

    /// The user whom workers run as.
    pub(super) fn uid(&self) -> u32 {
        self.credentials.as_ref().map_or_else(rustix::process::geteuid, |credentials| credentials.uid).as_raw()
    }

    /// Lets go of what the slots beyond `wanted` had, once their workers are gone.
    pub(super) fn let_go_of_slots(&mut self, wanted: u32, queues: &[QueueState]) {
        let used = queues.iter().rposition(|queue| *queue != QueueState::Abandoned).map_or(0, |last| last + 1);
        let kept = wanted.max(u32::try_from(used).unwrap_or(u32::MAX));
        for listener in &mut self.listeners {
            listener.shrink(kept);
        }
    }

    /// The lowest number that no handed-down descriptor takes.
    pub(super) fn above_handed_down(&self) -> RawFd {
        above_handed_down(self.listeners.len())
    }

    fn has_listen_pid(&self) -> bool {
        self.environment.listen_env.systemd && !self.listeners.is_empty()
    }

    /// Starts a worker.
    ///
    /// # Errors
    /// The kernel gives no channel or no process.
    pub(super) fn start(&self, birth: &Birth) -> Result<Spawned, Errno> {
        let Birth { worker, generation, workers, intercept_unlink } = *birth;
        // A pipe cannot carry a descriptor. Messages stay apart from each other.
        let flags = SocketFlags::CLOEXEC;
        let (reader, writer) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // Above the numbers that the child gives out, so that it can still tell of a failure.
        let writer = rustix::io::fcntl_dupfd_cloexec(writer, self.above_handed_down())?;
        let (feedback, side) = feedback::open(self.environment.asked, self.above_handed_down())?;
        let own = if self.environment.supervised {
            environment::of_worker(worker.slot, workers, side.notify.as_deref(), self.has_listen_pid())
        } else {
            environment::of_child(self.has_listen_pid())
        };
        let loaded = self.loaded.iter().find(|loaded| loaded.generation == generation);
        let loaded = loaded.ok_or(Errno::INVAL)?;
        let strings = Strings {
            arguments: Pointers::to(&[&self.arguments]),
            shell: Pointers::to(&[&self.shell_arguments]),
            variables: Pointers::to(&[&own, &loaded.variables]),
            candidates: &loaded.candidates,
        };
        let panzer = Pid::own();
        match sys::fork(Some(Signal::CHLD))? {
            Fork::Child => {
                let start = Start { panzer, slot: worker.slot, intercept_unlink, pipes: &side.pipes };
                self.become_worker(&start, strings, writer.as_fd())
            }
            Fork::Parent(pid) => {
                // In the child too: whoever is first, a signal to the group from here on finds it.
                sys::lead_group(pid);
                Ok(Spawned { pid, channel: reader, feedback })
            }
        }
    }

    /// In the child.
    fn become_worker(&self, start: &Start<'_>, strings: Strings<'_>, channel: BorrowedFd<'_>) -> ! {
        let (step, errno) = match self.prepare_child(start, channel) {
            Err(failure) => failure,
            Ok(()) => self.execute(strings),
        };
        let _ = send(channel, step, errno, None);
        // The message counts; nobody looks at this status.
        sys::exit_now(Status::NOT_FOUND.0)
    }

    /// The order matters and is that of docs/DESIGN.md, "A worker's start".
    fn prepare_child(&self, start: &Start<'_>, channel: BorrowedFd<'_>) -> Result<(), (Step, i32)> {
        let at = |step: Step| move |error: Errno| (step, error.raw_os_error());
        sys::lead_group(Pid::own());
        if let Some(start) = &self.start_directory {
            rustix::process::fchdir(start).map_err(at(Step::Directory))?;
        }
        if let Some(directory) = &self.directory {
            rustix::process::chdir(directory.as_c_str()).map_err(at(Step::Directory))?;
        }
        if let Some(umask) = self.umask {
            rustix::process::umask(umask);
        }
        // Before the credentials: whoever has CAP_SYS_ADMIN does not have to give up new privileges for it.
        if let Some(filter) = &self.filter {
            filter.install(start.intercept_unlink, channel)?;
        }
        if let Some(credentials) = self.credentials.as_ref().filter(|credentials| credentials.change) {
            rustix::thread::set_thread_groups(&credentials.groups).map_err(at(Step::User))?;
            rustix::thread::set_thread_gid(credentials.gid).map_err(at(Step::User))?;
            rustix::thread::set_thread_uid(credentials.uid).map_err(at(Step::User))?;
        }
        // After the credentials: the kernel forgets it when they change.
        sys::set_parent_death_signal(self.parent_death).map_err(at(Step::ParentDeath))?;
        // panzer may have died before that. No parent at all means that it is outside of this PID namespace.
        if rustix::process::getppid().is_some_and(|parent| Pid::from(parent) != start.panzer) {
            return Err((Step::NoParent, 0));
        }
        if let Some(stdin) = &self.stdin {
            rustix::stdio::dup2_stdin(stdin).map_err(at(Step::Descriptors))?;
        }
        if let Some(terminal) = self.terminal.filter(|_| !self.environment.supervised) {
            terminal.pass_to(Pid::own());
        }
        let sockets = self.listeners.iter().filter_map(|listener| Some(listener.socket_of(start.slot)?.as_fd()));
        let death_pipe = self.death_pipe.as_ref().map(|pipe| pipe.reader.as_fd());
        let handed_down = sockets.chain(death_pipe).chain(start.pipes.iter().map(AsFd::as_fd));
        for (from, to) in handed_down.zip(FIRST_DESCRIPTOR..) {
            sys::duplicate_to(from, to).map_err(at(Step::Descriptors))?;
        }
        if let Some(limit) = self.descriptor_limit {
            setrlimit(Resource::Nofile, limit).map_err(at(Step::Descriptors))?;
        }
        sys::set_ignored(Signal::PIPE, self.signals.pipe_ignored);
        sys::set_ignored(Signal::CHLD, self.signals.chld_ignored);
        // Rust's runtime has handlers for these two, which would swallow one that comes before the exec.
        for signal in [Signal::SEGV, Signal::BUS] {
            sys::set_ignored(signal, sys::is_ignored(signal));
        }
        Ok(())
    }

    /// Tries each candidate, as execvp(3) does: what is not there is passed over, and EACCES is remembered.
    fn execute(&self, strings: Strings<'_>) -> (Step, i32) {
        let Strings { arguments, mut shell, mut variables, candidates } = strings;
        let listen_pid = environment::listen_pid(Pid::own().number());
        if let (true, Ok(string)) = (self.has_listen_pid(), CStr::from_bytes_until_nul(&listen_pid)) {
            variables.set(0, string);
        }
        // Last of all, with no handler installed: a signal that came in the meantime now does what it should.
        sys::set_signal_mask(self.signals.mask);
        let mut remembered = libc::ENOENT;
        for path in candidates {
            let mut errno = sys::execute(path, &arguments, &variables);
            if errno == libc::ENOEXEC {
                shell.set(1, path);
                errno = sys::execute(SHELL, &shell, &variables);
            }
            match errno {
                libc::ENOENT if exists(path) => {
                    return (Step::Interpreter, errno);
                }
                libc::ENOENT | libc::ENOTDIR => {}
                // In a directory of PATH that may not be searched nothing was found.
                libc::EACCES if candidates.len() > 1 && !exists(path) => {}
                libc::EACCES => remembered = errno,
                _ => return (Step::Execute, errno),
            }
        }
        (Step::Execute, remembered)
    }

    /// After the only start: lets go of everything that only a start needs. What is left are the paths that panzer has
    /// bound, to be removed at the end.
    pub(super) fn release(&mut self) -> Vec<OwnPath> {
        self.start_directory = None;
        self.listeners.drain(..).filter_map(|listener| listener.path).collect()
    }

    fn failure(&self, step: Step, errno: i32) -> Failure {
        let action = match step {
            Step::SharePorts => "share ports".to_owned(),
            Step::Directory => format!("change to directory {}", self.typed_directory.display()),
            Step::User => format!("run as user {}", self.typed_user),
            Step::ParentDeath => "ask for a signal at panzer's death".to_owned(),
            Step::NoParent => "run without panzer".to_owned(),
            Step::Descriptors => "hand down descriptors".to_owned(),
            Step::Execute | Step::Interpreter => format!("run {}", self.command.display()),
        };
        let words = match step {
            Step::Interpreter => "its interpreter is missing".to_owned(),
            Step::SharePorts => ports::not_shared(&ports::refusal(errno)),
            Step::Directory | Step::User | Step::ParentDeath | Step::NoParent | Step::Descriptors | Step::Execute => {
                words(Errno::from_raw_os_error(errno))
            }
        };
        let error = Error::new(action, words).to_string();
        let status = match (step, errno) {
            (Step::Execute | Step::Interpreter, libc::ENOENT | libc::ENOTDIR) => Status::NOT_FOUND,
            (Step::Execute, _) => Status::CANNOT_EXECUTE,
            _ => Status::REFUSED,
        };
        Failure { why: NotRun { status, error }, is_transient: is_transient(errno) }
    }

    /// What has come over the channel: `None` while there is nothing new.
    pub(super) fn read_channel(&self, channel: &OwnedFd) -> Option<News> {
        let mut message = [0; MESSAGE_LENGTH];
        let mut space = [MaybeUninit::uninit(); DESCRIPTOR_SPACE];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(channel, &mut [IoSliceMut::new(&mut message)], &mut beside, flags);
        let filter = beside.drain().find_map(|message| {
            if let RecvAncillaryMessage::ScmRights(mut descriptors) = message { descriptors.next() } else { None }
        });
        let length = match received {
            Err(Errno::AGAIN | Errno::INTR) => return None,
            Ok(received) => received.bytes,
            Err(_) => 0,
        };
        let [step, a, b, c, d] = message;
        let errno = i32::from_ne_bytes([a, b, c, d]);
        let step = Step::ALL.into_iter().find(|known| length == MESSAGE_LENGTH && *known as u8 == step);
        // With errno 0 the filter should have come along: panzer had no descriptor left for it.
        let errno = if step == Some(Step::SharePorts) && errno == 0 { libc::EMFILE } else { errno };
        let is_required = is_transient(errno) || self.filter.as_ref().is_some_and(|filter| filter.required);
        Some(match (step, filter) {
            (None, _) => News::Executed,
            (Some(_), Some(filter)) => News::Filter(filter),
            (Some(Step::SharePorts), None) if !is_required => News::NoFilter(ports::refusal(errno)),
            (Some(step), None) => News::Failed(self.failure(step, errno)),
        })
    }
}

impl PortFilter {
    /// In the child: puts it under the filter and sends panzer what the filter's calls come through.
    fn install(&self, intercept_unlink: bool, channel: BorrowedFd<'_>) -> Result<(), (Step, i32)> {
        let failed = |error: Errno| (Step::SharePorts, error.raw_os_error());
        let program = if intercept_unlink { &self.program_with_unlink } else { &self.program };
        match sys::install_filter(program) {
            Ok(filter) => send(channel, Step::SharePorts, 0, Some(filter.as_fd())).map_err(failed),
            Err(error) if self.required || is_transient(error.raw_os_error()) => {
                Err((Step::SharePorts, error.raw_os_error()))
            }
            Err(error) => send(channel, Step::SharePorts, error.raw_os_error(), None).map_err(failed),
        }
    }
}

/// Whether the system is short of something: worth trying again.
fn is_transient(errno: i32) -> bool {
    matches!(errno, libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::ETXTBSY)
}

/// Sends panzer a message, perhaps with a descriptor. Async-signal-safe.
fn send(channel: BorrowedFd<'_>, step: Step, errno: i32, descriptor: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let [a, b, c, d] = errno.to_ne_bytes();
    let message = [step as u8, a, b, c, d];
    let mut space = [MaybeUninit::uninit(); DESCRIPTOR_SPACE];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if let Some(descriptor) = &descriptor {
        beside.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(descriptor)));
    }
    sendmsg(channel, &[IoSlice::new(&message)], &mut beside, SendFlags::NOSIGNAL).map(drop)
}

/// The lowest number above the descriptors that workers are handed: the listeners and three pipes at the most.
pub(super) fn above_handed_down(listeners: usize) -> RawFd {
    FIRST_DESCRIPTOR.saturating_add(RawFd::try_from(listeners).unwrap_or(RawFd::MAX)).saturating_add(3)
}

/// Whether there is a file that can be seen. Async-signal-safe.
fn exists(path: &CStr) -> bool {
    rustix::fs::access(path, Access::EXISTS).is_ok()
}

/// Where execvp(3) would look for `command`.
pub(super) fn candidates(command: &OsStr, path: Option<&OsStr>) -> Vec<CString> {
    let bytes = command.as_bytes();
    if bytes.is_empty() || bytes.contains(&b'/') {
        return CString::new(bytes).into_iter().collect();
    }
    let path = path.unwrap_or(OsStr::new(DEFAULT_PATH));
    let directories = path.as_bytes().split(|byte| *byte == b':');
    let joined = directories.map(|directory| match directory {
        b"" => [b"./", bytes].concat(),
        directory => [directory, b"/", bytes].concat(),
    });
    joined.filter_map(|path| CString::new(path).ok()).collect()
}
