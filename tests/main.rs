//! The scenarios: panzer as a whole, started and watched from outside.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod init_mode;
mod structure;
mod support;
