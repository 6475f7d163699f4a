//! What people type: the option table, the parser, and what is rendered from the table.
//!
//! Must never look at the system: whether a user or a directory exists is found out in `linux`.

mod arguments;
pub mod help;
pub mod options;
mod parse;
mod values;

pub use parse::{parse, unknown};
