//! The scenarios: panzer as a whole, started and watched from outside.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod documents;
mod init_mode;
mod listeners;
mod orphans;
mod pid1;
mod refusals;
mod stress;
mod structure;
mod supervise;
mod support;
mod terminal;
