//! panzer in containers that podman makes: everything that an image, an engine and its limits ask of it.
//!
//! `scripts/test-containers` builds the images and runs these.

mod ends;
mod image;
mod init;
mod limits;
mod pause;
mod serving;
mod terminal;
