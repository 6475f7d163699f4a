//! Every system call: what the supervisor asks for is done here, and what happens is told to it.
//!
//! Must never decide: how long to wait, whom to stop and when to give up stands in `supervisor`.
//!
//! - `prepare`, `check`: from what was asked for to something that runs, or to a description of it
//! - `event_loop`, `idle`, `token`, `signal_source`, `decider`, `children`: waits, tells the supervisor, does what it asks for
//! - `feedback`, `state_files`: what workers tell of themselves, and what is written about them
//! - `control`, `document`, `usage`, `queue_length`, `json`: what `panzer ctl` asks for, and what it is told
//! - `spawn`, `environment`: a worker's start, and the variables that it sees
//! - `guard`, `processes`: what happens when panzer dies, and which processes there are
//! - `metrics`: the child that Prometheus reads from
//! - `ports`: what workers bind by themselves
//! - `listen`, `address`, `socket_options`, `own_path`, `files`, `clock`, `users`, `env_dir`, `cpus`, `terminal`, `peer`: what their
//!   names say
//! - `log`, `manager`: the lines on stderr, and what panzer's own manager is told
//! - `machine`: what a machine's init does beside the rest
//! - `sys`: the calls that need `unsafe`

mod address;
mod check;
mod children;
mod clock;
mod control;
mod control_groups;
mod cpus;
mod decider;
mod document;
mod env_dir;
mod environment;
mod event_loop;
mod feedback;
mod files;
mod guard;
mod idle;
mod json;
mod listen;
mod log;
mod machine;
mod manager;
mod metrics;
mod observers;
mod own_path;
mod peer;
mod ports;
mod prepare;
mod processes;
mod queue_length;
mod signal_source;
mod socket_options;
mod spawn;
mod state_files;
mod sys;
mod terminal;
mod token;
mod usage;
mod users;

use crate::signals::Signal;

/// Keeps every signal for later, when there is somebody to forward it to. The first thing to do: the kernel drops what
/// comes to a PID 1 that neither blocks nor handles it (`pid_namespaces(7)`). SIGPIPE would come from panzer's own writes
/// and is ignored.
pub fn hold_signals() {
    sys::set_signal_mask(u64::MAX);
    sys::set_ignored(Signal::PIPE, true);
}

/// Gives signals the effect back that they had at the start: for a client, which Ctrl-C is to end at once, also while it
/// waits.
pub fn release_signals() {
    let found = sys::initial_signals();
    sys::set_ignored(Signal::PIPE, found.pipe_ignored);
    sys::set_signal_mask(found.mask);
}

/// Writes to stdout. std's own way there, with its buffer and its lock, is 2 kB more in the file.
///
/// # Errors
/// Nobody takes it.
pub fn print(text: &str) -> Result<(), rustix::io::Errno> {
    files::write(rustix::stdio::stdout(), text.as_bytes())
}

/// The text of a file of options.
///
/// # Errors
/// Why it cannot be had.
pub fn read_options(path: &std::path::Path) -> Result<String, String> {
    let bytes = files::read(path).map_err(words)?;
    // What a program is given would end there.
    if bytes.contains(&0) {
        return Err("it holds a NUL byte".to_owned());
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())
}

pub use check::check;
pub use clock::Instant;
pub use event_loop::Running;
pub use files::read as read_file;
pub use log::Log;
pub use machine::Machine;
pub use peer::{Peer, is_own_user, limit_waiting, peer_of};
pub use prepare::prepare;
pub use signal_source::SignalSource;
pub use sys::{list_arguments, variable, words};
pub use terminal::Modes;
