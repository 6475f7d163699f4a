//! The scenarios: panzer as a whole, started and watched from outside.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod attacks;
mod balance;
mod coming_from;
mod containers;
mod control;
mod control_attacks;
mod documents;
mod fuzz;
mod init_mode;
mod kubernetes;
mod listeners;
mod losses;
mod metrics;
mod metrics_attacks;
mod orphans;
mod pid1;
mod readiness;
mod recycle;
mod refusals;
mod reload;
mod servers;
mod share_lives;
mod share_ports;
mod share_unix;
mod share_users;
mod state_files;
mod stop_delay;
mod stress;
mod structure;
mod supervise;
mod support;
mod systemd;
mod terminal;
mod top;
