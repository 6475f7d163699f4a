//! UNIX paths that stay although servers remove them: each one unlinks the path before it binds it, and again when it
//! ends, and would take the name away from all others.
//!
//! A second, hidden hard link keeps the socket's file; inotify tells when a link goes. Must never replace what somebody
//! else has put at the path, and leaves nothing behind. The directory is opened once: whoever can rename what leads to it
//! must not make panzer link anything elsewhere.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::inotify::{self, WatchFlags};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::identity::{Identity, With};
use crate::linux::files;

/// How panzer learns of a link that is gone.
#[derive(Debug, Default)]
pub(super) struct Names {
    inotify: Option<OwnedFd>,
}

/// A path that is kept; it ends with this.
#[derive(Debug)]
pub(super) struct KeptName {
    directory: OwnedFd,
    name: CString,
    /// Where the hidden link is, and its name there.
    hidden_directory: OwnedFd,
    hidden: CString,
    /// Device and inode of the socket's file.
    file: (u64, u64),
    /// As whom to link and unlink; `None`: as panzer.
    owner: Option<Identity>,
}

/// Where a path is that was kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Where it was.
    There,
    /// It was removed.
    Gone,
    /// It was renamed, as some servers do with a temporary name.
    Renamed,
    /// There is something else at the path.
    Taken,
}

impl Names {
    /// Has panzer told when a link to `name` goes or is renamed, and gives what is readable then.
    ///
    /// # Errors
    /// The user has too many inotify instances.
    pub(super) fn watch(&mut self, name: &KeptName) -> Result<BorrowedFd<'_>, Errno> {
        if self.inotify.is_none() {
            self.inotify = Some(inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?);
        }
        let descriptor = self.inotify.as_ref().ok_or(Errno::BADF)?;
        // The number of links is an attribute of the file; the watch ends with it.
        name.as_owner(|| {
            let hidden = name.open_hidden()?;
            inotify::add_watch(descriptor, &*path_of(hidden.as_fd())?, WatchFlags::ATTRIB | WatchFlags::MOVE_SELF)
                .map(drop)
        })?;
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
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let beside = path.parent().unwrap_or(Path::new("/"));
        let directory = files::open_directory(beside)?;
        let own_name = files::c_string(Path::new(name))?;
        let file = id_of(&rustix::fs::statat(&directory, &*own_name, AtFlags::SYMLINK_NOFOLLOW)?);
        // A program that has made a directory for itself wants to remove it, and nothing else must be in it then.
        let found = rustix::fs::fstat(&directory)?;
        let is_private = found.st_mode & 0o077 == 0 && found.st_uid == rustix::process::geteuid().as_raw();
        let above = beside.parent().zip(beside.file_name()).filter(|_| is_private);
        let above = above.and_then(|(above, own)| link_hidden(&directory, name, above, &[own, OsStr::new(".")]).ok());
        let (hidden_directory, hidden) = match above {
            Some(linked) => linked,
            None => link_hidden(&directory, name, beside, &[])?,
        };
        let kept = Self { directory, name: own_name, hidden_directory, hidden, file, owner };
        if id_at(&kept.hidden_directory, &kept.hidden) == Some(file) { Ok(kept) } else { Err(Errno::NOENT) }
    }

    /// The hidden link, if it is still one to the socket's file.
    fn open_hidden(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let hidden = rustix::fs::openat(&self.hidden_directory, &*self.hidden, flags, Mode::empty())?;
        if id_of(&rustix::fs::fstat(&hidden)?) == self.file { Ok(hidden) } else { Err(Errno::STALE) }
    }

    /// Where the path is now.
    pub(super) fn place(&self) -> Place {
        match id_at(&self.directory, &self.name) {
            Some(found) if found == self.file => Place::There,
            Some(_) => Place::Taken,
            None => {
                let hidden = rustix::fs::statat(&self.hidden_directory, &*self.hidden, AtFlags::SYMLINK_NOFOLLOW);
                // A link besides the hidden one is what it was renamed to.
                if hidden.is_ok_and(|hidden| hidden.st_nlink > 1) { Place::Renamed } else { Place::Gone }
            }
        }
    }

    /// Puts the path back where it was removed.
    ///
    /// # Errors
    /// The hidden link is gone, too, or the directory.
    pub(super) fn restore(&self) -> Result<(), Errno> {
        if self.place() != Place::Gone {
            return Ok(());
        }
        self.as_owner(|| {
            // What was looked at is what is linked, whatever the name means by now.
            let hidden = self.open_hidden()?;
            match rustix::fs::linkat(
                CWD,
                &*path_of(hidden.as_fd())?,
                &self.directory,
                &*self.name,
                AtFlags::SYMLINK_FOLLOW,
            ) {
                Err(Errno::EXIST) => Ok(()),
                linked => linked,
            }
        })
    }

    fn as_owner(&self, mut action: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
        match &self.owner {
            Some(owner) => owner.act(With::ItsOwn, action)?,
            None => action(),
        }
    }
}

impl Drop for KeptName {
    fn drop(&mut self) {
        let _ = self.as_owner(|| {
            for (directory, name) in [(&self.directory, &self.name), (&self.hidden_directory, &self.hidden)] {
                if id_at(directory, name) == Some(self.file) {
                    let _ = rustix::fs::unlinkat(directory, &**name, AtFlags::empty());
                }
            }
            Ok(())
        });
    }
}

/// Makes the hidden link to `name`: `.PREFIXNAME.panzer` in the directory `into`.
fn link_hidden(directory: &OwnedFd, name: &OsStr, into: &Path, prefix: &[&OsStr]) -> Result<(OwnedFd, CString), Errno> {
    let parts = [&[OsStr::new(".")], prefix, &[name, OsStr::new(".panzer")]].concat();
    let hidden: OsString = parts.into_iter().collect();
    let (name, hidden) = (files::c_string(Path::new(name))?, files::c_string(Path::new(&hidden))?);
    let into = files::open_directory(into)?;
    // One that a killed panzer has left: its socket is dead, or it has lost the path, so the link is of no use.
    match rustix::fs::unlinkat(&into, &*hidden, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    rustix::fs::linkat(directory, &*name, &into, &*hidden, AtFlags::empty())?;
    Ok((into, hidden))
}

/// Device and inode of what has this name now.
fn id_at(directory: &OwnedFd, name: &CStr) -> Option<(u64, u64)> {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).ok().map(|found| id_of(&found))
}

fn id_of(found: &Stat) -> (u64, u64) {
    (found.st_dev, found.st_ino)
}

/// The name by which the kernel knows an open descriptor.
fn path_of(descriptor: BorrowedFd<'_>) -> Result<CString, Errno> {
    files::c_string(Path::new(&format!("/proc/self/fd/{}", descriptor.as_raw_fd())))
}
