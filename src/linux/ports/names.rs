//! UNIX paths that stay although servers remove them: each one unlinks the path before it binds it, and again when it
//! ends, and would take the name away from all others.
//!
//! A second, hidden hard link keeps the socket's file; inotify tells when a link goes. Must never replace what somebody
//! else has put at the path, and leaves nothing behind.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, WatchFlags};
use rustix::fs::{AtFlags, CWD};
use rustix::io::Errno;

use super::caller::file_at;
use super::identity::{Identity, With};

/// How panzer learns of a link that is gone.
#[derive(Debug, Default)]
pub(super) struct Names {
    inotify: Option<OwnedFd>,
}

/// A path that is kept; it ends with this.
#[derive(Debug)]
pub(super) struct KeptName {
    path: PathBuf,
    hidden: PathBuf,
    /// Device and inode of the socket's file.
    file: (u64, u64),
    /// As whom to link and unlink; `None`: as panzer.
    owner: Option<Identity>,
}

impl Names {
    /// Has panzer told when a link to `name` goes, and gives what is readable then.
    ///
    /// # Errors
    /// The user has too many inotify instances.
    pub(super) fn watch(&mut self, name: &KeptName) -> Result<BorrowedFd<'_>, Errno> {
        if self.inotify.is_none() {
            self.inotify = Some(inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?);
        }
        let descriptor = self.inotify.as_ref().ok_or(Errno::BADF)?;
        // The number of links is an attribute of the file; the watch ends with it.
        name.as_owner(|| inotify::add_watch(descriptor, &name.hidden, WatchFlags::ATTRIB).map(drop))?;
        Ok(descriptor.as_fd())
    }

    /// Throws away what was told: every name is looked at anyway.
    pub(super) fn drain(&self) {
        let mut space = [0_u8; 4096];
        while let Some(Ok(1..)) = self.inotify.as_ref().map(|inotify| rustix::io::read(inotify, &mut space)) {}
    }
}

impl KeptName {
    /// Keeps `path`, at which a socket was just bound. To be called as its owner.
    ///
    /// # Errors
    /// ENOENT where the path is gone already; else the file system has no hard links, or no room.
    pub(super) fn new(path: &Path, owner: Option<Identity>) -> Result<Self, Errno> {
        let mut name = OsString::from(".");
        name.push(path.file_name().ok_or(Errno::INVAL)?);
        name.push(".panzer");
        let hidden = path.with_file_name(name);
        let file = file_at(path).ok_or(Errno::NOENT)?;
        // One that a killed panzer has left: its socket is dead, or it has lost the path, so the link is of no use.
        match rustix::fs::unlink(&hidden) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        rustix::fs::linkat(CWD, path, CWD, &hidden, AtFlags::empty())?;
        if file_at(&hidden) != Some(file) {
            return Err(Errno::NOENT);
        }
        Ok(Self { path: path.to_owned(), hidden, file, owner })
    }

    /// Puts the path back where it is gone. Where there is a link besides the hidden one, the server has renamed it, as
    /// some do with a temporary name.
    pub(super) fn restore(&self) -> Result<(), Errno> {
        let hidden = rustix::fs::lstat(&self.hidden)?;
        if (hidden.st_dev, hidden.st_ino) != self.file {
            // Somebody has put something else there, which is not to be had under this path.
            return Err(Errno::STALE);
        }
        if file_at(&self.path).is_some() || hidden.st_nlink > 1 {
            return Ok(());
        }
        let link = || match rustix::fs::linkat(CWD, &self.hidden, CWD, &self.path, AtFlags::empty()) {
            Err(Errno::EXIST) => Ok(()),
            linked => linked,
        };
        self.as_owner(link)
    }

    /// Whether somebody has put something else at the path. A path that is gone is none of that: it is put back.
    pub(super) fn is_taken(&self) -> bool {
        file_at(&self.path).is_some_and(|found| found != self.file)
    }

    fn as_owner(&self, action: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        match &self.owner {
            Some(owner) => owner.act(With::ItsOwn, action)?,
            None => action(),
        }
    }
}

impl Drop for KeptName {
    fn drop(&mut self) {
        let _ = self.as_owner(|| {
            for path in [&self.path, &self.hidden] {
                if file_at(path) == Some(self.file) {
                    let _ = rustix::fs::unlink(path);
                }
            }
            Ok(())
        });
    }
}
