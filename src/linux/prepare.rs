//! From what was asked for to something that runs: the part that may refuse. Must never start a process; nothing that it
//! makes outlives a refusal.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::control::Control;
use super::decider::Decider;
use super::environment::EnvironmentSource;
use super::event_loop::{Prepared, Running};
use super::feedback::Asked;
use super::files;
use super::guard::GuardSettings;
use super::listen::{self, FIRST_DESCRIPTOR, Listener, Queues};
use super::manager::Manager;
use super::observers::Observers;
use super::ports::{self, AlsoSent, PortSettings, Ports};
use super::spawn::{DeathPipe, Launcher, PortFilter, above_handed_down, candidates};
use super::state_files::{self, PidFile, StatusFile};
use super::sys::{self, StringList};
use super::users::{self, Credentials};
use super::{clock, cpus, env_dir, log::Log, processes, terminal};
use crate::config::{Balance, Config, ControlSocket, MOST_WORKERS, SharePorts, Workers, control_name};
use crate::error::{Error, Status, Typed};
use crate::linux::words;
use crate::signals::Signal;
use crate::supervisor::actions::{Action, Actions};
use crate::supervisor::report::Level;
use crate::supervisor::stop::Schedule;
use crate::supervisor::{self, Generation, Ready, Supervisor, init, init::Init};

/// How the name of the variable begins by which the guard knows what panzer started.
const COOKIE: &str = "PANZER_COOKIE_";

/// How long a silent worker may take to write its core or stack trace after ABRT.
const ABORT_WAIT: Duration = Duration::from_secs(10);

/// What a start needs, looked up.
pub(super) struct Checked {
    /// Where the program seems to be.
    pub(super) program: PathBuf,
    /// What `--env-dir` changes.
    pub(super) changes: Vec<env_dir::Change>,
    /// As whom it runs.
    pub(super) credentials: Option<Credentials>,
}

/// Looks whether directory, variables, user and program are there.
///
/// # Errors
/// The first one that is not.
pub(super) fn check_command(config: &Config) -> Result<Checked, Error> {
    let directory = config.dir.as_ref().map_or_else(|| PathBuf::from("."), PathBuf::clone);
    if config.dir.is_some() {
        files::open_directory(&directory)
            .map_err(|error| Error::about("change to directory", &Typed(directory.as_os_str()), words(error)))?;
    }
    let changes = config.env_dir.as_deref().map_or_else(|| Ok(Vec::new()), |path| env_dir::read(path, path))?;
    let credentials = config.user.as_deref().map(users::look_up).transpose()?;
    let command = config.command.first().map(OsString::as_os_str).unwrap_or_default();
    let changed = changes.iter().find(|(name, _)| name == OsStr::new("PATH")).map(|(_, value)| value.clone());
    let path = changed.unwrap_or_else(|| sys::variable("PATH"));
    let candidates = candidates(command, path.as_deref());
    let program = find(command, &directory, &candidates)
        .map_err(|(cause, status)| Error::about("run", &Typed(command), cause).with_status(status))?;
    Ok(Checked { program, changes, credentials })
}

/// The first candidate that is there. Whether it can be executed is for exec to say: it alone knows of interpreters,
/// capabilities and mount options.
fn find(command: &OsStr, directory: &Path, candidates: &[CString]) -> Result<PathBuf, (String, Status)> {
    let missing = match command.as_bytes() {
        b"" => "the command is empty",
        path if path.contains(&b'/') => "No such file or directory",
        _ => "not found in PATH",
    };
    let mut problem = (missing.to_owned(), Status::NOT_FOUND);
    for candidate in candidates.iter().filter(|candidate| !candidate.is_empty()) {
        let path = directory.join(OsStr::from_bytes(candidate.as_bytes()));
        match files::access(&path, Access::EXEC_OK) {
            Ok(()) if files::is_directory(&path) => problem = ("it is a directory".to_owned(), Status::CANNOT_EXECUTE),
            Ok(()) => return Ok(path.strip_prefix(".").map_or_else(|_| path.clone(), PathBuf::from)),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            // In a directory of PATH that may not be searched nothing was found.
            Err(Errno::ACCESS) if candidates.len() > 1 && files::access(&path, Access::EXISTS).is_err() => {}
            Err(error) => problem = (words(error), Status::CANNOT_EXECUTE),
        }
    }
    Err(problem)
}

/// What a start needs, as far as it is there. What was made is dropped in one place, whatever is refused after it: at each
/// refusal by itself that is 2 kB in the shipped file.
#[derive(Default)]
struct Parts {
    listeners: Vec<Listener>,
    filter: Option<PortFilter>,
    decider: Option<Decider>,
    guard: Option<GuardSettings>,
    ports: Option<Ports>,
    launcher: Option<Launcher>,
    pid_file: Option<PidFile>,
    observers: Option<Observers>,
    status_file: Option<StatusFile>,
}

/// Makes everything ready that a start needs, listeners last. Signals must be held already.
///
/// # Errors
/// What panzer refuses, with the value as typed.
pub fn prepare(config: &Config, mut log: Log) -> Result<Running, Error> {
    let mut parts = Parts::default();
    parts.make(config, &mut log)?;
    let Parts { decider, guard, ports, launcher, pid_file, observers, status_file, .. } = parts;
    let (Some(decider), Some(launcher), Some(observers)) = (decider, launcher, observers) else {
        return Err(system("start", Errno::INVAL));
    };
    Running::new(Prepared { decider, launcher, guard, ports, observers, status_file, _pid_file: pid_file, log })
        .map_err(|error| system("watch for events", error))
}

impl Parts {
    fn make(&mut self, config: &Config, log: &mut Log) -> Result<(), Error> {
        sys::set_ignored(Signal::CHLD, false);
        if let Some(signal) = config.pdeathsig {
            sys::set_parent_death_signal(signal)
                .map_err(|error| Error::about("use --pdeathsig", &signal, words(error)))?;
        }
        self.listeners = listen::inherit();
        let supervised = config.workers.is_some();
        if supervised {
            let kept = FIRST_DESCRIPTOR.saturating_add(i32::try_from(self.listeners.len()).unwrap_or(i32::MAX));
            sys::close_range(kept, i32::MAX);
        }
        let descriptor_limit = config.workers.and_then(|_| raise_descriptor_limit());
        let checked = check_command(config)?;
        let workers = count_workers(config);
        check_contradictions(config)?;
        let queues = queues(config)?;
        open_listeners(config, &mut self.listeners, queues)?;
        let is_first = rustix::process::getpid().is_init();
        if !is_first {
            become_subreaper(log);
        }
        let takes_sockets = workers.is_some() && ports::can_take_sockets();
        if workers.is_some() {
            self.filter = port_filter(config, takes_sockets, log)?;
        }
        let shares_binds = self.filter.is_some();
        self.decider = Some(decider(config, workers, shares_binds));
        if !is_first && sys::children_share_namespace() {
            self.guard = Some(guard_settings(config));
        }
        let settings = PortSettings { backlog: config.backlog, queues, shares_binds, takes_sockets };
        if workers.is_some() {
            let ports = Ports::new(settings, &self.listeners, log);
            self.ports = Some(ports.map_err(|error| system("watch for events", error))?);
        }
        let listeners = std::mem::take(&mut self.listeners);
        let launcher = self.launcher.insert(launcher(config, workers, listeners, checked, self.guard.as_ref())?);
        launcher.filter = self.filter.take();
        launcher.descriptor_limit = descriptor_limit;
        // As variables they may be set for a whole image; without workers there is nothing to say there.
        if !supervised {
            self.observers = Some(Observers::new(None, None, None));
            return Ok(());
        }
        self.pid_file = config.pid_file.as_deref().map(PidFile::take).transpose()?;
        self.observers = Some(Observers::new(control(config, log)?, metrics_listener(config)?, Manager::find()));
        self.status_file = config.status_file.as_deref().map(StatusFile::new).transpose()?;
        Ok(())
    }
}

/// How many workers there are to be; `None`: init mode.
pub(super) fn count_workers(config: &Config) -> Option<u32> {
    config.workers.map(|workers| match workers {
        Workers::Auto => cpus::usable(),
        Workers::Count(count) => count,
    })
}

/// Whether what is asked for can be done together.
///
/// # Errors
/// What cannot.
pub(super) fn check_contradictions(config: &Config) -> Result<(), Error> {
    let needs_workers = |(_, action): &&(Signal, Action)| {
        matches!(action, Action::Reload | Action::ScaleUp | Action::ScaleDown | Action::Upgrade)
    };
    if config.workers.is_none() {
        let Some((signal, _)) = config.on.iter().find(needs_workers) else { return Ok(()) };
        return Err(Error::new(format!("use --on for {signal}"), "what it is to do needs -n"));
    }
    if config.share_ports == SharePorts::Off && config.policy.ready == Ready::Bind {
        return Err(Error::new("use --ready bind", "nobody sees a bind with --share-ports off"));
    }
    Ok(())
}

/// How many queues each port has.
///
/// # Errors
/// More are asked for than the kernel can do.
pub(super) fn queues(config: &Config) -> Result<Queues, Error> {
    let queues = match (config.balance, count_workers(config)) {
        (Balance::Shared, _) | (Balance::PerWorker, None) => Queues::One,
        (Balance::PerWorker, Some(workers)) => Queues::PerSlot(workers),
    };
    let (count, most) = (queues.count(), ports::MOST_QUEUES);
    if count > most {
        let cause = format!("the kernel can steer {most} workers at the most, and there are {count}");
        return Err(Error::new("use --balance per-worker", cause));
    }
    Ok(queues)
}

/// Lets panzer have as many descriptors as it may: it holds one for each worker and each queue. Gives what was before,
/// which is the workers'.
fn raise_descriptor_limit() -> Option<Rlimit> {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    (before.current != before.maximum && setrlimit(Resource::Nofile, raised).is_ok()).then_some(before)
}

/// Has orphans come to panzer. Where that is not to be had (emulators), panzer is still worth running.
fn become_subreaper(log: &mut Log) {
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        let text = format!("cannot become a subreaper: {}; orphans are left to others", words(error));
        log.say(Level::Warning, "no_subreaper", &text);
    }
}

fn system(action: &str, error: Errno) -> Error {
    Error::new(action, words(error))
}

/// What sends to panzer what workers bind; `None`: they bind for themselves.
fn port_filter(config: &Config, takes_sockets: bool, log: &mut Log) -> Result<Option<PortFilter>, Error> {
    let required = match config.share_ports {
        SharePorts::Auto => false,
        SharePorts::On => true,
        SharePorts::Off => return Ok(None),
    };
    let why = if !processes::are_visible() {
        // The kernel names a caller by its number, and only /proc tells more of it.
        Some("/proc is not mounted, or is not that of this PID namespace".to_owned())
    } else {
        too_old(rustix::system::uname().release().to_str().unwrap_or_default())
    };
    if let Some(why) = why {
        if required {
            return Err(Error::new("share ports", ports::not_shared(&why)));
        }
        ports::say_not_shared(log, &why);
        return Ok(None);
    }
    let program = |unlink| ports::program(AlsoSent { options: !takes_sockets, unlink });
    Ok(Some(PortFilter { program: program(false), program_with_unlink: program(true), required }))
}

/// Where `panzer ctl` finds panzer. A path that cannot be had is refused; without the abstract name panzer goes on.
fn control(config: &Config, log: &mut Log) -> Result<Option<Control>, Error> {
    if config.control == ControlSocket::Off {
        return Ok(None);
    }
    let mut control = Control::new().map_err(|error| system("watch for events", error))?;
    let name = control_name(sys::pid_namespace(), sys::Pid::own().number());
    if let Err(error) = control.listen_by_name(&name) {
        let error = Error::about("listen on", &format_args!("@{name}"), words(error));
        log.say(Level::Warning, "no_control", &format!("{error}; going on without it"));
    }
    if let ControlSocket::Path(path) = &config.control {
        let absolute = state_files::absolute("--control", path)?;
        control.listen_at(&absolute).map_err(|problem| Error::about("use --control", &path.display(), problem))?;
    }
    Ok(Some(control))
}

/// Where metrics are served: for nobody's inheritance.
fn metrics_listener(config: &Config) -> Result<Option<Listener>, Error> {
    config.metrics.as_ref().map(|wanted| listen::open(wanted, config.backlog, Queues::One)).transpose()
}

fn open_listeners(config: &Config, listeners: &mut Vec<Listener>, queues: Queues) -> Result<(), Error> {
    let lowest = above_handed_down(listeners.len() + config.listen.len());
    for wanted in &config.listen {
        listeners.push(listen::open(wanted, config.backlog, queues)?);
    }
    listen::raise(listeners, lowest)
}

fn decider(config: &Config, workers: Option<u32>, are_ports_shared: bool) -> Decider {
    let mut actions = if workers.is_some() { Actions::supervise() } else { Actions::init(config.stop.is_some()) };
    for (signal, action) in &config.on {
        actions.set(*signal, *action);
    }
    let ready = if are_ports_shared { config.policy.ready } else { config.policy.ready.without_sharing() };
    match workers {
        None => Decider::Init(Box::new(Init::new(init::Settings {
            actions,
            stop: Schedule::or_standard(config.stop.as_ref()),
            no_group: config.policy.no_group,
            linger: config.policy.linger,
            ok_exits: config.policy.ok_exits.clone(),
        }))),
        Some(workers) => {
            let stop = Schedule::or_standard(config.stop.as_ref());
            let mut policy = config.policy.clone();
            policy.ready = ready;
            let settings = supervisor::Settings {
                workers,
                most_workers: match config.balance {
                    Balance::Shared => MOST_WORKERS,
                    Balance::PerWorker => ports::MOST_QUEUES,
                },
                policy,
                reload_stop: Schedule::or_standard(config.reload_stop.as_ref().or(config.stop.as_ref())),
                silent_stop: stop.after_abort(ABORT_WAIT),
                stop,
                have_own_queues: config.balance == Balance::PerWorker,
                actions,
                seed: u64::from(std::process::id()),
            };
            Decider::Supervise(Box::new(Supervisor::new(settings, Duration::ZERO)))
        }
    }
}

fn guard_settings(config: &Config) -> GuardSettings {
    // In early boot there may be no random bytes yet; the clock and the pid tell panzers apart as well.
    let mut random = [0_u8; 16];
    if rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK).is_err() {
        let now = clock::since_epoch().as_nanos();
        random = (now ^ u128::from(std::process::id()) << 96).to_ne_bytes();
    }
    // In the name, not in the value: a panzer inside a worker adds its own and replaces nobody's.
    let cookie = random.iter().fold(COOKIE.to_owned(), |text, byte| format!("{text}{byte:02x}")) + "=1";
    let schedule = Schedule::for_guard(config.stop.as_ref(), config.workers.is_some(), config.policy.linger);
    GuardSettings { schedule, cookie }
}

/// Everything that a start needs.
fn launcher(
    config: &Config,
    workers: Option<u32>,
    listeners: Vec<Listener>,
    checked: Checked,
    guard: Option<&GuardSettings>,
) -> Result<Launcher, Error> {
    let lowest = above_handed_down(listeners.len());
    let supervised = workers.is_some();
    let mut stdin = None;
    let mut death_pipe = None;
    if workers.is_some() {
        let null = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        stdin = Some(null.map_err(|error| system("open /dev/null", error))?);
        death_pipe = Some(DeathPipe::new(lowest).map_err(|error| system("make a pipe", error))?);
    }
    // A directory that may not be searched, as root's is after sudo, can only be inherited.
    let start_directory = match files::open_directory(Path::new(".")) {
        Ok(directory) => Some(directory),
        Err(Errno::ACCESS) => None,
        Err(error) => return Err(system("open the current directory", error)),
    };
    let watchdog = config.policy.watchdog.filter(|_| supervised);
    let asked = Asked {
        notify: supervised && (config.policy.ready == Ready::Notify || watchdog.is_some()),
        ready: supervised && config.policy.ready == Ready::Descriptor,
        heartbeat: watchdog.is_some(),
    };
    let environment = EnvironmentSource {
        own_variables: config.own_variables.clone(),
        supervised,
        listen_env: config.listen_env,
        asked,
        watchdog,
        cookie: guard.map(|guard| guard.cookie.clone()),
    };
    let env_dir = config.env_dir.as_ref().map(|typed| {
        // panzer will be in `/` when it is read again.
        (files::absolute(typed).unwrap_or_else(|_| typed.clone()), typed.clone())
    });
    let (arguments, shell_arguments) = argument_lists(&config.command);
    let typed_directory = config.dir.clone().unwrap_or_else(|| PathBuf::from("."));
    let directory = config.dir.as_ref().and_then(|directory| CString::new(directory.as_os_str().as_bytes()).ok());
    let parent_death = guard.map_or(Signal::TERM, |guard| guard.schedule.first_signal());
    let mut launcher = Launcher {
        command: config.command.first().cloned().unwrap_or_default(),
        arguments,
        shell_arguments,
        environment,
        env_dir,
        loaded: Vec::new(),
        start_directory,
        directory,
        typed_directory,
        credentials: checked.credentials,
        typed_user: config.user.clone().unwrap_or_default(),
        umask: config.umask.map(Mode::from_raw_mode),
        signals: sys::initial_signals(),
        parent_death,
        stdin,
        terminal: terminal::Terminal::find(),
        listeners,
        death_pipe,
        filter: None,
        descriptor_limit: None,
    };
    launcher.load(Generation::FIRST, &[])?;
    Ok(launcher)
}

/// Why a kernel of this release cannot share ports: it is the first that can put a listener in a socket's place
/// (`SECCOMP_IOCTL_NOTIF_ADDFD`) that counts.
fn too_old(release: &str) -> Option<String> {
    const FIRST: (u32, u32) = (5, 9);
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    (found < FIRST).then(|| format!("it takes Linux {}.{}, and this is {release}", FIRST.0, FIRST.1))
}

/// The command's arguments, and those with which the shell runs it: `sh SCRIPT ARGUMENT...`.
fn argument_lists(command: &[OsString]) -> (StringList, StringList) {
    let mut arguments = StringList::default();
    let mut shell_arguments = StringList::default();
    shell_arguments.push(b"sh");
    for argument in command {
        arguments.push(argument.as_bytes());
        shell_arguments.push(argument.as_bytes());
    }
    (arguments, shell_arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_told_by_their_release() {
        for release in ["6.18.1", "5.9.0-rc1", "5.10.0-28-amd64", "10.0"] {
            assert_eq!(too_old(release), None, "{release}");
        }
        for release in ["5.8.18", "4.18.0-553.el8.x86_64", "4.4.0", ""] {
            assert!(too_old(release).is_some(), "{release}");
        }
    }
}
