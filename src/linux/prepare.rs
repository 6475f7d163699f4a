//! From what was asked for to something that runs: the part that may refuse, before the first worker exists.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{Access, Mode, OFlags};
use rustix::io::Errno;

use super::environment::{self, Ingredients};
use super::event_loop::{Brain, Parts, Running};
use super::guard::Plan;
use super::listen::{self, FIRST_DESCRIPTOR, Listener};
use super::spawn::{DeathPipe, Launcher, above_handed_down, candidates};
use super::sys::{self, StringList};
use super::users::{self, Credentials};
use super::{cpus, env_dir, log::Log, terminal};
use crate::config::{Config, Workers};
use crate::error::{Error, Status, cause};
use crate::supervisor::commands::Actions;
use crate::supervisor::report::Level;
use crate::supervisor::stop::Schedule;
use crate::supervisor::{self, Supervisor, init, init::Init};

/// The name of the variable by which the guard knows what panzer started.
const COOKIE: &str = "PANZER_COOKIE";

/// What the command will find, checked.
pub(super) struct Surroundings {
    /// Where the program seems to be.
    pub(super) program: PathBuf,
    /// Where it may be, in order.
    candidates: Vec<CString>,
    /// What `--env-dir` changes.
    pub(super) changes: Vec<env_dir::Change>,
    /// As whom it runs.
    credentials: Option<Credentials>,
}

/// Looks whether directory, variables, user and program are there.
///
/// # Errors
/// The first one that is not.
pub(super) fn surroundings(config: &Config) -> Result<Surroundings, Error> {
    let directory = config.dir.as_ref().map_or_else(|| PathBuf::from("."), PathBuf::clone);
    if config.dir.is_some() {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&directory, flags, Mode::empty()).map_err(|error| {
            Error::new(format!("change to directory {}", directory.display()), cause(&error.into()))
        })?;
    }
    let changes = config.env_dir.as_deref().map_or_else(|| Ok(Vec::new()), env_dir::read)?;
    let credentials = config.user.as_deref().map(users::look_up).transpose()?;
    let command = config.command.first().map(OsString::as_os_str).unwrap_or_default();
    let changed = changes.iter().find(|(name, _)| name == OsStr::new("PATH")).map(|(_, value)| value.clone());
    let path = changed.unwrap_or_else(|| std::env::var_os("PATH"));
    let candidates = candidates(command, path.as_deref());
    let program = find(&directory, &candidates).map_err(|(error, status)| {
        Error::new(format!("run {}", command.display()), cause(&error.into())).with_status(status)
    })?;
    Ok(Surroundings { program, candidates, changes, credentials })
}

/// The first candidate that is there. Whether it can be executed is for exec to say: it alone knows of interpreters,
/// capabilities and mount options.
fn find(directory: &std::path::Path, candidates: &[CString]) -> Result<PathBuf, (Errno, Status)> {
    let mut problem = (Errno::NOENT, Status::NOT_FOUND);
    for candidate in candidates {
        let path = directory.join(OsStr::from_bytes(candidate.as_bytes()));
        match rustix::fs::access(&path, Access::EXEC_OK) {
            Ok(()) if path.is_dir() => problem = (Errno::ACCESS, Status::CANNOT_EXECUTE),
            Ok(()) => return Ok(path.strip_prefix(".").map_or_else(|_| path.clone(), PathBuf::from)),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => problem = (error, Status::CANNOT_EXECUTE),
        }
    }
    Err(problem)
}

/// Makes everything ready, listeners first; no process yet.
///
/// # Errors
/// What panzer refuses, with the value as typed.
pub fn prepare(config: &Config) -> Result<Running, Error> {
    // From here on a signal waits until it can be forwarded to somebody.
    sys::set_signal_mask(u64::MAX);
    sys::set_ignored(crate::signals::Signal::CHLD, false);
    if let Some(signal) = config.pdeathsig {
        sys::set_parent_death_signal(signal)
            .map_err(|error| Error::new(format!("use --pdeathsig {signal}"), cause(&error)))?;
    }
    let inherited = listen::inherit();
    let supervised = config.workers.is_some();
    if supervised {
        let kept = FIRST_DESCRIPTOR.saturating_add(i32::try_from(inherited.len()).unwrap_or(i32::MAX));
        sys::close_range(kept, i32::MAX);
    }
    let surroundings = surroundings(config)?;
    let listeners = open_listeners(config, inherited)?;
    let mut log = Log::new(config.level, config.log_format);
    let is_first = rustix::process::getpid().is_init();
    if !is_first {
        become_subreaper(&mut log);
    }
    let workers = config.workers.map(|workers| match workers {
        Workers::Auto => cpus::usable(),
        Workers::Count(count) => count,
    });
    let brain = brain(config, workers);
    let plan = if is_first { None } else { Some(guard_plan(config)?) };
    let launcher = launcher(config, workers, listeners, surroundings, plan.as_ref())?;
    let parts = Parts { brain, launcher, plan, log, no_group: config.no_group, supervised };
    Running::new(parts).map_err(|error| Error::new("watch for events", cause(&error)))
}

/// Has orphans come to panzer. Where that is not to be had (emulators), panzer is still worth running.
fn become_subreaper(log: &mut Log) {
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        let text = format!("cannot become a subreaper: {}; orphans are left to others", cause(&error.into()));
        log.say(Level::Warning, "no_subreaper", &text);
    }
}

fn system(action: &str, error: Errno) -> Error {
    Error::new(action, cause(&error.into()))
}

fn open_listeners(config: &Config, mut listeners: Vec<Listener>) -> Result<Vec<Listener>, Error> {
    let lowest = above_handed_down(listeners.len() + config.listen.len());
    for wanted in &config.listen {
        listeners.push(listen::open(wanted, config.backlog)?);
    }
    listen::raise(listeners, lowest)
}

fn brain(config: &Config, workers: Option<u32>) -> Brain {
    let mut actions = if workers.is_some() { Actions::supervise() } else { Actions::init(config.stop.is_some()) };
    for (signal, action) in &config.on {
        actions.set(*signal, *action);
    }
    match workers {
        None => Brain::Init(Init::new(init::Settings {
            actions,
            stop: config.stop.clone(),
            clear_rest: !config.no_group,
            linger: config.linger,
            ok_exits: config.ok_exits.clone(),
        })),
        Some(workers) => {
            let settings = supervisor::Settings {
                workers,
                ready: config.ready,
                restart: config.restart,
                backoff: config.backoff,
                crash_limit: config.crash_limit,
                fatal_exits: config.fatal_exits.clone(),
                ok_exits: config.ok_exits.clone(),
                stop: config.stop.clone().unwrap_or_else(Schedule::standard),
                linger: config.linger,
                actions,
                seed: u64::from(std::process::id()),
            };
            Brain::Supervise(Supervisor::new(settings, std::time::Duration::ZERO))
        }
    }
}

fn guard_plan(config: &Config) -> Result<Plan, Error> {
    let mut random = [0_u8; 16];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::NONBLOCK)
        .map_err(|error| system("get random bytes", error))?;
    let cookie = random.iter().fold(format!("{COOKIE}="), |text, byte| format!("{text}{byte:02x}"));
    let schedule = match (&config.stop, config.workers) {
        (Some(schedule), _) => schedule.clone(),
        (None, Some(_)) => Schedule::standard(),
        (None, None) => Schedule::term_then_kill(config.linger),
    };
    Ok(Plan { schedule, cookie })
}

/// Everything that a start needs.
fn launcher(
    config: &Config,
    workers: Option<u32>,
    listeners: Vec<Listener>,
    surroundings: Surroundings,
    plan: Option<&Plan>,
) -> Result<Launcher, Error> {
    let lowest = above_handed_down(listeners.len());
    let mut stdin = None;
    let mut death_pipe = None;
    if workers.is_some() {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        stdin = Some(null.map_err(|error| system("open /dev/null", error))?);
        death_pipe = Some(DeathPipe::new(lowest).map_err(|error| system("make a pipe", error))?);
    }
    let ingredients = Ingredients {
        own_variables: &config.own_variables,
        workers,
        listeners: &listeners,
        listen_env: config.listen_env,
        credentials: surroundings.credentials.as_ref(),
        changes: &surroundings.changes,
        parent_descriptor: death_pipe.as_ref().map(|_| lowest - 1),
        cookie: plan.map(|plan| plan.cookie.as_str()),
    };
    let variables = environment::common(std::env::vars_os(), &ingredients);
    let command = config.command.first().cloned().unwrap_or_default();
    let mut arguments = StringList::default();
    let mut shell_arguments = StringList::default();
    shell_arguments.push(b"sh");
    for argument in &config.command {
        arguments.push(argument.as_bytes());
        shell_arguments.push(argument.as_bytes());
    }
    let start_directory = rustix::fs::open(".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| system("open the current directory", error))?;
    let typed_directory = config.dir.clone().unwrap_or_else(|| PathBuf::from("."));
    let directory = config.dir.as_ref().and_then(|directory| CString::new(directory.as_os_str().as_bytes()).ok());
    let parent_death = plan.map_or(crate::signals::Signal::TERM, |plan| plan.schedule.first_signal());
    Ok(Launcher {
        command,
        arguments,
        shell_arguments,
        candidates: surroundings.candidates,
        variables,
        supervised: workers.is_some(),
        has_listen_pid: config.listen_env.systemd && !listeners.is_empty(),
        start_directory: Some(start_directory),
        directory,
        typed_directory,
        credentials: surroundings.credentials,
        umask: config.umask.map(Mode::from_raw_mode),
        found: sys::found(),
        parent_death,
        stdin,
        terminal: workers.is_none() && terminal::is_ours(),
        listeners,
        death_pipe,
    })
}
