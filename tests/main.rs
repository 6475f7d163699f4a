//! The scenarios: panzer as a whole, started and watched from outside.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod balance;
mod documents;
mod init_mode;
mod listeners;
mod orphans;
mod pid1;
mod refusals;
mod servers;
mod share_lives;
mod share_ports;
mod share_unix;
mod share_users;
mod stress;
mod structure;
mod supervise;
mod support;
mod terminal;
