//! What was asked for, as plain values: `cli` fills it in, `linux` and `supervisor` go by it.
//!
//! Must never touch the system; whether a directory or a user exists is found out in `linux`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::signals::Signal;
use crate::supervisor::Policy;
use crate::supervisor::actions::Action;
use crate::supervisor::report::Level;
use crate::supervisor::stop::Schedule;

/// `0.1.0`
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The most workers that can be asked for; a typing mistake must not fork for minutes.
pub const MOST_WORKERS: u32 = 10_000;

/// How many workers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workers {
    /// As many as this process may use CPUs.
    Auto,
    /// This many.
    Count(u32),
}

/// What a listener is bound to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A TCP listener.
    Tcp(SocketAddr),
    /// A UDP socket.
    Udp(SocketAddr),
    /// A UNIX stream listener at a path.
    Unix(PathBuf),
    /// A UNIX stream listener with an abstract name (`unix(7)`).
    Abstract(String),
}

/// One `--listen`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listen {
    /// The name that `LISTEN_FDNAMES` gives it.
    pub name: String,
    /// Where.
    pub address: Address,
    /// Only the port was given, as Server::Starter shows it again.
    pub port_only: bool,
    /// Mode of the UNIX path.
    pub mode: Option<u32>,
    /// Hand it down with O_NONBLOCK set.
    pub nonblock: bool,
    /// `[::]` takes no IPv4.
    pub v6only: bool,
    /// As typed, for errors.
    pub typed: String,
}

/// Which variables tell the worker about its listeners.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ListenEnv {
    /// `LISTEN_FDS`, `LISTEN_FDNAMES`, `LISTEN_PID` (`sd_listen_fds(3)`).
    pub systemd: bool,
    /// `SERVER_STARTER_PORT`, `SERVER_STARTER_GENERATION`.
    pub server_starter: bool,
    /// `EINHORN_FD_COUNT`, `EINHORN_FD_0` and so on, `EINHORN_MASTER_PID`.
    pub einhorn: bool,
    /// The list was given and is not the default: then `SERVER_STARTER_PORT` is set even where nothing listens.
    pub explicit: bool,
}

/// Whether workers share the ports that they bind by themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SharePorts {
    /// Where the kernel lets panzer see to it.
    Auto,
    /// Always; it is an error where the kernel does not.
    On,
    /// Never.
    Off,
}

/// How workers share the connections of a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Balance {
    /// One queue, from which each takes when it has time.
    Shared,
    /// A queue for each slot, to which the kernel deals them out.
    PerWorker,
}

/// Where `panzer ctl` finds panzer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ControlSocket {
    /// Under [`control_name`].
    Abstract,
    /// There, and at this path.
    Path(PathBuf),
    /// Nowhere.
    Off,
}

/// The abstract name of a panzer's control socket: the inode of its PID namespace tells containers apart that share a
/// network.
#[must_use]
pub fn control_name(inode: u64, pid: i32) -> String {
    format!("panzer/{inode}/{pid}")
}

/// How lines on stderr look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// `panzer: words`
    Text,
    /// One JSON object a line.
    Json,
}

/// How a machine ends whose init panzer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnExit {
    /// It is switched off.
    PowerOff,
    /// It starts anew.
    Reboot,
    /// It stands still and stays on.
    Halt,
}

/// What to print instead of running anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Show {
    /// `-h`
    ShortHelp,
    /// `--help`
    Help,
    /// `-V`
    Version,
}

/// Everything that was asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// `None`: init mode.
    pub workers: Option<Workers>,
    /// Where the command runs.
    pub dir: Option<PathBuf>,
    /// As whom, as typed: `USER[:GROUP]`.
    pub user: Option<String>,
    /// The file mode creation mask of the command.
    pub umask: Option<u32>,
    /// One variable a file.
    pub env_dir: Option<PathBuf>,
    /// Sockets bound before the first worker.
    pub listen: Vec<Listen>,
    /// How workers are told of them.
    pub listen_env: ListenEnv,
    /// Length of their queues.
    pub backlog: u32,
    /// Whether workers share the ports that they bind.
    pub share_ports: SharePorts,
    /// How they share a listener's connections.
    pub balance: Balance,
    /// When workers are ready, started again, replaced.
    pub policy: Policy,
    /// How workers are stopped; `None`: TERM/25/KILL in supervise mode, nothing of our own in init mode.
    pub stop: Option<Schedule>,
    /// How one is stopped while the others go on; `None`: as all are.
    pub reload_stop: Option<Schedule>,
    /// Changed signals.
    pub on: Vec<(Signal, Action)>,
    /// What panzer gets when its own parent dies.
    pub pdeathsig: Option<Signal>,
    /// Where `panzer ctl` finds panzer.
    pub control: ControlSocket,
    /// Where metrics are served.
    pub metrics: Option<Listen>,
    /// Where panzer's pid is written.
    pub pid_file: Option<PathBuf>,
    /// Where the workers' generations and pids are written.
    pub status_file: Option<PathBuf>,
    /// The quietest lines that are still printed.
    pub level: Level,
    /// How they look.
    pub log_format: LogFormat,
    /// What becomes of the machine at the end.
    pub on_exit: OnExit,
    /// Check and say what would run.
    pub check: bool,
    /// Print this instead.
    pub show: Option<Show>,
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// The variables that give options: panzer's own, not the command's.
    pub own_variables: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: None,
            dir: None,
            user: None,
            umask: None,
            env_dir: None,
            listen: Vec::new(),
            listen_env: ListenEnv { systemd: true, server_starter: true, einhorn: false, explicit: false },
            backlog: 4096,
            share_ports: SharePorts::Auto,
            balance: Balance::Shared,
            policy: Policy::default(),
            stop: None,
            reload_stop: None,
            on: Vec::new(),
            pdeathsig: None,
            control: ControlSocket::Abstract,
            metrics: None,
            pid_file: None,
            status_file: None,
            level: Level::Info,
            log_format: LogFormat::Text,
            on_exit: OnExit::PowerOff,
            check: false,
            show: None,
            command: Vec::new(),
            own_variables: Vec::new(),
        }
    }
}

impl Config {
    /// The quietest lines that are printed. The ordinary course of things is not in init mode, which takes the place of
    /// programs that say nothing.
    #[must_use]
    pub fn shown_level(&self) -> Level {
        match self.level {
            Level::Info if self.workers.is_none() => Level::Warning,
            Level::Error | Level::Warning | Level::Info | Level::Debug => self.level,
        }
    }
}
