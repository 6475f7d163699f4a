//! Every system call: what the supervisor asks for is done here, and what happens is told to it.
//!
//! Must never decide: how long to wait, whom to stop and when to give up stands in `supervisor`.

mod check;
mod cpus;
mod env_dir;
mod environment;
mod event_loop;
mod guard;
mod listen;
mod log;
mod prepare;
mod processes;
mod spawn;
mod sys;
mod terminal;
mod users;

pub use check::check;
pub use event_loop::Running;
pub use log::Log;
pub use prepare::prepare;
