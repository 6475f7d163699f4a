//! Files that panzer makes and removes again: UNIX sockets, the pid file, the status file.
//!
//! Must never remove what is not panzer's own any more.

use std::path::{Path, PathBuf};

use rustix::fs::Stat;
use rustix::io::Errno;

use super::files;

/// A file that panzer has made: device and inode tell it from what somebody else may put there later.
#[derive(Debug)]
pub(super) struct OwnPath {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// What it holds, where others could write to it.
    content: Option<String>,
}

impl OwnPath {
    /// What is at this path now.
    ///
    /// # Errors
    /// Nothing that could be looked at.
    pub(super) fn of(path: &Path) -> Result<Self, Errno> {
        let found = files::lstat(path)?;
        Ok(Self { path: path.to_owned(), device: found.st_dev, inode: found.st_ino, content: None })
    }

    /// The same file under another name, with what it holds.
    pub(super) fn moved_to(mut self, path: &Path, content: &str) -> Self {
        path.clone_into(&mut self.path);
        self.content = Some(content.to_owned());
        self
    }

    /// Whether it is still there.
    fn is_ours(&self) -> bool {
        let is_it = |found: Stat| found.st_dev == self.device && found.st_ino == self.inode;
        let holds = |content: &String| files::read(&self.path).is_ok_and(|found| found == content.as_bytes());
        files::lstat(&self.path).is_ok_and(is_it) && self.content.as_ref().is_none_or(holds)
    }
}

impl Drop for OwnPath {
    fn drop(&mut self) {
        if self.is_ours() {
            let _ = files::unlink(&self.path);
        }
    }
}
