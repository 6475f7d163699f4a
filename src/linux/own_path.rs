//! Files that panzer makes and removes again: UNIX sockets, the pid file, the status file.
//!
//! Must never remove what is not panzer's own any more.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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
    pub(super) fn of(path: &Path) -> std::io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), device: found.dev(), inode: found.ino(), content: None })
    }

    /// The same file under another name, with what it holds.
    pub(super) fn moved_to(mut self, path: &Path, content: &str) -> Self {
        path.clone_into(&mut self.path);
        self.content = Some(content.to_owned());
        self
    }

    /// Whether it is still there.
    fn is_ours(&self) -> bool {
        let is_it = |found: fs::Metadata| found.dev() == self.device && found.ino() == self.inode;
        let holds = |content: &String| fs::read(&self.path).is_ok_and(|found| found == content.as_bytes());
        fs::symlink_metadata(&self.path).is_ok_and(is_it) && self.content.as_ref().is_none_or(holds)
    }
}

impl Drop for OwnPath {
    fn drop(&mut self) {
        if self.is_ours() {
            let _ = fs::remove_file(&self.path);
        }
    }
}
