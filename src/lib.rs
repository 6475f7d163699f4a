//! panzer: a correct PID 1 that runs N processes of any server on one port and replaces dead ones at once.
//!
//! The map:
//!
//! - [`signals`], [`error`]: the signal table; refusals and exit statuses
//! - [`supervisor`]: the decisions. Pure: events and the time in, effects out
//! - [`config`]: what was asked for, as plain values
//! - [`cli`]: what people type
//! - [`linux`]: every system call
//! - [`ctl`]: the client side of `panzer ctl`
//! - [`records`]: the reader of what panzer writes about itself
//!
//! Imports run one way: `main` → `ctl` → `cli`, `linux` → `config` → `supervisor` → `signals`, `error`, `records`. A test
//! proves it.

pub mod cli;
pub mod config;
pub mod ctl;
pub mod error;
pub mod linux;
pub mod records;
pub mod signals;
pub mod supervisor;
