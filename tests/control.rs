//! The control socket and `panzer ctl`: what it shows, what it does, whom it believes.

mod commands;
pub(crate) mod document;
pub(crate) mod status;
mod table;
mod targets;
