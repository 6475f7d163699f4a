//! The option table: the only place that knows the options. The parser, `-h`, `--help`, the `PANZER_*` variables, the
//! man page, the shell completions and the README's table are made from it.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use super::values::{self, Read};
use crate::config::{
    Address, Balance, Config, ControlSocket, LogFormat, MOST_WORKERS, OnExit, SharePorts, Show, Workers,
};
use crate::signals::Signal;
use crate::supervisor::actions::Action;
use crate::supervisor::report::Level;
use crate::supervisor::restart::{Backoff, Restart};
use crate::supervisor::stop::Schedule;
use crate::supervisor::{Age, Ready};

/// What an option takes, and what it does with it.
#[derive(Clone, Copy)]
pub enum Takes {
    /// Nothing: it is there or not.
    Nothing(fn(&mut Config)),
    /// Nothing; panzer prints this instead of running anything. For the command line alone.
    Show(Show),
    /// One value with this name; given again, the last one counts.
    One(&'static str, fn(&mut Config, &str) -> Read<()>),
    /// The same for a path, which may be no text.
    Path(&'static str, fn(&mut Config, &OsStr) -> Read<()>),
    /// One value each time; all of them count.
    Many(&'static str, fn(&mut Config, &str) -> Read<()>),
}

impl Takes {
    /// The value's name in the help, where there is a value.
    #[must_use]
    pub fn value_name(self) -> Option<&'static str> {
        match self {
            Self::Nothing(_) | Self::Show(_) => None,
            Self::One(name, _) | Self::Path(name, _) | Self::Many(name, _) => Some(name),
        }
    }

    /// Does what it does with a value; what takes none has a word for yes.
    #[inline(never)]
    pub(super) fn set(self, config: &mut Config, value: &OsStr) -> Read<()> {
        match self {
            Self::Show(_) => Ok(()),
            Self::Nothing(set) if matches!(value.to_str(), Some("1" | "true" | "yes" | "on")) => {
                set(config);
                Ok(())
            }
            Self::Nothing(_) => Err("write 1 or 0".to_owned()),
            Self::Path(_, set) => set(config, value),
            Self::One(_, set) | Self::Many(_, set) => set(config, value.to_str().ok_or("it is not UTF-8")?),
        }
    }
}

/// A row of the table.
pub struct Opt {
    /// The heading that it stands under.
    pub group: &'static str,
    /// `-n`
    pub short: Option<char>,
    /// `--workers`
    pub long: &'static str,
    /// Its value and what it does.
    pub takes: Takes,
    /// It says something about workers and means nothing without `-n`.
    pub needs_workers: bool,
    /// What it does, in one line.
    pub summary: &'static str,
    /// What it is when it is not given; empty: nothing to say.
    pub default: &'static str,
}

impl Opt {
    /// The environment variable that gives this option: `--crash-limit` is `PANZER_CRASH_LIMIT`. What only prints
    /// something has none: images set `PANZER_VERSION` to say what they hold.
    #[must_use]
    pub fn variable(&self) -> Option<String> {
        match self.takes {
            Takes::Show(_) => None,
            Takes::Nothing(_) | Takes::One(..) | Takes::Path(..) | Takes::Many(..) => {
                let mut name = "PANZER_".to_owned();
                name.extend(self.long.chars().map(|c| if c == '-' { '_' } else { c.to_ascii_uppercase() }));
                Some(name)
            }
        }
    }
}

const WORKERS: &str = "Workers";
const SOCKETS: &str = "Sockets";
const LIFECYCLE: &str = "Lifecycle";
const SIGNALS: &str = "Signals";
const OPERATION: &str = "Operation";

/// Every option, in the order of the help.
pub static OPTIONS: &[Opt] = &[
    Opt {
        group: WORKERS,
        short: Some('n'),
        long: "workers",
        takes: Takes::One("N|auto", |config, value| {
            config.workers = Some(match value {
                "auto" => Workers::Auto,
                number => Workers::Count(
                    values::number(number, 1, MOST_WORKERS).map_err(|cause| format!("{cause}, nor \"auto\""))?,
                ),
            });
            Ok(())
        }),
        needs_workers: false,
        summary: "keep N processes of the command alive; auto is one for each CPU that may be used (affinity, cgroup quota)",
        default: "one child, as a plain init",
    },
    Opt {
        group: WORKERS,
        short: Some('d'),
        long: "dir",
        takes: Takes::Path("DIR", |config, value| {
            config.dir = Some(PathBuf::from(value));
            Ok(())
        }),
        needs_workers: false,
        summary: "run the command in DIR; a link is followed anew at each start",
        default: "where panzer was started",
    },
    Opt {
        group: WORKERS,
        short: Some('u'),
        long: "user",
        takes: Takes::One("USER[:GROUP]", |config, value| {
            config.user = Some(value.to_owned());
            Ok(())
        }),
        needs_workers: false,
        summary: "run the command as USER (a name of /etc/passwd, or a number) with that user's groups",
        default: "as panzer itself",
    },
    Opt {
        group: WORKERS,
        short: None,
        long: "umask",
        takes: Takes::One("MASK", |config, value| {
            config.umask = Some(values::octal(value)?);
            Ok(())
        }),
        needs_workers: false,
        summary: "the command's file mode creation mask, in octal",
        default: "panzer's own",
    },
    Opt {
        group: WORKERS,
        short: None,
        long: "env-dir",
        takes: Takes::Path("DIR", |config, value| {
            config.env_dir = Some(PathBuf::from(value));
            Ok(())
        }),
        needs_workers: false,
        summary: "read variables from DIR; a file's name is the variable, its first line the value, an empty file unsets it",
        default: "",
    },
    Opt {
        group: SOCKETS,
        short: Some('l'),
        long: "listen",
        takes: Takes::Many("[NAME=]ADDR", |config, value| {
            config.listen.push(values::listen(value)?);
            Ok(())
        }),
        needs_workers: false,
        summary: "bind a socket and hand it down from fd 3 on; 8080, tcp://[::]:8080, udp://127.0.0.1:53, unix:///run/a.sock?mode=660, and further ?nonblock and ?v6only",
        default: "",
    },
    Opt {
        group: SOCKETS,
        short: None,
        long: "listen-env",
        takes: Takes::One("LIST", |config, value| {
            config.listen_env = values::listen_env(value)?;
            Ok(())
        }),
        needs_workers: false,
        summary: "how the command is told of its sockets; systemd, server-starter, einhorn, or none",
        default: "systemd,server-starter",
    },
    Opt {
        group: SOCKETS,
        short: None,
        long: "backlog",
        takes: Takes::One("N", |config, value| {
            config.backlog = values::number(value, 1, 1 << 30)?;
            Ok(())
        }),
        needs_workers: false,
        summary: "length of each listener's queue; the kernel cuts it to net.core.somaxconn",
        default: "4096",
    },
    Opt {
        group: SOCKETS,
        short: None,
        long: "share-ports",
        takes: Takes::One("WHEN", |config, value| {
            config.share_ports = match value {
                "auto" => SharePorts::Auto,
                "on" => SharePorts::On,
                "off" => SharePorts::Off,
                other => return Err(format!("\"{other}\" is none of auto, on and off")),
            };
            Ok(())
        }),
        needs_workers: true,
        summary: "workers that bind the same port share it; a UNIX path too; auto goes on where the kernel refuses, on does not, off never shares",
        default: "auto",
    },
    Opt {
        group: SOCKETS,
        short: None,
        long: "balance",
        takes: Takes::One("HOW", |config, value| {
            config.balance = match value {
                "shared" => Balance::Shared,
                "per-worker" => Balance::PerWorker,
                other => return Err(format!("\"{other}\" is neither shared nor per-worker")),
            };
            Ok(())
        }),
        needs_workers: true,
        summary: "how workers share connections; shared is one queue for all, per-worker a queue for each, with even shares",
        default: "shared",
    },
    Opt {
        group: LIFECYCLE,
        short: None,
        long: "ready",
        takes: Takes::One("WHEN", |config, value| {
            config.policy.ready = ready(value)?;
            Ok(())
        }),
        needs_workers: true,
        summary: "when a worker counts as ready; exec (its program runs), delay:T (it has run for so long), bind (it listens on a shared port), notify (READY=1, sd_notify) or fd (a newline on PANZER_READY_FD)",
        default: "bind where a port is shared, delay:1s in a slot that has never listened",
    },
    Opt {
        group: LIFECYCLE,
        short: None,
        long: "ready-timeout",
        takes: Takes::One("T", |config, value| {
            config.policy.ready_timeout = interval(value)?;
            Ok(())
        }),
        needs_workers: true,
        summary: "time in which a worker must get ready; else it is stopped and replaced",
        default: "60s",
    },
    Opt {
        group: LIFECYCLE,
        short: None,
        long: "restart",
        takes: Takes::One("WHEN", |config, value| {
            config.policy.restart = match value {
                "always" => Restart::Always,
                "on-failure" => Restart::OnFailure,
                "never" => Restart::Never,
                other => return Err(format!("\"{other}\" is none of always, on-failure and never")),
            };
            Ok(())
        }),
        needs_workers: true,
        summary: "which ended workers are started again; always, on-failure or never",
        default: "always",
    },
    Opt {
        group: LIFECYCLE,
        short: None,
        long: "backoff",
        takes: Takes::One("MIN:MAX", |config, value| {
            config.policy.backoff = backoff(value)?;
            Ok(())
        }),
        needs_workers: true,
        summary: "delay before a restart; none the first time, then MIN, doubling up to MAX; reset after 60s of being ready",
        default: "100ms:30s",
    },
    Opt {
        group: LIFECYCLE,
        short: None,
        long: "stagger",
        takes: Takes::One("T", |config, value| {
            config.policy.stagger = values::duration(value)?;
            Ok(())
        }),
        needs_workers: true,
        summary: "time between two starts of workers, at the least",
        default: "0s",
    },
    Opt {
        group: LIFECYCLE,
        short: None,
        long: "crash-limit",
        takes: Takes::One("N", |config, value| {
            config.policy.crash_limit = values::number(value, 0, u32::MAX)?;
            Ok(())
        }),
        needs_workers: true,
        summary: "give up after N failures (if no worker was ever ready); 0: never give up",
        default: "5",
    },
    Opt {
        group: LIFECYCLE,
        short: None,
        long: "fatal-exit",
        takes: Takes::Many("STATUS", |config, value| {
            config.policy.fatal_exits.push(values::status(value)?);
            Ok(())
        }),
        needs_workers: true,
        summary: "end everything when a worker ends with STATUS; panzer exits with it",
        default: "",
    },
    Opt {
        group: LIFECYCLE,
        short: None,
        long: "stop",
        takes: Takes::One("SCHEDULE", |config, value| {
            config.stop = Some(Schedule::parse(value)?);
            Ok(())
        }),
        needs_workers: false,
        summary: "signals to stop with, and the seconds between them; where the last is not KILL, panzer waits without limit",
        default: "TERM/25/KILL; without -n signals are only forwarded",
    },
    Opt {
        group: LIFECYCLE,
        short: None,
        long: "stop-delay",
        takes: Takes::One("T", |config, value| {
            config.policy.stop_delay = values::duration(value)?;
            Ok(())
        }),
        needs_workers: true,
        summary: "how long workers go on after a stop was asked for; not ready meanwhile; asked again, it is now",
        default: "0s",
    },
    Opt {
        group: LIFECYCLE,
        short: None,
        long: "reload-stop",
        takes: Takes::One("SCHEDULE", |config, value| {
            config.reload_stop = Some(Schedule::parse(value)?);
            Ok(())
        }),
        needs_workers: true,
        summary: "signals to stop a worker with that is replaced; or that is one too many",
        default: "as --stop",
    },
    Opt {
        group: LIFECYCLE,
        short: None,
        long: "reload-tries",
        takes: Takes::One("N", |config, value| {
            config.policy.replacement.tries = values::number(value, 0, u32::MAX)?;
            Ok(())
        }),
        needs_workers: true,
        summary: "failed tries that end a reload; the old workers stay then; 0: try without end",
        default: "1",
    },
    Opt {
        group: LIFECYCLE,
        short: None,
        long: "surge",
        takes: Takes::One("N", |config, value| {
            config.policy.replacement.surge = values::number(value, 1, MOST_WORKERS)?;
            Ok(())
        }),
        needs_workers: true,
        summary: "so many more processes while workers are replaced; an old one counts until it is gone",
        default: "1",
    },
    Opt {
        group: LIFECYCLE,
        short: None,
        long: "kill-old-delay",
        takes: Takes::One("T", |config, value| {
            config.policy.replacement.kill_old_delay = values::duration(value)?;
            Ok(())
        }),
        needs_workers: true,
        summary: "how long a replaced worker goes on; if the new one ends before that, the old one stays",
        default: "0s",
    },
    Opt {
        group: LIFECYCLE,
        short: None,
        long: "max-age",
        takes: Takes::One("T[~JITTER]", |config, value| {
            config.policy.max_age = Some(age(value)?);
            Ok(())
        }),
        needs_workers: true,
        summary: "replace a worker after T; counted from ready, with up to JITTER more, drawn once for each life",
        default: "",
    },
    Opt {
        group: LIFECYCLE,
        short: None,
        long: "max-rss",
        takes: Takes::One("SIZE", |config, value| {
            config.policy.max_memory = Some(values::size(value)?);
            Ok(())
        }),
        needs_workers: true,
        summary: "replace a worker that uses more memory; SIZE is 512M or 1G, for its process group",
        default: "",
    },
    Opt {
        group: LIFECYCLE,
        short: None,
        long: "watchdog",
        takes: Takes::One("T", |config, value| {
            config.policy.watchdog = Some(interval(value)?);
            Ok(())
        }),
        needs_workers: true,
        summary: "a worker must beat every T; WATCHDOG=1 (sd_notify) or a byte to PANZER_HEARTBEAT_FD; else it gets ABRT and is replaced",
        default: "",
    },
    Opt {
        group: LIFECYCLE,
        short: None,
        long: "linger",
        takes: Takes::One("T", |config, value| {
            config.policy.linger = values::duration(value)?;
            Ok(())
        }),
        needs_workers: false,
        summary: "time after TERM for what remains at the end; no wait when nothing remains",
        default: "2s",
    },
    Opt {
        group: SIGNALS,
        short: None,
        long: "on",
        takes: Takes::Many("SIG=ACTION", |config, value| {
            let (signal, action) = value.split_once('=').ok_or("it is not SIG=ACTION")?;
            let signal = Signal::parse(signal).ok_or_else(|| format!("\"{signal}\" is not a signal"))?;
            if signal == Signal::KILL || signal == Signal::STOP || signal == Signal::CHLD {
                return Err(format!("{signal} cannot be given another action"));
            }
            let action = Action::parse(action).ok_or_else(|| format!("\"{action}\" is none of {}", Action::WORDS))?;
            config.on.push((signal, action));
            Ok(())
        }),
        needs_workers: false,
        summary: "what a signal to panzer does; stop, stop-now, reload, scale-up, scale-down, forward, forward:SIG or ignore",
        default: "",
    },
    Opt {
        group: SIGNALS,
        short: None,
        long: "no-group",
        takes: Takes::Nothing(|config| config.policy.no_group = true),
        needs_workers: false,
        summary: "signal the main process alone (KILL in a stop reaches the group); without -n also leave alone what remains",
        default: "",
    },
    Opt {
        group: SIGNALS,
        short: None,
        long: "pdeathsig",
        takes: Takes::One("SIG", |config, value| {
            config.pdeathsig = Some(Signal::parse(value).ok_or_else(|| format!("\"{value}\" is not a signal"))?);
            Ok(())
        }),
        needs_workers: false,
        summary: "panzer itself gets SIG when its own parent dies",
        default: "",
    },
    Opt {
        group: OPERATION,
        short: None,
        long: "ok-exit",
        takes: Takes::Many("STATUS", |config, value| {
            config.policy.ok_exits.push(values::status(value)?);
            Ok(())
        }),
        needs_workers: false,
        summary: "count this exit status as 0 (143 is an end by TERM)",
        default: "",
    },
    Opt {
        group: OPERATION,
        short: None,
        long: "control",
        takes: Takes::Path("PATH|off", |config, value| {
            let is_off = value == "off";
            config.control = if is_off { ControlSocket::Off } else { ControlSocket::Path(PathBuf::from(value)) };
            Ok(())
        }),
        needs_workers: true,
        summary: "where panzer ctl finds panzer; a path beside the abstract name",
        default: "an abstract name",
    },
    Opt {
        group: OPERATION,
        short: None,
        long: "metrics",
        takes: Takes::One("ADDR", |config, value| {
            let wanted = values::listen(value)?;
            if let Address::Udp(_) = wanted.address {
                return Err("HTTP is not served over UDP".to_owned());
            }
            config.metrics = Some(wanted);
            Ok(())
        }),
        needs_workers: true,
        summary: "serve /metrics (Prometheus), /livez and /readyz at ADDR; as for --listen",
        default: "",
    },
    Opt {
        group: OPERATION,
        short: None,
        long: "pid-file",
        takes: Takes::Path("PATH", |config, value| {
            config.pid_file = Some(path(value)?);
            Ok(())
        }),
        needs_workers: true,
        summary: "write panzer's pid to PATH; refuse to start where another panzer has it",
        default: "",
    },
    Opt {
        group: OPERATION,
        short: None,
        long: "status-file",
        takes: Takes::Path("PATH", |config, value| {
            config.status_file = Some(path(value)?);
            Ok(())
        }),
        needs_workers: true,
        summary: "write GENERATION:PID of each worker; to PATH, a line each",
        default: "",
    },
    Opt {
        group: OPERATION,
        short: None,
        long: "config",
        // What stands in it has been read by now.
        takes: Takes::Path("FILE", |_, value| path(value).map(drop)),
        needs_workers: false,
        summary: "read more options from FILE; one a line, and the command as -- COMMAND; what is given here or as a variable wins",
        default: "none (as a machine's init: /etc/panzer.conf)",
    },
    Opt {
        group: OPERATION,
        short: None,
        long: "on-exit",
        takes: Takes::One("ACTION", |config, value| {
            config.on_exit = match value {
                "poweroff" => OnExit::PowerOff,
                "reboot" => OnExit::Reboot,
                "halt" => OnExit::Halt,
                other => return Err(format!("\"{other}\" is none of poweroff, reboot and halt")),
            };
            Ok(())
        }),
        needs_workers: false,
        summary: "what a machine's init ends with; poweroff, reboot or halt",
        default: "poweroff",
    },
    Opt {
        group: OPERATION,
        short: Some('q'),
        long: "quiet",
        takes: Takes::Nothing(|config| config.level = Level::Warning),
        needs_workers: false,
        summary: "print warnings and errors only",
        default: "",
    },
    Opt {
        group: OPERATION,
        short: Some('v'),
        long: "verbose",
        takes: Takes::Nothing(|config| config.level = Level::Debug),
        needs_workers: false,
        summary: "print every start, end and signal",
        default: "",
    },
    Opt {
        group: OPERATION,
        short: None,
        long: "log-format",
        takes: Takes::One("FORMAT", |config, value| {
            config.log_format = match value {
                "text" => LogFormat::Text,
                "json" => LogFormat::Json,
                other => return Err(format!("\"{other}\" is neither text nor json")),
            };
            Ok(())
        }),
        needs_workers: false,
        summary: "print lines on stderr as text or as json objects",
        default: "text",
    },
    Opt {
        group: OPERATION,
        short: None,
        long: "check",
        takes: Takes::Nothing(|config| config.check = true),
        needs_workers: false,
        summary: "check and say what would run, without starting it",
        default: "",
    },
    Opt {
        group: OPERATION,
        short: Some('h'),
        long: "help",
        takes: Takes::Show(Show::Help),
        needs_workers: false,
        summary: "print this help; -h is the short one",
        default: "",
    },
    Opt {
        group: OPERATION,
        short: Some('V'),
        long: "version",
        takes: Takes::Show(Show::Version),
        needs_workers: false,
        summary: "print the version",
        default: "",
    },
];

fn ready(text: &str) -> Read<Ready> {
    match text.strip_prefix("delay:") {
        Some(delay) => Ok(Ready::Delay(values::duration(delay)?)),
        None if text == "exec" => Ok(Ready::Exec),
        None if text == "bind" => Ok(Ready::Bind),
        None if text == "notify" => Ok(Ready::Notify),
        None if text == "fd" => Ok(Ready::Descriptor),
        None => Err(format!("\"{text}\" is none of exec, delay:T, bind, notify and fd")),
    }
}

fn age(text: &str) -> Read<Age> {
    let (least, jitter) = text.split_once('~').unwrap_or((text, "0"));
    Ok(Age { least: interval(least)?, jitter: values::duration(jitter)? })
}

/// A duration that is not nothing.
fn interval(text: &str) -> Read<Duration> {
    let interval = values::duration(text)?;
    if interval.is_zero() { Err("it must be longer than 0".to_owned()) } else { Ok(interval) }
}

/// A path as it was typed.
fn path(value: &OsStr) -> Read<PathBuf> {
    if value.is_empty() { Err("it is empty".to_owned()) } else { Ok(PathBuf::from(value)) }
}

fn backoff(text: &str) -> Read<Backoff> {
    let (min, max) = text.split_once(':').ok_or("it is not MIN:MAX")?;
    let (min, max) = (values::duration(min)?, values::duration(max)?);
    if min > max { Err("MIN is longer than MAX".to_owned()) } else { Ok(Backoff { min, max }) }
}
